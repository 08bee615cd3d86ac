//! What the data path of a pod knows of the cluster: made by `control`, read by `worker` and
//! `volume`. Always whole, never a difference; the newest revision wins.

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
    /// Members that are to be destroyed wherever they are found: a positive record (rule R12).
    /// Each stays until its disk has reported that it is gone.
    pub destroyed: Vec<(Uuid, MemberId)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    pub pod: PodId,
    /// Where its peers reach its data path.
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
    /// 1 for now.
    pub stripe_width: u32,
    /// Length of every shard but the last.
    pub stripe_bytes: u64,
    /// In order of their place in the volume.
    pub shards: Vec<ShardView>,
    /// Being deleted: not exported any more.
    pub deleting: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardView {
    pub shard: ShardId,
    pub members: Vec<MemberView>,
}

/// A voter of a shard and where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub member: MemberId,
    pub disk: Uuid,
    pub pod: PodId,
}

/// What the data path of a pod tells `control`, whole, whenever it changed (leaders, faults) and
/// now and then (space).
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
    /// Length of the write-ahead log, and how much of it may not be overwritten yet.
    #[serde(default)]
    pub log_bytes: u64,
    #[serde(default)]
    pub log_used_bytes: u64,
    /// Blocks that were not written back yet, in bytes.
    #[serde(default)]
    pub overlay_bytes: u64,
    /// What clients read from here since the pod started, holes left out, and how much of it was
    /// not written back yet.
    #[serde(default)]
    pub read_bytes: u64,
    #[serde(default)]
    pub read_overlay_bytes: u64,
    /// Why the disk was given up, if it was.
    pub failed: Option<String>,
    pub members: Vec<MemberReport>,
    /// Members of `ClusterView::destroyed` that are gone from this disk, durably.
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
    /// On the disk, but the catalog does not know it: kept, shown, never served.
    Unknown,
}
