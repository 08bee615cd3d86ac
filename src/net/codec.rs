//! Messages as frames: the fields of the meta part and the bytes of the payload part. Sending does
//! not copy payloads; receiving puts them in their final memory.
//!
//! ```text
//! kind                 meta                                            payload
//!  1 raft              to, header, count, count x len u32, inline       whole-block payloads
//!  2 raft batch        count, per message: to, header
//!  3 request           call, shard, to, term, origin, op                of the op
//!  4 response          call, term, ok u8, reply or error                of the reply
//!  5 resync offer      to, source
//!  6 resync done       to, member, ok u8
//!  7 manifest request  call, source, from u32
//!  8 manifest          call, some u8: applied index, applied term, next (some u8, u64),
//!                      meta, count, per extent: extent u32, layer u32, last changed u64,
//!                      present u16, zero u16
//!  9 extent request    call, source, extent u32, layer u32
//! 10 extent            call, ok u8: extent u32, layer u32, last changed  present blocks
//!                      u64, present u16, zero u16, crcs; or error
//! 11 space             free bytes
//! 12 rest              to, from, term, index
//! 13 awake             to, from
//! 14 beat
//! ```
//!
//! Ids, terms and indexes are u64, counts u32; byte strings follow their u32 length. `operation`
//! describes `op`, `reply` and `error`. A Raft payload that is not whole blocks (only in the
//! catalog's group) is inline in the meta part. So every other payload starts at a 4 KiB boundary
//! of the payload part and, after receiving, of memory.

use bytes::{BufMut, Bytes, BytesMut};

use crate::fields::{FieldError, Fields, PutFields, value};
use crate::limits::{FRAME_META_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use crate::net::frame::Frame;
use crate::net::message::{CallId, PeerMessage};
use crate::net::operation::{
    check_op, check_reply, put_error, put_op, put_reply, take_error, take_op, take_reply,
};
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, BlockError, Extent, ExtentContent, ManifestChunk,
    ManifestEntry, MemberId, ShardId,
};

/// Encoded bytes of one extent in a manifest.
const MANIFEST_ENTRY_BYTES: usize = 20;

mod kind {
    pub const RAFT: u8 = 1;
    pub const RAFT_BATCH: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const RESPONSE: u8 = 4;
    pub const RESYNC_OFFER: u8 = 5;
    pub const RESYNC_DONE: u8 = 6;
    pub const MANIFEST_REQUEST: u8 = 7;
    pub const MANIFEST: u8 = 8;
    pub const EXTENT_REQUEST: u8 = 9;
    pub const EXTENT: u8 = 10;
    pub const SPACE: u8 = 11;
    pub const REST: u8 = 12;
    pub const AWAKE: u8 = 13;
    pub const BEAT: u8 = 14;
}

/// Why a message cannot be sent: its fields are inconsistent, or it does not fit into a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("a message of {meta_bytes} + {payload_bytes} bytes does not fit into a frame")]
    TooLong { meta_bytes: usize, payload_bytes: usize },
    #[error("a message has inconsistent fields")]
    Malformed {
        #[source]
        source: FieldError,
    },
}

/// An encoded message, ready for [`crate::net::frame::write_head`].
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    pub kind: u8,
    pub meta: BytesMut,
    pub payload: Vec<Bytes>,
}

impl Encoded {
    /// Bytes on the wire, without the head of the frame.
    pub fn bytes(&self) -> usize {
        self.meta.len() + self.payload_bytes()
    }

    fn payload_bytes(&self) -> usize {
        self.payload.iter().map(Bytes::len).sum()
    }
}

/// Encodes a message into the parts of its frame.
pub fn encode(message: PeerMessage) -> Result<Encoded, EncodeError> {
    check(&message).map_err(|source| EncodeError::Malformed { source })?;
    let mut meta = BytesMut::with_capacity(128);
    let mut payload = Vec::new();
    let kind = put_message(&mut meta, &mut payload, message);
    let encoded = Encoded { kind, meta, payload };
    let (meta_bytes, payload_bytes) = (encoded.meta.len(), encoded.payload_bytes());
    if meta_bytes > FRAME_META_BYTES_MAX || payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
        return Err(EncodeError::TooLong { meta_bytes, payload_bytes });
    }
    Ok(encoded)
}

fn put_message(meta: &mut BytesMut, payload: &mut Vec<Bytes>, message: PeerMessage) -> u8 {
    match message {
        PeerMessage::Raft { to, header, payloads } => {
            put_raft(meta, payload, to, &header, payloads);
            kind::RAFT
        }
        PeerMessage::RaftBatch { messages } => {
            meta.put_count(messages.len());
            for (to, header) in messages {
                meta.put_u64_le(to.0);
                meta.put_string(&header);
            }
            kind::RAFT_BATCH
        }
        PeerMessage::Request { call, shard, to, term, origin, op } => {
            meta.put_u64s_le(&[call.0, shard.0, to.0, term]);
            meta.put_origin(origin);
            put_op(meta, payload, op);
            kind::REQUEST
        }
        PeerMessage::Response { call, term, result } => {
            meta.put_u64s_le(&[call.0, term]);
            meta.put_flag(result.is_ok());
            match result {
                Ok(reply) => put_reply(meta, payload, reply),
                Err(error) => put_error(meta, &error),
            }
            kind::RESPONSE
        }
        PeerMessage::Rest { to, from, term, index } => {
            meta.put_u64s_le(&[to.0, from.0, term, index]);
            kind::REST
        }
        PeerMessage::Awake { to, from } => {
            meta.put_u64s_le(&[to.0, from.0]);
            kind::AWAKE
        }
        PeerMessage::Beat => kind::BEAT,
        other => put_resync(meta, payload, other),
    }
}

fn put_raft(
    meta: &mut BytesMut,
    payload: &mut Vec<Bytes>,
    to: MemberId,
    header: &[u8],
    payloads: Vec<Bytes>,
) {
    meta.put_u64_le(to.0);
    meta.put_string(header);
    meta.put_count(payloads.len());
    payloads.iter().for_each(|data| meta.put_count(data.len()));
    for data in payloads {
        match is_inline(data.len()) {
            true => meta.put_slice(&data),
            false => payload.push(data),
        }
    }
}

/// Encodes resync and space messages; [`put_message`] encodes the others.
fn put_resync(meta: &mut BytesMut, payload: &mut Vec<Bytes>, message: PeerMessage) -> u8 {
    match message {
        PeerMessage::ResyncOffer { to, source } => {
            meta.put_u64s_le(&[to.0, source.0]);
            kind::RESYNC_OFFER
        }
        PeerMessage::ResyncDone { to, member, ok } => {
            meta.put_u64s_le(&[to.0, member.0]);
            meta.put_flag(ok);
            kind::RESYNC_DONE
        }
        PeerMessage::ManifestRequest { call, source, from } => {
            meta.put_u64s_le(&[call.0, source.0]);
            meta.put_u32_le(from.0);
            kind::MANIFEST_REQUEST
        }
        PeerMessage::Manifest { call, answer } => {
            put_manifest(meta, call, answer);
            kind::MANIFEST
        }
        PeerMessage::ExtentRequest { call, source, extent, layer } => {
            meta.put_u64s_le(&[call.0, source.0]);
            meta.put_u32_le(extent.0);
            meta.put_u32_le(layer);
            kind::EXTENT_REQUEST
        }
        PeerMessage::Extent { call, result } => {
            put_extent(meta, payload, call, result);
            kind::EXTENT
        }
        PeerMessage::Space { free_bytes } => {
            meta.put_u64_le(free_bytes);
            kind::SPACE
        }
        PeerMessage::Raft { .. }
        | PeerMessage::RaftBatch { .. }
        | PeerMessage::Request { .. }
        | PeerMessage::Response { .. }
        | PeerMessage::Rest { .. }
        | PeerMessage::Awake { .. }
        | PeerMessage::Beat => unreachable!("encoded by the caller"),
    }
}

fn put_manifest(meta: &mut BytesMut, call: CallId, answer: Option<(ManifestChunk, Bytes)>) {
    meta.put_u64_le(call.0);
    meta.put_flag(answer.is_some());
    let Some((chunk, shard_meta)) = answer else {
        return;
    };
    meta.put_u64s_le(&[chunk.applied_index, chunk.applied_term]);
    meta.put_optional_u64(chunk.next.map(|extent| u64::from(extent.0)));
    meta.put_string(&shard_meta);
    meta.put_count(chunk.extents.len());
    meta.reserve(chunk.extents.len() * MANIFEST_ENTRY_BYTES);
    for entry in &chunk.extents {
        meta.put_u32_le(entry.extent.0);
        meta.put_u32_le(entry.layer);
        meta.put_u64_le(entry.last_changed);
        meta.put_u16_le(entry.present);
        meta.put_u16_le(entry.zero);
    }
}

fn put_extent(
    meta: &mut BytesMut,
    payload: &mut Vec<Bytes>,
    call: CallId,
    result: Result<ExtentContent, BlockError>,
) {
    meta.put_u64_le(call.0);
    meta.put_flag(result.is_ok());
    match result {
        Ok(content) => {
            meta.put_u32_le(content.extent.0);
            meta.put_u32_le(content.layer);
            meta.put_u64_le(content.last_changed);
            meta.put_u16_le(content.present);
            meta.put_u16_le(content.zero);
            meta.put_crcs(&content.crcs);
            if !content.data.is_empty() {
                payload.push(content.data);
            }
        }
        Err(error) => put_error(meta, &error),
    }
}

fn is_inline(payload_bytes: usize) -> bool {
    payload_bytes == 0 || !payload_bytes.is_multiple_of(BLOCK_BYTES)
}

/// The lengths of the pieces in which a frame's payload is received. Each piece has its own memory,
/// so that a long-lived log entry of 4 KiB does not keep a megabyte alive.
pub fn pieces(kind: u8, meta: &Bytes, payload_bytes: usize) -> Vec<usize> {
    let mut lengths = match kind {
        kind::RAFT => take_raft_head(&mut Fields::new(meta.clone())).map(|(_, _, lengths)| lengths),
        _ => Ok(Vec::new()),
    }
    .unwrap_or_default();
    lengths.retain(|len| !is_inline(*len));
    match lengths.iter().sum::<usize>() == payload_bytes {
        true => lengths,
        // Not a Raft message, or a malformed one.
        false => vec![payload_bytes],
    }
}

/// Decodes a frame whose payload was received in the pieces of [`pieces`].
pub fn decode(frame: Frame) -> Result<PeerMessage, FieldError> {
    let mut meta = Fields::new(frame.meta);
    let message = match frame.kind {
        kind::RAFT => take_raft(&mut meta, frame.payload)?,
        kind => take_message(kind, &mut meta, frame.payload)?,
    };
    meta.end()?;
    check(&message)?;
    Ok(message)
}

/// Takes the target member, the header, and the lengths of all payloads.
fn take_raft_head(meta: &mut Fields) -> Result<(MemberId, Bytes, Vec<usize>), FieldError> {
    let (to, header) = (meta.member()?, meta.string()?);
    let count = meta.count(4)?;
    let lengths: Result<Vec<usize>, FieldError> =
        (0..count).map(|_| Ok(meta.u32()? as usize)).collect();
    Ok((to, header, lengths?))
}

fn take_raft(meta: &mut Fields, pieces: Vec<Bytes>) -> Result<PeerMessage, FieldError> {
    let (to, header, lengths) = take_raft_head(meta)?;
    let mut pieces = pieces.into_iter();
    let mut take = |len: usize| match is_inline(len) {
        true => meta.bytes(len),
        false => pieces.next().filter(|piece| piece.len() == len).ok_or(FieldError::Short),
    };
    let payloads: Result<Vec<Bytes>, FieldError> = lengths.into_iter().map(&mut take).collect();
    let payloads = payloads?;
    match pieces.next() {
        None => Ok(PeerMessage::Raft { to, header, payloads }),
        Some(_) => Err(FieldError::Long),
    }
}

fn take_message(
    kind: u8,
    meta: &mut Fields,
    mut pieces: Vec<Bytes>,
) -> Result<PeerMessage, FieldError> {
    let mut payload = Fields::new(pieces.pop().unwrap_or_default());
    if !pieces.is_empty() {
        return Err(FieldError::Long);
    }
    let message = match kind {
        kind::RAFT_BATCH => {
            let count = meta.count(12)?;
            let messages: Result<Vec<(MemberId, Bytes)>, FieldError> =
                (0..count).map(|_| Ok((meta.member()?, meta.string()?))).collect();
            PeerMessage::RaftBatch { messages: messages? }
        }
        kind::REQUEST => PeerMessage::Request {
            call: CallId(meta.u64()?),
            shard: ShardId(meta.u64()?),
            to: meta.member()?,
            term: meta.u64()?,
            origin: meta.origin()?,
            op: take_op(meta, &mut payload)?,
        },
        kind::RESPONSE => PeerMessage::Response {
            call: CallId(meta.u64()?),
            term: meta.u64()?,
            result: match meta.flag("ok")? {
                true => Ok(take_reply(meta, &mut payload)?),
                false => Err(take_error(meta)?),
            },
        },
        kind::REST => PeerMessage::Rest {
            to: meta.member()?,
            from: meta.member()?,
            term: meta.u64()?,
            index: meta.u64()?,
        },
        kind::AWAKE => PeerMessage::Awake { to: meta.member()?, from: meta.member()? },
        kind::BEAT => PeerMessage::Beat,
        other => take_resync(other, meta, &mut payload)?,
    };
    payload.end()?;
    Ok(message)
}

fn take_resync(
    kind: u8,
    meta: &mut Fields,
    payload: &mut Fields,
) -> Result<PeerMessage, FieldError> {
    Ok(match kind {
        kind::RESYNC_OFFER => {
            PeerMessage::ResyncOffer { to: meta.member()?, source: meta.member()? }
        }
        kind::RESYNC_DONE => PeerMessage::ResyncDone {
            to: meta.member()?,
            member: meta.member()?,
            ok: meta.flag("ok")?,
        },
        kind::MANIFEST_REQUEST => PeerMessage::ManifestRequest {
            call: CallId(meta.u64()?),
            source: meta.member()?,
            from: meta.extent()?,
        },
        kind::MANIFEST => PeerMessage::Manifest {
            call: CallId(meta.u64()?),
            answer: match meta.flag("answer")? {
                true => Some(take_manifest(meta)?),
                false => None,
            },
        },
        kind::EXTENT_REQUEST => PeerMessage::ExtentRequest {
            call: CallId(meta.u64()?),
            source: meta.member()?,
            extent: meta.extent()?,
            layer: meta.u32()?,
        },
        kind::EXTENT => PeerMessage::Extent {
            call: CallId(meta.u64()?),
            result: match meta.flag("ok")? {
                true => Ok(ExtentContent {
                    extent: meta.extent()?,
                    layer: meta.u32()?,
                    last_changed: meta.u64()?,
                    present: meta.u16()?,
                    zero: meta.u16()?,
                    crcs: meta.crcs()?,
                    data: payload.bytes(payload.remaining_bytes())?,
                }),
                false => Err(take_error(meta)?),
            },
        },
        kind::SPACE => PeerMessage::Space { free_bytes: meta.u64()? },
        unknown => return Err(value("kind of message", unknown)),
    })
}

fn take_manifest(meta: &mut Fields) -> Result<(ManifestChunk, Bytes), FieldError> {
    let (applied_index, applied_term) = (meta.u64()?, meta.u64()?);
    let next = meta
        .optional_u64("next")?
        .map(|next| u32::try_from(next).map_err(|_| value("next extent", next)))
        .transpose()?;
    let shard_meta = meta.string()?;
    let count = meta.count(MANIFEST_ENTRY_BYTES)?;
    let extents: Result<Vec<ManifestEntry>, FieldError> = (0..count)
        .map(|_| {
            Ok(ManifestEntry {
                extent: meta.extent()?,
                layer: meta.u32()?,
                last_changed: meta.u64()?,
                present: meta.u16()?,
                zero: meta.u16()?,
            })
        })
        .collect();
    let chunk =
        ManifestChunk { extents: extents?, next: next.map(Extent), applied_index, applied_term };
    Ok((chunk, shard_meta))
}

/// Checks the consistency of a message. Both sides check, because the receiver closes the
/// connection on an inconsistent message.
fn check(message: &PeerMessage) -> Result<(), FieldError> {
    match message {
        PeerMessage::Request { op, .. } => check_op(op),
        PeerMessage::Response { result: Ok(reply), .. } => check_reply(reply),
        PeerMessage::Manifest { answer: Some((chunk, _)), .. } => check_manifest(chunk),
        PeerMessage::Extent { result: Ok(content), .. } => check_extent(content),
        _ => Ok(()),
    }
}

fn check_manifest(chunk: &ManifestChunk) -> Result<(), FieldError> {
    let place = |entry: &ManifestEntry| (entry.extent, entry.layer);
    let out_of_order = chunk.extents.windows(2).find(|pair| place(&pair[0]) >= place(&pair[1]));
    if let Some(pair) = out_of_order {
        return Err(value("extent after its successor", pair[1].extent.0));
    }
    if let (Some(last), Some(next)) = (chunk.extents.last(), chunk.next)
        && next <= last.extent
    {
        return Err(value("next extent", next.0));
    }
    match chunk.extents.iter().find(|entry| entry.present & entry.zero != 0) {
        Some(entry) => Err(value("block both present and zero in extent", entry.extent.0)),
        None => Ok(()),
    }
}

fn check_extent(content: &ExtentContent) -> Result<(), FieldError> {
    let present_bytes = content.present.count_ones() as usize * BLOCK_BYTES;
    if content.present & content.zero != 0 {
        return Err(value("blocks both present and zero", content.present & content.zero));
    }
    if content.data.len() != present_bytes {
        return Err(value("length of an extent", content.data.len() as u64));
    }
    match content.crcs.len() <= BLOCKS_PER_EXTENT as usize {
        true => Ok(()),
        false => Err(value("number of checksums", content.crcs.len() as u64)),
    }
}

#[cfg(test)]
#[path = "codec_test.rs"]
mod tests;
