//! Who may use a shard, over a small cluster of members.

use crate::planted::{Mistake, assert_found};
use crate::replica::messages::ReqId;
use crate::replica::meta::Meta;
use crate::testing::group_fixture::{Cluster, ORIGIN};
use crate::types::{
    AccessMode, AccessSet, AttachmentId, Block, BlockError, BlockRange, Generation, Grant,
    MemberId, Origin, PodId, Session, ShardOp, ShardReply,
};

fn done(cluster: &Cluster, req: ReqId) -> bool {
    cluster.result(req) == Some(&Ok(ShardReply::Done))
}

fn origin(attachment: u64, counter: u64) -> Origin {
    let session = Session { counter: counter << 24, pod: PodId(9) };
    Origin { attachment: AttachmentId(attachment), session }
}

/// A closed shard's access set.
fn closed(generation: u64, attachments: &[u64], mode: AccessMode) -> AccessSet {
    let grant = |id: &u64| Grant { attachment: AttachmentId(*id), mode };
    let grants = attachments.iter().map(grant).collect();
    AccessSet { generation: Generation(generation), open: false, grants }
}

fn stale(session: Session) -> Option<Result<ShardReply, BlockError>> {
    Some(Err(BlockError::StaleSession { recorded: session }))
}

#[test]
fn only_the_recorded_session_takes_effect_at_apply() {
    let mut cluster = Cluster::new(5, 3);
    let leader = cluster.elect();
    let early = cluster.write_as(leader, origin(0, 1), 0, 1);
    cluster.run(20);
    assert_eq!(cluster.result(early), Some(&Err(BlockError::NotTouched)));
    cluster.touch(leader, origin(0, 1));
    let first = cluster.write_as(leader, origin(0, 1), 0, 1);
    // In the log between them: what was sent in a session takes effect until the next one is known.
    let touch = cluster.call_as(leader, 0, origin(0, 2), ShardOp::Touch { renews: true });
    let late = cluster.write_as(leader, origin(0, 1), 0, 1);
    let newer = cluster.write_as(leader, origin(0, 2), 0, 1);
    let above = cluster.write_as(leader, origin(0, 3), 0, 1);
    cluster.run(20);
    assert!(done(&cluster, first) && done(&cluster, touch) && done(&cluster, newer));
    assert_eq!(cluster.result(late), stale(origin(0, 2).session).as_ref());
    assert_eq!(cluster.result(above), Some(&Err(BlockError::NotTouched)));
    assert_eq!(cluster.nodes[&leader].store[0].tags, [newer.0; 8]);

    // What a restarted member knows of sessions comes from the log.
    cluster.crash(leader);
    cluster.start(leader);
    let leader = cluster.elect();
    let late = cluster.write_as(leader, origin(0, 1), 0, 1);
    cluster.run(20);
    assert_eq!(cluster.result(late), stale(origin(0, 2).session).as_ref());
    cluster.settle();
}

/// The holder is changed while the old one's requests are in the log, and on their way.
#[test]
fn a_fenced_client_neither_writes_nor_reads() {
    let mut cluster = Cluster::new(23, 3);
    let leader = cluster.elect();
    let set = |cluster: &mut Cluster, set: AccessSet| {
        cluster.call_as(leader, 0, ORIGIN, ShardOp::SetAccess(set))
    };
    let has = |cluster: &Cluster, req: ReqId, generation: u64| {
        let generation = Generation(generation);
        assert_eq!(cluster.result(req), Some(&Ok(ShardReply::Access { generation })));
    };
    let first = set(&mut cluster, closed(2, &[1], AccessMode::ReadWrite));
    cluster.run(20);
    has(&cluster, first, 2);
    cluster.touch(leader, origin(1, 1));
    let write = cluster.write_as(leader, origin(1, 1), 0, 1);
    let read = |cluster: &mut Cluster, origin: Origin| {
        let range = BlockRange { first: Block(0), count: 1 };
        cluster.call_as(leader, 0, origin, ShardOp::Read { range })
    };
    let early = read(&mut cluster, origin(3, 1));
    cluster.run(20);
    assert!(done(&cluster, write));
    assert_eq!(cluster.result(early), Some(&Err(BlockError::NotYet)));
    let fence = set(&mut cluster, closed(4, &[3], AccessMode::ReadWrite));
    let behind = cluster.write_as(leader, origin(1, 1), 0, 1);
    // It waits for what was committed when it came; by then the fence is applied.
    let waits = read(&mut cluster, origin(1, 1));
    cluster.run(20);
    has(&cluster, fence, 4);
    for fenced in [behind, waits] {
        let found = cluster.result(fenced);
        assert!(matches!(found, Some(Err(BlockError::Fenced) | Ok(_))), "{found:?}");
    }
    let fenced = [
        cluster.write_as(leader, origin(1, 1), 0, 1),
        read(&mut cluster, origin(1, 1)),
        cluster.call_as(leader, 0, origin(1, 9), ShardOp::Touch { renews: false }),
        cluster.write(leader, 0),
    ];
    let repeated = set(&mut cluster, closed(4, &[3], AccessMode::ReadWrite));
    let older = set(&mut cluster, closed(2, &[1], AccessMode::ReadWrite));
    let again = set(&mut cluster, closed(5, &[1], AccessMode::ReadWrite));
    cluster.run(20);
    for fenced in fenced {
        assert_eq!(cluster.result(fenced), Some(&Err(BlockError::Fenced)));
    }
    for req in [repeated, older, again] {
        has(&cluster, req, 4);
    }
    assert_eq!(cluster.result(behind), Some(&Err(BlockError::Fenced)), "it came behind the fence");
    assert_eq!(cluster.nodes[&leader].store[0].tags, [write.0; 8]);
    let meta = Meta::decode(&cluster.nodes[&leader].meta).unwrap();
    assert_eq!((meta.access.generation, meta.access.open), (Generation(4), false));
    cluster.touch(leader, origin(3, 1));
    let last = cluster.write_as(leader, origin(3, 1), 0, 1);
    cluster.run(20);
    assert!(done(&cluster, last));
}

/// The leader is cut off: nothing that it proposes is committed.
#[test]
fn a_fence_is_answered_when_it_is_applied() {
    let mut cluster = Cluster::new(24, 3);
    let leader = cluster.elect();
    for other in [1, 2, 3].map(MemberId).into_iter().filter(|other| *other != leader) {
        cluster.cut.extend([(leader, other), (other, leader)]);
    }
    let set = ShardOp::SetAccess(closed(2, &[1], AccessMode::Raw));
    let fence = cluster.call_as(leader, 0, ORIGIN, set);
    cluster.run(50);
    assert_eq!(cluster.result(fence), None);
    cluster.run(5_000);
    assert!(matches!(cluster.result(fence), Some(Err(_))));
}

#[test]
fn broken_rules_are_noticed() {
    let expected: [(Mistake, fn()); 5] = [
        (Mistake::SessionNotChecked, only_the_recorded_session_takes_effect_at_apply),
        (Mistake::HigherSessionCounts, only_the_recorded_session_takes_effect_at_apply),
        (Mistake::FencedReadServed, a_fenced_client_neither_writes_nor_reads),
        (Mistake::WriteChangesAccess, a_fenced_client_neither_writes_nor_reads),
        (Mistake::FenceAnswersEarly, a_fence_is_answered_when_it_is_applied),
    ];
    for (mistake, scenario) in expected {
        assert_found(mistake, scenario);
    }
}
