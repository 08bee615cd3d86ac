//! Reads of the lanes: what each is for. [`Reads`] owns the reads in flight; a part of the lanes.

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::replica::messages::ReqId;
use crate::store::messages::ReadId;
use crate::types::{BlockRange, Extent, MemberId, Mono};
use crate::worker::token::ConnKey;

/// The purpose of a read of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTarget {
    Blocks(BlockRead),
    Status(ReqId),
    /// A peer that resyncs from a member here.
    PeerManifest(PeerAsk),
    PeerExtent(PeerAsk),
    /// Steps of a resync into this member.
    OwnManifest(MemberId),
    Installed(MemberId),
    /// Read repair: is the extent intact again?
    Check((MemberId, Extent)),
}

/// A question of another pod about a member here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAsk {
    pub conn: ConnKey,
    pub call: CallId,
    pub source: MemberId,
}

/// A read of blocks, with all that is needed to start it again after a read repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRead {
    pub member: MemberId,
    pub range: BlockRange,
    pub reader: Reader,
    /// Bad blocks met so far.
    pub repaired: u32,
    /// When it began, before all repairs.
    pub since: Mono,
}

impl BlockRead {
    pub fn new(now: Mono, member: MemberId, range: BlockRange, reader: Reader) -> BlockRead {
        BlockRead { member, range, reader, repaired: 0, since: now }
    }
}

/// Why a member reads blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Request(ReqId),
    /// The rest of a block that a client overwrites in part.
    Base {
        ticket: u64,
    },
}

/// The reads in flight.
#[derive(Default)]
pub struct Reads {
    next: u64,
    targets: FxHashMap<ReadId, ReadTarget>,
}

impl Reads {
    pub fn add(&mut self, target: ReadTarget) -> ReadId {
        self.next += 1;
        let read = ReadId(self.next);
        self.targets.insert(read, target);
        read
    }

    pub fn len(&self) -> usize {
        self.targets.len()
    }

    pub fn take(&mut self, read: ReadId) -> ReadTarget {
        self.targets.remove(&read).expect("a lane answers only reads that were started")
    }
}
