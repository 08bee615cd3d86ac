//! The database of a pod's catalog member. Log writes and installs are durable when they return.
//! The rows that entries change become durable with the next of these, or get lost. Every write is
//! atomic, and a pod can die right before or after one.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use crate::control::state::CatalogState;
use crate::control::state::rows::{RowChange, RowKey};
use crate::control::storage::{MemberRow, MemberStorage, Point, Recovered, Snapshot};
use crate::log::{Append, HardState, LogEntry};
use crate::replica::messages::Start;

/// A state by rows, and the entry as of which it is.
#[derive(Clone, Debug)]
pub struct Encoded {
    point: Point,
    /// `None`: there is no state yet.
    rows: Option<BTreeMap<RowKey, Bytes>>,
}

impl Encoded {
    pub fn new(snapshot: &Snapshot) -> Encoded {
        let Snapshot { index, term, ref meta, ref state } = *snapshot;
        let rows = state.as_ref().map(|state| state.rows().collect());
        Encoded { point: Point { index, term, meta: meta.clone() }, rows }
    }

    pub fn decode(&self) -> Snapshot {
        let Point { index, term, ref meta } = self.point;
        let state = self.rows.clone().map(|rows| {
            CatalogState::from_rows(rows).expect("a state that was written can be read")
        });
        Snapshot { index, term, meta: meta.clone(), state }
    }

    fn change(&mut self, point: &Point, changes: &[RowChange]) {
        self.point = point.clone();
        for RowChange { key, row } in changes {
            let rows = self.rows.as_mut().expect("there is a state before a command");
            match row {
                Some(row) => drop(rows.insert(key.clone(), row.clone())),
                None => drop(rows.remove(key)),
            }
        }
    }
}

/// Rows that were written and are not durable, with the point up to which the log is compacted.
type Unsynced = (Point, Vec<RowChange>, Option<(u64, u64)>);

/// See the module.
pub struct Database {
    pub row: MemberRow,
    hard: HardState,
    compacted: (u64, u64),
    state: Encoded,
    /// Entries after `compacted`.
    entries: VecDeque<LogEntry>,
    unsynced: Vec<Unsynced>,
    /// The pod dies at the write after this many.
    pub writes_left: Option<u64>,
}

/// The pod is dead.
#[derive(Debug, thiserror::Error)]
#[error("the power failed")]
pub struct PowerFailed;

impl Database {
    pub fn create(row: MemberRow, snapshot: &Snapshot) -> Database {
        Database {
            row,
            hard: HardState { term: snapshot.term, vote: 0, commit: snapshot.index },
            compacted: (snapshot.index, snapshot.term),
            state: Encoded::new(snapshot),
            entries: VecDeque::new(),
            unsynced: Vec::new(),
            writes_left: None,
        }
    }

    pub fn recover(&self) -> Recovered {
        let snapshot = self.state.decode();
        let hard = HardState { commit: self.hard.commit.max(snapshot.index), ..self.hard };
        let start = Start {
            hard,
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

    /// The pod dies: the first so many writes of rows have become durable.
    pub fn lose_power(&mut self, durable: usize) {
        let lost = self.unsynced.split_off(durable.min(self.unsynced.len()));
        drop(lost);
        self.sync();
    }

    /// Writes of rows that are not durable.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    fn sync(&mut self) {
        for (point, changes, compacted) in std::mem::take(&mut self.unsynced) {
            self.state.change(&point, &changes);
            if let Some(compacted) = compacted {
                assert!(compacted.0 <= point.index, "what is forgotten is applied");
                assert!(compacted.0 >= self.compacted.0, "a log never grows at its beginning");
                let gone = usize::try_from(compacted.0 - self.compacted.0).expect("few are here");
                self.entries.drain(..gone);
                self.compacted = compacted;
            }
        }
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

    fn append(&mut self, append: &Append) {
        self.sync();
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

    fn install(&mut self, append: &Append, snapshot: &Snapshot) {
        let reset = append.reset.as_ref().expect("the log is reset to the snapshot");
        assert_eq!((reset.index, reset.term), (snapshot.index, snapshot.term));
        self.unsynced.clear();
        self.entries.clear();
        self.compacted = (reset.index, reset.term);
        self.state = Encoded::new(snapshot);
        self.append(append);
    }
}

/// The interface of a member to its database.
pub struct SimStorage(pub Rc<RefCell<Database>>);

impl MemberStorage for SimStorage {
    type Error = PowerFailed;

    fn append(&mut self, append: &Append) -> Result<(), PowerFailed> {
        let mut database = self.0.borrow_mut();
        database.begin()?;
        database.append(append);
        Ok(())
    }

    fn applied(
        &mut self,
        point: &Point,
        changes: &[RowChange],
        compacted: Option<(u64, u64)>,
    ) -> Result<(), PowerFailed> {
        let mut database = self.0.borrow_mut();
        database.begin()?;
        database.unsynced.push((point.clone(), changes.to_vec(), compacted));
        Ok(())
    }

    fn install(&mut self, append: &Append, snapshot: &Snapshot) -> Result<(), PowerFailed> {
        let mut database = self.0.borrow_mut();
        database.begin()?;
        database.install(append, snapshot);
        Ok(())
    }
}
