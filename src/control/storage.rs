//! The log and the state of this pod's member of the catalog, in a RocksDB of its own
//! (`<data>/catalog`). Every write is one synced batch.
//!
//! | key | value |
//! |---|---|
//! | `member` | JSON of [`MemberRow`] |
//! | `hard` | protobuf HardState |
//! | `compacted` | index, term: the point before the first entry; u64, big endian |
//! | `snapshot` | applied index, term: u64 BE; length of meta: u32 BE; meta; encoded state |
//! | `e` + index (u64 BE) | protobuf Entry |

use std::path::Path;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{self, Entry};
use rocksdb::{DB, DBRecoveryMode, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use serde::{Deserialize, Serialize};

use crate::control::command::{CodecError, decode, encode};
use crate::control::state::CatalogState;
use crate::log::{Append, HardState};
use crate::replica::entry::{log_entry, raft_entry};
use crate::replica::messages::Start;
use crate::store::index::rocks_threads::one_more_database;
use crate::types::MemberId;

const MEMBER: &[u8] = b"member";
const HARD: &[u8] = b"hard";
const COMPACTED: &[u8] = b"compacted";
const SNAPSHOT: &[u8] = b"snapshot";

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
    #[error("the state in the catalog's database cannot be read")]
    CatalogState(#[from] CodecError),
}

/// Storage for the log and the state of a member of the catalog. Every call is atomic, and durable
/// when it returns.
pub trait MemberStorage {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Carries out one log write. `installed` is the state that comes with a reset.
    fn append(&mut self, append: &Append, installed: Option<&Snapshot>) -> Result<(), Self::Error>;

    /// Replaces the snapshot, and deletes the entries up to `compacted` (index, term), which the
    /// snapshot covers.
    fn checkpoint(&mut self, snapshot: &Snapshot, compacted: (u64, u64))
    -> Result<(), Self::Error>;
}

/// The RocksDB of this pod's member. Used by one thread.
pub struct Storage {
    db: DB,
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
        Ok(Storage { db: DB::open(&options, path)? })
    }

    /// Initialises the log of a member. `snapshot` is the point before its first entry.
    pub fn create(&self, row: MemberRow, snapshot: &Snapshot) -> Result<(), StorageError> {
        let hard = HardState { term: snapshot.term, vote: 0, commit: snapshot.index };
        let mut batch = WriteBatch::default();
        batch.put(MEMBER, encode(&row));
        batch.put(HARD, eraftpb::HardState::from(hard).write_to_bytes()?);
        batch.put(COMPACTED, encode_point(snapshot.index, snapshot.term));
        batch.put(SNAPSHOT, encode_snapshot(snapshot));
        self.write(batch)
    }

    /// Reads the log and the state; `None` in an empty database.
    pub fn recover(&self) -> Result<Option<Recovered>, StorageError> {
        let Some(row) = self.db.get(MEMBER)? else {
            return Ok(None);
        };
        let row: MemberRow = decode(&row)?;
        let hard = self.db.get(HARD)?.ok_or(StorageError::Damaged { what: "the hard state" })?;
        let hard = eraftpb::HardState::parse_from_bytes(&hard)?.into();
        let point = self.db.get(COMPACTED)?;
        let (compacted_index, compacted_term) = point
            .as_deref()
            .and_then(decode_point)
            .ok_or(StorageError::Damaged { what: "the start of the log" })?;
        let snapshot = self.db.get(SNAPSHOT)?.unwrap_or_default();
        let snapshot = decode_snapshot(Bytes::from(snapshot))?;
        let mut entries = Vec::new();
        let first = entry_key(0);
        for row in self.db.iterator(IteratorMode::From(&first, Direction::Forward)) {
            let (key, value) = row?;
            if key.first() != Some(&b'e') || key.len() != first.len() {
                break;
            }
            entries.push(log_entry(&Entry::parse_from_carllerche_bytes(&Bytes::from(value))?));
        }
        let start = Start {
            hard,
            applied_index: snapshot.index,
            compacted_index,
            compacted_term,
            entries,
            on_disk: None,
            meta: snapshot.meta.clone(),
            resyncing: false,
            faulted: false,
        };
        Ok(Some(Recovered { row, start, snapshot }))
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(batch, &options)?)
    }
}

impl MemberStorage for Storage {
    type Error = StorageError;

    fn append(
        &mut self,
        append: &Append,
        installed: Option<&Snapshot>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        if let Some(reset) = &append.reset {
            let installed = installed.expect("a reset comes with a state");
            assert_eq!((reset.index, reset.term), (installed.index, installed.term));
            batch.delete_range(entry_key(0), entry_key(u64::MAX));
            batch.put(COMPACTED, encode_point(reset.index, reset.term));
            batch.put(SNAPSHOT, encode_snapshot(installed));
        }
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
        match batch.is_empty() {
            true => Ok(()),
            false => self.write(batch),
        }
    }

    fn checkpoint(
        &mut self,
        snapshot: &Snapshot,
        compacted: (u64, u64),
    ) -> Result<(), StorageError> {
        assert!(compacted.0 <= snapshot.index, "the snapshot covers the deleted entries");
        let mut batch = WriteBatch::default();
        batch.put(SNAPSHOT, encode_snapshot(snapshot));
        batch.put(COMPACTED, encode_point(compacted.0, compacted.1));
        batch.delete_range(entry_key(0), entry_key(compacted.0 + 1));
        self.write(batch)
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

fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let meta_len = u32::try_from(snapshot.meta.len()).expect("metadata is small");
    let mut bytes = encode_point(snapshot.index, snapshot.term).to_vec();
    bytes.extend_from_slice(&meta_len.to_be_bytes());
    bytes.extend_from_slice(&snapshot.meta);
    bytes.extend_from_slice(&encode(&snapshot.state));
    bytes
}

fn decode_snapshot(bytes: Bytes) -> Result<Snapshot, StorageError> {
    const DAMAGED: StorageError = StorageError::Damaged { what: "the snapshot" };
    let (point, rest) = bytes.split_first_chunk::<16>().ok_or(DAMAGED)?;
    let (index, term) = decode_point(point).ok_or(DAMAGED)?;
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(DAMAGED)?;
    let (meta, state) = rest.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or(DAMAGED)?;
    Ok(Snapshot { index, term, meta: bytes.slice_ref(meta), state: decode(state)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::Addresses;
    use crate::log::LogEntry;
    use crate::types::Uuid;

    fn state() -> CatalogState {
        let at = "127.0.0.1:1".parse().unwrap();
        CatalogState::new(Uuid([1; 16]), Uuid([2; 16]), Addresses { api: at, peer: at, nbd: None })
    }

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<LogEntry> {
        let payload = Bytes::from_static(&[7]);
        let entry =
            |index| LogEntry { index, term, payload: payload.clone(), ..Default::default() };
        range.map(entry).collect()
    }

    fn snapshot(index: u64, state: Option<CatalogState>) -> Snapshot {
        Snapshot { index, term: 1, meta: Bytes::from_static(b"meta"), state }
    }

    fn indexes(storage: &Storage) -> Vec<u64> {
        let recovered = storage.recover().unwrap().unwrap();
        recovered.start.entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn a_log_is_appended_to_cut_compacted_and_reset() {
        let root = tempfile::tempdir().unwrap();
        let mut storage = Storage::open(root.path()).unwrap();
        assert!(storage.recover().unwrap().is_none());
        let row = MemberRow { member: MemberId(3), since_revision: 9 };
        storage.create(row, &snapshot(1, Some(state()))).unwrap();

        let append = |entries| Append { number: 1, entries, ..Append::default() };
        storage.append(&append(entries(2..=6, 1)), None).unwrap();
        storage.append(&append(entries(5..=5, 2)), None).unwrap();
        assert_eq!(indexes(&storage), [2, 3, 4, 5], "a replaced entry takes its successors along");

        storage.checkpoint(&snapshot(4, Some(state())), (3, 1)).unwrap();
        let recovered = storage.recover().unwrap().unwrap();
        assert_eq!(recovered.row, row);
        assert_eq!((recovered.start.compacted_index, recovered.start.applied_index), (3, 4));
        assert_eq!(recovered.snapshot.state, Some(state()));
        assert_eq!(&recovered.start.meta[..], b"meta");
        assert_eq!(indexes(&storage), [4, 5]);

        let reset = crate::log::Reset { index: 9, term: 1, meta: Bytes::new() };
        let append = Append { number: 2, reset: Some(reset), ..Append::default() };
        storage.append(&append, Some(&snapshot(9, Some(state())))).unwrap();
        let recovered = storage.recover().unwrap().unwrap();
        assert_eq!((recovered.start.compacted_index, recovered.start.applied_index), (9, 9));
        assert!(recovered.start.entries.is_empty());
    }
}
