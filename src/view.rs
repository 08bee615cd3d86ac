//! The data path's view of the cluster, made by `control`, read by `worker` and `volume`. Always
//! all that concerns the pod, never a difference. The newest revision wins. A new view shares its
//! unchanged volumes with the one before, so that the data path sees at once what differs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::level::Level;
use crate::types::{
    AccessMode, AccessSet, AttachmentId, Generation, MemberId, PodId, ShardId, Uuid, VolumeId,
};

/// The cluster as of one revision of the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub revision: u64,
    pub cluster: Uuid,
    pub level: Level,
    pub pods: Vec<PodView>,
    pub disks: Vec<DiskView>,
    /// Those that concern this pod, ordered by their ids. Others exist.
    pub volumes: Vec<Arc<VolumeView>>,
    /// Members to destroy wherever they are found (rule `destroy-by-record-only`). Each stays
    /// listed until its disk has reported the destruction.
    pub destroyed: Vec<(Uuid, MemberId)>,
}

/// A volume that differs between two views; never `None` in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeChange {
    pub before: Option<Arc<VolumeView>>,
    pub now: Option<Arc<VolumeView>>,
}

impl ClusterView {
    /// Uses the memory of the volumes of an older view that are still the same.
    pub fn share(&mut self, older: &ClusterView) {
        let known: FxHashMap<VolumeId, &Arc<VolumeView>> =
            older.volumes.iter().map(|volume| (volume.volume, volume)).collect();
        for volume in &mut self.volumes {
            if let Some(same) = known.get(&volume.volume)
                && **same == *volume
            {
                *volume = Arc::clone(same);
            }
        }
    }

    /// A volume, if it is known here.
    pub fn volume(&self, id: VolumeId) -> Option<&Arc<VolumeView>> {
        let at = self.volumes.binary_search_by_key(&id, |volume| volume.volume).ok()?;
        Some(&self.volumes[at])
    }

    /// The volumes that differ from those of an older view. Shared ones before and behind the
    /// differences are not looked at.
    pub fn changes_since(&self, older: &ClusterView) -> Vec<VolumeChange> {
        let (mut before, mut now) = (&older.volumes[..], &self.volumes[..]);
        while let ([one, before_rest @ ..], [other, now_rest @ ..]) = (before, now)
            && Arc::ptr_eq(one, other)
        {
            (before, now) = (before_rest, now_rest);
        }
        while let ([before_rest @ .., one], [now_rest @ .., other]) = (before, now)
            && Arc::ptr_eq(one, other)
        {
            (before, now) = (before_rest, now_rest);
        }
        let mut known: FxHashMap<VolumeId, &Arc<VolumeView>> =
            before.iter().map(|volume| (volume.volume, volume)).collect();
        let mut changes = Vec::new();
        for volume in now {
            let before = known.remove(&volume.volume);
            if before != Some(volume) {
                changes.push(VolumeChange { before: before.cloned(), now: Some(volume.clone()) });
            }
        }
        let gone = before.iter().filter(|volume| known.contains_key(&volume.volume));
        changes.extend(gone.map(|gone| VolumeChange { before: Some(gone.clone()), now: None }));
        changes
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodView {
    pub pod: PodId,
    /// Address of its data path for peers.
    pub peer: SocketAddr,
    pub api: SocketAddr,
    pub nbd: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    pub disk: Uuid,
    pub pod: PodId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    pub volume: VolumeId,
    pub name: String,
    /// What clients may use. It only grows.
    pub size_bytes: u64,
    /// Always 1 at present.
    pub stripe_width: u32,
    /// Length of every shard.
    pub stripe_bytes: u64,
    /// In the order of their position in the volume. Of a growing volume there may be more than its
    /// size takes.
    pub shards: Vec<ShardView>,
    /// It is deleted and kept, or not quite back: no client may use it, and it keeps its members.
    #[serde(default)]
    pub withheld: bool,
    /// The volume is being deleted and is no longer exported.
    pub deleting: bool,
    /// Anybody may use it, by its name. Otherwise only attachments may, by their uids.
    #[serde(default = "is_open_unless_said")]
    pub open: bool,
    /// I/O without an attachment fails when it has waited for so long; 0: it waits for ever.
    #[serde(default)]
    pub io_timeout_ms: u64,
    /// The attachments that every shard has admitted (rule `grant-waits-for-all-shards`).
    #[serde(default)]
    pub attachments: Vec<AttachmentView>,
}

fn is_open_unless_said() -> bool {
    true
}

impl VolumeView {
    /// True when this has less than an earlier view of the same volume, or another shard in a
    /// place: a recovered catalog may not know that it grew. Nobody follows such a view.
    pub fn shrinks(&self, before: &VolumeView) -> bool {
        let mut common = self.shards.iter().zip(&before.shards);
        self.size_bytes < before.size_bytes
            || self.shards.len() < before.shards.len()
            || common.any(|(now, before)| now.shard != before.shard)
    }

    /// True for none, and for an attachment that is shown.
    pub fn knows(&self, attachment: AttachmentId) -> bool {
        let mut shown = self.attachments.iter();
        attachment == AttachmentId::NONE || shown.any(|known| known.id == attachment)
    }

    /// How long I/O under this attachment, or under none, may wait; `None`: for ever.
    pub fn io_timeout(&self, attachment: AttachmentId) -> Option<Duration> {
        let of = |known: &&AttachmentView| known.id == attachment;
        let found = self.attachments.iter().find(of);
        let ms = found.map_or(self.io_timeout_ms, |found| found.io_timeout_ms);
        (ms > 0).then(|| Duration::from_millis(ms))
    }
}

/// An attachment that may use its volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentView {
    pub id: AttachmentId,
    /// Its export has this name.
    pub uid: Uuid,
    /// The node that may use the volume by it.
    pub node: String,
    pub mode: AccessMode,
    /// Its I/O fails when it has waited for so long; 0: it waits for ever.
    #[serde(default)]
    pub io_timeout_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardView {
    pub shard: ShardId,
    pub members: Vec<MemberView>,
    /// Who may use the shard when it is made. It never changes; the shard's own metadata says who
    /// may use it now (rule `born-from-the-birth-record`).
    #[serde(default)]
    pub birth: AccessSet,
}

/// A voter of a shard, and its location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub member: MemberId,
    pub disk: Uuid,
    pub pod: PodId,
}

/// The data path's report to `control`, always complete. Sent when leaders or faults change, and
/// from time to time for the space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    pub pod: PodId,
    pub disks: Vec<DiskReport>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub disk: Uuid,
    pub path: String,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Length of the write-ahead log, and the part of it that must not be overwritten yet.
    #[serde(default)]
    pub log_bytes: u64,
    #[serde(default)]
    pub log_used_bytes: u64,
    /// Dirty blocks, in bytes.
    #[serde(default)]
    pub dirty_bytes: u64,
    /// Bytes that clients read from this disk since the pod started, without holes. The second
    /// number is the part that was dirty when read.
    #[serde(default)]
    pub read_bytes: u64,
    #[serde(default)]
    pub read_dirty_bytes: u64,
    /// Resyncs into replicas of this disk that began since the pod started.
    #[serde(default)]
    pub resyncs: u64,
    /// Why the disk was given up, if it was.
    pub failed: Option<String>,
    pub members: Vec<MemberReport>,
    /// Members of `ClusterView::destroyed` that are durably gone from this disk.
    pub destroyed: Vec<MemberId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    pub member: MemberId,
    pub shard: ShardId,
    pub term: u64,
    pub leader: Option<MemberId>,
    pub applied_index: u64,
    /// The generation of the access set that is applied here.
    #[serde(default)]
    pub access: Generation,
    pub state: MemberState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    #[default]
    Follower,
    Leader,
    Resyncing,
    Faulted,
    /// An orphan replica: on the disk, but unknown to the catalog. Kept and shown, never served.
    Orphan,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(volumes: &[(u64, &str)]) -> ClusterView {
        let volume = |(volume, name): &(u64, &str)| VolumeView {
            volume: VolumeId(*volume),
            name: (*name).to_owned(),
            size_bytes: 4096,
            stripe_width: 1,
            stripe_bytes: 4096,
            shards: Vec::new(),
            withheld: false,
            deleting: false,
            open: true,
            io_timeout_ms: 0,
            attachments: Vec::new(),
        };
        let volumes = volumes.iter().map(volume).map(Arc::new).collect();
        ClusterView { volumes, ..ClusterView::default() }
    }

    #[test]
    fn changes_are_what_differs_whether_memory_is_shared_or_not() {
        let before = view(&[(1, "a"), (2, "b"), (3, "c"), (4, "d")]);
        for shares in [false, true] {
            let mut now = view(&[(1, "a"), (3, "other"), (4, "d"), (5, "new")]);
            if shares {
                now.share(&before);
                assert!(Arc::ptr_eq(&now.volumes[2], &before.volumes[3]));
            }
            let changes = now.changes_since(&before);
            let names = changes.iter().map(|change| {
                let name = |side: &Option<Arc<VolumeView>>| side.as_ref().map(|v| v.name.clone());
                (name(&change.before), name(&change.now))
            });
            let some = |name: &str| Some(name.to_owned());
            assert_eq!(
                names.collect::<Vec<_>>(),
                [(some("c"), some("other")), (None, some("new")), (some("b"), None)]
            );
            assert_eq!(now.changes_since(&now.clone()), []);
        }
    }
}
