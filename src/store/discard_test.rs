//! Trims and zero writes: rules `overlay-is-bounded` and `trimmed-space-comes-back`.

use crate::planted::{Mistake, assert_found};
use crate::store::lane::{Demand, Refusal, Source};
use crate::store::messages::*;
use crate::testing::lane_fixture::*;
use crate::types::*;

const ONE: MemberId = MemberId(1);
const TWO: MemberId = MemberId(2);
/// Bound of the overlays in these tests, and what trims of clients may take of it.
const OVERLAY_BYTES: u64 = 64 << 10;
const ZEROES_BYTES: u64 = OVERLAY_BYTES / 8 * 5;
/// Extents of one trim.
const PIECE: u32 = 16;

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange { first: Block(first), count }
}

fn write(first: u32, count: u32, seed: u64) -> FixtureOp {
    FixtureOp::Write { range: range(first, count), seed }
}

/// A trim of whole extents.
fn trim(first: u32, extents: u32) -> FixtureOp {
    let range = range(first * BLOCKS_PER_EXTENT, extents * BLOCKS_PER_EXTENT);
    FixtureOp::Zero { range }
}

/// A lane with a small bound, and a member whose extents are all there, written back.
fn written(extents: u32) -> Fixture {
    let mut fixture = Fixture::with(1, 0, 4 << 20, u64::from(extents + 8) * EXTENT_BYTES as u64);
    fixture.config.overlay_bytes_max = OVERLAY_BYTES;
    fixture.reopen_unchecked();
    for member in [1, 2] {
        fixture.create(MemberRecord { blocks: extents * BLOCKS_PER_EXTENT, ..record(member) });
    }
    for first in (0..extents).step_by(256) {
        for extent in first..(first + 256).min(extents) {
            fixture.write(ONE, write(extent * BLOCKS_PER_EXTENT + extent % 16, 1, 7));
        }
        fixture.rest();
    }
    fixture
}

fn overlay_bytes(fixture: &Fixture) -> u64 {
    fixture.lane.space().overlay_bytes
}

/// Applies an entry, and ends nothing but log writes.
fn apply(fixture: &mut Fixture, op: FixtureOp) {
    let last = fixture.models[&ONE].log.len() as u64;
    fixture.append(ONE, last + 1, &[op]);
    fixture.settle_but(|effect| file_of(effect) != Some(LaneFile::Wal));
    fixture.commit_all(ONE);
}

/// Trims pieces from this one on until one is refused; returns the next piece.
fn trim_until_refused(fixture: &mut Fixture, source: Source, mut piece: u32) -> u32 {
    fixture.poll();
    let demand = Demand::zero(u64::from(PIECE));
    while fixture.lane.admit(source, ONE, &demand).is_ok() {
        apply(fixture, trim(piece * PIECE, PIECE));
        piece += 1;
        fixture.poll();
    }
    piece
}

#[test]
fn trims_are_admitted_while_the_overlay_has_room() {
    let mut fixture = written(1024);
    let refused = |fixture: &Fixture, source| {
        let trim = fixture.lane.admit(source, ONE, &Demand::zero(u64::from(PIECE)));
        let write = fixture.lane.admit(source, ONE, &Demand::write(4096, &[range(0, 1)]));
        [trim, write].map(|result| result.is_err())
    };
    let next = trim_until_refused(&mut fixture, Source::Client, 0);
    assert!(next > 4 && overlay_bytes(&fixture) <= ZEROES_BYTES, "{next} pieces");
    // What a leader sent, and a write, are refused later.
    assert_eq!(refused(&fixture, Source::Client), [true, false]);
    assert_eq!(refused(&fixture, Source::Leader), [false, false]);
    let next = trim_until_refused(&mut fixture, Source::Leader, next);
    assert_eq!(refused(&fixture, Source::Leader), [true, false]);
    assert_eq!(refused(&fixture, Source::EarlierTerm), [false, false]);
    assert!(overlay_bytes(&fixture) <= OVERLAY_BYTES, "{}", overlay_bytes(&fixture));
    // Write-back makes room; nothing else has to happen, and no time to pass.
    fixture.settle();
    assert!(overlay_bytes(&fixture) < ZEROES_BYTES / 2 * 3 / 2, "{}", overlay_bytes(&fixture));
    assert!(trim_until_refused(&mut fixture, Source::Client, next) > next);
    fixture.crash();
}

/// The kernel keeps discards in flight; all of them are applied at once when a majority has them.
#[test]
fn what_is_in_flight_is_charged_and_a_stuck_member_stops_nobody() {
    let mut fixture = written(64);
    let admit = |fixture: &Fixture, member, extents| {
        fixture.lane.admit(Source::Client, member, &Demand::zero(extents))
    };
    let in_flight = OVERLAY_BYTES / 8 / ZERO_EXTENT_BYTES as u64;
    fixture.poll();
    assert_eq!(admit(&fixture, ONE, in_flight / 2), Ok(()));
    assert_eq!(admit(&fixture, ONE, in_flight), Err(Refusal::LogFull));
    fixture.poll();
    fixture.lane.set_unapplied_zeroes(ONE, 100 * in_flight);
    assert_eq!(admit(&fixture, ONE, 1), Err(Refusal::LogFull));
    assert_eq!(admit(&fixture, TWO, in_flight / 2), Ok(()), "one of each member");
    let block = [range(0, 1)];
    let writes = Demand::write(4096, &block);
    assert_eq!(fixture.lane.admit(Source::Client, TWO, &writes), Ok(()));
    fixture.lane.destroy_member(ONE);
    fixture.settle();
    fixture.poll();
    assert_eq!(admit(&fixture, TWO, in_flight / 2), Ok(()));
    assert_eq!(admit(&fixture, TWO, in_flight / 2), Ok(()), "and its share is free again");
}

/// Else every start would put the same trims into memory again, more of them each time.
#[test]
fn a_restart_replays_no_more_than_the_bound() {
    let mut fixture = written(2048);
    let mut next = 0;
    while next < 2048 / PIECE {
        let first = next;
        let admitted = |fixture: &mut Fixture| {
            fixture.poll();
            fixture.lane.admit(Source::Client, ONE, &Demand::zero(u64::from(PIECE))).is_ok()
        };
        while next < 2048 / PIECE && admitted(&mut fixture) {
            apply(&mut fixture, trim(next * PIECE, PIECE));
            next += 1;
        }
        assert!(next > first, "write-back makes room for the next trims");
        fixture.settle();
    }
    fixture.index.crash(0);
    for recovered in fixture.reopen_unchecked() {
        let model = fixture.models.get_mut(&recovered.record.member).unwrap();
        model.rewind(recovered.record.flushed_index);
        while fixture.models[&recovered.record.member].applied < recovered.hard.commit {
            fixture.apply_next(recovered.record.member, false);
        }
    }
    let bytes = overlay_bytes(&fixture);
    assert!(bytes <= OVERLAY_BYTES, "{bytes} bytes after a restart");
    // The leader tells of the newest commits again.
    let all = fixture.models[&ONE].log.len() as u64;
    fixture.models.get_mut(&ONE).unwrap().commit = all;
    while fixture.models[&ONE].applied < all {
        fixture.apply_next(ONE, true);
    }
    fixture.rest();
    assert_eq!((fixture.lane.space().used_bytes, overlay_bytes(&fixture)), (0, 0));
}

#[test]
fn a_write_after_a_trim_stays() {
    let mut fixture = Fixture::new(1, 1);
    fixture.write(ONE, write(0, 32, 1));
    fixture.rest();
    fixture.write(ONE, trim(0, 2));
    fixture.write(ONE, write(3, 1, 9));
    fixture.write(ONE, write(20, 8, 11));
    fixture.write(ONE, FixtureOp::Clear { range: range(22, 2) });
    fixture.check_all();
    fixture.rest();
    fixture.check_all();
    fixture.crash();
    assert_eq!(fixture.lane.space().used_bytes, 2 * EXTENT_BYTES as u64);
}

/// A power cut at any moment of trims of the same extents, with writes between them.
#[test]
fn trims_survive_crashes_as_one_record_of_many_blocks() {
    for seed in 0..60 {
        let mut fixture = Fixture::new(seed, 1);
        for step in 0..30u64 {
            let at = fixture.random.below(u64::from(BLOCKS - 16)) as u32;
            let count = 1 + fixture.random.below(16) as u32;
            let op = match step % 3 {
                0 => write(at, count, 100 * step),
                1 => FixtureOp::Zero { range: range(at, count) },
                _ => trim(at / 16, 1),
            };
            fixture.write(ONE, op);
            if fixture.random.one_in(4) {
                fixture.now = Mono(fixture.now.0 + 2_000_000_000);
            }
            for _ in 0..fixture.random.below(6) {
                fixture.complete_one();
            }
            if fixture.random.one_in(8) {
                fixture.crash();
                let all = fixture.models[&ONE].log.len() as u64;
                fixture.models.get_mut(&ONE).unwrap().commit = all;
                fixture.commit_all(ONE);
            }
        }
        fixture.rest();
        fixture.check_all();
    }
}

/// Write-back of the trim is due at once: the client of the write waits for it.
#[test]
fn a_write_finds_the_space_that_a_trim_has_just_freed() {
    let mut fixture = Fixture::with(1, 1, FORMAT.wal_bytes, 2 * EXTENT_BYTES as u64);
    fixture.write(ONE, write(0, 32, 1));
    fixture.rest();
    let elsewhere = |fixture: &Fixture| {
        fixture.lane.admit(Source::Client, ONE, &Demand::write(4096, &[range(64, 1)]))
    };
    assert_eq!(elsewhere(&fixture), Err(Refusal::NoSpace));
    fixture.append(ONE, 2, &[trim(0, 1)]);
    fixture.lane.set_unapplied_zeroes(ONE, 1);
    fixture.poll();
    assert_eq!(elsewhere(&fixture), Err(Refusal::LogFull), "it is about to be applied");
    fixture.settle();
    fixture.commit_all(ONE);
    fixture.lane.set_unapplied_zeroes(ONE, 0);
    assert_eq!(elsewhere(&fixture), Err(Refusal::LogFull), "it is about to be written back");
    fixture.settle();
    assert_eq!(elsewhere(&fixture), Ok(()), "and no time had to pass");
    fixture.write(ONE, write(64, 1, 2));
    // Nothing comes back any more.
    fixture.rest();
    let elsewhere = [range(80, 1)];
    let more = Demand::write(4096, &elsewhere);
    assert_eq!(fixture.lane.admit(Source::Client, ONE, &more), Err(Refusal::NoSpace));
    fixture.crash();
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::DiscardUncharged, trims_are_admitted_while_the_overlay_has_room);
    assert_found(
        Mistake::TrimmedSpaceForgotten,
        a_write_finds_the_space_that_a_trim_has_just_freed,
    );
    assert_found(Mistake::TrimBelowNewerWrite, a_write_after_a_trim_stays);
}
