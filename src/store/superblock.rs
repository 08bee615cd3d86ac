//! The superblock: what identifies a disk, and where its log starts. Four copies of 4 KiB, three
//! are needed to write, two to open. Pure codec.

use crate::types::Uuid;

/// One superblock. The copies differ in their copy number only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with every write; the newest that two copies agree on is the superblock.
    pub sequence: u64,
    pub cluster: Uuid,
    pub disk: Uuid,
    /// Raised by every open.
    pub incarnation: u64,
    pub lanes: u16,
    /// Features that a reader must know to open the disk at all.
    pub features: u64,
    /// Secret of the log's checksums.
    pub seed: u64,
    pub wal_bytes: u64,
    pub data_bytes_max: u64,
    /// Oldest batch that recovery reads, and where it starts.
    pub tail_seq: u64,
    pub tail_offset: u64,
    /// Largest batch known durable when this was written.
    pub durable_seq: u64,
}
