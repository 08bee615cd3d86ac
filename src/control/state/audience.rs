//! Which pods a volume concerns: those with a replica of it, and those on a node that it is
//! attached to. Pods are told of these volumes without asking (see [`crate::control::sync`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::control::state::recent::Changed;
use crate::control::state::rows::{RowChange, RowKey};
use crate::control::state::tables::Tables;
use crate::types::{PodId, Uuid, VolumeId};

/// The pods that a volume concerns, ordered.
pub fn audience(tables: &Tables, volume: VolumeId) -> Vec<PodId> {
    let disks = tables.index.spread.get(&volume).into_iter().flatten();
    let replicas = disks.filter_map(|(disk, _)| Some(tables.disks.get(disk)?.pod));
    let nodes = tables.attachments_of(volume).map(|(_, attachment)| &attachment.node);
    let users =
        nodes.filter_map(|node| tables.index.pods_by_node.get(node)).flat_map(|of| of.iter());
    let mut pods: Vec<PodId> = replicas.chain(users.copied()).collect();
    pods.sort_unstable();
    pods.dedup();
    pods
}

/// The volumes that concern a pod. Takes as long as it has replicas.
pub fn volumes_of(tables: &Tables, pod: PodId) -> BTreeSet<VolumeId> {
    let disks = tables.disks_of(pod);
    let mut volumes: BTreeSet<VolumeId> = disks.flat_map(|disk| volumes_on(tables, disk)).collect();
    if let Some(pod) = tables.pods.get(&pod) {
        volumes.extend(volumes_at(tables, &pod.node));
    }
    volumes
}

/// The volumes with a replica on a disk, perhaps repeatedly.
fn volumes_on(tables: &Tables, disk: Uuid) -> impl Iterator<Item = VolumeId> {
    let held = tables.index.held.get(&disk).into_iter();
    let shards = held.flat_map(|held| held.members.values());
    shards.map(|shard| tables.shards[shard].volume)
}

/// The volumes that are attached to a node, perhaps repeatedly.
fn volumes_at(tables: &Tables, node: &str) -> impl Iterator<Item = VolumeId> {
    let attachments = tables.index.attachments_by_node.get(node).into_iter();
    attachments.flat_map(|keys| keys.iter()).map(|(volume, _)| *volume)
}

/// What a command has changed, and for whom.
pub fn changed(before: &Tables, now: &Tables, changes: &[RowChange]) -> Changed {
    let (mut common, mut others) = (Vec::new(), Vec::new());
    let mut volumes: BTreeMap<VolumeId, Vec<RowKey>> = BTreeMap::new();
    for RowChange { key, .. } in changes {
        let volume = match key {
            RowKey::Volume(volume) | RowKey::Attachment((volume, _)) => Some(*volume),
            RowKey::Shard(shard) => {
                let shard = now.shards.get(shard).or(before.shards.get(shard));
                shard.map(|shard| shard.volume)
            }
            // Pods keep nodes and classes for a catalog that is to be recovered.
            RowKey::Cluster
            | RowKey::Node(_)
            | RowKey::Class(_)
            | RowKey::CatalogMember(_)
            | RowKey::Revoked(_) => None,
            RowKey::Disk(disk) => {
                let pod = |of: &Tables| of.disks.get(disk).map(|disk| disk.pod);
                if pod(before) != pod(now) {
                    // What is on it concerns another pod now.
                    for volume in volumes_on(now, *disk) {
                        volumes.entry(volume).or_default();
                    }
                }
                None
            }
            RowKey::Pod(pod) => {
                let node = |of: &Tables| of.pods.get(pod).map(|pod| pod.node.clone());
                if node(before) != node(now) {
                    let nodes = node(before).into_iter().chain(node(now));
                    let moved = nodes.flat_map(|node| volumes_at(now, &node).collect::<Vec<_>>());
                    for volume in moved {
                        volumes.entry(volume).or_default();
                    }
                }
                None
            }
            // The authority's key is the catalog's own.
            RowKey::Head
            | RowKey::Answered(_)
            | RowKey::Authority(_)
            | RowKey::Token(_)
            | RowKey::Certificate(_)
            | RowKey::Event(_) => {
                others.push(key.clone());
                continue;
            }
        };
        match volume {
            Some(volume) => volumes.entry(volume).or_default().push(key.clone()),
            None => common.push(key.clone()),
        }
    }
    let volumes = volumes.into_iter();
    let volumes = volumes.map(|(volume, keys)| (volume, audience(now, volume), keys));
    Changed::new(common, volumes.collect(), others)
}
