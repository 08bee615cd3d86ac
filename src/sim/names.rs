//! Names that all parts of the simulator share: of hosts, disks, files and moments.

use crate::store::messages::LaneFile;
use crate::types::{PodId, Uuid};

/// Number of a pod in the world. Clients have the numbers after the pods.
pub type Host = usize;

/// Number of a disk in the world.
pub type DiskNumber = usize;

/// The pod's id in the cluster: pods join in the order of their numbers.
pub fn pod_id(host: Host) -> PodId {
    PodId(host as u64 + 1)
}

/// The reverse of [`pod_id`].
pub fn host_of(pod: PodId) -> Host {
    pod.0 as Host - 1
}

/// The disk's id in its superblock.
pub fn disk_id(disk: DiskNumber) -> Uuid {
    Uuid([disk as u8 + 1; 16])
}

/// The files of a disk.
pub const FILES: [LaneFile; 3] = [LaneFile::Superblock, LaneFile::Wal, LaneFile::Data];

/// A moment for an ambush: something is half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A replica's resyncing flag is durable.
    ResyncBegun,
    /// All extents of a resync are durable, and the log does not know yet.
    ResyncCopied,
    /// A resync replaces a log.
    LogReplaced,
    /// A resync has ended.
    ResyncEnded,
    /// A member leads and does not serve yet.
    Elected,
    /// A leader tells another member to lead.
    HandedOver,
    /// A member is being deleted.
    Destroyed,
}

impl Moment {
    pub const ALL: [Moment; 7] = [
        Moment::ResyncBegun,
        Moment::ResyncCopied,
        Moment::LogReplaced,
        Moment::ResyncEnded,
        Moment::Elected,
        Moment::HandedOver,
        Moment::Destroyed,
    ];
}
