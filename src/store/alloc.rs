//! Which slots of the data files are free. Pure.
//!
//! A slot is *free*, *in use* (an index record names it, or a write-back fills it), or *waiting*:
//! freed by an index commit that is not durable yet, or pinned by a read in flight. A waiting slot
//! is never given out (rules `slot-reuse-after-durable-free` and `slot-pinned-while-read`): after a
//! crash the old record would name it again.
//!
//! The slot of a WAL bypass is *named*: from before its write until nothing that recovery reads
//! names it (rule `named-slot-is-immutable`). Meanwhile the index may take it over and give it up.
//! It is free when neither an entry nor a record names it.
//!
//! Reservations are counts of slots, promised to appended entries (rule `space-before-append`).

use rustc_hash::{FxHashMap, FxHashSet};

use crate::planted::planted;
use crate::store::data_files::DataFiles;
use crate::store::messages::Slot;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT};

pub(crate) struct Allocator {
    /// The files that the slots are in.
    pub(crate) files: DataFiles,
    /// Bit set: not free.
    words: Vec<u64>,
    slots: u32,
    /// Not free: in use or waiting.
    taken: u32,
    /// No word below this one has a free slot.
    hint: usize,
    /// Slots freed since the last `take_freed`.
    freed: Vec<Slot>,
    /// Reads in flight per slot.
    pins: FxHashMap<Slot, u32>,
    /// Durably freed but pinned.
    held: FxHashSet<Slot>,
    reserved: u64,
    waiting: u32,
    /// Slots that log entries name; true when the index has taken the slot over.
    named: FxHashMap<Slot, bool>,
    /// Slots that were named since the last `take_freed`.
    named_since: u64,
}

/// The index names a slot that cannot be its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotConflict {
    OutOfRange,
    OwnedTwice,
}

impl Allocator {
    pub(crate) fn new(slots: u32, files: DataFiles) -> Allocator {
        Allocator {
            files,
            words: vec![0; (slots as usize).div_ceil(64)],
            slots,
            taken: 0,
            hint: 0,
            freed: Vec::new(),
            pins: FxHashMap::default(),
            held: FxHashSet::default(),
            reserved: 0,
            waiting: 0,
            named: FxHashMap::default(),
            named_since: 0,
        }
    }

    /// Takes a slot that the index names, when a lane is opened.
    pub(crate) fn occupy(&mut self, slot: Slot) -> Result<(), SlotConflict> {
        if slot.0 >= self.slots {
            return Err(SlotConflict::OutOfRange);
        }
        let (word, bit) = place(slot);
        if self.words[word] & bit != 0 {
            return Err(SlotConflict::OwnedTwice);
        }
        self.words[word] |= bit;
        self.taken += 1;
        Ok(())
    }

    /// The lowest free slot.
    pub(crate) fn allocate(&mut self) -> Option<Slot> {
        while let Some(word) = self.words.get_mut(self.hint) {
            let bit = word.trailing_ones();
            let slot = self.hint as u64 * 64 + u64::from(bit);
            if bit < 64 && slot < u64::from(self.slots) {
                *word |= 1 << bit;
                self.taken += 1;
                return Some(Slot(slot as u32));
            }
            self.hint += 1;
        }
        None
    }

    /// Takes the lowest free slot for a WAL bypass.
    pub(crate) fn allocate_named(&mut self) -> Option<Slot> {
        let slot = self.allocate()?;
        self.named.insert(slot, false);
        self.named_since += 1;
        Some(slot)
    }

    /// Takes a slot that a log entry names, when a lane is opened.
    pub(crate) fn occupy_named(&mut self, slot: Slot) -> Result<(), SlotConflict> {
        self.occupy(slot)?;
        self.named.insert(slot, false);
        self.named_since += 1;
        Ok(())
    }

    /// Names an occupied slot that a log entry names as well, when a lane is opened.
    pub(crate) fn name_adopted(&mut self, slot: Slot) -> Result<(), SlotConflict> {
        match self.named.insert(slot, true) {
            None => Ok(()),
            Some(_) => Err(SlotConflict::OwnedTwice),
        }
    }

    /// A record of the index is about to take over a named slot.
    pub(crate) fn adopt(&mut self, slot: Slot) {
        let adopted = self.named.insert(slot, true);
        assert_eq!(adopted, Some(false), "a slot belongs to one entry and to one record");
    }

    /// No record took the slot over after all.
    pub(crate) fn disown(&mut self, slot: Slot) {
        match self.named.get_mut(&slot) {
            Some(adopted) => *adopted = false,
            None => self.clear(slot),
        }
    }

    /// True when a log entry names this slot: its content must not change.
    pub(crate) fn is_named(&self, slot: Slot) -> bool {
        self.named.contains_key(&slot)
    }

    /// The number of named slots, and of those named since the newest flush.
    pub(crate) fn named(&self) -> (u64, u64) {
        (self.named.len() as u64, self.named_since)
    }

    /// Recovery would find no entry any more that names this slot.
    pub(crate) fn release_named(&mut self, slot: Slot) {
        let adopted = self.named.remove(&slot).expect("named once");
        if adopted {
            return;
        }
        if self.pins.contains_key(&slot) {
            self.waiting += 1;
            self.held.insert(slot);
        } else {
            self.clear(slot);
        }
    }

    /// The next flush makes it durable that no entry names this slot any more.
    pub(crate) fn drop_named(&mut self, slot: Slot) {
        let adopted = self.named.remove(&slot).expect("named once");
        if !adopted {
            self.free(slot);
        }
    }

    /// A commit that frees this slot was submitted.
    pub(crate) fn free(&mut self, slot: Slot) {
        let (word, bit) = place(slot);
        assert!(self.words[word] & bit != 0, "freed a slot that is free");
        if planted!(SlotReusedBeforeFlush) {
            return self.clear(slot);
        }
        self.freed.push(slot);
        self.waiting += 1;
    }

    /// Takes the slots freed since the last call: the flush submitted now makes this durable.
    pub(crate) fn take_freed(&mut self) -> Vec<Slot> {
        self.named_since = 0;
        std::mem::take(&mut self.freed)
    }

    pub(crate) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// The flush ended: these slots may be reused, once no read pins them.
    pub(crate) fn reusable(&mut self, slots: Vec<Slot>) {
        for slot in slots {
            if let Some(adopted) = self.named.get_mut(&slot) {
                *adopted = false;
                self.waiting -= 1;
            } else if self.pins.contains_key(&slot) && !planted!(SlotReusedWhileRead) {
                self.held.insert(slot);
            } else {
                self.waiting -= 1;
                self.clear(slot);
            }
        }
    }

    pub(crate) fn pin(&mut self, slot: Slot) {
        *self.pins.entry(slot).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, slot: Slot) {
        let pins = self.pins.get_mut(&slot).expect("unpinned once per pin");
        *pins -= 1;
        if *pins > 0 {
            return;
        }
        self.pins.remove(&slot);
        if self.held.remove(&slot) {
            self.waiting -= 1;
            self.clear(slot);
        }
    }

    pub(crate) fn reserve(&mut self, count: u64) {
        self.reserved += count;
    }

    pub(crate) fn unreserve(&mut self, count: u64) {
        assert!(self.reserved >= count, "released more than was reserved");
        self.reserved -= count;
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.slots
    }

    /// Slots in use; the waiting ones are not counted.
    pub(crate) fn used(&self) -> u32 {
        self.taken - self.waiting
    }

    /// Free slots that are neither promised nor kept for write-back.
    pub(crate) fn free_unreserved(&self) -> u64 {
        let free = u64::from(self.slots - self.taken);
        free.saturating_sub(self.reserved + u64::from(self.margin()))
    }

    /// Slots that only log entries name: free with their entry, unless taken over before.
    pub(crate) fn named_only(&self) -> u64 {
        self.named.values().filter(|adopted| !**adopted).count() as u64
    }

    /// Slots for write-back alone, in case of too many admissions. None on very small (test) disks.
    fn margin(&self) -> u32 {
        (self.slots / 64).min(256)
    }

    fn clear(&mut self, slot: Slot) {
        let (word, bit) = place(slot);
        assert!(self.words[word] & bit != 0, "freed a slot that is free");
        self.words[word] &= !bit;
        self.taken -= 1;
        self.hint = self.hint.min(word);
    }
}

/// The most extents that a payload can touch, wherever it starts.
pub(crate) fn slots_at_most(payload_bytes: u32) -> u16 {
    let blocks = payload_bytes.div_ceil(BLOCK_BYTES as u32);
    if blocks == 0 {
        return 0;
    }
    let extents = (blocks + BLOCKS_PER_EXTENT - 2) / BLOCKS_PER_EXTENT + 1;
    u16::try_from(extents).expect("bounded by ENTRY_BYTES_MAX")
}

fn place(slot: Slot) -> (usize, u64) {
    (slot.0 as usize / 64, 1 << (slot.0 % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(slots: u32) -> Allocator {
        let bytes = u64::from(slots) * crate::types::EXTENT_BYTES as u64;
        Allocator::new(slots, DataFiles::new(bytes, 0).unwrap())
    }

    #[test]
    fn a_slot_waits_for_the_flush_and_for_its_readers() {
        let mut alloc = new(2);
        let (first, second) = (alloc.allocate().unwrap(), alloc.allocate().unwrap());
        assert_eq!((first, second), (Slot(0), Slot(1)));
        assert_eq!(alloc.allocate(), None);
        alloc.pin(first);
        alloc.free(first);
        assert_eq!((alloc.allocate(), alloc.used()), (None, 1));
        let freed = alloc.take_freed();
        assert_eq!(alloc.allocate(), None);
        alloc.reusable(freed);
        assert_eq!(alloc.allocate(), None, "a read is in flight");
        alloc.unpin(first);
        assert_eq!(alloc.allocate(), Some(first));
        assert_eq!(alloc.used(), 2);
    }

    #[test]
    fn a_named_slot_is_free_when_neither_log_nor_index_names_it() {
        let mut alloc = new(1);
        // Never adopted: free with its entry.
        let slot = alloc.allocate_named().unwrap();
        assert!(alloc.is_named(slot));
        alloc.release_named(slot);
        assert_eq!(alloc.allocate_named(), Some(slot));
        // Adopted, freed by the index, and only then left by the log.
        alloc.adopt(slot);
        alloc.free(slot);
        let freed = alloc.take_freed();
        alloc.reusable(freed);
        assert_eq!((alloc.allocate(), alloc.used()), (None, 1));
        alloc.pin(slot);
        alloc.release_named(slot);
        assert_eq!(alloc.allocate(), None, "a read is in flight");
        alloc.unpin(slot);
        assert_eq!(alloc.allocate_named(), Some(slot));
        // Adopted, left by the log, and then freed by the index.
        alloc.adopt(slot);
        alloc.release_named(slot);
        assert!(alloc.allocate().is_none() && !alloc.is_named(slot));
        alloc.free(slot);
        let freed = alloc.take_freed();
        assert_eq!(alloc.allocate(), None);
        alloc.reusable(freed);
        // Left by the log while the free is on its way to the disk.
        assert_eq!(alloc.allocate_named(), Some(slot));
        alloc.adopt(slot);
        alloc.free(slot);
        let freed = alloc.take_freed();
        alloc.release_named(slot);
        assert_eq!(alloc.allocate(), None);
        alloc.reusable(freed);
        assert_eq!((alloc.allocate(), alloc.used()), (Some(slot), 1));
    }

    #[test]
    fn the_index_cannot_name_a_slot_twice_or_beyond_the_end() {
        let mut alloc = new(70);
        assert_eq!(alloc.occupy(Slot(69)), Ok(()));
        assert_eq!(alloc.occupy(Slot(69)), Err(SlotConflict::OwnedTwice));
        assert_eq!(alloc.occupy(Slot(70)), Err(SlotConflict::OutOfRange));
        let given: Vec<_> = std::iter::from_fn(|| alloc.allocate()).collect();
        assert_eq!(given, (0..69).map(Slot).collect::<Vec<_>>());
        assert_eq!((alloc.used(), alloc.free_unreserved()), (70, 0));
    }

    #[test]
    fn reservations_and_the_margin_are_not_for_others() {
        let mut alloc = new(128);
        assert_eq!(alloc.free_unreserved(), 126);
        alloc.reserve(100);
        assert_eq!(alloc.free_unreserved(), 26);
        alloc.reserve(100);
        assert_eq!(alloc.free_unreserved(), 0);
        alloc.unreserve(200);
        assert_eq!(alloc.free_unreserved(), 126);
    }
}
