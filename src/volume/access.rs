//! Changes of who may use a volume. A *round* has an access set committed in every shard. It ends
//! when all of them have answered, those that were added meanwhile, too (rule
//! `grant-waits-for-all-shards`). Repeating one is harmless.

use std::collections::BTreeSet;

use crate::planted::planted;
use crate::slab::Slab;
use crate::types::{AccessSet, BlockError, Generation, ShardOp, ShardReply};

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
    /// The highest of any shard. Above the one that was asked for: a shard has an access set that
    /// the asker does not know of.
    pub highest: Generation,
    /// The shards that have it.
    pub shards: usize,
}

/// A round and its result.
pub(super) type Ended = (RoundId, Result<AccessDone, BlockError>);

/// What follows from a shard's answer.
pub(super) enum Next {
    /// Other shards have not answered, or the round has ended before.
    Wait,
    /// Ask the shard again.
    Again,
    End(Ended),
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
    highest: Generation,
}

impl Rounds {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Ends the rounds that want no more than this one: who asked for them asks for this one now,
    /// or has gone on.
    pub fn outdated(&mut self, generation: Generation) -> Vec<Ended> {
        let older = self.all.iter().filter(|(_, round)| round.set.generation <= generation);
        let keys: Vec<u64> = older.map(|(key, _)| key).collect();
        let over = |key| {
            self.all.remove(key);
            (RoundId(key), Err(BlockError::Busy))
        };
        keys.into_iter().map(over).collect()
    }

    /// Begins a round over so many shards. An error: it cannot be done, and has ended.
    pub fn begin(&mut self, set: AccessSet, shards: usize) -> (RoundId, Result<(), BlockError>) {
        let refused = match () {
            () if !set.is_valid() => Err(BlockError::Invalid),
            () if self.all.len() >= ROUNDS_MAX => Err(BlockError::Busy),
            () => Ok(()),
        };
        let (left, lowest) = ((0..shards).collect(), Generation(u64::MAX));
        let highest = Generation(0);
        let key = self.all.insert(Round { set, left, shards, lowest, highest });
        if refused.is_err() {
            self.all.remove(key);
        }
        (RoundId(key), refused)
    }

    /// A shard was added. Returns the rounds in which it must be asked.
    pub fn join(&mut self, shard: usize) -> Vec<u64> {
        let keys: Vec<u64> = self.all.iter().map(|(key, _)| key).collect();
        for key in &keys {
            let round = self.all.get_mut(*key).expect("just listed");
            round.left.insert(shard);
            round.shards += 1;
        }
        keys
    }

    /// What to ask a shard for in the round; `None`: the round has ended.
    pub fn op(&self, key: u64) -> Option<ShardOp> {
        self.all.get(key).map(|round| ShardOp::SetAccess(round.set.clone()))
    }

    /// A shard has answered.
    pub fn answered(
        &mut self,
        key: u64,
        shard: usize,
        result: Result<ShardReply, BlockError>,
    ) -> Next {
        let Some(round) = self.all.get_mut(key) else { return Next::Wait };
        let generation = match result {
            Ok(ShardReply::Access { generation }) => generation,
            Err(BlockError::Invalid) => return self.end(key, Err(BlockError::Invalid)),
            // May be repeated, whatever became of it.
            _ => return Next::Again,
        };
        round.left.remove(&shard);
        round.lowest = round.lowest.min(generation);
        round.highest = round.highest.max(generation);
        let enough = planted!(GrantByMajority) && round.left.len() * 2 < round.shards;
        if !round.left.is_empty() && !enough {
            return Next::Wait;
        }
        let (generation, highest, shards) = (round.lowest, round.highest, round.shards);
        let done = AccessDone { generation, highest, shards };
        self.end(key, Ok(done))
    }

    fn end(&mut self, key: u64, result: Result<AccessDone, BlockError>) -> Next {
        self.all.remove(key);
        Next::End((RoundId(key), result))
    }

    /// The volume is deleted.
    pub fn end_all(&mut self) -> Vec<Ended> {
        let keys: Vec<u64> = self.all.iter().map(|(key, _)| key).collect();
        let gone = |key| {
            self.all.remove(key);
            (RoundId(key), Err(BlockError::NoSuchVolume))
        };
        keys.into_iter().map(gone).collect()
    }
}
