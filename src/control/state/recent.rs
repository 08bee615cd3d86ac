//! The newest changes of the state, from which differences are told to those who know an older
//! revision.

use std::ops::Bound;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::control::state::rows::{RowChange, RowKey};

/// Revisions, and keys in all of them, that are remembered at most.
const REVISIONS_MAX: usize = 8192;
const KEYS_MAX: usize = 1 << 16;

/// See the module. A copy is cheap.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    by_revision: RedBlackTreeMapSync<u64, Arc<[RowKey]>>,
    keys: usize,
    /// All changes after this revision are here.
    after: u64,
}

impl Recent {
    /// Nothing is remembered of what led to this revision.
    pub fn after(revision: u64) -> Recent {
        Recent { after: revision, ..Recent::default() }
    }

    pub fn push(&mut self, revision: u64, changes: &[RowChange]) {
        let keys: Arc<[RowKey]> = changes.iter().map(|change| change.key.clone()).collect();
        self.keys += keys.len();
        self.by_revision.insert_mut(revision, keys);
        while self.by_revision.size() > REVISIONS_MAX || self.keys > KEYS_MAX {
            let (first, keys) = self.by_revision.first().expect("there are keys");
            (self.after, self.keys) = (*first, self.keys - keys.len());
            let first = *first;
            self.by_revision.remove_mut(&first);
        }
    }

    pub fn since(&self, revision: u64) -> Option<impl Iterator<Item = &RowKey>> {
        let range = (Bound::Excluded(revision), Bound::Unbounded);
        let keys = || self.by_revision.range(range).flat_map(|(_, keys)| keys.iter());
        (revision >= self.after).then(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PodId;

    #[test]
    fn changes_are_remembered_up_to_a_bound() {
        let mut recent = Recent::after(7);
        assert_eq!(recent.since(6).map(Iterator::count), None);
        assert_eq!(recent.since(7).map(Iterator::count), Some(0));
        let change = |pod: u64| RowChange { key: RowKey::Pod(PodId(pod)), row: None };
        for revision in 8..8 + REVISIONS_MAX as u64 + 10 {
            recent.push(revision, &[change(revision)]);
        }
        assert_eq!(recent.since(16).map(Iterator::count), None, "ten are forgotten");
        assert_eq!(recent.since(17).map(Iterator::count), Some(REVISIONS_MAX));
        let newest = 8 + REVISIONS_MAX as u64 + 9;
        let keys: Vec<&RowKey> = recent.since(newest - 1).unwrap().collect();
        assert_eq!(keys, [&RowKey::Pod(PodId(newest))]);
        let many: Vec<RowChange> = (0..KEYS_MAX as u64 + 1).map(change).collect();
        recent.push(newest + 1, &many);
        assert_eq!(recent.since(newest).map(Iterator::count), None, "too many to remember");
        assert_eq!(recent.since(newest + 1).map(Iterator::count), Some(0));
    }
}
