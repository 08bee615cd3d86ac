//! WAL bypass: rules `bypass-before-batch`, `named-slot-is-immutable`,
//! `slot-reuse-after-durable-free`, `log-snapshot-replaces`, `space-before-append`; and restarts.

use crate::log::{Append, LogEntry, WholeExtents};
use crate::planted::{Mistake, assert_found};
use crate::store::index::IndexStore;
use crate::store::lane::{Demand, Source};
use crate::store::messages::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const ONE: MemberId = MemberId(1);
const TWO: MemberId = MemberId(2);
const SLOT: u64 = EXTENT_BYTES as u64;

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange { first: Block(first), count }
}

fn write(first: u32, count: u32, seed: u64) -> FixtureOp {
    let range = range(first, count);
    FixtureOp::Write { range, seed }
}

/// With a log so large that nothing is written back before its time.
fn fixture(slots: u64) -> Fixture {
    Fixture::bypassing(1, 2, 8 << 20, slots * SLOT)
}

/// The write of a slot on behalf of an entry.
fn is_bypass(effect: &Effect) -> bool {
    matches!(effect, Effect::Write { file: LaneFile::Data, durable: true, .. })
}

fn is_write_back(effect: &Effect) -> bool {
    matches!(effect, Effect::Write { file: LaneFile::Data, durable: false, .. })
}

fn is_log(effect: &Effect) -> bool {
    file_of(effect) == Some(LaneFile::Wal)
}

fn is_flush(effect: &Effect) -> bool {
    matches!(effect, Effect::Index { job: IndexJob::Commit { flush: true, .. }, .. })
}

/// Time passes until the lane thinks that it is idle.
fn idle(fixture: &mut Fixture) {
    fixture.poll();
    fixture.now = Mono(fixture.now.0 + 2_000_000_000);
}

/// What is in this slot of the data file.
fn slot(fixture: &Fixture, slot: u64) -> Vec<u8> {
    let start = (slot * SLOT) as usize;
    fixture.disk.files[&LaneFile::Data].now[start..start + EXTENT_BYTES].to_vec()
}

fn flip_bit(fixture: &mut Fixture, at: usize) {
    fixture.disk.files.get_mut(&LaneFile::Data).unwrap().now[at] ^= 1;
}

fn used_slots(fixture: &Fixture) -> u64 {
    fixture.lane.space().used_bytes / SLOT
}

#[test]
fn no_batch_names_a_slot_before_it_is_durable() {
    let mut fixture = fixture(12);
    fixture.append(ONE, 1, &[write(3, 1, 1), write(16, 32, 2)]);
    fixture.append(ONE, 2 + 1, &[write(4, 1, 3)]);
    fixture.append(ONE, 4, &[]);
    fixture.append(TWO, 1, &[write(0, 1, 4)]);
    fixture.settle_but(is_bypass);
    assert_eq!(fixture.queue.iter().filter(|effect| is_bypass(effect)).count(), 1, "one run");
    assert_eq!(fixture.models[&ONE].committable(), 0, "nor anything that comes after");
    assert_eq!(fixture.models[&TWO].committable(), 1, "others go on");
    fixture.crash();
    assert_eq!((fixture.models[&ONE].log.len(), used_slots(&fixture)), (0, 0));
    fixture.append(ONE, 1, &[write(3, 1, 1), write(16, 32, 2)]);
    fixture.settle_but(is_log);
    assert!(fixture.queue.iter().any(is_log) && used_slots(&fixture) == 2);
    fixture.settle();
    assert_eq!(fixture.models[&ONE].committable(), 2);
    fixture.crash();
    assert_eq!((fixture.models[&ONE].log.len(), used_slots(&fixture)), (2, 2));
    fixture.commit_all(ONE);
    fixture.check_all();
}

#[test]
fn slots_of_a_batch_that_did_not_become_durable_are_free() {
    let (mut with, mut without) = (0, 0);
    for seed in 0..40 {
        let mut fixture = Fixture::bypassing(seed, 1, 1 << 20, 12 * SLOT);
        fixture.append(ONE, 1, &[write(0, 32, 7)]);
        fixture.settle_but(is_log);
        fixture.crash();
        let last = fixture.models[&ONE].log.len() as u64;
        assert_eq!(used_slots(&fixture), 2 * last);
        if last == 0 {
            without += 1
        } else {
            with += 1
        }
        // New owners of the slots do not change the result.
        fixture.append(ONE, last + 1, &[write(16, 64, 9)]);
        fixture.settle();
        fixture.commit_all(ONE);
        fixture.rest();
        fixture.crash();
    }
    assert!(with > 0 && without > 0);
}

#[test]
fn a_bypassed_write_is_written_once() {
    let mut fixture = fixture(12);
    fixture.write(ONE, write(0, 48, 1));
    idle(&mut fixture);
    fixture.settle_but(|effect| is_flush(effect) || is_write_back(effect));
    assert!(fixture.queue.iter().all(is_flush) && !fixture.queue.is_empty());
    fixture.rest();
    assert_eq!((fixture.lane.space().overlay_blocks, used_slots(&fixture)), (0, 3));
    fixture.check_all();
    fixture.crash();
    assert_eq!((fixture.models[&ONE].applied, used_slots(&fixture)), (1, 3));
}

#[test]
fn it_is_read_from_its_slot_before_it_is_written_back() {
    let mut fixture = fixture(12);
    // More than the overlay keeps in memory.
    for (index, first) in [(1, 0), (2, 32), (3, 64)] {
        fixture.write(ONE, write(first, 32, index * 100));
    }
    fixture.write(ONE, write(7, 2, 900));
    assert!(fixture.lane.space().overlay_blocks > 64);
    fixture.check_all();
    fixture.crash();
    fixture.commit_all(ONE);
    fixture.check_all();
}

/// The slot that the log names keeps its content, whatever is written to the extent, and the
/// extent is written back in the end.
#[test]
fn a_slot_that_the_log_names_is_never_written() {
    let mut fixture = fixture(12);
    fixture.write(ONE, write(0, 16, 1));
    idle(&mut fixture);
    fixture.settle_but(is_flush);
    assert_eq!(
        fixture.lane.space().overlay_blocks,
        0,
        "the index has it, and the log still names it"
    );
    let before = slot(&fixture, 0);
    fixture.write(ONE, write(5, 3, 50));
    for _ in 0..5 {
        idle(&mut fixture);
        fixture.settle_but(is_flush);
        assert!(slot(&fixture, 0) == before);
    }
    assert_eq!(fixture.lane.space().overlay_blocks, 3, "it waits");
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0, "and not for ever");
    assert!(slot(&fixture, 0) != before);
    fixture.check_all();
    fixture.crash();
}

/// As before, with the small write there before the large one is written back, and a crash.
#[test]
fn a_small_write_on_top_leaves_the_slot_alone() {
    let mut fixture = fixture(12);
    fixture.write(ONE, write(0, 16, 1));
    fixture.write(ONE, write(5, 3, 50));
    let before = slot(&fixture, 0);
    for _ in 0..3 {
        idle(&mut fixture);
        fixture.settle_but(is_flush);
        assert!(slot(&fixture, 0) == before);
    }
    assert_eq!(fixture.lane.space().overlay_blocks, 3);
    fixture.check_all();
    fixture.crash();
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!((fixture.lane.space().overlay_blocks, used_slots(&fixture)), (0, 1));
    fixture.check_all();
    fixture.crash();
}

#[test]
fn what_was_overwritten_gives_its_slot_back() {
    let mut fixture = fixture(12);
    for seed in 1..=3 {
        fixture.write(ONE, write(0, 32, seed * 100));
    }
    assert_eq!(used_slots(&fixture), 6);
    fixture.write(ONE, FixtureOp::Zero { range: range(16, 16) });
    fixture.rest();
    fixture.rest();
    assert_eq!(used_slots(&fixture), 1);
    fixture.write(ONE, write(0, 16, 900));
    fixture.rest();
    fixture.rest();
    assert_eq!(used_slots(&fixture), 1);
    fixture.check_all();
    fixture.crash();
    assert_eq!(fixture.lane.space().free_bytes, 11 * SLOT);
}

/// The index's free is durable, and yet the slot is taken while the log names it: a restart would
/// look for it.
#[test]
fn a_slot_that_the_index_gave_up_is_kept_while_the_log_names_it() {
    let mut fixture = fixture(3);
    fixture.write(ONE, write(80, 1, 3));
    fixture.write(ONE, write(0, 16, 1));
    fixture.write(ONE, write(0, 16, 100));
    idle(&mut fixture);
    fixture.settle_but(is_flush);
    let named = |fixture: &Fixture| fixture.lane.core.alloc.named().0;
    assert_eq!((named(&fixture), used_slots(&fixture)), (2, 3));
    fixture.crash();
    assert_eq!(named(&fixture), 2);
    fixture.commit_all(ONE);
    fixture.rest();
    fixture.rest();
    assert_eq!((named(&fixture), used_slots(&fixture)), (0, 2));
    fixture.check_all();
}

#[test]
fn slots_of_replaced_entries_are_free_once_the_replacement_is_durable() {
    let mut fixture = fixture(4);
    fixture.append(ONE, 1, &[write(0, 16, 1), write(16, 32, 2)]);
    fixture.settle();
    assert_eq!(used_slots(&fixture), 3);
    fixture.append(ONE, 2, &[FixtureOp::Noop]);
    fixture.settle_but(is_log);
    assert_eq!(used_slots(&fixture), 3, "a crash may bring the old ones back");
    fixture.settle();
    assert_eq!(used_slots(&fixture), 1);
    fixture.append(ONE, 3, &[write(32, 48, 5)]);
    fixture.settle();
    assert_eq!(used_slots(&fixture), 4, "they are used again");
    fixture.crash();
    fixture.commit_all(ONE);
    fixture.rest();
    fixture.check_all();
}

#[test]
fn replaced_before_its_slots_were_written() {
    let mut fixture = fixture(12);
    fixture.append(ONE, 1, &[write(0, 32, 1)]);
    fixture.append(ONE, 1, &[write(64, 16, 2)]);
    fixture.append(ONE, 1, &[write(1, 1, 3)]);
    fixture.settle_but(is_bypass);
    assert_eq!(fixture.models[&ONE].committable(), 0);
    fixture.settle();
    assert_eq!((fixture.models[&ONE].committable(), used_slots(&fixture)), (1, 0));
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!(used_slots(&fixture), 1);
    fixture.crash();
}

#[test]
fn a_snapshot_gives_the_slots_of_the_log_back() {
    for term in [1, 9] {
        let mut fixture = fixture(12);
        fixture.write(TWO, write(0, 1, 1));
        fixture.append(ONE, 1, &[FixtureOp::Noop, write(0, 32, 2)]);
        fixture.settle();
        fixture.lane.begin_resync(ONE);
        fixture.rest();
        assert_eq!(used_slots(&fixture), 3);
        fixture.lane.finish_resync(ONE, 1, term, bytes::Bytes::new());
        fixture.poll();
        fixture.settle_but(is_flush);
        assert_eq!(used_slots(&fixture), if term == 1 { 3 } else { 1 }, "of another history");
        assert_eq!(fixture.lane.space().free_bytes, 9 * SLOT, "but not yet for others");
        fixture.rest();
        assert_eq!(used_slots(&fixture), if term == 1 { 3 } else { 1 });
        if term == 1 {
            fixture.models.get_mut(&ONE).unwrap().applied = 1;
            fixture.reset(ONE, TWO, 1);
            fixture.settle();
        }
        assert_eq!(fixture.lane.space().free_bytes, 11 * SLOT, "all but the other one's");
    }
}

#[test]
fn a_log_snapshot_names_the_slots_again() {
    let mut fixture = Fixture::bypassing(1, 2, 1 << 20, 40 * SLOT);
    fixture.append(TWO, 1, &[write(0, 32, 1), write(9, 1, 7)]);
    for number in 0..600u32 {
        let at = (number * 7) % 60;
        let mut patience = 0;
        while fixture
            .lane
            .admit(Source::Client, ONE, &Demand::write(4 * 4096, &[range(at, 4)]))
            .is_err()
        {
            fixture.settle();
            patience += 1;
            assert!(patience < 10, "the ring is stuck at write {number}");
        }
        fixture.write(ONE, write(at, 4, u64::from(number) * 10));
        fixture.settle();
    }
    for _ in 0..2 {
        fixture.crash();
        assert_eq!(fixture.models[&TWO].log, [1, 1], "its entries moved with the tail");
    }
    fixture.commit_all(TWO);
    fixture.check_all();
    fixture.rest();
    fixture.crash();
}

#[test]
fn without_space_large_writes_go_to_the_log() {
    let mut fixture = fixture(2);
    fixture.write(ONE, write(0, 32, 1));
    fixture.rest();
    fixture.append(ONE, 2, &[write(0, 32, 100)]);
    fixture.poll();
    assert!(fixture.queue.iter().all(is_log) && !fixture.queue.is_empty());
    fixture.settle();
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!(used_slots(&fixture), 2);
    fixture.check_all();
    fixture.crash();
}

#[test]
fn what_is_promised_to_others_is_not_taken() {
    let mut fixture = fixture(3);
    fixture.append(TWO, 1, &[write(0, 17, 1)]);
    fixture.settle();
    fixture.append(ONE, 1, &[write(0, 32, 2)]);
    fixture.poll();
    assert!(!fixture.queue.iter().any(is_bypass), "two of three slots are promised");
    // Behind one that waits for its slot, the promise holds, too.
    let mut fixture = self::fixture(3);
    fixture.append(ONE, 1, &[write(0, 16, 1), write(40, 17, 2)]);
    fixture.settle_but(is_bypass);
    assert_eq!(fixture.lane.space().free_bytes, 0);
    fixture.settle();
    fixture.commit_all(ONE);
    fixture.rest();
    fixture.check_all();
}

#[test]
fn a_payload_that_does_not_match_its_checksums_is_not_bypassed() {
    let mut fixture = fixture(12);
    let crcs = vec![7; 16];
    let payload = fixture.disk.pool.copy(&content(1, 0).repeat(16));
    fixture.lane.append(Append {
        member: ONE,
        number: 1,
        entries: vec![LogEntry { index: 1, term: 1, payload, ..LogEntry::default() }],
        whole_extents: vec![WholeExtents { index: 1, first: Extent(0), crcs }],
        ..Append::default()
    });
    fixture.poll();
    assert!(fixture.queue.iter().all(is_log) && !fixture.queue.is_empty());
}

#[test]
fn a_destroyed_member_gives_its_slots_back() {
    let mut fixture = fixture(12);
    fixture.write(ONE, write(0, 32, 1));
    fixture.append(ONE, 2, &[write(32, 16, 2)]);
    fixture.settle();
    fixture.append(ONE, 3, &[write(48, 16, 3)]);
    fixture.settle_but(is_bypass);
    fixture.lane.destroy_member(ONE);
    fixture.settle_but(is_bypass);
    assert_eq!(used_slots(&fixture), 1, "its write is still in flight");
    fixture.models.remove(&ONE);
    fixture.rest();
    assert_eq!(used_slots(&fixture), 0);
    fixture.write(TWO, write(0, 64, 4));
    fixture.rest();
    fixture.check_all();
    fixture.crash();
}

#[test]
fn a_member_that_is_given_up_gives_its_slots_back() {
    let mut fixture = fixture(12);
    fixture.append(ONE, 1, &[write(0, 16, 1)]);
    fixture.settle();
    fixture.append(ONE, 2, &[write(16, 16, 2)]);
    fixture.settle_but(is_bypass);
    fixture.lane.fault_member(ONE);
    fixture.settle_but(is_bypass);
    assert_eq!(used_slots(&fixture), 1, "its write is still in flight");
    fixture.models.remove(&ONE);
    fixture.settle();
    assert_eq!(used_slots(&fixture), 0);
    fixture.write(TWO, write(0, 64, 4));
    fixture.rest();
    fixture.check_all();
}

/// An unapplied entry counts on this copy: a bad slot faults the member.
#[test]
fn a_bad_slot_of_an_entry_that_was_promised_faults_the_member() {
    let mut fixture = fixture(12);
    fixture.append(ONE, 1, &[write(0, 32, 1)]);
    fixture.write(TWO, write(0, 16, 1));
    fixture.settle();
    flip_bit(&mut fixture, EXTENT_BYTES + 5000);
    let found = fixture.reopen_unchecked();
    assert!(found[0].faulted && found[0].entries.is_empty());
    assert!(!found[1].faulted && found[1].entries.len() == 1);
    assert_eq!(used_slots(&fixture), 1, "nothing is kept for a log that is not believed");
    let again = fixture.reopen_unchecked();
    assert!(again[0].faulted, "for good");
}

/// An applied entry with a bad slot is not handed to followers, and reads report it.
#[test]
fn a_bad_slot_of_an_applied_entry_is_told_by_reads() {
    let mut fixture = fixture(12);
    fixture.write(ONE, write(0, 16, 1));
    fixture.append(ONE, 2, &[]);
    fixture.settle();
    let whole = fixture.reopen_unchecked();
    assert!(whole[0].entries[0].loaded && whole[0].entries[0].entry.payload.len() == EXTENT_BYTES);
    flip_bit(&mut fixture, 5000);
    let found = fixture.reopen_unchecked();
    let entry = &found[0].entries[0];
    assert!(!found[0].faulted && !entry.loaded && entry.entry.payload.is_empty());
    fixture.models.get_mut(&ONE).unwrap().applied = 0;
    fixture.apply_next(ONE, false);
    fixture.lane.read(ReadId(900), ONE, range(0, 4));
    fixture.settle();
    assert!(matches!(fixture.events.last(), Some(Event::Damaged { extent: Extent(0), .. })));
    fixture.lane.read(ReadId(901), ONE, range(2, 14));
    fixture.settle();
    assert!(matches!(fixture.events.last(), Some(Event::Read { result: Ok(_), .. })));
}

#[test]
fn an_entry_whose_slot_is_another_s_faults_its_member() {
    let mut fixture = fixture(12);
    fixture.append(ONE, 1, &[write(0, 16, 1)]);
    fixture.settle();
    let record = ExtentRecord {
        slot: Slot(0),
        present: 1,
        zero: 0,
        last_changed: 0,
        birth: VolumeId(9),
        crcs: [0; 16],
    };
    let key = ExtentKey { member: TWO, extent: Extent(3), layer: 0 };
    fixture.index.commit(&[IndexEdit::Put(key, record)], true).unwrap();
    let found = fixture.reopen_unchecked();
    assert!(found[0].faulted && !found[1].faulted);
    assert_eq!(used_slots(&fixture), 1);
}

#[test]
fn the_disk_says_that_its_log_may_name_slots() {
    let fixture = Fixture::new(1, 1);
    // The fixture has several data files.
    let files = crate::store::superblock::FEATURE_DATA_FILES;
    assert_eq!(fixture.lane.superblock().features, files);
    let mut fixture = self::fixture(12);
    let both = crate::store::superblock::FEATURE_BYPASS | files;
    assert_eq!(fixture.lane.superblock().features, both);
    fixture.write(ONE, write(0, 16, 1));
    fixture.rest();
    fixture.crash();
    assert_eq!(fixture.lane.superblock().features, both, "checkpoints keep it");
}

/// A story with everything in it, cut off after each of its effects.
#[test]
fn a_crash_at_every_boundary_loses_nothing() {
    let mut slots_written = 0;
    for seed in 0..6u64 {
        let mut boundary = 0;
        loop {
            let mut fixture = Fixture::bypassing(seed, 2, 1 << 20, 14 * SLOT);
            let ended = story(&mut fixture, boundary, &mut slots_written);
            fixture.crash();
            let commits = |fixture: &Fixture, id: MemberId| fixture.models[&id].commit;
            // What was acknowledged is found (the fixture judges); go on from there, and once more.
            for member in [ONE, TWO] {
                assert!(fixture.models[&member].log.len() as u64 >= commits(&fixture, member));
                fixture.commit_all(member);
                let last = fixture.models[&member].log.len() as u64;
                fixture.append(member, last + 1, &[write(16, 32, 7000 + boundary)]);
            }
            fixture.settle();
            fixture.commit_all(ONE);
            fixture.rest();
            fixture.crash();
            if ended {
                break;
            }
            boundary += 1;
        }
        assert!(boundary > 40, "{boundary} boundaries");
    }
    assert!(slots_written > 500);
}

/// Plays until `boundary` effects have ended; true when there were no more.
fn story(fixture: &mut Fixture, boundary: u64, slots_written: &mut u64) -> bool {
    let acts: [(MemberId, u64, &[FixtureOp]); 13] = [
        (ONE, 1, &[write(0, 32, 100), write(3, 2, 200)]),
        (TWO, 1, &[write(16, 16, 300)]),
        (ONE, 3, &[write(0, 16, 400)]),
        (TWO, 2, &[write(32, 16, 500), write(48, 16, 600)]),
        // Replaces two entries that nobody committed.
        (TWO, 2, &[write(48, 32, 700)]),
        (ONE, 4, &[FixtureOp::Zero { range: BlockRange { first: Block(16), count: 16 } }]),
        (ONE, 5, &[write(2, 1, 800), write(64, 16, 900)]),
        (TWO, 3, &[write(16, 16, 1000)]),
        (ONE, 7, &[write(64, 32, 1100)]),
        (TWO, 4, &[write(20, 1, 1200)]),
        (TWO, 5, &[write(48, 16, 1300)]),
        (ONE, 8, &[write(70, 2, 1400)]),
        (ONE, 9, &[write(0, 32, 1500)]),
    ];
    let mut left = boundary;
    for (act, (member, from, ops)) in acts.into_iter().enumerate() {
        fixture.append(member, from, ops);
        fixture.poll();
        while !fixture.queue.is_empty() {
            if left == 0 {
                return false;
            }
            left -= 1;
            let effect = fixture.queue.remove(0);
            *slots_written += u64::from(is_bypass(&effect));
            fixture.carry_out(effect);
            fixture.poll();
        }
        // The fourth act is replaced by the fifth.
        if act != 3 {
            fixture.commit_all(member);
        }
        if act % 3 == 2 {
            idle(fixture);
            fixture.poll();
        }
    }
    true
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::BypassNotDurable, no_batch_names_a_slot_before_it_is_durable);
    assert_found(Mistake::NamedSlotWritten, a_slot_that_the_log_names_is_never_written);
    assert_found(
        Mistake::ReplacedSlotsReused,
        slots_of_replaced_entries_are_free_once_the_replacement_is_durable,
    );
}
