//! What a member with a full log takes in (rule `full-log-still-commits`). A full log has
//! room again only when the leader's next messages can say which entries are committed.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};

use super::pod_fixture::{Pod, view, volume};
use crate::io::buffer::Pool;
use crate::limits::{Budgets, ELECTION_TICKS, TICK, ZERO_EXTENTS_UNAPPLIED_MAX};
use crate::planted::{Mistake, assert_found};
use crate::replica::command::{EntryCommand, encode, encode_write};
use crate::types::{
    AttachmentId, BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockRange, MemberId, Origin, PodId,
    Session, ShardOp,
};
use crate::view::MemberState;

const FOLLOWER: MemberId = MemberId(11);
const LEADER: MemberId = MemberId(12);
/// Of a write that goes to the log whatever its size: no whole extent.
const BLOCKS: u32 = 15;
const TERM: u64 = 2;
/// The first that a new group elects a leader in.
const FIRST_TERM: u64 = 1;

/// A pod with a follower of a group of three; the test plays the leader.
fn follower() -> Pod {
    let mut pod = Pod::new(Budgets::default());
    pod.view(view(1, vec![volume(1, "v", &[1, 2, 3])]));
    pod.run_until("the replica is there", |pod| pod.state_of(FOLLOWER).is_some());
    pod
}

/// Entries of these indexes, after one of the same term, as the leader sends them.
fn append(indexes: std::ops::Range<u64>, entries_term: u64, commit: u64) -> Message {
    let pool = Pool::default();
    let entry = |index| Entry {
        data: pool.copy(&[7; BLOCKS as usize * BLOCK_BYTES]),
        context: context(index),
        ..Entry::default()
    };
    append_of(indexes, entries_term, commit, entry)
}

/// Like `append`, of trims of 256 extents.
fn append_trims(indexes: std::ops::Range<u64>, entries_term: u64) -> Message {
    let range = BlockRange { first: Block(0), count: 256 * BLOCKS_PER_EXTENT };
    let context = || encode(origin(), &EntryCommand::Zero { range, trim: true });
    let entry = |_| Entry { context: context(), ..Entry::default() };
    append_of(indexes, entries_term, 0, entry)
}

fn append_of(
    indexes: std::ops::Range<u64>,
    entries_term: u64,
    commit: u64,
    entry: impl Fn(u64) -> Entry,
) -> Message {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgAppend);
    (message.from, message.to, message.term) = (LEADER.0, FOLLOWER.0, TERM);
    message.index = indexes.start - 1;
    message.log_term = if message.index == 0 { 0 } else { entries_term };
    message.commit = commit;
    let entry = |index| Entry { index, term: entries_term, ..entry(index) };
    message.set_entries(indexes.map(entry).collect::<Vec<Entry>>().into());
    message
}

fn context(index: u64) -> Bytes {
    let range = BlockRange { first: Block(index as u32 % 100 * 16), count: BLOCKS };
    encode_write(origin(), range, &[0; BLOCKS as usize])
}

fn origin() -> Origin {
    let session = Session { counter: 1, pod: PodId(2) };
    Origin { attachment: AttachmentId::NONE, session }
}

/// Sends one entry after the other until one is refused; returns how many were taken.
fn fill(pod: &mut Pod, entries_term: u64) -> u64 {
    for index in 1.. {
        pod.raft(append(index..index + 1, entries_term, 0));
        pod.round();
        if !pod.has_entry(FOLLOWER, index, entries_term) {
            return index - 1;
        }
    }
    unreachable!("a log is not endless")
}

#[test]
fn entries_of_an_earlier_term_may_take_more_than_new_ones() {
    let (new, earlier) = (fill(&mut follower(), TERM), fill(&mut follower(), TERM - 1));
    assert!(new > 4, "{new}");
    assert!(earlier >= 2 * new - 1, "{earlier} of an earlier term, {new} of this one");
}

/// The answer to some entries was lost, so the leader sends them again, and more behind them.
#[test]
fn entries_that_are_here_take_no_room_again() {
    let mut pod = follower();
    let taken = fill(&mut pod, TERM);
    pod.raft(append(1..taken + 9, TERM, taken));
    pod.run_until("what is committed is applied", |pod| pod.applied(FOLLOWER) == taken);
}

/// The leader knows of all that is here, and sends only what finds no room.
#[test]
fn a_follower_whose_log_is_full_hears_of_commits() {
    let mut pod = follower();
    let taken = fill(&mut pod, TERM);
    pod.raft(append(taken + 1..taken + 9, TERM, taken));
    pod.run_until("what is committed is applied", |pod| pod.applied(FOLLOWER) == taken);
}

/// What waited for a leader comes before the new one has committed anything, and may do so.
#[test]
fn a_new_leader_takes_no_more_than_its_log_has_room_for() {
    let taken = fill(&mut follower(), TERM);
    let mut pod = follower();
    let answer = |kind: MessageType| {
        let mut message = Message::default();
        message.set_msg_type(kind);
        (message.from, message.to, message.term) = (LEADER.0, FOLLOWER.0, FIRST_TERM);
        message
    };
    let is = |state: MemberState| move |pod: &mut Pod| pod.state_of(FOLLOWER) == Some(state);
    pod.run(2 * ELECTION_TICKS as u32 * TICK);
    pod.raft(answer(MessageType::MsgRequestPreVoteResponse));
    pod.round();
    pod.raft(answer(MessageType::MsgRequestVoteResponse));
    pod.run_until("it is elected", |pod| pod.has_entry(FOLLOWER, 1, FIRST_TERM));
    pod.run(TICK);
    assert!(!is(MemberState::Leader)(&mut pod), "it does not serve before that is committed");
    pod.raft(Message { index: 1, ..answer(MessageType::MsgAppendResponse) });
    for number in 0..4 * taken as u32 {
        let range = BlockRange { first: Block(number % 100 * 16), count: BLOCKS };
        let data = Pool::default().copy(&[7; BLOCKS as usize * BLOCK_BYTES]);
        pod.request(FOLLOWER, ShardOp::Write { range, data, crcs: vec![0; BLOCKS as usize] });
    }
    pod.run_until("it serves", is(MemberState::Leader));
    pod.run(TICK);
    assert!(pod.has_entry(FOLLOWER, 2, FIRST_TERM), "it takes what there is room for");
    let more = 2 * taken + 2;
    assert!(!pod.has_entry(FOLLOWER, more, FIRST_TERM), "{more}, and a follower takes {taken}");
}

/// All of them may be applied at once (rule `overlay-is-bounded`).
#[test]
fn a_follower_takes_few_unapplied_trims_and_all_of_an_earlier_term() {
    const FEW: u64 = ZERO_EXTENTS_UNAPPLIED_MAX / 2 / 256;
    for (term, taken) in [(TERM, FEW), (TERM - 1, 3 * FEW)] {
        let mut pod = follower();
        for index in 1..=3 * FEW {
            pod.raft(append_trims(index..index + 1, term));
            pod.round();
        }
        assert!(pod.has_entry(FOLLOWER, taken, term));
        assert!(!pod.has_entry(FOLLOWER, taken + 1, term), "more than {taken} of term {term}");
    }
}

#[test]
fn broken_rules_are_noticed() {
    assert_found(
        Mistake::DiscardUncharged,
        a_follower_takes_few_unapplied_trims_and_all_of_an_earlier_term,
    );
    assert_found(Mistake::NewLeaderTakesAll, a_new_leader_takes_no_more_than_its_log_has_room_for);
    assert_found(Mistake::EntriesCountedTwice, entries_that_are_here_take_no_room_again);
    assert_found(Mistake::FullLogIsDeaf, a_follower_whose_log_is_full_hears_of_commits);
    assert_found(
        Mistake::EarlierTermsRefused,
        entries_of_an_earlier_term_may_take_more_than_new_ones,
    );
}
