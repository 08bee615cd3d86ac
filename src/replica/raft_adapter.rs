//! The setup of raft-rs 0.7: its configuration, a deterministic election timeout, and its log
//! lines.

use std::fmt::Write as _;

use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, ProgressState, RawNode, StateRole};
use slog::{Drain, OwnedKVList, Record};

use crate::limits::{ELECTION_TICKS, HEARTBEAT_TICKS};
use crate::replica::log_tail::LogTail;
use crate::types::{MemberId, mix64};

/// The largest `MsgAppend`, unless one entry alone is larger.
pub const APPEND_BYTES_MAX: usize = 1 << 20;
/// `MsgAppend`s in flight to one follower.
const APPENDS_IN_FLIGHT_MAX: usize = 256;
/// Payload bytes of entries that are not yet committed.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of committed entries in one Ready.
const COMMITTED_BYTES_MAX: u64 = 16 << 20;

/// raft-rs with a pinned election timeout and helpers.
pub struct RaftAdapter {
    pub raw: RawNode<LogTail>,
    seed: u64,
}

impl RaftAdapter {
    /// Panics if `log` breaks an invariant of raft-rs. The caller must catch that.
    pub fn new(
        member: MemberId,
        seed: u64,
        applied_index: u64,
        log: LogTail,
    ) -> raft::Result<RaftAdapter> {
        let config = Config {
            id: member.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: applied_index,
            max_size_per_msg: APPEND_BYTES_MAX as u64,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        let logger = slog::Logger::root(TracingDrain { member }, slog::o!());
        let raw = RawNode::new(&config, log, &logger)?;
        let mut adapter = RaftAdapter { raw, seed };
        adapter.pin();
        Ok(adapter)
    }

    /// Replaces the election timeout, which raft-rs draws from a thread-local generator, by a pure
    /// function of (seed, id, term). Call it after every event, so that a run can be replayed.
    pub fn pin(&mut self) {
        let raft = &mut self.raw.raft;
        let mixed = mix64(self.seed ^ mix64(raft.id ^ mix64(raft.term)));
        // Never 0. A member that may not campaign stops one tick before its timeout, and raft-rs
        // grants no vote during the first `ELECTION_TICKS` after it heard a leader.
        let spread = 1 + (mixed % (ELECTION_TICKS as u64 - 1)) as usize;
        raft.set_randomized_election_timeout(ELECTION_TICKS + spread);
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The leader, if this member knows one.
    pub fn leader(&self) -> Option<MemberId> {
        let leader = self.raw.raft.leader_id;
        (leader != raft::INVALID_ID).then_some(MemberId(leader))
    }

    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// True when the next tick would start an election.
    pub fn is_about_to_campaign(&self) -> bool {
        let raft = &self.raw.raft;
        !self.is_leader() && raft.election_elapsed + 1 >= raft.randomized_election_timeout()
    }

    /// Makes the second tick from now start an election.
    pub fn hasten_election(&mut self) {
        let timeout = self.raw.raft.randomized_election_timeout();
        self.raw.raft.election_elapsed = timeout.saturating_sub(2);
    }

    /// Appends entries to the log of this leader. Does not copy payloads.
    pub fn propose(&mut self, entries: Vec<Entry>) -> raft::Result<()> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(entries.into());
        self.raw.step(message)
    }

    /// True when a follower accepts the appends of this leader, as far as the leader knows.
    pub fn replicates_to(&self, member: u64) -> bool {
        let progress = self.raw.raft.prs().get(member);
        progress.is_some_and(|progress| progress.state == ProgressState::Replicate)
    }

    /// The next entry for a follower.
    pub fn next_index(&self, member: u64) -> Option<u64> {
        self.raw.raft.prs().get(member).map(|progress| progress.next_idx)
    }

    /// The last entry that a follower has acknowledged.
    pub fn matched_index(&self, member: u64) -> Option<u64> {
        self.raw.raft.prs().get(member).map(|progress| progress.matched)
    }

    /// True when a follower was heard within the last election timeout.
    pub fn is_heard(&self, member: u64) -> bool {
        self.raw.raft.prs().get(member).is_some_and(|progress| progress.recent_active)
    }

    /// The followers that would be sent this entry next, in the order of their ids.
    pub fn waiting_at(&self, index: u64) -> Vec<u64> {
        let raft = &self.raw.raft;
        let waits = raft.prs().iter().filter(|(id, progress)| {
            **id != raft.id && progress.next_idx == index && !progress.is_paused()
        });
        let mut waits: Vec<u64> = waits.map(|(id, _)| *id).collect();
        waits.sort_unstable();
        waits
    }

    /// True when raft-rs would accept a proposal of `bytes` payload bytes.
    pub fn accepts(&self, bytes: usize) -> bool {
        let raft = &self.raw.raft;
        self.is_leader()
            && raft.lead_transferee.is_none()
            && raft.prs().get(raft.id).is_some()
            && (raft.uncommitted_size() == 0
                || raft.uncommitted_size() + bytes <= UNCOMMITTED_BYTES_MAX as usize)
    }
}

/// Sends the log lines of raft-rs to `tracing`. Its `Info` is routine here, so it becomes `DEBUG`.
struct TracingDrain {
    member: MemberId,
}

impl Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        let member = self.member.0;
        match record.level() {
            slog::Level::Critical | slog::Level::Error => {
                tracing::error!(member, "{}", text(record, values));
            }
            slog::Level::Warning => tracing::warn!(member, "{}", text(record, values)),
            slog::Level::Info => {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    tracing::debug!(member, "{}", text(record, values));
                }
            }
            slog::Level::Debug | slog::Level::Trace => {
                if tracing::enabled!(tracing::Level::TRACE) {
                    tracing::trace!(member, "{}", text(record, values));
                }
            }
        }
        Ok(())
    }
}

/// The message with its logged values.
fn text(record: &Record<'_>, values: &OwnedKVList) -> String {
    struct Values(String);
    impl slog::Serializer for Values {
        fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments) -> slog::Result {
            write!(self.0, " {key}={value}").map_err(slog::Error::Fmt)
        }
    }
    let mut out = Values(record.msg().to_string());
    let written = slog::KV::serialize(&record.kv(), record, &mut out)
        .and_then(|()| slog::KV::serialize(values, record, &mut out));
    if written.is_err() {
        out.0.push_str(" (values could not be written)");
    }
    out.0
}
