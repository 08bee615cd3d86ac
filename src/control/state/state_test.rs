use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::control::command::{Deletion, NewVolume, Placement, VolumeUpdate, decode, encode};
use crate::control::placement::{Candidate, Candidates, Wish, layout, place};
use crate::control::state::view::view;
use crate::level::NEWEST;
use crate::testing::catalog_fixture::{
    addresses, cluster, first_pod, join, new_disk, new_volume, node, register,
};
use crate::types::{AccessMode, Generation, VolumeId};

const GIB: u64 = 1 << 30;

/// Carries out a command at some time.
fn apply(state: &mut CatalogState, command: CatalogCommand) -> Result<Outcome, CatalogError> {
    state.apply(2_000, command).outcome
}

/// All disks, with room for everything.
fn candidates(state: &CatalogState) -> Candidates {
    let disks = state
        .disks
        .iter()
        .map(|(disk, record)| Candidate {
            disk: *disk,
            pod: record.pod,
            domain: record.pod.to_string(),
            free_bytes: 1 << 40,
            room_bytes: 1 << 50,
            members: state.members_on(*disk),
            firsts: 0,
        })
        .collect();
    Candidates { disks, ..Candidates::default() }
}

fn create(state: &CatalogState, name: &str, size_bytes: u64, replicas: u32) -> CatalogCommand {
    let (stripe_bytes, shards) = layout(size_bytes);
    let wish = Wish { name, shards, shard_bytes: stripe_bytes, replicas, grows: false };
    let candidates = candidates(state);
    CatalogCommand::CreateVolume {
        request_id: format!("create {name}"),
        volume: new_volume(name, size_bytes, stripe_bytes, replicas),
        placement: place(wish, &candidates).unwrap_or_default(),
    }
}

/// The same command under another request id.
fn under(mut command: CatalogCommand, id: &str) -> CatalogCommand {
    if let CatalogCommand::CreateVolume { request_id, .. } = &mut command {
        *request_id = id.to_owned();
    }
    command
}

/// Makes the volume that has this name larger.
fn grow(state: &CatalogState, name: &str, size_bytes: u64, request_id: &str) -> CatalogCommand {
    let found = state.volume_by_name(name);
    let (id, shards, replicas) = found.map_or((VolumeId(0), 0, 3), |(id, volume)| {
        let shards = size_bytes.div_ceil(volume.stripe_bytes).saturating_sub(volume.shards());
        (id, shards, volume.replicas)
    });
    let wish = Wish { name, shards, shard_bytes: GIB, replicas, grows: true };
    CatalogCommand::UpdateVolume {
        request_id: request_id.to_owned(),
        volume: id,
        update: VolumeUpdate { based_on: 0, labels: BTreeMap::new(), size_bytes },
        placement: place(wish, &candidates(state)).unwrap_or_default(),
    }
}

/// The members that are to be destroyed, by disk.
fn doomed(state: &CatalogState) -> BTreeMap<Uuid, Vec<MemberId>> {
    let mut all: BTreeMap<Uuid, Vec<MemberId>> = BTreeMap::new();
    for (disk, member) in view(state).destroyed {
        all.entry(disk).or_default().push(member);
    }
    all
}

/// Deletes the volume that has this name now.
fn delete(state: &CatalogState, name: &str, request_id: &str) -> CatalogCommand {
    let (request_id, name) = (request_id.to_owned(), name.to_owned());
    let volume = state.volume_by_name(&name).map_or(VolumeId(0), |(volume, _)| volume);
    CatalogCommand::DeleteVolume { request_id, name, volume, how: Deletion::default() }
}

/// Every disk confirms that it has destroyed what it had to.
fn confirm_all(state: &mut CatalogState) {
    for (disk, members) in doomed(state) {
        apply(state, CatalogCommand::Destroyed { disk, members }).unwrap();
    }
}

/// The request to delete a volume arrives when another volume has its name.
#[test]
fn a_late_request_does_not_delete_another_volume_of_the_same_name() {
    let mut state = cluster(3);
    let make = |state: &mut CatalogState, id: &str| {
        let command = under(create(state, "demo", GIB, 3), id);
        match apply(state, command).unwrap() {
            Outcome::Volume(volume) => volume,
            other => panic!("{other:?}"),
        }
    };
    let delete = |id: &str, volume| CatalogCommand::DeleteVolume {
        request_id: id.to_owned(),
        name: "demo".to_owned(),
        volume,
        how: Deletion::default(),
    };
    let first = make(&mut state, "make 1");
    apply(&mut state, delete("delete 1", first)).unwrap();
    let too_early = under(create(&state, "demo", GIB, 3), "make 2");
    let error = apply(&mut state, too_early).unwrap_err();
    assert_eq!(error, CatalogError::NameNotFreeYet { name: "demo".to_owned() });
    confirm_all(&mut state);
    let second = make(&mut state, "make 3");
    let error = apply(&mut state, delete("late", first)).unwrap_err();
    assert_eq!(error, CatalogError::NoSuchVolume { name: "demo".to_owned() });
    assert_eq!(state.volume_by_name("demo").unwrap().0, second);
    // A request that was carried out is answered as before.
    let again = apply(&mut state, delete("delete 1", VolumeId(0)));
    assert_eq!(again, Ok(Outcome::Volume(first)));
    apply(&mut state, delete("delete 2", second)).unwrap();
    state.check_invariants();
}

#[test]
fn a_request_that_is_sent_again_is_carried_out_once() {
    let mut state = cluster(3);
    let command = create(&state, "demo", 10 * GIB, 3);
    let first = apply(&mut state, command.clone());
    assert!(matches!(first, Ok(Outcome::Volume(_))));
    let after = state.clone();
    assert_eq!(apply(&mut state, command.clone()), first);
    assert_eq!(state, after);
    // Another request for the same is answered as well, and one for something else is not.
    assert_eq!(apply(&mut state, under(command, "another")), first);
    let other = under(create(&state, "demo", 11 * GIB, 3), "a third");
    let taken = CatalogError::NameTaken { name: "demo".to_owned() };
    assert_eq!(apply(&mut state, other), Err(taken));
    let reused = under(create(&state, "other", GIB, 3), "create demo");
    let error = CatalogError::RequestReused { id: "create demo".to_owned() };
    assert_eq!(apply(&mut state, reused), Err(error));

    let request = delete(&state, "demo", "d");
    let deleted = apply(&mut state, request.clone());
    assert_eq!(apply(&mut state, request), deleted);
    confirm_all(&mut state);
    let gone = CatalogError::NoSuchVolume { name: "demo".to_owned() };
    let request = delete(&state, "demo", "one more");
    assert_eq!(apply(&mut state, request), Err(gone));
    assert_eq!(apply(&mut state, join(2)), Ok(Outcome::Pod(PodId(2))), "a pod that joins again");
}

#[test]
fn answers_are_kept_for_a_time_and_not_for_ever() {
    let mut state = cluster(1);
    let request = |number: usize| CatalogCommand::CreateVolume {
        request_id: number.to_string(),
        volume: new_volume("demo", 4096, 4096, 1),
        placement: Placement { disks: vec![Uuid([1; 16])], shards: vec![vec![0]] },
    };
    for number in 0..3000 {
        state.apply(5_000, request(number)).outcome.unwrap();
    }
    assert_eq!(state.answered.len(), 3000, "they are young");
    let later = 5_000 + REQUESTS_KEPT_MS;
    for number in 3000..4000 {
        state.apply(later, request(number)).outcome.unwrap();
    }
    assert_eq!(state.answered.len(), REQUESTS_KEPT);
    assert!(state.answered("3999").is_some() && state.answered("0").is_none());
    state.check_invariants();
}

#[test]
fn a_deleted_volume_is_forgotten_when_every_disk_gave_it_up() {
    let mut state = cluster(3);
    for (name, size_bytes) in [("demo", 10 * GIB), ("other", GIB)] {
        let command = create(&state, name, size_bytes, 3);
        apply(&mut state, command).unwrap();
    }
    let request = delete(&state, "demo", "");
    apply(&mut state, request).unwrap();
    let destroyed = doomed(&state);
    assert_eq!(destroyed.values().map(Vec::len).sum::<usize>(), 9, "3 shards, 3 replicas");
    for (index, (disk, members)) in destroyed.into_iter().enumerate() {
        assert_eq!(state.volumes.len(), 2, "after {index} disks");
        assert!(view(&state).volumes.iter().any(|volume| volume.deleting));
        apply(&mut state, CatalogCommand::Destroyed { disk, members }).unwrap();
        state.check_invariants();
    }
    assert_eq!((state.volumes.len(), state.shards.len()), (1, 1));
    assert!(view(&state).destroyed.is_empty());
}

/// A member of a volume in use is said to be destroyed: by mistake, or by an old report.
#[test]
fn only_what_was_to_be_destroyed_counts_as_destroyed() {
    let mut state = cluster(3);
    let command = create(&state, "demo", GIB, 3);
    apply(&mut state, command).unwrap();
    let before = state.clone();
    for (disk, held) in before.index.held.iter() {
        let members = held.members.keys().copied().collect();
        apply(&mut state, CatalogCommand::Destroyed { disk: *disk, members }).unwrap();
    }
    assert_eq!(state, before);
}

#[test]
fn a_volume_is_being_created_until_it_was_said_that_it_serves() {
    let mut state = cluster(3);
    let command = create(&state, "demo", GIB, 3);
    let Ok(Outcome::Volume(volume)) = apply(&mut state, command) else { panic!("it is created") };
    assert!(state.volumes[&volume].creating && state.index.creating.contains(&volume));
    let created = CatalogCommand::Created { volumes: vec![volume, VolumeId(99)] };
    apply(&mut state, created.clone()).unwrap();
    assert!(!state.volumes[&volume].creating && state.index.creating.is_empty());
    let revision = state.revision();
    apply(&mut state, created).unwrap();
    assert_eq!(state.revision(), revision, "said twice");
}

/// A pod directory was copied, or a pod was made anew under the id of another.
#[test]
fn a_pod_with_another_identity_is_refused() {
    let mut state = cluster(2);
    let mut command = register(2, &[new_disk(2)]);
    if let CatalogCommand::Register { uid, .. } = &mut command {
        *uid = Uuid([77; 16]);
    }
    assert_eq!(apply(&mut state, command), Err(CatalogError::WrongPod { pod: PodId(2) }));
}

#[test]
fn differences_are_told_from_what_has_changed_lately() {
    let mut state = first_pod();
    let start = state.revision();
    assert_eq!(state.changed_since(start).unwrap().count(), 0);
    assert!(state.changed_since(start - 1).is_none(), "what led here is not remembered");
    apply(&mut state, join(2)).unwrap();
    apply(&mut state, register(2, &[new_disk(2)])).unwrap();
    let disk = RowKey::Disk(Uuid([2; 16]));
    let keys: BTreeSet<RowKey> = state.changed_since(start + 1).unwrap().cloned().collect();
    assert_eq!(keys, BTreeSet::from([RowKey::Head, disk, RowKey::Event(3)]));
    assert!(state.changed_since(start).unwrap().any(|key| *key == RowKey::Pod(PodId(2))));
}

#[test]
fn nonsense_changes_nothing() {
    let mut state = cluster(3);
    let command = create(&state, "demo", GIB, 3);
    apply(&mut state, command).unwrap();
    let good = create(&state, "x", GIB, 3);
    let with = |change: &dyn Fn(&mut NewVolume, &mut Placement)| {
        let mut command = good.clone();
        if let CatalogCommand::CreateVolume { volume, placement, .. } = &mut command {
            change(volume, placement);
        }
        command
    };
    let stranger = NewNode { name: "/".to_owned(), ..node(1) };
    let before = state.clone();
    for command in [
        with(&|volume, _| (volume.name, volume.size_bytes) = ("demo".to_owned(), 4096)),
        with(&|volume, _| volume.name = "-".to_owned()),
        with(&|volume, _| volume.class = "fast".to_owned()),
        with(&|volume, _| drop(volume.labels.insert(String::new(), String::new()))),
        with(&|volume, _| drop(volume.labels.insert("a".to_owned(), "b".repeat(254)))),
        with(&|volume, _| volume.size_bytes = 0),
        with(&|volume, _| volume.size_bytes += 1),
        with(&|volume, _| volume.size_bytes = u64::MAX - 4095),
        with(&|volume, _| volume.size_bytes = 100 * GIB),
        with(&|volume, _| volume.stripe_bytes = 0),
        with(&|volume, _| volume.stripe_bytes = 4097),
        with(&|volume, _| volume.replicas = 2),
        with(&|_, placement| placement.shards[0] = vec![0, 0, 1]),
        with(&|_, placement| placement.shards[0] = vec![0, 1]),
        with(&|_, placement| placement.shards[0] = vec![0, 1, 9]),
        with(&|_, placement| placement.disks[0] = Uuid([77; 16])),
        with(&|_, placement| placement.shards.clear()),
        delete(&state, "nothing", ""),
        register(9, &[]),
        CatalogCommand::Join {
            uid: Uuid([8; 16]),
            addresses: addresses(1),
            node: stranger,
            newest: NEWEST,
        },
        CatalogCommand::AddCatalogMembers { pods: vec![PodId(9)] },
    ] {
        assert!(apply(&mut state, command.clone()).is_err(), "{command:?}");
        assert_eq!(state, before, "{command:?}");
        assert_eq!(state.fingerprint(), before.fingerprint(), "{command:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Register { pod: u8, disk: u8 },
    Create { name: u8, gib: u64, replicas: u32 },
    Created(u64),
    Delete(u8),
    Retain(u8),
    Undelete(u8),
    Purge,
    Grow { name: u8, gib: u64 },
    Grown(u8),
    AccessIsSet { name: u8, shards: u64 },
    SetOpen(u8, bool),
    Publish { name: u8, node: u8 },
    Confirm { disk: u8, share: usize },
    AddMembers(u8),
    RemoveMember(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..9).prop_map(Step::Join),
        (1u8..9, 1u8..12).prop_map(|(pod, disk)| Step::Register { pod, disk }),
        (1u8..6, 1u64..20, prop::sample::select(vec![1u32, 3, 5]))
            .prop_map(|(name, gib, replicas)| Step::Create { name, gib, replicas }),
        (1u64..6).prop_map(Step::Created),
        (1u8..6).prop_map(Step::Delete),
        (1u8..6).prop_map(Step::Retain),
        (1u8..6).prop_map(Step::Undelete),
        Just(Step::Purge),
        (1u8..6, 1u64..40).prop_map(|(name, gib)| Step::Grow { name, gib }),
        (1u8..6).prop_map(Step::Grown),
        (1u8..6, 1u64..12).prop_map(|(name, shards)| Step::AccessIsSet { name, shards }),
        (1u8..6, any::<bool>()).prop_map(|(name, open)| Step::SetOpen(name, open)),
        (1u8..6, 1u8..4).prop_map(|(name, node)| Step::Publish { name, node }),
        (1u8..12, 1usize..4).prop_map(|(disk, share)| Step::Confirm { disk, share }),
        (1u8..9).prop_map(Step::AddMembers),
        (1u64..30).prop_map(Step::RemoveMember),
    ]
}

fn command_of(state: &CatalogState, step: &Step, at: usize) -> CatalogCommand {
    match step {
        Step::Join(pod) => join(*pod),
        Step::Register { pod, disk } => register(*pod, &[new_disk(*disk)]),
        Step::Create { name, gib, replicas } => {
            let name = format!("v{name}");
            under(create(state, &name, gib * GIB, *replicas), &at.to_string())
        }
        Step::Created(volume) => CatalogCommand::Created { volumes: vec![VolumeId(*volume)] },
        Step::Delete(name) => delete(state, &format!("v{name}"), &at.to_string()),
        Step::Retain(name) => {
            let mut command = delete(state, &format!("v{name}"), &at.to_string());
            if let CatalogCommand::DeleteVolume { how, .. } = &mut command {
                *how = Deletion { force: true, retention_ms: 10, purge: false };
            }
            command
        }
        Step::Undelete(name) => {
            let (volume, name) = (id_of(state, *name), format!("v{name}"));
            CatalogCommand::UndeleteVolume { request_id: at.to_string(), name, volume }
        }
        Step::Purge => {
            let first = state.index.purges.first().copied();
            let (purge_ms, volume) = first.unwrap_or((0, VolumeId(0)));
            CatalogCommand::PurgeVolume { volume, purge_ms }
        }
        Step::Grow { name, gib } => grow(state, &format!("v{name}"), gib * GIB, &at.to_string()),
        Step::Grown(name) => {
            let volume = id_of(state, *name);
            let row = state.volumes.get(&volume);
            let size_bytes = row.map_or(0, |row| row.wanted_bytes());
            let generation = row.map_or(Generation(0), |row| row.access.wanted);
            CatalogCommand::Grown { volume, size_bytes, generation }
        }
        Step::AccessIsSet { name, shards } => {
            let volume = id_of(state, *name);
            let generation =
                state.volumes.get(&volume).map_or(Generation(0), |row| row.access.wanted);
            CatalogCommand::AccessIsSet { volume, generation, shards: *shards }
        }
        Step::SetOpen(name, open) => CatalogCommand::SetOpen {
            request_id: String::new(),
            volume: id_of(state, *name),
            open: *open,
        },
        Step::Publish { name, node } => CatalogCommand::Publish {
            request_id: String::new(),
            volume: id_of(state, *name),
            node: format!("node-{node}"),
            mode: AccessMode::Raw,
            io_timeout_ms: None,
            uid: Uuid((at as u128).to_be_bytes()),
        },
        Step::Confirm { disk, share } => {
            let disk = Uuid([*disk; 16]);
            let members = doomed(state).remove(&disk).unwrap_or_default();
            let members = members.into_iter().step_by(*share).collect();
            CatalogCommand::Destroyed { disk, members }
        }
        Step::AddMembers(pod) => {
            CatalogCommand::AddCatalogMembers { pods: vec![PodId((*pod).into())] }
        }
        Step::RemoveMember(member) => {
            CatalogCommand::RemoveCatalogMember { member: MemberId(*member) }
        }
    }
}

fn id_of(state: &CatalogState, name: u8) -> VolumeId {
    state.volume_by_name(&format!("v{name}")).map_or(VolumeId(0), |(volume, _)| volume)
}

/// All members of shards and of the catalog.
fn members(state: &CatalogState) -> BTreeSet<MemberId> {
    let shards = state.shards.values().flat_map(|shard| &shard.members);
    shards.map(|member| member.member).chain(state.catalog.keys().copied()).collect()
}

proptest! {
    /// A command that moves a disk may put two replicas of a shard on one pod; nothing else may.
    #[test]
    fn whatever_happens_the_invariants_hold(steps in prop::collection::vec(step(), 1..80)) {
        let mut state = cluster(3);
        let mut copy = state.clone();
        let mut rows: BTreeMap<RowKey, Bytes> = state.rows().collect();
        let mut given = BTreeSet::new();
        for (at, step) in steps.iter().enumerate() {
            let before = state.clone();
            let command = command_of(&state, step, at);
            let applied = state.apply(at as u64, command.clone());
            state.check_invariants();
            prop_assert_eq!(state.revision() > before.revision(), state != before);
            prop_assert_eq!(applied.changes.is_empty(), state == before);

            // The changed rows add up to the state, from which a restarted member goes on.
            for change in &applied.changes {
                match &change.row {
                    Some(row) => drop(rows.insert(change.key.clone(), row.clone())),
                    None => drop(rows.remove(&change.key)),
                }
            }
            prop_assert!(state.rows().eq(rows.clone()));
            prop_assert_eq!(copy.fingerprint(), before.fingerprint());
            let read: CatalogCommand = decode(&encode(&command)).unwrap();
            prop_assert_eq!(copy.apply(at as u64, read), applied.clone());
            copy = CatalogState::from_rows(rows.clone()).unwrap();
            prop_assert_eq!(&copy, &state);
            prop_assert_eq!(copy.fingerprint(), state.fingerprint());

            for member in members(&state).difference(&members(&before)) {
                prop_assert!(given.insert(*member), "member {} is given twice", member);
            }
            if let (Step::Create { .. }, Ok(Outcome::Volume(id))) = (step, applied.outcome)
                && !before.volumes.contains_key(&id)
            {
                for (_, shard) in state.shards_of(&state.volumes[&id]) {
                    let pods: BTreeSet<PodId> =
                        shard.members.iter().map(|member| state.disks[&member.disk].pod).collect();
                    prop_assert_eq!(pods.len(), shard.members.len());
                }
            }
        }

        // All volumes are deleted, and every disk confirms it: no member remains.
        let names: Vec<String> = state.volumes.values().map(|it| it.name.clone()).collect();
        for name in names {
            let mut command = delete(&state, &name, "");
            if let CatalogCommand::DeleteVolume { how, .. } = &mut command {
                how.force = true;
            }
            apply(&mut state, command).unwrap();
        }
        confirm_all(&mut state);
        state.check_invariants();
        prop_assert!(state.volumes.is_empty() && state.shards.is_empty());
        prop_assert!(state.index.held.is_empty() && state.index.deleting.is_empty());
        prop_assert!(state.index.growing.is_empty() && state.index.purges.is_empty());
    }
}
