//! Write-back: moves whole extents from the overlay into the data file, in rounds. A round takes
//! all overlay blocks of each of its extents, reads back what is not in memory, writes it, makes
//! the data file durable, and only then commits the records (rule R2). What was superseded
//! meanwhile stays in the overlay for a later round. Installing the extents of a resync is a round
//! too.
//!
//! One round is under way at a time; an extent is in no two rounds.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::io::buffer::is_aligned;
use crate::planted::{Mistake, planted};
use crate::store::effects::Pending;
use crate::store::lane::Lane;
use crate::store::member::{Member, Phase};
use crate::store::mend::{key_of as key, moved_record, patched};
use crate::store::overlay::Content;
use crate::store::read::first_bad;
use crate::store::seam::{
    Event, ExtentKey, ExtentRecord, IndexEdit, IndexJob, LaneFile, ReadId, Slot,
};
use crate::store::wal::BatchSeq;
use crate::types::{BLOCK_BYTES, Block, EXTENT_BYTES, Extent, ExtentContent, MemberId};

/// See the module.
#[derive(Default)]
pub(super) struct WriteBack {
    /// Extents with overlay blocks, oldest first; each once.
    pub queue: VecDeque<(MemberId, Extent)>,
    pub round: Option<Round>,
    /// Extents of resyncs that wait for their round.
    pub installs: VecDeque<Install>,
    /// A round found no free slot.
    pub starved: bool,
    /// Members to be destroyed as soon as no round is under way.
    pub doomed: Vec<MemberId>,
    /// Extents whose slot is still named by an entry of the log (rule R6): they wait for a flush
    /// to let go of it. Off the queue, and marked as if they were on it.
    pub parked: Vec<(MemberId, Extent)>,
}

/// Extents that were brought by a resync.
pub(super) struct Install {
    pub read: ReadId,
    pub member: MemberId,
    /// What the source had applied, at least.
    pub as_of: u64,
    pub extents: Vec<ExtentContent>,
    pub delete: Vec<Extent>,
    /// Malformed, not matching their checksums, or without a slot.
    pub refused: Vec<Extent>,
}

/// One round.
pub(super) struct Round {
    updates: Vec<Update>,
    /// Effects of the current stage under way.
    outstanding: usize,
    /// Data writes that were not started yet: offset and memory.
    writes: VecDeque<(u64, Vec<Bytes>)>,
    writes_max: usize,
    /// The install that this round carries out.
    install: Option<(ReadId, Vec<Extent>)>,
}

/// What happens to one extent.
struct Update {
    key: ExtentKey,
    source: Source,
    /// The slot that a redirected entry wrote: the record takes it over as it is.
    adopted: Option<Slot>,
    /// Newest change that is included.
    newest: u64,
    old: Option<ExtentRecord>,
    /// What the record that an install replaces included of entries to come.
    included: Option<u64>,
    /// Known once the slot is.
    outcome: Outcome,
}

enum Source {
    /// Blocks of the overlay.
    Overlay(Vec<Snapshot>),
    /// The whole extent; drops what the overlay had.
    Replace(ExtentContent),
    /// The extent is gone; so is what the overlay had.
    Delete,
    /// The same blocks, as another replica has them, in another slot.
    Move(ExtentContent),
}

/// One overlay block as of the start of the round.
struct Snapshot {
    position: u32,
    index: u64,
    crc: u32,
    content: Content,
    data: Option<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Undecided,
    Put(ExtentRecord),
    /// The record, when there is one, is deleted.
    Delete,
    /// There was no slot, or its bytes are not to be had.
    Skipped,
    /// An entry of the log names its slot.
    Parked,
}

/// Neighbouring payload blocks that are read back from the log with one effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct PayloadRun {
    update: usize,
    first: usize,
    count: usize,
    seq: BatchSeq,
}

impl Lane {
    /// Starts a round of at most `extents_max` extents, if there are any that may be written
    /// back: those whose every change a durable HardState covers (rule R7).
    pub(super) fn start_writeback(&mut self, extents_max: usize, writes_max: usize) {
        assert!(self.writeback.round.is_none(), "one round at a time");
        let mut updates = Vec::new();
        let mut uncovered = Vec::new();
        let mut looks = self.writeback.queue.len().min(4 * extents_max);
        while looks > 0 && updates.len() < extents_max {
            looks -= 1;
            let Some((id, extent)) = self.writeback.queue.pop_front() else {
                break;
            };
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            let covered = member.hard.durable_commit;
            let Some(overlay) = member.overlay.get_mut(extent) else {
                continue;
            };
            if member.phase != Phase::Live {
                continue;
            }
            if overlay.busy {
                // It is in this round already, and is queued again at its end.
                overlay.queued = false;
                continue;
            }
            if overlay.newest() > covered && !planted(Mistake::WrittenBackUncovered) {
                uncovered.push((id, extent));
                continue;
            }
            overlay.queued = false;
            overlay.busy = true;
            let patch = self.mends.patch(&key(id, extent));
            let mended = |position: u32, block: &crate::store::overlay::OverlayBlock| {
                patched(patch, position, block.crc, block.index)
            };
            let snapshot =
                |(position, block): (u32, &crate::store::overlay::OverlayBlock)| Snapshot {
                    position,
                    index: block.index,
                    crc: block.crc,
                    content: block.content,
                    data: block.cached.clone().or_else(|| mended(position, block)),
                };
            // What is newer than a redirected entry waits for the next round.
            let redirected = overlay.redirected();
            let blocks = overlay.iter().filter(|(_, block)| match redirected {
                Some((index, _)) => block.index == index,
                None => true,
            });
            updates.push(Update {
                key: key(id, extent),
                newest: redirected.map_or(overlay.newest(), |(index, _)| index),
                source: Source::Overlay(blocks.map(snapshot).collect()),
                adopted: redirected.map(|(_, slot)| slot),
                old: None,
                included: None,
                outcome: Outcome::Undecided,
            });
            if let Some((_, slot)) = redirected {
                self.alloc.adopt(slot);
            }
        }
        // They keep their place: at the end of the queue, one of them would hold the log's tail
        // until all others are written back.
        for extent in uncovered.into_iter().rev() {
            self.writeback.queue.push_front(extent);
        }
        self.start_round(updates, writes_max, None);
    }

    /// Starts the round of the next install.
    pub(super) fn start_install(&mut self, install: Install, writes_max: usize) {
        assert!(self.writeback.round.is_none(), "one round at a time");
        let mut updates = Vec::new();
        let mut refused = install.refused;
        // The log was faster: what the source had is older than what is here. Entries that are
        // applied from now on stay in the overlay.
        let applied = |member: &&mut Member| {
            member.applied_index <= install.as_of || planted(Mistake::ResyncGoesBack)
        };
        let Some(member) = self.members.get_mut(&install.member).filter(applied) else {
            refused.extend(install.extents.iter().map(|content| content.extent));
            refused.extend(install.delete);
            self.io.events.push(Event::Installed { read: install.read, refused });
            return;
        };
        for content in install.extents {
            updates.push(Update {
                key: key(install.member, content.extent),
                newest: content.last_changed,
                source: Source::Replace(content),
                adopted: None,
                old: None,
                included: None,
                outcome: Outcome::Undecided,
            });
        }
        for extent in install.delete {
            updates.push(Update {
                key: key(install.member, extent),
                newest: member.applied_index,
                source: Source::Delete,
                adopted: None,
                old: None,
                included: None,
                outcome: Outcome::Undecided,
            });
        }
        for update in &mut updates {
            let reflects = match &update.source {
                Source::Replace(content) => content.last_changed,
                _ => 0,
            };
            update.included = member.newer.lower(update.key.extent, reflects);
            if let Some(overlay) = member.overlay.get_mut(update.key.extent) {
                overlay.busy = true;
            }
        }
        self.start_round(updates, writes_max, Some((install.read, refused)));
    }

    /// Starts the round that writes an extent anew, into another slot.
    pub(super) fn start_move(&mut self, key: ExtentKey, content: ExtentContent) {
        assert!(self.writeback.round.is_none(), "one round at a time");
        if !self.members.get(&key.member).is_some_and(|member| member.phase == Phase::Live) {
            return;
        }
        let newest = content.last_changed;
        let (source, outcome) = (Source::Move(content), Outcome::Undecided);
        let update =
            Update { key, source, newest, adopted: None, old: None, included: None, outcome };
        self.start_round(vec![update], 1, None);
    }

    fn start_round(
        &mut self,
        mut updates: Vec<Update>,
        writes_max: usize,
        install: Option<(ReadId, Vec<Extent>)>,
    ) {
        if updates.is_empty() && install.is_none() {
            return;
        }
        let mut keys = Vec::new();
        for update in &mut updates {
            let member = &self.members[&update.key.member];
            if !member.presence.get(update.key.extent) {
                continue;
            }
            match self.records.get(&update.key) {
                Some(known) => update.old = known.cloned(),
                None => keys.push(update.key),
            }
        }
        let mut outstanding = 0;
        if !keys.is_empty() {
            outstanding += 1;
            let pending = Pending::RoundRecords { keys: keys.clone() };
            self.io.index(pending, IndexJob::Get { keys });
        }
        for (number, update) in updates.iter().enumerate() {
            outstanding += self.read_back(number, update);
        }
        self.writeback.round =
            Some(Round { updates, outstanding, writes: VecDeque::new(), writes_max, install });
        if outstanding == 0 {
            self.write_round();
        }
    }

    /// Reads the payloads of an update that are not in memory; returns the number of effects.
    fn read_back(&mut self, number: usize, update: &Update) -> usize {
        let Source::Overlay(snapshots) = &update.source else {
            return 0;
        };
        let member = &self.members[&update.key.member];
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
            self.log.pin(run.seq);
            let len = run.count * BLOCK_BYTES;
            self.io.read(Pending::RoundPayload(*run), LaneFile::Wal, *offset, len);
        }
        runs.len()
    }

    pub(super) fn round_records_got(
        &mut self,
        keys: Vec<ExtentKey>,
        got: Vec<Option<ExtentRecord>>,
    ) {
        let round = self.writeback.round.as_mut().expect("under way");
        let mut answers = keys.into_iter().zip(got).peekable();
        for update in &mut round.updates {
            if let Some((key, record)) = answers.next_if(|(key, _)| *key == update.key) {
                if record.is_none() {
                    self.io.poison(format!("the index lost {key:?}"));
                    return;
                }
                self.records.learn(key, record.clone());
                update.old = record;
            }
        }
        self.round_step();
    }

    pub(super) fn round_payload_read(&mut self, run: PayloadRun, data: Option<Bytes>) {
        self.log.unpin(run.seq);
        let round = self.writeback.round.as_mut().expect("under way");
        let update = &mut round.updates[run.update];
        let Source::Overlay(snapshots) = &mut update.source else {
            unreachable!("only overlay blocks are read back");
        };
        let snapshots = &mut snapshots[run.first..run.first + run.count];
        let Some(data) = data.filter(|data| data.len() == run.count * BLOCK_BYTES) else {
            return self.payload_is_rotten(run.update);
        };
        let member = self.members.get(&update.key.member);
        for (number, snapshot) in snapshots.iter_mut().enumerate() {
            let bytes = data.slice(number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES);
            let at = Block(update.key.extent.first_block().0 + snapshot.position);
            let bad = |member| first_bad(member, at, &bytes, &[snapshot.crc]);
            if member.and_then(bad).is_some() {
                return self.payload_is_rotten(run.update);
            }
            snapshot.data = Some(bytes);
        }
        self.round_step();
    }

    /// The log does not give back what it held of an extent. The rest of the round goes on.
    fn payload_is_rotten(&mut self, number: usize) {
        let round = self.writeback.round.as_mut().expect("under way");
        round.updates[number].outcome = Outcome::Skipped;
        let key = round.updates[number].key;
        self.park(key);
        self.round_step();
    }

    fn round_step(&mut self) {
        let round = self.writeback.round.as_mut().expect("under way");
        round.outstanding -= 1;
        if round.outstanding == 0 {
            self.write_round();
        }
    }

    /// Everything is in memory: finds slots and writes.
    fn write_round(&mut self) {
        let mut round = self.writeback.round.take().expect("under way");
        for update in &mut round.updates {
            let Some(member) = self.members.get(&update.key.member) else {
                update.outcome = Outcome::Skipped;
                continue;
            };
            if update.outcome == Outcome::Skipped {
                continue;
            }
            if let Source::Move(content) = &update.source {
                let record = moved_record(update.old.as_ref(), content, &mut self.alloc);
                update.outcome = record.map_or(Outcome::Skipped, Outcome::Put);
                if let Outcome::Put(record) = &update.outcome {
                    update.writes(record.slot, &self.pool, &mut round.writes);
                }
                continue;
            }
            update.outcome = match update.record(member) {
                None => Outcome::Delete,
                Some(mut record) => match self.slot_for(update) {
                    Ok(slot) => {
                        record.slot = slot;
                        Outcome::Put(record)
                    }
                    Err(outcome) => outcome,
                },
            };
            if let Outcome::Put(record) = &update.outcome {
                update.writes(record.slot, &self.pool, &mut round.writes);
            }
        }
        round.outstanding = 0;
        let any = !round.writes.is_empty();
        self.writeback.round = Some(round);
        if any {
            self.issue_writes();
        } else {
            self.commit_round();
        }
    }

    /// Where an update goes: never into a slot that an entry of the log names (rule R6), unless it
    /// changes nothing in there.
    fn slot_for(&mut self, update: &Update) -> Result<Slot, Outcome> {
        if let Some(adopted) = update.adopted {
            return Ok(adopted);
        }
        let old = update.old.as_ref().map(|old| old.slot);
        let is_named =
            |old: &Slot| self.alloc.is_named(*old) && !planted(Mistake::NamedSlotWritten);
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
        let is_promised = matches!(update.source, Source::Overlay(_)) || self.has_reserved(update);
        let may_take =
            is_promised || self.alloc.free_unreserved() > 0 || planted(Mistake::CopyTakesPromised);
        may_take.then(|| self.alloc.allocate()).flatten().ok_or_else(|| {
            self.writeback.starved = true;
            Outcome::Skipped
        })
    }

    /// True when entries that were applied to the extent have a slot reserved for it.
    fn has_reserved(&self, update: &Update) -> bool {
        let member = self.members.get(&update.key.member);
        let overlay = member.and_then(|member| member.overlay.get(update.key.extent));
        overlay.is_some_and(|overlay| overlay.reserved)
    }

    /// A flush may have let go of slots that extents wait for.
    pub(super) fn unpark(&mut self) {
        let parked = std::mem::take(&mut self.writeback.parked);
        self.writeback.queue.extend(parked);
    }

    fn issue_writes(&mut self) {
        let round = self.writeback.round.as_mut().expect("under way");
        while round.outstanding < round.writes_max.max(1) {
            let Some((offset, bufs)) = round.writes.pop_front() else {
                break;
            };
            round.outstanding += 1;
            self.io.write(Pending::RoundWrite, LaneFile::Data, offset, bufs, false);
        }
    }

    pub(super) fn round_written(&mut self) {
        let round = self.writeback.round.as_mut().expect("under way");
        round.outstanding -= 1;
        self.issue_writes();
        let round = self.writeback.round.as_ref().expect("under way");
        if round.outstanding > 0 {
            return;
        }
        match planted(Mistake::IndexBeforeData) {
            true => self.commit_round(),
            false => self.io.sync(Pending::RoundSync, LaneFile::Data),
        }
    }

    pub(super) fn round_synced(&mut self) {
        self.commit_round();
    }

    /// The data is durable: now the records may say so.
    fn commit_round(&mut self) {
        let round = self.writeback.round.as_ref().expect("under way");
        let mut edits = Vec::with_capacity(round.updates.len());
        for update in &round.updates {
            let Some(member) = self.members.get_mut(&update.key.member) else {
                continue;
            };
            match &update.outcome {
                Outcome::Put(record) => {
                    edits.push(IndexEdit::Put(update.key, record.clone()));
                    member.presence.set(update.key.extent, true);
                    self.records.commit(update.key, Some(record.clone()));
                }
                Outcome::Delete if update.old.is_some() => {
                    edits.push(IndexEdit::Delete(update.key));
                    member.presence.set(update.key.extent, false);
                    self.records.commit(update.key, None);
                }
                Outcome::Delete | Outcome::Skipped | Outcome::Parked => {}
                Outcome::Undecided => unreachable!("decided before the writes"),
            }
        }
        if edits.is_empty() {
            self.finish_round();
            return;
        }
        let flush = false;
        let job = IndexJob::Commit { edits, flush };
        self.io.index(Pending::RoundCommit, job);
    }

    pub(super) fn round_committed(&mut self) {
        let round = self.writeback.round.as_ref().expect("under way");
        for update in &round.updates {
            match &update.outcome {
                Outcome::Put(record) => {
                    self.records.committed(&update.key);
                    let old = update.old.as_ref().map(|old| old.slot);
                    if let Some(old) = old.filter(|old| *old != record.slot) {
                        self.alloc.free(old);
                    }
                }
                Outcome::Delete => {
                    if let Some(old) = &update.old {
                        self.records.committed(&update.key);
                        self.alloc.free(old.slot);
                    }
                }
                Outcome::Skipped | Outcome::Parked | Outcome::Undecided => {}
            }
        }
        self.checkpoint.unflushed = true;
        self.finish_round();
    }

    /// The records are committed: the overlay lets go of what was not superseded.
    fn finish_round(&mut self) {
        let round = self.writeback.round.take().expect("under way");
        self.checkpoint.stale = true;
        let mut install = round.install;
        for update in round.updates {
            let done = !matches!(update.outcome, Outcome::Skipped | Outcome::Parked);
            if let Some(adopted) = update.adopted.filter(|_| !done) {
                self.alloc.disown(adopted);
            }
            let Some(member) = self.members.get_mut(&update.key.member) else {
                continue;
            };
            let extent = update.key.extent;
            match update.source {
                Source::Overlay(snapshots) if done => {
                    for snapshot in snapshots {
                        let at = Block(extent.first_block().0 + snapshot.position);
                        member.overlay.settle(at, snapshot.index);
                    }
                    self.mends.written_back(&update.key);
                }
                Source::Replace(_) if done => {
                    member.overlay.drop_up_to(extent, update.newest);
                    if update.newest > member.applied_index {
                        member.newer.note(extent, update.newest);
                    }
                    self.mends.replaced(&update.key);
                }
                Source::Delete if done => {
                    member.overlay.drop_up_to(extent, update.newest);
                    self.mends.replaced(&update.key);
                }
                Source::Replace(_) => {
                    // It is as it was: entries that it has already are not wanted a second time.
                    if let Some(included) = update.included {
                        member.newer.note(extent, included);
                        member.overlay.drop_up_to(extent, included);
                    }
                    if let Some((_, refused)) = &mut install {
                        refused.push(extent);
                    }
                }
                Source::Move(_) if done => {
                    self.mends.moved(&update.key);
                    self.checkpoint.unsettle();
                }
                Source::Overlay(_) | Source::Delete | Source::Move(_) => {}
            }
            if let Some(overlay) = member.overlay.get_mut(extent) {
                overlay.busy = false;
                overlay.queued |= self.mends.is_parked(&update.key);
                if update.outcome == Outcome::Parked {
                    overlay.queued = true;
                    self.writeback.parked.push((update.key.member, extent));
                }
            }
            self.after_overlay_change(update.key.member, extent);
        }
        if let Some((read, refused)) = install {
            self.io.events.push(Event::Installed { read, refused });
        }
    }
}

impl Update {
    /// The record as it will be, but for its slot; `None`: nothing is left of the extent.
    fn record(&self, member: &Member) -> Option<ExtentRecord> {
        let fresh = || ExtentRecord {
            slot: Slot(0),
            present: 0,
            zero: 0,
            last_changed: 0,
            birth: member.record.volume,
            crcs: [0; 16],
        };
        let mut record = match &self.source {
            // Whatever the old slot has is not in this one.
            Source::Overlay(_) if self.adopted.is_some() => fresh(),
            Source::Overlay(_) => self.old.clone().unwrap_or_else(fresh),
            Source::Replace(_) => fresh(),
            Source::Delete | Source::Move(_) => return None,
        };
        record.last_changed = record.last_changed.max(self.newest);
        match &self.source {
            Source::Overlay(snapshots) => {
                for snapshot in snapshots {
                    let bit = 1 << snapshot.position;
                    match snapshot.content {
                        Content::Log { .. } | Content::Slot(_) => {
                            record.present |= bit;
                            record.zero &= !bit;
                            record.crcs[snapshot.position as usize] = snapshot.crc;
                        }
                        Content::Zero { keep } => clear_blocks(&mut record, bit, keep),
                    }
                }
            }
            Source::Replace(content) => {
                record.present = content.present;
                let positions = (0..16).filter(|bit| content.present & (1 << bit) != 0);
                for (position, crc) in positions.zip(&content.crcs) {
                    record.crcs[position] = *crc;
                }
            }
            Source::Delete | Source::Move(_) => {}
        }
        (record.present != 0 || record.zero != 0).then_some(record)
    }

    /// True when it puts bytes into its slot.
    fn has_data(&self) -> bool {
        match &self.source {
            Source::Overlay(snapshots) => {
                snapshots.iter().any(|snapshot| matches!(snapshot.content, Content::Log { .. }))
            }
            Source::Replace(content) | Source::Move(content) => content.present != 0,
            Source::Delete => false,
        }
    }

    /// The writes that fill its slot: one per run of neighbouring blocks.
    fn writes(
        &self,
        slot: Slot,
        pool: &crate::io::buffer::Pool,
        out: &mut VecDeque<(u64, Vec<Bytes>)>,
    ) {
        let mut last = None;
        let mut add = |position: u32, data: Bytes| {
            let data = if is_aligned(&data) { data } else { pool.copy(&data) };
            if last.is_some_and(|last| last + 1 == position)
                && let Some((_, bufs)) = out.back_mut()
            {
                bufs.push(data);
            } else {
                let start = u64::from(slot.0) * EXTENT_BYTES as u64;
                let offset = start + u64::from(position) * BLOCK_BYTES as u64;
                out.push_back((offset, vec![data]));
            }
            last = Some(position);
        };
        match &self.source {
            Source::Overlay(snapshots) => {
                for snapshot in snapshots {
                    if let Content::Log { .. } = snapshot.content {
                        let data = snapshot.data.clone().expect("read back before the writes");
                        add(snapshot.position, data);
                    }
                }
            }
            Source::Replace(content) | Source::Move(content) => {
                let positions = (0..16).filter(|bit| content.present & (1 << bit) != 0);
                for (number, position) in positions.enumerate() {
                    let start = number * BLOCK_BYTES;
                    add(position, content.data.slice(start..start + BLOCK_BYTES));
                }
            }
            Source::Delete => {}
        }
    }
}

/// Makes these blocks read as zeroes (rule R11). Above another layer, clearing *present* alone
/// would bring that layer's content back, so they become *zero*.
pub(super) fn clear_blocks(record: &mut ExtentRecord, mask: u16, stays: bool) {
    record.present &= !mask;
    if stays && !planted(Mistake::TrimClearsPresent) {
        record.zero |= mask;
    } else {
        record.zero &= !mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VolumeId;

    #[test]
    fn r11_blocks_above_a_layer_become_zero_and_others_become_absent() {
        let record = ExtentRecord {
            slot: Slot(1),
            present: 0b1111,
            zero: 0b10000,
            last_changed: 1,
            birth: VolumeId(1),
            crcs: [7; 16],
        };
        let mut above = record.clone();
        clear_blocks(&mut above, 0b0110, true);
        assert_eq!((above.present, above.zero), (0b1001, 0b10110));
        let mut lowest = record;
        clear_blocks(&mut lowest, 0b10110, false);
        assert_eq!((lowest.present, lowest.zero), (0b1001, 0));
    }

    #[test]
    fn broken_rules_are_noticed() {
        let scenario = r11_blocks_above_a_layer_become_zero_and_others_become_absent;
        crate::planted::assert_found(Mistake::TrimClearsPresent, scenario);
    }
}
