//! The tables of the catalog's state, with their indexes. A command changes them row by row; what
//! it changed is what is written down.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::state::index::Index;
use crate::control::state::rows::{
    Answered, Attachment, AttachmentKey, Authority, CatalogMember, Certificate, Class, Cluster,
    Disk, Event, Head, Node, Pod, Revoked, RowChange, RowError, RowKey, Shard, Token, Volume,
    decode_row, encode_row, hash_row,
};
use crate::control::state::table::{Row, Table};
use crate::planted::planted;
use crate::types::{AccessSet, AttachmentId, Grant, MemberId, PodId, ShardId, Uuid, VolumeId};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub head: Head,
    pub cluster: Cluster,
    /// The revision that changed it last.
    pub cluster_revision: u64,
    pub nodes: Table<String, Node>,
    pub pods: Table<PodId, Pod>,
    pub disks: Table<Uuid, Disk>,
    pub classes: Table<String, Class>,
    pub volumes: Table<VolumeId, Volume>,
    pub shards: Table<ShardId, Shard>,
    pub attachments: Table<AttachmentKey, Attachment>,
    pub catalog: Table<MemberId, CatalogMember>,
    pub answered: Table<u64, Answered>,
    pub authorities: Table<u64, Authority>,
    pub tokens: Table<String, Token>,
    pub certificates: Table<String, Certificate>,
    pub revoked: Table<String, Revoked>,
    pub events: Table<u64, Event>,
    pub index: Index,
    /// The sum of the hashes of all rows but the head's. Equal states have equal ones.
    rows_hash: u64,
    /// The rows that the present command has changed.
    changed: BTreeMap<RowKey, Option<Bytes>>,
}

impl Tables {
    /// The revision that the present command makes, if it changes anything.
    pub fn next_revision(&self) -> u64 {
        self.head.revision + 1
    }

    pub fn put<T: Object>(&mut self, key: T::Key, value: T) {
        let row_key = T::key(&key);
        let revision = self.next_revision();
        let bytes = encode_row(revision, &value);
        self.place(key, &row_key, &bytes, revision, value);
        self.changed.insert(row_key, Some(bytes));
    }

    /// Puts an object in its table and in the indexes.
    fn place<T: Object>(
        &mut self,
        key: T::Key,
        row_key: &RowKey,
        bytes: &[u8],
        revision: u64,
        value: T,
    ) {
        let hash = hash_row(row_key, bytes);
        let row = Row::new(revision, hash, value.clone());
        let before = T::table(self).put(key.clone(), row);
        let gone = before.as_ref().map_or(0, |row| row.hash);
        let before = before.map(|row| row.value);
        T::reindex(&mut self.index, &key, before.as_ref(), Some(&value));
        self.rows_hash = self.rows_hash.wrapping_add(hash).wrapping_sub(gone);
    }

    pub fn remove<T: Object>(&mut self, key: &T::Key) {
        let Some(before) = T::table(self).remove(key) else { return };
        T::reindex(&mut self.index, key, Some(&before.value), None);
        self.rows_hash = self.rows_hash.wrapping_sub(before.hash);
        if !planted!(RowsStayBehind) {
            self.changed.insert(T::key(key), None);
        }
    }

    pub fn put_cluster(&mut self, cluster: Cluster) {
        let revision = self.next_revision();
        self.place_cluster(revision, cluster);
        self.changed.insert(RowKey::Cluster, Some(self.cluster_row()));
    }

    /// There is one row of it, which is never removed.
    fn place_cluster(&mut self, revision: u64, cluster: Cluster) {
        if self.cluster_revision > 0 {
            let gone = hash_row(&RowKey::Cluster, &self.cluster_row());
            self.rows_hash = self.rows_hash.wrapping_sub(gone);
        }
        (self.cluster, self.cluster_revision) = (cluster, revision);
        let hash = hash_row(&RowKey::Cluster, &self.cluster_row());
        self.rows_hash = self.rows_hash.wrapping_add(hash);
    }

    fn cluster_row(&self) -> Bytes {
        encode_row(self.cluster_revision, &self.cluster)
    }

    /// True when the present command has changed a row.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The rows that the present command has changed so far.
    pub(super) fn changed_keys(&self) -> impl Iterator<Item = &RowKey> {
        self.changed.keys()
    }

    /// The volume with this name, also while it is being deleted.
    pub fn volume_by_name(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        let id = *self.index.volumes_by_name.get(name)?;
        Some((id, &self.volumes[&id]))
    }

    /// The volume with this uid, also while it is being deleted.
    pub fn volume_by_uid(&self, uid: Uuid) -> Option<(VolumeId, &Volume)> {
        let id = *self.index.volumes_by_uid.get(&uid)?;
        Some((id, &self.volumes[&id]))
    }

    /// The shards of a volume that are left, in the order of their places.
    pub fn shards_of(&self, volume: &Volume) -> impl Iterator<Item = (ShardId, &Shard)> {
        let runs = volume.runs.iter().flat_map(|run| self.shards.range(run.ids()));
        runs.map(|(id, shard)| (*id, shard))
    }

    /// The disks of a pod.
    pub fn disks_of(&self, pod: PodId) -> impl Iterator<Item = Uuid> {
        self.index.disks_by_pod.get(&pod).into_iter().flat_map(|disks| disks.iter().copied())
    }

    /// The attachments of a volume, in the order of their ids.
    pub fn attachments_of(
        &self,
        volume: VolumeId,
    ) -> impl Iterator<Item = (AttachmentId, &Attachment)> {
        let ids = (volume, AttachmentId(0))..=(volume, AttachmentId(u64::MAX));
        self.attachments.range(ids).map(|((_, id), attachment)| (*id, attachment))
    }

    /// Who may use a volume, as every shard is to know it.
    pub fn access_of(&self, volume: VolumeId) -> AccessSet {
        let Volume { access, kept, .. } = &self.volumes[&volume];
        let stay = self.attachments_of(volume).filter(|(_, it)| it.ends_with.is_none());
        let grants = stay.map(|(attachment, it)| Grant { attachment, mode: it.mode });
        // Nobody writes what may come back.
        let open = access.open && kept.is_none();
        AccessSet { generation: access.wanted, open, grants: grants.collect() }
    }

    /// Replicas on a disk, including those to be destroyed: they still take space.
    pub fn members_on(&self, disk: Uuid) -> u64 {
        self.index.held.get(&disk).map_or(0, |held| held.members.size() as u64)
    }

    /// Length of all replicas on a disk, whatever of it was ever written.
    pub fn provisioned_on(&self, disk: Uuid) -> u64 {
        self.index.held.get(&disk).map_or(0, |held| held.provisioned_bytes)
    }

    /// Shards of which a disk has the first replica, which is the first to campaign.
    pub fn firsts_on(&self, disk: Uuid) -> u64 {
        self.index.held.get(&disk).map_or(0, |held| held.firsts)
    }

    /// The shard of a replica on a disk.
    pub fn shard_of(&self, disk: Uuid, member: MemberId) -> Option<(ShardId, &Shard)> {
        let shard = *self.index.held.get(&disk)?.members.get(&member)?;
        Some((shard, &self.shards[&shard]))
    }

    /// The replicas on a disk that are to be destroyed.
    pub fn is_doomed(&self, disk: Uuid, member: MemberId) -> bool {
        self.shard_of(disk, member).is_some_and(|(_, shard)| self.volumes[&shard.volume].deleting)
    }

    /// Ends a command: returns the rows that it changed, with the head.
    pub fn seal(&mut self, now_ms: u64) -> Vec<RowChange> {
        if self.changed.is_empty() {
            return Vec::new();
        }
        self.head.revision += 1;
        self.head.now_ms = self.head.now_ms.max(now_ms);
        let head = encode_row(self.head.revision, &self.head);
        self.changed.insert(RowKey::Head, Some(head));
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|(key, row)| RowChange { key, row }).collect()
    }

    /// Takes over a row as it was encoded.
    pub fn load(&mut self, key: &RowKey, row: &[u8]) -> Result<(), RowError> {
        match key {
            RowKey::Head => self.head = decode_row(key, row)?.1,
            RowKey::Cluster => {
                let (revision, cluster) = decode_row(key, row)?;
                self.place_cluster(revision, cluster);
            }
            RowKey::Node(name) => self.load_one::<Node>(name.clone(), key, row)?,
            RowKey::Pod(pod) => self.load_one::<Pod>(*pod, key, row)?,
            RowKey::Disk(disk) => self.load_one::<Disk>(*disk, key, row)?,
            RowKey::Class(name) => self.load_one::<Class>(name.clone(), key, row)?,
            RowKey::Volume(volume) => self.load_one::<Volume>(*volume, key, row)?,
            RowKey::Shard(shard) => self.load_one::<Shard>(*shard, key, row)?,
            RowKey::Attachment(id) => self.load_one::<Attachment>(*id, key, row)?,
            RowKey::CatalogMember(member) => self.load_one::<CatalogMember>(*member, key, row)?,
            RowKey::Answered(number) => self.load_one::<Answered>(*number, key, row)?,
            RowKey::Authority(number) => self.load_one::<Authority>(*number, key, row)?,
            RowKey::Token(id) => self.load_one::<Token>(id.clone(), key, row)?,
            RowKey::Certificate(serial) => {
                self.load_one::<Certificate>(serial.clone(), key, row)?;
            }
            RowKey::Revoked(serial) => self.load_one::<Revoked>(serial.clone(), key, row)?,
            RowKey::Event(number) => self.load_one::<Event>(*number, key, row)?,
        }
        Ok(())
    }

    fn load_one<T: Object>(
        &mut self,
        key: T::Key,
        row_key: &RowKey,
        row: &[u8],
    ) -> Result<(), RowError> {
        let (revision, value) = decode_row::<T>(row_key, row)?;
        // Two texts may mean the same: an identity in capitals, for instance.
        let bytes = encode_row(revision, &value);
        self.place(key, row_key, &bytes, revision, value);
        Ok(())
    }

    /// All rows in their encoded form, ordered by kind and key, the head first.
    pub fn rows(&self) -> impl Iterator<Item = (RowKey, Bytes)> + '_ {
        let head = encode_row(self.head.revision, &self.head);
        [(RowKey::Head, head), (RowKey::Cluster, self.cluster_row())]
            .into_iter()
            .chain(encoded(&self.nodes))
            .chain(encoded(&self.pods))
            .chain(encoded(&self.disks))
            .chain(encoded(&self.classes))
            .chain(encoded(&self.volumes))
            .chain(encoded(&self.shards))
            .chain(encoded(&self.attachments))
            .chain(encoded(&self.catalog))
            .chain(encoded(&self.answered))
            .chain(encoded(&self.authorities))
            .chain(encoded(&self.tokens))
            .chain(encoded(&self.certificates))
            .chain(encoded(&self.revoked))
            .chain(encoded(&self.events))
    }

    /// Equal states have equal fingerprints, and others almost certainly not.
    pub fn fingerprint(&self) -> u64 {
        let head = encode_row(self.head.revision, &self.head);
        self.rows_hash.wrapping_add(hash_row(&RowKey::Head, &head))
    }
}

fn encoded<T: Object>(table: &Table<T::Key, T>) -> impl Iterator<Item = (RowKey, Bytes)> + '_ {
    table.rows().map(|(key, row)| (T::key(key), encode_row(row.revision, &row.value)))
}

impl PartialEq for Tables {
    fn eq(&self, other: &Tables) -> bool {
        self.fingerprint() == other.fingerprint() && self.rows().eq(other.rows())
    }
}

/// An object that has a table of its own.
pub trait Object: Clone + Serialize + DeserializeOwned {
    type Key: Ord + Clone;

    fn key(key: &Self::Key) -> RowKey;
    fn table(tables: &mut Tables) -> &mut Table<Self::Key, Self>;

    /// Keeps the indexes as they are due when an object changes.
    fn reindex(_: &mut Index, _: &Self::Key, _before: Option<&Self>, _now: Option<&Self>) {}
}

macro_rules! object {
    ($object:ident, $key:ty, $field:ident) => {
        object!($object, $key, $field, |_, _, _, _| {});
    };
    ($object:ident, $key:ty, $field:ident, $reindex:expr) => {
        impl Object for $object {
            type Key = $key;

            fn key(key: &$key) -> RowKey {
                RowKey::$object(key.clone())
            }

            fn table(tables: &mut Tables) -> &mut Table<$key, $object> {
                &mut tables.$field
            }

            fn reindex(
                index: &mut Index,
                key: &$key,
                before: Option<&$object>,
                now: Option<&$object>,
            ) {
                let reindex: fn(&mut Index, &$key, Option<&$object>, Option<&$object>) = $reindex;
                reindex(index, key, before, now)
            }
        }
    };
}

object!(Node, String, nodes);
object!(Pod, PodId, pods, Index::pod);
object!(Disk, Uuid, disks, Index::disk);
object!(Class, String, classes);
object!(Volume, VolumeId, volumes, Index::volume);
object!(Shard, ShardId, shards, Index::shard);
object!(Attachment, AttachmentKey, attachments, Index::attachment);
object!(CatalogMember, MemberId, catalog, Index::catalog_member);
object!(Answered, u64, answered, Index::answered);
object!(Authority, u64, authorities);
object!(Token, String, tokens);
object!(Certificate, String, certificates);
object!(Revoked, String, revoked);
object!(Event, u64, events, Index::event);

/// The next id.
pub(super) fn take(next: &mut u64) -> u64 {
    let id = *next;
    *next += 1;
    id
}
