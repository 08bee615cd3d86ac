//! The rules of the store that one lane can show, one scenario each.

use crate::planted::{Mistake, assert_found};
use crate::store::lane::{Demand, RecoveredMember, Refusal, Source};
use crate::store::messages::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const ONE: MemberId = MemberId(1);
const TWO: MemberId = MemberId(2);

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange { first: Block(first), count }
}

fn write(first: u32, count: u32, seed: u64) -> FixtureOp {
    let range = range(first, count);
    FixtureOp::Write { range, seed }
}

fn zero(first: u32, count: u32) -> FixtureOp {
    let range = range(first, count);
    FixtureOp::Zero { range }
}

fn is_data_write(effect: &Effect) -> bool {
    matches!(effect, Effect::Write { file: LaneFile::Data, .. })
}

fn puts(effect: &Effect) -> bool {
    let Effect::Index { job: IndexJob::Commit { edits, .. }, .. } = effect else {
        return false;
    };
    edits.iter().any(|edit| matches!(edit, IndexEdit::Put(..)))
}

fn is_flush(effect: &Effect) -> bool {
    matches!(effect, Effect::Index { job: IndexJob::Commit { flush: true, .. }, .. })
}

fn is_superblock(effect: &Effect) -> bool {
    file_of(effect) == Some(LaneFile::Superblock)
}

/// Time passes until the lane thinks that it is idle.
fn idle(fixture: &mut Fixture) {
    fixture.poll();
    fixture.now = Mono(fixture.now.0 + 2_000_000_000);
}

#[test]
fn nothing_is_confirmed_before_its_batch_is_durable() {
    let mut fixture = Fixture::new(1, 1);
    fixture.append(ONE, 1, &[write(0, 1, 1)]);
    fixture.append(ONE, 2, &[write(1, 1, 2)]);
    fixture.settle_but(|effect| file_of(effect) == Some(LaneFile::Wal));
    assert_eq!(fixture.models[&ONE].committable(), 0);
    let durable = |effect: &Effect| matches!(effect, Effect::Write { durable: true, .. });
    assert!(!fixture.queue.is_empty() && fixture.queue.iter().all(durable));
    fixture.settle();
    assert_eq!(fixture.models[&ONE].committable(), 2);
}

/// A member that forgets its term or its vote may vote a second time.
#[test]
fn term_and_vote_are_as_durable_as_what_depends_on_them() {
    let mut fixture = Fixture::new(1, 2);
    // One has voted, two has taken an entry.
    fixture.append(ONE, 1, &[]);
    fixture.append(TWO, 1, &[write(0, 1, 1)]);
    fixture.settle();
    for member in [ONE, TWO] {
        assert_eq!(fixture.models[&member].unconfirmed(), 0, "so its answer has left");
    }
    for found in fixture.reopen_unchecked() {
        let member = found.record.member;
        assert_eq!((found.hard.term, found.hard.vote), (1, 1), "member {member} forgot");
    }
}

/// The power fails after any number of log writes: whatever entries are there then, the term and
/// the commit index that came with them are there, too.
#[test]
fn entries_and_the_hard_state_of_their_ready_share_a_batch() {
    let first_log_write = |fixture: &Fixture| {
        fixture.queue.iter().position(|effect| file_of(effect) == Some(LaneFile::Wal))
    };
    let mut seen = Vec::new();
    for log_writes in 0..4 {
        let mut fixture = Fixture::new(1, 1);
        fixture.write(ONE, write(0, 1, 1));
        // An entry of another term; it brings the commit of the one before.
        fixture.models.get_mut(&ONE).unwrap().hard.term = 2;
        fixture.append(ONE, 2, &[write(1, 1, 2)]);
        fixture.poll();
        for _ in 0..log_writes {
            if let Some(first) = first_log_write(&fixture) {
                let effect = fixture.queue.remove(first);
                fixture.carry_out(effect);
            }
            fixture.poll();
        }
        let found = fixture.reopen_unchecked().remove(0);
        let newest = found.entries.last().expect("the first one is there at any time");
        let newest = (newest.entry.index, newest.entry.term);
        assert_eq!((found.hard.term, found.hard.commit), (newest.1, newest.0 - 1));
        seen.push(newest);
    }
    assert_eq!(seen.first(), Some(&(1, 1)));
    assert_eq!(seen.last(), Some(&(2, 2)));
}

#[test]
fn data_is_durable_before_the_index_says_so() {
    let mut fixture = Fixture::new(1, 1);
    fixture.write(ONE, write(0, 20, 1));
    idle(&mut fixture);
    fixture.settle_but(is_data_write);
    assert!(fixture.queue.iter().any(is_data_write));
    let mut synced = false;
    while !fixture.queue.iter().any(puts) {
        let effect = fixture.queue.remove(0);
        synced |= matches!(effect, Effect::Sync { file: LaneFile::Data, .. });
        assert!(!is_data_write(&effect) || !synced, "written after the sync");
        fixture.carry_out(effect);
        fixture.poll();
    }
    assert!(synced && !fixture.queue.iter().any(is_data_write));
}

/// One extent is written back while an entry for another is applied: a restart must replay that.
#[test]
fn flushed_stays_below_what_lives_only_in_the_log() {
    let mut fixture = Fixture::new(1, 1);
    fixture.write(ONE, write(0, 1, 1));
    idle(&mut fixture);
    fixture.settle_but(is_data_write);
    assert!(fixture.queue.iter().any(is_data_write), "the first extent is on its way");
    fixture.write(ONE, write(BLOCKS_PER_EXTENT, 1, 2));
    // The commit of both is durable.
    fixture.append(ONE, 3, &[]);
    fixture.settle();
    assert_eq!(fixture.lane.space().overlay_blocks, 1);
    // The index is flushed, because of something else.
    fixture.create(record(2));
    let found = fixture.reopen_unchecked().remove(0);
    assert_eq!((found.hard.commit, found.record.flushed_index), (2, 1));
    let entries: Vec<u64> = found.entries.iter().map(|found| found.entry.index).collect();
    assert_eq!(entries, [2]);
}

#[test]
fn a_checkpoint_has_the_metadata_as_of_what_it_has_of_the_blocks() {
    let mut fixture = Fixture::new(1, 1);
    for index in 1..=7 {
        fixture.write(ONE, write(0, 1, index));
    }
    fixture.rest();
    let found = fixture.reopen_unchecked().remove(0);
    assert_eq!(found.record.flushed_index, 7);
    assert_eq!(&found.record.meta[..], b"5", "every fifth entry of the fixture changes it");
}

#[test]
fn a_freed_slot_is_not_reused_before_the_free_is_durable() {
    let slot = EXTENT_BYTES as u64;
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 2 * slot);
    fixture.write(ONE, write(0, 32, 1));
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, 2 * slot);
    fixture.write(ONE, zero(0, 16));
    idle(&mut fixture);
    fixture.settle_but(is_flush);
    assert_eq!(fixture.lane.space().used_bytes, slot, "freed, but not yet durably");
    fixture.write(ONE, write(40, 1, 2));
    idle(&mut fixture);
    fixture.settle_but(is_flush);
    assert!(!fixture.queue.iter().any(is_data_write));
    assert_eq!(fixture.lane.space().used_bytes, slot);
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, 2 * slot);
    fixture.check_all();
}

#[test]
fn a_freed_slot_is_not_reused_while_it_is_being_read() {
    let slot = EXTENT_BYTES as u64;
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, slot);
    fixture.write(ONE, write(0, 16, 1));
    fixture.rest();
    fixture.read(ONE, range(0, 16));
    let is_data_read =
        |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Data, .. });
    fixture.settle_but(is_data_read);
    fixture.write(ONE, zero(0, 16));
    for _ in 0..3 {
        idle(&mut fixture);
        fixture.settle_but(is_data_read);
    }
    fixture.write(ONE, write(40, 1, 2));
    for _ in 0..3 {
        idle(&mut fixture);
        fixture.settle_but(is_data_read);
    }
    assert_eq!(fixture.lane.space().overlay_blocks, 1, "its slot is still being read");
    fixture.rest();
    assert_eq!(fixture.reads_in_flight(), 0);
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    fixture.check_all();
}

#[test]
fn zeroes_give_space_back_unless_it_is_to_be_kept() {
    let slot = EXTENT_BYTES as u64;
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 2 * slot);
    fixture.write(ONE, write(0, 32, 1));
    fixture.rest();
    fixture.write(ONE, FixtureOp::Clear { range: range(0, 32) });
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, 2 * slot, "kept");
    fixture.check_all();
    fixture.crash();
    assert_eq!(fixture.lane.space().used_bytes, 2 * slot, "kept over a crash");
    // The kept slots are for their own extents only.
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(40, 1)])),
        Err(Refusal::NoSpace)
    );
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(3, 1)])),
        Ok(())
    );
    fixture.write(ONE, write(3, 1, 9));
    fixture.rest();
    fixture.check_all();
    fixture.write(ONE, zero(0, 32));
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, 0);
    fixture.check_all();
}

#[test]
fn nothing_is_written_back_before_its_commit_is_durable() {
    let mut fixture = Fixture::new(1, 1);
    fixture.write(ONE, write(0, 3, 1));
    idle(&mut fixture);
    let is_log = |effect: &Effect| file_of(effect) == Some(LaneFile::Wal);
    fixture.settle_but(is_log);
    assert!(
        fixture.queue.iter().all(is_log) && !fixture.queue.is_empty(),
        "a HardState of its own"
    );
    assert_eq!(fixture.lane.space().overlay_blocks, 3);
    fixture.crash();
    assert_eq!(fixture.models[&ONE].log.len(), 1);
    fixture.models.get_mut(&ONE).unwrap().commit = 1;
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    fixture.crash();
    assert_eq!(fixture.models[&ONE].applied, 1);
}

/// At the end of the queue it would hold the log's tail until all others are written back.
#[test]
fn what_waits_for_its_commit_keeps_its_place_in_the_queue() {
    let mut fixture = Fixture::new(1, 1);
    for extent in 0..4 {
        fixture.write(ONE, write(extent * BLOCKS_PER_EXTENT, 1, u64::from(extent)));
    }
    // This append's HardState covers those before it, and not itself.
    fixture.write(ONE, write(0, 1, 9));
    let lane = &mut fixture.lane;
    lane.writeback.start(&mut lane.core, &mut lane.repair, 2, 4);
    let waiting: Vec<_> = fixture.lane.core.dirty.iter().copied().collect();
    assert_eq!(waiting, [(ONE, Extent(0)), (ONE, Extent(3))]);
    fixture.settle();
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    fixture.check_all();
}

#[test]
fn the_ring_is_not_overwritten_before_the_superblock_has_the_new_tail() {
    let mut fixture = Fixture::new(1, 2);
    let mut full = false;
    let page = |fixture: &Fixture| {
        let tail = fixture.lane.superblock().tail_offset as usize;
        fixture.disk.files[&LaneFile::Wal].now[tail..tail + BLOCK_BYTES].to_vec()
    };
    for number in 0..45 {
        fixture.write(ONE, write(number % 5 * 4, 4, u64::from(number)));
        fixture.settle();
    }
    let first_page = page(&fixture);
    for number in 0..400 {
        let at = (number * 7) % 60;
        match fixture.lane.admit(Source::Client, ONE, &Demand::write(4 * 4096, &[range(at, 4)])) {
            Ok(()) => fixture.write(ONE, write(at, 4, u64::from(number) * 10)),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::LogFull);
                full = true;
            }
        }
        fixture.settle_but(is_superblock);
    }
    assert!(full && fixture.queue.iter().any(is_superblock));
    assert_eq!(fixture.lane.core.log.wal.tail().0.0, fixture.lane.superblock().tail_seq);
    assert!(page(&fixture) == first_page, "the superblock still names this batch as the tail");
    fixture.crash();
    fixture.models.get_mut(&ONE).unwrap().commit = fixture.models[&ONE].log.len() as u64;
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4 * 4096, &[range(0, 4)])),
        Ok(())
    );
    fixture.check_all();
}

#[test]
fn a_payload_that_is_being_read_back_is_not_overwritten() {
    let mut fixture = Fixture::new(1, 1);
    for number in 0..10 {
        fixture.write(ONE, write(number % 5 * 4, 4, u64::from(number) * 10));
    }
    idle(&mut fixture);
    let is_log_read = |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Wal, .. });
    fixture.settle_but(is_log_read);
    assert!(fixture.queue.iter().any(is_log_read), "a round reads payloads back");
    for number in 0..300 {
        let at = number % 5 * 4;
        if fixture
            .lane
            .admit(Source::Client, ONE, &Demand::write(4 * 4096, &[range(at, 4)]))
            .is_ok()
        {
            fixture.append(
                ONE,
                fixture.models[&ONE].log.len() as u64 + 1,
                &[write(at, 4, number.into())],
            );
            fixture.settle_but(is_log_read);
            fixture.commit_all(ONE);
        }
        idle(&mut fixture);
        fixture.settle_but(is_log_read);
    }
    fixture.settle();
    assert!(!fixture.poisoned);
    fixture.rest();
    fixture.crash();
}

/// Found by the simulator: the log stayed full, and nothing could be written any more.
#[test]
fn a_read_of_the_log_that_takes_long_does_not_keep_the_tail_for_ever() {
    let mut fixture = Fixture::new(1, 1);
    for number in 0..10 {
        fixture.write(ONE, write(number % 5 * 4, 4, u64::from(number) * 10));
    }
    fixture.read(ONE, range(0, 4));
    let is_log_read = |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Wal, .. });
    fixture.settle_but(is_log_read);
    assert!(fixture.queue.iter().any(is_log_read), "the payload is not in memory");
    let tail = |fixture: &Fixture| fixture.lane.core.log.wal.tail().0;
    let before = tail(&fixture);
    for _ in 0..5 {
        // A round of write-back reads the log as well: only the client's read is slow.
        idle(&mut fixture);
        let slow = fixture.queue.iter().position(is_log_read).map(|at| fixture.queue.remove(at));
        fixture.settle();
        fixture.queue.extend(slow);
    }
    assert_eq!(
        (fixture.lane.space().overlay_blocks, tail(&fixture)),
        (0, before),
        "it is being read"
    );
    fixture.settle();
    fixture.rest();
    assert!(tail(&fixture) > before);
}

#[test]
fn what_is_replaced_stays_until_the_replacement_is_durable() {
    let mut fixture = Fixture::new(1, 2);
    for index in 1..=3 {
        fixture.append(ONE, index, &[write(0, 1, index)]);
        fixture.settle();
    }
    fixture.write(TWO, write(0, 4, 9));
    fixture.append(TWO, 2, &[]);
    fixture.settle();
    fixture.append(ONE, 1, &[write(0, 1, 7)]);
    idle(&mut fixture);
    let is_log = |effect: &Effect| file_of(effect) == Some(LaneFile::Wal);
    fixture.settle_but(is_log);
    assert_eq!(fixture.lane.space().overlay_blocks, 0, "the other one was written back");
    fixture.queue.clear();
    fixture.crash();
    assert_eq!(fixture.models[&ONE].log, [1, 1, 1]);
}

#[test]
fn stuck_and_idle_members_do_not_hold_the_ring() {
    let mut fixture = Fixture::new(1, 3);
    // Two is stuck with uncommitted entries, three has nothing but a HardState.
    fixture.append(TWO, 1, &[write(0, 4, 1), write(9, 1, 7)]);
    fixture.append(MemberId(3), 1, &[]);
    for number in 0..1000 {
        let at = (number * 7) % 60;
        let mut patience = 0;
        while fixture.lane.admit(Source::Client, ONE, &Demand::write(4 * 4096, &[range(at, 4)]))
            == Err(Refusal::LogFull)
        {
            fixture.settle();
            patience += 1;
            assert!(patience < 10, "the ring is stuck at write {number}");
        }
        fixture.write(ONE, write(at, 4, u64::from(number) * 10));
        fixture.settle();
    }
    fixture.crash();
    assert_eq!(fixture.models[&TWO].log, [1, 1], "its entries moved with the tail");
    assert_eq!(fixture.models[&MemberId(3)].hard.vote, 1);
    fixture.commit_all(TWO);
    fixture.rest();
    fixture.crash();
    assert_eq!(fixture.models[&TWO].applied, 2);
}

#[test]
fn hard_states_have_room_when_entries_have_none() {
    let mut fixture = Fixture::with(1, 2, FORMAT.wal_bytes, 60 * EXTENT_BYTES as u64);
    let mut last = 0;
    while fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(0, 1)])).is_ok() {
        last += 1;
        fixture.append(ONE, last, &[write(0, 1, last)]);
        fixture.settle();
        assert!(last < 1000, "unapplied entries are bounded");
    }
    assert_eq!(
        fixture.lane.admit(Source::Client, TWO, &Demand::write(4096, &[range(0, 1)])),
        Ok(()),
        "one that is stuck stops nobody else"
    );
    for _ in 0..20 {
        fixture.append(ONE, last + 1, &[]);
        fixture.settle();
    }
    assert_eq!(fixture.models[&ONE].committable(), last);
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(0, 1)])),
        Ok(())
    );
    fixture.crash();
}

#[test]
fn hard_states_have_room_when_the_log_is_full_and_nothing_is_written_back() {
    let mut fixture = Fixture::new(1, 2);
    let is_index = |effect: &Effect| matches!(effect, Effect::Index { .. });
    let fill = |fixture: &mut Fixture, payload_bytes: u64, op: fn(u32) -> FixtureOp| {
        let mut number = 0;
        while fixture
            .lane
            .admit(Source::Client, ONE, &Demand::write(payload_bytes, &[range(number % 60, 1)]))
            .is_ok()
        {
            number += 1;
            assert!(number < 1000, "the log is never full");
            fixture.append(ONE, fixture.models[&ONE].log.len() as u64 + 1, &[op(number % 60)]);
            fixture.settle_but(is_index);
            fixture.commit_all(ONE);
        }
    };
    fill(&mut fixture, 4096, |at| write(at, 1, u64::from(at)));
    fill(&mut fixture, 0, |at| zero(at, 1));
    for _ in 0..60 {
        fixture.append(TWO, 1, &[]);
        fixture.settle_but(is_index);
    }
    assert_eq!(fixture.models[&TWO].unconfirmed(), 0, "it could not elect a leader");
    fixture.rest();
    fixture.crash();
}

#[test]
fn without_space_overwrites_reads_and_trims_go_on() {
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 2 * EXTENT_BYTES as u64);
    fixture.write(ONE, write(0, 17, 1));
    fixture.rest();
    let elsewhere = [range(64, 1)];
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &elsewhere)),
        Err(Refusal::NoSpace)
    );
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(20, 1)])),
        Ok(())
    );
    fixture.write(ONE, write(20, 1, 2));
    assert_eq!(fixture.lane.admit(Source::Client, ONE, &Demand::write(0, &[])), Ok(()));
    fixture.write(ONE, zero(0, 16));
    fixture.rest();
    assert_eq!(fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &elsewhere)), Ok(()));
    // Promised to this entry, not yet written back: nobody else gets it.
    fixture.append(ONE, 4, &[write(64, 1, 3)]);
    fixture.poll();
    assert_eq!(
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(80, 1)])),
        Err(Refusal::NoSpace)
    );
    fixture.settle();
    fixture.commit_all(ONE);
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
    fixture.crash();
}

/// What replicas took and hold back is promised, too: slots, and room in the log.
#[test]
fn what_is_not_appended_yet_counts() {
    let mut fixture = Fixture::with(1, 2, FORMAT.wal_bytes, 3 * EXTENT_BYTES as u64);
    let mut holds = |payload_bytes, extents| {
        fixture.lane.set_unappended(ONE, Unappended { payload_bytes, extents });
        fixture.poll();
        [ONE, TWO].map(|member| {
            fixture.lane.admit(Source::Client, member, &Demand::write(4096, &[range(0, 1)]))
        })
    };
    assert_eq!(holds(2 * 4096, 1), [Ok(()), Ok(())]);
    // It may take less than it could: that will be known soon.
    assert_eq!(holds(4 * 4096, 3), [Err(Refusal::LogFull), Err(Refusal::LogFull)]);
    // A member that is stuck stops nobody else.
    assert_eq!(holds(FORMAT.wal_bytes / 16, 0), [Err(Refusal::LogFull), Ok(())]);
    assert_eq!(holds(0, 0), [Ok(()), Ok(())]);
}

#[test]
fn a_destroyed_member_stays_away_and_its_space_comes_back() {
    let mut fixture = Fixture::new(1, 2);
    fixture.write(ONE, write(0, 32, 1));
    fixture.write(TWO, write(0, 16, 2));
    fixture.rest();
    fixture.write(ONE, write(0, 8, 3));
    let incarnation = fixture.lane.superblock().incarnation;
    fixture.lane.destroy_member(ONE);
    fixture.lane.destroy_member(ONE);
    fixture.settle();
    assert!(matches!(fixture.events[..], [Event::MemberDurable { member: ONE }]));
    fixture.models.remove(&ONE);
    fixture.rest();
    assert_eq!(fixture.lane.space().used_bytes, EXTENT_BYTES as u64);
    fixture.lane.read(ReadId(900), ONE, range(0, 1));
    fixture.poll();
    let gone = Err(BlockError::NoSuchVolume);
    assert!(matches!(fixture.events.last(), Some(Event::Read { result, .. }) if *result == gone));
    fixture.crash();
    assert_eq!(fixture.lane.superblock().incarnation, incarnation + 1);
    assert_eq!(fixture.lane.space().free_bytes, 11 * EXTENT_BYTES as u64);
}

/// The catalog forgets a member when it hears of the end of its destruction.
#[test]
fn a_destruction_does_not_end_with_what_was_in_flight_before() {
    let mut fixture = Fixture::new(1, 1);
    fixture.write(ONE, write(0, 32, 1));
    fixture.rest();
    fixture.lane.begin_resync(ONE);
    fixture.poll();
    fixture.lane.destroy_member(ONE);
    fixture.settle();
    assert!(
        matches!(fixture.events[..], [Event::MemberDurable { member: ONE }]),
        "{:?}",
        fixture.events
    );
    assert_eq!(fixture.lane.space().used_bytes, 0);
}

#[test]
fn a_block_that_moved_is_looked_up_again_and_a_bad_one_is_told() {
    let mut fixture = Fixture::new(1, 1);
    fixture.write(ONE, write(0, 2, 1));
    fixture.rest();
    fixture.read(ONE, range(0, 2));
    let is_data_read =
        |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Data, .. });
    fixture.settle_but(is_data_read);
    fixture.write(ONE, write(0, 1, 50));
    for _ in 0..3 {
        idle(&mut fixture);
        fixture.settle_but(is_data_read);
    }
    assert_eq!((fixture.lane.space().overlay_blocks, fixture.reads_in_flight()), (0, 1));
    fixture.settle();
    assert_eq!(fixture.reads_in_flight(), 0);

    fixture.disk.files.get_mut(&LaneFile::Data).unwrap().now[5000] ^= 1;
    fixture.lane.read(ReadId(900), ONE, range(0, 2));
    fixture.settle();
    let told = Some(&Event::Damaged { read: ReadId(900), extent: Extent(0) });
    assert_eq!(format!("{:?}", fixture.events.last()), format!("{told:?}"));
    assert_eq!(fixture.lane.space().media_faults, 1);
    fixture.read(ONE, range(0, 1));
    fixture.settle();
}

#[test]
fn reads_are_counted_by_where_their_blocks_were() {
    let mut fixture = Fixture::new(1, 1);
    let served = |fixture: &Fixture| {
        let space = fixture.lane.space();
        (space.read_blocks, space.read_overlay_blocks)
    };
    fixture.write(ONE, write(0, 8, 1));
    fixture.read(ONE, range(0, 10));
    fixture.settle();
    assert_eq!(served(&fixture), (8, 8), "all of it from the overlay; holes count for nothing");
    fixture.rest();
    fixture.read(ONE, range(0, 4));
    fixture.settle();
    assert_eq!(served(&fixture), (12, 8), "written back: from the slot");
    fixture.write(ONE, write(2, 1, 7));
    fixture.read(ONE, range(0, 4));
    fixture.settle();
    assert_eq!(served(&fixture), (16, 9), "one of them from the overlay again");
}

/// A device that forgot what it had called durable costs its own replicas, and no more.
#[test]
fn a_log_that_ends_before_what_was_durable_can_still_be_used() {
    let is_faulted = |found: &[RecoveredMember]| found.iter().any(|found| found.faulted);
    for kept_sectors in [0, 8] {
        let mut fixture = Fixture::new(1, 1);
        for seed in 0..8 {
            fixture.write(ONE, write(0, 1, seed));
        }
        fixture.settle();
        // Now the superblock says so.
        assert!(!is_faulted(&fixture.reopen_unchecked()));
        let log = fixture.disk.files.get_mut(&LaneFile::Wal).unwrap();
        for sector in kept_sectors..log.now.len() / BLOCK_BYTES {
            log.write((sector * BLOCK_BYTES) as u64, &[0; BLOCK_BYTES], true);
        }
        assert!(is_faulted(&fixture.reopen_unchecked()));
        fixture.rest();
        // Another replica takes its place.
        fixture.create(record(2));
        for seed in 0..100 {
            fixture.write(TWO, write(1, 8, seed * 8));
            fixture.rest();
        }
        assert!(!fixture.poisoned);
        fixture.read(TWO, range(0, BLOCKS));
        fixture.settle();
        assert_eq!(fixture.reads_in_flight(), 0);
        assert!(is_faulted(&fixture.reopen_unchecked()));
        fixture.rest();
    }
}

#[test]
fn a_failed_write_poisons_the_lane_once() {
    let mut fixture = Fixture::new(1, 1);
    fixture.append(ONE, 1, &[write(0, 1, 1)]);
    fixture.poll();
    let Effect::Write { op, .. } = fixture.queue.remove(0) else {
        panic!("the batch");
    };
    let failed = Done::Failed(std::io::ErrorKind::Other, "broken".into());
    fixture.lane.complete(op, failed);
    fixture.settle();
    assert!(fixture.poisoned);
    fixture.poisoned = false;
    fixture.append(ONE, 2, &[write(0, 1, 1)]);
    fixture.read(ONE, range(0, 1));
    idle(&mut fixture);
    fixture.settle();
    assert!(!fixture.poisoned && fixture.queue.is_empty() && fixture.events.is_empty());
    assert_eq!(fixture.models[&ONE].committable(), 0);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::LogWriteNotDurable, nothing_is_confirmed_before_its_batch_is_durable);
    assert_found(Mistake::HardStateNotLogged, term_and_vote_are_as_durable_as_what_depends_on_them);
    assert_found(
        Mistake::HardStateAfterEntries,
        entries_and_the_hard_state_of_their_ready_share_a_batch,
    );
    assert_found(Mistake::IndexBeforeData, data_is_durable_before_the_index_says_so);
    assert_found(Mistake::FlushedIsNewestApplied, flushed_stays_below_what_lives_only_in_the_log);
    assert_found(
        Mistake::MetaNotStored,
        a_checkpoint_has_the_metadata_as_of_what_it_has_of_the_blocks,
    );
    assert_found(
        Mistake::SlotReusedBeforeFlush,
        a_freed_slot_is_not_reused_before_the_free_is_durable,
    );
    assert_found(Mistake::SlotReusedWhileRead, a_freed_slot_is_not_reused_while_it_is_being_read);
    assert_found(
        Mistake::WrittenBackUncovered,
        nothing_is_written_back_before_its_commit_is_durable,
    );
    assert_found(
        Mistake::TailBeforeSuperblock,
        the_ring_is_not_overwritten_before_the_superblock_has_the_new_tail,
    );
    assert_found(
        Mistake::SettledWhileRead,
        a_read_of_the_log_that_takes_long_does_not_keep_the_tail_for_ever,
    );
    assert_found(Mistake::ReplacedLetGo, what_is_replaced_stays_until_the_replacement_is_durable);
    assert_found(
        Mistake::NoReserve,
        hard_states_have_room_when_the_log_is_full_and_nothing_is_written_back,
    );
    assert_found(Mistake::AdmittedWithoutSpace, without_space_overwrites_reads_and_trims_go_on);
    assert_found(
        Mistake::TombstonesForgotten,
        a_destroyed_member_stays_away_and_its_space_comes_back,
    );
    assert_found(
        Mistake::ChecksumsIgnored,
        a_block_that_moved_is_looked_up_again_and_a_bad_one_is_told,
    );
}
