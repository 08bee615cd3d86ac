//! The volumes that a pod wants to be told of although they may not concern it otherwise: clients
//! use them here, or are about to. Pure.
//!
//! A want ends [`KEPT_FOR`] after the last use, so that a client which comes back finds its volume.
//! Wants are kept with the mirror: a pod that starts again serves its clients without the catalog.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::types::{Mono, VolumeId};

/// A want lasts so long after its last use.
pub const KEPT_FOR: Duration = Duration::from_secs(60);
/// Wants at most.
pub const WANTS_MAX: usize = 4096;

/// As many volumes are wanted and used as may be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this pod has as many volumes of other pods open as it can")]
pub struct Full;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Wants {
    /// The end of each; `None`: it is in use.
    ends: BTreeMap<VolumeId, Option<Mono>>,
}

impl Wants {
    /// What was wanted when the pod ran last.
    pub fn after_start(now: Mono, wanted: &BTreeSet<VolumeId>) -> Wants {
        let end = Some(now + KEPT_FOR);
        Wants { ends: wanted.iter().take(WANTS_MAX).map(|volume| (*volume, end)).collect() }
    }

    /// Somebody is about to use a volume, for so long at least. Takes the place of one that nobody
    /// uses, if need be.
    pub fn want(&mut self, now: Mono, volume: VolumeId, time: Duration) -> Result<(), Full> {
        let end = now + time;
        if let Some(known) = self.ends.get_mut(&volume) {
            *known = known.map(|known| known.max(end));
            return Ok(());
        }
        if self.ends.len() >= WANTS_MAX {
            let idle = self.ends.iter().filter_map(|(volume, end)| Some(((*end)?, *volume)));
            let (_, oldest) = idle.min().ok_or(Full)?;
            self.ends.remove(&oldest);
        }
        self.ends.insert(volume, Some(end));
        Ok(())
    }

    /// Clients use these volumes, and no others.
    pub fn used(&mut self, now: Mono, used: &BTreeSet<VolumeId>) {
        for (volume, end) in &mut self.ends {
            match (used.contains(volume), &end) {
                (true, _) => *end = None,
                (false, None) => *end = Some(now + KEPT_FOR),
                (false, Some(_)) => {}
            }
        }
        for volume in used {
            if self.ends.len() < WANTS_MAX {
                self.ends.insert(*volume, None);
            }
        }
    }

    /// Forgets what nobody has used for long. Returns when that is due again.
    pub fn expire(&mut self, now: Mono) -> Option<Mono> {
        self.ends.retain(|_, end| end.is_none_or(|end| end > now));
        self.ends.values().flatten().min().copied()
    }

    pub fn volumes(&self) -> BTreeSet<VolumeId> {
        self.ends.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Mono = Mono(1);

    fn set(volumes: &[u64]) -> BTreeSet<VolumeId> {
        volumes.iter().copied().map(VolumeId).collect()
    }

    #[test]
    fn a_want_ends_some_time_after_its_last_use() {
        let mut wants = Wants::after_start(START, &set(&[1]));
        wants.want(START, VolumeId(2), KEPT_FOR).unwrap();
        wants.used(START, &set(&[2, 3]));
        assert_eq!(wants.volumes(), set(&[1, 2, 3]));
        let later = START + KEPT_FOR;
        assert_eq!(wants.expire(later), None, "what is in use has no end");
        assert_eq!(wants.volumes(), set(&[2, 3]));
        wants.used(later, &set(&[3]));
        wants.want(later, VolumeId(3), KEPT_FOR / 2).unwrap();
        assert_eq!(wants.expire(later), Some(later + KEPT_FOR));
        wants.expire(later + KEPT_FOR);
        assert_eq!(wants.volumes(), set(&[3]));
    }

    #[test]
    fn wants_are_bounded() {
        let mut wants = Wants::default();
        let all: Vec<u64> = (0..WANTS_MAX as u64).collect();
        wants.want(START, VolumeId(0), KEPT_FOR).unwrap();
        wants.used(START, &set(&all[1..]));
        wants.want(START, VolumeId(9999), KEPT_FOR).unwrap();
        assert!(!wants.volumes().contains(&VolumeId(0)), "nobody used it");
        wants.used(START, &set(&[&all[1..], &[9999]].concat()));
        assert_eq!(wants.want(START, VolumeId(8888), KEPT_FOR), Err(Full));
        wants.used(START, &set(&(0..2 * WANTS_MAX as u64).collect::<Vec<_>>()));
        assert_eq!(wants.volumes().len(), WANTS_MAX);
    }
}
