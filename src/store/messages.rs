//! The messages between a lane and the worker or simulator that runs it.

use bytes::Bytes;

pub use crate::log::Slot;
use crate::log::{LogEntry, LogGone};
use crate::types::{
    BlockError, Extent, ExtentContent, ManifestChunk, MemberId, Segment, ShardId, StatusRun,
    VolumeId,
};

/// Identifies an I/O of a lane until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// The O_DIRECT files of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneFile {
    Superblock,
    Wal,
    Data,
}

/// I/O that a lane asks for. Offsets, lengths and memory are multiples of 4 KiB.
#[derive(Debug)]
pub enum Effect {
    /// `durable`: ends only when the bytes are past the device's cache.
    Write {
        op: OpId,
        file: LaneFile,
        offset: u64,
        bufs: Vec<Bytes>,
        durable: bool,
    },
    Read {
        op: OpId,
        file: LaneFile,
        offset: u64,
        len: usize,
    },
    /// Makes every write to the file that has ended durable.
    Sync {
        op: OpId,
        file: LaneFile,
    },
    /// Runs on a helper thread; starts and reported ends are in the order of submission.
    Index {
        op: OpId,
        job: IndexJob,
    },
}

/// How an effect ended.
#[derive(Debug)]
pub enum Done {
    Written,
    Read(Bytes),
    Synced,
    Index(IndexDone),
    /// The device or the index failed. A failed write, sync or index job poisons the lane; a failed
    /// read of data is a bad copy.
    Failed(std::io::ErrorKind, String),
}

/// A job for the index. Commits are atomic, and durable in order, at the latest with a flush.
#[derive(Debug)]
pub enum IndexJob {
    Get {
        keys: Vec<ExtentKey>,
    },
    Commit {
        edits: Vec<IndexEdit>,
        flush: bool,
    },
    /// Up to `limit` extents of a member from `from` on, in order.
    Scan {
        member: MemberId,
        from: Extent,
        limit: usize,
    },
}

#[derive(Debug)]
pub enum IndexDone {
    /// One per key, in order.
    Got(Vec<Option<ExtentRecord>>),
    /// With `flush`: this and every earlier commit is durable.
    Committed,
    Scanned(Vec<(ExtentKey, ExtentRecord)>),
}

/// One extent of one member in one layer. Layer 0 is the first; snapshots add more later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentKey {
    pub member: MemberId,
    pub extent: Extent,
    pub layer: u32,
}

impl ExtentKey {
    /// The key in the first layer, the only one so far.
    pub fn new(member: MemberId, extent: Extent) -> ExtentKey {
        ExtentKey { member, extent, layer: 0 }
    }
}

/// The index record of an extent. A block that is neither *present* nor *zero* belongs to the layer
/// below, and reads as zeroes without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentRecord {
    pub slot: Slot,
    /// Bit N: block N is in the slot.
    pub present: u16,
    /// Bit N: block N reads as zeroes whatever the layers below hold. Never also *present*.
    pub zero: u16,
    /// Raft index of the newest change that is included.
    pub last_changed: u64,
    /// The volume whose id seeds the checksums.
    pub birth: VolumeId,
    /// Valid where *present*.
    pub crcs: [u32; 16],
}

/// One change of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexEdit {
    Put(ExtentKey, ExtentRecord),
    Delete(ExtentKey),
    PutMember(MemberRecord),
    /// Faults a member whose log lost something it had promised, until it is destroyed.
    Fault(MemberId),
    /// Deletes the member and its extents, leaves a tombstone (rule `destroyed-stays-destroyed`).
    Destroy(MemberId),
}

/// The index record of a member, written with each of its checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    pub member: MemberId,
    pub shard: ShardId,
    pub volume: VolumeId,
    /// The shard's first block, counted in blocks of the volume (seeds the checksums).
    pub first_block_in_volume: u64,
    /// Length of the shard in blocks.
    pub blocks: u32,
    /// No change up to this index lives only in the WAL (rule `flushed-is-a-low-water-mark`).
    pub flushed_index: u64,
    pub flushed_term: u64,
    /// Shard metadata (configuration, epochs, sessions, size) as of `flushed_index`; opaque here.
    pub meta: Bytes,
    /// The durable *resyncing flag*.
    pub resyncing: bool,
}

/// Identifies a read of a lane until it is answered; chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// A lane's reports to its caller.
#[derive(Debug)]
pub enum Event {
    /// The append is durable. In order per member.
    Appended {
        member: MemberId,
        number: u64,
    },
    /// Verified against the checksums. `crcs`: one per block, 0 for blocks of zeroes.
    Read {
        read: ReadId,
        result: Result<ReadBlocks, BlockError>,
    },
    Status {
        read: ReadId,
        result: Result<Vec<StatusRun>, BlockError>,
    },
    /// Ends a read of blocks or of an extent: this extent has a block without an intact copy here.
    /// [`crate::store::lane::Lane::repair`] takes another replica's copy.
    Damaged {
        read: ReadId,
        extent: Extent,
    },
    /// The log lost payload of this extent. Its write-back waits for `repair` and
    /// `resume_writeback`.
    PayloadLost {
        member: MemberId,
        extent: Extent,
    },
    /// A member's record (created, destroyed, resync begun or ended) is durable.
    MemberDurable {
        member: MemberId,
    },
    /// A resync cannot end as requested: see `Lane::finish_resync`.
    ResyncOvertaken {
        member: MemberId,
    },
    /// Answer to `Lane::manifest`, with the metadata as of the same index.
    Manifest {
        read: ReadId,
        chunk: ManifestChunk,
        meta: Bytes,
    },
    /// Answer to `Lane::fetch_extent`: the extent as of everything applied.
    Extent {
        read: ReadId,
        result: Result<ExtentContent, BlockError>,
    },
    /// Answer to `Lane::install_extents`: data is durable, the index committed, not flushed yet.
    /// The `refused` extents are not in place: malformed, bad checksums, too old, or no space.
    Installed {
        read: ReadId,
        refused: Vec<Extent>,
    },
    /// Answer to `Lane::fetch_log`: the entries from `low` on, at least one.
    LogFetched {
        member: MemberId,
        low: u64,
        result: Result<Vec<LogEntry>, LogGone>,
    },
    /// The disk failed (a write or a flush): everything on this lane stops, for good.
    Poisoned {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBlocks {
    pub segments: Vec<Segment>,
    pub crcs: Vec<u32>,
}
