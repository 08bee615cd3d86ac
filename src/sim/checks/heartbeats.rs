//! Heartbeats arrive in time, leases do not lapse and nobody else is elected, however much data the
//! links carry. Holds only while nothing is wrong with pods and links: see [`Heartbeats::expect`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

use crate::limits::LEASE;
use crate::replica::messages::{Input, Role};
use crate::sim::checks::wrong::{Checked, check};
use crate::types::{MemberId, Mono, ShardId};

/// See the module.
#[derive(Default)]
pub struct Heartbeats {
    /// The longest time that a heartbeat may take; `None`: anything may happen.
    within: Option<Duration>,
    /// Heartbeats on their way, from one member to another, oldest first.
    on_the_way: BTreeMap<(u64, u64), Vec<Sent>>,
    /// For each leader and follower, when the newest heartbeat left that was answered.
    answered: BTreeMap<(u64, u64), Mono>,
    /// Heartbeats that arrived and were not answered.
    arrived: BTreeMap<(u64, u64), Vec<Sent>>,
    /// For each leader, since when it has sent heartbeats without a pause, and the newest.
    beats: BTreeMap<MemberId, (Mono, Mono)>,
    /// Shards in which a leader has told another member to lead.
    told: BTreeSet<ShardId>,
    longest: Duration,
}

/// A heartbeat.
struct Sent {
    term: u64,
    context: Bytes,
    at: Mono,
}

/// A leader that sends nothing for so long has nothing to do, or does not lead any more.
const PAUSE: Duration = Duration::from_millis(500);
/// Heartbeats of one pair that are remembered at most.
const REMEMBERED: usize = 64;

impl Heartbeats {
    /// From now on heartbeats take no longer than this, leases last and leaders stay.
    pub fn expect(&mut self, within: Option<Duration>) {
        if self.within.is_some() {
            tracing::info!(longest_us = self.longest.as_micros() as u64, "heartbeats");
        }
        *self = Heartbeats { within, ..Heartbeats::default() };
    }

    /// A member sends a message.
    pub fn sends(&mut self, shard: ShardId, message: &Message, now: Mono) -> Checked {
        let Some(within) = self.within else { return Ok(()) };
        match message.get_msg_type() {
            MessageType::MsgTimeoutNow => drop(self.told.insert(shard)),
            MessageType::MsgHeartbeat => {
                let pair = (message.from, message.to);
                let sent = self.on_the_way.entry(pair).or_default();
                if let Some(oldest) = sent.first() {
                    let took = now.since(oldest.at);
                    check(took <= within, || {
                        format!("a heartbeat from {} to {} takes {took:?}", pair.0, pair.1)
                    })?;
                }
                let context = message.context.clone();
                sent.push(Sent { term: message.term, context, at: now });
            }
            _ => {}
        }
        Ok(())
    }

    /// A member gets an input.
    pub fn input(&mut self, member: MemberId, input: &Input, now: Mono) -> Checked {
        let Some(within) = self.within else { return Ok(()) };
        let Input::Peer(message) = input else { return Ok(()) };
        match message.get_msg_type() {
            MessageType::MsgHeartbeat => {
                let pair = (message.from, member.0);
                let Some(sent) = self.on_the_way.get_mut(&pair) else { return Ok(()) };
                let is_this = |of: &Sent| of.term == message.term && of.context == message.context;
                let Some(found) = sent.iter().position(is_this) else { return Ok(()) };
                let arrived = sent.drain(..=found).next_back().expect("just found");
                let took = now.since(arrived.at);
                self.longest = self.longest.max(took);
                let waiting = self.arrived.entry(pair).or_default();
                waiting.push(arrived);
                if waiting.len() > REMEMBERED {
                    waiting.remove(0);
                }
                check(took <= within, || {
                    format!("a heartbeat from {} to {} took {took:?}", pair.0, pair.1)
                })
            }
            MessageType::MsgHeartbeatResponse => {
                let pair = (member.0, message.from);
                let Some(waiting) = self.arrived.get_mut(&pair) else { return Ok(()) };
                let is_this = |of: &Sent| of.term == message.term && of.context == message.context;
                if let Some(found) = waiting.iter().position(is_this) {
                    let answered = waiting.drain(..=found).next_back().expect("just found");
                    self.answered.insert(pair, answered.at);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A leader sends a heartbeat. While it does so without a pause, its lease lasts.
    pub fn beats(&mut self, leader: MemberId, voters: &[MemberId], now: Mono) -> Checked {
        if self.within.is_none() {
            return Ok(());
        }
        let (since, newest) = self.beats.entry(leader).or_insert((now, now));
        if now.since(*newest) > PAUSE {
            *since = now;
        }
        *newest = now;
        let since = *since;
        let others = voters.iter().filter(|voter| **voter != leader);
        let answered = others.map(|voter| self.answered.get(&(leader.0, voter.0)));
        let mut answered: Vec<Mono> = answered.flatten().copied().collect();
        answered.sort_unstable_by(|one, other| other.cmp(one));
        let majority = voters.len() / 2;
        let renewed = majority.checked_sub(1).and_then(|at| answered.get(at));
        let ago = now.since(renewed.map_or(since, |renewed| since.max(*renewed)));
        check(ago <= LEASE, || format!("the lease of {leader:?} was renewed {ago:?} ago"))
    }

    /// Somebody leads in a new term.
    pub fn elected(&mut self, shard: ShardId, role: Role) -> Checked {
        let is_told = self.told.remove(&shard) || self.within.is_none();
        let Role { term, leader, .. } = role;
        check(is_told, || format!("{leader:?} of {shard:?} is elected in term {term}"))
    }
}
