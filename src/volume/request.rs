//! What a volume remembers of the requests of its clients.

use std::ops::Range;

use crate::types::{
    BLOCK_BYTES, BlockError, BlockOp, BlockReply, PodId, Segment, ShardReply, StatusRun,
};
use crate::volume::layout::{self, Piece};
use crate::volume::read;

/// A connection of a client at this front end. Chosen by the caller, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// One request of a client until it is answered.
#[derive(Debug)]
pub(super) struct Request {
    pub conn: ConnId,
    pub handle: u64,
    /// What to do, until it is cut into pieces.
    pub op: Option<BlockOp>,
    /// What a write changes, in blocks of the volume.
    pub changed: Option<Range<u64>>,
    /// What it counts against the volume's bound.
    pub charged_bytes: usize,
    /// The connection has ended: nothing more is sent for it, and nobody is answered.
    pub abandoned: bool,
    pieces_left: usize,
    wanted: Wanted,
    error: Option<BlockError>,
    /// Answers of reads and status queries in order; those that are missing are `Done`.
    parts: Vec<ShardReply>,
}

/// What the answer looks like. Ranges are in bytes, counted from the first block.
#[derive(Clone, Debug)]
enum Wanted {
    Done,
    Data(Range<usize>),
    Status(Range<u64>),
}

/// An operation on a shard and where it belongs.
#[derive(Debug)]
pub(super) struct PieceUnderWay {
    pub request: u64,
    /// Its place among the pieces of its request.
    pub place: usize,
    pub piece: Piece,
    /// It has been sent, and no answer has come.
    pub sent: bool,
    /// An answer to this read did not match its checksums.
    pub was_bad: bool,
}

impl PieceUnderWay {
    /// Bytes it may hold in queues of this pod or of others.
    pub fn bytes(&self) -> usize {
        match &self.piece.op {
            crate::types::ShardOp::Read { range } => range.bytes() as usize,
            op => op.payload_bytes(),
        }
    }
}

impl Request {
    pub fn new(conn: ConnId, handle: u64, op: BlockOp) -> Request {
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
            BlockOp::Zero { .. } | BlockOp::Flush => (Wanted::Done, 0),
        };
        Request {
            conn,
            handle,
            changed: layout::changed_blocks(&op),
            op: Some(op),
            charged_bytes,
            abandoned: false,
            pieces_left: 0,
            wanted,
            error: None,
            parts: Vec::new(),
        }
    }

    /// It was cut into this many pieces.
    pub fn expect_pieces(&mut self, count: usize) {
        self.pieces_left = count;
        if !matches!(self.wanted, Wanted::Done) && !self.abandoned {
            self.parts.resize(count, ShardReply::Done);
        }
    }

    /// A piece has ended; true when it was the last one. The first error stands for all.
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

    /// It ends with this error, whatever else happens.
    pub fn fail(&mut self, error: BlockError) {
        self.error.get_or_insert(error);
    }

    /// The answer, when every piece has ended.
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

/// One attempt to have something done by a member; a ticket names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub purpose: Purpose,
    pub shard: usize,
    pub pod: PodId,
    pub member: crate::types::MemberId,
    pub session: u64,
    pub sent_at: crate::types::Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// This piece, under its key.
    Piece(u64),
    /// To learn who leads.
    Probe,
}
