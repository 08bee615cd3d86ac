//! The writing side of the ring: forms batches of groups, places them, and reports durable groups.
//!
//! **Placement.** A batch never wraps. If it does not fit before the end of the file, it starts at
//! offset 0, and the skipped pages keep their content. Nothing on the disk says so: recovery looks
//! at every page and follows the chain. It needs no offsets, and no pad marker that could be torn.
//!
//! **Space.** Everything from the oldest kept batch to the head is in use. [`Wal::free_bytes`] is
//! the room for entries. HardStates, resets and log snapshots are placed while there is any room.
//! So the reserve (rule `log-reserve`) holds if `free_bytes` admits the entries.
//!
//! **What can be read back.** A batch below the tail is intact until another one is placed over it.
//! [`Wal::span`] has every batch of which no byte was given away. Nothing holds them.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::io::buffer::{Pool, is_aligned};
use crate::planted::planted;
use crate::types::BLOCK_BYTES;

use super::format::{
    self, Batch, FIXED_BYTES, FormatError, HEADER_BYTES_MAX, Header, Keys, RECORD_BYTES,
};
use super::{BatchSeq, BatchWrite, GroupId, Item, Placed, WalConfig, WalPosition};

/// Most batches not contiguously durable. Recovery skips as many numbers: a crash may hide them.
pub const IN_FLIGHT_MAX: usize = 4;

const BATCH_BYTES_MAX: u64 = 4 << 20;
const BATCH_BUFS_MAX: usize = 512;
const BATCH_ITEMS_MAX: usize = 1024;
/// While a batch is in flight, the next one has at least this many bytes.
const GATE_BYTES: u64 = 64 << 10;
/// A group with more than [`BATCH_BUFS_MAX`] payloads is copied into pieces of this size.
const GATHER_BYTES: usize = 1 << 20;
const PAGE: u64 = BLOCK_BYTES as u64;

pub struct Wal {
    config: WalConfig,
    keys: Keys,
    waiting: Waiting,
    space: Space,
    chain: Chain,
    /// Oldest first: every batch that is not contiguously durable.
    in_flight: VecDeque<InFlight>,
    durable_seq: BatchSeq,
    /// The durable mark in the newest batch.
    mark_written: BatchSeq,
    /// The newest batch that was not an idle mark.
    news_seq: BatchSeq,
    idle_mark: bool,
}

#[derive(Default)]
struct Waiting {
    groups: VecDeque<Group>,
    bytes: u64,
    /// Bytes of the largest group since the queue was empty.
    largest_bytes: u64,
}

struct Group {
    id: GroupId,
    items: Vec<Item>,
    /// Most bytes that it takes as a batch of its own.
    bytes: u64,
    payloads: usize,
}

struct InFlight {
    seq: BatchSeq,
    bytes: u64,
    groups: Vec<GroupId>,
    done: bool,
}

/// The next batch's references to the ones before it.
struct Chain {
    next_seq: BatchSeq,
    base_seq: BatchSeq,
    seq: BatchSeq,
    previous_seq: BatchSeq,
    crc: u32,
    index: Bytes,
}

impl Wal {
    /// Continues where recovery ended. Everything that recovery kept must be durable (see
    /// `Recovered::unconfirmed`), and the incarnation newer than any in the ring.
    pub fn new(config: WalConfig, at: WalPosition) -> Wal {
        assert!(config.ring_bytes.is_multiple_of(PAGE) && config.ring_bytes > 0);
        assert!(
            config.incarnation > at.chain_incarnation,
            "every open raises the incarnation before it writes"
        );
        assert!(at.next_seq > at.chain_seq);
        let news = u64::from(!at.previous_items.is_empty());
        Wal {
            keys: Keys { disk: config.disk, seed: config.seed },
            waiting: Waiting::default(),
            space: Space {
                ring_bytes: config.ring_bytes,
                head: at.head_offset,
                intact: spans(&at.kept, at.head_offset, config.ring_bytes),
                kept: at.kept.into(),
                released_seq: at.tail_seq,
            },
            in_flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
            durable_seq: at.chain_seq,
            mark_written: at.durable_mark,
            news_seq: BatchSeq((at.chain_seq.0 + news).saturating_sub(1)),
            idle_mark: false,
            chain: Chain {
                next_seq: at.next_seq,
                base_seq: at.chain_seq,
                seq: at.chain_seq,
                previous_seq: at.chain_previous_seq,
                crc: at.chain_crc,
                index: at.previous_items,
            },
            config,
        }
    }

    /// Queues items that become durable together, in this order, in one batch.
    pub fn push(&mut self, group: GroupId, items: Vec<Item>) {
        let bodies: usize = items.iter().map(format::body_bytes).sum();
        // The group's own index, and its copy in the next batch.
        let header = FIXED_BYTES + 2 * RECORD_BYTES * items.len() + bodies;
        assert!(
            header + BATCH_ITEMS_MAX * RECORD_BYTES <= HEADER_BYTES_MAX,
            "a group of more items than a header can hold"
        );
        let payloads = || items.iter().flat_map(format::entries_of);
        let pages: usize = payloads().map(|e| format::pages(e.payload.len())).sum();
        let group = Group {
            id: group,
            bytes: (format::pages(header) + pages) as u64 * PAGE,
            payloads: payloads().filter(|e| !e.payload.is_empty()).count(),
            items,
        };
        assert!(group.bytes <= self.config.ring_bytes, "a group larger than the ring");
        self.waiting.bytes += group.bytes;
        self.waiting.largest_bytes = self.waiting.largest_bytes.max(group.bytes);
        self.waiting.groups.push_back(group);
    }

    /// The next batch, if the gate is open: at once with nothing in flight; otherwise when the
    /// waiting bytes reach max(64 KiB, the newest batch in flight) and fewer than [`IN_FLIGHT_MAX`]
    /// batches are in flight. `None` also while the ring has no room.
    pub fn next_batch(&mut self, pool: &Pool) -> Option<BatchWrite> {
        if !self.gate_is_open() {
            return None;
        }
        let count = self.cut();
        let index: Bytes = format::item_index(self.items(count)).into();
        let header = self.header(count, &index);
        let header_bytes = header.header_bytes() as u64;
        let offset = self.space.place(header.seq, header.total_bytes(), header_bytes)?;
        let header = Header { offset, ..header };
        let (bufs, crc) = self.encode(pool, count, &header, &index);
        let placed = self.placed(count, &header);

        let groups = self.waiting.take(count);
        self.in_flight.push_back(InFlight {
            seq: header.seq,
            bytes: header.total_bytes(),
            groups,
            done: false,
        });
        self.chain = Chain {
            next_seq: BatchSeq(header.seq.0 + 1),
            base_seq: self.chain.base_seq,
            seq: header.seq,
            previous_seq: self.chain.seq,
            crc,
            index,
        };
        self.mark_written = header.durable_seq;
        self.idle_mark = false;
        if count > 0 {
            self.news_seq = header.seq;
        }
        Some(BatchWrite { seq: header.seq, offset, bufs, placed })
    }

    fn gate_is_open(&self) -> bool {
        match self.in_flight.back() {
            None => self.idle_mark || !self.waiting.groups.is_empty(),
            Some(newest) => {
                self.in_flight.len() < IN_FLIGHT_MAX
                    && self.waiting.bytes >= newest.bytes.max(GATE_BYTES)
            }
        }
    }

    /// The number of waiting groups for the next batch. The first always goes in.
    fn cut(&self) -> usize {
        let limit = self.batch_bytes_max().min(self.space.room_bytes());
        let mut bytes = format::pages(self.chain.index.len()) as u64 * PAGE;
        let (mut payloads, mut items, mut count) = (0, 0, 0);
        for group in &self.waiting.groups {
            bytes += group.bytes;
            payloads += group.payloads;
            items += group.items.len();
            let full = bytes > limit || payloads > BATCH_BUFS_MAX || items > BATCH_ITEMS_MAX;
            if count > 0 && full {
                break;
            }
            count += 1;
        }
        count
    }

    /// Largest batch of several groups; small rings have small batches.
    fn batch_bytes_max(&self) -> u64 {
        BATCH_BYTES_MAX.min(self.config.ring_bytes / 8)
    }

    fn items(&self, count: usize) -> impl Iterator<Item = &Item> {
        let groups = self.waiting.groups.range(..count);
        groups.flat_map(|group| group.items.iter())
    }

    /// The header of a batch of the first `count` groups, without its place.
    fn header(&self, count: usize, index: &[u8]) -> Header {
        let body_bytes: usize = self.items(count).map(format::body_bytes).sum();
        let used = FIXED_BYTES + index.len() + self.chain.index.len() + body_bytes;
        let header_pages = format::pages(used);
        let entries = self.items(count).flat_map(format::entries_of);
        let pages: usize = entries.map(|e| format::pages(e.payload.len())).sum();
        let narrow = |value: usize| u32::try_from(value).expect("bounded by the ring");
        Header {
            seq: self.chain.next_seq,
            incarnation: self.config.incarnation,
            offset: 0,
            total_pages: narrow(header_pages + pages),
            header_pages: narrow(header_pages),
            items: narrow(self.items(count).count()),
            index_records: narrow(index.len() / RECORD_BYTES),
            previous_records: narrow(self.chain.index.len() / RECORD_BYTES),
            body_bytes: narrow(body_bytes),
            durable_seq: self.durable_seq,
            tail_seq: self.space.released_seq,
            base_seq: self.chain.base_seq,
            previous_seq: self.chain.seq,
            before_previous_seq: self.chain.previous_seq,
            previous_crc: self.chain.crc,
            crc: 0,
        }
    }

    fn encode(
        &self,
        pool: &Pool,
        count: usize,
        header: &Header,
        index: &[u8],
    ) -> (Vec<Bytes>, u32) {
        let payloads = || {
            let entries = self.items(count).flat_map(format::entries_of);
            entries.map(|e| &e.payload).filter(|p| !p.is_empty())
        };
        let mut pages = pool.take(header.header_bytes());
        let items = self.items(count);
        let crc = format::encode(&self.keys, header, index, &self.chain.index, items, &mut pages);
        let number = payloads().count();
        let mut bufs = Vec::with_capacity(1 + number.min(BATCH_BUFS_MAX));
        bufs.push(pages.freeze());
        if number <= BATCH_BUFS_MAX {
            bufs.extend(payloads().map(|payload| {
                if is_aligned(payload) { payload.clone() } else { padded(pool, payload) }
            }));
        } else {
            let pages = (header.total_pages - header.header_pages) as usize;
            gather(pool, payloads(), pages * BLOCK_BYTES, &mut bufs);
        }
        (bufs, crc)
    }

    fn placed(&self, count: usize, header: &Header) -> Vec<Placed> {
        let mut payload_offset = header.offset + header.header_bytes() as u64;
        let mut placed = Vec::new();
        for item in self.items(count) {
            let Some(member) = item.member_of_entries() else { continue };
            for entry in format::entries_of(item) {
                placed.push(Placed { member, index: entry.index, seq: header.seq, payload_offset });
                payload_offset += format::pages(entry.payload.len()) as u64 * PAGE;
            }
        }
        placed
    }

    /// Ends the write of a batch. Returns the groups now *contiguously* durable, in order.
    pub fn written(&mut self, seq: BatchSeq) -> Vec<GroupId> {
        let batch = self
            .in_flight
            .iter_mut()
            .find(|batch| batch.seq == seq && !batch.done)
            .expect("a batch in flight ends once");
        batch.done = true;
        let mut durable = Vec::new();
        while self.in_flight.front().is_some_and(|batch| batch.done) {
            let batch = self.in_flight.pop_front().expect("there is a front");
            self.durable_seq = batch.seq;
            durable.extend(batch.groups);
        }
        durable
    }

    /// Largest contiguous durable batch.
    pub fn durable_seq(&self) -> BatchSeq {
        self.durable_seq
    }

    /// The newest durable batch that is kept, or the start of the log. Not always `durable_seq`:
    /// recovery may have found the last durable batches lost.
    pub fn newest_durable_kept(&self) -> BatchSeq {
        let kept = &self.space.kept;
        let durable = kept.partition_point(|batch| batch.0 <= self.durable_seq);
        durable.checked_sub(1).map_or(self.space.released_seq, |newest| kept[newest].0)
    }

    /// Bytes that entries may still use, without the reserve and the waiting groups. An entry takes
    /// its payload in whole pages and, at worst, a header page of its own.
    pub fn free_bytes(&self) -> u64 {
        let largest = self.batch_bytes_max().max(self.waiting.largest_bytes);
        let reserve = match planted!(NoReserve) {
            true => 0,
            false => self.config.reserve_bytes,
        };
        let taken = reserve + self.waiting.bytes;
        self.space.usable_bytes(largest).saturating_sub(taken)
    }

    /// True when nothing follows and an *idle mark* is due: a batch with only the durable mark.
    pub fn wants_idle_mark(&self) -> bool {
        let quiet = self.in_flight.is_empty() && self.waiting.groups.is_empty();
        quiet && self.mark_written < self.news_seq && !self.idle_mark
    }

    /// Writes the idle mark next, unless another batch goes first: every batch carries the mark.
    pub fn push_idle_mark(&mut self) {
        self.idle_mark = true;
    }

    /// The tail for the superblock: the batch of the last `release_to`, and the offset of the
    /// oldest kept batch (of the head without any).
    pub fn tail(&self) -> (BatchSeq, u64) {
        let offset = self.space.kept.front().map_or(self.space.head, |kept| kept.1);
        (self.space.released_seq, offset)
    }

    /// Offset of the next batch, if it fits there.
    pub fn head_offset(&self) -> u64 {
        self.space.head
    }

    /// The number of the next batch: items pushed now go there or later.
    pub fn next_seq(&self) -> BatchSeq {
        self.chain.next_seq
    }

    /// The place of a batch that no later batch has overwritten, not even in part.
    pub fn span(&self, seq: BatchSeq) -> Option<Span> {
        let intact = &self.space.intact;
        let position = intact.binary_search_by_key(&seq, |span| span.seq).ok()?;
        Some(intact[position])
    }

    /// The oldest batch that has a [`Wal::span`]; without any, the next batch.
    pub fn oldest_intact(&self) -> BatchSeq {
        self.space.intact.front().map_or(self.chain.next_seq, |span| span.seq)
    }

    /// Decodes header pages that were read back from the place of `span`. They must be this batch.
    ///
    /// `Ok(Err(bytes))`: the header has more pages, `bytes` in all.
    pub fn decode(&self, span: Span, pages: &[u8]) -> Result<Result<Batch, usize>, FormatError> {
        let header = format::decode_fixed(&self.keys, pages)?;
        if (header.seq, header.offset) != (span.seq, span.offset) {
            return Err(FormatError::NoHeader);
        }
        match pages.get(..header.header_bytes()) {
            Some(pages) => format::decode(&self.keys, &header, pages).map(Ok),
            None => Ok(Err(header.header_bytes())),
        }
    }

    /// Offset of a batch that is still kept.
    pub fn offset_of(&self, seq: BatchSeq) -> u64 {
        let kept = &self.space.kept;
        let position = kept.binary_search_by_key(&seq, |batch| batch.0);
        kept[position.expect("the batch is still kept")].1
    }

    /// Lets the ring overwrite all batches below `seq`. The superblock must durably have the new
    /// tail before (rule `tail-after-superblock`).
    pub fn release_to(&mut self, seq: BatchSeq) {
        assert!(
            seq <= self.chain.next_seq && self.in_flight.front().is_none_or(|b| seq <= b.seq),
            "only what is durable can be released"
        );
        self.space.released_seq = self.space.released_seq.max(seq);
        while self.space.kept.front().is_some_and(|batch| batch.0 < seq) {
            self.space.kept.pop_front();
        }
    }
}

impl Waiting {
    fn take(&mut self, count: usize) -> Vec<GroupId> {
        let mut ids = Vec::with_capacity(count);
        for group in self.groups.drain(..count) {
            self.bytes -= group.bytes;
            ids.push(group.id);
        }
        if self.groups.is_empty() {
            self.largest_bytes = 0;
        }
        ids
    }
}

/// A copy in aligned memory, padded with zeroes to the page.
fn padded(pool: &Pool, payload: &[u8]) -> Bytes {
    let mut buf = pool.take(format::pages(payload.len()) * BLOCK_BYTES);
    buf[..payload.len()].copy_from_slice(payload);
    buf[payload.len()..].fill(0);
    buf.freeze()
}

/// Copies padded payloads into few large pieces: a vectored write takes a limited number.
fn gather<'a>(
    pool: &Pool,
    payloads: impl Iterator<Item = &'a Bytes>,
    mut left_bytes: usize,
    out: &mut Vec<Bytes>,
) {
    let mut piece = pool.take(left_bytes.min(GATHER_BYTES));
    let mut filled = 0;
    for payload in payloads {
        let mut rest: &[u8] = payload;
        while !rest.is_empty() {
            let len = rest.len().min(piece.len() - filled);
            let padded_len = format::pages(len) * BLOCK_BYTES;
            piece[filled..filled + len].copy_from_slice(&rest[..len]);
            piece[filled + len..filled + padded_len].fill(0);
            rest = &rest[len..];
            filled += padded_len;
            if filled == piece.len() {
                left_bytes -= filled;
                filled = 0;
                let next = pool.take(left_bytes.min(GATHER_BYTES));
                out.push(std::mem::replace(&mut piece, next).freeze());
            }
        }
    }
    assert_eq!((left_bytes, filled), (0, 0), "the pages were counted");
}

/// The place of a batch in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub seq: BatchSeq,
    pub offset: u64,
    /// At least its length.
    pub bytes: u64,
    /// Bytes of its header pages, or less if recovery found it.
    pub header_bytes: u64,
}

/// The spans of the batches that recovery kept. A batch ends where the next one starts, or earlier.
fn spans(kept: &[(BatchSeq, u64)], head: u64, ring_bytes: u64) -> VecDeque<Span> {
    let ends = kept.iter().skip(1).map(|next| next.1).chain([head]);
    let span = |((seq, offset), end): (&(BatchSeq, u64), u64)| {
        let end = if end > *offset { end } else { ring_bytes };
        Span { seq: *seq, offset: *offset, bytes: end - offset, header_bytes: PAGE }
    };
    kept.iter().zip(ends).map(span).collect()
}

struct Space {
    ring_bytes: u64,
    /// Below `ring_bytes`. Equal to the offset of the oldest kept batch: the ring is full.
    head: u64,
    /// Number and offset of every batch that is kept, oldest first.
    kept: VecDeque<(BatchSeq, u64)>,
    /// The kept batches, and before them those that were released and are not overwritten.
    intact: VecDeque<Span>,
    /// The durable tail.
    released_seq: BatchSeq,
}

impl Space {
    /// Free bytes from the head to the end of the file or the tail, and from offset 0 to the tail
    /// if the head has not wrapped.
    fn free(&self) -> (u64, u64) {
        match self.kept.front() {
            None => (self.ring_bytes - self.head, self.head),
            Some((_, tail)) if *tail < self.head => (self.ring_bytes - self.head, *tail),
            Some((_, tail)) => (*tail - self.head, 0),
        }
    }

    /// Gives a batch its place; `None`: there is no room.
    fn place(&mut self, seq: BatchSeq, bytes: u64, header_bytes: u64) -> Option<u64> {
        let (here, at_start) = self.free();
        let offset = if bytes <= here {
            self.head
        } else if bytes <= at_start || (self.kept.is_empty() && bytes <= self.ring_bytes) {
            0
        } else {
            return None;
        };
        self.overwrite(offset, offset + bytes);
        self.kept.push_back((seq, offset));
        self.intact.push_back(Span { seq, offset, bytes, header_bytes });
        self.head = (offset + bytes) % self.ring_bytes;
        Some(offset)
    }

    /// Forgets the batches in this range: the oldest, because the ring is written in order. Those
    /// behind the head are older than all at the start of the file.
    fn overwrite(&mut self, start: u64, end: u64) {
        let wraps = start < self.head;
        while let Some(oldest) = self.intact.front() {
            let skipped = wraps && oldest.offset >= self.head;
            let shares = oldest.offset < end && start < oldest.offset + oldest.bytes;
            if !skipped && !shares {
                break;
            }
            self.intact.pop_front();
        }
    }

    /// The largest batch that can be placed now.
    fn room_bytes(&self) -> u64 {
        if self.kept.is_empty() {
            return self.ring_bytes;
        }
        let (here, at_start) = self.free();
        here.max(at_start)
    }

    /// Free bytes, less the waste at the end of the file if no batch is larger than `largest`.
    fn usable_bytes(&self, largest: u64) -> u64 {
        let (here, at_start) = self.free();
        let wasted =
            if at_start > 0 || here + self.head == self.ring_bytes { here.min(largest) } else { 0 };
        here + at_start - wasted
    }
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
