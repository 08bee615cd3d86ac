//! The part of the catalog that a pod knows, and the view that its data path gets of it. Pure.
//!
//! Invariant: the rows here are those of the catalog as of the mirror's position; a difference from
//! another position is refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;

use crate::control::state::rows::{
    Attachment, AttachmentKey, CatalogMember, Class, Cluster, Disk, Node, Pod, Revoked, RowError,
    RowKey, Shard, TrustedRoot, Volume, decode_row, encode_row,
};
use crate::control::state::tables::Object;
use crate::control::state::view::{view_pod, view_volume};
use crate::control::sync::update::{Part, Position, Update};
use crate::control::trusting::Told;
use crate::planted::planted;
use crate::types::{AttachmentId, MemberId, PodId, ShardId, Uuid, VolumeId};
use crate::view::{ClusterView, DiskView, VolumeView};

type Map<K, V> = RedBlackTreeMapSync<K, V>;

/// Why a mirror does not take an update.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("the update continues revision {from}, and revision {at} is here")]
    Gap { from: u64, at: u64 },
    #[error(
        "the catalog does not descend from what this pod knows (its history is {theirs}, and \
         {ours} here): it was restored or made anew; this pod stays with what it knows"
    )]
    Fork { ours: Uuid, theirs: Uuid },
    #[error("the update is of cluster {theirs}, and this pod belongs to {ours}")]
    Foreign { ours: Uuid, theirs: Uuid },
    #[error("the update is of revision {to}, and revision {at} of the same history is here")]
    Older { to: u64, at: u64 },
    #[error("the update leads to other volumes than are here then")]
    Part,
    #[error("the update names {what} that is not in it")]
    Missing { what: &'static str },
    #[error(transparent)]
    Row(#[from] RowError),
}

impl MirrorError {
    /// True when the whole would fit: the difference, or what the mirror is said to have, is wrong.
    pub fn asks_anew(&self) -> bool {
        match self {
            MirrorError::Gap { .. } | MirrorError::Part => true,
            MirrorError::Missing { .. } | MirrorError::Row(_) => true,
            MirrorError::Fork { .. } | MirrorError::Foreign { .. } => false,
            // The catalog's member that said so is behind.
            MirrorError::Older { .. } => false,
        }
    }
}

/// See the module. A copy is cheap.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    at: Position,
    cluster: Cluster,
    /// Nobody here asks for nodes and classes: they are for a catalog that is to be recovered.
    nodes: Map<String, Node>,
    classes: Map<String, Class>,
    pods: Map<PodId, Pod>,
    disks: Map<Uuid, Disk>,
    volumes: Map<VolumeId, Volume>,
    shards: Map<ShardId, Shard>,
    attachments: Map<AttachmentKey, Attachment>,
    catalog: Map<MemberId, CatalogMember>,
    revoked: Map<String, Revoked>,
    /// The fingerprint of `volumes`.
    part: Part,
    /// The volumes that the pod wants, as the catalog has heard.
    wants: Arc<BTreeSet<VolumeId>>,
    view: Arc<ClusterView>,
}

/// What differs in the view.
#[derive(Default)]
struct Touched {
    volumes: BTreeSet<VolumeId>,
    disks: bool,
    pods: bool,
}

impl Mirror {
    pub fn position(&self) -> Position {
        self.at
    }

    /// The cluster as the data path sees it.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// The volumes that are here.
    pub fn volumes(&self) -> BTreeSet<VolumeId> {
        self.volumes.keys().copied().collect()
    }

    /// The volumes that the pod wants, as the catalog has heard.
    pub fn wants(&self) -> &BTreeSet<VolumeId> {
        &self.wants
    }

    /// The members of the catalog, and their pods.
    pub fn catalog(&self) -> Vec<(MemberId, PodId)> {
        self.catalog.iter().map(|(member, it)| (*member, it.pod)).collect()
    }

    /// The serials of certificates that are void before their time.
    pub fn revoked(&self) -> Vec<String> {
        self.revoked.keys().cloned().collect()
    }

    /// The authorities.
    pub fn roots(&self) -> Told<TrustedRoot> {
        Told { roots: self.cluster.roots.clone(), others: self.cluster.others_trusted }
    }

    /// Everything that is here, as an update for an empty mirror.
    pub fn whole(&self) -> Update {
        fn rows<T: Object>(of: &Map<T::Key, T>) -> impl Iterator<Item = (RowKey, Option<Bytes>)> {
            of.iter().map(|(key, it)| (T::key(key), Some(encode_row(0, it))))
        }
        let mut all = vec![(RowKey::Cluster, Some(encode_row(0, &self.cluster)))];
        all.extend(rows::<Node>(&self.nodes));
        all.extend(rows::<Pod>(&self.pods));
        all.extend(rows::<Disk>(&self.disks));
        all.extend(rows::<Class>(&self.classes));
        all.extend(rows::<Volume>(&self.volumes));
        all.extend(rows::<Shard>(&self.shards));
        all.extend(rows::<Attachment>(&self.attachments));
        all.extend(rows::<CatalogMember>(&self.catalog));
        all.extend(rows::<Revoked>(&self.revoked));
        let wants = Some((*self.wants).clone());
        Update { from: Position::default(), to: self.at, is_whole: true, rows: all, wants }
    }

    /// Takes an update. After an error nothing has changed.
    pub fn take(&mut self, update: &Update) -> Result<(), MirrorError> {
        if update.to.history == self.at.history && update.to.revision < self.at.revision {
            return Err(MirrorError::Older { to: update.to.revision, at: self.at.revision });
        }
        let mut at = self.at;
        if planted!(PartNotCompared) {
            at.part = update.from.part;
        }
        if !update.is_whole && update.from != at {
            let (from, at) = (update.from.revision, self.at.revision);
            return Err(MirrorError::Gap { from, at });
        }
        let mut next = match update.is_whole {
            true => Mirror::default(),
            false => self.clone(),
        };
        let mut touched = Touched::default();
        for (key, row) in &update.rows {
            next.change(key, row.as_ref(), &mut touched)?;
        }
        next.at = update.to;
        self.check_origin(&next)?;
        if next.part != update.to.part && !planted!(PartNotCompared) {
            return Err(MirrorError::Part);
        }
        if let Some(wants) = &update.wants {
            next.wants = Arc::new(wants.clone());
        }
        next.make_view(&self.view, &touched)?;
        *self = next;
        Ok(())
    }

    /// A mirror follows its own cluster, in its own history or in one that descends from it.
    fn check_origin(&self, next: &Mirror) -> Result<(), MirrorError> {
        if next.cluster.history != next.at.history {
            return Err(MirrorError::Missing { what: "a history" });
        }
        if self.at.revision == 0 {
            return Ok(());
        }
        let (ours, theirs) = (self.cluster.uid, next.cluster.uid);
        if ours != theirs {
            return Err(MirrorError::Foreign { ours, theirs });
        }
        let ours = self.at.history;
        let descends = next.at.history == ours || next.cluster.ancestors.contains(&ours);
        let theirs = next.at.history;
        if descends { Ok(()) } else { Err(MirrorError::Fork { ours, theirs }) }
    }

    fn change(
        &mut self,
        key: &RowKey,
        row: Option<&Bytes>,
        touched: &mut Touched,
    ) -> Result<(), MirrorError> {
        match key {
            RowKey::Cluster => {
                let row = row.ok_or(MirrorError::Missing { what: "the cluster's own row" })?;
                self.cluster = decode_row(key, row)?.1;
            }
            RowKey::Node(name) => put(&mut self.nodes, name.clone(), key, row)?,
            RowKey::Class(name) => put(&mut self.classes, name.clone(), key, row)?,
            RowKey::Pod(pod) => {
                touched.pods = true;
                put(&mut self.pods, *pod, key, row)?;
            }
            RowKey::Disk(disk) => {
                touched.disks = true;
                let before = self.disks.get(disk).map(|disk| disk.pod);
                put(&mut self.disks, *disk, key, row)?;
                if before != self.disks.get(disk).map(|disk| disk.pod) {
                    touched.volumes.extend(self.volumes_on(*disk));
                }
            }
            RowKey::Volume(volume) => {
                touched.volumes.insert(*volume);
                let before = self.volumes.get(volume).cloned();
                put(&mut self.volumes, *volume, key, row)?;
                match (before, row.is_some()) {
                    (None, true) => self.part.add(*volume),
                    (Some(before), false) => self.leave(*volume, &before),
                    _ => {}
                }
            }
            RowKey::Shard(shard) => {
                touched.volumes.extend(self.shards.get(shard).map(|shard| shard.volume));
                put(&mut self.shards, *shard, key, row)?;
                let now = self.shards.get(shard).map(|shard| shard.volume);
                if now.is_some_and(|volume| !self.volumes.contains_key(&volume)) {
                    return Err(MirrorError::Missing { what: "the volume of a shard" });
                }
                touched.volumes.extend(now);
            }
            RowKey::Attachment(id) => {
                touched.volumes.insert(id.0);
                if row.is_some() && !self.volumes.contains_key(&id.0) {
                    return Err(MirrorError::Missing { what: "the volume of an attachment" });
                }
                put(&mut self.attachments, *id, key, row)?;
            }
            RowKey::CatalogMember(member) => put(&mut self.catalog, *member, key, row)?,
            RowKey::Revoked(serial) => put(&mut self.revoked, serial.clone(), key, row)?,
            // Pods are not told of these.
            RowKey::Head | RowKey::Answered(_) | RowKey::Event(_) => {}
            RowKey::Authority(_) | RowKey::Token(_) | RowKey::Certificate(_) => {}
        }
        Ok(())
    }

    /// What belongs to a volume goes with it.
    fn leave(&mut self, id: VolumeId, volume: &Volume) {
        self.part.remove(id);
        for shard in volume.shard_ids() {
            self.shards.remove_mut(&shard);
        }
        let ids = (id, AttachmentId(0))..=(id, AttachmentId(u64::MAX));
        let gone: Vec<AttachmentKey> = self.attachments.range(ids).map(|it| *it.0).collect();
        for key in &gone {
            self.attachments.remove_mut(key);
        }
    }

    /// Volumes with a replica on a disk. Disks seldom move.
    fn volumes_on(&self, disk: Uuid) -> impl Iterator<Item = VolumeId> {
        let on_it = move |shard: &&Shard| shard.members.iter().any(|member| member.disk == disk);
        self.shards.values().filter(on_it).map(|shard| shard.volume)
    }

    /// Makes the view anew; what did not change shares the memory of the older one.
    fn make_view(&mut self, older: &ClusterView, touched: &Touched) -> Result<(), MirrorError> {
        let mut view = ClusterView::clone(&self.view);
        (view.revision, view.cluster) = (self.at.revision, self.cluster.uid);
        view.level = self.cluster.level;
        if touched.pods {
            view.pods = self.pods.iter().map(|(pod, record)| view_pod(*pod, record)).collect();
        }
        if touched.disks {
            let disks = self.disks.iter();
            view.disks = disks.map(|(disk, it)| DiskView { disk: *disk, pod: it.pod }).collect();
        }
        for id in &touched.volumes {
            let now = self.view_volume(*id)?;
            let place = view.volumes.binary_search_by_key(id, |volume| volume.volume);
            match (place, now) {
                (Ok(at), Some(now)) => view.volumes[at] = Arc::new(now),
                (Ok(at), None) => drop(view.volumes.remove(at)),
                (Err(at), Some(now)) => view.volumes.insert(at, Arc::new(now)),
                (Err(_), None) => {}
            }
        }
        if touched.volumes.iter().any(|id| self.was_or_is_deleting(*id)) {
            view.destroyed = doomed(&view);
        }
        if self.view.revision == 0 {
            view.share(older);
        }
        self.view = Arc::new(view);
        Ok(())
    }

    fn was_or_is_deleting(&self, id: VolumeId) -> bool {
        self.view.volume(id).is_some_and(|volume| volume.deleting)
            || self.volumes.get(&id).is_some_and(|volume| volume.deleting)
    }

    fn view_volume(&self, id: VolumeId) -> Result<Option<VolumeView>, MirrorError> {
        let Some(volume) = self.volumes.get(&id) else { return Ok(None) };
        let shard = |shard: ShardId| self.shards.get(&shard);
        let pod_of = |disk: Uuid| self.disks.get(&disk).map(|disk| disk.pod);
        let ids = (id, AttachmentId(0))..=(id, AttachmentId(u64::MAX));
        let attachments = self.attachments.range(ids).map(|((_, id), it)| (*id, it));
        let view = view_volume(id, volume, attachments, shard, pod_of);
        view.map(Some).ok_or(MirrorError::Missing { what: "a disk or a shard" })
    }
}

/// The members of deleted volumes.
fn doomed(view: &ClusterView) -> Vec<(Uuid, MemberId)> {
    let deleting = view.volumes.iter().filter(|volume| volume.deleting);
    let members = deleting.flat_map(|volume| &volume.shards).flat_map(|shard| &shard.members);
    members.map(|member| (member.disk, member.member)).collect()
}

fn put<T: Object>(
    map: &mut Map<T::Key, T>,
    id: T::Key,
    key: &RowKey,
    row: Option<&Bytes>,
) -> Result<(), RowError> {
    match row {
        Some(row) => map.insert_mut(id, decode_row(key, row)?.1),
        None => drop(map.remove_mut(&id)),
    }
    Ok(())
}

#[cfg(test)]
#[path = "mirror_test.rs"]
mod tests;
