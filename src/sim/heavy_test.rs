//! Heavy runs of every test run.

use std::time::Duration;

use super::{Options, Plan, run};

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
