use proptest::prelude::*;

use super::*;
use crate::control::command::{CatalogCommand, Deletion, NewDisk};
use crate::control::state::view::view;
use crate::control::state::{CatalogState, NewCluster};
use crate::control::sync::update::update;
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{
    addresses_of, cluster, create_on, first_pod, join, new_disk, node, register,
};

fn apply(state: &mut CatalogState, command: CatalogCommand) {
    state.apply(5, command).outcome.unwrap();
}

/// Brings a mirror to the state, through the encoded form.
fn follow(mirror: &mut Mirror, state: &CatalogState) -> Option<Update> {
    let update = update(state, mirror.position())?;
    let read = Update::decode(&update.encode()).unwrap();
    assert_eq!(read, update);
    mirror.take(&read).unwrap();
    Some(update)
}

#[test]
fn differences_are_what_changed_and_nothing_else() {
    let mut state = cluster(3);
    let mut mirror = Mirror::default();
    assert!(follow(&mut mirror, &state).unwrap().is_whole);
    assert_eq!(**mirror.view(), view(&state));
    assert_eq!(follow(&mut mirror, &state), None, "nothing has changed");

    apply(&mut state, create_on("one", &[1, 2, 3]));
    follow(&mut mirror, &state).unwrap();
    apply(&mut state, create_on("two", &[2]));
    let difference = follow(&mut mirror, &state).unwrap();
    assert!(!difference.is_whole);
    let kinds: Vec<u8> = difference.rows.iter().map(|(key, _)| key.encode()[0]).collect();
    assert_eq!(kinds, *b"vs", "the new volume and its shard");
    assert!(difference.encode().len() < 1024, "{} bytes", difference.encode().len());
    assert_eq!(**mirror.view(), view(&state));
    // The node's row is kept for a recovery. The view does not show it.
    let mut again = register(1, &[new_disk(1)]);
    if let CatalogCommand::Register { node, .. } = &mut again {
        node.boot_id = "another".to_owned();
    }
    apply(&mut state, again);
    let difference = follow(&mut mirror, &state).unwrap();
    let kinds: Vec<u8> = difference.rows.iter().map(|(key, _)| key.encode()[0]).collect();
    assert_eq!(kinds, *b"n");
    assert_eq!(mirror.position().revision, state.revision());
}

#[test]
fn volumes_that_did_not_change_share_their_memory() {
    let mut state = cluster(3);
    apply(&mut state, create_on("one", &[1, 2, 3]));
    let mut mirror = Mirror::default();
    follow(&mut mirror, &state);
    let before = Arc::clone(mirror.view());
    apply(&mut state, create_on("two", &[1, 2, 3]));
    follow(&mut mirror, &state);
    assert!(Arc::ptr_eq(&before.volumes[0], &mirror.view().volumes[0]));
    // Also when everything comes anew.
    let before = Arc::clone(mirror.view());
    let whole = update(&state, Position::default()).unwrap();
    mirror.take(&whole).unwrap();
    assert!(Arc::ptr_eq(&before.volumes[1], &mirror.view().volumes[1]));
}

#[test]
fn what_does_not_continue_is_refused_and_changes_nothing() {
    let mut state = cluster(3);
    let mut mirror = Mirror::default();
    follow(&mut mirror, &state);
    let first = mirror.clone();
    apply(&mut state, create_on("one", &[1, 2, 3]));
    let difference = update(&state, mirror.position()).unwrap();
    follow(&mut mirror, &state);
    let (view, position) = (Arc::clone(mirror.view()), mirror.position());
    let mut refused = |update: &Update, text: &str| {
        let error = mirror.take(update).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert!(Arc::ptr_eq(&view, mirror.view()));
        assert_eq!(mirror.position(), position);
    };
    refused(&difference, "continues revision");
    // The catalog was restored from a backup by somebody who made it anew.
    let other = CatalogState::new(NewCluster {
        uid: state.cluster.uid,
        history: Uuid([66; 16]),
        pod: (Uuid([1; 16]), addresses_of(1), node(1)),
        now_ms: 1,
    });
    refused(&update(&other, Position::default()).unwrap(), "does not descend");
    let foreign = CatalogState::new(NewCluster {
        uid: Uuid([55; 16]),
        history: Uuid([66; 16]),
        pod: (Uuid([1; 16]), addresses_of(1), node(1)),
        now_ms: 1,
    });
    refused(&update(&foreign, Position::default()).unwrap(), "belongs to");
    let mut torn = update(&state, Position::default()).unwrap();
    torn.rows.retain(|(key, _)| !matches!(key, RowKey::Shard(_)));
    refused(&torn, "is not in it");
    let mut mirror = first;
    let mut headless = difference;
    headless.rows.retain(|(key, _)| !matches!(key, RowKey::Shard(_)));
    assert!(mirror.take(&headless).is_err());
    assert!(mirror.view().volumes.is_empty());
}

/// The catalog is restored from an old copy. Its revisions count from there, in a new history.
fn a_restored_catalog_goes_back() {
    let older = cluster(3);
    let mut newer = older.clone();
    apply(&mut newer, create_on("one", &[1, 2, 3]));
    let mut mirror = Mirror::default();
    follow(&mut mirror, &newer);
    let history = Uuid([66; 16]);
    let ancestors = vec![older.cluster.history];
    let cluster = Cluster { history, ancestors, ..older.cluster.clone() };
    let rows = older.rows().map(|(key, row)| match key {
        RowKey::Cluster => (key, encode_row(1, &cluster)),
        _ => (key, row),
    });
    let restored = CatalogState::from_rows(rows).unwrap();
    follow(&mut mirror, &restored);
    assert_eq!(**mirror.view(), view(&restored), "a pod follows the restored catalog");
}

#[test]
fn revisions_of_two_histories_are_not_compared() {
    a_restored_catalog_goes_back();
    assert_found(Mistake::HistoriesCompared, a_restored_catalog_goes_back);
}

#[test]
fn a_history_that_descends_from_ours_is_followed() {
    let state = cluster(3);
    let mut mirror = Mirror::default();
    follow(&mut mirror, &state);
    let mut restored = update(&state, Position::default()).unwrap();
    let history = Uuid([66; 16]);
    let ancestors = vec![state.cluster.history];
    let cluster = Cluster { history, ancestors, ..state.cluster.clone() };
    for (key, row) in &mut restored.rows {
        if *key == RowKey::Cluster {
            *row = Some(encode_row(1, &cluster));
        }
    }
    restored.to = Position { history, revision: 3 };
    mirror.take(&restored).unwrap();
    assert_eq!(mirror.position(), restored.to, "revisions of two histories are not compared");
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Disks(u8, u8),
    Create(u8, [u8; 3]),
    Delete(u8),
    Confirm(u8),
    Follow,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..6).prop_map(Step::Join),
        (1u8..5, 1u8..7).prop_map(|(pod, disk)| Step::Disks(pod, disk)),
        (1u8..6, prop::sample::subsequence(vec![1u8, 2, 3, 4], 3))
            .prop_map(|(name, on)| Step::Create(name, [on[0], on[1], on[2]])),
        (1u8..6).prop_map(Step::Delete),
        (1u8..5).prop_map(Step::Confirm),
        Just(Step::Follow),
        Just(Step::Follow),
        Just(Step::Restart),
    ]
}

proptest! {
    /// However a mirror gets there, by differences or at once, it shows the cluster as it is.
    #[test]
    fn differences_add_up_to_the_whole(steps in prop::collection::vec(step(), 1..60)) {
        let mut state = first_pod();
        let mut mirror = Mirror::default();
        for step in steps {
            let command = match step {
                Step::Follow => {
                    follow(&mut mirror, &state);
                    prop_assert_eq!(&**mirror.view(), &view(&state));
                    continue;
                }
                Step::Restart => {
                    let whole = mirror.whole();
                    if mirror.position().revision > 0 {
                        let mut kept = Mirror::default();
                        kept.take(&whole).unwrap();
                        prop_assert_eq!(kept.view(), mirror.view());
                        prop_assert_eq!(kept.position(), mirror.position());
                        prop_assert_eq!(kept.catalog(), mirror.catalog());
                        mirror = kept;
                    }
                    continue;
                }
                Step::Join(pod) => join(pod),
                Step::Disks(pod, disk) => {
                    register(pod, &[NewDisk { path: "moved".to_owned(), ..new_disk(disk) }])
                }
                Step::Create(name, on) => create_on(&format!("v{name}"), &on),
                Step::Delete(name) => {
                    let name = format!("v{name}");
                    let volume = state.volume_by_name(&name).map(|it| it.0).unwrap_or_default();
                    let (request_id, how) = (String::new(), Deletion::default());
                    CatalogCommand::DeleteVolume { request_id, name, volume, how }
                }
                Step::Confirm(disk) => {
                    let disk = Uuid([disk; 16]);
                    let doomed = view(&state).destroyed.into_iter().filter(|it| it.0 == disk);
                    let members = doomed.map(|it| it.1).collect();
                    CatalogCommand::Destroyed { disk, members }
                }
            };
            // Some are refused, and change nothing.
            let _outcome = state.apply(5, command);
        }
        follow(&mut mirror, &state);
        prop_assert_eq!(&**mirror.view(), &view(&state));
    }
}
