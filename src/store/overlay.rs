//! The dirty blocks of a member: applied, and not in the data file yet. An index over the log. It
//! has one record for each block that was written, and one for all blocks of an extent that one
//! entry zeroed or trimmed. None is the only copy: payloads are cached slices of the log's.
//!
//! The low-water mark is the oldest index that lives only here (rule
//! `flushed-is-a-low-water-mark`). A superseded block keeps its index alive until a durable
//! HardState covers the newer one, as a restart may stop before it (rule
//! `write-back-after-durable-commit`).
//!
//! A lane counts the bytes of its overlays, and bounds them (rule `overlay-is-bounded`).

use std::collections::VecDeque;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::io::buffer::backing_bytes;
use crate::planted::planted;
use crate::store::extent_map::ExtentMap;
use crate::store::messages::Slot;
use crate::types::{Block, Extent, MemberId};

/// A written block in the overlay.
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
}

/// The blocks of one extent that one entry zeroed or trimmed, without those that are newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroRun {
    pub index: u64,
    /// One bit per block; never 0.
    pub mask: u16,
    /// Its extent keeps the slot that it has or was promised.
    pub keep: bool,
}

/// What the overlay has of one block.
#[derive(Clone, Copy, Debug)]
pub enum Dirty<'a> {
    Written(&'a OverlayBlock),
    Zero,
}

/// The dirty blocks of one extent; at least one.
#[derive(Clone, Debug, Default)]
pub struct OverlayExtent {
    /// One per bit of `written`, in order.
    blocks: Vec<OverlayBlock>,
    /// They share no block with each other or with `blocks`.
    zeroes: Vec<ZeroRun>,
    written: u16,
    /// Waits in the lane's write-back queue.
    pub queued: bool,
    /// Holds a reservation of a slot.
    pub reserved: bool,
    /// A write-back of it is in flight.
    pub busy: bool,
    /// Write-back will give its slot back, or a part of what it holds.
    pub gives_back: bool,
}

impl OverlayExtent {
    /// Block `position` (0 to 15), when it is here.
    pub fn get(&self, position: u32) -> Option<Dirty<'_>> {
        let bit = 1 << position;
        if self.written & bit != 0 {
            return Some(Dirty::Written(&self.blocks[self.rank(position)]));
        }
        let is_zero = self.zeroes.iter().any(|run| run.mask & bit != 0);
        is_zero.then_some(Dirty::Zero)
    }

    /// (position, block) of all written blocks, in order.
    pub(crate) fn written(&self) -> impl Iterator<Item = (u32, &OverlayBlock)> {
        (0..16).filter(|bit| self.written & (1 << bit) != 0).zip(self.blocks.iter())
    }

    pub(crate) fn zeroes(&self) -> &[ZeroRun] {
        &self.zeroes
    }

    /// The newest entry with a block in here.
    pub(crate) fn newest(&self) -> u64 {
        let written = self.blocks.iter().map(|block| block.index);
        written.chain(self.zeroes.iter().map(|run| run.index)).max().unwrap_or(0)
    }

    /// True when some block needs a slot.
    pub(crate) fn has_data(&self) -> bool {
        !self.blocks.is_empty() || self.zeroes.iter().any(|run| run.keep)
    }

    /// Entry and slot of the WAL bypass that wrote some block. A bypass writes the whole extent, so
    /// there is one at most, and every other block is newer.
    pub(crate) fn bypassed(&self) -> Option<(u64, Slot)> {
        self.blocks.iter().find_map(|block| match block.content {
            Content::Slot(slot) => Some((block.index, slot)),
            Content::Log { .. } => None,
        })
    }

    fn rank(&self, position: u32) -> usize {
        (self.written & ((1 << position) - 1)).count_ones() as usize
    }

    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.zeroes.is_empty()
    }

    fn block_count(&self) -> u64 {
        let zero: u32 = self.zeroes.iter().map(|run| run.mask.count_ones()).sum();
        self.blocks.len() as u64 + u64::from(zero)
    }

    /// Bytes that it takes outside of the map of extents.
    fn heap_bytes(&self) -> u64 {
        let blocks = self.blocks.capacity() * size_of::<OverlayBlock>();
        (blocks + self.zeroes.capacity() * size_of::<ZeroRun>()) as u64
    }

    /// The entry `newer` changes the blocks of `mask`: what is here of them is superseded.
    fn supersede(&mut self, mask: u16, newer: u64, commit: u64, pins: &mut Pins) {
        self.zeroes.retain_mut(|run| {
            if run.mask & mask == 0 {
                return true;
            }
            run.mask &= !mask;
            pins.supersede((newer, run.index), run.mask == 0, commit);
            run.mask != 0
        });
        if self.written & mask == 0 {
            return;
        }
        let mut left = self.written;
        self.blocks.retain(|block| {
            let bit = left & left.wrapping_neg();
            left &= !bit;
            if mask & bit != 0 {
                pins.supersede((newer, block.index), true, commit);
            }
            mask & bit == 0
        });
        self.written &= !mask;
        if self.blocks.is_empty() {
            self.blocks = Vec::new();
        }
    }

    fn insert(&mut self, position: u32, block: OverlayBlock, commit: u64, pins: &mut Pins) {
        let (bit, rank) = (1 << position, self.rank(position));
        if self.written & bit != 0 {
            let newer = block.index;
            let older = std::mem::replace(&mut self.blocks[rank], block).index;
            return pins.supersede((newer, older), true, commit);
        }
        if !self.zeroes.is_empty() && !planted!(TrimBelowNewerWrite) {
            self.supersede(bit, block.index, commit, pins);
        }
        if self.blocks.len() < GROWS_SINGLY_UP_TO {
            self.blocks.reserve_exact(1);
        }
        self.written |= bit;
        self.blocks.insert(rank, block);
    }

    fn zero(&mut self, run: ZeroRun, commit: u64, pins: &mut Pins) {
        self.supersede(run.mask, run.index, commit, pins);
        self.zeroes.reserve_exact(1);
        self.zeroes.push(run);
    }

    /// Drops the matching records: each with its index, and a written block with its position.
    fn drop_if(&mut self, matches: impl Fn(u64, Option<u32>) -> bool, pins: &mut Pins) {
        self.zeroes.retain(|run| {
            let gone = matches(run.index, None);
            if gone {
                pins.live.remove(run.index);
            }
            !gone
        });
        let (mut left, written) = (self.written, &mut self.written);
        self.blocks.retain(|block| {
            let bit = left & left.wrapping_neg();
            left &= !bit;
            let gone = matches(block.index, Some(bit.trailing_zeros()));
            if gone {
                pins.live.remove(block.index);
                *written &= !bit;
            }
            !gone
        });
    }
}

/// Most extents have few dirty blocks: up to here, memory is taken for one more at a time.
const GROWS_SINGLY_UP_TO: usize = 4;

/// The overlay of one member.
#[derive(Default)]
pub struct Overlay {
    extents: ExtentMap<OverlayExtent>,
    pins: Pins,
    blocks: u64,
    /// Bytes of the extents outside of their map.
    heap_bytes: u64,
    account: Account,
}

/// The Raft indexes that live only here.
#[derive(Default)]
struct Pins {
    live: LiveCounts,
    /// (newer, older): `newer` superseded a block of `older`; no durable HardState covers it yet.
    superseded: VecDeque<(u64, u64)>,
}

impl Pins {
    /// `newer` superseded a block of `older`; `whole`: and nothing is left of that record.
    fn supersede(&mut self, (newer, older): (u64, u64), whole: bool, durable_commit: u64) {
        let is_covered = newer <= durable_commit || newer == older;
        match (whole, is_covered) {
            (true, true) => self.live.remove(older),
            (true, false) => self.superseded.push_back((newer, older)),
            (false, true) => {}
            (false, false) => {
                self.live.again(older);
                self.superseded.push_back((newer, older));
            }
        }
    }
}

impl Overlay {
    /// An overlay whose bytes count with those of others.
    pub(crate) fn counted(gauge: &OverlayGauge) -> Overlay {
        let account = Account { gauge: gauge.clone(), bytes: 0 };
        Overlay { account, ..Overlay::default() }
    }

    /// Adds a block that an entry wrote, in the order of the log.
    pub fn insert(&mut self, at: Block, block: OverlayBlock, durable_commit: u64) {
        self.pins.live.add(block.index);
        let position = at.in_extent();
        self.change(at.extent(), |extent, pins| {
            extent.insert(position, block, durable_commit, pins);
        });
    }

    /// Adds the blocks of an extent that an entry zeroed, in the order of the log.
    pub fn zero(&mut self, extent: Extent, run: ZeroRun, durable_commit: u64) {
        assert!(run.mask != 0, "it zeroes a block of the extent");
        self.pins.live.add(run.index);
        self.change(extent, |extent, pins| extent.zero(run, durable_commit, pins));
    }

    fn change(&mut self, at: Extent, change: impl FnOnce(&mut OverlayExtent, &mut Pins)) {
        let extent = self.extents.get_or_default(at);
        let (bytes, blocks) = (extent.heap_bytes(), extent.block_count());
        change(extent, &mut self.pins);
        self.heap_bytes = self.heap_bytes - bytes + extent.heap_bytes();
        self.blocks = self.blocks - blocks + extent.block_count();
        self.count_bytes();
    }

    /// A HardState with this commit is durable.
    pub(crate) fn cover(&mut self, durable_commit: u64) {
        let Pins { live, superseded } = &mut self.pins;
        while let Some((newer, older)) = superseded.front().copied() {
            if newer > durable_commit {
                break;
            }
            superseded.pop_front();
            live.remove(older);
        }
        self.count_bytes();
    }

    /// Drops what was written back of an extent, unless newer entries superseded it: the blocks
    /// that these entries wrote (one per block, 0: none), and what is left of these zeroes.
    pub(crate) fn settle(&mut self, extent: Extent, written: &[u64; 16], zeroes: &[ZeroRun]) {
        self.drop_if(extent, |index, position| match position {
            Some(position) => written[position as usize] == index,
            None => zeroes.iter().any(|run| run.index == index),
        });
    }

    /// Drops the blocks of an extent that entries up to `index` wrote.
    pub(crate) fn drop_up_to(&mut self, extent: Extent, index: u64) {
        self.drop_if(extent, |known, _| known <= index);
    }

    fn drop_if(&mut self, at: Extent, matches: impl Fn(u64, Option<u32>) -> bool) {
        if self.extents.get(at).is_some() {
            self.change(at, |extent, pins| extent.drop_if(matches, pins));
        }
    }

    /// Removes an extent that has no block left.
    pub(crate) fn forget_empty(&mut self, extent: Extent) -> Option<OverlayExtent> {
        if !self.extents.get(extent)?.is_empty() {
            return None;
        }
        let gone = self.extents.remove(extent)?;
        self.heap_bytes -= gone.heap_bytes();
        self.count_bytes();
        Some(gone)
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

    /// Number of extents whose write-back gives space back.
    pub(crate) fn giving_back(&self) -> u64 {
        self.range(..).filter(|(_, extent)| extent.gives_back).count() as u64
    }

    /// The oldest Raft index that lives only here.
    pub(crate) fn low_water(&self) -> Option<u64> {
        self.pins.live.lowest()
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes of memory that it takes, with its place in the queue of write-back, without payloads.
    pub(crate) fn bytes(&self) -> u64 {
        const QUEUED_BYTES: usize = size_of::<(MemberId, Extent)>();
        let Pins { live, superseded } = &self.pins;
        let pins =
            superseded.len() * size_of::<(u64, u64)>() + live.counts.len() * size_of::<u32>();
        let extents = self.extents.bytes() + self.extents.len() * QUEUED_BYTES;
        self.heap_bytes + (pins + extents) as u64
    }

    fn count_bytes(&mut self) {
        let bytes = self.bytes();
        self.account.set(bytes);
    }
}

/// Bytes of all overlays of a lane.
#[derive(Clone, Debug, Default)]
pub(crate) struct OverlayGauge(Arc<AtomicU64>);

impl OverlayGauge {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one overlay has added to the gauge. It takes that back when it is dropped.
#[derive(Default)]
struct Account {
    gauge: OverlayGauge,
    bytes: u64,
}

impl Account {
    fn set(&mut self, bytes: u64) {
        let was = std::mem::replace(&mut self.bytes, bytes);
        if was != bytes {
            // The sum wraps around to what it should be, whichever of the two is larger.
            self.gauge.0.fetch_add(bytes.wrapping_sub(was), Ordering::Relaxed);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Live records per Raft index; the front is never zero.
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

    /// Counts a live index once more.
    fn again(&mut self, index: u64) {
        let count = &mut self.counts[(index - self.first_index) as usize];
        assert!(*count > 0, "it is live");
        *count += 1;
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
    use crate::types::ZERO_EXTENT_BYTES;

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
        let settle = |overlay: &mut Overlay, index| {
            let mut written = [0; 16];
            written[3] = index;
            overlay.settle(Extent(0), &written, &[]);
        };
        settle(&mut overlay, 5);
        assert_eq!(overlay.low_water(), Some(8), "superseded meanwhile");
        settle(&mut overlay, 8);
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

    #[test]
    fn many_zeroed_blocks_of_an_extent_are_one_record() {
        let gauge = OverlayGauge::default();
        let mut overlay = Overlay::counted(&gauge);
        (0..4096).for_each(|at| overlay.insert(Block(at), block(1 + u64::from(at)), 4096));
        let written = gauge.bytes();
        for extent in 0..256 {
            overlay.zero(Extent(extent), ZeroRun { index: 4097, mask: 0xffff, keep: false }, 4097);
        }
        assert_eq!((overlay.blocks(), overlay.low_water()), (4096, Some(4097)));
        let bytes = gauge.bytes();
        assert!(bytes <= 256 * ZERO_EXTENT_BYTES as u64, "{bytes} bytes");
        assert!(bytes * 5 < written, "{written} bytes before");
        drop(overlay);
        assert_eq!(gauge.bytes(), 0);
    }

    /// What a block holds in the plain model: the entry, and whether it wrote the block.
    type Modelled = BTreeMap<u32, (u64, bool)>;

    /// The blocks that a step of the test zeroes: some of one extent.
    fn zeroed(at: u32) -> (Extent, u16) {
        let mask = [0xffff, 0x00ff, 0xfff0, 0x0180][at as usize % 4];
        (Block(at).extent(), mask)
    }

    fn in_mask((extent, mask): (Extent, u16)) -> impl Iterator<Item = u32> {
        let first = extent.first_block().0;
        (0..16).filter(move |bit| mask & (1 << bit) != 0).map(move |bit| first + bit)
    }

    /// Blocks, low-water mark and bytes are as the model says.
    fn check(overlay: &Overlay, gauge: &OverlayGauge, model: &Modelled, pinned: &[(u64, u64)]) {
        let live = model.values().map(|(index, _)| index);
        let lowest = live.chain(pinned.iter().map(|(_, older)| older)).min();
        assert_eq!(overlay.low_water(), lowest.copied());
        assert_eq!(overlay.blocks(), model.len() as u64);
        assert_eq!(gauge.bytes(), overlay.bytes());
        for at in 0..48 {
            let found = overlay.get(Block(at).extent()).and_then(|extent| extent.get(at % 16));
            match (found, model.get(&at)) {
                (Some(Dirty::Written(found)), Some((index, true))) => {
                    assert_eq!(found.index, *index);
                }
                (Some(Dirty::Zero), Some((_, false))) | (None, None) => {}
                (found, expected) => panic!("block {at}: {found:?}, and not {expected:?}"),
            }
        }
        let plain: u64 = overlay.range(..).map(|(_, extent)| extent.heap_bytes()).sum();
        assert_eq!(overlay.heap_bytes, plain);
    }

    proptest! {
        /// Against a plain model, block by block. The low-water mark is the smallest index among
        /// the blocks, and among the superseded ones whose successor is not covered.
        #[test]
        fn it_is_as_if_every_block_stood_alone(
            steps in prop::collection::vec((0..40u32, 0..7u8), 1..200),
        ) {
            let gauge = OverlayGauge::default();
            let mut overlay = Overlay::counted(&gauge);
            let mut model = Modelled::new();
            let mut pinned: Vec<(u64, u64)> = Vec::new();
            let (mut index, mut commit) = (0, 0);
            for (at, what) in steps {
                let extent = Block(at).extent();
                let mut set = |at: u32, index: u64, written: bool| {
                    if let Some((older, _)) = model.insert(at, (index, written)) {
                        pinned.push((index, older));
                    }
                };
                match what {
                    0 | 1 => {
                        index += 1;
                        overlay.insert(Block(at), block(index), commit);
                        set(at, index, true);
                    }
                    2 | 3 => {
                        index += 1;
                        let (extent, mask) = zeroed(at);
                        let keep = at % 3 == 0;
                        overlay.zero(extent, ZeroRun { index, mask, keep }, commit);
                        in_mask((extent, mask)).for_each(|at| set(at, index, false));
                    }
                    4 => {
                        commit = index.saturating_sub(u64::from(at) / 8).max(commit);
                        overlay.cover(commit);
                    }
                    5 => {
                        // Write-back of one extent, once all of it is covered.
                        let range = in_mask((extent, 0xffff)).filter_map(|at| model.get(&at));
                        if range.map(|(index, _)| *index).max().is_some_and(|max| max <= commit) {
                            let dirty = overlay.get(extent).unwrap().clone();
                            let mut written = [0; 16];
                            for (position, block) in dirty.written() {
                                written[position as usize] = block.index;
                            }
                            overlay.settle(extent, &written, dirty.zeroes());
                            prop_assert!(overlay.forget_empty(extent).is_some());
                            model.retain(|at, _| Block(*at).extent() != extent);
                        }
                    }
                    _ => {
                        // An install of a resync.
                        let up_to = index.saturating_sub(3);
                        overlay.drop_up_to(extent, up_to);
                        overlay.forget_empty(extent);
                        let gone = |at: &u32, it: &mut (u64, bool)| {
                            Block(*at).extent() != extent || it.0 > up_to
                        };
                        model.retain(gone);
                    }
                }
                pinned.retain(|(newer, _)| *newer > commit);
                check(&overlay, &gauge, &model, &pinned);
            }
        }
    }
}
