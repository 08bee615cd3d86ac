use super::*;
use crate::control::command::{CatalogCommand, VolumeUpdate};
use crate::control::state::CatalogState;
use crate::control::state::view::view;
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{cluster, create_on, new_volume};
use crate::types::{AccessMode, Uuid};

const VOLUME: VolumeId = VolumeId(1);
const BLOCK: u64 = 4096;
/// Shards of eight blocks.
const STRIPE: u64 = 8 * BLOCK;

fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
    let outcome = state.apply(5, command).outcome;
    state.check_invariants();
    outcome
}

fn placement(shards: u64) -> Placement {
    let disks = [1, 2, 3].map(|disk| Uuid([disk; 16])).to_vec();
    Placement { disks, shards: (0..shards).map(|_| vec![0, 1, 2]).collect() }
}

/// Three nodes, and a volume of so many blocks.
fn with_volume(blocks: u64, open: bool) -> CatalogState {
    let mut state = cluster(3);
    let mut volume = new_volume("demo", blocks * BLOCK, STRIPE, 3);
    volume.open = open;
    let (request_id, placement) = (String::new(), placement(blocks.div_ceil(8)));
    let create = CatalogCommand::CreateVolume { request_id, volume, placement };
    assert_eq!(apply(&mut state, create), Ok(Outcome::Volume(VOLUME)));
    state
}

fn grow(blocks: u64, new_shards: u64) -> CatalogCommand {
    let labels = Default::default();
    CatalogCommand::UpdateVolume {
        request_id: String::new(),
        volume: VOLUME,
        update: VolumeUpdate { based_on: 0, labels, size_bytes: blocks * BLOCK },
        placement: placement(new_shards),
    }
}

fn grown(blocks: u64, generation: u64) -> CatalogCommand {
    let (size_bytes, generation) = (blocks * BLOCK, Generation(generation));
    CatalogCommand::Grown { volume: VOLUME, size_bytes, generation }
}

fn publish(node: u8) -> CatalogCommand {
    let (node, uid) = (format!("node-{node}"), Uuid([node; 16]));
    CatalogCommand::Publish {
        request_id: String::new(),
        volume: VOLUME,
        node,
        mode: AccessMode::Raw,
        io_timeout_ms: None,
        uid,
    }
}

fn unpublish(node: u8) -> CatalogCommand {
    let (request_id, node) = (String::new(), format!("node-{node}"));
    CatalogCommand::Unpublish { request_id, volume: VOLUME, node }
}

fn set(generation: u64, shards: u64) -> CatalogCommand {
    let generation = Generation(generation);
    CatalogCommand::AccessIsSet { volume: VOLUME, generation, shards }
}

/// The size in use and the one that is wanted, in blocks.
fn sizes(state: &CatalogState) -> (u64, u64) {
    let volume = &state.volumes[&VOLUME];
    (volume.size_bytes / BLOCK, volume.wanted_bytes() / BLOCK)
}

fn promised(state: &CatalogState) -> u64 {
    let promised = state.provisioned_on(Uuid([1; 16]));
    assert_eq!(promised, state.provisioned_on(Uuid([3; 16])));
    promised / BLOCK
}

#[test]
fn a_volume_grows_at_once_within_its_last_shard() {
    let mut state = with_volume(3, true);
    assert_eq!(promised(&state), 3, "the rest of the shard is not promised");
    apply(&mut state, grow(7, 0)).unwrap();
    assert_eq!((sizes(&state), promised(&state)), ((7, 7), 7));
    assert!(state.index.growing.is_empty());
    assert_eq!(view(&state).volumes[0].size_bytes, 7 * BLOCK);
}

#[test]
fn a_volume_grows_by_shards_whose_ids_need_not_follow() {
    let mut state = with_volume(3, true);
    apply(&mut state, create_on("other", &[1, 2, 3])).unwrap();
    apply(&mut state, grow(20, 2)).unwrap();
    assert_eq!((sizes(&state), promised(&state)), ((3, 20), 20 + 1));
    let volume = &state.volumes[&VOLUME];
    let ids: Vec<u64> = volume.shard_ids().map(|id| id.0).collect();
    assert_eq!(ids, [1, 3, 4]);
    assert_eq!((0..4).map(|at| volume.shard_at(at).map(|id| id.0)).collect::<Vec<_>>(), {
        [Some(1), Some(3), Some(4), None]
    });
    // Pods make the new members, and clients do not see them.
    let seen = &view(&state).volumes[0];
    assert_eq!((seen.size_bytes, seen.shards.len()), (3 * BLOCK, 3));
    // More, before it has come to that: both are waited for.
    apply(&mut state, grow(33, 2)).unwrap();
    assert!(apply(&mut state, grown(20, 0)).is_ok());
    assert_eq!(sizes(&state), (3, 33), "that is not the size any more");
    assert_eq!(state.volumes[&VOLUME].runs.len(), 2);
    apply(&mut state, grow(40, 0)).unwrap();
    apply(&mut state, grown(40, 0)).unwrap();
    assert_eq!((sizes(&state), promised(&state)), ((40, 40), 40 + 1));
    assert_eq!(view(&state).volumes[0].size_bytes, 40 * BLOCK);
    assert!(state.index.growing.is_empty());
}

#[test]
fn a_size_that_is_there_is_no_change_and_others_are_refused() {
    let mut state = with_volume(8, true);
    apply(&mut state, grow(20, 2)).unwrap();
    let before = state.clone();
    // As it is, as it will be, and what says nothing of the size.
    for blocks in [8, 20, 0] {
        apply(&mut state, grow(blocks, 0)).unwrap();
        assert_eq!(state, before);
    }
    let said = |state: &mut CatalogState, command| apply(state, command).unwrap_err().to_string();
    assert_eq!(
        said(&mut state, grow(12, 0)),
        "volume \"demo\" has 80KiB or is growing to that, and a volume does not shrink; 48KiB is \
         less"
    );
    let most = SHARDS_MAX * 8;
    assert!(said(&mut state, grow(most + 1, 0)).contains("at most 128MiB"));
    // The place that was found is for another number of shards, or on one pod.
    assert_eq!(apply(&mut state, grow(30, 2)), Err(CatalogError::StalePlacement));
    let mut crowded = grow(30, 1);
    if let CatalogCommand::UpdateVolume { placement, .. } = &mut crowded {
        placement.shards[0] = vec![0, 1, 1];
    }
    assert_eq!(apply(&mut state, crowded), Err(CatalogError::StalePlacement));
    let mut odd = grow(0, 1);
    if let CatalogCommand::UpdateVolume { update, .. } = &mut odd {
        update.size_bytes = 20 * BLOCK + 1;
    }
    assert!(matches!(apply(&mut state, odd), Err(CatalogError::BadSize { .. })));
    assert_eq!(state, before);
    apply(&mut state, grow(most, SHARDS_MAX - 3)).unwrap();
}

/// A node was fenced, and another one is on its way, when the volume grows.
fn a_new_shard_is_born_with_the_newest_access_set() {
    let mut state = with_volume(8, false);
    apply(&mut state, publish(1)).unwrap();
    apply(&mut state, set(1, 1)).unwrap();
    apply(&mut state, unpublish(1)).unwrap();
    apply(&mut state, publish(2)).unwrap();
    apply(&mut state, grow(16, 1)).unwrap();
    let birth = &state.shards[&ShardId(2)].birth;
    assert_eq!((birth.generation.0, birth.open), (3, false));
    let admitted: Vec<u64> = birth.grants.iter().map(|grant| grant.attachment.0).collect();
    assert_eq!(admitted, [3], "the fenced one never");
}

#[test]
fn new_shards_know_who_is_fenced() {
    a_new_shard_is_born_with_the_newest_access_set();
    assert_found(Mistake::BornOutdated, a_new_shard_is_born_with_the_newest_access_set);
}

/// A round of the access set began before the volume grew, and ends after that.
fn a_round_counts_when_it_went_to_the_new_shards_too() {
    let mut state = with_volume(8, false);
    apply(&mut state, grow(16, 1)).unwrap();
    apply(&mut state, publish(1)).unwrap();
    apply(&mut state, set(1, 1)).unwrap();
    assert_eq!(state.volumes[&VOLUME].access.applied, Generation(0), "one shard does not know");
    assert!(state.index.access_changing.contains(&VOLUME), "it is due again");
    apply(&mut state, grown(16, 0)).unwrap();
    assert_eq!(sizes(&state), (8, 16), "the new shard has not confirmed the newest generation");
    apply(&mut state, set(1, 2)).unwrap();
    assert_eq!(state.volumes[&VOLUME].access.applied, Generation(1));
    apply(&mut state, grown(16, 1)).unwrap();
    assert_eq!(sizes(&state), (16, 16));
}

#[test]
fn new_shards_are_part_of_every_shard() {
    a_round_counts_when_it_went_to_the_new_shards_too();
    assert_found(Mistake::NewShardsForgotten, a_round_counts_when_it_went_to_the_new_shards_too);
}

#[test]
fn what_grows_can_be_deleted() {
    let mut state = with_volume(8, true);
    apply(&mut state, grow(20, 2)).unwrap();
    let (request_id, name) = (String::new(), "demo".to_owned());
    let how = crate::control::command::Deletion::default();
    apply(&mut state, CatalogCommand::DeleteVolume { request_id, name, volume: VOLUME, how })
        .unwrap();
    assert!(state.index.growing.is_empty());
    let doomed = view(&state).destroyed;
    assert_eq!(doomed.len(), 9);
    for (disk, member) in doomed {
        let members: Vec<MemberId> = vec![member];
        apply(&mut state, CatalogCommand::Destroyed { disk, members }).unwrap();
    }
    assert!(state.volumes.is_empty() && state.index.held.is_empty());
}
