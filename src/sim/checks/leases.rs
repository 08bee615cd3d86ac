//! Rule `lease-ends-before-election`, seen from the members. A member that answered a leader elects
//! no other while the lease may last. No other leader has outdone a reader when the read arrives.
//! Quorum reads, and reads of a leader that handed over, need a later confirmation by a majority.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};

use crate::limits::LEASE;
use crate::replica::messages::{Input, ReadMode, ReqId, Role};
use crate::sim::checks::wrong::{Checked, check};
use crate::types::{MemberId, Mono};

/// See the module.
#[derive(Default)]
pub struct LeaseChecks {
    mode: ReadMode,
    /// Clocks keep to the bound that leases assume.
    clocks_are_good: bool,
    /// Arrival of each heartbeat round at a member, by leader, term and round.
    heartbeats: BTreeMap<MemberId, BTreeMap<(u64, u64, Bytes), Mono>>,
    /// The newest answered heartbeat. Answers may leave late, when a disk delays them.
    answered: BTreeMap<MemberId, Heard>,
    /// (member, leader, term) of members that may campaign at once: their leader told them to.
    transfers: BTreeSet<(MemberId, u64, u64)>,
    /// The term that a member leads, as it reported.
    leads: BTreeMap<MemberId, u64>,
    /// The newest term in which a member told another one to lead. Promises do not keep that one
    /// from being elected, even much later.
    told: BTreeMap<MemberId, u64>,
    /// Counts the inputs of members.
    moment: u64,
    /// The `moment` at which a leader last heard from each other member.
    heard: BTreeMap<MemberId, BTreeMap<u64, u64>>,
    asked: BTreeMap<(MemberId, ReqId), Asked>,
}

/// A heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Heard {
    at: Mono,
    from: u64,
    term: u64,
}

/// The state at the arrival of a read.
#[derive(Clone, Copy)]
struct Asked {
    moment: u64,
    /// The newest term of the shard that has a leader.
    newest_led: u64,
}

impl LeaseChecks {
    pub fn expect(&mut self, mode: ReadMode, clocks_are_good: bool) {
        (self.mode, self.clocks_are_good) = (mode, clocks_are_good);
    }

    /// The member starts again.
    pub fn started(&mut self, member: MemberId) {
        self.leads.remove(&member);
        self.heartbeats.remove(&member);
    }

    pub fn role(&mut self, member: MemberId, role: Role) {
        match role.leader == Some(member) {
            true => self.leads.insert(member, role.term),
            false => self.leads.remove(&member),
        };
    }

    /// A member gets an input.
    pub fn input(&mut self, member: MemberId, input: &Input, now: Mono) {
        self.moment += 1;
        let Input::Peer(message) = input else { return };
        match message.get_msg_type() {
            MessageType::MsgRequestVote if message.context == CAMPAIGN_TRANSFER => {
                self.transfers.insert((member, message.from, message.term));
            }
            MessageType::MsgHeartbeat => {
                let round = (message.from, message.term, message.context.clone());
                self.heartbeats.entry(member).or_default().insert(round, now);
            }
            MessageType::MsgHeartbeatResponse => {
                self.heard.entry(member).or_default().insert(message.from, self.moment);
            }
            _ => {}
        }
    }

    /// A member gets a read. `newest_led`: the newest term of its shard that has a leader.
    pub fn asked(&mut self, member: MemberId, req: ReqId, newest_led: u64) {
        let asked = Asked { moment: self.moment, newest_led };
        self.asked.insert((member, req), asked);
    }

    /// A member of a group with this many voters answers a read.
    pub fn reads(&mut self, member: MemberId, req: ReqId, voters: usize) -> Checked {
        let Some(asked) = self.asked.remove(&(member, req)) else { return Ok(()) };
        let has_told =
            self.told.get(&member).is_some_and(|told| self.leads.get(&member) == Some(told));
        let by_lease = self.mode == ReadMode::Lease && !has_told;
        if by_lease && !self.clocks_are_good {
            return Ok(());
        }
        let Some(term) = self.leads.get(&member) else {
            return Err(format!("{member:?} reads and does not lead"));
        };
        let newest = asked.newest_led;
        check(newest <= *term, || {
            format!("{member:?} reads as the leader of term {term}, and {newest} had a leader")
        })?;
        let heard = self.heard.get(&member).into_iter().flat_map(BTreeMap::values);
        let confirmed = 1 + heard.filter(|moment| **moment > asked.moment).count();
        check(by_lease || 2 * confirmed > voters, || {
            format!("{member:?} reads, and {confirmed} of {voters} have confirmed that it leads")
        })
    }

    /// A member sends a message.
    pub fn sends(&mut self, member: MemberId, message: &Message, now: Mono) -> Checked {
        match message.get_msg_type() {
            MessageType::MsgHeartbeatResponse => {
                let (from, term) = (message.to, message.term);
                let round = (from, term, message.context.clone());
                let given = self.heartbeats.get_mut(&member).and_then(|all| all.remove(&round));
                if let Some(at) = given {
                    let heard = Heard { at, from, term };
                    let newest = self.answered.entry(member).or_insert(heard);
                    *newest = heard.max(*newest);
                }
                Ok(())
            }
            MessageType::MsgTimeoutNow => {
                self.told.insert(member, message.term);
                Ok(())
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let told = self.transfers.contains(&(member, message.to, message.term));
                // The holder of the lease may be elected again. Votes of earlier terms are just
                // late.
                let another =
                    |heard: &&Heard| heard.from != message.to && heard.term < message.term;
                let other = self.answered.get(&member).filter(another);
                let lasts = other.is_some_and(|heard| now < heard.at + LEASE);
                let lasts = lasts && self.mode == ReadMode::Lease && self.clocks_are_good;
                check(told || !lasts, || {
                    let (to, term) = (message.to, message.term);
                    format!("{member:?} elects {to} in term {term} within the lease of another")
                })
            }
            _ => Ok(()),
        }
    }
}
