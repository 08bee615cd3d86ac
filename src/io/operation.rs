//! Properties of operations, shared by the drivers so that they agree.

use std::io;

use crate::io::buffer::is_aligned;
use crate::io::driver::{Buffers, FileId, Op};
use crate::io::gather::Gather;
use crate::types::BLOCK_BYTES;

/// Lists the memory that an operation moves.
pub(super) fn gather_op(gather: &mut Gather, op: &mut Op) {
    assert_aligned(op);
    match op {
        Op::Read { buf, .. } => gather.push_target(buf),
        Op::Write { bufs, .. } | Op::Send { bufs, .. } => {
            bufs.iter().for_each(|part| gather.push_source(part))
        }
        Op::Recv { bufs, .. } => {
            if let Some(landing) = &mut bufs.landing {
                gather.push_target(&mut landing[bufs.landing_from..]);
            }
            gather.push_target(&mut bufs.staging[bufs.staging_from..]);
            assert!(gather.remaining_bytes() > 0, "a receive has room for at least a byte");
        }
        Op::Sync { .. } | Op::Accept { .. } | Op::Connect { .. } | Op::Close { .. } => {}
    }
}

/// Asserts the alignment that the caller of a file operation has promised.
pub(super) fn assert_aligned(op: &Op) {
    let (offset, memory) = match op {
        Op::Read { buf, offset, .. } => (*offset, is_aligned(buf)),
        Op::Write { bufs, offset, .. } => (*offset, bufs.iter().all(|part| is_aligned(part))),
        _ => return,
    };
    assert!(memory && offset.is_multiple_of(BLOCK_BYTES as u64), "direct I/O is aligned to 4 KiB");
}

/// True for a write or send of 0 bytes, which needs no kernel.
pub(super) fn is_empty_transfer(op: &Op) -> bool {
    match op {
        Op::Write { bufs, .. } | Op::Send { bufs, .. } => bufs.iter().all(|part| part.is_empty()),
        _ => false,
    }
}

/// The buffers that go back to the caller.
pub(super) fn buffers_of(op: Op) -> Buffers {
    match op {
        Op::Read { buf, .. } => Buffers::Read(buf),
        Op::Recv { bufs, .. } => Buffers::Recv(bufs),
        _ => Buffers::None,
    }
}

/// The file of an operation, if it has one.
pub(super) fn file_of(op: &Op) -> Option<FileId> {
    match op {
        Op::Read { file, .. } | Op::Write { file, .. } | Op::Sync { file } => Some(*file),
        _ => None,
    }
}

/// The error of operations that a `Close` ends.
pub(super) fn closed() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// The error of operations on a file or socket that is not open.
pub(super) fn unknown() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
