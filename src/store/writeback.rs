//! Write-back: moves whole extents from the overlay into the data file, in rounds. A round takes
//! all overlay blocks of each of its extents, reads back what is not in memory, writes it, makes
//! the data file durable, and only then commits the records (rule R2). What was superseded
//! meanwhile stays in the overlay for a later round. Installing the extents of a resync is a round
//! too, and so is moving one that read repair brought.
//!
//! One round is in flight at a time; an extent is in no two rounds.
//!
//! Owns the round, and the extents whose slot the log still names; may borrow the core, and read
//! repair; is told what to write back, and of effects and flushes that ended.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::planted::{Mistake, planted};
use crate::store::core::Core;
use crate::store::effects::{PayloadRun, Pending, RoundOp};
use crate::store::member::Phase;
use crate::store::mend::ReadRepair;
use crate::store::overlay::Content;
use crate::store::round::{Install, Outcome, Round, Snapshot, Source, Update, moved_record};
use crate::store::seam::{
    Done, Event, ExtentKey, ExtentRecord, IndexDone, IndexEdit, IndexJob, LaneFile, ReadId, Slot,
};
use crate::types::{BLOCK_BYTES, Block, Extent, ExtentContent, MemberId};

/// Extents of one round, from a gentle one to one that fights for room.
const EXTENTS_MIN: usize = 8;
const EXTENTS_MAX: usize = 256;
/// Data writes in flight at the same time.
const WRITES_MIN: usize = 4;
const WRITES_MAX: usize = 32;

/// See the module.
#[derive(Default)]
pub(super) struct WriteBack {
    round: Option<Round>,
    /// A round found no free slot.
    starved: bool,
    /// Extents whose slot is still named by an entry of the log (rule R6): they wait for a flush
    /// to let go of it. Off the queue, and marked as if they were on it.
    parked: Vec<(MemberId, Extent)>,
}

/// What became of a look at the first extent of the queue.
enum Look {
    Taken(Update),
    /// No durable HardState covers it yet.
    Uncovered,
    /// There is nothing to be written back of it now.
    Nothing,
}

impl WriteBack {
    pub(super) fn is_busy(&self) -> bool {
        self.round.is_some()
    }

    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    pub(super) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// A flush ended: it may have freed slots, or let go of those that extents wait for.
    pub(super) fn flushed(&mut self, core: &mut Core) {
        self.starved = false;
        core.dirty.extend(self.parked.drain(..));
    }

    /// Starts a round as large as `pressure` (0 to 1, or more) asks for.
    pub(super) fn pace(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        pressure: f64,
        at_once: bool,
    ) {
        if self.is_busy() || core.dirty.is_empty() || (pressure <= 0.0 && !at_once) {
            return;
        }
        let between = |low: usize, high: usize| {
            let share = (high - low) as f64 * pressure.min(1.0);
            low + share as usize
        };
        let extents = between(EXTENTS_MIN, EXTENTS_MAX);
        let writes = between(WRITES_MIN, WRITES_MAX);
        self.start(core, repair, extents, writes);
    }

    /// Starts a round of at most `extents_max` extents, if there are any that may be written
    /// back: those whose every change a durable HardState covers (rule R7).
    pub(super) fn start(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        extents_max: usize,
        writes_max: usize,
    ) {
        let mut updates = Vec::new();
        let mut uncovered = Vec::new();
        let mut looks = core.dirty.len().min(4 * extents_max);
        while looks > 0 && updates.len() < extents_max {
            looks -= 1;
            let Some((member, extent)) = core.dirty.pop_front() else {
                break;
            };
            match take(core, repair, ExtentKey::new(member, extent)) {
                Look::Taken(update) => updates.push(update),
                Look::Uncovered => uncovered.push((member, extent)),
                Look::Nothing => {}
            }
        }
        // They keep their place: at the end of the queue, one of them would hold the log's tail
        // until all others are written back.
        for extent in uncovered.into_iter().rev() {
            core.dirty.push_front(extent);
        }
        self.start_round(core, repair, updates, writes_max, None);
    }

    /// Starts the round of an install.
    pub(super) fn start_install(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        install: Install,
    ) {
        let Install { read, member: id, extents, delete, mut refused, as_of } = install;
        // The log was faster: what the source had is older than what is here. Entries that are
        // applied from now on stay in the overlay.
        let applied = core
            .members
            .get_mut(&id)
            .filter(|member| member.applied_index <= as_of || planted(Mistake::ResyncGoesBack));
        let Some(member) = applied else {
            refused.extend(extents.iter().map(|content| content.extent));
            refused.extend(delete);
            core.io.events.push(Event::Installed { read, refused });
            return;
        };
        let mut updates = Vec::with_capacity(extents.len() + delete.len());
        for content in extents {
            let (key, newest) = (ExtentKey::new(id, content.extent), content.last_changed);
            let mut update = Update::new(key, newest, Source::Replace(content));
            update.included = member.newer.lower(key.extent, newest);
            updates.push(update);
        }
        for extent in delete {
            let key = ExtentKey::new(id, extent);
            let mut update = Update::new(key, member.applied_index, Source::Delete);
            update.included = member.newer.lower(extent, 0);
            updates.push(update);
        }
        for update in &updates {
            if let Some(overlay) = member.overlay.get_mut(update.key.extent) {
                overlay.busy = true;
            }
        }
        self.start_round(core, repair, updates, WRITES_MAX, Some((read, refused)));
    }

    /// Starts the round that writes an extent anew, into another slot.
    pub(super) fn start_move(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        key: ExtentKey,
        content: ExtentContent,
    ) {
        if core.live(key.member).is_some() {
            let update = Update::new(key, content.last_changed, Source::Move(content));
            self.start_round(core, repair, vec![update], 1, None);
        }
    }

    fn start_round(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        mut updates: Vec<Update>,
        writes_max: usize,
        install: Option<(ReadId, Vec<Extent>)>,
    ) {
        assert!(!self.is_busy(), "one round at a time");
        if updates.is_empty() && install.is_none() {
            return;
        }
        let mut keys = Vec::new();
        for update in &mut updates {
            let member = &core.members[&update.key.member];
            if !member.presence.get(update.key.extent) {
                continue;
            }
            match core.records.get(&update.key) {
                Some(known) => update.old = known.cloned(),
                None => keys.push(update.key),
            }
        }
        let mut outstanding = 0;
        if !keys.is_empty() {
            outstanding += 1;
            let pending = Pending::Round(RoundOp::Records { keys: keys.clone() });
            core.io.index(pending, IndexJob::Get { keys });
        }
        for (number, update) in updates.iter().enumerate() {
            outstanding += read_back(core, number, update);
        }
        self.round =
            Some(Round { updates, outstanding, writes: VecDeque::new(), writes_max, install });
        if outstanding == 0 {
            self.write(core, repair);
        }
    }

    /// An effect of the round ended.
    pub(super) fn complete(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        op: RoundOp,
        done: Done,
    ) {
        match (op, done) {
            (RoundOp::Records { keys }, Done::Index(IndexDone::Got(got))) => {
                self.records_got(core, repair, keys, got);
            }
            (RoundOp::Payload(run), Done::Read(data)) => {
                self.payload_read(core, repair, run, Some(data));
            }
            (RoundOp::Payload(run), Done::Failed(..)) => {
                self.payload_read(core, repair, run, None);
            }
            (RoundOp::Write, Done::Written) => self.written(core, repair),
            (RoundOp::Sync, Done::Synced) => self.commit(core, repair),
            (RoundOp::Commit, Done::Index(IndexDone::Committed)) => self.committed(core, repair),
            (_, done) => panic!("an effect of a round ended as {done:?}"),
        }
    }

    fn round(&mut self) -> &mut Round {
        self.round.as_mut().expect("in flight")
    }

    fn records_got(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        keys: Vec<ExtentKey>,
        got: Vec<Option<ExtentRecord>>,
    ) {
        let mut answers = keys.into_iter().zip(got).peekable();
        for update in &mut self.round().updates {
            if let Some((key, record)) = answers.next_if(|(key, _)| *key == update.key) {
                if record.is_none() {
                    core.io.poison(format!("the index lost {key:?}"));
                    return;
                }
                core.records.learn(key, record.clone());
                update.old = record;
            }
        }
        self.one_less(core, repair);
    }

    fn payload_read(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        run: PayloadRun,
        data: Option<Bytes>,
    ) {
        core.log.unpin(run.seq);
        let update = &mut self.round().updates[run.update];
        if data.and_then(|data| keep_payload(core, update, run, data)).is_none() {
            // The log does not give back what it held of an extent. The rest goes on.
            update.outcome = Outcome::Skipped;
            repair.park(core, update.key);
        }
        self.one_less(core, repair);
    }

    fn one_less(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let round = self.round();
        round.outstanding -= 1;
        if round.outstanding == 0 {
            self.write(core, repair);
        }
    }

    /// Everything is in memory: finds slots and writes.
    fn write(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let mut round = self.round.take().expect("in flight");
        for update in round.updates.iter_mut().filter(|update| update.outcome.is_done()) {
            update.outcome = self.decide(core, update);
            if let Outcome::Put(record) = &update.outcome {
                update.writes(record.slot, &core.pool, &mut round.writes);
            }
        }
        round.outstanding = 0;
        let any = !round.writes.is_empty();
        self.round = Some(round);
        if any {
            self.issue_writes(core);
        } else {
            self.commit(core, repair);
        }
    }

    /// What becomes of an extent, with its slot.
    fn decide(&mut self, core: &mut Core, update: &Update) -> Outcome {
        let Some(member) = core.members.get(&update.key.member) else { return Outcome::Skipped };
        if let Source::Move(content) = &update.source {
            let record = moved_record(update.old.as_ref(), content, &mut core.alloc);
            return record.map_or(Outcome::Skipped, Outcome::Put);
        }
        let Some(record) = update.record(member) else { return Outcome::Delete };
        match self.slot_for(core, update) {
            Ok(slot) => Outcome::Put(ExtentRecord { slot, ..record }),
            Err(outcome) => outcome,
        }
    }

    /// Where an update goes: never into a slot that an entry of the log names (rule R6), unless it
    /// changes nothing in there.
    fn slot_for(&mut self, core: &mut Core, update: &Update) -> Result<Slot, Outcome> {
        if let Some(adopted) = update.adopted {
            return Ok(adopted);
        }
        let old = update.old.as_ref().map(|old| old.slot);
        let is_named =
            |old: &Slot| core.alloc.is_named(*old) && !planted(Mistake::NamedSlotWritten);
        match (old.filter(is_named), &update.source) {
            (Some(named), _) if !update.has_data() => return Ok(named),
            (Some(_), Source::Overlay(_)) => return Err(Outcome::Parked),
            // The whole extent is here, so it may as well move.
            (Some(_), Source::Replace(_) | Source::Delete | Source::Move(_)) => {}
            (None, _) => {
                if let Some(old) = old {
                    return Ok(old);
                }
            }
        }
        // What was applied has been promised a slot; a copy takes none of those (rule R10).
        let is_promised =
            matches!(update.source, Source::Overlay(_)) || has_reserved(core, update.key);
        let may_take =
            is_promised || core.alloc.free_unreserved() > 0 || planted(Mistake::CopyTakesPromised);
        may_take.then(|| core.alloc.allocate()).flatten().ok_or_else(|| {
            self.starved = true;
            Outcome::Skipped
        })
    }

    fn issue_writes(&mut self, core: &mut Core) {
        let round = self.round();
        while round.outstanding < round.writes_max.max(1) {
            let Some((offset, bufs)) = round.writes.pop_front() else {
                break;
            };
            round.outstanding += 1;
            core.io.write(Pending::Round(RoundOp::Write), LaneFile::Data, offset, bufs, false);
        }
    }

    fn written(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        self.round().outstanding -= 1;
        self.issue_writes(core);
        if self.round().outstanding > 0 {
            return;
        }
        match planted(Mistake::IndexBeforeData) {
            true => self.commit(core, repair),
            false => core.io.sync(Pending::Round(RoundOp::Sync), LaneFile::Data),
        }
    }

    /// The data is durable: now the records may say so.
    fn commit(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let updates = &self.round().updates;
        let mut edits = Vec::with_capacity(updates.len());
        for update in updates {
            let Some(member) = core.members.get_mut(&update.key.member) else {
                continue;
            };
            match &update.outcome {
                Outcome::Put(record) => {
                    edits.push(IndexEdit::Put(update.key, record.clone()));
                    member.presence.set(update.key.extent, true);
                    core.records.commit(update.key, Some(record.clone()));
                }
                Outcome::Delete if update.old.is_some() => {
                    edits.push(IndexEdit::Delete(update.key));
                    member.presence.set(update.key.extent, false);
                    core.records.commit(update.key, None);
                }
                Outcome::Delete | Outcome::Skipped | Outcome::Parked => {}
                Outcome::Undecided => unreachable!("decided before the writes"),
            }
        }
        if edits.is_empty() {
            return self.finish(core, repair);
        }
        let job = IndexJob::Commit { edits, flush: false };
        core.io.index(Pending::Round(RoundOp::Commit), job);
    }

    fn committed(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        for update in &self.round().updates {
            let old = update.old.as_ref().map(|old| old.slot);
            match &update.outcome {
                Outcome::Put(record) => {
                    core.records.committed(&update.key);
                    if let Some(old) = old.filter(|old| *old != record.slot) {
                        core.alloc.free(old);
                    }
                }
                Outcome::Delete => {
                    if let Some(old) = old {
                        core.records.committed(&update.key);
                        core.alloc.free(old);
                    }
                }
                Outcome::Skipped | Outcome::Parked | Outcome::Undecided => {}
            }
        }
        core.unflushed = true;
        self.finish(core, repair);
    }

    /// The records are committed: the overlay lets go of what was not superseded.
    fn finish(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let round = self.round.take().expect("in flight");
        core.stale = true;
        let mut install = round.install;
        for update in round.updates {
            let (key, done) = (update.key, update.outcome.is_done());
            if let Some(adopted) = update.adopted.filter(|_| !done) {
                core.alloc.disown(adopted);
            }
            if !core.members.contains_key(&key.member) {
                continue;
            }
            if let (Source::Replace(_), false, Some((_, refused))) =
                (&update.source, done, &mut install)
            {
                refused.push(key.extent);
            }
            let is_parked = update.outcome == Outcome::Parked;
            match done {
                true => settle(core, repair, update),
                false => leave(core, update),
            }
            self.let_go(core, repair, key, is_parked);
        }
        if let Some((read, refused)) = install {
            core.io.events.push(Event::Installed { read, refused });
        }
    }

    /// The extent is in no round any more.
    fn let_go(&mut self, core: &mut Core, repair: &ReadRepair, key: ExtentKey, is_parked: bool) {
        let member = core.members.get_mut(&key.member).expect("just seen");
        if let Some(overlay) = member.overlay.get_mut(key.extent) {
            overlay.busy = false;
            overlay.queued |= repair.is_parked(&key) || is_parked;
            if is_parked {
                self.parked.push((key.member, key.extent));
            }
        }
        core.overlay_changed(key.member, key.extent);
    }
}

/// Takes an extent off the queue, as it is now.
fn take(core: &mut Core, repair: &ReadRepair, key: ExtentKey) -> Look {
    let Some(member) = core.members.get_mut(&key.member) else { return Look::Nothing };
    let covered = member.hard.durable_commit;
    let Some(overlay) = member.overlay.get_mut(key.extent) else { return Look::Nothing };
    if member.phase != Phase::Live {
        return Look::Nothing;
    }
    if overlay.busy {
        // It is in this round already, and is queued again at its end.
        overlay.queued = false;
        return Look::Nothing;
    }
    if overlay.newest() > covered && !planted(Mistake::WrittenBackUncovered) {
        return Look::Uncovered;
    }
    overlay.queued = false;
    overlay.busy = true;
    let patch = repair.patch(&key);
    // What is newer than a redirected entry waits for the next round.
    let redirected = overlay.redirected();
    let of_round = |index: u64| redirected.is_none_or(|(redirected, _)| index == redirected);
    let blocks = overlay.iter().filter(|(_, block)| of_round(block.index));
    let snapshots = blocks.map(|(position, block)| Snapshot::new(position, block, patch));
    let newest = redirected.map_or(overlay.newest(), |(index, _)| index);
    let mut update = Update::new(key, newest, Source::Overlay(snapshots.collect()));
    if let Some((_, slot)) = redirected {
        update.adopted = Some(slot);
        core.alloc.adopt(slot);
    }
    Look::Taken(update)
}

/// Reads the payloads of an update that are not in memory; returns the number of effects.
fn read_back(core: &mut Core, number: usize, update: &Update) -> usize {
    let Source::Overlay(snapshots) = &update.source else {
        return 0;
    };
    let member = &core.members[&update.key.member];
    let mut runs: Vec<(PayloadRun, u64)> = Vec::new();
    for (at, snapshot) in snapshots.iter().enumerate() {
        let Content::Log { position } = snapshot.content else {
            continue;
        };
        if snapshot.data.is_some() {
            continue;
        }
        let (seq, offset) = member.log_offset(snapshot.index, position);
        if let Some((run, start)) = runs.last_mut()
            && run.seq == seq
            && run.first + run.count == at
            && *start + (run.count * BLOCK_BYTES) as u64 == offset
        {
            run.count += 1;
            continue;
        }
        let run = PayloadRun { update: number, first: at, count: 1, seq };
        runs.push((run, offset));
    }
    for (run, offset) in &runs {
        core.log.pin(run.seq);
        let pending = Pending::Round(RoundOp::Payload(*run));
        core.io.read(pending, LaneFile::Wal, *offset, run.count * BLOCK_BYTES);
    }
    runs.len()
}

/// Keeps what was read back of an update; `None`: it is not what the checksums say.
fn keep_payload(core: &Core, update: &mut Update, run: PayloadRun, data: Bytes) -> Option<()> {
    let Source::Overlay(snapshots) = &mut update.source else {
        unreachable!("only overlay blocks are read back");
    };
    if data.len() != run.count * BLOCK_BYTES {
        return None;
    }
    let member = core.members.get(&update.key.member);
    let snapshots = &mut snapshots[run.first..run.first + run.count];
    for (number, snapshot) in snapshots.iter_mut().enumerate() {
        let bytes = data.slice(number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES);
        let at = Block(update.key.extent.first_block().0 + snapshot.position);
        if member.and_then(|member| member.first_bad(at, &bytes, &[snapshot.crc])).is_some() {
            return None;
        }
        snapshot.data = Some(bytes);
    }
    Some(())
}

/// True when entries that were applied to the extent have a slot reserved for it.
fn has_reserved(core: &Core, key: ExtentKey) -> bool {
    let member = core.members.get(&key.member);
    let overlay = member.and_then(|member| member.overlay.get(key.extent));
    overlay.is_some_and(|overlay| overlay.reserved)
}

/// The overlay and read repair let go of what the round brought into the index.
fn settle(core: &mut Core, repair: &mut ReadRepair, update: Update) {
    let Update { key, source, newest, .. } = update;
    let member = core.members.get_mut(&key.member).expect("just seen");
    match source {
        Source::Overlay(snapshots) => {
            for snapshot in snapshots {
                let at = Block(key.extent.first_block().0 + snapshot.position);
                member.overlay.settle(at, snapshot.index);
            }
            repair.written_back(&key);
        }
        Source::Replace(_) => {
            member.overlay.drop_up_to(key.extent, newest);
            if newest > member.applied_index {
                member.newer.note(key.extent, newest);
            }
            repair.replaced(&key);
        }
        Source::Delete => {
            member.overlay.drop_up_to(key.extent, newest);
            repair.replaced(&key);
        }
        Source::Move(_) => {
            repair.moved(&key);
            core.clock.unsettle();
        }
    }
}

/// The extent is as it was: entries that it has already are not wanted a second time.
fn leave(core: &mut Core, update: Update) {
    let Update { key, source, included, .. } = update;
    let member = core.members.get_mut(&key.member).expect("just seen");
    if let (Source::Replace(_), Some(included)) = (source, included) {
        member.newer.note(key.extent, included);
        member.overlay.drop_up_to(key.extent, included);
    }
}
