//! Encoding of operations on shards, of their answers and of block errors, as parts of the messages
//! of `codec`. One tag byte, then fields; payloads are in the payload part.
//!
//! ```text
//! op     1 read     range
//!        2 write    range, crcs                payload: range.count blocks
//!        3 partial  block u32, offset u32      payload: the bytes
//!        4 zero     range, trim u8
//!        5 status   range
//!        6 touch    renews u8
//!        7 access   generation u64, open u8, count u32, per attachment: id u64, mode u8
//! reply  1 done
//!        2 data     crcs, count u32, per segment: zero u8, len u32    payload: data segments
//!        3 status   count u32, per run: count u32, hole u8
//!        4 access   generation u64
//! range  first u32, count u32      crcs  count u32, count x u32
//! error  code u8; not-leader: optional hint u64, term u64; stale session: counter u64,
//!        pod u64
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::fields::{FieldError, Fields, PutFields, value};
use crate::limits::{ENTRY_BYTES_MAX, READ_BYTES_MAX};
use crate::types::{
    BLOCK_BYTES, Block, BlockError, Generation, MemberId, Segment, ShardOp, ShardReply, StatusRun,
};

pub(super) fn put_op(meta: &mut BytesMut, payload: &mut Vec<Bytes>, op: ShardOp) {
    match op {
        ShardOp::Read { range } => {
            meta.put_u8(1);
            meta.put_range(range);
        }
        ShardOp::Write { range, data, crcs } => {
            meta.put_u8(2);
            meta.put_range(range);
            meta.put_crcs(&crcs);
            payload.push(data);
        }
        ShardOp::WritePartial { block, offset_bytes, data } => {
            meta.put_u8(3);
            meta.put_u32_le(block.0);
            meta.put_u32_le(offset_bytes);
            payload.push(data);
        }
        ShardOp::Zero { range, trim } => {
            meta.put_u8(4);
            meta.put_range(range);
            meta.put_flag(trim);
        }
        ShardOp::Status { range } => {
            meta.put_u8(5);
            meta.put_range(range);
        }
        ShardOp::Touch { renews } => {
            meta.put_u8(6);
            meta.put_flag(renews);
        }
        ShardOp::SetAccess(set) => {
            meta.put_u8(7);
            meta.put_access_set(&set);
        }
    }
}

pub(super) fn take_op(meta: &mut Fields, payload: &mut Fields) -> Result<ShardOp, FieldError> {
    let op = match meta.u8()? {
        1 => ShardOp::Read { range: meta.range()? },
        2 => {
            let (range, crcs) = (meta.range()?, meta.crcs()?);
            let data = payload.bytes(payload.remaining_bytes())?;
            ShardOp::Write { range, data, crcs }
        }
        3 => ShardOp::WritePartial {
            block: Block(meta.u32()?),
            offset_bytes: meta.u32()?,
            data: payload.bytes(payload.remaining_bytes())?,
        },
        4 => ShardOp::Zero { range: meta.range()?, trim: meta.flag("trim")? },
        5 => ShardOp::Status { range: meta.range()? },
        6 => ShardOp::Touch { renews: meta.flag("renews")? },
        7 => ShardOp::SetAccess(meta.access_set()?),
        other => return Err(value("kind of operation", other)),
    };
    check_op(&op)?;
    Ok(op)
}

/// Checks the guarantees of [`ShardOp`]. Both sides check, because the receiver closes the
/// connection on an invalid operation.
pub(super) fn check_op(op: &ShardOp) -> Result<(), FieldError> {
    let range = op.range();
    match op {
        ShardOp::Touch { .. } => return Ok(()),
        ShardOp::SetAccess(set) if set.is_valid() => return Ok(()),
        ShardOp::SetAccess(set) => {
            return Err(value("generation of an access set", set.generation.0));
        }
        _ => {}
    }
    if range.count == 0 || range.first.0.checked_add(range.count).is_none() {
        return Err(value("number of blocks", range.count));
    }
    let length_fits = match op {
        ShardOp::Read { range } => range.bytes() <= READ_BYTES_MAX as u64,
        ShardOp::Write { range, data, crcs } => {
            data.len() <= ENTRY_BYTES_MAX
                && data.len() as u64 == range.bytes()
                && crcs.len() == range.count as usize
        }
        ShardOp::WritePartial { offset_bytes, data, .. } => {
            let end = u64::from(*offset_bytes) + data.len() as u64;
            !data.is_empty() && data.len() < BLOCK_BYTES && end <= BLOCK_BYTES as u64
        }
        ShardOp::Zero { .. } | ShardOp::Status { .. } => true,
        ShardOp::Touch { .. } | ShardOp::SetAccess(_) => true,
    };
    match length_fits {
        true => Ok(()),
        false => Err(value("length of an operation", range.bytes())),
    }
}

pub(super) fn put_reply(meta: &mut BytesMut, payload: &mut Vec<Bytes>, reply: ShardReply) {
    match reply {
        ShardReply::Done => meta.put_u8(1),
        ShardReply::Data { segments, crcs } => {
            meta.put_u8(2);
            meta.put_crcs(&crcs);
            meta.put_count(segments.len());
            for segment in segments {
                let len = segment.len_bytes() as u32;
                meta.put_flag(matches!(segment, Segment::Zero(_)));
                meta.put_u32_le(len);
                if let Segment::Data(data) = segment {
                    payload.push(data);
                }
            }
        }
        ShardReply::Status(runs) => {
            meta.put_u8(3);
            meta.put_count(runs.len());
            for run in runs {
                meta.put_u32_le(run.count);
                meta.put_flag(run.hole);
            }
        }
        ShardReply::Access { generation } => {
            meta.put_u8(4);
            meta.put_u64_le(generation.0);
        }
    }
}

pub(super) fn take_reply(
    meta: &mut Fields,
    payload: &mut Fields,
) -> Result<ShardReply, FieldError> {
    let reply = match meta.u8()? {
        1 => ShardReply::Done,
        2 => {
            let crcs = meta.crcs()?;
            let count = meta.count(5)?;
            let segments: Result<Vec<Segment>, FieldError> = (0..count)
                .map(|_| {
                    let (zero, len) = (meta.flag("zero")?, meta.u32()? as usize);
                    Ok(match zero {
                        true => Segment::Zero(len),
                        false => Segment::Data(payload.bytes(len)?),
                    })
                })
                .collect();
            ShardReply::Data { segments: segments?, crcs }
        }
        3 => {
            let count = meta.count(5)?;
            let runs: Result<Vec<StatusRun>, FieldError> = (0..count)
                .map(|_| Ok(StatusRun { count: meta.u32()?, hole: meta.flag("hole")? }))
                .collect();
            ShardReply::Status(runs?)
        }
        4 => ShardReply::Access { generation: Generation(meta.u64()?) },
        other => return Err(value("kind of answer", other)),
    };
    check_reply(&reply)?;
    Ok(reply)
}

/// Checks the guarantees of [`ShardReply`].
pub(super) fn check_reply(reply: &ShardReply) -> Result<(), FieldError> {
    match reply {
        ShardReply::Done | ShardReply::Access { .. } => Ok(()),
        ShardReply::Data { segments, crcs } => {
            let mut total_bytes = 0u64;
            for segment in segments {
                let len = segment.len_bytes() as u64;
                if len == 0 || !len.is_multiple_of(BLOCK_BYTES as u64) {
                    return Err(value("length of a segment", len));
                }
                total_bytes = total_bytes.saturating_add(len);
            }
            let blocks_bytes = crcs.len() as u64 * BLOCK_BYTES as u64;
            match total_bytes == blocks_bytes && total_bytes <= READ_BYTES_MAX as u64 {
                true => Ok(()),
                false => Err(value("length of an answer", total_bytes)),
            }
        }
        ShardReply::Status(runs) => {
            let end = runs
                .iter()
                .try_fold(0u32, |end, run| end.checked_add(run.count).filter(|_| run.count > 0));
            match end {
                Some(end) if end > 0 => Ok(()),
                _ => Err(value("number of blocks in a status", 0u8)),
            }
        }
    }
}

pub(super) fn put_error(meta: &mut BytesMut, error: &BlockError) {
    let code = match error {
        BlockError::NotLeader { .. } => 1,
        BlockError::Busy => 2,
        // No member has a timeout.
        BlockError::Unknown | BlockError::TimedOut => 3,
        BlockError::StaleSession { .. } => 4,
        BlockError::Fenced => 5,
        BlockError::OutOfRange => 6,
        BlockError::ReadOnly => 7,
        BlockError::NoSpace => 8,
        BlockError::MediaFault => 9,
        BlockError::NoSuchVolume => 10,
        BlockError::Invalid => 11,
        BlockError::NotTouched => 12,
        BlockError::NotYet => 13,
    };
    meta.put_u8(code);
    if let BlockError::NotLeader { hint, term } = error {
        meta.put_optional_u64(hint.map(|member| member.0));
        meta.put_u64_le(*term);
    }
    if let BlockError::StaleSession { recorded } = error {
        meta.put_session(*recorded);
    }
}

pub(super) fn take_error(meta: &mut Fields) -> Result<BlockError, FieldError> {
    Ok(match meta.u8()? {
        1 => BlockError::NotLeader {
            hint: meta.optional_u64("hint")?.map(MemberId),
            term: meta.u64()?,
        },
        2 => BlockError::Busy,
        3 => BlockError::Unknown,
        4 => BlockError::StaleSession { recorded: meta.session()? },
        5 => BlockError::Fenced,
        6 => BlockError::OutOfRange,
        7 => BlockError::ReadOnly,
        8 => BlockError::NoSpace,
        9 => BlockError::MediaFault,
        10 => BlockError::NoSuchVolume,
        11 => BlockError::Invalid,
        12 => BlockError::NotTouched,
        13 => BlockError::NotYet,
        other => return Err(value("block error", other)),
    })
}
