//! What a lane knows of one member: where its retained log entries are, which HardState is
//! durable, its metadata, its overlay, and which extents have a slot. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::log::{HardState, LogEntry};
use crate::planted::{Mistake, planted};
use crate::store::overlay::Overlay;
use crate::store::seam::{MemberRecord, Slot};
use crate::store::wal::{BatchSeq, GroupId};
use crate::types::{BLOCKS_PER_EXTENT, Block, Extent, MemberId, Unappended, block_crc};

/// See the module.
pub(crate) struct Member {
    /// As the newest submitted commit of the index has it.
    pub record: MemberRecord,
    /// `record.flushed_index` as of the newest flush of the index.
    pub durable_flushed: u64,
    /// The store has gone ahead of the log up to this entry. Until that is durable, recovery needs
    /// what was left behind: from this batch on, if it is anything.
    pub ahead: Option<(u64, Option<BatchSeq>)>,
    pub applied_index: u64,
    pub applied_term: u64,
    pub log: RetainedLog,
    /// What the replica will append.
    pub unappended: Unappended,
    pub hard: HardTrack,
    /// (Raft index, metadata as of it), ascending, above `record.flushed_index`.
    pub metas: VecDeque<(u64, Bytes)>,
    pub overlay: Overlay,
    pub presence: Presence,
    pub newer: NewerExtents,
    /// Appends that are not confirmed yet, in order.
    pub appends: VecDeque<PendingAppend>,
    pub phase: Phase,
    /// What waits for the overlay to be empty.
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

/// A step of a resync that first wants everything applied to be written back.
pub(crate) enum Task {
    BeginResync,
    /// `from`: what was applied when the lists had been compared.
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

impl Member {
    /// A member whose index record says this, with an empty log.
    pub(crate) fn new(record: MemberRecord, phase: Phase) -> Member {
        let (index, term) = (record.flushed_index, record.flushed_term);
        Member {
            durable_flushed: index,
            ahead: None,
            applied_index: index,
            applied_term: term,
            log: RetainedLog::new(index, term),
            unappended: Unappended::default(),
            hard: HardTrack { durable_commit: index, ..HardTrack::default() },
            metas: VecDeque::new(),
            overlay: Overlay::default(),
            presence: Presence::new(record.blocks),
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

    /// The largest N such that no change up to N lives only in the overlay, as far as a restart
    /// would know (rule R3).
    pub(crate) fn flushed(&self) -> u64 {
        let settled = match self.overlay.low_water() {
            Some(low_water) if !planted(Mistake::FlushedIsNewestApplied) => low_water - 1,
            Some(_) | None => self.applied_index,
        };
        settled.min(self.hard.durable_commit).min(self.applied_index).max(self.record.flushed_index)
    }

    /// The metadata as of what is applied.
    pub(crate) fn meta(&self) -> Bytes {
        self.metas.back().map_or(&self.record.meta, |(_, meta)| meta).clone()
    }

    /// Moves the record up to [`Member::flushed`]. True when it changed.
    pub(crate) fn advance_record(&mut self) -> bool {
        let flushed = self.flushed();
        if flushed == self.record.flushed_index {
            return false;
        }
        self.record.flushed_term = self.log.term(flushed).expect("retained above the old mark");
        self.record.flushed_index = flushed;
        while self.metas.front().is_some_and(|(index, _)| *index <= flushed) {
            let (_, meta) = self.metas.pop_front().expect("just seen");
            if !planted(Mistake::MetaNotStored) {
                self.record.meta = meta;
            }
        }
        true
    }

    /// Oldest batch that recovery would need of this member if `flushed` were durable.
    pub(crate) fn oldest_needed(&self, flushed: u64) -> Option<BatchSeq> {
        let entry = self.log.oldest_batch_from(flushed + 1);
        let hold = self.log.hold.map(|(_, seq)| seq);
        let left_behind = self.ahead.filter(|(index, _)| *index > flushed).and_then(|(_, seq)| seq);
        [self.hard.durable_seq, entry, hold, left_behind].into_iter().flatten().min()
    }

    /// The store is ahead of the log, and a restart would not know that.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead.is_some_and(|(index, _)| index > self.durable_flushed)
    }

    /// The checksum that this block's content must have.
    pub(crate) fn crc(&self, block: Block, data: &[u8]) -> u32 {
        let in_volume = self.record.first_block_in_volume + u64::from(block.0);
        block_crc(self.record.volume, in_volume, data)
    }

    /// Everything the lane can know to be committed.
    pub(crate) fn known_commit(&self) -> u64 {
        self.hard.newest.commit.max(self.applied_index)
    }
}

/// HardStates of a member on their way to the disk.
#[derive(Default)]
pub(crate) struct HardTrack {
    /// The newest that was pushed.
    pub newest: HardState,
    /// Commit of the newest durable one (rule R7).
    pub durable_commit: u64,
    /// Not after the batch of the newest durable one; `None`: there was never one.
    pub durable_seq: Option<BatchSeq>,
    /// Groups of this member that are not durable yet.
    pub groups_under_way: u32,
    /// A HardState or image of the lane's own is under way.
    pub own_under_way: bool,
}

/// Where one entry of the log is.
#[derive(Clone, Debug)]
pub(crate) struct Retained {
    pub term: u64,
    /// Which push wrote it: an entry that replaced it has another one.
    pub push: u64,
    /// Known once its batch was formed.
    pub place: Option<Place>,
    pub payload_bytes: u32,
    /// Of these, what counts against the bound of unapplied entries.
    pub unapplied_bytes: u32,
    /// Slots reserved for it until it is applied.
    pub reserved: u16,
    /// Where its payload is when it is not in the log, one per extent.
    pub slots: Option<Box<[Slot]>>,
    /// The entry itself until it is applied, for an image. Raft holds the same memory.
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
    /// What was replaced is kept until what replaced it is durable.
    pub hold: Option<(GroupId, BatchSeq)>,
    /// Slots of entries that were dropped.
    left: Vec<Slot>,
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
        }
    }

    /// The slots of entries that were dropped since the last call. They are free once a restart
    /// would know that, too (rule R4).
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

    /// Payload bytes of the entries that are not applied yet.
    pub(crate) fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// An entry is applied: returns the slots that were reserved for it.
    pub(crate) fn applied(&mut self, index: u64) -> u64 {
        let entry = self.get_mut(index).expect("appended before it is applied");
        entry.unapplied = None;
        let bytes = std::mem::take(&mut entry.unapplied_bytes);
        let reserved = std::mem::take(&mut entry.reserved);
        self.unapplied_bytes -= u64::from(bytes);
        u64::from(reserved)
    }

    /// Drops the entries from `index` on and returns the slots that were reserved for them.
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

    /// Drops the entries up to `index`: recovery does not need them any more. Returns the slots
    /// that were still reserved for them.
    pub(crate) fn compact(&mut self, index: u64) -> u64 {
        let mut reserved = 0;
        while self.base_index < index {
            let Some(gone) = self.entries.pop_front() else {
                break;
            };
            reserved += self.drop_one(&gone);
            self.base_index += 1;
            self.base_term = gone.term;
        }
        reserved
    }

    fn drop_one(&mut self, gone: &Retained) -> u64 {
        self.unapplied_bytes -= u64::from(gone.unapplied_bytes);
        self.left.extend(gone.slots.iter().flatten());
        u64::from(gone.reserved)
    }

    /// Drops the entries after `index` (or after the base) and returns the slots reserved.
    pub(crate) fn drop_after(&mut self, index: u64) -> u64 {
        self.truncate(index.max(self.base_index) + 1)
    }

    /// As `compact`, when the store may hold more than the log had, and of another history
    /// (after a resync): entries that do not continue this point are dropped.
    pub(crate) fn compact_to(&mut self, index: u64, term: u64) -> u64 {
        if index <= self.base_index || self.term(index) == Some(term) {
            return self.compact(index);
        }
        self.reset(index, term)
    }

    /// The entries from `index` on are about to be replaced by a group: until that is durable,
    /// what was there stays in the ring. A crash would otherwise leave a log with a hole.
    pub(crate) fn hold_from(&mut self, index: u64, group: GroupId, next: BatchSeq) {
        if index > self.last_index() || planted(Mistake::ReplacedLetGo) {
            return;
        }
        // What has no place yet will get one in the next batch or later.
        let oldest = self.oldest_batch_from(index).unwrap_or(next);
        let held = self.hold.map_or(oldest, |(_, held)| held.min(oldest));
        self.hold = Some((group, held));
    }

    /// Replaces everything; the log now starts behind this point. Returns the slots that were
    /// reserved.
    pub(crate) fn reset(&mut self, index: u64, term: u64) -> u64 {
        let reserved = self.truncate(self.base_index + 1);
        self.base_index = index;
        self.base_term = term;
        reserved
    }

    /// Batch of the first entry from `index` on that has one. Entries without a batch will be in
    /// newer ones.
    pub(crate) fn oldest_batch_from(&self, index: u64) -> Option<BatchSeq> {
        let skip = index.saturating_sub(self.base_index + 1) as usize;
        // The entries are in the order in which they were pushed, so the first is the oldest.
        let mut places = self.entries.iter().skip(skip).map(|entry| entry.place);
        places.find_map(|place| place.map(|place| place.seq))
    }

    /// Entries from `index` on, with their indexes.
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

/// One bit per extent: does the index hold a record of it?
pub(crate) struct Presence {
    words: Vec<u64>,
}

impl Presence {
    fn new(blocks: u32) -> Presence {
        let extents = blocks.div_ceil(BLOCKS_PER_EXTENT) as usize;
        Presence { words: vec![0; extents.div_ceil(64)] }
    }

    pub(crate) fn get(&self, extent: Extent) -> bool {
        let word = self.words.get(extent.0 as usize / 64);
        word.is_some_and(|word| word & (1 << (extent.0 % 64)) != 0)
    }

    pub(crate) fn set(&mut self, extent: Extent, present: bool) {
        let place = extent.0 as usize / 64;
        if place >= self.words.len() {
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

/// Extents whose record is newer than what was applied: after a restart or a resync. Entries up
/// to that index are skipped for them (rule R3).
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

    /// The record is about to be replaced by one that may be older, or (0) deleted: entries after
    /// that are needed again. Returns what the record includes now.
    pub(crate) fn lower(&mut self, extent: Extent, last_changed: u64) -> Option<u64> {
        let known = self.last_changed.get(&extent).copied()?;
        if known > last_changed && !planted(Mistake::OlderCopyOverlooked) {
            self.last_changed.insert(extent, last_changed);
        }
        Some(known)
    }

    /// True when the entry `index` is already in the record of this extent.
    pub(crate) fn includes(&self, extent: Extent, index: u64) -> bool {
        index <= self.newest
            && !planted(Mistake::ReplayOverNewer)
            && self.last_changed.get(&extent).is_some_and(|last_changed| *last_changed >= index)
    }

    /// Entries up to here were applied.
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
