//! The lane's log: the ring, appends in flight, and batches that must stay in the ring. Also writes
//! HardStates and log snapshots of its own, so that no idle or stuck member holds the tail.
//!
//! Owns ring, groups and pins; may borrow members, allocator and I/O; hears of appends and batches.

use std::collections::BTreeMap;

use crate::io::buffer::Pool;
use crate::log::{Append, HardState, LogEntry, Reset};
use crate::planted::planted;
use crate::store::alloc::{Allocator, slots_at_most};
use crate::store::effects::{Io, Pending};
use crate::store::groups::{Group, GroupKind, Groups, Unplaced};
use crate::store::member::{LaneMember, Phase, Place, Retained};
use crate::store::members::Members;
use crate::store::messages::{Event, LaneFile, Slot};
use crate::store::past::Past;
use crate::store::wal::{BatchSeq, GroupId, Item, Wal, WalConfig, WalPosition};
use crate::types::EXTENT_BYTES;

/// Members whose needs move to the head of the ring at the same time.
const LOG_SNAPSHOTS_AT_ONCE: usize = 64;
/// Idle members move together with the tail's holders within this part of the ring: a sixteenth.
const NEAR_THE_TAIL: u64 = 16;

pub(super) struct LaneLog {
    pub wal: Wal,
    /// Bytes of the ring file, and the part that only HardStates and log snapshots may use.
    pub ring_bytes: u64,
    reserve_bytes: u64,
    groups: Groups,
    /// What followers may still read behind the retained entries.
    pub past: Past,
    /// Reads of the ring in flight, per batch.
    pins: BTreeMap<BatchSeq, u32>,
    /// Unapplied and unappended payload bytes of all members, as of the newest round or append.
    pub unapplied_bytes: u64,
}

impl LaneLog {
    pub(super) fn new(config: WalConfig, position: WalPosition) -> LaneLog {
        LaneLog {
            ring_bytes: config.ring_bytes,
            reserve_bytes: config.reserve_bytes,
            past: Past::new(config.ring_bytes),
            wal: Wal::new(config, position),
            groups: Groups::default(),
            pins: BTreeMap::new(),
            unapplied_bytes: 0,
        }
    }

    pub(super) fn pin(&mut self, seq: BatchSeq) {
        *self.pins.entry(seq).or_default() += 1;
    }

    pub(super) fn unpin(&mut self, seq: BatchSeq) {
        let pins = self.pins.get_mut(&seq).expect("unpinned once per pin");
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&seq);
        }
    }

    /// True while a read of the log holds the tail. Nothing else happens at its end, so the lane
    /// must look again then (rule `idle-members-free-the-tail`).
    pub(super) fn is_read(&self) -> bool {
        !self.pins.is_empty() && !planted!(SettledWhileRead)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let usable = self.ring_bytes - self.reserve_bytes;
        usable.saturating_sub(self.wal.free_bytes())
    }

    /// Most payload bytes of unapplied entries in a log snapshot.
    pub(super) fn log_snapshot_bytes_max(&self) -> u64 {
        self.ring_bytes / 8
    }

    /// Queues an append for the ring.
    pub(super) fn append(
        &mut self,
        member: &mut LaneMember,
        alloc: &mut Allocator,
        request: Append,
    ) {
        let id = request.member;
        let mut items = Vec::with_capacity(2 + request.entries.len());
        let group = self.groups.next_id();
        if let Some(reset) = &request.reset {
            self.reset(member, alloc, group, reset);
            items.push(Item::Reset { member: id, index: reset.index, term: reset.term });
        }
        let later = planted!(HardStateAfterEntries) && !request.entries.is_empty();
        if let Some(hard) = request.hard.filter(|_| !planted!(HardStateNotLogged)) {
            member.hard.newest = hard;
            if !later {
                items.push(Item::Hard { member: id, hard });
            }
        }
        let push = self.groups.next_push();
        for entry in request.entries {
            // A crash may leave only the entries that this one replaces.
            member.log.hold_from(entry.index, group, self.wal.next_seq());
            self.retain(member, alloc, entry.clone(), push);
            self.groups.expect(Unplaced {
                member: id,
                index: entry.index,
                push,
                log_snapshot: false,
            });
            items.push(Item::Entry { member: id, entry });
        }
        let mut left = member.log.take_left();
        if planted!(ReplacedSlotsReused) {
            left.drain(..).for_each(|slot| alloc.release_named(slot));
        }
        let kind = GroupKind::Append { number: request.number };
        let commit = request.hard.filter(|_| !later).map(|hard| hard.commit);
        self.push(member, group, kind, commit, left, items);
    }

    /// The log of a member now starts after this point.
    fn reset(
        &mut self,
        member: &mut LaneMember,
        alloc: &mut Allocator,
        group: GroupId,
        reset: &Reset,
    ) {
        assert!(
            reset.index <= member.durable_flushed,
            "the store holds everything up to a reset, durably"
        );
        assert!(member.overlay.is_empty(), "nothing up to a reset lives only in the log");
        member.log.hold_from(0, group, self.wal.next_seq());
        alloc.unreserve(member.log.reset(reset.index, reset.term));
        member.applied_index = member.applied_index.max(reset.index);
        member.applied_term = reset.term;
    }

    /// Adds an entry to the retained log, and drops the entries that it replaces.
    fn retain(
        &mut self,
        member: &mut LaneMember,
        alloc: &mut Allocator,
        entry: LogEntry,
        push: u64,
    ) {
        assert!(entry.index > member.applied_index, "an applied entry is never replaced");
        assert!(entry.index <= member.log.last_index() + 1, "the log has no gap");
        alloc.unreserve(member.log.truncate(entry.index));
        let in_log = u32::try_from(entry.payload.len()).expect("bounded by ENTRY_BYTES_MAX");
        let reserved = slots_at_most(in_log);
        alloc.reserve(u64::from(reserved));
        self.unapplied_bytes += u64::from(in_log);
        let slots = entry.bypass.as_ref().map(|bypass| bypass.slots());
        let in_slots = slots.as_ref().map_or(0, |slots| (slots.len() * EXTENT_BYTES) as u32);
        member.log.push(Retained {
            term: entry.term,
            push,
            place: None,
            payload_bytes: in_log + in_slots,
            unapplied_bytes: in_log,
            reserved,
            slots,
            unapplied: Some(Box::new(entry)),
        });
    }

    fn push(
        &mut self,
        member: &mut LaneMember,
        id: GroupId,
        kind: GroupKind,
        commit: Option<u64>,
        left: Vec<Slot>,
        items: Vec<Item>,
    ) {
        member.hard.groups_in_flight += 1;
        let (member, not_before) = (member.id(), self.wal.next_seq());
        self.groups.push(Group { id, member, kind, commit, not_before, left });
        self.wal.push(id, items);
    }

    /// Pushes a group of the lane's own, and the commit index that it carries.
    fn push_own(&mut self, member: &mut LaneMember, hard: HardState, kind: GroupKind, item: Item) {
        member.hard.newest = hard;
        member.hard.own_in_flight = true;
        let group = self.groups.next_id();
        self.push(member, group, kind, Some(hard.commit), Vec::new(), vec![item]);
    }

    /// Forms the batches that the ring has room for, and starts their writes.
    pub(super) fn start_batches(&mut self, members: &mut Members, pool: &Pool, io: &mut Io) {
        while let Some(batch) = self.wal.next_batch(pool) {
            for placed in &batch.placed {
                let place = Place { seq: placed.seq, payload_offset: placed.payload_offset };
                let expected = self.groups.placed(placed, place);
                let member = members.get_mut(&placed.member);
                let entry = member.and_then(|member| member.log.get_mut(placed.index));
                if let Some(entry) = entry
                    && !expected.log_snapshot
                    && entry.push == expected.push
                {
                    entry.place = Some(place);
                }
            }
            let (file, durable) = (LaneFile::Wal, !planted!(LogWriteNotDurable));
            io.write(Pending::Log(batch.seq), file, batch.offset, batch.bufs, durable);
        }
    }

    /// A batch is durable. True when an item of the lane's own became durable with it.
    pub(super) fn written(
        &mut self,
        seq: BatchSeq,
        members: &mut Members,
        alloc: &mut Allocator,
        io: &mut Io,
    ) -> bool {
        let mut any_own = false;
        for id in self.wal.written(seq) {
            let mut group = self.groups.pop(id);
            for slot in std::mem::take(&mut group.left) {
                alloc.release_named(slot);
            }
            if let Some(member) = members.get_mut(&group.member) {
                any_own |= !matches!(group.kind, GroupKind::Append { .. });
                group_written(member, group, io);
            }
        }
        any_own
    }

    /// The oldest batch that recovery needs now, or would need after a checkpoint.
    pub(super) fn tail_target(&self, members: &mut Members, after_checkpoint: bool) -> BatchSeq {
        let needed = members.oldest_needed(after_checkpoint);
        let pinned = self.pins.keys().next().copied();
        let oldest = needed.into_iter().chain(pinned).min();
        // The newest durable batch is always kept.
        let durable = self.wal.newest_durable_kept();
        oldest.map_or(durable, |oldest| oldest.min(durable))
    }

    /// Writes a HardState where no durable one covers the applied entries: Raft writes none for a
    /// commit alone. Write-back needs it (rule `write-back-after-durable-commit`).
    pub(super) fn cover_applied(&mut self, members: &mut Members) {
        for id in members.totals().uncovered.clone() {
            let member = members.get_mut(&id).expect("just counted");
            let hard = HardState { commit: member.known_commit(), ..member.hard.newest };
            self.push_own(member, hard, GroupKind::OwnHard, Item::Hard { member: id, hard });
        }
    }

    /// Moves all that recovery needs of the tail's holders to the head of the ring: unapplied
    /// entries of those that are stuck, HardStates of those that are idle (rule
    /// `idle-members-free-the-tail`). Idle members near the tail move with them, so that thousands
    /// take few batches. Entries move only when they must: they take room in the reserve.
    pub(super) fn push_log_snapshots(&mut self, members: &mut Members) {
        let tail = self.tail_target(members, true);
        let durable = self.wal.durable_seq();
        let holds_tail = |member: &LaneMember| {
            let needed = member.oldest_needed(member.durable_flushed);
            needed.is_some_and(|seq| seq <= tail)
        };
        let can_move = |member: &LaneMember| {
            member.phase == Phase::Live
                && member.log.hold.is_none()
                && member.hard.groups_in_flight == 0
                && member.durable_flushed == member.applied_index
                && (member.log.unapplied_bytes() == 0 || holds_tail(member))
        };
        let (_, start) = self.wal.tail();
        let is_near = |seq| {
            let behind_tail = (self.wal.offset_of(seq) + self.ring_bytes - start) % self.ring_bytes;
            behind_tail < self.ring_bytes / NEAR_THE_TAIL
        };
        let in_reach = |seq| seq < durable && (seq <= tail || is_near(seq));
        let mut left_bytes = self.log_snapshot_bytes_max();
        for id in members.holders(LOG_SNAPSHOTS_AT_ONCE, in_reach, can_move) {
            let member = members.get_mut(&id).expect("just counted");
            let Some(left) = left_bytes.checked_sub(member.log.unapplied_bytes()) else { return };
            left_bytes = left;
            self.push_log_snapshot(member);
        }
    }

    fn push_log_snapshot(&mut self, member: &mut LaneMember) {
        let id = member.id();
        let compacted_index = member.durable_flushed;
        let retained = || member.log.from(compacted_index + 1);
        let entries = retained().map(|(_, retained)| retained.unapplied.as_deref().cloned());
        let Some(entries) = entries.collect() else { return };
        for (index, Retained { push, .. }) in retained() {
            self.groups.expect(Unplaced { member: id, index, push: *push, log_snapshot: true });
        }
        let compacted_term = member.log.term(compacted_index).expect("the base of the log");
        let hard = HardState { commit: member.known_commit(), ..member.hard.newest };
        let item = Item::LogSnapshot { member: id, hard, compacted_index, compacted_term, entries };
        self.push_own(member, hard, GroupKind::LogSnapshot { places: Vec::new() }, item);
    }
}

fn group_written(member: &mut LaneMember, group: Group, io: &mut Io) {
    let hard = &mut member.hard;
    hard.groups_in_flight -= 1;
    if let Some(commit) = group.commit {
        hard.durable_commit = commit.max(hard.durable_commit);
        if member.phase != Phase::Faulted {
            hard.durable_seq = Some(group.not_before);
        }
        member.overlay.cover(hard.durable_commit);
    }
    if member.log.hold.is_some_and(|(hold, _)| hold == group.id) {
        member.log.hold = None;
    }
    match group.kind {
        GroupKind::Append { number } => {
            let mut appends = member.appends.iter_mut();
            let append = appends.find(|append| append.number == number);
            append.expect("confirmed once").durable = true;
            confirm_appends(member, io);
        }
        GroupKind::OwnHard => hard.own_in_flight = false,
        GroupKind::LogSnapshot { places } => {
            hard.own_in_flight = false;
            for (index, push, place) in places {
                if let Some(entry) = member.log.get_mut(index)
                    && entry.push == push
                {
                    entry.place = Some(place);
                }
            }
        }
    }
}

/// Reports the durable appends, in order.
pub(super) fn confirm_appends(member: &mut LaneMember, io: &mut Io) {
    while member.appends.front().is_some_and(|append| append.durable) {
        let append = member.appends.pop_front().expect("just seen");
        io.events.push(Event::Appended { member: member.id(), number: append.number });
    }
}
