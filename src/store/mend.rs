//! Blocks whose only copy here is bad, and what another replica gave us for them (rule R13).
//!
//! A read or a write-back that finds no intact copy says so; the world fetches the extent from
//! another replica and hands it in with `Lane::mend`. Nothing of it is believed for what the
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
//!
//! Owns what other replicas gave, and which extents are bad, to be moved or left aside; may borrow
//! the core; is told of bad copies, and of extents that were written anew.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::store::core::Core;
use crate::store::seam::{Event, ExtentKey};
use crate::types::{BLOCK_BYTES, Extent, ExtentContent, MemberId};

/// Extents of other replicas that are kept in memory, at most.
const PATCHES_MAX: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct ReadRepair {
    /// Oldest first, one of an extent. Every checksum in here was verified.
    patches: VecDeque<(ExtentKey, ExtentContent)>,
    /// Extents with a block in their slot that did not match its checksum.
    bad_slots: BTreeSet<ExtentKey>,
    /// Extents that are to be moved to another slot.
    moves: VecDeque<ExtentKey>,
    /// Extents that write-back leaves aside: a payload in the log cannot be read.
    pub parked: BTreeSet<ExtentKey>,
    /// Reads since the start that found no intact copy here.
    pub media_faults: u64,
}

impl ReadRepair {
    /// What another replica gave for this extent.
    pub(super) fn patch(&self, key: &ExtentKey) -> Option<&ExtentContent> {
        self.patches.iter().find(|(known, _)| known == key).map(|(_, content)| content)
    }

    /// A read found no intact copy of a block: in the extent's slot, or elsewhere.
    pub(super) fn copy_is_bad(&mut self, key: ExtentKey, in_slot: bool) {
        self.media_faults += 1;
        if in_slot {
            self.bad_slots.insert(key);
        }
    }

    pub(super) fn mend(&mut self, core: &mut Core, member: MemberId, content: ExtentContent) {
        let Some(found) = core.live(member).filter(|found| found.is_intact(&content)) else {
            return;
        };
        let key = ExtentKey::new(member, content.extent);
        // The slot of a redirected entry is not the record's yet: to move that one helps nobody.
        let overlay = found.overlay.get(content.extent);
        let redirected = overlay.is_some_and(|overlay| overlay.redirected().is_some());
        self.keep(key, content);
        let is_bad = self.bad_slots.contains(&key);
        if is_bad && !redirected && !self.moves.contains(&key) {
            self.moves.push_back(key);
        }
        core.stale = true;
    }

    pub(super) fn resume(&mut self, core: &mut Core, member: MemberId, extent: Extent) {
        if !self.parked.remove(&ExtentKey::new(member, extent)) {
            return;
        }
        let found = core.members.get_mut(&member);
        if let Some(overlay) = found.and_then(|found| found.overlay.get_mut(extent)) {
            overlay.queued = false;
        }
        core.overlay_changed(member, extent);
        core.stale = true;
    }

    /// Write-back leaves this extent aside until it is resumed: the log does not hold it any more.
    pub(super) fn park(&mut self, core: &mut Core, key: ExtentKey) {
        if self.parked.insert(key) {
            let (member, extent) = (key.member, key.extent);
            self.media_faults += 1;
            core.io.events.push(Event::Rotten { member, extent });
        }
    }

    /// The next extent that is to be moved to a fresh slot.
    pub(super) fn next_move(&mut self) -> Option<(ExtentKey, ExtentContent)> {
        while let Some(key) = self.moves.pop_front() {
            if let Some(content) = self.patch(&key) {
                return Some((key, content.clone()));
            }
        }
        None
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
        self.patches.retain(|(key, _)| key.member != member);
        self.bad_slots.retain(|key| key.member != member);
        self.moves.retain(|key| key.member != member);
        self.parked.retain(|key| key.member != member);
    }

    fn drop_patch(&mut self, key: &ExtentKey) {
        self.patches.retain(|(known, _)| known != key);
    }

    fn keep(&mut self, key: ExtentKey, content: ExtentContent) {
        let known = self.patch(&key);
        if known.is_some_and(|known| known.last_changed > content.last_changed) {
            return;
        }
        self.drop_patch(&key);
        if self.patches.len() >= PATCHES_MAX {
            self.patches.pop_front();
        }
        self.patches.push_back((key, content));
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
