//! What members may take in: the log has room (rule R9), and the change finds space (rule R10).

use raft::eraftpb::{Entry, EntryType, Message};

use crate::planted::{Mistake, planted};
use crate::replica::command::{self, Command, CommandError};
use crate::store::lane::Refusal;
use crate::types::{BlockError, BlockRange, MemberId};
use crate::view::MemberView;
use crate::worker::Worker;
use crate::worker::members::MemberRuntime;

/// A peer with less free space takes no change that needs new space: what is under way to it and
/// not yet announced fits in here.
const PEER_SPACE_BYTES_MIN: u64 = 16 << 20;

impl Worker {
    /// Rules R9 and R10 on the leader: the log has room, and a majority can take the change.
    pub(super) fn admit(
        &self,
        lane: u8,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Option<BlockError> {
        refusal(self.lanes[usize::from(lane)].lane.admit(member, payload_bytes, ranges))
    }

    /// Rule R10: ENOSPC before proposing when a majority could not take what needs new space.
    pub(super) fn refuse_without_space(
        &self,
        runtime: &MemberRuntime,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Option<BlockError> {
        let lane = &self.lanes[usize::from(runtime.lane)].lane;
        if payload_bytes == 0 || !lane.allocates(member, ranges) {
            return None;
        }
        let has_space = |peer: &&MemberView| {
            self.peers.free_bytes(peer.disk).is_none_or(|free| free > PEER_SPACE_BYTES_MIN)
        };
        let able = 1 + runtime.peers.iter().filter(has_space).count();
        let voters = 1 + runtime.peers.len();
        (able * 2 <= voters).then_some(BlockError::NoSpace)
    }

    /// How many entries of a message, from the first on, the member may have: those that it has
    /// already, and of the rest as many as its lane has room for: all, or those of earlier terms,
    /// or a half as many times as it takes. A message may be larger than what a small log takes at
    /// a time.
    pub(super) fn admit_entries(
        &self,
        to: MemberId,
        message: &Message,
    ) -> Result<usize, CommandError> {
        let Some(runtime) = self.members.get(&to) else { return Ok(0) };
        let entries: &[Entry] = &message.entries;
        // They take no room again, and the leader must hear that they are here: what it does not
        // know of is not committed, and stays where it is.
        let is_here = |entry: &&Entry| {
            let has_it = runtime.member.has_entry(entry.index, entry.term);
            has_it && !planted(Mistake::EntriesCountedTwice)
        };
        let here = entries.iter().take_while(is_here).count();
        let earlier = entries.iter().take_while(|entry| entry.term < message.term).count();
        let lane = &self.lanes[usize::from(runtime.lane)].lane;
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
    pub(super) fn tells_of_commits(&self, to: MemberId, message: &Message) -> bool {
        let known = self.members.get(&to).map_or(0, |runtime| runtime.member.committed());
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
