//! The records of the catalog, as the descriptions of objects read them: by key, in order of keys,
//! each with the revision that changed it.

use std::ops::Bound;

use crate::control::command::Sighting;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::placement::domain;
use crate::control::state::CatalogState;
use crate::control::state::events::{is_full, is_new};
use crate::control::state::rows::{
    Attachment, AttachmentKey, Class, Disk, Event, Node, Pod, RowKey, Shard, Volume,
};
use crate::control::state::table::Row;
use crate::types::{MemberId, PodId, ShardId, Uuid, VolumeId};

/// Keys of objects.
pub type Keys<'a> = Box<dyn Iterator<Item = ObjectKey> + 'a>;

/// See the module.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    state: &'a CatalogState,
}

impl<'a> Source<'a> {
    pub fn new(state: &'a CatalogState) -> Source<'a> {
        Source { state }
    }

    pub fn cluster(self) -> Uuid {
        self.state.cluster.uid
    }

    pub fn history(self) -> Uuid {
        self.state.cluster.history
    }

    pub fn revision(self) -> u64 {
        self.state.revision()
    }

    pub fn node(self, name: &str) -> Option<&'a Row<Node>> {
        self.state.nodes.row(name)
    }

    pub fn pod(self, pod: PodId) -> Option<&'a Row<Pod>> {
        self.state.pods.row(&pod)
    }

    pub fn disk(self, disk: Uuid) -> Option<&'a Row<Disk>> {
        self.state.disks.row(&disk)
    }

    pub fn class(self, name: &str) -> Option<&'a Row<Class>> {
        self.state.classes.row(name)
    }

    pub fn volume(self, volume: VolumeId) -> Option<&'a Row<Volume>> {
        self.state.volumes.row(&volume)
    }

    pub fn shard(self, shard: ShardId) -> Option<&'a Row<Shard>> {
        self.state.shards.row(&shard)
    }

    pub fn volume_by_name(self, name: &str) -> Option<(VolumeId, &'a Row<Volume>)> {
        let (volume, _) = self.state.volume_by_name(name)?;
        Some((volume, self.volume(volume)?))
    }

    pub fn volume_by_uid(self, uid: Uuid) -> Option<VolumeId> {
        Some(self.state.volume_by_uid(uid)?.0)
    }

    /// The disks with replicas of a volume.
    pub fn disks_with(self, volume: VolumeId) -> impl Iterator<Item = Uuid> + use<'a> {
        let spread = self.state.index.spread.get(&volume);
        spread.into_iter().flat_map(|disks| disks.iter().map(|(disk, _)| *disk))
    }

    pub fn attachment(self, key: AttachmentKey) -> Option<&'a Row<Attachment>> {
        self.state.attachments.row(&key)
    }

    pub fn attachment_by_uid(self, uid: Uuid) -> Option<AttachmentKey> {
        self.state.index.attachments_by_uid.get(&uid).copied()
    }

    pub fn attachments_of(self, volume: VolumeId) -> impl Iterator<Item = AttachmentKey> + use<'a> {
        self.state.attachments_of(volume).map(move |(id, _)| (volume, id))
    }

    pub fn attachments_on(self, node: &str) -> impl Iterator<Item = AttachmentKey> + use<'a> {
        let held = self.state.index.attachments_by_node.get(node);
        held.into_iter().flat_map(|keys| keys.iter().copied())
    }

    pub fn event(self, number: u64) -> Option<&'a Row<Event>> {
        self.state.events.row(&number)
    }

    /// The numbers of the events of an object, in order. `kind` is a word.
    pub fn events_of(self, kind: &str, name: &str) -> impl Iterator<Item = u64> + use<'a> {
        let numbers = self.state.index.events_of.get(&(kind.to_owned(), name.to_owned()));
        numbers.into_iter().flat_map(|numbers| numbers.iter().copied())
    }

    /// True when older events of this kind have been forgotten.
    pub fn forgets_events(self, kind: &str) -> bool {
        is_full(self.state, kind)
    }

    /// True when the history of an object does not have this yet.
    pub fn is_news(self, seen: &Sighting) -> bool {
        is_new(self.state, seen)
    }

    /// The shards of a volume that are left, in order.
    pub fn shards_of(self, volume: &'a Volume) -> impl Iterator<Item = (ShardId, &'a Shard)> {
        self.state.shards_of(volume)
    }

    /// The shards that have a replica on a disk.
    pub fn shards_on(self, disk: Uuid) -> impl Iterator<Item = ShardId> + use<'a> {
        let held = self.state.index.held.get(&disk);
        held.into_iter().flat_map(|held| held.members.values().copied())
    }

    /// The key of a name; `None`: there is no such object.
    pub fn key_of(self, kind: Kind, name: &str) -> Option<ObjectKey> {
        let number = || name.parse::<u64>().ok();
        let key = match kind {
            Kind::Node => ObjectKey::Node(name.to_owned()),
            Kind::Class => ObjectKey::Class(name.to_owned()),
            Kind::Pod => ObjectKey::Pod(PodId(number()?)),
            Kind::Shard => ObjectKey::Shard(ShardId(number()?)),
            Kind::Event => ObjectKey::Event(number()?),
            Kind::Disk => ObjectKey::Disk(name.parse().ok()?),
            Kind::Attachment => ObjectKey::Attachment(self.attachment_by_uid(name.parse().ok()?)?),
            Kind::Volume => ObjectKey::Volume(self.volume_by_name(name)?.0),
        };
        self.has(&key).then_some(key)
    }

    /// The pods of a node.
    pub fn pods_of(self, node: &str) -> impl Iterator<Item = PodId> + use<'a> {
        let pods = self.state.index.pods_by_node.get(node);
        pods.into_iter().flat_map(|pods| pods.iter().copied())
    }

    /// Replicas on a disk, those that are to be destroyed included.
    pub fn replicas_on(self, disk: Uuid) -> u64 {
        self.state.members_on(disk)
    }

    /// Length of all replicas on a disk.
    pub fn provisioned_on(self, disk: Uuid) -> u64 {
        self.state.provisioned_on(disk)
    }

    /// The failure domain of a disk; `None`: its node lacks the label.
    pub fn domain_of(self, disk: Uuid, failure_domain: &str) -> Option<String> {
        domain(self.state, self.disk(disk)?.value.pod, failure_domain)
    }

    pub fn has(self, key: &ObjectKey) -> bool {
        match key {
            ObjectKey::Node(name) => self.state.nodes.contains_key(name),
            ObjectKey::Pod(pod) => self.state.pods.contains_key(pod),
            ObjectKey::Disk(disk) => self.state.disks.contains_key(disk),
            ObjectKey::Class(name) => self.state.classes.contains_key(name),
            ObjectKey::Volume(volume) => self.state.volumes.contains_key(volume),
            ObjectKey::Shard(shard) => self.state.shards.contains_key(shard),
            ObjectKey::Attachment(key) => self.state.attachments.contains_key(key),
            ObjectKey::Event(number) => self.state.events.contains_key(number),
        }
    }

    /// The pod's member of the catalog.
    pub fn catalog_member(self, pod: PodId) -> Option<MemberId> {
        self.state.index.catalog_by_pod.get(&pod).copied()
    }

    /// The pods of the catalog's members.
    pub fn catalog_pods(self) -> impl Iterator<Item = (MemberId, PodId)> + use<'a> {
        self.state.catalog.iter().map(|(member, it)| (*member, it.pod))
    }

    /// How many objects of a kind there are.
    pub fn count(self, kind: Kind) -> u64 {
        let count = match kind {
            Kind::Node => self.state.nodes.len(),
            Kind::Pod => self.state.pods.len(),
            Kind::Disk => self.state.disks.len(),
            Kind::Class => self.state.classes.len(),
            Kind::Volume => self.state.volumes.len(),
            Kind::Shard => self.state.shards.len(),
            Kind::Attachment => self.state.attachments.len(),
            Kind::Event => self.state.events.len(),
        };
        count as u64
    }

    pub fn disks_of(self, pod: PodId) -> impl Iterator<Item = Uuid> + use<'a> {
        self.state.disks_of(pod)
    }

    /// Keys of the objects of a kind behind `after`, in order.
    pub fn keys_after(self, kind: Kind, after: Option<&ObjectKey>) -> Keys<'a> {
        macro_rules! keys {
            ($table:ident, $kind:ident) => {{
                let after = match after {
                    Some(ObjectKey::$kind(key)) => Bound::Excluded(key.clone()),
                    _ => Bound::Unbounded,
                };
                let rows = self.state.$table.range((after, Bound::Unbounded));
                Box::new(rows.map(|(key, _)| ObjectKey::$kind(key.clone())))
            }};
        }
        match kind {
            Kind::Node => keys!(nodes, Node),
            Kind::Pod => keys!(pods, Pod),
            Kind::Disk => keys!(disks, Disk),
            Kind::Class => keys!(classes, Class),
            Kind::Volume => keys!(volumes, Volume),
            Kind::Shard => keys!(shards, Shard),
            Kind::Attachment => keys!(attachments, Attachment),
            Kind::Event => keys!(events, Event),
        }
    }

    /// The objects that changed behind a revision; `None` when that is not known any more.
    pub fn changed_since(self, revision: u64) -> Option<impl Iterator<Item = ObjectKey> + use<'a>> {
        let changed = self.state.changed_since(revision)?;
        Some(changed.filter_map(|key| {
            Some(match key {
                RowKey::Node(name) => ObjectKey::Node(name.clone()),
                RowKey::Pod(pod) => ObjectKey::Pod(*pod),
                RowKey::Disk(disk) => ObjectKey::Disk(*disk),
                RowKey::Class(name) => ObjectKey::Class(name.clone()),
                RowKey::Volume(volume) => ObjectKey::Volume(*volume),
                RowKey::Shard(shard) => ObjectKey::Shard(*shard),
                RowKey::Attachment(key) => ObjectKey::Attachment(*key),
                RowKey::Event(number) => ObjectKey::Event(*number),
                _ => return None,
            })
        }))
    }
}
