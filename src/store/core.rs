//! The shared state of a lane: members, allocator, log, cached records and payloads, I/O and clock.
//! The parts borrow it; it knows none of them. A part leaves work for another part here: extents to
//! write back, a checkpoint to consider.
//!
//! Also the operations on all of it at once: appends, applied entries, and flushes, which make
//! commits to the index durable. After a flush, freed slots may be reused (rule
//! `slot-reuse-after-durable-free`), and the log drops the entries that the index has. To create,
//! fault or destroy a member takes one flush.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::level::Levels;
use crate::limits::SPACE_HOPE;
use crate::log::{Append, Applied, Change};
use crate::planted::planted;
use crate::store::alloc::Allocator;
use crate::store::effects::{AfterFlush, FlushPoint, Io, Pending};
use crate::store::index::cache::RecordCache;
use crate::store::lane_log::{LaneLog, confirm_appends};
use crate::store::member::{LaneMember, PendingAppend, Phase};
use crate::store::members::Members;
use crate::store::messages::{Event, IndexEdit, IndexJob, MemberRecord};
use crate::store::overlay::{Content, Overlay, OverlayBlock, OverlayGauge, PayloadCache, ZeroRun};
use crate::store::wal::BatchSeq;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, BlockRange, Extent, MemberId, Mono};

/// The settings of a lane.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    pub levels: Levels,
    /// Largest size of the data file, in bytes.
    pub data_bytes_max: u64,
    /// Bytes of memory for payloads of the overlay.
    pub dirty_cache_bytes: usize,
    /// Bytes of memory for the overlays, without payloads (rule `overlay-is-bounded`).
    pub overlay_bytes_max: u64,
    /// Bytes of memory for extent records.
    pub index_cache_bytes: usize,
    /// Bytes of applied payloads, over all members, that the open loads for followers.
    pub log_tail_bytes: usize,
    /// Writes of whole extents with at least this much payload bypass the log (rule
    /// `bypass-before-batch`); `usize::MAX`: none does.
    pub bypass_bytes_min: usize,
    /// Most extents in one listing of the index, for a resync or the end of a member.
    pub listing_extents: usize,
}

pub(super) struct Core {
    pub config: LaneConfig,
    pub pool: Pool,
    pub members: Members,
    /// Members that were destroyed here, or are about to be.
    pub tombstones: BTreeSet<MemberId>,
    pub alloc: Allocator,
    pub log: LaneLog,
    pub records: RecordCache,
    pub payloads: PayloadCache,
    /// Members that were created in this round.
    pub new: Vec<MemberId>,
    /// Bytes of all overlays.
    pub overlay_bytes: OverlayGauge,
    /// Extents that entries zero which are not applied yet, of all members.
    pub unapplied_zeroes: u64,
    /// Dirty extents whose write-back gives space back.
    pub giving_back: u64,
    /// Extents written back since the newest flush.
    pub settled_extents: u64,
    /// Until then, slots may come back that trims have just freed.
    pub hope: Mono,
    /// Extents with overlay blocks, oldest first, each once: the queue of write-back.
    pub dirty: VecDeque<(MemberId, Extent)>,
    /// Something was committed to the index since the newest flush.
    pub unflushed: bool,
    /// The checkpoint must look at the ring again, for another reason than its fill.
    pub stale: bool,
    pub io: Io,
    pub clock: Clock,
}

#[derive(Default)]
pub(super) struct Clock {
    pub now: Mono,
    /// Time of the round with the newest append or applied entry.
    pub last_change: Mono,
    pub changed: bool,
    /// When the newest batch of the log ended.
    pub last_batch: Mono,
    pub batch_ended: bool,
    /// All changes up to this time are written back and durable.
    pub settled: Mono,
}

impl Clock {
    pub(super) fn advance(&mut self, now: Mono) {
        self.now = now;
        if std::mem::take(&mut self.changed) {
            self.last_change = now;
        }
        if std::mem::take(&mut self.batch_ended) {
            self.last_batch = now;
        }
    }
}

impl Core {
    /// `None`: the disk failed, and the lane does nothing any more.
    pub(super) fn running(&mut self) -> Option<&mut Core> {
        (!self.io.poisoned()).then_some(self)
    }

    pub(super) fn live(&self, member: MemberId) -> Option<&LaneMember> {
        self.members.get(&member).filter(|found| found.phase == Phase::Live)
    }

    pub(super) fn live_mut(&mut self, member: MemberId) -> Option<&mut LaneMember> {
        self.members.get_mut(&member).filter(|found| found.phase == Phase::Live)
    }

    /// Records an append, and returns the part of it that goes into the log.
    pub(super) fn expect_append(&mut self, mut request: Append) -> Option<Append> {
        let member = self.members.get_mut(&request.member)?;
        if matches!(member.phase, Phase::Destroying | Phase::Faulted) {
            return None;
        }
        assert_eq!(member.phase, Phase::Live, "appended before it was created");
        self.clock.changed = true;
        let number = request.number;
        // A resync has brought everything up to `flushed`, durably; Raft hears of it a little
        // later. Entries up to there, which the leader's log still had, are committed and in the
        // store. Nothing is appended before that is durable: a crash would leave a gap in the log.
        if member.record.resyncing {
            let flushed = member.durable_flushed;
            request.entries.retain(|entry| entry.index > flushed);
            request.whole_extents.retain(|whole| whole.index > flushed);
        }
        if let Some(last) = member.appends.back() {
            assert!(number > last.number, "appends are numbered in order");
        }
        let empty = request.hard.is_none() && request.reset.is_none() && request.entries.is_empty();
        member.appends.push_back(PendingAppend { number, durable: empty });
        if empty {
            confirm_appends(member, &mut self.io);
        }
        (!empty).then_some(request)
    }

    pub(super) fn append(&mut self, request: Append) {
        let member = self.members.get_mut(&request.member).expect("just seen");
        self.log.append(member, &mut self.alloc, request);
    }

    pub(super) fn start_batches(&mut self) {
        self.log.start_batches(&mut self.members, &self.pool, &mut self.io);
    }

    pub(super) fn batch_written(&mut self, seq: BatchSeq) {
        self.clock.batch_ended = true;
        self.stale |= self.log.written(seq, &mut self.members, &mut self.alloc, &mut self.io);
    }

    /// Brings the write-back queue and the reservation of an extent in line with its overlay.
    pub(super) fn overlay_changed(&mut self, member: MemberId, extent: Extent) {
        let Some(found) = self.members.get_mut(&member) else { return };
        if let Some(gone) = found.overlay.forget_empty(extent) {
            self.alloc.unreserve(u64::from(gone.reserved));
            self.giving_back -= u64::from(gone.gives_back);
            return;
        }
        let has_slot = found.presence.get(extent);
        let Some(overlay) = found.overlay.get_mut(extent) else { return };
        if !overlay.queued && !overlay.busy {
            overlay.queued = true;
            self.dirty.push_back((member, extent));
        }
        // A bypassed entry has its slot already.
        let wants = !has_slot && overlay.has_data() && overlay.bypassed().is_none();
        if wants && !overlay.reserved {
            self.alloc.reserve(1);
        }
        if !wants && overlay.reserved {
            self.alloc.unreserve(1);
        }
        overlay.reserved = wants;
        let gives_back = has_slot && !overlay.has_data();
        self.giving_back -= u64::from(overlay.gives_back);
        self.giving_back += u64::from(gives_back);
        overlay.gives_back = gives_back;
    }

    /// Sets how many extents the unapplied entries of a member zero.
    pub(super) fn set_unapplied_zeroes(&mut self, member: MemberId, extents: u64) {
        // Most rounds change nothing: then the member need not be counted anew.
        let Some(was) = self.members.get(&member).map(|found| found.unapplied_zeroes) else {
            return;
        };
        if was == extents {
            return;
        }
        self.members.get_mut(&member).expect("just seen").unapplied_zeroes = extents;
        self.unapplied_zeroes = self.unapplied_zeroes - was + extents;
        if extents > was {
            self.hope_for_space();
        }
    }

    fn hope_for_space(&mut self) {
        self.hope = self.clock.now + SPACE_HOPE;
    }

    /// True when slots that trims give back may be free soon.
    pub(super) fn hopes_for_space(&self) -> bool {
        self.clock.now < self.hope && !planted!(TrimmedSpaceForgotten)
    }

    /// True when few slots are free, and write-back or a checkpoint would give some back.
    pub(super) fn space_waits(&self) -> bool {
        let (named, _) = self.alloc.named();
        let gives_back = self.giving_back > 0 || (named > 0 && self.hopes_for_space());
        gives_back && self.slots_are_low()
    }

    /// True when few slots are free.
    pub(super) fn slots_are_low(&self) -> bool {
        const LOW_SLOTS: u64 = 512;
        let capacity = u64::from(self.alloc.capacity());
        let low = (capacity / 16).max(LOW_SLOTS.min(capacity.div_ceil(4)));
        self.alloc.free_unreserved() < low
    }

    pub(super) fn is_destroyed(&self, member: MemberId) -> bool {
        self.tombstones.contains(&member) && !planted!(EmptyMemberVotes)
    }

    pub(super) fn apply(&mut self, member: MemberId, request: Applied) {
        let Some(found) = self.live_mut(member) else { return };
        if request.index <= found.applied_index {
            return;
        }
        assert_eq!(request.index, found.applied_index + 1, "applied in order");
        let term = found.log.term(request.index);
        assert_eq!(term, Some(request.term), "the entry that was appended");
        let reserved = found.log.applied(request.index);
        found.applied_index = request.index;
        found.applied_term = request.term;
        if let Some(meta) = request.meta {
            found.metas.push_back((request.index, meta));
        }
        self.clock.changed = true;
        self.alloc.unreserve(reserved);
        match request.change {
            Some(Change::Write { range, crcs, payload }) => {
                self.apply_write(member, request.index, range, &crcs, payload)
            }
            Some(Change::Zero { range, trim }) => {
                self.apply_zero(member, request.index, range, !trim)
            }
            None => {}
        }
        let found = self.members.get_mut(&member).expect("just seen");
        found.newer.applied(request.index);
    }

    fn apply_write(
        &mut self,
        member: MemberId,
        index: u64,
        range: BlockRange,
        crcs: &[u32],
        payload: Bytes,
    ) {
        let found = self.members.get_mut(&member).expect("just seen");
        assert_eq!(crcs.len(), range.count as usize, "one checksum per block");
        assert!(range.end() <= found.record.blocks, "inside the shard");
        assert!(payload.is_empty() || payload.len() as u64 == range.bytes());
        let entry = found.log.get(index).expect("just seen");
        assert_eq!(u64::from(entry.payload_bytes), range.bytes(), "the entry's payload");
        let slots = entry.slots.as_ref();
        assert!(slots.is_none() || range.first.in_extent() == 0, "bypassed: whole extents");
        // Write-back copies no bypassed payload: the cache is of more use to others.
        let cached = if slots.is_none() { self.payloads.keep(payload) } else { None };
        let commit = found.hard.durable_commit;
        for (position, at) in range.blocks().enumerate() {
            if found.newer.includes(at.extent(), index) {
                continue;
            }
            let start = position * BLOCK_BYTES;
            let block = OverlayBlock {
                index,
                crc: crcs[position],
                content: match slots {
                    None => Content::Log { position: position as u16 },
                    Some(slots) => Content::Slot(slots[position / BLOCKS_PER_EXTENT as usize]),
                },
                cached: cached.as_ref().map(|bytes| bytes.slice(start..start + BLOCK_BYTES)),
            };
            found.overlay.insert(at, block, commit);
        }
        for extent in range.extents() {
            self.overlay_changed(member, extent);
        }
    }

    fn apply_zero(&mut self, member: MemberId, index: u64, range: BlockRange, keep: bool) {
        for extent in range.extents() {
            let found = self.members.get_mut(&member).expect("just seen");
            assert!(range.end() <= found.record.blocks, "inside the shard");
            let overlay = found.overlay.get(extent);
            // Zeroes keep only a slot that exists or is reserved: they reserved none themselves.
            let has_space =
                found.presence.get(extent) || overlay.is_some_and(|overlay| overlay.reserved);
            let known = has_space || overlay.is_some();
            if !known || found.newer.includes(extent, index) {
                continue;
            }
            let first = extent.first_block().0;
            let from = range.first.0.max(first) - first;
            let end = range.end().min(first + BLOCKS_PER_EXTENT) - first;
            let mask = (u16::MAX << from) & (u16::MAX >> (BLOCKS_PER_EXTENT - end));
            let run = ZeroRun { index, mask, keep: keep && has_space };
            found.overlay.zero(extent, run, found.hard.durable_commit);
            self.overlay_changed(member, extent);
            self.hope_for_space();
        }
    }

    /// Commits these edits and the new flushed positions of members, and flushes the index.
    pub(super) fn flush(&mut self, mut edits: Vec<IndexEdit>, after: AfterFlush) {
        let mut flushed = Vec::new();
        for id in self.members.totals().unflushed.clone() {
            let Some(member) = self.live_mut(id) else { continue };
            if member.advance_record() {
                edits.push(IndexEdit::PutMember(member.record.clone()));
            }
            if member.record.flushed_index != member.durable_flushed {
                flushed.push((id, member.record.flushed_index));
            }
        }
        self.unflushed = false;
        self.settled_extents = 0;
        let point = FlushPoint { freed: self.alloc.take_freed(), flushed, after };
        let flush = true;
        self.io.index(Pending::Flush(point), IndexJob::Commit { edits, flush });
    }

    /// Everything committed before this point is durable. Returns the reason of the flush.
    pub(super) fn flushed(&mut self, point: FlushPoint) -> AfterFlush {
        self.alloc.reusable(point.freed);
        self.stale = true;
        for (id, flushed) in point.flushed {
            let Some(member) = self.members.get_mut(&id) else { continue };
            member.durable_flushed = flushed.max(member.durable_flushed);
            let term = member.record.flushed_term;
            let reserved = match flushed == member.record.flushed_index {
                true => member.log.compact_to(flushed, term),
                false => member.log.compact(flushed),
            };
            for (index, entry) in member.log.take_past() {
                self.log.past.add(id, index, &entry);
            }
            self.alloc.unreserve(reserved);
            self.release_left(id);
        }
        self.log.past.prune(self.log.wal.oldest_intact());
        point.after
    }

    /// Frees the slots of a member that nothing in reach of recovery names any more.
    fn release_left(&mut self, id: MemberId) {
        let member = self.members.get_mut(&id).expect("just seen");
        for slot in member.log.take_left() {
            self.alloc.release_named(slot);
        }
    }

    pub(super) fn create(&mut self, record: MemberRecord) {
        let member = record.member;
        let known = self.members.contains_key(&member) || self.is_destroyed(member);
        assert!(!known, "a member id is never used twice");
        let overlay = Overlay::counted(&self.overlay_bytes);
        self.members.insert(member, LaneMember::new(record, overlay, Phase::Creating));
        self.new.push(member);
    }

    /// Stores the first records of the members that were created in this round, with one flush.
    pub(super) fn store_new(&mut self) {
        let mut new = std::mem::take(&mut self.new);
        new.retain(|id| self.members.get(id).is_some_and(|it| it.phase == Phase::Creating));
        if !new.is_empty() {
            let record = |id: &MemberId| IndexEdit::PutMember(self.members[id].record.clone());
            self.flush(new.iter().map(record).collect(), AfterFlush::Created(new));
        }
    }

    /// The first records of members are durable: the members go live.
    pub(super) fn created(&mut self, members: Vec<MemberId>) {
        for member in members {
            if let Some(found) = self.members.get_mut(&member)
                && found.phase == Phase::Creating
            {
                found.phase = Phase::Live;
                self.io.events.push(Event::MemberDurable { member });
            }
        }
    }

    /// The record of a member is durable. A member that is being destroyed reports that later.
    pub(super) fn recorded(&mut self, member: MemberId) {
        let phase = self.members.get(&member).map(|found| found.phase);
        if phase != Some(Phase::Destroying) {
            self.io.events.push(Event::MemberDurable { member });
        }
    }

    pub(super) fn fault(&mut self, member: MemberId) {
        let Some(found) = self.live_mut(member) else { return };
        found.phase = Phase::Faulted;
        found.task = None;
        self.flush(vec![IndexEdit::Fault(member)], AfterFlush::Faulted(member));
    }

    /// The fault of the member is durable.
    pub(super) fn faulted(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.phase != Phase::Faulted {
            return;
        }
        let empty = Overlay::counted(&self.overlay_bytes);
        let overlay = std::mem::replace(&mut member.overlay, empty);
        self.giving_back -= overlay.giving_back();
        self.alloc.unreserve(member.log.drop_after(0) + overlay.reserved_slots());
        member.log.hold = None;
        member.hard.durable_seq = None;
        self.log.past.forget(id);
        // No restart uses the log of a faulted member, so its slots are free.
        self.release_left(id);
        self.set_unapplied_zeroes(id, 0);
        self.stale = true;
    }

    /// The tombstone is durable: replay skips what the log still has of the member.
    pub(super) fn destroyed(&mut self, member: MemberId) {
        let gone = self.members.get_mut(&member).expect("destroyed once");
        self.alloc.unreserve(gone.log.reset(0, 0) + gone.overlay.reserved_slots());
        self.giving_back -= gone.overlay.giving_back();
        self.release_left(member);
        self.set_unapplied_zeroes(member, 0);
        self.members.remove(&member);
        self.log.past.forget(member);
        self.records.forget(|key| key.member == member);
        self.io.events.push(Event::MemberDurable { member });
    }
}
