//! The in-memory part of a member's log, as raft-rs's storage: all entries above `applied`, and a
//! bounded number of bytes below it for followers that lag a little.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::log::{HardState, LogEntry};
use crate::replica::entry::raft_entry;

/// Charged for an entry in addition to its payload and context.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Entries `compacted + 1 ..= last`, contiguous.
pub struct LogTail {
    hard: HardState,
    conf: ConfState,
    entries: VecDeque<Entry>,
    compacted_index: u64,
    compacted_term: u64,
    applied_index: u64,
    /// Bytes of the entries up to `applied_index`.
    applied_bytes: usize,
    /// Followers for which raft-rs wanted a snapshot, since the last `take_wanted`.
    wanted: RefCell<Vec<u64>>,
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

impl LogTail {
    /// Builds the log from recovered parts. Raises `hard.commit` to `applied_index`, because
    /// applied entries were committed.
    pub fn new(
        mut hard: HardState,
        conf: ConfState,
        compacted: (u64, u64),
        applied_index: u64,
        mut entries: Vec<LogEntry>,
    ) -> Result<LogTail, LogError> {
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
            compacted_index: compacted.0,
            compacted_term: compacted.1,
            applied_index: compacted.0,
            applied_bytes: 0,
            wanted: RefCell::default(),
        };
        log.applied_to(applied_index);
        Ok(log)
    }

    /// The last index, in memory or compacted.
    pub fn last(&self) -> u64 {
        self.compacted_index + self.entries.len() as u64
    }

    /// The index before the first entry in memory.
    pub fn compacted(&self) -> u64 {
        self.compacted_index
    }

    /// Appends entries. First drops the suffix that they replace.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else {
            return;
        };
        assert!(first.index > self.applied_index, "applied entries never change");
        assert!(first.index <= self.last() + 1, "the log has no gaps");
        let kept = first.index - self.compacted_index - 1;
        self.entries.truncate(usize::try_from(kept).expect("fewer entries than memory"));
        self.entries.extend(entries);
    }

    /// Replaces the log by a snapshot: it is empty and starts behind `index`.
    pub fn reset(&mut self, index: u64, term: u64, conf: ConfState) {
        assert!(index >= self.applied_index, "a snapshot never takes back what is applied");
        self.entries.clear();
        self.conf = conf;
        self.compacted_index = index;
        self.compacted_term = term;
        self.applied_index = index;
        self.applied_bytes = 0;
    }

    /// Notes that all entries up to `index` are applied.
    pub fn applied_to(&mut self, index: u64) {
        assert!(index <= self.last(), "only what is in the log is applied");
        for at in self.applied_index + 1..=index {
            self.applied_bytes += entry_bytes(self.at(at).expect("inside the log"));
        }
        self.applied_index = self.applied_index.max(index);
    }

    /// Drops the oldest applied entries until at most `keep_bytes` of them are left. Stops earlier
    /// at entries that are kept for a follower.
    pub fn compact_to(&mut self, keep_bytes: usize, kept: Option<Kept>) {
        while self.applied_bytes > keep_bytes && self.compacted_index < self.applied_index {
            let is_kept = |kept: Kept| {
                self.compacted_index >= kept.above && self.applied_bytes <= kept.bytes_max
            };
            if kept.is_some_and(is_kept) {
                break;
            }
            let entry = self.entries.pop_front().expect("up to applied, all are here");
            self.applied_bytes -= entry_bytes(&entry);
            self.compacted_index = entry.index;
            self.compacted_term = entry.term;
        }
    }

    /// Members that asked for entries below this log, since the last call.
    pub fn take_wanted(&mut self) -> Vec<u64> {
        std::mem::take(self.wanted.get_mut())
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.compacted_index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }
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
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "raft-rs asks only for what it appended");
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let start = usize::try_from(low - self.compacted_index - 1).expect("fits in memory");
        let count = usize::try_from(high.saturating_sub(low)).expect("fits in memory");
        let mut taken = Vec::with_capacity(count.min(64));
        let mut bytes = 0u64;
        for entry in self.entries.range(start..start + count) {
            bytes += (entry.data.len() + entry.context.len()) as u64 + 32;
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted_index {
            return Ok(self.compacted_term);
        }
        if index < self.compacted_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        match self.at(index) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted_index + 1)
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
