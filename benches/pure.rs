//! Times the pure parts of a write and of a read, one by one and without any I/O:
//! `make bench-pure`. The time of a checksum over 4 KiB comes first, as the line to compare with.
//! `benches/compare.py` measures whole volumes instead.

use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

use holdfast::control::placement::{Candidate, Candidates, Wish, place};
use holdfast::front::nbd::wire::{self, RequestHeader, command};
use holdfast::front::nbd::{Export, Exports, Opened, Session, SessionOutput};
use holdfast::io::buffer::Pool;
use holdfast::io::stream::StreamReader;
use holdfast::log::{LogEntry, Slot};
use holdfast::net::codec::{decode, encode, pieces};
use holdfast::net::frame::{FrameReader, write_head};
use holdfast::net::message::PeerMessage;
use holdfast::store::index::{decode_extent, encode_extent};
use holdfast::store::messages::ExtentRecord;
use holdfast::store::wal::{GroupId, Item, Wal, WalConfig, WalPosition};
use holdfast::store::{Content, Dirty, Overlay, OverlayBlock};
use holdfast::types::{
    AttachmentId, BLOCK_BYTES, Block, BlockOp, BlockReply, MemberId, PodId, Segment, Uuid,
    VolumeId, block_crc, mix64,
};

/// Bytes that describe a write of one block inside its entry.
const CONTEXT_BYTES: usize = 64;
const FRAME_SEED: u32 = 7;

fn block() -> Vec<u8> {
    (0..BLOCK_BYTES).map(|at| mix64(at as u64) as u8).collect()
}

fn crc(criterion: &mut Criterion) {
    let data = block();
    criterion.bench_function("crc_4k", |bencher| {
        bencher.iter(|| block_crc(VolumeId(1), black_box(2), black_box(&data)));
    });
}

/// Encodes the header pages and checksums the payloads; setting up the log is not measured.
fn wal(criterion: &mut Criterion) {
    let pool = Pool::default();
    for entries in [1, 64] {
        criterion.bench_function(&format!("wal_batch/{entries}"), |bencher| {
            let next_batch = |mut wal: Wal| {
                let batch = wal.next_batch(&pool).expect("an empty ring has room");
                (wal, batch)
            };
            bencher.iter_batched(|| wal_with(&pool, entries), next_batch, BatchSize::SmallInput);
        });
    }
}

/// A log in which entries of 4 KiB wait for their batch.
fn wal_with(pool: &Pool, entries: u64) -> Wal {
    let config = WalConfig {
        ring_bytes: 1 << 30,
        disk: Uuid([1; 16]),
        seed: 42,
        incarnation: 1,
        reserve_bytes: 1 << 20,
    };
    let entry = |index| LogEntry {
        index,
        term: 1,
        context: Bytes::from_static(&[3; CONTEXT_BYTES]),
        payload: pool.copy(&block()),
        ..LogEntry::default()
    };
    let item = |index| Item::Entry { member: MemberId(1), entry: entry(index) };
    let mut wal = Wal::new(config, WalPosition::fresh());
    wal.push(GroupId(1), (1..=entries).map(item).collect());
    wal
}

/// Random blocks of an overlay that holds 64 MiB.
fn overlay(criterion: &mut Criterion) {
    const BLOCKS: u64 = 16 << 10;
    let dirty =
        |index| OverlayBlock { index, crc: 0, content: Content::Log { position: 0 }, cached: None };
    let random = |number| Block((mix64(number) % BLOCKS) as u32);
    let mut overlay = Overlay::default();
    let mut index = BLOCKS;
    (1..=BLOCKS).for_each(|at| overlay.insert(Block(at as u32 - 1), dirty(at), at));
    criterion.bench_function("overlay_insert", |bencher| {
        bencher.iter(|| {
            index += 1;
            overlay.insert(random(index), dirty(index), index);
        });
    });
    criterion.bench_function("overlay_lookup", |bencher| {
        bencher.iter(|| {
            index += 1;
            let at = random(index);
            let extent = overlay.get(at.extent()).expect("all blocks are in it");
            match extent.get(at.in_extent()) {
                Some(Dirty::Written(block)) => Some(block.index),
                Some(Dirty::Zero) | None => None,
            }
        });
    });
}

fn index(criterion: &mut Criterion) {
    let record = ExtentRecord {
        slot: Slot(7),
        present: 0xffff,
        zero: 0,
        last_changed: 99,
        birth: VolumeId(3),
        crcs: std::array::from_fn(|at| at as u32),
    };
    let bytes = encode_extent(&record);
    criterion.bench_function("index_record_encode", |bencher| {
        bencher.iter(|| encode_extent(black_box(&record)));
    });
    criterion.bench_function("index_record_decode", |bencher| {
        bencher.iter(|| decode_extent(black_box(&bytes)).expect("encoded above"));
    });
}

struct OneExport;

impl Exports for OneExport {
    fn list(&self) -> Vec<String> {
        vec!["a".to_owned()]
    }

    fn open(&self, _: &str) -> Opened {
        let (volume, attachment) = (VolumeId(1), AttachmentId::NONE);
        Opened::Export(Export { volume, attachment, size_bytes: 1 << 30, read_only: false })
    }
}

/// Hands a message to a reader, as the end of a receive does.
fn arrive(reader: &mut StreamReader, message: &[u8]) {
    let mut bufs = reader.lend();
    let from = bufs.staging_from;
    bufs.staging[from..from + message.len()].copy_from_slice(message);
    reader.received(bufs, message.len());
}

/// An NBD session and the stream of its client.
struct Client {
    reader: StreamReader,
    session: Session,
    out: Vec<SessionOutput>,
}

impl Client {
    /// In transmission.
    fn new() -> Client {
        let reader = StreamReader::new(Pool::default());
        let mut client = Client { reader, session: Session::new(), out: Vec::new() };
        let flags = wire::CLIENT_FLAG_FIXED_NEWSTYLE | wire::CLIENT_FLAG_NO_ZEROES;
        let mut hello = flags.to_be_bytes().to_vec();
        wire::put_option(&mut hello, wire::option::GO, &wire::export_query("a"));
        client.session.feed(&mut client.reader, &OneExport, &mut client.out);
        client.feed(&hello);
        assert!(client.session.export().is_some());
        client.send();
        client
    }

    fn feed(&mut self, message: &[u8]) {
        arrive(&mut self.reader, message);
        self.session.feed(&mut self.reader, &OneExport, &mut self.out);
    }

    /// Everything that the session wants to send leaves.
    fn send(&mut self) {
        for output in self.out.drain(..) {
            if let SessionOutput::Send(bytes) = output {
                self.session.sent(bytes.len());
            }
        }
    }

    /// One request, from its bytes to those of its answer.
    fn request(&mut self, message: &[u8], answer: BlockReply) -> BlockOp {
        self.feed(message);
        let Some(SessionOutput::Request { handle, op }) = self.out.pop() else {
            panic!("a whole request was received");
        };
        self.session.reply(handle, Ok(answer), &mut self.out);
        self.send();
        op
    }
}

fn nbd_request(command: u16) -> Vec<u8> {
    let (cookie, offset, length) = (1, 1 << 20, BLOCK_BYTES as u32);
    let magic = wire::REQUEST_MAGIC;
    let mut bytes = Vec::new();
    let header = RequestHeader { magic, flags: 0, command, cookie, offset, length };
    wire::put_request(&mut bytes, &header);
    bytes
}

fn nbd(criterion: &mut Criterion) {
    let header = nbd_request(command::READ);
    criterion.bench_function("nbd_request_decode", |bencher| {
        bencher.iter(|| RequestHeader::decode(black_box(&header)));
    });
    let mut replies = BytesMut::with_capacity(wire::SIMPLE_REPLY_BYTES);
    criterion.bench_function("nbd_reply_encode", |bencher| {
        bencher.iter(|| {
            replies.clear();
            wire::put_simple_reply(&mut replies, black_box(1), 0);
        });
    });
    let mut client = Client::new();
    let write = [nbd_request(command::WRITE), block()].concat();
    criterion.bench_function("nbd_session_write_4k", |bencher| {
        bencher.iter(|| client.request(&write, BlockReply::Done));
    });
    let data = Pool::default().copy(&block());
    criterion.bench_function("nbd_session_read_4k", |bencher| {
        let answer = || BlockReply::Data(vec![Segment::Data(data.clone())]);
        bencher.iter(|| client.request(&header, answer()));
    });
}

/// A Raft append with one entry of 4 KiB, as a frame with its checksums.
fn peer(criterion: &mut Criterion) {
    let append = PeerMessage::Raft {
        to: MemberId(3),
        header: Bytes::from_static(&[5; 2 * CONTEXT_BYTES]),
        payloads: vec![Pool::default().copy(&block())],
    };
    let frame = |message: PeerMessage| {
        let encoded = encode(message).expect("an entry fits a frame");
        let mut head = BytesMut::new();
        write_head(&mut head, FRAME_SEED, encoded.kind, &encoded.meta, &encoded.payload);
        (head, encoded.payload)
    };
    criterion.bench_function("peer_append_encode", |bencher| {
        bencher.iter(|| frame(append.clone()));
    });
    let (head, payload) = frame(append);
    let sent = [&head[..], &payload.concat()].concat();
    let (mut reader, mut frames) = (StreamReader::new(Pool::default()), FrameReader::default());
    criterion.bench_function("peer_append_decode", |bencher| {
        bencher.iter(|| {
            arrive(&mut reader, &sent);
            let frame = frames.next(&mut reader, FRAME_SEED, pieces).expect("an intact frame");
            decode(frame.expect("a whole frame")).expect("encoded above")
        });
    });
}

/// Shards of a volume with three replicas, over 100 disks in 25 pods.
fn placement(criterion: &mut Criterion) {
    let candidate = |number: u8| Candidate {
        disk: Uuid([number; 16]),
        pod: PodId(u64::from(number % 25)),
        domain: format!("node-{}", number % 25),
        room_bytes: 1 << 50,
        free_bytes: (1 << 40) + mix64(u64::from(number)) % (1 << 40),
        members: u64::from(number % 7),
        firsts: u64::from(number % 3),
    };
    let disks = (0..100).map(candidate).collect();
    let candidates = Candidates { disks, overcommit_percent: 200, ..Candidates::default() };
    for shards in [1, 256] {
        criterion.bench_function(&format!("place_over_100_disks/{shards}"), |bencher| {
            let wish = Wish { name: "v", shards, shard_bytes: 1 << 32, replicas: 3, grows: false };
            let place = || place(wish, black_box(&candidates));
            bencher.iter(|| place().expect("there are pods enough"));
        });
    }
}

fn config() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(500), Duration::from_secs(2));
    Criterion::default().warm_up_time(warm_up).measurement_time(measurement)
}

criterion_group! {
    name = pure;
    config = config();
    targets = crc, wal, overlay, index, nbd, peer, placement
}
criterion_main!(pure);
