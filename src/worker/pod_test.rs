//! Named situations of one pod as its clients and the catalog see it.

use std::collections::BTreeSet;
use std::time::Duration;

use raft::eraftpb::{Message, MessageType};

use super::pod_fixture::{DISK, Peer, Pod, VOLUME_BYTES, view, volume};
use crate::limits::{Budgets, ELECTION_TICKS, TICK};
use crate::net::handshake::Purpose;
use crate::net::message::PeerMessage;
use crate::planted::{Mistake, assert_found};
use crate::types::{
    AccessSet, BLOCK_BYTES, Block, BlockRange, Generation, MemberId, ShardId, ShardOp, ShardReply,
    VolumeId,
};
use crate::view::{MemberState, VolumeView};
use crate::worker::Resolution;

const MIB: usize = 1 << 20;
/// Long enough for what is sent to arrive, and less than a tick.
const SOON: Duration = Duration::from_millis(20);

/// A volume may have 1 MiB in flight; so may each connection, at least.
fn tight() -> Budgets {
    Budgets { volume_bytes: MIB, ..Budgets::default() }
}

fn leads(pod: &Pod, member: u64) -> bool {
    pod.state_of(MemberId(member)) == Some(MemberState::Leader)
}

/// A pod that leads its one volume, which nobody else has a replica of.
fn serving(budgets: Budgets) -> Pod {
    let mut pod = Pod::new(budgets);
    pod.view(view(1, vec![volume(1, "v", &[1])]));
    pod.run_until("the only replica leads", |pod| leads(pod, 11));
    pod
}

#[test]
fn what_is_written_is_there_after_a_restart() {
    let mut pod = serving(Budgets::default());
    let client = pod.connect("v");
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
    pod.restart();
    pod.view(view(1, vec![volume(1, "v", &[1])]));
    let client = pod.connect("v");
    assert_eq!(client.read_byte(&mut pod, 0), b'x');
}

/// The disk is slow, and a client hangs up. It sends its unanswered writes again over another
/// connection, and then a newer write. Input of the old connection that the pod had not received
/// by then must not come after that.
#[test]
fn nothing_of_a_client_is_executed_after_it_hung_up() {
    let mut pod = serving(tight());
    let far = 4 * MIB as u64;
    let (old, new) = (pod.connect("v"), pod.connect("v"));
    // The shard knows the session of this pod from then on.
    old.write(&mut pod, 0, BLOCK_BYTES, b'a');
    pod.run_until("a write is answered", |pod| old.written(pod) == [0]);
    // All of it happens between two ticks: there is nothing else to notice that a client has gone.
    pod.run_until("a tick has just been", |pod| pod.is_after_tick());
    pod.hold_log();
    old.write(&mut pod, 0, MIB, b'a');
    pod.run(SOON);
    // This one has to wait: as much as there may be is in flight.
    old.write(&mut pod, far, BLOCK_BYTES, b'o');
    pod.run(SOON);
    old.hang_up(&mut pod);
    new.write(&mut pod, far, BLOCK_BYTES, b'n');
    pod.run(SOON);
    pod.release_log();
    pod.run(SOON);
    assert!(old.is_closed(&pod));
    assert_eq!(new.written(&mut pod), [far]);
    assert_eq!(new.read_byte(&mut pod, far), b'n', "what was acknowledged was overwritten");
}

/// A client has given its connection up, and nothing has told the pod: what the client sent before
/// is still in the network. The client has opened its line anew, and written something newer.
#[test]
fn nothing_of_a_line_is_executed_after_it_was_opened_anew() {
    let mut pod = serving(Budgets::default());
    let (old, other) = (pod.connect("v?line=0"), pod.connect("v?line=1"));
    let without_line = pod.connect("v");
    let new = pod.connect("v?line=0");
    new.write(&mut pod, 0, BLOCK_BYTES, b'n');
    pod.run_until("a write is answered", |pod| new.written(pod) == [0]);
    // What was sent long ago arrives, if the pod has the connection yet.
    if !old.is_closed(&pod) {
        old.write(&mut pod, 0, BLOCK_BYTES, b'o');
        pod.run(SOON);
    }
    assert_eq!(new.read_byte(&mut pod, 0), b'n', "what was acknowledged was overwritten");
    assert!(old.is_closed(&pod));
    for client in [other, without_line] {
        assert_eq!(client.read_byte(&mut pod, 0), b'n', "it is another connection");
    }
}

/// A client that is gone for good, and was never answered, holds nothing in the pod.
#[test]
fn a_hang_up_is_noticed_while_nothing_is_taken_from_the_client() {
    let mut pod = Pod::new(tight());
    pod.view(view(1, vec![volume(2, "stuck", &[1, 2, 3])]));
    let gone = pod.connect("stuck");
    gone.write(&mut pod, 0, MIB, b'a');
    pod.run(SOON);
    gone.write(&mut pod, 0, MIB, b'b');
    pod.run(SOON);
    assert_eq!(pod.requests_in_flight(2), 1);
    gone.hang_up(&mut pod);
    pod.run_until("the connection is closed", |pod| gone.is_closed(pod));
    assert_eq!(pod.requests_in_flight(2), 0);
}

/// Two of the three replicas of one volume are gone: its clients wait, and go on sending until
/// nothing more is taken from them. Those of another volume notice nothing.
#[test]
fn a_volume_without_a_quorum_starves_no_other() {
    let mut pod = Pod::new(tight());
    pod.view(view(1, vec![volume(1, "v", &[1]), volume(2, "stuck", &[1, 2, 3])]));
    pod.run_until("the only replica leads", |pod| leads(pod, 11));
    let stuck = pod.connect("stuck");
    let served = pod.connect("v");
    for at in 0..4 {
        stuck.write(&mut pod, at * MIB as u64, MIB, b's');
    }
    pod.run(Duration::from_millis(3000));
    assert!(stuck.written(&mut pod).is_empty() && !leads(&pod, 21));
    for at in 0..4 {
        served.write(&mut pod, at * MIB as u64, MIB, b'v');
    }
    let mut answered = Vec::new();
    pod.run_until("all are answered", |pod| {
        answered.extend(served.written(pod));
        answered.len() == 4
    });
}

/// A volume is deleted, and its replica here with it. The pod restarts and gets a view from before
/// the deletion. A replica that was made again now would be empty, and would have forgotten its
/// votes and acknowledgements.
#[test]
fn a_member_that_was_destroyed_is_never_created_again() {
    let mut pod = Pod::new(Budgets::default());
    let before = view(3, vec![volume(1, "v", &[1])]);
    pod.view(before.clone());
    pod.run_until("the only replica leads", |pod| leads(pod, 11));
    let member = MemberId(11);
    let deleting = VolumeView { deleting: true, ..volume(1, "v", &[1]) };
    let mut after = view(4, vec![deleting]);
    after.destroyed = vec![(DISK, member)];
    pod.view(after.clone());
    pod.run_until("the replica is destroyed", |pod| pod.has_destroyed(member));
    for _ in 0..2 {
        pod.restart();
        pod.view(before.clone());
        pod.run(Duration::from_millis(2000));
        assert_eq!(pod.state_of(member), None, "it is here again");
    }
    // The present view arrives: there is nothing left to destroy, and the catalog is told so.
    pod.view(after);
    pod.run_until("the catalog is told", |pod| pod.has_destroyed(member));
}

/// The pod restarts and the catalog does not name its replica, for whatever reason: nothing is
/// deleted but by a positive record.
#[test]
fn a_member_that_the_catalog_does_not_know_is_kept_and_shown() {
    let mut pod = serving(Budgets::default());
    let client = pod.connect("v");
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
    pod.restart();
    pod.view(view(1, Vec::new()));
    pod.run(Duration::from_millis(2000));
    assert_eq!(pod.state_of(MemberId(11)), Some(MemberState::Orphan));
    pod.view(view(2, vec![volume(1, "v", &[1])]));
    pod.run_until("it is used again", |pod| leads(pod, 11));
    let client = pod.connect("v");
    assert_eq!(client.read_byte(&mut pod, 0), b'x');
}

/// The volume does not concern the pod any more: the pod was told so, and not that it is deleted.
#[test]
fn a_volume_that_leaves_the_view_is_closed_and_kept() {
    let mut pod = serving(Budgets::default());
    let client = pod.connect("v");
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
    pod.view(view(2, Vec::new()));
    pod.run_until("the connection ends", |pod| client.is_closed(pod));
    pod.run(Duration::from_millis(2000));
    assert_eq!(pod.state_of(MemberId(11)), Some(MemberState::Orphan));
    assert!(!pod.has_destroyed(MemberId(11)));
    // Nor does a record of another volume destroy it.
    let deleting = VolumeView { deleting: true, ..volume(2, "other", &[1]) };
    let mut after = view(3, vec![deleting]);
    after.destroyed = vec![(DISK, MemberId(11))];
    pod.view(after);
    pod.run(Duration::from_millis(200));
    assert!(!pod.has_destroyed(MemberId(11)));
    pod.view(view(4, vec![volume(1, "v", &[1])]));
    pod.run_until("it is used again", |pod| leads(pod, 11));
    let client = pod.connect("v");
    assert_eq!(client.read_byte(&mut pod, 0), b'x');
}

/// A client asks for a volume that does not concern the pod. It is asked for, and comes.
#[test]
fn an_export_that_is_not_known_is_asked_for() {
    let mut pod = serving(Budgets::default());
    assert_eq!(pod.uses(), BTreeSet::new());
    let client = pod.ask_for("far");
    pod.run(Duration::from_millis(100));
    let question = pod.asked().expect("the control plane is asked");
    assert_eq!((question.name.as_str(), pod.asked()), ("far", None), "once");
    pod.view(view(2, vec![volume(1, "v", &[1]), volume(2, "far", &[1])]));
    pod.resolved(question.id, Resolution::Found(VolumeId(2)));
    pod.opened(&client);
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    pod.run_until("its write is answered", |pod| client.written(pod) == [0]);
    assert_eq!(pod.uses(), BTreeSet::from([VolumeId(2)]));
    let second = pod.connect("far");
    assert_eq!(second.read_byte(&mut pod, 0), b'x');
    client.hang_up(&mut pod);
    pod.run_until("it is gone", |pod| client.is_closed(pod));
    assert_eq!(pod.uses(), BTreeSet::from([VolumeId(2)]), "one is left");
    second.hang_up(&mut pod);
    pod.run_until("it is gone", |pod| second.is_closed(pod));
    pod.round();
    assert_eq!(pod.uses(), BTreeSet::new());
}

#[test]
fn an_answer_for_a_client_that_is_gone_opens_nothing() {
    let mut pod = serving(Budgets::default());
    let client = pod.ask_for("v2");
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    pod.run(Duration::from_millis(100));
    let question = pod.asked().expect("the control plane is asked");
    client.hang_up(&mut pod);
    pod.view(view(2, vec![volume(1, "v", &[1]), volume(2, "v2", &[1])]));
    pod.resolved(question.id, Resolution::Found(VolumeId(2)));
    pod.run_until("it is closed", |pod| client.is_closed(pod));
    pod.run(Duration::from_millis(1000));
    assert_eq!(pod.uses(), BTreeSet::new());
    // Nor does one that comes twice.
    pod.resolved(question.id, Resolution::Unknown);
    let other = pod.connect("v2");
    assert_ne!(other.read_byte(&mut pod, 0), b'x', "nothing was written");
}

/// The catalog went back to an old copy and gave the ids of one volume to another one. Neither
/// serving that one nor deleting it may touch the data that is here.
#[test]
fn a_member_of_something_else_is_neither_served_nor_destroyed() {
    let member = MemberId(11);
    let renumbered = |number, bytes| {
        let mut other = VolumeView { size_bytes: bytes, ..volume(number, "other", &[1]) };
        (other.stripe_bytes, other.shards[0].members[0].member) = (bytes, member);
        other
    };
    let mut other_shard = renumbered(1, VOLUME_BYTES);
    other_shard.shards[0].shard = ShardId(9);
    let another = [renumbered(2, VOLUME_BYTES), renumbered(1, VOLUME_BYTES / 2), other_shard];
    for other in another {
        let mut pod = serving(Budgets::default());
        let client = pod.connect("v");
        client.write(&mut pod, 0, BLOCK_BYTES, b'x');
        pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
        pod.restart();
        pod.view(view(1, vec![other.clone()]));
        let client = pod.connect("other");
        client.write(&mut pod, 0, BLOCK_BYTES, b'y');
        pod.run(Duration::from_millis(3000));
        assert_eq!(pod.state_of(member), Some(MemberState::Orphan));
        assert!(client.written(&mut pod).is_empty(), "what belongs to another was written to");
        let mut after = view(2, vec![VolumeView { deleting: true, ..other }]);
        after.destroyed = vec![(DISK, member)];
        pod.view(after);
        pod.run(Duration::from_millis(200));
        assert!(!pod.has_destroyed(member));
        pod.restart();
        pod.view(view(3, vec![volume(1, "v", &[1])]));
        let client = pod.connect("v");
        assert_eq!(client.read_byte(&mut pod, 0), b'x');
    }
}

/// The volume `v` with so many bytes in use.
fn sized(size_bytes: u64) -> VolumeView {
    VolumeView { size_bytes, ..volume(1, "v", &[1]) }
}

#[test]
fn a_volume_grows_under_its_clients_and_never_shrinks() {
    const HALF: u64 = VOLUME_BYTES / 2;
    let mut pod = Pod::new(Budgets::default());
    pod.view(view(1, vec![sized(HALF)]));
    pod.run_until("the only replica leads", |pod| leads(pod, 11));
    let client = pod.connect("v");
    client.write(&mut pod, HALF, BLOCK_BYTES, b'x');
    pod.run_until("it is refused", |pod| !client.errors(pod).is_empty());
    pod.view(view(2, vec![sized(VOLUME_BYTES)]));
    client.write(&mut pod, HALF, BLOCK_BYTES, b'y');
    pod.run_until("the new size is used", |pod| client.written(pod) == [HALF]);
    // A catalog that was restored from an older copy.
    pod.view(view(3, vec![sized(HALF)]));
    assert_eq!(client.read_byte(&mut pod, HALF), b'y');
    let new = pod.connect("v");
    assert_eq!(new.read_byte(&mut pod, HALF), b'y');
}

#[test]
fn a_deleted_volume_that_is_kept_has_no_clients_and_keeps_its_members() {
    let mut pod = serving(Budgets::default());
    let client = pod.connect("v");
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    pod.run_until("a write is answered", |pod| client.written(pod) == [0]);
    let withheld = VolumeView { withheld: true, ..volume(1, "v", &[1]) };
    pod.view(view(2, vec![withheld.clone()]));
    pod.run_until("its connection ends", |pod| client.is_closed(pod));
    assert!(leads(&pod, 11));
    // Access sets still go to its shards.
    let generation = Generation(3);
    let nobody = AccessSet { generation, open: false, grants: Vec::new() };
    assert_eq!(pod.set_access(1, nobody), generation);
    let everybody = AccessSet { generation: Generation(4), open: true, ..AccessSet::default() };
    assert_eq!(pod.set_access(1, everybody), Generation(4));
    pod.view(view(3, vec![volume(1, "v", &[1])]));
    let client = pod.connect("v");
    assert_eq!(client.read_byte(&mut pod, 0), b'x');
}

/// A positive record names a member of a volume. Without one there is nothing to compare with.
#[test]
fn a_member_is_destroyed_with_its_volume_only() {
    let mut pod = serving(Budgets::default());
    let mut contradiction = view(2, vec![volume(1, "v", &[1])]);
    contradiction.destroyed = vec![(DISK, MemberId(11))];
    pod.view(contradiction);
    pod.run(Duration::from_millis(200));
    assert!(leads(&pod, 11) && !pod.has_destroyed(MemberId(11)));
}

#[test]
fn a_request_for_another_shard_is_refused() {
    let mut pod = serving(Budgets::default());
    let member = MemberId(11);
    let zero = || ShardOp::Zero { range: BlockRange { first: Block(0), count: 1 }, trim: false };
    let before = pod.applied(member);
    pod.request_for(ShardId(2), member, zero());
    pod.run(SOON);
    assert_eq!(pod.applied(member), before);
    pod.request_for(ShardId(1), member, zero());
    pod.run_until("it is carried out", |pod| pod.applied(member) > before);
}

const RESYNCING: MemberId = MemberId(21);

/// The power failed in the middle of a resync: half of the replica is as of one moment, half of
/// another.
fn half_resynced() -> Pod {
    let mut pod = Pod::new(Budgets::default());
    let view = view(1, vec![volume(2, "v", &[1, 2, 3])]);
    pod.view(view.clone());
    pod.run_until("the replica is here", |pod| pod.state_of(RESYNCING).is_some());
    assert!(pod.is_source(RESYNCING));
    pod.set_resyncing_flag(RESYNCING);
    pod.run(Duration::from_millis(200));
    pod.restart();
    pod.view(view);
    pod.run(Duration::from_millis(200));
    pod
}

/// Until the replica is whole, no other one may copy from it.
#[test]
fn a_member_with_the_resyncing_flag_is_no_source() {
    let pod = half_resynced();
    assert_eq!(pod.state_of(RESYNCING), Some(MemberState::Resyncing), "nor is it called whole");
    assert!(!pod.is_source(RESYNCING));
}

/// No other replica has as long a log, so this one is elected in the end. It needs another one to
/// commit anything, which may need its copy. With an entry of its own term applied, it has all
/// that was ever committed, and is whole.
#[test]
fn a_leader_with_the_resyncing_flag_brings_others_along() {
    let mut pod = half_resynced();
    let answer = |kind: MessageType, index: u64| {
        let mut message = Message { index, ..Message::default() };
        message.set_msg_type(kind);
        (message.from, message.to, message.term) = (22, RESYNCING.0, 1);
        message
    };
    // Any other candidate would come first.
    pod.run(8 * ELECTION_TICKS as u32 * TICK);
    pod.raft(answer(MessageType::MsgRequestPreVoteResponse, 0));
    pod.round();
    pod.raft(answer(MessageType::MsgRequestVoteResponse, 0));
    pod.run_until("it is elected", |pod| pod.has_entry(RESYNCING, 1, 1));
    pod.run(2 * TICK);
    assert_eq!(pod.state_of(RESYNCING), Some(MemberState::Resyncing));
    assert!(pod.is_source(RESYNCING));
    pod.raft(answer(MessageType::MsgAppendResponse, 1));
    pod.run_until("it is whole", |pod| leads(pod, RESYNCING.0));
}

#[test]
fn broken_rules_are_noticed() {
    let expected: [(Mistake, fn()); 7] = [
        (Mistake::ResyncingSource, a_member_with_the_resyncing_flag_is_no_source),
        (Mistake::ResyncingLeaderIsNoSource, a_leader_with_the_resyncing_flag_brings_others_along),
        (Mistake::ProcessedAfterHangUp, nothing_of_a_client_is_executed_after_it_hung_up),
        (
            Mistake::ProcessedAfterHangUp,
            a_hang_up_is_noticed_while_nothing_is_taken_from_the_client,
        ),
        (Mistake::OldLineGoesOn, nothing_of_a_line_is_executed_after_it_was_opened_anew),
        (Mistake::VolumesShareBudget, a_volume_without_a_quorum_starves_no_other),
        (Mistake::EmptyMemberVotes, a_member_that_was_destroyed_is_never_created_again),
    ];
    for (mistake, scenario) in expected {
        assert_found(mistake, scenario);
    }
}

/// The pod with the leader is well, and nothing is read of the link to it for a while (rule
/// `congestion-keeps-the-leader`). Nobody else is asked who leads; the writes wait, and go to the
/// same leader.
fn a_full_link_is_no_reason_to_look_for_another_leader() {
    const PODS: [u64; 3] = [1, 2, 3];
    let mut pod = Pod::new(Budgets { link_bytes: 16 * MIB, ..Budgets::default() });
    pod.view(view(1, vec![volume(1, "v", &PODS)]));
    pod.run_until("the replica is here", |pod| pod.state_of(MemberId(11)).is_some());
    let mut leader = pod.link_from(2, Purpose::Data);
    let mut heartbeat = Message { from: 12, to: 11, term: 1, ..Message::default() };
    heartbeat.set_msg_type(MessageType::MsgHeartbeat);
    let client = pod.connect("v");
    leader.raft(&mut pod, heartbeat.clone());
    client.write(&mut pod, 0, BLOCK_BYTES, b'x');
    let answer = |leader: &mut Peer, pod: &mut Pod, call| {
        let result = Ok(ShardReply::Done);
        leader.send(pod, PeerMessage::Response { call, term: 1, result });
    };
    pod.run_until("a first write is answered", |pod| {
        for message in leader.messages(pod) {
            if let PeerMessage::Request { call, .. } = message {
                answer(&mut leader, pod, call);
            }
        }
        client.written(pod) == [0]
    });
    pod.hold_links(true);
    for at in 0..16 {
        client.write(&mut pod, at * MIB as u64, MIB, b'x');
    }
    pod.run(4 * TICK);
    pod.hold_links(false);
    let mut written = std::collections::BTreeSet::new();
    pod.run_until("all writes arrive", |pod| {
        if pod.is_after_tick() {
            leader.raft(pod, heartbeat.clone());
        }
        for message in leader.messages(pod) {
            let PeerMessage::Request { call, to, op, .. } = message else { continue };
            assert_eq!(to, MemberId(12));
            let ShardOp::Write { range, .. } = op else { panic!("it was asked for {op:?}") };
            written.insert(range.first);
            answer(&mut leader, pod, call);
        }
        written.len() == 16
    });
}

#[test]
fn a_full_link_keeps_the_leader() {
    a_full_link_is_no_reason_to_look_for_another_leader();
    assert_found(
        Mistake::CongestionIsNoLeader,
        a_full_link_is_no_reason_to_look_for_another_leader,
    );
}

#[test]
fn a_listener_that_cannot_accept_tries_again_once_a_tick() {
    let mut pod = serving(Budgets::default());
    pod.fail_accepts(true);
    // The accept in flight still takes this one; the next ones fail.
    pod.connect("v");
    let before = pod.failed_accepts();
    pod.run(10 * TICK);
    let tries = pod.failed_accepts() - before;
    assert!((5..=11).contains(&tries), "{tries} in ten ticks");
    pod.fail_accepts(false);
    pod.connect("v");
}
