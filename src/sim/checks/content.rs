//! Models the content of every block from the applied entries. An index record must match the model
//! as of its newest change. No change up to a member's flushed index may be missing, after resyncs,
//! too (rule `flushed-is-a-low-water-mark`).

use std::collections::BTreeMap;

use crate::log::{Applied, Change};
use crate::sim::checks::wrong::Checked;
use crate::store::index::IndexStore;
use crate::store::index::memory::MemoryIndex;
use crate::store::messages::{ExtentKey, ExtentRecord, MemberRecord};
use crate::types::{BLOCKS_PER_EXTENT, BlockRange, Extent, ShardId};

/// See the module.
#[derive(Default)]
pub struct Content {
    shards: BTreeMap<ShardId, BTreeMap<Extent, History>>,
}

/// All changes of an extent's blocks, in order: entry, and checksum (`None`: the block reads as
/// zeroes from then on).
#[derive(Default)]
struct History([Vec<(u64, Option<u32>)>; BLOCKS_PER_EXTENT as usize]);

impl History {
    /// The newest change of some block up to `flushed` that this record lacks. Blocks that the log
    /// will change again (up to `applied`) and zeroes of absent blocks do not count.
    fn missing(&self, has: Option<&ExtentRecord>, flushed: u64, applied: u64) -> Option<u64> {
        let reflects = has.map_or(0, |record| record.last_changed);
        let blocks = self.0.iter().enumerate();
        blocks.into_iter().find_map(|(number, block)| {
            let (due, crc) = at(block, flushed).filter(|(due, _)| *due > reflects)?;
            let replaced = at(block, applied).is_some_and(|(newest, _)| newest > flushed);
            let is_present = has.is_some_and(|record| record.present & (1 << number) != 0);
            let is_zero = crc.is_none() && !is_present;
            (!replaced && !is_zero).then_some(due)
        })
    }
}

/// The newest change of a block up to this entry.
fn at(block: &[(u64, Option<u32>)], index: u64) -> Option<(u64, Option<u32>)> {
    let known = block.partition_point(|(changed, _)| *changed <= index);
    known.checked_sub(1).map(|newest| block[newest])
}

impl Content {
    /// The first member of a shard applies an entry.
    pub fn applies(&mut self, shard: ShardId, applied: &Applied) {
        let index = applied.index;
        match &applied.change {
            None => {}
            Some(Change::Write { range, crcs, .. }) => {
                self.change(shard, index, *range, |block| Some(crcs[block as usize]));
            }
            Some(Change::Zero { range, .. }) => self.change(shard, index, *range, |_| None),
        }
    }

    fn change(
        &mut self,
        shard: ShardId,
        index: u64,
        range: BlockRange,
        crc: impl Fn(u32) -> Option<u32>,
    ) {
        let extents = self.shards.entry(shard).or_default();
        for block in 0..range.count {
            let at = range.first.0 + block;
            let history = extents.entry(Extent(at / BLOCKS_PER_EXTENT)).or_default();
            history.0[(at % BLOCKS_PER_EXTENT) as usize].push((index, crc(block)));
        }
    }

    /// Checks the record of an extent. Its member has applied entries up to `applied`; later
    /// changes may be missing until the log replays them.
    pub fn says(
        &self,
        shard: ShardId,
        key: ExtentKey,
        record: &ExtentRecord,
        applied: u64,
    ) -> Checked {
        let extent = self.shards.get(&shard).and_then(|extents| extents.get(&key.extent));
        for block in 0..BLOCKS_PER_EXTENT as usize {
            let history = extent.map_or(&[][..], |extent| &extent.0[block]);
            let due = at(history, record.last_changed).and_then(|(_, crc)| crc);
            let newest = at(history, applied).map_or(0, |(newest, _)| newest);
            let is_present = record.present & (1 << block) != 0;
            let said = is_present.then_some(record.crcs[block]);
            if said != due && newest <= record.last_changed {
                let index = record.last_changed;
                return Err(format!(
                    "the index has block {block} of {key:?} as of entry {index} with checksum \
                     {said:x?}, which was {due:x?}"
                ));
            }
        }
        Ok(())
    }

    /// Checks all extents of a member, and that nothing is missing.
    pub fn holds(&self, index: &mut MemoryIndex, record: &MemberRecord, applied: u64) -> Checked {
        let found = index.scan(record.member, Extent(0), usize::MAX);
        let found: BTreeMap<ExtentKey, ExtentRecord> =
            found.expect("a simulated index answers").into_iter().collect();
        found
            .iter()
            .try_for_each(|(key, extent)| self.says(record.shard, *key, extent, applied))?;
        let flushed = record.flushed_index;
        for (extent, history) in self.shards.get(&record.shard).into_iter().flatten() {
            let key = ExtentKey { member: record.member, extent: *extent, layer: 0 };
            if let Some(due) = history.missing(found.get(&key), flushed, applied) {
                let text = "is said to have everything up to entry";
                return Err(format!("{key:?} {text} {flushed}: {due} is missing"));
            }
        }
        Ok(())
    }

    /// The newest change that any record of a member includes.
    pub fn reflects(index: &mut MemoryIndex, record: &MemberRecord) -> u64 {
        let found = index.scan(record.member, Extent(0), usize::MAX);
        let found = found.expect("a simulated index answers");
        found.iter().map(|(_, extent)| extent.last_changed).max().unwrap_or(0)
    }
}
