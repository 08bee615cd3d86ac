//! What the worker's metrics take from its components: once a second, all that is a state or that
//! a component counts itself. Requests and stages are counted where they happen.
//!
//! A look costs as much as there are connections, links, disks and shards that clients ask, not as
//! there are volumes or replicas. The states of replicas come with each report, which lists them.

use rustc_hash::FxHashSet;

use crate::limits::Budgets;
use crate::telemetry::metrics::data_path::{Budget, DataPath, LinkPurpose, Queues, Replica};
use crate::types::{BLOCK_BYTES, EXTENT_BYTES};
use crate::view::{MemberState, PodReport};
use crate::volume::Volume;
use crate::worker::clients::Clients;
use crate::worker::lanes::LaneRuntime;
use crate::worker::members::Members;
use crate::worker::peers::Peers;
use crate::worker::resync::Resyncs;
use crate::worker::routers::Routers;
use crate::worker::words::link_purpose;

/// The bounds of the queues, once.
pub fn set_limits(meters: &DataPath, budgets: &Budgets) {
    for (budget, bytes) in [
        (Budget::Connection, budgets.connection_bytes),
        (Budget::Volume, budgets.volume_bytes),
        (Budget::Shard, budgets.shard_bytes),
        (Budget::Link, budgets.link_bytes),
    ] {
        meters.queues[budget as usize].limit_bytes.set(bytes as u64);
    }
}

/// The components that a look is at.
pub struct Look<'a> {
    pub meters: &'a DataPath,
    pub clients: &'a Clients,
    pub routers: &'a Routers,
    pub members: &'a Members,
    pub peers: &'a Peers,
    pub resyncs: &'a Resyncs,
    pub lanes: &'a [LaneRuntime],
    pub read_repairs: usize,
    pub buffer_bytes: usize,
}

/// Looks at all components.
pub fn look(at: &Look<'_>) {
    let Look { meters, clients, routers, members, peers, resyncs, .. } = at;
    look_at_queues(at);
    meters.nbd.connections.set(clients.len() as u64);
    meters.replica_requests.set(members.requests.len() as u64);
    meters.forwarded_requests.set(routers.forwarded.len() as u64);
    meters.buffer_bytes.set(at.buffer_bytes as u64);
    meters.read_repairs_running.set(at.read_repairs as u64);
    meters.resyncs_running.set(resyncs.len() as u64);
    meters.resync_pending_bytes.set(resyncs.pending_extents() * EXTENT_BYTES as u64);
    let mut links = [(0, 0); LinkPurpose::WORDS.len()];
    for (purpose, is_up) in peers.links() {
        let (up, down) = &mut links[link_purpose(purpose) as usize];
        *if is_up { up } else { down } += 1;
    }
    for (of, (up, down)) in meters.links.iter().zip(links) {
        of.up.set(up);
        of.down.set(down);
    }
    at.lanes.iter().for_each(|lane| look_at_disk(lane, resyncs.begun(lane.number)));
}

fn look_at_queues(at: &Look<'_>) {
    let Look { meters, clients, routers, members, peers, .. } = at;
    let set = |budget: Budget, queues: &mut dyn Iterator<Item = usize>| {
        let Queues { bytes, fullest_bytes, .. } = &meters.queues[budget as usize];
        let (sum, most) = queues.fold((0, 0), |(sum, most), of| (sum + of, most.max(of)));
        bytes.set(sum as u64);
        fullest_bytes.set(most as u64);
    };
    set(Budget::Connection, &mut clients.queues());
    set(Budget::Link, &mut peers.queues());
    let asked = members.asked.iter().filter_map(|member| members.get(*member));
    set(Budget::Shard, &mut asked.map(|runtime| runtime.member.proposed_bytes()));
    let used: FxHashSet<_> = clients.routers().collect();
    let used = || used.iter().filter_map(|router| routers.all.get(router));
    set(Budget::Volume, &mut used().map(Volume::bytes));
    meters.volume_requests.set(used().map(|volume| volume.requests_in_flight() as u64).sum());
}

fn look_at_disk(lane: &LaneRuntime, resyncs_begun: u64) {
    let (disk, space) = (&lane.meters, lane.lane.space());
    let block_bytes = BLOCK_BYTES as u64;
    disk.up.set(u64::from(lane.poisoned.is_none()));
    disk.capacity_bytes.set(space.capacity_bytes);
    disk.used_bytes.set(space.used_bytes);
    disk.log_bytes.set(space.log_bytes);
    disk.log_used_bytes.set(space.log_used_bytes);
    disk.dirty_bytes.set(space.overlay_blocks * block_bytes);
    disk.overlay_bytes.set(space.overlay_bytes);
    disk.read_overlay_bytes.set(space.read_overlay_blocks * block_bytes);
    let from_slots = space.read_blocks.saturating_sub(space.read_overlay_blocks);
    disk.read_slot_bytes.set(from_slots * block_bytes);
    disk.checksum_errors.set(space.media_faults);
    disk.resyncs_begun.set(resyncs_begun);
}

/// Counts the replicas of a report by their states.
pub fn count_replicas(lanes: &[LaneRuntime], report: &PodReport) {
    for lane in lanes {
        let of_disk = report.disks.iter().filter(|disk| disk.disk == lane.place.disk);
        let mut counts = [0; Replica::WORDS.len()];
        for member in of_disk.flat_map(|disk| &disk.members) {
            let state = match member.state {
                MemberState::Leader => Replica::Leader,
                MemberState::Follower => Replica::Follower,
                MemberState::Resyncing => Replica::Resyncing,
                MemberState::Faulted => Replica::Faulted,
                MemberState::Orphan => Replica::Orphan,
            };
            counts[state as usize] += 1;
        }
        lane.meters.replicas.iter().zip(counts).for_each(|(number, count)| number.set(count));
    }
}
