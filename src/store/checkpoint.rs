//! Checkpoints: a flush of the index makes what was written back durable, and the tail of the log
//! moves: first in the superblock, durably, and only then in the ring (R8). Also when all of that
//! is worth it, and how hard write-back has to work, by how full the ring is.
//!
//! Owns the superblock and the pace; may borrow the core, and look at write-back and read repair;
//! is told of flushes that ended, and of writes of the superblock.

use std::time::Duration;

use crate::planted::{Mistake, planted};
use crate::store::core::Core;
use crate::store::effects::{AfterFlush, Pending};
use crate::store::mend::ReadRepair;
use crate::store::seam::LaneFile;
use crate::store::superblock::{self, Superblock};
use crate::store::wal::BatchSeq;
use crate::store::writeback::WriteBack;
use crate::types::{EXTENT_BYTES, Mono};

/// Without a change for this long, everything is written back.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Checkpoint {
    /// As it is on the disk.
    pub superblock: Superblock,
    /// From the flush until the superblock is written.
    running: bool,
    /// The superblock that is being written.
    next: Option<Superblock>,
    /// Bytes of the ring in use, and in slots that it names, at the last look.
    looked_at_bytes: u64,
}

/// How full the ring is.
pub(super) struct Fill {
    ring: u64,
    used: u64,
    /// Of `used`, what a checkpoint now would give back.
    reclaimable: u64,
    /// Bytes of slots that entries of the log name.
    named: u64,
    /// Of those, what was named since the newest flush.
    named_since: u64,
    /// Nothing has changed for a while, and something is not durable yet.
    idle: bool,
    /// All of it is to be written back, however full the ring is.
    pub at_once: bool,
}

impl Checkpoint {
    pub(super) fn new(superblock: Superblock) -> Checkpoint {
        Checkpoint { superblock, running: false, next: None, looked_at_bytes: 0 }
    }

    /// The flush of a checkpoint ended.
    pub(super) fn flushed(&mut self, core: &mut Core) {
        let target = core.log.tail_target(&core.members, false);
        if target <= core.log.wal.tail().0 {
            self.running = false;
            return;
        }
        let next = Superblock {
            sequence: self.superblock.sequence + 1,
            tail_seq: target.0,
            tail_offset: core.log.wal.offset_of(target),
            durable_seq: core.log.wal.durable_seq().0,
            ..self.superblock.clone()
        };
        if planted(Mistake::TailBeforeSuperblock) {
            core.log.wal.release_to(target);
        }
        write_half(core, &next, 0);
        self.next = Some(next);
    }

    /// Two of the superblock's copies are durable.
    pub(super) fn written(&mut self, core: &mut Core, half: usize) {
        let next = self.next.take().expect("being written");
        if half == 0 {
            write_half(core, &next, 1);
            self.next = Some(next);
            return;
        }
        // The new tail is durable: now the ring may overwrite what is before it.
        core.log.wal.release_to(BatchSeq(next.tail_seq));
        self.superblock = next;
        self.running = false;
        core.stale = true;
    }

    /// Looks at the ring, when there is a reason to.
    pub(super) fn look(&mut self, core: &mut Core) -> Option<Fill> {
        let clock = &core.clock;
        let idle = clock.now >= clock.last_change + IDLE_AFTER && clock.settled < clock.last_change;
        // A member that waits for its overlay to be written back does not wait for the ring.
        let at_once = idle || core.members.values().any(|member| member.task.is_some());
        let (ring, used) = (core.log.ring_bytes, core.log.used_bytes());
        let (named, named_since) = core.alloc.named();
        let named = named * EXTENT_BYTES as u64;
        let moved = (used + named).abs_diff(self.looked_at_bytes) >= ring / 256;
        if !(at_once || moved || core.stale) {
            return None;
        }
        self.looked_at_bytes = used + named;
        core.stale = false;
        let (tail, tail_offset) = core.log.wal.tail();
        let target = core.log.tail_target(&core.members, true);
        let reclaimable = match target > tail {
            true => (core.log.wal.offset_of(target) + ring - tail_offset) % ring,
            false => 0,
        };
        let named_since = named_since * EXTENT_BYTES as u64;
        Some(Fill { ring, used, reclaimable, named, named_since, idle, at_once })
    }

    /// Starts a checkpoint, if it is worth one, and makes room in the ring.
    pub(super) fn pace(
        &mut self,
        core: &mut Core,
        writeback: &WriteBack,
        repair: &ReadRepair,
        fill: &Fill,
    ) {
        if !self.running && self.is_due(core, writeback, repair, fill) {
            self.running = true;
            core.flush(Vec::new(), AfterFlush::Checkpoint);
        }
        if fill.used > fill.ring / 2 && !self.running {
            core.log.push_image(&mut core.members);
        }
        if fill.idle && self.is_settled(core, writeback) {
            core.clock.settled = core.clock.last_change;
        }
    }

    fn is_due(&self, core: &Core, writeback: &WriteBack, repair: &ReadRepair, fill: &Fill) -> bool {
        // A flush would let go of entries of the log, and of the slots that they name.
        let progress = || core.members.values().any(|m| m.flushed() > m.durable_flushed);
        let slots_short = core.alloc.has_freed()
            && (writeback.starved
                || core.alloc.free_unreserved() < u64::from(core.alloc.capacity() / 16));
        let nothing_left = !writeback.is_busy() && core.dirty.is_empty();
        // What waits for read repair, or for a read, would keep a checkpoint from being the last.
        let waits = !repair.parked.is_empty() || core.log.is_read();
        let at_rest = fill.idle && nothing_left && !self.is_settled(core, writeback) && !waits;
        let worth = match fill.used > fill.ring / 2 {
            true => fill.ring / 32,
            false => fill.ring / 8,
        };
        // Not for every slot: only when there are many, or when somebody waits for one.
        let many_of_few = u64::from(core.alloc.capacity() / 32).max(8) * EXTENT_BYTES as u64;
        let named_many = (fill.named_since >= (fill.ring / 4).min(many_of_few)
            || (fill.named > 0 && writeback.starved))
            && progress();
        let wanted = !writeback.parked.is_empty() && progress();
        fill.reclaimable >= worth || slots_short || named_many || wanted || at_rest
    }

    /// True when a checkpoint would change nothing that is durable.
    fn is_settled(&self, core: &Core, writeback: &WriteBack) -> bool {
        !core.unflushed
            && !self.running
            && !writeback.is_busy()
            && !core.alloc.has_freed()
            && !core.log.is_read()
            && core.members.values().all(|member| member.is_settled())
            && core.log.tail_target(&core.members, false) <= core.log.wal.tail().0
    }
}

/// When the lane counts as idle, if that is still to come and would change anything.
pub(super) fn idle_at(core: &Core) -> Option<Mono> {
    let at = core.clock.last_change + IDLE_AFTER;
    let unsettled = core.clock.settled < core.clock.last_change;
    (unsettled && at > core.clock.now).then_some(at)
}

/// Two copies at a time: whatever becomes of one write, two copies agree.
fn write_half(core: &mut Core, next: &Superblock, half: usize) {
    let copies = superblock::encode(next);
    let bytes = copies[2 * half..2 * half + 2].concat();
    let bufs = vec![core.pool.copy(&bytes)];
    let offset = (half * bytes.len()) as u64;
    core.io.write(Pending::Superblock { half }, LaneFile::Superblock, offset, bufs, true);
}

impl Fill {
    /// 0: write-back may rest; 1: it should do all it can. Proportional in between, so that it
    /// comes in no bursts.
    pub(super) fn pressure(&self) -> f64 {
        // What went to slots instead of the log is written back as if it were in there: it is
        // memory of the overlay, and work for the next start.
        let pinned = self.used.saturating_sub(self.reclaimable).max(self.named);
        let pinned = pinned as f64 / self.ring as f64;
        const REST_BELOW: f64 = 0.5;
        const ALL_ABOVE: f64 = 0.85;
        ((pinned - REST_BELOW) / (ALL_ABOVE - REST_BELOW)).max(0.0)
    }
}
