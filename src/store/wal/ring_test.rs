use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::recover::LogPart;
use super::*;
use crate::testing::log_fixture::{Fixture, entry, hard, kept, loaded};

#[test]
fn the_gate_waits_for_64_kib_or_the_newest_batch_in_flight() {
    let mut fixture = Fixture::new(2048, 0);
    assert!(fixture.wal.next_batch(&fixture.pool).is_none());
    let first = fixture.fly(vec![entry(1, 1, 1, 1)]);
    fixture.push(vec![entry(1, 2, 1, 8)]);
    assert!(fixture.wal.next_batch(&fixture.pool).is_none());
    fixture.push(vec![entry(1, 3, 1, 30)]);
    let second = fixture.wal.next_batch(&fixture.pool).expect("more than 64 KiB wait");
    assert_eq!(second.placed.len(), 2);
    assert_eq!(second.offset, first.offset + 2 * PAGE);
    fixture.push(vec![entry(1, 4, 1, 16)]);
    assert!(fixture.wal.next_batch(&fixture.pool).is_none(), "smaller than the second");
    fixture.push(vec![entry(1, 5, 1, 24)]);
    assert!(fixture.wal.next_batch(&fixture.pool).is_some());
    fixture.fly(vec![entry(1, 6, 1, 60)]);
    fixture.push(vec![entry(1, 7, 1, 100)]);
    assert!(fixture.wal.next_batch(&fixture.pool).is_none(), "four in flight");
}

#[test]
fn groups_are_durable_in_order_whatever_the_order_of_the_writes() {
    let mut fixture = Fixture::new(2048, 0);
    let writes: Vec<_> = (1..5).map(|n| fixture.fly(vec![entry(1, n, 1, 16)])).collect();
    let groups = |ids: &[u64]| ids.iter().map(|id| GroupId(*id)).collect::<Vec<_>>();
    assert_eq!(fixture.wal.written(writes[2].seq), []);
    assert_eq!(fixture.wal.written(writes[1].seq), []);
    assert_eq!(fixture.wal.durable_seq(), BatchSeq(0));
    assert_eq!(fixture.wal.written(writes[0].seq), groups(&[1, 2, 3]));
    assert_eq!(fixture.wal.durable_seq(), BatchSeq(3));
    assert_eq!(fixture.wal.written(writes[3].seq), groups(&[4]));
}

#[test]
fn aligned_payloads_are_not_copied() {
    let mut fixture = Fixture::new(64, 0);
    let aligned = fixture.pool.copy(&[5; 2 * BLOCK_BYTES]);
    let skewed = fixture.pool.copy(&[6; 3 * BLOCK_BYTES]).slice(8..8 + 5000);
    let item = |index, payload: &Bytes| {
        let mut item = entry(1, index, 1, 0);
        if let Item::Entry { entry, .. } = &mut item {
            entry.payload = payload.clone();
        }
        item
    };
    let items = vec![item(1, &aligned), item(2, &skewed), item(3, &Bytes::new())];
    let write = fixture.fly(items);
    assert_eq!(write.bufs.len(), 3);
    assert_eq!(write.bufs[1].as_ptr(), aligned.as_ptr());
    assert_eq!(write.bufs[2][..5000], skewed);
    assert_eq!(write.bufs[2][5000..], [0; 2 * BLOCK_BYTES - 5000]);
    let offsets: Vec<u64> = write.placed.iter().map(|p| p.payload_offset / PAGE).collect();
    assert_eq!(offsets, [1, 3, 5]);
}

#[test]
fn a_group_of_many_payloads_is_gathered_and_read_back() {
    let mut fixture = Fixture::new(2048, 0);
    let entries: Vec<Item> = (1..=700).map(|n| entry(1, n, 1, 1 + (n % 2) as usize)).collect();
    let write = fixture.fly(entries.clone());
    assert!(write.bufs.len() < 8, "{} pieces", write.bufs.len());
    fixture.put(&write, |_| true);
    let recovered = fixture.recover().unwrap();
    let LogPart::Batch(batch) = &recovered.log[0] else {
        panic!("nothing was lost");
    };
    let back: Vec<Item> = batch.items.iter().map(|found| loaded(&fixture, found)).collect();
    assert!(back == entries);
}

#[test]
fn only_one_idle_mark_follows_the_last_news() {
    let mut fixture = Fixture::new(64, 0);
    assert!(!fixture.wal.wants_idle_mark());
    let write = fixture.fly(vec![hard(1, 1, 0)]);
    assert!(!fixture.wal.wants_idle_mark(), "still in flight");
    fixture.put(&write, |_| true);
    fixture.wal.written(write.seq);
    fixture.idle_mark();
    assert!(!fixture.wal.wants_idle_mark());
    fixture.reopen();
    assert!(!fixture.wal.wants_idle_mark(), "also after a start");
    fixture.write(vec![hard(1, 1, 0)]);
    fixture.reopen();
    assert!(fixture.wal.wants_idle_mark(), "the last batch is not marked yet");
}

#[test]
fn the_reserve_is_left_to_hard_states_and_the_tail_is_never_overwritten() {
    let mut fixture = Fixture::new(64, 16);
    // The largest batch of a ring of 64 pages has 8: what passing over the end may cost.
    assert_eq!(fixture.wal.free_bytes(), (64 - 8 - 16) * PAGE);
    let mut index = 0;
    while fixture.wal.free_bytes() >= 3 * PAGE {
        index += 1;
        fixture.write(vec![entry(1, index, 1, 2)]);
    }
    let full = fixture.wal.free_bytes();
    fixture.push(vec![hard(1, 1, 0)]);
    assert!(fixture.wal.free_bytes() < full, "what waits is taken off");
    let mut hard_states = 0;
    while let Some(write) = fixture.wal.next_batch(&fixture.pool) {
        assert!(hard_states < 64, "the ring has only so many pages");
        fixture.put(&write, |_| true);
        fixture.wal.written(write.seq);
        fixture.push(vec![hard(1, 1, hard_states)]);
        hard_states += 1;
    }
    assert!(hard_states >= 16, "the whole reserve can be used: {hard_states}");
    let all = kept(&fixture.recover().unwrap());
    assert_eq!(all.len() as u64, index + hard_states);
    // Room again, exactly what is released.
    let tail = BatchSeq(3);
    fixture.release_to(tail);
    assert_eq!(fixture.wal.tail(), (tail, fixture.wal.offset_of(tail)));
    assert!(fixture.wal.next_batch(&fixture.pool).is_some());
}

#[test]
fn a_ring_that_is_filled_to_the_brim_keeps_every_batch() {
    let mut fixture = Fixture::new(64, 0);
    let mut index = 0;
    for round in 0..300 {
        let mut count = 0;
        loop {
            index += 1;
            let blocks = (index * 5 + round) as usize % 4;
            fixture.push(vec![entry(1, index, 1, blocks)]);
            let Some(write) = fixture.wal.next_batch(&fixture.pool) else {
                break;
            };
            count += 1;
            assert!(count <= 64, "the ring has only so many pages");
            fixture.put(&write, |_| true);
            fixture.wal.written(write.seq);
        }
        let recovered = fixture.recover().unwrap();
        let all: Vec<u64> = (fixture.wal.tail().0.0..fixture.wal.next_seq().0).collect();
        assert_eq!(kept(&recovered), all, "round {round}");
        // Mostly one batch at a time: the head follows the tail closely, over the end too.
        let released = if round % 8 == 0 { all.len() / 2 } else { 1 };
        let tail = BatchSeq(all[released]);
        // What did not fit goes first when there is room.
        fixture.release_to(tail);
        while let Some(write) = fixture.wal.next_batch(&fixture.pool) {
            fixture.put(&write, |_| true);
            fixture.wal.written(write.seq);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { member: u64, blocks: usize, count: u64 },
    Hard(u64),
    Batch,
    Finish(usize),
    Release(usize),
    Idle,
    Crash(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (1u64..4, 0usize..5, 1u64..5).prop_map(|(member, blocks, count)| Step::Push {
        member,
        blocks,
        count,
    });
    let step = prop_oneof![
        6 => push,
        1 => (1u64..4).prop_map(Step::Hard),
        6 => Just(Step::Batch),
        5 => (0usize..4).prop_map(Step::Finish),
        3 => (0usize..12).prop_map(Step::Release),
        1 => Just(Step::Idle),
        1 => any::<u64>().prop_map(Step::Crash),
    ];
    proptest::collection::vec(step, 1..250)
}

/// The expected content of a ring.
struct Model {
    fixture: Fixture,
    /// Items that are pushed, and not in a batch yet.
    waiting: VecDeque<Item>,
    /// Every batch from the tail on, and whether it is durable.
    batches: VecDeque<(BatchSeq, Vec<Item>, bool)>,
    in_flight: Vec<BatchWrite>,
    newest_seq: BatchSeq,
    indexes: u64,
}

impl Model {
    fn batch(&mut self) {
        let Some(write) = self.fixture.wal.next_batch(&self.fixture.pool) else {
            return;
        };
        assert!(write.seq > self.newest_seq, "a number is never used again");
        self.newest_seq = write.seq;
        let end = write.offset + write.bufs.iter().map(|b| b.len() as u64).sum::<u64>();
        assert!(end <= self.fixture.config.ring_bytes);
        for (seq, ..) in &self.batches {
            let other = self.fixture.wal.offset_of(*seq);
            assert!(!(write.offset..end).contains(&other), "{seq:?} is overwritten");
        }
        let header = format::decode_fixed(&self.fixture.config.keys(), &write.bufs[0]).unwrap();
        let items = self.waiting.drain(..header.items as usize).collect();
        self.batches.push_back((write.seq, items, false));
        self.in_flight.push(write);
    }

    fn finish(&mut self, which: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let write = self.in_flight.remove(which % self.in_flight.len());
        self.fixture.put(&write, |_| true);
        self.fixture.wal.written(write.seq);
        let durable = self.fixture.wal.durable_seq();
        for (seq, _, acknowledged) in &mut self.batches {
            *acknowledged |= *seq <= durable;
        }
    }

    fn release(&mut self, count: usize) {
        let durable = self.batches.iter().take_while(|batch| batch.2).count();
        self.batches.drain(..count.min(durable));
        let first = self.batches.front().map(|batch| batch.0);
        let tail = first.unwrap_or(self.fixture.wal.next_seq());
        if first.is_some() {
            let offset = self.fixture.wal.offset_of(tail);
            self.fixture.written.entry(tail).or_insert((offset, 0));
        }
        self.fixture.release_to(tail);
    }

    /// `chance`: which in-flight batches survive, wholly, partly or not.
    fn crash(&mut self, mut chance: u64) -> Result<(), TestCaseError> {
        for write in std::mem::take(&mut self.in_flight) {
            chance = crate::types::mix64(chance);
            match chance % 4 {
                0 => self.fixture.put(&write, |_| true),
                1 => (),
                _ => self.fixture.put(&write, |page| chance >> (page % 32 + 8) & 1 == 1),
            }
        }
        let recovered = self.fixture.reopen();
        prop_assert_eq!(recovered.unreadable_pages, 0);
        let mut found = Vec::new();
        for part in &recovered.log {
            match part {
                LogPart::Batch(batch) => found.push(batch),
                LogPart::Lost(lost) => prop_assert!(false, "nothing was lost: {lost:?}"),
            }
        }
        let acknowledged = self.batches.iter().filter(|batch| batch.2).count();
        prop_assert!(found.len() >= acknowledged && found.len() <= self.batches.len());
        self.batches.truncate(found.len());
        for (batch, (seq, items, durable)) in found.iter().zip(&mut self.batches) {
            prop_assert_eq!(batch.header.seq, *seq);
            let back: Vec<Item> = batch.items.iter().map(|i| loaded(&self.fixture, i)).collect();
            prop_assert!(&back == items, "batch {seq:?} came back otherwise");
            let range = batch.header.offset..batch.header.offset + batch.header.total_bytes();
            prop_assert!(*durable || recovered.unconfirmed.contains(&range));
            *durable = true;
        }
        prop_assert!(recovered.position.next_seq > self.newest_seq);
        self.waiting.clear();
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Push { member, blocks, count } => {
                let pages = (count * (blocks as u64 + 1) + 1) * PAGE;
                if self.fixture.wal.free_bytes() < pages {
                    self.release(100);
                    return Ok(());
                }
                let first = self.indexes;
                self.indexes += count;
                let items: Vec<Item> = (first..first + count)
                    .map(|index| entry(member, index, index, blocks))
                    .collect();
                self.waiting.extend(items.iter().cloned());
                self.fixture.push(items);
            }
            Step::Hard(member) => {
                self.indexes += 1;
                let item = hard(member, self.indexes, 0);
                self.waiting.push_back(item.clone());
                self.fixture.push(vec![item]);
            }
            Step::Batch => self.batch(),
            Step::Finish(which) => self.finish(which),
            Step::Release(count) => self.release(count),
            Step::Idle => {
                if self.fixture.wal.wants_idle_mark() {
                    self.fixture.wal.push_idle_mark();
                    self.batch();
                }
            }
            Step::Crash(chance) => self.crash(chance)?,
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// All acknowledged items are there, none is invented, and none is out of order, over many laps
    /// of a small ring and several crashes.
    #[test]
    fn a_crash_loses_nothing_that_was_acknowledged(steps in steps(), last in any::<u64>()) {
        let mut model = Model {
            fixture: Fixture::new(160, 24),
            waiting: VecDeque::new(),
            batches: VecDeque::new(),
            in_flight: Vec::new(),
            newest_seq: BatchSeq(0),
            indexes: 1,
        };
        for step in steps {
            model.step(step)?;
        }
        model.crash(last)?;
    }
}

/// A model of the pages: which batch wrote each of them last.
#[test]
fn a_span_is_intact_to_its_last_byte_and_forgotten_no_sooner() {
    let mut rng = crate::sim::rng::Rng::new(1);
    for pages in [16, 37, 64] {
        let mut space = Space {
            ring_bytes: pages * PAGE,
            head: 0,
            kept: VecDeque::new(),
            intact: VecDeque::new(),
            released_seq: BatchSeq(1),
        };
        let mut model: Vec<Option<BatchSeq>> = vec![None; pages as usize];
        let mut kept: VecDeque<(BatchSeq, u64)> = VecDeque::new();
        for seq in (1..2000).map(BatchSeq) {
            let bytes = (1 + rng.below(pages / 3)) * PAGE;
            if let Some(offset) = space.place(seq, bytes, PAGE) {
                let (first, count) = (offset / PAGE, bytes / PAGE);
                model[first as usize..(first + count) as usize].fill(Some(seq));
                kept.push_back((seq, count));
            }
            // The tail moves, often behind all that is kept.
            if rng.below(3) == 0 {
                let count = rng.below(kept.len() as u64 + 1) as usize;
                kept.drain(..count);
                space.kept.drain(..count);
            }
            for span in &space.intact {
                let first = (span.offset / PAGE) as usize;
                let of_span = &model[first..first + (span.bytes / PAGE) as usize];
                assert!(of_span.iter().all(|page| *page == Some(span.seq)), "{span:?}");
            }
            for batch in &kept {
                assert!(space.intact.iter().any(|span| span.seq == batch.0), "{batch:?} is kept");
            }
            assert!(space.intact.iter().map(|span| span.seq).is_sorted());
        }
        let used: u64 = space.intact.iter().map(|span| span.bytes).sum();
        assert!(used >= pages * PAGE / 3, "much of the ring can be read back");
    }
}
