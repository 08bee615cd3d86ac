//! Admission: a change needs room in the log (rule `log-reserve`) and space on disks (rule
//! `space-before-append`).
//! - Owns: nothing.
//! - May call: nobody. It reads lanes, peers, members and resyncs, and changes none of them.
//! - Is told: clients' operations and peers' Raft messages, before a member gets them.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message};

use crate::planted::planted;
use crate::replica::command;
use crate::replica::raft_message::{self, MessageError};
use crate::store::lane::{Demand, Refusal, Source};
use crate::types::{BlockError, BlockRange, MemberId, PodId, ShardOp};
use crate::view::MemberView;
use crate::worker::intake::Breach;
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
        if !op.is_logged() || role.leader != Some(member) || takes_all {
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

    /// Decodes and checks a Raft message of `pod` for a member, without the entries for which the
    /// lane has no room (rule `log-reserve`): the leader sends those again. `None`: nothing is left
    /// of it.
    pub fn raft_message(
        &self,
        pod: PodId,
        to: MemberId,
        header: &[u8],
        data: Vec<Bytes>,
    ) -> Result<Option<Message>, Breach> {
        let Some(runtime) = self.members.get(to) else { return Ok(None) };
        let wrong = |source| Breach::Raft { to, source };
        let mut message = raft_message::join(header, data).map_err(wrong)?;
        let checked = raft_message::check(&message, to.0, runtime.member.blocks().count);
        let ranges = believed(checked, &message).map_err(wrong)?;
        if !runtime.is_peer(MemberId(message.from), pod) {
            // The views of two pods may differ for a while.
            tracing::debug!(%to, from = message.from, %pod, "a Raft message of a stranger");
            return Ok(None);
        }
        if let Some(what) = runtime.member.contradiction(&message) {
            return Err(Breach::Contradiction { to, what });
        }
        if message.entries.is_empty() {
            return Ok(Some(message));
        }
        if self.resyncs.refuses_entries(to) {
            return Ok(None);
        }
        let count = self.admit_entries(to, &message, &ranges);
        // Raft acknowledges only the entries that it gets.
        message.entries.truncate(count);
        let has_news = !message.entries.is_empty() || self.tells_of_commits(to, &message);
        Ok(has_news.then_some(message))
    }

    /// How many entries of a message, from the first on, the member may have: those that are here
    /// already, and then all the rest, or those of earlier terms, or half as many until they find
    /// room. A message may be larger than what a small log takes at a time.
    fn admit_entries(
        &self,
        to: MemberId,
        message: &Message,
        ranges: &[Option<BlockRange>],
    ) -> usize {
        let Some(runtime) = self.members.get(to) else { return 0 };
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
            let written = taken.iter().zip(&ranges[here..count]);
            let written = written.filter(|(entry, _)| !entry.data.is_empty());
            let written: Vec<BlockRange> = written.filter_map(|(_, range)| *range).collect();
            let zero_extents = taken.iter().map(|entry| command::zero_extents(&entry.context));
            let demand =
                Demand { payload_bytes, ranges: &written, zero_extents: zero_extents.sum() };
            let source = match count <= earlier && !planted!(EarlierTermsRefused) {
                true => Source::EarlierTerm,
                false => Source::Leader,
            };
            let Some(error) = refusal(lane.admit(source, to, &demand)) else { break };
            let space = lane.space();
            tracing::debug!(
                member = %to, payload_bytes, free_bytes = space.free_bytes,
                log_used_bytes = space.log_used_bytes, overlay_bytes = space.overlay_bytes, %error,
                "entries are refused"
            );
            count = match count > earlier && earlier > here {
                true => earlier,
                false => here + (count - here) / 2,
            };
        }
        count
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

/// The result of a check, or of none.
fn believed(
    checked: Result<Vec<Option<BlockRange>>, MessageError>,
    message: &Message,
) -> Result<Vec<Option<BlockRange>>, MessageError> {
    match checked {
        Err(_) if planted!(PeersAreBelieved) => Ok(vec![None; message.entries.len()]),
        checked => checked,
    }
}
