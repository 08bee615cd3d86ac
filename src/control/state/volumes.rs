//! Commands about volumes and their replicas.

use std::collections::BTreeSet;

use crate::control::command::{NewVolume, Outcome, Placement, VolumeUpdate};
use crate::control::names::check_name;
use crate::control::state::classes::{check_based_on, no_such_class};
use crate::control::state::error::CatalogError;
use crate::control::state::pods::check_labels;
use crate::control::state::rows::{Attachment, Shard, ShardMember, Volume, VolumeAccess};
use crate::control::state::tables::{Tables, take};
use crate::limits::VOLUME_BYTES_MAX;
use crate::types::{AccessSet, AttachmentId, BLOCK_BYTES, MemberId, ShardId, Uuid, VolumeId};

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
    let first_shard = ShardId(tables.head.next.shard);
    for (place, positions) in (0..).zip(&placement.shards) {
        let shard = ShardId(take(&mut tables.head.next.shard));
        let mut members = Vec::with_capacity(positions.len());
        for position in positions {
            let member = MemberId(take(&mut tables.head.next.member));
            members.push(ShardMember { member, disk: placement.disks[usize::from(*position)] });
        }
        let birth = AccessSet { open: new.open, ..AccessSet::default() };
        let begin = u64::from(place) * new.stripe_bytes;
        let bytes = (new.size_bytes - begin).min(new.stripe_bytes);
        tables.put(shard, Shard { volume, place, bytes, members, birth });
    }
    let NewVolume { uid, name, class, labels, size_bytes, stripe_bytes, replicas, open } = new;
    let shards = u32::try_from(placement.shards.len()).expect("a bounded number of shards");
    let made = Volume {
        uid,
        name,
        class,
        labels,
        size_bytes,
        stripe_width: 1,
        stripe_bytes,
        replicas,
        first_shard,
        shards,
        access: VolumeAccess { open, ..VolumeAccess::default() },
        creating: true,
        deleting: false,
        created_ms: now_ms,
    };
    tables.put(volume, made);
    Ok(Outcome::Volume(volume))
}

fn check_new(tables: &Tables, new: &NewVolume) -> Result<(), CatalogError> {
    let NewVolume { name, class, size_bytes, .. } = new;
    check_name(name).map_err(|source| CatalogError::BadName { name: name.clone(), source })?;
    check_labels(&new.labels)?;
    if !tables.classes.contains_key(class) {
        return Err(no_such_class(tables, class));
    }
    let block = BLOCK_BYTES as u64;
    if !(block..=VOLUME_BYTES_MAX).contains(size_bytes) || !size_bytes.is_multiple_of(block) {
        return Err(CatalogError::BadSize { size_bytes: *size_bytes });
    }
    Ok(())
}

/// The volume that has this name, if it is what is asked for.
fn existing(tables: &Tables, new: &NewVolume) -> Result<Option<VolumeId>, CatalogError> {
    let Some(id) = tables.index.volumes_by_name.get(&new.name) else { return Ok(None) };
    let known = &tables.volumes[id];
    if known.deleting {
        return Err(CatalogError::NameNotFreeYet { name: new.name.clone() });
    }
    let is = (&known.class, &known.labels, known.size_bytes, known.replicas, known.access.open);
    match is == (&new.class, &new.labels, new.size_bytes, new.replicas, new.open) {
        true => Ok(Some(*id)),
        false => Err(CatalogError::NameTaken { name: new.name.clone() }),
    }
}

/// Checks that all shards have as many replicas as wanted, on different pods, on known disks.
fn check_placement(
    tables: &Tables,
    new: &NewVolume,
    placement: &Placement,
) -> Result<(), CatalogError> {
    let block = BLOCK_BYTES as u64;
    let whole_blocks = new.stripe_bytes > 0 && new.stripe_bytes.is_multiple_of(block);
    let shards = placement.shards.len() as u64;
    let fits = whole_blocks && new.size_bytes.div_ceil(new.stripe_bytes) == shards;
    if !fits || !matches!(new.replicas, 1 | 3 | 5) {
        return Err(CatalogError::StalePlacement);
    }
    for positions in &placement.shards {
        let mut pods = BTreeSet::new();
        for position in positions {
            let disk = placement.disks.get(usize::from(*position));
            let disk = disk.and_then(|disk| tables.disks.get(disk));
            if !pods.insert(disk.ok_or(CatalogError::StalePlacement)?.pod) {
                return Err(CatalogError::StalePlacement);
            }
        }
        if positions.len() != new.replicas as usize {
            return Err(CatalogError::StalePlacement);
        }
    }
    Ok(())
}

/// Changes the labels of a volume.
pub(super) fn update(
    tables: &mut Tables,
    volume: VolumeId,
    update: VolumeUpdate,
) -> Result<Outcome, CatalogError> {
    let VolumeUpdate { based_on, labels } = update;
    check_labels(&labels)?;
    let none = || CatalogError::NoSuchVolume { name: volume.to_string() };
    let row = tables.volumes.row(&volume).ok_or_else(none)?;
    check_based_on(based_on, row.revision)?;
    if row.value.labels != labels {
        let now = Volume { labels, ..row.value.clone() };
        tables.put(volume, now);
    }
    Ok(Outcome::Volume(volume))
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

/// From now on the volume cannot be used, and its replicas are destroyed. Refused while a node has
/// it, unless forced.
pub(super) fn delete(
    tables: &mut Tables,
    name: &str,
    meant: VolumeId,
    force: bool,
) -> Result<Outcome, CatalogError> {
    let found = tables.index.volumes_by_name.get(name).filter(|found| **found == meant).copied();
    let none = || CatalogError::NoSuchVolume { name: name.to_owned() };
    let volume = found.ok_or_else(none)?;
    let record = &tables.volumes[&volume];
    let holder = tables.attachments_of(volume).next().map(|(_, it)| it.node.clone());
    if let Some(holder) = holder.filter(|_| !force && !record.deleting) {
        return Err(CatalogError::Held { name: name.to_owned(), holder });
    }
    if !record.deleting {
        let now = Volume { deleting: true, ..record.clone() };
        tables.put(volume, now);
    }
    Ok(Outcome::Volume(volume))
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
