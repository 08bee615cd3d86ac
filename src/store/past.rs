//! Where the ring has entries that recovery no longer needs, for followers that lag.
//!
//! The index has their effects, so they are committed: no entry in here is ever replaced. A run is
//! some of them that lie side by side in one batch. Nothing holds that batch: the run goes when
//! the ring overwrites it. Nothing keeps the slots of an entry that bypassed the log as they were
//! either: its checksums tell whether they still are.

use std::collections::{BTreeMap, VecDeque};

use crate::log::Slot;
use crate::store::member::{Place, Retained};
use crate::store::wal::BatchSeq;
use crate::types::{BLOCK_BYTES, MemberId};

/// Payload bytes and entries of a run, at most: a reader gets a whole run.
const RUN_BYTES_MAX: u32 = 256 << 10;
const RUN_ENTRIES_MAX: u32 = 256;

/// Entries of one term, one after another, whose payloads lie side by side in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub first: u64,
    pub count: u32,
    pub term: u64,
    pub place: Place,
    /// Bytes of the payloads in the ring, in whole pages.
    pub bytes: u32,
    /// Slots with the payload of an entry that bypassed the log, which is alone in its run.
    pub slots: Box<[Slot]>,
}

impl Run {
    /// The run of one entry; `None`: it is not in a batch yet.
    pub(crate) fn of(index: u64, entry: &Retained) -> Option<Run> {
        let in_ring = if entry.slots.is_some() { 0 } else { entry.payload_bytes };
        let bytes = in_ring.next_multiple_of(BLOCK_BYTES as u32);
        let slots = entry.slots.clone().unwrap_or_default();
        Some(Run { first: index, count: 1, term: entry.term, place: entry.place?, bytes, slots })
    }

    /// The index after the last entry.
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Adds the run behind this one. False: it does not belong to it.
    pub(crate) fn join(&mut self, next: &Run) -> bool {
        let follows = next.first == self.end()
            && next.term == self.term
            && next.place.seq == self.place.seq
            && next.place.payload_offset == self.place.payload_offset + u64::from(self.bytes);
        let plain = self.slots.is_empty() && next.slots.is_empty();
        let fits = plain
            && self.bytes + next.bytes <= RUN_BYTES_MAX
            && self.count + next.count <= RUN_ENTRIES_MAX;
        if follows && fits {
            self.bytes += next.bytes;
            self.count += next.count;
        }
        follows && fits
    }
}

/// The runs of all members of a lane.
pub(crate) struct Past {
    runs: BTreeMap<MemberId, VecDeque<Run>>,
    /// Batch and owner of each run, in the order in which they were added.
    order: VecDeque<(BatchSeq, MemberId)>,
    runs_max: usize,
}

impl Past {
    /// A ring with pages of 4 KiB has at most this many runs worth a place in memory.
    pub(crate) fn new(ring_bytes: u64) -> Past {
        let runs_max = (ring_bytes / BLOCK_BYTES as u64) as usize;
        Past { runs: BTreeMap::new(), order: VecDeque::new(), runs_max }
    }

    /// Adds an entry that recovery no longer needs, the one after the newest in here.
    pub(crate) fn add(&mut self, member: MemberId, index: u64, entry: &Retained) {
        let runs = self.runs.entry(member).or_default();
        let run = Run::of(index, entry);
        if run.is_none() || runs.back().is_some_and(|last| last.end() != index) {
            runs.clear();
        }
        let Some(run) = run else { return };
        if runs.back_mut().is_some_and(|last| last.join(&run)) {
            return;
        }
        self.order.push_back((run.place.seq, member));
        runs.push_back(run);
    }

    /// Forgets the runs in batches before this one, and the oldest runs beyond the limit.
    pub(crate) fn prune(&mut self, oldest: BatchSeq) {
        while let Some((seq, member)) = self.order.front().copied() {
            if seq >= oldest && self.order.len() <= self.runs_max {
                break;
            }
            self.order.pop_front();
            let Some(runs) = self.runs.get_mut(&member) else { continue };
            while runs.front().is_some_and(|run| run.place.seq <= seq) {
                runs.pop_front();
            }
            if runs.is_empty() {
                self.runs.remove(&member);
            }
        }
    }

    pub(crate) fn forget(&mut self, member: MemberId) {
        self.runs.remove(&member);
    }

    /// The first entry of a member whose log, as recovery needs it, starts behind `base`.
    pub(crate) fn first(&self, member: MemberId, base: u64, oldest: BatchSeq) -> u64 {
        let runs = self.ending_at(member, base);
        let intact = runs.and_then(|runs| runs.iter().find(|run| run.place.seq >= oldest));
        intact.map_or(base + 1, |run| run.first)
    }

    /// The run with this entry.
    pub(crate) fn run(&self, member: MemberId, base: u64, index: u64) -> Option<Run> {
        let runs = self.ending_at(member, base)?;
        let position = runs.partition_point(|run| run.end() <= index);
        runs.get(position).filter(|run| run.first <= index).cloned()
    }

    fn ending_at(&self, member: MemberId, base: u64) -> Option<&VecDeque<Run>> {
        let runs = self.runs.get(&member)?;
        runs.back().filter(|last| last.end() == base + 1).map(|_| runs)
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        (self.runs.values().map(VecDeque::len).sum(), self.order.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MemberId = MemberId(1);

    fn entry(term: u64, seq: u64, page: u64, payload_bytes: u32) -> Retained {
        let place = Place { seq: BatchSeq(seq), payload_offset: page * BLOCK_BYTES as u64 };
        Retained { term, payload_bytes, place: Some(place), ..Retained::default() }
    }

    #[test]
    fn entries_side_by_side_are_one_run() {
        let mut past = Past::new(1 << 20);
        past.add(M, 5, &entry(1, 3, 1, 4096));
        past.add(M, 6, &entry(1, 3, 2, 8192));
        past.add(M, 7, &entry(1, 3, 4, 0));
        past.add(M, 8, &entry(2, 3, 4, 4096));
        past.add(M, 9, &entry(2, 4, 10, 4096));
        assert_eq!(past.len(), (3, 3), "another term or batch begins another run");
        let run = past.run(M, 9, 6).unwrap();
        assert_eq!((run.first, run.count, run.bytes), (5, 3, 3 * 4096));
        assert_eq!(past.run(M, 9, 9).unwrap().first, 9);
        assert_eq!((past.run(M, 9, 4), past.run(M, 9, 10)), (None, None));
        assert_eq!(past.run(M, 20, 6), None, "it does not reach up to the log");
        assert_eq!((past.first(M, 9, BatchSeq(3)), past.first(M, 9, BatchSeq(4))), (5, 9));
        assert_eq!((past.first(M, 9, BatchSeq(5)), past.first(M, 20, BatchSeq(0))), (10, 21));
    }

    #[test]
    fn a_bypassed_entry_is_alone_and_a_hole_ends_what_can_be_served() {
        let mut past = Past::new(1 << 20);
        past.add(M, 1, &entry(1, 1, 1, 4096));
        let slots: Box<[Slot]> = [Slot(7)].into();
        past.add(M, 2, &Retained { slots: Some(slots.clone()), ..entry(1, 1, 2, 65536) });
        past.add(M, 3, &entry(1, 1, 2, 4096));
        let run = past.run(M, 3, 2).unwrap();
        assert_eq!((run.count, run.bytes, run.slots), (1, 0, slots));
        assert_eq!((past.len(), past.first(M, 3, BatchSeq(0))), ((3, 3), 1));
        past.add(M, 7, &entry(1, 2, 5, 4096));
        assert_eq!(past.first(M, 7, BatchSeq(0)), 7);
    }

    #[test]
    fn runs_go_with_their_batches_and_stay_within_the_limit() {
        let mut past = Past::new(8 * BLOCK_BYTES as u64);
        for index in 1..=20 {
            past.add(MemberId(index % 2), index.div_ceil(2), &entry(1, index, index, 4096));
            past.prune(BatchSeq(index.saturating_sub(5)));
        }
        assert_eq!(past.len(), (6, 6));
        past.prune(BatchSeq(0));
        assert_eq!(past.len(), (6, 6));
        past.prune(BatchSeq(100));
        assert_eq!((past.len(), past.runs.len()), ((0, 0), 0));
        for index in 1..=20 {
            past.add(M, index, &entry(1, index, index, 4096));
            past.prune(BatchSeq(0));
        }
        assert_eq!(past.len(), (8, 8));
    }
}
