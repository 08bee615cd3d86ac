//! Frames: the form of a [`crate::net::message::PeerMessage`] on a connection between two lanes.
//!
//! Numbers are little endian. A frame has a head of 24 bytes, the meta part and the payload part:
//!
//! ```text
//!  0  magic          u32   "HFF1"
//!  4  kind           u8    which message (see `codec`)
//!  5  flags          u8    0; any other bit is refused
//!  6  reserved       u16   0
//!  8  meta_bytes     u32   at most FRAME_META_BYTES_MAX
//! 12  payload_bytes  u32   at most FRAME_PAYLOAD_BYTES_MAX
//! 16  payload_crc    u32   CRC-32 of the payload part, seeded (0 bytes: the CRC of nothing)
//! 20  head_crc       u32   CRC-32 of bytes 0 to 19 and of the meta part, seeded
//! 24  meta           meta_bytes
//!     payload        payload_bytes
//! ```
//!
//! Every connection has a different seed for each direction, made in the handshake (see `link`). So
//! a frame of another connection, or one of our own that is reflected, is never valid. Both lengths
//! are checked before any allocation.

use bytes::{BufMut, Bytes, BytesMut};

use crate::io::stream::StreamReader;
use crate::limits::{FRAME_META_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};

/// "HFF1" on the wire.
const MAGIC: u32 = u32::from_le_bytes(*b"HFF1");
/// Bytes before the meta part.
pub const HEAD_BYTES: usize = 24;
/// Largest meta part that is parsed from the staging buffer. A larger one is received separately.
const META_STAGED_BYTES_MAX: usize = 16 << 10;

const _: () = assert!(HEAD_BYTES + META_STAGED_BYTES_MAX < crate::io::stream::STAGING_BYTES);

/// Why bytes cannot be decoded as a frame. The connection is no longer usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame starts with {found:#010x} instead of the magic number")]
    Magic { found: u32 },
    #[error("a frame has unknown flags {flags:#04x} or reserved bits {reserved:#06x}")]
    Flags { flags: u8, reserved: u16 },
    #[error("a frame announces {meta_bytes} + {payload_bytes} bytes, more than is allowed")]
    TooLong { meta_bytes: usize, payload_bytes: usize },
    #[error("the checksum of a frame's head is wrong")]
    HeadChecksum,
    #[error("the checksum of a frame's payload is wrong")]
    PayloadChecksum,
}

/// A complete and intact frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub meta: Bytes,
    /// The payload part, in the pieces that [`FrameReader::next`] asked for. Each piece has its own
    /// memory, aligned to 4 KiB.
    pub payload: Vec<Bytes>,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    kind: u8,
    meta_bytes: usize,
    payload_bytes: usize,
    payload_crc: u32,
    head_crc: u32,
    /// The first 20 bytes, for the checksum.
    raw: [u8; HEAD_BYTES - 4],
}

impl Head {
    fn parse(bytes: &[u8; HEAD_BYTES]) -> Result<Head, FrameError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if word(0) != MAGIC {
            return Err(FrameError::Magic { found: word(0) });
        }
        let (flags, reserved) = (bytes[5], u16::from_le_bytes([bytes[6], bytes[7]]));
        if flags != 0 || reserved != 0 {
            return Err(FrameError::Flags { flags, reserved });
        }
        let (meta_bytes, payload_bytes) = (word(8) as usize, word(12) as usize);
        if meta_bytes > FRAME_META_BYTES_MAX || payload_bytes > FRAME_PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { meta_bytes, payload_bytes });
        }
        let mut raw = [0; HEAD_BYTES - 4];
        raw.copy_from_slice(&bytes[..HEAD_BYTES - 4]);
        Ok(Head {
            kind: bytes[4],
            meta_bytes,
            payload_bytes,
            payload_crc: word(16),
            head_crc: word(20),
            raw,
        })
    }

    fn check_meta(&self, seed: u32, meta: &[u8]) -> Result<(), FrameError> {
        match head_crc(seed, &self.raw, meta) == self.head_crc {
            true => Ok(()),
            false => Err(FrameError::HeadChecksum),
        }
    }
}

fn head_crc(seed: u32, raw: &[u8], meta: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(raw);
    hasher.update(meta);
    hasher.finalize()
}

fn payload_crc<'a>(seed: u32, slices: impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    slices.for_each(|slice| hasher.update(slice));
    hasher.finalize()
}

/// Appends the head and the meta part to `out`. The caller must send `payload` right behind them.
///
/// Panics if a part exceeds its limit; the caller has checked messages before.
pub fn write_head(out: &mut BytesMut, seed: u32, kind: u8, meta: &[u8], payload: &[Bytes]) {
    let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
    assert!(meta.len() <= FRAME_META_BYTES_MAX, "meta part too long");
    assert!(payload_bytes <= FRAME_PAYLOAD_BYTES_MAX, "payload part too long");
    let from = out.len();
    out.reserve(HEAD_BYTES + meta.len());
    out.put_u32_le(MAGIC);
    out.put_u8(kind);
    out.put_bytes(0, 3);
    out.put_u32_le(meta.len() as u32);
    out.put_u32_le(payload_bytes as u32);
    out.put_u32_le(payload_crc(seed, payload.iter().map(|slice| &slice[..])));
    let crc = head_crc(seed, &out[from..], meta);
    out.put_u32_le(crc);
    out.put_slice(meta);
}

/// Extracts frames from a byte stream. Keeps its position in an incomplete frame.
#[derive(Debug, Default)]
pub struct FrameReader {
    state: FrameState,
}

#[derive(Debug, Default)]
enum FrameState {
    #[default]
    Head,
    Meta(Head),
    /// The sizes of the missing pieces of the payload part.
    Payload(Head, Frame, std::vec::IntoIter<usize>),
}

impl FrameReader {
    /// The next complete frame; `None`: more bytes are needed. `cut` returns the sizes of the
    /// pieces in which the payload is received, from kind, meta part and length of the payload.
    /// They must add up to that length. After an error the connection must be closed.
    pub fn next(
        &mut self,
        reader: &mut StreamReader,
        seed: u32,
        cut: impl Fn(u8, &Bytes, usize) -> Vec<usize>,
    ) -> Result<Option<Frame>, FrameError> {
        if let FrameState::Head = self.state {
            let Some(bytes) = reader.peek().first_chunk::<HEAD_BYTES>() else {
                return Ok(None);
            };
            let head = Head::parse(bytes)?;
            reader.consume(HEAD_BYTES);
            self.state = FrameState::Meta(head);
        }
        if let FrameState::Meta(head) = self.state {
            let Some(meta) = take_meta(reader, head.meta_bytes) else {
                return Ok(None);
            };
            head.check_meta(seed, &meta)?;
            let sizes = cut(head.kind, &meta, head.payload_bytes);
            assert_eq!(sizes.iter().sum::<usize>(), head.payload_bytes, "all of it, once");
            let frame = Frame { kind: head.kind, meta, payload: Vec::with_capacity(sizes.len()) };
            self.state = FrameState::Payload(head, frame, sizes.into_iter());
        }
        if let FrameState::Payload(_, frame, sizes) = &mut self.state {
            while let Some(size) = sizes.as_slice().first() {
                let Some(piece) = reader.payload(*size, 0) else {
                    return Ok(None);
                };
                frame.payload.push(piece);
                sizes.next();
            }
        }
        let FrameState::Payload(head, frame, _) = std::mem::take(&mut self.state) else {
            return Ok(None);
        };
        if payload_crc(seed, frame.payload.iter().map(|piece| &piece[..])) != head.payload_crc {
            return Err(FrameError::PayloadChecksum);
        }
        Ok(Some(frame))
    }
}

/// Copies a short meta part from the staging buffer. A long one gets its own memory.
fn take_meta(reader: &mut StreamReader, meta_bytes: usize) -> Option<Bytes> {
    if meta_bytes > META_STAGED_BYTES_MAX {
        return reader.payload(meta_bytes, 0);
    }
    let meta = Bytes::copy_from_slice(reader.peek().get(..meta_bytes)?);
    reader.consume(meta_bytes);
    Some(meta)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::Pool;
    use crate::testing::peer_fixture::pour;

    fn frame(seed: u32, kind: u8, meta: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        write_head(&mut out, seed, kind, meta, &[Bytes::copy_from_slice(payload)]);
        out.extend_from_slice(payload);
        out.to_vec()
    }

    fn halves(_: u8, _: &Bytes, bytes: usize) -> Vec<usize> {
        let (first, rest) = (bytes / 2, bytes - bytes / 2);
        [first, rest].into_iter().filter(|size| *size > 0).collect()
    }

    fn read_all(stream: &[u8], step: usize, seed: u32) -> Result<Vec<Frame>, FrameError> {
        let mut reader = StreamReader::new(Pool::default());
        let (mut frames, mut out) = (FrameReader::default(), Vec::new());
        pour(&mut reader, stream, step, |reader| {
            while let Some(frame) = frames.next(reader, seed, halves)? {
                out.push(frame);
            }
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn frames_of_every_size_survive_every_cut_and_land_aligned() {
        let sizes = [
            (0, 0),
            (1, 0),
            (40, 4096),
            (16 << 10, 1),
            (20_000, 70_000),
            (200_000, 0),
            (0, 1 << 20),
        ];
        let mut stream = Vec::new();
        for (number, (meta, payload)) in sizes.iter().enumerate() {
            stream.extend(frame(7, number as u8, &vec![3; *meta], &vec![number as u8; *payload]));
        }
        for step in [1, 4097, 65_536, 1 << 20] {
            let frames = read_all(&stream, step, 7).unwrap();
            assert_eq!(frames.len(), sizes.len());
            for (number, (frame, (meta, payload))) in frames.iter().zip(sizes).enumerate() {
                assert_eq!(usize::from(frame.kind), number);
                assert_eq!((frame.meta.len(), frame.payload.concat().len()), (meta, payload));
                assert!(frame.payload.iter().flatten().all(|byte| usize::from(*byte) == number));
                let mut starts = frame.payload.iter().map(|piece| piece.as_ptr().addr());
                assert!(starts.all(|start| start.is_multiple_of(4096)));
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let good = frame(99, 5, b"meta part", b"the payload part");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A changed length may also leave the frame incomplete for ever.
            let frames = read_all(&bad, bad.len(), 99);
            assert!(frames.is_err() || frames == Ok(Vec::new()), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_of_another_connection_is_refused() {
        let bytes = frame(1, 5, b"", b"");
        assert_eq!(read_all(&bytes, 100, 2), Err(FrameError::HeadChecksum));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_memory_is_taken() {
        for at in [8, 12] {
            let mut bytes = frame(1, 5, b"", b"");
            bytes[at..at + 4].copy_from_slice(&(FRAME_PAYLOAD_BYTES_MAX as u32 + 1).to_le_bytes());
            let refused = read_all(&bytes, 100, 1);
            assert!(matches!(refused, Err(FrameError::TooLong { .. })));
        }
    }
}
