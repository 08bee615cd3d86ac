//! Commands that delete volumes, and bring them back.
//!
//! A deleted volume is kept for a while, with its name, its data and its space. Every shard gets an
//! access set by which nobody may use it, so what comes back is what was there (rule
//! `kept-is-not-written`). It is destroyed after its time, by a command of the catalog's leader.

use crate::control::command::{Deletion, Outcome};
use crate::control::state::attachments::{change, end};
use crate::control::state::error::CatalogError;
use crate::control::state::rows::{AttachmentKey, Kept, Volume};
use crate::control::state::tables::Tables;
use crate::limits::RETENTION_MS_MAX;
use crate::types::VolumeId;

/// From now on the volume cannot be used. Without a retention its replicas are destroyed. Refused
/// while a node has it, unless forced.
pub(super) fn delete(
    tables: &mut Tables,
    now_ms: u64,
    name: &str,
    meant: VolumeId,
    how: Deletion,
) -> Result<Outcome, CatalogError> {
    let id = of_name(tables, name, meant)?;
    let Deletion { force, retention_ms, purge } = how;
    if retention_ms > RETENTION_MS_MAX {
        return Err(CatalogError::BadRetention);
    }
    let volume = &tables.volumes[&id];
    if volume.deleting {
        return Ok(Outcome::Volume(id));
    }
    if volume.kept.is_some() {
        if purge || retention_ms == 0 {
            destroy(tables, id);
        }
        return Ok(Outcome::Volume(id));
    }
    if purge {
        return Err(CatalogError::NotDeleted { name: name.to_owned() });
    }
    let holder = tables.attachments_of(id).next().map(|(_, it)| it.node.clone());
    if let Some(holder) = holder.filter(|_| !force) {
        return Err(CatalogError::Held { name: name.to_owned(), holder });
    }
    match retention_ms {
        0 => destroy(tables, id),
        _ => keep(tables, now_ms, id, retention_ms),
    }
    Ok(Outcome::Volume(id))
}

/// Brings a deleted volume back, as long as it is kept.
pub(super) fn undelete(
    tables: &mut Tables,
    name: &str,
    meant: VolumeId,
) -> Result<Outcome, CatalogError> {
    let id = of_name(tables, name, meant)?;
    let volume = &tables.volumes[&id];
    if volume.deleting {
        return Err(CatalogError::NameNotFreeYet { name: name.to_owned() });
    }
    if volume.kept.is_some() {
        let mut back = volume.clone();
        back.kept = None;
        // Before every shard lets clients in again, they would be told that they are fenced.
        change(tables, id, back);
        let back = tables.volumes[&id].clone();
        tables.put(id, Volume { restoring: Some(back.access.wanted), ..back });
    }
    Ok(Outcome::Volume(id))
}

/// The time of a deleted volume is over. `purge_ms`: the end that was meant; a volume that was
/// brought back and deleted again has another one.
pub(super) fn purge(tables: &mut Tables, now_ms: u64, id: VolumeId, purge_ms: u64) -> Outcome {
    let kept = tables.volumes.get(&id).and_then(|volume| volume.kept);
    if kept.is_some_and(|kept| kept.purge_ms == purge_ms && now_ms >= purge_ms) {
        destroy(tables, id);
    }
    Outcome::Done
}

fn of_name(tables: &Tables, name: &str, meant: VolumeId) -> Result<VolumeId, CatalogError> {
    let found = tables.index.volumes_by_name.get(name).filter(|found| **found == meant);
    found.copied().ok_or_else(|| CatalogError::NoSuchVolume { name: name.to_owned() })
}

fn destroy(tables: &mut Tables, id: VolumeId) {
    let volume = tables.volumes[&id].clone();
    tables.put(id, Volume { deleting: true, kept: None, restoring: None, ..volume });
}

fn keep(tables: &mut Tables, now_ms: u64, id: VolumeId, retention_ms: u64) {
    let stay = tables.attachments_of(id).filter(|(_, it)| it.ends_with.is_none());
    let keys: Vec<AttachmentKey> = stay.map(|(attachment, _)| (id, attachment)).collect();
    keys.into_iter().for_each(|key| end(tables, key));
    let purge_ms = now_ms.saturating_add(retention_ms);
    let volume = tables.volumes[&id].clone();
    let kept = Some(Kept { deleted_ms: now_ms, purge_ms });
    change(tables, id, Volume { kept, restoring: None, ..volume });
}

#[cfg(test)]
#[path = "retention_test.rs"]
mod tests;
