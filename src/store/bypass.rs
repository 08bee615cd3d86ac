//! WAL bypass (rule `bypass-before-batch`): a large write of whole extents goes to fresh slots of
//! the data file, once. The log names slots and checksums instead of holding the payload.
//!
//! An entry goes to the log only after its slots are durable. So recovery needs only an intact
//! batch, and no look at the slots. (To write both at once would save one short write per large
//! one. But to tell a torn batch from a good one, recovery would have to read every slot that the
//! log names, even slots given up long ago.) Later appends of the same member wait behind it, to
//! keep the order of its log; other members go on.
//!
//! A slot is named, and never written again, until its entry is durably compacted or replaced (rule
//! `named-slot-is-immutable`). Write-back only lets the index take it over.
//!
//! Owns appends that wait; may borrow the core and admission; hears of appends and written slots.

use std::collections::{BTreeMap, VecDeque};

use crate::io::buffer::is_aligned;
use crate::log::{Append, Bypass, BypassSlot, LogEntry, WholeExtents};
use crate::planted::planted;
use crate::store::admission::Admission;
use crate::store::alloc::slots_at_most;
use crate::store::core::Core;
use crate::store::effects::Pending;
use crate::store::messages::{LaneFile, Slot};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, Extent, MemberId};

/// Approximate bound for the log bytes of an entry besides its payload.
const ENTRY_LOG_BYTES: u64 = 2 * BLOCK_BYTES as u64;

/// Appends that wait for their slots, or behind such an append of the same member.
#[derive(Default)]
pub(super) struct WalBypass {
    staged: BTreeMap<MemberId, VecDeque<Staged>>,
    bytes: u64,
}

struct Staged {
    request: Append,
    /// Writes of slots in flight.
    writes: usize,
    /// Bytes that it will take in the log.
    bytes: u64,
    /// Slots reserved for payloads that go into the log.
    reserved: u64,
}

impl WalBypass {
    /// True while appends of this member wait: later ones wait behind them.
    pub(super) fn holds_back(&self, member: MemberId) -> bool {
        self.staged.contains_key(&member)
    }

    /// Bytes that the waiting appends will take in the log.
    pub(super) fn staged_bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts an append of a live member into the log, at once or when its slots are written.
    pub(super) fn append(&mut self, core: &mut Core, admission: &Admission, mut request: Append) {
        let writes = bypass(core, admission, &mut request);
        if writes > 0 || self.holds_back(request.member) {
            self.stage(core, request, writes);
        } else {
            core.append(request);
        }
    }

    /// Keeps an append until this many writes of its slots, and earlier appends, are done.
    fn stage(&mut self, core: &mut Core, request: Append, writes: usize) {
        let in_log = request.entries.iter().map(|entry| entry.payload.len());
        let reserved = in_log.clone().map(|bytes| u64::from(slots_at_most(bytes as u32))).sum();
        let bytes = in_log.map(|bytes| bytes as u64 + ENTRY_LOG_BYTES).sum();
        core.alloc.reserve(reserved);
        self.bytes += bytes;
        let staged = self.staged.entry(request.member).or_default();
        staged.push_back(Staged { request, writes, bytes, reserved });
    }

    /// A write of slots is durable. Appends that wait for nothing else go into the log.
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
            // No entry in the log ever named these slots.
            for bypass in next.request.entries.iter().filter_map(|e| e.bypass.as_ref()) {
                bypass.slots.iter().for_each(|slot| core.alloc.release_named(slot.slot));
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

/// Starts slot writes and names the slots in the entries. Returns the number of writes.
fn bypass(core: &mut Core, admission: &Admission, request: &mut Append) -> usize {
    let mut whole = std::mem::take(&mut request.whole_extents).into_iter().peekable();
    let mut writes = 0;
    let (member, number) = (request.member, request.number);
    for entry in &mut request.entries {
        while whole.next_if(|known| known.index < entry.index).is_some() {}
        let Some(known) = whole.next_if(|known| known.index == entry.index) else { continue };
        if !may_bypass(core, admission, member, entry, &known) {
            continue;
        }
        let count = known.crcs.len() / BLOCKS_PER_EXTENT as usize;
        let slots = std::iter::from_fn(|| core.alloc.allocate_named()).take(count);
        let slots: Vec<Slot> = slots.collect();
        assert_eq!(slots.len(), count, "as many were free");
        let payload = std::mem::take(&mut entry.payload);
        let payload = if is_aligned(&payload) { payload } else { core.pool.copy(&payload) };
        for (first, run) in core.alloc.files.runs(&slots) {
            let bytes = payload.slice(first * EXTENT_BYTES..(first + run) * EXTENT_BYTES);
            let pending = Pending::Bypass { member, number };
            let durable = !planted!(BypassNotDurable);
            core.io.write(pending, LaneFile::Data, slots[first].offset(), vec![bytes], durable);
            writes += 1;
        }
        let (crcs, _) = known.crcs.as_chunks::<{ BLOCKS_PER_EXTENT as usize }>();
        let slots = slots.into_iter().zip(crcs);
        let slots = slots.map(|(slot, crcs)| BypassSlot { slot, crcs: *crcs }).collect();
        entry.bypass = Some(Box::new(Bypass { first: known.first, slots }));
    }
    writes
}

/// True for a large payload of whole extents of this shard that matches its checksums, if its slots
/// are promised to no one else (rule `space-before-append`).
fn may_bypass(
    core: &Core,
    admission: &Admission,
    id: MemberId,
    entry: &LogEntry,
    known: &WholeExtents,
) -> bool {
    let bytes = entry.payload.len();
    let count = known.crcs.len() / BLOCKS_PER_EXTENT as usize;
    if bytes < core.config.bypass_bytes_min.max(EXTENT_BYTES)
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
    // A write that replaces slots needs both for a while; it must not fill the disk for others.
    let replaces = extents.filter(|extent| member.presence.get(*extent)).count() > 0;
    let kept_free = if replaces { u64::from(core.alloc.capacity() / 16) } else { 0 };
    let promised = admission.slots.get() + kept_free;
    if core.alloc.free_unreserved() < promised + count as u64 {
        return false;
    }
    // The log would have its own checksum; slots have only these.
    member.first_bad(known.first.first_block(), &entry.payload, &known.crcs).is_none()
}
