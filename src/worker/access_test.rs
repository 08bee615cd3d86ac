//! A closed volume as clients of one pod see it.

use super::pod_fixture::{Pod, view, volume};
use crate::limits::Budgets;
use crate::planted::{Mistake, assert_found};
use crate::types::{
    AccessMode, AccessSet, AttachmentId, BLOCK_BYTES, Generation, Grant, MemberId, Uuid,
};
use crate::view::{AttachmentView, MemberState, VolumeChange, VolumeView};
use crate::worker::clients::Exported;

const NOT_PERMITTED: u32 = 1;

fn uid(attachment: u64) -> Uuid {
    Uuid([attachment as u8; 16])
}

fn set(generation: u64, attachment: u64, mode: AccessMode) -> AccessSet {
    let grants = vec![Grant { attachment: AttachmentId(attachment), mode }];
    AccessSet { generation: Generation(generation), open: false, grants }
}

/// A volume that is closed from birth, and has this attachment now.
fn closed(attachment: u64, mode: AccessMode) -> VolumeView {
    let mut closed = volume(1, "v", &[1]);
    closed.open = false;
    closed.shards[0].birth = set(2, 1, AccessMode::ReadWrite);
    let id = AttachmentId(attachment);
    let (uid, node, io_timeout_ms) = (uid(attachment), format!("node-{attachment}"), 0);
    closed.attachments = vec![AttachmentView { id, uid, node, mode, io_timeout_ms }];
    closed
}

#[test]
fn a_closed_volume_is_opened_by_the_uids_of_its_attachments() {
    let mut exported = Exported::default();
    let mut change = |before: Option<VolumeView>, now: Option<VolumeView>| {
        let change = VolumeChange { before: before.map(Into::into), now: now.map(Into::into) };
        exported.update([&change].into_iter());
        let open =
            |name: &str| exported.named(name, None).map(|of| (of.attachment.0, of.read_only));
        let names = ["v".to_owned(), uid(1).to_string(), uid(3).to_string(), String::new()];
        (names.map(|name| open(&name)), exported.list())
    };
    let by_name = Some((0, false));
    let open = volume(1, "v", &[1]);
    let listed = vec!["v".to_owned()];
    assert_eq!(change(None, Some(open.clone())), ([by_name, None, None, None], listed));
    let first = closed(1, AccessMode::ReadOnly);
    let found = change(Some(open), Some(first.clone()));
    assert_eq!(found, ([None, Some((1, true)), None, None], vec![]), "nobody learns of it");
    let second = closed(3, AccessMode::Raw);
    let found = change(Some(first), Some(second.clone()));
    assert_eq!(found.0, [None, None, Some((3, false)), None]);
    assert_eq!(change(Some(second), None).0, [None; 4]);
}

/// The certificate of a node opens the attachments of that node, and nothing else.
fn nodes_open_what_is_theirs() {
    let mut exported = Exported::default();
    let changes = [volume(2, "open", &[1]), closed(1, AccessMode::ReadWrite)]
        .map(|volume| VolumeChange { before: None, now: Some(volume.into()) });
    exported.update(changes.iter());
    let opens = |role: &str, name: &str| {
        let role = role.parse().expect("a role");
        exported.named(name, Some(&role)).is_some()
    };
    let name = uid(1).to_string();
    assert!(opens("csi-node/node-1", &name) && opens("admin/a", &name));
    for role in ["csi-node/node-2", "csi-node/node", "csi-controller/c", "viewer/v"] {
        assert!(!opens(role, &name), "{role}");
    }
    assert!(opens("admin/a", "open") && !opens("csi-node/node-1", "open"));
}

#[test]
fn a_node_opens_its_attachments_alone() {
    nodes_open_what_is_theirs();
    assert_found(Mistake::AnyNodeOpens, nodes_open_what_is_theirs);
}

#[test]
fn a_client_is_fenced_and_the_next_one_goes_on() {
    let mut pod = Pod::new(Budgets::default());
    pod.view(view(1, vec![closed(1, AccessMode::ReadWrite)]));
    pod.run_until("the only replica leads", |pod| {
        pod.state_of(MemberId(11)) == Some(MemberState::Leader)
    });
    let old = pod.connect(&uid(1).to_string());
    old.write(&mut pod, 0, BLOCK_BYTES, b'a');
    pod.run_until("a write is answered", |pod| old.written(pod) == [0]);
    assert_eq!(pod.set_access(1, set(4, 3, AccessMode::ReadWrite)), Generation(4));
    assert_eq!(pod.set_access(1, set(4, 3, AccessMode::ReadWrite)), Generation(4), "repeated");
    assert_eq!(pod.set_access(1, set(5, 1, AccessMode::ReadWrite)), Generation(4), "refused");
    old.write(&mut pod, 0, BLOCK_BYTES, b'o');
    pod.run_until("it gets an error", |pod| old.errors(pod) == [NOT_PERMITTED]);
    pod.view(view(2, vec![closed(3, AccessMode::ReadWrite)]));
    let new = pod.connect(&uid(3).to_string());
    assert_eq!(new.read_byte(&mut pod, 0), b'a');
    new.write(&mut pod, 0, BLOCK_BYTES, b'n');
    pod.run_until("a write is answered", |pod| new.written(pod) == [0]);
    old.write(&mut pod, 0, BLOCK_BYTES, b'o');
    pod.run_until("it gets an error", |pod| old.errors(pod) == [NOT_PERMITTED]);
    old.hang_up(&mut pod);
    // After a restart, too: who may use the shard is in its metadata.
    pod.restart();
    pod.view(view(2, vec![closed(3, AccessMode::ReadWrite)]));
    let new = pod.connect(&uid(3).to_string());
    assert_eq!(new.read_byte(&mut pod, 0), b'n');
}
