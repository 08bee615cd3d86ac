//! Reassembles a byte stream: headers are parsed in a staging buffer, payloads end up in aligned
//! memory. A payload below 32 KiB is copied once out of staging. A larger one is received in place,
//! after a copy of the bytes that had already arrived. Pure.

use bytes::Bytes;

use crate::io::buffer::{AlignedBuf, Pool};
use crate::io::driver::RecvBufs;
use crate::types::BLOCK_BYTES;

/// Size of the staging buffer, and so the most that one `Recv` brings besides a payload in place.
pub const STAGING_BYTES: usize = 64 << 10;
/// Payloads of at least this many bytes are received in place.
const IN_PLACE_BYTES: usize = 32 << 10;

/// The receiving end of one connection.
pub struct StreamReader {
    pool: Pool,
    /// Absent while a `Recv` is in flight.
    staging: Option<AlignedBuf>,
    /// Unread bytes of `staging`.
    start: usize,
    end: usize,
    /// A payload that is being received in place.
    landing: Landing,
}

enum Landing {
    None,
    Here {
        buf: AlignedBuf,
        from: usize,
        filled: usize,
        len: usize,
    },
    /// Lent to a `Recv` in flight.
    Lent {
        from: usize,
        filled: usize,
        len: usize,
    },
}

impl StreamReader {
    pub fn new(pool: Pool) -> StreamReader {
        let staging = Some(pool.take(STAGING_BYTES));
        StreamReader { pool, staging, start: 0, end: 0, landing: Landing::None }
    }

    /// The bytes that have arrived and are not consumed. Empty while a payload is incomplete.
    pub fn peek(&self) -> &[u8] {
        match (&self.landing, &self.staging) {
            (Landing::None, Some(staging)) => &staging[self.start..self.end],
            _ => &[],
        }
    }

    /// Drops the first `count` bytes of [`StreamReader::peek`].
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than has arrived");
        self.start += count;
    }

    /// The next `len` bytes as contiguous memory that starts `skew` bytes (below 4 KiB) after a 4
    /// KiB boundary. `None` until all have arrived: call again with the same arguments after the
    /// next `received`.
    pub fn payload(&mut self, len: usize, skew: usize) -> Option<Bytes> {
        assert!(skew < BLOCK_BYTES);
        if let Landing::None = self.landing {
            let arrived = self.end - self.start;
            if arrived < len && len < IN_PLACE_BYTES {
                return None;
            }
            let mut buf = self.pool.take(skew + len);
            let filled = arrived.min(len);
            let staging = self.staging.as_ref().expect("no receive is in flight");
            buf[skew..skew + filled].copy_from_slice(&staging[self.start..self.start + filled]);
            self.start += filled;
            self.landing = Landing::Here { buf, from: skew, filled, len };
        }
        match std::mem::replace(&mut self.landing, Landing::None) {
            Landing::Here { buf, from, filled, len: expected } => {
                assert_eq!((from, expected), (skew, len), "asked for another payload in between");
                if filled == len {
                    return Some(buf.freeze_range(from..from + len));
                }
                self.landing = Landing::Here { buf, from, filled, len };
                None
            }
            lent => {
                self.landing = lent;
                None
            }
        }
    }

    /// Buffers for the next `Recv`, with room for at least one byte. Parse first: the unread bytes
    /// must not fill the staging buffer.
    pub fn lend(&mut self) -> RecvBufs {
        let mut staging = self.staging.take().expect("one receive at a time");
        staging.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let (landing, landing_from) = match std::mem::replace(&mut self.landing, Landing::None) {
            Landing::Here { buf, from, filled, len } => {
                assert_eq!(self.end, 0, "a payload takes everything that has arrived");
                self.landing = Landing::Lent { from, filled, len };
                (Some(buf), from + filled)
            }
            other => {
                self.landing = other;
                (None, 0)
            }
        };
        assert!(landing.is_some() || self.end < staging.len(), "parse before receiving more");
        RecvBufs { landing, landing_from, staging, staging_from: self.end }
    }

    /// Takes bytes that came by no receive, as far as there is room. Returns how many. No receive
    /// may be in flight.
    pub fn push(&mut self, data: &[u8]) -> usize {
        let mut landed = 0;
        if let Landing::Here { buf, from, filled, len } = &mut self.landing {
            landed = data.len().min(*len - *filled);
            let at = *from + *filled;
            buf[at..at + landed].copy_from_slice(&data[..landed]);
            *filled += landed;
        }
        let rest = &data[landed..];
        let staging = self.staging.as_mut().expect("no receive is in flight");
        if staging.len() - self.end < rest.len() {
            staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let staged = rest.len().min(staging.len() - self.end);
        staging[self.end..self.end + staged].copy_from_slice(&rest[..staged]);
        self.end += staged;
        landed + staged
    }

    /// Takes back the buffers of a `Recv` that received `count` bytes.
    pub fn received(&mut self, bufs: RecvBufs, count: usize) {
        let mut staged = count;
        if let Some(buf) = bufs.landing {
            let Landing::Lent { from, filled, len } = self.landing else {
                panic!("a landing buffer came back that was never lent");
            };
            let landed = count.min(len - filled);
            staged -= landed;
            self.landing = Landing::Here { buf, from, filled: filled + landed, len };
        }
        assert!(bufs.staging_from + staged <= bufs.staging.len());
        self.end = bufs.staging_from + staged;
        self.staging = Some(bufs.staging);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `stream` in pieces of `step` bytes to a reader that parses [len u32][payload]*.
    fn parse(stream: &[u8], step: usize, skew: usize) -> Vec<Bytes> {
        let mut reader = StreamReader::new(Pool::default());
        let (mut at, mut out, mut len) = (0, Vec::new(), None);
        loop {
            loop {
                if len.is_none() {
                    let Some(header) = reader.peek().first_chunk::<4>() else {
                        break;
                    };
                    len = Some(u32::from_le_bytes(*header) as usize);
                    reader.consume(4);
                }
                let Some(payload) = reader.payload(len.unwrap(), skew) else {
                    break;
                };
                out.push(payload);
                len = None;
            }
            if at == stream.len() {
                return out;
            }
            let mut bufs = reader.lend();
            let landing_room = bufs.landing.as_ref().map_or(0, |b| b.len() - bufs.landing_from);
            let staging_room = bufs.staging.len() - bufs.staging_from;
            let count = step.min(stream.len() - at).min(landing_room + staging_room);
            let landed = count.min(landing_room);
            if let Some(landing) = &mut bufs.landing {
                landing[bufs.landing_from..bufs.landing_from + landed]
                    .copy_from_slice(&stream[at..at + landed]);
            }
            bufs.staging[bufs.staging_from..bufs.staging_from + count - landed]
                .copy_from_slice(&stream[at + landed..at + count]);
            at += count;
            reader.received(bufs, count);
        }
    }

    #[test]
    fn payloads_of_every_size_survive_every_cut() {
        let sizes = [0usize, 1, 100, 4096, 40_000, 32 << 10, 70_000, 5, 200_000];
        let mut stream = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            stream.extend((*size as u32).to_le_bytes());
            stream.extend((0..*size).map(|i| (i * 7 + number) as u8));
        }
        for step in [1, 3, 4095, 4096, 10_000, 65_536, 1 << 20] {
            for skew in [0, 512] {
                let payloads = parse(&stream, step, skew);
                assert_eq!(payloads.len(), sizes.len());
                for (number, (payload, size)) in payloads.iter().zip(sizes).enumerate() {
                    assert_eq!(payload.len(), size);
                    assert!(payload.iter().enumerate().all(|(i, b)| *b == (i * 7 + number) as u8));
                    assert!(size == 0 || payload.as_ptr().addr() % BLOCK_BYTES == skew);
                }
            }
        }
    }
}
