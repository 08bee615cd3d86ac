//! Scenarios and random schedules over a small cluster of members.

use crate::replica::harness::{CALM, Cluster, Faults, Rng};
use crate::replica::seam::{Input, ReqId};
use crate::types::{BlockError, MemberId, Mono, Origin, PodId, ShardOp, ShardReply};

fn done(cluster: &Cluster, req: ReqId) -> bool {
    cluster.result(req) == Some(&Ok(ShardReply::Done))
}

#[test]
fn one_member_serves_at_once() {
    let mut cluster = Cluster::new(1, 1);
    assert!(cluster.run_until(50, |cluster| cluster.leader().is_some()));
    let leader = cluster.leader().unwrap();
    let write = cluster.write(leader, 3);
    cluster.run(5);
    assert!(done(&cluster, write));
    let read = cluster.read(leader, 3, 1);
    cluster.run(5);
    assert_eq!(cluster.calls[&read].found[0].tags, [write.0; 8]);
}

#[test]
fn three_members_elect_replicate_apply_and_read() {
    let mut cluster = Cluster::new(2, 3);
    let leader = cluster.elect();
    let write = cluster.write(leader, 3);
    cluster.run(10);
    assert!(done(&cluster, write));
    let read = cluster.read(leader, 2, 2);
    cluster.run(10);
    assert_eq!(cluster.calls[&read].found[1].tags, [write.0; 8]);
    assert_eq!(cluster.calls[&read].found[0].tags, [0; 8]);
    cluster.settle();
}
