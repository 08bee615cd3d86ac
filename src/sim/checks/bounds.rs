//! Checks queues: within budgets at every moment, and empty without requests. Checks space: every
//! applied change finds some (rule `space-before-append`).

use crate::limits::{Budgets, CONNECTION_IN_FLIGHT_BYTES_MIN, ENTRY_BYTES_MAX};
use crate::sim::checks::wrong::{Checked, check};
use crate::worker::Backlog;

/// Limit for heartbeat frames that wait to be sent.
const HEARTBEATS_BYTES_MAX: usize = 64 << 10;

/// Checks that a pod with this many connections keeps to its budgets.
pub fn within(load: &Backlog, budgets: &Budgets, connections: usize) -> Checked {
    // Every connection may have its minimum in flight, and one request more, of at most
    // `ENTRY_BYTES_MAX` bytes.
    let beyond = connections * (CONNECTION_IN_FLIGHT_BYTES_MIN + ENTRY_BYTES_MAX);
    let bounds = [
        ("a volume", load.volume_bytes_max, budgets.volume_bytes + beyond),
        ("a shard", load.shard_bytes_max, budgets.shard_bytes),
        ("a link", load.link_bytes_max, budgets.link_bytes),
    ];
    let overdrawn = load.overdrawn_bytes;
    check(overdrawn == 0, || format!("applied changes need {overdrawn} bytes that no disk has"))?;
    match bounds.into_iter().find(|(_, bytes, bound)| bytes > bound) {
        None => Ok(()),
        Some((what, bytes, bound)) => Err(format!("{what} has {bytes} bytes in flight of {bound}")),
    }
}

/// Checks that nothing is left of earlier requests.
pub fn at_rest(load: &Backlog) -> Checked {
    let Backlog { client_requests, member_requests, forwarded, reads, owed_bytes, asks, .. } =
        *load;
    let idle = client_requests + member_requests + forwarded + reads + owed_bytes + asks == 0
        && load.volume_bytes_max + load.shard_bytes_max == 0
        && load.link_bytes_max < HEARTBEATS_BYTES_MAX;
    if idle { Ok(()) } else { Err(format!("without requests, the queues hold {load:?}")) }
}
