//! All bounds in one place. Their relations are checked at compile time.

use std::time::Duration;

use crate::types::{BLOCK_BYTES, EXTENT_BYTES, ZERO_EXTENT_BYTES};

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
/// Bytes that a link hands to the kernel at a time: a heartbeat waits behind no more, and the rest
/// of one frame (rule `heartbeats-go-first`).
pub const SEND_BYTES_MAX: usize = 512 << 10;
/// Bytes that the kernel takes from a send beyond those that the network takes at once.
pub const UNSENT_BYTES_MAX: usize = 256 << 10;
/// The largest term or index that a peer may name. At a million a second, a group needs a hundred
/// thousand years to reach it, and sums stay far from an overflow.
pub const RAFT_NUMBER_MAX: u64 = 1 << 62;
/// Entries in one Raft message: more than fit into the smallest form of each.
pub const MESSAGE_ENTRIES_MAX: usize = 32 << 10;
/// Questions for extents of one peer that wait for their turn.
pub const EXTENT_ASKS_MAX: usize = 1 << 18;
/// Default length of a shard.
pub const SHARD_BYTES: u64 = 4 << 30;
/// Most shards of one volume. A volume that is made larger than that has longer shards.
pub const SHARDS_MAX: u64 = 4096;
/// Longest time for which a deleted volume is kept: ten years.
pub const RETENTION_MS_MAX: u64 = 3650 * 24 * 60 * 60 * 1000;
/// The largest volume.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;
/// Default of [`Budgets::connection_bytes`].
pub const CONNECTION_BYTES_MAX: usize = 64 << 20;
/// NBD connections per pod.
pub const CLIENTS_MAX: usize = 4096;
/// Unfinished handshakes of NBD clients, and as many of peers (rule
/// `every-handshake-has-a-deadline`).
const HANDSHAKES_MAX: usize = 1024;
/// Of these, from one source.
const HANDSHAKES_OF_SOURCE_MAX: usize = 256;
/// Connections to a pod's API.
const API_CONNECTIONS_MAX: usize = 1024;
/// Longest handshake of a client or a peer.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection ends when sent bytes are not acknowledged for so long; a silent one ends a little
/// earlier, by keepalive.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(120);
/// Descriptors that a disk needs at most: its files, and the tables of its index, also while it
/// writes new ones.
pub const DISK_FILES_MAX: u64 = 128;
/// Descriptors that a pod needs besides: its catalog, logs, threads, commands of its own.
pub const OWN_FILES_MAX: u64 = 192;
/// With fewer descriptors than this for connections, a pod refuses to start.
const SOCKETS_MIN: u64 = 64;

/// How many connections a pod takes, so that its own files always find a descriptor (rule
/// `descriptors-for-our-own-files`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// NBD connections with an export.
    pub clients: usize,
    /// Unfinished handshakes of clients, and as many of peers.
    pub handshakes: usize,
    /// Of these, from one source.
    pub handshakes_of_source: usize,
    pub api: usize,
}

impl Default for SocketLimits {
    fn default() -> SocketLimits {
        SocketLimits {
            clients: CLIENTS_MAX,
            handshakes: HANDSHAKES_MAX,
            handshakes_of_source: HANDSHAKES_OF_SOURCE_MAX,
            api: API_CONNECTIONS_MAX,
        }
    }
}

impl SocketLimits {
    /// Descriptors for the files of a pod with this many disks.
    pub fn reserve(disks: usize) -> u64 {
        OWN_FILES_MAX + DISK_FILES_MAX * disks as u64
    }

    /// The limits for a process that may have `open_files` descriptors. `None`: too few to serve.
    pub fn of(open_files: u64, disks: usize) -> Option<SocketLimits> {
        let sockets = open_files.checked_sub(SocketLimits::reserve(disks))?;
        if sockets < SOCKETS_MIN {
            return None;
        }
        // Half of them for clients; an eighth each for both handshakes, the API, and links.
        let part = |of: u64| usize::try_from(sockets / of).unwrap_or(usize::MAX);
        let all = SocketLimits::default();
        Some(SocketLimits {
            clients: all.clients.min(part(2)),
            handshakes: all.handshakes.min(part(8)),
            handshakes_of_source: all.handshakes_of_source.min(part(16)),
            api: all.api.min(part(8)),
        })
    }

    /// Descriptors with which nothing is limited further.
    pub fn wanted(disks: usize) -> u64 {
        2 * CLIENTS_MAX as u64 + SocketLimits::reserve(disks)
    }
}

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
/// Payload bytes that one fetch of entries from the log gives, unless one entry alone is larger.
pub const LOG_FETCH_BYTES_MAX: usize = 1 << 20;
/// Batches of the log that one fetch looks into.
pub const LOG_FETCH_BATCHES_MAX: usize = 32;
/// Fetches of entries in flight per lane, for all its replicas; others wait in order.
pub const LOG_FETCHES_MAX: usize = 4;
/// Payload bytes of fetched entries that a follower has been sent and has not answered.
pub const FED_BYTES_MAX: usize = 4 << 20;
/// Ticks after which fetched entries count as lost, if their follower acknowledges nothing.
pub const FED_TICKS_MAX: u32 = 2 * ELECTION_TICKS as u32;
/// Terms that a replica can tell of entries that it has only in the log on the disk.
pub const LOG_TERMS_MAX: usize = 64;
/// Resyncs that copy into the replicas of one lane at a time; others wait in order.
pub const RESYNCS_INTO_LANE_MAX: usize = 4;
/// Resyncs that one lane is the source of at a time; other followers wait for their offer.
pub const RESYNCS_FROM_LANE_MAX: usize = 4;

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
/// The longest range that one log entry zeroes or trims. Each of its extents takes time when the
/// entry is applied, and memory of the overlay from then on.
pub const ZERO_BYTES_MAX: u64 = 16 << 20;
/// Extents that all unapplied entries of a lane may zero: to apply them all at once takes
/// milliseconds. Beyond it, each member may have one entry.
pub const ZERO_EXTENTS_UNAPPLIED_MAX: u64 = 8192;
/// Bytes that the overlays of one lane may take, without payloads (rule `overlay-is-bounded`).
pub const OVERLAY_BYTES_MAX: u64 = 32 << 20;
/// After a trim, a write that finds no slot is asked to come again for this long.
pub const SPACE_HOPE: Duration = Duration::from_secs(5);

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

const _: () = assert!(HANDSHAKES_OF_SOURCE_MAX < HANDSHAKES_MAX);
const _: () = assert!(2 * CLIENTS_MAX >= 8 * HANDSHAKES_MAX);
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
const _: () = assert!(ZERO_BYTES_MAX.is_multiple_of(EXTENT_BYTES as u64));
const _: () = assert!(ZERO_EXTENTS_UNAPPLIED_MAX >= ZERO_BYTES_MAX / EXTENT_BYTES as u64);
const _: () =
    assert!(8 * ZERO_EXTENTS_UNAPPLIED_MAX * ZERO_EXTENT_BYTES as u64 <= OVERLAY_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_find_a_descriptor_whatever_the_limit() {
        for disks in [1, 3, 24] {
            assert_eq!(SocketLimits::of(SocketLimits::reserve(disks), disks), None);
            let wanted = SocketLimits::of(SocketLimits::wanted(disks), disks);
            assert_eq!(wanted, Some(SocketLimits::default()));
            for open_files in SocketLimits::reserve(disks) + SOCKETS_MIN..20_000 {
                let limits = SocketLimits::of(open_files, disks).expect("enough");
                let sockets = limits.clients + 2 * limits.handshakes + limits.api;
                assert!(sockets as u64 + SocketLimits::reserve(disks) <= open_files);
                assert!(limits.handshakes_of_source > 0);
            }
        }
    }
}
