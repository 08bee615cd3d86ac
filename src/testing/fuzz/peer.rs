//! One run of a fuzzer over everything here that reads bytes from outside.

use bytes::{Bytes, BytesMut};

use crate::io::buffer::Pool;
use crate::io::stream::StreamReader;
use crate::level::{Level, Levels};
use crate::net::codec::{decode, encode};
use crate::net::frame::write_head;
use crate::net::handshake::{Greeting, Hello, Identity, Purpose, Welcome, format, frame_seeds};
use crate::net::incarnations::Incarnations;
use crate::net::link::{Link, LinkEvent, Target};
use crate::net::message::{CallId, PeerMessage};
use crate::testing::fuzz::Seeds;
use crate::testing::peer_fixture::{cut, pour};
use crate::types::{
    BLOCK_BYTES, Block, BlockError, BlockRange, MemberId, Origin, PodId, Segment, Session, ShardId,
    ShardOp, ShardReply, Uuid,
};

const LEVELS: Levels = Levels { cluster: Level(1), newest: Level(1) };
const DIALER_NONCE: u64 = 1;
const ACCEPTOR_NONCE: u64 = 2;

/// Reads `input` as a peer's bytes. Panics when something is wrong with the reader.
///
/// The first byte chooses what the rest is: 0 what an acceptor receives, 1 what a dialer receives,
/// 2 what follows a good handshake, 3 one message behind a good head and checksum (kind u8, length
/// of the meta part u16, meta, payload). The second byte sets the size of the received pieces.
pub fn fuzz_one(input: &[u8]) {
    let [mode, step, rest @ ..] = input else {
        return;
    };
    let step = 1 << (step % 18);
    match mode % 4 {
        0 => feed(acceptor(), &[], rest, step),
        1 => feed(dialer(), &[], rest, step),
        2 => feed(acceptor(), &hello(), rest, step),
        _ => fuzz_message(rest, step),
    }
}

fn fuzz_message(input: &[u8], step: usize) {
    let [kind, low, high, rest @ ..] = input else {
        return;
    };
    let meta_bytes = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (meta, payload) = rest.split_at(meta_bytes);
    let frame = cut(*kind, Bytes::copy_from_slice(meta), payload);
    if let Ok(message) = decode(frame) {
        let again = encode(message).expect("what was understood can be sent");
        assert_eq!((again.kind, &again.meta[..]), (*kind, meta));
        assert_eq!(again.payload.concat(), payload);
    }
    let (seed, _) = frame_seeds(DIALER_NONCE, ACCEPTOR_NONCE);
    let mut bytes = BytesMut::new();
    write_head(&mut bytes, seed, *kind, meta, &[Bytes::copy_from_slice(payload)]);
    bytes.extend_from_slice(payload);
    feed(acceptor(), &hello(), &bytes, step);
}

fn feed(mut link: Link, before: &[u8], input: &[u8], step: usize) {
    let mut reader = StreamReader::new(Pool::default());
    let mut seen = Incarnations::default();
    let (mut events, mut ended) = (Vec::new(), false);
    let result = pour(&mut reader, &[before, input].concat(), step, |reader| {
        let result = link.feed(reader, &mut seen, &mut events);
        ended |= result.is_err();
        result
    });
    assert_eq!(result.is_err(), ended);
    assert_eq!(link.established().is_some(), !ended && !events.is_empty());
    let ups = events.iter().filter(|event| matches!(event, LinkEvent::Up(_)));
    assert!(ups.count() <= 1, "up twice");
}

fn identity(pod: u64) -> Identity {
    Identity {
        cluster: Uuid(*b"cluster of tests"),
        pod: PodId(pod),
        disk: Uuid([pod as u8; 16]),
        lane: 0,
        incarnation: 7,
    }
}

fn acceptor() -> Link {
    Link::accept(vec![identity(2)], LEVELS, ACCEPTOR_NONCE)
}

fn dialer() -> Link {
    let target = Target { pod: PodId(2), disk: identity(2).disk, lane: 0 };
    Link::dial(identity(1), LEVELS, target, Purpose::Data, DIALER_NONCE)
}

fn hello() -> Bytes {
    format(&Greeting::Hello(Hello {
        version_min: 1,
        version_max: 1,
        from: identity(1),
        to_disk: identity(2).disk,
        to_lane: 0,
        purpose: Purpose::Data,
        nonce: DIALER_NONCE,
        levels: LEVELS,
    }))
}

/// One good input of every kind by name, for a fuzzer to start from. They also pin the format:
/// `tests/corpus/peer` holds these very bytes.
pub fn fuzz_seeds() -> Seeds {
    let welcome = format(&Greeting::Welcome(Welcome {
        version: 1,
        from: identity(2),
        nonce: ACCEPTOR_NONCE,
        levels: LEVELS,
    }));
    let mut seeds = vec![
        ("hello", [&[0, 17], &hello()[..]].concat()),
        ("welcome", [&[1, 3], &welcome[..]].concat()),
    ];
    for (name, message) in seed_messages() {
        let encoded = encode(message).expect("well formed");
        let meta_bytes = (encoded.meta.len() as u16).to_le_bytes();
        let head = [3, 17, encoded.kind, meta_bytes[0], meta_bytes[1]];
        let payload = encoded.payload.concat();
        seeds.push((name, [&head[..], &encoded.meta, &payload].concat()));
    }
    seeds
}

fn seed_messages() -> Vec<(&'static str, PeerMessage)> {
    let block = Bytes::from(vec![0xa5; BLOCK_BYTES]);
    let range = BlockRange { first: Block(3), count: 1 };
    let write = ShardOp::Write { range, data: block.clone(), crcs: vec![0x1234_5678] };
    let read = ShardReply::Data {
        segments: vec![Segment::Zero(BLOCK_BYTES), Segment::Data(block.clone())],
        crcs: vec![0, 7],
    };
    let raft = PeerMessage::Raft {
        to: MemberId(1),
        header: Bytes::from_static(b"append"),
        payloads: vec![block, Bytes::from_static(b"a command")],
    };
    let batch =
        PeerMessage::RaftBatch { messages: vec![(MemberId(1), Bytes::from_static(b"heartbeat"))] };
    let request = PeerMessage::Request {
        call: CallId(1),
        shard: ShardId(2),
        to: MemberId(3),
        term: 4,
        origin: Origin::default(),
        op: write,
    };
    let response = |result| PeerMessage::Response { call: CallId(1), term: 4, result };
    let hint = Some(MemberId(2));
    let recorded = Session { counter: 6 << 24 | 1, pod: PodId(2) };
    vec![
        ("raft", raft),
        ("raft-batch", batch),
        ("request-write", request),
        ("response-data", response(Ok(read))),
        ("rest", PeerMessage::Rest { to: MemberId(1), from: MemberId(2), term: 3, index: 4 }),
        ("awake", PeerMessage::Awake { to: MemberId(1), from: MemberId(2) }),
        ("beat", PeerMessage::Beat),
        ("response-stale", response(Err(BlockError::StaleSession { recorded }))),
        ("response-error", response(Err(BlockError::NotLeader { hint, term: 5 }))),
    ]
}
