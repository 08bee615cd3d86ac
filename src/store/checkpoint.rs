//! Checkpoints: a flush of the index makes what was written back durable; then the freed slots
//! may be used again (rule R4), and the tail of the log moves: first in the superblock, durably,
//! and only then in the ring (R8). Also the pacing of write-back, and what keeps an idle or stuck
//! member from holding the tail: a HardState or an image of the lane's own.

use std::time::Duration;

use crate::log::HardState;
use crate::planted::{Mistake, planted};
use crate::store::effects::Pending;
use crate::store::groups::{Group, GroupKind, Unplaced};
use crate::store::lane::Lane;
use crate::store::member::{Member, Phase};
use crate::store::seam::{Event, IndexEdit, IndexJob, LaneFile, Slot};
use crate::store::superblock::{self, Superblock};
use crate::store::wal::{BatchSeq, Item};
use crate::types::{EXTENT_BYTES, MemberId, Mono};

/// Without a change for this long, everything is written back.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// Extents of one round, from a gentle one to one that fights for room.
const EXTENTS_MIN: usize = 8;
const EXTENTS_MAX: usize = 256;
/// Data writes under way at the same time.
const WRITES_MIN: usize = 4;
const WRITES_MAX: usize = 32;

/// See the module.
#[derive(Default)]
pub(super) struct Checkpoint {
    /// From the flush until the superblock is written.
    running: bool,
    /// The superblock that is being written.
    next: Option<Superblock>,
    /// Something was committed to the index since the newest flush.
    pub unflushed: bool,
    /// The last look at the ring is out of date for another reason than its fill.
    pub stale: bool,
    /// Bytes of the ring in use, and in slots that it names, at the last look.
    looked_at_bytes: u64,
    /// Slots that were ever named, at the newest flush.
    named_ever: u64,
    /// The newest change before which everything is written back and durable.
    settled: Mono,
}

/// What a flush of the index makes durable.
pub(super) struct FlushPoint {
    freed: Vec<Slot>,
    flushed: Vec<(MemberId, u64)>,
    after: AfterFlush,
}

/// Why the index was flushed.
#[derive(Clone, Copy, Debug)]
pub(super) enum AfterFlush {
    Checkpoint,
    Created(MemberId),
    /// Another change of a member's record.
    Recorded(MemberId),
    Destroyed(MemberId),
    Faulted(MemberId),
}

impl Checkpoint {
    /// Something changed although nothing was applied: it is to become durable, too.
    pub(super) fn unsettle(&mut self) {
        self.settled = Mono::default();
    }
}

/// How full the ring is.
struct Fill {
    ring: u64,
    used: u64,
    /// Of `used`, what a checkpoint now would give back.
    reclaimable: u64,
    /// Bytes of slots that entries of the log name.
    named: u64,
    /// Of those, what was named since the newest flush.
    named_since: u64,
}

impl Lane {
    /// Commits these edits and the members' marks, and flushes the index.
    pub(super) fn flush(&mut self, mut edits: Vec<IndexEdit>, after: AfterFlush) {
        let mut flushed = Vec::new();
        for (id, member) in &mut self.members {
            if member.phase != Phase::Live {
                continue;
            }
            if member.advance_record() {
                edits.push(IndexEdit::PutMember(member.record.clone()));
            }
            if member.record.flushed_index != member.durable_flushed {
                flushed.push((*id, member.record.flushed_index));
            }
        }
        self.checkpoint.unflushed = false;
        self.checkpoint.named_ever = self.alloc.named().1;
        let point = FlushPoint { freed: self.alloc.take_freed(), flushed, after };
        let flush = true;
        let job = IndexJob::Commit { edits, flush };
        self.io.index(Pending::Flush(point), job);
    }

    pub(super) fn flushed(&mut self, point: FlushPoint) {
        self.alloc.reusable(point.freed);
        self.writeback.starved = false;
        self.checkpoint.stale = true;
        for (id, flushed) in point.flushed {
            if let Some(member) = self.members.get_mut(&id) {
                member.durable_flushed = flushed.max(member.durable_flushed);
                let term = member.record.flushed_term;
                let reserved = match flushed == member.record.flushed_index {
                    true => member.log.compact_to(flushed, term),
                    false => member.log.compact(flushed),
                };
                self.alloc.unreserve(reserved);
                for slot in member.log.take_left() {
                    self.alloc.release_named(slot);
                }
            }
        }
        self.unpark();
        match point.after {
            AfterFlush::Checkpoint => self.write_superblock(),
            AfterFlush::Created(member) => {
                let created = self.members.get_mut(&member);
                if let Some(created) = created.filter(|found| found.phase == Phase::Creating) {
                    created.phase = Phase::Live;
                    self.io.events.push(Event::MemberDurable { member });
                }
            }
            AfterFlush::Recorded(member) => {
                // Whoever has it destroyed meanwhile waits for the end of that.
                let doomed = |found: &Member| found.phase == Phase::Destroying;
                if !self.members.get(&member).is_some_and(doomed) {
                    self.io.events.push(Event::MemberDurable { member });
                }
            }
            AfterFlush::Destroyed(member) => self.destroyed(member),
            AfterFlush::Faulted(member) => self.faulted(member),
        }
    }

    /// The oldest batch that recovery would need: of what is durable now, or of what a checkpoint
    /// would make durable.
    fn tail_target(&self, after_checkpoint: bool) -> BatchSeq {
        let needed = self.members.values().filter_map(|member| {
            let flushed = match after_checkpoint {
                true => member.flushed(),
                false => member.durable_flushed,
            };
            member.oldest_needed(flushed)
        });
        let pinned = self.log.pins.keys().next().copied();
        let oldest = needed.chain(pinned).min();
        // The newest durable batch is always kept.
        let durable = self.log.wal.newest_durable_kept();
        oldest.map_or(durable, |oldest| oldest.min(durable))
    }

    fn write_superblock(&mut self) {
        let target = self.tail_target(false);
        if target <= self.log.wal.tail().0 {
            self.checkpoint.running = false;
            return;
        }
        let next = Superblock {
            sequence: self.superblock.sequence + 1,
            tail_seq: target.0,
            tail_offset: self.log.wal.offset_of(target),
            durable_seq: self.log.wal.durable_seq().0,
            ..self.superblock.clone()
        };
        if planted(Mistake::TailBeforeSuperblock) {
            self.log.wal.release_to(target);
        }
        self.write_superblock_half(&next, Pending::SuperblockFirst, 0);
        self.checkpoint.next = Some(next);
    }

    /// Two copies at a time: whatever becomes of one write, two copies agree.
    fn write_superblock_half(&mut self, next: &Superblock, pending: Pending, half: usize) {
        let copies = superblock::encode(next);
        let bytes = copies[2 * half..2 * half + 2].concat();
        let bufs = vec![self.pool.copy(&bytes)];
        let offset = (half * bytes.len()) as u64;
        self.io.write(pending, LaneFile::Superblock, offset, bufs, true);
    }

    pub(super) fn superblock_half_written(&mut self) {
        let next = self.checkpoint.next.clone().expect("being written");
        self.write_superblock_half(&next, Pending::SuperblockSecond, 1);
    }

    /// The new tail is durable: now the ring may overwrite what is before it.
    pub(super) fn superblock_written(&mut self) {
        self.superblock = self.checkpoint.next.take().expect("being written");
        self.log.wal.release_to(BatchSeq(self.superblock.tail_seq));
        self.checkpoint.running = false;
        self.checkpoint.stale = true;
    }

    /// Starts what the fill of the ring, idleness, installs and destroyed members ask for.
    pub(super) fn pace(&mut self) {
        self.continue_members();
        if self.writeback.round.is_none()
            && let Some(install) = self.writeback.installs.pop_front()
        {
            self.start_install(install, WRITES_MAX);
        }
        if self.writeback.round.is_none()
            && let Some((key, content)) = self.next_move()
        {
            self.start_move(key, content);
        }
        let idle = self.clock.now >= self.clock.last_change + IDLE_AFTER
            && self.checkpoint.settled < self.clock.last_change;
        let draining = self.is_draining();
        let used = self.log_used_bytes();
        let named = self.alloc.named().0 * EXTENT_BYTES as u64;
        let looked_at = self.checkpoint.looked_at_bytes;
        let moved = (used + named).abs_diff(looked_at) >= self.log.ring_bytes / 256;
        if !(idle || draining || moved || self.checkpoint.stale) {
            return;
        }
        self.checkpoint.looked_at_bytes = used + named;
        self.checkpoint.stale = false;
        let fill = self.fill(used);
        if idle || draining || fill.pressure() > 0.0 {
            self.cover_applied();
        }
        self.pace_writeback(&fill, idle || draining);
        self.pace_checkpoint(&fill, idle);
        if fill.used > fill.ring / 2 && !self.checkpoint.running {
            self.push_image();
        }
        if idle && self.is_settled() {
            self.checkpoint.settled = self.clock.last_change;
        }
    }

    fn pace_writeback(&mut self, fill: &Fill, at_once: bool) {
        if self.writeback.round.is_some() || self.writeback.queue.is_empty() {
            return;
        }
        let pressure = fill.pressure();
        if pressure <= 0.0 && !at_once {
            return;
        }
        let between = |low: usize, high: usize| {
            let share = (high - low) as f64 * pressure.min(1.0);
            low + share as usize
        };
        let extents = between(EXTENTS_MIN, EXTENTS_MAX);
        let writes = between(WRITES_MIN, WRITES_MAX);
        self.start_writeback(extents, writes);
    }

    fn pace_checkpoint(&mut self, fill: &Fill, idle: bool) {
        if self.checkpoint.running {
            return;
        }
        // A flush would let go of entries of the log, and of the slots that they name.
        let progress = || self.members.values().any(|m| m.flushed() > m.durable_flushed);
        let slots_short = self.alloc.has_freed()
            && (self.writeback.starved
                || self.alloc.free_unreserved() < u64::from(self.alloc.capacity() / 16));
        let nothing_left = self.writeback.round.is_none() && self.writeback.queue.is_empty();
        // What waits to be mended, or for a read, would keep a checkpoint from being the last one.
        let waits = self.mends.has_parked() || self.is_log_read();
        let at_rest = idle && nothing_left && !self.is_settled() && !waits;
        let worth = match fill.used > fill.ring / 2 {
            true => fill.ring / 32,
            false => fill.ring / 8,
        };
        // Not for every slot: only when there are many, or when somebody waits for one.
        let many_of_few = u64::from(self.alloc.capacity() / 32).max(8) * EXTENT_BYTES as u64;
        let named_many = (fill.named_since >= (fill.ring / 4).min(many_of_few)
            || (fill.named > 0 && self.writeback.starved))
            && progress();
        let wanted = !self.writeback.parked.is_empty() && progress();
        if fill.reclaimable >= worth || slots_short || named_many || wanted || at_rest {
            self.checkpoint.running = true;
            self.flush(Vec::new(), AfterFlush::Checkpoint);
        }
    }

    /// True when a checkpoint would change nothing that is durable.
    fn is_settled(&self) -> bool {
        let settled = |member: &crate::store::member::Member| {
            let at_rest = member.overlay.is_empty()
                && member.flushed() == member.durable_flushed
                && member.hard.durable_commit >= member.applied_index
                && !member.hard.own_under_way;
            at_rest || member.phase == Phase::Faulted
        };
        !self.checkpoint.unflushed
            && !self.checkpoint.running
            && self.writeback.round.is_none()
            && !self.alloc.has_freed()
            && !self.is_log_read()
            && self.members.values().all(settled)
            && self.tail_target(false) <= self.log.wal.tail().0
    }

    /// A read of the log holds the tail, and nothing happens when it ends: until then there is
    /// something to wait for.
    fn is_log_read(&self) -> bool {
        !self.log.pins.is_empty() && !planted(Mistake::SettledWhileRead)
    }

    fn log_used_bytes(&self) -> u64 {
        let usable = self.log.ring_bytes - self.log.reserve_bytes;
        usable.saturating_sub(self.log.wal.free_bytes())
    }

    fn fill(&self, used: u64) -> Fill {
        let ring = self.log.ring_bytes;
        let (tail, tail_offset) = self.log.wal.tail();
        let target = self.tail_target(true);
        let reclaimable = match target > tail {
            true => (self.log.wal.offset_of(target) + ring - tail_offset) % ring,
            false => 0,
        };
        let (named, ever) = self.alloc.named();
        Fill {
            ring,
            used,
            reclaimable,
            named: named * EXTENT_BYTES as u64,
            named_since: (ever - self.checkpoint.named_ever) * EXTENT_BYTES as u64,
        }
    }

    /// Where entries are applied that no durable HardState covers yet, writes one: Raft does not
    /// write a batch only for a higher commit, and without one nothing may be written back (R7).
    fn cover_applied(&mut self) {
        for (id, member) in &mut self.members {
            let (applied_index, is_ahead) = (member.applied_index, member.is_ahead());
            let hard = &mut member.hard;
            let behind = hard.durable_commit < applied_index;
            if !behind
                || is_ahead
                || hard.own_under_way
                || hard.groups_under_way > 0
                || member.phase != Phase::Live
            {
                continue;
            }
            hard.newest.commit = hard.newest.commit.max(applied_index);
            hard.own_under_way = true;
            hard.groups_under_way += 1;
            let group = self.log.groups.next_id();
            let item = Item::Hard { member: *id, hard: hard.newest };
            self.log.groups.push(Group {
                id: group,
                member: *id,
                kind: GroupKind::OwnHard,
                commit: Some(hard.newest.commit),
                not_before: self.log.wal.next_seq(),
                left: Vec::new(),
            });
            self.log.wal.push(group, vec![item]);
        }
    }

    /// Moves everything that recovery needs of the member that holds the tail to the head of the
    /// ring (rule R8): a stuck member's unapplied entries, an idle one's HardState.
    fn push_image(&mut self) {
        let tail = self.tail_target(true);
        let holder = self.members.iter().find(|(_, member)| {
            let needed = member.oldest_needed(member.durable_flushed);
            let durable = self.log.wal.durable_seq();
            needed.is_some_and(|seq| seq <= tail && seq < durable)
                && member.phase == Phase::Live
                && member.log.hold.is_none()
                && member.hard.groups_under_way == 0
                && member.durable_flushed == member.applied_index
        });
        let Some((id, _)) = holder else { return };
        let id = *id;
        let image_bytes_max = self.image_bytes_max();
        let member = self.members.get_mut(&id).expect("just found");
        if member.log.unapplied_bytes() > image_bytes_max {
            return;
        }
        let compacted = member.durable_flushed;
        let mut entries = Vec::new();
        for (_, retained) in member.log.from(compacted + 1) {
            let Some(entry) = &retained.unapplied else {
                return;
            };
            entries.push((**entry).clone());
        }
        for (index, retained) in member.log.from(compacted + 1) {
            self.log.groups.expect(Unplaced {
                member: id,
                index,
                push: retained.push,
                image: true,
            });
        }
        let term = member.log.term(compacted).expect("the base of the log");
        let hard = HardState { commit: member.known_commit(), ..member.hard.newest };
        member.hard.newest = hard;
        member.hard.own_under_way = true;
        member.hard.groups_under_way += 1;
        let group = self.log.groups.next_id();
        self.log.groups.push(Group {
            id: group,
            member: id,
            kind: GroupKind::Image { places: Vec::new() },
            commit: Some(hard.commit),
            not_before: self.log.wal.next_seq(),
            left: Vec::new(),
        });
        let image = Item::Image {
            member: id,
            hard,
            compacted_index: compacted,
            compacted_term: term,
            entries,
        };
        self.log.wal.push(group, vec![image]);
    }

    pub(super) fn pace_deadline(&self) -> Option<Mono> {
        let at = self.clock.last_change + IDLE_AFTER;
        let unsettled = self.checkpoint.settled < self.clock.last_change;
        (unsettled && at > self.clock.now).then_some(at)
    }
}

impl Fill {
    /// 0: write-back may rest; 1: it should do all it can. Proportional in between, so that it
    /// comes in no bursts.
    fn pressure(&self) -> f64 {
        // What went to slots instead of the log is written back as if it were in there: it is
        // memory of the overlay, and work for the next start.
        let pinned = self.used.saturating_sub(self.reclaimable).max(self.named);
        let pinned = pinned as f64 / self.ring as f64;
        const REST_BELOW: f64 = 0.5;
        const ALL_ABOVE: f64 = 0.85;
        ((pinned - REST_BELOW) / (ALL_ABOVE - REST_BELOW)).max(0.0)
    }
}
