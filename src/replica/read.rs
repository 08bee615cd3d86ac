//! Linearizable reads on the leader, under a lease (rule `lease-ends-before-election`) or confirmed
//! by a round of heartbeats that was sent after the read arrived.
//!
//! Every broadcast (*round*) of heartbeats has a number in its context. Followers return it, so an
//! answer names its round. A quorum of answers to round N proves two things. Counted from the
//! *sending* of N, nobody else is elected while those members refuse votes: this is the lease. And
//! this member still led after N was sent: reads that arrived before N need this. raft-rs's own
//! read index is not used.
//!
//! A read sees the applied state, at or above the commit index at its arrival. The leader
//! acknowledges a write only after applying it. Every write of an earlier leader lies below this
//! leader's first entry, which is applied before any read.

use std::collections::VecDeque;

use raft::eraftpb::ConfState;

use crate::limits::LEASE;
use crate::planted::planted;
use crate::replica::access::Access;
use crate::replica::messages::{Output, ReadMode, ReqId};
use crate::types::{BlockRange, Mono, Origin};

/// Largest number of reads that wait at one member.
const READS_WAITING_MAX: usize = 4096;
/// Unanswered rounds that are remembered.
const ROUNDS_MAX: usize = 64;

/// Lease, rounds and waiting reads of one leader.
#[derive(Default)]
pub struct Reads {
    waiting: VecDeque<Waiting>,
    /// Newest round over all terms of this member; 0 before the first.
    round: u64,
    /// Send times of unconfirmed rounds, oldest first.
    sent: VecDeque<(u64, Mono)>,
    /// Newest round that each member answered.
    answered: Vec<(u64, u64)>,
    /// Newest round that a quorum answered.
    confirmed: u64,
    lease_until: Mono,
    /// The end of the newest lease of which it was said that it ended.
    lapsed: Mono,
    /// Leases that ended so.
    pub lapses: u64,
    mode: ReadMode,
    /// The leadership was offered to another member in this term, so there is no lease any more.
    lease_given_up: bool,
}

struct Waiting {
    req: ReqId,
    kind: ReadKind,
    /// Commit index at arrival.
    index: u64,
    /// The first round that was sent after the arrival.
    round: Option<u64>,
}

/// The action when a read may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadKind {
    /// The leader asks again whether the origin may read, when it serves the read.
    Blocks {
        origin: Origin,
        range: BlockRange,
        status: bool,
    },
    Barrier,
}

/// The state that decides whether waiting reads may go on.
#[derive(Debug, Clone, Copy)]
pub struct ReadState {
    pub now: Mono,
    pub applied_index: u64,
    /// This member leads and has applied an entry of its own term.
    pub serving: bool,
    pub sole_voter: bool,
}

impl Reads {
    pub fn new(mode: ReadMode) -> Reads {
        Reads { mode, ..Reads::default() }
    }

    /// Queues a read. False: too many reads wait already.
    pub fn push(&mut self, req: ReqId, kind: ReadKind, commit_index: u64) -> bool {
        if self.waiting.len() >= READS_WAITING_MAX {
            return false;
        }
        self.waiting.push_back(Waiting { req, kind, index: commit_index, round: None });
        true
    }

    /// True when no read waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Voids all confirmations, because the leadership began or ended.
    pub fn reset(&mut self) {
        self.forget_answers();
        self.lease_given_up = false;
    }

    /// Voids all answers, because the configuration and so the quorum changed.
    pub fn forget_answers(&mut self) {
        self.answered.clear();
        self.sent.clear();
        self.confirmed = self.round;
        self.lease_until = Mono(0);
        for read in &mut self.waiting {
            read.round = None;
        }
    }

    /// Ends the lease for this term, because the leadership is being offered to another member.
    pub fn give_up_lease(&mut self) {
        if planted!(LeaseAfterTransfer) {
            return;
        }
        self.lease_given_up = true;
        self.lease_until = Mono(0);
    }

    /// Removes all waiting requests, when the leadership is lost.
    pub fn drain(&mut self) -> impl Iterator<Item = ReqId> + '_ {
        self.waiting.drain(..).map(|read| read.req)
    }

    /// Returns the number of a new round of heartbeats, which will be sent after `now`.
    pub fn begin_round(&mut self, now: Mono) -> u64 {
        self.round += 1;
        if self.sent.len() >= ROUNDS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.round, now));
        for read in self.waiting.iter_mut().rev() {
            if read.round.is_some() {
                break;
            }
            read.round = Some(self.round);
        }
        self.round
    }

    /// Notes the answer of `from` to `round`, in this term. Only rounds that were sent count.
    pub fn answered(&mut self, from: u64, round: u64, me: u64, conf: &ConfState) {
        if round > self.round || round <= self.confirmed {
            return;
        }
        match self.answered.iter_mut().find(|(id, _)| *id == from) {
            Some(entry) => entry.1 = entry.1.max(round),
            None => self.answered.push((from, round)),
        }
        let mut quorum = self.quorum_round(&conf.voters, me);
        if !conf.voters_outgoing.is_empty() {
            quorum = quorum.min(self.quorum_round(&conf.voters_outgoing, me));
        }
        if quorum <= self.confirmed {
            return;
        }
        self.confirmed = quorum;
        while let Some((round, sent)) = self.sent.front().copied() {
            if round > quorum {
                break;
            }
            if !self.lease_given_up {
                self.lease_until = self.lease_until.max(sent + LEASE);
            }
            self.sent.pop_front();
        }
    }

    /// The newest round that a majority of `voters` answered. This member answers at once.
    fn quorum_round(&self, voters: &[u64], me: u64) -> u64 {
        let mut rounds: Vec<u64> = voters.iter().map(|voter| self.answer_of(*voter, me)).collect();
        rounds.sort_unstable_by(|left, right| right.cmp(left));
        rounds.get(voters.len() / 2).copied().unwrap_or(0)
    }

    fn answer_of(&self, voter: u64, me: u64) -> u64 {
        if voter == me {
            return self.round;
        }
        let found = self.answered.iter().find(|(id, _)| *id == voter);
        found.map_or(0, |(_, round)| *round)
    }

    /// True once for every lease that ended before a newer one began.
    pub fn has_lapsed(&mut self, now: Mono) -> bool {
        let ended = Mono(0) < self.lease_until && self.lease_until <= now;
        let lapsed = ended && self.mode == ReadMode::Lease && self.lapsed != self.lease_until;
        if lapsed {
            self.lapsed = self.lease_until;
            self.lapses += 1;
        }
        lapsed
    }

    /// The group rested until now. That a lease ended meanwhile is no news.
    pub fn rested(&mut self, now: Mono) {
        if self.lease_until <= now {
            self.lapsed = self.lease_until;
        }
    }

    fn has_lease(&self, now: Mono) -> bool {
        let forever = self.lease_until > Mono(0) && planted!(LeaseWithoutEnd);
        let trusted = self.mode == ReadMode::Lease || planted!(LeaseDespiteQuorum);
        trusted && !self.lease_given_up && (now < self.lease_until || forever)
    }

    /// True when a read needs a round that has not begun.
    pub fn wants_round(&self, state: &ReadState) -> bool {
        let Some(newest) = self.waiting.back() else {
            return false;
        };
        state.serving && !state.sole_voter && newest.round.is_none() && !self.has_lease(state.now)
    }

    /// Releases every read that the applied state can serve now.
    pub fn serve(&mut self, state: &ReadState, access: &Access, out: &mut Vec<Output>) {
        if self.waiting.is_empty() || !state.serving {
            return;
        }
        let free = state.sole_voter || self.has_lease(state.now);
        while let Some(read) = self.waiting.front() {
            let confirmed = free || read.round.is_some_and(|round| round <= self.confirmed);
            if !confirmed || read.index > state.applied_index {
                break;
            }
            let req = read.req;
            out.push(match read.kind {
                ReadKind::Blocks { origin, range, status } => match access.judge(origin, false) {
                    Err(error) if !planted!(FencedReadServed) => {
                        Output::Reply { req, result: Err(error) }
                    }
                    _ => Output::Read { req, range, status, leased: free },
                },
                ReadKind::Barrier => Output::Barrier { req },
            });
            self.waiting.pop_front();
        }
    }
}
