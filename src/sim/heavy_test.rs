//! Heavy runs of every test run.

use std::time::Duration;

use super::{Options, Plan, run};
use crate::planted::{Mistake, assert_found};

/// Virtual seconds of a heavy run.
pub const LASTS: Duration = Duration::from_secs(10);
const SEEDS: std::ops::Range<u64> = 0..10;

#[test]
fn the_load_goes_on_whatever_happens() {
    for seed in SEEDS {
        let options = Options { plan: Plan::Load, ..Options::new(seed, LASTS) };
        match run(&options) {
            Ok(outcome) => assert!(outcome.requests > 0, "seed {seed}: the clients did nothing"),
            Err(violation) => panic!("{violation}"),
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_heavy_run() {
    let options = Options { plan: Plan::Load, ..Options::new(18, LASTS) };
    assert_eq!(run(&options), run(&options));
}

/// A disk hangs for a while. Its replicas drop entries that their full log does not take, and their
/// leaders wait for answers to what they have read back from the ring.
fn a_follower_that_lost_what_it_was_fed_gets_it_again() {
    let options = Options { plan: Plan::Load, ..Options::new(100_073, LASTS) };
    run(&options).unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn what_a_leader_reads_back_is_not_waited_for_for_ever() {
    a_follower_that_lost_what_it_was_fed_gets_it_again();
    assert_found(Mistake::FedForEver, a_follower_that_lost_what_it_was_fed_gets_it_again);
}
