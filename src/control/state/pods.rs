//! Commands about nodes, pods and disks.

use crate::control::command::{Addresses, NewDisk, NewNode, Outcome};
use crate::control::names::check_name;
use crate::control::state::error::{CatalogError, LABEL_BYTES_MAX, LABELS_MAX};
use crate::control::state::rebirth::PODS_PER_HISTORY;
use crate::control::state::rows::{Disk, Labels, Node, Pod};
use crate::control::state::tables::{Tables, take};
use crate::level::Level;
use crate::types::{PodId, Uuid};

/// A pod joins. The same uid always gives the same pod.
pub(super) fn join(
    tables: &mut Tables,
    now_ms: u64,
    uid: Uuid,
    addresses: Addresses,
    node: NewNode,
    newest_level: Level,
) -> Result<Outcome, CatalogError> {
    check_node(&node)?;
    if let Some(pod) = tables.index.pods_by_uid.get(&uid) {
        return Ok(Outcome::Pod(*pod));
    }
    // The numbers beyond are for a later history.
    let restores = tables.cluster.restores;
    if tables.head.next.pod >= (restores + 1) * PODS_PER_HISTORY {
        return Err(CatalogError::TooManyPods);
    }
    let pod = PodId(take(&mut tables.head.next.pod));
    let name = node.name.clone();
    put_node(tables, now_ms, node);
    tables.put(pod, Pod { uid, node: name, addresses, newest_level, created_ms: now_ms });
    Ok(Outcome::Pod(pod))
}

/// A pod has started: its addresses, node and disks now.
pub(super) fn register(
    tables: &mut Tables,
    now_ms: u64,
    (pod, uid): (PodId, Uuid),
    addresses: Addresses,
    node: NewNode,
    newest_level: Level,
    disks: Vec<NewDisk>,
) -> Result<Outcome, CatalogError> {
    let known = tables.pods.get(&pod).ok_or(CatalogError::NoSuchPod { pod })?;
    if known.uid != uid {
        return Err(CatalogError::WrongPod { pod });
    }
    check_node(&node)?;
    let mut now = known.clone();
    (now.addresses, now.node, now.newest_level) = (addresses, node.name.clone(), newest_level);
    if now != *known {
        tables.put(pod, now);
    }
    put_node(tables, now_ms, node);
    for new in disks {
        let known = tables.disks.get(&new.disk);
        let created_ms = known.map_or(now_ms, |known| known.created_ms);
        let NewDisk { disk, path, capacity_bytes } = new;
        let now = Disk { pod, path, capacity_bytes, created_ms };
        if known != Some(&now) {
            tables.put(disk, now);
        }
    }
    Ok(Outcome::Done)
}

pub(super) fn check_node(node: &NewNode) -> Result<(), CatalogError> {
    let name = &node.name;
    check_name(name).map_err(|source| CatalogError::BadName { name: name.clone(), source })?;
    check_labels(&node.labels)
}

/// Labels are bounded; what they say is up to people.
pub(super) fn check_labels(labels: &Labels) -> Result<(), CatalogError> {
    let fits = |text: &String| text.len() <= LABEL_BYTES_MAX;
    let all_fit = labels.iter().all(|(key, value)| !key.is_empty() && fits(key) && fits(value));
    match all_fit && labels.len() <= LABELS_MAX {
        true => Ok(()),
        false => Err(CatalogError::BadLabels),
    }
}

/// Makes the node, or takes over what its pod says of it now.
pub(super) fn put_node(tables: &mut Tables, now_ms: u64, new: NewNode) {
    let NewNode { name, boot_id, labels } = new;
    let known = tables.nodes.get(&name);
    let created_ms = known.map_or(now_ms, |known| known.created_ms);
    let lost_boot_id = known.and_then(|known| known.lost_boot_id.clone());
    let now = Node { boot_id, labels, lost_boot_id, created_ms };
    if known != Some(&now) {
        tables.put(name, now);
    }
}
