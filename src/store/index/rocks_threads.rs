//! The background threads of RocksDB, which all databases of a process share.

use std::sync::atomic::{AtomicI32, Ordering};

use rocksdb::Env;

static DATABASES: AtomicI32 = AtomicI32::new(0);

/// Call it before opening a database. Each has at most one flush and one compaction in flight. With
/// a thread of both kinds for each, a hanging disk keeps no other from flushing.
pub fn one_more_database() -> Result<(), rocksdb::Error> {
    let databases = DATABASES.fetch_add(1, Ordering::Relaxed) + 1;
    let mut shared = Env::new()?;
    shared.set_high_priority_background_threads(databases + 1);
    shared.set_low_priority_background_threads(databases + 1);
    Ok(())
}
