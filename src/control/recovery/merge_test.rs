use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::control::command::{AuthorityStep, CatalogCommand, Deletion, Hidden};
use crate::control::state::rows::CatalogMember;
use crate::control::state::view::view;
use crate::level::Level;
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{cluster, create_on, join, new_disk, register};
use crate::types::{AccessMode, Generation, MemberId};

const PODS: u8 = 4;
const NEW: Uuid = Uuid([77; 16]);

fn apply(state: &mut CatalogState, command: CatalogCommand) {
    state.apply(5, command).outcome.unwrap();
}

/// Deletes a volume of these disks, and destroys its replicas.
fn remove(state: &mut CatalogState, name: &str, disks: &[u8]) {
    let command = delete(name, state);
    apply(state, command);
    for disk in disks {
        let command = destroyed(*disk, state);
        apply(state, command);
    }
}

fn delete(name: &str, state: &CatalogState) -> CatalogCommand {
    let volume = state.volume_by_name(name).map(|it| it.0).unwrap_or_default();
    let (request_id, name) = (String::new(), name.to_owned());
    let how = Deletion { force: true, ..Deletion::default() };
    CatalogCommand::DeleteVolume { request_id, name, volume, how }
}

/// Every replica that is to be destroyed is gone from this disk.
fn destroyed(disk: u8, state: &CatalogState) -> CatalogCommand {
    let disk = Uuid([disk; 16]);
    let doomed = view(state).destroyed.into_iter().filter(|it| it.0 == disk);
    CatalogCommand::Destroyed { disk, members: doomed.map(|it| it.1).collect() }
}

/// Everything, as a member of the catalog and a backup have it.
fn copy(state: &CatalogState) -> Source {
    let rows = state.rows().collect();
    let name = "the backup".to_owned();
    Source { name, pod: None, is_complete: true, revision: state.revision(), rows }
}

/// What concerns a pod: the volumes with a replica on its disks, and all that is not of a volume.
fn told(state: &CatalogState, pod: u8) -> Source {
    let is_here = |shard: &Shard| {
        let mut disks = shard.members.iter().map(|member| state.disks[&member.disk].pod);
        disks.any(|on| on == PodId(pod.into()))
    };
    let here: BTreeSet<VolumeId> =
        state.shards.values().filter(|shard| is_here(shard)).map(|shard| shard.volume).collect();
    let concerns = |key: &RowKey| match key {
        RowKey::Volume(volume) | RowKey::Attachment((volume, _)) => here.contains(volume),
        RowKey::Shard(shard) => here.contains(&state.shards[shard].volume),
        RowKey::Head | RowKey::Answered(_) | RowKey::Event(_) => false,
        RowKey::Authority(_) | RowKey::Token(_) | RowKey::Certificate(_) => false,
        _ => true,
    };
    let rows = state.rows().filter(|(key, _)| concerns(key)).collect();
    let (name, pod) = (format!("pod {pod}"), Some(PodId(pod.into())));
    Source { name, pod, is_complete: false, revision: state.revision(), rows }
}

fn merged(sources: impl IntoIterator<Item = Source>) -> Merged {
    let mut merge = Merge::default();
    for source in sources {
        merge.add(source).unwrap();
    }
    merge.finish(NEW, PodId(1), 9).unwrap()
}

/// A volume with its shards and attachments, and without the numbers that a restore raises.
fn volumes(state: &CatalogState) -> BTreeMap<VolumeId, String> {
    let text = |(id, volume): (&VolumeId, &Volume)| {
        let mut volume = volume.clone();
        (volume.access.counter, volume.access.wanted) = (0, Generation(0));
        let shards: Vec<_> = state.shards_of(&volume).collect();
        let attachments: Vec<_> = state.attachments_of(*id).collect();
        (*id, format!("{volume:?} {shards:?} {attachments:?}"))
    };
    state.volumes.iter().map(text).collect()
}

/// A backup is made. Later a volume is removed and another one made and attached. Then the catalog
/// is lost; the backup and the pods are left.
fn pods_know_more_than_the_backup() {
    let mut state = cluster(PODS);
    apply(&mut state, create_on("old", &[1, 2, 3]));
    apply(&mut state, create_on("kept", &[1, 2, 4]));
    let backup = copy(&state);
    remove(&mut state, "old", &[1, 2, 3]);
    apply(&mut state, create_on("new", &[2, 3, 4]));
    let kept = state.volume_by_name("kept").unwrap().0;
    apply(
        &mut state,
        CatalogCommand::SetOpen { request_id: String::new(), volume: kept, open: false },
    );
    let wanted = state.volumes[&kept].access.wanted;
    apply(&mut state, CatalogCommand::AccessIsSet { volume: kept, generation: wanted, shards: 1 });
    let publish = CatalogCommand::Publish {
        request_id: String::new(),
        volume: kept,
        node: "node-2".to_owned(),
        mode: AccessMode::ReadWrite,
        io_timeout_ms: None,
        uid: Uuid([3; 16]),
    };
    apply(&mut state, publish);
    apply(&mut state, join(PODS + 1));
    // Not known to any pod: what the catalog gave last.
    let known = state.clone();
    apply(&mut state, create_on("unknown", &[1, 2, 3]));
    apply(&mut state, join(PODS + 2));
    let pods = (1..=PODS).map(|pod| told(&known, pod));
    let Merged { state: reborn, notes } = merged([backup].into_iter().chain(pods));
    assert_eq!(volumes(&reborn), volumes(&known));
    assert_eq!(reborn.pods.keys().collect::<Vec<_>>(), known.pods.keys().collect::<Vec<_>>());
    let words: Vec<String> = notes.iter().map(Note::to_string).collect();
    assert_eq!(words.len(), 2, "{words:?}");
    assert!(words.iter().any(|word| word.starts_with("volume old")), "{words:?}");
    assert!(words.iter().any(|word| word.starts_with("volume new")), "{words:?}");
    assert_new_numbers(&reborn, &state);
    assert_eq!(reborn.cluster.ancestors, [state.cluster.history]);
    assert_eq!((reborn.cluster.history, reborn.cluster.restores), (NEW, 1));
    let members: Vec<PodId> = reborn.catalog.values().map(|member| member.pod).collect();
    assert_eq!(members, [PodId(1)]);
}

/// Nothing that the new catalog gives was ever given by the old one.
fn assert_new_numbers(reborn: &CatalogState, old: &CatalogState) {
    let (new, given) = (&reborn.head.next, &old.head.next);
    assert!(new.pod >= given.pod && new.volume >= given.volume && new.shard >= given.shard);
    assert!(new.member >= given.member && new.request >= given.request);
    assert!(reborn.revision() > old.revision());
    // What is being destroyed gets no attachments.
    for (id, volume) in reborn.volumes.iter().filter(|(_, volume)| !volume.deleting) {
        let given = old.volumes.get(id).map_or(0, |old| old.access.counter);
        assert!(volume.access.counter > given, "attachments get new numbers, too");
    }
    let CatalogMember { pod } = *reborn.catalog.values().next().unwrap();
    let member = *reborn.catalog.keys().next().unwrap();
    assert!(member >= MemberId(given.member), "pod {pod} has a member that never voted");
}

/// The level was raised after the backup, and disks were opened at it.
#[test]
fn the_feature_level_never_goes_back() {
    let mut state = cluster(3);
    let backup = copy(&state);
    let next = Level(state.cluster.level.0 + 1);
    for number in 1..=3 {
        let mut again = register(number, &[new_disk(number)]);
        if let CatalogCommand::Register { newest, .. } = &mut again {
            *newest = next;
        }
        apply(&mut state, again);
    }
    apply(&mut state, CatalogCommand::RaiseLevel { level: next });
    let pod = || told(&state, 1);
    assert_eq!(merged([backup.clone(), pod()]).state.cluster.level, next);
    assert_eq!(merged([pod(), backup]).state.cluster.level, next);
}

/// The authority was replaced after the backup: pods have certificates of the new one.
#[test]
fn the_newest_knowledge_of_authorities_counts_in_any_order() {
    let mut state = cluster(PODS);
    let authority = |certificate: &str| {
        let (certificate, key) = (certificate.to_owned(), Hidden("00".to_owned()));
        Authority { certificate, key, sealed: String::new(), created_ms: 0 }
    };
    apply(&mut state, CatalogCommand::SetAuthority { authority: authority("aa") });
    let backup = state.clone();
    apply(&mut state, CatalogCommand::ReplaceAuthority { authority: authority("bb") });
    for step in [AuthorityStep::Switch, AuthorityStep::Finish] {
        let based_on = state.cluster_revision;
        apply(&mut state, CatalogCommand::MoveAuthority { step, based_on });
    }
    let trusted = |merged: &Merged| {
        let roots = merged.state.cluster.roots.iter().map(|root| root.certificate.clone());
        let keys = merged.state.authorities.iter().map(|(number, _)| *number);
        assert!(merged.state.cluster.others_trusted);
        (roots.collect::<Vec<_>>(), keys.collect::<Vec<_>>())
    };
    let (old, new) = (|| copy(&backup), || told(&state, 1));
    for sources in [[old(), new()], [new(), old()]] {
        // Only the old key is known, and that signs nothing any more.
        assert_eq!(trusted(&merged(sources)), (vec!["bb".to_owned()], vec![]));
    }
    assert_eq!(trusted(&merged([old(), copy(&state)])), (vec!["bb".to_owned()], vec![2]));
    assert_eq!(trusted(&merged([old()])), (vec!["aa".to_owned()], vec![1]));
    // A sealed key is kept, and gives way to the key itself.
    let sealed = || {
        let mut source = copy(&backup);
        for (key, row) in &mut source.rows {
            if let RowKey::Authority(_) = key {
                let (revision, known) = decode_row::<Authority>(key, row).unwrap();
                let key = Hidden(String::new());
                *row = encode_row(revision, &Authority { key, sealed: "5e".to_owned(), ..known });
            }
        }
        source
    };
    let key = |merged: Merged| merged.state.authorities[&1].key.0.clone();
    assert_eq!(key(merged([sealed()])), "");
    assert_eq!(key(merged([sealed(), old()])), "00");
    assert_eq!(key(merged([old(), sealed()])), "00");
}

#[test]
fn a_recovery_finds_what_any_pod_knows() {
    pods_know_more_than_the_backup();
    for mistake in [Mistake::NumbersGoOn, Mistake::OldestKnowledgeWins, Mistake::RemovedComesBack] {
        assert_found(mistake, pods_know_more_than_the_backup);
    }
}

#[test]
fn a_second_restore_of_the_same_backup_gives_other_numbers() {
    let state = cluster(PODS);
    let first = merged([copy(&state)]).state;
    let mut went_on = first.clone();
    apply(&mut went_on, create_on("one", &[1, 2, 3]));
    // With what a pod was told by the first one, the second is a child of the first.
    let mut merge = Merge::default();
    merge.add(copy(&state)).unwrap();
    merge.add(told(&went_on, 1)).unwrap();
    let second = merge.finish(Uuid([78; 16]), PodId(1), 9).unwrap().state;
    assert_eq!(second.cluster.ancestors, [state.cluster.history, NEW]);
    assert_eq!(second.cluster.restores, 2);
    assert_new_numbers(&second, &went_on);
    assert!(second.volume_by_name("one").is_some());
}

#[test]
fn histories_that_went_on_apart_are_not_mixed() {
    let state = cluster(PODS);
    let one = merged([copy(&state)]).state;
    let mut merge = Merge::default();
    merge.add(copy(&state)).unwrap();
    let other = merge.finish(Uuid([78; 16]), PodId(2), 9).unwrap().state;
    let mut merge = Merge::default();
    merge.add(told(&one, 1)).unwrap();
    let before = format!("{merge:?}");
    let error = merge.add(told(&other, 2)).unwrap_err();
    assert!(matches!(error, MergeError::Fork { .. }), "{error}");
    assert_eq!(format!("{merge:?}"), before);
    merge.add(copy(&state)).unwrap();
    let foreign = Cluster { uid: Uuid([55; 16]), ..state.cluster.clone() };
    let rows = vec![(RowKey::Cluster, encode_row(1, &foreign))];
    let source = Source { rows, ..told(&state, 3) };
    assert!(matches!(merge.add(source), Err(MergeError::Foreign { .. })));
    let source = Source { rows: Vec::new(), ..told(&state, 3) };
    assert!(matches!(merge.add(source), Err(MergeError::Nothing { .. })));
}

/// A pod that does not answer was the only one to hear of a removal, and the name was used again.
#[test]
fn a_volume_whose_name_was_used_again_is_kept_under_another() {
    let mut state = cluster(PODS);
    apply(&mut state, create_on("name", &[3]));
    let old = state.volume_by_name("name").unwrap().0;
    let backup = copy(&state);
    remove(&mut state, "name", &[3]);
    apply(&mut state, create_on("name", &[1, 2, 4]));
    let new = state.volume_by_name("name").unwrap().0;
    let Merged { state: reborn, notes } = merged([backup, told(&state, 1)]);
    assert_eq!(reborn.volume_by_name("name").unwrap().0, new);
    let now = format!("name-restored-{}", old.0);
    assert_eq!(reborn.volume_by_name(&now).unwrap().0, old);
    assert!(notes.iter().any(|note| matches!(note, Note::Renamed { .. })), "{notes:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Disk(u8, u8),
    Create(u8, Vec<u8>),
    Delete(u8),
    Destroyed(u8),
    Close(u8),
    Publish(u8, u8),
    Confirm(u8),
    Told(u8),
    BackUp,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1..=PODS, 1..=PODS).prop_map(|(pod, disk)| Step::Disk(pod, disk)),
        4 => (1u8..6, prop::sample::subsequence(vec![1u8, 2, 3, 4], 3))
            .prop_map(|(name, on)| Step::Create(name, on)),
        2 => (1u8..6).prop_map(Step::Delete),
        3 => (1..=PODS).prop_map(Step::Destroyed),
        2 => (1u8..6).prop_map(Step::Close),
        2 => (1u8..6, 1..=PODS).prop_map(|(name, node)| Step::Publish(name, node)),
        2 => (1u8..6).prop_map(Step::Confirm),
        4 => (1..=PODS).prop_map(Step::Told),
        1 => Just(Step::BackUp),
    ]
}

/// The command of a step; `None`: it cannot be carried out now.
fn command(step: &Step, number: u8, state: &CatalogState) -> Option<CatalogCommand> {
    let of = |name: u8| state.volume_by_name(&format!("v{name}")).map(|it| it.0);
    Some(match step {
        Step::Disk(pod, disk) => register(*pod, &[new_disk(*disk)]),
        Step::Create(name, on) => create_on(&format!("v{name}"), on),
        Step::Delete(name) => delete(&format!("v{name}"), state),
        Step::Destroyed(disk) => destroyed(*disk, state),
        Step::Close(name) => {
            CatalogCommand::SetOpen { request_id: String::new(), volume: of(*name)?, open: false }
        }
        Step::Publish(name, node) => CatalogCommand::Publish {
            request_id: String::new(),
            volume: of(*name)?,
            node: format!("node-{node}"),
            mode: AccessMode::ReadWrite,
            io_timeout_ms: None,
            uid: Uuid([number; 16]),
        },
        Step::Confirm(name) => {
            let volume = of(*name)?;
            let row = &state.volumes[&volume];
            let (generation, shards) = (row.access.wanted, row.shards());
            CatalogCommand::AccessIsSet { volume, generation, shards }
        }
        Step::Told(_) | Step::BackUp => return None,
    })
}

proptest! {
    /// After any commands, heard by any pods, there is a state again, and it gives no number
    /// that was given before. When all pods have heard of everything, it is what there was.
    #[test]
    fn a_lost_catalog_is_found_again(steps in prop::collection::vec(step(), 1..60)) {
        let mut state = cluster(PODS);
        let mut backup = copy(&state);
        let mut pods: BTreeMap<u8, Source> =
            (1..=PODS).map(|pod| (pod, told(&state, pod))).collect();
        for (number, step) in (0..).zip(&steps) {
            match step {
                Step::Told(pod) => drop(pods.insert(*pod, told(&state, *pod))),
                Step::BackUp => backup = copy(&state),
                _ => {
                    // Some are refused, and change nothing.
                    let _outcome = command(step, number, &state).map(|it| state.apply(5, it));
                }
            }
        }
        let stale = merged(pods.into_values().chain([backup.clone()])).state;
        assert_new_numbers(&stale, &state);
        let all = merged((1..=PODS).map(|pod| told(&state, pod)).chain([backup])).state;
        prop_assert_eq!(volumes(&all), volumes(&state));
        assert_new_numbers(&all, &state);
    }
}
