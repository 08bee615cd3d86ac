//! The order of overlapping writes: a write starts when every earlier write that shares a block
//! with it has ended (rule `overlapping-writes-in-order`). Reads do not take part.

use std::ops::Range;

use crate::planted::planted;

/// Longest write in the sorted list, in blocks.
const SHORT_BLOCKS: u64 = 256;

/// The unfinished writes of one volume, in order of arrival.
#[derive(Debug, Default)]
pub struct WriteOrder {
    /// Sorted by first block; a binary search finds overlaps.
    short: Vec<Entry>,
    /// Few entries; searched from end to end.
    long: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    start: u64,
    end: u64,
    id: u64,
    /// Number of earlier writes for which this one waits.
    waits_for: u32,
    /// Later writes that wait for this one.
    blocks: Vec<u64>,
}

impl Entry {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.start < range.end && range.start < self.end
    }
}

impl WriteOrder {
    /// Adds a write. True: it may start now. False: [`WriteOrder::finish`] of an earlier write will
    /// return it. `id` must be new, and the range of blocks not empty.
    pub fn begin(&mut self, id: u64, range: Range<u64>) -> bool {
        assert!(!range.is_empty());
        let mut waits_for = 0;
        for entry in self.candidates(&range) {
            if entry.overlaps(&range) && !planted!(OverlapNotOrdered) {
                entry.blocks.push(id);
                waits_for += 1;
            }
        }
        let entry = Entry { start: range.start, end: range.end, id, waits_for, blocks: Vec::new() };
        if range.end - range.start > SHORT_BLOCKS {
            self.long.push(entry);
        } else {
            let place = self.short.partition_point(|other| other.start < range.start);
            self.short.insert(place, entry);
        }
        waits_for == 0
    }

    /// Ends a write, or gives it up before its start. `ready` gets the ids of the writes that may
    /// start now, in order of arrival.
    pub fn finish(&mut self, id: u64, range: Range<u64>, ready: &mut Vec<u64>) {
        let ended = self.take(id, &range);
        for later in ended.blocks {
            // A write that was given up is no longer here.
            let Some(entry) = self.candidates(&range).find(|entry| entry.id == later) else {
                continue;
            };
            entry.waits_for -= 1;
            if entry.waits_for == 0 {
                ready.push(later);
            }
        }
    }

    /// Number of unfinished writes.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All writes that may overlap the range.
    fn candidates(&mut self, range: &Range<u64>) -> impl Iterator<Item = &mut Entry> {
        let lowest = range.start.saturating_sub(SHORT_BLOCKS);
        let from = self.short.partition_point(|entry| entry.start < lowest);
        let end = range.end;
        let short = self.short[from..].iter_mut().take_while(move |entry| entry.start < end);
        short.chain(self.long.iter_mut())
    }

    fn take(&mut self, id: u64, range: &Range<u64>) -> Entry {
        if range.end - range.start > SHORT_BLOCKS {
            let place = self.long.iter().position(|entry| entry.id == id);
            return self.long.swap_remove(place.expect("it was begun"));
        }
        let from = self.short.partition_point(|entry| entry.start < range.start);
        let place = self.short[from..].iter().position(|entry| entry.id == id);
        self.short.remove(from + place.expect("it was begun with this range"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::planted::assert_found;

    /// The definition, written plainly: (id, range, started).
    #[derive(Default)]
    struct Model(Vec<(u64, Range<u64>, bool)>);

    impl Model {
        fn may_start(&self, place: usize) -> bool {
            let range = &self.0[place].1;
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            !self.0[..place].iter().any(|(_, other, _)| overlaps(other))
        }

        /// Ids that may start and have not started.
        fn newly_ready(&mut self) -> Vec<u64> {
            let mut ready = Vec::new();
            for place in 0..self.0.len() {
                if !self.0[place].2 && self.may_start(place) {
                    self.0[place].2 = true;
                    ready.push(self.0[place].0);
                }
            }
            ready
        }
    }

    #[test]
    fn a_write_that_overlaps_waits_for_the_one_before() {
        let mut order = WriteOrder::default();
        assert!(order.begin(1, 0..4) && order.begin(2, 4..8));
        assert!(!order.begin(3, 3..5));
        let mut ready = Vec::new();
        order.finish(1, 0..4, &mut ready);
        assert!(ready.is_empty());
        order.finish(2, 4..8, &mut ready);
        assert_eq!(ready, [3]);
    }

    #[test]
    fn broken_rules_are_noticed() {
        assert_found(
            crate::planted::Mistake::OverlapNotOrdered,
            a_write_that_overlaps_waits_for_the_one_before,
        );
    }

    /// First block, length, whether the write is short, which write ends, and the kind of step.
    fn step() -> impl Strategy<Value = (u64, u64, bool, prop::sample::Index, u8)> {
        (0u64..1500, 1u64..600, any::<bool>(), any::<prop::sample::Index>(), 0u8..10)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Writes begin, end, and are given up before they started, in any order.
        #[test]
        fn a_write_starts_when_no_earlier_one_overlaps(
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut order = WriteOrder::default();
            let mut model = Model::default();
            for (id, (start, len, short, which, kind)) in steps.into_iter().enumerate() {
                let id = id as u64;
                if kind < 6 || model.0.is_empty() {
                    let range = start..start + if short { 1 + len % 8 } else { len };
                    model.0.push((id, range.clone(), false));
                    let expected = model.newly_ready();
                    prop_assert_eq!(order.begin(id, range), expected == [id]);
                } else {
                    let (ended, range, _) = model.0.remove(which.index(model.0.len()));
                    let mut ready = Vec::new();
                    order.finish(ended, range, &mut ready);
                    ready.sort_unstable();
                    prop_assert_eq!(ready, model.newly_ready());
                }
                prop_assert_eq!(order.len(), model.0.len());
            }
        }
    }
}
