//! Admission: a change needs room in the log (rule `log-reserve`) and space on disks (rule
//! `space-before-append`).
//! - Owns: nothing.
//! - May call: nobody. It reads lanes, peers, members and resyncs, and changes none of them.
//! - Is told: clients' operations and peers' Raft messages, before a member gets them.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message};

use crate::planted::planted;
use crate::replica::command::{self, CommandError, EntryCommand};
use crate::replica::raft_message;
use crate::store::lane::{Demand, Refusal, Source};
use crate::types::{BlockError, BlockRange, MemberId, ShardOp};
use crate::view::MemberView;
use crate::worker::lanes::Lanes;
use crate::worker::members::{MemberRuntime, Members};
use crate::worker::peers::Peers;
use crate::worker::resync::Resyncs;

/// A peer with less free space takes no change that needs new space. Changes that are in flight
/// to it and that it has not announced fit in here.
const PEER_SPACE_BYTES_MIN: u64 = 16 << 20;

/// Checks whether a member may take something in, and borrows what the answer depends on.
pub struct Admission<'a> {
    pub lanes: &'a Lanes,
    pub peers: &'a Peers,
    pub members: &'a Members,
    pub resyncs: &'a Resyncs,
}

impl Admission<'_> {
    /// Why a member must not get a client's operation. `None`: it may, or it refuses by itself. On
    /// the leader, the log must have room (rule `log-reserve`) and a majority must have space (rule
    /// `space-before-append`). A member takes writes once elected, and serves only later.
    pub fn refuse(&self, member: MemberId, op: &ShardOp) -> Option<BlockError> {
        let here = self.members.get(member).filter(|runtime| runtime.faulted.is_none());
        let Some(runtime) = here else {
            return Some(BlockError::NotLeader { hint: None, term: 0 });
        };
        let role = runtime.member.role();
        let takes_all = !role.serving && planted!(NewLeaderTakesAll);
        if !op.is_write() || role.leader != Some(member) || takes_all {
            return None;
        }
        let lane = &self.lanes.get(runtime.lane).lane;
        let (payload_bytes, zero_extents) = (op.payload_bytes() as u64, op.zero_extents());
        let ranges = if op.needs_space() { &[op.range()][..] } else { &[] };
        let demand = Demand { payload_bytes, ranges, zero_extents };
        let refused = refusal(lane.admit(Source::Client, member, &demand))
            .or_else(|| self.lacks_space(runtime, member, op).then_some(BlockError::NoSpace));
        let refused = refused.map(|error| match error {
            // Trims are about to give space back here, so they are on the other replicas.
            BlockError::NoSpace if lane.hopes_for_space() => BlockError::Busy,
            error => error,
        });
        // Changes that it has not applied yet may give space back.
        refused.map(|error| if role.serving { error } else { BlockError::Busy })
    }

    /// True when a majority cannot take what needs new space (rule `space-before-append`).
    fn lacks_space(&self, runtime: &MemberRuntime, member: MemberId, op: &ShardOp) -> bool {
        let lane = &self.lanes.get(runtime.lane).lane;
        if !op.needs_space() || !lane.allocates(member, &[op.range()]) {
            return false;
        }
        let has_space = |peer: &&MemberView| {
            self.peers.free_bytes(peer.disk).is_none_or(|free| free > PEER_SPACE_BYTES_MIN)
        };
        let able = 1 + runtime.peers.iter().filter(has_space).count();
        let voters = 1 + runtime.peers.len();
        able * 2 <= voters
    }

    /// Decodes a peer's Raft message for a member, without the entries for which the lane has no
    /// room (rule `log-reserve`): the leader sends those again. `None`: nothing is left of it.
    pub fn raft_message(&self, to: MemberId, header: &[u8], data: Vec<Bytes>) -> Option<Message> {
        self.members.get(to)?;
        let joined = raft_message::join(header, data).map_err(|error| {
            tracing::warn!(%to, %error, "a peer sent a Raft message that cannot be decoded");
        });
        let mut message = joined.ok()?;
        if message.to != to.0 {
            tracing::warn!(%to, addressed = message.to, "a Raft message went to the wrong member");
            return None;
        }
        if message.entries.is_empty() {
            return Some(message);
        }
        if self.resyncs.refuses_entries(to) {
            return None;
        }
        let count = self.admit_entries(to, &message).map_err(|error| {
            tracing::warn!(%to, %error, "a peer sent an entry that cannot be decoded");
        });
        // Raft acknowledges only the entries that it gets.
        message.entries.truncate(count.ok()?);
        let has_news = !message.entries.is_empty() || self.tells_of_commits(to, &message);
        has_news.then_some(message)
    }

    /// How many entries of a message, from the first on, the member may have: those that are here
    /// already, and then all the rest, or those of earlier terms, or half as many until they find
    /// room. A message may be larger than what a small log takes at a time.
    fn admit_entries(&self, to: MemberId, message: &Message) -> Result<usize, CommandError> {
        let Some(runtime) = self.members.get(to) else { return Ok(0) };
        let entries: &[Entry] = &message.entries;
        // They need no room, and the leader must hear that they are here. Entries that it does not
        // know of are never committed, and stay in the log.
        let is_here = |entry: &&Entry| {
            let has_it = runtime.member.has_entry(entry.index, entry.term);
            has_it && !planted!(EntriesCountedTwice)
        };
        let here = entries.iter().take_while(is_here).count();
        let earlier = entries.iter().take_while(|entry| entry.term < message.term).count();
        let lane = &self.lanes.get(runtime.lane).lane;
        let mut count = entries.len();
        while count > here {
            let taken = &entries[here..count];
            let payload_bytes = taken.iter().map(|entry| entry.data.len() as u64).sum();
            let (ranges, zero_extents) = changes(taken)?;
            let source = match count <= earlier && !planted!(EarlierTermsRefused) {
                true => Source::EarlierTerm,
                false => Source::Leader,
            };
            let demand = Demand { payload_bytes, ranges: &ranges, zero_extents };
            let Some(error) = refusal(lane.admit(source, to, &demand)) else { break };
            let (free_bytes, log_used_bytes) =
                (lane.space().free_bytes, lane.space().log_used_bytes);
            tracing::debug!(
                member = %to, payload_bytes, free_bytes, log_used_bytes, %error,
                "entries are refused"
            );
            count = match count > earlier && earlier > here {
                true => earlier,
                false => here + (count - here) / 2,
            };
        }
        Ok(count)
    }

    /// True when a message brings a newer commit index: applying what is committed makes room.
    fn tells_of_commits(&self, to: MemberId, message: &Message) -> bool {
        let known = self.members.get(to).map_or(0, |runtime| runtime.member.committed());
        message.commit.min(message.index) > known && !planted!(FullLogIsDeaf)
    }
}

/// The client's error for a refusal of the lane.
fn refusal(admitted: Result<(), Refusal>) -> Option<BlockError> {
    match admitted {
        Ok(()) => None,
        Err(Refusal::LogFull) => Some(BlockError::Busy),
        Err(Refusal::NoSpace) => Some(BlockError::NoSpace),
    }
}

/// The blocks that entries write, and the number of extents that they zero.
fn changes(entries: &[Entry]) -> Result<(Vec<BlockRange>, u64), CommandError> {
    let (mut ranges, mut zero_extents) = (Vec::new(), 0);
    for entry in entries.iter().filter(|entry| !entry.context.is_empty()) {
        if entry.entry_type != EntryType::EntryNormal {
            continue;
        }
        match command::decode(&entry.context)?.1 {
            EntryCommand::Write { range, .. } => ranges.push(range),
            EntryCommand::Zero { range, .. } => zero_extents += range.extent_count(),
            EntryCommand::Touch | EntryCommand::Opaque => {}
        }
    }
    Ok((ranges, zero_extents))
}
