//! Bad blocks in a slot or in the log, and their repair with another replica's copy.

use crate::store::index::run;
use crate::store::seam::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const SOURCE: MemberId = MemberId(1);
const TARGET: MemberId = MemberId(2);
const OTHER: MemberId = MemberId(3);
const READ: ReadId = ReadId(1 << 50);

fn write(first: u32, count: u32, seed: u64) -> LabOp {
    LabOp::Write { range: BlockRange { first: Block(first), count }, seed }
}

/// Two replicas of one shard, and one of another, on one lane.
fn replicas() -> Lab {
    let mut lab = Lab::with(1, 1, 4 << 20, 40 * EXTENT_BYTES as u64);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    lab.create(record(OTHER.0));
    lab
}

fn write_both(lab: &mut Lab, op: LabOp) {
    for member in [SOURCE, TARGET] {
        lab.write(member, op);
    }
}

fn extent_record(lab: &mut Lab, member: MemberId, extent: u32) -> ExtentRecord {
    let keys = vec![ExtentKey { member, extent: Extent(extent), layer: 0 }];
    let Ok(IndexDone::Got(got)) = run(&mut lab.index, IndexJob::Get { keys }) else {
        panic!("the index answers")
    };
    got[0].clone().expect("it is in the index")
}

/// Flips a bit of a sector, for good.
fn rot(lab: &mut Lab, file: LaneFile, sector: usize) {
    let file = lab.disk.files.get_mut(&file).unwrap();
    let mut bytes = file.now[sector * BLOCK_BYTES..][..BLOCK_BYTES].to_vec();
    bytes[100] ^= 4;
    file.write((sector * BLOCK_BYTES) as u64, &bytes, true);
}

fn rot_slot(lab: &mut Lab, member: MemberId, block: u32) {
    let slot = extent_record(lab, member, block / BLOCKS_PER_EXTENT).slot.0;
    let sector = slot * BLOCKS_PER_EXTENT + block % BLOCKS_PER_EXTENT;
    rot(lab, LaneFile::Data, sector as usize);
}

/// Flips a bit in every place of the log where the bytes of this seed are.
fn rot_log(lab: &mut Lab, seed: u64) {
    let wanted = content(seed, 0);
    let sectors = lab.disk.files[&LaneFile::Wal].now.chunks(BLOCK_BYTES);
    let found: Vec<usize> = sectors
        .enumerate()
        .filter_map(|(number, sector)| (sector == wanted).then_some(number))
        .collect();
    assert!(!found.is_empty(), "the log holds it");
    found.into_iter().for_each(|sector| rot(lab, LaneFile::Wal, sector));
}

fn fetch(lab: &mut Lab, member: MemberId, extent: u32) -> ExtentContent {
    lab.lane.fetch_extent(READ, member, Extent(extent), 0);
    match &lab.events()[..] {
        [Event::Extent { result, .. }] => result.clone().unwrap(),
        events => panic!("{events:?}"),
    }
}

/// The extent whose block is bad, when a read of this block finds one.
fn damaged(lab: &mut Lab, member: MemberId, block: u32) -> Option<Extent> {
    lab.lane.read(READ, member, BlockRange { first: Block(block), count: 1 });
    match &lab.events()[..] {
        [Event::Damaged { read: READ, extent }] => Some(*extent),
        [Event::Read { read: READ, result: Ok(_) }] => None,
        events => panic!("{events:?}"),
    }
}

#[test]
fn r13_a_bad_block_is_mended_by_another_replica_and_moves_to_a_fresh_slot() {
    let mut lab = replicas();
    write_both(&mut lab, write(0, 40, 7));
    lab.rest();
    let before = extent_record(&mut lab, TARGET, 1);
    rot_slot(&mut lab, TARGET, 18);
    assert_eq!(damaged(&mut lab, TARGET, 18), Some(Extent(1)));
    assert_eq!(damaged(&mut lab, TARGET, 17), None, "the other blocks are fine");
    assert_eq!(lab.lane.space().media_faults, 1);
    let used = lab.lane.space().used_bytes;
    let content = fetch(&mut lab, SOURCE, 1);
    lab.lane.mend(TARGET, content);
    // Before anything was written: from memory.
    lab.lane.read(READ, TARGET, BlockRange { first: Block(18), count: 1 });
    lab.poll();
    assert!(matches!(lab.events[..], [Event::Read { result: Ok(_), .. }]), "{:?}", lab.events);
    lab.rest();
    lab.check_all();
    let after = extent_record(&mut lab, TARGET, 1);
    assert_ne!(after.slot, before.slot);
    assert_eq!(ExtentRecord { slot: before.slot, ..after }, before, "nothing else has changed");
    assert_eq!(lab.lane.space().used_bytes, used, "the old slot came back");
    lab.crash();
    lab.check_all();
    assert_eq!(lab.lane.space().media_faults, 0);
}

/// What the index has of it may be the very same bytes, in another slot: that one is not bad.
#[test]
fn r13_a_slot_that_the_log_names_stays_mended() {
    let mut lab = Lab::redirecting(1, 1, 8 << 20, 40 * EXTENT_BYTES as u64);
    lab.create(MemberRecord { member: TARGET, ..record(1) });
    write_both(&mut lab, write(0, BLOCKS_PER_EXTENT, 7));
    lab.rest();
    write_both(&mut lab, write(0, BLOCKS_PER_EXTENT, 7));
    let overlay = lab.lane.core.members[&TARGET].overlay.get(Extent(0)).expect("written again");
    let (_, slot) = overlay.redirected().expect("to a slot");
    rot(&mut lab, LaneFile::Data, (slot.0 * BLOCKS_PER_EXTENT + 3) as usize);
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)));
    let content = fetch(&mut lab, SOURCE, 0);
    lab.lane.mend(TARGET, content);
    lab.settle();
    assert_eq!(damaged(&mut lab, TARGET, 3), None);
    // The index takes the slot over as it is: the next read has it moved.
    lab.rest();
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)));
    let content = fetch(&mut lab, SOURCE, 0);
    lab.lane.mend(TARGET, content);
    lab.rest();
    assert_ne!(extent_record(&mut lab, TARGET, 0).slot, slot);
    lab.check_all();
}

#[test]
fn r13_what_lags_or_does_not_match_our_checksum_mends_nothing() {
    let mut lab = replicas();
    write_both(&mut lab, write(0, 16, 7));
    let old = fetch(&mut lab, SOURCE, 0);
    write_both(&mut lab, write(3, 1, 90));
    lab.rest();
    rot_slot(&mut lab, TARGET, 3);
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)));
    lab.lane.mend(TARGET, old.clone());
    lab.rest();
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)), "an older block is another one");
    // Ahead: the same block was written once more there.
    lab.write(SOURCE, write(3, 1, 91));
    let newer = fetch(&mut lab, SOURCE, 0);
    lab.lane.mend(TARGET, newer.clone());
    lab.rest();
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)), "nor is a newer one ours");
    // A lie about what was applied does not help, nor does one about the bytes.
    lab.lane.mend(TARGET, ExtentContent { last_changed: 1 << 40, ..old });
    lab.rest();
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)));
    let data = lab.disk.pool.copy(&[1; 16 * BLOCK_BYTES]);
    let crcs = extent_record(&mut lab, TARGET, 0).crcs.to_vec();
    lab.lane.mend(TARGET, ExtentContent { last_changed: 1 << 50, data, crcs, ..newer });
    lab.rest();
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)));
}

#[test]
fn r13_an_extent_with_newer_blocks_is_mended_too() {
    let mut lab = replicas();
    write_both(&mut lab, write(0, 16, 7));
    lab.rest();
    rot_slot(&mut lab, TARGET, 3);
    write_both(&mut lab, write(5, 1, 90));
    assert_eq!(damaged(&mut lab, TARGET, 3), Some(Extent(0)));
    let content = fetch(&mut lab, SOURCE, 0);
    lab.lane.mend(TARGET, content);
    lab.settle();
    lab.check_all();
    // The block that was superseded could not move; now that it is written back, all can.
    lab.rest();
    if damaged(&mut lab, TARGET, 3).is_some() {
        let content = fetch(&mut lab, SOURCE, 0);
        lab.lane.mend(TARGET, content);
    }
    lab.rest();
    lab.crash();
    lab.check_all();
}

/// A lane whose write-back has met a rotten payload of `TARGET`.
fn rotten() -> Lab {
    let mut lab = replicas();
    // These take all the memory for payloads: the others live in the log alone.
    lab.write(OTHER, write(0, 12, 2000));
    write_both(&mut lab, write(0, 4, 1000));
    assert_eq!(damaged(&mut lab, TARGET, 2), None);
    rot_log(&mut lab, 1002);
    lab.rest();
    lab
}

fn is_rotten(event: &Event) -> bool {
    matches!(event, Event::Rotten { extent: Extent(0), .. })
}

#[test]
fn a_rotten_payload_of_the_log_stops_nobody_else() {
    let mut lab = rotten();
    assert!(!lab.poisoned);
    assert_eq!(lab.events.iter().filter(|event| is_rotten(event)).count(), 2, "both replicas");
    assert_eq!(lab.lane.space().overlay_blocks, 8, "what is not rotten was written back");
    // Later writes, also to the same extent, go on.
    lab.write(OTHER, write(50, 3, 3000));
    lab.write(TARGET, write(9, 1, 4000));
    lab.rest();
    assert!(!lab.poisoned);
    assert_eq!(lab.lane.space().overlay_blocks, 9);
}

#[test]
fn a_rotten_payload_of_the_log_is_mended_by_another_replica() {
    let mut lab = rotten();
    lab.events.clear();
    assert_eq!(damaged(&mut lab, TARGET, 2), Some(Extent(0)));
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
        data: lab.disk.pool.copy(&bytes),
    };
    for member in [SOURCE, TARGET] {
        lab.lane.mend(member, intact.clone());
        assert_eq!(damaged(&mut lab, member, 2), None);
        lab.lane.resume_writeback(member, Extent(0));
    }
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    lab.check_all();
    lab.crash();
    lab.check_all();
}

#[test]
fn a_member_that_is_given_up_holds_nothing_of_the_log_and_stays_given_up() {
    let mut lab = rotten();
    for member in [SOURCE, TARGET] {
        lab.lane.fault_member(member);
    }
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    // Much more than the ring holds.
    for round in 0..200 {
        lab.write(OTHER, write(round % 60, 8, 5000 + u64::from(round) * 8));
        lab.rest();
    }
    assert!(!lab.poisoned);
    lab.lane.read(READ, TARGET, BlockRange { first: Block(0), count: 1 });
    lab.events.retain(|event| !is_rotten(event));
    let refused = &lab.events()[..];
    assert!(
        matches!(refused, [Event::Read { result: Err(BlockError::NoSuchVolume), .. }]),
        "{refused:?}"
    );
    let found = lab.reopen_unchecked();
    let faulted: Vec<_> =
        found.iter().filter(|found| found.faulted).map(|found| found.record.member).collect();
    assert_eq!(faulted, [SOURCE, TARGET]);
}
