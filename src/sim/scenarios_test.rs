//! Seeds that run with every test run. A seed that found a bug gets a line of its own, with the
//! bug's name.

use std::time::Duration;

use super::{Options, run};

fn must_pass(seed: u64) {
    let outcome = run(Options { seed, faults_for: Duration::from_secs(8) });
    match outcome {
        Ok(outcome) => assert!(outcome.operations > 0, "seed {seed}: the clients did nothing"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn fixed_seeds_pass() {
    (1..=40).for_each(must_pass);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let options = Options { seed: 11, faults_for: Duration::from_secs(10) };
    assert_eq!(run(options), run(options));
}
