//! Redirected writes (rule R6): a large write of whole extents goes to fresh slots of the data
//! file, once, and the log names them and their checksums instead of holding the payload.
//!
//! The batch that names slots is not even handed to the log before they are durable: a batch that
//! a restart finds intact needs no look at the slots. (Writing both at once would save one short
//! write per large one, and recovery would have to read every slot that the log names to tell a
//! torn batch from a good one, with slots among them that were given up long ago.) Appends of the
//! same member wait behind it, so that the log has its entries in order; others go on.
//!
//! A slot is named, and never written again, until its entry is compacted durably, or replaced
//! durably. Write-back only lets the index take it over.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::io::buffer::is_aligned;
use crate::log::{Append, LogEntry, Redirect, RedirectedSlot, WholeExtents};
use crate::planted::{Mistake, planted};
use crate::store::OpenError;
use crate::store::alloc::SlotConflict;
use crate::store::effects::Pending;
use crate::store::index::IndexStore;
use crate::store::lane::{Lane, LaneFiles, slots_at_most};
use crate::store::member::{Member, Phase};
use crate::store::read::first_bad;
use crate::store::seam::{ExtentKey, LaneFile, Slot};
use crate::store::wal::fold::{FaultReason, MemberLog};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, Extent, MemberId};

/// What an entry takes in the log besides its payload, at most nearly.
const ENTRY_LOG_BYTES: u64 = 2 * BLOCK_BYTES as u64;

/// Appends that wait for their slots, or behind one of the same member that does.
#[derive(Default)]
pub(super) struct Redirects {
    staged: BTreeMap<MemberId, VecDeque<Staged>>,
    bytes: u64,
}

struct Staged {
    request: Append,
    /// Writes of slots under way.
    writes: usize,
    /// What it will take of the log.
    bytes: u64,
    /// Slots reserved for what goes into the log.
    reserved: u64,
}

impl Redirects {
    /// True while appends of this member wait: later ones wait behind them.
    pub(super) fn holds_back(&self, member: MemberId) -> bool {
        self.staged.contains_key(&member)
    }

    /// Bytes that what waits will take of the log.
    pub(super) fn staged_bytes(&self) -> u64 {
        self.bytes
    }
}

impl Lane {
    /// Starts the writes of the entries that go to slots, and lets the entries name these. Returns
    /// the number of writes.
    pub(super) fn redirect(&mut self, request: &mut Append) -> usize {
        let mut whole = std::mem::take(&mut request.whole_extents).into_iter().peekable();
        let mut writes = 0;
        for entry in &mut request.entries {
            while whole.next_if(|known| known.index < entry.index).is_some() {}
            let Some(known) = whole.next_if(|known| known.index == entry.index) else {
                continue;
            };
            if !self.may_redirect(request.member, entry, &known) {
                continue;
            }
            let count = known.crcs.len() / BLOCKS_PER_EXTENT as usize;
            let slots = std::iter::from_fn(|| self.alloc.allocate_named()).take(count);
            let slots: Vec<Slot> = slots.collect();
            assert_eq!(slots.len(), count, "as many were free");
            let payload = std::mem::take(&mut entry.payload);
            let payload = if is_aligned(&payload) { payload } else { self.pool.copy(&payload) };
            let (member, number) = (request.member, request.number);
            for (first, run) in runs(&slots) {
                let offset = offset_of(slots[first]);
                let bytes = payload.slice(first * EXTENT_BYTES..(first + run) * EXTENT_BYTES);
                let pending = Pending::RedirectWrite { member, number };
                let durable = !planted(Mistake::RedirectNotDurable);
                self.io.write(pending, LaneFile::Data, offset, vec![bytes], durable);
                writes += 1;
            }
            let (crcs, _) = known.crcs.as_chunks::<{ BLOCKS_PER_EXTENT as usize }>();
            let slots = slots.into_iter().zip(crcs);
            let slots = slots.map(|(slot, crcs)| RedirectedSlot { slot, crcs: *crcs }).collect();
            entry.redirect = Some(Box::new(Redirect { first: known.first, slots }));
        }
        writes
    }

    /// Large enough, whole extents of this shard, what its checksums say, and with so much space
    /// that no promise to others is touched (rule R10).
    fn may_redirect(&self, id: MemberId, entry: &LogEntry, known: &WholeExtents) -> bool {
        let bytes = entry.payload.len();
        let count = known.crcs.len() / BLOCKS_PER_EXTENT as usize;
        if bytes < self.config.redirect_bytes_min.max(EXTENT_BYTES)
            || bytes != known.crcs.len() * BLOCK_BYTES
            || bytes != count * EXTENT_BYTES
        {
            return false;
        }
        let member = &self.members[&id];
        let end = u64::from(known.first.0) + count as u64;
        if end * u64::from(BLOCKS_PER_EXTENT) > u64::from(member.record.blocks) {
            return false;
        }
        let extents = (known.first.0..known.first.0 + count as u32).map(Extent);
        // What replaces other slots needs room for both for a while, and is not to be the reason
        // that somebody else finds the disk full.
        let replaces = extents.filter(|extent| member.presence.get(*extent)).count() > 0;
        let kept_free = if replaces { u64::from(self.alloc.capacity() / 16) } else { 0 };
        let promised = self.clock.admitted.get() + kept_free;
        if self.alloc.free_unreserved() < promised + count as u64 {
            return false;
        }
        // The log would have its own checksum; slots have only these.
        first_bad(member, known.first.first_block(), &entry.payload, &known.crcs).is_none()
    }

    /// An append waits for this many writes of its slots, or behind one that does.
    pub(super) fn stage(&mut self, request: Append, writes: usize) {
        let in_log = request.entries.iter().map(|entry| entry.payload.len());
        let reserved = in_log.clone().map(|bytes| u64::from(slots_at_most(bytes as u32))).sum();
        let bytes = in_log.map(|bytes| bytes as u64 + ENTRY_LOG_BYTES).sum();
        self.alloc.reserve(reserved);
        self.redirects.bytes += bytes;
        let staged = self.redirects.staged.entry(request.member).or_default();
        staged.push_back(Staged { request, writes, bytes, reserved });
    }

    /// A write of slots is durable. What waits for no other goes into the log.
    pub(super) fn redirect_written(&mut self, member: MemberId, number: u64) {
        let staged = self.redirects.staged.get_mut(&member).expect("under way");
        let mut appends = staged.iter_mut();
        let append = appends.find(|append| append.request.number == number);
        append.expect("under way").writes -= 1;
        while let Some(next) = self.next_staged(member) {
            self.alloc.unreserve(next.reserved);
            self.redirects.bytes -= next.bytes;
            let live = |found: &Member| found.phase == Phase::Live;
            if self.members.get(&member).is_some_and(live) {
                self.push_append(next.request);
                continue;
            }
            // Nothing in the log ever named them.
            for redirect in next.request.entries.iter().filter_map(|e| e.redirect.as_ref()) {
                redirect.slots.iter().for_each(|slot| self.alloc.release_named(slot.slot));
            }
        }
    }

    fn next_staged(&mut self, member: MemberId) -> Option<Staged> {
        let staged = self.redirects.staged.get_mut(&member)?;
        if staged.front()?.writes > 0 {
            return None;
        }
        let next = staged.pop_front();
        if staged.is_empty() {
            self.redirects.staged.remove(&member);
        }
        next
    }

    /// Takes the slots that the retained entries of a member name, when a lane is opened. `Err`:
    /// an entry names what is not its own.
    pub(super) fn take_named(
        &mut self,
        id: MemberId,
        log: &MemberLog,
        index: &mut dyn IndexStore,
    ) -> Result<Result<(), FaultReason>, OpenError> {
        let mut taken = Vec::new();
        for logged in &log.entries {
            let Some(redirect) = &logged.entry.redirect else { continue };
            for (extent, slot) in (redirect.first.0..).map(Extent).zip(redirect.slots()) {
                let named = match self.alloc.occupy_named(slot) {
                    Err(SlotConflict::OwnedTwice) => {
                        let key = ExtentKey { member: id, extent, layer: 0 };
                        let record = index.get(&[key])?.pop().flatten();
                        // Written back before the stop.
                        match record.is_some_and(|record| record.slot == slot) {
                            true => self.alloc.name_adopted(slot),
                            false => Err(SlotConflict::OwnedTwice),
                        }
                    }
                    other => other,
                };
                match named {
                    Ok(()) => taken.push(slot),
                    Err(SlotConflict::OutOfRange) => {
                        return Err(OpenError::Unusable(
                            "the log names a slot beyond the end of the data file",
                        ));
                    }
                    Err(SlotConflict::OwnedTwice) => {
                        taken.into_iter().for_each(|slot| self.alloc.release_named(slot));
                        return Ok(Err(FaultReason::SlotConflict(logged.entry.index)));
                    }
                }
            }
        }
        Ok(Ok(()))
    }
}

/// The payload of a redirected entry, when every block of it is what its checksum says.
pub(super) fn load_redirected(
    member: &Member,
    redirect: &Redirect,
    pool: &crate::io::buffer::Pool,
    files: &mut dyn LaneFiles,
) -> Option<Bytes> {
    let slots = redirect.slots();
    let mut payload = pool.take(slots.len() * EXTENT_BYTES);
    for (first, run) in runs(&slots) {
        let len = run * EXTENT_BYTES;
        let bytes = files.read(LaneFile::Data, offset_of(slots[first]), len).ok()?;
        payload.get_mut(first * EXTENT_BYTES..)?.get_mut(..len)?.copy_from_slice(&bytes);
    }
    let payload = payload.freeze();
    let crcs: Vec<u32> = redirect.slots.iter().flat_map(|slot| slot.crcs).collect();
    let end = redirect.first.0.checked_add(slots.len() as u32)?;
    let inside = end.checked_mul(BLOCKS_PER_EXTENT)? <= member.record.blocks;
    let intact = || first_bad(member, redirect.first.first_block(), &payload, &crcs).is_none();
    (inside && intact()).then_some(payload)
}

/// Neighbouring slots that one write or read can span: position of the first, and how many.
fn runs(slots: &[Slot]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        match runs.last_mut() {
            Some((_, count)) if slots[at - 1].0 + 1 == slot.0 => *count += 1,
            _ => runs.push((at, 1)),
        }
    }
    runs
}

fn offset_of(slot: Slot) -> u64 {
    u64::from(slot.0) * EXTENT_BYTES as u64
}
