//! The state of client requests in a volume.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::slab::Slab;
use crate::types::{
    BLOCK_BYTES, BlockError, BlockOp, BlockReply, Mono, PodId, Segment, Session, ShardReply,
    StatusRun, zero_charge_bytes,
};
use crate::volume::layout::{self, Piece};
use crate::volume::read;

/// A client's connection to this front end. Chosen by the caller and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Time after which an unanswered probe is forgotten, and another member is asked.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
/// Time after which an unanswered attempt is given up. Usually the loss of its link ends it
/// earlier; this covers a loss that nobody noticed.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(30);

/// The work in flight.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub requests: Slab<Request>,
    pub pieces: Slab<PieceInFlight>,
    pub attempts: Slab<Attempt>,
    pub bytes: usize,
    pub bytes_of: BTreeMap<ConnId, usize>,
    /// Reused buffer for the pieces of a request.
    pub cut: Vec<Piece>,
}

/// A client's request until it is answered.
#[derive(Debug)]
pub(super) struct Request {
    pub conn: ConnId,
    pub handle: u64,
    /// When it came.
    pub since: Mono,
    /// The operation, until it is split into pieces.
    pub op: Option<BlockOp>,
    /// The blocks of the volume that a write changes.
    pub changed: Option<Range<u64>>,
    /// Bytes charged to the volume's budget.
    pub charged_bytes: usize,
    /// The connection has ended: nothing more is sent, and nobody is answered.
    pub abandoned: bool,
    /// It has waited for too long: nothing more is sent, and the client gets an error.
    pub timed_out: bool,
    pieces_left: usize,
    wanted: Wanted,
    error: Option<BlockError>,
    /// Answers of reads and status queries, in order. A missing answer is `Done`.
    parts: Vec<ShardReply>,
}

/// The form of the answer. Ranges are in bytes from the first block.
#[derive(Clone, Debug)]
enum Wanted {
    Done,
    Data(Range<usize>),
    Status(Range<u64>),
}

/// An operation on a shard, as a part of a request.
#[derive(Debug)]
pub(super) struct PieceInFlight {
    pub request: u64,
    /// Index among the pieces of its request.
    pub place: usize,
    pub piece: Piece,
    /// Sent and not answered.
    pub sent: bool,
    /// An answer to this read failed its checksums.
    pub was_bad: bool,
}

impl PieceInFlight {
    /// Bytes of it that queues here or at other pods may hold.
    pub fn bytes(&self) -> usize {
        match &self.piece.op {
            crate::types::ShardOp::Read { range } => range.bytes() as usize,
            op => op.charge_bytes(),
        }
    }
}

impl Request {
    pub fn new(now: Mono, conn: ConnId, handle: u64, op: BlockOp) -> Request {
        let skew = |offset: u64| offset % BLOCK_BYTES as u64;
        let (wanted, charged_bytes) = match &op {
            BlockOp::Read { offset, len } => {
                let from = skew(*offset) as usize;
                (Wanted::Data(from..from + *len as usize), *len as usize)
            }
            BlockOp::Status { offset, len } => {
                let from = skew(*offset);
                (Wanted::Status(from..from + u64::from(*len)), 0)
            }
            BlockOp::Write { data, .. } => (Wanted::Done, data.len()),
            BlockOp::Zero { len, .. } => (Wanted::Done, zero_charge_bytes(u64::from(*len))),
            BlockOp::Flush => (Wanted::Done, 0),
        };
        Request {
            conn,
            handle,
            since: now,
            changed: layout::changed_blocks(&op),
            op: Some(op),
            charged_bytes,
            abandoned: false,
            timed_out: false,
            pieces_left: 0,
            wanted,
            error: None,
            parts: Vec::new(),
        }
    }

    /// Nothing more is sent for it.
    pub fn is_over(&self) -> bool {
        self.abandoned || self.timed_out
    }

    /// Sets the number of pieces.
    pub fn expect_pieces(&mut self, count: usize) {
        self.pieces_left = count;
        if !matches!(self.wanted, Wanted::Done) && !self.abandoned {
            self.parts.resize(count, ShardReply::Done);
        }
    }

    /// Ends a piece. True: it was the last one. The first error is the request's error.
    pub fn end_piece(&mut self, place: usize, result: Result<ShardReply, BlockError>) -> bool {
        match result {
            Ok(reply) => {
                if let Some(part) = self.parts.get_mut(place) {
                    *part = reply;
                }
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self.pieces_left -= 1;
        self.pieces_left == 0
    }

    /// Makes the request end with this error, unless it already has one.
    pub fn fail(&mut self, error: BlockError) {
        self.error.get_or_insert(error);
    }

    /// The answer, after all pieces have ended.
    pub fn into_answer(self) -> Result<BlockReply, BlockError> {
        assert_eq!(self.pieces_left, 0);
        if let Some(error) = self.error {
            return Err(error);
        }
        Ok(match self.wanted {
            Wanted::Done => BlockReply::Done,
            Wanted::Data(range) => BlockReply::Data(join_data(self.parts, range)),
            Wanted::Status(range) => {
                BlockReply::Status(read::status(join_status(self.parts), range))
            }
        })
    }
}

fn join_data(parts: Vec<ShardReply>, wanted: Range<usize>) -> Vec<Segment> {
    let mut joined: Vec<Segment> = Vec::new();
    for part in parts {
        let ShardReply::Data { mut segments, .. } = part else {
            unreachable!("checked when it arrived");
        };
        if joined.is_empty() {
            joined = segments;
        } else {
            joined.append(&mut segments);
        }
    }
    read::trim(&mut joined, wanted);
    joined
}

fn join_status(parts: Vec<ShardReply>) -> impl Iterator<Item = StatusRun> {
    parts.into_iter().flat_map(|part| match part {
        ShardReply::Status(runs) => runs,
        _ => unreachable!("checked when it arrived"),
    })
}

/// One attempt at a member, identified by its ticket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub purpose: Purpose,
    pub shard: usize,
    pub pod: PodId,
    pub member: crate::types::MemberId,
    pub session: Session,
    pub sent_at: Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The attempt carries out the piece with this key.
    Piece(u64),
    /// The attempt asks whether the member leads.
    Probe,
    /// The attempt has a session recorded.
    Touch,
    /// The attempt sets who may use the shard, in this round.
    Access(u64),
}

impl Purpose {
    /// How long an answer is waited for. A silent shard is asked for a session as often as requests
    /// to it may fail.
    pub fn patience(self, io_timeout: Option<Duration>) -> Duration {
        match (self, io_timeout) {
            (Purpose::Probe, _) => PROBE_PATIENCE,
            (Purpose::Touch, Some(timeout)) => timeout.min(ATTEMPT_PATIENCE),
            (Purpose::Piece(_) | Purpose::Touch | Purpose::Access(_), _) => ATTEMPT_PATIENCE,
        }
    }

    /// The piece that it carries out.
    pub fn piece(self) -> Option<u64> {
        match self {
            Purpose::Piece(key) => Some(key),
            Purpose::Probe | Purpose::Touch | Purpose::Access(_) => None,
        }
    }
}
