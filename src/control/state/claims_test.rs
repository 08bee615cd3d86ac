use proptest::prelude::*;

use super::*;
use crate::control::command::{CatalogCommand, NewNode};
use crate::control::state::CatalogState;
use crate::control::state::rebirth::Rebirth;
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{apply, closed};
use crate::types::{FileSystemKind, Generation, PodId};

const VOLUME: VolumeId = VolumeId(1);

fn named(node: u8) -> String {
    format!("node-{node}")
}

fn publish(state: &mut CatalogState, node: u8, mode: AccessMode, uid: u8) {
    let command = CatalogCommand::Publish {
        request_id: String::new(),
        volume: VOLUME,
        node: named(node),
        mode,
        io_timeout_ms: None,
        uid: Uuid([uid; 16]),
    };
    apply(state, command).unwrap();
}

/// Every shard has the access set that is wanted.
fn confirm(state: &mut CatalogState) {
    let generation: Generation = state.volumes[&VOLUME].access.wanted;
    apply(state, CatalogCommand::AccessIsSet { volume: VOLUME, generation, shards: 1 }).unwrap();
}

fn claim(node: u8, boot_id: &str) -> CatalogCommand {
    CatalogCommand::Claim { volume: VOLUME, node: named(node), boot_id: boot_id.to_owned() }
}

fn record(node: u8, uid: u8, kind: FileSystemKind, made: bool) -> CatalogCommand {
    let (volume, attachment) = (VOLUME, Uuid([uid; 16]));
    CatalogCommand::RecordFileSystem { volume, node: named(node), attachment, kind, made }
}

#[test]
fn a_claim_finds_the_attachment_of_a_node_that_has_it() {
    let mut state = closed();
    let not_published = |outcome: Result<Outcome, CatalogError>| {
        assert!(matches!(outcome, Err(CatalogError::NotPublished { .. })), "{outcome:?}");
    };
    not_published(apply(&mut state, claim(1, "boot")));
    publish(&mut state, 1, AccessMode::ReadWrite, 1);
    not_published(apply(&mut state, claim(1, "boot")));
    confirm(&mut state);
    not_published(apply(&mut state, claim(2, "boot")));
    let found = apply(&mut state, claim(1, "boot")).unwrap();
    assert!(matches!(found, Outcome::Attachment(VOLUME, _)));
    assert_eq!(apply(&mut state, claim(1, "boot")), Ok(found), "as often as it is asked");
    // After a reboot it simply claims again.
    assert!(apply(&mut state, claim(1, "next boot")).is_ok());
    assert_eq!(state.nodes["node-1"].boot_id, "next boot");
    let lost = CatalogCommand::DeclareLost { node: named(1), boot_id: "next boot".into() };
    apply(&mut state, lost).unwrap();
    not_published(apply(&mut state, claim(1, "next boot")));
}

/// A file system is begun and made by holders in any order, and the catalog is restored meanwhile.
fn a_file_system_is_made_once() {
    #[derive(Clone, Debug)]
    enum Step {
        Begin(FileSystemKind),
        Make(FileSystemKind),
        Restore,
    }
    let kind = prop::sample::select(vec![FileSystemKind::Ext4, FileSystemKind::Xfs]);
    let step = prop_oneof![
        4 => kind.clone().prop_map(Step::Begin),
        2 => kind.prop_map(Step::Make),
        1 => Just(Step::Restore),
    ];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let ran = runner.run(&prop::collection::vec(step, 1..12), |steps| {
        let mut state = closed();
        publish(&mut state, 1, AccessMode::ReadWrite, 1);
        confirm(&mut state);
        let mut made = None;
        for (number, step) in steps.into_iter().enumerate() {
            let uid = u8::try_from(number).unwrap() + 2;
            let before = state.volumes[&VOLUME].file_system;
            match step {
                Step::Begin(kind) | Step::Make(kind) if made.is_some() => {
                    let holder = state.attachments.values().next().unwrap().uid;
                    let outcome = apply(&mut state, record(1, holder.0[0], kind, false));
                    assert!(outcome.is_err(), "a second one is begun over {made:?}");
                }
                Step::Begin(kind) => {
                    let holder = state.attachments.values().next().unwrap().uid;
                    apply(&mut state, record(1, holder.0[0], kind, false)).unwrap();
                }
                Step::Make(kind) => {
                    let holder = state.attachments.values().next().unwrap().uid;
                    apply(&mut state, record(1, holder.0[0], kind, true)).unwrap();
                    made = Some(kind);
                }
                Step::Restore => {
                    state = restored(&state);
                    let now = state.volumes[&VOLUME].file_system;
                    assert_eq!(now, before.filter(|it| it.made), "what was begun is not trusted");
                    publish(&mut state, 1, AccessMode::ReadWrite, uid);
                    confirm(&mut state);
                }
            }
        }
        Ok(())
    });
    ran.unwrap();
}

/// The catalog from a copy of itself, with the attachments gone.
fn restored(state: &CatalogState) -> CatalogState {
    let rows = state.rows().filter(|(key, _)| {
        use crate::control::state::rows::RowKey::{Attachment, CatalogMember, Head};
        !matches!(key, Head | CatalogMember(_) | Attachment(_))
    });
    let restores = state.cluster.restores + 1;
    let ancestors = vec![state.cluster.history];
    let history = Uuid([u8::try_from(restores).unwrap(); 16]);
    let rebirth = Rebirth { history, ancestors, restores, pod: PodId(1), now_ms: 9 };
    CatalogState::reborn(rows.collect::<Vec<_>>(), rebirth).unwrap()
}

#[test]
fn file_systems_are_recorded_by_who_has_the_volume() {
    a_file_system_is_made_once();
    let mut state = closed();
    publish(&mut state, 1, AccessMode::ReadWrite, 1);
    assert!(apply(&mut state, record(1, 1, FileSystemKind::Xfs, false)).is_err(), "not yet");
    confirm(&mut state);
    assert!(apply(&mut state, record(1, 9, FileSystemKind::Xfs, false)).is_err(), "of another");
    assert!(apply(&mut state, record(2, 1, FileSystemKind::Xfs, false)).is_err());
    apply(&mut state, record(1, 1, FileSystemKind::Xfs, false)).unwrap();
    // The next try may be another one, as long as none is complete.
    apply(&mut state, record(1, 1, FileSystemKind::Ext4, false)).unwrap();
    apply(&mut state, record(1, 1, FileSystemKind::Ext4, true)).unwrap();
    apply(&mut state, record(1, 1, FileSystemKind::Ext4, true)).unwrap();
    let other = apply(&mut state, record(1, 1, FileSystemKind::Xfs, true));
    assert!(matches!(other, Err(CatalogError::Formatted { .. })), "{other:?}");
}

/// A node that was declared lost and did not start anew is free when its last device is gone.
#[test]
fn a_lost_node_without_devices_is_lost_no_more() {
    let mut state = closed();
    publish(&mut state, 1, AccessMode::ReadWrite, 1);
    confirm(&mut state);
    apply(&mut state, claim(1, "boot")).unwrap();
    let lost = CatalogCommand::DeclareLost { node: named(1), boot_id: "boot".into() };
    apply(&mut state, lost).unwrap();
    let report = |has_no_device| {
        let labels = Default::default();
        let node = NewNode { name: named(1), boot_id: "boot".into(), labels };
        CatalogCommand::ReportNode { node, has_no_device }
    };
    apply(&mut state, report(false)).unwrap();
    assert!(state.nodes["node-1"].is_lost());
    assert!(state.attachments.values().all(|it| it.ends_with.is_some()), "it is fenced");
    apply(&mut state, report(true)).unwrap();
    assert!(!state.nodes["node-1"].is_lost());
    assert!(state.attachments.values().all(|it| it.ends_with.is_some()), "and stays fenced");
    // One without pods becomes known.
    let node = NewNode { name: "worker".into(), boot_id: "b".into(), labels: Default::default() };
    apply(&mut state, CatalogCommand::ReportNode { node, has_no_device: true }).unwrap();
    assert_eq!(state.nodes["worker"].boot_id, "b");
}

/// Several nodes that write make no file system; one that was begun is none any more for them.
#[test]
fn nodes_that_share_a_volume_begin_nothing() {
    let mut state = closed();
    publish(&mut state, 1, AccessMode::Raw, 1);
    confirm(&mut state);
    assert!(apply(&mut state, record(1, 1, FileSystemKind::Ext4, false)).is_err());
    apply(&mut state, record(1, 1, FileSystemKind::Ext4, true)).unwrap();
}

#[test]
fn a_reader_records_nothing() {
    let mut state = closed();
    publish(&mut state, 1, AccessMode::ReadOnly, 1);
    confirm(&mut state);
    assert!(apply(&mut state, record(1, 1, FileSystemKind::Ext4, true)).is_err());
}

#[test]
fn a_second_file_system_is_found() {
    assert_found(Mistake::FormattedTwice, a_file_system_is_made_once);
    assert_found(Mistake::BegunIsTrusted, a_file_system_is_made_once);
}
