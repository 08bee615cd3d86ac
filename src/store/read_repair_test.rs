//! Bad blocks in a slot or in the log, and their repair with another replica's copy.

use crate::store::index::run;
use crate::store::messages::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const SOURCE: MemberId = MemberId(1);
const TARGET: MemberId = MemberId(2);
const OTHER: MemberId = MemberId(3);
const READ: ReadId = ReadId(1 << 50);

fn write(first: u32, count: u32, seed: u64) -> FixtureOp {
    FixtureOp::Write { range: BlockRange { first: Block(first), count }, seed }
}

/// Two replicas of one shard, and one of another, on one lane.
fn replicas() -> Fixture {
    let mut fixture = Fixture::with(1, 1, 4 << 20, 40 * EXTENT_BYTES as u64);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    fixture.create(record(OTHER.0));
    fixture
}

fn write_both(fixture: &mut Fixture, op: FixtureOp) {
    for member in [SOURCE, TARGET] {
        fixture.write(member, op);
    }
}

fn extent_record(fixture: &mut Fixture, member: MemberId, extent: u32) -> ExtentRecord {
    let keys = vec![ExtentKey { member, extent: Extent(extent), layer: 0 }];
    let Ok(IndexDone::Got(got)) = run(&mut fixture.index, IndexJob::Get { keys }) else {
        panic!("the index answers")
    };
    got[0].clone().expect("it is in the index")
}

/// Flips a bit of a sector, for good.
fn rot(fixture: &mut Fixture, file: LaneFile, sector: usize) {
    let file = fixture.disk.files.get_mut(&file).unwrap();
    let mut bytes = file.now[sector * BLOCK_BYTES..][..BLOCK_BYTES].to_vec();
    bytes[100] ^= 4;
    file.write((sector * BLOCK_BYTES) as u64, &bytes, true);
}

fn rot_slot(fixture: &mut Fixture, member: MemberId, block: u32) {
    let slot = extent_record(fixture, member, block / BLOCKS_PER_EXTENT).slot.0;
    let sector = slot * BLOCKS_PER_EXTENT + block % BLOCKS_PER_EXTENT;
    rot(fixture, LaneFile::Data, sector as usize);
}

/// Flips a bit in every place of the log where the bytes of this seed are.
fn rot_log(fixture: &mut Fixture, seed: u64) {
    let wanted = content(seed, 0);
    let sectors = fixture.disk.files[&LaneFile::Wal].now.chunks(BLOCK_BYTES);
    let found: Vec<usize> = sectors
        .enumerate()
        .filter_map(|(number, sector)| (sector == wanted).then_some(number))
        .collect();
    assert!(!found.is_empty(), "the log holds it");
    found.into_iter().for_each(|sector| rot(fixture, LaneFile::Wal, sector));
}

fn fetch(fixture: &mut Fixture, member: MemberId, extent: u32) -> ExtentContent {
    fixture.lane.fetch_extent(READ, member, Extent(extent), 0);
    match &fixture.events()[..] {
        [Event::Extent { result, .. }] => result.clone().unwrap(),
        events => panic!("{events:?}"),
    }
}

/// The extent whose block is bad, when a read of this block finds one.
fn damaged(fixture: &mut Fixture, member: MemberId, block: u32) -> Option<Extent> {
    fixture.lane.read(READ, member, BlockRange { first: Block(block), count: 1 });
    match &fixture.events()[..] {
        [Event::Damaged { read: READ, extent }] => Some(*extent),
        [Event::Read { read: READ, result: Ok(_) }] => None,
        events => panic!("{events:?}"),
    }
}

#[test]
fn a_bad_block_is_repaired_by_another_replica_and_moves_to_a_fresh_slot() {
    let mut fixture = replicas();
    write_both(&mut fixture, write(0, 40, 7));
    fixture.rest();
    let before = extent_record(&mut fixture, TARGET, 1);
    rot_slot(&mut fixture, TARGET, 18);
    assert_eq!(damaged(&mut fixture, TARGET, 18), Some(Extent(1)));
    assert_eq!(damaged(&mut fixture, TARGET, 17), None, "the other blocks are fine");
    assert_eq!(fixture.lane.space().media_faults, 1);
    let used = fixture.lane.space().used_bytes;
    let content = fetch(&mut fixture, SOURCE, 1);
    fixture.lane.repair(TARGET, content);
    // Before anything was written: from memory.
    fixture.lane.read(READ, TARGET, BlockRange { first: Block(18), count: 1 });
    fixture.poll();
    assert!(
        matches!(fixture.events[..], [Event::Read { result: Ok(_), .. }]),
        "{:?}",
        fixture.events
    );
    fixture.rest();
    fixture.check_all();
    let after = extent_record(&mut fixture, TARGET, 1);
    assert_ne!(after.slot, before.slot);
    assert_eq!(ExtentRecord { slot: before.slot, ..after }, before, "nothing else has changed");
    assert_eq!(fixture.lane.space().used_bytes, used, "the old slot came back");
    fixture.crash();
    fixture.check_all();
    assert_eq!(fixture.lane.space().media_faults, 0);
}

/// What the index has of it may be the very same bytes, in another slot: that one is not bad.
#[test]
fn a_slot_that_the_log_names_stays_repaired() {
    let mut fixture = Fixture::bypassing(1, 1, 8 << 20, 40 * EXTENT_BYTES as u64);
    fixture.create(MemberRecord { member: TARGET, ..record(1) });
    write_both(&mut fixture, write(0, BLOCKS_PER_EXTENT, 7));
    fixture.rest();
    write_both(&mut fixture, write(0, BLOCKS_PER_EXTENT, 7));
    let overlay = fixture.lane.core.members[&TARGET].overlay.get(Extent(0)).expect("written again");
    let (_, slot) = overlay.bypassed().expect("to a slot");
    rot(&mut fixture, LaneFile::Data, (slot.0 * BLOCKS_PER_EXTENT + 3) as usize);
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)));
    let content = fetch(&mut fixture, SOURCE, 0);
    fixture.lane.repair(TARGET, content);
    fixture.settle();
    assert_eq!(damaged(&mut fixture, TARGET, 3), None);
    // The index takes the slot over as it is: the next read has it moved.
    fixture.rest();
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)));
    let content = fetch(&mut fixture, SOURCE, 0);
    fixture.lane.repair(TARGET, content);
    fixture.rest();
    assert_ne!(extent_record(&mut fixture, TARGET, 0).slot, slot);
    fixture.check_all();
}

#[test]
fn what_lags_or_does_not_match_our_checksum_repairs_nothing() {
    let mut fixture = replicas();
    write_both(&mut fixture, write(0, 16, 7));
    let old = fetch(&mut fixture, SOURCE, 0);
    write_both(&mut fixture, write(3, 1, 90));
    fixture.rest();
    rot_slot(&mut fixture, TARGET, 3);
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)));
    fixture.lane.repair(TARGET, old.clone());
    fixture.rest();
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)), "an older block is another one");
    // Ahead: the same block was written once more there.
    fixture.write(SOURCE, write(3, 1, 91));
    let newer = fetch(&mut fixture, SOURCE, 0);
    fixture.lane.repair(TARGET, newer.clone());
    fixture.rest();
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)), "nor is a newer one ours");
    // A lie about what was applied does not help, nor does one about the bytes.
    fixture.lane.repair(TARGET, ExtentContent { last_changed: 1 << 40, ..old });
    fixture.rest();
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)));
    let data = fixture.disk.pool.copy(&[1; 16 * BLOCK_BYTES]);
    let crcs = extent_record(&mut fixture, TARGET, 0).crcs.to_vec();
    fixture.lane.repair(TARGET, ExtentContent { last_changed: 1 << 50, data, crcs, ..newer });
    fixture.rest();
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)));
}

#[test]
fn an_extent_with_newer_blocks_is_repaired_too() {
    let mut fixture = replicas();
    write_both(&mut fixture, write(0, 16, 7));
    fixture.rest();
    rot_slot(&mut fixture, TARGET, 3);
    write_both(&mut fixture, write(5, 1, 90));
    assert_eq!(damaged(&mut fixture, TARGET, 3), Some(Extent(0)));
    let content = fetch(&mut fixture, SOURCE, 0);
    fixture.lane.repair(TARGET, content);
    fixture.settle();
    fixture.check_all();
    // The block that was superseded could not move; now that it is written back, all can.
    fixture.rest();
    if damaged(&mut fixture, TARGET, 3).is_some() {
        let content = fetch(&mut fixture, SOURCE, 0);
        fixture.lane.repair(TARGET, content);
    }
    fixture.rest();
    fixture.crash();
    fixture.check_all();
}

/// A lane whose write-back has met a bad payload of `TARGET`.
fn payload_lost() -> Fixture {
    let mut fixture = replicas();
    // These take all the memory for payloads: the others live in the log alone.
    fixture.write(OTHER, write(0, 12, 2000));
    write_both(&mut fixture, write(0, 4, 1000));
    assert_eq!(damaged(&mut fixture, TARGET, 2), None);
    rot_log(&mut fixture, 1002);
    fixture.rest();
    fixture
}

fn is_lost(event: &Event) -> bool {
    matches!(event, Event::PayloadLost { extent: Extent(0), .. })
}

#[test]
fn a_bad_payload_of_the_log_stops_nobody_else() {
    let mut fixture = payload_lost();
    assert!(!fixture.poisoned);
    assert_eq!(fixture.events.iter().filter(|event| is_lost(event)).count(), 2, "both replicas");
    assert_eq!(fixture.lane.space().overlay_blocks, 8, "what is not bad was written back");
    // Later writes, also to the same extent, go on.
    fixture.write(OTHER, write(50, 3, 3000));
    fixture.write(TARGET, write(9, 1, 4000));
    fixture.rest();
    assert!(!fixture.poisoned);
    assert_eq!(fixture.lane.space().overlay_blocks, 9);
}

#[test]
fn a_bad_payload_of_the_log_is_repaired_by_another_replica() {
    let mut fixture = payload_lost();
    fixture.events.clear();
    assert_eq!(damaged(&mut fixture, TARGET, 2), Some(Extent(0)));
    // The other one is on the same log here; its block comes from what was written.
    let bytes: Vec<u8> = (0..4).flat_map(|number| content(1000 + number, 0)).collect();
    let crc = |at: u32| {
        let record = record(1);
        let block = record.first_block_in_volume + u64::from(at);
        block_crc(record.volume, block, &bytes[at as usize * BLOCK_BYTES..][..BLOCK_BYTES])
    };
    let intact = ExtentContent {
        extent: Extent(0),
        layer: 0,
        last_changed: 1,
        present: 0b1111,
        zero: 0,
        crcs: (0..4).map(crc).collect(),
        data: fixture.disk.pool.copy(&bytes),
    };
    for member in [SOURCE, TARGET] {
        fixture.lane.repair(member, intact.clone());
        assert_eq!(damaged(&mut fixture, member, 2), None);
        fixture.lane.resume_writeback(member, Extent(0));
    }
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    fixture.check_all();
    fixture.crash();
    fixture.check_all();
}

#[test]
fn a_member_that_is_given_up_holds_nothing_of_the_log_and_stays_given_up() {
    let mut fixture = payload_lost();
    for member in [SOURCE, TARGET] {
        fixture.lane.fault_member(member);
    }
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    // Much more than the ring holds.
    for round in 0..200 {
        fixture.write(OTHER, write(round % 60, 8, 5000 + u64::from(round) * 8));
        fixture.rest();
    }
    assert!(!fixture.poisoned);
    fixture.lane.read(READ, TARGET, BlockRange { first: Block(0), count: 1 });
    fixture.events.retain(|event| !is_lost(event));
    let refused = &fixture.events()[..];
    assert!(
        matches!(refused, [Event::Read { result: Err(BlockError::NoSuchVolume), .. }]),
        "{refused:?}"
    );
    let found = fixture.reopen_unchecked();
    let faulted: Vec<_> =
        found.iter().filter(|found| found.faulted).map(|found| found.record.member).collect();
    assert_eq!(faulted, [SOURCE, TARGET]);
}
