//! Conditions for an idle, healed cluster: every replica has applied the same entries, holds the
//! same bytes, and owns exactly the slots that its index names.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::io::buffer::Pool;
use crate::sim::checks::history::Value;
use crate::sim::checks::{bounds, slots};
use crate::sim::names::{DiskNumber, Host, disk_id, pod_id};
use crate::sim::world::World;
use crate::store::lane::{Lane, LaneFiles};
use crate::store::messages::{Done, Effect, Event, ReadId};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockRange, EXTENT_BYTES};
use crate::types::{MemberId, Segment, ShardId, Uuid};
use crate::view::{ClusterView, MemberReport, MemberState, ShardView, VolumeView};
use crate::worker::execute;

/// The first request id of the reads of this file.
const READ: u64 = 1 << 60;

/// Describes a difference.
pub type Difference = String;

impl World {
    /// Describes why the replicas are not idle and equal: a destruction is not finished, a member
    /// is missing, applied indexes differ, dirty blocks are left, or slots are in use that no index
    /// names (the log may still name them).
    pub fn unsettled(&mut self) -> Option<Difference> {
        let view = Arc::clone(self.catalog.view());
        if let Some(what) = self.catalog.unsettled() {
            return Some(what);
        }
        if let Some((_, member)) = view.destroyed.first() {
            return Some(format!("{member:?} is not destroyed"));
        }
        let shards = || view.volumes.iter().flat_map(|volume| &volume.shards);
        let mut missing: BTreeSet<MemberId> =
            shards().flat_map(|shard| &shard.members).map(|member| member.member).collect();
        let mut applied: BTreeMap<ShardId, MemberReport> = BTreeMap::new();
        for pod in &self.pods {
            let Some(worker) = &pod.worker else { return Some("a pod is down".to_owned()) };
            if let Err(wrong) = bounds::at_rest(&worker.load()) {
                return Some(wrong);
            }
            let report = worker.report();
            for disk in report.disks {
                if disk.dirty_bytes > 0 {
                    return Some(format!("{:?} has not written everything back", report.pod));
                }
                for member in disk.members {
                    if !missing.remove(&member.member) {
                        return Some(format!("{member:?} is there, and should not"));
                    }
                    if member.state == MemberState::Faulted {
                        continue;
                    }
                    let first = applied.entry(member.shard).or_insert_with(|| member.clone());
                    let same = first.applied_index == member.applied_index;
                    if !same || member.state == MemberState::Resyncing {
                        return Some(format!("{first:?} and {member:?}"));
                    }
                }
            }
        }
        if let Some(member) = missing.first() {
            return Some(format!("{member:?} is missing"));
        }
        (0..self.pods.len()).find_map(|host| {
            let disks = self.disks_of(host);
            disks.into_iter().enumerate().find_map(|(lane, disk)| self.leak(host, lane, disk))
        })
    }

    /// The newest entry that any member of each shard has applied.
    pub fn newest_applied(&self) -> BTreeMap<ShardId, u64> {
        let mut newest = BTreeMap::new();
        for member in self.member_reports().map(|(_, member)| member) {
            let applied: &mut u64 = newest.entry(member.shard).or_default();
            *applied = member.applied_index.max(*applied);
        }
        newest
    }

    /// Describes a member that is resyncing, or has not applied what others had applied `before`.
    /// Members on a hung disk need not, but may not lead.
    pub fn out_of_step(
        &self,
        before: &BTreeMap<ShardId, u64>,
        hung: Option<DiskNumber>,
    ) -> Option<Difference> {
        if self.pods.iter().any(|pod| pod.worker.is_none()) {
            return Some("a pod is down".to_owned());
        }
        let hung = hung.map(disk_id);
        let mut all = self.member_reports();
        let found = all.find(|(disk, member)| match Some(*disk) == hung {
            true => member.state == MemberState::Leader,
            false => {
                let reached = before.get(&member.shard).copied().unwrap_or(0);
                member.state == MemberState::Resyncing || member.applied_index < reached
            }
        });
        let (disk, member) = found?;
        let reached = before.get(&member.shard);
        Some(format!("{member:?} of disk {disk}; others had {reached:?} before"))
    }

    /// All members of running pods that are not faulted, and their disks.
    fn member_reports(&self) -> impl Iterator<Item = (Uuid, MemberReport)> {
        let reports = self.pods.iter().filter_map(|pod| Some(pod.worker.as_ref()?.report()));
        let disks = reports.flat_map(|report| report.disks);
        let members = disks.flat_map(|disk| {
            let on = disk.disk;
            disk.members.into_iter().map(move |member| (on, member))
        });
        members.filter(|(_, member)| member.state != MemberState::Faulted)
    }

    /// The volumes that need none of these pods: each shard has a majority of replicas in other
    /// pods, on disks with space. These must answer, even if some replicas are being resynced.
    pub fn answering_without(&self, hosts: &[Host]) -> BTreeSet<String> {
        let view = self.catalog.view();
        let has_catalog = self.catalog.has_majority_without(hosts);
        if !has_catalog && !self.knows_all(view, hosts) {
            return BTreeSet::new();
        }
        let mut present: BTreeMap<ShardId, usize> = BTreeMap::new();
        for (number, pod) in self.pods.iter().enumerate() {
            let Some(worker) = pod.worker.as_ref().filter(|_| !hosts.contains(&number)) else {
                continue;
            };
            let is_tiny = |disk| self.shape.tiny.is_some_and(|tiny| disk_id(tiny.0) == disk);
            let disks = worker.report().disks.into_iter();
            let kernel = self.kernel.borrow();
            let hangs = |disk| {
                let mut all = kernel.disks.iter();
                all.any(|of| disk_id(of.number) == disk && of.sick.hangs(kernel.now))
            };
            let can_answer = |disk| !is_tiny(disk) && !hangs(disk);
            let disks = disks.filter(|disk| disk.failed.is_none() && can_answer(disk.disk));
            for member in disks.flat_map(|disk| disk.members) {
                let counts = !matches!(member.state, MemberState::Faulted | MemberState::Orphan);
                *present.entry(member.shard).or_default() += usize::from(counts);
            }
        }
        let has_majority = |shard: &ShardView| {
            2 * present.get(&shard.shard).copied().unwrap_or(0) > shard.members.len()
        };
        let fronts = (0..self.pods.len()).filter(|host| !hosts.contains(host));
        let opens = |volume: &VolumeView| {
            // A pod with a replica is told of the volume. It asks the catalog about all others.
            let stores = |host: Host| {
                let disks: Vec<Uuid> = self.disks_of(host).into_iter().map(disk_id).collect();
                let mut members = volume.shards.iter().flat_map(|shard| &shard.members);
                members.any(|member| disks.contains(&member.disk))
            };
            let knows = |host: Host| {
                let mut known = self.pods[host].view.volumes.iter();
                stores(host) || known.any(|known| known.volume == volume.volume)
            };
            has_catalog || fronts.clone().all(knows)
        };
        let answers = view.volumes.iter().filter(|volume| volume.shards.iter().all(has_majority));
        let answers = answers.filter(|volume| opens(volume));
        answers.map(|volume| volume.name.clone()).collect()
    }

    /// True when all other pods have the newest view, and it is right about their disks.
    fn knows_all(&self, view: &ClusterView, hosts: &[Host]) -> bool {
        let others = || (0..self.pods.len()).filter(|host| !hosts.contains(host));
        let is_right = |host: Host, disk: DiskNumber| {
            let mut known = view.disks.iter();
            known.any(|known| known.disk == disk_id(disk) && known.pod == pod_id(host))
        };
        others().all(|host| {
            let mut disks = self.disks_of(host).into_iter();
            self.pods[host].view.revision == view.revision && disks.all(|disk| is_right(host, disk))
        })
    }

    /// A faulted member on another disk than `bad`.
    pub fn faulted_elsewhere(&self, bad: DiskNumber) -> Option<Difference> {
        let reports = self.pods.iter().filter_map(|pod| Some(pod.worker.as_ref()?.report()));
        let disks = reports.flat_map(|report| report.disks);
        let mut members =
            disks.filter(|disk| disk.disk != disk_id(bad)).flat_map(|disk| disk.members);
        let faulted = members.find(|member| member.state == MemberState::Faulted)?;
        Some(format!("{:?} is faulted", faulted.member))
    }

    /// Compares all replicas, without blocks that a replica reports as lost. Ends the run: lanes
    /// get inputs that their workers do not know.
    pub fn compare_replicas(&mut self) -> Result<(), Difference> {
        let mut contents: BTreeMap<(ShardId, u32), (MemberId, Vec<u8>)> = BTreeMap::new();
        for host in 0..self.pods.len() {
            for (lane, disk) in self.disks_of(host).into_iter().enumerate() {
                for (member, shard, blocks) in self.members_on(host, lane) {
                    for extent in 0..blocks.div_ceil(BLOCKS_PER_EXTENT) {
                        let first = extent * BLOCKS_PER_EXTENT;
                        let count = BLOCKS_PER_EXTENT.min(blocks - first);
                        let range = BlockRange { first: Block(first), count };
                        let Some(bytes) = self.read_range(host, lane, disk, member, range) else {
                            continue;
                        };
                        let seen = contents.entry((shard, extent));
                        let seen = seen.or_insert_with(|| (member, bytes.clone()));
                        if let Some(block) = differing_block(&seen.1, &bytes) {
                            let at = block as usize * BLOCK_BYTES;
                            return Err(format!(
                                "block {} of {shard:?} is {:?} in {:?} and {:?} in {member:?}",
                                first + block,
                                values(&seen.1[at..]),
                                seen.0,
                                values(&bytes[at..]),
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Members of a disk that are not faulted, with their shards and sizes in blocks.
    fn members_on(&self, host: Host, lane: usize) -> Vec<(MemberId, ShardId, u32)> {
        let view = self.catalog.view();
        let blocks_of = |shard: ShardId| {
            let mut volumes = view.volumes.iter();
            let has =
                |volume: &&Arc<VolumeView>| volume.shards.iter().any(|has| has.shard == shard);
            volumes.find(has).map(|volume| (volume.stripe_bytes / BLOCK_BYTES as u64) as u32)
        };
        let worker = self.pods[host].worker.as_ref().expect("all pods are up");
        let members = worker.report().disks.swap_remove(lane).members;
        members
            .into_iter()
            .filter(|member| member.state != MemberState::Faulted)
            .map(|member| {
                let blocks = blocks_of(member.shard).expect("only what the view has is there");
                (member.member, member.shard, blocks)
            })
            .collect()
    }

    /// Compares the used slots of a disk with those that its index names.
    fn leak(&mut self, host: Host, lane: usize, disk: DiskNumber) -> Option<Difference> {
        let index = Rc::clone(&self.kernel.borrow().disks[disk].index);
        let named = match slots::owned(&mut index.borrow_mut()) {
            Ok(named) => named,
            Err(wrong) => return Some(wrong),
        };
        let used = self.lane(host, lane).space().used_bytes / EXTENT_BYTES as u64;
        let text = || format!("disk {disk} uses {used} slots, its index names {named}");
        (used != named).then(text)
    }

    fn lane(&mut self, host: Host, lane: usize) -> &mut Lane {
        let worker = self.pods[host].worker.as_mut().expect("all pods are up");
        worker.lanes().nth(lane).expect("every disk has a lane")
    }

    /// Reads blocks of one extent from a replica; `None`: it knows that it has lost them.
    fn read_range(
        &mut self,
        host: Host,
        lane: usize,
        disk: DiskNumber,
        member: MemberId,
        range: BlockRange,
    ) -> Option<Vec<u8>> {
        let extent = range.first.extent();
        let now = self.kernel.borrow().local_time(host);
        let mut files = self.files(disk, Pool::default());
        let index = Rc::clone(&self.kernel.borrow().disks[disk].index);
        let mut index = index.borrow_mut();
        let lane = self.lane(host, lane);
        let read = ReadId(READ + u64::from(range.first.0));
        lane.read(read, member, range);
        let (mut effects, mut events) = (Vec::new(), Vec::new());
        loop {
            lane.poll(now, &mut effects, &mut events);
            for event in events.drain(..) {
                match event {
                    Event::Read { read: of, result: Ok(found) } if of == read => {
                        return Some(bytes_of(&found.segments));
                    }
                    Event::Damaged { read: of, .. } if of == read => return None,
                    Event::Read { read: of, result: Err(error) } if of == read => {
                        panic!("{member:?} does not read {extent:?}: {error}");
                    }
                    _ => {}
                }
            }
            assert!(!effects.is_empty(), "a read of {extent:?} of {member:?} got stuck");
            for effect in effects.drain(..) {
                match effect {
                    Effect::Read { op, file, offset, len } => {
                        let bytes = files.read(file, offset, len).expect("a whole disk");
                        lane.complete(op, Done::Read(bytes));
                    }
                    Effect::Index { op, job } => lane.complete(op, execute(&mut *index, job)),
                    // The lane's own I/O, which nobody waits for.
                    Effect::Write { .. } | Effect::Sync { .. } => {}
                }
            }
        }
    }
}

/// The values of clients in the two halves of a block.
fn values(block: &[u8]) -> [Value; 2] {
    [0, BLOCK_BYTES / 2]
        .map(|at| u64::from_be_bytes(block[at..at + 8].try_into().expect("8 bytes")))
}

fn differing_block(one: &[u8], other: &[u8]) -> Option<u32> {
    let mut blocks = (0u32..).zip(one.chunks(BLOCK_BYTES).zip(other.chunks(BLOCK_BYTES)));
    Some(blocks.find(|(_, (one, other))| one != other)?.0)
}

fn bytes_of(segments: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(data),
            Segment::Zero(len) => bytes.resize(bytes.len() + len, 0),
        }
    }
    bytes
}
