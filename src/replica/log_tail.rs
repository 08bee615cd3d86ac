//! A member's log, as raft-rs's storage. In memory are all entries above `applied`, and a bounded
//! number of bytes below it for followers that lag a little. The store's log on the disk has older
//! ones, and of those only the terms are here. An entry that raft-rs wants of them is *asked for*,
//! and lent to it once the store has read it (rule `resync-beyond-the-ring`).
//!
//! ```text
//! base           compacted         applied              last
//! ---+----------------+----------------+------------------+
//!    |  on the disk   |         in memory                 |
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::limits::LOG_TERMS_MAX;
use crate::log::{HardState, LogEntry};
use crate::planted::planted;
use crate::replica::entry::raft_entry;
use crate::replica::terms::Terms;

/// Charged for an entry in addition to its payload and context.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Entries `compacted + 1 ..= last` in memory, contiguous, and the terms from `base` on.
pub struct LogTail {
    hard: HardState,
    conf: ConfState,
    entries: VecDeque<Entry>,
    /// From the entry before the first that followers can get, to the last that is not in memory.
    terms: Terms,
    /// The store's log can be asked for entries.
    on_disk: bool,
    applied_index: u64,
    /// Bytes of the entries up to `applied_index`.
    applied_bytes: usize,
    /// Bytes of all entries that were ever applied here.
    total_bytes: u64,
    /// Entries from the disk, while raft-rs sends them.
    lent: Vec<Entry>,
    /// Entries that raft-rs wanted and that only the disk has, since the last `take_asked`.
    asked: RefCell<Vec<Asked>>,
    /// Followers for which raft-rs wanted a snapshot, since the last `take_wanted`.
    wanted: RefCell<Vec<u64>>,
}

/// The entries from `low` on and before `high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub low: u64,
    pub high: u64,
}

/// Applied entries that compaction keeps for a follower.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Keeps entries after this index,
    pub above: u64,
    /// as long as all applied entries in memory take at most this many bytes.
    pub bytes_max: usize,
}

/// Why recovered entries do not form a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("entry {found} follows entry {before}")]
    Gap { before: u64, found: u64 },
    #[error("entry {index} is of term {term}, below its predecessor's")]
    Term { index: u64, term: u64 },
    #[error("the log ends at {last}, below the commit {commit}: acknowledged entries are gone")]
    Short { last: u64, commit: u64 },
    #[error("entry {index} is of a type that is not known")]
    Kind { index: u64 },
    #[error("the log starts behind {compacted}, above the applied index {applied}")]
    Hole { compacted: u64, applied: u64 },
}

/// Entries from the disk that are not those of this log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOfThisLog {
    #[error("entry {found} came in place of entry {wanted}")]
    Index { wanted: u64, found: u64 },
    #[error("entry {index} is of term {found}, and term {wanted} was written")]
    Term { index: u64, wanted: u64, found: u64 },
    #[error("entry {index} is of a type that is not known")]
    Kind { index: u64 },
}

impl LogTail {
    /// Builds the log from recovered parts. Raises `hard.commit` to `applied_index`, because
    /// applied entries were committed. The last of `terms` is that of the entry before the first of
    /// `entries`; the disk has those before it.
    pub fn new(
        mut hard: HardState,
        conf: ConfState,
        terms: Terms,
        applied_index: u64,
        mut entries: Vec<LogEntry>,
    ) -> Result<LogTail, LogError> {
        let compacted = terms.last();
        if entries.first().is_some_and(|first| first.term < compacted.1) {
            // These entries precede a resync that moved the starting point forward. Terms only grow
            // within a log, so they never belonged to the committed log.
            entries.clear();
        }
        let (mut before, mut term) = compacted;
        for entry in &entries {
            if before.checked_add(1) != Some(entry.index) {
                let found = entry.index;
                return Err(LogError::Gap { before, found });
            }
            if entry.term < term {
                let (index, term) = (entry.index, entry.term);
                return Err(LogError::Term { index, term });
            }
            (before, term) = (entry.index, entry.term);
        }
        if hard.term < term {
            // A resync brought entries of a later term than this member had heard of.
            (hard.term, hard.vote) = (term, 0);
        }
        hard.commit = hard.commit.max(applied_index);
        if compacted.0 > applied_index {
            let (compacted, applied) = (compacted.0, applied_index);
            return Err(LogError::Hole { compacted, applied });
        }
        if hard.commit > before {
            let (last, commit) = (before, hard.commit);
            return Err(LogError::Short { last, commit });
        }
        let known =
            |entry: &LogEntry| raft_entry(entry).ok_or(LogError::Kind { index: entry.index });
        let mut log = LogTail {
            hard,
            conf,
            entries: entries.iter().map(known).collect::<Result<_, _>>()?,
            terms,
            on_disk: false,
            applied_index: compacted.0,
            applied_bytes: 0,
            total_bytes: 0,
            lent: Vec::new(),
            asked: RefCell::default(),
            wanted: RefCell::default(),
        };
        log.applied_to(applied_index);
        Ok(log)
    }

    /// The store's log can be asked for entries that leave the memory from now on, and for those
    /// that the terms of `new` name.
    pub fn with_disk(self) -> LogTail {
        LogTail { on_disk: true, ..self }
    }

    /// The last index, in memory or compacted.
    pub fn last(&self) -> u64 {
        self.compacted() + self.entries.len() as u64
    }

    /// The index before the first entry in memory.
    pub fn compacted(&self) -> u64 {
        self.terms.last().0
    }

    /// The index before the first entry that a follower can get, from memory or disk.
    pub fn base(&self) -> u64 {
        self.terms.first().0
    }

    /// Appends entries. First drops the suffix that they replace.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else {
            return;
        };
        assert!(first.index > self.applied_index, "applied entries never change");
        assert!(first.index <= self.last() + 1, "the log has no gaps");
        let kept = first.index - self.compacted() - 1;
        self.entries.truncate(usize::try_from(kept).expect("fewer entries than memory"));
        self.entries.extend(entries);
    }

    /// Replaces the log by a snapshot: it is empty and starts behind `index`.
    pub fn reset(&mut self, index: u64, term: u64, conf: ConfState) {
        assert!(index >= self.applied_index, "a snapshot never takes back what is applied");
        self.entries.clear();
        self.conf = conf;
        self.terms = Terms::new(index, term);
        self.lent.clear();
        self.asked.get_mut().clear();
        self.applied_index = index;
        self.applied_bytes = 0;
    }

    /// Notes that all entries up to `index` are applied.
    pub fn applied_to(&mut self, index: u64) {
        assert!(index <= self.last(), "only what is in the log is applied");
        for at in self.applied_index + 1..=index {
            let bytes = entry_bytes(self.at(at).expect("inside the log"));
            self.applied_bytes += bytes;
            self.total_bytes += bytes as u64;
        }
        self.applied_index = self.applied_index.max(index);
    }

    /// Bytes of the entries that were applied since the start.
    pub fn applied_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Drops the oldest applied entries until at most `keep_bytes` of them are left. Stops earlier
    /// at entries that are kept for a follower.
    pub fn compact_to(&mut self, keep_bytes: usize, kept: Option<Kept>) {
        while self.applied_bytes > keep_bytes && self.compacted() < self.applied_index {
            let is_kept =
                |kept: Kept| self.compacted() >= kept.above && self.applied_bytes <= kept.bytes_max;
            if kept.is_some_and(is_kept) {
                break;
            }
            let entry = self.entries.pop_front().expect("up to applied, all are here");
            self.applied_bytes -= entry_bytes(&entry);
            self.terms.push(entry.term);
        }
        if !self.on_disk {
            self.terms.forget_before(self.compacted());
        }
        self.terms.limit(LOG_TERMS_MAX);
    }

    /// Entries that raft-rs wanted from the disk, since the last call.
    pub fn take_asked(&mut self) -> Vec<Asked> {
        std::mem::take(self.asked.get_mut())
    }

    /// Lends entries from the disk to raft-rs, until [`LogTail::take_back`]. They must be the
    /// entries of this log from `low` on (rule `fetched-as-logged`).
    pub fn lend(&mut self, low: u64, entries: &[LogEntry]) -> Result<(), NotOfThisLog> {
        let mut lent = Vec::with_capacity(entries.len());
        for (entry, wanted) in entries.iter().zip(low..) {
            let (index, found) = (entry.index, entry.term);
            if index != wanted {
                return Err(NotOfThisLog::Index { wanted, found: index });
            }
            match self.terms.get(index) {
                Some(term) if term == found || planted!(FetchedNotCompared) => {}
                term => {
                    let wanted = term.unwrap_or(0);
                    return Err(NotOfThisLog::Term { index, wanted, found });
                }
            }
            lent.push(raft_entry(entry).ok_or(NotOfThisLog::Kind { index })?);
        }
        self.lent = lent;
        Ok(())
    }

    pub fn take_back(&mut self) {
        self.lent.clear();
    }

    /// The disk does not have the entries up to `index` any more.
    pub fn gone_up_to(&mut self, index: u64) {
        self.terms.forget_before(index.min(self.compacted()));
    }

    /// Members that asked for entries below this log, since the last call.
    pub fn take_wanted(&mut self) -> Vec<u64> {
        std::mem::take(self.wanted.get_mut())
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.compacted() + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Notes that raft-rs wants these entries, which only the disk has.
    fn ask(&self, low: u64, high: u64) {
        let mut asked = self.asked.borrow_mut();
        if !asked.iter().any(|known| known.low == low) {
            asked.push(Asked { low, high });
        }
    }
}

/// The first of these entries, as many as fit, at least one.
fn take<'a>(entries: impl ExactSizeIterator<Item = &'a Entry>, max_bytes: u64) -> Vec<Entry> {
    let mut taken = Vec::with_capacity(entries.len().min(64));
    let mut bytes = 0u64;
    for entry in entries {
        bytes += (entry.data.len() + entry.context.len()) as u64 + 32;
        if bytes > max_bytes && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

/// Memory charged for an entry.
fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD_BYTES
}

impl Storage for LogTail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.into(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let compacted = self.compacted();
        if low <= self.base() || (low <= compacted && planted!(ResyncInsteadOfRing)) {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "raft-rs asks only for what it appended");
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let count = usize::try_from(high.saturating_sub(low)).expect("fits in memory");
        if low > compacted {
            let start = usize::try_from(low - compacted - 1).expect("fits in memory");
            return Ok(take(self.entries.range(start..start + count), max_bytes));
        }
        if let Some(start) = self.lent.iter().position(|entry| entry.index == low) {
            return Ok(take(self.lent[start..].iter().take(count), max_bytes));
        }
        if !context.can_async() {
            // What is not applied is in memory, and raft-rs waits for nothing else.
            return Err(Error::Store(StorageError::Compacted));
        }
        self.ask(low, high.min(compacted + 1));
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.base() {
            return Err(Error::Store(StorageError::Compacted));
        }
        let in_memory = || self.at(index).map(|entry| entry.term);
        let term = self.terms.get(index).or_else(in_memory);
        term.ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Never available, because data moves outside Raft. Notes which member asked.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut wanted = self.wanted.borrow_mut();
        if !wanted.contains(&to) {
            wanted.push(to);
        }
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
#[path = "log_tail_test.rs"]
mod tests;
