//! Requests that wait for too long.

use super::scenario_test::{
    CONN, Reply, TERM, at, block_read, block_write, done, led, poll, poll_once, view, volume,
};
use super::*;
use crate::planted::{Mistake, assert_found};
use crate::types::{AccessMode, BlockReply, Uuid};
use crate::view::AttachmentView;

const TIMED_OUT: Result<BlockReply, BlockError> = Err(BlockError::TimedOut);

/// The attachment of the fixture.
const OWN: u64 = 6;

/// A view of the volume with these attachments, each with this timeout.
fn attached(ids: &[u64], io_timeout_ms: u64) -> VolumeView {
    let attachments = ids.iter().map(|id| AttachmentView {
        id: AttachmentId(*id),
        uid: Uuid([*id as u8; 16]),
        node: "node".to_owned(),
        mode: AccessMode::ReadWrite,
        io_timeout_ms,
    });
    VolumeView { attachments: attachments.collect(), ..view() }
}

/// Lets requests wait for two seconds.
fn timed(mut volume: Volume) -> Volume {
    volume.update_view(&attached(&[OWN], 2_000));
    volume
}

/// What is answered at this time, whatever is sent.
fn answers(volume: &mut Volume, ms: u64) -> Vec<Reply> {
    volume.tick(at(ms));
    poll_once(volume, at(ms)).1
}

/// The answer of a request that is not sent to anybody.
fn at_once(volume: &mut Volume, ms: u64, op: BlockOp) -> Vec<Reply> {
    volume.request(at(ms), CONN, ms, op);
    poll_once(volume, at(ms)).1
}

#[test]
fn a_shard_without_a_leader_fails_what_is_asked_and_goes_on_by_itself() {
    let mut volume = timed(volume());
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(1_000), CONN, 2, block_write(0, 2));
    volume.request(at(1_500), CONN, 3, block_read(0));
    assert_eq!(poll(&mut volume, at(0)).1, []);
    assert_eq!(answers(&mut volume, 1_999), []);
    assert!(volume.needs_ticks());
    assert_eq!(answers(&mut volume, 2_000), [(CONN, 1, TIMED_OUT)]);
    // What has not waited for so long may still succeed; what comes now fails at once.
    assert_eq!(at_once(&mut volume, 2_100, block_read(9)), [(CONN, 2_100, TIMED_OUT)]);
    assert_eq!(at_once(&mut volume, 2_200, block_write(9, 3)), [(CONN, 2_200, TIMED_OUT)]);
    assert_eq!(at_once(&mut volume, 2_300, BlockOp::Flush), [(CONN, 2_300, TIMED_OUT)]);
    assert_eq!(answers(&mut volume, 3_000), [(CONN, 2, TIMED_OUT)]);
    assert_eq!(answers(&mut volume, 3_500), [(CONN, 3, TIMED_OUT)]);
    assert_eq!((volume.requests_in_flight(), volume.bytes()), (0, 0));
    // Nobody asks for anything, and still the shard is asked.
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    let (touch, _) = poll_once(&mut volume, at(4_000));
    assert!(matches!(touch[..], [ref sent] if matches!(sent.op, ShardOp::Touch { .. })));
    assert_eq!(at_once(&mut volume, 4_000, BlockOp::Flush), [(CONN, 4_000, TIMED_OUT)]);
    done(&mut volume, &touch[0]);
    assert!(poll_once(&mut volume, at(4_100)).0.is_empty());
    // Probes of before the leader was known are given up.
    volume.tick(at(4_101));
    assert!(!volume.needs_ticks() && volume.deadline().is_none(), "it is at rest");
    let flushed = Ok(BlockReply::Done);
    assert_eq!(at_once(&mut volume, 4_200, BlockOp::Flush), [(CONN, 4_200, flushed)]);
    volume.request(at(4_300), CONN, 5, block_write(0, 5));
    let (sent, _) = poll_once(&mut volume, at(4_300));
    assert!(sent[0].op.is_write());
}

/// The shard is slow with one write, and answers others.
#[test]
fn a_write_that_timed_out_keeps_its_place_in_the_order() {
    let mut volume = timed(led());
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(1_000), CONN, 2, block_write(0, 2));
    let (first, _) = poll(&mut volume, at(1_000));
    assert_eq!(first.len(), 1, "the second one waits for the first");
    volume.request(at(1_500), CONN, 3, block_write(7, 3));
    let (other, _) = poll(&mut volume, at(1_500));
    volume.shard_result(at(1_500), other[0].ticket, MemberId(1), TERM, Ok(ShardReply::Done));
    assert_eq!(answers(&mut volume, 2_000)[1..], [(CONN, 1, TIMED_OUT)]);
    // The first one may still be on its way. It must never come after the second.
    volume.role(ShardId(1), Some(MemberId(1)), TERM + 1);
    let (second, _) = poll(&mut volume, at(2_100));
    assert!(second[0].session > first[0].session);
    assert_eq!(second[0].op.range(), first[0].op.range());
    done(&mut volume, &first[0]);
    assert_eq!(poll(&mut volume, at(2_200)).1, [], "its answer comes too late");
    // The shard has answered others, so nothing fails at once.
    volume.request(at(2_300), CONN, 4, block_read(9));
    assert_eq!(poll(&mut volume, at(2_300)).0.len(), 1);
}

#[test]
fn flushes_fail_while_the_outcome_of_a_write_is_open() {
    let mut volume = timed(led());
    volume.request(at(0), CONN, 1, block_write(0, 1));
    volume.request(at(0), CONN, 2, block_write(7, 2));
    let (sent, _) = poll(&mut volume, at(0));
    volume.shard_result(at(1_000), sent[1].ticket, MemberId(1), TERM, Ok(ShardReply::Done));
    assert_eq!(answers(&mut volume, 2_000)[1..], [(CONN, 1, TIMED_OUT)]);
    assert_eq!(at_once(&mut volume, 2_100, BlockOp::Flush), [(CONN, 2_100, TIMED_OUT)]);
    volume.role(ShardId(1), Some(MemberId(1)), TERM + 1);
    poll(&mut volume, at(2_200));
    let flushed = Ok(BlockReply::Done);
    assert_eq!(at_once(&mut volume, 2_300, BlockOp::Flush), [(CONN, 2_300, flushed)]);
}

#[test]
fn a_timeout_may_come_while_requests_wait() {
    let mut volume = volume();
    volume.request(at(0), CONN, 1, block_read(0));
    assert_eq!(answers(&mut volume, 0), []);
    assert_eq!(answers(&mut volume, 60_000), []);
    let mut volume = timed(volume);
    assert_eq!(answers(&mut volume, 60_100), [(CONN, 1, TIMED_OUT)]);
    assert_eq!(at_once(&mut volume, 60_110, block_read(0)), [(CONN, 60_110, TIMED_OUT)]);
    // Without a timeout, nothing fails any more, although the shard is still silent.
    volume.update_view(&attached(&[OWN], 0));
    assert_eq!(at_once(&mut volume, 60_120, block_read(0)), []);
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    poll(&mut volume, at(60_200));
    volume.request(at(60_300), CONN, 2, block_read(0));
    assert_eq!(answers(&mut volume, 600_000), []);
}

/// An attachment that ends is not shown any more, and its shards may have no majority.
#[test]
fn an_attachment_keeps_its_timeout_while_it_ends() {
    let mut volume = timed(volume());
    volume.request(at(0), CONN, 1, block_read(0));
    volume.update_view(&attached(&[], 0));
    assert_eq!(answers(&mut volume, 2_000), [(CONN, 1, TIMED_OUT)]);
}

/// Nothing waits here any more, and clients may use another front end by now.
#[test]
fn another_front_ends_session_settles_what_timed_out() {
    let mut volume = timed(volume());
    volume.request(at(0), CONN, 1, block_write(0, 1));
    assert_eq!(answers(&mut volume, 2_000), [(CONN, 1, TIMED_OUT)]);
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    let (touch, _) = poll_once(&mut volume, at(3_000));
    let recorded = FrontEnd::new(PodId(2), 2).above(touch[0].session.counter);
    let stale = Err(BlockError::StaleSession { recorded });
    volume.shard_result(at(3_000), touch[0].ticket, MemberId(1), TERM, stale);
    let flushed = Ok(BlockReply::Done);
    assert_eq!(at_once(&mut volume, 3_100, BlockOp::Flush), [(CONN, 3_100, flushed)]);
    assert!(poll_once(&mut volume, at(3_200)).0.is_empty(), "it takes nothing from the other");
    // A request does.
    volume.request(at(3_300), CONN, 2, block_read(0));
    let (touch, _) = poll_once(&mut volume, at(3_300));
    assert!(matches!(touch[..], [ref sent] if matches!(sent.op, ShardOp::Touch { .. })));
    assert!(touch[0].session > recorded);
}

/// The leader takes the touch, and hangs.
#[test]
fn a_touch_is_given_up_in_time() {
    let mut volume = timed(volume());
    volume.request(at(0), CONN, 1, block_read(0));
    assert_eq!(answers(&mut volume, 0), []);
    assert_eq!(answers(&mut volume, 2_000), [(CONN, 1, TIMED_OUT)]);
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    assert_eq!(poll_once(&mut volume, at(3_000)).0.len(), 1);
    volume.tick(at(4_999));
    volume.role(ShardId(1), Some(MemberId(2)), TERM + 1);
    assert!(poll_once(&mut volume, at(4_999)).0.iter().all(|sent| sent.to == MemberId(1)));
    volume.tick(at(5_000));
    let (again, _) = poll_once(&mut volume, at(5_200));
    let touches = again.iter().filter(|sent| matches!(sent.op, ShardOp::Touch { .. }));
    assert_eq!(touches.map(|sent| sent.to).collect::<Vec<_>>(), [MemberId(2)]);
}

#[test]
fn nobody_is_asked_when_the_clients_are_gone() {
    let mut volume = timed(volume());
    volume.request(at(0), CONN, 1, block_write(0, 1));
    assert_eq!(answers(&mut volume, 2_000), [(CONN, 1, TIMED_OUT)]);
    volume.close_connection(CONN);
    volume.tick(at(3_000));
    assert!(poll_once(&mut volume, at(3_000)).0.is_empty());
    assert!(volume.is_unused() && !volume.needs_ticks() && volume.deadline().is_none());
    // The next one waits for as long as it may.
    volume.request(at(4_000), ConnId(9), 2, block_read(0));
    assert_eq!(answers(&mut volume, 5_900), []);
    assert_eq!(answers(&mut volume, 6_000), [(ConnId(9), 2, TIMED_OUT)]);
}

#[test]
fn a_client_that_is_fenced_meanwhile_hears_of_it() {
    let mut volume = timed(volume());
    volume.request(at(0), CONN, 1, block_write(0, 1));
    assert_eq!(answers(&mut volume, 2_000), [(CONN, 1, TIMED_OUT)]);
    volume.role(ShardId(1), Some(MemberId(1)), TERM);
    let (touch, _) = poll_once(&mut volume, at(3_000));
    let fenced = || Err(BlockError::Fenced);
    volume.shard_result(at(3_000), touch[0].ticket, MemberId(1), TERM, fenced());
    volume.request(at(3_100), CONN, 2, block_write(0, 1));
    let (touch, _) = poll_once(&mut volume, at(3_100));
    volume.shard_result(at(3_100), touch[0].ticket, MemberId(1), TERM, fenced());
    assert_eq!(poll_once(&mut volume, at(3_100)).1, [(CONN, 2, Err(BlockError::Fenced))]);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::TimedOutForgotten, a_write_that_timed_out_keeps_its_place_in_the_order);
}
