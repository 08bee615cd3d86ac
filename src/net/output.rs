//! The send queue of a link: two lanes that share one connection.
//!
//! The **light lane** has small messages on which leases and elections depend. The **data lane**
//! has everything else, in the order of sending. The light lane leaves first at every end of a
//! frame (rule `heartbeats-go-first`). Both lanes gather Raft messages without payloads into one
//! frame.
//!
//! What leaves with one call is bounded by [`SEND_BYTES_MAX`]: a light message waits for no more
//! than that, and the rest of one frame.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::limits::SEND_BYTES_MAX;
use crate::net::codec::{Encoded, encode};
use crate::net::frame::{HEAD_BYTES, write_head};
use crate::net::message::PeerMessage;
use crate::planted::planted;
use crate::types::MemberId;

/// Bytes of headers in one batch. A longer header leaves alone.
pub(super) const BATCH_BYTES_MAX: usize = 256 << 10;
/// Bytes of member and length before each header of a batch.
const BATCH_ITEM_BYTES: usize = 12;
/// Number of slices that one system call takes.
const OUTPUT_SLICES_MAX: usize = 500;
/// Consecutive heads and meta parts of frames share buffers of about this size.
const HEADS_BYTES_MAX: usize = 64 << 10;

/// The place of a message in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Light,
    Data,
}

/// The send queue: see the module.
#[derive(Default)]
pub(super) struct Output {
    light: Frames,
    data: Frames,
    /// Bytes that are missing of the frame of which a part has left.
    begun_bytes: usize,
    pub frames_sent: u64,
}

impl Output {
    /// Queues a part of the handshake, before all frames.
    pub fn push_greeting(&mut self, greeting: Bytes) {
        self.light.push_piece(greeting);
    }

    pub fn push_frame(&mut self, seed: u32, lane: Lane, encoded: Encoded) {
        let frames = self.lane(lane);
        let batches = frames.flush_batch(seed);
        frames.push_frame(seed, encoded);
        self.frames_sent += batches + 1;
    }

    /// Queues a Raft message without payloads. Where nothing else waits, all of them share a frame.
    pub fn push_light(&mut self, seed: u32, lane: Lane, to: MemberId, header: Bytes) {
        let alone = self.data.is_empty() && self.begun_bytes == 0;
        let lane = if alone { Lane::Light } else { lane };
        self.frames_sent += self.lane(lane).push_light(seed, to, header);
    }

    fn lane(&mut self, lane: Lane) -> &mut Frames {
        match lane {
            Lane::Light if !planted!(HeartbeatBehindData) => &mut self.light,
            Lane::Light | Lane::Data => &mut self.data,
        }
    }

    /// Bytes in the queue.
    pub fn bytes(&self) -> usize {
        self.light.queued_bytes() + self.data.queued_bytes()
    }

    /// Takes the next bytes to send; `seed` is that of the frames, once there are some.
    pub fn take(&mut self, seed: Option<u32>) -> Vec<Bytes> {
        for frames in [&mut self.light, &mut self.data] {
            let batches = seed.map_or(0, |seed| frames.flush_batch(seed));
            self.frames_sent += batches;
            frames.close_heads();
        }
        let (mut taken, mut left_bytes) = (Vec::new(), SEND_BYTES_MAX);
        let begun_bytes = self.begun_bytes.min(left_bytes);
        left_bytes -= begun_bytes;
        self.begun_bytes -= self.data.take(begun_bytes, &mut taken);
        if self.begun_bytes > 0 {
            return taken;
        }
        // They are few and small: all of them leave.
        self.light.take(usize::MAX, &mut taken);
        self.light.lengths.clear();
        let mut data_bytes = self.data.take(left_bytes, &mut taken);
        while data_bytes > 0 {
            let frame_bytes = self.data.lengths.pop_front().expect("every byte is of a frame");
            self.begun_bytes = frame_bytes.saturating_sub(data_bytes);
            data_bytes = data_bytes.saturating_sub(frame_bytes);
        }
        taken
    }
}

/// Frames in the order of sending: `pieces`, then `heads`, which the next payload closes, then
/// `batch`, whose messages become one frame.
#[derive(Default)]
struct Frames {
    pieces: VecDeque<Bytes>,
    heads: BytesMut,
    /// Length of `pieces` and `heads`.
    bytes: usize,
    batch: Vec<(MemberId, Bytes)>,
    batch_bytes: usize,
    /// Lengths of the frames of which nothing has left.
    lengths: VecDeque<usize>,
}

impl Frames {
    fn queued_bytes(&self) -> usize {
        self.bytes + self.batch_bytes
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0 && self.batch.is_empty()
    }

    /// Adds a message to the batch. Returns the number of frames that were made before.
    fn push_light(&mut self, seed: u32, to: MemberId, header: Bytes) -> u64 {
        let is_full = self.batch_bytes + header.len() > BATCH_BYTES_MAX;
        let batches = if is_full { self.flush_batch(seed) } else { 0 };
        self.batch_bytes += header.len() + BATCH_ITEM_BYTES;
        self.batch.push((to, header));
        batches
    }

    /// Makes a frame of the batch. Returns the number of frames.
    fn flush_batch(&mut self, seed: u32) -> u64 {
        if self.batch.is_empty() {
            return 0;
        }
        let messages = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let batch = encode(PeerMessage::RaftBatch { messages }).expect("a batch is bounded");
        self.push_frame(seed, batch);
        1
    }

    fn push_frame(&mut self, seed: u32, encoded: Encoded) {
        if self.heads.len() >= HEADS_BYTES_MAX {
            self.close_heads();
        }
        let Encoded { kind, meta, payload } = encoded;
        write_head(&mut self.heads, seed, kind, &meta, &payload);
        let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
        self.lengths.push_back(HEAD_BYTES + meta.len() + payload_bytes);
        self.bytes += HEAD_BYTES + meta.len();
        payload.into_iter().for_each(|slice| self.push_piece(slice));
    }

    fn push_piece(&mut self, piece: Bytes) {
        self.close_heads();
        self.bytes += piece.len();
        self.pieces.push_back(piece);
    }

    fn close_heads(&mut self) {
        if !self.heads.is_empty() {
            self.pieces.push_back(self.heads.split().freeze());
        }
    }

    /// Moves pieces of up to `bytes_max` bytes to `taken`, and returns their length. The list may
    /// have become long enough before.
    fn take(&mut self, bytes_max: usize, taken: &mut Vec<Bytes>) -> usize {
        let mut taken_bytes = 0;
        while taken.len() < OUTPUT_SLICES_MAX
            && let Some(piece) = self.pieces.front_mut()
        {
            let left_bytes = bytes_max - taken_bytes;
            if left_bytes == 0 {
                break;
            }
            let part = match piece.len() > left_bytes {
                true => piece.split_to(left_bytes),
                false => self.pieces.pop_front().expect("just seen"),
            };
            taken_bytes += part.len();
            taken.push(part);
        }
        self.bytes -= taken_bytes;
        taken_bytes
    }
}
