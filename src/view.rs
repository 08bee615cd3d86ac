//! The data path's view of the cluster, made by `control`, read by `worker` and `volume`. Always
//! complete, never a difference. The newest revision wins.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{MemberId, PodId, ShardId, Uuid, VolumeId};

/// The cluster as of one revision of the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub revision: u64,
    pub cluster: Uuid,
    pub pods: Vec<PodView>,
    pub disks: Vec<DiskView>,
    pub volumes: Vec<VolumeView>,
    /// Members to destroy wherever they are found (rule `destroy-by-record-only`). Each stays
    /// listed until its disk has reported the destruction.
    pub destroyed: Vec<(Uuid, MemberId)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    pub pod: PodId,
    /// Address of its data path for peers.
    pub peer: SocketAddr,
    pub api: SocketAddr,
    pub nbd: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    pub disk: Uuid,
    pub pod: PodId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    pub volume: VolumeId,
    pub name: String,
    pub size_bytes: u64,
    /// Always 1 at present.
    pub stripe_width: u32,
    /// Length of every shard except the last.
    pub stripe_bytes: u64,
    /// In the order of their position in the volume.
    pub shards: Vec<ShardView>,
    /// The volume is being deleted and is no longer exported.
    pub deleting: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardView {
    pub shard: ShardId,
    pub members: Vec<MemberView>,
}

/// A voter of a shard, and its location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub member: MemberId,
    pub disk: Uuid,
    pub pod: PodId,
}

/// The data path's report to `control`, always complete. Sent when leaders or faults change, and
/// from time to time for the space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    pub pod: PodId,
    pub disks: Vec<DiskReport>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub disk: Uuid,
    pub path: String,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Length of the write-ahead log, and the part of it that must not be overwritten yet.
    #[serde(default)]
    pub log_bytes: u64,
    #[serde(default)]
    pub log_used_bytes: u64,
    /// Dirty blocks, in bytes.
    #[serde(default)]
    pub dirty_bytes: u64,
    /// Bytes that clients read from this disk since the pod started, without holes. The second
    /// number is the part that was dirty when read.
    #[serde(default)]
    pub read_bytes: u64,
    #[serde(default)]
    pub read_dirty_bytes: u64,
    /// Why the disk was given up, if it was.
    pub failed: Option<String>,
    pub members: Vec<MemberReport>,
    /// Members of `ClusterView::destroyed` that are durably gone from this disk.
    pub destroyed: Vec<MemberId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    pub member: MemberId,
    pub shard: ShardId,
    pub term: u64,
    pub leader: Option<MemberId>,
    pub applied_index: u64,
    pub state: MemberState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    #[default]
    Follower,
    Leader,
    Resyncing,
    Faulted,
    /// An orphan replica: on the disk, but unknown to the catalog. Kept and shown, never served.
    Orphan,
}
