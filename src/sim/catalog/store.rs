//! The database of a pod's catalog member. Writes are durable whatever happens to the pod. A write
//! is atomic, and a pod can die right before or after one.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use crate::control::command::{decode, encode};
use crate::control::storage::{MemberRow, MemberStorage, Recovered, Snapshot};
use crate::log::{Append, HardState, LogEntry};
use crate::replica::messages::Start;

/// The form of a snapshot on disks and between pods.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub index: u64,
    pub term: u64,
    pub meta: Bytes,
    pub state: Bytes,
}

impl Encoded {
    pub fn new(snapshot: &Snapshot) -> Encoded {
        let Snapshot { index, term, ref meta, ref state } = *snapshot;
        Encoded { index, term, meta: meta.clone(), state: encode(state).into() }
    }

    pub fn decode(&self) -> Snapshot {
        let state = decode(&self.state).expect("a state that was written can be read");
        Snapshot { index: self.index, term: self.term, meta: self.meta.clone(), state }
    }
}

/// See the module.
pub struct Database {
    pub row: MemberRow,
    hard: HardState,
    compacted: (u64, u64),
    snapshot: Encoded,
    /// Entries after `compacted`.
    entries: VecDeque<LogEntry>,
    /// The pod dies at the write after this many.
    pub writes_left: Option<u64>,
}

/// The pod is dead.
#[derive(Debug, thiserror::Error)]
#[error("the power failed")]
pub struct PowerFailed;

impl Database {
    pub fn create(row: MemberRow, snapshot: &Snapshot) -> Database {
        let hard = HardState { term: snapshot.term, vote: 0, commit: snapshot.index };
        let compacted = (snapshot.index, snapshot.term);
        let snapshot = Encoded::new(snapshot);
        Database { row, hard, compacted, snapshot, entries: VecDeque::new(), writes_left: None }
    }

    pub fn recover(&self) -> Recovered {
        let snapshot = self.snapshot.decode();
        let start = Start {
            hard: self.hard,
            applied_index: snapshot.index,
            compacted_index: self.compacted.0,
            compacted_term: self.compacted.1,
            entries: self.entries.iter().cloned().collect(),
            on_disk: None,
            meta: snapshot.meta.clone(),
            resyncing: false,
            faulted: false,
        };
        Recovered { row: self.row, start, snapshot }
    }

    pub fn entry(&self, index: u64) -> Option<&LogEntry> {
        let place = index.checked_sub(self.compacted.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Called before each write. The write reaches the disk, unless the pod dies now.
    fn begin(&mut self) -> Result<(), PowerFailed> {
        match &mut self.writes_left {
            None => Ok(()),
            Some(0) => Err(PowerFailed),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn append(&mut self, append: &Append, installed: Option<&Snapshot>) {
        if let Some(reset) = &append.reset {
            let installed = installed.expect("a reset comes with a state");
            assert_eq!((reset.index, reset.term), (installed.index, installed.term));
            self.entries.clear();
            self.compacted = (reset.index, reset.term);
            self.snapshot = Encoded::new(installed);
        }
        self.hard = append.hard.unwrap_or(self.hard);
        if let Some(first) = append.entries.first() {
            let kept = first.index.checked_sub(self.compacted.0 + 1);
            let kept = usize::try_from(kept.expect("what is compacted never changes"));
            self.entries.truncate(kept.expect("fewer entries than memory"));
        }
        for entry in &append.entries {
            let next = self.compacted.0 + self.entries.len() as u64 + 1;
            assert_eq!(entry.index, next, "the log has no gaps");
            self.entries.push_back(entry.clone());
        }
    }

    fn checkpoint(&mut self, snapshot: &Snapshot, compacted: (u64, u64)) {
        assert!(compacted.0 <= snapshot.index, "what is forgotten is in the snapshot");
        assert!(compacted.0 >= self.compacted.0, "a log never grows at its beginning");
        self.snapshot = Encoded::new(snapshot);
        let gone = usize::try_from(compacted.0 - self.compacted.0).expect("below what is here");
        self.entries.drain(..gone);
        self.compacted = compacted;
    }
}

/// The interface of a member to its database.
pub struct SimStorage(pub Rc<RefCell<Database>>);

impl MemberStorage for SimStorage {
    type Error = PowerFailed;

    fn append(&mut self, append: &Append, installed: Option<&Snapshot>) -> Result<(), PowerFailed> {
        let mut database = self.0.borrow_mut();
        database.begin()?;
        database.append(append, installed);
        Ok(())
    }

    fn checkpoint(
        &mut self,
        snapshot: &Snapshot,
        compacted: (u64, u64),
    ) -> Result<(), PowerFailed> {
        let mut database = self.0.borrow_mut();
        database.begin()?;
        database.checkpoint(snapshot, compacted);
        Ok(())
    }
}
