//! Who may rest, and what is made up for when it wakes.

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};

use crate::replica::messages::{Input, Rest};
use crate::testing::group_fixture::Cluster;
use crate::types::{MemberId, Mono};

fn offer(cluster: &Cluster, leader: MemberId) -> Option<Rest> {
    cluster.nodes[&leader].member.as_ref().unwrap().offers_rest()
}

fn may_rest(cluster: &Cluster, member: MemberId, offer: &Rest) -> bool {
    cluster.nodes[&member].member.as_ref().unwrap().may_rest(offer)
}

/// A leader and a follower of a group that was idle for a while.
fn idle() -> (Cluster, MemberId, MemberId) {
    let mut cluster = Cluster::new(31, 3);
    let leader = cluster.elect();
    cluster.write(leader, 3);
    cluster.run(3_050);
    let follower = *cluster.nodes.keys().find(|id| **id != leader).unwrap();
    (cluster, leader, follower)
}

#[test]
fn an_idle_group_rests_and_a_busy_one_does_not() {
    let (mut cluster, leader, follower) = idle();
    let rest = offer(&cluster, leader).expect("nothing happens");
    let others: Vec<MemberId> = cluster.nodes.keys().copied().filter(|id| *id != leader).collect();
    assert!(others.iter().all(|id| may_rest(&cluster, *id, &rest)));
    assert!(!may_rest(&cluster, leader, &rest), "it leads");
    assert!(!may_rest(&cluster, follower, &Rest { term: rest.term + 1, ..rest }));
    assert!(!may_rest(&cluster, follower, &Rest { index: rest.index + 1, ..rest }));

    cluster.write(leader, 4);
    assert_eq!(offer(&cluster, leader), None, "a request is in flight");
    cluster.run(50);
    assert_eq!(offer(&cluster, leader), None, "it was answered just now");
    assert!(!may_rest(&cluster, follower, &rest), "the offer is from before");
    cluster.run(3_000);
    assert!(offer(&cluster, leader).is_some());
}

#[test]
fn a_group_does_not_rest_while_a_voter_is_away() {
    let (mut cluster, leader, follower) = idle();
    for (from, to) in [(leader, follower), (follower, leader)] {
        cluster.cut.insert((from, to));
    }
    cluster.run(2_000);
    assert_eq!(offer(&cluster, leader), None);
}

/// Nothing told the follower of its leader's lane for long, or just now.
#[test]
fn a_beat_keeps_a_follower_quiet_and_its_end_does_not() {
    let (mut cluster, leader, follower) = idle();
    for (from, to) in [(leader, follower), (follower, leader)] {
        cluster.cut.insert((from, to));
    }
    let term = cluster.nodes[&follower].role.term;
    let ask = || {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgRequestVote);
        (message.from, message.to) = (6 - leader.0 - follower.0, follower.0);
        (message.term, message.index, message.log_term) = (term + 5, 1 << 40, term + 4);
        message.context = Bytes::new();
        Input::Peer(Box::new(message))
    };
    let term_of = |cluster: &Cluster| cluster.nodes[&follower].role.term;
    // It would be about to campaign, had it not heard the beat.
    cluster.run(700);
    // The fixture's clocks differ.
    let heard = Mono(cluster.now_us * 1_000 + follower.0 * 1_000_000_000);
    cluster.handle(follower, Input::Woken { heard });
    cluster.run(400);
    cluster.handle(follower, ask());
    cluster.run(5);
    assert_eq!(term_of(&cluster), term, "within the time of a lease");
    cluster.run(450);
    cluster.handle(follower, ask());
    cluster.run(5);
    assert!(term_of(&cluster) > term, "silent for long enough");
}
