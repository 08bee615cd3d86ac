//! On the catalog's leader: what each pod said last, and when. Never durable: a new leader hears
//! from everybody within seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::io::clock;
use crate::types::{MemberId, Mono, PodId, Uuid};
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

/// The table itself: its moments are the leader's own.
#[derive(Debug, Default)]
pub struct Table {
    heard: BTreeMap<PodId, (Mono, Heard)>,
    leading_since: Option<Mono>,
}

/// The table of this pod.
#[derive(Debug, Default)]
pub struct Reports {
    table: Mutex<Table>,
}

/// All of it, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Pods that are up.
    pub up: BTreeMap<PodId, Heard>,
    /// A new leader has waited long enough: who is not up is away.
    pub is_complete: bool,
}

impl Table {
    /// True when it says something else than before.
    pub fn hear(&mut self, now: Mono, pod: PodId, heard: Heard) -> bool {
        let before = self.heard.get(&pod).map(|(_, before)| &before.report);
        let is_new = before != Some(&heard.report);
        self.heard.insert(pod, (now, heard));
        is_new
    }

    /// Told again and again whether this pod leads: what was heard in earlier times is not
    /// what holds now.
    pub fn set_leading(&mut self, now: Mono, leading: bool) {
        self.leading_since = leading.then_some(self.leading_since.unwrap_or(now));
    }

    pub fn pods(&self, now: Mono) -> Pods {
        let is_up = |(_, (at, _)): &(_, &(Mono, _))| now.since(*at) < AWAY_AFTER;
        let up = self.heard.iter().filter(is_up);
        Pods {
            up: up.map(|(pod, (_, heard))| (*pod, heard.clone())).collect(),
            is_complete: self.leading_since.is_some_and(|at| now.since(at) >= COMPLETE_AFTER),
        }
    }
}

impl Reports {
    /// See [`Table::hear`].
    pub fn hear(&self, pod: PodId, heard: Heard) -> bool {
        self.table().hear(clock::now(), pod, heard)
    }

    /// See [`Table::set_leading`].
    pub fn set_leading(&self, leading: bool) {
        self.table().set_leading(clock::now(), leading);
    }

    pub fn pods(&self) -> Pods {
        self.table().pods(clock::now())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing in there can be half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    /// True when this pod is up and says that it has this disk.
    pub fn uses(&self, pod: PodId, disk: Uuid) -> bool {
        let disks = self.up.get(&pod).into_iter().flat_map(|heard| &heard.report.disks);
        disks.into_iter().any(|report| report.disk == disk)
    }

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
