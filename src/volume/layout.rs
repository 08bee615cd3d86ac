//! Where the bytes of a volume are: one pure function from offset to shard, and how an operation
//! of a client is cut into operations on shards.

use std::ops::Range;

use bytes::Bytes;

use crate::io::buffer::is_aligned;
use crate::limits::{ENTRY_BYTES_MAX, READ_BYTES_MAX};
use crate::types::{BLOCK_BYTES, Block, BlockOp, BlockRange, ShardOp, VolumeId, block_crc};
use crate::view::VolumeView;

/// The longest range that one Zero or Status of a shard covers: it has no payload, but each of
/// its extents costs something.
pub const ZERO_BYTES_MAX: u64 = 256 << 20;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The shape of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub volume: VolumeId,
    pub size_bytes: u64,
    stripe_bytes: u64,
    shard_count: usize,
}

/// A place in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which shard, in the order of the volume's shards.
    pub shard: usize,
    /// Offset in that shard, in bytes.
    pub offset: u64,
}

/// One operation on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which shard, in the order of the volume's shards.
    pub shard: usize,
    pub op: ShardOp,
}

impl Layout {
    pub fn new(view: &VolumeView) -> Layout {
        assert_eq!(view.stripe_width, 1, "the only width there is");
        assert!(view.stripe_bytes > 0 && view.stripe_bytes.is_multiple_of(BLOCK));
        let covered = (view.shards.len() as u64).saturating_mul(view.stripe_bytes);
        assert!(view.size_bytes <= covered, "the shards cover the volume");
        Layout {
            volume: view.volume,
            size_bytes: view.size_bytes,
            stripe_bytes: view.stripe_bytes,
            shard_count: view.shards.len(),
        }
    }

    /// The shard of an offset, and the offset in it.
    pub fn locate(&self, offset: u64) -> Place {
        let shard = (offset / self.stripe_bytes) as usize;
        assert!(
            shard < self.shard_count,
            "offsets are checked against the size"
        );
        Place {
            shard,
            offset: offset % self.stripe_bytes,
        }
    }

    /// True when all of the range is in the volume.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset
            .checked_add(len)
            .is_some_and(|end| end <= self.size_bytes)
    }

    /// Cuts an operation that lies within the volume: pieces of whole blocks, parts of blocks at
    /// the edges of writes; none crosses a shard or exceeds its bound. Reads and status queries
    /// are rounded out (see [`crate::volume::read`]), trims are rounded in.
    pub fn cut(&self, op: &BlockOp, pieces: &mut Vec<Piece>) {
        match op {
            BlockOp::Read { offset, len } => {
                let blocks = covering(*offset, u64::from(*len));
                self.cut_blocks(blocks, READ_BYTES_MAX as u64, pieces, |_, range| {
                    ShardOp::Read { range }
                });
            }
            BlockOp::Status { offset, len } => {
                let blocks = covering(*offset, u64::from(*len));
                self.cut_blocks(blocks, ZERO_BYTES_MAX, pieces, |_, range| ShardOp::Status {
                    range,
                });
            }
            BlockOp::Write { offset, data } => {
                self.cut_edges(*offset, data.len() as u64, pieces, &|part| {
                    let from = (part.start - offset) as usize;
                    data.slice(from..from + (part.end - part.start) as usize)
                });
                let blocks = within(*offset, data.len() as u64);
                self.cut_blocks(blocks, ENTRY_BYTES_MAX as u64, pieces, |start, range| {
                    let from = (start - offset) as usize;
                    self.whole_blocks(
                        start,
                        range,
                        data.slice(from..from + range.bytes() as usize),
                    )
                });
            }
            BlockOp::Zero { offset, len, trim } => {
                if !trim {
                    self.cut_edges(*offset, u64::from(*len), pieces, &|part| {
                        static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
                        Bytes::from_static(&ZEROES[..(part.end - part.start) as usize])
                    });
                }
                let blocks = within(*offset, u64::from(*len));
                self.cut_blocks(blocks, ZERO_BYTES_MAX, pieces, |_, range| ShardOp::Zero {
                    range,
                    trim: *trim,
                });
            }
            BlockOp::Flush => {}
        }
    }

    /// Cuts whole blocks of the volume (offsets in bytes) at shards and at multiples of `max`.
    fn cut_blocks(
        &self,
        bytes: Range<u64>,
        max: u64,
        pieces: &mut Vec<Piece>,
        op: impl Fn(u64, BlockRange) -> ShardOp,
    ) {
        let mut at = bytes.start;
        while at < bytes.end {
            let place = self.locate(at);
            let to_bound = (max - place.offset % max).min(self.stripe_bytes - place.offset);
            let len = to_bound.min(bytes.end - at);
            let range = BlockRange {
                first: block_at(place.offset),
                count: (len / BLOCK) as u32,
            };
            pieces.push(Piece {
                shard: place.shard,
                op: op(at, range),
            });
            at += len;
        }
    }

    /// The parts of blocks at both ends of a range; at most two.
    fn cut_edges(
        &self,
        offset: u64,
        len: u64,
        pieces: &mut Vec<Piece>,
        data: &dyn Fn(Range<u64>) -> Bytes,
    ) {
        let end = offset + len;
        let head_end = end.min(offset.next_multiple_of(BLOCK));
        let tail_start = head_end.max(end - end % BLOCK);
        for part in [offset..head_end, tail_start..end] {
            if part.is_empty() {
                continue;
            }
            let place = self.locate(part.start);
            pieces.push(Piece {
                shard: place.shard,
                op: ShardOp::WritePartial {
                    block: block_at(place.offset),
                    offset_bytes: (place.offset % BLOCK) as u32,
                    data: data(part),
                },
            });
        }
    }

    fn whole_blocks(&self, start: u64, range: BlockRange, data: Bytes) -> ShardOp {
        assert!(
            is_aligned(&data),
            "whole blocks of a write lie in aligned memory"
        );
        let first = start / BLOCK;
        let crcs = data
            .chunks_exact(BLOCK_BYTES)
            .zip(first..)
            .map(|(block, number)| block_crc(self.volume, number, block))
            .collect();
        ShardOp::Write { range, data, crcs }
    }

    /// The number in the volume of the first block of a piece.
    pub fn block_in_volume(&self, piece: &Piece) -> u64 {
        piece.shard as u64 * (self.stripe_bytes / BLOCK) + u64::from(piece.op.range().first.0)
    }
}

/// The blocks of a volume that an operation changes; `None` when it changes nothing.
pub fn changed_blocks(op: &BlockOp) -> Option<Range<u64>> {
    let bytes = match op {
        BlockOp::Write { offset, data } => covering(*offset, data.len() as u64),
        BlockOp::Zero {
            offset,
            len,
            trim: true,
        } => within(*offset, u64::from(*len)),
        BlockOp::Zero {
            offset,
            len,
            trim: false,
        } => covering(*offset, u64::from(*len)),
        BlockOp::Read { .. } | BlockOp::Flush | BlockOp::Status { .. } => return None,
    };
    let blocks = bytes.start / BLOCK..bytes.end / BLOCK;
    (!blocks.is_empty()).then_some(blocks)
}

/// The smallest run of whole blocks around a range, in bytes.
fn covering(offset: u64, len: u64) -> Range<u64> {
    offset - offset % BLOCK..(offset + len).next_multiple_of(BLOCK)
}

/// The largest run of whole blocks in a range, in bytes; empty when there is none.
fn within(offset: u64, len: u64) -> Range<u64> {
    let start = offset.next_multiple_of(BLOCK);
    let end = offset + len;
    start..(end - end % BLOCK).max(start)
}

fn block_at(offset: u64) -> Block {
    Block(u32::try_from(offset / BLOCK).expect("a shard has less than 2^32 blocks"))
}
