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
//!
//! Owns the appends that wait; may borrow the core, and what admission has promised; is told of
//! appends, and of slots that are written.

use std::collections::{BTreeMap, VecDeque};

use crate::io::buffer::is_aligned;
use crate::log::{Append, LogEntry, Redirect, RedirectedSlot, WholeExtents};
use crate::planted::{Mistake, planted};
use crate::store::admission::Admission;
use crate::store::alloc::slots_at_most;
use crate::store::core::Core;
use crate::store::effects::Pending;
use crate::store::seam::{LaneFile, Slot};
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
    /// Writes of slots in flight.
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

    /// An append of a live member: into the log at once, or as soon as its slots are written.
    pub(super) fn append(&mut self, core: &mut Core, admission: &Admission, mut request: Append) {
        let writes = redirect(core, admission, &mut request);
        if writes > 0 || self.holds_back(request.member) {
            self.stage(core, request, writes);
        } else {
            core.append(request);
        }
    }

    /// An append waits for this many writes of its slots, or behind one that does.
    fn stage(&mut self, core: &mut Core, request: Append, writes: usize) {
        let in_log = request.entries.iter().map(|entry| entry.payload.len());
        let reserved = in_log.clone().map(|bytes| u64::from(slots_at_most(bytes as u32))).sum();
        let bytes = in_log.map(|bytes| bytes as u64 + ENTRY_LOG_BYTES).sum();
        core.alloc.reserve(reserved);
        self.bytes += bytes;
        let staged = self.staged.entry(request.member).or_default();
        staged.push_back(Staged { request, writes, bytes, reserved });
    }

    /// A write of slots is durable. What waits for no other goes into the log.
    pub(super) fn written(&mut self, core: &mut Core, member: MemberId, number: u64) {
        let staged = self.staged.get_mut(&member).expect("in flight");
        let mut appends = staged.iter_mut();
        let append = appends.find(|append| append.request.number == number);
        append.expect("in flight").writes -= 1;
        while let Some(next) = self.next_staged(member) {
            core.alloc.unreserve(next.reserved);
            self.bytes -= next.bytes;
            if core.live(member).is_some() {
                core.append(next.request);
                continue;
            }
            // Nothing in the log ever named them.
            for redirect in next.request.entries.iter().filter_map(|e| e.redirect.as_ref()) {
                redirect.slots.iter().for_each(|slot| core.alloc.release_named(slot.slot));
            }
        }
    }

    fn next_staged(&mut self, member: MemberId) -> Option<Staged> {
        let staged = self.staged.get_mut(&member)?;
        if staged.front()?.writes > 0 {
            return None;
        }
        let next = staged.pop_front();
        if staged.is_empty() {
            self.staged.remove(&member);
        }
        next
    }
}

/// Starts the writes of the entries that go to slots, and lets the entries name these. Returns the
/// number of writes.
fn redirect(core: &mut Core, admission: &Admission, request: &mut Append) -> usize {
    let mut whole = std::mem::take(&mut request.whole_extents).into_iter().peekable();
    let mut writes = 0;
    let (member, number) = (request.member, request.number);
    for entry in &mut request.entries {
        while whole.next_if(|known| known.index < entry.index).is_some() {}
        let Some(known) = whole.next_if(|known| known.index == entry.index) else { continue };
        if !may_redirect(core, admission, member, entry, &known) {
            continue;
        }
        let count = known.crcs.len() / BLOCKS_PER_EXTENT as usize;
        let slots = std::iter::from_fn(|| core.alloc.allocate_named()).take(count);
        let slots: Vec<Slot> = slots.collect();
        assert_eq!(slots.len(), count, "as many were free");
        let payload = std::mem::take(&mut entry.payload);
        let payload = if is_aligned(&payload) { payload } else { core.pool.copy(&payload) };
        for (first, run) in runs(&slots) {
            let bytes = payload.slice(first * EXTENT_BYTES..(first + run) * EXTENT_BYTES);
            let pending = Pending::Redirect { member, number };
            let durable = !planted(Mistake::RedirectNotDurable);
            core.io.write(pending, LaneFile::Data, slots[first].offset(), vec![bytes], durable);
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
fn may_redirect(
    core: &Core,
    admission: &Admission,
    id: MemberId,
    entry: &LogEntry,
    known: &WholeExtents,
) -> bool {
    let bytes = entry.payload.len();
    let count = known.crcs.len() / BLOCKS_PER_EXTENT as usize;
    if bytes < core.config.redirect_bytes_min.max(EXTENT_BYTES)
        || bytes != known.crcs.len() * BLOCK_BYTES
        || bytes != count * EXTENT_BYTES
    {
        return false;
    }
    let member = &core.members[&id];
    let end = u64::from(known.first.0) + count as u64;
    if end * u64::from(BLOCKS_PER_EXTENT) > u64::from(member.record.blocks) {
        return false;
    }
    let extents = (known.first.0..known.first.0 + count as u32).map(Extent);
    // What replaces other slots needs room for both for a while, and is not to be the reason
    // that somebody else finds the disk full.
    let replaces = extents.filter(|extent| member.presence.get(*extent)).count() > 0;
    let kept_free = if replaces { u64::from(core.alloc.capacity() / 16) } else { 0 };
    let promised = admission.slots.get() + kept_free;
    if core.alloc.free_unreserved() < promised + count as u64 {
        return false;
    }
    // The log would have its own checksum; slots have only these.
    member.first_bad(known.first.first_block(), &entry.payload, &known.crcs).is_none()
}

/// Neighbouring slots that one write or read can span: position of the first, and how many.
pub(super) fn runs(slots: &[Slot]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        match runs.last_mut() {
            Some((_, count)) if slots[at - 1].0 + 1 == slot.0 => *count += 1,
            _ => runs.push((at, 1)),
        }
    }
    runs
}
