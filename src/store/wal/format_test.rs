use proptest::prelude::*;

use super::*;
use crate::testing::log_fixture::as_item;
use crate::types::Extent;

const KEYS: Keys = Keys { disk: Uuid(*b"disk-for-testing"), seed: 0x5eed };

fn entry(index: u64, context: &'static [u8], payload: Vec<u8>) -> LogEntry {
    LogEntry {
        bypass: None,
        index,
        term: 7,
        kind: 2,
        context: Bytes::from_static(context),
        payload: payload.into(),
    }
}

/// One of every kind, with payloads of none, one, two and one and a half pages.
fn sample() -> Vec<Item> {
    let (one, two) = (MemberId(1), MemberId(2));
    let hard = HardState { term: 7, vote: 3, commit: 41 };
    vec![
        Item::Hard { member: one, hard },
        Item::Entry { member: one, entry: entry(42, b"context", vec![1; 4096]) },
        Item::Entry { member: one, entry: entry(43, b"", vec![]) },
        Item::Reset { member: two, index: 9, term: 6 },
        Item::LogSnapshot {
            member: MemberId(3),
            hard,
            compacted_index: 40,
            compacted_term: 5,
            entries: vec![entry(41, b"a", vec![2; 8192]), entry(42, b"bc", vec![3; 6144])],
        },
        Item::Fault { member: two },
    ]
}

/// Header pages and the header of a batch of these items at offset 8192.
fn encoded(items: &[Item], previous: &[u8]) -> (Header, Vec<u8>) {
    let index = item_index(items.iter());
    let body_bytes: usize = items.iter().map(body_bytes).sum();
    let header_pages = pages(FIXED_BYTES + index.len() + previous.len() + body_bytes) as u32;
    let entries = items.iter().flat_map(entries_of);
    let payload_pages: usize = entries.map(|e| pages(e.payload.len())).sum();
    let mut header = Header {
        seq: BatchSeq(77),
        incarnation: 4,
        offset: 8192,
        total_pages: header_pages + payload_pages as u32,
        header_pages,
        items: items.len() as u32,
        index_records: (index.len() / RECORD_BYTES) as u32,
        previous_records: (previous.len() / RECORD_BYTES) as u32,
        body_bytes: body_bytes as u32,
        durable_seq: BatchSeq(75),
        tail_seq: BatchSeq(60),
        base_seq: BatchSeq(70),
        previous_seq: BatchSeq(76),
        before_previous_seq: BatchSeq(75),
        previous_crc: 0xabcd,
        crc: 0,
    };
    let mut out = vec![0xff; header.header_bytes()];
    header.crc = encode(&KEYS, &header, &index, previous, items.iter(), &mut out);
    (header, out)
}

fn decoded(bytes: &[u8]) -> Result<Batch, FormatError> {
    decode(&KEYS, &decode_fixed(&KEYS, bytes)?, bytes)
}

#[test]
fn every_item_survives_and_says_where_its_payload_is() {
    let items = sample();
    let previous = item_index(items[..2].iter());
    let (header, bytes) = encoded(&items, &previous);
    let batch = decoded(&bytes).unwrap();
    assert_eq!(batch.header, header);
    assert_eq!(batch.previous, previous);
    assert_eq!(batch.index, item_index(items.iter()));

    let mut payloads: Vec<Bytes> =
        items.iter().flat_map(entries_of).map(|e| e.payload.clone()).collect();
    payloads.reverse();
    let mut offset = 8192 + 4096;
    let back: Vec<Item> = batch
        .items
        .iter()
        .map(|found| {
            as_item(found, &mut |entry| {
                let payload = payloads.pop().unwrap();
                assert_eq!(entry.payload_offset, offset);
                assert_eq!(crc_from(entry.crc_start, &[&payload]), entry.payload_crc);
                offset += (pages(payload.len()) * BLOCK_BYTES) as u64;
                payload
            })
        })
        .collect();
    assert_eq!(back, items);
}

#[test]
fn the_index_has_a_record_for_each_run_of_a_member() {
    let summary =
        |member, kinds, first, last| Summary { member: MemberId(member), kinds, first, last };
    assert_eq!(
        decode_index(&item_index(sample().iter())),
        [
            summary(1, kinds::HARD | kinds::ENTRY, 42, 43),
            summary(2, kinds::RESET, 9, 9),
            summary(3, kinds::LOG_SNAPSHOT | kinds::HARD, 40, 42),
            summary(2, kinds::FAULT, 0, 0),
        ]
    );
}

fn bypassed(index: u64, slots: u32) -> LogEntry {
    let slots = (0..slots).map(|n| BypassSlot {
        slot: Slot(n * 100 + 1),
        crcs: std::array::from_fn(|block| n + block as u32),
    });
    let bypass = Bypass { first: Extent(17), slots: slots.collect() };
    LogEntry { bypass: Some(Box::new(bypass)), ..entry(index, b"header", vec![]) }
}

#[test]
fn bypassed_entries_survive_alone_and_in_log_snapshots() {
    let items = [
        Item::Entry { member: MemberId(5), entry: bypassed(8, 3) },
        Item::Entry { member: MemberId(5), entry: entry(9, b"", vec![4; 4096]) },
        Item::LogSnapshot {
            member: MemberId(6),
            hard: HardState::default(),
            compacted_index: 3,
            compacted_term: 1,
            entries: vec![entry(4, b"a", vec![5; 4096]), bypassed(5, 16), entry(6, b"", vec![])],
        },
    ];
    let (_, bytes) = encoded(&items, &[]);
    let batch = decoded(&bytes).unwrap();
    let mut payload = |found: &FoundEntry| match (found.index, &found.bypass) {
        (4, None) => vec![5; 4096].into(),
        (9, None) => vec![4; 4096].into(),
        (_, bypass) => {
            let slots = bypass.as_ref().map_or(0, |bypass| bypass.slots.len());
            assert_eq!(found.payload_bytes, 0);
            assert_eq!(found.data_bytes() as usize, slots * EXTENT_BYTES);
            Bytes::new()
        }
    };
    let back: Vec<_> = batch.items.iter().map(|found| as_item(found, &mut payload)).collect();
    assert_eq!(back, items);
    assert_eq!(batch.index, item_index(items.iter()));
}

/// A bypassed entry that is cut short or names no slot or extents beyond all is refused.
#[test]
fn a_bypassed_entry_that_cannot_be_is_refused() {
    let items = [Item::Entry { member: MemberId(5), entry: bypassed(8, 3) }];
    let (header, bytes) = encoded(&items, &[]);
    let body = FIXED_BYTES + RECORD_BYTES;
    let read = |body: &[u8]| {
        let fields = Fields::new(Bytes::copy_from_slice(body));
        Reader { keys: &KEYS, header: &header, fields }.item()
    };
    let whole = &bytes[body..body + body_bytes(&items[0])];
    assert!(read(whole).is_ok());
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err());
    }
    let changed = |at: usize, value: u8| {
        let mut changed = whole.to_vec();
        changed[at..at + 2].fill(value);
        read(&changed)
    };
    assert!(changed(2, 0).is_err(), "no slots");
    assert!(changed(2, 255).is_err(), "more slots than there are bytes");
    let mut beyond = whole.to_vec();
    beyond[32..36].fill(255);
    assert!(read(&beyond).is_err());
}

#[test]
fn nobody_else_s_batch_passes() {
    let (header, bytes) = encoded(&sample(), &[]);
    let other_disk = Keys { disk: Uuid(*b"another-disk-id!"), ..KEYS };
    let other_seed = Keys { seed: 1, ..KEYS };
    for keys in [other_disk, other_seed] {
        assert_eq!(decode_fixed(&keys, &bytes), Err(FormatError::NoHeader));
    }
    let sealed = decode(&other_seed, &header, &bytes);
    assert_eq!(sealed, Err(FormatError::Checksum));
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let (header, mut bytes) = encoded(&sample(), &[]);
    bytes[8] = 2;
    assert_eq!(decode_fixed(&KEYS, &bytes), Err(FormatError::NoHeader));
    seal(&header, &mut bytes);
    let newer = FormatError::Version { version: 2, seq: header.seq };
    assert_eq!(decode_fixed(&KEYS, &bytes), Err(newer));
}

fn seal(header: &Header, bytes: &mut [u8]) {
    let crc = fixed_crc(&KEYS, header.incarnation, header.seq, bytes);
    bytes[FIXED_CRC_AT..FIXED_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    let crc = batch_crc(&KEYS, header.incarnation, header.seq, bytes);
    bytes[BATCH_CRC_AT..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #[test]
    fn one_wrong_byte_anywhere_is_noticed(at in 0usize..4096, flip in 1u8..) {
        let (_, mut bytes) = encoded(&sample(), &[]);
        bytes[at] ^= flip;
        prop_assert!(decoded(&bytes).is_err());
    }

    /// Behind valid checksums too: a decoder answers, it never panics.
    #[test]
    fn nothing_makes_the_decoder_panic(
        changes in proptest::collection::vec(
            (prop_oneof![56usize..80, 128usize..700], any::<u8>()),
            1..6,
        ),
    ) {
        let (header, mut bytes) = encoded(&sample(), &[]);
        for (at, value) in changes {
            bytes[at] = value;
        }
        seal(&header, &mut bytes);
        if let Ok(batch) = decoded(&bytes) {
            let end = 8192 + batch.header.total_bytes();
            for item in &batch.items {
                if let FoundItem::Entry { entry, .. } = item {
                    prop_assert!(entry.payload_offset + u64::from(entry.payload_bytes) <= end);
                }
            }
        }
    }
}

/// Files under `tests/golden/` are never edited, only added: what was written once is read for
/// ever.
#[test]
fn the_golden_batch_is_read_and_written_the_same() {
    let golden = include_bytes!("../../../tests/golden/v1/wal-batch.bin");
    let previous = item_index(sample()[..2].iter());
    let header = decode_fixed(&KEYS, golden).unwrap();
    let batch = decode(&KEYS, &header, &golden[..header.header_bytes()]).unwrap();
    assert_eq!(batch.previous, previous);
    let mut payloads = Vec::new();
    let items: Vec<Item> = batch
        .items
        .iter()
        .map(|found| {
            as_item(found, &mut |entry| {
                let from = (entry.payload_offset - header.offset) as usize;
                let payload = &golden[from..from + entry.payload_bytes as usize];
                assert_eq!(crc_from(entry.crc_start, &[payload]), entry.payload_crc);
                payloads.extend_from_slice(payload);
                payloads.resize(pages(payloads.len()) * BLOCK_BYTES, 0);
                Bytes::copy_from_slice(payload)
            })
        })
        .collect();
    assert_eq!(items, sample());
    let (_, mut again) = encoded(&items, &batch.previous);
    again.extend(payloads);
    assert_eq!(again, golden);
}
