//! The totals over members are those of a full count, and a round costs nothing for idle members.

use crate::planted::{Mistake, assert_found};
use crate::store::lane::Lane;
use crate::store::members::{Share, Totals};
use crate::testing::lane_fixture::*;
use crate::types::{Block, BlockRange, MemberId};

const BUSY: MemberId = MemberId(1);
/// Lanes with more members are not counted in full at every poll.
const COUNTED_MAX: usize = 64;

/// The totals are those of a full count.
pub(crate) fn assert_counted(lane: &mut Lane) {
    let members = &mut lane.core.members;
    if members.len() > COUNTED_MAX {
        return;
    }
    let mut found = Totals::default();
    for (id, member) in members.iter() {
        found.add(*id, &Share::of(member));
    }
    let blocks = members.overlay_blocks();
    assert_eq!(blocks, found.overlay_blocks, "blocks, touched or not");
    assert_eq!(*members.totals(), found, "totals over all members");
}

fn write(seed: u64) -> FixtureOp {
    FixtureOp::Write { range: BlockRange { first: Block(3), count: 2 }, seed }
}

/// Members that were looked at by ten writes and all that follows from them.
fn visits_of_writes(members: u64) -> u64 {
    let mut fixture = Fixture::new(5, members);
    let before = fixture.lane.core.members.visits.get();
    for seed in 0..10 {
        fixture.write(BUSY, write(seed));
        fixture.commit_all(BUSY);
        fixture.settle();
    }
    fixture.rest();
    fixture.lane.core.members.visits.get() - before
}

#[test]
fn a_round_looks_at_no_idle_member() {
    assert!(visits_of_writes(2) > 0);
    // A single walk over all would be more. The order in which effects end differs a little.
    let idle = 2_000;
    let visits = visits_of_writes(idle);
    assert!(visits < idle / 4, "{visits} visits beside {idle} idle members");
}

#[test]
fn a_change_that_is_not_counted_is_noticed() {
    assert_found(Mistake::ChangeNotCounted, || {
        visits_of_writes(2);
    });
}
