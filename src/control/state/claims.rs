//! What nodes say: of themselves, and of volumes that are published to them.
//!
//! Invariant: `a-volume-is-formatted-once`: after a file system was recorded as made, none is
//! begun. A node records that it begins, makes the file system, records that it is made, and only
//! then lets anybody write to it. So one that was begun and not made holds nobody's data.

use crate::control::command::{NewNode, Outcome};
use crate::control::state::attachments::{clear_lost, in_use};
use crate::control::state::error::CatalogError;
use crate::control::state::pods::{check_node, put_node};
use crate::control::state::rows::{AttachmentKey, FileSystem, Node, Volume};
use crate::control::state::tables::Tables;
use crate::planted::planted;
use crate::types::{AccessMode, Uuid, VolumeId};

/// Finds the attachment by which a node has a volume.
pub(super) fn claim(
    tables: &mut Tables,
    id: VolumeId,
    name: &str,
    boot_id: String,
) -> Result<Outcome, CatalogError> {
    let key = active(tables, id, name)?;
    let known = tables.nodes.get(name).cloned();
    let known = known.ok_or_else(|| CatalogError::NoSuchNode { node: name.to_owned() })?;
    let now = Node { boot_id, ..known.clone() };
    if now.is_lost() {
        return Err(CatalogError::NodeLost { node: name.to_owned() });
    }
    if now != known {
        tables.put(name.to_owned(), now);
    }
    Ok(Outcome::Attachment(key.0, key.1))
}

/// A node begins to make a file system, or has one. `holder`: the node, and the attachment by which
/// it has the volume.
pub(super) fn record_file_system(
    tables: &mut Tables,
    id: VolumeId,
    (node, attachment): (&str, Uuid),
    now: FileSystem,
) -> Result<Outcome, CatalogError> {
    let key = active(tables, id, node)?;
    let volume = tables.volumes[&id].clone();
    let held = &tables.attachments[&key];
    let may = match held.mode {
        AccessMode::ReadWrite => true,
        // Several nodes write: none makes a file system, but one that was begun is none any more.
        AccessMode::Raw => now.made,
        AccessMode::ReadOnly => false,
    };
    if held.uid != attachment || !may {
        return Err(CatalogError::NotPublished { name: volume.name, node: node.to_owned() });
    }
    match volume.file_system {
        Some(known) if known == now => return Ok(Outcome::Done),
        Some(known) if known.made && !planted!(FormattedTwice) => {
            return Err(CatalogError::Formatted { name: volume.name, kind: known.kind });
        }
        _ => {}
    }
    tables.put(id, Volume { file_system: Some(now), ..volume });
    Ok(Outcome::Done)
}

/// Takes over what a node says of itself. The labels of one with pods come from these. One that was
/// declared lost, and has no device of that time any more, is lost no more.
pub(super) fn report(
    tables: &mut Tables,
    now_ms: u64,
    new: NewNode,
    has_no_device: bool,
) -> Result<Outcome, CatalogError> {
    check_node(&new)?;
    let has_pods = tables.index.pods_by_node.get(&new.name).is_some_and(|pods| pods.size() > 0);
    let new = match tables.nodes.get(&new.name).filter(|_| has_pods) {
        Some(known) => NewNode { labels: known.labels.clone(), ..new },
        None => new,
    };
    let name = new.name.clone();
    put_node(tables, now_ms, new);
    if has_no_device {
        return clear_lost(tables, &name);
    }
    Ok(Outcome::Done)
}

/// The attachment of a volume that a node has, and that every shard has admitted.
fn active(tables: &Tables, id: VolumeId, node: &str) -> Result<AttachmentKey, CatalogError> {
    let volume = in_use(tables, id)?;
    let mut all = tables.attachments_of(id);
    let found = all.find(|(_, it)| it.node == node && it.active && it.ends_with.is_none());
    match found {
        Some((attachment, _)) => Ok((id, attachment)),
        None => {
            let name = volume.name.clone();
            Err(CatalogError::NotPublished { name, node: node.to_owned() })
        }
    }
}

#[cfg(test)]
#[path = "claims_test.rs"]
mod tests;
