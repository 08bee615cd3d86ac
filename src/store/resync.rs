//! Resync: the list of everything a member has, whole extents out of it and into it, and the
//! durable marks around that. Also the end of a member, which lists its slots the same way.
//!
//! The overlay of a member is written back before the *resyncing* mark is set, so that what the
//! index says is all there is: extents that the source has as well are not fetched, and must not
//! live only in a log that the resync replaces.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::planted::{Mistake, planted};
use crate::store::checkpoint::AfterFlush;
use crate::store::effects::Pending;
use crate::store::lane::Lane;
use crate::store::member::{Member, Phase, Task};
use crate::store::overlay::{Content, OverlayExtent};
use crate::store::read::first_bad;
use crate::store::seam::{Event, ExtentKey, ExtentRecord, IndexEdit, IndexJob, OpId, ReadId, Slot};
use crate::store::writeback::Install;
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, Extent, ExtentContent, ManifestChunk, ManifestEntry,
    MemberId,
};

/// A listing of the index under way.
pub(super) struct Scan {
    member: MemberId,
    purpose: ScanPurpose,
}

enum ScanPurpose {
    Manifest {
        read: ReadId,
        from: Extent,
    },
    /// The slots found so far: they come back.
    Destroy {
        slots: Vec<Slot>,
    },
}

impl Lane {
    /// The list of extents from `from` on, as of everything applied. A member that is not here is
    /// answered with an empty list as of index 0.
    pub fn manifest(&mut self, read: ReadId, member: MemberId, from: Extent) {
        if self.io.poisoned() {
            return;
        }
        let live = |found: &&Member| found.phase == Phase::Live;
        if self.members.get(&member).filter(live).is_none() {
            let chunk = ManifestChunk {
                extents: Vec::new(),
                next: None,
                applied_index: 0,
                applied_term: 0,
            };
            self.io.events.push(Event::Manifest { read, chunk, meta: Bytes::new() });
            return;
        }
        self.scan(member, from, ScanPurpose::Manifest { read, from });
    }

    fn scan(&mut self, member: MemberId, from: Extent, purpose: ScanPurpose) {
        let job = IndexJob::Scan { member, from, limit: self.config.listing_extents };
        let op = self.io.index(Pending::Scan, job);
        self.scans.insert(op, Scan { member, purpose });
    }

    pub(super) fn scanned(&mut self, op: OpId, found: Vec<(ExtentKey, ExtentRecord)>) {
        let scan = self.scans.remove(&op).expect("under way");
        let last = found.last().map(|(key, _)| key.extent);
        let next = last
            .filter(|_| found.len() >= self.config.listing_extents)
            .map(|last| Extent(last.0 + 1));
        match scan.purpose {
            ScanPurpose::Manifest { read, from } => {
                let chunk = self.manifest_chunk(scan.member, from, next, found);
                let meta = self.members.get(&scan.member).map(Member::meta).unwrap_or_default();
                self.io.events.push(Event::Manifest { read, chunk, meta });
            }
            ScanPurpose::Destroy { mut slots } => {
                slots.extend(found.iter().map(|(_, record)| record.slot));
                if let Some(next) = next {
                    self.scan(scan.member, next, ScanPurpose::Destroy { slots });
                    return;
                }
                // Freed by the very commit that is flushed next (rule R4).
                for slot in slots {
                    self.alloc.free(slot);
                }
                let edits = vec![IndexEdit::Destroy(scan.member)];
                self.flush(edits, AfterFlush::Destroyed(scan.member));
            }
        }
    }

    /// Joins what the index listed with the overlay. Whatever was committed after the listing was
    /// asked for is still in the overlay: it leaves it when the commit ends, which is later.
    fn manifest_chunk(
        &self,
        id: MemberId,
        from: Extent,
        next: Option<Extent>,
        found: Vec<(ExtentKey, ExtentRecord)>,
    ) -> ManifestChunk {
        let Some(member) = self.members.get(&id) else {
            return ManifestChunk {
                extents: Vec::new(),
                next: None,
                applied_index: 0,
                applied_term: 0,
            };
        };
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

    /// Writes the member's overlay back and sets the durable *resyncing* mark;
    /// `Event::MemberDurable` follows.
    pub fn begin_resync(&mut self, member: MemberId) {
        self.set_task(member, Task::BeginResync);
    }

    /// Everything up to `index` is in place: makes that durable, with the metadata as of it;
    /// `Event::MemberDurable` follows. The mark stays until `clear_resync`. If the log goes on
    /// before that, `Event::ResyncOvertaken` follows instead, and nothing is changed.
    pub fn finish_resync(&mut self, member: MemberId, index: u64, term: u64, meta: Bytes) {
        let Some(from) = self.members.get(&member).map(|found| found.applied_index) else { return };
        self.set_task(member, Task::FinishResync { from, index, term, meta });
    }

    fn set_task(&mut self, member: MemberId, task: Task) {
        if self.io.poisoned() {
            return;
        }
        let live = |found: &&mut Member| found.phase == Phase::Live;
        if let Some(found) = self.members.get_mut(&member).filter(live) {
            found.task = Some(task);
        }
    }

    /// Clears the *resyncing* mark; `Event::MemberDurable` follows.
    pub fn clear_resync(&mut self, member: MemberId) {
        if self.io.poisoned() {
            return;
        }
        let live = |found: &&mut Member| found.phase == Phase::Live;
        if let Some(found) = self.members.get_mut(&member).filter(live) {
            found.record.resyncing = false;
            let edits = vec![IndexEdit::PutMember(found.record.clone())];
            self.flush(edits, AfterFlush::Recorded(member));
        }
    }

    /// Puts whole extents in place and deletes others; `Event::Installed` follows. Only behind
    /// the durable *resyncing* mark: what is overwritten in place cannot be served after a crash.
    /// All of it is refused when more is applied here than `as_of`, the index that the source had
    /// applied: what it has is older than what is here.
    pub fn install_extents(
        &mut self,
        read: ReadId,
        member: MemberId,
        as_of: u64,
        extents: Vec<ExtentContent>,
        delete: Vec<(Extent, u32)>,
    ) {
        if self.io.poisoned() {
            return;
        }
        let live = |found: &&Member| found.phase == Phase::Live;
        let Some(found) = self.members.get(&member).filter(live) else {
            let refused = extents.iter().map(|content| content.extent).collect();
            self.io.events.push(Event::Installed { read, refused });
            return;
        };
        assert!(found.record.resyncing, "installed without the durable mark");
        let (mut good, mut refused) = (Vec::with_capacity(extents.len()), Vec::new());
        for content in extents {
            if is_intact(found, &content) {
                good.push(content);
            } else {
                refused.push(content.extent);
            }
        }
        let deleted = |_: &Extent| !planted(Mistake::ResyncKeepsExtents);
        self.writeback.installs.push_back(Install {
            read,
            member,
            as_of,
            extents: good,
            delete: delete.into_iter().map(|(extent, _)| extent).filter(deleted).collect(),
            refused,
        });
    }

    /// Forgets a member for ever. `Event::MemberDurable` follows; its space comes back. A member
    /// that is not here gets its tombstone all the same.
    pub fn destroy_member(&mut self, member: MemberId) {
        if self.io.poisoned() {
            return;
        }
        self.tombstones.insert(member);
        match self.members.get_mut(&member) {
            Some(found) if found.phase == Phase::Destroying => {}
            Some(found) => {
                found.phase = Phase::Destroying;
                found.task = None;
                self.writeback.doomed.push(member);
                self.refuse_installs(member);
            }
            None => {
                let edits = vec![IndexEdit::Destroy(member)];
                self.flush(edits, AfterFlush::Recorded(member));
            }
        }
    }

    /// What waits to be installed into a member that goes away never will be.
    fn refuse_installs(&mut self, member: MemberId) {
        let installs = std::mem::take(&mut self.writeback.installs);
        let (gone, rest) = installs.into_iter().partition(|install| install.member == member);
        self.writeback.installs = rest;
        let gone: VecDeque<Install> = gone;
        for install in gone {
            let extents = install.extents.iter().map(|content| content.extent);
            self.io.events.push(Event::Installed {
                read: install.read,
                refused: install.refused.into_iter().chain(extents).collect(),
            });
        }
    }

    pub(super) fn destroyed(&mut self, member: MemberId) {
        let mut gone = self.members.remove(&member).expect("destroyed once");
        let overlay = gone.overlay.range(..).filter(|(_, extent)| extent.reserved).count();
        self.alloc.unreserve(gone.log.reset(0, 0) + overlay as u64);
        // The tombstone is durable: whatever the log says of the member is skipped.
        for slot in gone.log.take_left() {
            self.alloc.release_named(slot);
        }
        self.records.forget(|key| key.member == member);
        self.mends.forget(member);
        self.io.events.push(Event::MemberDurable { member });
    }

    /// True while a member waits for its overlay to be written back.
    pub(super) fn is_draining(&self) -> bool {
        self.members.values().any(|member| member.task.is_some())
    }

    /// Goes on with the resyncs and destructions that waited for write-back.
    pub(super) fn continue_members(&mut self) {
        if self.writeback.round.is_some() {
            return;
        }
        for member in std::mem::take(&mut self.writeback.doomed) {
            let slots = Vec::new();
            self.scan(member, Extent(0), ScanPurpose::Destroy { slots });
        }
        let ready = self.members.iter().filter(|(id, member)| {
            let installing = self.writeback.installs.iter().any(|install| install.member == **id);
            // What is on its way into the log was appended before.
            let staged = self.redirects.holds_back(**id);
            member.task.is_some() && member.overlay.is_empty() && !installing && !staged
        });
        let ready: Vec<MemberId> = ready.map(|(id, _)| *id).collect();
        for id in ready {
            let member = self.members.get_mut(&id).expect("just seen");
            match member.task.take() {
                Some(Task::BeginResync) => member.record.resyncing = true,
                Some(Task::FinishResync { from, index, term, meta }) => {
                    // What the log has written here since then, and removed again in what would be
                    // jumped over, is in no list.
                    let applied = member.applied_index;
                    let overtaken = index > applied && applied != from;
                    if overtaken && !planted(Mistake::JumpOverApplied) {
                        self.io.events.push(Event::ResyncOvertaken { member: id });
                        continue;
                    }
                    self.jump_to(id, index, term, meta);
                }
                None => {}
            }
            let record = self.members[&id].record.clone();
            let edits = vec![IndexEdit::PutMember(record)];
            if planted(Mistake::ResyncAcksBeforeData) {
                self.io.events.push(Event::MemberDurable { member: id });
            }
            self.flush(edits, AfterFlush::Recorded(id));
        }
    }

    /// The store of this member is as of `index`, whatever its log says.
    fn jump_to(&mut self, id: MemberId, index: u64, term: u64, meta: Bytes) {
        let member = self.members.get_mut(&id).expect("just seen");
        if index <= member.applied_index {
            return;
        }
        if !planted(Mistake::JumpLetsGo) {
            member.ahead = Some((index, member.oldest_needed(member.durable_flushed)));
        }
        if member.log.term(index) != Some(term) {
            // Another history: none of it will ever be applied.
            self.alloc.unreserve(member.log.drop_after(member.applied_index));
            // Free with the flush of the record that follows.
            for slot in member.log.take_left() {
                self.alloc.drop_named(slot);
            }
        }
        for jumped in member.applied_index + 1..=index.min(member.log.last_index()) {
            self.alloc.unreserve(member.log.applied(jumped));
        }
        member.applied_index = index;
        member.applied_term = term;
        member.metas.clear();
        member.record.flushed_index = index;
        member.record.flushed_term = term;
        member.record.meta = meta;
    }
}

/// What an extent looks like with its overlay; `None`: it is empty.
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
        for (position, block) in overlay.iter() {
            match block.content {
                Content::Log { .. } | Content::Slot(_) => entry.present |= 1 << position,
                Content::Zero { .. } => entry.present &= !(1 << position),
            }
        }
    }
    (entry.present != 0).then_some(entry)
}

/// True when this is a well-formed extent of this member whose bytes match their checksums.
pub(super) fn is_intact(member: &Member, content: &ExtentContent) -> bool {
    let blocks = content.present.count_ones() as usize;
    let extents = member.record.blocks.div_ceil(BLOCKS_PER_EXTENT);
    if content.layer != 0
        || content.extent.0 >= extents
        || content.crcs.len() != blocks
        || content.data.len() != blocks * BLOCK_BYTES
    {
        return false;
    }
    let positions = (0..BLOCKS_PER_EXTENT).filter(|bit| content.present & (1 << bit) != 0);
    positions.enumerate().all(|(number, position)| {
        let at = Block(content.extent.first_block().0 + position);
        let bytes = &content.data[number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES];
        first_bad(member, at, bytes, &content.crcs[number..=number]).is_none()
    })
}
