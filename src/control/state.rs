//! The catalog's state, on which the members of its Raft group agree. Pure and deterministic: the
//! same commands in the same order give the same state on every member. So nothing here may depend
//! on a clock, on reports, or on the version of the software.
//!
//! Invariants ([`CatalogState::check_invariants`]):
//! - ids only grow and are never given twice (rule `ids-never-reused`);
//! - no shard has two replicas on one disk, or had two on one pod when it was created;
//! - a deleted volume's members are listed as destroyed until each disk has confirmed it; then the
//!   volume is forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::control::command::{Addresses, CatalogCommand, NewDisk, Outcome, Placement};
use crate::control::names::{NameError, check_volume_name};
use crate::limits::VOLUME_BYTES_MAX;
use crate::planted::planted;
use crate::types::{BLOCK_BYTES, MemberId, PodId, ShardId, Uuid, VolumeId};
use crate::view::{ClusterView, DiskView, MemberView, PodView, ShardView, VolumeView};

/// Number of named requests whose answers are kept (rule `request-carried-out-once`).
const REQUESTS_MAX: usize = 1024;
/// Ids and revisions beyond this would leave too few numbers.
const COUNT_MAX: u64 = 1 << 62;
/// Longest id of a request.
const REQUEST_ID_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogState {
    pub cluster: Uuid,
    /// Grows with every change.
    pub revision: u64,
    next: Counters,
    pub pods: BTreeMap<PodId, Pod>,
    pub disks: BTreeMap<Uuid, Disk>,
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Members to destroy, by disk.
    pub destroyed: BTreeMap<Uuid, BTreeSet<MemberId>>,
    /// Members of the catalog and their pods, including pods that are still to get theirs.
    pub catalog: BTreeMap<MemberId, PodId>,
    requests: VecDeque<(String, Outcome)>,
}

/// The next id of each kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    pod: u64,
    volume: u64,
    shard: u64,
    member: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub join_id: Uuid,
    pub addresses: Addresses,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub pod: PodId,
    pub path: String,
    pub capacity_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub size_bytes: u64,
    /// Always 1 for now.
    pub stripe_width: u32,
    pub stripe_bytes: u64,
    pub replicas: u32,
    /// Reserved: the key that encrypts the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Reserved: the class of disks for the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Until all shards have leaders for the first time.
    pub creating: bool,
    pub deleting: bool,
    pub shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub shard: ShardId,
    pub members: Vec<ShardMember>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMember {
    pub member: MemberId,
    pub disk: Uuid,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    #[error("a volume named {name:?} exists already")]
    NameTaken { name: String },
    #[error("there is no volume named {name:?}")]
    NoSuchVolume { name: String },
    #[error("{name:?} cannot be the name of a volume")]
    BadName {
        name: String,
        #[source]
        source: NameError,
    },
    #[error(
        "a volume's size is a multiple of 4096 bytes, from 4KiB to 1PiB; {size_bytes} bytes is not"
    )]
    BadSize { size_bytes: u64 },
    #[error("pod {pod} is not part of this cluster")]
    NoSuchPod { pod: PodId },
    #[error("the disks changed while the replicas were being placed")]
    StalePlacement,
    #[error("the name of a request has at most {REQUEST_ID_BYTES_MAX} bytes")]
    BadRequestId,
}

/// A state that no sequence of commands makes: damaged, or made by other software.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the catalog contradicts itself: {0}")]
pub struct Contradiction(&'static str);

impl CatalogState {
    /// A new cluster of one pod, which holds the only member of the catalog.
    pub fn new(cluster: Uuid, join_id: Uuid, addresses: Addresses) -> CatalogState {
        let (pod, member) = (PodId(1), MemberId(1));
        CatalogState {
            cluster,
            revision: 1,
            next: Counters { pod: 2, volume: 1, shard: 1, member: 2 },
            pods: BTreeMap::from([(pod, Pod { join_id, addresses })]),
            disks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            destroyed: BTreeMap::new(),
            catalog: BTreeMap::from([(member, pod)]),
            requests: VecDeque::new(),
        }
    }

    /// Carries out a command. After an error nothing has changed.
    pub fn apply(&mut self, command: CatalogCommand) -> Result<Outcome, CatalogError> {
        match command {
            CatalogCommand::Join { join_id, addresses } => Ok(self.join(join_id, addresses)),
            CatalogCommand::Register { pod, addresses, disks } => {
                self.register(pod, addresses, disks)
            }
            CatalogCommand::CreateVolume {
                request_id,
                name,
                size_bytes,
                stripe_bytes,
                placement,
            } => self.once(request_id, |state| {
                state.create_volume(name, size_bytes, stripe_bytes, &placement)
            }),
            CatalogCommand::DeleteVolume { request_id, name, volume } => {
                self.once(request_id, |state| state.delete_volume(&name, volume))
            }
            CatalogCommand::Created { volumes } => Ok(self.confirm_created(&volumes)),
            CatalogCommand::Destroyed { disk, members } => {
                Ok(self.confirm_destroyed(disk, &members))
            }
            CatalogCommand::AddCatalogMembers { pods } => self.add_catalog_members(&pods),
            CatalogCommand::RemoveCatalogMember { member } => {
                if self.catalog.len() > 1 && self.catalog.remove(&member).is_some() {
                    self.revision += 1;
                }
                Ok(Outcome::Done)
            }
        }
    }

    /// Carries out a named request once. A repeated one gets the answer of the first.
    fn once(
        &mut self,
        request_id: String,
        carry_out: impl FnOnce(&mut CatalogState) -> Result<Outcome, CatalogError>,
    ) -> Result<Outcome, CatalogError> {
        if request_id.len() > REQUEST_ID_BYTES_MAX {
            return Err(CatalogError::BadRequestId);
        }
        if let Some(outcome) = self.answered(&request_id) {
            return Ok(outcome);
        }
        let outcome = carry_out(self)?;
        if !request_id.is_empty() {
            if self.requests.len() >= REQUESTS_MAX {
                self.requests.pop_front();
            }
            self.requests.push_back((request_id, outcome));
        }
        Ok(outcome)
    }

    /// The outcome of a named request, if it was carried out before.
    pub fn answered(&self, request_id: &str) -> Option<Outcome> {
        if request_id.is_empty() || planted!(CatalogRequestTwice) {
            return None;
        }
        self.requests.iter().rev().find(|(id, _)| id == request_id).map(|(_, outcome)| *outcome)
    }

    fn join(&mut self, join_id: Uuid, addresses: Addresses) -> Outcome {
        if let Some((pod, _)) = self.pods.iter().find(|(_, pod)| pod.join_id == join_id) {
            return Outcome::Pod(*pod);
        }
        let pod = PodId(take(&mut self.next.pod));
        self.pods.insert(pod, Pod { join_id, addresses });
        self.revision += 1;
        Outcome::Pod(pod)
    }

    fn register(
        &mut self,
        pod: PodId,
        addresses: Addresses,
        disks: Vec<NewDisk>,
    ) -> Result<Outcome, CatalogError> {
        let known = self.pods.get_mut(&pod).ok_or(CatalogError::NoSuchPod { pod })?;
        let mut changed = known.addresses != addresses;
        known.addresses = addresses;
        for new in disks {
            let disk = Disk { pod, path: new.path, capacity_bytes: new.capacity_bytes };
            if self.disks.get(&new.disk) != Some(&disk) {
                self.disks.insert(new.disk, disk);
                changed = true;
            }
        }
        self.revision += u64::from(changed);
        Ok(Outcome::Done)
    }

    fn create_volume(
        &mut self,
        name: String,
        size_bytes: u64,
        stripe_bytes: u64,
        placement: &Placement,
    ) -> Result<Outcome, CatalogError> {
        check_volume_name(&name)
            .map_err(|source| CatalogError::BadName { name: name.clone(), source })?;
        let block = BLOCK_BYTES as u64;
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(block) {
            return Err(CatalogError::BadSize { size_bytes });
        }
        if self.volume_by_name(&name).is_some() {
            return Err(CatalogError::NameTaken { name });
        }
        let whole_blocks = stripe_bytes > 0 && stripe_bytes.is_multiple_of(block);
        if !whole_blocks || size_bytes.div_ceil(stripe_bytes) != placement.shards.len() as u64 {
            return Err(CatalogError::StalePlacement);
        }
        let replicas = self.check_placement(placement)?;
        let mut shards = Vec::with_capacity(placement.shards.len());
        for positions in &placement.shards {
            let shard = ShardId(take(&mut self.next.shard));
            let mut members = Vec::with_capacity(positions.len());
            for position in positions {
                let member = MemberId(take(&mut self.next.member));
                members.push(ShardMember { member, disk: placement.disks[usize::from(*position)] });
            }
            shards.push(Shard { shard, members });
        }
        let volume = VolumeId(take(&mut self.next.volume));
        self.volumes.insert(
            volume,
            Volume {
                name,
                size_bytes,
                stripe_width: 1,
                stripe_bytes,
                replicas,
                key_id: None,
                class: None,
                creating: true,
                deleting: false,
                shards,
            },
        );
        self.revision += 1;
        Ok(Outcome::Volume(volume))
    }

    /// Checks that all shards have equally many replicas, on different pods, on known disks.
    fn check_placement(&self, placement: &Placement) -> Result<u32, CatalogError> {
        let mut replicas = None;
        for positions in &placement.shards {
            if *replicas.get_or_insert(positions.len()) != positions.len() {
                return Err(CatalogError::StalePlacement);
            }
            let mut pods = BTreeSet::new();
            for position in positions {
                let disk = placement
                    .disks
                    .get(usize::from(*position))
                    .and_then(|disk| self.disks.get(disk))
                    .ok_or(CatalogError::StalePlacement)?;
                if !pods.insert(disk.pod) {
                    return Err(CatalogError::StalePlacement);
                }
            }
        }
        match replicas {
            Some(replicas @ (1 | 3 | 5)) => Ok(replicas as u32),
            _ => Err(CatalogError::StalePlacement),
        }
    }

    /// The revision grows with each volume that was still being created.
    fn confirm_created(&mut self, volumes: &[VolumeId]) -> Outcome {
        for volume in volumes {
            if let Some(record) = self.volumes.get_mut(volume).filter(|record| record.creating) {
                record.creating = false;
                self.revision += 1;
            }
        }
        Outcome::Done
    }

    fn delete_volume(&mut self, name: &str, meant: VolumeId) -> Result<Outcome, CatalogError> {
        let (volume, _) = self
            .volume_by_name(name)
            .filter(|(found, _)| meant == *found)
            .ok_or_else(|| CatalogError::NoSuchVolume { name: name.to_owned() })?;
        let record = self.volumes.get_mut(&volume).expect("it was just found");
        record.deleting = true;
        for member in record.shards.iter().flat_map(|shard| &shard.members) {
            self.destroyed.entry(member.disk).or_default().insert(member.member);
        }
        self.revision += 1;
        Ok(Outcome::Volume(volume))
    }

    fn confirm_destroyed(&mut self, disk: Uuid, members: &[MemberId]) -> Outcome {
        let Some(outstanding) = self.destroyed.get_mut(&disk) else {
            return Outcome::Done;
        };
        let before = outstanding.len();
        outstanding.retain(|member| !members.contains(member));
        if outstanding.len() == before {
            return Outcome::Done;
        }
        if outstanding.is_empty() {
            self.destroyed.remove(&disk);
        }
        let destroyed = &self.destroyed;
        self.volumes.retain(|_, volume| {
            !volume.deleting
                || volume.shards.iter().flat_map(|shard| &shard.members).any(|member| {
                    destroyed.get(&member.disk).is_some_and(|set| set.contains(&member.member))
                })
        });
        self.revision += 1;
        Outcome::Done
    }

    fn add_catalog_members(&mut self, pods: &[PodId]) -> Result<Outcome, CatalogError> {
        if let Some(pod) = pods.iter().find(|pod| !self.pods.contains_key(pod)) {
            return Err(CatalogError::NoSuchPod { pod: *pod });
        }
        for pod in pods {
            if self.catalog.values().all(|other| other != pod) {
                let member = match planted!(CatalogMemberReused) {
                    true => self.next.member,
                    false => take(&mut self.next.member),
                };
                self.catalog.insert(MemberId(member), *pod);
                self.revision += 1;
            }
        }
        Ok(Outcome::Done)
    }

    /// The volume with this name now. A volume that is being deleted has given up its name.
    pub fn volume_by_name(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        self.volumes
            .iter()
            .find(|(_, volume)| volume.name == name && !volume.deleting)
            .map(|(id, volume)| (*id, volume))
    }

    /// Replicas on each disk, including those to be destroyed: they still take space.
    pub fn members_per_disk(&self) -> BTreeMap<Uuid, u64> {
        let mut counts = BTreeMap::new();
        let shards = self.volumes.values().flat_map(|volume| &volume.shards);
        for member in shards.flat_map(|shard| &shard.members) {
            *counts.entry(member.disk).or_default() += 1;
        }
        counts
    }

    /// Shards of which a disk has the first replica, which is the first to campaign.
    pub fn firsts_per_disk(&self) -> BTreeMap<Uuid, u64> {
        let mut counts = BTreeMap::new();
        let used = self.volumes.values().filter(|volume| !volume.deleting);
        for first in used.flat_map(|volume| &volume.shards).flat_map(|it| it.members.first()) {
            *counts.entry(first.disk).or_default() += 1;
        }
        counts
    }

    /// The cluster as the data path sees it.
    pub fn view(&self) -> ClusterView {
        ClusterView {
            revision: self.revision,
            cluster: self.cluster,
            pods: self.pods.iter().map(|(pod, record)| record.view(*pod)).collect(),
            disks: self
                .disks
                .iter()
                .map(|(disk, record)| DiskView { disk: *disk, pod: record.pod })
                .collect(),
            volumes: self
                .volumes
                .iter()
                .map(|(id, volume)| Arc::new(self.view_volume(*id, volume)))
                .collect(),
            destroyed: self
                .destroyed
                .iter()
                .flat_map(|(disk, members)| members.iter().map(|member| (*disk, *member)))
                .collect(),
        }
    }

    fn view_volume(&self, id: VolumeId, volume: &Volume) -> VolumeView {
        let view_member = |member: &ShardMember| MemberView {
            member: member.member,
            disk: member.disk,
            pod: self.disks[&member.disk].pod,
        };
        VolumeView {
            volume: id,
            name: volume.name.clone(),
            size_bytes: volume.size_bytes,
            stripe_width: volume.stripe_width,
            stripe_bytes: volume.stripe_bytes,
            shards: volume
                .shards
                .iter()
                .map(|shard| ShardView {
                    shard: shard.shard,
                    members: shard.members.iter().map(view_member).collect(),
                })
                .collect(),
            deleting: volume.deleting,
        }
    }

    /// Panics when an invariant does not hold.
    pub fn check_invariants(&self) {
        if let Err(broken) = self.check() {
            panic!("{broken}");
        }
    }

    /// Checks the invariants of a state from outside.
    pub fn check(&self) -> Result<(), Contradiction> {
        let holds = |holds: bool, what| if holds { Ok(()) } else { Err(Contradiction(what)) };
        let Counters { pod, volume, shard, member } = self.next;
        let counts = [self.revision, pod, volume, shard, member];
        holds(counts.iter().all(|count| *count < COUNT_MAX), "a number was used up")?;
        holds(!self.catalog.is_empty(), "the catalog has no member")?;
        let is_pod = |pod: &PodId| self.pods.contains_key(pod);
        holds(self.catalog.values().all(is_pod), "the catalog is on a pod that is not there")?;
        holds(self.disks.values().all(|disk| is_pod(&disk.pod)), "a disk's pod is not there")?;
        holds(self.pods.keys().all(|id| id.0 < pod), "a pod's id was never given")?;
        holds(self.volumes.keys().all(|id| id.0 < volume), "a volume's id was never given")?;
        let mut members: BTreeSet<MemberId> = self.catalog.keys().copied().collect();
        let mut shards = BTreeSet::new();
        for volume in self.volumes.values() {
            let mut outstanding = 0;
            for shard in &volume.shards {
                holds(shards.insert(shard.shard), "a shard is there twice")?;
                let count = shard.members.len();
                holds(count == volume.replicas as usize, "a shard has too many or few replicas")?;
                let disks: BTreeSet<Uuid> = shard.members.iter().map(|m| m.disk).collect();
                holds(disks.len() == count, "two replicas share a disk")?;
                holds(disks.iter().all(|disk| self.disks.contains_key(disk)), "a disk is missing")?;
                for member in &shard.members {
                    holds(members.insert(member.member), "a member is there twice")?;
                    let doomed = self.destroyed.get(&member.disk);
                    outstanding += usize::from(doomed.is_some_and(|d| d.contains(&member.member)));
                }
            }
            holds(volume.deleting == (outstanding > 0), "deletion and destruction disagree")?;
        }
        holds(members.iter().all(|id| id.0 < member), "a member's id was never given")?;
        holds(shards.iter().all(|id| id.0 < shard), "a shard's id was never given")?;
        let known = self.destroyed.values().all(|set| set.is_subset(&members));
        holds(known, "a member is to be destroyed that is nowhere")
    }
}

impl Pod {
    fn view(&self, pod: PodId) -> PodView {
        let Addresses { api, peer, nbd } = self.addresses;
        PodView { pod, peer, api, nbd }
    }
}

fn take(next: &mut u64) -> u64 {
    let id = *next;
    *next += 1;
    id
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
