//! What a worker holds at a moment for clients and peers: every queue that they can fill.

use crate::volume::Volume;
use crate::worker::lanes::Lanes;
use crate::worker::members::Members;
use crate::worker::peers::Peers;
use crate::worker::routers::Routers;

/// See the module. At rest everything is 0, but for a heartbeat or two on the links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests of clients that were not answered, at routers and at members.
    pub client_requests: usize,
    pub member_requests: usize,
    /// Requests that other pods carry out.
    pub forwarded: usize,
    /// Reads of lanes.
    pub reads: usize,
    /// Answers that links are owed, in bytes, and questions that wait until they are fewer.
    pub owed_bytes: usize,
    pub asks: usize,
    /// Bytes under way of the volume that has most of them, and of the shard, and of the link.
    pub volume_bytes_max: usize,
    pub shard_bytes_max: usize,
    pub link_bytes_max: usize,
    /// Space that applied changes wait for in vain, on all disks.
    pub overdrawn_bytes: u64,
}

impl Load {
    pub fn of(lanes: &Lanes, members: &Members, peers: &Peers, routers: &Routers) -> Load {
        let (owed_bytes, asks) = peers.owed();
        let shard_bytes = members.iter().map(|(_, runtime)| runtime.member.proposed_bytes());
        Load {
            client_requests: routers.all.values().map(Volume::requests_under_way).sum(),
            member_requests: members.requests.len(),
            forwarded: routers.forwarded.len(),
            reads: lanes.reads.len(),
            owed_bytes,
            asks,
            volume_bytes_max: routers.all.values().map(Volume::bytes).max().unwrap_or(0),
            shard_bytes_max: shard_bytes.max().unwrap_or(0),
            link_bytes_max: peers.queue_bytes_max(),
            overdrawn_bytes: lanes.all.iter().map(|lane| lane.lane.overdrawn_bytes()).sum(),
        }
    }
}
