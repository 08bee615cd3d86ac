//! The network separates the catalog's leader from the leader of a shard, and nobody else from
//! anybody.

use super::call::What;
use super::scenarios_test::Scenario;
use super::{Host, NewVolume};
use crate::control::state::CatalogState;
use crate::planted::{Mistake, assert_found};
use crate::sim::world::World;
use crate::types::{ShardId, Uuid, VolumeId};
use crate::view::MemberState;
use crate::worker::Worker;

const NAME: &str = "far";
const HOLDER: Uuid = Uuid([8; 16]);

fn state(world: &World) -> &CatalogState {
    world.catalog.check.state()
}

fn first_shard(world: &World, volume: VolumeId) -> Option<ShardId> {
    state(world).volumes[&volume].shard_at(0)
}

/// The pod with the leader of the only shard of the volume.
fn leader_of(world: &World, volume: VolumeId) -> Option<Host> {
    let shard = first_shard(world, volume)?;
    let leads = |worker: &Worker| {
        let disks = worker.report().disks;
        let mut members = disks.iter().flat_map(|disk| &disk.members);
        members.any(|member| member.shard == shard && member.state == MemberState::Leader)
    };
    world.pods.iter().position(|pod| pod.worker.as_ref().is_some_and(leads))
}

/// A published volume is admitted by its shard. False: with this seed, one pod leads both.
fn is_admitted_from_afar(seed: u64) -> bool {
    let mut scenario = Scenario::new(seed, 3);
    let (name, number, closed) = (NAME.to_owned(), Some(0), true);
    let (shards, blocks_per_shard) = (1, 16);
    let new = NewVolume { name, number, shards, blocks_per_shard, closed, io_timeout_ms: 0 };
    scenario.world.catalog.ask(What::Create(new));
    scenario.until("the volume is there", |world| world.catalog.all_answered());
    let volume = state(&scenario.world).volume_by_name(NAME).expect("it was made").0;
    scenario.until("its shard has a leader", |world| leader_of(world, volume).is_some());
    let (leader, of_shard) = (scenario.leader(), leader_of(&scenario.world, volume));
    let (Some(leader), Some(of_shard)) = (leader, of_shard) else { return false };
    if leader == of_shard {
        return false;
    }
    let ways = [(leader, of_shard), (of_shard, leader)];
    scenario.world.kernel.borrow_mut().cut.extend(ways);
    scenario.world.catalog.ask(What::Publish { volume, host: leader, uid: HOLDER });
    scenario.until("the shard has admitted the node", |world| {
        let state = state(world);
        let key = state.index.attachments_by_uid.get(&HOLDER);
        key.is_some_and(|key| state.attachments[key].active)
    });
    let stays = leader_of(&scenario.world, volume);
    assert_eq!(stays, Some(of_shard), "it would have been in reach otherwise");
    scenario.world.kernel.borrow_mut().cut.clear();
    true
}

fn other_pods_carry_rounds_to_shards_out_of_reach() {
    let seeds = 1..=12;
    let admitted = seeds.filter(|seed| is_admitted_from_afar(*seed)).count();
    assert!(admitted > 0, "one pod led both with every seed");
}

#[test]
fn rounds_reach_what_the_leader_does_not() {
    other_pods_carry_rounds_to_shards_out_of_reach();
}

#[test]
fn rounds_without_help_are_noticed() {
    assert_found(Mistake::RoundsUnaided, other_pods_carry_rounds_to_shards_out_of_reach);
}
