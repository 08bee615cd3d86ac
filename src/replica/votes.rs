//! Who may vote and campaign, and when (rule `no-vote-within-lease`). raft-rs counts ticks. These
//! rules measure time, because leases do.

use std::time::Duration;

use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};

use crate::limits::{ELECTION_TICKS, TICK};
use crate::planted::planted;
use crate::types::Mono;

/// After its start, and after it last heard a leader, a member neither votes nor campaigns for this
/// long. This is longer than any lease that its answers may have granted.
const QUIET: Duration = Duration::from_millis(TICK.as_millis() as u64 * ELECTION_TICKS as u64);

/// Extra time before a resyncing member campaigns, so that all other members come first. But it
/// does campaign: otherwise, with the longest log here and one more member lost, the group would
/// never have a leader again. It serves once it has applied an entry of its own term.
const RESYNCING_PATIENCE: Duration = QUIET.saturating_mul(6);

/// Decides on votes and campaigns of this member.
#[derive(Debug)]
pub struct Votes {
    quiet_until: Mono,
    /// The store is being replaced. The member follows and votes, and may be elected when nobody
    /// leads for long. It serves nothing until the store is whole.
    pub resyncing: bool,
}

/// The state of a member on which the decisions depend.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    pub term: u64,
    pub is_leader: bool,
    /// The member has a configuration.
    pub initialised: bool,
    /// A snapshot is replacing the log.
    pub resetting: bool,
    pub sole_voter: bool,
}

impl Votes {
    /// `fresh`: a new member, which cannot have granted a lease before.
    pub fn new(now: Mono, fresh: bool, resyncing: bool) -> Votes {
        let at_once = fresh || planted!(VotesAfterRestart);
        let quiet_until = if at_once { now } else { now + QUIET };
        Votes { quiet_until, resyncing }
    }

    /// The leader's lane was heard at this time, while the member rested.
    pub fn heard(&mut self, at: Mono) {
        self.quiet_until = self.quiet_until.max(at + QUIET);
    }

    /// True when raft-rs may see this message of a peer.
    pub fn admits(&mut self, now: Mono, message: &Message, at: &Situation) -> bool {
        match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                if message.term >= at.term {
                    self.quiet_until = self.quiet_until.max(now + QUIET);
                }
                // Without a configuration the log means nothing; a snapshot must come first.
                at.initialised || message.get_msg_type() == MessageType::MsgHeartbeat
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                // A resyncing member votes. A vote depends on the log and the HardState, and both
                // are whole.
                let unborn = !at.initialised && !planted!(UninitialisedVotes);
                if at.resetting || unborn {
                    return false;
                }
                let transfer = message.context == CAMPAIGN_TRANSFER;
                let quiet = now < self.quiet_until && !planted!(VotesWithinLease);
                transfer || (!at.is_leader && !quiet)
            }
            MessageType::MsgTimeoutNow => {
                !self.resyncing && !at.resetting && at.initialised && !at.sole_voter
            }
            MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse => true,
            // Data never travels inside Raft, nothing is forwarded, and the other types are local.
            _ => false,
        }
    }

    /// True when the next tick may start an election.
    pub fn may_campaign(&self, now: Mono, at: &Situation) -> bool {
        if self.resyncing && planted!(ResyncNeverElected) {
            return false;
        }
        let patience = if self.resyncing { RESYNCING_PATIENCE } else { Duration::ZERO };
        !at.resetting && at.initialised && now >= self.quiet_until + patience
    }
}
