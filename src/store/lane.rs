//! A lane joins log, overlay, write-back, index and allocator. The core has the shared state, each
//! part its own. Only this file knows all parts: it dispatches each call and each ended effect to
//! its part, and passes on what concerns two.

use std::time::Duration;

use bytes::Bytes;

use crate::level::Level;
use crate::log::{Append, Applied, HardState, LogEntry};
use crate::store::admission::Admission;
use crate::store::bypass::WalBypass;
use crate::store::checkpoint::{Checkpoint, idle_at};
use crate::store::core::Core;
use crate::store::effects::{AfterFlush, FlushPoint, Pending};
use crate::store::log_fetch::LogFetches;
use crate::store::member::Task;
use crate::store::messages::*;
use crate::store::read::{Purpose, ReadState, Reads};
use crate::store::read_repair::ReadRepair;
use crate::store::resync::ResyncStore;
use crate::store::round::Install;
use crate::store::superblock::Superblock;
use crate::store::writeback::WriteBack;
use crate::types::{
    BLOCKS_PER_EXTENT, BlockRange, EXTENT_BYTES, Extent, ExtentContent, MemberId, Mono, Unappended,
};

pub use crate::store::admission::{Demand, Refusal, Source};
pub use crate::store::core::LaneConfig;

/// Without a new batch for this long, a batch with only the durable mark is written.
const IDLE_MARK_AFTER: Duration = Duration::from_millis(2);

/// Blocking access to a disk's files, for opening only.
pub trait LaneFiles {
    /// Exactly `len` bytes, in aligned memory.
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes>;
    /// Durable when it returns.
    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64>;
}

/// A member after recovery.
#[derive(Debug)]
pub struct RecoveredMember {
    pub record: MemberRecord,
    pub hard: HardState,
    /// Contiguous from `record.flushed_index + 1` on. The caller decodes and applies the ones up to
    /// `hard.commit` (see [`Lane::apply`]) before anything else.
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

/// Every method but `poll` only queues; `poll` returns effects and events.
pub struct Lane {
    pub(super) core: Core,
    pub(super) admission: Admission,
    pub(super) bypass: WalBypass,
    pub(super) reads: Reads,
    pub(super) repair: ReadRepair,
    pub(super) writeback: WriteBack,
    pub(super) resync: ResyncStore,
    pub(super) checkpoint: Checkpoint,
    pub(super) fetches: LogFetches,
}

impl Lane {
    /// The feature level of the cluster is at least this one. The next superblock says so.
    pub fn raise_level(&mut self, level: Level) {
        self.checkpoint.level = self.checkpoint.level.max(level);
    }

    /// This disk's identity and incarnation.
    pub fn superblock(&self) -> &Superblock {
        &self.checkpoint.superblock
    }

    /// True when this member was ever destroyed here. It must not be created again: it would have
    /// forgotten its promises (rule `destroyed-stays-destroyed`).
    pub fn is_destroyed(&self, member: MemberId) -> bool {
        self.core.is_destroyed(member)
    }

    /// Creates an empty member. `Event::MemberDurable` follows; ask nothing else of it before.
    pub fn create_member(&mut self, record: MemberRecord) {
        let Some(core) = self.core.running() else { return };
        core.create(record);
    }

    /// Queues an append. `Event::Appended` follows, in order. Appends of a member that is faulted
    /// or being destroyed are dropped.
    pub fn append(&mut self, request: Append) {
        let Some(core) = self.core.running() else { return };
        if let Some(request) = core.expect_append(request) {
            self.bypass.append(core, &self.admission, request);
        }
    }

    /// Checks whether a change may be proposed or appended now. The promise ends with the round.
    ///
    /// The log cannot reclaim unapplied entries. A stuck member may have as many bytes of them as
    /// it leaves to all others, so that it stops nobody.
    pub fn admit(&self, source: Source, member: MemberId, demand: &Demand) -> Result<(), Refusal> {
        self.admission.admit(&self.core, source, self.bypass.staged_bytes(), member, demand)
    }

    /// True when slots that trims give back may be free soon (rule `trimmed-space-comes-back`).
    pub fn hopes_for_space(&self) -> bool {
        self.core.hopes_for_space()
    }

    /// Sets how many extents the unapplied entries of a member zero, proposed ones included.
    pub fn set_unapplied_zeroes(&mut self, member: MemberId, extents: u64) {
        self.core.set_unapplied_zeroes(member, extents);
    }

    /// Sets what a member will append without asking again.
    pub fn set_unappended(&mut self, member: MemberId, unappended: Unappended) {
        let members = &mut self.core.members;
        // Most say what they said before, and need not be counted anew.
        if members.get(&member).is_some_and(|member| member.unappended != unappended)
            && let Some(member) = members.get_mut(&member)
        {
            member.unappended = unappended;
        }
    }

    /// True when a write of these blocks needs space that the member does not have yet.
    pub fn allocates(&self, member: MemberId, ranges: &[BlockRange]) -> bool {
        let Some(found) = self.core.members.get(&member) else { return false };
        ranges.iter().any(|range| range.extents().any(|extent| found.needs_slot(extent)))
    }

    /// Applies a committed entry, in order. Replay passes no `payload`, and skips extents whose
    /// record has the entry (rule `replay-skips-newer`). Ignores entries that a resync has brought.
    pub fn apply(&mut self, member: MemberId, request: Applied) {
        let Some(core) = self.core.running() else { return };
        core.apply(member, request);
    }

    /// Reads whole blocks as of everything applied.
    pub fn read(&mut self, read: ReadId, member: MemberId, range: BlockRange) {
        self.start_read(ReadState::new(read, member, range, Purpose::Read));
    }

    pub fn status(&mut self, read: ReadId, member: MemberId, range: BlockRange) {
        self.start_read(ReadState::new(read, member, range, Purpose::Status));
    }

    pub fn fetch_extent(&mut self, read: ReadId, member: MemberId, extent: Extent, layer: u32) {
        let range = BlockRange { first: extent.first_block(), count: BLOCKS_PER_EXTENT };
        self.start_read(ReadState::new(read, member, range, Purpose::Extent { layer }));
    }

    fn start_read(&mut self, state: ReadState) {
        let Some(core) = self.core.running() else { return };
        self.reads.start(core, &mut self.repair, state);
    }

    /// Reads applied entries back from the log, from `low` on and before `high`, as many as
    /// `LOG_FETCH_BYTES_MAX` allows. `Event::LogFetched` follows.
    pub fn fetch_log(&mut self, member: MemberId, low: u64, high: u64) {
        let Some(core) = self.core.running() else { return };
        self.fetches.fetch(core, member, low, high);
    }

    /// Takes another replica's copy of an extent, for blocks without an intact copy here. Content
    /// that does not fit is ignored; the next read shows that.
    pub fn repair(&mut self, member: MemberId, content: ExtentContent) {
        let Some(core) = self.core.running() else { return };
        self.repair.repair(core, member, content);
    }

    /// The extent can be read again: its parked write-back goes on.
    pub fn resume_writeback(&mut self, member: MemberId, extent: Extent) {
        let Some(core) = self.core.running() else { return };
        self.repair.resume(core, member, extent);
    }

    /// Faults a member that has lost something for good: durably, as if its log had been corrupt.
    /// The others go on. Once the fault is durable, the member no longer holds the log's tail.
    pub fn fault_member(&mut self, member: MemberId) {
        let Some(core) = self.core.running() else { return };
        core.fault(member);
    }

    /// Lists extents from `from` on, as of everything applied. No member: no extents, index 0.
    pub fn manifest(&mut self, read: ReadId, member: MemberId, from: Extent) {
        let Some(core) = self.core.running() else { return };
        self.resync.manifest(core, read, member, from);
    }

    /// Writes the overlay back, sets the *resyncing flag* durably; `Event::MemberDurable` follows.
    pub fn begin_resync(&mut self, member: MemberId) {
        self.set_task(member, |_| Task::BeginResync);
    }

    /// Everything up to `index` is in place: makes that durable, with the metadata as of it.
    /// `Event::MemberDurable` follows; the flag stays until `clear_resync`. If the log goes on
    /// before, `Event::ResyncOvertaken` follows instead, and nothing changes.
    pub fn finish_resync(&mut self, member: MemberId, index: u64, term: u64, meta: Bytes) {
        self.set_task(member, |from| Task::FinishResync { from, index, term, meta });
    }

    /// `task` gets the index that is applied now.
    fn set_task(&mut self, member: MemberId, task: impl FnOnce(u64) -> Task) {
        let Some(core) = self.core.running() else { return };
        if let Some(found) = core.live_mut(member) {
            found.task = Some(task(found.applied_index));
        }
    }

    /// Clears the *resyncing flag*; `Event::MemberDurable` follows.
    pub fn clear_resync(&mut self, member: MemberId) {
        let Some(core) = self.core.running() else { return };
        if let Some(found) = core.live_mut(member) {
            found.record.resyncing = false;
            let edits = vec![IndexEdit::PutMember(found.record.clone())];
            core.flush(edits, AfterFlush::Recorded(member));
        }
    }

    /// Puts whole extents in place and deletes others; `Event::Installed` follows. Needs the
    /// durable *resyncing flag*: extents overwritten in place cannot be served after a crash. If
    /// more is applied here than `as_of`, the source's applied index, all are too old and refused.
    pub fn install_extents(
        &mut self,
        read: ReadId,
        member: MemberId,
        as_of: u64,
        extents: Vec<ExtentContent>,
        delete: Vec<(Extent, u32)>,
    ) {
        let Some(core) = self.core.running() else { return };
        let delete = delete.into_iter().map(|(extent, _)| extent).collect();
        let refused = Vec::new();
        self.resync.install(core, Install { read, member, as_of, extents, delete, refused });
    }

    /// Destroys a member for ever, and frees its space. `Event::MemberDurable` follows. A member
    /// that is not here gets a tombstone, too.
    pub fn destroy_member(&mut self, member: MemberId) {
        let Some(core) = self.core.running() else { return };
        self.resync.destroy(core, member);
    }

    /// An effect ended.
    pub fn complete(&mut self, op: OpId, done: Done) {
        let Some(core) = self.core.running() else { return };
        let pending = core.io.end(op);
        if let Done::Failed(kind, text) = &done
            && !pending.may_fail()
        {
            core.io.poison(format!("{text} ({kind})"));
            return;
        }
        match (pending, done) {
            (Pending::Log(seq), Done::Written) => core.batch_written(seq),
            (Pending::Read(op), done) => self.reads.complete(core, &mut self.repair, op, done),
            (Pending::Round(op), done) => self.writeback.complete(core, &mut self.repair, op, done),
            (Pending::Bypass { member, number }, Done::Written) => {
                self.bypass.written(core, member, number);
            }
            (Pending::Fetch(op), done) => self.fetches.complete(core, op, done),
            (Pending::Superblock { half }, Done::Written) => self.checkpoint.written(core, half),
            (Pending::Flush(point), Done::Index(IndexDone::Committed)) => self.flushed(point),
            (Pending::Scan, Done::Index(IndexDone::Scanned(found))) => {
                self.resync.scanned(core, op, found);
            }
            _ => panic!("an effect of a lane ended as another kind"),
        }
    }

    /// Passes the end of a flush on to the parts that wait for it.
    fn flushed(&mut self, point: FlushPoint) {
        let core = &mut self.core;
        let after = core.flushed(point);
        self.writeback.flushed(core);
        match after {
            AfterFlush::Checkpoint => self.checkpoint.flushed(core),
            AfterFlush::Created(members) => core.created(members),
            AfterFlush::Recorded(member) => core.recorded(member),
            AfterFlush::Destroyed(member) => {
                core.destroyed(member);
                self.repair.forget(member);
            }
            AfterFlush::Faulted(member) => {
                core.faulted(member);
                self.repair.forget(member);
            }
        }
    }

    /// Once per round, after every input: returns effects and events.
    pub fn poll(&mut self, now: Mono, effects: &mut Vec<Effect>, events: &mut Vec<Event>) {
        self.core.clock.advance(now);
        if let Some(core) = self.core.running() {
            self.admission.count(core);
            core.store_new();
            core.start_batches();
            self.pace();
            let core = &mut self.core;
            if core.log.wal.wants_idle_mark() && now >= core.clock.last_batch + IDLE_MARK_AFTER {
                core.log.wal.push_idle_mark();
            }
            // The pacing may have pushed items of its own.
            core.start_batches();
        }
        effects.append(&mut self.core.io.effects);
        events.append(&mut self.core.io.events);
    }

    /// Starts work for a full ring, idleness, installs, moves and destroyed members.
    fn pace(&mut self) {
        let (core, repair) = (&mut self.core, &mut self.repair);
        if !self.writeback.is_busy() {
            self.resync.step(core, &self.bypass);
        }
        let write_back_first = !self.writeback.is_busy() && self.resync.gives_way(core);
        if write_back_first {
            // It looks at the ring, whether or not that has changed.
            core.stale = true;
        } else if !self.writeback.is_busy()
            && let Some(install) = self.resync.next_install()
        {
            self.writeback.install(core, repair, install);
        }
        if !self.writeback.is_busy() {
            self.writeback.start_move(core, repair);
        }
        let fill = self.checkpoint.look(core);
        if let Some(fill) = fill.as_ref().filter(|fill| fill.at_once || fill.pressure() > 0.0) {
            core.log.cover_applied(&mut core.members);
            self.writeback.pace(core, repair, fill.pressure());
        }
        if write_back_first
            && !self.writeback.is_busy()
            && let Some(install) = self.resync.next_install()
        {
            self.writeback.install(core, repair, install);
        }
        if let Some(fill) = fill {
            self.checkpoint.pace(core, &self.writeback, repair, &fill);
        }
    }

    /// When `poll` must run again without any input (idle mark, pacing).
    pub fn deadline(&self) -> Option<Mono> {
        let core = &self.core;
        if core.io.poisoned() {
            return None;
        }
        let wants_mark = core.log.wal.wants_idle_mark();
        let mark = wants_mark.then(|| core.clock.last_batch + IDLE_MARK_AFTER);
        [mark, idle_at(core)].into_iter().flatten().min()
    }

    /// The oldest operation in flight.
    pub fn oldest_op(&self) -> Option<OpId> {
        self.core.io.oldest()
    }

    /// Most extents in one listing.
    pub fn listing_extents(&self) -> u64 {
        self.core.config.listing_extents as u64
    }

    pub fn space(&self) -> Space {
        let (alloc, log) = (&self.core.alloc, &self.core.log);
        let slot = EXTENT_BYTES as u64;
        Space {
            capacity_bytes: u64::from(alloc.capacity()) * slot,
            used_bytes: u64::from(alloc.used()) * slot,
            free_bytes: alloc.free_unreserved() * slot,
            log_bytes: log.ring_bytes,
            log_used_bytes: log.ring_bytes.saturating_sub(log.wal.free_bytes()),
            overlay_blocks: self.core.members.overlay_blocks(),
            overlay_bytes: self.core.overlay_bytes.bytes(),
            media_faults: self.repair.media_faults + self.fetches.media_faults,
            read_blocks: self.reads.blocks,
            read_overlay_blocks: self.reads.overlay_blocks,
        }
    }

    /// Bytes that applied changes lack, with all soon free slots (rule `space-before-append`: 0).
    pub fn overdrawn_bytes(&self) -> u64 {
        let alloc = &self.core.alloc;
        let overlays = self.core.members.iter().flat_map(|(_, member)| member.overlay.range(..));
        let (mut waiting, mut taken_over) = (0, 0);
        for (_, extent) in overlays {
            waiting += u64::from(extent.reserved && !extent.busy);
            taken_over += u64::from(extent.bypassed().is_some());
        }
        let free = u64::from(alloc.capacity() - alloc.used());
        let obtainable = free + alloc.named_only().saturating_sub(taken_over);
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
    /// Bytes of memory for these, without payloads.
    pub overlay_bytes: u64,
    /// Reads since the start without an intact copy here.
    pub media_faults: u64,
    /// Blocks that reads asked for since the start, without holes.
    pub read_blocks: u64,
    /// Part of `read_blocks` that came from the overlay: from memory or from the log.
    pub read_overlay_blocks: u64,
}
