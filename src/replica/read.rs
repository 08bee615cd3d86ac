//! Linearizable reads on the leader (rule R14): under a lease, or confirmed by a round of
//! heartbeats that was sent after they arrived.
//!
//! Rounds. The adapter numbers every broadcast of heartbeats and writes the number into their
//! context; followers give it back with the answer. So an answer names the very round it
//! belongs to, and needs no guess. A quorum of answers to round N proves two things: nobody else
//! was elected before N was *sent* plus the time in which those members refuse votes (the lease),
//! and this member was still the leader after N was sent (what a read that arrived before
//! needs). raft-rs's own read index is not used.
//!
//! What is read is the applied state, at or above the commit index at the read's arrival. A
//! write is acknowledged only after it is applied by its leader, and every write of an earlier
//! leader lies below this leader's first entry, which is applied before anything is read.

use std::collections::VecDeque;

use raft::eraftpb::ConfState;

use crate::limits::LEASE;
use crate::planted::{Mistake, planted};
use crate::replica::seam::{Output, ReadMode, ReqId};
use crate::types::{BlockRange, Mono};

/// Reads that may wait at one member.
const READS_WAITING_MAX: usize = 4096;
/// Rounds that are remembered while nobody answers.
const ROUNDS_MAX: usize = 64;

/// Lease, rounds and waiting reads of one leader.
#[derive(Default)]
pub struct Reads {
    waiting: VecDeque<Waiting>,
    /// Newest round, over all terms of this member: 0 before the first.
    round: u64,
    /// When unconfirmed rounds were sent, oldest first.
    sent: VecDeque<(u64, Mono)>,
    /// Newest round that each member answered.
    answered: Vec<(u64, u64)>,
    /// Newest round that a quorum answered.
    confirmed: u64,
    lease_until: Mono,
    mode: ReadMode,
    /// The leadership was offered to another member in this term: no lease any more.
    lease_given_up: bool,
}

struct Waiting {
    req: ReqId,
    kind: ReadKind,
    /// Commit index at arrival.
    index: u64,
    /// The first round that was sent after arrival.
    round: Option<u64>,
}

/// What is to be done when a read may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadKind {
    Blocks { range: BlockRange, status: bool },
    Barrier,
}

/// What decides whether waiting reads may go on.
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

    /// Queues a read; `false` when too many wait.
    pub fn push(&mut self, req: ReqId, kind: ReadKind, commit_index: u64) -> bool {
        if self.waiting.len() >= READS_WAITING_MAX {
            return false;
        }
        self.waiting.push_back(Waiting { req, kind, index: commit_index, round: None });
        true
    }

    /// The leadership began or ended: nothing that was confirmed holds any more.
    pub fn reset(&mut self) {
        self.forget_answers();
        self.lease_given_up = false;
    }

    /// The quorum is another one from now on.
    pub fn forget_answers(&mut self) {
        self.answered.clear();
        self.sent.clear();
        self.confirmed = self.round;
        self.lease_until = Mono(0);
        for read in &mut self.waiting {
            read.round = None;
        }
    }

    /// The leadership is being offered to another member.
    pub fn give_up_lease(&mut self) {
        if planted(Mistake::LeaseAfterTransfer) {
            return;
        }
        self.lease_given_up = true;
        self.lease_until = Mono(0);
    }

    /// Requests that wait, on losing the leadership.
    pub fn drain(&mut self) -> impl Iterator<Item = ReqId> + '_ {
        self.waiting.drain(..).map(|read| read.req)
    }

    /// Numbers a broadcast of heartbeats that leaves after `now`.
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

    /// `from` answered the heartbeat of `round`, in this term. Only rounds that were sent count.
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

    /// The newest round that a majority of `voters` answered; this member answers at once.
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

    fn has_lease(&self, now: Mono) -> bool {
        let forever = self.lease_until > Mono(0) && planted(Mistake::LeaseWithoutEnd);
        let trusted = self.mode == ReadMode::Lease || planted(Mistake::LeaseDespiteQuorum);
        trusted && !self.lease_given_up && (now < self.lease_until || forever)
    }

    /// True when a read waits for a round that was not yet begun.
    pub fn wants_round(&self, state: &ReadState) -> bool {
        let Some(newest) = self.waiting.back() else {
            return false;
        };
        state.serving && !state.sole_voter && newest.round.is_none() && !self.has_lease(state.now)
    }

    /// Lets go of every read that may be executed against what is applied now.
    pub fn serve(&mut self, state: &ReadState, out: &mut Vec<Output>) {
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
                ReadKind::Blocks { range, status } => Output::Read { req, range, status },
                ReadKind::Barrier => Output::Barrier { req },
            });
            self.waiting.pop_front();
        }
    }
}
