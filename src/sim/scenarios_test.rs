//! Seeds that run with every test run. A seed that found a bug gets a line of its own, with the
//! bug's name.

use std::time::Duration;

use super::{Options, Plan, run, run_plan};

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

/// Every read is answered with what was written, by a leader whose slots rot, too.
#[test]
fn bits_that_flip_in_one_replica_are_read_around() {
    for seed in 1..=8 {
        let options = Options { seed, faults_for: Duration::from_secs(30) };
        if let Err(violation) = run_plan(options, Plan::Rot) {
            panic!("{violation}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let options = Options { seed: 11, faults_for: Duration::from_secs(10) };
    assert_eq!(run(options), run(options));
}
