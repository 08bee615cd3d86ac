//! Effects of a lane in flight, with one enum of operations for each part that asks for I/O. When
//! an effect ends, its part gets back the data that it kept with the operation.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::store::messages::{Effect, Event, ExtentKey, IndexJob, LaneFile, OpId, ReadId, Slot};
use crate::store::wal::BatchSeq;
use crate::types::MemberId;

/// Effects in flight, and effects and events for the next `poll`.
#[derive(Default)]
pub(super) struct Io {
    next_op: u64,
    pending: FxHashMap<OpId, Pending>,
    pub effects: Vec<Effect>,
    pub events: Vec<Event>,
    poisoned: bool,
}

/// The part that asked for an effect, and its operation.
pub(super) enum Pending {
    Log(BatchSeq),
    Read(ReadOp),
    Round(RoundOp),
    /// A write to slots for this append of the member.
    Bypass {
        member: MemberId,
        number: u64,
    },
    Superblock {
        half: usize,
    },
    Flush(FlushPoint),
    Scan,
    Fetch(FetchOp),
}

pub(super) enum ReadOp {
    Piece { read: ReadId, piece: usize },
    Records { read: ReadId, keys: Vec<ExtentKey> },
}

/// A read of the log for a fetch of entries.
pub(super) struct FetchOp {
    pub number: u64,
    pub piece: usize,
    /// Position of this part of the payload; `None`: the header pages.
    pub part: Option<usize>,
    pub pinned: Vec<Slot>,
}

pub(super) enum RoundOp {
    Records { keys: Vec<ExtentKey> },
    Payload(PayloadRun),
    Write,
    Sync,
    Commit,
}

/// Neighbouring payload blocks that are read back from the log with one effect.
#[derive(Clone, Copy, Debug)]
pub(super) struct PayloadRun {
    /// Position of the extent in the round, and of the first block in its snapshots.
    pub update: usize,
    pub first: usize,
    pub count: usize,
    pub seq: BatchSeq,
}

/// What a flush of the index makes durable.
pub(super) struct FlushPoint {
    pub freed: Vec<Slot>,
    pub flushed: Vec<(MemberId, u64)>,
    pub after: AfterFlush,
}

#[derive(Clone, Debug)]
pub(super) enum AfterFlush {
    Checkpoint,
    Created(Vec<MemberId>),
    /// The record of a member changed, or the tombstone of a member that was not here.
    Recorded(MemberId),
    Destroyed(MemberId),
    Faulted(MemberId),
}

impl Pending {
    /// A failed read of data is a bad copy; any other failure poisons the lane.
    pub(super) fn may_fail(&self) -> bool {
        matches!(
            self,
            Pending::Read(ReadOp::Piece { .. })
                | Pending::Round(RoundOp::Payload(_))
                | Pending::Fetch(_)
        )
    }
}

impl Io {
    fn issue(&mut self, pending: Pending, effect: impl FnOnce(OpId) -> Effect) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        self.pending.insert(op, pending);
        self.effects.push(effect(op));
        op
    }

    /// The oldest effect in flight.
    pub(super) fn oldest(&self) -> Option<OpId> {
        self.pending.keys().min_by_key(|op| op.0).copied()
    }

    pub(super) fn read(&mut self, pending: Pending, file: LaneFile, offset: u64, len: usize) {
        self.issue(pending, |op| Effect::Read { op, file, offset, len });
    }

    pub(super) fn write(
        &mut self,
        pending: Pending,
        file: LaneFile,
        offset: u64,
        bufs: Vec<Bytes>,
        durable: bool,
    ) {
        self.issue(pending, |op| Effect::Write { op, file, offset, bufs, durable });
    }

    pub(super) fn sync(&mut self, pending: Pending, file: LaneFile) {
        self.issue(pending, |op| Effect::Sync { op, file });
    }

    pub(super) fn index(&mut self, pending: Pending, job: IndexJob) -> OpId {
        self.issue(pending, |op| Effect::Index { op, job })
    }

    /// An effect ended: returns its operation.
    pub(super) fn end(&mut self, op: OpId) -> Pending {
        self.pending.remove(&op).expect("an effect ends once")
    }

    /// The disk failed: drops everything in flight, and reports it once.
    pub(super) fn poison(&mut self, reason: String) {
        if !self.poisoned {
            self.poisoned = true;
            self.pending.clear();
            self.effects.clear();
            self.events.clear();
            self.events.push(Event::Poisoned { reason });
        }
    }

    pub(super) fn poisoned(&self) -> bool {
        self.poisoned
    }
}
