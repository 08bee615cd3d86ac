//! Scenarios of one volume.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::io::buffer::Pool;
use crate::planted::{Mistake, assert_found};
use crate::types::{
    AccessSet, BLOCK_BYTES, BlockReply, Segment, StatusRun, Uuid, ZeroHow, block_crc,
};
use crate::view::ShardView;

pub(super) const ME: PodId = PodId(2);
pub(super) const CONN: ConnId = ConnId(1);
pub(super) const TERM: u64 = 7;
/// Stands for all connections, which are closed.
const NOBODY: ConnId = ConnId(0);
const HANG_UP: Reply = (NOBODY, 0, Ok(BlockReply::Done));

fn member(number: u64) -> MemberView {
    MemberView { member: MemberId(number), disk: Uuid::default(), pod: PodId(number) }
}

pub(super) fn view() -> VolumeView {
    VolumeView {
        volume: VolumeId(5),
        name: "v".to_owned(),
        size_bytes: 1 << 30,
        stripe_width: 1,
        stripe_bytes: 1 << 30,
        shards: vec![ShardView {
            shard: ShardId(1),
            members: [1, 2, 3].map(member).to_vec(),
            birth: AccessSet::default(),
        }],
        withheld: false,
        deleting: false,
        open: true,
        io_timeout_ms: 0,
        attachments: Vec::new(),
    }
}

/// This process, and another one of the same pod.
const FRONT_END: u64 = 3;
const OTHER: u64 = 4;

pub(super) fn volume() -> Volume {
    Volume::new(&view(), AttachmentId(6), FrontEnd::new(ME, FRONT_END))
}

/// A volume that knows member 1 as the leader.
pub(super) fn led() -> Volume {
    let mut volume = volume();
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    volume
}

pub(super) fn block_write(block: u64, byte: u8) -> BlockOp {
    let data = Pool::default().copy(&[byte; BLOCK_BYTES]);
    BlockOp::Write { offset: block * BLOCK_BYTES as u64, data }
}

pub(super) fn block_read(block: u64) -> BlockOp {
    BlockOp::Read { offset: block * BLOCK_BYTES as u64, len: BLOCK_BYTES as u32 }
}

#[derive(Debug)]
pub(super) struct Sent {
    pub ticket: Ticket,
    pub to: MemberId,
    pub term: u64,
    pub session: Session,
    pub op: ShardOp,
}

pub(super) type Reply = (ConnId, u64, Result<BlockReply, BlockError>);

/// What the volume sends and answers; shards record every session that they are asked to.
pub(super) fn poll(volume: &mut Volume, now: Mono) -> (Vec<Sent>, Vec<Reply>) {
    let (mut sent, mut replies) = (Vec::new(), Vec::new());
    loop {
        let (more, answers) = poll_once(volume, now);
        replies.extend(answers);
        let is_touch = |sent: &Sent| matches!(sent.op, ShardOp::Touch { .. });
        let (touches, others): (Vec<Sent>, Vec<Sent>) = more.into_iter().partition(is_touch);
        sent.extend(others);
        if touches.is_empty() {
            return (sent, replies);
        }
        for touch in touches {
            let done = Ok(ShardReply::Done);
            volume.shard_result(now, touch.ticket, touch.to, touch.term, done);
        }
    }
}

pub(super) fn poll_once(volume: &mut Volume, now: Mono) -> (Vec<Sent>, Vec<Reply>) {
    let (mut out, mut sent, mut replies) = (Vec::new(), Vec::new(), Vec::new());
    volume.poll(now, &mut out);
    if out.contains(&VolumeOutput::WhoIsThere) {
        volume.clients_checked();
        volume.poll(now, &mut out);
    }
    for output in out {
        match output {
            VolumeOutput::Send { ticket, to, term, origin, op, .. } => {
                assert_eq!((origin.session.pod, origin.attachment), (ME, AttachmentId(6)));
                let (to, session) = (to.member, origin.session);
                sent.push(Sent { ticket, to, term, session, op });
            }
            VolumeOutput::Reply { conn, handle, result } => replies.push((conn, handle, result)),
            VolumeOutput::HangUp => replies.push((NOBODY, 0, Ok(BlockReply::Done))),
            VolumeOutput::WhoIsThere => {}
            VolumeOutput::AccessSet { .. } => panic!("see access_test"),
        }
    }
    (sent, replies)
}

pub(super) fn at(ms: u64) -> Mono {
    Mono(1) + Duration::from_millis(ms)
}

pub(super) fn done(volume: &mut Volume, sent: &Sent) {
    volume.shard_result(at(0), sent.ticket, sent.to, TERM, Ok(ShardReply::Done));
}

#[test]
fn the_local_member_is_asked_first_and_its_hint_is_followed() {
    let mut volume = volume();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!((sent.len(), sent[0].to, sent[0].term), (1, MemberId(2), 0));
    assert!(!sent[0].op.is_write(), "a write is not sent before the term is known");
    let hint = Err(BlockError::NotLeader { hint: Some(MemberId(3)), term: TERM });
    volume.shard_result(at(0), sent[0].ticket, MemberId(2), TERM, hint);
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!((sent.len(), sent[0].to, sent[0].term), (1, MemberId(3), TERM));
    assert!(sent[0].op.is_write());
    done(&mut volume, &sent[0]);
    assert_eq!(poll(&mut volume, at(0)).1, [(CONN, 1, Ok(BlockReply::Done))]);
    assert_eq!(volume.requests_in_flight(), 0);
}

#[test]
fn a_probe_that_succeeds_finds_the_leader() {
    let mut volume = volume();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    let (sent, _) = poll(&mut volume, at(0));
    let status = ShardReply::Status(vec![StatusRun { count: 1, hole: true }]);
    volume.shard_result(at(0), sent[0].ticket, MemberId(2), TERM, Ok(status));
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!((sent.len(), sent[0].to, sent[0].term), (1, MemberId(2), TERM));
}

/// A member was cut off during an election, in a term that the others never hear of; they have a
/// leader of an earlier term. The member is asked first, but must not keep that leader out.
#[test]
fn a_term_that_nobody_leads_in_keeps_no_leader_out() {
    let mut volume = volume();
    volume.role(ShardId(1), None, TERM + 2);
    volume.request(at(0), CONN, 1, block_write(0, 1));
    let (sent, _) = poll(&mut volume, at(0));
    let alone = Err(BlockError::NotLeader { hint: None, term: TERM + 1 });
    volume.shard_result(at(0), sent[0].ticket, sent[0].to, TERM + 1, alone);
    let (sent, _) = poll(&mut volume, at(1000));
    let leader = sent[0].to;
    let status = ShardReply::Status(vec![StatusRun { count: 1, hole: true }]);
    volume.shard_result(at(1000), sent[0].ticket, leader, TERM, Ok(status));
    let (sent, _) = poll(&mut volume, at(1000));
    assert_eq!((sent.len(), sent[0].to, sent[0].term), (1, leader, TERM));
    assert!(sent[0].op.is_write());
}

#[test]
fn without_a_leader_requests_wait_for_ever_and_ask_seldom() {
    let mut volume = volume();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_read(0));
    let (mut probes, mut asked) = (0, [0; 4]);
    for ms in 0..60_000 {
        if ms % 100 == 0 {
            volume.tick(at(ms));
        }
        let (sent, replies) = poll(&mut volume, at(ms));
        assert!(replies.is_empty(), "a pause is not an error");
        for sent in sent {
            probes += 1;
            asked[sent.to.0 as usize] += 1;
            let refused = Err(BlockError::NotLeader { hint: None, term: TERM });
            volume.shard_result(at(ms), sent.ticket, sent.to, TERM, refused);
        }
    }
    assert!((500..700).contains(&probes), "{probes} probes in a minute");
    assert!(asked[1..].iter().all(|count| *count > 150), "everyone is asked: {asked:?}");
    volume.role(ShardId(1), Some(MemberId(1)), TERM + 1);
    let (sent, _) = poll(&mut volume, at(60_000));
    assert_eq!(sent.len(), 2, "a leader ends the pause at once");
    assert!(sent.iter().all(|sent| sent.term == TERM + 1));
}

#[test]
fn members_that_point_at_each_other_are_not_asked_in_a_loop() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_read(0));
    let mut sends = 0;
    for _ in 0..1000 {
        for sent in poll(&mut volume, at(0)).0 {
            sends += 1;
            let other = MemberId(sent.to.0 % 3 + 1);
            let refused = Err(BlockError::NotLeader { hint: Some(other), term: TERM });
            volume.shard_result(at(0), sent.ticket, sent.to, TERM, refused);
        }
    }
    assert!(sends <= 5, "{sends} sends in no time");
    assert!(volume.deadline().is_some_and(|deadline| deadline > at(0)));
}

#[test]
fn a_busy_shard_is_asked_again_after_a_pause() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    let (sent, _) = poll(&mut volume, at(0));
    volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, Err(BlockError::Busy));
    assert!(poll(&mut volume, at(0)).0.is_empty());
    let deadline = volume.deadline().expect("a pause");
    let (again, _) = poll(&mut volume, deadline);
    assert_eq!((again.len(), again[0].session), (1, sent[0].session));
    assert_eq!(volume.deadline(), None);
}

#[test]
fn a_write_with_unknown_outcome_is_sent_under_a_higher_session() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_write(0, 2));
    let (first, _) = poll(&mut volume, at(0));
    assert_eq!(first.len(), 1, "the second one waits for the first");
    volume.pod_down(at(0), PodId(1));
    volume.role(ShardId(1), Some(MemberId(3)), TERM + 1);
    let (second, _) = poll(&mut volume, at(0));
    assert_eq!((second.len(), &second[0].op), (1, &first[0].op));
    assert!(second[0].session > first[0].session);
    // The late answer of the first attempt means nothing now.
    done(&mut volume, &first[0]);
    assert_eq!(poll(&mut volume, at(0)).1, []);
    volume.shard_result(at(0), second[0].ticket, MemberId(3), TERM + 1, Ok(ShardReply::Done));
    let (third, replies) = poll(&mut volume, at(0));
    assert_eq!(replies, [(CONN, 1, Ok(BlockReply::Done))]);
    assert_eq!((third.len(), third[0].session), (1, second[0].session));
}

#[test]
fn a_refused_session_is_replaced_and_a_lost_read_is_not_a_new_one() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_read(0));
    let (sent, _) = poll(&mut volume, at(0));
    let before = volume.session(0);
    volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, Err(BlockError::Unknown));
    assert_eq!(volume.session(0), before);
    volume.role(ShardId(1), Some(MemberId(1)), TERM + 1);
    volume.request(at(0), CONN, 2, block_write(9, 1));
    let (sent, _) = poll(&mut volume, at(0));
    let write = sent.iter().find(|sent| sent.op.is_write()).expect("the write is sent");
    let recorded = FrontEnd::new(ME, FRONT_END).above(write.session.counter);
    let stale = Err(BlockError::StaleSession { recorded });
    volume.shard_result(at(0), write.ticket, MemberId(1), TERM + 1, stale);
    let (sent, _) = poll(&mut volume, at(0));
    assert!(sent[0].op.is_write() && sent[0].session > recorded);
}

fn refused(volume: &mut Volume, sent: &Sent, recorded: Session) {
    let stale = Err(BlockError::StaleSession { recorded });
    volume.shard_result(at(0), sent.ticket, sent.to, TERM, stale);
}

/// What the pod's earlier processes have recorded in a shard.
fn of_others(count: u64) -> Session {
    FrontEnd::new(ME, OTHER).above(count << 24)
}

/// Reads, too: whoever sees a shard has ended the sessions before.
#[test]
fn nothing_is_asked_of_a_shard_before_a_session_is_recorded() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_read(0));
    volume.request(at(0), CONN, 2, block_write(0, 1));
    let (touch, _) = poll_once(&mut volume, at(0));
    assert_eq!((touch.len(), &touch[0].op), (1, &ShardOp::Touch { renews: false }));
    assert_eq!((touch[0].to, touch[0].term), (MemberId(1), TERM));
    assert!(poll_once(&mut volume, at(0)).0.is_empty(), "one at a time");
    done(&mut volume, &touch[0]);
    let (sent, _) = poll_once(&mut volume, at(0));
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|sent| sent.session == touch[0].session));
    done(&mut volume, &sent[1]);
    volume.request(at(0), CONN, 3, block_write(0, 2));
    assert!(poll_once(&mut volume, at(0)).0[0].op.is_write(), "and then at once");
}

/// The pod was started anew, and does not know what it had recorded.
#[test]
fn a_front_end_that_starts_again_goes_on_above_what_was_recorded() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_write(1, 2));
    let (touch, _) = poll_once(&mut volume, at(0));
    refused(&mut volume, &touch[0], of_others(9));
    let (touch, replies) = poll_once(&mut volume, at(0));
    assert_eq!((touch.len(), replies), (1, vec![]), "at once");
    assert!(touch[0].session > of_others(9));
    done(&mut volume, &touch[0]);
    let (sent, _) = poll_once(&mut volume, at(0));
    assert!(sent.iter().all(|sent| sent.op.is_write() && sent.session == touch[0].session));
    sent.iter().for_each(|sent| done(&mut volume, sent));
    assert_eq!(poll(&mut volume, at(0)).1.len(), 2);
}

/// A touch got lost, and may still be carried out. The next one must not be the same: a second
/// process of this pod could have recorded that.
#[test]
fn a_touch_of_unknown_outcome_is_followed_by_a_higher_one() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    let (first, _) = poll_once(&mut volume, at(0));
    volume.shard_result(at(0), first[0].ticket, MemberId(1), TERM, Err(BlockError::Unknown));
    volume.role(ShardId(1), Some(MemberId(1)), TERM + 1);
    let (second, _) = poll_once(&mut volume, at(0));
    assert!(matches!(second[0].op, ShardOp::Touch { .. }));
    assert!(second[0].session > first[0].session);
    done(&mut volume, &first[0]);
    assert_eq!(volume.session(0), None, "a late answer means nothing");
}

/// The pod stood still with a client's first write to a shard. The client hung up meanwhile, and
/// wrote something newer there through another pod.
#[test]
fn who_is_gone_when_a_session_is_recorded_writes_nothing() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, b'o'));
    volume.request(at(0), ConnId(2), 2, block_write(1, b'x'));
    let (touch, _) = poll_once(&mut volume, at(0));
    done(&mut volume, &touch[0]);
    let mut out = Vec::new();
    volume.poll(at(0), &mut out);
    assert_eq!(out, [VolumeOutput::WhoIsThere], "nothing is sent before that is known");
    volume.close_connection(CONN);
    volume.clients_checked();
    let (sent, _) = poll_once(&mut volume, at(0));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].op.range().first, Block(1));
}

/// Another front end has taken over: the client went to another pod, or another process runs under
/// this pod's identity. This one comes back from a pause with the client's older requests.
#[test]
fn an_outdone_front_end_drops_what_came_before() {
    let recorded = of_others(9);
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, b'f'));
    let (sent, _) = poll(&mut volume, at(0));
    done(&mut volume, &sent[0]);
    poll(&mut volume, at(0));
    for (handle, block) in [(2, 0), (3, 1), (4, 0)] {
        volume.request(at(0), CONN, handle, block_write(block, b'o'));
    }
    volume.request(at(0), ConnId(7), 5, block_write(2, b'o'));
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!(sent.len(), 3, "one waits for its turn");
    sent.iter().for_each(|sent| refused(&mut volume, sent, recorded));
    // Came in the same round as the refusal, over a connection that is about to end.
    volume.request(at(0), CONN, 9, block_write(3, b'o'));
    let (again, replies) = poll(&mut volume, at(0));
    assert!(again.is_empty(), "an old write is sent after newer ones: {again:?}");
    assert_eq!(replies, [HANG_UP], "and nobody gets an answer");
    assert_eq!(volume.requests_in_flight(), 0);
    // A client that comes back has newer writes.
    volume.request(at(0), ConnId(8), 6, block_write(0, b'n'));
    let (sent, _) = poll(&mut volume, at(0));
    assert!(sent.len() == 1 && sent[0].session > recorded);
    done(&mut volume, &sent[0]);
    assert_eq!(poll(&mut volume, at(0)).1, [(ConnId(8), 6, Ok(BlockReply::Done))]);
}

/// One of two connections has ended with a write in flight. The other one still relies on this pod.
#[test]
fn an_outdone_front_end_forgets_what_is_left_of_ended_connections() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, b'o'));
    volume.request(at(0), ConnId(7), 2, block_write(1, b'o'));
    let (sent, _) = poll(&mut volume, at(0));
    volume.close_connection(CONN);
    sent.iter().for_each(|sent| refused(&mut volume, sent, of_others(9)));
    assert_eq!(poll(&mut volume, at(0)).1, [HANG_UP]);
    assert!(volume.requests_in_flight() == 0 && volume.order.is_empty());
}

/// The same, when the outcome of a write is unknown: its touch must not follow the other's session.
#[test]
fn a_touch_for_what_may_have_taken_place_renews() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, b'o'));
    let (sent, _) = poll(&mut volume, at(0));
    volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, Err(BlockError::Unknown));
    volume.role(ShardId(1), Some(MemberId(1)), TERM + 1);
    let (touch, _) = poll_once(&mut volume, at(0));
    assert_eq!(touch[0].op, ShardOp::Touch { renews: true });
    refused(&mut volume, &touch[0], of_others(1));
    let (sent, replies) = poll_once(&mut volume, at(0));
    assert!(sent.is_empty(), "an old write is sent after newer ones: {sent:?}");
    assert_eq!(replies, [HANG_UP]);
    // The client came back to this pod, and nobody relies on what was before.
    volume.request(at(0), ConnId(8), 2, block_write(0, b'n'));
    let (touch, _) = poll_once(&mut volume, at(0));
    assert_eq!(touch[0].op, ShardOp::Touch { renews: false });
}

/// A client went to another pod and came back.
#[test]
fn a_front_end_without_clients_is_not_outdone() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    let (sent, _) = poll(&mut volume, at(0));
    done(&mut volume, &sent[0]);
    volume.close_connection(CONN);
    volume.request(at(0), ConnId(2), 2, block_write(0, 2));
    let (sent, _) = poll(&mut volume, at(0));
    let recorded = Session { pod: PodId(3), ..of_others(9) };
    refused(&mut volume, &sent[0], recorded);
    let (again, replies) = poll(&mut volume, at(0));
    assert!(again[0].session > recorded && replies.is_empty());
}

#[test]
fn a_fenced_client_gets_errors_and_an_early_one_waits() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_write(0, 2));
    let (touch, _) = poll_once(&mut volume, at(0));
    volume.shard_result(at(0), touch[0].ticket, MemberId(1), TERM, Err(BlockError::NotYet));
    assert_eq!(poll_once(&mut volume, at(0)).1, [], "it waits");
    let deadline = volume.deadline().expect("a pause");
    let (touch, _) = poll_once(&mut volume, deadline);
    volume.shard_result(deadline, touch[0].ticket, MemberId(1), TERM, Err(BlockError::Fenced));
    let (touch, replies) = poll_once(&mut volume, deadline);
    assert_eq!(replies, [(CONN, 1, Err(BlockError::Fenced))]);
    volume.shard_result(deadline, touch[0].ticket, MemberId(1), TERM, Err(BlockError::Fenced));
    assert_eq!(poll_once(&mut volume, deadline).1, [(CONN, 2, Err(BlockError::Fenced))]);
}

#[test]
fn an_ended_connection_leaves_what_was_handed_over_and_nothing_else() {
    let mut volume = led();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_write(0, 2));
    let (first, _) = poll(&mut volume, at(0));
    volume.request(at(0), CONN, 3, block_write(1, 3));
    volume.close_connection(CONN);
    let other = ConnId(2);
    volume.request(at(0), other, 4, block_write(0, 4));
    volume.request(at(0), other, 5, block_write(1, 5));
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!(sent.len(), 1, "only block 1 is free: its earlier write was not handed over");
    assert_eq!(sent[0].op.range().first, Block(1));
    done(&mut volume, &first[0]);
    let (last, replies) = poll(&mut volume, at(0));
    assert_eq!((last.len(), replies), (1, vec![]));
    done(&mut volume, &last[0]);
    assert_eq!(poll(&mut volume, at(0)).1, [(other, 4, Ok(BlockReply::Done))]);
}

/// A client reconnects while there is no leader, and writes something newer. No write of its old
/// connection may come after that.
#[test]
fn what_waits_of_an_ended_connection_never_comes_after_a_newer_write() {
    let mut volume = volume();
    volume.request(at(0), CONN, 1, block_write(0, b'o'));
    poll(&mut volume, at(0));
    volume.close_connection(CONN);
    let again = ConnId(2);
    volume.request(at(0), again, 2, block_write(0, b'n'));
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    // The leader is busy: of the pieces that arrive together it takes only the last.
    let (mut stored, mut acknowledged) = (0, false);
    for ms in [0, 200, 400] {
        let (sent, replies) = poll(&mut volume, at(ms));
        acknowledged |= replies == [(again, 2, Ok(BlockReply::Done))];
        let mut writes = sent.iter().filter(|sent| sent.op.is_write()).rev();
        if let Some(Sent { op: ShardOp::Write { data, .. }, .. }) = writes.clone().next() {
            stored = data[0];
            done(&mut volume, writes.next().expect("just seen"));
        }
        for busy in writes {
            volume.shard_result(at(ms), busy.ticket, busy.to, TERM, Err(BlockError::Busy));
        }
    }
    assert!(acknowledged);
    assert_eq!(stored, b'n', "what was acknowledged was overwritten by what is older");
}

#[test]
fn a_read_that_does_not_match_its_checksum_is_asked_for_once_more() {
    let good = Bytes::from(vec![3; BLOCK_BYTES]);
    let bad = Bytes::from(vec![4; BLOCK_BYTES]);
    let crc = block_crc(VolumeId(5), 6, &good);
    let answer = |data: &Bytes| {
        let segments = vec![Segment::Data(data.clone())];
        Ok(ShardReply::Data { segments, crcs: vec![crc] })
    };
    for (second, expected) in [
        (&good, Ok(BlockReply::Data(vec![Segment::Data(good.clone())]))),
        (&bad, Err(BlockError::MediaFault)),
    ] {
        let mut volume = led();
        volume.request(at(0), CONN, 1, block_read(6));
        let (sent, _) = poll(&mut volume, at(0));
        volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, answer(&bad));
        let (sent, replies) = poll(&mut volume, at(0));
        assert_eq!((sent.len(), replies.len()), (1, 0));
        volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, answer(second));
        assert_eq!(poll(&mut volume, at(0)).1, [(CONN, 1, expected)]);
    }
}

#[test]
fn an_error_of_one_piece_waits_for_the_others() {
    let mut volume = led();
    let data = Pool::default().copy(&[1; 2 * BLOCK_BYTES]);
    let data = data.slice(100..2 * BLOCK_BYTES);
    volume.request(at(0), CONN, 1, BlockOp::Write { offset: 100, data });
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!(sent.len(), 2);
    volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, Err(BlockError::NoSpace));
    assert_eq!(poll(&mut volume, at(0)).1, []);
    done(&mut volume, &sent[1]);
    assert_eq!(poll(&mut volume, at(0)).1, [(CONN, 1, Err(BlockError::NoSpace))]);
}

#[test]
fn a_deleted_volume_answers_what_waits() {
    let mut volume = volume();
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_write(0, 2));
    poll(&mut volume, at(0));
    volume.update_view(&VolumeView { deleting: true, ..view() });
    volume.request(at(0), CONN, 3, block_read(0));
    let (_, replies) = poll(&mut volume, at(0));
    let answered: Vec<(u64, bool)> = (replies.iter())
        .map(|(_, handle, result)| (*handle, *result == Err(BlockError::NoSuchVolume)))
        .collect();
    assert_eq!(answered, [(1, true), (2, true), (3, true)]);
}

#[test]
fn what_is_out_of_range_or_needs_nobody_is_answered_at_once() {
    let mut volume = volume();
    let table = [
        (BlockOp::Flush, Ok(BlockReply::Done)),
        (BlockOp::Read { offset: 1 << 30, len: 1 }, Err(BlockError::OutOfRange)),
        (BlockOp::Read { offset: u64::MAX, len: 2 }, Err(BlockError::OutOfRange)),
        (BlockOp::Read { offset: 0, len: 0 }, Err(BlockError::Invalid)),
    ];
    for (op, expected) in table {
        volume.request(at(0), CONN, 1, op);
        let (sent, replies) = poll(&mut volume, at(0));
        assert!(sent.is_empty());
        assert_eq!(replies, [(CONN, 1, expected)]);
    }
}

#[test]
fn a_full_volume_leaves_every_connection_its_minimum() {
    for bytes_max in [VOLUME_IN_FLIGHT_BYTES_MAX, 2 << 20] {
        fill_up(volume().with_bytes_max(bytes_max), bytes_max as u32);
    }
}

fn fill_up(mut volume: Volume, len: u32) {
    let half = len / 2;
    volume.request(at(0), ConnId(3), 1, BlockOp::Read { offset: 0, len: half });
    assert!(volume.wants_requests(ConnId(3)));
    volume.close_connection(ConnId(3));
    volume.request(at(0), CONN, 1, BlockOp::Read { offset: 0, len });
    assert!(!volume.wants_requests(CONN));
    assert!(volume.wants_requests(ConnId(2)));
    volume.close_connection(CONN);
    assert!(volume.wants_requests(CONN));
}

#[test]
fn bytes_in_flight_to_one_shard_are_bounded() {
    let mut volume = led();
    for handle in 0..4 {
        volume.request(at(0), CONN, handle, BlockOp::Read { offset: 0, len: 16 << 20 });
    }
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!(sent.len(), 32, "32 MiB in pieces of 1 MiB");
    assert_eq!(volume.deadline(), None, "it waits for answers, not for time");
    volume.shard_result(at(0), sent[0].ticket, MemberId(1), TERM, Err(BlockError::MediaFault));
    assert_eq!(poll(&mut volume, at(0)).0.len(), 1);
}

/// A trim has no payload; what stores keep of it counts instead.
#[test]
fn trims_count_against_the_bounds_of_a_volume() {
    let mut volume = led().with_bytes_max(1 << 20);
    let trim = |len| BlockOp::Zero { offset: 0, len, how: ZeroHow::Trim };
    volume.request(at(0), CONN, 0, trim(256 << 20));
    assert!(volume.wants_requests(CONN));
    volume.request(at(0), CONN, 1, trim(256 << 20));
    assert!(!volume.wants_requests(CONN), "8192 extents of 128 bytes");
    assert!(volume.wants_requests(ConnId(2)));
    let (sent, _) = poll(&mut volume, at(0));
    assert_eq!(sent.len(), 16, "in pieces of 16 MiB; the second waits for the first");
}

#[test]
fn a_shard_that_stays_busy_is_not_flooded() {
    let mut volume = led();
    for handle in 0..30 {
        volume.request(at(0), CONN, handle, BlockOp::Read { offset: handle << 20, len: 1 << 20 });
    }
    let (mut sends, mut answered) = (0, 0);
    for ms in 0..10_000 {
        let (sent, replies) = poll(&mut volume, at(ms));
        answered += replies.len();
        for sent in sent {
            sends += 1;
            let busy = if ms < 5000 { BlockError::Busy } else { BlockError::MediaFault };
            volume.shard_result(at(ms), sent.ticket, MemberId(1), TERM, Err(busy));
        }
    }
    assert!(sends < 150, "{sends} sends");
    assert_eq!(answered, 30);
}

#[test]
fn connections_that_come_and_go_during_a_pause_leave_nothing_behind() {
    let mut volume = volume();
    for conn in 0..100 {
        for handle in 0..20 {
            volume.request(at(0), ConnId(conn), handle, block_write(handle % 3, 1));
        }
        poll(&mut volume, at(conn));
        volume.close_connection(ConnId(conn));
    }
    assert_eq!(volume.requests_in_flight(), 0);
    assert!(volume.routes[0].waiting.is_empty() && volume.order.is_empty());
    assert!(volume.work.pieces.is_empty() && volume.work.bytes == 0);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::TermWithoutLeader, a_term_that_nobody_leads_in_keeps_no_leader_out);
    assert_found(
        Mistake::RefusedSessionCountsOn,
        a_front_end_that_starts_again_goes_on_above_what_was_recorded,
    );
    assert_found(
        Mistake::FirstRequestUntouched,
        nothing_is_asked_of_a_shard_before_a_session_is_recorded,
    );
    assert_found(Mistake::OutdoneGoesOn, an_outdone_front_end_drops_what_came_before);
    assert_found(
        Mistake::RetryUnderOldSession,
        a_write_with_unknown_outcome_is_sent_under_a_higher_session,
    );
    assert_found(
        Mistake::ResentThroughSecondConnection,
        what_waits_of_an_ended_connection_never_comes_after_a_newer_write,
    );
}
