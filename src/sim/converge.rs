//! What must be true of a cluster that was left in peace: every replica has applied the same
//! entries, holds the same bytes, and owns exactly the slots that its index names.

use std::collections::BTreeMap;

use crate::io::buffer::Pool;
use crate::sim::kernel::Host;
use crate::sim::world::World;
use crate::store::index::IndexStore;
use crate::store::lane::{Lane, LaneFiles};
use crate::store::seam::{Done, Effect, Event, ReadId};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockRange, EXTENT_BYTES, Extent};
use crate::types::{MemberId, Segment, ShardId};
use crate::view::{MemberReport, MemberState};
use crate::worker::execute;

/// The first of the reads that are asked for here.
const READ: u64 = 1 << 60;

/// What is not as it should be, in words.
pub type Difference = String;

impl World {
    /// Why the replicas have not come to rest yet: not all of the same index, not all written back.
    pub fn unsettled(&self) -> Option<Difference> {
        let mut applied: BTreeMap<ShardId, MemberReport> = BTreeMap::new();
        for pod in &self.pods {
            let Some(worker) = &pod.worker else { return Some("a pod is down".to_owned()) };
            let report = worker.report();
            for disk in report.disks {
                if disk.overlay_bytes > 0 {
                    return Some(format!("{:?} has not written everything back", report.pod));
                }
                for member in disk.members {
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
        None
    }

    /// A member of another host than this one that takes no part any more.
    pub fn faulted_elsewhere(&self, bad: Host) -> Option<Difference> {
        let others = self.pods.iter().enumerate().filter(|(host, _)| *host != bad);
        let reports = others.filter_map(|(_, pod)| Some(pod.worker.as_ref()?.report()));
        let mut members = reports.flat_map(|pod| pod.disks).flat_map(|disk| disk.members);
        let faulted = members.find(|member| member.state == MemberState::Faulted)?;
        Some(format!("{:?} is faulted", faulted.member))
    }

    /// Compares all replicas, and the space they take with what their index names. What one disk
    /// has lost for itself (it says so) is not compared. Ends the run: lanes get inputs that their
    /// workers do not know of.
    pub fn compare_replicas(&mut self) -> Result<(), Difference> {
        let mut contents: BTreeMap<(ShardId, u32), (MemberId, Vec<u8>)> = BTreeMap::new();
        for host in 0..self.pods.len() {
            self.check_space(host)?;
            for (member, shard) in self.members_of(host) {
                for extent in 0..(self.shape.blocks_per_shard as u32).div_ceil(BLOCKS_PER_EXTENT) {
                    let Some(bytes) = self.read_extent(host, member, Extent(extent)) else {
                        continue;
                    };
                    let first = contents.entry((shard, extent));
                    let first = first.or_insert_with(|| (member, bytes.clone()));
                    if first.1 != bytes {
                        let blocks = first.1.chunks(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES));
                        let differs = { blocks }.position(|(one, other)| one != other);
                        return Err(format!(
                            "block {} of extent {extent} of {shard:?} is not the same in {:?} and \
                             {member:?}",
                            differs.unwrap_or(0),
                            first.0
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Members that are not faulted.
    fn members_of(&self, host: Host) -> Vec<(MemberId, ShardId)> {
        let report = self.pods[host].worker.as_ref().map(|worker| worker.report());
        let disks = report.into_iter().flat_map(|report| report.disks);
        disks
            .flat_map(|disk| disk.members)
            .filter(|member| member.state != MemberState::Faulted)
            .map(|member| (member.member, member.shard))
            .collect()
    }

    fn check_space(&mut self, host: Host) -> Result<(), Difference> {
        let pod = &mut self.pods[host];
        let mut index = pod.index.borrow_mut();
        let mut named = 0;
        for record in index.members().expect("a simulated index answers") {
            let found = index.scan(record.member, Extent(0), usize::MAX);
            named += found.expect("a simulated index answers").len() as u64;
        }
        let worker = pod.worker.as_mut().expect("all pods are up");
        for lane in worker.lanes() {
            let used = lane.space().used_bytes / EXTENT_BYTES as u64;
            if used != named {
                return Err(format!("pod {host} uses {used} slots, its index names {named}"));
            }
        }
        Ok(())
    }

    /// One extent as a replica has it; `None` when it knows that it has lost it.
    fn read_extent(&mut self, host: Host, member: MemberId, extent: Extent) -> Option<Vec<u8>> {
        let first = extent.first_block().0;
        let end = (first + BLOCKS_PER_EXTENT).min(self.shape.blocks_per_shard as u32);
        let range = BlockRange { first: Block(first), count: end - first };
        let now = self.kernel.borrow().local_time(host);
        let mut files = self.files(host, Pool::default());
        let pod = &mut self.pods[host];
        let mut index = pod.index.borrow_mut();
        let worker = pod.worker.as_mut().expect("all pods are up");
        let lane: &mut Lane = worker.lanes().next().expect("every pod has a disk");
        let read = ReadId(READ + u64::from(first));
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
                    // Of the lane's own; nobody will miss them.
                    Effect::Write { .. } | Effect::Sync { .. } => {}
                }
            }
        }
    }
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
