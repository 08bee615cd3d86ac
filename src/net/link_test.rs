//! Two links joined by a pipe.

use proptest::collection::vec;
use proptest::prelude::*;

use bytes::BytesMut;

use super::*;
use crate::io::buffer::{Pool, is_aligned};
use crate::level::{Level, Levels};
use crate::limits::SEND_BYTES_MAX;
use crate::net::message::CallId;
use crate::planted::{Mistake, assert_found};
use crate::testing::peer_fixture::{message, pour};
use crate::types::{BLOCK_BYTES, BlockRange, MemberId, ShardId, ShardOp, ShardReply};

fn identity(pod: u64) -> Identity {
    Identity {
        cluster: Uuid([9; 16]),
        pod: PodId(pod),
        disk: Uuid([pod as u8; 16]),
        lane: 0,
        incarnation: 10,
    }
}

/// One end of the pipe, with its received events.
struct End {
    link: Link,
    reader: StreamReader,
    seen: Incarnations,
    events: Vec<LinkEvent>,
}

impl End {
    fn new(link: Link) -> End {
        End {
            link,
            reader: StreamReader::new(Pool::default()),
            seen: Incarnations::default(),
            events: Vec::new(),
        }
    }

    fn dial(local: Identity, target: Identity) -> End {
        let target = Target { pod: target.pod, disk: target.disk, lane: target.lane };
        End::new(Link::dial(local, Levels::OWN, target, Purpose::Data, 1234))
    }

    fn accept(local: Identity) -> End {
        End::new(Link::accept(vec![local], Levels::OWN, 5678))
    }

    fn receive(&mut self, bytes: &[u8], step: usize) -> Result<(), LinkError> {
        pour(&mut self.reader, bytes, step, |reader| {
            self.link.feed(reader, &mut self.seen, &mut self.events)
        })
    }

    /// Sends all queued bytes, in as many sends as needed.
    fn drain(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let piece = self.link.take_output().concat();
            if piece.is_empty() {
                assert_eq!(self.link.queue_bytes(), 0);
                return all;
            }
            all.extend(piece);
        }
    }

    fn messages(&mut self) -> Vec<PeerMessage> {
        self.events
            .drain(..)
            .map(|event| match event {
                LinkEvent::Message(message) => message,
                LinkEvent::Up(_) => panic!("up again"),
            })
            .collect()
    }
}

fn join(dialer: &mut End, acceptor: &mut End, step: usize) -> Result<(), LinkError> {
    let hello = dialer.drain();
    let accepted = acceptor.receive(&hello, step);
    let answer = acceptor.drain();
    dialer.receive(&answer, step).and(accepted)
}

fn joined() -> (End, End) {
    let (mut dialer, mut acceptor) =
        (End::dial(identity(1), identity(2)), End::accept(identity(2)));
    join(&mut dialer, &mut acceptor, 1 << 20).unwrap();
    let [LinkEvent::Up(here)] = dialer.events[..] else {
        panic!("not up");
    };
    let [LinkEvent::Up(there)] = acceptor.events[..] else {
        panic!("not up");
    };
    assert_eq!((here.local, here.peer), (identity(1), identity(2)));
    assert_eq!((there.local, there.peer), (identity(2), identity(1)));
    dialer.events.clear();
    acceptor.events.clear();
    (dialer, acceptor)
}

fn light(to: u64, header: &'static [u8]) -> PeerMessage {
    PeerMessage::Raft { to: MemberId(to), header: Bytes::from_static(header), payloads: Vec::new() }
}

fn heavy(bytes: usize) -> PeerMessage {
    PeerMessage::Raft {
        to: MemberId(1),
        header: Bytes::from_static(b"append"),
        payloads: vec![Pool::default().copy(&vec![7; bytes])],
    }
}

fn read_request() -> PeerMessage {
    PeerMessage::Request {
        call: CallId(1),
        shard: ShardId(1),
        to: MemberId(1),
        term: 1,
        origin: Default::default(),
        op: ShardOp::Read { range: BlockRange { first: crate::types::Block(0), count: 1 } },
    }
}

/// The received messages for the sent ones: light Raft messages arrive in batches.
fn flatten(messages: Vec<PeerMessage>) -> Vec<PeerMessage> {
    messages
        .into_iter()
        .flat_map(|message| match message {
            PeerMessage::RaftBatch { messages } => messages
                .into_iter()
                .map(|(to, header)| PeerMessage::Raft { to, header, payloads: Vec::new() })
                .collect(),
            other => vec![other],
        })
        .collect()
}

/// Those that may overtake others, and the others; both keep their order.
fn in_lanes(messages: Vec<PeerMessage>) -> (Vec<PeerMessage>, Vec<PeerMessage>) {
    let is_first = |message: &PeerMessage| match message {
        PeerMessage::Rest { .. }
        | PeerMessage::Awake { .. }
        | PeerMessage::Beat
        | PeerMessage::Space { .. } => true,
        PeerMessage::Response { result: Ok(ShardReply::Data { segments, .. }), .. } => {
            segments.iter().all(|segment| matches!(segment, crate::types::Segment::Zero(_)))
        }
        PeerMessage::Response { .. } => true,
        _ => false,
    };
    flatten(messages).into_iter().partition(is_first)
}

/// Heartbeats go first (rule `heartbeats-go-first`): behind many megabytes of entries, one waits
/// for a send and the rest of a frame.
fn a_heartbeat_overtakes_data() {
    let (mut here, mut there) = joined();
    const FRAMES: usize = 24;
    (0..FRAMES).for_each(|_| here.link.send(heavy(1 << 20)).unwrap());
    let before: Vec<Bytes> = here.link.take_output();
    here.link.send_first(light(7, b"heartbeat")).unwrap();
    here.link.send(light(8, b"empty append")).unwrap();
    let mut waited_bytes: usize = before.iter().map(Bytes::len).sum();
    there.receive(&before.concat(), 1 << 20).unwrap();
    let (mut data, mut heard_after) = (0, None);
    loop {
        let output = here.link.take_output().concat();
        assert!(output.len() <= SEND_BYTES_MAX + 4096, "a send is short: {}", output.len());
        if output.is_empty() {
            break;
        }
        waited_bytes += output.len();
        there.receive(&output, 1 << 20).unwrap();
        for message in flatten(there.messages()) {
            match message {
                PeerMessage::Raft { to: MemberId(7), .. } => heard_after = Some(waited_bytes),
                PeerMessage::Raft { to: MemberId(8), .. } => {
                    assert_eq!(data, FRAMES, "appends stay in order");
                }
                _ => data += 1,
            }
        }
    }
    assert_eq!(data, FRAMES, "the frames around it are whole");
    let bound = (1 << 20) + 2 * SEND_BYTES_MAX;
    assert!(heard_after.is_some_and(|bytes| bytes <= bound), "{heard_after:?} bytes before it");
}

#[test]
fn a_heartbeat_waits_for_one_send_and_the_rest_of_a_frame() {
    a_heartbeat_overtakes_data();
    assert_found(Mistake::HeartbeatBehindData, a_heartbeat_overtakes_data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn messages_arrive_in_order_whatever_the_pieces(
        sent in vec(message(), 1..12), step in 1usize..200_000, answers in vec(message(), 0..4),
    ) {
        let (mut here, mut there) = joined();
        sent.iter().for_each(|message| here.link.send(message.clone()).unwrap());
        answers.iter().for_each(|message| there.link.send(message.clone()).unwrap());
        there.receive(&here.drain(), step).unwrap();
        here.receive(&there.drain(), step).unwrap();
        prop_assert_eq!(in_lanes(there.messages()), in_lanes(sent));
        prop_assert_eq!(in_lanes(here.messages()), in_lanes(answers));
    }

    #[test]
    fn arbitrary_bytes_never_panic(input in vec(any::<u8>(), 0..400)) {
        crate::testing::fuzz::peer::fuzz_one(&input);
    }
}

/// The acceptor may send as soon as it has sent its welcome.
#[test]
fn nothing_overtakes_a_greeting() {
    let (mut dialer, mut acceptor) =
        (End::dial(identity(1), identity(2)), End::accept(identity(2)));
    acceptor.receive(&dialer.drain(), 100).unwrap();
    let space = PeerMessage::Space { free_bytes: 7 };
    acceptor.link.send(space.clone()).unwrap();
    acceptor.link.send_first(light(1, b"heartbeat")).unwrap();
    dialer.receive(&acceptor.drain(), 100).unwrap();
    assert!(matches!(dialer.events[0], LinkEvent::Up(_)));
    assert!(dialer.events[1..].contains(&LinkEvent::Message(space)));
}

#[test]
fn light_messages_of_a_round_leave_as_one_frame_behind_what_was_sent_before() {
    let (mut here, mut there) = joined();
    here.link.send(heavy(BLOCK_BYTES)).unwrap();
    here.link.send(light(1, b"heartbeat")).unwrap();
    here.link.send(light(2, b"heartbeat")).unwrap();
    there.receive(&here.drain(), 1 << 20).unwrap();
    let received = there.messages();
    let PeerMessage::Raft { payloads, .. } = &received[0] else {
        panic!("the entries come first");
    };
    assert!(is_aligned(&payloads[0]));
    let batch = PeerMessage::RaftBatch {
        messages: vec![
            (MemberId(1), Bytes::from_static(b"heartbeat")),
            (MemberId(2), Bytes::from_static(b"heartbeat")),
        ],
    };
    assert_eq!(received[1..], [batch]);
    assert_eq!(here.link.counters().frames_sent, 2);
}

#[test]
fn a_full_queue_drops_entries_refuses_requests_and_still_takes_heartbeats() {
    for queue_bytes_max in [LINK_QUEUE_BYTES_MAX, 16 << 20] {
        fill_up(queue_bytes_max);
    }
}

fn fill_up(queue_bytes_max: usize) {
    let (mut here, _there) = joined();
    here.link = here.link.with_queue_bytes_max(queue_bytes_max);
    while here.link.queue_bytes() < requests_up_to_bytes(queue_bytes_max) {
        here.link.send(heavy(1 << 20)).unwrap();
    }
    assert_eq!(here.link.send(read_request()), Err(SendError::Busy));
    while here.link.send(heavy(1 << 20)).is_ok() {}
    let entries_up_to = entries_up_to_bytes(queue_bytes_max);
    assert!(here.link.queue_bytes() <= entries_up_to);
    assert!(here.link.queue_bytes() + (2 << 20) > entries_up_to, "all of it was used");
    assert_eq!(here.link.send(heavy(1 << 20)), Err(SendError::Dropped));
    assert_eq!(here.link.send(light(1, b"heartbeat")), Ok(()));
    assert_eq!(
        here.link.counters(),
        LinkCounters { raft_dropped: 2, requests_refused: 1, ..here.link.counters() }
    );
    here.drain();
    assert_eq!(here.link.send(read_request()), Ok(()));
}

#[test]
fn one_send_is_short_and_the_queue_shrinks_by_it() {
    let (mut here, _there) = joined();
    (0..20).for_each(|_| here.link.send(heavy(1 << 20)).unwrap());
    let before = here.link.queue_bytes();
    let taken: usize = here.link.take_output().iter().map(Bytes::len).sum();
    assert!(taken <= SEND_BYTES_MAX);
    assert_eq!(here.link.queue_bytes(), before - taken);
}

#[test]
fn nothing_is_taken_before_the_link_is_up() {
    let mut dialer = End::dial(identity(1), identity(2));
    assert_eq!(dialer.link.send(light(1, b"x")), Err(SendError::NotUp));
}

/// The acceptor's answer to this dialer, and the dialer's verdict on it.
fn refusal(mut dialer: End, mut acceptor: End) -> RefusalCode {
    let hello = dialer.drain();
    let ours = match acceptor.receive(&hello, 7) {
        Err(LinkError::RefusedByUs { refusal }) => refusal,
        other => panic!("accepted: {other:?}"),
    };
    assert!(acceptor.events.is_empty());
    match dialer.receive(&acceptor.drain(), 7) {
        Err(LinkError::RefusedByPeer { refusal }) => assert_eq!(refusal, ours),
        other => panic!("not told: {other:?}"),
    }
    assert_eq!(dialer.receive(b"more", 7), Err(LinkError::Ended));
    ours.code
}

#[test]
fn other_clusters_copies_and_leftovers_are_refused_and_told_why() {
    let dial = |local| End::dial(local, identity(2));
    let foreign = Identity { cluster: Uuid([8; 16]), ..identity(1) };
    assert_eq!(refusal(dial(foreign), End::accept(identity(2))), RefusalCode::OtherCluster);
    let elsewhere = End::dial(identity(1), identity(3));
    assert_eq!(refusal(elsewhere, End::accept(identity(2))), RefusalCode::NoSuchLane);
    let mut acceptor = End::accept(identity(2));
    acceptor.seen.admit(&identity(1)).unwrap();
    let leftover = Identity { incarnation: 9, ..identity(1) };
    assert_eq!(refusal(dial(leftover), acceptor), RefusalCode::StaleIncarnation);
    let mut acceptor = End::accept(identity(2));
    acceptor.seen.admit(&identity(1)).unwrap();
    let copy = Identity { pod: PodId(4), incarnation: 11, ..identity(1) };
    assert_eq!(refusal(dial(copy), acceptor), RefusalCode::DuplicateDisk);
    let mut acceptor = End::accept(identity(2));
    acceptor.seen.place(identity(2).disk, PodId(2));
    let copy_of_ours = Identity { disk: identity(2).disk, ..identity(1) };
    assert_eq!(refusal(dial(copy_of_ours), acceptor), RefusalCode::DuplicateDisk);
}

#[test]
fn a_program_that_is_older_than_the_cluster_is_refused_by_both_sides() {
    let of = |cluster, newest| Levels { cluster: Level(cluster), newest: Level(newest) };
    for (dials, accepts, is_refused) in [
        (of(1, 1), of(1, 2), false),
        (of(1, 1), of(2, 2), true),
        (of(2, 2), of(1, 1), true),
        (of(2, 2), of(0, 2), false),
    ] {
        let theirs = identity(2);
        let target = Target { pod: theirs.pod, disk: theirs.disk, lane: theirs.lane };
        let mut dialer = End::new(Link::dial(identity(1), dials, target, Purpose::Data, 1234));
        let mut acceptor = End::new(Link::accept(vec![theirs], accepts, 5678));
        let accepted = acceptor.receive(&dialer.drain(), 100);
        let answered = dialer.receive(&acceptor.drain(), 100);
        let refused = |result: Result<(), LinkError>| match result {
            Ok(()) => None,
            Err(LinkError::RefusedByUs { refusal } | LinkError::RefusedByPeer { refusal }) => {
                Some(refusal.code)
            }
            Err(other) => panic!("{other}"),
        };
        let expected = is_refused.then_some(RefusalCode::FeatureLevel);
        assert_eq!((refused(accepted), refused(answered)), (expected, expected));
    }
}

#[test]
fn versions_that_do_not_meet_are_refused() {
    let mut acceptor = End::accept(identity(2));
    let hello = format(&Greeting::Hello(Hello {
        version_min: PROTOCOL_MAX + 1,
        version_max: PROTOCOL_MAX + 3,
        from: identity(1),
        to_disk: identity(2).disk,
        to_lane: 0,
        purpose: Purpose::Data,
        nonce: 1,
        levels: Levels::OWN,
    }));
    let result = acceptor.receive(&hello, 100);
    let Err(LinkError::RefusedByUs { refusal }) = result else {
        panic!("accepted: {result:?}");
    };
    assert_eq!(refusal.code, RefusalCode::NoCommonVersion);
}

#[test]
fn a_dialer_refuses_the_wrong_answerer() {
    for (answerer, code) in [
        (identity(3), RefusalCode::NoSuchLane),
        (Identity { cluster: Uuid([8; 16]), ..identity(2) }, RefusalCode::OtherCluster),
        (Identity { incarnation: 9, ..identity(2) }, RefusalCode::StaleIncarnation),
    ] {
        let mut dialer = End::dial(identity(1), identity(2));
        dialer.seen.admit(&identity(2)).unwrap();
        let welcome = format(&Greeting::Welcome(Welcome {
            version: PROTOCOL_MAX,
            from: answerer,
            nonce: 1,
            levels: Levels::OWN,
        }));
        match dialer.receive(&welcome, 100) {
            Err(LinkError::RefusedByUs { refusal }) => assert_eq!(refusal.code, code),
            other => panic!("accepted: {other:?}"),
        }
    }
}

#[test]
fn a_frame_of_another_connection_or_direction_ends_the_link() {
    let (mut here, mut there) = joined();
    here.link.send(read_request()).unwrap();
    let bytes = here.drain();
    // Reflected to its sender.
    assert!(matches!(here.receive(&bytes, 100), Err(LinkError::Frame { .. })));
    // The same disks and pods, but another connection.
    let mut other = End::new(Link::accept(vec![identity(2)], Levels::OWN, 1));
    join(&mut End::dial(identity(1), identity(2)), &mut other, 100).unwrap();
    assert!(matches!(other.receive(&bytes, 100), Err(LinkError::Frame { .. })));
    there.receive(&bytes, 100).unwrap();
    assert_eq!(there.messages(), [read_request()]);
    assert_eq!(here.link.send(read_request()), Err(SendError::NotUp));
}

#[test]
fn a_message_that_cannot_be_understood_ends_the_link() {
    let (mut here, mut there) = joined();
    let LinkState::Up { send_seed, .. } = here.link.state else {
        panic!("up");
    };
    let nonsense = Encoded { kind: 200, meta: BytesMut::new(), payload: Vec::new() };
    here.link.output.push_frame(send_seed, Lane::Data, nonsense);
    let error = there.receive(&here.drain(), 100);
    assert_eq!(
        error,
        Err(LinkError::Message { source: crate::fields::value("kind of message", 200u8) })
    );
}
