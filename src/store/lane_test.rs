//! A lane against crashes: random work in a tiny log, power cuts at random moments.

use crate::planted::{Mistake, is_found};
use crate::store::lane::{Demand, Refusal, Source};
use crate::store::messages::LaneFile;
use crate::testing::lane_fixture::*;
use crate::types::*;

fn random_range(fixture: &mut Fixture) -> BlockRange {
    if fixture.random.one_in(4) {
        let extents = 1 + fixture.random.below(2) as u32;
        let first =
            fixture.random.below(u64::from(BLOCKS / BLOCKS_PER_EXTENT - extents + 1)) as u32;
        let first = Extent(first).first_block();
        return BlockRange { first, count: extents * BLOCKS_PER_EXTENT };
    }
    let count = match fixture.random.below(8) {
        0..5 => 1,
        5 | 6 => 1 + fixture.random.below(8) as u32,
        _ => 8 + fixture.random.below(16) as u32,
    };
    let first = fixture.random.below(u64::from(BLOCKS - count + 1)) as u32;
    BlockRange { first: Block(first), count }
}

/// An operation that the lane admits, if there is one.
fn random_op(fixture: &mut Fixture, member: MemberId) -> Option<FixtureOp> {
    let range = random_range(fixture);
    let seed = fixture.random.next();
    let (op, bytes) = match fixture.random.below(10) {
        0 => (FixtureOp::Noop, 0),
        1 => (FixtureOp::Zero { range }, 0),
        2 => (FixtureOp::Clear { range }, 0),
        _ => (FixtureOp::Write { range, seed }, range.bytes()),
    };
    let zero_extents = if bytes == 0 { range.extent_count() } else { 0 };
    let demand = Demand { payload_bytes: bytes, ranges: &[range], zero_extents };
    fixture.lane.admit(Source::Client, member, &demand).ok().map(|()| op)
}

fn random_append(fixture: &mut Fixture, member: MemberId) {
    let model = &fixture.models[&member];
    let (last, commit) = (model.log.len() as u64, model.commit);
    let from = match fixture.random.one_in(20) && last > commit {
        true => commit + 1 + fixture.random.below(last - commit),
        false => last + 1,
    };
    let count = 1 + fixture.random.below(3);
    let ops: Vec<_> = (0..count).filter_map(|_| random_op(fixture, member)).collect();
    if !ops.is_empty() || fixture.random.one_in(3) {
        let from = if ops.is_empty() { last + 1 } else { from };
        fixture.append(member, from, &ops);
    }
}

/// One random thing happens. `stuck` never commits, the last `idle` members do nothing.
fn random_step(fixture: &mut Fixture, stuck: Option<MemberId>, idle: u64) {
    let members = fixture.models.len() as u64;
    let member = MemberId(1 + fixture.random.below(members - idle));
    match fixture.random.below(20) {
        0..4 => random_append(fixture, member),
        4..7 if Some(member) != stuck => {
            let most = fixture.models[&member].committable();
            let commit = fixture.models[&member].commit;
            if most > commit {
                let commit = commit + 1 + fixture.random.below(most - commit);
                fixture.models.get_mut(&member).unwrap().commit = commit;
            }
        }
        7..10 => {
            while fixture.models[&member].applied < fixture.models[&member].commit {
                fixture.apply_next(member, true);
            }
        }
        10 => {
            let range = random_range(fixture);
            fixture.read(member, range);
        }
        11 if fixture.random.one_in(20) => fixture.now = Mono(fixture.now.0 + 1_100_000_000),
        12 => fixture.now = Mono(fixture.now.0 + 1_000_000),
        _ => {
            fixture.poll();
            fixture.complete_some();
        }
    }
}

fn run_seed(seed: u64, members: u64) {
    // With little space, some large writes go to the log after all.
    let mut fixture = match seed % 4 {
        0 => Fixture::new(seed, members),
        1 => Fixture::bypassing(seed, members, FORMAT.wal_bytes, FORMAT.data_bytes_max),
        _ => Fixture::bypassing(seed, members, FORMAT.wal_bytes, 40 * EXTENT_BYTES as u64),
    };
    for _ in 0..4 {
        let stuck = fixture.random.one_in(2).then_some(MemberId(1));
        let idle = fixture.random.below(members);
        fixture.slow = match fixture.random.below(8) {
            0 => Some(Some(LaneFile::Superblock)),
            1 => Some(Some(LaneFile::Wal)),
            2 => Some(Some(LaneFile::Data)),
            3 => Some(None),
            _ => None,
        };
        for _ in 0..100 + fixture.random.below(1500) {
            random_step(&mut fixture, stuck, idle);
        }
        assert!(!fixture.poisoned);
        fixture.crash();
    }
    fixture.settle();
    fixture.check_all();
}

#[test]
fn nothing_confirmed_is_lost_whenever_the_power_fails() {
    for seed in 0..200 {
        run_seed(seed, 1 + seed % 3);
    }
}

#[test]
fn a_lane_comes_to_rest_with_everything_written_back() {
    let mut fixture = Fixture::new(1, 2);
    let member = MemberId(1);
    let range = BlockRange { first: Block(3), count: 20 };
    fixture.append(member, 1, &[FixtureOp::Write { range, seed: 5 }]);
    fixture.settle();
    fixture.models.get_mut(&member).unwrap().commit = 1;
    fixture.apply_next(member, true);
    fixture.check_all();
    assert_eq!(fixture.lane.space().overlay_blocks, 20);
    fixture.rest();
    assert_eq!(fixture.lane.space().overlay_blocks, 0);
    assert_eq!(fixture.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
    fixture.check_all();
    fixture.crash();
    let space = fixture.lane.space();
    assert_eq!((space.overlay_blocks, space.used_bytes), (0, 2 * EXTENT_BYTES as u64));
    assert_eq!(
        fixture.lane.admit(Source::Client, member, &Demand::write(4096, &[range])),
        Ok::<(), Refusal>(())
    );
}

/// Random crashes find these mistakes within the seeds that the test above runs.
#[test]
fn broken_rules_are_noticed_by_random_crashes() {
    let mistakes = [
        (Mistake::LogWriteNotDurable, 0..40),
        (Mistake::IndexBeforeData, 0..1),
        (Mistake::FlushedIsNewestApplied, 0..1),
        (Mistake::ReplayOverNewer, 0..3),
        (Mistake::BypassNotDurable, 0..40),
        (Mistake::AdmittedWithoutSpace, 0..40),
        (Mistake::WrittenBackUncovered, 0..100),
        (Mistake::CutComesBack, 0..400),
        (Mistake::MetaNotStored, 0..1),
        (Mistake::SuffixNotTruncated, 0..1),
    ];
    for (mistake, mut seeds) in mistakes {
        let fails = |seed| is_found(mistake, || run_seed(seed, 1 + seed % 3));
        assert!(seeds.any(fails), "{mistake:?} was not noticed");
    }
}
