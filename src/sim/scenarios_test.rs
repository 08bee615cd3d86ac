//! Seeds that run with every test run. A seed that found a bug gets a line of its own, with the
//! bug's name.

use std::time::Duration;

use super::{Options, Plan, run};

fn must_pass(options: &Options) {
    match run(options) {
        Ok(outcome) => assert!(outcome.requests > 0, "{options:?}: the clients did nothing"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn fixed_seeds_pass() {
    for seed in 1..=40 {
        must_pass(&Options::new(seed, Duration::from_secs(8)));
    }
}

/// The leader's log had moved on when the copy was whole: the resync waited for ever.
#[test]
fn a_resync_that_the_log_does_not_reach_begins_again() {
    for seed in [4, 9] {
        must_pass(&Options::new(seed, Duration::from_secs(15)));
    }
}

/// A read held the log's tail at the moment when everything else was done; the log stayed full.
#[test]
fn a_log_that_was_read_at_the_wrong_moment_has_room_again() {
    must_pass(&Options::new(27, Duration::from_secs(8)));
}

/// The log of a resyncing replica went on between the two lists: it wrote an extent that neither
/// had, and the trim of it was jumped over.
#[test]
fn what_is_written_and_trimmed_during_a_resync_is_gone() {
    must_pass(&Options::new(5234, Duration::from_secs(12)));
}

/// A learner of the catalog was replaced while its pod was away, which never heard of it.
#[test]
fn a_learner_that_was_replaced_does_not_keep_its_pod_from_newer_views() {
    must_pass(&Options::new(9117, Duration::from_secs(12)));
}

/// Every read is answered with what was written, by a leader whose slots rot, too.
#[test]
fn bits_that_flip_in_one_replica_are_read_around() {
    for seed in 1..=8 {
        let options = Options::new(seed, Duration::from_secs(30));
        must_pass(&Options { plan: Plan::Rot, ..options });
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let options = Options::new(11, Duration::from_secs(10));
    assert_eq!(run(&options), run(&options));
    let another = Options::new(12, Duration::from_secs(10));
    assert_ne!(run(&options).map(|run| run.trace), run(&another).map(|run| run.trace));
}
