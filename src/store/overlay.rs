//! The dirty blocks of a member: applied, and not in the data file yet. An index over the log, per
//! block. None is the only copy: payloads are cached slices of the log's.
//!
//! The low-water mark is the oldest index that lives only here (rule
//! `flushed-is-a-low-water-mark`). A superseded block keeps its index alive until a durable
//! HardState covers the newer one, as a restart may stop before it (rule
//! `write-back-after-durable-commit`).

use std::collections::VecDeque;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::io::buffer::backing_bytes;
use crate::store::extent_map::ExtentMap;
use crate::store::messages::Slot;
use crate::types::{Block, Extent};

/// One block in the overlay.
#[derive(Clone, Debug)]
pub struct OverlayBlock {
    /// The entry that wrote it.
    pub index: u64,
    pub crc: u32,
    pub content: Content,
    /// The bytes, if they are in memory.
    pub cached: Option<Bytes>,
}

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Offset in the payload of the entry, in blocks.
    Log { position: u16 },
    /// In the slot of a bypassed entry, at its own place in the extent.
    Slot(Slot),
    /// `keep`: its extent keeps the slot that it has or was promised.
    Zero { keep: bool },
}

/// The dirty blocks of one extent; at least one.
#[derive(Clone, Debug, Default)]
pub struct OverlayExtent {
    pub mask: u16,
    /// One per bit of `mask`, in order.
    blocks: Vec<OverlayBlock>,
    /// Waits in the lane's write-back queue.
    pub queued: bool,
    /// Holds a reservation of a slot.
    pub reserved: bool,
    /// A write-back of it is in flight.
    pub busy: bool,
}

impl OverlayExtent {
    /// Block `position` (0 to 15), when it is here.
    pub fn get(&self, position: u32) -> Option<&OverlayBlock> {
        if self.mask & (1 << position) == 0 {
            return None;
        }
        Some(&self.blocks[self.rank(position)])
    }

    /// (position, block), in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &OverlayBlock)> {
        (0..16).filter(|bit| self.mask & (1 << bit) != 0).zip(self.blocks.iter())
    }

    /// The newest entry with a block in here.
    pub(crate) fn newest(&self) -> u64 {
        self.blocks.iter().map(|block| block.index).max().unwrap_or(0)
    }

    /// True when some block needs a slot.
    pub(crate) fn has_data(&self) -> bool {
        let has_none = |block: &OverlayBlock| block.content == Content::Zero { keep: false };
        !self.blocks.iter().all(has_none)
    }

    /// Entry and slot of the WAL bypass that wrote some block. A bypass writes the whole extent, so
    /// there is one at most, and every other block is newer.
    pub(crate) fn bypassed(&self) -> Option<(u64, Slot)> {
        self.blocks.iter().find_map(|block| match block.content {
            Content::Slot(slot) => Some((block.index, slot)),
            Content::Log { .. } | Content::Zero { .. } => None,
        })
    }

    fn rank(&self, position: u32) -> usize {
        (self.mask & ((1 << position) - 1)).count_ones() as usize
    }
}

/// The overlay of one member.
#[derive(Default)]
pub struct Overlay {
    extents: ExtentMap<OverlayExtent>,
    live: LiveCounts,
    /// (newer, older): `newer` superseded a block of `older`; no durable HardState covers it yet.
    superseded: VecDeque<(u64, u64)>,
    blocks: u64,
}

impl Overlay {
    /// Adds a block that an entry wrote, in the order of the log.
    pub fn insert(&mut self, at: Block, block: OverlayBlock, durable_commit: u64) {
        let newer = block.index;
        self.live.add(newer);
        let extent = self.extents.get_or_default(at.extent());
        let (position, rank) = (at.in_extent(), extent.rank(at.in_extent()));
        if extent.mask & (1 << position) == 0 {
            extent.mask |= 1 << position;
            extent.blocks.insert(rank, block);
            self.blocks += 1;
            return;
        }
        let older = std::mem::replace(&mut extent.blocks[rank], block).index;
        if newer <= durable_commit || newer == older {
            self.live.remove(older);
        } else {
            self.superseded.push_back((newer, older));
        }
    }

    /// A HardState with this commit is durable.
    pub(crate) fn cover(&mut self, durable_commit: u64) {
        while let Some((newer, older)) = self.superseded.front().copied() {
            if newer > durable_commit {
                break;
            }
            self.superseded.pop_front();
            self.live.remove(older);
        }
    }

    /// Drops a block, unless an entry after `index` superseded it.
    pub(crate) fn settle(&mut self, at: Block, index: u64) {
        self.drop_if(at, |block| block.index == index);
    }

    /// Drops the blocks of an extent that entries up to `index` wrote.
    pub(crate) fn drop_up_to(&mut self, extent: Extent, index: u64) {
        for position in 0..16 {
            let at = Block(extent.first_block().0 + position);
            self.drop_if(at, |block| block.index <= index);
        }
    }

    fn drop_if(&mut self, at: Block, matches: impl Fn(&OverlayBlock) -> bool) {
        let Some(extent) = self.extents.get_mut(at.extent()) else { return };
        let position = at.in_extent();
        if !extent.get(position).is_some_and(matches) {
            return;
        }
        let rank = extent.rank(position);
        let gone = extent.blocks.remove(rank);
        extent.mask &= !(1 << position);
        self.blocks -= 1;
        self.live.remove(gone.index);
    }

    /// Removes an extent that has no block left.
    pub(crate) fn forget_empty(&mut self, extent: Extent) -> Option<OverlayExtent> {
        if self.extents.get(extent)?.mask != 0 {
            return None;
        }
        self.extents.remove(extent)
    }

    pub fn get(&self, extent: Extent) -> Option<&OverlayExtent> {
        self.extents.get(extent)
    }

    pub(crate) fn get_mut(&mut self, extent: Extent) -> Option<&mut OverlayExtent> {
        self.extents.get_mut(extent)
    }

    pub(crate) fn range(
        &self,
        extents: impl RangeBounds<Extent>,
    ) -> impl Iterator<Item = (Extent, &OverlayExtent)> {
        self.extents.range(extents)
    }

    /// Number of slots reserved for these blocks.
    pub(crate) fn reserved_slots(&self) -> u64 {
        self.range(..).filter(|(_, extent)| extent.reserved).count() as u64
    }

    /// The oldest Raft index that lives only here.
    pub(crate) fn low_water(&self) -> Option<u64> {
        self.live.lowest()
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

/// Live blocks per Raft index; the front is never zero.
#[derive(Default)]
struct LiveCounts {
    first_index: u64,
    counts: VecDeque<u32>,
}

impl LiveCounts {
    fn add(&mut self, index: u64) {
        if self.counts.is_empty() {
            self.first_index = index;
        }
        let place =
            index.checked_sub(self.first_index).expect("entries are applied in order") as usize;
        assert!(place + 1 >= self.counts.len(), "entries are applied in order");
        self.counts.resize(place + 1, 0);
        self.counts[place] += 1;
    }

    fn remove(&mut self, index: u64) {
        let count = &mut self.counts[(index - self.first_index) as usize];
        assert!(*count > 0, "a block was dropped twice");
        *count -= 1;
        while self.counts.front() == Some(&0) {
            self.counts.pop_front();
            self.first_index += 1;
        }
    }

    fn lowest(&self) -> Option<u64> {
        (!self.counts.is_empty()).then_some(self.first_index)
    }
}

/// Memory for payloads of a lane's members. Write-back starts with the oldest changes, so a payload
/// stays until it is written back or superseded. Without room it is read from the log.
pub(crate) struct PayloadCache {
    used_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// A payload that takes room until its last slice is dropped.
struct Cached {
    payload: Bytes,
    bytes: usize,
    used_bytes: Arc<AtomicUsize>,
}

impl PayloadCache {
    pub(crate) fn new(bytes_max: usize) -> PayloadCache {
        PayloadCache { used_bytes: Arc::default(), bytes_max }
    }

    /// Counts and returns the payload; `None`: there is no room for it.
    pub(crate) fn keep(&self, payload: Bytes) -> Option<Bytes> {
        let bytes = backing_bytes(payload.len());
        let used_bytes = self.used_bytes.load(Ordering::Relaxed);
        if payload.is_empty() || used_bytes + bytes > self.bytes_max {
            return None;
        }
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        let used_bytes = Arc::clone(&self.used_bytes);
        Some(Bytes::from_owner(Cached { payload, bytes, used_bytes }))
    }
}

impl AsRef<[u8]> for Cached {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        self.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn block(index: u64) -> OverlayBlock {
        OverlayBlock { index, crc: 0, content: Content::Log { position: 0 }, cached: None }
    }

    #[test]
    fn a_superseded_block_pins_its_index_until_the_newer_one_is_covered() {
        let mut overlay = Overlay::default();
        overlay.insert(Block(3), block(5), 5);
        overlay.insert(Block(3), block(8), 7);
        assert_eq!(overlay.low_water(), Some(5));
        overlay.cover(7);
        assert_eq!(overlay.low_water(), Some(5));
        overlay.cover(8);
        assert_eq!(overlay.low_water(), Some(8));
        overlay.settle(Block(3), 5);
        assert_eq!(overlay.low_water(), Some(8), "superseded meanwhile");
        overlay.settle(Block(3), 8);
        assert_eq!(overlay.low_water(), None);
        assert!(overlay.forget_empty(Extent(0)).is_some());
        assert!(overlay.is_empty());
    }

    #[test]
    fn a_payload_takes_room_until_its_last_slice_is_gone() {
        let cache = PayloadCache::new(40 << 10);
        let keep = |bytes: usize| cache.keep(Bytes::from(vec![7; bytes]));
        let first = keep(8 << 10).unwrap();
        assert_eq!(first, vec![7; 8 << 10]);
        let second = keep(16 << 10).unwrap();
        assert_eq!(keep(12 << 10), None, "each takes a buffer of 16 KiB");
        assert!(keep(4 << 10).is_some());
        let slice = first.slice(4096..);
        drop(first);
        assert_eq!(keep(12 << 10), None);
        drop(slice);
        assert!(keep(12 << 10).is_some());
        drop(second);
        assert_eq!(cache.used_bytes.load(Ordering::Relaxed), 0);
    }

    proptest! {
        /// Against the plain definition: the smallest index among the blocks, and among the
        /// superseded ones whose successor is not covered.
        #[test]
        fn the_low_water_mark_is_the_smallest_live_index(
            steps in prop::collection::vec((0..40u32, 0..4u8), 1..200),
        ) {
            let mut overlay = Overlay::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut pinned: Vec<(u64, u64)> = Vec::new();
            let (mut index, mut commit) = (0, 0);
            for (at, what) in steps {
                match what {
                    0 | 1 => {
                        index += 1;
                        overlay.insert(Block(at), block(index), commit);
                        if let Some(older) = model.insert(at, index) {
                            pinned.push((index, older));
                        }
                    }
                    2 => {
                        commit = index.saturating_sub(u64::from(at) / 8).max(commit);
                        overlay.cover(commit);
                    }
                    _ => {
                        let covered = model.get(&at).copied().filter(|index| *index <= commit);
                        if let Some(index) = covered {
                            overlay.settle(Block(at), index);
                            overlay.forget_empty(Block(at).extent());
                            model.remove(&at);
                        }
                    }
                }
                pinned.retain(|(newer, _)| *newer > commit);
                let lowest = model.values().chain(pinned.iter().map(|(_, older)| older)).min();
                prop_assert_eq!(overlay.low_water(), lowest.copied());
                prop_assert_eq!(overlay.blocks(), model.len() as u64);
                for (at, index) in &model {
                    let extent = overlay.get(Block(*at).extent()).unwrap();
                    prop_assert_eq!(extent.get(*at % 16).unwrap().index, *index);
                }
            }
        }
    }
}
