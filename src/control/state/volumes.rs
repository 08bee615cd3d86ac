//! Commands about volumes and their replicas.

use crate::control::command::{NewVolume, Outcome, Placement, VolumeUpdate};
use crate::control::names::check_name;
use crate::control::state::classes::{check_based_on, check_io_timeout, no_such_class};
use crate::control::state::error::CatalogError;
use crate::control::state::growth;
use crate::control::state::pods::check_labels;
use crate::control::state::rows::{Attachment, Shard, Volume, VolumeAccess};
use crate::control::state::tables::{Tables, take};
use crate::types::{AccessSet, AttachmentId, BLOCK_BYTES, MemberId, Uuid, VolumeId};

/// Makes a volume, or finds the one of this name that is what is asked for.
pub(super) fn create(
    tables: &mut Tables,
    now_ms: u64,
    new: NewVolume,
    placement: &Placement,
) -> Result<Outcome, CatalogError> {
    check_new(tables, &new)?;
    if let Some(known) = existing(tables, &new)? {
        return Ok(Outcome::Volume(known));
    }
    check_placement(tables, &new, placement)?;
    let volume = VolumeId(take(&mut tables.head.next.volume));
    let NewVolume {
        uid,
        name,
        class,
        labels,
        size_bytes,
        stripe_bytes,
        replicas,
        io_timeout_ms,
        open,
    } = new;
    let mut made = Volume {
        uid,
        name,
        class,
        labels,
        size_bytes,
        growing_to: None,
        stripe_width: 1,
        stripe_bytes,
        replicas,
        io_timeout_ms,
        runs: Vec::new(),
        access: VolumeAccess { open, ..VolumeAccess::default() },
        creating: true,
        kept: None,
        file_system: None,
        restoring: None,
        deleting: false,
        created_ms: now_ms,
    };
    let birth = AccessSet { open, ..AccessSet::default() };
    growth::add_shards(tables, volume, &mut made, placement, &birth);
    tables.put(volume, made);
    Ok(Outcome::Volume(volume))
}

fn check_new(tables: &Tables, new: &NewVolume) -> Result<(), CatalogError> {
    let NewVolume { name, class, .. } = new;
    check_name(name).map_err(|source| CatalogError::BadName { name: name.clone(), source })?;
    check_labels(&new.labels)?;
    if !tables.classes.contains_key(class) {
        return Err(no_such_class(tables, class));
    }
    check_io_timeout(new.io_timeout_ms)?;
    growth::check_size(new.size_bytes)
}

/// The volume that has this name, if it is what is asked for.
fn existing(tables: &Tables, new: &NewVolume) -> Result<Option<VolumeId>, CatalogError> {
    let Some(id) = tables.index.volumes_by_name.get(&new.name) else { return Ok(None) };
    let known = &tables.volumes[id];
    if known.deleting {
        return Err(CatalogError::NameNotFreeYet { name: new.name.clone() });
    }
    if known.kept.is_some() {
        return Err(CatalogError::VolumeDeleted { name: new.name.clone() });
    }
    let size_bytes = known.wanted_bytes();
    let is = (&known.class, &known.labels, size_bytes, known.replicas, known.access.open);
    match is == (&new.class, &new.labels, new.size_bytes, new.replicas, new.open) {
        true => Ok(Some(*id)),
        false => Err(CatalogError::NameTaken { name: new.name.clone() }),
    }
}

/// Checks that a placement is one of all shards of a new volume.
fn check_placement(
    tables: &Tables,
    new: &NewVolume,
    placement: &Placement,
) -> Result<(), CatalogError> {
    let block = BLOCK_BYTES as u64;
    let whole_blocks = new.stripe_bytes > 0 && new.stripe_bytes.is_multiple_of(block);
    if !whole_blocks || !matches!(new.replicas, 1 | 3 | 5) {
        return Err(CatalogError::StalePlacement);
    }
    let shards = new.size_bytes.div_ceil(new.stripe_bytes);
    growth::check_placement(tables, shards, new.replicas, placement)
}

/// Changes the labels of a volume, or makes it larger.
pub(super) fn update(
    tables: &mut Tables,
    id: VolumeId,
    update: VolumeUpdate,
    placement: &Placement,
) -> Result<Outcome, CatalogError> {
    let VolumeUpdate { based_on, labels, size_bytes } = update;
    check_labels(&labels)?;
    let none = || CatalogError::NoSuchVolume { name: id.to_string() };
    let row = tables.volumes.row(&id).ok_or_else(none)?;
    check_based_on(based_on, row.revision)?;
    let mut volume = row.value.clone();
    growth::grow(tables, id, &mut volume, size_bytes, placement)?;
    volume.labels = labels;
    if volume != tables.volumes[&id] {
        tables.put(id, volume);
    }
    Ok(Outcome::Volume(id))
}

/// The revision grows when a volume was still being created.
pub(super) fn confirm_created(tables: &mut Tables, volumes: &[VolumeId]) -> Outcome {
    for volume in volumes {
        if let Some(record) = tables.volumes.get(volume).filter(|record| record.creating) {
            let now = Volume { creating: false, ..record.clone() };
            tables.put(*volume, now);
        }
    }
    Outcome::Done
}

/// These members are gone from the disk, durably. Only members that were to be destroyed count.
pub(super) fn confirm_destroyed(tables: &mut Tables, disk: Uuid, members: &[MemberId]) -> Outcome {
    for member in members {
        let held = tables.index.held.get(&disk);
        let Some(id) = held.and_then(|held| held.members.get(member)).copied() else { continue };
        let mut shard = tables.shards[&id].clone();
        if !tables.volumes[&shard.volume].deleting {
            continue;
        }
        let volume = shard.volume;
        shard.members.retain(|other| other.member != *member);
        match shard.members.is_empty() {
            true => tables.remove::<Shard>(&id),
            false => tables.put(id, shard),
        }
        if !tables.index.shards_left.contains_key(&volume) {
            let gone: Vec<AttachmentId> = tables.attachments_of(volume).map(|it| it.0).collect();
            gone.into_iter().for_each(|id| tables.remove::<Attachment>(&(volume, id)));
            tables.remove::<Volume>(&volume);
        }
    }
    Outcome::Done
}
