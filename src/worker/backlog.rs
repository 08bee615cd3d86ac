//! The queues of a worker that clients and peers can fill.

use crate::volume::Volume;
use crate::worker::lanes::Lanes;
use crate::worker::members::Members;
use crate::worker::peers::Peers;
use crate::worker::routers::Routers;

/// How full these queues are. At rest all is 0, except for a heartbeat or two on the links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Unanswered requests: of clients at routers, and of routers and peers at members.
    pub client_requests: usize,
    pub member_requests: usize,
    /// Requests that were forwarded to other pods.
    pub forwarded: usize,
    /// Reads of lanes in flight.
    pub reads: usize,
    /// Promised answers of all links, in bytes, and questions that wait until these are fewer.
    pub owed_bytes: usize,
    pub asks: usize,
    /// Bytes in flight of the volume, the shard and the link that have the most.
    pub volume_bytes_max: usize,
    pub shard_bytes_max: usize,
    pub link_bytes_max: usize,
    /// Space that applied changes lack, on all disks.
    pub overdrawn_bytes: u64,
}

impl Backlog {
    pub fn of(lanes: &Lanes, members: &Members, peers: &Peers, routers: &Routers) -> Backlog {
        let (owed_bytes, asks) = peers.owed();
        let shard_bytes = members.iter().map(|(_, runtime)| runtime.member.proposed_bytes());
        Backlog {
            client_requests: routers.all.values().map(Volume::requests_in_flight).sum(),
            member_requests: members.requests.len(),
            forwarded: routers.forwarded.len(),
            reads: lanes.reads.len(),
            owed_bytes,
            asks,
            volume_bytes_max: routers.all.values().map(Volume::bytes).max().unwrap_or(0),
            shard_bytes_max: shard_bytes.max().unwrap_or(0),
            link_bytes_max: peers.queues().max().unwrap_or(0),
            overdrawn_bytes: lanes.all.iter().map(|lane| lane.lane.overdrawn_bytes()).sum(),
        }
    }
}
