//! For tests: a data path that holds no data and reports success.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::control::command::NewDisk;
use crate::control::data_path::{ControlLink, DataPath};
use crate::control::identity::Identity;
use crate::types::{AccessSet, Generation, MemberId, Uuid, VolumeId};
use crate::view::{ClusterView, DiskReport, MemberReport, MemberState, PodReport};
use crate::volume::access::AccessDone;
use crate::worker::{AccessAnswer, ControlPlane as _, Resolution};

pub struct NullDataPath {
    identity: Identity,
    disks: Vec<NewDisk>,
    control: ControlLink,
    pub views: Mutex<Vec<Arc<ClusterView>>>,
    /// It reaches no shard.
    pub is_cut_off: AtomicBool,
    /// Rounds that shards do not answer.
    waiting: Mutex<Vec<AccessAnswer>>,
}

impl NullDataPath {
    pub fn new(identity: Identity, disks: Vec<Uuid>, control: ControlLink) -> NullDataPath {
        let disks = disks
            .into_iter()
            .map(|disk| NewDisk { disk, path: format!("/disks/{disk}"), capacity_bytes: 1 << 40 })
            .collect();
        let (views, waiting) = (Mutex::default(), Mutex::default());
        let is_cut_off = AtomicBool::new(false);
        NullDataPath { identity, disks, control, views, is_cut_off, waiting }
    }

    fn report(&self, view: &ClusterView) -> PodReport {
        PodReport {
            pod: self.identity.pod,
            disks: self
                .disks
                .iter()
                .map(|disk| DiskReport {
                    disk: disk.disk,
                    path: disk.path.clone(),
                    capacity_bytes: disk.capacity_bytes,
                    members: members(view, disk.disk),
                    destroyed: destroyed(view, disk.disk),
                    ..DiskReport::default()
                })
                .collect(),
        }
    }
}

/// Reports the first member of every shard as its leader.
fn members(view: &ClusterView, disk: Uuid) -> Vec<MemberReport> {
    let shards = view.volumes.iter().flat_map(|volume| &volume.shards);
    let members = shards.flat_map(|shard| {
        let first = shard.members.first().map(|first| first.member).unwrap_or_default();
        shard.members.iter().map(move |member| (shard.shard, first, member))
    });
    members
        .filter(|(_, _, member)| member.disk == disk)
        .map(|(shard, first, member)| MemberReport {
            member: member.member,
            shard,
            term: 1,
            leader: Some(first),
            applied_index: 1,
            access: Generation(0),
            state: match member.member == first {
                true => MemberState::Leader,
                false => MemberState::Follower,
            },
        })
        .collect()
}

fn destroyed(view: &ClusterView, disk: Uuid) -> Vec<MemberId> {
    let here = view.destroyed.iter().filter(|(other, _)| *other == disk);
    here.map(|(_, member)| *member).collect()
}

impl DataPath for NullDataPath {
    fn disks(&self) -> Vec<NewDisk> {
        self.disks.clone()
    }

    fn set_view(&self, view: Arc<ClusterView>) {
        self.control.report(self.report(&view));
        self.views.lock().unwrap().push(view);
    }

    fn set_access(&self, _: VolumeId, set: AccessSet, answer: AccessAnswer) {
        if self.is_cut_off.load(Ordering::Relaxed) {
            return self.waiting.lock().unwrap().push(answer);
        }
        let (generation, highest) = (set.generation, set.generation);
        // It stands for all of them, however many there are.
        let done = AccessDone { generation, highest, shards: usize::MAX };
        (answer.0)(Ok(done));
    }

    fn resolved(&self, _: u64, _: Resolution) {}

    fn stop(&self) {}
}
