//! Blocks whose only copy here is bad, and what another replica gave us for them (rule R13).
//!
//! A read or a write-back that finds no intact copy says so; the world fetches the extent from
//! another replica and hands it in with [`Lane::mend`]. Nothing of it is believed for what the
//! other replica says: each block counts only where the checksum that *we* recorded for it (in the
//! index, or with the entry in the overlay) is the block's, and only when the other replica had
//! applied at least the change that our checksum describes. So a replica that lags cannot bring an
//! old block back, one that is ahead cannot show a block too early, and neither Raft nor the log
//! is needed: a mended block is bit for bit what this replica had promised to hold.
//!
//! What was handed in serves reads and write-back from memory at once. An extent with a bad block
//! in its slot is also moved: whole, to a fresh slot, in a round of the write-back, so that the
//! record changes only when the new slot is durable (rule R2) and no slot that something else may
//! still name is overwritten (R6).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::store::alloc::Allocator;
use crate::store::checkpoint::AfterFlush;
use crate::store::lane::Lane;
use crate::store::member::{Member, Phase};
use crate::store::resync::is_intact;
use crate::store::seam::{Event, ExtentKey, ExtentRecord, IndexEdit};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Extent, ExtentContent, MemberId};

/// Extents of other replicas that are kept in memory, at most.
const PATCHES_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct Mends {
    /// Every checksum in here was verified.
    patches: BTreeMap<ExtentKey, ExtentContent>,
    /// The keys of `patches`, oldest first.
    order: VecDeque<ExtentKey>,
    /// Extents with a block in their slot that did not match its checksum.
    bad_slots: BTreeSet<ExtentKey>,
    /// Extents that are to be moved to another slot.
    pub(super) moves: VecDeque<ExtentKey>,
    /// Extents that write-back leaves aside: a payload in the log cannot be read.
    parked: BTreeSet<ExtentKey>,
}

impl Mends {
    /// What another replica gave for this extent.
    pub(super) fn patch(&self, key: &ExtentKey) -> Option<&ExtentContent> {
        self.patches.get(key)
    }

    pub(super) fn is_parked(&self, key: &ExtentKey) -> bool {
        self.parked.contains(key)
    }

    pub(super) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(super) fn slot_is_bad(&mut self, key: ExtentKey) {
        self.bad_slots.insert(key);
    }

    /// Its blocks were written anew: what was wrong is so no more.
    pub(super) fn moved(&mut self, key: &ExtentKey) {
        self.bad_slots.remove(key);
        self.drop_patch(key);
    }

    /// A write-back of the extent ended well: nothing of it waits for the log any more.
    pub(super) fn written_back(&mut self, key: &ExtentKey) {
        if !self.moves.contains(key) {
            self.drop_patch(key);
        }
    }

    /// All of the extent is another one now, or gone.
    pub(super) fn replaced(&mut self, key: &ExtentKey) {
        self.moved(key);
        self.parked.remove(key);
    }

    pub(super) fn forget(&mut self, member: MemberId) {
        self.patches.retain(|key, _| key.member != member);
        self.order.retain(|key| key.member != member);
        self.bad_slots.retain(|key| key.member != member);
        self.moves.retain(|key| key.member != member);
        self.parked.retain(|key| key.member != member);
    }

    fn drop_patch(&mut self, key: &ExtentKey) {
        if self.patches.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }

    fn keep(&mut self, key: ExtentKey, content: ExtentContent) {
        let known = self.patches.get(&key);
        if known.is_some_and(|known| known.last_changed > content.last_changed) {
            return;
        }
        self.drop_patch(&key);
        if self.order.len() >= PATCHES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.patches.remove(&oldest);
        }
        self.order.push_back(key);
        self.patches.insert(key, content);
    }
}

/// Block `position` of what another replica gave, when it is the very block that `crc` describes
/// and that replica had applied `changed` (an entry that changed this extent).
pub(super) fn patched(
    patch: Option<&ExtentContent>,
    position: u32,
    crc: u32,
    changed: u64,
) -> Option<Bytes> {
    let patch = patch?;
    let bit = 1u16 << position;
    if patch.last_changed < changed || patch.present & bit == 0 {
        return None;
    }
    let number = (patch.present & (bit - 1)).count_ones() as usize;
    (patch.crcs[number] == crc)
        .then(|| patch.data.slice(number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES))
}

/// The record of an extent whose every block `content` brings, in a slot of its own. `None`: some
/// block is missing (superseded meanwhile, for one), or there is no slot to spare.
pub(super) fn moved_record(
    old: Option<&ExtentRecord>,
    content: &ExtentContent,
    alloc: &mut Allocator,
) -> Option<ExtentRecord> {
    let old = old?;
    let brings = |position: &u32| {
        let crc = old.crcs[*position as usize];
        patched(Some(content), *position, crc, old.last_changed).is_some()
    };
    let mut present = (0..BLOCKS_PER_EXTENT).filter(|bit| old.present & (1 << bit) != 0);
    if !present.all(|position| brings(&position)) || alloc.free_unreserved() == 0 {
        return None;
    }
    Some(ExtentRecord { slot: alloc.allocate()?, ..old.clone() })
}

impl Lane {
    /// An extent as another replica of the shard has it, for blocks that have no intact copy here.
    /// What does not fit is ignored; a read tells.
    pub fn mend(&mut self, member: MemberId, content: ExtentContent) {
        if self.io.poisoned() {
            return;
        }
        let live = |found: &&Member| found.phase == Phase::Live;
        let Some(found) = self.members.get(&member).filter(live) else { return };
        if !is_intact(found, &content) {
            return;
        }
        let key = key_of(member, content.extent);
        // The slot of a redirected entry is not the record's yet: to move that one helps nobody.
        let overlay = found.overlay.get(content.extent);
        let redirected = overlay.is_some_and(|overlay| overlay.redirected().is_some());
        self.mends.keep(key, content);
        let is_bad = self.mends.bad_slots.contains(&key);
        if is_bad && !redirected && !self.mends.moves.contains(&key) {
            self.mends.moves.push_back(key);
        }
        self.checkpoint.stale = true;
    }

    /// The extent can be read again: its write-back, if it was left aside, goes on.
    pub fn resume_writeback(&mut self, member: MemberId, extent: Extent) {
        if self.io.poisoned() || !self.mends.parked.remove(&key_of(member, extent)) {
            return;
        }
        let found = self.members.get_mut(&member);
        if let Some(overlay) = found.and_then(|found| found.overlay.get_mut(extent)) {
            overlay.queued = false;
        }
        self.after_overlay_change(member, extent);
        self.checkpoint.stale = true;
    }

    /// Write-back leaves this extent aside until it is resumed: the log does not hold it any more.
    pub(super) fn park(&mut self, key: ExtentKey) {
        if self.mends.parked.insert(key) {
            let (member, extent) = (key.member, key.extent);
            self.io.media_faults += 1;
            self.io.events.push(Event::Rotten { member, extent });
        }
    }

    /// The next extent that is to be moved to a fresh slot.
    pub(super) fn next_move(&mut self) -> Option<(ExtentKey, ExtentContent)> {
        while let Some(key) = self.mends.moves.pop_front() {
            if let Some(content) = self.mends.patches.get(&key) {
                return Some((key, content.clone()));
            }
        }
        None
    }

    /// Gives up a member that has lost something for good: durably, like one whose log was found
    /// corrupt. The others of the lane go on; when the mark is durable, nothing of this member
    /// holds the log's tail any more.
    pub fn fault_member(&mut self, member: MemberId) {
        if self.io.poisoned() {
            return;
        }
        let live = |found: &&mut Member| found.phase == Phase::Live;
        let Some(found) = self.members.get_mut(&member).filter(live) else { return };
        found.phase = Phase::Faulted;
        found.task = None;
        self.flush(vec![IndexEdit::Fault(member)], AfterFlush::Faulted(member));
    }

    /// The mark is durable.
    pub(super) fn faulted(&mut self, id: MemberId) {
        self.mends.forget(id);
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.phase != Phase::Faulted {
            return;
        }
        let overlay = std::mem::take(&mut member.overlay);
        let slots = overlay.range(..).filter(|(_, extent)| extent.reserved).count() as u64;
        let reserved = member.log.drop_after(0);
        self.alloc.unreserve(reserved + slots);
        // Nothing is kept for a log that no restart believes.
        for slot in member.log.take_left() {
            self.alloc.release_named(slot);
        }
        member.log.hold = None;
        member.hard.durable_seq = None;
        self.checkpoint.stale = true;
    }
}

/// The key of an extent in its only layer.
pub(super) fn key_of(member: MemberId, extent: Extent) -> ExtentKey {
    ExtentKey { member, extent, layer: 0 }
}
