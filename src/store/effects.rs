//! What a lane has asked of the world, and for what.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::store::checkpoint::FlushPoint;
use crate::store::seam::{Effect, Event, ExtentKey, IndexJob, LaneFile, OpId, ReadId};
use crate::store::wal::BatchSeq;
use crate::store::writeback::PayloadRun;
use crate::types::MemberId;

/// Effects under way and what waits for the next `poll`.
#[derive(Default)]
pub(super) struct Io {
    next_op: u64,
    pending: FxHashMap<OpId, Pending>,
    pub effects: Vec<Effect>,
    pub events: Vec<Event>,
    /// Reads that found no intact copy.
    pub media_faults: u64,
    /// Blocks that reads found a payload of since the start, and how many of them the overlay had.
    pub read_blocks: u64,
    pub read_overlay_blocks: u64,
    poisoned: bool,
}

/// What an effect was for.
pub(super) enum Pending {
    Wal(BatchSeq),
    ReadPiece {
        read: ReadId,
        piece: usize,
    },
    ReadRecords {
        read: ReadId,
        keys: Vec<ExtentKey>,
    },
    RoundRecords {
        keys: Vec<ExtentKey>,
    },
    RoundPayload(PayloadRun),
    RoundWrite,
    RoundSync,
    RoundCommit,
    /// A slot of a redirected entry in this append of the member.
    RedirectWrite {
        member: MemberId,
        number: u64,
    },
    Flush(FlushPoint),
    SuperblockFirst,
    SuperblockSecond,
    Scan,
}

impl Pending {
    /// A failed read is a bad copy; anything else that fails poisons the lane.
    pub(super) fn may_fail(&self) -> bool {
        matches!(self, Pending::ReadPiece { .. } | Pending::RoundPayload(_))
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

    /// The oldest that has not ended.
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

    /// What this effect was for; it has ended.
    pub(super) fn end(&mut self, op: OpId) -> Pending {
        self.pending.remove(&op).expect("an effect ends once")
    }

    /// The disk failed: nothing goes on, and the world is told once.
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
