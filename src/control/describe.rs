//! Describes the state and the reports for the API. Pure.

use crate::control::creation::missing;
use crate::control::proto;
use crate::control::reconcile::Group;
use crate::control::reports::Pods;
use crate::control::state::CatalogState;
use crate::control::state::rows::{Shard, Volume};
use crate::types::{PodId, ShardId, VolumeId};
use crate::view::MemberState;

/// The inputs of a description.
pub struct Describe<'a> {
    state: &'a CatalogState,
    group: &'a Group,
    pods: Pods<'a>,
    leader: PodId,
}

impl<'a> Describe<'a> {
    pub fn new(
        state: &'a CatalogState,
        group: &'a Group,
        pods: Pods<'a>,
        leader: PodId,
    ) -> Describe<'a> {
        Describe { state, group, pods, leader }
    }

    pub fn status(&self) -> proto::StatusResponse {
        let (pods, disks, volumes) = (self.pods(), self.disks(), self.volumes());
        let mut problems = Vec::new();
        for pod in pods.iter().filter(|pod| pod.state() == proto::PodState::Unreachable) {
            problems.push(format!("pod {} is unreachable", pod.id));
        }
        for disk in disks.iter().filter(|disk| disk.state() == proto::DiskState::Failed) {
            problems.push(format!("disk {} of pod {} failed: {}", disk.id, disk.pod, disk.reason));
        }
        for volume in &volumes {
            if matches!(volume.state(), proto::VolumeState::Degraded | proto::VolumeState::Paused) {
                let state = volume.state_name();
                problems.push(format!("volume {} is {state}: {}", volume.name, volume.reason));
            }
        }
        proto::StatusResponse {
            cluster: self.state.cluster.uid.to_string(),
            revision: self.state.revision(),
            leader_pod: self.leader.0,
            pods,
            disks,
            volumes,
            problems,
        }
    }

    pub fn pods(&self) -> Vec<proto::Pod> {
        self.state
            .pods
            .iter()
            .map(|(pod, record)| {
                let heard = self.pods.get(*pod);
                let state = match heard {
                    Some(_) => proto::PodState::Up,
                    None => proto::PodState::Unreachable,
                };
                proto::Pod {
                    id: pod.0,
                    api: record.addresses.api.to_string(),
                    peer: record.addresses.peer.to_string(),
                    nbd: record.addresses.nbd.map(|nbd| nbd.to_string()).unwrap_or_default(),
                    state: state.into(),
                    catalog: self.catalog_part(*pod).to_owned(),
                    disks: count(self.state.disks_of(*pod).count()),
                    replicas: self
                        .state
                        .disks_of(*pod)
                        .map(|disk| count(self.state.members_on(disk) as usize))
                        .sum(),
                    version: heard.map(|heard| heard.version.clone()).unwrap_or_default(),
                }
            })
            .collect()
    }

    fn catalog_part(&self, pod: PodId) -> &'static str {
        match self.state.index.catalog_by_pod.get(&pod) {
            None => "",
            Some(member) if self.group.voters.contains(member) => match pod == self.leader {
                true => "leader",
                false => "voter",
            },
            Some(member) if self.group.learners.contains(member) => "learner",
            Some(_) => "joining",
        }
    }

    pub fn disks(&self) -> Vec<proto::Disk> {
        let mut disks: Vec<proto::Disk> = self
            .state
            .disks
            .iter()
            .map(|(id, disk)| {
                let report = self.pods.disk(*id);
                let failed = report.and_then(|report| report.failed.clone());
                let state = match (report, &failed) {
                    (None, _) => proto::DiskState::Unreachable,
                    (Some(_), None) => proto::DiskState::Up,
                    (Some(_), Some(_)) => proto::DiskState::Failed,
                };
                proto::Disk {
                    id: id.to_string(),
                    pod: disk.pod.0,
                    path: disk.path.clone(),
                    capacity_bytes: report.map_or(disk.capacity_bytes, |r| r.capacity_bytes),
                    used_bytes: report.map_or(0, |report| report.used_bytes),
                    log_bytes: report.map_or(0, |report| report.log_bytes),
                    log_used_bytes: report.map_or(0, |report| report.log_used_bytes),
                    dirty_bytes: report.map_or(0, |report| report.dirty_bytes),
                    read_bytes: report.map_or(0, |report| report.read_bytes),
                    read_dirty_bytes: report.map_or(0, |report| report.read_dirty_bytes),
                    resyncs: report.map_or(0, |report| report.resyncs),
                    replicas: count(self.state.members_on(*id) as usize),
                    state: state.into(),
                    reason: failed.unwrap_or_default(),
                }
            })
            .collect();
        disks.sort_by(|a, b| (a.pod, &a.path).cmp(&(b.pod, &b.path)));
        disks
    }

    /// Ordered by name.
    pub fn volumes(&self) -> Vec<proto::Volume> {
        let all = self.state.volumes.iter();
        let mut volumes: Vec<_> = all.map(|(id, volume)| self.volume(*id, volume)).collect();
        volumes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        volumes
    }

    /// The volume with this name now.
    pub fn volume_by_name(&self, name: &str) -> Option<proto::Volume> {
        let (id, volume) = self.state.volume_by_name(name)?;
        Some(self.volume(id, volume))
    }

    pub fn volume_by_id(&self, id: VolumeId) -> Option<proto::Volume> {
        Some(self.volume(id, self.state.volumes.get(&id)?))
    }

    fn volume(&self, id: VolumeId, volume: &Volume) -> proto::Volume {
        let shards = self.state.shards_of(volume);
        let shards: Vec<proto::Shard> = shards.map(|(id, shard)| self.shard(id, shard)).collect();
        let (state, reason) = match volume.creating && !volume.deleting {
            true => self.judge_new(volume, &shards),
            false => judge(volume, &shards),
        };
        let pods = self.state.pods.values();
        proto::Volume {
            id: id.0,
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
            replicas: volume.replicas,
            state: state.into(),
            reason,
            shards,
            nbd: pods.filter_map(|pod| pod.addresses.nbd).map(|nbd| nbd.to_string()).collect(),
        }
    }

    /// The state of a volume that the catalog does not know to be usable, and the reason.
    fn judge_new(&self, volume: &Volume, shards: &[proto::Shard]) -> (proto::VolumeState, String) {
        let without = shards.iter().filter(|shard| shard.leader_pod == 0).count();
        let all = self.state.shards_of(volume);
        let missing: usize = all.map(|(_, shard)| missing(self.pods, shard)).sum();
        let reason = match (without, missing) {
            (0, 0) => return judge(volume, shards),
            (0, 1) => "1 replica is not made yet".to_owned(),
            (0, _) => format!("{missing} replicas are not made yet"),
            _ => format!("{without} of {} shards have no leader yet", shards.len()),
        };
        (proto::VolumeState::Creating, reason)
    }

    fn shard(&self, id: ShardId, shard: &Shard) -> proto::Shard {
        let mut leader: Option<(u64, PodId)> = None;
        let mut replicas = Vec::with_capacity(shard.members.len());
        for member in &shard.members {
            let pod = self.state.disks[&member.disk].pod;
            let report = self.pods.member(member.member, member.disk);
            if let Some(report) = report.filter(|report| report.state == MemberState::Leader)
                && leader.is_none_or(|(term, _)| report.term > term)
            {
                leader = Some((report.term, pod));
            }
            replicas.push(proto::Replica {
                member: member.member.0,
                pod: pod.0,
                disk: member.disk.to_string(),
                state: report.map_or("unreported", |report| state_name(report.state)).to_owned(),
            });
        }
        let leader_pod = leader.map_or(0, |(_, pod)| pod.0);
        proto::Shard { id: id.0, replicas, leader_pod }
    }
}

/// The state of a volume, and the reason.
fn judge(volume: &Volume, shards: &[proto::Shard]) -> (proto::VolumeState, String) {
    if volume.deleting {
        let reason = "its disks have not all given its space back";
        return (proto::VolumeState::Deleting, reason.to_owned());
    }
    let without = shards.iter().filter(|shard| shard.leader_pod == 0).count();
    if without > 0 {
        let of = shards.len();
        let reason = format!("{without} of {of} shards have no leader; their I/O waits");
        return (proto::VolumeState::Paused, reason);
    }
    let bad = |replica: &&proto::Replica| !matches!(replica.state.as_str(), "leader" | "follower");
    let missing = shards.iter().flat_map(|shard| &shard.replicas).filter(bad).count();
    match missing {
        0 => (proto::VolumeState::Ready, String::new()),
        1 => (proto::VolumeState::Degraded, "1 replica is missing".to_owned()),
        _ => (proto::VolumeState::Degraded, format!("{missing} replicas are missing")),
    }
}

fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Follower => "follower",
        MemberState::Leader => "leader",
        MemberState::Resyncing => "resyncing",
        MemberState::Faulted => "faulted",
        MemberState::Orphan => "orphan",
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
