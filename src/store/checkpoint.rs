//! Checkpoints. A flush of the index makes write-back durable. Then the tail of the log moves:
//! first in the superblock, durably, and only then in the ring (rule `tail-after-superblock`). Also
//! decides when a checkpoint is worth it, and paces write-back by the fill of the ring.
//!
//! Owns the superblock and the pace; may borrow the core, and look at write-back and read repair;
//! hears of flushes and writes of the superblock that ended.

use std::time::Duration;

use crate::level::Level;
use crate::planted::planted;
use crate::store::admission::OVERLAY_ZEROES;
use crate::store::core::Core;
use crate::store::effects::{AfterFlush, Pending};
use crate::store::messages::LaneFile;
use crate::store::read_repair::ReadRepair;
use crate::store::superblock::{self, Superblock};
use crate::store::wal::BatchSeq;
use crate::store::writeback::WriteBack;
use crate::types::{EXTENT_BYTES, Mono, ZERO_EXTENT_BYTES};

/// Part of the overlays' bound at which their write-back begins.
const OVERLAY_REST: f64 = 0.375;
/// Without a change for this long, everything is written back.
const IDLE_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Checkpoint {
    pub superblock: Superblock,
    /// The feature level of the cluster. The next superblock has it.
    pub level: Level,
    /// True from the flush until the superblock is written.
    running: bool,
    /// The superblock that is being written.
    next: Option<Superblock>,
    /// Bytes of the ring in use, plus bytes of named slots, at the last look.
    looked_at_bytes: u64,
    /// Bytes of the overlays then.
    looked_at_overlay: u64,
}

/// How full the ring is.
pub(super) struct Fill {
    ring: u64,
    used: u64,
    /// Part of `used` that a checkpoint now would give back.
    reclaimable: u64,
    /// Bytes of slots that log entries name.
    named: u64,
    /// Part of `named` that was named since the newest flush.
    named_since: u64,
    /// Bytes of the overlays, and their bound.
    overlay: u64,
    overlay_max: u64,
    /// The disk is nearly full, and slots can be given back.
    space_waits: bool,
    /// Nothing has changed for a while, and something is not durable yet.
    idle: bool,
    /// Everything is to be written back, however full the ring is.
    pub at_once: bool,
}

impl Checkpoint {
    pub(super) fn new(superblock: Superblock) -> Checkpoint {
        Checkpoint {
            level: superblock.level,
            superblock,
            running: false,
            next: None,
            looked_at_bytes: 0,
            looked_at_overlay: 0,
        }
    }

    /// The flush of a checkpoint ended.
    pub(super) fn flushed(&mut self, core: &mut Core) {
        let target = core.log.tail_target(&mut core.members, false);
        if target <= core.log.wal.tail().0 {
            self.running = false;
            return;
        }
        let next = Superblock {
            sequence: self.superblock.sequence + 1,
            tail_seq: target.0,
            tail_offset: core.log.wal.offset_of(target),
            durable_seq: core.log.wal.durable_seq().0,
            level: self.level,
            ..self.superblock.clone()
        };
        if planted!(TailBeforeSuperblock) {
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
        // The new tail is durable: now the ring may overwrite everything before it.
        core.log.wal.release_to(BatchSeq(next.tail_seq));
        self.superblock = next;
        self.running = false;
        core.stale = true;
    }

    /// Looks at the ring, if there is a reason to.
    pub(super) fn look(&mut self, core: &mut Core) -> Option<Fill> {
        let clock = &core.clock;
        let idle = clock.now >= clock.last_change + IDLE_AFTER && clock.settled < clock.last_change;
        // A resync step that waits for an empty overlay does not wait for a full ring.
        let space_waits = core.space_waits();
        let at_once = idle || space_waits || !core.members.totals().with_task.is_empty();
        let (ring, used) = (core.log.ring_bytes, core.log.used_bytes());
        let (named, named_since) = core.alloc.named();
        let named = named * EXTENT_BYTES as u64;
        let (overlay, overlay_max) = (core.overlay_bytes.bytes(), core.config.overlay_bytes_max);
        let moved = (used + named).abs_diff(self.looked_at_bytes) >= ring / 256
            || overlay.abs_diff(self.looked_at_overlay) >= overlay_max / 256;
        if !(at_once || moved || core.stale) {
            return None;
        }
        self.looked_at_bytes = used + named;
        self.looked_at_overlay = overlay;
        core.stale = false;
        let (tail, tail_offset) = core.log.wal.tail();
        let target = core.log.tail_target(&mut core.members, true);
        let reclaimable = match target > tail {
            true => (core.log.wal.offset_of(target) + ring - tail_offset) % ring,
            false => 0,
        };
        let named_since = named_since * EXTENT_BYTES as u64;
        Some(Fill {
            ring,
            used,
            reclaimable,
            named,
            named_since,
            overlay,
            overlay_max,
            space_waits,
            idle,
            at_once,
        })
    }

    /// Starts a checkpoint if it is worth it, and makes room in the ring.
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
            core.log.push_log_snapshots(&mut core.members);
        }
        if fill.idle && self.is_settled(core, writeback) {
            core.clock.settled = core.clock.last_change;
        }
    }

    fn is_due(
        &self,
        core: &mut Core,
        writeback: &WriteBack,
        repair: &ReadRepair,
        fill: &Fill,
    ) -> bool {
        // True if a flush would let the log drop entries, and the slots that they name.
        let progress = !core.members.totals().unflushed.is_empty();
        let slots_short = core.alloc.has_freed()
            && (writeback.starved
                || (core.hopes_for_space() && core.slots_are_low())
                || core.alloc.free_unreserved() < u64::from(core.alloc.capacity() / 16));
        let nothing_left = !writeback.is_busy() && core.dirty.is_empty();
        // While a repair or a read of the log is in flight, this would not be the last one.
        let waits = !repair.parked.is_empty() || core.log.is_read();
        let at_rest = fill.idle && nothing_left && !self.is_settled(core, writeback) && !waits;
        let worth = match fill.used > fill.ring / 2 {
            true => fill.ring / 32,
            false => fill.ring / 8,
        };
        // Not for every slot: only for many, or when write-back lacks slots.
        let many_of_few = u64::from(core.alloc.capacity() / 32).max(8) * EXTENT_BYTES as u64;
        let named_many = (fill.named_since >= (fill.ring / 4).min(many_of_few)
            || (fill.named > 0 && (writeback.starved || fill.space_waits)))
            && progress;
        let wanted = !writeback.parked.is_empty() && progress;
        // A restart replays what was written back since, into the overlay again.
        let settled = core.settled_extents * ZERO_EXTENT_BYTES as u64;
        let replayed_many = settled >= fill.overlay_max / 4 && progress;
        fill.reclaimable >= worth || slots_short || named_many || wanted || replayed_many || at_rest
    }

    /// True when a checkpoint would change nothing that is durable.
    fn is_settled(&self, core: &mut Core, writeback: &WriteBack) -> bool {
        !core.unflushed
            && !self.running
            && !writeback.is_busy()
            && !core.alloc.has_freed()
            && !core.log.is_read()
            && core.members.totals().unsettled.is_empty()
            && core.log.tail_target(&mut core.members, false) <= core.log.wal.tail().0
    }
}

/// When the lane counts as idle, if that is still to come and would change anything.
pub(super) fn idle_at(core: &Core) -> Option<Mono> {
    let at = core.clock.last_change + IDLE_AFTER;
    let unsettled = core.clock.settled < core.clock.last_change;
    (unsettled && at > core.clock.now).then_some(at)
}

/// Two copies at a time: if one write fails, the other two copies agree.
fn write_half(core: &mut Core, next: &Superblock, half: usize) {
    let copies = superblock::encode(next);
    let bytes = copies[2 * half..2 * half + 2].concat();
    let bufs = vec![core.pool.copy(&bytes)];
    let offset = (half * bytes.len()) as u64;
    core.io.write(Pending::Superblock { half }, LaneFile::Superblock, offset, bufs, true);
}

impl Fill {
    /// 0: write-back may rest; 1: it does all it can. Proportional in between, to avoid bursts.
    pub(super) fn pressure(&self) -> f64 {
        // Bypassed payload counts, too: it takes memory of the overlay, and time of the next start.
        let pinned = self.used.saturating_sub(self.reclaimable).max(self.named);
        let pinned = pinned as f64 / self.ring as f64;
        const REST_BELOW: f64 = 0.5;
        const ALL_ABOVE: f64 = 0.85;
        let by_log = (pinned - REST_BELOW) / (ALL_ABOVE - REST_BELOW);
        // It does all it can before trims are refused.
        let overlay = self.overlay as f64 / self.overlay_max as f64;
        let by_overlay = (overlay - OVERLAY_REST) / (OVERLAY_ZEROES - OVERLAY_REST);
        let by_space = if self.space_waits { 1.0 } else { 0.0 };
        by_log.max(by_overlay).max(by_space)
    }
}
