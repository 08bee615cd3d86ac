//! Followers that are behind the memory of their leader, and get entries from its disk (rules
//! `resync-beyond-the-ring` and `fetched-as-logged`).

use crate::limits::FED_BYTES_MAX;
use crate::planted::{Mistake, assert_found, with};
use crate::replica::messages::Input;
use crate::testing::group_fixture::{BLOCKS, CALM, Cluster, Faults};
use crate::types::{BLOCK_BYTES, MemberId};

/// A group of three that has nothing applied in memory, and so many entries on its disks.
fn cluster(seed: u64, ring_entries: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    cluster.log_tail_bytes = 0;
    cluster.ring_entries = ring_entries;
    for id in [1, 2, 3].map(MemberId) {
        cluster.crash(id);
        cluster.start(id);
    }
    cluster
}

fn write_some(cluster: &mut Cluster, leader: MemberId, count: u32) {
    for at in 0..count {
        cluster.write(leader, at % BLOCKS);
        cluster.run(3);
    }
}

/// A follower hears nothing while the leader takes 60 writes, as one that was stopped does.
fn absence(cluster: &mut Cluster) -> (MemberId, MemberId) {
    absence_of(cluster, 60)
}

fn absence_of(cluster: &mut Cluster, writes: u32) -> (MemberId, MemberId) {
    let leader = cluster.elect();
    cluster.run(300);
    let behind = MemberId(leader.0 % 3 + 1);
    for other in [1, 2, 3].map(MemberId) {
        cluster.cut.insert((behind, other));
        cluster.cut.insert((other, behind));
    }
    write_some(cluster, leader, writes);
    cluster.cut.clear();
    (leader, behind)
}

fn absent_for_longer_than_the_memory_and_shorter_than_the_ring() {
    let mut cluster = cluster(31, 200);
    let (leader, behind) = absence(&mut cluster);
    let target = cluster.nodes[&leader].applied.0;
    let is_back = |cluster: &Cluster| cluster.nodes[&behind].applied.0 >= target;
    assert!(cluster.run_until(20_000, is_back));
    assert_eq!(cluster.resyncs, 0);
    assert!(cluster.fetches > 3, "in several pieces");
    cluster.settle();
    assert_eq!(cluster.resyncs, 0);
}

#[test]
fn a_follower_comes_back_from_the_ring_without_a_resync() {
    absent_for_longer_than_the_memory_and_shorter_than_the_ring();
    assert_found(
        Mistake::ResyncInsteadOfRing,
        absent_for_longer_than_the_memory_and_shorter_than_the_ring,
    );
}

#[test]
fn a_follower_beyond_the_ring_is_resynced_once() {
    let mut cluster = cluster(32, 20);
    let (leader, behind) = absence(&mut cluster);
    let target = cluster.nodes[&leader].applied.0;
    let is_back = |cluster: &Cluster| cluster.nodes[&behind].applied.0 >= target;
    assert!(cluster.run_until(20_000, is_back));
    assert_eq!((cluster.resyncs, cluster.fetches), (1, 0));
    cluster.settle();
}

/// The ring goes on while a follower is fed from it: clients write faster than it catches up.
#[test]
fn a_follower_that_the_ring_overtakes_is_resynced() {
    let mut cluster = cluster(33, 70);
    let (leader, behind) = absence(&mut cluster);
    let before = cluster.nodes[&behind].applied.0;
    cluster.faults = Faults { delay_us: 20_000, disk_us: 20_000, ..CALM };
    assert!(cluster.run_until(5_000, |cluster| cluster.nodes[&behind].applied.0 > before));
    cluster.ring_entries = 1;
    write_some(&mut cluster, leader, 40);
    cluster.faults = CALM;
    cluster.ring_entries = 70;
    cluster.settle();
}

#[test]
fn lost_appends_are_sent_again_without_a_resync() {
    let mut cluster = cluster(34, 1000);
    let leader = cluster.elect();
    cluster.faults = Faults { drop: 30, double: 10, ..CALM };
    write_some(&mut cluster, leader, 200);
    cluster.settle();
    assert_eq!(cluster.resyncs, 0);
    assert!(cluster.fetches > 0);
}

/// A follower whose log is full drops what it is fed without a word: as much as may be on its way.
fn all_that_is_on_its_way_is_lost() {
    let mut cluster = cluster(38, 4000);
    cluster.fetch_entries = 64;
    let (leader, behind) = absence_of(&mut cluster, 2 * (FED_BYTES_MAX / BLOCK_BYTES) as u32);
    let applied = |cluster: &Cluster| cluster.nodes[&behind].applied.0;
    let (before, target) = (applied(&cluster), cluster.nodes[&leader].applied.0);
    assert!(cluster.run_until(20_000, |cluster| applied(cluster) > before));
    cluster.full.insert(behind);
    cluster.run(10_000);
    cluster.full.clear();
    assert!(applied(&cluster) < target, "it lacks entries still");
    assert!(cluster.run_until(60_000, |cluster| applied(cluster) >= target));
    assert_eq!(cluster.resyncs, 0);
}

#[test]
fn a_follower_that_lost_what_it_was_fed_gets_it_again() {
    all_that_is_on_its_way_is_lost();
    assert_found(Mistake::FedForEver, all_that_is_on_its_way_is_lost);
}

/// The store gives back something else. The follower must not get it.
fn wrong_entries_are_not_sent() {
    let mut cluster = cluster(35, 1000);
    cluster.wrong_fetch = Some(|entry| entry.term += 1);
    absence(&mut cluster);
    cluster.settle();
    assert_eq!(cluster.resyncs, 1, "the only way that is left");
}

#[test]
fn entries_of_another_term_are_never_sent() {
    wrong_entries_are_not_sent();
    assert_found(Mistake::FetchedNotCompared, wrong_entries_are_not_sent);
}

#[test]
fn entries_of_another_index_are_never_sent() {
    let mut cluster = cluster(36, 1000);
    cluster.wrong_fetch = Some(|entry| entry.index += 1);
    absence(&mut cluster);
    cluster.settle();
    assert_eq!(cluster.resyncs, 1);
}

/// Leaders change while followers are fed. What one leader asked for is of no use to another.
#[test]
fn followers_are_fed_by_every_leader_in_its_turn() {
    for seed in 40..60 {
        let mut cluster = cluster(seed, 400);
        for _ in 0..4 {
            let (leader, _) = absence(&mut cluster);
            let ms = cluster.rng.below(40);
            cluster.run(ms);
            cluster.crash(leader);
            cluster.elect();
            cluster.start(leader);
        }
        cluster.settle();
        assert_eq!(cluster.resyncs, 0, "seed {seed}");
    }
}

/// A follower copies, and clients write as much in its second round as in its first.
fn quick_writes_during_a_copy() -> usize {
    let mut cluster = Cluster::new(37, 3);
    cluster.proposal_bytes_max = 200_000;
    for id in [1, 2, 3].map(MemberId) {
        cluster.crash(id);
        cluster.start(id);
    }
    let leader = cluster.elect();
    for _ in 0..2 {
        cluster.handle(leader, Input::KeepLog { anew: true });
        write_some(&mut cluster, leader, 40);
    }
    let mut quick = 0;
    for at in 0..40 {
        let write = cluster.write(leader, at % BLOCKS);
        cluster.run(3);
        quick += usize::from(matches!(cluster.result(write), Some(Ok(_))));
    }
    cluster.settle();
    let end = Input::ResyncEnded { member: leader, ok: true };
    cluster.handle(leader, end);
    let write = cluster.write(leader, 0);
    cluster.run(3);
    assert!(matches!(cluster.result(write), Some(Ok(_))), "the resync has ended");
    quick
}

#[test]
fn a_copy_that_does_not_shrink_slows_clients_and_never_stops_them() {
    assert!(quick_writes_during_a_copy() < 10);
    let unbounded = with(Mistake::ResyncNeverSlows, quick_writes_during_a_copy);
    assert!(unbounded > 35, "{unbounded} of 40 writes were quick");
}
