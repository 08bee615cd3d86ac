//! A lane against crashes: random work in a tiny log, power cuts at random moments.

use crate::planted::{Mistake, is_found};
use crate::store::lane::Refusal;
use crate::store::seam::LaneFile;
use crate::testing::lane_fixture::*;
use crate::types::*;

fn random_range(lab: &mut Lab) -> BlockRange {
    if lab.random.one_in(4) {
        let extents = 1 + lab.random.below(2) as u32;
        let first = lab.random.below(u64::from(BLOCKS / BLOCKS_PER_EXTENT - extents + 1)) as u32;
        let first = Extent(first).first_block();
        return BlockRange { first, count: extents * BLOCKS_PER_EXTENT };
    }
    let count = match lab.random.below(8) {
        0..5 => 1,
        5 | 6 => 1 + lab.random.below(8) as u32,
        _ => 8 + lab.random.below(16) as u32,
    };
    let first = lab.random.below(u64::from(BLOCKS - count + 1)) as u32;
    BlockRange { first: Block(first), count }
}

/// An operation that the lane admits, if there is one.
fn random_op(lab: &mut Lab, member: MemberId) -> Option<LabOp> {
    let range = random_range(lab);
    let seed = lab.random.next();
    let (op, bytes) = match lab.random.below(10) {
        0 => (LabOp::Noop, 0),
        1 => (LabOp::Zero { range }, 0),
        2 => (LabOp::Clear { range }, 0),
        _ => (LabOp::Write { range, seed }, range.bytes()),
    };
    lab.lane.admit(member, bytes, &[range]).ok().map(|()| op)
}

fn random_append(lab: &mut Lab, member: MemberId) {
    let model = &lab.models[&member];
    let (last, commit) = (model.log.len() as u64, model.commit);
    let from = match lab.random.one_in(20) && last > commit {
        true => commit + 1 + lab.random.below(last - commit),
        false => last + 1,
    };
    let count = 1 + lab.random.below(3);
    let ops: Vec<_> = (0..count).filter_map(|_| random_op(lab, member)).collect();
    if !ops.is_empty() || lab.random.one_in(3) {
        let from = if ops.is_empty() { last + 1 } else { from };
        lab.append(member, from, &ops);
    }
}

/// One random thing happens. `stuck` never commits, the last `idle` members do nothing.
fn random_step(lab: &mut Lab, stuck: Option<MemberId>, idle: u64) {
    let members = lab.models.len() as u64;
    let member = MemberId(1 + lab.random.below(members - idle));
    match lab.random.below(20) {
        0..4 => random_append(lab, member),
        4..7 if Some(member) != stuck => {
            let most = lab.models[&member].committable();
            let commit = lab.models[&member].commit;
            if most > commit {
                let commit = commit + 1 + lab.random.below(most - commit);
                lab.models.get_mut(&member).unwrap().commit = commit;
            }
        }
        7..10 => {
            while lab.models[&member].applied < lab.models[&member].commit {
                lab.apply_next(member, true);
            }
        }
        10 => {
            let range = random_range(lab);
            lab.read(member, range);
        }
        11 if lab.random.one_in(20) => lab.now = Mono(lab.now.0 + 1_100_000_000),
        12 => lab.now = Mono(lab.now.0 + 1_000_000),
        _ => {
            lab.poll();
            lab.complete_some();
        }
    }
}

fn run_seed(seed: u64, members: u64) {
    // With little space, some large writes go to the log after all.
    let mut lab = match seed % 4 {
        0 => Lab::new(seed, members),
        1 => Lab::redirecting(seed, members, FORMAT.wal_bytes, FORMAT.data_bytes_max),
        _ => Lab::redirecting(seed, members, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64),
    };
    for _ in 0..4 {
        let stuck = lab.random.one_in(2).then_some(MemberId(1));
        let idle = lab.random.below(members);
        lab.slow = match lab.random.below(8) {
            0 => Some(Some(LaneFile::Superblock)),
            1 => Some(Some(LaneFile::Wal)),
            2 => Some(Some(LaneFile::Data)),
            3 => Some(None),
            _ => None,
        };
        for _ in 0..100 + lab.random.below(1500) {
            random_step(&mut lab, stuck, idle);
        }
        assert!(!lab.poisoned);
        lab.crash();
    }
    lab.settle();
    lab.check_all();
}

#[test]
fn nothing_confirmed_is_lost_whenever_the_power_fails() {
    for seed in 0..160 {
        run_seed(seed, 1 + seed % 3);
    }
}

#[test]
fn a_lane_comes_to_rest_with_everything_written_back() {
    let mut lab = Lab::new(1, 2);
    let member = MemberId(1);
    let range = BlockRange { first: Block(3), count: 20 };
    lab.append(member, 1, &[LabOp::Write { range, seed: 5 }]);
    lab.settle();
    lab.models.get_mut(&member).unwrap().commit = 1;
    lab.apply_next(member, true);
    lab.check_all();
    assert_eq!(lab.lane.space().overlay_blocks, 20);
    lab.rest();
    assert_eq!(lab.lane.space().overlay_blocks, 0);
    assert_eq!(lab.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
    lab.check_all();
    lab.crash();
    let space = lab.lane.space();
    assert_eq!((space.overlay_blocks, space.used_bytes), (0, 2 * EXTENT_BYTES as u64));
    assert_eq!(lab.lane.admit(member, 4096, &[range]), Ok::<(), Refusal>(()));
}

/// Mistakes that no scenario covers show up within so many seeds.
#[test]
fn broken_rules_are_noticed_by_random_crashes() {
    let mistakes = [
        (Mistake::LogWriteNotDurable, 0..6),
        (Mistake::IndexBeforeData, 0..1),
        (Mistake::FlushedIsNewestApplied, 0..1),
        (Mistake::ReplayOverNewer, 0..3),
        (Mistake::RedirectNotDurable, 0..3),
        (Mistake::AdmittedWithoutSpace, 0..6),
        (Mistake::WrittenBackUncovered, 0..22),
        (Mistake::CutComesBack, 160..200),
        (Mistake::MetaNotStored, 0..1),
        (Mistake::SuffixNotTruncated, 0..1),
    ];
    for (mistake, mut seeds) in mistakes {
        let fails = |seed| is_found(mistake, || run_seed(seed, 1 + seed % 3));
        assert!(seeds.any(fails), "{mistake:?} was not noticed");
    }
}
