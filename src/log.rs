//! The types of the log: appends and applied entries of a replica, as its store records them. Both
//! sides use the same types, so nothing is copied between them.

use bytes::Bytes;

use crate::types::{BlockError, BlockRange, EXTENT_BYTES, Extent, MemberId};

/// Term, vote and commit of a member. `vote` 0: no vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// One Raft entry. `payload` is whole blocks in aligned memory, or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEntry {
    /// Set by the lane only, when the payload went to slots (WAL bypass); `payload` is then empty.
    /// Always `None` between lane and replica.
    pub bypass: Option<Box<Bypass>>,
    pub index: u64,
    pub term: u64,
    /// The Raft entry type, opaque to the store.
    pub kind: u8,
    pub context: Bytes,
    pub payload: Bytes,
}

/// The log does not have an entry any more, or cannot read it. `first`: the first one after it that
/// may still be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogGone {
    pub first: u64,
}

/// A 64 KiB slot of a data file: slot N starts at byte N x 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    /// Its first byte in the data file.
    pub fn offset(self) -> u64 {
        u64::from(self.0) * EXTENT_BYTES as u64
    }
}

/// The slots with the payload of a bypassed entry, which writes whole extents: one slot per extent,
/// in order (rule `bypass-before-batch`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypass {
    pub first: Extent,
    pub slots: Vec<BypassSlot>,
}

impl Bypass {
    /// The slots, without their checksums.
    pub fn slots(&self) -> Box<[Slot]> {
        self.slots.iter().map(|slot| slot.slot).collect()
    }
}

/// One slot and the checksums of its sixteen blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BypassSlot {
    pub slot: Slot,
    pub crcs: [u32; 16],
}

/// Marks an entry of an append that only writes whole extents. The lane may write its payload to
/// slots instead of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeExtents {
    pub index: u64,
    pub first: Extent,
    /// One per block of the entry.
    pub crcs: Vec<u32>,
}

/// One atomic log write of a member. An empty one makes nothing durable.
#[derive(Debug, Default)]
pub struct Append {
    pub member: MemberId,
    /// Identifies the write in its confirmation. Grows by one per write of a member.
    pub number: u64,
    pub hard: Option<HardState>,
    pub reset: Option<Reset>,
    /// Entries to append. An entry at or below the last index replaces it and drops all after it.
    pub entries: Vec<LogEntry>,
    /// Hints for some of the entries, in order.
    pub whole_extents: Vec<WholeExtents>,
}

/// Replaces a log by a Raft snapshot. The log is emptied and starts behind this point. The store
/// already holds all entries up to the point, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub index: u64,
    pub term: u64,
    pub meta: Bytes,
}

/// A committed entry for the store. The entry itself, with its payload, was appended before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
    /// `None`: no change (no-op, configuration, refused by rule `session-checked-at-apply`).
    pub change: Option<Change>,
    /// The complete new metadata, if this entry changed it.
    pub meta: Option<Bytes>,
    /// For the catalog's group, which has no store: the opaque command.
    pub command: Option<Bytes>,
    /// For the client only: why rule `session-checked-at-apply` refused the entry.
    pub refused: Option<BlockError>,
}

/// A physical change of whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// One checksum per block. `payload` is empty in a replay, because the log has it.
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
