//! Every bound in one place, with the relations between them checked at compile time.

use std::time::Duration;

use crate::types::{BLOCK_BYTES, EXTENT_BYTES};

/// The largest client request (NBD's advertised maximum block size).
pub const REQUEST_BYTES_MAX: usize = 32 << 20;
/// The largest payload of one log entry; larger requests are cut.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Writes of whole extents with at least this much payload are written once, to slots of the data
/// file; smaller ones to the log first.
pub const REDIRECT_BYTES_MIN: usize = 256 << 10;
/// Extents that one listing of the index, and one message with what it found, may have.
pub const LISTING_EXTENTS_MAX: usize = 4096;
/// The largest read that is one operation on a shard; larger requests are cut.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// The largest payload of one peer frame.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// The largest metadata (Raft messages without their payloads, manifests) of one peer frame.
pub const FRAME_META_BYTES_MAX: usize = 4 << 20;
/// Default length of a shard.
pub const SHARD_BYTES: u64 = 4 << 30;
/// The largest volume.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Bytes of client payload under way per connection, unless [`Budgets`] says otherwise.
pub const CONNECTION_BYTES_MAX: usize = 64 << 20;
/// NBD connections that a pod serves at once.
pub const CLIENTS_MAX: usize = 4096;
/// Requests under way per connection.
pub const CONNECTION_REQUESTS_MAX: usize = 1024;
/// Bytes of requests under way per volume at one pod; beyond it, connections get their minimum
/// only. Unless [`Budgets`] says otherwise.
pub const VOLUME_UNDER_WAY_BYTES_MAX: usize = 256 << 20;
/// What a connection may have under way however busy the others of its volume are.
pub const CONNECTION_UNDER_WAY_BYTES_MIN: usize = 1 << 20;
/// Bytes of proposals under way per shard, unless [`Budgets`] says otherwise.
pub const SHARD_PROPOSAL_BYTES_MAX: usize = 64 << 20;
/// Bytes of queued frames per peer link before Raft messages to it are dropped (Raft resends),
/// unless [`Budgets`] says otherwise.
pub const LINK_QUEUE_BYTES_MAX: usize = 64 << 20;

/// The bounds on memory under way that a pod's configuration may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Client payload under way per connection; one larger request is taken all the same.
    pub connection_bytes: usize,
    /// Requests under way per volume at one pod.
    pub volume_bytes: usize,
    /// Proposals under way per shard.
    pub shard_bytes: usize,
    /// Frames that wait to leave, per link to a peer.
    pub link_bytes: usize,
}

impl Budgets {
    /// What each may be at least, so that the largest piece of work still fits.
    pub const LEAST: Budgets = Budgets {
        connection_bytes: CONNECTION_UNDER_WAY_BYTES_MIN,
        volume_bytes: CONNECTION_UNDER_WAY_BYTES_MIN,
        shard_bytes: 8 * ENTRY_BYTES_MAX,
        link_bytes: 2 * FRAME_PAYLOAD_BYTES_MAX,
    };
}

impl Default for Budgets {
    fn default() -> Budgets {
        Budgets {
            connection_bytes: CONNECTION_BYTES_MAX,
            volume_bytes: VOLUME_UNDER_WAY_BYTES_MAX,
            shard_bytes: SHARD_PROPOSAL_BYTES_MAX,
            link_bytes: LINK_QUEUE_BYTES_MAX,
        }
    }
}

/// One Raft tick.
pub const TICK: Duration = Duration::from_millis(100);
/// Ticks without a leader before an election: the lower bound; the upper is twice minus one.
pub const ELECTION_TICKS: usize = 8;
/// Ticks between heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// What clocks may drift apart during one lease.
pub const LEASE_DRIFT: Duration = Duration::from_millis(50);
/// How long after the sending of a round of heartbeats its answers protect a leader's reads (rule
/// R14): less than anybody who has heard from it waits before an election.
pub const LEASE: Duration = Duration::from_millis(
    TICK.as_millis() as u64 * (ELECTION_TICKS as u64 - 1) - LEASE_DRIFT.as_millis() as u64,
);

const _: () = assert!(ENTRY_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(ENTRY_BYTES_MAX.is_multiple_of(EXTENT_BYTES));
const _: () = assert!(REDIRECT_BYTES_MIN.is_multiple_of(EXTENT_BYTES));
const _: () = assert!(REDIRECT_BYTES_MIN <= ENTRY_BYTES_MAX);
const _: () = assert!(READ_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(CONNECTION_BYTES_MAX >= REQUEST_BYTES_MAX);
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX >= 2 * ENTRY_BYTES_MAX);
const _: () = assert!(SHARD_PROPOSAL_BYTES_MAX >= Budgets::LEAST.shard_bytes);
const _: () = assert!(LINK_QUEUE_BYTES_MAX >= Budgets::LEAST.link_bytes);
const _: () = assert!(HEARTBEAT_TICKS * 3 < ELECTION_TICKS);
