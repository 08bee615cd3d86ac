//! Checks slots: named slots have durable data, and each has one owner.

use std::collections::BTreeMap;

use crate::sim::checks::wrong::{Checked, Wrong, check};
use crate::sim::disk::SimFile;
use crate::store::index::IndexStore;
use crate::store::index::memory::MemoryIndex;
use crate::store::messages::{ExtentKey, IndexEdit, Slot};
use crate::store::wal::format::{Batch, FoundEntry, FoundItem};
use crate::types::{BLOCKS_PER_EXTENT, Extent, MemberId};

/// Rule `bypass-before-batch`: slots that a batch names are durable before its write begins.
pub fn named_by_log(batch: &Batch, data: &SimFile) -> Checked {
    batch.items.iter().try_for_each(|item| match item {
        FoundItem::Entry { entry, .. } => named_by_entry(entry, data),
        FoundItem::LogSnapshot { entries, .. } => {
            entries.iter().try_for_each(|entry| named_by_entry(entry, data))
        }
        _ => Ok(()),
    })
}

fn named_by_entry(entry: &FoundEntry, data: &SimFile) -> Checked {
    let slots = entry.bypass.iter().flat_map(|bypass| &bypass.slots);
    slots.into_iter().try_for_each(|named| {
        let index = entry.index;
        durable(named.slot, u16::MAX, data).map_err(|what| format!("entry {index} names {what}"))
    })
}

/// Rule `data-before-index`: data in slots is durable before the index refers to it.
pub fn named_by_index(edits: &[IndexEdit], data: &SimFile) -> Checked {
    edits.iter().try_for_each(|edit| match edit {
        IndexEdit::Put(key, record) => durable(record.slot, record.present, data)
            .map_err(|what| format!("the index has {key:?} in {what}")),
        _ => Ok(()),
    })
}

/// Rule `write-back-after-durable-commit`: the index has only changes whose commit survives a
/// crash. `committed`: the commit index that a member would still know.
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

/// An edit never replaces a record by an older one. Resyncs are exempt: a new source may know fewer
/// commits than the last one.
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

/// Checks that no two extents of a disk own a slot; returns the number of owned slots.
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
