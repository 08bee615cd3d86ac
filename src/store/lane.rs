//! A lane: what joins log, overlay, write-back, index and allocator. This file has the parts that
//! every round passes through: appends, applied entries, effects and their ends. The rest of
//! `impl Lane` is in `read`, `writeback`, `checkpoint`, `resync` and `open`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::io::buffer::Pool;
use crate::log::{Append, Applied, Change, HardState, LogEntry};
use crate::planted::{Mistake, planted};
use crate::store::alloc::Allocator;
use crate::store::checkpoint::{AfterFlush, Checkpoint};
use crate::store::effects::{Io, Pending};
use crate::store::groups::{Group, GroupKind, Groups, Unplaced};
use crate::store::index::cache::RecordCache;
use crate::store::member::{Member, PendingAppend, Phase, Place, Retained};
use crate::store::mend::Mends;
use crate::store::overlay::{Content, OverlayBlock, PayloadCache};
use crate::store::read::ReadState;
use crate::store::redirect::Redirects;
use crate::store::resync::Scan;
use crate::store::seam::*;
use crate::store::superblock::Superblock;
use crate::store::wal::{BatchSeq, Item, Wal};
use crate::store::writeback::WriteBack;
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockRange, EXTENT_BYTES, Extent, MemberId, Mono,
    Unappended,
};

/// Without a new batch for this long, a batch that only says what is durable is written.
const IDLE_MARK_AFTER: Duration = Duration::from_millis(2);

/// Blocking access to a disk's files, for opening only.
pub trait LaneFiles {
    /// Exactly `len` bytes, in aligned memory.
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes>;
    /// Durable when it returns.
    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64>;
}

/// What a lane is opened with.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// Bytes of slots that the data file may grow to.
    pub data_bytes_max: u64,
    /// Memory for payloads of the overlay.
    pub overlay_cache_bytes: usize,
    /// Memory for extent records.
    pub index_cache_bytes: usize,
    /// Payloads of applied entries that are handed out at start, for followers, in all.
    pub log_tail_bytes: usize,
    /// Writes of whole extents with at least this much payload go to slots of their own instead of
    /// the log (rule R6); `usize::MAX`: none does.
    pub redirect_bytes_min: usize,
    /// Extents that one job of the index lists, for a resync or the end of a member.
    pub listing_extents: usize,
}

/// A member as it was found.
#[derive(Debug)]
pub struct RecoveredMember {
    pub record: MemberRecord,
    pub hard: HardState,
    /// From `record.flushed_index + 1` on, contiguous. The caller decodes and applies the ones up
    /// to `hard.commit` (see [`Lane::apply`]) before anything else.
    pub entries: Vec<RecoveredEntry>,
    /// It may have forgotten a vote or an acknowledgement.
    pub faulted: bool,
}

#[derive(Debug)]
pub struct RecoveredEntry {
    /// `payload` is empty unless `loaded`.
    pub entry: LogEntry,
    pub payload_bytes: u32,
    /// False for an applied entry whose payload was left in the log.
    pub loaded: bool,
}

/// Why a change is not accepted now (rules R9, R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log is full until write-back or images have made room: retry.
    LogFull,
    /// The data file has no slot left for it.
    NoSpace,
}

/// See the module. Every method but `poll` only queues; `poll` hands out what is to be done.
pub struct Lane {
    pub(super) config: LaneConfig,
    pub(super) pool: Pool,
    pub(super) superblock: Superblock,
    pub(super) log: LaneLog,
    pub(super) members: BTreeMap<MemberId, Member>,
    /// Members that were destroyed here, or are about to be.
    pub(super) tombstones: BTreeSet<MemberId>,
    pub(super) alloc: Allocator,
    pub(super) records: RecordCache,
    pub(super) payloads: PayloadCache,
    pub(super) reads: FxHashMap<ReadId, ReadState>,
    pub(super) scans: FxHashMap<OpId, Scan>,
    pub(super) redirects: Redirects,
    pub(super) writeback: WriteBack,
    pub(super) checkpoint: Checkpoint,
    pub(super) mends: Mends,
    pub(super) io: Io,
    pub(super) clock: Clock,
}

/// The ring, what is on its way into it, and what may not be released from it.
pub(super) struct LaneLog {
    pub wal: Wal,
    /// Bytes of the ring file, and how many of them only HardStates and images may use.
    pub ring_bytes: u64,
    pub reserve_bytes: u64,
    pub groups: Groups,
    /// Reads of the ring under way, per batch.
    pub pins: BTreeMap<BatchSeq, u32>,
    /// Payload bytes of entries that are not applied yet or not even appended, over all members, as
    /// of the newest round or append.
    pub unapplied_bytes: u64,
}

impl LaneLog {
    pub(super) fn pin(&mut self, seq: BatchSeq) {
        *self.pins.entry(seq).or_default() += 1;
    }

    pub(super) fn unpin(&mut self, seq: BatchSeq) {
        let pins = self.pins.get_mut(&seq).expect("unpinned once per pin");
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&seq);
        }
    }
}

/// What the lane knows of time.
#[derive(Default)]
pub(super) struct Clock {
    pub now: Mono,
    /// The round of the newest append or applied entry.
    pub last_change: Mono,
    pub changed: bool,
    /// When the newest batch of the log ended.
    pub last_batch: Mono,
    pub batch_ended: bool,
    /// What all members were to append at the last poll.
    pub unappended: Unappended,
    /// Slots admitted and not yet reserved by an append, as of the last poll and since.
    pub admitted: Cell<u64>,
    /// Payload bytes admitted and not appended, as of the last poll; appended or not since.
    pub admitted_bytes: Cell<u64>,
}

impl Lane {
    /// This disk's identity and incarnation.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// True when this member was destroyed here, ever: it is not to be created again, because it
    /// would have forgotten what it had promised (rule R12).
    pub fn is_destroyed(&self, member: MemberId) -> bool {
        self.tombstones.contains(&member) && !planted(Mistake::EmptyMemberVotes)
    }

    /// A new, empty member. `Event::MemberDurable` follows; nothing else may be asked before.
    pub fn create_member(&mut self, record: MemberRecord) {
        if self.io.poisoned() {
            return;
        }
        let member = record.member;
        let known = self.members.contains_key(&member) || self.is_destroyed(member);
        assert!(!known, "a member id is never used twice");
        let edits = vec![IndexEdit::PutMember(record.clone())];
        self.members.insert(member, Member::new(record, Phase::Creating));
        self.flush(edits, AfterFlush::Created(member));
    }

    /// Queues an append. `Event::Appended` follows, in order. An append of a member that is being
    /// destroyed, or has been given up, is dropped.
    pub fn append(&mut self, mut request: Append) {
        if self.io.poisoned() {
            return;
        }
        let Some(member) = self.members.get_mut(&request.member) else {
            return;
        };
        if matches!(member.phase, Phase::Destroying | Phase::Faulted) {
            return;
        }
        assert_eq!(member.phase, Phase::Live, "appended before it was created");
        self.clock.changed = true;
        let id = request.member;
        let number = request.number;
        // A resync has brought everything up to its index, durably, and Raft hears of that a little
        // later: entries that the leader's log still reached are committed, and in here. Before it
        // is durable nothing is appended: a crash would leave a gap in the log.
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
            self.confirm_appends(id);
            return;
        }
        let writes = self.redirect(&mut request);
        if writes > 0 || self.redirects.holds_back(id) {
            self.stage(request, writes);
        } else {
            self.push_append(request);
        }
    }

    pub(super) fn push_append(&mut self, request: Append) {
        let member = self.members.get_mut(&request.member).expect("just seen");
        let mut items = Vec::with_capacity(2 + request.entries.len());
        let group = self.log.groups.next_id();
        if let Some(reset) = &request.reset {
            assert!(
                reset.index <= member.durable_flushed,
                "the store holds everything up to a reset, durably"
            );
            assert!(member.overlay.is_empty(), "nothing up to a reset lives only in the log");
            member.log.hold_from(0, group, self.log.wal.next_seq());
            self.alloc.unreserve(member.log.reset(reset.index, reset.term));
            member.applied_index = member.applied_index.max(reset.index);
            member.applied_term = reset.term;
            items.push(Item::Reset {
                member: request.member,
                index: reset.index,
                term: reset.term,
            });
        }
        let later = planted(Mistake::HardStateAfterEntries) && !request.entries.is_empty();
        if let Some(hard) = request.hard.filter(|_| !planted(Mistake::HardStateNotLogged)) {
            member.hard.newest = hard;
            if !later {
                items.push(Item::Hard { member: request.member, hard });
            }
        }
        let push = self.log.groups.next_push();
        for entry in request.entries {
            // What it replaces may be all that a crash leaves.
            let next = self.log.wal.next_seq();
            member.log.hold_from(entry.index, group, next);
            retain(member, &mut self.log, &mut self.alloc, entry.clone(), push);
            self.log.groups.expect(Unplaced {
                member: request.member,
                index: entry.index,
                push,
                image: false,
            });
            items.push(Item::Entry { member: request.member, entry });
        }
        let mut left = member.log.take_left();
        if planted(Mistake::ReplacedSlotsReused) {
            left.drain(..).for_each(|slot| self.alloc.release_named(slot));
        }
        member.hard.groups_under_way += 1;
        self.log.groups.push(Group {
            id: group,
            member: request.member,
            kind: GroupKind::Append { number: request.number },
            commit: request.hard.filter(|_| !later).map(|hard| hard.commit),
            not_before: self.log.wal.next_seq(),
            left,
        });
        self.log.wal.push(group, items);
    }

    /// Whether changes of these blocks may be appended (or proposed) now; keeps nothing beyond
    /// the round. `payload_bytes` 0 and no ranges: an entry that needs no slot (trim, zero).
    ///
    /// What is not applied cannot be reclaimed. A member that is stuck may have as much of it as it
    /// leaves to all others, so that it stops nobody.
    pub fn admit(
        &self,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Result<(), Refusal> {
        let share = (self.log.ring_bytes / 16).saturating_sub(self.log.unapplied_bytes);
        self.admit_up_to(share, member, payload_bytes, ranges)
    }

    /// The same for entries of an earlier term than the leader's, which nobody can refuse for long:
    /// until a majority has them, nothing of this term is committed, and so nothing is applied.
    /// After a restart there may be more of them than were ever admitted, because the newest commit
    /// index is forgotten. As many as an image holds (rule R8) are taken, whatever others have.
    pub fn admit_earlier_term(
        &self,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Result<(), Refusal> {
        self.admit_up_to(self.image_bytes_max(), member, payload_bytes, ranges)
    }

    /// The most payload of unapplied entries that an image may carry.
    pub(super) fn image_bytes_max(&self) -> u64 {
        self.log.ring_bytes / 8
    }

    fn admit_up_to(
        &self,
        share: u64,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Result<(), Refusal> {
        let ring = self.log.ring_bytes;
        let free = self.log.wal.free_bytes();
        // What gives space back may still be logged when nothing else may.
        let headroom = if payload_bytes > 0 { ring / 16 } else { ring / 64 };
        // What waits for its slots to be written is appended, too.
        let staged_bytes = self.redirects.staged_bytes();
        let admitted_bytes = self.clock.admitted_bytes.get() + payload_bytes + staged_bytes;
        if free < admitted_bytes + BLOCK_BYTES as u64 + headroom {
            return Err(Refusal::LogFull);
        }
        let Some(found) = self.members.get(&member) else {
            return Ok(());
        };
        if payload_bytes == 0 {
            return Ok(());
        }
        let since_poll = admitted_bytes - staged_bytes - self.clock.unappended.payload_bytes;
        let own = found.log.unapplied_bytes() + found.unappended.payload_bytes;
        // Whatever others have, a member gets on: one that has nothing may have one entry.
        let is_first = own == 0 && since_poll == payload_bytes;
        let is_first = is_first && payload_bytes <= self.image_bytes_max();
        if own + since_poll + staged_bytes > share && !is_first {
            return Err(Refusal::LogFull);
        }
        let mut wanted = 0;
        for range in ranges {
            wanted += extents_of(*range).filter(|extent| found.needs_slot(*extent)).count() as u64;
        }
        let admitted = self.clock.admitted.get();
        let free = self.alloc.free_unreserved();
        let enough = wanted == 0 || wanted + admitted <= free;
        if !enough && !planted(Mistake::AdmittedWithoutSpace) {
            // What is to be appended may take less than it could.
            let perhaps = wanted + admitted - self.clock.unappended.extents <= free;
            return Err(if perhaps { Refusal::LogFull } else { Refusal::NoSpace });
        }
        self.clock.admitted.set(admitted + wanted);
        self.clock.admitted_bytes.set(admitted_bytes - staged_bytes);
        Ok(())
    }

    /// What a member will append, without having been asked again.
    pub fn set_unappended(&mut self, member: MemberId, unappended: Unappended) {
        if let Some(member) = self.members.get_mut(&member) {
            member.unappended = unappended;
        }
    }

    fn count_unapplied(&mut self) {
        let (mut unappended, mut unapplied_bytes) = (Unappended::default(), 0);
        for member in self.members.values() {
            unapplied_bytes += member.log.unapplied_bytes();
            unappended.payload_bytes += member.unappended.payload_bytes;
            unappended.extents += member.unappended.extents;
        }
        self.log.unapplied_bytes = unapplied_bytes + unappended.payload_bytes;
        self.clock.admitted.set(unappended.extents);
        self.clock.admitted_bytes.set(unappended.payload_bytes);
        self.clock.unappended = unappended;
    }

    /// True when a write of these blocks would need space that the member does not have yet.
    pub fn allocates(&self, member: MemberId, ranges: &[BlockRange]) -> bool {
        let Some(found) = self.members.get(&member) else { return false };
        ranges.iter().any(|range| extents_of(*range).any(|extent| found.needs_slot(extent)))
    }

    /// A committed entry, in order. At replay the same call, with `payload` empty, skips what the
    /// index already has (rule R3). An entry that a resync brought already is ignored.
    pub fn apply(&mut self, member: MemberId, request: Applied) {
        if self.io.poisoned() {
            return;
        }
        let Some(found) = self.members.get_mut(&member) else {
            return;
        };
        if found.phase != Phase::Live || request.index <= found.applied_index {
            return;
        }
        assert_eq!(request.index, found.applied_index + 1, "applied in order");
        self.clock.changed = true;
        let term = found.log.term(request.index);
        assert_eq!(term, Some(request.term), "the entry that was appended");
        self.alloc.unreserve(found.log.applied(request.index));
        found.applied_index = request.index;
        found.applied_term = request.term;
        if let Some(meta) = request.meta {
            found.metas.push_back((request.index, meta));
        }
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
        assert!(slots.is_none() || range.first.in_extent() == 0, "redirected: whole extents");
        // Write-back has nothing to do with what lies in slots: its memory is of use elsewhere.
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
        for extent in extents_of(range) {
            self.after_overlay_change(member, extent);
        }
    }

    fn apply_zero(&mut self, member: MemberId, index: u64, range: BlockRange, keep: bool) {
        let found = self.members.get_mut(&member).expect("just seen");
        assert!(range.end() <= found.record.blocks, "inside the shard");
        let commit = found.hard.durable_commit;
        for extent in extents_of(range) {
            let found = self.members.get_mut(&member).expect("just seen");
            let overlay = found.overlay.get(extent);
            let known = found.presence.get(extent) || overlay.is_some();
            // Only what there is can be kept: an entry without payload has reserved nothing.
            let has_space =
                found.presence.get(extent) || overlay.is_some_and(|overlay| overlay.reserved);
            if !known || found.newer.includes(extent, index) {
                continue;
            }
            let first = extent.first_block().0.max(range.first.0);
            let end = (extent.first_block().0 + BLOCKS_PER_EXTENT).min(range.end());
            for at in (first..end).map(Block) {
                let content = Content::Zero { keep: keep && has_space };
                let block = OverlayBlock { index, crc: 0, content, cached: None };
                found.overlay.insert(at, block, commit);
            }
            self.after_overlay_change(member, extent);
        }
    }

    /// Keeps the write-back queue and the reservation of one extent in step with its overlay.
    pub(super) fn after_overlay_change(&mut self, member: MemberId, extent: Extent) {
        let Some(found) = self.members.get_mut(&member) else {
            return;
        };
        if let Some(gone) = found.overlay.forget_empty(extent) {
            self.alloc.unreserve(u64::from(gone.reserved));
            return;
        }
        let has_slot = found.presence.get(extent);
        let Some(overlay) = found.overlay.get_mut(extent) else {
            return;
        };
        if !overlay.queued && !overlay.busy {
            overlay.queued = true;
            self.writeback.queue.push_back((member, extent));
        }
        // One that a redirected entry wrote has its slot already.
        let wants = !has_slot && overlay.has_data() && overlay.redirected().is_none();
        if wants && !overlay.reserved {
            self.alloc.reserve(1);
        }
        if !wants && overlay.reserved {
            self.alloc.unreserve(1);
        }
        overlay.reserved = wants;
    }

    /// An effect ended.
    pub fn complete(&mut self, op: OpId, done: Done) {
        if self.io.poisoned() {
            return;
        }
        let pending = self.io.end(op);
        if let Done::Failed(kind, text) = &done
            && !pending.may_fail()
        {
            self.io.poison(format!("{text} ({kind})"));
            return;
        }
        match (pending, done) {
            (Pending::Wal(seq), Done::Written) => self.batch_written(seq),
            (Pending::ReadPiece { read, piece }, Done::Read(data)) => {
                self.piece_read(read, piece, Some(data));
            }
            (Pending::ReadPiece { read, piece }, Done::Failed(..)) => {
                self.piece_read(read, piece, None);
            }
            (Pending::ReadRecords { read, keys }, Done::Index(IndexDone::Got(got))) => {
                self.read_records_got(read, keys, got);
            }
            (Pending::RoundRecords { keys }, Done::Index(IndexDone::Got(got))) => {
                self.round_records_got(keys, got);
            }
            (Pending::RoundPayload(run), Done::Read(data)) => {
                self.round_payload_read(run, Some(data));
            }
            (Pending::RoundPayload(run), Done::Failed(..)) => self.round_payload_read(run, None),
            (Pending::RoundWrite, Done::Written) => self.round_written(),
            (Pending::RedirectWrite { member, number }, Done::Written) => {
                self.redirect_written(member, number);
            }
            (Pending::RoundSync, Done::Synced) => self.round_synced(),
            (Pending::RoundCommit, Done::Index(IndexDone::Committed)) => self.round_committed(),
            (Pending::Flush(point), Done::Index(IndexDone::Committed)) => self.flushed(point),
            (Pending::SuperblockFirst, Done::Written) => self.superblock_half_written(),
            (Pending::SuperblockSecond, Done::Written) => self.superblock_written(),
            (Pending::Scan, Done::Index(IndexDone::Scanned(found))) => self.scanned(op, found),
            _ => panic!("an effect ended as another kind"),
        }
    }

    fn batch_written(&mut self, seq: BatchSeq) {
        self.clock.batch_ended = true;
        for id in self.log.wal.written(seq) {
            let mut group = self.log.groups.pop(id);
            for slot in std::mem::take(&mut group.left) {
                self.alloc.release_named(slot);
            }
            let Some(member) = self.members.get_mut(&group.member) else {
                continue;
            };
            member.hard.groups_under_way -= 1;
            if let Some(commit) = group.commit {
                let hard = &mut member.hard;
                hard.durable_commit = commit.max(hard.durable_commit);
                if member.phase != Phase::Faulted {
                    hard.durable_seq = Some(group.not_before);
                }
                member.overlay.cover(hard.durable_commit);
            }
            if member.log.hold.is_some_and(|(hold, _)| hold == id) {
                member.log.hold = None;
            }
            match group.kind {
                GroupKind::Append { number } => {
                    let mut appends = member.appends.iter_mut();
                    let append = appends.find(|append| append.number == number);
                    append.expect("confirmed once").durable = true;
                    self.confirm_appends(group.member);
                }
                GroupKind::OwnHard => {
                    member.hard.own_under_way = false;
                    self.checkpoint.stale = true;
                }
                GroupKind::Image { places } => {
                    member.hard.own_under_way = false;
                    self.checkpoint.stale = true;
                    for (index, push, place) in places {
                        if let Some(entry) = member.log.get_mut(index)
                            && entry.push == push
                        {
                            entry.place = Some(place);
                        }
                    }
                }
            }
        }
    }

    fn confirm_appends(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        while member.appends.front().is_some_and(|append| append.durable) {
            let append = member.appends.pop_front().expect("just seen");
            self.io.events.push(Event::Appended { member: id, number: append.number });
        }
    }

    /// Once per round, after every input: what to do and what happened.
    pub fn poll(&mut self, now: Mono, effects: &mut Vec<Effect>, events: &mut Vec<Event>) {
        self.clock.now = now;
        if std::mem::take(&mut self.clock.changed) {
            self.clock.last_change = now;
        }
        if std::mem::take(&mut self.clock.batch_ended) {
            self.clock.last_batch = now;
        }
        if !self.io.poisoned() {
            self.count_unapplied();
            self.start_batches();
            self.pace();
            if self.log.wal.wants_idle_mark() && now >= self.clock.last_batch + IDLE_MARK_AFTER {
                self.log.wal.push_idle_mark();
            }
            // The pacing may have pushed items of its own.
            self.start_batches();
        }
        effects.append(&mut self.io.effects);
        events.append(&mut self.io.events);
    }

    fn start_batches(&mut self) {
        while let Some(batch) = self.log.wal.next_batch(&self.pool) {
            for placed in &batch.placed {
                let place = Place { seq: placed.seq, payload_offset: placed.payload_offset };
                let expected = self.log.groups.placed(placed, place);
                let member = self.members.get_mut(&placed.member);
                let entry = member.and_then(|member| member.log.get_mut(placed.index));
                if let Some(entry) = entry
                    && !expected.image
                    && entry.push == expected.push
                {
                    entry.place = Some(place);
                }
            }
            let (file, durable) = (LaneFile::Wal, !planted(Mistake::LogWriteNotDurable));
            let pending = Pending::Wal(batch.seq);
            self.io.write(pending, file, batch.offset, batch.bufs, durable);
        }
    }

    /// When `poll` wants to be called again although nothing happens (idle mark, pacing).
    pub fn deadline(&self) -> Option<Mono> {
        if self.io.poisoned() {
            return None;
        }
        let mark = self.log.wal.wants_idle_mark().then(|| self.clock.last_batch + IDLE_MARK_AFTER);
        [mark, self.pace_deadline()].into_iter().flatten().min()
    }

    /// The oldest operation that was asked for and has not ended.
    pub fn oldest_op(&self) -> Option<OpId> {
        self.io.oldest()
    }

    /// Extents that one listing has at most.
    pub fn listing_extents(&self) -> u64 {
        self.config.listing_extents as u64
    }

    pub fn space(&self) -> Space {
        let slot = EXTENT_BYTES as u64;
        let blocks = self.members.values().map(|member| member.overlay.blocks());
        Space {
            capacity_bytes: u64::from(self.alloc.capacity()) * slot,
            used_bytes: u64::from(self.alloc.used()) * slot,
            free_bytes: self.alloc.free_unreserved() * slot,
            log_bytes: self.log.ring_bytes,
            log_used_bytes: self.log.ring_bytes.saturating_sub(self.log.wal.free_bytes()),
            overlay_blocks: blocks.sum(),
            media_faults: self.io.media_faults,
            read_blocks: self.io.read_blocks,
            read_overlay_blocks: self.io.read_overlay_blocks,
        }
    }

    /// Space that applied changes wait for, beyond what is free or about to be (rule R10: none).
    pub fn overdrawn_bytes(&self) -> u64 {
        let overlays = self.members.values().flat_map(|member| member.overlay.range(..));
        let (mut waiting, mut taken_over) = (0, 0);
        for (_, extent) in overlays {
            waiting += u64::from(extent.reserved && !extent.busy);
            taken_over += u64::from(extent.redirected().is_some());
        }
        let free = u64::from(self.alloc.capacity() - self.alloc.used());
        let obtainable = free + self.alloc.named_only().saturating_sub(taken_over);
        waiting.saturating_sub(obtainable) * EXTENT_BYTES as u64
    }
}

/// For reports and admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Free and not reserved.
    pub free_bytes: u64,
    pub log_bytes: u64,
    pub log_used_bytes: u64,
    pub overlay_blocks: u64,
    /// Reads since the start that found no intact copy here.
    pub media_faults: u64,
    /// Blocks that reads asked for since the start and that are not holes.
    pub read_blocks: u64,
    /// Those of `read_blocks` that came from the overlay: from memory or from the log.
    pub read_overlay_blocks: u64,
}

impl Member {
    /// True when a write to this extent would need a slot that was not reserved yet.
    fn needs_slot(&self, extent: Extent) -> bool {
        let reserved = self.overlay.get(extent).is_some_and(|overlay| overlay.reserved);
        !self.presence.get(extent) && !reserved
    }
}

/// Adds an entry to the retained log, in place of what it replaces.
pub(super) fn retain(
    member: &mut Member,
    log: &mut LaneLog,
    alloc: &mut Allocator,
    entry: LogEntry,
    push: u64,
) {
    assert!(entry.index > member.applied_index, "an applied entry is never replaced");
    assert!(entry.index <= member.log.last_index() + 1, "the log has no gap");
    alloc.unreserve(member.log.truncate(entry.index));
    let in_log = u32::try_from(entry.payload.len()).expect("bounded by ENTRY_BYTES_MAX");
    let reserved = slots_at_most(in_log);
    alloc.reserve(u64::from(reserved));
    log.unapplied_bytes += u64::from(in_log);
    let slots = entry.redirect.as_ref().map(|redirect| redirect.slots());
    let in_slots = slots.as_ref().map_or(0, |slots| (slots.len() * EXTENT_BYTES) as u32);
    member.log.push(Retained {
        term: entry.term,
        push,
        place: None,
        payload_bytes: in_log + in_slots,
        unapplied_bytes: in_log,
        reserved,
        slots,
        unapplied: Some(Box::new(entry)),
    });
}

/// The most extents that a payload can touch, wherever it starts.
pub(super) fn slots_at_most(payload_bytes: u32) -> u16 {
    let blocks = payload_bytes.div_ceil(BLOCK_BYTES as u32);
    if blocks == 0 {
        return 0;
    }
    let extents = (blocks + BLOCKS_PER_EXTENT - 2) / BLOCKS_PER_EXTENT + 1;
    u16::try_from(extents).expect("bounded by ENTRY_BYTES_MAX")
}

/// The extents that a range touches.
pub(super) fn extents_of(range: BlockRange) -> impl Iterator<Item = Extent> {
    let last = Block(range.end().max(1) - 1).extent();
    (range.first.extent().0..=last.0).map(Extent)
}
