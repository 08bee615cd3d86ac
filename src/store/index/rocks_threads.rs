//! The background threads of RocksDB, which all databases of a process share.

use std::sync::atomic::{AtomicI32, Ordering};

use rocksdb::Env;

static DATABASES: AtomicI32 = AtomicI32::new(0);

/// Called before a database is opened. Each has one flush and one compaction under way at most;
/// with a thread of both kinds for every one, a disk that hangs keeps nobody else from flushing.
pub fn one_more_database() -> Result<(), rocksdb::Error> {
    let databases = DATABASES.fetch_add(1, Ordering::Relaxed) + 1;
    let mut shared = Env::new()?;
    shared.set_high_priority_background_threads(databases + 1);
    shared.set_low_priority_background_threads(databases + 1);
    Ok(())
}
