//! The log as raft-rs sees it, against a model: truncations, compaction, snapshots, and a disk that
//! forgets the oldest entries.

use bytes::Bytes;

use super::*;
use crate::sim::rng::Rng;

/// Every entry of a log, and where it begins.
struct Model {
    base: (u64, u64),
    entries: Vec<LogEntry>,
    applied: u64,
    /// The disk has entries from here on.
    disk_first: u64,
}

fn entry(index: u64, term: u64) -> LogEntry {
    // Content tells index and term, so that another entry cannot pass for this one.
    let context = Bytes::from(format!("{index} of {term}"));
    LogEntry { index, term, context, ..LogEntry::default() }
}

fn raft(entries: &[LogEntry]) -> Vec<Entry> {
    entries.iter().map(|entry| raft_entry(entry).unwrap()).collect()
}

impl Model {
    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    fn term(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.at(index).map(|entry| entry.term)
    }

    fn at(&self, index: u64) -> Option<&LogEntry> {
        let at = index.checked_sub(self.base.0 + 1)?;
        self.entries.get(at as usize)
    }

    /// What the disk gives: committed entries from `low` on.
    fn read(&self, low: u64, high: u64) -> Vec<LogEntry> {
        (low..high).map(|index| self.at(index).unwrap().clone()).collect()
    }
}

/// Asks for entries as raft-rs does, and lets the disk answer.
fn get(log: &mut LogTail, model: &Model, low: u64, max_bytes: u64, rng: &mut Rng) {
    let high = log.last() + 1;
    let context = || GetEntriesContext::empty(true);
    let mut result = log.entries(low, high, max_bytes, context());
    if result == Err(Error::Store(StorageError::LogTemporarilyUnavailable)) {
        let asked = log.take_asked();
        assert_eq!(asked.len(), 1);
        let Asked { low: from, high } = asked[0];
        assert!(from == low && high <= model.applied + 1, "nobody asks for what may change");
        if low < model.disk_first {
            log.gone_up_to(low.max(model.disk_first - 1));
            assert!(log.base() >= low);
        } else {
            let end = low + 1 + rng.below(high - low);
            log.lend(low, &model.read(low, end)).unwrap();
            result = log.entries(low, log.last() + 1, max_bytes, context());
            log.take_back();
            let again = log.entries(low, log.last() + 1, max_bytes, context());
            assert!(again.is_err(), "lent, not kept");
            log.take_asked();
        }
    }
    let Ok(found) = result else {
        assert!(low <= log.base() || low < model.disk_first, "{low} is behind {}", log.base());
        return;
    };
    assert!(!found.is_empty());
    for (found, index) in found.iter().zip(low..) {
        assert_eq!(Some(found), model.at(index).map(|e| raft_entry(e).unwrap()).as_ref());
    }
}

#[test]
fn a_log_gives_exactly_the_entries_that_were_written_last() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut model = Model { base: (0, 0), entries: Vec::new(), applied: 0, disk_first: 1 };
        let terms = Terms::new(0, 0);
        let log = LogTail::new(HardState::default(), ConfState::default(), terms, 0, Vec::new());
        let mut log = log.unwrap().with_disk();
        let mut term = 1;
        for _ in 0..300 {
            match rng.below(12) {
                0..4 => {
                    // Often replaces what is not applied.
                    let after = match rng.below(3) {
                        0 => model.applied + rng.below(model.last() - model.applied + 1),
                        _ => model.last(),
                    };
                    term += u64::from(after < model.last() || rng.below(5) == 0);
                    let count = rng.below(5);
                    let new: Vec<LogEntry> =
                        (1..=count).map(|more| entry(after + more, term)).collect();
                    if !new.is_empty() {
                        model.entries.truncate((after - model.base.0) as usize);
                        model.entries.extend(new.iter().cloned());
                    }
                    log.append(raft(&new));
                }
                4..7 => {
                    model.applied += rng.below(model.last() - model.applied + 1);
                    log.applied_to(model.applied);
                }
                7 => log.compact_to(rng.below(600) as usize, None),
                8 => {
                    let newest = model.applied + 1;
                    model.disk_first += rng.below((newest - model.disk_first.min(newest)) / 4 + 1);
                }
                9 if rng.below(6) == 0 => {
                    // A resync moves the log on; the disk has nothing before that.
                    let index = model.applied + rng.below(10);
                    term += 1;
                    model.base = (index, term);
                    model.entries.clear();
                    (model.applied, model.disk_first) = (index, index + 1);
                    log.reset(index, term, ConfState::default());
                }
                _ => {
                    let low = 1 + rng.below(log.last() + 1);
                    if low <= log.last() {
                        let max_bytes = rng.below(400);
                        get(&mut log, &model, low, max_bytes, &mut rng);
                    }
                }
            }
            assert_eq!(log.last(), model.last());
            for index in log.base()..=log.last() {
                assert_eq!(log.term(index).ok(), model.term(index), "the term of {index}");
            }
            assert!(log.term(log.last() + 1).is_err());
            assert!(log.base() == 0 || log.term(log.base() - 1).is_err());
        }
    }
}

#[test]
fn entries_that_are_not_of_this_log_are_refused() {
    let terms = Terms::new(0, 0);
    let log = LogTail::new(HardState::default(), ConfState::default(), terms, 0, Vec::new());
    let mut log = log.unwrap().with_disk();
    let entries = [entry(1, 1), entry(2, 1), entry(3, 2)];
    log.append(raft(&entries));
    log.applied_to(3);
    log.compact_to(0, None);
    assert_eq!((log.base(), log.compacted()), (0, 3));
    assert_eq!(log.lend(1, &entries), Ok(()));
    let wanted = log.lend(2, &entries[2..]);
    assert_eq!(wanted, Err(NotOfThisLog::Index { wanted: 2, found: 3 }));
    let term = log.lend(2, &[entry(2, 1), entry(3, 1)]);
    assert_eq!(term, Err(NotOfThisLog::Term { index: 3, wanted: 2, found: 1 }));
    let beyond = log.lend(4, &[entry(4, 2)]);
    assert_eq!(beyond, Err(NotOfThisLog::Term { index: 4, wanted: 0, found: 2 }));
    let kind = log.lend(2, &[LogEntry { kind: 9, ..entry(2, 1) }]);
    assert_eq!(kind, Err(NotOfThisLog::Kind { index: 2 }));
}

/// A log that nothing can be read back from, as the catalog's.
#[test]
fn without_a_disk_what_leaves_the_memory_is_gone() {
    let terms = Terms::new(0, 0);
    let log = LogTail::new(HardState::default(), ConfState::default(), terms, 0, Vec::new());
    let mut log = log.unwrap();
    log.append(raft(&[entry(1, 1), entry(2, 1)]));
    log.applied_to(2);
    log.compact_to(0, None);
    assert_eq!((log.base(), log.compacted()), (2, 2));
    let gone = log.entries(1, 3, None, GetEntriesContext::empty(true));
    assert_eq!(gone, Err(Error::Store(StorageError::Compacted)));
}
