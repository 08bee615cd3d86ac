//! A ring in memory with a writer, for the tests of this module.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::log::{Bypass, BypassSlot, HardState, LogEntry, Slot};
use crate::types::{BLOCK_BYTES, Extent, MemberId, Uuid};

use crate::store::wal::format::{FoundEntry, FoundItem};
use crate::store::wal::recover::{LogPart, Marks, RecoverError, Recovered, load_payload, recover};
use crate::store::wal::replay::{Flushed, MemberLog, replay};
use crate::store::wal::{BatchSeq, BatchWrite, GroupId, Item, Wal, WalConfig, WalPosition};

pub struct Fixture {
    pub disk: Vec<u8>,
    pub unreadable: Vec<u64>,
    pub config: WalConfig,
    pub wal: Wal,
    pub pool: Pool,
    /// What the superblock says.
    pub marks: Marks,
    pub written: BTreeMap<BatchSeq, (u64, usize)>,
    groups: u64,
}

impl Fixture {
    pub fn new(pages: usize, reserve_pages: u64) -> Fixture {
        let config = WalConfig {
            ring_bytes: (pages * BLOCK_BYTES) as u64,
            disk: Uuid(*b"disk-for-testing"),
            seed: 42,
            incarnation: 1,
            reserve_bytes: reserve_pages * BLOCK_BYTES as u64,
        };
        Fixture {
            disk: vec![0; pages * BLOCK_BYTES],
            unreadable: Vec::new(),
            wal: Wal::new(config.clone(), WalPosition::fresh()),
            config,
            pool: Pool::default(),
            marks: Marks {
                last_open: 1,
                tail_seq: BatchSeq(1),
                tail_offset: 0,
                durable_seq: BatchSeq(0),
            },
            written: BTreeMap::new(),
            groups: 0,
        }
    }

    pub fn push(&mut self, items: Vec<Item>) -> GroupId {
        self.groups += 1;
        self.wal.push(GroupId(self.groups), items);
        GroupId(self.groups)
    }

    /// Puts the pages of a write on the disk for which `survives` says so.
    pub fn put(&mut self, write: &BatchWrite, survives: impl Fn(usize) -> bool) {
        let bytes: Vec<u8> = write.bufs.concat();
        assert!(write.bufs.iter().all(|buf| crate::io::buffer::is_aligned(buf)));
        for (page, content) in bytes.chunks(BLOCK_BYTES).enumerate() {
            if survives(page) {
                let at = write.offset as usize + page * BLOCK_BYTES;
                self.disk[at..at + BLOCK_BYTES].copy_from_slice(content);
            }
        }
        self.written.insert(write.seq, (write.offset, bytes.len()));
    }

    /// A batch in flight; it has not reached the disk.
    pub fn fly(&mut self, items: Vec<Item>) -> BatchWrite {
        self.push(items);
        self.wal.next_batch(&self.pool).expect("the gate is open")
    }

    /// A durable batch.
    pub fn write(&mut self, items: Vec<Item>) -> BatchSeq {
        let write = self.fly(items);
        self.put(&write, |_| true);
        self.wal.written(write.seq);
        write.seq
    }

    pub fn idle_mark(&mut self) -> BatchSeq {
        assert!(self.wal.wants_idle_mark());
        self.wal.push_idle_mark();
        let write = self.wal.next_batch(&self.pool).expect("there is room");
        self.put(&write, |_| true);
        self.wal.written(write.seq);
        write.seq
    }

    pub fn release_to(&mut self, seq: BatchSeq) {
        self.marks = Marks {
            last_open: self.marks.last_open,
            tail_seq: seq,
            tail_offset: match self.written.get(&seq) {
                Some((offset, _)) => *offset,
                None => self.wal.head_offset(),
            },
            durable_seq: self.wal.durable_seq(),
        };
        self.wal.release_to(seq);
    }

    /// Breaks one page of a batch, counted from its first.
    pub fn damage(&mut self, seq: u64, page: usize) {
        let at = self.written[&BatchSeq(seq)].0 as usize + page * BLOCK_BYTES;
        self.disk[at + 100] ^= 0x40;
    }

    pub fn recover(&self) -> Result<Recovered, RecoverError> {
        recover(&self.config, &self.marks, &mut |offset, len| self.read(offset, len))
    }

    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset + len as u64;
        if self.unreadable.iter().any(|at| (offset..end).contains(at)) {
            return Err(io::Error::other("unreadable"));
        }
        Ok(Bytes::copy_from_slice(&self.disk[offset as usize..end as usize]))
    }

    /// What an open does: raises the incarnation, recovers, goes on.
    pub fn reopen(&mut self) -> Recovered {
        self.config.incarnation += 1;
        let recovered = self.recover().expect("the log can be read");
        self.marks.last_open = self.config.incarnation;
        self.wal = Wal::new(self.config.clone(), recovered.position.clone());
        recovered
    }

    pub fn replay(&self, flushed: &[(u64, u64)]) -> BTreeMap<MemberId, MemberLog> {
        let members = flushed
            .iter()
            .map(|(member, index)| {
                let flushed = Flushed { index: *index, term: 1 };
                (MemberId(*member), flushed)
            })
            .collect();
        replay(self.recover().expect("readable").log, &members, &[])
    }
}

pub fn hard(member: u64, term: u64, commit: u64) -> Item {
    Item::Hard { member: MemberId(member), hard: HardState { term, vote: 1, commit } }
}

pub fn log_entry(index: u64, term: u64, blocks: usize) -> LogEntry {
    LogEntry {
        bypass: None,
        index,
        term,
        kind: 0,
        context: Bytes::copy_from_slice(&index.to_le_bytes()),
        payload: vec![(index + term) as u8; blocks * BLOCK_BYTES].into(),
    }
}

pub fn entry(member: u64, index: u64, term: u64, blocks: usize) -> Item {
    Item::Entry { member: MemberId(member), entry: log_entry(index, term, blocks) }
}

/// An entry whose payload lies in two slots.
pub fn bypassed(member: u64, index: u64, term: u64) -> Item {
    let slots = [5, 6].map(|slot| BypassSlot { slot: Slot(slot), crcs: [9; _] }).to_vec();
    let bypass = Some(Box::new(Bypass { first: Extent(0), slots }));
    let entry = LogEntry { bypass, ..log_entry(index, term, 0) };
    Item::Entry { member: MemberId(member), entry }
}

/// The item that was pushed, from a decoded one. `payload` gives the payload of an entry.
pub fn as_item(found: &FoundItem, payload: &mut impl FnMut(&FoundEntry) -> Bytes) -> Item {
    let mut entry_of = |found: &FoundEntry| LogEntry {
        bypass: found.bypass.clone(),
        index: found.index,
        term: found.term,
        kind: found.kind,
        context: found.context.clone(),
        payload: payload(found),
    };
    match found {
        FoundItem::Hard { member, hard } => Item::Hard { member: *member, hard: *hard },
        FoundItem::Entry { member, entry } => {
            Item::Entry { member: *member, entry: entry_of(entry) }
        }
        FoundItem::Reset { member, index, term } => {
            Item::Reset { member: *member, index: *index, term: *term }
        }
        FoundItem::LogSnapshot { member, hard, compacted_index, compacted_term, entries } => {
            Item::LogSnapshot {
                member: *member,
                hard: *hard,
                compacted_index: *compacted_index,
                compacted_term: *compacted_term,
                entries: entries.iter().map(entry_of).collect(),
            }
        }
        FoundItem::Fault { member } => Item::Fault { member: *member },
    }
}

/// The item that was pushed, from a decoded one. Reads the payloads from the ring.
pub fn loaded(fixture: &Fixture, found: &FoundItem) -> Item {
    let mut read = |at, len| fixture.read(at, len);
    as_item(found, &mut |entry| load_payload(entry, &mut read).expect("intact"))
}

/// Sequences of the batches that were kept.
pub fn kept(recovered: &Recovered) -> Vec<u64> {
    let batches = recovered.log.iter().filter_map(|part| match part {
        LogPart::Batch(batch) => Some(batch.header.seq.0),
        LogPart::Lost(_) => None,
    });
    batches.collect()
}
