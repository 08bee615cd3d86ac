//! Admission: whether a change may be appended, by what the log and the disk have room for beyond
//! all that was promised before (rules R9, R10).
//!
//! Owns what was admitted and is not appended yet; may borrow the core; is told what each member
//! will append.

use std::cell::Cell;

use crate::planted::{Mistake, planted};
use crate::store::core::Core;
use crate::types::{BLOCK_BYTES, BlockRange, MemberId, Unappended};

/// Why a change is not accepted now (rules R9, R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log is full until write-back or images have made room: retry.
    LogFull,
    /// The data file has no slot left for it.
    NoSpace,
}

/// See the module.
#[derive(Default)]
pub(super) struct Admission {
    /// What all members were to append at the last poll.
    unappended: Unappended,
    /// Slots admitted and not yet reserved by an append, as of the last poll and since.
    pub slots: Cell<u64>,
    /// Payload bytes admitted and not appended, as of the last poll; appended or not since.
    bytes: Cell<u64>,
}

impl Admission {
    /// Once per round: counts anew what members hold of the log and are to append.
    pub(super) fn count(&mut self, core: &mut Core) {
        let (mut unappended, mut unapplied_bytes) = (Unappended::default(), 0);
        for member in core.members.values() {
            unapplied_bytes += member.log.unapplied_bytes();
            unappended.payload_bytes += member.unappended.payload_bytes;
            unappended.extents += member.unappended.extents;
        }
        core.log.unapplied_bytes = unapplied_bytes + unappended.payload_bytes;
        self.slots.set(unappended.extents);
        self.bytes.set(unappended.payload_bytes);
        self.unappended = unappended;
    }

    /// See [`crate::store::lane::Lane::admit`]. `share`: how much may be unapplied; `staged_bytes`:
    /// what waits for its slots to be written, and is appended, too.
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
        // What gives space back may still be logged when nothing else may.
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
        // Whatever others have, a member gets on: one that has nothing may have one entry.
        let is_first = own == 0 && since_poll == payload_bytes;
        let is_first = is_first && payload_bytes <= core.log.image_bytes_max();
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
        if !enough && !planted(Mistake::AdmittedWithoutSpace) {
            // What is to be appended may take less than it could.
            let perhaps = wanted + admitted - self.unappended.extents <= free;
            return Err(if perhaps { Refusal::LogFull } else { Refusal::NoSpace });
        }
        self.slots.set(admitted + wanted);
        Ok(())
    }
}
