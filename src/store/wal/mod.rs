//! The write-ahead log of a lane: a prewritten ring file of 4 KiB pages that holds one batch after
//! another. Pure: bytes in, bytes out.

mod decide;
pub mod fold;
pub mod format;
pub mod recover;
pub mod ring;
mod scan;

use bytes::Bytes;

use crate::log::{HardState, LogEntry};
use crate::types::{MemberId, Uuid};

pub use ring::Wal;

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
    /// The member may have forgotten a vote or an acknowledgement: for ever, whatever follows. To
    /// be written after a recovery that found it, before the tail passes what was lost.
    Fault {
        member: MemberId,
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
    /// The next batch starts here, if it fits before the end of the file.
    pub head_offset: u64,
    /// What the superblock may name as its tail: never beyond a batch that was lost.
    pub tail_seq: BatchSeq,
    /// Offset of the oldest batch that is kept, or the head when none is.
    pub tail_offset: u64,
    /// Number, incarnation and CRC of the batch that the next one follows, and the number of the
    /// one before that. A batch that was lost has CRC 0.
    pub chain_seq: BatchSeq,
    pub chain_incarnation: u64,
    pub chain_crc: u32,
    pub chain_previous_seq: BatchSeq,
    /// Encoded item index of the batch that the next one follows, which it copies.
    pub previous_items: Bytes,
    /// Largest durable mark on the disk.
    pub durable_mark: BatchSeq,
    /// Every batch that is kept and its offset, oldest first.
    pub kept: Vec<(BatchSeq, u64)>,
}

impl WalPosition {
    /// The start of a ring that was never written.
    pub fn fresh() -> WalPosition {
        WalPosition {
            next_seq: BatchSeq(1),
            head_offset: 0,
            tail_seq: BatchSeq(1),
            tail_offset: 0,
            chain_seq: BatchSeq(0),
            chain_incarnation: 0,
            chain_crc: 0,
            chain_previous_seq: BatchSeq(0),
            previous_items: Bytes::new(),
            durable_mark: BatchSeq(0),
            kept: Vec::new(),
        }
    }
}

impl Item {
    /// The member, of an item that can carry entries.
    fn member_of_entries(&self) -> Option<MemberId> {
        match self {
            Item::Entry { member, .. } | Item::Image { member, .. } => Some(*member),
            Item::Hard { .. } | Item::Reset { .. } | Item::Fault { .. } => None,
        }
    }
}
