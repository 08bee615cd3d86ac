//! The write-ahead log of a lane: a prewritten ring file of 4 KiB pages with one batch after
//! another. Pure: bytes in, bytes out.

mod decide;
pub mod format;
pub mod recover;
pub mod replay;
pub mod ring;
mod scan;

use bytes::Bytes;

use crate::log::{HardState, LogEntry};
use crate::types::{MemberId, Uuid};

pub use ring::Wal;

/// An item of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Hard {
        member: MemberId,
        hard: HardState,
    },
    /// Replaces the entry with this index, if any, and drops all later ones.
    Entry {
        member: MemberId,
        entry: LogEntry,
    },
    /// Drops the member's whole log, which now starts after this point.
    Reset {
        member: MemberId,
        index: u64,
        term: u64,
    },
    /// Replaces everything that the log holds of a member (rule `log-snapshot-replaces`).
    LogSnapshot {
        member: MemberId,
        hard: HardState,
        compacted_index: u64,
        compacted_term: u64,
        entries: Vec<LogEntry>,
    },
    /// The member may have forgotten a vote or an acknowledgement. It stays faulted for ever.
    /// Written after the recovery that found it, before the tail passes the lost batch.
    Fault {
        member: MemberId,
    },
}

/// Sequence number of a batch. Starts at 1; a lane never uses one twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(pub u64);

/// Identifies a group of items that become durable together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// The place of an entry: its batch, and the byte offset of its payload in the ring file (a
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
    /// The place of each entry of the batch, also of those in log snapshots.
    pub placed: Vec<Placed>,
}

/// The constants of a lane's log.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Size of the ring file, a multiple of 4 KiB.
    pub ring_bytes: u64,
    pub disk: Uuid,
    /// Secret of this disk, so that client data cannot imitate a batch.
    pub seed: u64,
    /// Raised by every open.
    pub incarnation: u64,
    /// Bytes that only HardStates, resets and log snapshots may use (rule `log-reserve`).
    pub reserve_bytes: u64,
}

/// The state of the ring after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// The next batch gets this number.
    pub next_seq: BatchSeq,
    /// The next batch starts here, if it fits before the end of the file.
    pub head_offset: u64,
    /// The tail for the superblock: never after a lost batch.
    pub tail_seq: BatchSeq,
    /// Offset of the oldest kept batch, or of the head without any.
    pub tail_offset: u64,
    /// Number, incarnation and CRC of the next batch's predecessor, and the number of the batch
    /// before that. A lost batch has CRC 0.
    pub chain_seq: BatchSeq,
    pub chain_incarnation: u64,
    pub chain_crc: u32,
    pub chain_previous_seq: BatchSeq,
    /// Encoded item index of the predecessor; the next batch copies it.
    pub previous_items: Bytes,
    /// Largest durable mark on the disk.
    pub durable_mark: BatchSeq,
    /// Every kept batch and its offset, oldest first.
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
    /// The member of an item with entries.
    fn member_of_entries(&self) -> Option<MemberId> {
        match self {
            Item::Entry { member, .. } | Item::LogSnapshot { member, .. } => Some(*member),
            Item::Hard { .. } | Item::Reset { .. } | Item::Fault { .. } => None,
        }
    }
}
