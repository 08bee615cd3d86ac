//! Seeds of every test run. A seed that found a bug has a line of its own that describes the bug.

use std::time::Duration;

use super::{Options, Outcome, Plan, Seen, Violation, run};
use crate::replica::messages::ReadMode;

fn must_pass(options: &Options) -> Outcome {
    match run(options) {
        Ok(outcome) => {
            assert!(outcome.requests > 0, "{options:?}: the clients did nothing");
            outcome
        }
        Err(violation) => panic!("{violation}"),
    }
}

/// Seeds that found bugs at the time, and a description of each bug.
const FOUND_BUGS: [(u64, &str); 16] = [
    (31, "a resync waited for ever on a dead connection"),
    (65, "a resync took slots that were reserved for applied entries"),
    (1_795_785_149_487, "a disk that had moved kept another replica from its group"),
    (1_795_920_002_022, "requests to a leader that did not serve yet were not counted"),
    (1_795_794_305_715, "the log went on at the end of a resync, which jumped over a trim"),
    (1_795_795_496_476, "a router refused a leader because of a later term without one"),
    (1_795_799_503_251, "a member whose resync waited for a leader elected nobody"),
    (1_795_799_967_334, "a late registration took a disk from the pod that had it by then"),
    (1953, "a leader with the resyncing flag was no source for a replica that it needed"),
    (1_795_803_138_492, "entries were released before the resync that replaced them was durable"),
    (1_795_805_218_421, "power failed in three starts, and no two copies of a superblock agreed"),
    (1_795_807_579_950, "a leader that was deposed during a read repair answered with an error"),
    (1_795_783_733_893, "a resync put an older copy in place, and replay did not bring the rest"),
    (146, "entries of an earlier term were refused, and nothing of this term committed"),
    (253, "a resync kept the longest log from its group, and nobody could be elected"),
    (1245, "entries that the log had were refused, and their commit was never learned"),
];

/// All rare events must happen in these runs: otherwise they prove nothing about them.
#[test]
fn fixed_seeds_pass_and_see_everything() {
    let mut seen = Seen::default();
    let mut spared = 0;
    let first = (1..=60).map(|seed| (seed, 10));
    // In the last three, log rot costs a replica, and disks get full.
    let longer = FOUND_BUGS.map(|(seed, _)| seed).into_iter().chain([56, 77, 111]);
    for (seed, seconds) in first.chain(longer.map(|seed| (seed, 20))) {
        let outcome = must_pass(&Options::new(seed, Duration::from_secs(seconds)));
        seen += outcome.seen;
        spared += u64::from(outcome.spared);
    }
    for (what, count) in seen.all().into_iter().chain([("majorities without a pod", spared)]) {
        assert!(count > 0, "no {what} in any run: {seen}");
    }
}

/// The leader's log had moved on when the copy was complete: the resync waited for ever.
#[test]
fn a_resync_that_the_log_does_not_reach_begins_again() {
    for seed in [4, 9] {
        must_pass(&Options::new(seed, Duration::from_secs(15)));
    }
}

/// A read held the tail at the moment when everything else was done: the log stayed full.
#[test]
fn a_log_that_was_read_at_the_wrong_moment_has_room_again() {
    must_pass(&Options::new(27, Duration::from_secs(8)));
}

/// The log of a resyncing replica went on between the two listings. It wrote an extent that neither
/// listing had, and the resync jumped over the trim of that extent.
#[test]
fn what_is_written_and_trimmed_during_a_resync_is_gone() {
    must_pass(&Options::new(5234, Duration::from_secs(12)));
}

/// A learner of the catalog was replaced while its pod was unreachable, and never knew.
#[test]
fn a_learner_that_was_replaced_does_not_keep_its_pod_from_newer_views() {
    must_pass(&Options::new(9117, Duration::from_secs(12)));
}

/// Every read returns the written content, even from a leader whose slots rot.
#[test]
fn bits_that_flip_in_one_replica_are_read_around() {
    for seed in 1..=8 {
        let options = Options::new(seed, Duration::from_secs(30));
        must_pass(&Options { plan: Plan::Rot, ..options });
    }
}

/// A pod is cut off and its clock stops, like a migrated virtual machine: its lease goes on, and
/// reads are stale. The simulator must find that, as it would find other stale reads. With `reads =
/// "quorum"` no read is stale.
#[test]
fn clocks_that_stop_make_reads_stale_under_leases_and_not_with_quorums() {
    let stale = |reads: ReadMode| {
        (1..=12).find_map(|seed| {
            let options = Options::new(seed, Duration::from_secs(20));
            run(&Options { plan: Plan::Clocks, reads: Some(reads), ..options }).err()
        })
    };
    let found = stale(ReadMode::Lease);
    let shows = match &found {
        Some(Violation::NotLinearizable { .. }) => true,
        Some(Violation::Broken { what, .. }) => what.contains("reads as of"),
        _ => false,
    };
    assert!(shows, "{found:?}");
    assert_eq!(stale(ReadMode::Quorum), None);
}

/// Most members rest. Each must be there when a client or a fault wakes it.
#[test]
fn a_thousand_members_rest_and_wake() {
    let options = Options::new(3, Duration::from_secs(6));
    must_pass(&Options { shards: Some(340), ..options });
}

/// Shards lose their majorities, again and again. Requests that wait for too long fail, and what
/// they wrote may take place late, or never, but not after what was acknowledged since.
#[test]
fn requests_that_wait_for_too_long_fail_and_later_ones_succeed() {
    let mut timed_out = 0;
    for (seed, seconds) in (1..=40).map(|seed| (seed, 1 + seed % 3)) {
        let options = Options::new(seed, Duration::from_secs(15));
        let io_timeout = Some(Duration::from_secs(seconds));
        timed_out += must_pass(&Options { io_timeout, ..options }).timed_out;
    }
    assert!(timed_out > 1000, "only {timed_out} requests had to wait for too long");
}

/// If any disk may lose anything, nothing is sure to survive. Still nobody reads content that was
/// never written, nobody panics, and the only errors are EIO and ENOSPC.
#[test]
fn disks_that_all_lose_what_they_have_invent_nothing() {
    for seed in 1..=20 {
        let options = Options::new(seed, Duration::from_secs(10));
        must_pass(&Options { plan: Plan::Unbounded, ..options });
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let options = Options::new(11, Duration::from_secs(10));
    assert_eq!(run(&options), run(&options));
    let another = Options::new(12, Duration::from_secs(10));
    assert_ne!(run(&options).map(|run| run.trace), run(&another).map(|run| run.trace));
}
