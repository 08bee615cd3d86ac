//! Who may vote and campaign, and when (rule R14). raft-rs has rules of its own in ticks; these
//! are in time, because leases are.

use std::time::Duration;

use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};

use crate::limits::{ELECTION_TICKS, TICK};
use crate::planted::{Mistake, planted};
use crate::types::Mono;

/// After it last heard from a leader, and after its start, a member neither votes nor campaigns
/// for this long: longer than any lease that its answers may have granted.
const QUIET: Duration = Duration::from_millis(TICK.as_millis() as u64 * ELECTION_TICKS as u64);

/// How much longer a member waits whose store is being replaced: it serves only once it has applied
/// an entry of its own term, so all others come first. Without it, a group whose longest log is
/// here would never have a leader again when one more member is lost.
const RESYNCING_PATIENCE: Duration = QUIET.saturating_mul(6);

/// When this member is silent.
#[derive(Debug)]
pub struct Votes {
    quiet_until: Mono,
    /// Its store is being replaced: it follows and votes, and when nobody leads for long, it may be
    /// elected. It serves nothing until it is whole.
    pub resyncing: bool,
}

/// What the rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    pub term: u64,
    pub is_leader: bool,
    /// There is a configuration at all.
    pub initialised: bool,
    /// A snapshot is replacing the log.
    pub resetting: bool,
    pub sole_voter: bool,
}

impl Votes {
    /// `fresh`: a new member, which cannot have granted anything before.
    pub fn new(now: Mono, fresh: bool, resyncing: bool) -> Votes {
        let at_once = fresh || planted(Mistake::VotesAfterRestart);
        let quiet_until = if at_once { now } else { now + QUIET };
        Votes { quiet_until, resyncing }
    }

    /// Whether raft-rs may see a message that came from a peer.
    pub fn admits(&mut self, now: Mono, message: &Message, at: &Situation) -> bool {
        match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                if message.term >= at.term {
                    self.quiet_until = self.quiet_until.max(now + QUIET);
                }
                // Without a configuration the log means nothing: first a snapshot.
                at.initialised || message.get_msg_type() == MessageType::MsgHeartbeat
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                // A store that is being replaced is no reason not to vote: the log and the
                // HardState are whole, and they are what a vote is about.
                let unborn = !at.initialised && !planted(Mistake::UninitialisedVotes);
                if at.resetting || unborn {
                    return false;
                }
                let transfer = message.context == CAMPAIGN_TRANSFER;
                let quiet = now < self.quiet_until && !planted(Mistake::VotesWithinLease);
                transfer || (!at.is_leader && !quiet)
            }
            MessageType::MsgTimeoutNow => {
                !self.resyncing && !at.resetting && at.initialised && !at.sole_voter
            }
            MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse => true,
            // Data never travels inside Raft, nothing is forwarded, and the rest is local.
            _ => false,
        }
    }

    /// Whether an election may start at the next tick.
    pub fn may_campaign(&self, now: Mono, at: &Situation) -> bool {
        if self.resyncing && planted(Mistake::ResyncNeverElected) {
            return false;
        }
        let patience = if self.resyncing { RESYNCING_PATIENCE } else { Duration::ZERO };
        !at.resetting && at.initialised && now >= self.quiet_until + patience
    }
}
