//! What all parts of a lane share: members, allocator, log, cached records and payloads, I/O and
//! clock. Parts borrow it; it knows none of them. Where a part is to act later because of another,
//! a note is left here for it: extents to be written back, a checkpoint to be considered.

use std::collections::{BTreeSet, VecDeque};

use crate::io::buffer::Pool;
use crate::planted::{Mistake, planted};
use crate::store::alloc::Allocator;
use crate::store::effects::Io;
use crate::store::index::cache::RecordCache;
use crate::store::log::{LaneLog, confirm_appends};
use crate::store::member::{Member, Members, PendingAppend, Phase};
use crate::store::overlay::PayloadCache;
use crate::store::seam::AppendRequest;
use crate::store::wal::BatchSeq;
use crate::types::{Extent, MemberId, Mono};

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

/// See the module.
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
    /// Extents with overlay blocks, oldest first; each once. Write-back takes them.
    pub dirty: VecDeque<(MemberId, Extent)>,
    /// Something was committed to the index since the newest flush.
    pub unflushed: bool,
    /// The checkpoint's last look at the ring is out of date for another reason than its fill.
    pub stale: bool,
    pub io: Io,
    pub clock: Clock,
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
    /// The newest change before which everything is written back and durable.
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

    /// Something changed although nothing was applied: it is to become durable, too.
    pub(super) fn unsettle(&mut self) {
        self.settled = Mono::default();
    }
}

impl Core {
    /// `None`: the disk failed, and nothing is done any more.
    pub(super) fn running(&mut self) -> Option<&mut Core> {
        (!self.io.poisoned()).then_some(self)
    }

    pub(super) fn live(&self, member: MemberId) -> Option<&Member> {
        self.members.get(&member).filter(|found| found.phase == Phase::Live)
    }

    pub(super) fn live_mut(&mut self, member: MemberId) -> Option<&mut Member> {
        self.members.get_mut(&member).filter(|found| found.phase == Phase::Live)
    }

    /// True while a member waits for its overlay to be written back.
    pub(super) fn is_draining(&self) -> bool {
        self.members.values().any(|member| member.task.is_some())
    }

    /// Notes an append; what is left of it is to be put into the log.
    pub(super) fn expect_append(&mut self, mut request: AppendRequest) -> Option<AppendRequest> {
        let member = self.members.get_mut(&request.member)?;
        if matches!(member.phase, Phase::Destroying | Phase::Faulted) {
            return None;
        }
        assert_eq!(member.phase, Phase::Live, "appended before it was created");
        self.clock.changed = true;
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
            confirm_appends(member, &mut self.io);
        }
        (!empty).then_some(request)
    }

    /// Puts an append of a live member into the log.
    pub(super) fn append(&mut self, request: AppendRequest) {
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

    /// Keeps the write-back queue and the reservation of one extent in step with its overlay.
    pub(super) fn overlay_changed(&mut self, member: MemberId, extent: Extent) {
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
            self.dirty.push_back((member, extent));
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

    /// See [`crate::store::lane::Lane::is_destroyed`].
    pub(super) fn is_destroyed(&self, member: MemberId) -> bool {
        self.tombstones.contains(&member) && !planted(Mistake::EmptyMemberVotes)
    }
}
