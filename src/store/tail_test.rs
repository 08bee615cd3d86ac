//! Idle members near the tail of the ring move to its head together, with few batches.

use crate::testing::lane_fixture::*;
use crate::types::{Block, BlockRange, MemberId};

const BUSY: MemberId = MemberId(1);
const IDLE: u64 = 200;
const RING_BYTES: u64 = 8 << 20;

#[test]
fn idle_members_leave_the_tail_together() {
    let mut fixture = Fixture::with(9, IDLE + 1, RING_BYTES, 64 << 20);
    let write = |fixture: &mut Fixture, member, first, count, seed| {
        let range = BlockRange { first: Block(first), count };
        fixture.write(member, FixtureOp::Write { range, seed });
        fixture.commit_all(member);
        fixture.settle();
    };
    // Each has its newest HardState in a batch of its own.
    for member in 2..=IDLE + 1 {
        write(&mut fixture, MemberId(member), 0, 1, member);
    }
    fixture.rest();
    let batches = |fixture: &Fixture| fixture.lane.core.log.wal.durable_seq().0;
    let before = batches(&fixture);
    // The ring goes round twice.
    let writes = 2 * RING_BYTES / (64 << 10);
    for seed in 0..writes {
        write(&mut fixture, BUSY, 16 * (seed as u32 % 6), 16, seed);
        fixture.rest();
    }
    let own = batches(&fixture) - before - writes;
    // At rest after a write: a HardState, and the mark that it is durable.
    assert!(own < 2 * writes + IDLE / 2, "{own} batches beside those of {writes} writes");
    fixture.check_all();
}
