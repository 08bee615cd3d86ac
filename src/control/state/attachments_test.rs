use proptest::prelude::*;

use super::*;
use crate::control::command::{CatalogCommand, Deletion, NewNode};
use crate::control::state::CatalogState;
use crate::control::state::view::view;
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{apply, closed, cluster, create_on, node, register};
use crate::types::{AccessSet, Grant};

const VOLUME: VolumeId = VolumeId(1);

fn publish(node: u8, mode: AccessMode, uid: u8) -> CatalogCommand {
    let (node, uid) = (format!("node-{node}"), Uuid([uid; 16]));
    CatalogCommand::Publish {
        request_id: String::new(),
        volume: VOLUME,
        node,
        mode,
        io_timeout_ms: None,
        uid,
    }
}

/// The same with a timeout for I/O.
fn timed(mut command: CatalogCommand, ms: u64) -> CatalogCommand {
    if let CatalogCommand::Publish { io_timeout_ms, .. } = &mut command {
        *io_timeout_ms = Some(ms);
    }
    command
}

#[test]
fn io_has_the_timeout_of_the_class_or_of_the_attachment() {
    let mut state = cluster(3);
    let mut create = create_on("demo", &[1, 2, 3]);
    if let CatalogCommand::CreateVolume { volume, .. } = &mut create {
        (volume.open, volume.io_timeout_ms) = (false, 30_000);
    }
    apply(&mut state, create).unwrap();
    apply(&mut state, publish(1, AccessMode::Raw, 1)).unwrap();
    apply(&mut state, timed(publish(2, AccessMode::Raw, 2), 5_000)).unwrap();
    apply(&mut state, timed(publish(3, AccessMode::Raw, 3), 0)).unwrap();
    apply(&mut state, confirm(3)).unwrap();
    let timeouts = |state: &CatalogState| {
        let view = view(state);
        let ms = |attachment: u64| {
            let timeout = view.volumes[0].io_timeout(AttachmentId(attachment));
            timeout.map_or(0, |timeout| timeout.as_millis())
        };
        [0, 1, 2, 3].map(ms)
    };
    assert_eq!(timeouts(&state), [30_000, 30_000, 5_000, 0]);
    // To publish again says nothing of it, or changes it, and is no other attachment.
    let before = state.revision();
    apply(&mut state, publish(2, AccessMode::Raw, 4)).unwrap();
    assert_eq!(state.revision(), before);
    let again = apply(&mut state, timed(publish(3, AccessMode::Raw, 4), 9_000));
    assert_eq!(again, Ok(Outcome::Attachment(VOLUME, AttachmentId(3))));
    assert_eq!(timeouts(&state), [30_000, 30_000, 5_000, 9_000]);
    for bad in [1, 999, 24 * 3600 * 1000 + 1] {
        let refused = apply(&mut state, timed(publish(3, AccessMode::Raw, 4), bad));
        assert_eq!(refused, Err(CatalogError::BadIoTimeout));
    }
}

fn unpublish(node: u8) -> CatalogCommand {
    let (request_id, node) = (String::new(), format!("node-{node}"));
    CatalogCommand::Unpublish { request_id, volume: VOLUME, node }
}

fn confirm(generation: u64) -> CatalogCommand {
    let generation = Generation(generation);
    CatalogCommand::AccessIsSet { volume: VOLUME, generation, shards: 1 }
}

fn wanted(state: &CatalogState) -> AccessSet {
    state.access_of(VOLUME)
}

fn set(generation: u64, ids: &[u64]) -> AccessSet {
    let grant = |id: &u64| Grant { attachment: AttachmentId(*id), mode: AccessMode::ReadWrite };
    let grants = ids.iter().map(grant).collect();
    AccessSet { generation: Generation(generation), open: false, grants }
}

/// The attachments that the data path serves.
fn served(state: &CatalogState) -> Vec<u64> {
    view(state).volumes[0].attachments.iter().map(|it| it.id.0).collect()
}

const RWO: AccessMode = AccessMode::ReadWrite;

/// The call was repeated, and its first attempt comes last.
#[test]
fn a_publish_that_comes_late_gives_nobody_the_volume_again() {
    let mut state = closed();
    let mut late = publish(1, RWO, 1);
    if let CatalogCommand::Publish { request_id, .. } = &mut late {
        *request_id = "one request".to_owned();
    }
    let first = apply(&mut state, late.clone());
    assert_eq!(first, Ok(Outcome::Attachment(VOLUME, AttachmentId(1))));
    for command in [confirm(1), unpublish(1), confirm(2)] {
        apply(&mut state, command).unwrap();
    }
    assert_eq!(apply(&mut state, late), first);
    assert_eq!(state.attachments_of(VOLUME).count(), 0);
    apply(&mut state, publish(2, RWO, 2)).unwrap();
}

#[test]
fn an_unpublish_that_comes_late_takes_nothing_that_the_node_has_anew() {
    let mut state = closed();
    apply(&mut state, publish(1, RWO, 1)).unwrap();
    let mut late = unpublish(1);
    if let CatalogCommand::Unpublish { request_id, .. } = &mut late {
        *request_id = "one request".to_owned();
    }
    for command in [confirm(1), late.clone(), confirm(2), publish(1, RWO, 2), confirm(3)] {
        apply(&mut state, command).unwrap();
    }
    assert_eq!(served(&state), [3]);
    assert_eq!(apply(&mut state, late), Ok(Outcome::Done));
    assert_eq!((served(&state), wanted(&state)), (vec![3], set(3, &[3])));
    apply(&mut state, unpublish(1)).unwrap();
    assert!(served(&state).is_empty(), "another request");
}

#[test]
fn a_volume_goes_from_one_node_to_the_next_in_one_round() {
    let mut state = closed();
    assert!(state.index.access_changing.is_empty(), "it is closed from birth");
    let first = Outcome::Attachment(VOLUME, AttachmentId(1));
    assert_eq!(apply(&mut state, publish(1, RWO, 11)), Ok(first));
    assert_eq!(apply(&mut state, publish(1, RWO, 12)), Ok(first), "it is repeated");
    assert_eq!((wanted(&state), served(&state)), (set(1, &[1]), vec![]));
    let held = CatalogError::Held { name: "demo".to_owned(), holder: "node-1".to_owned() };
    assert_eq!(apply(&mut state, publish(2, RWO, 13)), Err(held));
    apply(&mut state, confirm(1)).unwrap();
    assert_eq!(served(&state), [1]);
    assert!(state.index.access_changing.is_empty());

    // The first one ends, and the second comes, before any shard knows.
    apply(&mut state, unpublish(1)).unwrap();
    assert!(served(&state).is_empty(), "its front ends stop at once");
    let second = Outcome::Attachment(VOLUME, AttachmentId(3));
    assert_eq!(apply(&mut state, publish(2, RWO, 13)), Ok(second));
    assert_eq!(wanted(&state), set(3, &[3]), "one round fences and admits");
    // A round that was on its way ends: it knows nothing of the second.
    apply(&mut state, confirm(2)).unwrap();
    assert!(served(&state).is_empty());
    assert_eq!(state.attachments.len(), 1, "the first is fenced everywhere");
    apply(&mut state, confirm(3)).unwrap();
    assert_eq!(served(&state), [3]);
    apply(&mut state, confirm(2)).unwrap();
    apply(&mut state, confirm(9)).unwrap();
    assert_eq!(state.volumes[&VOLUME].access.applied, Generation(3), "nothing goes back or ahead");
}

#[test]
fn an_attachment_counts_only_when_every_shard_knows_it() {
    assert_found(Mistake::ActiveEarly, a_volume_goes_from_one_node_to_the_next_in_one_round);
}

/// A node is not wanted any more while the round that admits it is in flight: shards have it when
/// that ends.
fn an_attachment_is_kept_until_every_shard_is_without_it() {
    let mut state = closed();
    apply(&mut state, publish(1, RWO, 1)).unwrap();
    apply(&mut state, unpublish(1)).unwrap();
    apply(&mut state, confirm(1)).unwrap();
    assert_eq!(state.attachments.len(), 1, "every shard admits it");
    apply(&mut state, confirm(2)).unwrap();
    assert_eq!(state.attachments.len(), 0);
}

#[test]
fn an_attachment_is_forgotten_when_every_shard_is_without_it() {
    an_attachment_is_kept_until_every_shard_is_without_it();
    let scenario = an_attachment_is_kept_until_every_shard_is_without_it;
    assert_found(Mistake::ForgottenEarly, scenario);
}

#[test]
fn many_may_read_and_many_may_share_and_nobody_mixes() {
    for mode in [AccessMode::ReadOnly, AccessMode::Raw] {
        let mut state = closed();
        apply(&mut state, publish(1, mode, 11)).unwrap();
        apply(&mut state, publish(2, mode, 12)).unwrap();
        assert!(apply(&mut state, publish(3, RWO, 13)).is_err());
        let other = CatalogError::OtherMode { node: "node-1".to_owned() };
        assert_eq!(apply(&mut state, publish(1, RWO, 14)), Err(other));
        apply(&mut state, unpublish(1)).unwrap();
        assert_eq!(wanted(&state).grants.len(), 1, "fencing one leaves the others");
    }
}

#[test]
fn a_volume_is_open_or_has_attachments() {
    let mut state = cluster(3);
    apply(&mut state, create_on("demo", &[1, 2, 3])).unwrap();
    assert!(apply(&mut state, publish(1, RWO, 11)).is_err());
    let open = |open| CatalogCommand::SetOpen { request_id: String::new(), volume: VOLUME, open };
    apply(&mut state, open(false)).unwrap();
    assert_eq!(wanted(&state), set(1, &[]));
    assert!(!view(&state).volumes[0].open, "it is closed by its name at once");
    apply(&mut state, publish(1, RWO, 11)).unwrap();
    assert!(apply(&mut state, open(true)).is_err());
}

#[test]
fn a_volume_in_use_is_deleted_by_force_only() {
    let mut state = closed();
    apply(&mut state, publish(1, RWO, 11)).unwrap();
    let delete = |force| {
        let (request_id, name) = (String::new(), "demo".to_owned());
        let how = Deletion { force, ..Deletion::default() };
        CatalogCommand::DeleteVolume { request_id, name, volume: VOLUME, how }
    };
    assert!(matches!(apply(&mut state, delete(false)), Err(CatalogError::Held { .. })));
    apply(&mut state, delete(true)).unwrap();
    assert!(state.index.access_changing.is_empty(), "nothing is asked of its shards");
    for (disk, member) in view(&state).destroyed {
        let members = vec![member];
        apply(&mut state, CatalogCommand::Destroyed { disk, members }).unwrap();
    }
    assert!(state.attachments.is_empty() && state.index.attachments_by_node.is_empty());
}

#[test]
fn a_lost_node_loses_its_volumes_until_it_starts_anew() {
    let mut state = closed();
    apply(&mut state, publish(1, RWO, 11)).unwrap();
    apply(&mut state, confirm(1)).unwrap();
    let lost = |boot_id: &str| CatalogCommand::DeclareLost {
        node: "node-1".to_owned(),
        boot_id: boot_id.to_owned(),
    };
    let late = CatalogError::NodeRebooted { node: "node-1".to_owned() };
    assert_eq!(apply(&mut state, lost("an older boot")), Err(late));
    apply(&mut state, lost("boot")).unwrap();
    assert_eq!((wanted(&state), served(&state)), (set(2, &[]), vec![]));
    apply(&mut state, confirm(2)).unwrap();
    assert!(state.attachments.is_empty());
    let barred = CatalogError::NodeLost { node: "node-1".to_owned() };
    assert_eq!(apply(&mut state, publish(1, RWO, 12)), Err(barred));
    let mut back = register(1, &[]);
    if let CatalogCommand::Register { node: named, .. } = &mut back {
        *named = NewNode { boot_id: "next boot".to_owned(), ..node(1) };
    }
    apply(&mut state, back).unwrap();
    apply(&mut state, publish(1, RWO, 12)).unwrap();
}

/// The catalog was restored from a copy that does not know of the newest attachments.
#[test]
fn what_a_restored_catalog_believes_to_be_attached_ends() {
    let mut state = closed();
    apply(&mut state, publish(1, RWO, 11)).unwrap();
    apply(&mut state, confirm(1)).unwrap();
    let outdone = |asked, seen| CatalogCommand::AccessOutdone {
        volume: VOLUME,
        asked: Generation(asked),
        seen: Generation(seen),
    };
    // A round from before, which ends late, meets what this catalog itself gave since.
    apply(&mut state, outdone(0, 1)).unwrap();
    assert_eq!(served(&state), [1], "nobody loses a volume to it");
    apply(&mut state, outdone(1, 7)).unwrap();
    assert!(served(&state).is_empty());
    assert!(wanted(&state).generation > Generation(7) && wanted(&state).grants.is_empty());
    let next = apply(&mut state, publish(2, RWO, 12)).unwrap();
    let Outcome::Attachment(_, id) = next else { panic!("{next:?}") };
    assert!(id.0 > 7, "an id that was fenced never comes back");
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8, usize),
    Unpublish(u8),
    Lost(u8),
    Confirm(u64),
    ConfirmAll,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..4, 0usize..3).prop_map(|(node, mode)| Step::Publish(node, mode)),
        (1u8..4).prop_map(Step::Unpublish),
        (1u8..4).prop_map(Step::Lost),
        (0u64..20).prop_map(Step::Confirm),
        Just(Step::ConfirmAll),
    ]
}

proptest! {
    /// Whatever is asked for in whatever order: nobody is served beside a writer, and nobody before
    /// every shard knows.
    #[test]
    fn a_writer_is_alone(steps in prop::collection::vec(step(), 1..60)) {
        let mut state = closed();
        let modes = [RWO, AccessMode::ReadOnly, AccessMode::Raw];
        let mut given = std::collections::BTreeSet::new();
        for (at, step) in steps.into_iter().enumerate() {
            let command = match step {
                Step::Publish(node, mode) => publish(node, modes[mode], at as u8 + 100),
                Step::Unpublish(node) => unpublish(node),
                Step::Lost(node) => CatalogCommand::DeclareLost {
                    node: format!("node-{node}"),
                    boot_id: "boot".to_owned(),
                },
                Step::Confirm(generation) => confirm(generation),
                Step::ConfirmAll => confirm(wanted(&state).generation.0),
            };
            let before: Vec<AttachmentKey> = state.attachments.keys().copied().collect();
            // Some are refused, and change nothing.
            let _outcome = apply(&mut state, command);
            for key in state.attachments.keys().filter(|key| !before.contains(key)) {
                prop_assert!(given.insert(*key), "an id is given once");
            }
            let volume = &view(&state).volumes[0];
            let writers = volume.attachments.iter().filter(|it| it.mode == RWO).count();
            prop_assert!(writers == 0 || volume.attachments.len() == 1);
            let applied = state.volumes[&VOLUME].access.applied;
            prop_assert!(volume.attachments.iter().all(|it| it.id.0 <= applied.0));
            prop_assert!(wanted(&state).is_valid());
        }
    }
}
