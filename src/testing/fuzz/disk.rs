//! One run of a fuzzer over what reads a disk at its start: the superblock, and a whole ring of the
//! log up to the log of each member. Pages with right checksums are made here, because no fuzzer
//! would guess a checksum.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::level::Level;
use crate::log::{Bypass, BypassSlot, HardState, LogEntry, Slot};
use crate::store::superblock::{self, COPIES};
use crate::store::wal::format::{self, FIXED_BYTES, Header, Keys, RECORD_BYTES};
use crate::store::wal::recover::{LogPart, Marks, load_payload, recover};
use crate::store::wal::replay::{Flushed, LoggedEntry, replay};
use crate::store::wal::{BatchSeq, Item, WalConfig};
use crate::testing::fuzz::Seeds;
use crate::types::{BLOCK_BYTES, Extent, MemberId, Uuid};

const RING_PAGES: usize = 16;
const RING_BYTES: usize = RING_PAGES * BLOCK_BYTES;
const KEYS: Keys = Keys { disk: Uuid(*b"disk of a fuzzer"), seed: 42 };
/// What stands before the body of each batch of a forged ring.
const FORGED_HEAD_BYTES: usize = 16;

/// Reads `input` as a disk's bytes. Panics when something is wrong with the reader.
///
/// The first byte chooses what the rest is: 0 the superblock's copies, 1 the same with right
/// checksums, 2 marks (see `ring`) and the ring itself, 3 marks and batches to be forged.
pub fn fuzz_one(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    match mode % 4 {
        0 => read_superblock(rest, false),
        1 => read_superblock(rest, true),
        2 => ring(rest, raw_ring),
        _ => ring(rest, forged_ring),
    }
}

/// Each copy gets a quarter of the input, and zeroes.
fn read_superblock(input: &[u8], forge: bool) {
    let mut pages = [[0; BLOCK_BYTES]; COPIES];
    for (place, page) in pages.iter_mut().enumerate() {
        let quarter = input.len() / COPIES;
        let len = quarter.min(BLOCK_BYTES);
        page[..len].copy_from_slice(&input[place * quarter..place * quarter + len]);
        if forge {
            forge_copy(page, place as u16);
        }
    }
    let read = superblock::choose(&pages.each_ref().map(|page| &page[..]));
    if let Ok(found) = read {
        let again = superblock::encode(&found);
        assert_eq!(superblock::choose(&again.each_ref().map(|page| &page[..])), Ok(found));
    }
}

/// Makes a page pass for a copy, whatever its fields say.
fn forge_copy(page: &mut [u8; BLOCK_BYTES], copy: u16) {
    page[..8].copy_from_slice(b"HOLDDISK");
    page[14..16].copy_from_slice(&copy.to_le_bytes());
    let crc = crc32fast::hash(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Header pages with right checksums, whatever they hold, and the batch CRC.
fn forge_batch(header: &Header, body: &[u8]) -> (Vec<u8>, u32) {
    let mut pages = vec![0; header.header_bytes().max(BLOCK_BYTES)];
    let len = body.len().min(pages.len() - FIXED_BYTES);
    pages[FIXED_BYTES..FIXED_BYTES + len].copy_from_slice(&body[..len]);
    header.write(&KEYS, &mut pages);
    let crc = format::seal(&KEYS, header, &mut pages);
    (pages, crc)
}

/// Recovers a ring. The input begins with what the superblock says of it: tail sequence, page of
/// the tail, largest durable sequence, incarnation (a byte each).
fn ring(input: &[u8], make: fn(&[u8]) -> Vec<u8>) {
    let Some(([tail, tail_page, durable, incarnation], rest)) = input.split_first_chunk() else {
        return;
    };
    let bytes = make(rest);
    let config = WalConfig {
        ring_bytes: RING_BYTES as u64,
        disk: KEYS.disk,
        seed: KEYS.seed,
        incarnation: u64::from(*incarnation) + 1,
        reserve_bytes: BLOCK_BYTES as u64,
    };
    let marks = Marks {
        last_open: u64::from(*incarnation),
        tail_seq: BatchSeq(u64::from(*tail)),
        tail_offset: u64::from(*tail_page) % RING_PAGES as u64 * BLOCK_BYTES as u64,
        durable_seq: BatchSeq(u64::from(*durable)),
    };
    let mut read = |offset: u64, len: usize| {
        let from = usize::try_from(offset).expect("recovery reads inside the ring");
        let part = bytes.get(from..from + len);
        Ok(Bytes::copy_from_slice(part.expect("recovery reads inside the ring")))
    };
    let Ok(recovered) = recover(&config, &marks, &mut read) else {
        return;
    };
    let position = &recovered.position;
    assert!(position.head_offset < RING_BYTES as u64 && position.tail_offset < RING_BYTES as u64);
    assert!(position.tail_seq <= position.next_seq, "the tail is not ahead of the head");
    assert!(position.kept.is_sorted_by(|one, next| one.0 < next.0), "in order, each once");
    for range in &recovered.unconfirmed {
        assert!(range.start < range.end && range.end <= RING_BYTES as u64);
    }
    let is_batch = |part: &&LogPart| matches!(part, LogPart::Batch(_));
    let batches = recovered.log.iter().filter(is_batch).count();
    assert!(batches <= RING_PAGES, "a batch has at least a page to itself");
    let known = BTreeMap::from([(MemberId(1), Flushed { index: 2, term: 1 })]);
    for (member, log) in replay(recovered.log, &known, &[MemberId(3)]) {
        assert_ne!(member, MemberId(3), "tombstones are skipped");
        let contiguous = |pair: &[LoggedEntry]| pair[0].entry.index + 1 == pair[1].entry.index;
        assert!(log.faulted.is_some() || log.entries.windows(2).all(contiguous));
        for logged in &log.entries {
            // Damaged ones are an error; any other answer is the bytes that were promised.
            if let Ok(payload) = load_payload(&logged.entry, &mut read) {
                assert_eq!(payload.len(), logged.entry.payload_bytes as usize);
            }
        }
    }
}

fn raw_ring(input: &[u8]) -> Vec<u8> {
    let mut bytes = input[..input.len().min(RING_BYTES)].to_vec();
    bytes.resize(RING_BYTES, 0);
    bytes
}

/// A ring of batches whose checksums are right, whatever they hold. Each is a head of 16 bytes
/// (page, sequence, incarnation, pages, pages of the header, items, records of its index and of
/// the one before, bytes of the body u16, five sequences, flags) and a body.
fn forged_ring(mut input: &[u8]) -> Vec<u8> {
    let mut ring = vec![0; RING_BYTES];
    let mut crc = 0;
    while let Some((head, rest)) = input.split_first_chunk::<FORGED_HEAD_BYTES>() {
        let len = usize::from(u16::from_le_bytes([head[8], head[9]])).min(rest.len());
        let (body, rest) = rest.split_at(len);
        input = rest;
        let page = usize::from(head[0]) % RING_PAGES;
        let records = (u32::from(head[6] % 8), u32::from(head[7] % 8));
        let record_bytes = (records.0 + records.1) * RECORD_BYTES as u32;
        let seq = |at: usize| BatchSeq(u64::from(head[at]));
        let chained = head[15] & 1 == 0;
        let header = Header {
            seq: seq(1),
            incarnation: u64::from(head[2]),
            offset: (page * BLOCK_BYTES) as u64,
            total_pages: u32::from(head[3]),
            header_pages: u32::from(head[4] % 4),
            items: u32::from(head[5]),
            index_records: records.0,
            previous_records: records.1,
            body_bytes: (len as u32).saturating_sub(record_bytes),
            durable_seq: seq(10),
            tail_seq: seq(11),
            base_seq: seq(12),
            previous_seq: seq(13),
            before_previous_seq: seq(14),
            previous_crc: if chained { crc } else { u32::from(head[15]) },
            crc: 0,
        };
        let (pages, forged) = forge_batch(&header, body);
        crc = forged;
        let from = page * BLOCK_BYTES;
        let len = pages.len().min(RING_BYTES - from);
        ring[from..from + len].copy_from_slice(&pages[..len]);
    }
    ring
}

/// Good inputs by name, for a fuzzer to start from.
pub fn fuzz_seeds() -> Seeds {
    let superblock = superblock::Superblock {
        sequence: 7,
        cluster: Uuid([1; 16]),
        disk: KEYS.disk,
        incarnation: 3,
        lanes: 1,
        level: Level(1),
        features: 0,
        seed: KEYS.seed,
        wal_bytes: RING_BYTES as u64,
        data_bytes_max: 1 << 30,
        data_file_bytes: 1 << 28,
        tail_seq: 1,
        tail_offset: 0,
        durable_seq: 2,
    };
    let copies = superblock::encode(&superblock).concat();
    // What a superblock says fits in the first bytes of each copy.
    let fields = superblock::encode(&superblock).map(|page| page[..136].to_vec()).concat();
    let batches = seed_batches().concat();
    let ring = forged_ring(&batches);
    vec![
        ("superblock", [&[0], &copies[..]].concat()),
        ("superblock-fields", [&[1], &fields[..]].concat()),
        ("ring", [&[2], &MARKS[..], &ring[..5 * BLOCK_BYTES]].concat()),
        ("batches", [&[3], &MARKS[..], &batches[..]].concat()),
    ]
}

/// Of the seeds: the superblock's marks and the incarnation.
const MARKS: [u8; 4] = [1, 0, 1, 2];

/// One batch with every kind of item but a log snapshot, one with a log snapshot, and one that
/// follows, with a bypassed entry.
fn seed_batches() -> Vec<Vec<u8>> {
    let (hard, member) = (HardState { term: 1, vote: 1, commit: 2 }, MemberId(1));
    let entry = |index| LogEntry {
        bypass: None,
        index,
        term: 1,
        kind: 0,
        context: Bytes::from_static(b"what it does"),
        payload: Bytes::new(),
    };
    let first = vec![
        Item::Hard { member, hard },
        Item::Entry { member, entry: entry(3) },
        Item::Entry { member, entry: entry(4) },
        Item::Reset { member: MemberId(2), index: 9, term: 1 },
        Item::Fault { member: MemberId(4) },
    ];
    let (compacted_index, compacted_term) = (2, 1);
    let entries = vec![entry(3), entry(4)];
    let snapshot =
        vec![Item::LogSnapshot { member, hard, compacted_index, compacted_term, entries }];
    let slots = [3, 4].map(|slot| BypassSlot { slot: Slot(slot), crcs: [7; _] }).to_vec();
    let bypass = Some(Box::new(Bypass { first: Extent(1), slots }));
    let bypassed = LogEntry { bypass, ..entry(6) };
    let last = [entry(5), bypassed].map(|entry| Item::Entry { member, entry }).to_vec();
    (0u8..).zip([first, snapshot, last]).map(|(page, items)| seed_batch(page, &items)).collect()
}

fn seed_batch(page: u8, items: &[Item]) -> Vec<u8> {
    let body_bytes: usize = items.iter().map(format::body_bytes).sum();
    let header = Header {
        total_pages: 1,
        header_pages: 1,
        items: items.len() as u32,
        body_bytes: body_bytes as u32,
        ..Header::default()
    };
    let mut pages = vec![0; BLOCK_BYTES];
    format::encode(&KEYS, &header, &[], &[], items.iter(), &mut pages);
    let len = (body_bytes as u16).to_le_bytes();
    let seq = page + 1;
    let head = [page, seq, 1, 1, 1, items.len() as u8, 0, 0, len[0], len[1]];
    let seqs = [page, 1, 1, page, page.saturating_sub(1), 0];
    [&head[..], &seqs, &pages[FIXED_BYTES..FIXED_BYTES + body_bytes]].concat()
}
