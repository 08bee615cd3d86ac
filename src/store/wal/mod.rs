//! The write-ahead log of a lane: a prewritten ring file of 4 KiB pages that holds one batch after
//! another. Pure: bytes in, bytes out.

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::store::seam::{HardState, LogEntry};
use crate::types::{MemberId, Uuid};

/// What a batch can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Hard {
        member: MemberId,
        hard: HardState,
    },
    /// Replaces the entry with this index, if there is one, and drops all after it.
    Entry {
        member: MemberId,
        entry: LogEntry,
    },
    /// The member's log now starts behind this point; everything that was in it is dropped.
    Reset {
        member: MemberId,
        index: u64,
        term: u64,
    },
    /// Replaces everything that the log held of a member (rule R8): never an append.
    Image {
        member: MemberId,
        hard: HardState,
        compacted_index: u64,
        compacted_term: u64,
        entries: Vec<LogEntry>,
    },
}

/// Sequence number of a batch. Starts at 1, is never used twice on a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(pub u64);

/// Names what was pushed together until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// Where an entry went: its batch, and the byte offset of its payload in the ring file (a
/// multiple of 4 KiB; the payload never wraps around the end of the file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub member: MemberId,
    pub index: u64,
    pub seq: BatchSeq,
    pub payload_offset: u64,
}

/// One durable write of the ring.
#[derive(Debug)]
pub struct BatchWrite {
    pub seq: BatchSeq,
    pub offset: u64,
    /// Header pages, then the payloads, all aligned to 4 KiB.
    pub bufs: Vec<Bytes>,
    /// Where each entry of the batch (of images too) went.
    pub placed: Vec<Placed>,
}

/// What never changes about a lane's log.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Size of the ring file, a multiple of 4 KiB.
    pub ring_bytes: u64,
    pub disk: Uuid,
    /// Secret of this disk: client data cannot imitate a batch.
    pub seed: u64,
    /// Raised by every open.
    pub incarnation: u64,
    /// Bytes that only HardStates, resets and images may use (rule R9).
    pub reserve_bytes: u64,
}

/// Where to go on after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// The next batch gets this number.
    pub next_seq: BatchSeq,
    /// The next batch starts here.
    pub head_offset: u64,
    /// The oldest batch that is kept: its number and offset; equal to the head when none is.
    pub tail_seq: BatchSeq,
    pub tail_offset: u64,
    /// CRC of the newest batch, which the next one chains to.
    pub chain_crc: u32,
    /// Encoded item index of the newest batch, which the next one copies.
    pub previous_items: Bytes,
}

/// The writing side of the ring.
pub struct Wal {
    _private: (),
}

impl Wal {
    pub fn new(_config: WalConfig, _at: WalPosition) -> Wal {
        todo!()
    }

    /// Queues items that become durable together, in this order, in one batch.
    pub fn push(&mut self, _group: GroupId, _items: Vec<Item>) {
        todo!()
    }

    /// The next batch, when the gate is open: at once when nothing is in flight, otherwise when
    /// the waiting bytes reach max(64 KiB, the newest batch in flight), and never more than a
    /// bounded number in flight. `None` also while the ring has no room.
    pub fn next_batch(&mut self, _pool: &Pool) -> Option<BatchWrite> {
        todo!()
    }

    /// The write of a batch ended well. Groups that are durable *contiguously*, in order.
    pub fn written(&mut self, _seq: BatchSeq) -> Vec<GroupId> {
        todo!()
    }

    /// Largest contiguous durable batch.
    pub fn durable_seq(&self) -> BatchSeq {
        todo!()
    }

    /// Bytes that entries may still use, the reserve and what waits already taken off.
    pub fn free_bytes(&self) -> u64 {
        todo!()
    }

    /// True when a batch whose only news is the durable mark should be written because nothing
    /// follows (the *idle mark*).
    pub fn wants_idle_mark(&self) -> bool {
        todo!()
    }

    /// Writes the idle mark with the next `next_batch`.
    pub fn push_idle_mark(&mut self) {
        todo!()
    }

    /// Oldest batch kept, and its offset.
    pub fn tail(&self) -> (BatchSeq, u64) {
        todo!()
    }

    /// Offset of a batch that is still kept.
    pub fn offset_of(&self, _seq: BatchSeq) -> u64 {
        todo!()
    }

    /// Batches below `seq` are no longer needed, and the superblock says so durably: their space
    /// may be overwritten.
    pub fn release_to(&mut self, _seq: BatchSeq) {
        todo!()
    }
}
