//! The newest changes of the state, from which differences are told to those who know an older
//! revision.

use std::ops::{Bound, Range};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::control::state::rows::RowKey;
use crate::types::{PodId, VolumeId};

/// Revisions, keys in all of them, and entries of audiences that are remembered at most.
const REVISIONS_MAX: usize = 8192;
const KEYS_MAX: usize = 1 << 16;
const AUDIENCES_MAX: usize = 1 << 21;

/// What one command has changed, and which pods it concerns.
#[derive(Debug, Default)]
pub struct Changed {
    /// First those of rows that all pods have, then those of each volume, then the others.
    keys: Vec<RowKey>,
    common: usize,
    volumes: Vec<VolumeChanged>,
}

/// A volume of which rows have changed, or the pods that it concerns.
#[derive(Debug)]
pub struct VolumeChanged {
    pub volume: VolumeId,
    /// The pods that the volume concerns after the command, ordered.
    pub audience: Vec<PodId>,
    keys: Range<usize>,
}

impl Changed {
    /// `volumes`: each with its audience and its keys.
    pub fn new(
        common: Vec<RowKey>,
        volumes: Vec<(VolumeId, Vec<PodId>, Vec<RowKey>)>,
        others: Vec<RowKey>,
    ) -> Changed {
        let mut changed = Changed { common: common.len(), keys: common, volumes: Vec::new() };
        for (volume, audience, of_volume) in volumes {
            let first = changed.keys.len();
            changed.keys.extend(of_volume);
            let keys = first..changed.keys.len();
            changed.volumes.push(VolumeChanged { volume, audience, keys });
        }
        changed.keys.extend(others);
        changed
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &RowKey> {
        self.keys.iter()
    }

    /// The keys of rows that all pods have.
    pub fn common(&self) -> &[RowKey] {
        &self.keys[..self.common]
    }

    pub fn volumes(&self) -> &[VolumeChanged] {
        &self.volumes
    }

    /// The keys of a volume in here.
    pub fn keys_of(&self, volume: &VolumeChanged) -> &[RowKey] {
        &self.keys[volume.keys.clone()]
    }

    fn audiences(&self) -> usize {
        self.volumes.iter().map(|volume| volume.audience.len()).sum()
    }
}

/// See the module. A copy is cheap.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    by_revision: RedBlackTreeMapSync<u64, Arc<Changed>>,
    keys: usize,
    audiences: usize,
    /// All changes after this revision are here.
    after: u64,
}

impl Recent {
    /// Nothing is remembered of what led to this revision.
    pub fn after(revision: u64) -> Recent {
        Recent { after: revision, ..Recent::default() }
    }

    pub fn push(&mut self, revision: u64, changed: Changed) {
        self.keys += changed.keys.len();
        self.audiences += changed.audiences();
        self.by_revision.insert_mut(revision, Arc::new(changed));
        while self.by_revision.size() > REVISIONS_MAX
            || self.keys > KEYS_MAX
            || self.audiences > AUDIENCES_MAX
        {
            let (first, changed) = self.by_revision.first().expect("there are keys");
            let first = *first;
            self.keys -= changed.keys.len();
            self.audiences -= changed.audiences();
            self.after = first;
            self.by_revision.remove_mut(&first);
        }
    }

    pub fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Changed>> {
        let range = (Bound::Excluded(revision), Bound::Unbounded);
        let all = || self.by_revision.range(range).map(|(_, changed)| &**changed);
        (revision >= self.after).then(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_remembered_up_to_a_bound() {
        let mut recent = Recent::after(7);
        let count = |recent: &Recent, since| {
            recent.since(since).map(|all| all.flat_map(Changed::keys).count())
        };
        assert_eq!(count(&recent, 6), None);
        assert_eq!(count(&recent, 7), Some(0));
        let key = |pod: u64| RowKey::Pod(PodId(pod));
        let change = |pod: u64| Changed::new(vec![key(pod)], Vec::new(), Vec::new());
        for revision in 8..8 + REVISIONS_MAX as u64 + 10 {
            recent.push(revision, change(revision));
        }
        assert_eq!(count(&recent, 16), None, "ten are forgotten");
        assert_eq!(count(&recent, 17), Some(REVISIONS_MAX));
        let newest = 8 + REVISIONS_MAX as u64 + 9;
        let keys: Vec<&RowKey> =
            recent.since(newest - 1).unwrap().flat_map(Changed::keys).collect();
        assert_eq!(keys, [&key(newest)]);
        let many = (0..KEYS_MAX as u64 + 1).map(key).collect();
        recent.push(newest + 1, Changed::new(many, Vec::new(), Vec::new()));
        assert_eq!(count(&recent, newest), None, "too many to remember");
        assert_eq!(count(&recent, newest + 1), Some(0));
        let audience: Vec<PodId> = (0..AUDIENCES_MAX as u64 + 1).map(PodId).collect();
        let volumes = vec![(VolumeId(1), audience, Vec::new())];
        recent.push(newest + 2, Changed::new(Vec::new(), volumes, Vec::new()));
        assert_eq!(count(&recent, newest + 1), None, "for too many pods");
    }

    #[test]
    fn keys_are_found_by_their_volume() {
        let volume = |id: u64| RowKey::Volume(VolumeId(id));
        let one = (VolumeId(1), vec![PodId(3)], vec![volume(1)]);
        let two = (VolumeId(2), Vec::new(), Vec::new());
        let changed = Changed::new(vec![RowKey::Cluster], vec![one, two], vec![RowKey::Head]);
        assert_eq!(changed.common(), [RowKey::Cluster]);
        let of = |at: usize| changed.keys_of(&changed.volumes()[at]);
        assert_eq!((of(0), of(1)), (&[volume(1)][..], &[][..]));
        assert_eq!(changed.keys().count(), 3);
    }
}
