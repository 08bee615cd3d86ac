use super::*;
use crate::control::command::CatalogCommand;
use crate::control::state::CatalogState;
use crate::control::state::view::view;
use crate::testing::catalog_fixture::{cluster, create_on};
use crate::types::{AccessMode, AccessSet, Generation, Uuid};

const VOLUME: VolumeId = VolumeId(1);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn apply_at(
    state: &mut CatalogState,
    at_ms: u64,
    command: CatalogCommand,
) -> Result<Outcome, CatalogError> {
    let outcome = state.apply(at_ms, command).outcome;
    state.check_invariants();
    outcome
}

fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
    apply_at(state, 5_000, command)
}

/// Three nodes, and a volume of one shard.
fn with_volume(open: bool) -> CatalogState {
    let mut state = cluster(3);
    let mut create = create_on("demo", &[1, 2, 3]);
    if let CatalogCommand::CreateVolume { volume, .. } = &mut create {
        volume.open = open;
    }
    assert_eq!(apply(&mut state, create), Ok(Outcome::Volume(VOLUME)));
    state
}

fn delete_by(how: Deletion) -> CatalogCommand {
    let (request_id, name) = (String::new(), "demo".to_owned());
    CatalogCommand::DeleteVolume { request_id, name, volume: VOLUME, how }
}

fn delete(retention_ms: u64) -> CatalogCommand {
    delete_by(Deletion { retention_ms, ..Deletion::default() })
}

fn purge_now() -> CatalogCommand {
    delete_by(Deletion { retention_ms: DAY_MS, purge: true, ..Deletion::default() })
}

fn undelete() -> CatalogCommand {
    let (request_id, name) = (String::new(), "demo".to_owned());
    CatalogCommand::UndeleteVolume { request_id, name, volume: VOLUME }
}

fn purge(purge_ms: u64) -> CatalogCommand {
    CatalogCommand::PurgeVolume { volume: VOLUME, purge_ms }
}

fn set(generation: u64) -> CatalogCommand {
    let generation = Generation(generation);
    CatalogCommand::AccessIsSet { volume: VOLUME, generation, shards: 1 }
}

fn publish(node: u8, uid: u8) -> CatalogCommand {
    let (node, uid) = (format!("node-{node}"), Uuid([uid; 16]));
    CatalogCommand::Publish {
        request_id: String::new(),
        volume: VOLUME,
        node,
        mode: AccessMode::ReadWrite,
        io_timeout_ms: None,
        uid,
    }
}

fn nobody(generation: u64) -> AccessSet {
    AccessSet { generation: Generation(generation), open: false, grants: Vec::new() }
}

#[test]
fn a_deleted_volume_is_kept_and_used_by_nobody() {
    let mut state = with_volume(true);
    apply(&mut state, delete(DAY_MS)).unwrap();
    let volume = state.volumes[&VOLUME].clone();
    assert_eq!(volume.kept, Some(Kept { deleted_ms: 5_000, purge_ms: 5_000 + DAY_MS }));
    // Every shard refuses everybody, whatever front ends still believe.
    assert_eq!(state.access_of(VOLUME), nobody(1));
    assert!(state.index.access_changing.contains(&VOLUME), "that goes to every shard");
    let seen = &view(&state).volumes[0];
    assert!(seen.withheld && !seen.deleting);
    assert_eq!(view(&state).destroyed, [], "its members stay");
    // Its name is taken, and nothing can be done with it.
    let gone = Err(CatalogError::VolumeDeleted { name: "demo".to_owned() });
    assert_eq!(apply(&mut state, create_on("demo", &[1, 2, 3])), gone);
    assert_eq!(apply(&mut state, publish(1, 11)), gone);
    assert_eq!(
        apply(
            &mut state,
            CatalogCommand::SetOpen { request_id: String::new(), volume: VOLUME, open: false }
        ),
        gone
    );
    // To delete it again changes nothing, not even its time.
    let before = state.clone();
    apply_at(&mut state, 9_000, delete(DAY_MS)).unwrap();
    assert_eq!(state, before);
}

#[test]
fn what_comes_back_is_used_when_every_shard_lets_clients_in_again() {
    let mut state = with_volume(true);
    apply(&mut state, delete(DAY_MS)).unwrap();
    apply(&mut state, set(1)).unwrap();
    apply(&mut state, undelete()).unwrap();
    assert_eq!(state.access_of(VOLUME), AccessSet { open: true, ..nobody(2) });
    assert!(view(&state).volumes[0].withheld, "its shards still refuse everybody");
    apply(&mut state, undelete()).unwrap();
    apply(&mut state, set(2)).unwrap();
    let seen = &view(&state).volumes[0];
    assert!(!seen.withheld && seen.open);
    assert!(state.index.purges.is_empty());
    apply(&mut state, undelete()).unwrap();
    // It can be deleted again at once, also while it comes back.
    apply(&mut state, delete(DAY_MS)).unwrap();
    apply(&mut state, undelete()).unwrap();
    apply(&mut state, delete(2 * DAY_MS)).unwrap();
    assert_eq!(state.access_of(VOLUME), nobody(5));
    assert!(apply_at(&mut state, 5_000 + DAY_MS, purge(5_000 + DAY_MS)).is_ok());
    assert!(!state.volumes[&VOLUME].deleting, "that was the end of an earlier deletion");
}

#[test]
fn a_node_that_had_a_deleted_volume_does_not_get_it_back() {
    let mut state = with_volume(false);
    apply(&mut state, publish(1, 11)).unwrap();
    apply(&mut state, set(1)).unwrap();
    assert!(matches!(apply(&mut state, delete(DAY_MS)), Err(CatalogError::Held { .. })));
    let force = Deletion { force: true, retention_ms: DAY_MS, purge: false };
    apply(&mut state, delete_by(force)).unwrap();
    assert_eq!(state.access_of(VOLUME), nobody(3));
    assert_eq!(view(&state).volumes[0].attachments, []);
    apply(&mut state, set(3)).unwrap();
    assert!(state.attachments.is_empty(), "it is fenced everywhere");
    apply(&mut state, undelete()).unwrap();
    apply(&mut state, publish(2, 12)).unwrap();
    apply(&mut state, set(5)).unwrap();
    assert_eq!(view(&state).volumes[0].attachments.len(), 1);
}

#[test]
fn a_volume_is_destroyed_after_its_time_or_on_demand() {
    for now in [purge_now(), delete(0), purge(5_000 + DAY_MS)] {
        let mut state = with_volume(true);
        assert!(matches!(apply(&mut state, purge_now()), Err(CatalogError::NotDeleted { .. })));
        apply(&mut state, delete(DAY_MS)).unwrap();
        apply(&mut state, purge(5_000 + DAY_MS)).unwrap();
        assert!(!state.volumes[&VOLUME].deleting, "it is too early");
        apply_at(&mut state, 5_000 + DAY_MS, now).unwrap();
        assert!(state.volumes[&VOLUME].deleting);
        let late = Err(CatalogError::NameNotFreeYet { name: "demo".to_owned() });
        assert_eq!(apply(&mut state, undelete()), late);
        for (disk, member) in view(&state).destroyed {
            let members = vec![member];
            apply(&mut state, CatalogCommand::Destroyed { disk, members }).unwrap();
        }
        assert!(state.volumes.is_empty() && state.index.purges.is_empty());
        let gone = Err(CatalogError::NoSuchVolume { name: "demo".to_owned() });
        assert_eq!(apply(&mut state, undelete()), gone);
    }
    let mut state = with_volume(true);
    apply(&mut state, delete(0)).unwrap();
    assert!(state.volumes[&VOLUME].deleting, "without a retention at once");
    let too_long = delete(RETENTION_MS_MAX + 1);
    assert_eq!(apply(&mut with_volume(true), too_long), Err(CatalogError::BadRetention));
}
