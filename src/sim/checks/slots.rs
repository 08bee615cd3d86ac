//! Slots: what names one finds durable data in it (rules R2 and R6), and only one extent has it.

use std::collections::BTreeMap;

use crate::sim::checks::wrong::{Checked, Wrong, check};
use crate::sim::disk::SimFile;
use crate::store::index::IndexStore;
use crate::store::index::memory::MemoryIndex;
use crate::store::seam::{ExtentKey, IndexEdit, Slot};
use crate::store::wal::format::{Batch, FoundEntry, FoundItem};
use crate::types::{BLOCKS_PER_EXTENT, Extent, MemberId};

/// Rule R6: the slots that a batch names are durable before it is written.
pub fn named_by_log(batch: &Batch, data: &SimFile) -> Checked {
    batch.items.iter().try_for_each(|item| match item {
        FoundItem::Entry { entry, .. } => named_by_entry(entry, data),
        FoundItem::Image { entries, .. } => {
            entries.iter().try_for_each(|entry| named_by_entry(entry, data))
        }
        _ => Ok(()),
    })
}

fn named_by_entry(entry: &FoundEntry, data: &SimFile) -> Checked {
    let slots = entry.redirect.iter().flat_map(|redirect| &redirect.slots);
    slots.into_iter().try_for_each(|named| {
        let index = entry.index;
        durable(named.slot, u16::MAX, data).map_err(|what| format!("entry {index} names {what}"))
    })
}

/// Rule R2: what is in its place is durable before the index says that it is there.
pub fn named_by_index(edits: &[IndexEdit], data: &SimFile) -> Checked {
    edits.iter().try_for_each(|edit| match edit {
        IndexEdit::Put(key, record) => durable(record.slot, record.present, data)
            .map_err(|what| format!("the index has {key:?} in {what}")),
        _ => Ok(()),
    })
}

/// Rule R7: nothing is in the index whose commit would be forgotten by a crash. `committed`: what a
/// member would still know.
pub fn covered(edits: &[IndexEdit], committed: impl Fn(MemberId) -> u64) -> Checked {
    edits.iter().try_for_each(|edit| match edit {
        IndexEdit::Put(key, record) if record.last_changed > committed(key.member) => Err(format!(
            "the index has entry {} of {key:?}, and only {} is durably committed",
            record.last_changed,
            committed(key.member)
        )),
        _ => Ok(()),
    })
}

/// What is in the index is never replaced by something older, but by a resync: its source may know
/// of fewer commits than the one before did.
pub fn never_older(
    edits: &[IndexEdit],
    resyncs: impl Fn(MemberId) -> bool,
    index: &mut MemoryIndex,
) -> Checked {
    edits.iter().try_for_each(|edit| {
        let IndexEdit::Put(key, record) = edit else { return Ok(()) };
        if resyncs(key.member) {
            return Ok(());
        }
        let found = index.get(&[*key]).expect("a simulated index answers").remove(0);
        let (has, gets) = (found.map_or(0, |found| found.last_changed), record.last_changed);
        check(has <= gets, || format!("{key:?} is as of entry {has}, and goes back to {gets}"))
    })
}

/// No slot belongs to two extents of a disk; returns how many are owned.
pub fn owned(index: &mut MemoryIndex) -> Result<u64, Wrong> {
    let mut owners: BTreeMap<Slot, ExtentKey> = BTreeMap::new();
    for record in index.members().expect("a simulated index answers") {
        let found = index.scan(record.member, Extent(0), usize::MAX);
        for (key, extent) in found.expect("a simulated index answers") {
            if let Some(other) = owners.insert(extent.slot, key) {
                return Err(format!("{:?} belongs to {other:?} and {key:?}", extent.slot));
            }
        }
    }
    Ok(owners.len() as u64)
}

fn durable(slot: Slot, present: u16, data: &SimFile) -> Checked {
    let first = u64::from(slot.0) * u64::from(BLOCKS_PER_EXTENT);
    let named = (0..BLOCKS_PER_EXTENT).filter(|block| present & (1 << block) != 0);
    let mut lost = named.filter(|block| !data.is_durable(first + u64::from(*block)));
    match lost.next() {
        None => Ok(()),
        Some(block) => Err(format!("{slot:?}, where block {block} can still be lost")),
    }
}
