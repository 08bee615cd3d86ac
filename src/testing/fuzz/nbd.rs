//! Arbitrary bytes against a session: what the fuzzer and the replay of its corpus both run.

use crate::front::nbd::{Export, Exports, Opened, Session, SessionOutput};
use crate::io::buffer::Pool;
use crate::io::stream::{STAGING_BYTES, StreamReader};
use crate::limits::{CONNECTION_BYTES_MAX, CONNECTION_REQUESTS_MAX, REQUEST_BYTES_MAX};
use crate::testing::stream_fixture::receive;
use crate::types::{AttachmentId, BlockError, BlockOp, BlockReply, Segment, VolumeId};

/// Two exports, one of them read-only.
struct TwoExports;

impl Exports for TwoExports {
    fn list(&self) -> Vec<String> {
        vec!["a".to_owned(), "frozen".to_owned()]
    }

    fn open(&self, name: &str) -> Opened {
        let read_only = match name {
            "a" => false,
            "frozen" => true,
            _ => return Opened::Unknown,
        };
        let (volume, attachment) = (VolumeId(1), AttachmentId::NONE);
        Opened::Export(Export { volume, attachment, size_bytes: (8 << 30) + 100, read_only })
    }
}

/// Runs a session on `input`: its first byte says in which pieces the rest arrives and how
/// requests are answered. Panics when the session breaks a promise.
pub fn fuzz_one(input: &[u8]) {
    let Some((mode, mut stream)) = input.split_first() else {
        return;
    };
    let pool = Pool::default();
    let mut reader = StreamReader::new(pool.clone());
    let mut session = Session::new();
    let mut out = Vec::new();
    let piece_bytes = match mode & 3 {
        0 => 1,
        1 => 7,
        2 => 4096,
        _ => STAGING_BYTES,
    };
    let mut unanswered = Vec::new();
    let mut closed = false;
    loop {
        session.feed(&mut reader, &TwoExports, &mut out);
        // With mode bit 2, requests are answered only when nothing else can happen.
        if mode & 4 == 0 || !session.wants_input() || stream.is_empty() {
            for (handle, op) in unanswered.drain(..) {
                session.reply(handle, answer(&op, mode & 8 != 0), &mut out);
            }
        }
        for output in out.drain(..) {
            assert!(!closed, "nothing follows the end");
            match output {
                SessionOutput::Send(bytes) => session.sent(bytes.len()),
                SessionOutput::Request { handle, op } => unanswered.push((handle, op)),
                // No TLS here: what follows is read as it is.
                SessionOutput::StartTls => {}
                SessionOutput::Close { .. } => closed = true,
            }
        }
        assert!(unanswered.len() <= CONNECTION_REQUESTS_MAX);
        assert!(pool.in_use_bytes() <= 2 * CONNECTION_BYTES_MAX + REQUEST_BYTES_MAX);
        let done = closed || (stream.is_empty() && unanswered.is_empty());
        if done {
            return;
        }
        if session.wants_input() && !stream.is_empty() {
            stream = receive(&mut reader, stream, piece_bytes);
        }
    }
}

fn answer(op: &BlockOp, fails: bool) -> Result<BlockReply, BlockError> {
    if fails {
        return Err(BlockError::NoSpace);
    }
    Ok(match op {
        BlockOp::Read { len, .. } => BlockReply::Data(vec![Segment::Zero(*len as usize)]),
        BlockOp::Status { len, .. } => BlockReply::Status(vec![(u64::from(*len), true)]),
        BlockOp::Write { .. } | BlockOp::Zero { .. } | BlockOp::Flush => BlockReply::Done,
    })
}
