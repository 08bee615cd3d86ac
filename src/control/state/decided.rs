//! The events of what a command has decided, read from the rows that it has changed: no command can
//! forget to tell.

use crate::config::size::ByteSize;
use crate::control::state::events::record;
use crate::control::state::happened::Happened;
use crate::control::state::rows::{Attachment, AttachmentKey, Event, Node, RowKey, Volume};
use crate::control::state::tables::Tables;
use crate::types::{AccessMode, PodId, Uuid, VolumeId};

/// Events of one command at most. A node that is declared lost may have more volumes.
const AT_ONCE_MAX: usize = 1024;

/// Records what the present command has decided.
pub(super) fn record_decisions(before: &Tables, tables: &mut Tables, now_ms: u64) {
    let changed: Vec<RowKey> = tables.changed_keys().cloned().collect();
    let mut events = Vec::new();
    for key in &changed {
        Diff { before, now: tables, events: &mut events }.row(key);
        if events.len() >= AT_ONCE_MAX {
            break;
        }
    }
    events.into_iter().for_each(|event| record(tables, now_ms, event));
}

/// The state before a command and after it.
struct Diff<'a> {
    before: &'a Tables,
    now: &'a Tables,
    events: &'a mut Vec<Event>,
}

impl Diff<'_> {
    fn row(&mut self, key: &RowKey) {
        match key {
            RowKey::Node(name) => self.node(name),
            RowKey::Pod(pod) => self.pod(*pod),
            RowKey::Disk(disk) => self.disk(*disk),
            RowKey::Class(name) => self.class(name),
            RowKey::Volume(volume) => self.volume(*volume),
            RowKey::Attachment(key) => self.attachment(*key),
            RowKey::CatalogMember(member) => {
                let (before, now) = (self.before.catalog.get(member), self.now.catalog.get(member));
                match (before, now) {
                    (None, Some(now)) => self.of_pod(Happened::CatalogMemberAdded, now.pod, ""),
                    (Some(before), None) => {
                        self.of_pod(Happened::CatalogMemberRemoved, before.pod, "");
                    }
                    _ => {}
                }
            }
            RowKey::Authority(number) => {
                // Otherwise the cluster's row tells.
                let is_root = |of: &Tables| of.cluster.roots.iter().any(|it| it.number == *number);
                if is_root(self.before) && is_root(self.now) {
                    self.of_cluster(Happened::AuthoritySet, String::new());
                }
            }
            RowKey::Token(id) => match self.now.tokens.get(id) {
                Some(token) => {
                    self.of_cluster(Happened::TokenMade, format!("{id}, for {}", token.kind));
                }
                None => self.of_cluster(Happened::TokenRemoved, id.clone()),
            },
            RowKey::Certificate(serial) => {
                // Pods renew theirs all the time.
                let issued = self.now.certificates.get(serial);
                if let Some(issued) = issued.filter(|it| !it.subject.contains("/pod/")) {
                    // They are many: they must not push out what else happens to the cluster.
                    let message = format!("{serial}, for {}", issued.subject);
                    self.add(Happened::CertificateIssued, "certificates", &issued.subject, message);
                }
            }
            RowKey::Revoked(serial) => {
                if let Some(revoked) = self.now.revoked.get(serial) {
                    let message = format!("{serial}, of {}", revoked.subject);
                    self.of_cluster(Happened::CertificateRevoked, message);
                }
            }
            RowKey::Cluster => {
                let (before, now) = (self.before.cluster.level, self.now.cluster.level);
                if before != now {
                    self.of_cluster(Happened::LevelRaised, format!("from {before} to {now}"));
                }
                self.roots();
            }
            // A shard is as its volume is, and the others are not objects of the API.
            RowKey::Shard(_) => {}
            RowKey::Head | RowKey::Answered(_) | RowKey::Event(_) => {}
        }
    }

    fn roots(&mut self) {
        let numbers =
            |of: &Tables| -> Vec<u64> { of.cluster.roots.iter().map(|root| root.number).collect() };
        let (before, now) = (numbers(self.before), numbers(self.now));
        let (happened, number) = match (&before[..], &now[..]) {
            ([], [number]) => (Happened::AuthoritySet, *number),
            ([old], [signs, number]) if old == signs => (Happened::AuthorityAdded, *number),
            ([old, new], [signs, _]) if new == signs && old != new => {
                (Happened::AuthoritySwitched, *signs)
            }
            ([_, retired], [signs]) if signs > retired => (Happened::AuthorityRetired, *retired),
            ([_, abandoned], [_]) => (Happened::AuthorityAbandoned, *abandoned),
            _ => return,
        };
        self.of_cluster(happened, format!("number {number}"));
    }

    fn node(&mut self, name: &str) {
        let Some(now) = self.now.nodes.get(name) else { return };
        let Some(before) = self.before.nodes.get(name) else {
            return self.add(Happened::NodeAdded, name, name, String::new());
        };
        if before.boot_id != now.boot_id {
            self.add(Happened::NodeRebooted, name, name, String::new());
        }
        let lost = |node: &Node| node.lost_boot_id.clone();
        match (lost(before), lost(now)) {
            (before, Some(boot)) if before.as_ref() != Some(&boot) => {
                self.add(Happened::NodeLost, name, name, format!("in boot {boot}"));
            }
            (Some(_), None) => self.add(Happened::NodeCleared, name, name, String::new()),
            _ => {}
        }
    }

    fn pod(&mut self, pod: PodId) {
        let Some(now) = self.now.pods.get(&pod) else { return };
        let place = format!("at {}, on node {}", now.addresses.api, now.node);
        let Some(before) = self.before.pods.get(&pod) else {
            return self.of_pod(Happened::PodJoined, pod, &place);
        };
        if (before.addresses, &before.node) != (now.addresses, &now.node) {
            self.of_pod(Happened::PodMoved, pod, &place);
        }
        let (old, new) = (before.newest_level, now.newest_level);
        if old != new {
            let message = format!("from {old} to {new}");
            self.of_pod(Happened::PodUpgraded, pod, &message);
        }
    }

    fn of_pod(&mut self, happened: Happened, pod: PodId, message: &str) {
        let of = self.now.pods.get(&pod).or(self.before.pods.get(&pod));
        let uid = of.map(|pod| pod.uid.to_string()).unwrap_or_default();
        self.add(happened, &pod.to_string(), &uid, message.to_owned());
    }

    fn disk(&mut self, disk: Uuid) {
        let Some(now) = self.now.disks.get(&disk) else { return };
        let name = disk.to_string();
        let place = format!("{} in pod {}", now.path, now.pod);
        match self.before.disks.get(&disk) {
            None => self.add(Happened::DiskAdded, &name, &name, place),
            Some(before) if before.pod != now.pod => {
                self.add(Happened::DiskMoved, &name, &name, place);
            }
            Some(_) => {}
        }
    }

    fn class(&mut self, name: &str) {
        let happened = match (self.before.classes.get(name), self.now.classes.get(name)) {
            (None, Some(_)) => Happened::ClassCreated,
            (Some(_), None) => Happened::ClassDeleted,
            _ => Happened::ClassChanged,
        };
        self.add(happened, name, name, String::new());
    }

    fn volume(&mut self, id: VolumeId) {
        let (before, now) = (self.before.volumes.get(&id), self.now.volumes.get(&id));
        match (before, now) {
            (None, Some(now)) => {
                let size = ByteSize(now.size_bytes).rounded();
                let message = format!("{size}, of class {}", now.class);
                self.of_volume(Happened::VolumeCreated, now, message);
            }
            (Some(before), None) => {
                self.of_volume(Happened::Destroyed, before, String::new());
            }
            (Some(before), Some(now)) => self.volume_changed(before, now),
            (None, None) => {}
        }
    }

    fn volume_changed(&mut self, before: &Volume, now: &Volume) {
        let size = |bytes| ByteSize(bytes).rounded();
        let mut add = |is: bool, happened, message: String| {
            if is {
                self.of_volume(happened, now, message);
            }
        };
        let none = String::new;
        add(before.creating && !now.creating, Happened::VolumeUsable, none());
        add(before.labels != now.labels, Happened::VolumeRelabelled, none());
        let asked = format!("from {} to {}", size(before.wanted_bytes()), size(now.wanted_bytes()));
        add(now.wanted_bytes() != before.wanted_bytes(), Happened::GrowthAsked, asked);
        add(now.size_bytes > before.size_bytes, Happened::Grown, size(now.size_bytes));
        let (was_open, is_open) = (before.access.open, now.access.open);
        add(!was_open && is_open, Happened::Opened, none());
        add(was_open && !is_open, Happened::Closed, none());
        let made = |of: &Volume| of.file_system.filter(|it| it.made).map(|it| it.kind);
        let kind = made(now).map(|kind| kind.to_string()).unwrap_or_default();
        add(made(before).is_none() && made(now).is_some(), Happened::FileSystemMade, kind);
        let is_deleted = before.kept.is_none() && now.kept.is_some();
        add(is_deleted, Happened::Deleted, none());
        let comes_back = before.kept.is_some() && now.kept.is_none() && !now.deleting;
        add(comes_back, Happened::Undeleted, none());
        let is_back = before.restoring.is_some() && !now.is_withheld() && !now.deleting;
        add(is_back, Happened::Restored, none());
        add(!before.deleting && now.deleting, Happened::DestructionBegun, none());
    }

    fn attachment(&mut self, key: AttachmentKey) {
        let (before, now) = (self.before.attachments.get(&key), self.now.attachments.get(&key));
        let happened = match (before, now) {
            (None, Some(_)) => Happened::Published,
            (Some(before), Some(now)) if before.ends_with.is_none() && now.ends_with.is_some() => {
                Happened::Unpublished
            }
            (Some(before), Some(now)) if !before.active && now.active => Happened::Attached,
            (Some(_), None) => Happened::Fenced,
            _ => return,
        };
        let Some(Attachment { node, mode, uid, .. }) = now.or(before) else { return };
        let mode = match mode {
            AccessMode::ReadWrite => "read-write",
            AccessMode::ReadOnly => "read-only",
            AccessMode::Raw => "raw",
        };
        let message = format!("node {node}, {mode}, attachment {uid}");
        let volume = self.now.volumes.get(&key.0).or(self.before.volumes.get(&key.0));
        if let Some(volume) = volume {
            self.of_volume(happened, volume, message);
        }
    }

    fn of_volume(&mut self, happened: Happened, volume: &Volume, message: String) {
        self.add(happened, &volume.name, &volume.uid.to_string(), message);
    }

    fn of_cluster(&mut self, happened: Happened, message: String) {
        let uid = self.now.cluster.uid.to_string();
        self.add(happened, "", &uid, message);
    }

    fn add(&mut self, happened: Happened, name: &str, uid: &str, message: String) {
        self.events.push(Event {
            kind: happened.kind().to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            reason: happened.word().to_owned(),
            message,
            warns: happened.warns(),
            ..Event::default()
        });
    }
}
