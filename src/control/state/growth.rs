//! Commands that make volumes larger.
//!
//! All shards of a volume have its stripe's length from birth, so growing within the last shard
//! needs nothing on disks. Growing beyond it adds shards, and they are part of *every shard* at
//! once: rounds of access sets go to them, too. Clients may use the new size when each new shard
//! has confirmed the newest generation (rule `size-after-new-shards`).

use std::collections::BTreeSet;

use crate::control::command::{Outcome, Placement};
use crate::control::state::error::CatalogError;
use crate::control::state::rows::{Shard, ShardMember, ShardRun, Volume};
use crate::control::state::tables::{Tables, take};
use crate::limits::{SHARDS_MAX, VOLUME_BYTES_MAX};
use crate::planted::planted;
use crate::types::{AccessSet, BLOCK_BYTES, Generation, MemberId, ShardId, VolumeId};

/// Adds shards behind the last one of a volume, which the caller puts down. They get the lengths
/// that the volume's wanted size says.
pub(super) fn add_shards(
    tables: &mut Tables,
    id: VolumeId,
    volume: &mut Volume,
    placement: &Placement,
    birth: &AccessSet,
) {
    let first = u32::try_from(volume.shards()).expect("a bounded number of shards");
    for (place, positions) in (first..).zip(&placement.shards) {
        let shard = ShardId(take(&mut tables.head.next.shard));
        let mut members = Vec::with_capacity(positions.len());
        for position in positions {
            let member = MemberId(take(&mut tables.head.next.member));
            members.push(ShardMember { member, disk: placement.disks[usize::from(*position)] });
        }
        match volume.runs.last_mut() {
            Some(run) if run.ids().end == shard => run.count += 1,
            _ => volume.runs.push(ShardRun { first: shard, count: 1 }),
        }
        let (bytes, birth) = (volume.bytes_at(place), birth.clone());
        tables.put(shard, Shard { volume: id, place, bytes, members, birth });
    }
}

/// Checks that each of so many shards has as many replicas as wanted, on different pods, on known
/// disks.
pub(super) fn check_placement(
    tables: &Tables,
    shards: u64,
    replicas: u32,
    placement: &Placement,
) -> Result<(), CatalogError> {
    if placement.shards.len() as u64 != shards {
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
        if positions.len() != replicas as usize {
            return Err(CatalogError::StalePlacement);
        }
    }
    Ok(())
}

/// Checks that a volume can have this size.
pub(super) fn check_size(size_bytes: u64) -> Result<(), CatalogError> {
    let block = BLOCK_BYTES as u64;
    match (block..=VOLUME_BYTES_MAX).contains(&size_bytes) && size_bytes.is_multiple_of(block) {
        true => Ok(()),
        false => Err(CatalogError::BadSize { size_bytes }),
    }
}

/// Refuses a size that a volume cannot grow to. `None`: there is nothing to do.
pub fn check_growth(volume: &Volume, size_bytes: u64) -> Result<Option<u64>, CatalogError> {
    if [0, volume.size_bytes, volume.wanted_bytes()].contains(&size_bytes) {
        return Ok(None);
    }
    let name = volume.name.clone();
    if volume.deleting || volume.kept.is_some() {
        return Err(CatalogError::VolumeDeleted { name });
    }
    check_size(size_bytes)?;
    if size_bytes < volume.wanted_bytes() {
        let wanted_bytes = volume.wanted_bytes();
        return Err(CatalogError::Shrinks { name, wanted_bytes, size_bytes });
    }
    let shards = size_bytes.div_ceil(volume.stripe_bytes);
    if shards > SHARDS_MAX {
        let largest_bytes = volume.stripe_bytes.saturating_mul(SHARDS_MAX);
        return Err(CatalogError::TooManyShards { name, size_bytes, largest_bytes });
    }
    Ok(Some(shards - volume.shards()))
}

/// Makes a volume larger, which the caller puts down. `size_bytes`: 0 leaves it as it is.
pub(super) fn grow(
    tables: &mut Tables,
    id: VolumeId,
    volume: &mut Volume,
    size_bytes: u64,
    placement: &Placement,
) -> Result<(), CatalogError> {
    let Some(new_shards) = check_growth(volume, size_bytes)? else { return Ok(()) };
    check_placement(tables, new_shards, volume.replicas, placement)?;
    match new_shards == 0 && volume.growing_to.is_none() {
        true => volume.size_bytes = size_bytes,
        false => volume.growing_to = Some(size_bytes),
    }
    // The shard that was the last one promises more now.
    let last = u32::try_from(volume.shards() - 1).expect("a bounded number of shards");
    let shard_id = volume.shard_at(last).expect("it has this shard");
    let shard = &tables.shards[&shard_id];
    let bytes = volume.bytes_at(last);
    if shard.bytes != bytes {
        let now = Shard { bytes, ..shard.clone() };
        tables.put(shard_id, now);
    }
    // A holder that was fenced up to now is fenced in the new shards from birth.
    let birth = match planted!(BornOutdated) {
        true => AccessSet { open: volume.access.open, ..AccessSet::default() },
        false => tables.access_of(id),
    };
    add_shards(tables, id, volume, placement, &birth);
    Ok(())
}

/// Every new shard of a volume has this generation: clients may use the size.
pub(super) fn confirm(
    tables: &mut Tables,
    id: VolumeId,
    size_bytes: u64,
    generation: Generation,
) -> Outcome {
    let Some(volume) = tables.volumes.get(&id) else { return Outcome::Done };
    let is_newest = generation == volume.access.wanted;
    if volume.growing_to == Some(size_bytes) && is_newest && !volume.deleting {
        let now = Volume { size_bytes, growing_to: None, ..volume.clone() };
        tables.put(id, now);
    }
    Outcome::Done
}

#[cfg(test)]
#[path = "growth_test.rs"]
mod tests;
