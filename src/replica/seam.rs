//! The vocabulary between a member and the world that drives it.
//!
//! Driving: `handle(now, input)` for every event of a round, then `poll(now, &mut outputs)` once.
//! Every output is carried out in order. `Append`s of one member become durable in order and are
//! confirmed in order.

use bytes::Bytes;
use raft::eraftpb::Message;

use crate::io::buffer::Pool;
use crate::log::{Append, Applied, HardState, LogEntry};
use crate::types::{
    Block, BlockError, BlockRange, MemberId, Origin, ShardId, ShardOp, ShardReply, VolumeId,
};

/// Names a client request at this worker until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReqId(pub u64);

/// What never changes about a member.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    pub member: MemberId,
    pub shard: ShardId,
    /// Seeds the election timeout: the only randomness.
    pub seed: u64,
    /// Birth volume of the blocks and the shard's first block, counted in blocks of the volume:
    /// both seed the checksums of blocks that are merged here (rule R5).
    pub volume: VolumeId,
    pub first_block_in_volume: u64,
    /// Blocks of the shard; anything beyond is refused with `OutOfRange`.
    pub blocks: u32,
    /// Bytes of applied entries that stay in memory for followers that are a little behind.
    pub log_tail_bytes: usize,
    /// Bytes of proposals under way.
    pub proposal_bytes_max: usize,
    pub reads: ReadMode,
    /// Where blocks come from that are merged here.
    pub pool: Pool,
}

/// How a leader knows that nobody else leads when it serves a read (rule R14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// By a lease: as long as clocks do not stop and drift within the bound.
    #[default]
    Lease,
    /// By asking a majority, once for all reads that wait. Needs no clock.
    Quorum,
}

/// What a member's log and metadata were found to be when its lane was opened; also how a new
/// member starts (everything zero, `meta` from [`crate::replica::meta`]).
#[derive(Clone, Debug, Default)]
pub struct Start {
    pub hard: HardState,
    /// Everything up to here is applied, in the store, and not in `entries`... but for the tail
    /// below. `(0, 0)` for a new member.
    pub applied_index: u64,
    /// The point before the first of `entries`: index and term.
    pub compacted_index: u64,
    pub compacted_term: u64,
    /// Entries from `compacted_index + 1` on, contiguous, payloads present. The ones up to
    /// `applied_index` serve followers only.
    pub entries: Vec<LogEntry>,
    /// Shard metadata as of `applied_index`: configuration, epochs, sessions, size.
    pub meta: Bytes,
    /// The durable *resyncing* mark: no serving until it is cleared, and campaigns come late.
    pub resyncing: bool,
    /// This member's lane lost a part of its log that it had promised: no votes, no
    /// acknowledgements, reported.
    pub faulted: bool,
}

/// All that the world can do to a member.
#[derive(Debug)]
pub enum Input {
    /// 100 ms have passed since the last tick. Overdue ticks coalesce into one.
    Tick,
    Peer(Box<Message>),
    /// `term` 0: whatever the current term is; otherwise refused unless it is the current one.
    Client {
        req: ReqId,
        term: u64,
        origin: Origin,
        op: ShardOp,
    },
    /// The `Append` with this number is durable (or had nothing to make durable and its turn
    /// came).
    Appended {
        number: u64,
    },
    /// Answer to [`Output::ReadBase`]: the whole block, `None` when it reads as zeroes.
    Base {
        ticket: u64,
        result: Result<Option<Bytes>, BlockError>,
    },
    /// The link to this member's lane is down; raft-rs wants to know.
    Unreachable(MemberId),
    /// Give the leadership to this member if it is up to date, when leading.
    TransferLeader(MemberId),
    /// The store has every extent as of at least `index`, durably: step the Raft snapshot that
    /// ends a resync. `meta` is the source's metadata as of `index`. Waits for a known leader.
    /// An `Append` with `reset` follows, unless the log already reaches that far; then only the
    /// leader is answered. Either way the member is not *resyncing* any more.
    InstallSnapshot {
        index: u64,
        term: u64,
        meta: Bytes,
    },
    /// The resync that `Output::NeedsResync` asked for ended well (`true`) or will be asked for
    /// again (`false`); tells raft-rs on the leader.
    ResyncEnded {
        member: MemberId,
        ok: bool,
    },
    /// A follower begins to copy what is applied here now (`anew`), or goes on with that: the log
    /// from there on is kept for it, for a while and up to `proposal_bytes_max`, so that it can go
    /// on with it afterwards.
    KeepLog {
        anew: bool,
    },
    /// The durable *resyncing* mark of this member was set (`true`, before the first overwrite)
    /// or cleared. A confirmed snapshot `Append` clears it here too.
    Resyncing(bool),
    /// Configuration change proposed by control (the catalog's own group; shards later).
    ChangeMembers(raft::eraftpb::ConfChangeV2),
    /// An opaque command of the catalog's own group. Answered with `Reply`.
    Propose {
        req: ReqId,
        data: Bytes,
    },
    /// An index that no write acknowledged before this call lies beyond, confirmed by a quorum
    /// or a lease. Answered with `Barrier`.
    Barrier {
        req: ReqId,
    },
}

/// All that a member can ask of the world.
#[derive(Debug)]
pub enum Output {
    /// One atomic log write; confirmed by `Input::Appended`, in order of `number`.
    Append(Append),
    Send(Box<Message>),
    /// A committed entry, in order, each index once after the start.
    Apply(Applied),
    /// A read (or status) may be executed now, against everything applied so far; the world
    /// answers the client itself.
    Read {
        req: ReqId,
        range: BlockRange,
        status: bool,
    },
    /// The stored content of one block is needed, as of everything applied so far.
    ReadBase {
        ticket: u64,
        block: Block,
    },
    Reply {
        req: ReqId,
        result: Result<ShardReply, BlockError>,
    },
    /// Answer to `Input::Barrier`: applied here up to a safe index.
    Barrier {
        req: ReqId,
    },
    /// Leader or term changed.
    Role(Role),
    /// On the leader: this follower is behind the log and must be resynced.
    NeedsResync {
        member: MemberId,
    },
    /// This member found itself broken (a raft-rs invariant, a conflicting log) and has stopped.
    Faulted {
        reason: String,
    },
}

/// Who leads, as this member knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Role {
    pub term: u64,
    pub leader: Option<MemberId>,
    /// This member leads and has applied an entry of its own term.
    pub serving: bool,
}
