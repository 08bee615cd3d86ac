//! Write-back: moves whole extents from the overlay into the data file, in rounds. A round takes
//! all dirty blocks of its extents, reads back those that are not in memory, writes them, makes the
//! data file durable, and only then commits the records (rule `data-before-index`). Blocks that are
//! superseded meanwhile wait for a later round. Installs of a resync and moves of read repair are
//! rounds, too. One round runs at a time; an extent is in no two rounds.
//!
//! Owns the round, and the extents whose slot the log still names; may borrow the core, and read
//! repair; hears what to write back, and of effects and flushes that ended.

use crate::planted::planted;
use crate::store::core::{Clock, Core};
use crate::store::effects::{PayloadRun, Pending, RoundOp};
use crate::store::member::LaneMember;
use crate::store::messages::{
    Done, Event, ExtentKey, ExtentRecord, IndexDone, IndexEdit, IndexJob, LaneFile, Slot,
};
use crate::store::overlay::Content;
use crate::store::read_repair::ReadRepair;
use crate::store::round::{Install, Outcome, Round, Snapshot, Source, Update, moved_record};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, Extent, MemberId, Mono};

/// Extents of one round, at the lowest and the highest pressure.
const EXTENTS_MIN: usize = 8;
const EXTENTS_MAX: usize = 256;
/// Extents that only lose blocks, for each of these: they write nothing to the data file.
const ZEROED_PER_EXTENT: usize = 4;
/// Data writes in flight at the same time.
const WRITES_MIN: usize = 4;
const WRITES_MAX: usize = 32;

#[derive(Default)]
pub(super) struct WriteBack {
    round: Option<Round>,
    /// A round found no free slot.
    pub starved: bool,
    /// Extents whose slot a log entry still names (rule `named-slot-is-immutable`). They wait for a
    /// flush that ends this. Not in the queue, but marked as if they were.
    pub parked: Vec<(MemberId, Extent)>,
}

impl WriteBack {
    pub(super) fn is_busy(&self) -> bool {
        self.round.is_some()
    }

    /// A flush ended: it may have freed slots, or dropped the names that extents wait for.
    pub(super) fn flushed(&mut self, core: &mut Core) {
        self.starved = false;
        core.dirty.extend(self.parked.drain(..));
    }

    /// Starts a round as large as `pressure` (0 to 1, or more) asks for.
    pub(super) fn pace(&mut self, core: &mut Core, repair: &mut ReadRepair, pressure: f64) {
        let between = |low: usize, high: usize| {
            let share = (high - low) as f64 * pressure.min(1.0);
            low + share as usize
        };
        if !self.is_busy() {
            let extents = between(EXTENTS_MIN, EXTENTS_MAX);
            self.start(core, repair, extents, between(WRITES_MIN, WRITES_MAX));
        }
    }

    /// Starts a round of up to `extents_max` extents, if any may be written back: a durable
    /// HardState covers all their changes (rule `write-back-after-durable-commit`).
    pub(super) fn start(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        extents_max: usize,
        writes_max: usize,
    ) {
        let (mut updates, mut uncovered) = (Vec::new(), Vec::new());
        let mut room = extents_max * ZEROED_PER_EXTENT;
        for _ in 0..core.dirty.len().min(4 * extents_max) {
            if room == 0 {
                break;
            }
            if let Some(update) = take_dirty(core, repair, &mut uncovered) {
                let size = if update.only_zeroes() { 1 } else { ZEROED_PER_EXTENT };
                room = room.saturating_sub(size);
                updates.push(update);
            }
        }
        // Back to the front: at the end, one would hold the log's tail until all others are done.
        for extent in uncovered.into_iter().rev() {
            core.dirty.push_front(extent);
        }
        if !updates.is_empty() {
            self.start_round(core, repair, Round::new(updates, writes_max));
        }
    }

    pub(super) fn install(&mut self, core: &mut Core, repair: &mut ReadRepair, install: Install) {
        let Install { read, member: id, as_of, extents, delete, mut refused } = install;
        // If the log was faster, the source's extents are too old (rule `resync-never-goes-back`).
        // Entries applied from now on stay in the overlay.
        let fits =
            |member: &&mut LaneMember| member.applied_index <= as_of || planted!(ResyncGoesBack);
        let Some(member) = core.members.get_mut(&id).filter(fits) else {
            refused.extend(extents.iter().map(|content| content.extent));
            refused.extend(delete);
            core.io.events.push(Event::Installed { read, refused });
            return;
        };
        let applied = member.applied_index;
        let replaced = extents.into_iter().map(|content| {
            (content.extent, content.last_changed, content.last_changed, Source::Replace(content))
        });
        let deleted = delete.into_iter().map(|extent| (extent, applied, 0, Source::Delete));
        let mut updates = Vec::new();
        for (extent, newest, reflects, source) in replaced.chain(deleted) {
            let mut update = Update::new(ExtentKey::new(id, extent), newest, source);
            update.included = member.newer.lower(extent, reflects);
            if let Some(overlay) = member.overlay.get_mut(extent) {
                overlay.busy = true;
            }
            updates.push(update);
        }
        let install = Some((read, refused));
        self.start_round(core, repair, Round { install, ..Round::new(updates, WRITES_MAX) });
    }

    /// Starts the round that moves an extent to another slot, if read repair has one.
    pub(super) fn start_move(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let Some((key, content)) = repair.next_move() else { return };
        if core.live(key.member).is_some() {
            let update = Update::new(key, content.last_changed, Source::Move(content));
            self.start_round(core, repair, Round::new(vec![update], 1));
        }
    }

    fn start_round(&mut self, core: &mut Core, repair: &mut ReadRepair, mut round: Round) {
        assert!(!self.is_busy(), "one round at a time");
        let mut keys = Vec::new();
        for update in &mut round.updates {
            let member = &core.members[&update.key.member];
            if !member.presence.get(update.key.extent) {
                continue;
            }
            match core.records.get(&update.key) {
                Some(known) => update.old = known.cloned(),
                None => keys.push(update.key),
            }
        }
        if !keys.is_empty() {
            round.in_flight += 1;
            let pending = Pending::Round(RoundOp::Records { keys: keys.clone() });
            core.io.index(pending, IndexJob::Get { keys });
        }
        for (number, update) in round.updates.iter().enumerate() {
            round.in_flight += read_back(core, number, update);
        }
        let at_once = round.in_flight == 0;
        self.round = Some(round);
        if at_once {
            self.write(core, repair);
        }
    }

    pub(super) fn complete(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        op: RoundOp,
        done: Done,
    ) {
        match (op, done) {
            (RoundOp::Records { keys }, Done::Index(IndexDone::Got(got))) => {
                self.learn(core, keys, got);
                self.one_less(core, repair);
            }
            (RoundOp::Payload(run), done @ (Done::Read(_) | Done::Failed(..))) => {
                self.payload(core, repair, run, done);
                self.one_less(core, repair);
            }
            (RoundOp::Write, Done::Written) => self.written(core, repair),
            (RoundOp::Sync, Done::Synced) => self.commit(core, repair),
            (RoundOp::Commit, Done::Index(IndexDone::Committed)) => self.committed(core, repair),
            _ => panic!("an effect of a round ended as another kind"),
        }
    }

    fn round(&mut self) -> &mut Round {
        self.round.as_mut().expect("in flight")
    }

    fn learn(&mut self, core: &mut Core, keys: Vec<ExtentKey>, got: Vec<Option<ExtentRecord>>) {
        let mut answers = keys.into_iter().zip(got).peekable();
        for update in &mut self.round().updates {
            if let Some((key, record)) = answers.next_if(|(key, _)| *key == update.key) {
                if record.is_none() {
                    return core.io.poison(format!("the index lost {key:?}"));
                }
                // A record that is about to go takes no place of others in the cache.
                if !update.only_zeroes() {
                    core.records.learn(key, record.clone());
                }
                update.old = record;
            }
        }
    }

    fn payload(&mut self, core: &mut Core, repair: &mut ReadRepair, run: PayloadRun, done: Done) {
        core.log.unpin(run.seq);
        let update = &mut self.round().updates[run.update];
        if !keep_payload(core, update, run, done) {
            // The log cannot give back the payload of an extent. The others go on.
            update.outcome = Outcome::Skipped;
            repair.park(core, update.key);
        }
    }

    fn one_less(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let round = self.round();
        round.in_flight -= 1;
        if round.in_flight == 0 && !core.io.poisoned() {
            self.write(core, repair);
        }
    }

    /// All payloads are in memory: finds slots and writes.
    fn write(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let mut round = self.round.take().expect("in flight");
        for update in round.updates.iter_mut().filter(|update| update.outcome.is_done()) {
            update.outcome = self.decide(core, update);
            if let Outcome::Put(record) = &update.outcome {
                update.writes(record.slot, &core.pool, &mut round.writes);
            }
        }
        round.in_flight = 0;
        let any = !round.writes.is_empty();
        self.round = Some(round);
        if any {
            self.issue_writes(core);
        } else {
            self.commit(core, repair);
        }
    }

    /// The outcome for an extent, with its slot.
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

    /// The slot for an update. It writes to none that a log entry names (rule
    /// `named-slot-is-immutable`).
    fn slot_for(&mut self, core: &mut Core, update: &Update) -> Result<Slot, Outcome> {
        if let Some(adopted) = update.adopted {
            return Ok(adopted);
        }
        let old = update.old.as_ref().map(|old| old.slot);
        let is_named = |old: &Slot| core.alloc.is_named(*old) && !planted!(NamedSlotWritten);
        match (old.filter(is_named), &update.source) {
            (Some(named), _) if !update.has_data() => return Ok(named),
            (Some(_), Source::Overlay(..)) => return Err(Outcome::Parked),
            // The whole extent is here, so it can move.
            (Some(_), Source::Replace(_) | Source::Delete | Source::Move(_)) => {}
            (None, _) => {
                if let Some(old) = old {
                    return Ok(old);
                }
            }
        }
        // A copy takes no slot promised to applied writes (rule `space-before-append`).
        let overlay = core.members[&update.key.member].overlay.get(update.key.extent);
        let is_promised = matches!(update.source, Source::Overlay(..))
            || overlay.is_some_and(|overlay| overlay.reserved);
        let may_take =
            is_promised || core.alloc.free_unreserved() > 0 || planted!(CopyTakesPromised);
        may_take.then(|| core.alloc.allocate()).flatten().ok_or_else(|| {
            self.starved = true;
            Outcome::Skipped
        })
    }

    fn issue_writes(&mut self, core: &mut Core) {
        let round = self.round();
        while round.in_flight < round.writes_max.max(1) {
            let Some((offset, bufs)) = round.writes.pop_front() else { break };
            round.in_flight += 1;
            core.io.write(Pending::Round(RoundOp::Write), LaneFile::Data, offset, bufs, false);
        }
    }

    fn written(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        self.round().in_flight -= 1;
        self.issue_writes(core);
        if self.round().in_flight > 0 {
            return;
        }
        match planted!(IndexBeforeData) {
            true => self.commit(core, repair),
            false => core.io.sync(Pending::Round(RoundOp::Sync), LaneFile::Data),
        }
    }

    /// The data is durable: now the records may be committed.
    fn commit(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let updates = &self.round().updates;
        let mut edits = Vec::with_capacity(updates.len());
        for update in updates {
            let Some(member) = core.members.get_mut(&update.key.member) else { continue };
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
                        core.records.deleted(&update.key);
                        core.alloc.free(old);
                    }
                }
                Outcome::Skipped | Outcome::Parked | Outcome::Undecided => {}
            }
        }
        core.unflushed = true;
        self.finish(core, repair);
    }

    /// The records are committed: the overlay drops the blocks that were not superseded.
    fn finish(&mut self, core: &mut Core, repair: &mut ReadRepair) {
        let Round { updates, install, .. } = self.round.take().expect("in flight");
        let (read, refused) = install.unzip();
        let mut refused = refused.unwrap_or_default();
        core.stale = true;
        core.settled_extents += updates.len() as u64;
        for update in updates {
            let key = update.key;
            if let Some(adopted) = update.adopted.filter(|_| !update.outcome.is_done()) {
                core.alloc.disown(adopted);
            }
            let Some(member) = core.members.get_mut(&key.member) else { continue };
            let is_parked = update.outcome == Outcome::Parked;
            settle(member, &mut core.clock, repair, update, &mut refused);
            if let Some(overlay) = member.overlay.get_mut(key.extent) {
                overlay.busy = false;
                overlay.queued |= repair.parked.contains(&key) || is_parked;
                if is_parked {
                    self.parked.push((key.member, key.extent));
                }
            }
            core.overlay_changed(key.member, key.extent);
        }
        if let Some(read) = read {
            core.io.events.push(Event::Installed { read, refused });
        }
    }
}

/// Takes the first extent off the queue; returns its update, if it can be written back now.
fn take_dirty(
    core: &mut Core,
    repair: &ReadRepair,
    uncovered: &mut Vec<(MemberId, Extent)>,
) -> Option<Update> {
    let (id, extent) = core.dirty.pop_front()?;
    let key = ExtentKey::new(id, extent);
    let member = core.live_mut(id)?;
    let covered = member.hard.durable_commit;
    let overlay = member.overlay.get_mut(extent)?;
    if overlay.busy {
        // It is in this round already, which queues it again at its end.
        overlay.queued = false;
        return None;
    }
    if overlay.newest() > covered && !planted!(WrittenBackUncovered) {
        uncovered.push((id, extent));
        return None;
    }
    overlay.queued = false;
    overlay.busy = true;
    let patch = repair.patch(&key);
    // Blocks newer than a bypassed entry wait for the next round.
    let bypassed = overlay.bypassed();
    let of_round = |index: u64| bypassed.is_none_or(|(bypassed, _)| index == bypassed);
    let blocks = overlay.written().filter(|(_, block)| of_round(block.index));
    let snapshots = blocks.map(|(position, block)| Snapshot::new(position, block, patch));
    let zeroes = overlay.zeroes().iter().filter(|run| of_round(run.index)).copied();
    let newest = bypassed.map_or(overlay.newest(), |(index, _)| index);
    let source = Source::Overlay(snapshots.collect(), zeroes.collect());
    let mut update = Update::new(key, newest, source);
    if let Some((_, slot)) = bypassed {
        update.adopted = Some(slot);
        core.alloc.adopt(slot);
    }
    Some(update)
}

/// Reads the payloads of an update that are not in memory; returns the number of effects.
fn read_back(core: &mut Core, number: usize, update: &Update) -> usize {
    let Source::Overlay(snapshots, _) = &update.source else { return 0 };
    let member = &core.members[&update.key.member];
    let mut runs: Vec<(PayloadRun, u64)> = Vec::new();
    for (at, snapshot) in snapshots.iter().enumerate() {
        let Content::Log { position } = snapshot.content else { continue };
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

/// Keeps the payloads that were read back; false: one fails its checksum.
fn keep_payload(core: &Core, update: &mut Update, run: PayloadRun, done: Done) -> bool {
    let Source::Overlay(snapshots, _) = &mut update.source else {
        unreachable!("only overlay blocks are read back");
    };
    let data = match done {
        Done::Read(data) if data.len() == run.count * BLOCK_BYTES => data,
        _ => return false,
    };
    let (key, member) = (update.key, core.members.get(&update.key.member));
    let snapshots = snapshots[run.first..run.first + run.count].iter_mut().enumerate();
    { snapshots }.all(|(number, snapshot)| {
        let bytes = data.slice(number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES);
        let at = Block(key.extent.first_block().0 + snapshot.position);
        let bad = member.and_then(|member| member.first_bad(at, &bytes, &[snapshot.crc]));
        snapshot.data = Some(bytes);
        bad.is_none()
    })
}

/// The overlay and read repair drop the blocks that the round brought into the index.
fn settle(
    member: &mut LaneMember,
    clock: &mut Clock,
    repair: &mut ReadRepair,
    update: Update,
    refused: &mut Vec<Extent>,
) {
    let (key, extent, done) = (update.key, update.key.extent, update.outcome.is_done());
    match update.source {
        Source::Overlay(snapshots, zeroes) if done => {
            let mut written = [0; BLOCKS_PER_EXTENT as usize];
            snapshots.iter().for_each(|it| written[it.position as usize] = it.index);
            member.overlay.settle(extent, &written, &zeroes);
            repair.written_back(&key);
        }
        Source::Replace(_) if done => {
            member.overlay.drop_up_to(extent, update.newest);
            if update.newest > member.applied_index {
                member.newer.note(extent, update.newest);
            }
            repair.replaced(&key);
        }
        Source::Delete if done => {
            member.overlay.drop_up_to(extent, update.newest);
            repair.replaced(&key);
        }
        Source::Replace(_) => {
            // The record is unchanged: the entries that it includes are not needed again.
            if let Some(included) = update.included {
                member.newer.note(extent, included);
                member.overlay.drop_up_to(extent, included);
            }
            refused.push(extent);
        }
        Source::Move(_) if done => {
            repair.moved(&key);
            // Nothing was applied, but the move has to become durable.
            clock.settled = Mono::default();
        }
        Source::Overlay(..) | Source::Delete | Source::Move(_) => {}
    }
}
