//! The layout of a volume: maps offsets to shards, and splits client operations into operations on
//! shards. Pure.

use std::ops::{Range, RangeInclusive};

use bytes::Bytes;

use crate::io::buffer::is_aligned;
use crate::limits::{BYPASS_BYTES_MIN, ENTRY_BYTES_MAX, READ_BYTES_MAX, ZERO_BYTES_MAX};
use crate::planted::planted;
use crate::types::{
    BLOCK_BYTES, Block, BlockError, BlockOp, BlockRange, EXTENT_BYTES, ShardOp, VolumeId, ZeroHow,
    block_crc,
};
use crate::view::VolumeView;

/// The longest range of one status query of a shard: it has no payload, but each extent has a cost.
const STATUS_BYTES_MAX: u64 = 256 << 20;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The shape of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub volume: VolumeId,
    pub size_bytes: u64,
    stripe_bytes: u64,
    shard_count: usize,
}

/// A position in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the shard in the volume.
    pub shard: usize,
    /// Offset in that shard, in bytes.
    pub offset: u64,
}

/// One operation on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the shard in the volume.
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

    /// The shard of an offset, and the offset in that shard.
    pub fn locate(&self, offset: u64) -> Place {
        let shard = (offset / self.stripe_bytes) as usize;
        assert!(shard < self.shard_count, "offsets are checked against the size");
        Place { shard, offset: offset % self.stripe_bytes }
    }

    /// True when the whole range is in the volume.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size_bytes)
    }

    /// The shards of an operation, or why there are none; `None`: it is a flush.
    pub fn shards_of(&self, op: &BlockOp) -> Option<Result<RangeInclusive<usize>, BlockError>> {
        let (offset, len) = match op {
            BlockOp::Flush => return None,
            BlockOp::Write { offset, data } => (*offset, data.len() as u64),
            BlockOp::Read { offset, len }
            | BlockOp::Status { offset, len }
            | BlockOp::Zero { offset, len, .. } => (*offset, u64::from(*len)),
        };
        Some(match len {
            0 => Err(BlockError::Invalid),
            _ if !self.contains(offset, len) => Err(BlockError::OutOfRange),
            _ => Ok(self.locate(offset).shard..=self.locate(offset + len - 1).shard),
        })
    }

    /// Splits an operation within the volume into pieces of whole blocks, and partial blocks at the
    /// edges of writes and trims. No piece crosses a shard or exceeds its limit. Reads and status
    /// queries are widened to whole blocks (see [`crate::volume::read`]).
    pub fn cut(&self, op: &BlockOp, pieces: &mut Vec<Piece>) {
        match op {
            BlockOp::Read { offset, len } => {
                let blocks = covering(*offset, u64::from(*len));
                self.cut_blocks(blocks, READ_BYTES_MAX as u64, pieces, |_, range| ShardOp::Read {
                    range,
                });
            }
            BlockOp::Status { offset, len } => {
                let blocks = covering(*offset, u64::from(*len));
                self.cut_blocks(blocks, STATUS_BYTES_MAX, pieces, |_, range| ShardOp::Status {
                    range,
                });
            }
            BlockOp::Write { offset, data } => {
                self.cut_edges(*offset, data.len() as u64, pieces, &|part| {
                    let from = (part.start - offset) as usize;
                    data.slice(from..from + (part.end - part.start) as usize)
                });
                let blocks = within(*offset, data.len() as u64);
                let max = ENTRY_BYTES_MAX as u64;
                self.cut_blocks_at(blocks, max, extents_apart, pieces, |start, range| {
                    let from = (start - offset) as usize;
                    self.whole_blocks(start, range, data.slice(from..from + range.bytes() as usize))
                });
            }
            BlockOp::Zero { offset, len, how } => {
                // Parts of blocks are zeroed by trims, too: two trims that meet inside a block give
                // it back (rule `trimmed-space-comes-back`).
                if *how != ZeroHow::Trim || !planted!(TrimLeavesEdges) {
                    self.cut_edges(*offset, u64::from(*len), pieces, &|part| {
                        static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
                        Bytes::from_static(&ZEROES[..(part.end - part.start) as usize])
                    });
                }
                let blocks = within(*offset, u64::from(*len));
                self.cut_blocks(blocks, ZERO_BYTES_MAX, pieces, |_, range| ShardOp::Zero {
                    range,
                    trim: *how != ZeroHow::Keep,
                });
            }
            BlockOp::Flush => {}
        }
    }

    /// Splits whole blocks of the volume (offsets in bytes) at shards and at multiples of `max`.
    fn cut_blocks(
        &self,
        bytes: Range<u64>,
        max: u64,
        pieces: &mut Vec<Piece>,
        op: impl Fn(u64, BlockRange) -> ShardOp,
    ) {
        self.cut_blocks_at(bytes, max, |_, len| len, pieces, op);
    }

    /// Like `cut_blocks`, but `pick` may shorten each piece: from the offset in the shard and the
    /// length of the piece it returns the number of bytes to take from its start.
    fn cut_blocks_at(
        &self,
        bytes: Range<u64>,
        max: u64,
        pick: impl Fn(u64, u64) -> u64,
        pieces: &mut Vec<Piece>,
        op: impl Fn(u64, BlockRange) -> ShardOp,
    ) {
        let mut at = bytes.start;
        while at < bytes.end {
            let place = self.locate(at);
            let to_bound = (max - place.offset % max).min(self.stripe_bytes - place.offset);
            let len = pick(place.offset, to_bound.min(bytes.end - at));
            let range = BlockRange { first: block_at(place.offset), count: (len / BLOCK) as u32 };
            pieces.push(Piece { shard: place.shard, op: op(at, range) });
            at += len;
        }
    }

    /// Splits off the partial blocks at both ends of a range, at most two.
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
        assert!(is_aligned(&data), "whole blocks of a write lie in aligned memory");
        let first = start / BLOCK;
        let crcs = data
            .chunks_exact(BLOCK_BYTES)
            .zip(first..)
            .map(|(block, number)| block_crc(self.volume, number, block))
            .collect();
        ShardOp::Write { range, data, crcs }
    }

    /// The number of a piece's first block, counted in the volume.
    pub fn block_in_volume(&self, piece: &Piece) -> u64 {
        piece.shard as u64 * (self.stripe_bytes / BLOCK) + u64::from(piece.op.range().first.0)
    }
}

/// The blocks of a volume that an operation changes; `None`: it changes nothing.
pub fn changed_blocks(op: &BlockOp) -> Option<Range<u64>> {
    let bytes = match op {
        BlockOp::Write { offset, data } => covering(*offset, data.len() as u64),
        BlockOp::Zero { offset, len, .. } => covering(*offset, u64::from(*len)),
        BlockOp::Read { .. } | BlockOp::Flush | BlockOp::Status { .. } => return None,
    };
    let blocks = bytes.start / BLOCK..bytes.end / BLOCK;
    (!blocks.is_empty()).then_some(blocks)
}

/// The smallest run of whole blocks that covers a range, in bytes.
fn covering(offset: u64, len: u64) -> Range<u64> {
    offset - offset % BLOCK..(offset + len).next_multiple_of(BLOCK)
}

/// The largest run of whole blocks within a range, in bytes; may be empty.
fn within(offset: u64, len: u64) -> Range<u64> {
    let start = offset.next_multiple_of(BLOCK);
    let end = offset + len;
    start..(end - end % BLOCK).max(start)
}

/// Bytes from the start of a write's piece up to the start, or end, of its whole extents, if they
/// are enough for a WAL bypass. Otherwise all bytes of the piece.
fn extents_apart(offset: u64, len: u64) -> u64 {
    const EXTENT: u64 = EXTENT_BYTES as u64;
    let (first, end) = (offset.next_multiple_of(EXTENT), offset + len);
    let last = end - end % EXTENT;
    if last < first + BYPASS_BYTES_MIN as u64 {
        len
    } else if first > offset {
        first - offset
    } else {
        last - offset
    }
}

fn block_at(offset: u64) -> Block {
    Block(u32::try_from(offset / BLOCK).expect("a shard has less than 2^32 blocks"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::io::buffer::Pool;
    use crate::types::{AccessSet, PodId, ShardId, Uuid};
    use crate::view::{MemberView, ShardView};

    fn layout(stripe_blocks: u64, size_bytes: u64) -> Layout {
        let stripe_bytes = stripe_blocks * BLOCK;
        let member =
            MemberView { member: crate::types::MemberId(1), disk: Uuid::default(), pod: PodId(1) };
        let shards = 0..size_bytes.div_ceil(stripe_bytes);
        Layout::new(&VolumeView {
            volume: VolumeId(3),
            name: String::new(),
            size_bytes,
            stripe_width: 1,
            stripe_bytes,
            shards: shards
                .map(|shard| ShardView {
                    shard: ShardId(shard),
                    members: vec![member],
                    birth: AccessSet::default(),
                })
                .collect(),
            withheld: false,
            deleting: false,
            open: true,
            io_timeout_ms: 0,
            attachments: Vec::new(),
        })
    }

    fn write(pool: &Pool, offset: u64, len: usize, seed: u8) -> BlockOp {
        let skew = (offset % BLOCK) as usize;
        let mut data = pool.take(skew + len);
        for (index, byte) in data[skew..].iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(31).wrapping_add(seed) | 1;
        }
        BlockOp::Write { offset, data: data.freeze_range(skew..skew + len) }
    }

    /// Carries out a piece on the blocks of the volume, after checking its bounds.
    fn carry_out(layout: &Layout, piece: &Piece, bytes: &mut [u8]) {
        let range = piece.op.range();
        assert!(range.count > 0 && u64::from(range.end()) * BLOCK <= layout.stripe_bytes);
        let at = layout.block_in_volume(piece) as usize * BLOCK_BYTES;
        match &piece.op {
            ShardOp::Write { data, crcs, .. } => {
                assert!(is_aligned(data) && data.len() <= ENTRY_BYTES_MAX);
                assert_eq!(data.len() as u64, range.bytes());
                for (index, block) in data.chunks(BLOCK_BYTES).enumerate() {
                    let number = (at / BLOCK_BYTES + index) as u64;
                    assert_eq!(crcs[index], block_crc(layout.volume, number, block));
                }
                bytes[at..at + data.len()].copy_from_slice(data);
            }
            ShardOp::WritePartial { offset_bytes, data, .. } => {
                let from = *offset_bytes as usize;
                assert!(!data.is_empty() && data.len() < BLOCK_BYTES);
                assert!(from + data.len() <= BLOCK_BYTES);
                bytes[at + from..at + from + data.len()].copy_from_slice(data);
            }
            ShardOp::Zero { .. } => bytes[at..at + range.bytes() as usize].fill(0),
            ShardOp::Read { .. } => assert!(range.bytes() <= READ_BYTES_MAX as u64),
            ShardOp::Status { .. } => {}
            other => panic!("no client asks for {other:?}"),
        }
    }

    /// The result that a client expects.
    fn expect(op: &BlockOp, bytes: &mut [u8]) {
        match op {
            BlockOp::Write { offset, data } => {
                bytes[*offset as usize..][..data.len()].copy_from_slice(data);
            }
            BlockOp::Zero { offset, len, .. } => {
                bytes[*offset as usize..][..*len as usize].fill(0);
            }
            _ => {}
        }
    }

    fn check(layout: &Layout, op: &BlockOp) {
        let len = layout.size_bytes.next_multiple_of(BLOCK) as usize;
        let mut found = vec![0xaa; len];
        let mut expected = found.clone();
        let mut pieces = Vec::new();
        layout.cut(op, &mut pieces);
        pieces.iter().for_each(|piece| carry_out(layout, piece, &mut found));
        expect(op, &mut expected);
        assert!(found == expected, "{op:?}");

        let changed = changed_blocks(op).unwrap_or(0..0);
        for (number, (found, old)) in
            found.chunks(BLOCK_BYTES).zip(0u64..).map(|(b, n)| (n, (b, 0xaa)))
        {
            assert!(changed.contains(&number) || found.iter().all(|byte| *byte == old));
        }
        if let BlockOp::Read { offset, len } | BlockOp::Status { offset, len } = op {
            let covered = covering(*offset, u64::from(*len));
            let mut at = covered.start;
            for piece in &pieces {
                assert_eq!(layout.block_in_volume(piece) * BLOCK, at, "in order, without gaps");
                at += piece.op.range().bytes();
            }
            assert_eq!(at, covered.end);
        }
    }

    #[test]
    fn ten_kilobytes_in_the_middle_of_a_block() {
        let layout = layout(1 << 20, 1 << 30);
        let mut pieces = Vec::new();
        layout.cut(&write(&Pool::default(), 100, 10 << 10, 0), &mut pieces);
        let shapes: Vec<(u32, u32, usize)> = (pieces.iter())
            .map(|piece| {
                let range = piece.op.range();
                (range.first.0, range.count, piece.op.payload_bytes())
            })
            .collect();
        assert_eq!(shapes, [(0, 1, 3996), (2, 1, 2148), (1, 1, 4096)]);
    }

    /// The kernel splits a large discard at 4 GiB less 512 bytes when it uses sectors of 512.
    #[test]
    fn trims_that_meet_inside_a_block_zero_all_of_it() {
        let layout = layout(4, 64 << 10);
        let mut bytes = vec![0xaa; 64 << 10];
        for (offset, len) in [(0, (24 << 10) - 512), ((24 << 10) - 512, (40 << 10) + 512)] {
            let mut pieces = Vec::new();
            layout.cut(&BlockOp::Zero { offset, len, how: ZeroHow::Trim }, &mut pieces);
            pieces.iter().for_each(|piece| carry_out(&layout, piece, &mut bytes));
            let edges = |piece: &&Piece| matches!(piece.op, ShardOp::WritePartial { .. });
            assert!(pieces.iter().filter(edges).all(|piece| !piece.op.needs_space()));
        }
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn broken_rules_are_noticed() {
        crate::planted::assert_found(
            crate::planted::Mistake::TrimLeavesEdges,
            trims_that_meet_inside_a_block_zero_all_of_it,
        );
    }

    #[test]
    fn a_part_inside_one_block_is_one_piece() {
        let layout = layout(4, 64 << 10);
        let mut pieces = Vec::new();
        layout.cut(&write(&Pool::default(), 4096 * 5 + 7, 9, 0), &mut pieces);
        assert_eq!(pieces.len(), 1);
        assert_eq!((pieces[0].shard, pieces[0].op.range().first), (1, Block(1)));
    }

    #[test]
    fn the_whole_extents_of_a_large_write_stand_apart() {
        let shapes = |offset: u64, len: usize| {
            let mut pieces = Vec::new();
            let layout = layout(1 << 20, 1 << 30);
            layout.cut(&write(&Pool::default(), offset, len, 0), &mut pieces);
            let shape = |piece: &Piece| (piece.op.range().first.0, piece.op.range().count);
            pieces.iter().map(shape).collect::<Vec<_>>()
        };
        assert_eq!(shapes(1 << 20, 1 << 20), [(256, 256)]);
        let eight = 8 << 10;
        assert_eq!(shapes(eight, 1 << 20), [(2, 14), (16, 240), (256, 2)]);
        assert_eq!(shapes(0, (320 << 10) + 4096), [(0, 80), (80, 1)]);
        assert_eq!(shapes(eight, 256 << 10), [(2, 64)], "too few to be worth it");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn pieces_do_together_what_was_asked(
            stripe_blocks in 1u64..600,
            shards in 1u64..5,
            short in 0u64..5000,
            place in any::<(prop::sample::Index, prop::sample::Index)>(),
            long in any::<bool>(),
            kind in 0u8..5,
        ) {
            let capacity = stripe_blocks * BLOCK * shards;
            let layout = layout(stripe_blocks, capacity.saturating_sub(short).max(1));
            let size = layout.size_bytes as usize;
            let offset = place.0.index(size);
            let most = if long { size - offset } else { (size - offset).min(12_000) };
            let len = 1 + place.1.index(most);
            let (offset, len_bytes) = (offset as u64, len as u32);
            let op = match kind {
                0 => BlockOp::Read { offset, len: len_bytes },
                1 => BlockOp::Status { offset, len: len_bytes },
                2 => BlockOp::Zero { offset, len: len_bytes, how: ZeroHow::Free },
                3 => BlockOp::Zero { offset, len: len_bytes, how: ZeroHow::Trim },
                _ => write(&Pool::default(), offset, len, 5),
            };
            check(&layout, &op);
        }
    }
}
