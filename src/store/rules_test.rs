//! The rules of the store that one lane can show, one scenario each.

use crate::planted::{Mistake, assert_found};
use crate::store::lane::{RecoveredMember, Refusal};
use crate::store::seam::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const ONE: MemberId = MemberId(1);
const TWO: MemberId = MemberId(2);

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange { first: Block(first), count }
}

fn write(first: u32, count: u32, seed: u64) -> LabOp {
    let range = range(first, count);
    LabOp::Write { range, seed }
}

fn zero(first: u32, count: u32) -> LabOp {
    let range = range(first, count);
    LabOp::Zero { range }
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
fn idle(lab: &mut Lab) {
    lab.poll();
    lab.now = Mono(lab.now.0 + 2_000_000_000);
}

#[test]
fn r1_nothing_is_confirmed_before_its_batch_is_durable() {
    let mut lab = Lab::new(1, 1);
    lab.append(ONE, 1, &[write(0, 1, 1)]);
    lab.append(ONE, 2, &[write(1, 1, 2)]);
    lab.settle_but(|effect| file_of(effect) == Some(LaneFile::Wal));
    assert_eq!(lab.models[&ONE].committable(), 0);
    let durable = |effect: &Effect| matches!(effect, Effect::Write { durable: true, .. });
    assert!(!lab.queue.is_empty() && lab.queue.iter().all(durable));
    lab.settle();
    assert_eq!(lab.models[&ONE].committable(), 2);
}

/// A member that forgets its term or its vote may vote a second time.
#[test]
fn term_and_vote_are_as_durable_as_what_depends_on_them() {
    let mut lab = Lab::new(1, 2);
    // One has voted, two has taken an entry.
    lab.append(ONE, 1, &[]);
    lab.append(TWO, 1, &[write(0, 1, 1)]);
    lab.settle();
    for member in [ONE, TWO] {
        assert_eq!(lab.models[&member].unconfirmed(), 0, "so its answer has left");
    }
    for found in lab.reopen_unchecked() {
        let member = found.record.member;
        assert_eq!((found.hard.term, found.hard.vote), (1, 1), "member {member} forgot");
    }
}

/// The power fails after any number of log writes: whatever entries are there then, the term and
/// the commit index that came with them are there, too.
#[test]
fn entries_and_the_hard_state_of_their_ready_share_a_batch() {
    let first_log_write =
        |lab: &Lab| lab.queue.iter().position(|effect| file_of(effect) == Some(LaneFile::Wal));
    let mut seen = Vec::new();
    for log_writes in 0..4 {
        let mut lab = Lab::new(1, 1);
        lab.write(ONE, write(0, 1, 1));
        // An entry of another term; it brings the commit of the one before.
        lab.models.get_mut(&ONE).unwrap().hard.term = 2;
        lab.append(ONE, 2, &[write(1, 1, 2)]);
        lab.poll();
        for _ in 0..log_writes {
            if let Some(first) = first_log_write(&lab) {
                let effect = lab.queue.remove(first);
                lab.carry_out(effect);
            }
            lab.poll();
        }
        let found = lab.reopen_unchecked().remove(0);
        let newest = found.entries.last().expect("the first one is there at any time");
        let newest = (newest.entry.index, newest.entry.term);
        assert_eq!((found.hard.term, found.hard.commit), (newest.1, newest.0 - 1));
        seen.push(newest);
    }
    assert_eq!(seen.first(), Some(&(1, 1)));
    assert_eq!(seen.last(), Some(&(2, 2)));
}

#[test]
fn r2_data_is_durable_before_the_index_says_so() {
    let mut lab = Lab::new(1, 1);
    lab.write(ONE, write(0, 20, 1));
    idle(&mut lab);
    lab.settle_but(is_data_write);
    assert!(lab.queue.iter().any(is_data_write));
    let mut synced = false;
    while !lab.queue.iter().any(puts) {
        let effect = lab.queue.remove(0);
        synced |= matches!(effect, Effect::Sync { file: LaneFile::Data, .. });
        assert!(!is_data_write(&effect) || !synced, "written after the sync");
        lab.carry_out(effect);
        lab.poll();
    }
    assert!(synced && !lab.queue.iter().any(is_data_write));
}

/// One extent is written back while an entry for another is applied: a restart must replay that.
#[test]
fn r3_flushed_stays_below_what_lives_only_in_the_log() {
    let mut lab = Lab::new(1, 1);
    lab.write(ONE, write(0, 1, 1));
    idle(&mut lab);
    lab.settle_but(is_data_write);
    assert!(lab.queue.iter().any(is_data_write), "the first extent is on its way");
    lab.write(ONE, write(BLOCKS_PER_EXTENT, 1, 2));
    // The commit of both is durable.
    lab.append(ONE, 3, &[]);
    lab.settle();
    assert_eq!(lab.lane.space().overlay_blocks, 1);
    // The index is flushed, because of something else.
    lab.create(record(2));
    let found = lab.reopen_unchecked().remove(0);
    assert_eq!((found.hard.commit, found.record.flushed_index), (2, 1));
    let entries: Vec<u64> = found.entries.iter().map(|found| found.entry.index).collect();
    assert_eq!(entries, [2]);
}

#[test]
fn r16_a_checkpoint_has_the_metadata_as_of_what_it_has_of_the_blocks() {
    let mut lab = Lab::new(1, 1);
    for index in 1..=7 {
        lab.write(ONE, write(0, 1, index));
    }
    lab.rest();
    let found = lab.reopen_unchecked().remove(0);
    assert_eq!(found.record.flushed_index, 7);
    assert_eq!(&found.record.meta[..], b"5", "every fifth entry of the lab changes it");
}

#[test]
fn r4_a_freed_slot_is_not_reused_before_the_free_is_durable() {
    let slot = EXTENT_BYTES as u64;
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 2 * slot);
    lab.write(ONE, write(0, 32, 1));
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, 2 * slot);
    lab.write(ONE, zero(0, 16));
    idle(&mut lab);
    lab.settle_but(is_flush);
    assert_eq!(lab.lane.space().used_bytes, slot, "freed, but not yet durably");
    lab.write(ONE, write(40, 1, 2));
    idle(&mut lab);
    lab.settle_but(is_flush);
    assert!(!lab.queue.iter().any(is_data_write));
    assert_eq!(lab.lane.space().used_bytes, slot);
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, 2 * slot);
    lab.check_all();
}

#[test]
fn r4_a_freed_slot_is_not_reused_while_it_is_being_read() {
    let slot = EXTENT_BYTES as u64;
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, slot);
    lab.write(ONE, write(0, 16, 1));
    lab.rest();
    lab.read(ONE, range(0, 16));
    let is_data_read =
        |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Data, .. });
    lab.settle_but(is_data_read);
    lab.write(ONE, zero(0, 16));
    for _ in 0..3 {
        idle(&mut lab);
        lab.settle_but(is_data_read);
    }
    lab.write(ONE, write(40, 1, 2));
    for _ in 0..3 {
        idle(&mut lab);
        lab.settle_but(is_data_read);
    }
    assert_eq!(lab.lane.space().overlay_blocks, 1, "its slot is still being read");
    lab.rest();
    assert_eq!(lab.reads_under_way(), 0);
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    lab.check_all();
}

#[test]
fn zeroes_give_space_back_unless_it_is_to_be_kept() {
    let slot = EXTENT_BYTES as u64;
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 2 * slot);
    lab.write(ONE, write(0, 32, 1));
    lab.rest();
    lab.write(ONE, LabOp::Clear { range: range(0, 32) });
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, 2 * slot, "kept");
    lab.check_all();
    lab.crash();
    assert_eq!(lab.lane.space().used_bytes, 2 * slot, "kept over a crash");
    // The kept slots are for their own extents only.
    assert_eq!(lab.lane.admit(ONE, 4096, &[range(40, 1)]), Err(Refusal::NoSpace));
    assert_eq!(lab.lane.admit(ONE, 4096, &[range(3, 1)]), Ok(()));
    lab.write(ONE, write(3, 1, 9));
    lab.rest();
    lab.check_all();
    lab.write(ONE, zero(0, 32));
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, 0);
    lab.check_all();
}

#[test]
fn r7_nothing_is_written_back_before_its_commit_is_durable() {
    let mut lab = Lab::new(1, 1);
    lab.write(ONE, write(0, 3, 1));
    idle(&mut lab);
    let is_log = |effect: &Effect| file_of(effect) == Some(LaneFile::Wal);
    lab.settle_but(is_log);
    assert!(lab.queue.iter().all(is_log) && !lab.queue.is_empty(), "a HardState of its own");
    assert_eq!(lab.lane.space().overlay_blocks, 3);
    lab.crash();
    assert_eq!(lab.models[&ONE].log.len(), 1);
    lab.models.get_mut(&ONE).unwrap().commit = 1;
    lab.commit_all(ONE);
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    lab.crash();
    assert_eq!(lab.models[&ONE].applied, 1);
}

/// At the end of the queue it would hold the log's tail until all others are written back.
#[test]
fn what_waits_for_its_commit_keeps_its_place_in_the_queue() {
    let mut lab = Lab::new(1, 1);
    for extent in 0..4 {
        lab.write(ONE, write(extent * BLOCKS_PER_EXTENT, 1, u64::from(extent)));
    }
    // This append's HardState covers those before it, and not itself.
    lab.write(ONE, write(0, 1, 9));
    let lane = &mut lab.lane;
    lane.writeback.start(&mut lane.core, &mut lane.repair, 2, 4);
    let waiting: Vec<_> = lab.lane.core.dirty.iter().copied().collect();
    assert_eq!(waiting, [(ONE, Extent(0)), (ONE, Extent(3))]);
    lab.settle();
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    lab.check_all();
}

#[test]
fn r8_the_ring_is_not_overwritten_before_the_superblock_has_the_new_tail() {
    let mut lab = Lab::new(1, 2);
    let mut full = false;
    let page = |lab: &Lab| {
        let tail = lab.lane.superblock().tail_offset as usize;
        lab.disk.files[&LaneFile::Wal].now[tail..tail + BLOCK_BYTES].to_vec()
    };
    for number in 0..45 {
        lab.write(ONE, write(number % 5 * 4, 4, u64::from(number)));
        lab.settle();
    }
    let first_page = page(&lab);
    for number in 0..400 {
        let at = (number * 7) % 60;
        match lab.lane.admit(ONE, 4 * 4096, &[range(at, 4)]) {
            Ok(()) => lab.write(ONE, write(at, 4, u64::from(number) * 10)),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::LogFull);
                full = true;
            }
        }
        lab.settle_but(is_superblock);
    }
    assert!(full && lab.queue.iter().any(is_superblock));
    assert_eq!(lab.lane.core.log.wal.tail().0.0, lab.lane.superblock().tail_seq);
    assert!(page(&lab) == first_page, "the superblock still names this batch as the tail");
    lab.crash();
    lab.models.get_mut(&ONE).unwrap().commit = lab.models[&ONE].log.len() as u64;
    lab.commit_all(ONE);
    lab.rest();
    assert_eq!(lab.lane.admit(ONE, 4 * 4096, &[range(0, 4)]), Ok(()));
    lab.check_all();
}

#[test]
fn r8_a_payload_that_is_being_read_back_is_not_overwritten() {
    let mut lab = Lab::new(1, 1);
    for number in 0..10 {
        lab.write(ONE, write(number % 5 * 4, 4, u64::from(number) * 10));
    }
    idle(&mut lab);
    let is_log_read = |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Wal, .. });
    lab.settle_but(is_log_read);
    assert!(lab.queue.iter().any(is_log_read), "a round reads payloads back");
    for number in 0..300 {
        let at = number % 5 * 4;
        if lab.lane.admit(ONE, 4 * 4096, &[range(at, 4)]).is_ok() {
            lab.append(ONE, lab.models[&ONE].log.len() as u64 + 1, &[write(at, 4, number.into())]);
            lab.settle_but(is_log_read);
            lab.commit_all(ONE);
        }
        idle(&mut lab);
        lab.settle_but(is_log_read);
    }
    lab.settle();
    assert!(!lab.poisoned);
    lab.rest();
    lab.crash();
}

/// Found by the simulator: the log stayed full, and nothing could be written any more.
#[test]
fn r8_a_read_of_the_log_that_takes_long_does_not_keep_the_tail_for_ever() {
    let mut lab = Lab::new(1, 1);
    for number in 0..10 {
        lab.write(ONE, write(number % 5 * 4, 4, u64::from(number) * 10));
    }
    lab.read(ONE, range(0, 4));
    let is_log_read = |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Wal, .. });
    lab.settle_but(is_log_read);
    assert!(lab.queue.iter().any(is_log_read), "the payload is not in memory");
    let tail = |lab: &Lab| lab.lane.core.log.wal.tail().0;
    let before = tail(&lab);
    for _ in 0..5 {
        // A round of write-back reads the log as well: only the client's read is slow.
        idle(&mut lab);
        let slow = lab.queue.iter().position(is_log_read).map(|at| lab.queue.remove(at));
        lab.settle();
        lab.queue.extend(slow);
    }
    assert_eq!((lab.lane.space().overlay_blocks, tail(&lab)), (0, before), "it is being read");
    lab.settle();
    lab.rest();
    assert!(tail(&lab) > before);
}

#[test]
fn r8_what_is_replaced_stays_until_the_replacement_is_durable() {
    let mut lab = Lab::new(1, 2);
    for index in 1..=3 {
        lab.append(ONE, index, &[write(0, 1, index)]);
        lab.settle();
    }
    lab.write(TWO, write(0, 4, 9));
    lab.append(TWO, 2, &[]);
    lab.settle();
    lab.append(ONE, 1, &[write(0, 1, 7)]);
    idle(&mut lab);
    let is_log = |effect: &Effect| file_of(effect) == Some(LaneFile::Wal);
    lab.settle_but(is_log);
    assert_eq!(lab.lane.space().overlay_blocks, 0, "the other one was written back");
    lab.queue.clear();
    lab.crash();
    assert_eq!(lab.models[&ONE].log, [1, 1, 1]);
}

#[test]
fn r8_stuck_and_idle_members_do_not_hold_the_ring() {
    let mut lab = Lab::new(1, 3);
    // Two is stuck with uncommitted entries, three has nothing but a HardState.
    lab.append(TWO, 1, &[write(0, 4, 1), write(9, 1, 7)]);
    lab.append(MemberId(3), 1, &[]);
    for number in 0..1000 {
        let at = (number * 7) % 60;
        let mut patience = 0;
        while lab.lane.admit(ONE, 4 * 4096, &[range(at, 4)]) == Err(Refusal::LogFull) {
            lab.settle();
            patience += 1;
            assert!(patience < 10, "the ring is stuck at write {number}");
        }
        lab.write(ONE, write(at, 4, u64::from(number) * 10));
        lab.settle();
    }
    lab.crash();
    assert_eq!(lab.models[&TWO].log, [1, 1], "its entries moved with the tail");
    assert_eq!(lab.models[&MemberId(3)].hard.vote, 1);
    lab.commit_all(TWO);
    lab.rest();
    lab.crash();
    assert_eq!(lab.models[&TWO].applied, 2);
}

#[test]
fn r9_hard_states_have_room_when_entries_have_none() {
    let mut lab = Lab::with(1, 2, FORMAT.wal_bytes, 60 * EXTENT_BYTES as u64);
    let mut last = 0;
    while lab.lane.admit(ONE, 4096, &[range(0, 1)]).is_ok() {
        last += 1;
        lab.append(ONE, last, &[write(0, 1, last)]);
        lab.settle();
        assert!(last < 1000, "unapplied entries are bounded");
    }
    assert_eq!(
        lab.lane.admit(TWO, 4096, &[range(0, 1)]),
        Ok(()),
        "one that is stuck stops nobody else"
    );
    for _ in 0..20 {
        lab.append(ONE, last + 1, &[]);
        lab.settle();
    }
    assert_eq!(lab.models[&ONE].committable(), last);
    lab.commit_all(ONE);
    lab.rest();
    assert_eq!(lab.lane.admit(ONE, 4096, &[range(0, 1)]), Ok(()));
    lab.crash();
}

#[test]
fn r9_hard_states_have_room_when_the_log_is_full_and_nothing_is_written_back() {
    let mut lab = Lab::new(1, 2);
    let is_index = |effect: &Effect| matches!(effect, Effect::Index { .. });
    let fill = |lab: &mut Lab, payload_bytes: u64, op: fn(u32) -> LabOp| {
        let mut number = 0;
        while lab.lane.admit(ONE, payload_bytes, &[range(number % 60, 1)]).is_ok() {
            number += 1;
            assert!(number < 1000, "the log is never full");
            lab.append(ONE, lab.models[&ONE].log.len() as u64 + 1, &[op(number % 60)]);
            lab.settle_but(is_index);
            lab.commit_all(ONE);
        }
    };
    fill(&mut lab, 4096, |at| write(at, 1, u64::from(at)));
    fill(&mut lab, 0, |at| zero(at, 1));
    for _ in 0..60 {
        lab.append(TWO, 1, &[]);
        lab.settle_but(is_index);
    }
    assert_eq!(lab.models[&TWO].unconfirmed(), 0, "it could not elect a leader");
    lab.rest();
    lab.crash();
}

#[test]
fn r10_without_space_overwrites_reads_and_trims_go_on() {
    let mut lab = Lab::with(1, 1, FORMAT.wal_bytes, 2 * EXTENT_BYTES as u64);
    lab.write(ONE, write(0, 17, 1));
    lab.rest();
    let elsewhere = [range(64, 1)];
    assert_eq!(lab.lane.admit(ONE, 4096, &elsewhere), Err(Refusal::NoSpace));
    assert_eq!(lab.lane.admit(ONE, 4096, &[range(20, 1)]), Ok(()));
    lab.write(ONE, write(20, 1, 2));
    assert_eq!(lab.lane.admit(ONE, 0, &[]), Ok(()));
    lab.write(ONE, zero(0, 16));
    lab.rest();
    assert_eq!(lab.lane.admit(ONE, 4096, &elsewhere), Ok(()));
    // Promised to this entry, not yet written back: nobody else gets it.
    lab.append(ONE, 4, &[write(64, 1, 3)]);
    lab.poll();
    assert_eq!(lab.lane.admit(ONE, 4096, &[range(80, 1)]), Err(Refusal::NoSpace));
    lab.settle();
    lab.commit_all(ONE);
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
    lab.crash();
}

/// What replicas took and hold back is promised, too: slots, and room in the log.
#[test]
fn r10_what_is_not_appended_yet_counts() {
    let mut lab = Lab::with(1, 2, FORMAT.wal_bytes, 3 * EXTENT_BYTES as u64);
    let mut holds = |payload_bytes, extents| {
        lab.lane.set_unappended(ONE, Unappended { payload_bytes, extents });
        lab.poll();
        [ONE, TWO].map(|member| lab.lane.admit(member, 4096, &[range(0, 1)]))
    };
    assert_eq!(holds(2 * 4096, 1), [Ok(()), Ok(())]);
    // It may take less than it could: that will be known soon.
    assert_eq!(holds(4 * 4096, 3), [Err(Refusal::LogFull), Err(Refusal::LogFull)]);
    // A member that is stuck stops nobody else.
    assert_eq!(holds(FORMAT.wal_bytes / 16, 0), [Err(Refusal::LogFull), Ok(())]);
    assert_eq!(holds(0, 0), [Ok(()), Ok(())]);
}

#[test]
fn r12_a_destroyed_member_stays_away_and_its_space_comes_back() {
    let mut lab = Lab::new(1, 2);
    lab.write(ONE, write(0, 32, 1));
    lab.write(TWO, write(0, 16, 2));
    lab.rest();
    lab.write(ONE, write(0, 8, 3));
    let incarnation = lab.lane.superblock().incarnation;
    lab.lane.destroy_member(ONE);
    lab.lane.destroy_member(ONE);
    lab.settle();
    assert!(matches!(lab.events[..], [Event::MemberDurable { member: ONE }]));
    lab.models.remove(&ONE);
    lab.rest();
    assert_eq!(lab.lane.space().used_bytes, EXTENT_BYTES as u64);
    lab.lane.read(ReadId(900), ONE, range(0, 1));
    lab.poll();
    let gone = Err(BlockError::NoSuchVolume);
    assert!(matches!(lab.events.last(), Some(Event::Read { result, .. }) if *result == gone));
    lab.crash();
    assert_eq!(lab.lane.superblock().incarnation, incarnation + 1);
    assert_eq!(lab.lane.space().free_bytes, 11 * EXTENT_BYTES as u64);
}

/// The catalog forgets a member when it hears of the end of its destruction.
#[test]
fn r12_a_destruction_does_not_end_with_what_was_under_way_before() {
    let mut lab = Lab::new(1, 1);
    lab.write(ONE, write(0, 32, 1));
    lab.rest();
    lab.lane.begin_resync(ONE);
    lab.poll();
    lab.lane.destroy_member(ONE);
    lab.settle();
    assert!(matches!(lab.events[..], [Event::MemberDurable { member: ONE }]), "{:?}", lab.events);
    assert_eq!(lab.lane.space().used_bytes, 0);
}

#[test]
fn r13_a_block_that_moved_is_looked_up_again_and_a_rotten_one_is_told() {
    let mut lab = Lab::new(1, 1);
    lab.write(ONE, write(0, 2, 1));
    lab.rest();
    lab.read(ONE, range(0, 2));
    let is_data_read =
        |effect: &Effect| matches!(effect, Effect::Read { file: LaneFile::Data, .. });
    lab.settle_but(is_data_read);
    lab.write(ONE, write(0, 1, 50));
    for _ in 0..3 {
        idle(&mut lab);
        lab.settle_but(is_data_read);
    }
    assert_eq!((lab.lane.space().overlay_blocks, lab.reads_under_way()), (0, 1));
    lab.settle();
    assert_eq!(lab.reads_under_way(), 0);

    lab.disk.files.get_mut(&LaneFile::Data).unwrap().now[5000] ^= 1;
    lab.lane.read(ReadId(900), ONE, range(0, 2));
    lab.settle();
    let told = Some(&Event::Damaged { read: ReadId(900), extent: Extent(0) });
    assert_eq!(format!("{:?}", lab.events.last()), format!("{told:?}"));
    assert_eq!(lab.lane.space().media_faults, 1);
    lab.read(ONE, range(0, 1));
    lab.settle();
}

#[test]
fn reads_are_counted_by_where_their_blocks_were() {
    let mut lab = Lab::new(1, 1);
    let served = |lab: &Lab| {
        let space = lab.lane.space();
        (space.read_blocks, space.read_overlay_blocks)
    };
    lab.write(ONE, write(0, 8, 1));
    lab.read(ONE, range(0, 10));
    lab.settle();
    assert_eq!(served(&lab), (8, 8), "all of it from the overlay; holes count for nothing");
    lab.rest();
    lab.read(ONE, range(0, 4));
    lab.settle();
    assert_eq!(served(&lab), (12, 8), "written back: from the slot");
    lab.write(ONE, write(2, 1, 7));
    lab.read(ONE, range(0, 4));
    lab.settle();
    assert_eq!(served(&lab), (16, 9), "one of them from the overlay again");
}

/// A device that forgot what it had called durable costs its own replicas, and no more.
#[test]
fn a_log_that_ends_before_what_was_durable_can_still_be_used() {
    let is_faulted = |found: &[RecoveredMember]| found.iter().any(|found| found.faulted);
    for kept_sectors in [0, 8] {
        let mut lab = Lab::new(1, 1);
        for seed in 0..8 {
            lab.write(ONE, write(0, 1, seed));
        }
        lab.settle();
        // Now the superblock says so.
        assert!(!is_faulted(&lab.reopen_unchecked()));
        let log = lab.disk.files.get_mut(&LaneFile::Wal).unwrap();
        for sector in kept_sectors..log.now.len() / BLOCK_BYTES {
            log.write((sector * BLOCK_BYTES) as u64, &[0; BLOCK_BYTES], true);
        }
        assert!(is_faulted(&lab.reopen_unchecked()));
        lab.rest();
        // Another replica takes its place.
        lab.create(record(2));
        for seed in 0..100 {
            lab.write(TWO, write(1, 8, seed * 8));
            lab.rest();
        }
        assert!(!lab.poisoned);
        lab.read(TWO, range(0, BLOCKS));
        lab.settle();
        assert_eq!(lab.reads_under_way(), 0);
        assert!(is_faulted(&lab.reopen_unchecked()));
        lab.rest();
    }
}

#[test]
fn a_failed_write_poisons_the_lane_once() {
    let mut lab = Lab::new(1, 1);
    lab.append(ONE, 1, &[write(0, 1, 1)]);
    lab.poll();
    let Effect::Write { op, .. } = lab.queue.remove(0) else {
        panic!("the batch");
    };
    let failed = Done::Failed(std::io::ErrorKind::Other, "broken".into());
    lab.lane.complete(op, failed);
    lab.settle();
    assert!(lab.poisoned);
    lab.poisoned = false;
    lab.append(ONE, 2, &[write(0, 1, 1)]);
    lab.read(ONE, range(0, 1));
    idle(&mut lab);
    lab.settle();
    assert!(!lab.poisoned && lab.queue.is_empty() && lab.events.is_empty());
    assert_eq!(lab.models[&ONE].committable(), 0);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::LogWriteNotDurable, r1_nothing_is_confirmed_before_its_batch_is_durable);
    assert_found(Mistake::HardStateNotLogged, term_and_vote_are_as_durable_as_what_depends_on_them);
    assert_found(
        Mistake::HardStateAfterEntries,
        entries_and_the_hard_state_of_their_ready_share_a_batch,
    );
    assert_found(Mistake::IndexBeforeData, r2_data_is_durable_before_the_index_says_so);
    assert_found(
        Mistake::FlushedIsNewestApplied,
        r3_flushed_stays_below_what_lives_only_in_the_log,
    );
    assert_found(
        Mistake::MetaNotStored,
        r16_a_checkpoint_has_the_metadata_as_of_what_it_has_of_the_blocks,
    );
    assert_found(
        Mistake::SlotReusedBeforeFlush,
        r4_a_freed_slot_is_not_reused_before_the_free_is_durable,
    );
    assert_found(
        Mistake::SlotReusedWhileRead,
        r4_a_freed_slot_is_not_reused_while_it_is_being_read,
    );
    assert_found(
        Mistake::WrittenBackUncovered,
        r7_nothing_is_written_back_before_its_commit_is_durable,
    );
    assert_found(
        Mistake::TailBeforeSuperblock,
        r8_the_ring_is_not_overwritten_before_the_superblock_has_the_new_tail,
    );
    assert_found(
        Mistake::SettledWhileRead,
        r8_a_read_of_the_log_that_takes_long_does_not_keep_the_tail_for_ever,
    );
    assert_found(
        Mistake::ReplacedLetGo,
        r8_what_is_replaced_stays_until_the_replacement_is_durable,
    );
    assert_found(
        Mistake::NoReserve,
        r9_hard_states_have_room_when_the_log_is_full_and_nothing_is_written_back,
    );
    assert_found(Mistake::AdmittedWithoutSpace, r10_without_space_overwrites_reads_and_trims_go_on);
    assert_found(
        Mistake::TombstonesForgotten,
        r12_a_destroyed_member_stays_away_and_its_space_comes_back,
    );
    assert_found(
        Mistake::ChecksumsIgnored,
        r13_a_block_that_moved_is_looked_up_again_and_a_rotten_one_is_told,
    );
}
