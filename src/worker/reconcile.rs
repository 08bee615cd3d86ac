//! Makes this pod's members, routers and links what the catalog's view says they are. Level
//! triggered: called with every view, and again whenever something it waits for has ended.
//!
//! A catalog that was restored from an old copy gives ids again that are taken. So an id alone
//! never decides about a member that is here: one that is not what the view says is a *stranger*,
//! which is kept as it is, shown as unknown, and neither served nor destroyed.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::replica::member::{Member, VolumeBlocks};
use crate::replica::meta::Meta;
use crate::replica::seam::{MemberConfig, Start};
use crate::store::seam::MemberRecord;
use crate::types::{BLOCK_BYTES, MemberId, Uuid};
use crate::view::{
    ClusterView, DiskReport, MemberReport, MemberState, MemberView, PodReport, ShardView,
    VolumeView,
};
use crate::volume::Volume;
use crate::worker::Worker;
use crate::worker::members::MemberRuntime;

/// A member that the store was asked to make or to forget.
#[derive(Debug)]
pub enum Pending {
    Creating(Box<MemberRecord>, Vec<MemberView>),
    Destroying,
}

impl Worker {
    /// A newer view of the cluster.
    pub fn view_changed(&mut self, view: Arc<ClusterView>) {
        if view.revision < self.view.revision {
            return;
        }
        self.view = view;
        self.reconcile();
    }

    fn reconcile(&mut self) {
        let view = Arc::clone(&self.view);
        self.peers.update_view(&view);
        for volume in &view.volumes {
            for shard in &volume.shards {
                self.reconcile_shard(volume, shard);
            }
            self.reconcile_router(volume);
        }
        let gone = |volume: &crate::types::VolumeId| {
            !view.volumes.iter().any(|known| known.volume == *volume && !known.deleting)
        };
        let gone: Vec<_> = self.volumes.keys().copied().filter(gone).collect();
        for volume in gone {
            self.close_volume(volume);
        }
        // The catalog forgets a member when it has heard that it is gone; so do the reports.
        self.destroyed.retain(|gone| view.destroyed.contains(gone));
        let doomed: FxHashSet<(Uuid, MemberId)> = view.destroyed.iter().copied().collect();
        // A volume stays, as one that is being deleted, until the last of its members is gone.
        let deleted = view.volumes.iter().filter(|volume| volume.deleting);
        for member in deleted.flat_map(|volume| &volume.shards).flat_map(|shard| &shard.members) {
            if doomed.contains(&(member.disk, member.member)) {
                self.destroy(member.disk, member.member);
            }
        }
        self.report_due = true;
    }

    fn reconcile_shard(&mut self, volume: &VolumeView, shard: &ShardView) {
        for member in &shard.members {
            let Some(lane) = self.lanes.iter().position(|lane| lane.place.disk == member.disk)
            else {
                continue;
            };
            let others: Vec<MemberView> =
                shard.members.iter().filter(|other| *other != member).copied().collect();
            if !self.is_as_told(volume, shard, member.member, lane as u8) {
                self.estrange(volume, member.member);
            } else if let Some(runtime) = self.members.get_mut(&member.member) {
                runtime.peers = others;
                runtime.known = true;
            } else if !self.pending.contains_key(&member.member)
                && self.lanes[lane].poisoned.is_none()
                // A view from before it was destroyed: a pod that restarted may get one.
                && !self.lanes[lane].lane.is_destroyed(member.member)
                && !volume.deleting
            {
                self.create(volume, shard, member.member, lane as u8, others);
            }
        }
    }

    /// False for a member that is here and is not the one that the view means.
    fn is_as_told(
        &self,
        volume: &VolumeView,
        shard: &ShardView,
        member: MemberId,
        lane: u8,
    ) -> bool {
        let Some(here) = self.members.get(&member) else { return true };
        let is = (here.volume, here.shard, here.lane, here.member.blocks());
        !self.strangers.contains(&member)
            && is == (volume.volume, shard.shard, lane, blocks_of(volume, shard))
    }

    /// Takes a member out of service until the pod starts again, and says so once.
    fn estrange(&mut self, volume: &VolumeView, member: MemberId) {
        if !self.strangers.insert(member) {
            return;
        }
        let Some(here) = self.members.get_mut(&member) else { return };
        here.known = false;
        tracing::error!(
            %member,
            holds = %format_args!("shard {} of volume {}", here.shard, here.volume),
            told = %format_args!("volume {} ({})", volume.volume, volume.name),
            "a replica on this pod's disk belongs to something else than the catalog says; it is \
             kept and not served: the catalog was probably restored from an old copy; restore a \
             newer one, and restart this pod"
        );
        let reason = "the catalog says that it belongs to something else".to_owned();
        self.stop_member(member, reason);
    }

    fn create(
        &mut self,
        volume: &VolumeView,
        shard: &ShardView,
        member: MemberId,
        lane: u8,
        others: Vec<MemberView>,
    ) {
        let blocks = blocks_of(volume, shard);
        let voters: Vec<MemberId> = shard.members.iter().map(|voter| voter.member).collect();
        let record = MemberRecord {
            member,
            shard: shard.shard,
            volume: volume.volume,
            first_block_in_volume: blocks.first,
            blocks: blocks.count,
            flushed_index: 0,
            flushed_term: 0,
            meta: Meta::new(&voters, blocks.count).encode(),
            resyncing: false,
        };
        tracing::info!(%member, shard = %shard.shard, volume = %volume.name, "replica created");
        self.lanes[usize::from(lane)].lane.create_member(record.clone());
        self.pending.insert(member, Pending::Creating(Box::new(record), others));
        self.touch_lane(lane);
    }

    fn destroy(&mut self, disk: Uuid, member: MemberId) {
        let Some(lane) = self.lanes.iter().position(|lane| lane.place.disk == disk) else { return };
        let known = self.members.contains_key(&member);
        if self.pending.contains_key(&member)
            || self.destroyed.contains(&(disk, member))
            || self.strangers.contains(&member)
        {
            return;
        }
        if !known {
            // It never was here, or it went before a crash: the store's tombstone is enough, and
            // asking again is harmless.
            tracing::debug!(%member, "a replica that is not here is destroyed");
        }
        self.stop_member(member, "its volume was deleted".to_owned());
        self.members.remove(&member);
        self.lanes[lane].lane.destroy_member(member);
        self.pending.insert(member, Pending::Destroying);
        self.touch_lane(lane as u8);
    }

    /// A record of a member became durable: created, destroyed, or a step of its resync.
    pub fn member_durable(&mut self, lane: u8, member: MemberId) {
        match self.pending.remove(&member) {
            None => self.resync_durable(member),
            Some(Pending::Destroying) => {
                let disk = self.lanes[usize::from(lane)].place.disk;
                self.destroyed.push((disk, member));
                self.report_due = true;
            }
            Some(Pending::Creating(record, peers)) => {
                let start = Start { meta: record.meta.clone(), ..Start::default() };
                self.start_member(lane, &record, start, peers);
                self.reconcile();
            }
        }
    }

    /// Brings a member to life.
    pub fn start_member(
        &mut self,
        lane: u8,
        record: &MemberRecord,
        start: Start,
        peers: Vec<MemberView>,
    ) {
        let config = MemberConfig {
            member: record.member,
            shard: record.shard,
            volume: record.volume,
            first_block_in_volume: record.first_block_in_volume,
            seed: self.config.seed ^ record.member.0,
            blocks: record.blocks,
            log_tail_bytes: self.config.log_tail_bytes,
            proposal_bytes_max: self.config.budgets.shard_bytes,
            reads: self.config.reads,
            pool: self.pool.clone(),
        };
        let faulted = start.faulted.then(|| "a part of its log is corrupt".to_owned());
        let resume_at = start.resyncing.then_some(self.now);
        let runtime = MemberRuntime {
            member: Member::start(config, start, self.now),
            lane,
            shard: record.shard,
            volume: record.volume,
            role: Default::default(),
            known: !peers.is_empty(),
            peers,
            touched: true,
            faulted,
            resync: None,
            resume_at,
            demand: Default::default(),
        };
        self.members.insert(record.member, runtime);
        self.touched.members.push(record.member);
    }

    fn reconcile_router(&mut self, volume: &VolumeView) {
        if volume.deleting {
            return;
        }
        match self.volumes.get_mut(&volume.volume) {
            Some(router) => router.update_view(volume),
            None => {
                let router = Volume::new(volume.clone(), self.config.pod, self.sessions.clone())
                    .with_bytes_max(self.config.budgets.volume_bytes);
                self.volumes.insert(volume.volume, router);
            }
        }
        self.touch_volume(volume.volume);
    }

    /// What this pod tells the catalog.
    pub fn report(&self) -> PodReport {
        let disks = (0..self.lanes.len()).map(|lane| self.disk_report(lane));
        let disks = disks.chain(self.failed_disks.iter().cloned()).collect();
        PodReport { pod: self.config.pod, disks }
    }

    fn disk_report(&self, number: usize) -> DiskReport {
        let lane = &self.lanes[number];
        let space = lane.lane.space();
        let here = self.members.iter().filter(|(_, runtime)| usize::from(runtime.lane) == number);
        let mut members: Vec<MemberReport> = here
            .map(|(member, runtime)| MemberReport {
                member: *member,
                shard: runtime.shard,
                term: runtime.role.term,
                leader: runtime.role.leader,
                applied_index: runtime.member.applied_index(),
                state: match self.strangers.contains(member) {
                    true => MemberState::Unknown,
                    false => runtime.state(),
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
            overlay_bytes: space.overlay_blocks * BLOCK_BYTES as u64,
            read_bytes: space.read_blocks * BLOCK_BYTES as u64,
            read_overlay_bytes: space.read_overlay_blocks * BLOCK_BYTES as u64,
            failed: lane.poisoned.clone(),
            members,
            destroyed: gone.map(|(_, member)| *member).collect(),
        }
    }
}

fn blocks_of(volume: &VolumeView, shard: &ShardView) -> VolumeBlocks {
    let place = volume.shards.iter().position(|known| known.shard == shard.shard);
    let start = place.unwrap_or(0) as u64 * volume.stripe_bytes;
    let bytes = volume.stripe_bytes.min(volume.size_bytes - start);
    VolumeBlocks {
        first: start / BLOCK_BYTES as u64,
        count: u32::try_from(bytes / BLOCK_BYTES as u64).expect("a shard is below 16 TiB"),
    }
}
