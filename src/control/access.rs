//! The rounds by which the catalog's leader has access sets committed in the shards. Pure: from the
//! state, and from the ends of rounds.
//!
//! One round of a volume is on its way at a time. Changes meanwhile are merged into the next one.
//! A new leader begins all rounds anew; repeating one is harmless.
//!
//! A round goes through the data path of the leader's own pod. When that takes long, other pods are
//! asked to carry it out, too, one after the other: the network may separate the leader's pod from
//! a shard's leader, and not the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::control::command::CatalogCommand;
use crate::control::reports::Pods;
use crate::control::state::CatalogState;
use crate::control::state::rows::Shard;
use crate::planted::planted;
use crate::types::{AccessSet, BlockError, Generation, PodId, VolumeId};
use crate::volume::access::AccessDone;

/// Rounds on their way at a time.
const ROUNDS_MAX: usize = 1024;

/// Another pod is asked when a round has taken so long, and then again and again. A shard that has
/// just lost its leader has another one earlier.
pub const HELP_AFTER: Duration = Duration::from_secs(2);

/// A pod that may reach what this one does not: one with a replica of a shard of which nobody has
/// reported the generation. Each attempt has another one. `None`: there is no other pod.
pub fn helper(
    state: &CatalogState,
    pods: Pods<'_>,
    own: PodId,
    volume: VolumeId,
    generation: Generation,
    attempt: usize,
) -> Option<PodId> {
    let has_it = |shard: &&Shard| {
        let mut members = shard.members.iter();
        members.any(|it| pods.member(it.member, it.disk).is_some_and(|of| of.access >= generation))
    };
    let volume = state.volumes.get(&volume)?;
    let shards = || state.shards_of(volume).map(|(_, shard)| shard);
    let others = |shards: &mut dyn Iterator<Item = &Shard>| -> Vec<PodId> {
        let members = shards.flat_map(|shard| &shard.members);
        let with_replica: BTreeSet<PodId> =
            members.filter_map(|it| Some(state.disks.get(&it.disk)?.pod)).collect();
        with_replica.into_iter().filter(|pod| *pod != own && pods.is_up(*pod)).collect()
    };
    let mut likely = others(&mut shards().filter(|shard| !has_it(shard)));
    if likely.is_empty() {
        likely = others(&mut shards());
    }
    let count = likely.len();
    (count > 0 && !planted!(RoundsUnaided)).then(|| likely[attempt % count])
}

/// See the module.
#[derive(Debug, Default)]
pub struct AccessRounds {
    /// What each was asked for, and the shards that the volume had.
    on_their_way: BTreeMap<VolumeId, (Generation, u64)>,
}

impl AccessRounds {
    /// The rounds to begin now.
    pub fn due(&mut self, state: &CatalogState) -> Vec<(VolumeId, AccessSet)> {
        let mut due = Vec::new();
        for volume in state.index.access_changing.iter() {
            if self.on_their_way.len() >= ROUNDS_MAX {
                break;
            }
            if !self.on_their_way.contains_key(volume) {
                let set = state.access_of(*volume);
                let shards = state.volumes[volume].shards();
                self.on_their_way.insert(*volume, (set.generation, shards));
                due.push((*volume, set));
            }
        }
        due
    }

    /// A round has ended. Returns what the catalog is to record; `None`: the round is due again.
    /// One that went to fewer shards than there are, because the data path did not know all of them
    /// yet, is due again.
    pub fn ended(
        &mut self,
        volume: VolumeId,
        result: Result<AccessDone, BlockError>,
    ) -> Option<CatalogCommand> {
        let (asked, known) = self.on_their_way.remove(&volume)?;
        let AccessDone { generation, highest, shards } = result.ok()?;
        let shards = shards as u64;
        if shards < known {
            return None;
        }
        Some(match (generation, highest) == (asked, asked) {
            true => CatalogCommand::AccessIsSet { volume, generation, shards },
            // A shard has refused the set, or has one that this catalog never gave.
            false => {
                let seen = highest.max(asked);
                CatalogCommand::AccessOutdone { volume, asked, seen }
            }
        })
    }

    /// Shards that a round of this volume must reach.
    pub fn shards_due(&self, volume: VolumeId) -> u64 {
        self.on_their_way.get(&volume).map_or(0, |(_, shards)| *shards)
    }

    /// The volumes with a round that has not ended.
    pub fn on_their_way(&self) -> impl Iterator<Item = VolumeId> {
        self.on_their_way.keys().copied()
    }

    /// This pod does not lead any more: what is on its way is nobody's.
    pub fn forget(&mut self) {
        self.on_their_way.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::catalog_fixture::{cluster, create_on};
    use crate::types::{AccessMode, Uuid};

    const VOLUME: VolumeId = VolumeId(1);

    fn publish(state: &mut CatalogState, node: u8) {
        let (node, uid) = (format!("node-{node}"), Uuid([node; 16]));
        let mode = AccessMode::Raw;
        let command = CatalogCommand::Publish {
            request_id: String::new(),
            volume: VOLUME,
            node,
            mode,
            io_timeout_ms: None,
            uid,
        };
        state.apply(1, command).outcome.unwrap();
    }

    fn done(generation: u64, highest: u64) -> Result<AccessDone, BlockError> {
        let (generation, highest) = (Generation(generation), Generation(highest));
        Ok(AccessDone { generation, highest, shards: 1 })
    }

    #[test]
    fn changes_that_come_during_a_round_are_merged_into_the_next() {
        let mut state = cluster(3);
        let mut create = create_on("demo", &[1]);
        if let CatalogCommand::CreateVolume { volume, .. } = &mut create {
            volume.open = false;
        }
        state.apply(1, create).outcome.unwrap();
        let mut rounds = AccessRounds::default();
        assert_eq!(rounds.due(&state), []);
        publish(&mut state, 1);
        assert_eq!(rounds.due(&state), [(VOLUME, state.access_of(VOLUME))]);
        publish(&mut state, 2);
        publish(&mut state, 3);
        assert_eq!(rounds.due(&state), [], "one at a time");
        let first = rounds.ended(VOLUME, done(1, 1)).unwrap();
        let generation = Generation(1);
        let expected = CatalogCommand::AccessIsSet { volume: VOLUME, generation, shards: 1 };
        assert_eq!(first, expected);
        state.apply(1, first).outcome.unwrap();
        let due = rounds.due(&state);
        assert_eq!(due[0].1.generation, Generation(3), "both at once");
        assert_eq!(rounds.ended(VOLUME, Err(BlockError::Busy)), None);
        assert_eq!(rounds.due(&state), due, "it is due again");
        let last = rounds.ended(VOLUME, done(3, 3)).unwrap();
        state.apply(1, last).outcome.unwrap();
        assert_eq!(rounds.due(&state), []);
    }

    /// The catalog was restored: shards have access sets of a newer past, or refuse an old id.
    #[test]
    fn shards_that_know_better_are_heard() {
        for (generation, highest) in [(1, 9), (0, 1), (9, 9)] {
            let mut rounds = AccessRounds::default();
            rounds.on_their_way.insert(VOLUME, (Generation(1), 1));
            let seen = Generation(highest.max(1));
            let told = rounds.ended(VOLUME, done(generation, highest));
            let asked = Generation(1);
            assert_eq!(told, Some(CatalogCommand::AccessOutdone { volume: VOLUME, asked, seen }));
        }
    }
}
