//! On the catalog's leader: what each pod said last, and when. Never durable: a new leader hears
//! from everybody within seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::types::{MemberId, PodId};
use crate::view::PodReport;

/// A pod that was silent for so long is away.
pub const AWAY_AFTER: Duration = Duration::from_secs(5);

/// A leader for so long has heard from every pod that is up.
const COMPLETE_AFTER: Duration = Duration::from_secs(3);

/// What a pod said.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub report: PodReport,
    /// Its member of the catalog and how far that has applied.
    pub catalog: Option<(MemberId, u64)>,
    pub version: String,
}

#[derive(Debug, Default)]
pub struct Reports {
    heard: Mutex<BTreeMap<PodId, (Instant, Heard)>>,
    leading_since: Mutex<Option<Instant>>,
}

/// All of it, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Pods that are up.
    pub up: BTreeMap<PodId, Heard>,
    /// A new leader has waited long enough: who is not up is away.
    pub is_complete: bool,
}

impl Reports {
    /// True when it says something else than before.
    pub fn hear(&self, pod: PodId, heard: Heard) -> bool {
        let mut all = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.insert(pod, (Instant::now(), heard.clone()));
        before.is_none_or(|(_, before)| before.report != heard.report)
    }

    /// Told again and again whether this pod leads: what was heard in earlier times is not
    /// what holds now.
    pub fn set_leading(&self, leading: bool) {
        let mut since = self.leading_since.lock().unwrap_or_else(PoisonError::into_inner);
        if !leading {
            *since = None;
        } else if since.is_none() {
            *since = Some(Instant::now());
        }
    }

    pub fn pods(&self) -> Pods {
        let since = *self.leading_since.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let up = all
            .iter()
            .filter(|(_, (at, _))| at.elapsed() < AWAY_AFTER)
            .map(|(pod, (_, heard))| (*pod, heard.clone()))
            .collect();
        Pods { up, is_complete: since.is_some_and(|since| since.elapsed() >= COMPLETE_AFTER) }
    }
}

impl Pods {
    /// Members of the catalog that are at most so many entries behind `applied`.
    pub fn caught_up(&self, applied: u64, behind: u64) -> BTreeSet<MemberId> {
        self.up
            .values()
            .filter_map(|heard| heard.catalog)
            .filter(|(_, at)| *at > 0 && at + behind >= applied)
            .map(|(member, _)| member)
            .collect()
    }
}
