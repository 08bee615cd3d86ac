//! The log and the state of this pod's member of the catalog, in a RocksDB of its own
//! (`<data>/catalog`). All writes are batches in one write-ahead log, so after a crash the newest
//! ones are missing at most, and never one before another that is there.
//!
//! | key | value |
//! |---|---|
//! | `member` | JSON of [`MemberRow`] |
//! | `hard` | protobuf HardState |
//! | `compacted` | index, term: the point before the first entry; u64, big endian |
//! | `applied` | index, term: u64 BE; generation: u32 BE; metadata of the group |
//! | `e` + index (u64 BE) | protobuf Entry |
//! | `r` + generation (u32 BE) + key | a row of the state, see [`crate::control::state::rows`] |
//!
//! The rows of the generation in `applied` are the state as of that entry. A state that comes from
//! the leader is written under the next generation, and counts with the batch that names it.

use std::path::Path;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{self, Entry};
use rocksdb::{DB, DBRecoveryMode, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use serde::{Deserialize, Serialize};

use crate::control::command::{CodecError, decode, encode};
use crate::control::state::rows::{RowChange, RowError, RowKey};
use crate::control::state::{CatalogState, StateError};
use crate::log::{Append, HardState, LogEntry};
use crate::replica::entry::{log_entry, raft_entry};
use crate::replica::messages::Start;
use crate::store::index::rocks_threads::one_more_database;
use crate::types::MemberId;

const MEMBER: &[u8] = b"member";
const HARD: &[u8] = b"hard";
const COMPACTED: &[u8] = b"compacted";
const APPLIED: &[u8] = b"applied";
/// Bytes of one batch of a state that is installed.
const INSTALL_BATCH_BYTES: usize = 1 << 20;

/// The owner of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    pub member: MemberId,
    /// Revision of the catalog that first named this member. Older lists do not contain it.
    pub since_revision: u64,
}

/// The state as of an applied entry.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub index: u64,
    pub term: u64,
    /// The group's configuration and other metadata, as encoded by [`crate::replica::meta`].
    pub meta: Bytes,
    /// `None` for a member that has not received a state yet.
    pub state: Option<CatalogState>,
}

/// Open tables of the database; the pod's descriptors are counted.
const OPEN_FILES_MAX: i32 = 64;

/// Everything from which a member starts.
#[derive(Debug)]
pub struct Recovered {
    pub row: MemberRow,
    pub start: Start,
    pub snapshot: Snapshot,
}

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("could not read or write the catalog's database")]
    Database(#[from] rocksdb::Error),
    #[error("{what} in the catalog's database is damaged")]
    Damaged { what: &'static str },
    #[error("an entry or the hard state in the catalog's database cannot be decoded")]
    Protobuf(#[from] protobuf::ProtobufError),
    #[error("the identity of the member in the catalog's database cannot be read")]
    Member(#[from] CodecError),
    #[error("a row in the catalog's database cannot be read")]
    Row(#[from] RowError),
    #[error("the state in the catalog's database cannot be used")]
    State(#[from] StateError),
}

/// An applied entry, with the metadata of the group as of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub index: u64,
    pub term: u64,
    /// As encoded by [`crate::replica::meta`].
    pub meta: Bytes,
}

/// Storage for the log and the state of a member of the catalog. Every call is atomic, and none is
/// durable before an earlier one.
pub trait MemberStorage {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Carries out one log write that resets nothing. Durable when it returns.
    fn append(&mut self, append: &Append) -> Result<(), Self::Error>;

    /// The rows that the entries up to `point` have changed. With `compacted` (index, term) it also
    /// deletes the entries up to there, which must be applied. May become durable later: the
    /// entries would be applied again.
    fn applied(
        &mut self,
        point: &Point,
        changes: &[RowChange],
        compacted: Option<(u64, u64)>,
    ) -> Result<(), Self::Error>;

    /// Carries out a log write that resets the log to a snapshot, and takes over its state. Durable
    /// when it returns.
    fn install(&mut self, append: &Append, snapshot: &Snapshot) -> Result<(), Self::Error>;
}

/// The RocksDB of this pod's member. Used by one thread.
pub struct Storage {
    db: DB,
    /// The generation of the rows that count.
    generation: u32,
}

impl Storage {
    /// Opens the database, or creates an empty one.
    pub fn open(path: &Path) -> Result<Storage, StorageError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_max_open_files(OPEN_FILES_MAX);
        // A crash may cut the last write short. Any other damage is an error, not a shorter log:
        // this member has promised what the log held.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_keep_log_file_num(2);
        options.set_max_total_wal_size(16 << 20);
        one_more_database()?;
        Ok(Storage { db: DB::open(&options, path)?, generation: 0 })
    }

    /// Initialises the log of a member. `snapshot` is the point before its first entry.
    pub fn create(&self, row: MemberRow, snapshot: &Snapshot) -> Result<(), StorageError> {
        let Snapshot { index, term, ref meta, ref state } = *snapshot;
        let hard = HardState { term, vote: 0, commit: index };
        let mut batch = WriteBatch::default();
        batch.put(MEMBER, encode(&row));
        batch.put(HARD, eraftpb::HardState::from(hard).write_to_bytes()?);
        batch.put(COMPACTED, encode_point(index, term));
        let point = Point { index, term, meta: meta.clone() };
        batch.put(APPLIED, encode_applied(&point, 0));
        for (key, row) in state.iter().flat_map(|state| state.rows()) {
            batch.put(row_key(0, &key), row);
        }
        self.write(batch)
    }

    /// Reads the log and the state; `None` in an empty database.
    pub fn recover(&mut self) -> Result<Option<Recovered>, StorageError> {
        let Some(row) = self.db.get(MEMBER)? else {
            return Ok(None);
        };
        let row: MemberRow = decode(&row)?;
        let hard = self.db.get(HARD)?.ok_or(StorageError::Damaged { what: "the hard state" })?;
        let mut hard: HardState = eraftpb::HardState::parse_from_bytes(&hard)?.into();
        let start = self.db.get(COMPACTED)?;
        let (compacted_index, compacted_term) = start
            .as_deref()
            .and_then(decode_point)
            .ok_or(StorageError::Damaged { what: "the start of the log" })?;
        let applied = self.db.get(APPLIED)?;
        let (point, generation) = applied
            .and_then(decode_applied)
            .filter(|(point, _)| point.index >= compacted_index)
            .ok_or(StorageError::Damaged { what: "the applied entry" })?;
        self.generation = generation;
        self.delete_other_generations()?;
        let state = self.read_state()?;
        // What was applied is committed; the hard state need not say so yet.
        hard.commit = hard.commit.max(point.index);
        let start = Start {
            hard,
            applied_index: point.index,
            compacted_index,
            compacted_term,
            entries: self.read_entries()?,
            on_disk: None,
            meta: point.meta.clone(),
            resyncing: false,
            faulted: false,
        };
        let Point { index, term, meta } = point;
        Ok(Some(Recovered { row, start, snapshot: Snapshot { index, term, meta, state } }))
    }

    fn read_entries(&self) -> Result<Vec<LogEntry>, StorageError> {
        let mut entries = Vec::new();
        let first = entry_key(0);
        for row in self.db.iterator(IteratorMode::From(&first, Direction::Forward)) {
            let (key, value) = row?;
            if key.first() != Some(&b'e') || key.len() != first.len() {
                break;
            }
            entries.push(log_entry(&Entry::parse_from_carllerche_bytes(&Bytes::from(value))?));
        }
        Ok(entries)
    }

    /// The state of the present generation; `None` without rows.
    fn read_state(&self) -> Result<Option<CatalogState>, StorageError> {
        let prefix = generation_key(self.generation);
        let mut rows = Vec::new();
        for row in self.db.iterator(IteratorMode::From(&prefix, Direction::Forward)) {
            let (key, value) = row?;
            let Some(key) = key.strip_prefix(&prefix[..]) else { break };
            rows.push((RowKey::decode(key)?, Bytes::from(value)));
        }
        match rows.is_empty() {
            true => Ok(None),
            false => Ok(Some(CatalogState::from_rows(rows)?)),
        }
    }

    /// An install that was interrupted leaves rows behind.
    fn delete_other_generations(&self) -> Result<(), StorageError> {
        let (first, last) = (generation_key(0), [b's', 0, 0, 0, 0]);
        let (ours, next) = (generation_key(self.generation), after(self.generation));
        let mut batch = WriteBatch::default();
        batch.delete_range(first, ours);
        batch.delete_range(next, last);
        self.write(batch)
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(batch, &options)?)
    }

    /// Writes the rows of a state under a generation that does not count yet.
    fn stage(&self, generation: u32, state: &CatalogState) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(generation_key(generation), after(generation));
        for (key, row) in state.rows() {
            batch.put(row_key(generation, &key), row);
            if batch.size_in_bytes() >= INSTALL_BATCH_BYTES {
                self.db.write(std::mem::take(&mut batch))?;
            }
        }
        Ok(self.db.write(batch)?)
    }
}

/// Adds the hard state and the entries of a log write to a batch.
fn add_log(batch: &mut WriteBatch, append: &Append) -> Result<(), StorageError> {
    if let Some(hard) = append.hard {
        batch.put(HARD, eraftpb::HardState::from(hard).write_to_bytes()?);
    }
    if let Some(first) = append.entries.first() {
        batch.delete_range(entry_key(first.index), entry_key(u64::MAX));
    }
    for entry in &append.entries {
        let known = raft_entry(entry).expect("converted from a raft-rs entry before");
        batch.put(entry_key(entry.index), known.write_to_bytes()?);
    }
    Ok(())
}

impl MemberStorage for Storage {
    type Error = StorageError;

    fn append(&mut self, append: &Append) -> Result<(), StorageError> {
        assert!(append.reset.is_none(), "a reset comes with a state");
        let mut batch = WriteBatch::default();
        add_log(&mut batch, append)?;
        match batch.is_empty() {
            true => Ok(()),
            false => self.write(batch),
        }
    }

    fn applied(
        &mut self,
        point: &Point,
        changes: &[RowChange],
        compacted: Option<(u64, u64)>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for RowChange { key, row } in changes {
            let key = row_key(self.generation, key);
            match row {
                Some(row) => batch.put(key, row),
                None => batch.delete(key),
            }
        }
        batch.put(APPLIED, encode_applied(point, self.generation));
        if let Some((index, term)) = compacted {
            assert!(index <= point.index, "deleted entries are applied");
            batch.put(COMPACTED, encode_point(index, term));
            batch.delete_range(entry_key(0), entry_key(index + 1));
        }
        Ok(self.db.write(batch)?)
    }

    fn install(&mut self, append: &Append, snapshot: &Snapshot) -> Result<(), StorageError> {
        let reset = append.reset.as_ref().expect("the log is reset to the snapshot");
        assert_eq!((reset.index, reset.term), (snapshot.index, snapshot.term));
        let generation = self.generation.wrapping_add(1);
        if let Some(state) = &snapshot.state {
            self.stage(generation, state)?;
        }
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(0), entry_key(u64::MAX));
        batch.put(COMPACTED, encode_point(reset.index, reset.term));
        add_log(&mut batch, append)?;
        let (index, term, meta) = (snapshot.index, snapshot.term, snapshot.meta.clone());
        batch.put(APPLIED, encode_applied(&Point { index, term, meta }, generation));
        self.write(batch)?;
        self.generation = generation;
        self.delete_other_generations()
    }
}

fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [b'e'; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn encode_point(index: u64, term: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&index.to_be_bytes());
    bytes[8..].copy_from_slice(&term.to_be_bytes());
    bytes
}

fn decode_point(bytes: &[u8]) -> Option<(u64, u64)> {
    let (index, rest) = bytes.split_first_chunk::<8>()?;
    let term = <[u8; 8]>::try_from(rest).ok()?;
    Some((u64::from_be_bytes(*index), u64::from_be_bytes(term)))
}

fn generation_key(generation: u32) -> [u8; 5] {
    let mut key = [b'r'; 5];
    key[1..].copy_from_slice(&generation.to_be_bytes());
    key
}

/// Above all keys of a generation.
fn after(generation: u32) -> [u8; 5] {
    match generation.checked_add(1) {
        Some(next) => generation_key(next),
        None => [b's', 0, 0, 0, 0],
    }
}

fn row_key(generation: u32, key: &RowKey) -> Vec<u8> {
    [&generation_key(generation)[..], &key.encode()].concat()
}

fn encode_applied(point: &Point, generation: u32) -> Vec<u8> {
    let mut bytes = encode_point(point.index, point.term).to_vec();
    bytes.extend_from_slice(&generation.to_be_bytes());
    bytes.extend_from_slice(&point.meta);
    bytes
}

fn decode_applied(bytes: Vec<u8>) -> Option<(Point, u32)> {
    let bytes = Bytes::from(bytes);
    let (point, rest) = bytes.split_first_chunk::<16>()?;
    let (index, term) = decode_point(point)?;
    let (generation, meta) = rest.split_first_chunk::<4>()?;
    let meta = bytes.slice_ref(meta);
    Some((Point { index, term, meta }, u32::from_be_bytes(*generation)))
}

#[cfg(test)]
#[path = "storage_test.rs"]
mod tests;
