//! What the data path of a pod is started with.

use std::time::Duration;

use crate::io::driver::Address;
use crate::io::{DriverKind, DurableWrites};
use crate::worker::WorkerConfig;
use crate::worker::disks::DiskOptions;
use crate::worker::tls::WorkerTls;

/// What a pod's data path is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    pub worker: WorkerConfig,
    pub driver: DriverKind,
    /// Who carries out durable writes for io_uring.
    pub durable_writes: DurableWrites,
    /// WAL bypass: large writes of whole extents go to slots at once (rule `bypass-before-batch`).
    pub wal_bypass: bool,
    pub disks: Vec<DiskOptions>,
    /// Where peers connect.
    pub peer: Address,
    /// TLS of links and of clients; `None`: this pod has no certificate.
    pub tls: Option<WorkerTls>,
    /// Where NBD clients connect.
    pub nbd: Vec<Address>,
    pub dirty_cache_bytes: usize,
    pub index_cache_bytes: usize,
    /// The process ends when the worker makes no round for so long; `None`: never.
    pub hang_limit: Option<Duration>,
}
