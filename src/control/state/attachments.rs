//! Commands about who may use a volume.
//!
//! Ids of attachments and generations of access sets come from one counter per volume. A change
//! asks for a new generation; changes that come before it is in every shard are merged into the
//! next one. Only what every shard has counts: an attachment is active, or forgotten, when a round
//! over all shards is confirmed (rule `grant-waits-for-all-shards`).

use crate::control::command::Outcome;
use crate::control::state::classes::check_io_timeout;
use crate::control::state::error::CatalogError;
use crate::control::state::rows::{Attachment, AttachmentKey, Node, Volume};
use crate::control::state::tables::Tables;
use crate::planted::planted;
use crate::types::{AccessMode, AttachmentId, GRANTS_MAX, Generation, Uuid, VolumeId};

/// A node's wish for an attachment.
pub(super) struct Wish {
    pub node: String,
    pub mode: AccessMode,
    /// `None`: as the volume says, or as the node has it.
    pub io_timeout_ms: Option<u64>,
}

/// Gives a node the right to use a volume, once every shard has admitted it. Finds the one that the
/// node has, and changes its timeout.
pub(super) fn publish(
    tables: &mut Tables,
    now_ms: u64,
    id: VolumeId,
    wish: Wish,
    uid: Uuid,
) -> Result<Outcome, CatalogError> {
    let Wish { node, mode, io_timeout_ms } = wish;
    check_io_timeout(io_timeout_ms.unwrap_or(0))?;
    let volume = in_use(tables, id)?.clone();
    let known = tables.nodes.get(&node);
    let known = known.ok_or_else(|| CatalogError::NoSuchNode { node: node.clone() })?;
    if known.is_lost() {
        return Err(CatalogError::NodeLost { node });
    }
    if volume.access.open {
        return Err(CatalogError::VolumeOpen { name: volume.name });
    }
    // One that ends holds nothing: the round that admits the new one fences it in every shard.
    let is_held = |(_, it): &(AttachmentId, &Attachment)| it.ends_with.is_none();
    let own = tables.attachments_of(id).filter(is_held).find(|(_, it)| it.node == node);
    if let Some((attachment, own)) = own.map(|(attachment, it)| (attachment, it.clone())) {
        if own.mode != mode {
            return Err(CatalogError::OtherMode { node });
        }
        if let Some(io_timeout_ms) = io_timeout_ms.filter(|ms| *ms != own.io_timeout_ms) {
            tables.put((id, attachment), Attachment { io_timeout_ms, ..own });
        }
        return Ok(Outcome::Attachment(id, attachment));
    }
    let mut others = 0;
    for (_, other) in tables.attachments_of(id).filter(is_held) {
        if mode == AccessMode::ReadWrite || other.mode != mode {
            let holder = other.node.clone();
            return Err(CatalogError::Held { name: volume.name, holder });
        }
        others += 1;
    }
    if others >= GRANTS_MAX || tables.index.attachments_by_uid.contains_key(&uid) {
        return Err(CatalogError::TooManyAttachments { name: volume.name });
    }
    let made = Attachment {
        uid,
        node,
        mode,
        io_timeout_ms: io_timeout_ms.unwrap_or(volume.io_timeout_ms),
        active: false,
        ends_with: None,
        created_ms: now_ms,
    };
    let attachment = AttachmentId(change(tables, id, volume).0);
    tables.put((id, attachment), made);
    Ok(Outcome::Attachment(id, attachment))
}

/// Takes the right back. What is unknown has none.
pub(super) fn unpublish(tables: &mut Tables, id: VolumeId, node: &str) -> Outcome {
    let of_node = |(_, it): &(AttachmentId, &Attachment)| it.node == node;
    let found = tables.attachments_of(id).filter(of_node).filter(|(_, it)| it.ends_with.is_none());
    let keys: Vec<AttachmentKey> = found.map(|(attachment, _)| (id, attachment)).collect();
    keys.into_iter().for_each(|key| end(tables, key));
    Outcome::Done
}

/// The attachment ends when every shard has an access set without it.
pub(super) fn end(tables: &mut Tables, key: AttachmentKey) {
    let attachment = tables.attachments[&key].clone();
    let volume = tables.volumes[&key.0].clone();
    let ends_with = Some(change(tables, key.0, volume));
    tables.put(key, Attachment { ends_with, active: false, ..attachment });
}

/// Asks for another generation in every shard.
pub(super) fn change(tables: &mut Tables, id: VolumeId, mut volume: Volume) -> Generation {
    volume.access.counter += 1;
    volume.access.wanted = Generation(volume.access.counter);
    let wanted = volume.access.wanted;
    tables.put(id, volume);
    wanted
}

/// Lets everybody use a volume, or only attachments.
pub(super) fn set_open(
    tables: &mut Tables,
    id: VolumeId,
    open: bool,
) -> Result<Outcome, CatalogError> {
    let mut volume = in_use(tables, id)?.clone();
    if volume.access.open == open {
        return Ok(Outcome::Volume(id));
    }
    if let Some((_, attachment)) = tables.attachments_of(id).next() {
        let (name, holder) = (volume.name.clone(), attachment.node.clone());
        return Err(CatalogError::Held { name, holder });
    }
    volume.access.open = open;
    change(tables, id, volume);
    Ok(Outcome::Volume(id))
}

/// Fences the attachments that a node has now, and bars new ones in this boot of it.
pub(super) fn declare_lost(
    tables: &mut Tables,
    name: &str,
    boot_id: &str,
) -> Result<Outcome, CatalogError> {
    let node = tables.nodes.get(name);
    let node = node.ok_or_else(|| CatalogError::NoSuchNode { node: name.to_owned() })?;
    if node.boot_id != boot_id {
        return Err(CatalogError::NodeRebooted { node: name.to_owned() });
    }
    let now = Node { lost_boot_id: Some(boot_id.to_owned()), ..node.clone() };
    if now != *node {
        tables.put(name.to_owned(), now);
    }
    let held = tables.index.attachments_by_node.get(name);
    let keys: Vec<AttachmentKey> = held.into_iter().flatten().copied().collect();
    for key in keys {
        if tables.attachments[&key].ends_with.is_none() {
            end(tables, key);
        }
    }
    Ok(Outcome::Done)
}

/// A node that was declared lost has no old device any more.
pub(super) fn clear_lost(tables: &mut Tables, name: &str) -> Result<Outcome, CatalogError> {
    let node = tables.nodes.get(name);
    let node = node.ok_or_else(|| CatalogError::NoSuchNode { node: name.to_owned() })?;
    if node.lost_boot_id.is_some() {
        let now = Node { lost_boot_id: None, ..node.clone() };
        tables.put(name.to_owned(), now);
    }
    Ok(Outcome::Done)
}

/// So many shards of the volume have this generation. It counts when these are all that there are
/// by now: the round may have begun before the volume grew.
pub(super) fn confirm(
    tables: &mut Tables,
    id: VolumeId,
    generation: Generation,
    shards: u64,
) -> Outcome {
    let Some(volume) = tables.volumes.get(&id) else { return Outcome::Done };
    let is_every = shards >= volume.shards() || planted!(NewShardsForgotten);
    if generation <= volume.access.applied || generation > volume.access.wanted || !is_every {
        return Outcome::Done;
    }
    let mut volume = volume.clone();
    volume.access.applied = generation;
    volume.restoring = volume.restoring.filter(|restoring| *restoring > generation);
    tables.put(id, volume);
    let all: Vec<(AttachmentId, Attachment)> =
        tables.attachments_of(id).map(|(attachment, it)| (attachment, it.clone())).collect();
    for (attachment, it) in all {
        let key = (id, attachment);
        match it.ends_with {
            Some(end) if end <= generation || planted!(ForgottenEarly) => {
                tables.remove::<Attachment>(&key);
            }
            Some(_) => {}
            None if it.active => {}
            None if attachment.0 <= generation.0 || planted!(ActiveEarly) => {
                tables.put(key, Attachment { active: true, ..it });
            }
            None => {}
        }
    }
    Outcome::Done
}

/// Shards have other access sets than this catalog gave them: it was restored from an older copy.
/// What it believes to be attached may have been fenced, and an id that was fenced never comes
/// back. So all attachments end, and all further numbers are above those that were seen.
pub(super) fn outdone(
    tables: &mut Tables,
    id: VolumeId,
    asked: Generation,
    seen: Generation,
) -> Outcome {
    let Some(volume) = tables.volumes.get(&id).filter(|volume| !volume.deleting) else {
        return Outcome::Done;
    };
    // What this catalog wants by now may come from a later round than the one that tells.
    let wanted = volume.access.wanted;
    let is_refused = asked == wanted && seen == asked;
    if seen <= wanted && !is_refused {
        return Outcome::Done;
    }
    let mut volume = volume.clone();
    volume.access.counter = volume.access.counter.max(seen.0);
    change(tables, id, volume);
    let stay = tables.attachments_of(id).filter(|(_, it)| it.ends_with.is_none());
    let keys: Vec<AttachmentKey> = stay.map(|(attachment, _)| (id, attachment)).collect();
    keys.into_iter().for_each(|key| end(tables, key));
    Outcome::Done
}

pub(super) fn in_use(tables: &Tables, id: VolumeId) -> Result<&Volume, CatalogError> {
    let found = tables.volumes.get(&id).filter(|volume| !volume.deleting);
    let volume = found.ok_or_else(|| CatalogError::NoSuchVolume { name: id.to_string() })?;
    match volume.kept {
        None => Ok(volume),
        Some(_) => Err(CatalogError::VolumeDeleted { name: volume.name.clone() }),
    }
}

#[cfg(test)]
#[path = "attachments_test.rs"]
mod tests;
