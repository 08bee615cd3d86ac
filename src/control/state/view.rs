//! The state as the data path sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::control::command::Addresses;
use crate::control::state::CatalogState;
use crate::control::state::rows::{Attachment, Pod, Shard, ShardMember, Volume};
use crate::types::{AccessSet, AttachmentId, PodId, ShardId, Uuid, VolumeId};
use crate::view::{
    AttachmentView, ClusterView, DiskView, MemberView, PodView, ShardView, VolumeView,
};

/// The whole cluster. Takes as long as there are objects: for tests and checks.
pub fn view(state: &CatalogState) -> ClusterView {
    view_if(state, |_, _| true)
}

/// The part that concerns a pod with these wants, found by a look at everything. For tests and
/// checks.
pub fn part(state: &CatalogState, pod: PodId, wants: &BTreeSet<VolumeId>) -> ClusterView {
    let node = state.pods.get(&pod).map(|pod| &pod.node);
    let is_ours = |member: &ShardMember| state.disks[&member.disk].pod == pod;
    view_if(state, |id, volume| {
        let mut members = state.shards_of(volume).flat_map(|(_, shard)| &shard.members);
        let mut attachments = state.attachments_of(id);
        wants.contains(&id)
            || members.any(is_ours)
            || attachments.any(|(_, attachment)| Some(&attachment.node) == node)
    })
}

fn view_if(state: &CatalogState, shows: impl Fn(VolumeId, &Volume) -> bool) -> ClusterView {
    let shown = || state.volumes.iter().filter(|(id, volume)| shows(**id, volume));
    let deleting = shown().filter(|(_, volume)| volume.deleting);
    let doomed = deleting.flat_map(|(_, volume)| {
        let shards = state.shards_of(volume);
        shards.flat_map(|(_, shard)| shard.members.iter().map(|it| (it.disk, it.member)))
    });
    let shard = |shard: ShardId| state.shards.get(&shard);
    let pod_of = |disk: Uuid| state.disks.get(&disk).map(|disk| disk.pod);
    let volumes = shown().map(|(id, volume)| {
        let attachments = state.attachments_of(*id);
        let volume = view_volume(*id, volume, attachments, shard, pod_of);
        Arc::new(volume.expect("the state has all shards and disks"))
    });
    ClusterView {
        revision: state.revision(),
        cluster: state.cluster.uid,
        level: state.cluster.level,
        pods: state.pods.iter().map(|(pod, record)| view_pod(*pod, record)).collect(),
        disks: state
            .disks
            .iter()
            .map(|(disk, record)| DiskView { disk: *disk, pod: record.pod })
            .collect(),
        volumes: volumes.collect(),
        destroyed: doomed.collect(),
    }
}

pub fn view_pod(pod: PodId, record: &Pod) -> PodView {
    let Addresses { api, peer, nbd } = record.addresses;
    PodView { pod, peer, api, nbd }
}

/// A volume with all of its shards; `None` when a shard of a volume in use, or the disk of a
/// member, is not known.
pub fn view_volume<'a>(
    id: VolumeId,
    volume: &Volume,
    attachments: impl Iterator<Item = (AttachmentId, &'a Attachment)>,
    shard: impl Fn(ShardId) -> Option<&'a Shard>,
    pod_of: impl Fn(Uuid) -> Option<PodId>,
) -> Option<VolumeView> {
    let view_member = |member: &ShardMember| {
        let ShardMember { member, disk } = *member;
        Some(MemberView { member, disk, pod: pod_of(disk)? })
    };
    let shards = volume.shard_ids().map(|id| {
        let (members, birth) = match shard(id) {
            Some(shard) => {
                let members = shard.members.iter().map(view_member).collect::<Option<_>>()?;
                (members, shard.birth.clone())
            }
            // A shard whose members are all destroyed keeps its place, with none.
            None if volume.deleting => (Vec::new(), AccessSet::default()),
            None => return None,
        };
        Some(ShardView { shard: id, members, birth })
    });
    // Before every shard knows an attachment, its front end does nothing.
    let active = attachments.filter(|(_, it)| it.active);
    Some(VolumeView {
        volume: id,
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        stripe_width: volume.stripe_width,
        stripe_bytes: volume.stripe_bytes,
        shards: shards.collect::<Option<_>>()?,
        withheld: volume.is_withheld(),
        deleting: volume.deleting,
        open: volume.access.open,
        io_timeout_ms: volume.io_timeout_ms,
        attachments: active
            .map(|(id, it)| AttachmentView {
                id,
                uid: it.uid,
                node: it.node.clone(),
                mode: it.mode,
                io_timeout_ms: it.io_timeout_ms,
            })
            .collect(),
    })
}
