//! The control plane of the simulated cluster: the production state, placement and decisions, with
//! pods that hear of changes one by one and late. Its own replication is not simulated: what it
//! decides is never lost.

use std::sync::Arc;

use crate::control::command::{Addresses, Command, NewDisk, Outcome};
use crate::control::placement::{Candidate, place};
use crate::control::reconcile::{Action, Facts, decide};
use crate::control::state::State;
use crate::sim::disk::DiskNumber;
use crate::sim::kernel::Host;
use crate::types::{BLOCK_BYTES, PodId, Uuid};
use crate::view::{ClusterView, PodReport};

/// See the module.
pub struct Catalog {
    state: State,
    view: Arc<ClusterView>,
}

/// What a volume is to be.
#[derive(Clone, Debug)]
pub struct NewVolume {
    pub name: String,
    pub shards: u64,
    pub blocks_per_shard: u64,
}

impl Catalog {
    /// A cluster of so many pods, without disks.
    pub fn new(cluster: Uuid, addresses: impl Iterator<Item = Addresses>) -> Catalog {
        let mut addresses = addresses.zip(0u8..).map(|(at, pod)| (Uuid([0xf0 + pod; 16]), at));
        let (first, at) = addresses.next().expect("a cluster has a pod");
        let mut state = State::new(cluster, first, at);
        for (join_id, addresses) in addresses {
            let joined = state.apply(Command::Join { join_id, addresses });
            assert!(matches!(joined, Ok(Outcome::Pod(_))), "everybody may join");
        }
        let view = Arc::new(state.view());
        Catalog { state, view }
    }

    fn apply(&mut self, command: Command) {
        let applied = self.state.apply(command.clone());
        assert!(applied.is_ok(), "{command:?} of a simulated cluster: {applied:?}");
        self.state.check_invariants();
        self.view = Arc::new(self.state.view());
    }

    /// A pod started, with these disks.
    pub fn register(&mut self, host: Host, disks: &[DiskNumber], capacity_bytes: u64) {
        let pod = pod_id(host);
        let addresses = self.state.pods[&pod].addresses;
        let new = |disk: &DiskNumber| NewDisk {
            disk: disk_id(*disk),
            path: format!("disk-{disk}"),
            capacity_bytes,
        };
        let disks = disks.iter().map(new).collect();
        self.apply(Command::Register { pod, addresses, disks });
    }

    /// Makes a volume with a replica of every shard on three pods.
    pub fn create(&mut self, volume: &NewVolume) {
        let members = self.state.members_per_disk();
        let candidates = self.state.disks.iter().map(|(disk, record)| Candidate {
            disk: *disk,
            pod: record.pod,
            free_bytes: record.capacity_bytes,
            members: members.get(disk).copied().unwrap_or(0),
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let placed = place(&volume.name, volume.shards, 3, &candidates, "");
        // Disks may have moved together meanwhile; then there is no such volume.
        let Ok(placement) = placed else { return };
        let stripe_bytes = volume.blocks_per_shard * BLOCK_BYTES as u64;
        self.apply(Command::CreateVolume {
            request_id: String::new(),
            name: volume.name.clone(),
            size_bytes: stripe_bytes * volume.shards,
            stripe_bytes,
            placement,
        });
    }

    pub fn has(&self, name: &str) -> bool {
        self.state.volume_by_name(name).is_some()
    }

    pub fn delete(&mut self, name: &str) {
        self.apply(Command::DeleteVolume { request_id: String::new(), name: name.to_owned() });
    }

    /// Something waits for what pods report.
    pub fn listens(&self) -> bool {
        !self.state.destroyed.is_empty()
    }

    /// Does what is to be done after these reports.
    pub fn heard(&mut self, reports: impl Iterator<Item = PodReport>) {
        let reports = reports.map(|report| (report.pod, report)).collect();
        for action in decide(&self.state, &Facts { reports, ..Facts::default() }) {
            match action {
                Action::Propose(command) => self.apply(command),
                Action::Change(change) => panic!("the catalog has no group here: {change:?}"),
            }
        }
    }

    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }
}

pub fn pod_id(host: Host) -> PodId {
    PodId(host as u64 + 1)
}

pub fn disk_id(disk: DiskNumber) -> Uuid {
    Uuid([disk as u8 + 1; 16])
}
