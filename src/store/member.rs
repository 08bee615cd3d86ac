//! A lane's state of one member: retained log entries, durable HardState, metadata, overlay, and
//! the extents that have a slot. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::log::{HardState, LogEntry};
use crate::planted::planted;
use crate::store::messages::{MemberRecord, Slot};
use crate::store::overlay::Overlay;
use crate::store::wal::{BatchSeq, GroupId};
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, Extent, ExtentContent, MemberId, Unappended, block_crc,
};

pub(crate) struct LaneMember {
    /// As of the newest submitted commit of the index.
    pub record: MemberRecord,
    /// `record.flushed_index` as of the newest flush of the index.
    pub durable_flushed: u64,
    /// A resync moved the store ahead of the log, up to this entry. Until that is durable, recovery
    /// needs the log left behind: from this batch on, if any.
    pub ahead: Option<(u64, Option<BatchSeq>)>,
    pub applied_index: u64,
    pub applied_term: u64,
    pub log: RetainedLog,
    /// Entries that the replica will append.
    pub unappended: Unappended,
    /// Extents that its unapplied entries zero.
    pub unapplied_zeroes: u64,
    pub hard: HardTrack,
    /// (Raft index, metadata as of it), ascending, above `record.flushed_index`.
    pub metas: VecDeque<(u64, Bytes)>,
    pub overlay: Overlay,
    pub presence: Presence,
    pub newer: NewerExtents,
    /// Appends that are not confirmed yet, in order.
    pub appends: VecDeque<PendingAppend>,
    pub phase: Phase,
    /// A resync step that waits for an empty overlay.
    pub task: Option<Task>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Creating,
    Live,
    /// It lost something for good and takes no part any more.
    Faulted,
    Destroying,
}

/// A step of a resync. Everything applied must be written back first.
pub(crate) enum Task {
    BeginResync,
    /// `from`: the applied index after the comparison of the lists.
    FinishResync {
        from: u64,
        index: u64,
        term: u64,
        meta: Bytes,
    },
}

pub(crate) struct PendingAppend {
    pub number: u64,
    pub durable: bool,
}

impl LaneMember {
    /// A member with this index record and an empty log.
    pub(crate) fn new(record: MemberRecord, overlay: Overlay, phase: Phase) -> LaneMember {
        let (index, term) = (record.flushed_index, record.flushed_term);
        LaneMember {
            durable_flushed: index,
            ahead: None,
            applied_index: index,
            applied_term: term,
            log: RetainedLog::new(index, term),
            unappended: Unappended::default(),
            unapplied_zeroes: 0,
            hard: HardTrack { durable_commit: index, ..HardTrack::default() },
            metas: VecDeque::new(),
            overlay,
            presence: Presence::default(),
            newer: NewerExtents::default(),
            appends: VecDeque::new(),
            phase,
            task: None,
            record,
        }
    }

    pub(crate) fn id(&self) -> MemberId {
        self.record.member
    }

    /// The largest N such that no change up to N lives only in the overlay, as a restart would know
    /// it (rule `flushed-is-a-low-water-mark`).
    pub(crate) fn flushed(&self) -> u64 {
        let settled = match self.overlay.low_water() {
            Some(low_water) if !planted!(FlushedIsNewestApplied) => low_water - 1,
            Some(_) | None => self.applied_index,
        };
        settled.min(self.hard.durable_commit).min(self.applied_index).max(self.record.flushed_index)
    }

    /// The metadata as of the applied index.
    pub(crate) fn meta(&self) -> Bytes {
        self.metas.back().map_or(&self.record.meta, |(_, meta)| meta).clone()
    }

    /// Moves the record up to [`LaneMember::flushed`]. True when it changed.
    pub(crate) fn advance_record(&mut self) -> bool {
        let flushed = self.flushed();
        if flushed == self.record.flushed_index {
            return false;
        }
        self.record.flushed_term = self.log.term(flushed).expect("retained above flushed");
        self.record.flushed_index = flushed;
        while self.metas.front().is_some_and(|(index, _)| *index <= flushed) {
            let (_, meta) = self.metas.pop_front().expect("just seen");
            if !planted!(MetaNotStored) {
                self.record.meta = meta;
            }
        }
        true
    }

    /// Oldest batch of this member that recovery would need if `flushed` were durable.
    pub(crate) fn oldest_needed(&self, flushed: u64) -> Option<BatchSeq> {
        let entry = self.log.oldest_batch_from(flushed + 1);
        let hold = self.log.hold.map(|(_, seq)| seq);
        let left_behind = self.ahead.filter(|(index, _)| *index > flushed).and_then(|(_, seq)| seq);
        [self.hard.durable_seq, entry, hold, left_behind].into_iter().flatten().min()
    }

    /// True when the store is ahead of the log, and a restart would not know that.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead.is_some_and(|(index, _)| index > self.durable_flushed)
    }

    /// True when a write to this extent needs a slot that is not reserved yet.
    pub(crate) fn needs_slot(&self, extent: Extent) -> bool {
        let reserved = self.overlay.get(extent).is_some_and(|overlay| overlay.reserved);
        !self.presence.get(extent) && !reserved
    }

    /// Batch and ring offset of this block of an entry's payload.
    pub(crate) fn log_offset(&self, index: u64, position: u16) -> (BatchSeq, u64) {
        let entry = self.log.get(index).expect("retained while the overlay needs it");
        let place = entry.place.expect("durable before it is applied");
        let offset = place.payload_offset + u64::from(position) * BLOCK_BYTES as u64;
        (place.seq, offset)
    }

    /// True when a checkpoint would make nothing of this member durable.
    pub(crate) fn is_settled(&self) -> bool {
        let at_rest = self.overlay.is_empty()
            && self.flushed() == self.durable_flushed
            && self.hard.durable_commit >= self.applied_index
            && !self.hard.own_in_flight;
        at_rest || self.phase == Phase::Faulted
    }

    /// The first block whose bytes do not match their checksum.
    pub(crate) fn first_bad(&self, first: Block, data: &[u8], crcs: &[u32]) -> Option<Block> {
        let blocks = data.chunks_exact(BLOCK_BYTES).zip(crcs).enumerate();
        let blocks = blocks.filter(|_| !planted!(ChecksumsIgnored));
        blocks
            .map(|(offset, (bytes, crc))| (Block(first.0 + offset as u32), bytes, crc))
            .find(|(at, bytes, crc)| self.crc(*at, bytes) != **crc)
            .map(|(at, _, _)| at)
    }

    /// True when this is a well-formed extent of this member whose bytes match their checksums.
    pub(crate) fn is_intact(&self, content: &ExtentContent) -> bool {
        let blocks = content.present.count_ones() as usize;
        let extents = self.record.blocks.div_ceil(BLOCKS_PER_EXTENT);
        if content.layer != 0
            || content.extent.0 >= extents
            || content.crcs.len() != blocks
            || content.data.len() != blocks * BLOCK_BYTES
        {
            return false;
        }
        let positions = (0..BLOCKS_PER_EXTENT).filter(|bit| content.present & (1 << bit) != 0);
        positions.enumerate().all(|(number, position)| {
            let at = Block(content.extent.first_block().0 + position);
            let bytes = &content.data[number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES];
            self.first_bad(at, bytes, &content.crcs[number..=number]).is_none()
        })
    }

    /// The checksum that this block's content must have.
    pub(crate) fn crc(&self, block: Block, data: &[u8]) -> u32 {
        let in_volume = self.record.first_block_in_volume + u64::from(block.0);
        block_crc(self.record.volume, in_volume, data)
    }

    /// The largest commit index that the lane can know.
    pub(crate) fn known_commit(&self) -> u64 {
        self.hard.newest.commit.max(self.applied_index)
    }
}

/// The HardStates of a member, durable and in flight.
#[derive(Default)]
pub(crate) struct HardTrack {
    /// The newest pushed one.
    pub newest: HardState,
    /// Commit of the newest durable one (rule `write-back-after-durable-commit`).
    pub durable_commit: u64,
    /// At or before the batch of the newest durable one; `None`: there was none.
    pub durable_seq: Option<BatchSeq>,
    /// Groups of this member in flight.
    pub groups_in_flight: u32,
    /// A HardState or log snapshot of the lane's own is in flight.
    pub own_in_flight: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Retained {
    pub term: u64,
    /// The push that wrote it: a replacement of the entry has another one.
    pub push: u64,
    /// Known once its batch is formed.
    pub place: Option<Place>,
    pub payload_bytes: u32,
    /// Part of these that counts against the bound of unapplied entries.
    pub unapplied_bytes: u32,
    /// Slots reserved for it until it is applied.
    pub reserved: u16,
    /// Slots of its payload if it bypassed the log, one per extent.
    pub slots: Option<Box<[Slot]>>,
    /// The entry itself until it is applied, for a log snapshot. Raft holds the same memory.
    pub unapplied: Option<Box<LogEntry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub seq: BatchSeq,
    pub payload_offset: u64,
}

/// The retained entries of a member: those that recovery would need, contiguous.
pub(crate) struct RetainedLog {
    /// The point before the first entry.
    base_index: u64,
    base_term: u64,
    entries: VecDeque<Retained>,
    /// Payload bytes of the entries that are not applied yet.
    unapplied_bytes: u64,
    /// Replaced entries, from this batch on, stay in the ring until this group is durable.
    pub hold: Option<(GroupId, BatchSeq)>,
    /// Slots of dropped entries.
    left: Vec<Slot>,
    /// Entries that recovery no longer needs, since the last `take_past`.
    past: Vec<(u64, Retained)>,
}

impl RetainedLog {
    pub(crate) fn new(base_index: u64, base_term: u64) -> RetainedLog {
        RetainedLog {
            base_index,
            base_term,
            entries: VecDeque::new(),
            unapplied_bytes: 0,
            hold: None,
            left: Vec::new(),
            past: Vec::new(),
        }
    }

    /// Takes the entries that `compact` dropped since the last call, oldest first.
    pub(crate) fn take_past(&mut self) -> Vec<(u64, Retained)> {
        std::mem::take(&mut self.past)
    }

    /// The index before the first entry.
    pub(crate) fn base_index(&self) -> u64 {
        self.base_index
    }

    /// Takes the slots of entries dropped since the last call. They are free once the drop is
    /// durable (rule `slot-reuse-after-durable-free`).
    pub(crate) fn take_left(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.left)
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.base_index + self.entries.len() as u64
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Retained> {
        let place = index.checked_sub(self.base_index + 1)?;
        self.entries.get(place as usize)
    }

    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut Retained> {
        let place = index.checked_sub(self.base_index + 1)?;
        self.entries.get_mut(place as usize)
    }

    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index == self.base_index {
            return Some(self.base_term);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(crate) fn push(&mut self, entry: Retained) {
        self.unapplied_bytes += u64::from(entry.unapplied_bytes);
        self.entries.push_back(entry);
    }

    pub(crate) fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// An entry is applied: returns its reserved slots.
    pub(crate) fn applied(&mut self, index: u64) -> u64 {
        let entry = self.get_mut(index).expect("appended before it is applied");
        entry.unapplied = None;
        let bytes = std::mem::take(&mut entry.unapplied_bytes);
        let reserved = std::mem::take(&mut entry.reserved);
        self.unapplied_bytes -= u64::from(bytes);
        u64::from(reserved)
    }

    /// Drops the entries from `index` on, and returns their reserved slots.
    pub(crate) fn truncate(&mut self, index: u64) -> u64 {
        assert!(index > self.base_index, "a compacted entry is never replaced");
        let keep = (index - self.base_index - 1) as usize;
        let mut reserved = 0;
        while self.entries.len() > keep {
            let gone = self.entries.pop_back().expect("longer than `keep`");
            reserved += self.drop_one(&gone);
        }
        reserved
    }

    /// Drops the entries up to `index`, which recovery no longer needs; returns reserved slots.
    pub(crate) fn compact(&mut self, index: u64) -> u64 {
        let mut reserved = 0;
        while self.base_index < index {
            let Some(gone) = self.entries.pop_front() else { break };
            reserved += self.drop_one(&gone);
            self.base_index += 1;
            self.base_term = gone.term;
            self.past.push((self.base_index, Retained { unapplied: None, ..gone }));
        }
        reserved
    }

    fn drop_one(&mut self, gone: &Retained) -> u64 {
        self.unapplied_bytes -= u64::from(gone.unapplied_bytes);
        self.left.extend(gone.slots.iter().flatten());
        u64::from(gone.reserved)
    }

    /// Drops the entries after `index` (or after the base), and returns their reserved slots.
    pub(crate) fn drop_after(&mut self, index: u64) -> u64 {
        self.truncate(index.max(self.base_index) + 1)
    }

    /// Like `compact`, for a store that a resync moved beyond its log. Drops the entries of another
    /// history, which do not continue this point.
    pub(crate) fn compact_to(&mut self, index: u64, term: u64) -> u64 {
        if index <= self.base_index || self.term(index) == Some(term) {
            return self.compact(index);
        }
        self.reset(index, term)
    }

    /// A group is about to replace the entries from `index` on. They stay in the ring until it is
    /// durable, so that a crash leaves no hole in the log (rule `kept-until-replaced`).
    pub(crate) fn hold_from(&mut self, index: u64, group: GroupId, next: BatchSeq) {
        if index > self.last_index() || planted!(ReplacedLetGo) {
            return;
        }
        // An entry without a place gets one in the next batch or later.
        let oldest = self.oldest_batch_from(index).unwrap_or(next);
        let held = self.hold.map_or(oldest, |(_, held)| held.min(oldest));
        self.hold = Some((group, held));
    }

    /// Drops all entries; the log now starts after this point. Returns their reserved slots.
    pub(crate) fn reset(&mut self, index: u64, term: u64) -> u64 {
        let reserved = self.truncate(self.base_index + 1);
        self.base_index = index;
        self.base_term = term;
        reserved
    }

    /// First batch of the entries from `index` on. Entries without a batch will be in newer ones.
    pub(crate) fn oldest_batch_from(&self, index: u64) -> Option<BatchSeq> {
        let skip = index.saturating_sub(self.base_index + 1) as usize;
        // Entries are in the order of their pushes, so the first batch is the oldest.
        let mut places = self.entries.iter().skip(skip).map(|entry| entry.place);
        places.find_map(|place| place.map(|place| place.seq))
    }

    pub(crate) fn from(&self, index: u64) -> impl Iterator<Item = (u64, &Retained)> {
        let skip = index.saturating_sub(self.base_index + 1);
        let first = self.base_index + 1 + skip;
        self.entries
            .iter()
            .skip(skip as usize)
            .enumerate()
            .map(move |(offset, entry)| (first + offset as u64, entry))
    }
}

/// One bit per extent: whether the index has its record. As long as the last extent that had one: a
/// tail that was never written costs nothing.
#[derive(Default)]
pub(crate) struct Presence {
    words: Vec<u64>,
}

impl Presence {
    pub(crate) fn get(&self, extent: Extent) -> bool {
        let word = self.words.get(extent.0 as usize / 64);
        word.is_some_and(|word| word & (1 << (extent.0 % 64)) != 0)
    }

    pub(crate) fn set(&mut self, extent: Extent, present: bool) {
        let place = extent.0 as usize / 64;
        if place >= self.words.len() {
            if !present {
                return;
            }
            self.words.resize(place + 1, 0);
        }
        let bit = 1 << (extent.0 % 64);
        if present {
            self.words[place] |= bit;
        } else {
            self.words[place] &= !bit;
        }
    }
}

/// Extents whose record is newer than the applied index, after a restart or a resync. Entries that
/// a record includes are skipped for its extent (rule `replay-skips-newer`).
#[derive(Default)]
pub(crate) struct NewerExtents {
    last_changed: FxHashMap<Extent, u64>,
    newest: u64,
}

impl NewerExtents {
    pub(crate) fn note(&mut self, extent: Extent, last_changed: u64) {
        let known = self.last_changed.entry(extent).or_default();
        *known = last_changed.max(*known);
        self.newest = self.newest.max(last_changed);
    }

    /// The record is about to be replaced by one that may be older, or deleted (0): later entries
    /// are needed again. Returns the last change that the record includes now.
    pub(crate) fn lower(&mut self, extent: Extent, last_changed: u64) -> Option<u64> {
        let known = self.last_changed.get(&extent).copied()?;
        if known > last_changed && !planted!(OlderCopyOverlooked) {
            self.last_changed.insert(extent, last_changed);
        }
        Some(known)
    }

    /// True when the record of this extent includes the entry `index`.
    pub(crate) fn includes(&self, extent: Extent, index: u64) -> bool {
        index <= self.newest
            && !planted!(ReplayOverNewer)
            && self.last_changed.get(&extent).is_some_and(|last_changed| *last_changed >= index)
    }

    /// Entries up to here are applied.
    pub(crate) fn applied(&mut self, index: u64) {
        if index >= self.newest && self.newest > 0 {
            *self = NewerExtents::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, push: u64, seq: Option<u64>) -> Retained {
        Retained {
            term,
            push,
            place: seq.map(|seq| Place { seq: BatchSeq(seq), payload_offset: 0 }),
            payload_bytes: 0,
            unapplied_bytes: 0,
            reserved: 0,
            slots: None,
            unapplied: None,
        }
    }

    #[test]
    fn the_retained_log_keeps_positions_by_index() {
        let mut log = RetainedLog::new(10, 1);
        for (push, seq) in [(1, Some(5)), (2, Some(6)), (3, None)] {
            log.push(entry(2, push, seq));
        }
        assert_eq!((log.last_index(), log.term(10), log.term(13)), (13, Some(1), Some(2)));
        assert_eq!((log.term(9), log.term(14)), (None, None));
        assert_eq!(log.oldest_batch_from(11), Some(BatchSeq(5)));
        assert_eq!(log.oldest_batch_from(12), Some(BatchSeq(6)));
        assert_eq!(log.oldest_batch_from(13), None);
        log.compact(11);
        assert_eq!((log.term(11), log.term(10), log.last_index()), (Some(2), None, 13));
        log.truncate(13);
        assert_eq!(log.last_index(), 12);
        assert_eq!(log.from(12).map(|(index, _)| index).collect::<Vec<_>>(), [12]);
        log.reset(50, 9);
        assert_eq!((log.term(50), log.last_index()), (Some(9), 50));
    }

    #[test]
    fn what_is_newer_is_skipped_until_the_log_has_caught_up() {
        let mut newer = NewerExtents::default();
        newer.note(Extent(3), 8);
        assert!(newer.includes(Extent(3), 8) && !newer.includes(Extent(3), 9));
        assert!(!newer.includes(Extent(4), 1));
        newer.applied(7);
        assert!(newer.includes(Extent(3), 8));
        newer.applied(8);
        assert!(!newer.includes(Extent(3), 8));
    }
}
