//! Admission: checks whether log, overlay and disk have room for a change, beyond everything
//! promised before (rules `log-reserve`, `overlay-is-bounded` and `space-before-append`).
//!
//! Owns admitted changes that are not appended; may borrow the core; hears of members' appends.

use std::cell::Cell;

use crate::limits::ZERO_EXTENTS_UNAPPLIED_MAX;
use crate::planted::planted;
use crate::store::core::Core;
use crate::store::member::LaneMember;
use crate::types::{BLOCK_BYTES, BlockRange, MemberId, Unappended, ZERO_EXTENT_BYTES};

/// What a change needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand<'a> {
    /// Payload for the log, and the blocks that it is for. No blocks: it needs no slot.
    pub payload_bytes: u64,
    pub ranges: &'a [BlockRange],
    /// Extents that are zeroed or trimmed.
    pub zero_extents: u64,
}

impl<'a> Demand<'a> {
    /// What a write of these blocks needs.
    pub fn write(payload_bytes: u64, ranges: &'a [BlockRange]) -> Demand<'a> {
        Demand { payload_bytes, ranges, zero_extents: 0 }
    }

    /// What a trim of so many extents needs.
    pub fn zero(zero_extents: u64) -> Demand<'a> {
        Demand { zero_extents, ..Demand::default() }
    }
}

/// Where a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client: it is to be proposed here.
    Client,
    /// The leader of its own term. It is refused later than a client's, as a refusal costs the
    /// leader a round of heartbeats.
    Leader,
    /// A leader, as an entry of an earlier term. Until a majority has these, nothing of this term
    /// is committed or applied. A restart forgets the newest commit index, so they can be more than
    /// were ever admitted. As many as a log snapshot holds are taken, whatever other members have
    /// (rule `full-log-still-commits`).
    EarlierTerm,
}

/// Parts of the overlays' bound beyond which trims, and then writes, are refused: a client's, and
/// one that the leader sent.
pub(super) const OVERLAY_ZEROES: f64 = 0.625;
const OVERLAY_ZEROES_SENT: f64 = 0.75;
const OVERLAY_WRITES: f64 = 0.875;
const OVERLAY_WRITES_SENT: f64 = 1.0;

/// Why a change is refused now (rules `log-reserve`, `overlay-is-bounded`, `space-before-append`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log or the overlay is full until write-back or log snapshots make room, or slots are
    /// being given back: retry.
    LogFull,
    /// The data file has no slot left for the change.
    NoSpace,
}

#[derive(Default)]
pub(super) struct Admission {
    /// Appends that all members still had to make at the last poll.
    unappended: Unappended,
    /// Slots admitted and not reserved by an append: at the last poll, plus those admitted since.
    pub slots: Cell<u64>,
    /// Payload bytes admitted and not appended at the last poll, plus all bytes admitted since.
    bytes: Cell<u64>,
    /// Extents to be zeroed that were admitted since the last poll.
    zeroes: Cell<u64>,
}

impl Admission {
    /// Once per round: counts the unapplied and the unappended payloads of all members.
    pub(super) fn count(&mut self, core: &mut Core) {
        let totals = core.members.totals();
        let unappended = totals.unappended;
        core.log.unapplied_bytes = totals.unapplied_bytes + unappended.payload_bytes;
        self.slots.set(unappended.extents);
        self.bytes.set(unappended.payload_bytes);
        self.zeroes.set(0);
        self.unappended = unappended;
    }

    /// See [`crate::store::lane::Lane::admit`]. `staged_bytes`: log bytes of appends that wait for
    /// their slots to be written.
    pub(super) fn admit(
        &self,
        core: &Core,
        source: Source,
        staged_bytes: u64,
        member: MemberId,
        demand: &Demand,
    ) -> Result<(), Refusal> {
        let payload_bytes = demand.payload_bytes;
        let ring = core.log.ring_bytes;
        // A trim gives space back: it may be logged when writes are refused.
        let headroom = if payload_bytes > 0 { ring / 16 } else { ring / 64 };
        let admitted_bytes = self.bytes.get() + payload_bytes;
        let wanted_bytes = admitted_bytes + staged_bytes + BLOCK_BYTES as u64 + headroom;
        if core.log.wal.free_bytes() < wanted_bytes {
            return Err(Refusal::LogFull);
        }
        let Some(found) = core.members.get(&member) else { return Ok(()) };
        if source != Source::EarlierTerm && !planted!(DiscardUncharged) {
            self.admit_overlay(core, source, found, demand)?;
        }
        if payload_bytes > 0 {
            let since_poll = admitted_bytes - self.unappended.payload_bytes;
            let own = found.log.unapplied_bytes() + found.unappended.payload_bytes;
            // A member without unapplied bytes may have one entry, whatever other members have.
            let is_first = own == 0 && since_poll == payload_bytes;
            let is_first = is_first && payload_bytes <= core.log.log_snapshot_bytes_max();
            let share = match source {
                Source::EarlierTerm => core.log.log_snapshot_bytes_max(),
                // A stuck member may have as many bytes as it leaves to all others.
                _ => (ring / 16).saturating_sub(core.log.unapplied_bytes),
            };
            if own + since_poll + staged_bytes > share && !is_first {
                return Err(Refusal::LogFull);
            }
            let extents = demand.ranges.iter().flat_map(|range| range.extents());
            let wanted = extents.filter(|extent| found.needs_slot(*extent)).count();
            self.admit_slots(core, wanted as u64)?;
            self.bytes.set(admitted_bytes);
        }
        self.zeroes.set(self.zeroes.get() + demand.zero_extents);
        Ok(())
    }

    /// Checks what the overlays will take once everything admitted is applied (rule
    /// `overlay-is-bounded`).
    fn admit_overlay(
        &self,
        core: &Core,
        source: Source,
        found: &LaneMember,
        demand: &Demand,
    ) -> Result<(), Refusal> {
        let (max, since_poll) = (core.config.overlay_bytes_max, self.zeroes.get());
        let zeroes_max = ZERO_EXTENTS_UNAPPLIED_MAX.min(max / 8 / ZERO_EXTENT_BYTES as u64);
        if demand.zero_extents > 0 {
            // As for the log: a stuck member leaves room to all others, and each may have one.
            let share = zeroes_max.saturating_sub(core.unapplied_zeroes);
            let own = found.unapplied_zeroes;
            let is_first = own == 0 && since_poll == 0;
            if own + since_poll + demand.zero_extents > share && !is_first {
                return Err(Refusal::LogFull);
            }
        }
        let by_zeroes = |extents: u64| extents * ZERO_EXTENT_BYTES as u64;
        // A written block takes less than a zeroed extent.
        let by_writes = |bytes: u64| bytes / BLOCK_BYTES as u64 * ZERO_EXTENT_BYTES as u64;
        let admitted_bytes = self.bytes.get() - self.unappended.payload_bytes;
        let unapplied_bytes =
            (core.log.unapplied_bytes + admitted_bytes).min(core.log.ring_bytes / 16);
        let charged = by_zeroes((core.unapplied_zeroes + since_poll).min(zeroes_max))
            + by_writes(unapplied_bytes);
        let limit = match (demand.zero_extents > 0, source) {
            (true, Source::Client) => OVERLAY_ZEROES,
            (true, _) => OVERLAY_ZEROES_SENT,
            (false, Source::Client) => OVERLAY_WRITES,
            (false, _) => OVERLAY_WRITES_SENT,
        };
        let limit = (max as f64 * limit) as u64;
        let (used, own) = (
            core.overlay_bytes.bytes(),
            by_zeroes(demand.zero_extents) + by_writes(demand.payload_bytes),
        );
        // One change always gets through, however small the bound.
        let is_only = charged == 0 && used <= limit / 2;
        if used + charged + own > limit && own > 0 && !is_only {
            return Err(Refusal::LogFull);
        }
        Ok(())
    }

    fn admit_slots(&self, core: &Core, wanted: u64) -> Result<(), Refusal> {
        let admitted = self.slots.get();
        let free = core.alloc.free_unreserved();
        let enough = wanted == 0 || wanted + admitted <= free;
        if !enough && !planted!(AdmittedWithoutSpace) {
            // Unappended entries may take fewer slots than were counted for them, and trims may
            // give some back (rule `trimmed-space-comes-back`).
            let perhaps = wanted + admitted - self.unappended.extents <= free;
            let perhaps = perhaps || core.hopes_for_space();
            return Err(if perhaps { Refusal::LogFull } else { Refusal::NoSpace });
        }
        self.slots.set(admitted + wanted);
        Ok(())
    }
}
