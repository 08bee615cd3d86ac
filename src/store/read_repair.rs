//! Read repair: replaces blocks without an intact copy here by another replica's blocks (rule
//! `repair-matches-own-checksum`).
//!
//! A read or write-back without an intact copy reports it. The caller fetches the extent from
//! another replica and passes it to `Lane::repair`. A block of it counts only when it matches the
//! checksum that *this* replica recorded (in the index, or in the overlay with the entry), and when
//! the other replica had applied at least the change that this checksum describes. So a replica
//! that lags cannot bring an old block back, and one that is ahead cannot show a block too early.
//! Neither Raft nor the log is needed: a repaired block is bit for bit the promised one.
//!
//! The copies serve reads and write-back from memory at once. An extent with a bad block in its
//! slot also moves to a fresh slot, as a whole, in a round of write-back. So its record changes
//! only when the new slot is durable (rule `data-before-index`), and no slot that may still be
//! named is overwritten (rule `named-slot-is-immutable`).
//!
//! Owns the copies, and the extents that are bad, to be moved or parked; may borrow the core; hears
//! of bad copies and of extents that were written anew.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::store::core::Core;
use crate::store::messages::{Event, ExtentKey};
use crate::types::{BLOCK_BYTES, Extent, ExtentContent, MemberId};

/// Most extents of other replicas to keep in memory.
const PATCHES_MAX: usize = 64;

#[derive(Default)]
pub(super) struct ReadRepair {
    /// Oldest first, one per extent. Every checksum in here was verified.
    patches: VecDeque<(ExtentKey, ExtentContent)>,
    /// Extents with a block in their slot that failed its checksum.
    bad_slots: BTreeSet<ExtentKey>,
    /// Extents to move to another slot.
    moves: VecDeque<ExtentKey>,
    /// Extents whose write-back is parked: a payload in the log cannot be read.
    pub parked: BTreeSet<ExtentKey>,
    /// Reads since the start without an intact copy here.
    pub media_faults: u64,
}

impl ReadRepair {
    /// Another replica's copy of this extent.
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

    pub(super) fn repair(&mut self, core: &mut Core, member: MemberId, content: ExtentContent) {
        let Some(found) = core.live(member).filter(|found| found.is_intact(&content)) else {
            return;
        };
        let key = ExtentKey::new(member, content.extent);
        // The record does not have the slot of a bypassed entry yet: a move would not help.
        let overlay = found.overlay.get(content.extent);
        let bypassed = overlay.is_some_and(|overlay| overlay.bypassed().is_some());
        self.keep(key, content);
        let is_bad = self.bad_slots.contains(&key);
        if is_bad && !bypassed && !self.moves.contains(&key) {
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

    /// Parks the write-back of this extent until it is resumed: the log cannot give it back.
    pub(super) fn park(&mut self, core: &mut Core, key: ExtentKey) {
        if self.parked.insert(key) {
            let (member, extent) = (key.member, key.extent);
            self.media_faults += 1;
            core.io.events.push(Event::PayloadLost { member, extent });
        }
    }

    /// The next extent to move to a fresh slot.
    pub(super) fn next_move(&mut self) -> Option<(ExtentKey, ExtentContent)> {
        while let Some(key) = self.moves.pop_front() {
            if let Some(content) = self.patch(&key) {
                return Some((key, content.clone()));
            }
        }
        None
    }

    /// The extent was written anew: it is not bad any more.
    pub(super) fn moved(&mut self, key: &ExtentKey) {
        self.bad_slots.remove(key);
        self.drop_patch(key);
    }

    /// The extent was written back: it needs no payload from the log any more.
    pub(super) fn written_back(&mut self, key: &ExtentKey) {
        if !self.moves.contains(key) {
            self.drop_patch(key);
        }
    }

    /// The whole extent was replaced or deleted.
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

/// Block `position` of another replica's copy, if it matches `crc` and that replica had applied
/// `changed`, the entry that this checksum describes.
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
