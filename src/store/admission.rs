//! Admission: checks whether log and disk have room for a change, beyond everything promised before
//! (rules `log-reserve` and `space-before-append`).
//!
//! Owns admitted changes that are not appended; may borrow the core; hears of members' appends.

use std::cell::Cell;

use crate::planted::planted;
use crate::store::core::Core;
use crate::types::{BLOCK_BYTES, BlockRange, MemberId, Unappended};

/// Why a change is refused now (rules `log-reserve` and `space-before-append`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log is full until write-back or log snapshots make room: retry.
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
}

impl Admission {
    /// Once per round: counts the unapplied and the unappended payloads of all members.
    pub(super) fn count(&mut self, core: &mut Core) {
        let totals = core.members.totals();
        let unappended = totals.unappended;
        core.log.unapplied_bytes = totals.unapplied_bytes + unappended.payload_bytes;
        self.slots.set(unappended.extents);
        self.bytes.set(unappended.payload_bytes);
        self.unappended = unappended;
    }

    /// See [`crate::store::lane::Lane::admit`]. `share`: bytes that may be unapplied;
    /// `staged_bytes`: log bytes of appends that wait for their slots to be written.
    pub(super) fn admit(
        &self,
        core: &Core,
        share: u64,
        staged_bytes: u64,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Result<(), Refusal> {
        let ring = core.log.ring_bytes;
        // A trim gives space back: it may be logged when writes are refused.
        let headroom = if payload_bytes > 0 { ring / 16 } else { ring / 64 };
        let admitted_bytes = self.bytes.get() + payload_bytes;
        let wanted_bytes = admitted_bytes + staged_bytes + BLOCK_BYTES as u64 + headroom;
        if core.log.wal.free_bytes() < wanted_bytes {
            return Err(Refusal::LogFull);
        }
        let Some(found) = core.members.get(&member).filter(|_| payload_bytes > 0) else {
            return Ok(());
        };
        let since_poll = admitted_bytes - self.unappended.payload_bytes;
        let own = found.log.unapplied_bytes() + found.unappended.payload_bytes;
        // A member without unapplied bytes may have one entry, whatever other members have.
        let is_first = own == 0 && since_poll == payload_bytes;
        let is_first = is_first && payload_bytes <= core.log.log_snapshot_bytes_max();
        if own + since_poll + staged_bytes > share && !is_first {
            return Err(Refusal::LogFull);
        }
        let extents = ranges.iter().flat_map(|range| range.extents());
        self.admit_slots(core, extents.filter(|extent| found.needs_slot(*extent)).count() as u64)?;
        self.bytes.set(admitted_bytes);
        Ok(())
    }

    fn admit_slots(&self, core: &Core, wanted: u64) -> Result<(), Refusal> {
        let admitted = self.slots.get();
        let free = core.alloc.free_unreserved();
        let enough = wanted == 0 || wanted + admitted <= free;
        if !enough && !planted!(AdmittedWithoutSpace) {
            // Unappended entries may take fewer slots than were counted for them.
            let perhaps = wanted + admitted - self.unappended.extents <= free;
            return Err(if perhaps { Refusal::LogFull } else { Refusal::NoSpace });
        }
        self.slots.set(admitted + wanted);
        Ok(())
    }
}
