//! Rules of the design that one group can show, one scenario each. `member_test` has more.

use crate::planted::{Mistake, assert_found};
use crate::replica::messages::{Input, ReadMode};
use crate::testing::group_fixture::{BLOCKS, Cluster};
use crate::types::{AttachmentId, BlockError, MemberId, Origin, PodId, Session};

fn session(counter: u64) -> Origin {
    let session = Session { counter: counter << 24, pod: PodId(9) };
    Origin { attachment: AttachmentId::NONE, session }
}

/// A group of three, set up by `with`.
fn cluster(seed: u64, with: fn(&mut Cluster)) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    with(&mut cluster);
    for id in [1, 2, 3].map(MemberId) {
        cluster.crash(id);
        cluster.start(id);
    }
    cluster
}

/// A follower that was down for long is resynced, and then leads. It must know that a client's old
/// session is over, although no entry told it.
#[test]
fn a_member_that_was_resynced_knows_the_sessions() {
    let mut cluster = cluster(19, |cluster| cluster.log_tail_bytes = 0);
    let leader = cluster.elect();
    let behind = MemberId(leader.0 % 3 + 1);
    cluster.crash(behind);
    cluster.touch(leader, session(1));
    cluster.touch(leader, session(2));
    let newer = cluster.write_as(leader, session(2), 0, 1);
    for at in 0..40 {
        cluster.write(leader, 1 + at % (BLOCKS - 1));
        cluster.run(3);
    }
    assert!(matches!(cluster.result(newer), Some(Ok(_))));
    cluster.start(behind);
    let target = cluster.nodes[&leader].applied.0;
    assert!(cluster.run_until(20_000, |cluster| cluster.nodes[&behind].applied.0 >= target));
    assert_eq!(cluster.resyncs, 1);
    cluster.run(500);
    cluster.handle(leader, Input::TransferLeader(behind));
    cluster.run(50);
    assert_eq!(cluster.leader(), Some(behind));
    let late = cluster.write_as(behind, session(1), 0, 1);
    cluster.run(20);
    let recorded = session(2).session;
    assert_eq!(cluster.result(late), Some(&Err(BlockError::StaleSession { recorded })));
    assert_eq!(cluster.nodes[&behind].store[0].tags, [newer.0; 8]);
    cluster.settle();
}

/// A virtual machine and its clock stand still during a migration, so its lease would outlast the
/// election of another leader. With reads by quorum, an isolated leader answers no read, however
/// recently it heard the others.
#[test]
fn reads_by_quorum_trust_no_clock() {
    let mut cluster = cluster(20, |cluster| cluster.reads = ReadMode::Quorum);
    let leader = cluster.elect();
    cluster.run(1_000);
    let read = cluster.read(leader, 0, 1);
    cluster.run(20);
    assert!(matches!(cluster.result(read), Some(Ok(_))), "the others confirm that it leads");
    for other in [1, 2, 3].map(MemberId) {
        cluster.cut.insert((leader, other));
        cluster.cut.insert((other, leader));
    }
    let read = cluster.read(leader, 0, 1);
    cluster.run(20);
    assert_eq!(cluster.result(read), None, "nobody has confirmed it");
    cluster.settle();
}

/// The leader and a resyncing follower have an entry that the third member lacks. Then the leader
/// is gone for good. The third cannot be elected, because its log is shorter. The resyncing member
/// is elected after a while, sends the third its log, and serves once its worker says that it is
/// whole.
#[test]
fn a_longer_log_is_not_kept_from_a_group_by_a_resync() {
    let mut cluster = cluster(21, |_| {});
    let leader = cluster.elect();
    let resyncing = MemberId(leader.0 % 3 + 1);
    let other = MemberId(6 - leader.0 - resyncing.0);
    cluster.handle(resyncing, Input::Resyncing(true));
    cluster.cut.insert((leader, other));
    let write = cluster.write(leader, 0);
    cluster.run(20);
    assert!(matches!(cluster.result(write), Some(Ok(_))), "two of three have it");
    cluster.crash(leader);
    let has_it = |cluster: &Cluster| cluster.nodes[&other].store[0].tags == [write.0; 8];
    assert!(cluster.run_until(30_000, has_it), "the third has it in the end");
    cluster.run(2_000);
    let role = cluster.nodes[&resyncing].role;
    assert_eq!((role.leader, role.serving), (Some(resyncing), false));
    cluster.handle(resyncing, Input::Resyncing(false));
    cluster.run(20);
    assert!(cluster.nodes[&resyncing].role.serving);
}

/// The source of a resync was the leader and dies when all is copied; the third member is gone for
/// good. The copy replaces the log only when a leader is known. Votes must not wait for that.
#[test]
fn a_copy_that_waits_for_a_leader_keeps_no_leader_from_a_group() {
    let mut cluster = cluster(22, |cluster| cluster.log_tail_bytes = 0);
    let leader = cluster.elect();
    let behind = MemberId(leader.0 % 3 + 1);
    let gone = MemberId(6 - leader.0 - behind.0);
    cluster.crash(behind);
    for at in 0..40 {
        cluster.write(leader, at % BLOCKS);
        cluster.run(3);
    }
    cluster.crash(gone);
    cluster.crash(leader);
    cluster.start(leader);
    cluster.start(behind);
    cluster.copy(leader, behind);
    let leads = |cluster: &Cluster| cluster.nodes[&leader].role.serving;
    assert!(cluster.run_until(30_000, leads), "it leads again");
    let write = cluster.write(leader, 0);
    cluster.run(500);
    assert!(matches!(cluster.result(write), Some(Ok(_))), "two of three have it");
    assert_eq!(cluster.nodes[&behind].applied, cluster.nodes[&leader].applied);
    cluster.settle();
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::SessionsNotInstalled, a_member_that_was_resynced_knows_the_sessions);
    assert_found(Mistake::LeaseDespiteQuorum, reads_by_quorum_trust_no_clock);
    assert_found(Mistake::ResyncNeverElected, a_longer_log_is_not_kept_from_a_group_by_a_resync);
    assert_found(
        Mistake::MuteUntilInstalled,
        a_copy_that_waits_for_a_leader_keeps_no_leader_from_a_group,
    );
}
