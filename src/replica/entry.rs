//! Converts entries and HardStates between the types of `log` and those of raft-rs. Payloads are
//! shared, not copied.

use raft::eraftpb::{self, Entry, EntryType};

use crate::log::{HardState, LogEntry};

/// The loggable form of a raft-rs entry.
pub fn log_entry(entry: &Entry) -> LogEntry {
    let kind = match entry.entry_type {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    LogEntry {
        bypass: None,
        index: entry.index,
        term: entry.term,
        kind,
        context: entry.context.clone(),
        payload: entry.data.clone(),
    }
}

/// The inverse of [`log_entry`]. `None` if the type of the entry is unknown.
pub fn raft_entry(entry: &LogEntry) -> Option<Entry> {
    let entry_type = match entry.kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return None,
    };
    Some(Entry {
        entry_type,
        term: entry.term,
        index: entry.index,
        data: entry.payload.clone(),
        context: entry.context.clone(),
        ..Entry::default()
    })
}

impl From<eraftpb::HardState> for HardState {
    fn from(hard: eraftpb::HardState) -> HardState {
        HardState { term: hard.term, vote: hard.vote, commit: hard.commit }
    }
}

impl From<HardState> for eraftpb::HardState {
    fn from(hard: HardState) -> eraftpb::HardState {
        let HardState { term, vote, commit } = hard;
        eraftpb::HardState { term, vote, commit, ..eraftpb::HardState::default() }
    }
}
