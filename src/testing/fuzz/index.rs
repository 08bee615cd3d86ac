//! One run of a fuzzer over the keys and records of an index: bytes from a disk, behind the
//! checksums of the key-value store.

use bytes::Bytes;

use super::format::{
    Change, changes, decode_extent, decode_extent_key, decode_member, decode_short_key,
    encode_extent, extent_key,
};
use crate::store::messages::{ExtentKey, ExtentRecord, IndexEdit, MemberRecord, Slot};
use crate::testing::fuzz::Seeds;
use crate::types::{Extent, MemberId, ShardId, VolumeId};

/// Bytes of the keys of member records, tombstones and faults.
const SHORT_KEY_BYTES: usize = 9;

/// Reads `input`: its first byte chooses what the rest is: 0 the key of an extent, 1 the record of
/// an extent, 2 the key and the record of a member. Panics when something is wrong with the reader.
pub fn fuzz_one(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else {
        return;
    };
    match mode % 3 {
        0 => {
            if let Ok(key) = decode_extent_key(rest) {
                assert_eq!(extent_key(key), rest, "one encoding each");
            }
        }
        1 => {
            if let Ok(record) = decode_extent(rest) {
                assert_eq!(encode_extent(&record), rest, "one encoding each");
            }
        }
        _ => read_member(rest),
    }
}

fn read_member(input: &[u8]) {
    let (key, value) = input.split_at(SHORT_KEY_BYTES.min(input.len()));
    let Ok(record) = decode_member(key, value) else {
        return;
    };
    assert_eq!(decode_short_key(key).ok(), Some(record.member));
    let put = &written(&IndexEdit::PutMember(record))[..];
    let [Change::Put(key_again, value_again)] = put else {
        panic!("a member is one record: {put:?}");
    };
    assert_eq!((&key_again[1..], &value_again[..]), (&key[1..], value), "one encoding each");
}

fn written(edit: &IndexEdit) -> Vec<Change> {
    let mut out = Vec::new();
    changes(edit, &mut out);
    out
}

/// Good inputs by name, for a fuzzer to start from.
pub fn fuzz_seeds() -> Seeds {
    let key = ExtentKey { member: MemberId(3), extent: Extent(70_000), layer: 0 };
    let extent = |present, zero| ExtentRecord {
        slot: Slot(9),
        present,
        zero,
        last_changed: 12,
        birth: VolumeId(5),
        crcs: [7; 16],
    };
    let member = MemberRecord {
        member: MemberId(3),
        shard: ShardId(4),
        volume: VolumeId(5),
        first_block_in_volume: 1 << 20,
        blocks: 1 << 18,
        flushed_index: 11,
        flushed_term: 2,
        meta: Bytes::from_static(b"metadata"),
        resyncing: true,
    };
    let record = |mode: u8, edit| {
        let pairs = written(&edit).into_iter().map(|change| match change {
            Change::Put(_, value) if mode == 1 => [vec![mode], value].concat(),
            Change::Put(key, value) => [vec![mode], key, value].concat(),
            other => panic!("not a record: {other:?}"),
        });
        pairs.collect::<Vec<_>>().concat()
    };
    vec![
        ("key", [&[0], &extent_key(key)[..]].concat()),
        ("extent", record(1, IndexEdit::Put(key, extent(0xffff, 0)))),
        ("extent-with-holes", record(1, IndexEdit::Put(key, extent(0x0f0f, 0x00f0)))),
        ("member", record(2, IndexEdit::PutMember(member))),
    ]
}
