use super::*;
use crate::control::command::{CatalogCommand, Deletion, Outcome};
use crate::control::state::CatalogState;
use crate::testing::catalog_fixture::{cluster, create_on};
use crate::types::{AccessMode, Generation, Uuid, VolumeId};

const VOLUME: VolumeId = VolumeId(1);

fn apply(state: &mut CatalogState, now_ms: u64, command: CatalogCommand) {
    state.apply(now_ms, command).outcome.expect("it is allowed");
    state.check_invariants();
    let rows: Vec<_> = state.rows().collect();
    assert_eq!(CatalogState::from_rows(rows).unwrap(), *state);
}

fn see(reason: &str, well: bool) -> CatalogCommand {
    see_of("demo", reason, well)
}

fn see_of(name: &str, reason: &str, well: bool) -> CatalogCommand {
    let text = |text: &str| text.to_owned();
    let (kind, condition, message) = (text("volume"), text("Redundant"), text("so it is"));
    let (name, uid, reason) = (text(name), text("1"), text(reason));
    let seen = vec![Sighting { kind, name, uid, condition, reason, message, well }];
    CatalogCommand::RecordEvents { seen }
}

fn told(state: &CatalogState, kind: &str, name: &str) -> Vec<(String, u32)> {
    events_of(state, kind, name).map(|event| (event.reason.clone(), event.count)).collect()
}

fn reasons(state: &CatalogState, kind: &str, name: &str) -> Vec<String> {
    told(state, kind, name).into_iter().map(|(reason, _)| reason).collect()
}

#[test]
fn the_life_of_a_volume_is_told() {
    let mut state = cluster(3);
    apply(&mut state, 1, create_on("demo", &[1, 2, 3]));
    apply(&mut state, 2, CatalogCommand::Created { volumes: vec![VOLUME] });
    let publish = |node: u8| CatalogCommand::Publish {
        request_id: String::new(),
        volume: VOLUME,
        node: format!("node-{node}"),
        mode: AccessMode::ReadWrite,
        io_timeout_ms: None,
        uid: Uuid([node; 16]),
    };
    let is_set = |generation| CatalogCommand::AccessIsSet {
        volume: VOLUME,
        generation: Generation(generation),
        shards: 1,
    };
    if state.volumes[&VOLUME].access.open {
        apply(
            &mut state,
            3,
            CatalogCommand::SetOpen { request_id: String::new(), volume: VOLUME, open: false },
        );
        apply(&mut state, 3, is_set(1));
    }
    let before = reasons(&state, "volume", "demo").len();
    apply(&mut state, 4, publish(1));
    apply(&mut state, 4, publish(1));
    let wanted = state.volumes[&VOLUME].access.wanted.0;
    apply(&mut state, 5, is_set(wanted));
    let lost = CatalogCommand::DeclareLost { node: "node-1".into(), boot_id: "boot".into() };
    apply(&mut state, 6, lost);
    apply(&mut state, 7, is_set(wanted + 1));
    let how = Deletion { force: false, retention_ms: 0, purge: false };
    let name = || "demo".to_owned();
    let delete =
        CatalogCommand::DeleteVolume { request_id: name(), name: name(), volume: VOLUME, how };
    apply(&mut state, 8, delete);
    let shards: Vec<_> = state.shards.values().flat_map(|shard| shard.members.clone()).collect();
    for it in shards {
        let (disk, members) = (it.disk, vec![it.member]);
        apply(&mut state, 9, CatalogCommand::Destroyed { disk, members });
    }
    assert!(state.volumes.is_empty());
    let all = reasons(&state, "volume", "demo");
    assert_eq!(all[..2], ["VolumeCreated", "VolumeUsable"]);
    assert_eq!(
        all[before..],
        ["Published", "Attached", "Unpublished", "Fenced", "DestructionBegun", "Destroyed"],
        "the same publish is told once"
    );
    assert_eq!(reasons(&state, "node", "node-1").last().unwrap(), "NodeLost");
    let lost = events_of(&state, "node", "node-1").next_back().unwrap();
    assert!(lost.warns && lost.last_ms == 1_000, "time does not go back: {lost:?}");
}

#[test]
fn a_condition_is_told_when_it_becomes_another() {
    let mut state = cluster(1);
    let first = state.revision();
    apply(&mut state, 10, see("AllReplicasGood", true));
    assert_eq!(state.revision(), first, "nothing was wrong");
    apply(&mut state, 2_000, see("ReplicasMissing", false));
    // A new leader sees the same again.
    apply(&mut state, 3_000, see("ReplicasMissing", false));
    apply(&mut state, 4_000, see("AllReplicasGood", true));
    apply(&mut state, 5_000, see("AllReplicasGood", true));
    let all = |state: &CatalogState| told(state, "volume", "demo");
    let one = |reason: &str, count| (reason.to_owned(), count);
    assert_eq!(all(&state), [one("ReplicasMissing", 1), one("AllReplicasGood", 1)]);
    // To and fro.
    apply(&mut state, 6_000, see("ReplicasMissing", false));
    apply(&mut state, 7_000, see("AllReplicasGood", true));
    assert_eq!(all(&state), [one("ReplicasMissing", 2), one("AllReplicasGood", 2)]);
    let last = events_of(&state, "volume", "demo").next_back().unwrap();
    assert_eq!((last.first_ms, last.last_ms), (4_000, 7_000));
    // After a while it is another event.
    apply(&mut state, 6_000 + SAME_WITHIN_MS, see("ReplicasMissing", false));
    assert_eq!(all(&state).len(), 3);
}

#[test]
fn one_object_pushes_out_its_own_events_only() {
    let mut state = cluster(1);
    apply(&mut state, 1, see_of("quiet", "ReplicasMissing", false));
    for number in 0..100 {
        let reason = format!("Reason{number}");
        apply(&mut state, 2, see_of("loud", &reason, false));
    }
    let loud = reasons(&state, "volume", "loud");
    assert_eq!((loud.len(), &*loud[0]), (EVENTS_OF_ONE_MAX, "Reason68"));
    assert_eq!(reasons(&state, "volume", "quiet"), ["ReplicasMissing"]);
}

#[test]
fn the_oldest_of_a_kind_go_first_and_long_messages_are_cut() {
    const VOLUMES_MAX: usize = 4 * EVENTS_OF_KIND_MAX;
    let mut state = cluster(1);
    let others = |state: &CatalogState| {
        let all = state.events.values().filter(|event| event.kind != "volume");
        all.cloned().collect::<Vec<Event>>()
    };
    let before = others(&state);
    assert!(!before.is_empty());
    let long = "ü".repeat(MESSAGE_BYTES_MAX);
    let seen = |number: usize| Sighting {
        kind: "volume".to_owned(),
        name: format!("v{number}"),
        uid: "1".to_owned(),
        condition: "Redundant".to_owned(),
        reason: "ReplicasMissing".to_owned(),
        message: long.clone(),
        well: false,
    };
    let all: Vec<Sighting> = (0..=VOLUMES_MAX).map(seen).collect();
    for some in all.chunks(1024) {
        assert_eq!(is_full(&state, "volume"), state.events.len() >= VOLUMES_MAX + before.len());
        let outcome = state.apply(3, CatalogCommand::RecordEvents { seen: some.to_vec() }).outcome;
        assert_eq!(outcome, Ok(Outcome::Done));
    }
    assert_eq!(state.events.len() - before.len(), VOLUMES_MAX);
    assert_eq!(others(&state), before, "a storm of volumes does not push out its cause");
    assert_eq!(reasons(&state, "volume", "v0"), [] as [&str; 0]);
    let last = events_of(&state, "volume", &format!("v{VOLUMES_MAX}")).next().unwrap();
    assert_eq!(last.message.len(), MESSAGE_BYTES_MAX);
    let rows: Vec<_> = state.rows().collect();
    assert_eq!(CatalogState::from_rows(rows).unwrap(), state);
}
