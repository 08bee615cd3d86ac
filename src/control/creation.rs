//! When a new volume can be used. Pure: from the record of the volume and the reports of the pods.
//!
//! A volume is *creating* until each of its shards has a leader and the replicas that can be there
//! are there. The catalog then remembers it. A shard that is without a leader later is *paused*.

use std::collections::BTreeMap;

use crate::control::state::{Shard, Volume};
use crate::types::{MemberId, Uuid};
use crate::view::{DiskReport, MemberReport, MemberState, PodReport};

/// The disks and replicas of the last reports.
pub struct Replicas<'a> {
    pub disks: BTreeMap<Uuid, &'a DiskReport>,
    pub members: BTreeMap<MemberId, &'a MemberReport>,
}

impl<'a> Replicas<'a> {
    pub fn new(reports: impl Iterator<Item = &'a PodReport> + Clone) -> Replicas<'a> {
        let disks = reports.flat_map(|report| &report.disks);
        let members = disks.clone().flat_map(|disk| &disk.members);
        Replicas {
            members: members.map(|member| (member.member, member)).collect(),
            disks: disks.map(|disk| (disk.disk, disk)).collect(),
        }
    }

    /// The report of a replica, unless its disk has failed.
    pub fn get(&self, member: MemberId, disk: Uuid) -> Option<&'a MemberReport> {
        self.members.get(&member).copied().filter(|_| !self.has_failed(disk))
    }

    fn has_failed(&self, disk: Uuid) -> bool {
        self.disks.get(&disk).is_some_and(|disk| disk.failed.is_some())
    }

    /// True when all shards have leaders, and their replicas on working disks exist.
    pub fn have_come(&self, volume: &Volume) -> bool {
        volume.shards.iter().all(|shard| self.has_leader(shard) && self.missing(shard) == 0)
    }

    fn has_leader(&self, shard: &Shard) -> bool {
        let mut reports = shard.members.iter().filter_map(|it| self.get(it.member, it.disk));
        reports.any(|report| report.state == MemberState::Leader)
    }

    /// Replicas that do not exist, although their disks work.
    pub fn missing(&self, shard: &Shard) -> usize {
        let works = |disk: Uuid| self.disks.contains_key(&disk) && !self.has_failed(disk);
        let missing = shard.members.iter().filter(|it| works(it.disk));
        missing.filter(|it| !self.members.contains_key(&it.member)).count()
    }
}
