//! Turns the answers of shards into the answer of a volume: checksums, order, edges.

use std::ops::Range;

use bytes::Bytes;

use crate::io::buffer::zero_block;
use crate::types::{BLOCK_BYTES, Segment, ShardOp, ShardReply, StatusRun, VolumeId, block_crc};
use crate::volume::layout::{Layout, Piece};

/// True when a successful answer is one to this operation, and intact.
pub fn fits(layout: &Layout, piece: &Piece, reply: &ShardReply) -> bool {
    let count = piece.op.range().count;
    match (&piece.op, reply) {
        (ShardOp::Read { .. }, ShardReply::Data { segments, crcs }) => {
            is_intact(layout.volume, layout.block_in_volume(piece), count, segments, crcs)
        }
        (ShardOp::Status { .. }, ShardReply::Status(runs)) => {
            runs.iter().map(|run| u64::from(run.count)).sum::<u64>() == u64::from(count)
        }
        (op, ShardReply::Done) => op.is_write(),
        _ => false,
    }
}

/// True when an answer covers exactly `count` blocks, and every block matches its checksum. The
/// checksum is 0 for blocks that read as zeroes and are not stored.
pub fn is_intact(
    volume: VolumeId,
    first_block_in_volume: u64,
    count: u32,
    segments: &[Segment],
    crcs: &[u32],
) -> bool {
    let len: usize = segments.iter().map(Segment::len_bytes).sum();
    let whole = segments.iter().all(|part| part.len_bytes().is_multiple_of(BLOCK_BYTES));
    if !whole || len != count as usize * BLOCK_BYTES || crcs.len() != count as usize {
        return false;
    }
    let mut numbered = (first_block_in_volume..).zip(crcs);
    segments.iter().all(|segment| match segment {
        Segment::Data(data) => data
            .chunks_exact(BLOCK_BYTES)
            .zip(&mut numbered)
            .all(|(block, (number, crc))| has_crc(volume, number, block, *crc)),
        Segment::Zero(len) => (&mut numbered)
            .take(len / BLOCK_BYTES)
            .all(|(number, crc)| *crc == 0 || has_crc(volume, number, &zero_block(), *crc)),
    })
}

fn has_crc(volume: VolumeId, number: u64, block: &[u8], crc: u32) -> bool {
    block_crc(volume, number, block) == crc || (crc == 0 && block.iter().all(|byte| *byte == 0))
}

/// Cuts the range `wanted` (in bytes) out of consecutive segments.
pub fn trim(segments: &mut Vec<Segment>, wanted: Range<usize>) {
    let total: usize = segments.iter().map(Segment::len_bytes).sum();
    assert!(wanted.end <= total);
    if wanted == (0..total) {
        return;
    }
    let mut at = 0;
    segments.retain_mut(|segment| {
        let len = segment.len_bytes();
        let from = wanted.start.clamp(at, at + len) - at;
        let to = wanted.end.clamp(at, at + len) - at;
        at += len;
        match segment {
            Segment::Data(data) => *data = slice(data, from..to),
            Segment::Zero(zeroes) => *zeroes = to - from,
        }
        to > from
    });
}

fn slice(data: &Bytes, range: Range<usize>) -> Bytes {
    match range.is_empty() {
        true => Bytes::new(),
        false => data.slice(range),
    }
}

/// Converts runs of blocks to runs of bytes, cut to `wanted` (in bytes from the first block).
pub fn status(runs: impl Iterator<Item = StatusRun>, wanted: Range<u64>) -> Vec<(u64, bool)> {
    let mut out: Vec<(u64, bool)> = Vec::new();
    let mut at = 0;
    for run in runs {
        let len = u64::from(run.count) * BLOCK_BYTES as u64;
        let from = wanted.start.clamp(at, at + len);
        let to = wanted.end.clamp(at, at + len);
        at += len;
        match out.last_mut() {
            _ if from == to => {}
            Some(last) if last.1 == run.hole => last.0 += to - from,
            _ => out.push((to - from, run.hole)),
        }
    }
    out
}
