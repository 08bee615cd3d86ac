//! The vocabulary of the log: what a replica appends and applies, and what its store writes down.
//! Both sides use these very types, so nothing is copied between them.

use bytes::Bytes;

use crate::types::{BlockError, BlockRange, Extent, MemberId};

/// Term, vote and commit of a member. `vote` 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// One Raft entry. `payload` is whole blocks in aligned memory, or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEntry {
    /// The lane alone sets this, when the payload went to slots instead of the log; `payload` is
    /// then empty. `None` on the way from and to a replica.
    pub redirect: Option<Box<Redirect>>,
    pub index: u64,
    pub term: u64,
    /// The Raft entry type, opaque to the store.
    pub kind: u8,
    pub context: Bytes,
    pub payload: Bytes,
}

/// Where 64 KiB of a data file are: slot N is at byte N x 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Where the payload of an entry is that writes whole extents, one slot for each, in order
/// (rule R6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub first: Extent,
    pub slots: Vec<RedirectedSlot>,
}

impl Redirect {
    /// The slots, without their checksums.
    pub fn slots(&self) -> Box<[Slot]> {
        self.slots.iter().map(|slot| slot.slot).collect()
    }
}

/// One slot and the checksums of its sixteen blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectedSlot {
    pub slot: Slot,
    pub crcs: [u32; 16],
}

/// Says of an entry of an append that it writes whole extents and nothing else: the lane may
/// write its payload to slots instead of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeExtents {
    pub index: u64,
    pub first: Extent,
    /// One per block.
    pub crcs: Vec<u32>,
}

/// One atomic log write of a member. Nothing becomes durable when all of it is empty.
#[derive(Debug, Default)]
pub struct Append {
    pub member: MemberId,
    /// Names the write in its confirmation. Grows by one per member.
    pub number: u64,
    pub hard: Option<HardState>,
    pub reset: Option<Reset>,
    /// Entries to append; an entry at or below the last index replaces it and drops all after.
    pub entries: Vec<LogEntry>,
    /// What is known of some of the entries, in their order.
    pub whole_extents: Vec<WholeExtents>,
}

/// A log replaced by a Raft snapshot: it now starts behind this point, and everything that was in
/// it is dropped. The store already holds everything up to the point, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub index: u64,
    pub term: u64,
    pub meta: Bytes,
}

/// A committed entry on its way into the store. The entry itself, with its payload, was appended
/// before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
    /// `None`: nothing changes (no-op, configuration, refused by R15).
    pub change: Option<Change>,
    /// The whole new metadata when this entry changed it.
    pub meta: Option<Bytes>,
    /// For the catalog's group, which has no store: the opaque command.
    pub command: Option<Bytes>,
    /// For the client, not for the store: why rule R15 refused the entry, which changes nothing.
    pub refused: Option<BlockError>,
}

/// A physical change of whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// One checksum per block. `payload` is the entry's; empty: only in the log (replay).
    Write {
        range: BlockRange,
        crcs: Vec<u32>,
        payload: Bytes,
    },
    Zero {
        range: BlockRange,
        trim: bool,
    },
}
