//! The index in RocksDB: one database, one column family, no log of its own. A flush makes all
//! earlier commits durable. A crash loses a suffix of the later ones, because memory tables are
//! written whole and in order.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, FlushOptions, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use crate::store::index::format::{self, Change};
use crate::store::index::rocks_threads::one_more_database;
use crate::store::index::{IndexError, IndexStore};
use crate::store::messages::{ExtentKey, ExtentRecord, IndexEdit, MemberRecord};
use crate::types::{Extent, MemberId};

const WRITE_BUFFER_BYTES: usize = 8 << 20;
const BLOCK_CACHE_BYTES: usize = 8 << 20;
const OPEN_FILES_MAX: i32 = 64;

/// A key and its value.
type Pair = (Box<[u8]>, Box<[u8]>);

/// See the module.
pub struct RocksIndex {
    db: DB,
    without_log: WriteOptions,
    changes: Vec<Change>,
}

impl RocksIndex {
    /// Creates this directory with an empty database. Durable on return, except for the directory's
    /// own entry in its parent.
    pub fn create(path: &Path) -> Result<(), IndexError> {
        RocksIndex::open_or_create(path, true).map(drop)
    }

    /// Opens the database in this directory. Blocks. Never creates one: if it was lost, an empty
    /// one would give away used slots.
    pub fn open(path: &Path) -> Result<RocksIndex, IndexError> {
        RocksIndex::open_or_create(path, false)
    }

    fn open_or_create(path: &Path, create: bool) -> Result<RocksIndex, IndexError> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
        table.set_bloom_filter(10.0, false);
        table.set_format_version(5);
        let mut options = Options::default();
        options.create_if_missing(create);
        options.set_error_if_exists(create);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(2);
        options.set_atomic_flush(true);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_max_background_jobs(1);
        options.set_keep_log_file_num(2);
        options.set_paranoid_checks(true);
        one_more_database().map_err(store_error)?;
        let db = DB::open(&options, path).map_err(store_error)?;
        let mut without_log = WriteOptions::default();
        without_log.disable_wal(true);
        Ok(RocksIndex { db, without_log, changes: Vec::new() })
    }

    /// Up to `limit` key-value pairs from `from` up to, not including, `to`.
    fn range(
        &self,
        (from, to): (Vec<u8>, Vec<u8>),
        limit: usize,
    ) -> impl Iterator<Item = Result<Pair, IndexError>> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mode = IteratorMode::From(&from, Direction::Forward);
        let pairs = self.db.iterator_opt(mode, options);
        pairs.take(limit).map(|pair| pair.map_err(store_error))
    }
}

fn store_error(error: rocksdb::Error) -> IndexError {
    IndexError::Store(Box::new(error))
}

impl IndexStore for RocksIndex {
    fn get(&mut self, keys: &[ExtentKey]) -> Result<Vec<Option<ExtentRecord>>, IndexError> {
        let get = |key: &ExtentKey| {
            let value = self.db.get_pinned(format::extent_key(*key)).map_err(store_error)?;
            value.map(|value| format::decode_extent(&value)).transpose()
        };
        keys.iter().map(get).collect()
    }

    fn commit(&mut self, edits: &[IndexEdit], flush: bool) -> Result<(), IndexError> {
        self.changes.clear();
        for edit in edits {
            format::changes(edit, &mut self.changes);
        }
        let mut batch = WriteBatch::default();
        for change in &self.changes {
            match change {
                Change::Put(key, value) => batch.put(key, value),
                Change::Delete(key) => batch.delete(key),
                Change::DeleteRange(from, to) => batch.delete_range(from, to),
            }
        }
        if !self.changes.is_empty() {
            self.db.write_opt(batch, &self.without_log).map_err(store_error)?;
        }
        if flush {
            let mut options = FlushOptions::default();
            options.set_wait(true);
            self.db.flush_opt(&options).map_err(store_error)?;
        }
        Ok(())
    }

    fn scan(
        &mut self,
        member: MemberId,
        from: Extent,
        limit: usize,
    ) -> Result<Vec<(ExtentKey, ExtentRecord)>, IndexError> {
        let (_, end) = format::extents_of(member);
        let start = format::extent_key(ExtentKey { member, extent: from, layer: 0 });
        self.range((start, end), limit)
            .map(|pair| {
                let (key, value) = pair?;
                Ok((format::decode_extent_key(&key)?, format::decode_extent(&value)?))
            })
            .collect()
    }

    fn members(&mut self) -> Result<Vec<MemberRecord>, IndexError> {
        self.range(format::members_range(), usize::MAX)
            .map(|pair| pair.and_then(|(key, value)| format::decode_member(&key, &value)))
            .collect()
    }

    fn tombstones(&mut self) -> Result<Vec<MemberId>, IndexError> {
        self.range(format::tombstones_range(), usize::MAX)
            .map(|pair| pair.and_then(|(key, _)| format::decode_short_key(&key)))
            .collect()
    }

    fn faulted(&mut self) -> Result<Vec<MemberId>, IndexError> {
        self.range(format::faults_range(), usize::MAX)
            .map(|pair| pair.and_then(|(key, _)| format::decode_short_key(&key)))
            .collect()
    }
}
