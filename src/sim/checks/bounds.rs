//! Queues: within the budgets at every moment, and empty when nobody asks for anything; and space:
//! whatever is applied finds some (rule R10).

use crate::limits::{Budgets, CONNECTION_UNDER_WAY_BYTES_MIN, ENTRY_BYTES_MAX};
use crate::sim::checks::wrong::{Checked, check};
use crate::worker::Load;

/// Frames of heartbeats that may wait to leave at any moment.
const HEARTBEATS_BYTES_MAX: usize = 64 << 10;

/// Whether a pod keeps to its budgets, with so many connections to it.
pub fn within(load: &Load, budgets: &Budgets, connections: usize) -> Checked {
    // A connection may always have its minimum under way, and one request more (none of a run is
    // larger than that).
    let beyond = connections * (CONNECTION_UNDER_WAY_BYTES_MIN + ENTRY_BYTES_MAX);
    let bounds = [
        ("a volume", load.volume_bytes_max, budgets.volume_bytes + beyond),
        ("a shard", load.shard_bytes_max, budgets.shard_bytes),
        ("a link", load.link_bytes_max, budgets.link_bytes),
    ];
    let overdrawn = load.overdrawn_bytes;
    check(overdrawn == 0, || format!("what was applied wants {overdrawn} bytes that no disk has"))?;
    match bounds.into_iter().find(|(_, bytes, bound)| bytes > bound) {
        None => Ok(()),
        Some((what, bytes, bound)) => Err(format!("{what} has {bytes} bytes under way of {bound}")),
    }
}

/// Whether nothing is left of what was asked.
pub fn at_rest(load: &Load) -> Checked {
    let Load { client_requests, member_requests, forwarded, reads, owed_bytes, asks, .. } = *load;
    let idle = client_requests + member_requests + forwarded + reads + owed_bytes + asks == 0
        && load.volume_bytes_max + load.shard_bytes_max == 0
        && load.link_bytes_max < HEARTBEATS_BYTES_MAX;
    if idle { Ok(()) } else { Err(format!("nobody asks for anything, and there are {load:?}")) }
}
