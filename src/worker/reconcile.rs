//! Makes this pod's members, routers and links match the catalog's view. Level-triggered: it runs
//! for a volume with every view in which the volume differs, and again when something that it waits
//! for has ended.
//!
//! A catalog that was restored from an old copy gives taken ids again. So an id alone never decides
//! about a member here. A member that differs from the view is an *orphan*: it is kept and
//! reported, and neither served nor destroyed.
//! - Owns: the view, the members that are being made or destroyed, and the orphans.
//! - May call: lanes, members, resyncs (they end with their member), and waiters for answers.
//! - Is told: views, and records of members that became durable.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::replica::member::VolumeBlocks;
use crate::replica::meta::{MEMBERS_MAX, Meta};
use crate::store::messages::MemberRecord;
use crate::types::{BLOCK_BYTES, MemberId, ShardId, Uuid, VolumeId};
use crate::view::{
    ClusterView, DiskReport, MemberReport, MemberState, MemberView, ShardView, VolumeChange,
    VolumeView,
};
use crate::worker::lanes::{LaneRuntime, Lanes};
use crate::worker::members::Members;
use crate::worker::peers::PeerHandler;
use crate::worker::resync::Resyncs;

/// A member that the store is making or destroying.
#[derive(Debug)]
pub enum Pending {
    Creating(Box<MemberRecord>, Vec<MemberView>),
    Destroying,
}

/// The newest view, and how far this pod matches it.
#[derive(Default)]
pub struct Reconciler {
    pub view: Arc<ClusterView>,
    /// Members that the store is making or destroying.
    pub pending: FxHashMap<MemberId, Pending>,
    /// Volumes whose members were made since the last look at them.
    pub created: BTreeSet<VolumeId>,
    /// Members that were destroyed, for reports.
    pub destroyed: BTreeSet<(Uuid, MemberId)>,
    /// The volumes of the view, and those of them that are being deleted.
    volumes: FxHashMap<VolumeId, Arc<VolumeView>>,
    deleting: BTreeSet<VolumeId>,
    /// Orphans: members that differ from what the catalog says.
    orphans: FxHashSet<MemberId>,
}

impl Reconciler {
    /// Takes a newer view, and returns the volumes that differ in it.
    pub fn take_view(&mut self, view: Arc<ClusterView>) -> Vec<VolumeChange> {
        let changes = view.changes_since(&self.view);
        self.view = view;
        for gone in changes.iter().filter_map(|change| change.before.as_ref()) {
            self.volumes.remove(&gone.volume);
            self.deleting.remove(&gone.volume);
        }
        for volume in changes.iter().filter_map(|change| change.now.as_ref()) {
            self.volumes.insert(volume.volume, Arc::clone(volume));
            self.deleting.extend(volume.deleting.then_some(volume.volume));
        }
        changes
    }

    /// The volume as of the newest view.
    pub fn volume(&self, volume: VolumeId) -> Option<Arc<VolumeView>> {
        self.volumes.get(&volume).cloned()
    }

    /// What this pod reports to the catalog.
    pub fn report(&self, lanes: &Lanes, members: &Members, resyncs: &Resyncs) -> Vec<DiskReport> {
        let of = |lane| self.disk_report(lane, members, resyncs);
        lanes.all.iter().map(of).chain(lanes.failed.iter().cloned()).collect()
    }

    fn disk_report(&self, lane: &LaneRuntime, members: &Members, resyncs: &Resyncs) -> DiskReport {
        let space = lane.lane.space();
        let here = members.iter().filter(|(_, runtime)| runtime.lane == lane.number);
        let mut members: Vec<MemberReport> = here
            .map(|(member, runtime)| MemberReport {
                member,
                shard: runtime.shard,
                term: runtime.role.term,
                leader: runtime.role.leader,
                applied_index: runtime.member.applied_index(),
                access: runtime.member.generation(),
                state: match self.orphans.contains(&member) {
                    true => MemberState::Orphan,
                    false => runtime.state(resyncs.is_resyncing(member)),
                },
            })
            .collect();
        members.sort_by_key(|report| report.member);
        let gone = self.destroyed.iter().filter(|(disk, _)| *disk == lane.place.disk);
        DiskReport {
            disk: lane.place.disk,
            path: lane.place.path.clone(),
            capacity_bytes: space.capacity_bytes,
            used_bytes: space.used_bytes,
            log_bytes: space.log_bytes,
            log_used_bytes: space.log_used_bytes,
            dirty_bytes: space.overlay_blocks * BLOCK_BYTES as u64,
            read_bytes: space.read_blocks * BLOCK_BYTES as u64,
            read_dirty_bytes: space.read_overlay_blocks * BLOCK_BYTES as u64,
            resyncs: resyncs.begun(lane.number),
            failed: lane.poisoned.clone(),
            members,
            destroyed: gone.map(|(_, member)| *member).collect(),
        }
    }
}

/// The reconciler, and the parts that it calls.
pub struct ReconcileHandler<'a> {
    pub reconciler: &'a mut Reconciler,
    pub lanes: &'a mut Lanes,
    pub resyncs: &'a mut Resyncs,
    pub out: PeerHandler<'a>,
}

impl ReconcileHandler<'_> {
    /// Makes this pod's members of a volume match the view.
    pub fn volume(&mut self, volume: &VolumeView) {
        for (place, shard) in volume.shards.iter().enumerate() {
            self.shard(volume, shard, blocks_of(volume, place));
        }
    }

    /// The volume does not concern this pod any more, or is gone. That destroys nothing (rule
    /// `destroy-by-record-only`): a member that is here is out of service until the volume is back.
    pub fn leaves(&mut self, volume: &VolumeView) {
        for member in volume.shards.iter().flat_map(|shard| &shard.members) {
            let here = self.out.members.get_mut(member.member);
            if let Some(here) = here.filter(|here| here.volume == volume.volume) {
                here.known = false;
                here.peers.clear();
            }
        }
    }

    fn shard(&mut self, volume: &VolumeView, shard: &ShardView, blocks: VolumeBlocks) {
        for member in &shard.members {
            let Some(lane) = self.lanes.of_disk(member.disk) else { continue };
            let others: Vec<MemberView> =
                shard.members.iter().filter(|other| *other != member).copied().collect();
            let told = (volume.volume, shard.shard, lane, blocks);
            if !self.is_as_told(member.member, told) {
                self.estrange(volume, member.member);
            } else if let Some(runtime) = self.out.members.get_mut(member.member) {
                runtime.peers = others;
                runtime.known = true;
            } else if !self.reconciler.pending.contains_key(&member.member)
                && self.lanes.get(lane).poisoned.is_none()
                // A pod that restarted may get a view from before the member was destroyed.
                && !self.lanes.get(lane).lane.is_destroyed(member.member)
                && !volume.deleting
            {
                self.create(volume, shard, blocks, member.member, lane, others);
            }
        }
    }

    /// False for a member that is here and that differs from the view.
    fn is_as_told(&self, id: MemberId, told: (VolumeId, ShardId, u8, VolumeBlocks)) -> bool {
        let Some(here) = self.out.members.get(id) else { return true };
        let is = (here.volume, here.shard, here.lane, here.member.blocks());
        !self.reconciler.orphans.contains(&id) && is == told
    }

    /// Makes a member an orphan, out of service until the pod starts again, and logs it once.
    fn estrange(&mut self, volume: &VolumeView, member: MemberId) {
        if !self.reconciler.orphans.insert(member) {
            return;
        }
        let Some(here) = self.out.members.get_mut(member) else { return };
        here.known = false;
        tracing::error!(
            %member,
            holds = %format_args!("shard {} of volume {}", here.shard, here.volume),
            told = %format_args!("volume {} ({})", volume.volume, volume.name),
            "a replica on this pod's disk belongs to something else than the catalog says; it is \
             an orphan, kept and not served: the catalog was probably restored from an old copy; \
             restore a newer one, and restart this pod"
        );
        let reason = "the catalog says that it belongs to something else".to_owned();
        self.out.stop_member(member, reason);
    }

    fn create(
        &mut self,
        volume: &VolumeView,
        shard: &ShardView,
        blocks: VolumeBlocks,
        member: MemberId,
        lane: u8,
        others: Vec<MemberView>,
    ) {
        let voters: Vec<MemberId> = shard.members.iter().map(|voter| voter.member).collect();
        if voters.len() > MEMBERS_MAX {
            let count = voters.len();
            tracing::error!(%member, shard = %shard.shard, count, "too many voters: not created");
            return;
        }
        let record = MemberRecord {
            member,
            shard: shard.shard,
            volume: volume.volume,
            first_block_in_volume: blocks.first,
            blocks: blocks.count,
            flushed_index: 0,
            flushed_term: 0,
            meta: Meta::born(&voters, blocks.count, &shard.birth).encode(),
            resyncing: false,
        };
        tracing::info!(%member, shard = %shard.shard, volume = %volume.name, "replica created");
        self.lanes.at(lane).create_member(record.clone());
        let pending = Pending::Creating(Box::new(record), others);
        self.reconciler.pending.insert(member, pending);
    }

    /// Destroys the members that the catalog records as destroyed.
    pub fn destroy_doomed(&mut self, view: &ClusterView) {
        // The catalog forgets a member when it has heard that it is gone; so do the reports.
        let doomed: FxHashSet<(Uuid, MemberId)> = view.destroyed.iter().copied().collect();
        self.reconciler.destroyed.retain(|gone| doomed.contains(gone));
        // A volume stays, as one that is being deleted, until the last of its members is gone.
        let deleting = self.reconciler.deleting.iter();
        let deleting: Vec<_> = deleting.filter_map(|id| self.reconciler.volume(*id)).collect();
        for member in deleting.iter().flat_map(|volume| &volume.shards).flat_map(|it| &it.members) {
            if doomed.contains(&(member.disk, member.member)) {
                self.destroy(member.disk, member.member);
            }
        }
    }

    fn destroy(&mut self, disk: Uuid, member: MemberId) {
        let Some(lane) = self.lanes.of_disk(disk) else { return };
        let Reconciler { pending, destroyed, orphans, .. } = &mut *self.reconciler;
        if pending.contains_key(&member)
            || destroyed.contains(&(disk, member))
            || orphans.contains(&member)
        {
            return;
        }
        pending.insert(member, Pending::Destroying);
        if self.out.members.get(member).is_none() {
            // Never here, or gone before a crash: its tombstone is enough, asking again harmless.
            tracing::debug!(%member, "a replica that is not here is destroyed");
        }
        self.out.stop_member(member, "its volume was deleted".to_owned());
        self.out.members.remove(member);
        self.resyncs.forget(member);
        self.lanes.at(lane).destroy_member(member);
    }
}

/// The blocks of the shard at this place of the volume. The last one has the full length, too, so
/// that the volume can grow; what is behind the volume's end costs nothing.
fn blocks_of(volume: &VolumeView, place: usize) -> VolumeBlocks {
    let blocks = volume.stripe_bytes / BLOCK_BYTES as u64;
    VolumeBlocks {
        first: place as u64 * blocks,
        count: u32::try_from(blocks).expect("a shard is below 16 TiB"),
    }
}
