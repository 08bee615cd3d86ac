//! One contract for both stores of the index.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rocksdb::{DB, FlushOptions, Options};

use super::memory::MemoryIndex;
use super::rocks::RocksIndex;
use super::*;
use crate::store::messages::Slot;
use crate::types::{ShardId, VolumeId};

fn key(member: u64, extent: u32) -> ExtentKey {
    ExtentKey { member: MemberId(member), extent: Extent(extent), layer: 0 }
}

fn extent(slot: u32) -> ExtentRecord {
    ExtentRecord {
        slot: Slot(slot),
        present: 0b101,
        zero: 0,
        last_changed: u64::from(slot) + 10,
        birth: VolumeId(5),
        crcs: [slot, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

fn member(member: u64, flushed_index: u64) -> MemberRecord {
    MemberRecord {
        member: MemberId(member),
        shard: ShardId(1),
        volume: VolumeId(2),
        first_block_in_volume: 3,
        blocks: 4,
        flushed_index,
        flushed_term: 6,
        meta: Bytes::from_static(b"meta"),
        resyncing: true,
    }
}

fn contract(store: &mut dyn IndexStore) {
    let edits = [
        IndexEdit::PutMember(member(1, 7)),
        IndexEdit::PutMember(member(2, 7)),
        IndexEdit::Put(key(1, 0), extent(10)),
        IndexEdit::Put(key(1, 300), extent(11)),
        IndexEdit::Put(key(1, 5), extent(12)),
        IndexEdit::Put(key(2, 5), extent(13)),
    ];
    store.commit(&edits, false).unwrap();
    store.commit(&[IndexEdit::PutMember(member(1, 8))], true).unwrap();
    assert_eq!(store.members().unwrap(), [member(1, 8), member(2, 7)]);
    let got = store.get(&[key(1, 5), key(1, 6), key(2, 5)]).unwrap();
    assert_eq!(got, [Some(extent(12)), None, Some(extent(13))]);

    let scan = store.scan(MemberId(1), Extent(1), 10).unwrap();
    assert_eq!(scan, [(key(1, 5), extent(12)), (key(1, 300), extent(11))]);
    assert_eq!(store.scan(MemberId(1), Extent(0), 1).unwrap().len(), 1);

    let edits = [
        IndexEdit::Delete(key(1, 5)),
        IndexEdit::Put(key(1, 0), extent(14)),
        IndexEdit::Fault(MemberId(1)),
        IndexEdit::Fault(MemberId(2)),
        IndexEdit::Destroy(MemberId(2)),
    ];
    store.commit(&edits, false).unwrap();
    let got = store.get(&[key(1, 0), key(1, 5), key(2, 5)]).unwrap();
    assert_eq!(got, [Some(extent(14)), None, None]);
    assert_eq!(store.members().unwrap(), [member(1, 8)]);
    assert_eq!(store.tombstones().unwrap(), [MemberId(2)]);
    assert_eq!(store.faulted().unwrap(), [MemberId(1)]);
    assert!(store.scan(MemberId(2), Extent(0), 10).unwrap().is_empty());
    store.commit(&[], true).unwrap();
}

#[test]
fn memory_keeps_the_contract() {
    contract(&mut MemoryIndex::default());
}

#[test]
fn rocks_keeps_the_contract_and_everything_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    RocksIndex::create(&path).unwrap();
    contract(&mut RocksIndex::open(&path).unwrap());
    let mut store = RocksIndex::open(&path).unwrap();
    assert_eq!(store.get(&[key(1, 0)]).unwrap(), [Some(extent(14))]);
    assert_eq!(store.tombstones().unwrap(), [MemberId(2)]);
}

#[test]
fn a_crash_loses_a_suffix_of_what_was_not_flushed() {
    for kept in 0..=2 {
        let mut store = MemoryIndex::default();
        let put = |slot| [IndexEdit::Put(key(1, slot), extent(slot))];
        store.commit(&put(0), true).unwrap();
        store.commit(&put(1), false).unwrap();
        store.commit(&put(2), false).unwrap();
        assert_eq!(store.unflushed_commits(), 2);
        store.crash(kept);
        let left = store.scan(MemberId(1), Extent(0), 10).unwrap();
        assert_eq!(left.len(), 1 + kept);
    }
}

/// A merge operator runs in the thread that flushes: one that does not return is a disk that hangs.
#[test]
fn a_flush_does_not_wait_for_that_of_another_database() {
    let directory = tempfile::tempdir().unwrap();
    let (release, hangs) = channel::<()>();
    let (began, has_begun) = channel();
    let ends = Arc::new(Mutex::new((began, hangs)));
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_merge_operator_associative("hangs", move |_, _, _| {
        let (began, hangs) = &*ends.lock().unwrap();
        began.send(()).unwrap();
        let _ended = hangs.recv();
        Some(Vec::new())
    });
    let other = DB::open(&options, directory.path().join("other")).unwrap();
    other.put(b"key", b"value").unwrap();
    other.merge(b"key", b"more").unwrap();
    let mut flush = FlushOptions::default();
    flush.set_wait(false);
    other.flush_opt(&flush).unwrap();
    has_begun.recv().unwrap();

    let path = directory.path().join("index");
    let (flushed, has_flushed) = channel();
    std::thread::spawn(move || {
        RocksIndex::create(&path).unwrap();
        let mut index = RocksIndex::open(&path).unwrap();
        index.commit(&[IndexEdit::Put(key(1, 0), extent(1))], true).unwrap();
        flushed.send(()).unwrap();
    });
    let answer = has_flushed.recv_timeout(Duration::from_secs(60));
    drop(release);
    answer.expect("flushed beside a database that hangs");
}
