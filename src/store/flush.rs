//! Flushes of the index, which make durable what was committed to it: then the freed slots may be
//! used again (rule R4), and the log lets go of what the index has. Also the beginning, the fault
//! and the end of a member, which are a flush each and what follows from it.

use crate::store::core::Core;
use crate::store::effects::{AfterFlush, FlushPoint, Pending};
use crate::store::member::{Member, Phase};
use crate::store::seam::{Event, IndexEdit, IndexJob, MemberRecord};
use crate::types::MemberId;

impl Core {
    /// Commits these edits and the members' marks, and flushes the index.
    pub(super) fn flush(&mut self, mut edits: Vec<IndexEdit>, after: AfterFlush) {
        let mut flushed = Vec::new();
        for (id, member) in &mut self.members {
            if member.phase != Phase::Live {
                continue;
            }
            if member.advance_record() {
                edits.push(IndexEdit::PutMember(member.record.clone()));
            }
            if member.record.flushed_index != member.durable_flushed {
                flushed.push((*id, member.record.flushed_index));
            }
        }
        self.unflushed = false;
        let point = FlushPoint { freed: self.alloc.take_freed(), flushed, after };
        let flush = true;
        self.io.index(Pending::Flush(point), IndexJob::Commit { edits, flush });
    }

    /// Everything that was committed before this point is durable. Returns why it was flushed.
    pub(super) fn flushed(&mut self, point: FlushPoint) -> AfterFlush {
        self.alloc.reusable(point.freed);
        self.stale = true;
        for (id, flushed) in point.flushed {
            let Some(member) = self.members.get_mut(&id) else { continue };
            member.durable_flushed = flushed.max(member.durable_flushed);
            let term = member.record.flushed_term;
            let reserved = match flushed == member.record.flushed_index {
                true => member.log.compact_to(flushed, term),
                false => member.log.compact(flushed),
            };
            self.alloc.unreserve(reserved);
            self.release_left(id);
        }
        point.after
    }

    /// Nothing that recovery would read names these slots of a member any more.
    fn release_left(&mut self, id: MemberId) {
        let member = self.members.get_mut(&id).expect("just seen");
        for slot in member.log.take_left() {
            self.alloc.release_named(slot);
        }
    }

    /// See [`crate::store::lane::Lane::create_member`].
    pub(super) fn create(&mut self, record: MemberRecord) {
        let member = record.member;
        let known = self.members.contains_key(&member) || self.is_destroyed(member);
        assert!(!known, "a member id is never used twice");
        let edits = vec![IndexEdit::PutMember(record.clone())];
        self.members.insert(member, Member::new(record, Phase::Creating));
        self.flush(edits, AfterFlush::Created(member));
    }

    pub(super) fn created(&mut self, member: MemberId) {
        let created = self.members.get_mut(&member);
        if let Some(created) = created.filter(|found| found.phase == Phase::Creating) {
            created.phase = Phase::Live;
            self.io.events.push(Event::MemberDurable { member });
        }
    }

    pub(super) fn recorded(&mut self, member: MemberId) {
        // Whoever has it destroyed meanwhile waits for the end of that.
        let doomed = |found: &Member| found.phase == Phase::Destroying;
        if !self.members.get(&member).is_some_and(doomed) {
            self.io.events.push(Event::MemberDurable { member });
        }
    }

    /// See [`crate::store::lane::Lane::fault_member`].
    pub(super) fn fault(&mut self, member: MemberId) {
        let Some(found) = self.live_mut(member) else { return };
        found.phase = Phase::Faulted;
        found.task = None;
        self.flush(vec![IndexEdit::Fault(member)], AfterFlush::Faulted(member));
    }

    /// It is durable that the member cannot be trusted.
    pub(super) fn faulted(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.phase != Phase::Faulted {
            return;
        }
        let overlay = std::mem::take(&mut member.overlay);
        self.alloc.unreserve(member.log.drop_after(0) + overlay.reserved_slots());
        member.log.hold = None;
        member.hard.durable_seq = None;
        // Nothing is kept for a log that no restart believes.
        self.release_left(id);
        self.stale = true;
    }

    /// The tombstone is durable: whatever the log says of the member is skipped.
    pub(super) fn destroyed(&mut self, member: MemberId) {
        let gone = self.members.get_mut(&member).expect("destroyed once");
        self.alloc.unreserve(gone.log.reset(0, 0) + gone.overlay.reserved_slots());
        self.release_left(member);
        self.members.remove(&member);
        self.records.forget(|key| key.member == member);
        self.io.events.push(Event::MemberDurable { member });
    }
}
