//! The messages between a member and its driver.
//!
//! For every event of a round call `handle(now, input)`, then call `poll(now, &mut outputs)` once.
//! Carry out the outputs in order. `Append`s of one member become durable and are confirmed in
//! order.

use bytes::Bytes;
use raft::eraftpb::Message;

use crate::io::buffer::Pool;
use crate::log::{Append, Applied, HardState, LogEntry, LogGone};
use crate::replica::terms::Terms;
use crate::types::{
    Block, BlockError, BlockRange, MemberId, Mono, Origin, ShardId, ShardOp, ShardReply, VolumeId,
};

/// Identifies a client request at this worker until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReqId(pub u64);

/// The constant properties of a member.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    pub member: MemberId,
    pub shard: ShardId,
    /// Seeds the election timeout: the only randomness.
    pub seed: u64,
    /// Birth volume of the blocks, and the shard's first block counted in blocks of the volume.
    /// Both seed the checksums of blocks that are merged here (rule `whole-blocks-in-log`).
    pub volume: VolumeId,
    pub first_block_in_volume: u64,
    /// Length of the shard in blocks. Requests beyond it are refused with `OutOfRange`.
    pub blocks: u32,
    /// Bytes of applied entries kept in memory for followers that lag a little.
    pub log_tail_bytes: usize,
    /// The store's log has older entries, and gives them back: [`Output::FetchLog`].
    pub log_on_disk: bool,
    /// Limit of the bytes of proposals in flight.
    pub proposal_bytes_max: usize,
    pub reads: ReadMode,
    /// Memory for blocks that are merged here.
    pub pool: Pool,
}

/// How a leader knows that no other leads when it reads (rule `lease-ends-before-election`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// By a lease. Requires that clocks do not stop, and drift within the bound.
    #[default]
    Lease,
    /// By asking a majority, once for all waiting reads (rule `quorum-reads-trust-no-clock`).
    Quorum,
}

/// Log and metadata of a member, as recovered when its lane was opened. A new member starts with
/// zeroes and a `meta` from [`crate::replica::meta`].
#[derive(Clone, Debug, Default)]
pub struct Start {
    pub hard: HardState,
    /// The store has all entries up to here applied. 0 for a new member.
    pub applied_index: u64,
    /// Index and term of the entry before the first of `entries`; `(0, 0)` for a new member.
    pub compacted_index: u64,
    pub compacted_term: u64,
    /// Entries from `compacted_index + 1` on, contiguous, with payloads. Those up to
    /// `applied_index` serve followers only.
    pub entries: Vec<LogEntry>,
    /// The terms of entries that only the log on the disk has, up to `compacted_index`.
    pub on_disk: Option<Terms>,
    /// Shard metadata as of `applied_index`: configuration, epochs, sessions, size.
    pub meta: Bytes,
    /// The durable resyncing flag is set: no serving until it is cleared, and late campaigns.
    pub resyncing: bool,
    /// This member's lane lost a part of its promised log. The member is reported, and neither
    /// votes nor acknowledges.
    pub faulted: bool,
}

/// The events that a driver reports to a member.
#[derive(Debug)]
pub enum Input {
    /// 100 ms passed since the last tick. Overdue ticks coalesce into one.
    Tick,
    Peer(Box<Message>),
    /// `term` 0 means the current term. A request for a term that is not current is refused.
    Client {
        req: ReqId,
        term: u64,
        origin: Origin,
        op: ShardOp,
    },
    /// The `Append` with this number is durable. One with nothing to write is confirmed in its
    /// turn.
    Appended {
        number: u64,
    },
    /// Answer to [`Output::ReadBase`]: the whole block, `None` when it reads as zeroes.
    Base {
        ticket: u64,
        result: Result<Option<Bytes>, BlockError>,
    },
    /// Answer to [`Output::FetchLog`]: entries from `low` on, at least one.
    LogFetched {
        low: u64,
        result: Result<Vec<LogEntry>, NotFetched>,
    },
    /// The link to this member's lane is down; raft-rs needs to know.
    Unreachable(MemberId),
    /// If this member leads: transfer the leadership to that member, unless it lags.
    TransferLeader(MemberId),
    /// The store durably has every extent as of at least `index`: step the Raft snapshot that ends
    /// a resync. `meta` is the source's metadata as of `index`. Waits for a known leader. An
    /// `Append` with `reset` follows, unless the log already reaches `index`; then only the leader
    /// is answered. In both cases the member is no longer *resyncing*.
    InstallSnapshot {
        index: u64,
        term: u64,
        meta: Bytes,
    },
    /// The resync of `Output::NeedsResync` succeeded (`true`), or will be requested again
    /// (`false`). The leader tells raft-rs.
    ResyncEnded {
        member: MemberId,
        ok: bool,
    },
    /// A follower begins to copy the state that is applied here now (`anew`), or continues. The log
    /// from there on is kept for a while, up to `proposal_bytes_max`, so that the follower can
    /// continue with it.
    KeepLog {
        anew: bool,
    },
    /// The durable resyncing flag of this member was set (`true`, before the first overwrite) or
    /// cleared. A confirmed snapshot `Append` clears it here, too.
    Resyncing(bool),
    /// A configuration change from control, for the catalog's own group.
    ChangeMembers(raft::eraftpb::ConfChangeV2),
    /// An opaque command of the catalog's own group. Answered with `Reply`.
    Propose {
        req: ReqId,
        data: Bytes,
    },
    /// The member rested until now (see [`Rest`]). At this time it last heard its leader's lane. A
    /// leader begins to count its heartbeats anew.
    Woken {
        heard: Mono,
    },
    /// Asks for an index at or above every write that was acknowledged before, confirmed by a
    /// quorum or a lease. Answered with `Barrier`.
    Barrier {
        req: ReqId,
    },
}

/// The actions that a member requests from its driver.
#[derive(Debug)]
pub enum Output {
    /// One atomic log write, confirmed by `Input::Appended` in the order of `number`.
    Append(Append),
    Send(Box<Message>),
    /// A committed entry. Entries come in order, each index once after the start.
    Apply(Applied),
    /// A read (or status) may now be executed against all entries applied so far. The driver
    /// answers the client itself.
    Read {
        req: ReqId,
        range: BlockRange,
        status: bool,
        /// Nobody had to be asked: there is a lease, or no other voter.
        leased: bool,
    },
    /// Requests the stored content of one block, as of all entries applied so far.
    ReadBase {
        ticket: u64,
        block: Block,
    },
    Reply {
        req: ReqId,
        result: Result<ShardReply, BlockError>,
    },
    /// Answer to `Input::Barrier`: this member has applied up to a safe index.
    Barrier {
        req: ReqId,
    },
    /// Leader or term changed.
    Role(Role),
    /// On the leader: asks the store for applied entries from `low` on and before `high`. The
    /// follower `to` waits for them.
    FetchLog {
        to: MemberId,
        low: u64,
        high: u64,
    },
    /// On the leader: this follower must be resynced.
    NeedsResync {
        member: MemberId,
        reason: ResyncReason,
    },
    /// This member is broken (a raft-rs invariant, a conflicting log) and has stopped.
    Faulted {
        reason: String,
    },
}

/// A leader's offer to a follower that the group rests: both have everything, and nobody asked for
/// anything for a while. The follower's clock stops until it is woken. Lanes beat for all their
/// resting members at once, and wake them when a beat fails to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rest {
    pub leader: MemberId,
    pub term: u64,
    /// The last entry: committed, and applied by the leader.
    pub index: u64,
}

/// Why a fetch brought no entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFetched {
    /// Not asked: the way to the follower is full. raft-rs asks again.
    Busy,
    /// The log on the disk does not have the first entry any more.
    Gone(LogGone),
}

/// Why a follower needs a resync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResyncReason {
    /// The leader's log, in memory and on the disk, begins behind what the follower has.
    BehindLog,
    /// The follower has no configuration, and cannot start from the log.
    Uninitialised,
}

/// The leader, as this member knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Role {
    pub term: u64,
    pub leader: Option<MemberId>,
    /// This member leads and has applied an entry of its own term.
    pub serving: bool,
}

impl std::fmt::Display for ResyncReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ResyncReason::BehindLog => "the log does not reach back far enough",
            ResyncReason::Uninitialised => "it is empty",
        })
    }
}
