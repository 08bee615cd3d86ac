//! Rounds that change who may use a volume.

use super::*;
use crate::planted::{Mistake, assert_found};
use crate::types::{AccessMode, AccessSet, Generation, Grant, Uuid};
use crate::view::ShardView;
use crate::volume::access::{AccessDone, RoundId};

const TERM: u64 = 3;
const SHARD_BYTES: u64 = 1 << 20;

fn view(shards: u64) -> VolumeView {
    let shard = |number: u64| ShardView {
        shard: ShardId(number),
        members: vec![MemberView {
            member: MemberId(number),
            disk: Uuid::default(),
            pod: PodId(number),
        }],
        birth: AccessSet::default(),
    };
    VolumeView {
        volume: VolumeId(5),
        name: "v".to_owned(),
        size_bytes: shards * SHARD_BYTES,
        stripe_width: 1,
        stripe_bytes: SHARD_BYTES,
        shards: (1..=shards).map(shard).collect(),
        withheld: false,
        deleting: false,
        open: true,
        io_timeout_ms: 0,
        attachments: Vec::new(),
    }
}

fn set(generation: u64) -> AccessSet {
    let grant = Grant { attachment: AttachmentId(1), mode: AccessMode::ReadWrite };
    AccessSet { generation: Generation(generation), open: false, grants: vec![grant] }
}

fn led(shards: u64) -> Volume {
    let mut volume = Volume::new(&view(shards), AttachmentId::NONE, FrontEnd::new(PodId(9), 1));
    (1..=shards).for_each(|number| lead(&mut volume, number));
    volume
}

fn lead(volume: &mut Volume, shard: u64) {
    volume.role(ShardId(shard), Some(MemberId(shard)), TERM);
}

type Ended = (RoundId, Result<AccessDone, BlockError>);

/// What is sent, by shard, and the rounds that have ended.
fn poll(volume: &mut Volume) -> (Vec<(u64, Ticket, ShardOp)>, Vec<Ended>) {
    let (mut out, mut sent, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    volume.poll(Mono(1), &mut out);
    for output in out {
        match output {
            VolumeOutput::Send { ticket, shard, op, .. } => sent.push((shard.0, ticket, op)),
            VolumeOutput::AccessSet { round, result } => ended.push((round, result)),
            other => panic!("nobody has asked for {other:?}"),
        }
    }
    (sent, ended)
}

fn answer(volume: &mut Volume, ticket: Ticket, result: Result<u64, BlockError>) {
    let access = |generation| ShardReply::Access { generation: Generation(generation) };
    volume.shard_result(Mono(1), ticket, MemberId(1), TERM, result.map(access));
}

#[test]
fn a_round_ends_when_every_shard_has_answered() {
    let mut volume = led(3);
    let round = volume.set_access(set(7));
    let (sent, ended) = poll(&mut volume);
    assert!(sent.iter().all(|(_, _, op)| *op == ShardOp::SetAccess(set(7))) && ended.is_empty());
    let tickets: Vec<Ticket> = sent.iter().map(|(_, ticket, _)| *ticket).collect();
    assert_eq!(tickets.len(), 3);
    answer(&mut volume, tickets[0], Ok(7));
    answer(&mut volume, tickets[1], Err(BlockError::Unknown));
    lead(&mut volume, 2);
    volume.role(ShardId(2), Some(MemberId(2)), TERM + 1);
    let (again, ended) = poll(&mut volume);
    assert_eq!((again.len(), again[0].0, ended.len()), (1, 2, 0), "it is repeated there alone");
    // The volume grows before the round has ended.
    volume.update_view(&view(4));
    lead(&mut volume, 4);
    answer(&mut volume, tickets[2], Ok(8));
    answer(&mut volume, again[0].1, Ok(7));
    let (new, ended) = poll(&mut volume);
    assert_eq!((new.len(), new[0].0, ended.len()), (1, 4, 0));
    answer(&mut volume, new[0].1, Ok(7));
    let done = AccessDone { generation: Generation(7), highest: Generation(8), shards: 4 };
    assert_eq!(poll(&mut volume).1, [(round, Ok(done))]);
    assert!(volume.is_unused());
}

#[test]
fn a_shard_that_refuses_is_seen_in_the_answer() {
    let mut volume = led(2);
    let round = volume.set_access(set(7));
    for (shard, ticket, _) in poll(&mut volume).0 {
        answer(&mut volume, ticket, Ok(if shard == 1 { 6 } else { 7 }));
    }
    let done = AccessDone { generation: Generation(6), highest: Generation(7), shards: 2 };
    assert_eq!(poll(&mut volume).1, [(round, Ok(done))]);
}

/// Who asks for a set asks several pods, again and again.
#[test]
fn a_round_takes_the_place_of_older_ones() {
    let mut volume = led(2);
    let busy = || Err(BlockError::Busy);
    let (first, newer) = (volume.set_access(set(7)), volume.set_access(set(9)));
    assert_eq!(poll(&mut volume).1, [(first, busy())]);
    let older = volume.set_access(set(8));
    let (sent, _) = poll(&mut volume);
    assert_eq!(sent.len(), 2, "an older one ends none that is newer");
    let again = volume.set_access(set(9));
    let (sent, ended) = poll(&mut volume);
    assert_eq!(ended, [(newer, busy()), (older, busy())]);
    for (_, ticket, _) in sent {
        answer(&mut volume, ticket, Ok(9));
    }
    let done = AccessDone { generation: Generation(9), highest: Generation(9), shards: 2 };
    assert_eq!(poll(&mut volume).1, [(again, Ok(done))]);
}

#[test]
fn what_cannot_be_done_is_answered_at_once() {
    let mut volume = led(2);
    let wrong = volume.set_access(AccessSet { generation: Generation(0), ..set(0) });
    assert_eq!(poll(&mut volume).1, [(wrong, Err(BlockError::Invalid))]);
    let waits = volume.set_access(set(7));
    volume.remove();
    let late = volume.set_access(set(8));
    let gone = || Err(BlockError::NoSuchVolume);
    assert_eq!(poll(&mut volume).1, [(waits, gone()), (late, gone())]);
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(Mistake::GrantByMajority, a_round_ends_when_every_shard_has_answered);
}
