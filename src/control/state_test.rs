use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::control::command::{decode, encode};
use crate::control::placement::{Candidate, layout, place};

const GIB: u64 = 1 << 30;

fn addresses(port: u16) -> Addresses {
    let at = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    Addresses { api: at(port), peer: at(port + 1), nbd: Some(at(port + 2)) }
}

fn new_disk(number: u8) -> NewDisk {
    let disk = Uuid([number; 16]);
    NewDisk { disk, path: format!("/disk-{number}"), capacity_bytes: 1 << 40 }
}

/// `count` pods with one disk each.
fn cluster(count: u8) -> CatalogState {
    let mut state = CatalogState::new(Uuid([9; 16]), Uuid([1; 16]), addresses(1000));
    for number in 1..=count {
        let join_id = Uuid([number; 16]);
        let addresses = addresses(1000 * u16::from(number));
        let joined = state.apply(CatalogCommand::Join { join_id, addresses }).unwrap();
        assert_eq!(joined, Outcome::Pod(PodId(number.into())));
        let (pod, disks) = (PodId(number.into()), vec![new_disk(number)]);
        state.apply(CatalogCommand::Register { pod, addresses, disks }).unwrap();
    }
    state
}

fn create(state: &CatalogState, name: &str, size_bytes: u64, replicas: u32) -> CatalogCommand {
    let counts = state.members_per_disk();
    let candidates: Vec<Candidate> = state
        .disks
        .iter()
        .map(|(disk, record)| Candidate {
            disk: *disk,
            pod: record.pod,
            free_bytes: 1 << 40,
            members: counts.get(disk).copied().unwrap_or(0),
            firsts: 0,
        })
        .collect();
    let (stripe_bytes, shards) = layout(size_bytes);
    CatalogCommand::CreateVolume {
        request_id: format!("create {name}"),
        name: name.to_owned(),
        size_bytes,
        stripe_bytes,
        placement: place(name, shards, replicas, &candidates, "").unwrap_or_default(),
    }
}

/// Deletes the volume that has this name now.
fn delete(state: &CatalogState, name: &str, request_id: &str) -> CatalogCommand {
    let (request_id, name) = (request_id.to_owned(), name.to_owned());
    let volume = state.volume_by_name(&name).map_or(VolumeId(0), |(volume, _)| volume);
    CatalogCommand::DeleteVolume { request_id, name, volume }
}

/// The request to delete a volume arrives when another volume has its name.
#[test]
fn a_late_request_does_not_delete_another_volume_of_the_same_name() {
    let mut state = cluster(3);
    let make = |state: &mut CatalogState, id: &str| {
        let mut command = create(state, "demo", GIB, 3);
        let CatalogCommand::CreateVolume { request_id, .. } = &mut command else { unreachable!() };
        *request_id = id.to_owned();
        match state.apply(command).unwrap() {
            Outcome::Volume(volume) => volume,
            other => panic!("{other:?}"),
        }
    };
    let delete = |id: &str, volume| CatalogCommand::DeleteVolume {
        request_id: id.to_owned(),
        name: "demo".to_owned(),
        volume,
    };
    let first = make(&mut state, "make 1");
    state.apply(delete("delete 1", first)).unwrap();
    let second = make(&mut state, "make 2");
    let error = state.apply(delete("late", first)).unwrap_err();
    assert_eq!(error, CatalogError::NoSuchVolume { name: "demo".to_owned() });
    assert_eq!(state.volume_by_name("demo").unwrap().0, second);
    // A request that was carried out is answered as before.
    assert_eq!(state.apply(delete("delete 1", VolumeId(0))), Ok(Outcome::Volume(first)));
    state.apply(delete("delete 2", second)).unwrap();
    state.check_invariants();
}

#[test]
fn a_request_that_is_sent_again_is_carried_out_once() {
    let mut state = cluster(3);
    let command = create(&state, "demo", 10 * GIB, 3);
    let first = state.apply(command.clone());
    assert!(matches!(first, Ok(Outcome::Volume(_))));
    let after = state.clone();
    assert_eq!(state.apply(command), first);
    assert_eq!(state, after);

    let deleted = state.apply(delete(&state, "demo", "d"));
    assert_eq!(state.apply(delete(&state, "demo", "d")), deleted);
    let gone = CatalogError::NoSuchVolume { name: "demo".to_owned() };
    assert_eq!(state.apply(delete(&state, "demo", "another")), Err(gone));

    let join = CatalogCommand::Join { join_id: Uuid([2; 16]), addresses: addresses(7) };
    assert_eq!(state.apply(join), Ok(Outcome::Pod(PodId(2))), "a pod that joins again");
}

#[test]
fn a_deleted_volume_is_forgotten_when_every_disk_gave_it_up() {
    let mut state = cluster(3);
    state.apply(create(&state, "demo", 10 * GIB, 3)).unwrap();
    state.apply(create(&state, "other", GIB, 3)).unwrap();
    state.apply(delete(&state, "demo", "")).unwrap();
    // The name is free at once.
    let mut again = create(&state, "demo", GIB, 1);
    if let CatalogCommand::CreateVolume { request_id, .. } = &mut again {
        request_id.clear();
    }
    state.apply(again).unwrap();

    let destroyed = state.destroyed.clone();
    assert_eq!(destroyed.values().map(BTreeSet::len).sum::<usize>(), 9, "3 shards, 3 replicas");
    for (index, (disk, members)) in destroyed.into_iter().enumerate() {
        assert_eq!(state.volumes.len(), 3, "after {index} disks");
        assert!(state.view().volumes.iter().any(|volume| volume.deleting));
        let members: Vec<MemberId> = members.into_iter().collect();
        state.apply(CatalogCommand::Destroyed { disk, members }).unwrap();
        state.check_invariants();
    }
    assert_eq!(state.volumes.len(), 2);
    assert!(state.destroyed.is_empty());
    assert!(state.volumes.values().all(|volume| !volume.deleting));
}

#[test]
fn a_volume_is_being_created_until_it_was_said_that_it_serves() {
    let mut state = cluster(3);
    let Ok(Outcome::Volume(volume)) = state.apply(create(&state, "demo", GIB, 3)) else {
        panic!("it is created")
    };
    assert!(state.volumes[&volume].creating);
    let created = CatalogCommand::Created { volumes: vec![volume, VolumeId(99)] };
    state.apply(created.clone()).unwrap();
    assert!(!state.volumes[&volume].creating);
    let revision = state.revision;
    state.apply(created).unwrap();
    assert_eq!(state.revision, revision, "said twice");
}

#[test]
fn nonsense_changes_nothing() {
    let mut state = cluster(3);
    state.apply(create(&state, "demo", GIB, 3)).unwrap();
    let good = create(&state, "x", GIB, 3);
    let with = |change: &dyn Fn(&mut String, &mut u64, &mut u64, &mut Placement)| {
        let mut command = good.clone();
        if let CatalogCommand::CreateVolume { name, size_bytes, stripe_bytes, placement, .. } =
            &mut command
        {
            change(name, size_bytes, stripe_bytes, placement);
        }
        command
    };
    let before = state.clone();
    for command in [
        with(&|name, _, _, _| *name = "demo".to_owned()),
        with(&|name, _, _, _| *name = "-".to_owned()),
        with(&|_, size, _, _| *size = 0),
        with(&|_, size, _, _| *size += 1),
        with(&|_, size, _, _| *size = u64::MAX - 4095),
        with(&|_, size, _, _| *size = 100 * GIB),
        with(&|_, _, stripe, _| *stripe = 0),
        with(&|_, _, stripe, _| *stripe = 4097),
        with(&|_, _, _, placement| placement.shards[0] = vec![0, 0, 1]),
        with(&|_, _, _, placement| placement.shards[0] = vec![0, 1]),
        with(&|_, _, _, placement| placement.shards[0] = vec![0, 1, 9]),
        with(&|_, _, _, placement| placement.disks[0] = Uuid([77; 16])),
        with(&|_, _, _, placement| placement.shards.clear()),
        delete(&state, "nothing", ""),
        CatalogCommand::Register { pod: PodId(9), addresses: addresses(1), disks: vec![] },
        CatalogCommand::AddCatalogMembers { pods: vec![PodId(9)] },
    ] {
        assert!(state.apply(command.clone()).is_err(), "{command:?}");
        assert_eq!(state, before, "{command:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Register { pod: u8, disk: u8 },
    Create { name: u8, gib: u64, replicas: u32 },
    Created(u64),
    Delete(u8),
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
        (1u8..12, 1usize..4).prop_map(|(disk, share)| Step::Confirm { disk, share }),
        (1u8..9).prop_map(Step::AddMembers),
        (1u64..30).prop_map(Step::RemoveMember),
    ]
}

fn command_of(state: &CatalogState, step: &Step, at: usize) -> CatalogCommand {
    match step {
        Step::Join(pod) => CatalogCommand::Join {
            join_id: Uuid([*pod; 16]),
            addresses: addresses(u16::from(*pod)),
        },
        Step::Register { pod, disk } => CatalogCommand::Register {
            pod: PodId(u64::from(*pod)),
            addresses: addresses(u16::from(*pod)),
            disks: vec![new_disk(*disk)],
        },
        Step::Create { name, gib, replicas } => {
            let mut command = create(state, &format!("v{name}"), gib * GIB, *replicas);
            if let CatalogCommand::CreateVolume { request_id, .. } = &mut command {
                *request_id = at.to_string();
            }
            command
        }
        Step::Created(volume) => CatalogCommand::Created { volumes: vec![VolumeId(*volume)] },
        Step::Delete(name) => delete(state, &format!("v{name}"), &at.to_string()),
        Step::Confirm { disk, share } => {
            let disk = Uuid([*disk; 16]);
            let members = state.destroyed.get(&disk).into_iter().flatten();
            CatalogCommand::Destroyed { disk, members: members.step_by(*share).copied().collect() }
        }
        Step::AddMembers(pod) => {
            CatalogCommand::AddCatalogMembers { pods: vec![PodId((*pod).into())] }
        }
        Step::RemoveMember(member) => {
            CatalogCommand::RemoveCatalogMember { member: MemberId(*member) }
        }
    }
}

proptest! {
    /// A command that moves a disk may put two replicas of a shard on one pod; nothing else may.
    #[test]
    fn whatever_happens_the_invariants_hold(steps in prop::collection::vec(step(), 1..80)) {
        let mut state = cluster(3);
        let mut copy = state.clone();
        let mut given = BTreeSet::new();
        for (at, step) in steps.iter().enumerate() {
            let before = state.clone();
            let command = command_of(&state, step, at);
            let outcome = state.apply(command.clone());
            state.check_invariants();
            prop_assert_eq!(state.revision > before.revision, state != before);

            // Another member, which reads the command from its log, reaches the same state.
            let read: CatalogCommand = decode(&encode(&command)).unwrap();
            prop_assert_eq!(copy.apply(read), outcome.clone());
            copy = decode(&encode(&copy)).unwrap();
            prop_assert_eq!(&copy, &state);

            let fresh = |state: &CatalogState| -> BTreeSet<MemberId> {
                let shards = state.volumes.values().flat_map(|volume| &volume.shards);
                let members = shards.flat_map(|shard| &shard.members).map(|member| member.member);
                members.chain(state.catalog.keys().copied()).collect()
            };
            let had = fresh(&before);
            for member in fresh(&state).difference(&had) {
                prop_assert!(given.insert(*member), "member {} is given twice", member);
            }
            if let (Step::Create { .. }, Ok(Outcome::Volume(id))) = (step, outcome) {
                for shard in &state.volumes[&id].shards {
                    let pods: BTreeSet<PodId> =
                        shard.members.iter().map(|member| state.disks[&member.disk].pod).collect();
                    prop_assert_eq!(pods.len(), shard.members.len());
                }
            }
        }

        // All volumes are deleted, and every disk confirms it: no member remains.
        let names: Vec<String> = state.volumes.values().map(|it| it.name.clone()).collect();
        for name in names {
            // Volumes that are being deleted have given up their names.
            let _deleting = state.apply(delete(&state, &name, "")).is_err();
        }
        for (disk, members) in state.destroyed.clone() {
            let members = members.into_iter().collect();
            state.apply(CatalogCommand::Destroyed { disk, members }).unwrap();
        }
        state.check_invariants();
        prop_assert!(state.volumes.is_empty() && state.destroyed.is_empty());
    }
}
