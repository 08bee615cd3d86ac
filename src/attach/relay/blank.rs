//! Is anything allocated in an export? Its own connection to a pod asks for the state of every part
//! ("Block status"; NetworkBlockDevice/nbd, `doc/proto.md`). What is not allocated was never
//! written, or was given back, and reads as zeroes.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::attach::relay::pods::{OpenError, Opened, Opener, PodAddress, Wire};
use crate::fields::{FieldError, Fields};
use crate::front::nbd::wire::{
    REQUEST_MAGIC, RequestHeader, STATE_HOLE_ZERO, STRUCTURED_REPLY_MAGIC, chunk, command,
    put_request,
};

/// Asked for at once; a pod answers for no more.
const PART_BYTES: u64 = 256 << 20;
const IN_FLIGHT_MAX: usize = 32;
const CHUNK_HEADER_BYTES: usize = 20;
/// Longer answers are not ours.
const PAYLOAD_BYTES_MAX: u32 = 1 << 20;
/// A pod that is silent for so long does not answer.
const HEARD_WITHIN: Duration = Duration::from_secs(20);

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum BlankError {
    #[error("the export was not opened")]
    Open(#[from] OpenError),
    #[error("the connection broke")]
    Broke(#[from] io::Error),
    #[error("the pod answers what was not asked")]
    Answer,
    #[error("the pod does not tell what is allocated")]
    Refused,
    #[error("nothing was heard for {} seconds", HEARD_WITHIN.as_secs())]
    Late,
}

/// True when nothing of the export is allocated.
pub async fn is_blank(opener: &Opener, pod: &PodAddress) -> Result<bool, BlankError> {
    let Opened { mut wire, export } = opener.open_for_allocation(pod).await?;
    let mut census = Census::new(export.size_bytes);
    let answer = ask(&mut census, &mut wire).await;
    // The pod need not hear the rest.
    drop(wire);
    answer
}

async fn ask(census: &mut Census, wire: &mut impl Wire) -> Result<bool, BlankError> {
    let mut bytes = BytesMut::new();
    loop {
        let out = census.requests();
        if !out.is_empty() {
            wire.write_all(&out).await?;
            wire.flush().await?;
        }
        match census.came(&mut bytes)? {
            Found::Allocated => return Ok(false),
            Found::Nothing => return Ok(true),
            Found::NotYet if census.in_flight.len() < IN_FLIGHT_MAX && census.has_more() => {}
            Found::NotYet => {
                let read = timeout(HEARD_WITHIN, wire.read_buf(&mut bytes)).await;
                if read.map_err(|_| BlankError::Late)?? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
    }
}

/// What the answers so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    NotYet,
    Allocated,
    Nothing,
}

/// The questions and their answers. Pure.
#[derive(Debug)]
struct Census {
    size_bytes: u64,
    /// Everything before it was asked for.
    asked_bytes: u64,
    /// Questions by their cookies: where they begin, and how much they ask for.
    in_flight: BTreeMap<u64, (u64, u64)>,
    next_cookie: u64,
    /// Rests of questions of which the pod has answered the beginning.
    again: Vec<(u64, u64)>,
}

impl Census {
    fn new(size_bytes: u64) -> Census {
        let (in_flight, again) = (BTreeMap::new(), Vec::new());
        Census { size_bytes, asked_bytes: 0, in_flight, next_cookie: 1, again }
    }

    fn has_more(&self) -> bool {
        self.asked_bytes < self.size_bytes || !self.again.is_empty()
    }

    /// The bytes of the next questions.
    fn requests(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let (offset, length) = match self.again.pop() {
                Some(rest) => rest,
                None if self.asked_bytes < self.size_bytes => {
                    let offset = self.asked_bytes;
                    let length = PART_BYTES.min(self.size_bytes - offset);
                    self.asked_bytes += length;
                    (offset, length)
                }
                None => break,
            };
            let cookie = self.next_cookie;
            self.next_cookie += 1;
            self.in_flight.insert(cookie, (offset, length));
            let request = RequestHeader {
                magic: REQUEST_MAGIC,
                flags: 0,
                command: command::BLOCK_STATUS,
                cookie,
                offset,
                length: u32::try_from(length).expect("a part is small"),
            };
            put_request(&mut out, &request);
        }
        out
    }

    /// Reads answers, and takes them off the front of `bytes`.
    fn came(&mut self, bytes: &mut BytesMut) -> Result<Found, BlankError> {
        while let Some((head, payload)) = take_chunk(bytes)? {
            if self.answered(head, &payload)? {
                return Ok(Found::Allocated);
            }
        }
        match self.in_flight.is_empty() && !self.has_more() {
            true => Ok(Found::Nothing),
            false => Ok(Found::NotYet),
        }
    }

    /// Returns true when something is allocated.
    fn answered(&mut self, head: ChunkHead, payload: &[u8]) -> Result<bool, BlankError> {
        let (offset, length) = self.in_flight.remove(&head.cookie).ok_or(BlankError::Answer)?;
        match head.kind {
            kind if kind & chunk::ERROR & (1 << 15) != 0 => return Err(BlankError::Refused),
            chunk::BLOCK_STATUS if head.is_last => {}
            _ => return Err(BlankError::Answer),
        }
        let mut fields = Fields::new(payload);
        let short = |_: FieldError| BlankError::Answer;
        fields.u32_be().map_err(short)?;
        let mut told = 0u64;
        let mut left = payload.len().saturating_sub(4);
        while left > 0 {
            let run = u64::from(fields.u32_be().map_err(short)?);
            if fields.u32_be().map_err(short)? & STATE_HOLE_ZERO != STATE_HOLE_ZERO {
                return Ok(true);
            }
            left = left.checked_sub(8).ok_or(BlankError::Answer)?;
            told = told.saturating_add(run);
        }
        if told == 0 {
            return Err(BlankError::Answer);
        }
        if told < length {
            self.again.push((offset + told, length - told));
        }
        Ok(false)
    }
}

#[derive(Clone, Copy, Debug)]
struct ChunkHead {
    kind: u16,
    cookie: u64,
    is_last: bool,
}

/// The next chunk with its payload; `None` until it is there.
fn take_chunk(bytes: &mut BytesMut) -> Result<Option<(ChunkHead, BytesMut)>, BlankError> {
    if bytes.len() < CHUNK_HEADER_BYTES {
        return Ok(None);
    }
    let mut fields = Fields::new(&bytes[..CHUNK_HEADER_BYTES]);
    let wrong = |_: FieldError| BlankError::Answer;
    let magic = fields.u32_be().map_err(wrong)?;
    let flags = fields.u16_be().map_err(wrong)?;
    let kind = fields.u16_be().map_err(wrong)?;
    let cookie = fields.u64_be().map_err(wrong)?;
    let payload_bytes = fields.u32_be().map_err(wrong)?;
    if magic != STRUCTURED_REPLY_MAGIC || payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(BlankError::Answer);
    }
    if bytes.len() < CHUNK_HEADER_BYTES + payload_bytes as usize {
        return Ok(None);
    }
    bytes.advance(CHUNK_HEADER_BYTES);
    let payload = bytes.split_to(payload_bytes as usize);
    Ok(Some((ChunkHead { kind, cookie, is_last: flags & chunk::FLAG_DONE != 0 }, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::nbd::wire::{BASE_ALLOCATION_ID, REQUEST_HEADER_BYTES, put_chunk};
    use bytes::BufMut;

    /// The questions in `out`: cookie, offset and length.
    fn questions(out: &[u8]) -> Vec<(u64, u64, u32)> {
        let heads = out.chunks(REQUEST_HEADER_BYTES).map(|it| RequestHeader::decode(it).unwrap());
        heads.map(|it| (it.cookie, it.offset, it.length)).collect()
    }

    fn answer(cookie: u64, runs: &[(u32, u32)]) -> BytesMut {
        let mut out = BytesMut::new();
        put_chunk(&mut out, cookie, chunk::BLOCK_STATUS, true, 4 + 8 * runs.len());
        out.put_u32(BASE_ALLOCATION_ID);
        for (length, state) in runs {
            out.put_u32(*length);
            out.put_u32(*state);
        }
        out
    }

    #[test]
    fn every_part_is_asked_for_once_and_rests_again() {
        let part = u32::try_from(PART_BYTES).unwrap();
        let mut census = Census::new(2 * PART_BYTES + 4096);
        let asked = questions(&census.requests());
        assert_eq!(asked, [(1, 0, part), (2, PART_BYTES, part), (3, 2 * PART_BYTES, 4096)]);
        let hole = STATE_HOLE_ZERO;
        assert_eq!(census.came(&mut answer(2, &[(part, hole)])).unwrap(), Found::NotYet);
        assert_eq!(census.came(&mut answer(3, &[(4096, hole)])).unwrap(), Found::NotYet);
        // Half of it, in two runs.
        let mut half = answer(1, &[(part / 4, hole), (part / 4, hole)]);
        let mut cut = half.split_to(30);
        assert_eq!(census.came(&mut cut).unwrap(), Found::NotYet);
        cut.unsplit(half);
        assert_eq!(census.came(&mut cut).unwrap(), Found::NotYet);
        assert_eq!(questions(&census.requests()), [(4, PART_BYTES / 2, part / 2)]);
        assert_eq!(census.came(&mut answer(4, &[(part / 2, hole)])).unwrap(), Found::Nothing);
    }

    #[test]
    fn one_allocated_block_is_enough_and_nonsense_is_refused() {
        let asked = || {
            let mut census = Census::new(8192);
            census.requests();
            census
        };
        let found = asked().came(&mut answer(1, &[(4096, STATE_HOLE_ZERO), (4096, 0)])).unwrap();
        assert_eq!(found, Found::Allocated);
        // A hole that need not read as zeroes.
        assert_eq!(asked().came(&mut answer(1, &[(8192, 1)])).unwrap(), Found::Allocated);
        assert!(asked().came(&mut answer(7, &[(8192, 3)])).is_err());
        assert!(asked().came(&mut answer(1, &[])).is_err());
        let mut error = BytesMut::new();
        put_chunk(&mut error, 1, chunk::ERROR, true, 6);
        error.put_bytes(0, 6);
        assert!(matches!(asked().came(&mut error), Err(BlankError::Refused)));
        assert!(asked().came(&mut BytesMut::from(&[0u8; 40][..])).is_err());
        assert_eq!(Census::new(0).came(&mut BytesMut::new()).unwrap(), Found::Nothing);
    }
}
