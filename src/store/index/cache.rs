//! A bounded cache of extent records. Records of unfinished commits are held, so that a late, older
//! answer of the index can never hide them.

use rustc_hash::FxHashMap;

use crate::store::messages::{ExtentKey, ExtentRecord};

/// Memory that the cache counts for one record.
const RECORD_BYTES: usize = 192;

/// See the module. Evicts by second chance.
pub(crate) struct RecordCache {
    places: FxHashMap<ExtentKey, usize>,
    entries: Vec<Entry>,
    hand: usize,
    records_max: usize,
}

struct Entry {
    key: ExtentKey,
    /// `None`: known to be absent.
    record: Option<ExtentRecord>,
    used: bool,
    /// Commits in flight that wrote the record.
    held: u32,
}

impl RecordCache {
    pub(crate) fn new(bytes_max: usize) -> RecordCache {
        RecordCache {
            places: FxHashMap::default(),
            entries: Vec::new(),
            hand: 0,
            records_max: (bytes_max / RECORD_BYTES).max(1),
        }
    }

    /// The cached record; the outer `None`: unknown.
    pub(crate) fn get(&mut self, key: &ExtentKey) -> Option<Option<&ExtentRecord>> {
        let place = *self.places.get(key)?;
        let entry = &mut self.entries[place];
        entry.used = true;
        Some(entry.record.as_ref())
    }

    /// Adds an answer of the index. A cached record is at least as new, and stays.
    pub(crate) fn learn(&mut self, key: ExtentKey, record: Option<ExtentRecord>) {
        if !self.places.contains_key(&key) {
            self.insert(key, record, 0);
        }
    }

    /// Adds a record whose commit was submitted; it stays until `committed`.
    pub(crate) fn commit(&mut self, key: ExtentKey, record: Option<ExtentRecord>) {
        match self.places.get(&key) {
            Some(place) => {
                let entry = &mut self.entries[*place];
                entry.record = record;
                entry.used = true;
                entry.held += 1;
            }
            None => self.insert(key, record, 1),
        }
    }

    /// The commit ended.
    pub(crate) fn committed(&mut self, key: &ExtentKey) {
        if let Some(place) = self.places.get(key) {
            let entry = &mut self.entries[*place];
            assert!(entry.held > 0, "a commit ended twice");
            entry.held -= 1;
        }
    }

    /// The commit of a deletion ended. Presence tells of it, so that the cache need not.
    pub(crate) fn deleted(&mut self, key: &ExtentKey) {
        self.committed(key);
        if let Some(place) = self.places.get(key).copied()
            && self.entries[place].held == 0
            && self.entries[place].record.is_none()
        {
            self.remove(place);
        }
    }

    /// Drops all matching records that are not held.
    pub(crate) fn forget(&mut self, matches: impl Fn(&ExtentKey) -> bool) {
        let mut place = 0;
        while place < self.entries.len() {
            if matches(&self.entries[place].key) && self.entries[place].held == 0 {
                self.remove(place);
            } else {
                place += 1;
            }
        }
    }

    fn insert(&mut self, key: ExtentKey, record: Option<ExtentRecord>, held: u32) {
        if self.entries.len() >= self.records_max {
            self.evict();
        }
        self.places.insert(key, self.entries.len());
        self.entries.push(Entry { key, record, used: false, held });
    }

    /// Makes room for one record, unless all are held.
    fn evict(&mut self) {
        for _ in 0..2 * self.entries.len() {
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = &mut self.entries[self.hand];
            if entry.held == 0 && !entry.used {
                self.remove(self.hand);
                return;
            }
            entry.used = false;
        }
    }

    fn remove(&mut self, place: usize) {
        let gone = self.entries.swap_remove(place);
        self.places.remove(&gone.key);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.key, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::messages::Slot;
    use crate::types::{Extent, MemberId, VolumeId};

    fn key(extent: u32) -> ExtentKey {
        ExtentKey { member: MemberId(1), extent: Extent(extent), layer: 0 }
    }

    fn record(slot: u32) -> Option<ExtentRecord> {
        Some(ExtentRecord {
            slot: Slot(slot),
            present: 1,
            zero: 0,
            last_changed: 1,
            birth: VolumeId(1),
            crcs: [0; 16],
        })
    }

    #[test]
    fn an_older_answer_never_hides_a_commit_in_flight() {
        let mut cache = RecordCache::new(4 * RECORD_BYTES);
        cache.commit(key(0), record(9));
        for extent in 1..100 {
            cache.learn(key(extent), record(extent));
        }
        cache.learn(key(0), record(1));
        let slot = |cache: &mut RecordCache| {
            let known = cache.get(&key(0))?;
            Some(known.map(|record| record.slot))
        };
        assert_eq!(slot(&mut cache), Some(Some(Slot(9))));
        cache.committed(&key(0));
        for extent in 100..200 {
            cache.learn(key(extent), record(extent));
        }
        assert_eq!(slot(&mut cache), None);
        assert!(cache.entries.len() <= 4);
        for (place, entry) in cache.entries.iter().enumerate() {
            assert_eq!(cache.places[&entry.key], place);
        }
    }
}
