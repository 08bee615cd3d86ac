//! What members may take in: the log has room (rule R9), and the change finds space (rule R10).
//!
//! [`Admission`] owns nothing and changes nothing. It looks at lanes, links, members and resyncs.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message};

use crate::planted::{Mistake, planted};
use crate::replica::command::{self, Command, CommandError};
use crate::replica::message;
use crate::store::lane::Refusal;
use crate::types::{BlockError, BlockRange, MemberId, ShardOp};
use crate::view::MemberView;
use crate::worker::lanes::Lanes;
use crate::worker::members::{MemberRuntime, Members};
use crate::worker::peers::Peers;
use crate::worker::resync::Resyncs;

/// A peer with less free space takes no change that needs new space: what is under way to it and
/// not yet announced fits in here.
const PEER_SPACE_BYTES_MIN: u64 = 16 << 20;

/// The question whether a member may take something in, with what the answer depends on.
pub struct Admission<'a> {
    pub lanes: &'a Lanes,
    pub peers: &'a Peers,
    pub members: &'a Members,
    pub resyncs: &'a Resyncs,
}

impl Admission<'_> {
    /// Why an operation of a client must not be given to a member; `None` when it may be, or the
    /// member refuses it by itself. Rules R9 and R10 on the leader: the log has room, and a
    /// majority can take the change. A member takes writes as soon as it is elected, which it
    /// tells, and serves, later.
    pub fn refuse(&self, member: MemberId, op: &ShardOp) -> Option<BlockError> {
        let here = self.members.get(member).filter(|runtime| runtime.faulted.is_none());
        let Some(runtime) = here else {
            return Some(BlockError::NotLeader { hint: None, term: 0 });
        };
        let role = runtime.member.role();
        let takes_all = !role.serving && planted(Mistake::NewLeaderTakesAll);
        if !op.is_write() || role.leader != Some(member) || takes_all {
            return None;
        }
        let lane = &self.lanes.get(runtime.lane).lane;
        let refused = refusal(lane.admit(member, op.payload_bytes() as u64, &[op.range()]))
            .or_else(|| self.lacks_space(runtime, member, op).then_some(BlockError::NoSpace));
        // What it has not applied yet may give space back.
        refused.map(|error| if role.serving { error } else { BlockError::Busy })
    }

    /// Rule R10: ENOSPC before proposing when a majority could not take what needs new space.
    fn lacks_space(&self, runtime: &MemberRuntime, member: MemberId, op: &ShardOp) -> bool {
        let lane = &self.lanes.get(runtime.lane).lane;
        if op.payload_bytes() == 0 || !lane.allocates(member, &[op.range()]) {
            return false;
        }
        let has_space = |peer: &&MemberView| {
            self.peers.free_bytes(peer.disk).is_none_or(|free| free > PEER_SPACE_BYTES_MIN)
        };
        let able = 1 + runtime.peers.iter().filter(has_space).count();
        let voters = 1 + runtime.peers.len();
        able * 2 <= voters
    }

    /// A Raft message from a peer, with what of it the member may have: entries are taken only
    /// while the lane has room for them (rule R9), the leader sends the others again.
    pub fn raft_message(&self, to: MemberId, header: &[u8], data: Vec<Bytes>) -> Option<Message> {
        self.members.get(to)?;
        let joined = message::join(header, data).map_err(|error| {
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
        // Raft acknowledges what it took.
        message.entries.truncate(count.ok()?);
        let has_news = !message.entries.is_empty() || self.tells_of_commits(to, &message);
        has_news.then_some(message)
    }

    /// How many entries of a message, from the first on, the member may have: those that it has
    /// already, and of the rest as many as its lane has room for: all, or those of earlier terms,
    /// or a half as many times as it takes. A message may be larger than what a small log takes at
    /// a time.
    fn admit_entries(&self, to: MemberId, message: &Message) -> Result<usize, CommandError> {
        let Some(runtime) = self.members.get(to) else { return Ok(0) };
        let entries: &[Entry] = &message.entries;
        // They take no room again, and the leader must hear that they are here: what it does not
        // know of is not committed, and stays where it is.
        let is_here = |entry: &&Entry| {
            let has_it = runtime.member.has_entry(entry.index, entry.term);
            has_it && !planted(Mistake::EntriesCountedTwice)
        };
        let here = entries.iter().take_while(is_here).count();
        let earlier = entries.iter().take_while(|entry| entry.term < message.term).count();
        let lane = &self.lanes.get(runtime.lane).lane;
        let mut count = entries.len();
        while count > here {
            let taken = &entries[here..count];
            let payload_bytes = taken.iter().map(|entry| entry.data.len() as u64).sum();
            let ranges = ranges(taken)?;
            let admitted = match count <= earlier && !planted(Mistake::EarlierTermsRefused) {
                true => lane.admit_earlier_term(to, payload_bytes, &ranges),
                false => lane.admit(to, payload_bytes, &ranges),
            };
            let Some(error) = refusal(admitted) else { break };
            let space = lane.space();
            tracing::debug!(member = %to, payload_bytes, ?space, %error, "entries are refused");
            count = match count > earlier && earlier > here {
                true => earlier,
                false => here + (count - here) / 2,
            };
        }
        Ok(count)
    }

    /// True when a message has news of the commit index for the member, whatever is in it besides:
    /// what is committed can be applied, and makes room.
    fn tells_of_commits(&self, to: MemberId, message: &Message) -> bool {
        let known = self.members.get(to).map_or(0, |runtime| runtime.member.committed());
        message.commit.min(message.index) > known && !planted(Mistake::FullLogIsDeaf)
    }
}

/// What a refusal of the lane is called.
fn refusal(admitted: Result<(), Refusal>) -> Option<BlockError> {
    match admitted {
        Ok(()) => None,
        Err(Refusal::LogFull) => Some(BlockError::Busy),
        Err(Refusal::NoSpace) => Some(BlockError::NoSpace),
    }
}

/// The blocks that entries change.
fn ranges(entries: &[Entry]) -> Result<Vec<BlockRange>, CommandError> {
    let mut ranges = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.context.is_empty()) {
        if entry.entry_type != EntryType::EntryNormal {
            continue;
        }
        match command::decode(&entry.context)?.1 {
            Command::Write { range, .. } | Command::Zero { range, .. } => ranges.push(range),
            Command::Touch | Command::Opaque => {}
        }
    }
    Ok(ranges)
}
