//! All bounds in one place. Their relations are checked at compile time.

use std::time::Duration;

use crate::types::{BLOCK_BYTES, EXTENT_BYTES};

/// The largest client request (NBD's advertised maximum block size).
pub const REQUEST_BYTES_MAX: usize = 32 << 20;
/// The largest payload of one log entry; larger requests are split.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// The smallest payload of a WAL bypass: writes of whole extents of at least this size go to slots
/// at once, smaller ones to the log first.
pub const BYPASS_BYTES_MIN: usize = 256 << 10;
/// Extents in one listing of the index, and in the message with that listing.
pub const LISTING_EXTENTS_MAX: usize = 4096;
/// The largest read in one operation on a shard; larger requests are split.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// The largest payload of one peer frame.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// The largest metadata (Raft messages without their payloads, manifests) of one peer frame.
pub const FRAME_META_BYTES_MAX: usize = 4 << 20;
/// Default length of a shard.
pub const SHARD_BYTES: u64 = 4 << 30;
/// The largest volume.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Default of [`Budgets::connection_bytes`].
pub const CONNECTION_BYTES_MAX: usize = 64 << 20;
/// NBD connections per pod.
pub const CLIENTS_MAX: usize = 4096;
/// Requests in flight per connection.
pub const CONNECTION_REQUESTS_MAX: usize = 1024;
/// Default of [`Budgets::volume_bytes`].
pub const VOLUME_IN_FLIGHT_BYTES_MAX: usize = 256 << 20;
/// Bytes of requests that every connection may have in flight, however busy its volume is.
pub const CONNECTION_IN_FLIGHT_BYTES_MIN: usize = 1 << 20;
/// Default of [`Budgets::shard_bytes`].
pub const SHARD_PROPOSAL_BYTES_MAX: usize = 64 << 20;
/// Default of [`Budgets::link_bytes`].
pub const LINK_QUEUE_BYTES_MAX: usize = 64 << 20;

/// The bounds of memory for work in flight that a pod's configuration may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Client payload in flight per connection. A larger single request is taken, too.
    pub connection_bytes: usize,
    /// Requests in flight per volume at one pod. Beyond it, connections only get their minimum.
    pub volume_bytes: usize,
    /// Proposals in flight per shard.
    pub shard_bytes: usize,
    /// Queued frames per link to a peer. Beyond it, Raft messages are dropped; Raft resends.
    pub link_bytes: usize,
}

impl Budgets {
    /// The smallest allowed values, so that the largest piece of work still fits.
    pub const LEAST: Budgets = Budgets {
        connection_bytes: CONNECTION_IN_FLIGHT_BYTES_MIN,
        volume_bytes: CONNECTION_IN_FLIGHT_BYTES_MIN,
        shard_bytes: 8 * ENTRY_BYTES_MAX,
        link_bytes: 2 * FRAME_PAYLOAD_BYTES_MAX,
    };
}

impl Default for Budgets {
    fn default() -> Budgets {
        Budgets {
            connection_bytes: CONNECTION_BYTES_MAX,
            volume_bytes: VOLUME_IN_FLIGHT_BYTES_MAX,
            shard_bytes: SHARD_PROPOSAL_BYTES_MAX,
            link_bytes: LINK_QUEUE_BYTES_MAX,
        }
    }
}

/// The largest data file of a new disk. File systems have a largest file: 16 TiB on ext4.
pub const DATA_FILE_BYTES: u64 = 8 << 40;
/// Operations of one kind (durable writes; all others) that a disk has in an io_uring. Others wait.
pub const DISK_RING_OPS: usize = 64;
/// Threads for the durable writes of a disk: more than the writes that a log has in flight.
pub const DISK_DURABLE_THREADS: usize = 4;
/// Threads for the other operations on the files of a disk.
pub const DISK_FILE_THREADS: usize = 8;
/// A start gives up a disk that has not answered for this long, and goes on without it.
pub const DISK_OPEN_SILENCE_MAX: Duration = Duration::from_secs(30);

/// One Raft tick.
pub const TICK: Duration = Duration::from_millis(100);
/// Ticks without a leader before an election: the lower bound. The upper is twice this minus one.
pub const ELECTION_TICKS: usize = 8;
/// Ticks between heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// Ticks without any event before a group may rest.
pub const REST_AFTER_TICKS: u32 = 10;
/// Resting followers wake when the lane of their leader was not heard for this long. The rest of
/// the time before an election is left for a heartbeat.
pub const BEAT_LAPSE: Duration = Duration::from_millis(500);
/// A resting leader wakes after this time at the latest, its followers after twice that, whatever
/// they were told: so nobody rests for ever.
pub const REST_TIME: Duration = Duration::from_secs(60);
/// Bound of the drift between clocks during one lease.
pub const LEASE_DRIFT: Duration = Duration::from_millis(50);
/// Length of a lease, from the sending of a round of heartbeats (rule
/// `lease-ends-before-election`). Every member that answered waits longer before an election.
pub const LEASE: Duration = Duration::from_millis(
    TICK.as_millis() as u64 * (ELECTION_TICKS as u64 - 1) - LEASE_DRIFT.as_millis() as u64,
);

const _: () = assert!(ENTRY_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(ENTRY_BYTES_MAX.is_multiple_of(EXTENT_BYTES));
const _: () = assert!(BYPASS_BYTES_MIN.is_multiple_of(EXTENT_BYTES));
const _: () = assert!(BYPASS_BYTES_MIN <= ENTRY_BYTES_MAX);
const _: () = assert!(READ_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(CONNECTION_BYTES_MAX >= REQUEST_BYTES_MAX);
const _: () = assert!(FRAME_PAYLOAD_BYTES_MAX >= 2 * ENTRY_BYTES_MAX);
const _: () = assert!(SHARD_PROPOSAL_BYTES_MAX >= Budgets::LEAST.shard_bytes);
const _: () = assert!(LINK_QUEUE_BYTES_MAX >= Budgets::LEAST.link_bytes);
const _: () = assert!(HEARTBEAT_TICKS * 3 < ELECTION_TICKS);
const _: () = assert!(
    BEAT_LAPSE.as_millis() + 3 * TICK.as_millis() <= TICK.as_millis() * ELECTION_TICKS as u128
);
const _: () = assert!(BEAT_LAPSE.as_millis() > 2 * TICK.as_millis() * HEARTBEAT_TICKS as u128);
