//! Scenarios and random schedules over a small cluster of members.

use std::cell::Cell;

use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Message, MessageType};

use crate::io::buffer::Pool;
use crate::limits::{ELECTION_TICKS, SHARD_PROPOSAL_BYTES_MAX};
use crate::planted::{Mistake, assert_found};
use crate::replica::member::Member;
use crate::replica::messages::{Input, MemberConfig, Output, ReadMode, ReqId, Start};
use crate::replica::meta::Meta;
use crate::testing::group_fixture::{BLOCKS, Call, Cluster, Faults, ORIGIN};
use crate::types::{
    Block, BlockError, BlockRange, MemberId, Mono, ShardId, ShardOp, ShardReply, VolumeId,
};

fn done(cluster: &Cluster, req: ReqId) -> bool {
    cluster.result(req) == Some(&Ok(ShardReply::Done))
}

/// Cuts a member off from everyone, both ways.
fn isolate(cluster: &mut Cluster, id: MemberId) {
    for other in cluster.nodes.keys().copied().collect::<Vec<_>>() {
        cluster.cut.insert((id, other));
        cluster.cut.insert((other, id));
    }
}

fn follower_of(cluster: &Cluster, leader: MemberId) -> MemberId {
    *cluster.nodes.keys().find(|id| **id != leader).unwrap()
}

#[test]
fn one_member_serves_at_once() {
    let mut cluster = Cluster::new(1, 1);
    assert!(cluster.run_until(50, |cluster| cluster.leader().is_some()));
    let leader = cluster.leader().unwrap();
    let write = cluster.write(leader, 3);
    cluster.run(5);
    assert!(done(&cluster, write));
    cluster.crash(leader);
    cluster.start(leader);
    assert!(cluster.run_until(50, |cluster| cluster.leader().is_some()));
    let read = cluster.read(leader, 3, 1);
    cluster.run(5);
    assert_eq!(cluster.calls[&read].found[0].tags, [write.0; 8]);
}

#[test]
fn three_members_elect_replicate_apply_and_read() {
    let mut cluster = Cluster::new(2, 3);
    assert!(cluster.run_until(1_000, |cluster| cluster.leader().is_some()));
    let leader = cluster.leader().unwrap();
    assert_eq!(leader, MemberId(1), "the first voter of a new shard goes first");
    let write = cluster.write(leader, 3);
    cluster.run(10);
    assert!(done(&cluster, write));
    let read = cluster.read(leader, 2, 2);
    cluster.run(10);
    assert_eq!(cluster.calls[&read].found[1].tags, [write.0; 8]);
    assert_eq!(cluster.calls[&read].found[0].tags, [0; 8]);
    cluster.settle();
}

/// The pods of the other voters hear of the new shard later. The first voter still goes first: one
/// pod would lead every new shard otherwise, the one that hears of them first.
#[test]
fn the_first_voter_leads_a_new_shard_even_if_it_is_made_first() {
    for seed in 1..=20 {
        let mut cluster = Cluster::new(seed, 3);
        let others = [MemberId(2), MemberId(3)];
        others.iter().for_each(|other| cluster.crash(*other));
        cluster.run(500);
        assert_eq!(cluster.leader(), None);
        assert_eq!(cluster.nodes[&MemberId(1)].role.term, 0, "a question raises no term");
        others.iter().for_each(|other| cluster.start(*other));
        assert!(cluster.run_until(500, |cluster| cluster.leader().is_some()), "seed {seed}");
        assert_eq!(cluster.leader(), Some(MemberId(1)), "seed {seed}");
        cluster.settle();
    }
}

#[test]
fn an_idle_follower_applies_and_makes_its_commit_durable() {
    let mut cluster = Cluster::new(3, 3);
    let leader = cluster.elect();
    let write = cluster.write(leader, 0);
    cluster.run(1_000);
    assert!(done(&cluster, write));
    let ids: Vec<MemberId> = cluster.nodes.keys().copied().collect();
    for id in &ids {
        assert_eq!(cluster.nodes[id].applied.0, cluster.nodes[&leader].applied.0);
        cluster.crash(*id);
        cluster.start(*id);
        assert_eq!(cluster.nodes[id].store[0].tags, [write.0; 8], "replayed up to the commit");
    }
}

#[test]
fn a_partial_write_waits_for_earlier_entries_and_later_ones_wait_for_it() {
    let mut cluster = Cluster::new(4, 3);
    let leader = cluster.elect();
    let whole = cluster.write(leader, 5);
    let one = cluster.write_sector(leader, 5, 1);
    let two = cluster.write_sector(leader, 5, 2);
    let elsewhere = cluster.write(leader, 6);
    cluster.run(20);
    for req in [whole, one, two, elsewhere] {
        assert!(done(&cluster, req));
    }
    let (w, o, t) = (whole.0, one.0, two.0);
    assert_eq!(cluster.nodes[&leader].store[5].tags, [w, o, t, w, w, w, w, w]);
    let three = cluster.write_sector(leader, 5, 3);
    let over = cluster.write_as(leader, ORIGIN, 4, 2);
    cluster.run(20);
    assert!(done(&cluster, three) && done(&cluster, over));
    assert_eq!(cluster.nodes[&leader].store[5].tags, [over.0; 8]);
    let store = &cluster.nodes[&leader].store;
    assert!(store[6].index < store[5].index);
    cluster.settle();
}

#[test]
fn requests_that_do_not_fit_are_refused_before_anything_is_proposed() {
    let mut cluster = Cluster::new(6, 3);
    let leader = cluster.elect();
    let before = cluster.nodes[&leader].applied;
    let term = cluster.nodes[&leader].role.term;
    let block = |first, count| BlockRange { first: Block(first), count };
    let read = |range| ShardOp::Read { range };
    let write = |range, bytes: usize, crcs: usize| ShardOp::Write {
        range,
        data: Bytes::from(vec![0; bytes]),
        crcs: vec![0; crcs],
    };
    let partial = |offset_bytes, bytes: usize| ShardOp::WritePartial {
        block: Block(0),
        offset_bytes,
        data: Bytes::from(vec![0; bytes]),
    };
    let cases = [
        (read(block(BLOCKS, 1)), BlockError::OutOfRange),
        (read(block(u32::MAX, 1)), BlockError::OutOfRange),
        (write(block(7, 2), 8192, 2), BlockError::OutOfRange),
        (write(block(u32::MAX, 2), 8192, 2), BlockError::OutOfRange),
        (write(block(0, 0), 0, 0), BlockError::Invalid),
        (write(block(0, 2), 4096, 2), BlockError::Invalid),
        (write(block(0, 1), 4096, 2), BlockError::Invalid),
        (partial(4000, 97), BlockError::Invalid),
        (partial(u32::MAX, 96), BlockError::Invalid),
        (partial(0, 4096), BlockError::Invalid),
        (partial(0, 0), BlockError::Invalid),
    ];
    for (op, error) in cases {
        let req = cluster.call_as(leader, term, ORIGIN, op.clone());
        cluster.run(5);
        assert_eq!(cluster.result(req), Some(&Err(error)), "{op:?}");
    }
    let wrong_term = cluster.call_as(leader, term + 1, ORIGIN, read(block(0, 1)));
    let follower = follower_of(&cluster, leader);
    let elsewhere = cluster.write(follower, 0);
    cluster.run(5);
    let hint = Some(leader);
    let not_leader = Err(BlockError::NotLeader { hint, term });
    assert_eq!(cluster.result(wrong_term), Some(&not_leader));
    assert_eq!(cluster.result(elsewhere), Some(&not_leader));
    assert_eq!(cluster.nodes[&leader].applied, before);
}

#[test]
fn a_deposed_leader_answers_unknown_for_what_it_proposed() {
    let mut cluster = Cluster::new(7, 3);
    let old = cluster.elect();
    cluster.run(500);
    isolate(&mut cluster, old);
    let proposed = cluster.write(old, 0);
    let partial = cluster.write_sector(old, 0, 1);
    let read = cluster.read(old, 1, 1);
    cluster.run(50);
    assert!(cluster.result(proposed).is_none(), "it has no majority");
    assert!(cluster.result(read).is_some(), "its lease still holds");
    cluster.run(5_000);
    assert_eq!(cluster.result(proposed), Some(&Err(BlockError::Unknown)));
    let partial = cluster.result(partial).unwrap();
    assert!(matches!(partial, Err(BlockError::NotLeader { .. })), "it was never proposed");
    let new = cluster.leader().unwrap();
    assert_ne!(new, old);
    let write = cluster.write(new, 0);
    cluster.run(20);
    assert!(done(&cluster, write));
    cluster.settle();
    assert_eq!(cluster.nodes[&old].store[1].tags, [0; 8]);
}

#[test]
fn an_isolated_leader_stops_reading_before_another_can_be_elected() {
    let mut cluster = Cluster::new(8, 3);
    let old = cluster.elect();
    cluster.run(1_000);
    isolate(&mut cluster, old);
    let new_leader = Cell::new(false);
    for _ in 0..400 {
        let read = cluster.read(old, 0, 1);
        cluster.run(10);
        let up = cluster.leader().is_some_and(|leader| leader != old);
        new_leader.set(new_leader.get() || up);
        let served = matches!(cluster.result(read), Some(Ok(_)));
        assert!(!(served && new_leader.get()), "a read after another leader could write");
    }
    assert!(new_leader.get());
}

#[test]
fn votes_are_refused_within_the_lease_and_after_a_restart() {
    let mut cluster = Cluster::new(9, 3);
    let leader = cluster.elect();
    cluster.run(1_000);
    let follower = follower_of(&cluster, leader);
    let term = cluster.nodes[&leader].role.term;
    let ask = |kind, context: &'static [u8]| {
        let mut message = Message::default();
        message.set_msg_type(kind);
        (message.from, message.to) = (6 - leader.0 - follower.0, follower.0);
        (message.term, message.index, message.log_term) = (term + 5, 1 << 40, term + 4);
        message.context = Bytes::from_static(context);
        Box::new(message)
    };
    let term_of = |cluster: &Cluster| cluster.nodes[&follower].role.term;
    cluster.handle(follower, Input::Peer(ask(MessageType::MsgRequestPreVote, b"")));
    cluster.handle(follower, Input::Peer(ask(MessageType::MsgRequestVote, b"")));
    cluster.run(5);
    assert_eq!(term_of(&cluster), term, "it hears from a leader");

    isolate(&mut cluster, follower);
    cluster.crash(follower);
    cluster.start(follower);
    cluster.run(600);
    cluster.handle(follower, Input::Peer(ask(MessageType::MsgRequestVote, b"")));
    cluster.run(5);
    assert_eq!(term_of(&cluster), term, "it forgot what it had promised");
    cluster.run(300);
    cluster.handle(follower, Input::Peer(ask(MessageType::MsgRequestVote, b"")));
    cluster.run(5);
    assert_eq!(term_of(&cluster), term + 5, "silent for long enough");

    cluster.start(follower);
    let transfer = ask(MessageType::MsgRequestVote, raft::CAMPAIGN_TRANSFER);
    let later = cluster.nodes[&follower].applied;
    cluster.handle(follower, Input::Peer(transfer));
    cluster.run(5);
    assert_eq!(cluster.nodes[&follower].applied, later);
}

#[test]
fn ticks_that_come_too_fast_start_no_election_within_the_lease() {
    let mut cluster = Cluster::new(18, 3);
    let leader = cluster.elect();
    cluster.run(1_000);
    let hasty = follower_of(&cluster, leader);
    for _ in 0..40 {
        cluster.handle(hasty, Input::Tick);
        cluster.run(1);
        assert_eq!(cluster.nodes[&hasty].role.leader, Some(leader));
    }
}

#[test]
fn leadership_moves_on_request_and_takes_the_lease_away() {
    let mut cluster = Cluster::new(10, 3);
    let old = cluster.elect();
    cluster.run(500);
    let heir = follower_of(&cluster, old);
    let before = cluster.write(old, 0);
    cluster.handle(old, Input::TransferLeader(heir));
    let meanwhile = cluster.write(old, 1);
    cluster.run(20);
    assert_eq!(cluster.leader(), Some(heir));
    assert!(cluster.result(before).is_some() && cluster.result(meanwhile).is_some());
    let write = cluster.write(heir, 0);
    cluster.run(20);
    assert!(done(&cluster, write));

    // The transfer fails. From then on reads need a quorum; writes go on.
    let dead = follower_of(&cluster, heir);
    isolate(&mut cluster, dead);
    cluster.handle(heir, Input::TransferLeader(dead));
    cluster.run(5);
    let waits = cluster.write(heir, 2);
    let read = cluster.read(heir, 2, 1);
    cluster.run(5);
    assert!(cluster.result(waits).is_none());
    assert!(cluster.result(read).is_some(), "confirmed by a round");
    cluster.run(2_000);
    assert!(done(&cluster, waits), "{:?}", cluster.result(waits));
    // The offer is in a message that may still arrive: no lease for the rest of the term.
    isolate(&mut cluster, heir);
    let read = cluster.read(heir, 2, 1);
    cluster.run(50);
    assert!(cluster.result(read).is_none());
    cluster.settle();
}

/// The other follower has not heard the leader for long. It would be elected as soon as the
/// restarted one votes.
fn restart_beside_a_lease(seed: u64) {
    let mut cluster = Cluster::new(seed, 3);
    let old = cluster.elect();
    cluster.run(1_000);
    let forgetful = follower_of(&cluster, old);
    let read_until = |cluster: &mut Cluster, ms: u64| {
        for _ in 0..ms / 10 {
            let read = cluster.read(old, 0, 1);
            cluster.run(10);
            let other = cluster.nodes.iter().any(|(id, node)| *id != old && node.role.serving);
            let served = matches!(cluster.result(read), Some(Ok(_)));
            assert!(!(served && other), "a read beside another leader");
        }
    };
    let other = MemberId(6 - old.0 - forgetful.0);
    cluster.cut.insert((old, other));
    cluster.cut.insert((other, old));
    read_until(&mut cluster, 2_000);
    isolate(&mut cluster, old);
    cluster.crash(forgetful);
    cluster.start(forgetful);
    read_until(&mut cluster, 4_000);
    assert!(cluster.leader().is_some_and(|leader| leader != old));
    cluster.settle();
}

#[test]
fn a_restarted_member_does_not_help_to_elect_within_the_lease_that_it_granted() {
    for seed in 100..130 {
        restart_beside_a_lease(seed);
    }
}

#[test]
fn a_follower_far_behind_comes_back_through_a_snapshot() {
    let mut cluster = Cluster::new(11, 3);
    cluster.log_tail_bytes = 20_000;
    for id in [1, 2, 3].map(MemberId) {
        cluster.crash(id);
        cluster.start(id);
    }
    let leader = cluster.elect();
    let behind = follower_of(&cluster, leader);
    cluster.crash(behind);
    for at in 0..40 {
        cluster.write(leader, at % BLOCKS);
        cluster.run(3);
    }
    cluster.start(behind);
    let target = cluster.nodes[&leader].applied.0;
    let caught_up = cluster.run_until(20_000, |cluster| cluster.nodes[&behind].applied.0 >= target);
    assert!(caught_up);
    assert_eq!(cluster.resyncs, 1, "asked for once");
    let write = cluster.write(leader, 0);
    cluster.run(500);
    assert!(done(&cluster, write));
    assert_eq!(cluster.nodes[&behind].applied, cluster.nodes[&leader].applied);

    // It votes and leads again.
    cluster.handle(leader, Input::TransferLeader(behind));
    cluster.run(50);
    assert_eq!(cluster.leader(), Some(behind));
    cluster.settle();
}

#[test]
fn the_log_is_kept_for_a_follower_that_copies() {
    let mut cluster = Cluster::new(12, 3);
    cluster.log_tail_bytes = 0;
    for id in [1, 2, 3].map(MemberId) {
        cluster.crash(id);
        cluster.start(id);
    }
    let leader = cluster.elect();
    cluster.run(500);
    let behind = follower_of(&cluster, leader);
    for kept in [true, false] {
        let before = cluster.resyncs;
        if kept {
            cluster.handle(leader, Input::KeepLog { anew: true });
        }
        isolate(&mut cluster, behind);
        for at in 0..40 {
            cluster.write(leader, at % BLOCKS);
            cluster.run(3);
        }
        cluster.cut.clear();
        let target = cluster.nodes[&leader].applied.0;
        let caught_up =
            cluster.run_until(20_000, |cluster| cluster.nodes[&behind].applied.0 >= target);
        assert!(caught_up);
        assert_eq!(cluster.resyncs == before, kept);
        // Longer than the log is kept.
        cluster.run(20_000);
    }
}

#[test]
fn a_resync_whose_last_message_is_lost_still_ends() {
    let mut cluster = Cluster::new(12, 3);
    cluster.log_tail_bytes = 20_000;
    for id in [1, 2, 3].map(MemberId) {
        cluster.crash(id);
        cluster.start(id);
    }
    let leader = cluster.elect();
    let behind = follower_of(&cluster, leader);
    cluster.crash(behind);
    for at in 0..40 {
        cluster.write(leader, at % BLOCKS);
        cluster.run(3);
    }
    cluster.start(behind);
    assert!(cluster.run_until(20_000, |cluster| cluster.resyncs == 1));
    // All messages of the follower are lost until its snapshot is durable.
    cluster.cut.insert((behind, leader));
    let before = cluster.nodes[&behind].applied.0;
    assert!(cluster.run_until(200, |cluster| cluster.nodes[&behind].applied.0 > before));
    cluster.run(20);
    cluster.cut.clear();
    cluster.write(leader, 0);
    cluster.run(600);
    assert_eq!(cluster.nodes[&behind].applied, cluster.nodes[&leader].applied);
    assert_eq!(cluster.resyncs, 1);
    cluster.settle();
}

#[test]
fn a_panic_faults_one_member_only() {
    let mut cluster = Cluster::new(13, 3);
    let leader = cluster.elect();
    let broken = follower_of(&cluster, leader);
    let mut impossible = Message::default();
    impossible.set_msg_type(MessageType::MsgHeartbeat);
    (impossible.from, impossible.to) = (leader.0, broken.0);
    (impossible.term, impossible.commit) = (cluster.nodes[&leader].role.term, 1 << 40);
    cluster.handle(broken, Input::Peer(Box::new(impossible)));
    cluster.run(5);
    let reason = cluster.nodes[&broken].faulted.clone().unwrap();
    assert!(reason.contains("out of range"), "{reason}");
    let write = cluster.write(leader, 0);
    let refused = cluster.read(broken, 0, 1);
    cluster.run(20);
    assert!(done(&cluster, write));
    let refused = cluster.result(refused).unwrap();
    assert!(matches!(refused, Err(BlockError::NotLeader { hint: None, .. })));
    cluster.run(2_000);
    assert_eq!(cluster.leader(), Some(leader));
}

fn config() -> MemberConfig {
    MemberConfig {
        member: MemberId(1),
        shard: ShardId(1),
        seed: 1,
        volume: VolumeId(1),
        first_block_in_volume: 0,
        blocks: BLOCKS,
        log_tail_bytes: 0,
        log_on_disk: false,
        proposal_bytes_max: SHARD_PROPOSAL_BYTES_MAX,
        reads: ReadMode::Lease,
        pool: Pool::default(),
    }
}

#[test]
fn what_cannot_be_trusted_at_the_start_is_reported_and_does_nothing() {
    let good = Start { meta: Meta::new(&[MemberId(1)], BLOCKS).encode(), ..Start::default() };
    let mut lost = good.clone();
    lost.hard.commit = 9;
    let promised = Start { faulted: true, ..good.clone() };
    let cases = [
        (promised, "had promised"),
        (Start::default(), "metadata"),
        (lost, "acknowledged entries are gone"),
    ];
    for (start, expected) in cases {
        let mut member = Member::start(config(), start, Mono(5));
        let mut out = Vec::new();
        member.handle(Mono(5), Input::Tick);
        member.poll(Mono(5), &mut out);
        let [Output::Faulted { reason }] = &out[..] else {
            panic!("{out:?}");
        };
        assert!(reason.contains(expected), "{reason}");
    }
}

/// While the disk stalls, requests wait to be appended, and are counted.
#[test]
fn what_a_leader_holds_back_is_counted() {
    let mut cluster = Cluster::new(15, 3);
    let leader = cluster.elect();
    let held = |cluster: &Cluster| {
        let member = cluster.nodes[&leader].member.as_ref().expect("it is up");
        member.unappended().payload_bytes
    };
    assert_eq!(held(&cluster), 0);
    cluster.stuck_disks.insert(leader);
    let writes = [0, 1, 2, 3].map(|block| {
        let write = cluster.write(leader, block);
        cluster.run(20);
        write
    });
    assert!(held(&cluster) >= 4096, "{}", held(&cluster));
    cluster.stuck_disks.clear();
    assert!(cluster.run_until(60_000, |cluster| writes.iter().all(|req| done(cluster, *req))));
    assert_eq!(held(&cluster), 0);
}

/// Holds for every election timeout. raft-rs itself refuses votes for some time; that time must end
/// while the member is kept from campaigning.
#[test]
fn a_resyncing_member_votes_but_does_not_campaign() {
    for seed in 0..4 * ELECTION_TICKS as u64 {
        let mut cluster = Cluster::new(14, 3);
        cluster.member_seed = seed;
        for id in [1, 2, 3].map(MemberId) {
            cluster.crash(id);
            cluster.start(id);
        }
        let leader = cluster.elect();
        let resyncing = follower_of(&cluster, leader);
        let other = MemberId(6 - leader.0 - resyncing.0);
        cluster.handle(resyncing, Input::Resyncing(true));
        cluster.handle(other, Input::Resyncing(true));
        let term = cluster.nodes[&leader].role.term;
        cluster.crash(leader);
        cluster.run(4_000);
        let terms = [other, resyncing].map(|id| cluster.nodes[&id].role.term);
        assert_eq!(terms, [term, term], "nobody campaigns yet");
        cluster.handle(other, Input::Resyncing(false));
        assert_eq!(cluster.elect(), other, "elected by a member that is resyncing, seed {seed}");
    }
}

/// The member may replace a destroyed one, whose promises it does not know.
#[test]
fn a_member_without_a_configuration_does_not_vote() {
    let meta = Meta::new(&[], BLOCKS).encode();
    let mut member = Member::start(config(), Start { meta, ..Start::default() }, Mono(5));
    let mut out = Vec::new();
    for kind in [MessageType::MsgRequestPreVote, MessageType::MsgRequestVote] {
        let mut message = Message::default();
        message.set_msg_type(kind);
        (message.from, message.to, message.term) = (2, 1, 7);
        (message.index, message.log_term) = (1 << 40, 6);
        member.handle(Mono(5), Input::Peer(Box::new(message)));
        member.poll(Mono(5), &mut out);
    }
    let quiet = |output: &Output| !matches!(output, Output::Send(_) | Output::Append(_));
    assert!(out.iter().all(quiet), "{out:?}");
}

fn step(id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    let mut step = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    step.set_change_type(kind);
    step
}

#[test]
fn members_are_replaced_through_a_joint_configuration() {
    let mut cluster = Cluster::new(15, 3);
    let leader = cluster.elect();
    let write = cluster.write(leader, 0);
    let leaving = follower_of(&cluster, leader);
    let meta = Meta::new(&[], BLOCKS).encode();
    cluster.add(MemberId(4), meta);
    let mut learner = ConfChangeV2::default();
    learner.mut_changes().push(step(4, ConfChangeType::AddLearnerNode));
    cluster.handle(leader, Input::ChangeMembers(learner));
    cluster.run(1_000);
    assert!(done(&cluster, write));
    assert_eq!(cluster.nodes[&MemberId(4)].applied.0, cluster.nodes[&leader].applied.0);
    let mut swap = ConfChangeV2::default();
    swap.mut_changes().push(step(4, ConfChangeType::AddNode));
    swap.mut_changes().push(step(leaving.0, ConfChangeType::RemoveNode));
    cluster.handle(leader, Input::ChangeMembers(swap));
    cluster.run(1_000);
    let meta = Meta::decode(&cluster.nodes[&leader].meta).unwrap();
    let mut expected: Vec<u64> = [1, 2, 3, 4].into_iter().filter(|id| *id != leaving.0).collect();
    expected.sort();
    assert_eq!(meta.conf.voters, expected);
    assert!(!meta.is_joint(), "left by itself");
    cluster.crash(leaving);
    cluster.crash(leader);
    assert_ne!(cluster.elect(), leader, "the new member's vote counts");
}

#[test]
fn the_leader_does_not_remove_itself() {
    let mut cluster = Cluster::new(16, 3);
    let leader = cluster.elect();
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(step(leader.0, ConfChangeType::RemoveNode));
    cluster.handle(leader, Input::ChangeMembers(change));
    cluster.run(500);
    let meta = Meta::decode(&cluster.nodes[&leader].meta).unwrap();
    assert_eq!(meta.conf.voters, [1, 2, 3]);
    cluster.settle();
}

/// Everything at once, for a few seconds of virtual time.
/// Gives the hash of all outputs and the number of requests that succeeded.
fn random_run(seed: u64) -> (u64, usize) {
    let members = [1, 3, 3, 5][(seed % 4) as usize];
    let mut cluster = Cluster::new(seed, members);
    let ids: Vec<MemberId> = cluster.nodes.keys().copied().collect();
    if seed.is_multiple_of(3) {
        cluster.log_tail_bytes = 30_000;
    }
    if seed % 3 == 1 {
        (cluster.log_tail_bytes, cluster.ring_entries) = (9_000, 20 + 10 * (seed % 10));
        for id in &ids {
            cluster.crash(*id);
            cluster.start(*id);
        }
    }
    cluster.faults = Faults {
        drop: cluster.rng.below(6),
        double: cluster.rng.below(6),
        delay_us: 100 + cluster.rng.below(3_000),
        disk_us: 100 + cluster.rng.below(2_000),
    };
    for _ in 0..400 {
        let id = ids[cluster.rng.below(members) as usize];
        let target = if cluster.rng.percent(80) { cluster.leader().unwrap_or(id) } else { id };
        let block = cluster.rng.below(u64::from(BLOCKS)) as u32;
        match cluster.rng.below(100) {
            0..30 => drop(cluster.write(target, block)),
            30..45 => {
                let sector = cluster.rng.below(8) as usize;
                cluster.write_sector(target, block, sector);
            }
            45..70 => drop(cluster.read(target, block, 1)),
            70..73 => drop(cluster.zero(target, block, 1)),
            73..76 => cluster.handle(target, Input::TransferLeader(id)),
            76..79 if cluster.is_up(id) => cluster.crash(id),
            79..88 if !cluster.is_up(id) => cluster.start(id),
            88..90 => isolate(&mut cluster, id),
            90..94 => cluster.cut.clear(),
            94 => drop(cluster.stuck_disks.insert(id)),
            95..98 => cluster.stuck_disks.clear(),
            _ => (),
        }
        let pause = cluster.rng.below(100);
        let ms = if pause < 80 { pause / 20 } else { pause * 4 };
        cluster.run(ms);
    }
    cluster.settle();
    let good = |call: &&Call| matches!(call.result, Some(Ok(_)));
    let answered = cluster.calls.values().filter(good).count();
    (cluster.trace, answered)
}

#[test]
fn random_schedules_keep_every_promise() {
    let answered: usize = (0..60).map(|seed| random_run(seed).1).sum();
    assert!(answered > 60 * 80, "only {answered} requests succeeded");
}

#[test]
fn one_seed_is_one_run() {
    for seed in [3, 9, 22] {
        assert_eq!(random_run(seed), random_run(seed));
    }
    assert_ne!(random_run(3), random_run(7));
}

#[test]
fn broken_rules_are_noticed() {
    let expected: [(Mistake, fn()); 9] = [
        (
            Mistake::PartialFromOldBase,
            a_partial_write_waits_for_earlier_entries_and_later_ones_wait_for_it,
        ),
        (Mistake::UninitialisedVotes, a_member_without_a_configuration_does_not_vote),
        (Mistake::LeaseWithoutEnd, an_isolated_leader_stops_reading_before_another_can_be_elected),
        (Mistake::LeaseAfterTransfer, leadership_moves_on_request_and_takes_the_lease_away),
        (Mistake::ReadBeforeOwnTerm, random_schedules_keep_every_promise),
        (
            Mistake::VotesAfterRestart,
            a_restarted_member_does_not_help_to_elect_within_the_lease_that_it_granted,
        ),
        (Mistake::VotesWithinLease, votes_are_refused_within_the_lease_and_after_a_restart),
        (
            Mistake::TermNotCompared,
            requests_that_do_not_fit_are_refused_before_anything_is_proposed,
        ),
        (Mistake::AnsweredBeforeDurable, random_schedules_keep_every_promise),
    ];
    for (mistake, scenario) in expected {
        assert_found(mistake, scenario);
    }
}
