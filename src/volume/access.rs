//! A volume's sessions in its shards, and changes of who may use it: parts of [`Volume`].
//!
//! A *round* has an access set committed in every shard. It ends when all of them have answered,
//! those that were added meanwhile, too (rule `grant-waits-for-all-shards`). Repeating one is
//! harmless.

use std::collections::BTreeSet;

use crate::planted::planted;
use crate::slab::Slab;
use crate::types::{AccessSet, BlockError, Generation, Mono, Session, ShardOp, ShardReply};
use crate::view::MemberView;
use crate::volume::request::{Attempt, Purpose};
use crate::volume::{Ticket, Volume, VolumeOutput};

/// Rounds of a volume at a time. Changes that wait are to be merged into one.
const ROUNDS_MAX: usize = 16;

/// Identifies a round until its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundId(pub u64);

/// The end of a round: what all shards have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessDone {
    /// The lowest generation of any shard. Below the one that was asked for: a shard refused it,
    /// because the set has an attachment that was fenced there.
    pub generation: Generation,
    /// The shards that have it.
    pub shards: usize,
}

/// The rounds of a volume.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    all: Slab<Round>,
}

#[derive(Debug)]
struct Round {
    set: AccessSet,
    /// Shards that have not answered.
    left: BTreeSet<usize>,
    shards: usize,
    lowest: Generation,
}

impl Rounds {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl Volume {
    /// Has an access set committed in every shard; [`VolumeOutput::AccessSet`] is its end.
    pub fn set_access(&mut self, set: AccessSet) -> RoundId {
        let shards = self.routes.len();
        let refused = match () {
            () if self.gone => Some(BlockError::NoSuchVolume),
            () if !set.is_valid() => Some(BlockError::Invalid),
            () if self.rounds.all.len() >= ROUNDS_MAX => Some(BlockError::Busy),
            () => None,
        };
        let (left, lowest) = ((0..shards).collect(), Generation(u64::MAX));
        let key = self.rounds.all.insert(Round { set, left, shards, lowest });
        match refused {
            Some(error) => self.end_round(key, Err(error)),
            None => (0..shards).for_each(|shard| self.queue_round(key, shard)),
        }
        RoundId(key)
    }

    fn queue_round(&mut self, key: u64, shard: usize) {
        self.routes[shard].rounds.push_back(key);
        self.activate(shard);
    }

    /// A shard was added.
    pub(super) fn join_rounds(&mut self, shard: usize) {
        let keys: Vec<u64> = self.rounds.all.iter().map(|(key, _)| key).collect();
        for key in keys {
            let round = self.rounds.all.get_mut(key).expect("just listed");
            round.left.insert(shard);
            round.shards += 1;
            self.queue_round(key, shard);
        }
    }

    /// What to ask a shard for in the round; `None`: the round has ended.
    pub(super) fn round_op(&self, key: u64) -> Option<ShardOp> {
        self.rounds.all.get(key).map(|round| ShardOp::SetAccess(round.set.clone()))
    }

    /// A shard has answered.
    pub(super) fn round_answered(
        &mut self,
        key: u64,
        shard: usize,
        result: Result<ShardReply, BlockError>,
    ) {
        let Some(round) = self.rounds.all.get_mut(key) else { return };
        let generation = match result {
            Ok(ShardReply::Access { generation }) => generation,
            Err(BlockError::Invalid) => return self.end_round(key, Err(BlockError::Invalid)),
            // May be repeated, whatever became of it.
            _ => return self.queue_round(key, shard),
        };
        round.left.remove(&shard);
        round.lowest = round.lowest.min(generation);
        let enough = planted!(GrantByMajority) && round.left.len() * 2 < round.shards;
        if round.left.is_empty() || enough {
            let done = AccessDone { generation: round.lowest, shards: round.shards };
            self.end_round(key, Ok(done));
        }
    }

    fn end_round(&mut self, key: u64, result: Result<AccessDone, BlockError>) {
        self.rounds.all.remove(key);
        self.replies.push(VolumeOutput::AccessSet { round: RoundId(key), result });
    }

    /// The volume is deleted.
    pub(super) fn end_rounds(&mut self) {
        let keys: Vec<u64> = self.rounds.all.iter().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.end_round(key, Err(BlockError::NoSuchVolume)));
    }

    /// Has a session recorded, unless that is in flight.
    pub(super) fn touch(
        &mut self,
        now: Mono,
        shard: usize,
        (to, term): (MemberView, u64),
        out: &mut Vec<VolumeOutput>,
    ) {
        let session = &mut self.routes[shard].session;
        if session.touch.is_some() {
            return;
        }
        let (next, renews) = (session.next(self.front_end), session.is_relied_on);
        let op = ShardOp::Touch { renews };
        out.push(self.send(now, Purpose::Touch, shard, (to, term), next, op));
    }

    /// A touch was answered.
    pub(super) fn touched(
        &mut self,
        ticket: Ticket,
        attempt: Attempt,
        result: &Result<ShardReply, BlockError>,
    ) {
        let is_used = !self.conns.is_empty();
        let session = &mut self.routes[attempt.shard].session;
        if session.touch == Some(ticket.0) {
            session.touch = None;
        }
        match result {
            Ok(_) => {
                session.recorded(attempt.session);
                session.is_relied_on |= is_used;
            }
            Err(BlockError::StaleSession { recorded }) => {
                if self.is_outdone(attempt, *recorded) {
                    self.hang_up();
                }
            }
            Err(error) if !error.is_retryable() && *error != BlockError::NoSuchVolume => {
                self.fail_waiting(attempt.shard, error);
            }
            Err(_) => {}
        }
    }

    /// A session was refused. True: clients rely on a session that is another front end's by now.
    pub(super) fn is_outdone(&mut self, attempt: Attempt, recorded: Session) -> bool {
        let front_end = self.front_end;
        let session = &mut self.routes[attempt.shard].session;
        let is_other = session.refused(front_end, attempt.session, recorded);
        is_other && session.is_relied_on && !planted!(OutdoneGoesOn)
    }

    /// The shard will never carry out what waits for it: this client is fenced.
    fn fail_waiting(&mut self, shard: usize, error: &BlockError) {
        let waiting = self.routes[shard].waiting.iter().copied().collect();
        self.drop_pieces(waiting, error.clone());
    }
}
