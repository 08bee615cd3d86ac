//! Resync: the manifest of a member's extents, reads and installs of whole extents, and the durable
//! flags around them. Also destroys members, whose slots it lists in the same way.
//!
//! The overlay is written back before the *resyncing flag* is set (rule `resyncing-flag-first`), so
//! that the index has everything. Extents that the source has as well are not fetched: they must
//! not live only in a log that the resync replaces.
//!
//! Owns the listings in flight, and the installs and destructions that wait for write-back; may
//! borrow the core, and appends that wait; hears of listings that ended.

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::planted::planted;
use crate::store::alloc::Allocator;
use crate::store::bypass::WalBypass;
use crate::store::core::Core;
use crate::store::effects::{AfterFlush, Pending};
use crate::store::member::{LaneMember, Phase, Task};
use crate::store::messages::{
    Event, ExtentKey, ExtentRecord, IndexEdit, IndexJob, OpId, ReadId, Slot,
};
use crate::store::overlay::OverlayExtent;
use crate::store::round::Install;
use crate::types::{Extent, ExtentContent, ManifestChunk, ManifestEntry, MemberId};

#[derive(Default)]
pub(super) struct ResyncStore {
    scans: FxHashMap<OpId, Scan>,
    /// Extents that wait for their round of write-back.
    installs: VecDeque<Install>,
    /// An install was the last to take its turn, so that write-back is next.
    installed: bool,
    /// Members to destroy as soon as no round runs.
    doomed: Vec<MemberId>,
}

/// A listing of the index in flight.
struct Scan {
    member: MemberId,
    purpose: ScanPurpose,
}

enum ScanPurpose {
    Manifest {
        read: ReadId,
        from: Extent,
    },
    /// The slots found so far, to be freed.
    Destroy {
        slots: Vec<Slot>,
    },
}

impl ResyncStore {
    pub(super) fn manifest(&mut self, core: &mut Core, read: ReadId, id: MemberId, from: Extent) {
        if core.live(id).is_none() {
            let (chunk, meta) = (ManifestChunk::default(), Bytes::new());
            core.io.events.push(Event::Manifest { read, chunk, meta });
            return;
        }
        self.scan(core, id, from, ScanPurpose::Manifest { read, from });
    }

    fn scan(&mut self, core: &mut Core, member: MemberId, from: Extent, purpose: ScanPurpose) {
        let job = IndexJob::Scan { member, from, limit: core.config.listing_extents };
        let op = core.io.index(Pending::Scan, job);
        self.scans.insert(op, Scan { member, purpose });
    }

    pub(super) fn scanned(
        &mut self,
        core: &mut Core,
        op: OpId,
        found: Vec<(ExtentKey, ExtentRecord)>,
    ) {
        let Scan { member, purpose } = self.scans.remove(&op).expect("in flight");
        let last = found.last().map(|(key, _)| key.extent);
        let next = last
            .filter(|_| found.len() >= core.config.listing_extents)
            .map(|last| Extent(last.0 + 1));
        match purpose {
            ScanPurpose::Manifest { read, from } => {
                let listed = core.members.get(&member);
                let chunk = listed.map(|member| manifest_chunk(member, from, next, found));
                let (chunk, meta) =
                    (chunk.unwrap_or_default(), listed.map(LaneMember::meta).unwrap_or_default());
                core.io.events.push(Event::Manifest { read, chunk, meta });
            }
            ScanPurpose::Destroy { mut slots } => {
                slots.extend(found.iter().map(|(_, record)| record.slot));
                if let Some(next) = next {
                    return self.scan(core, member, next, ScanPurpose::Destroy { slots });
                }
                // The next flushed commit frees them (rule `slot-reuse-after-durable-free`).
                for slot in slots {
                    core.alloc.free(slot);
                }
                core.flush(vec![IndexEdit::Destroy(member)], AfterFlush::Destroyed(member));
            }
        }
    }

    pub(super) fn install(&mut self, core: &mut Core, mut install: Install) {
        let Some(found) = core.live(install.member) else { return refuse(core, install) };
        assert!(found.record.resyncing, "installed without the durable flag");
        let given = std::mem::take(&mut install.extents);
        let (good, bad): (Vec<ExtentContent>, Vec<_>) =
            given.into_iter().partition(|content| found.is_intact(content));
        install.extents = good;
        install.refused = bad.iter().map(|content| content.extent).collect();
        install.delete.retain(|_| !planted!(ResyncKeepsExtents));
        self.installs.push_back(install);
    }

    pub(super) fn next_install(&mut self) -> Option<Install> {
        let install = self.installs.pop_front();
        self.installed = install.is_some();
        install
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.installs.len()
    }

    /// True when an install waits and write-back goes first: they take turns while the log is more
    /// than half full. A resync that never let go would fill it (rule `resync-shares-the-lane`).
    pub(super) fn gives_way(&mut self, core: &Core) -> bool {
        let is_pressed = core.log.used_bytes() > core.log.ring_bytes / 2;
        let installed = std::mem::take(&mut self.installed);
        installed && is_pressed && !self.installs.is_empty() && !planted!(ResyncsBeforeWriteBack)
    }

    pub(super) fn destroy(&mut self, core: &mut Core, member: MemberId) {
        core.tombstones.insert(member);
        match core.members.get_mut(&member) {
            Some(found) if found.phase == Phase::Destroying => {}
            Some(found) => {
                found.phase = Phase::Destroying;
                found.task = None;
                self.doomed.push(member);
                // The installs that wait are refused.
                let installs = std::mem::take(&mut self.installs);
                let (gone, rest): (VecDeque<_>, _) =
                    installs.into_iter().partition(|install| install.member == member);
                self.installs = rest;
                gone.into_iter().for_each(|install| refuse(core, install));
            }
            None => core.flush(vec![IndexEdit::Destroy(member)], AfterFlush::Recorded(member)),
        }
    }

    /// Goes on with resyncs and destructions that wait for write-back. No round runs.
    pub(super) fn step(&mut self, core: &mut Core, bypass: &WalBypass) {
        for member in std::mem::take(&mut self.doomed) {
            let slots = Vec::new();
            self.scan(core, member, Extent(0), ScanPurpose::Destroy { slots });
        }
        for id in core.members.totals().with_task.clone() {
            let installing = self.installs.iter().any(|install| install.member == id);
            // Appends that wait for their slots came before the task.
            let staged = bypass.holds_back(id);
            if core.members[&id].overlay.is_empty() && !installing && !staged {
                end_task(core, id);
            }
        }
    }
}

/// Answers an install that puts nothing in place.
fn refuse(core: &mut Core, install: Install) {
    let extents = install.extents.iter().map(|content| content.extent);
    let refused = install.refused.into_iter().chain(extents).collect();
    core.io.events.push(Event::Installed { read: install.read, refused });
}

/// The overlay of the member is written back: does its task.
fn end_task(core: &mut Core, id: MemberId) {
    let member = core.members.get_mut(&id).expect("just seen");
    match member.task.take() {
        Some(Task::BeginResync) => member.record.resyncing = true,
        Some(Task::FinishResync { from, index, term, meta }) => {
            // The log went on after the comparison (rule `no-jump-over-applied`): no list has
            // extents that it wrote since then and removes again in the part to be jumped over.
            let applied = member.applied_index;
            let overtaken = index > applied && applied != from;
            if overtaken && !planted!(JumpOverApplied) {
                core.io.events.push(Event::ResyncOvertaken { member: id });
                return;
            }
            jump_to(member, &mut core.alloc, index, term, meta);
        }
        None => {}
    }
    if planted!(ResyncAcksBeforeData) {
        core.io.events.push(Event::MemberDurable { member: id });
    }
    let edits = vec![IndexEdit::PutMember(core.members[&id].record.clone())];
    core.flush(edits, AfterFlush::Recorded(id));
}

/// The store of this member is now as of `index`, whatever its log says.
fn jump_to(member: &mut LaneMember, alloc: &mut Allocator, index: u64, term: u64, meta: Bytes) {
    if index <= member.applied_index {
        return;
    }
    if !planted!(JumpLetsGo) {
        member.ahead = Some((index, member.oldest_needed(member.durable_flushed)));
    }
    if member.log.term(index) != Some(term) {
        // Another history: its entries will never be applied.
        alloc.unreserve(member.log.drop_after(member.applied_index));
        // The flush of the record that follows frees them.
        for slot in member.log.take_left() {
            alloc.drop_named(slot);
        }
    }
    for jumped in member.applied_index + 1..=index.min(member.log.last_index()) {
        alloc.unreserve(member.log.applied(jumped));
    }
    member.applied_index = index;
    member.applied_term = term;
    member.metas.clear();
    member.record.flushed_index = index;
    member.record.flushed_term = term;
    member.record.meta = meta;
}

/// Joins the listing of the index with the overlay. Blocks committed after the request are still in
/// the overlay: they leave it when the commit ends, which is later than the listing.
fn manifest_chunk(
    member: &LaneMember,
    from: Extent,
    next: Option<Extent>,
    found: Vec<(ExtentKey, ExtentRecord)>,
) -> ManifestChunk {
    let end = next.unwrap_or(Extent(u32::MAX));
    let mut overlay = member.overlay.range(from..end).peekable();
    let mut extents = Vec::with_capacity(found.len());
    for (key, record) in &found {
        while let Some((extent, blocks)) = overlay.next_if(|(other, _)| *other < key.extent) {
            extents.extend(entry(extent, None, Some(blocks)));
        }
        let blocks = overlay.next_if(|(other, _)| *other == key.extent);
        extents.extend(entry(key.extent, Some(record), blocks.map(|(_, blocks)| blocks)));
    }
    for (extent, blocks) in overlay {
        extents.extend(entry(extent, None, Some(blocks)));
    }
    ManifestChunk {
        extents,
        next,
        applied_index: member.applied_index,
        applied_term: member.applied_term,
    }
}

/// An extent with its overlay; `None`: it is empty.
fn entry(
    extent: Extent,
    record: Option<&ExtentRecord>,
    overlay: Option<&OverlayExtent>,
) -> Option<ManifestEntry> {
    let mut entry = ManifestEntry {
        extent,
        layer: 0,
        last_changed: record.map_or(0, |record| record.last_changed),
        present: record.map_or(0, |record| record.present),
        zero: 0,
    };
    if let Some(overlay) = overlay {
        entry.last_changed = entry.last_changed.max(overlay.newest());
        overlay.written().for_each(|(position, _)| entry.present |= 1 << position);
        overlay.zeroes().iter().for_each(|run| entry.present &= !run.mask);
    }
    (entry.present != 0).then_some(entry)
}
