//! The requests of the transmission phase: their validation before execution, and the encoding of
//! results as replies.

use bytes::{BufMut, Bytes, BytesMut};

use crate::front::nbd::error::{Errno, errno};
use crate::front::nbd::messages::{Export, SessionOutput};
use crate::front::nbd::option::Negotiated;
use crate::front::nbd::wire::{self, RequestHeader, chunk, command, command_flag};
use crate::limits::REQUEST_BYTES_MAX;
use crate::types::{BlockError, BlockOp, BlockReply, Segment, ZeroHow, zero_charge_bytes};

/// A status query is cut to this length; the protocol allows shorter answers.
const STATUS_BYTES_MAX: u32 = 256 << 20;
/// Most descriptors in one answer to a status query.
const STATUS_RUNS_MAX: usize = 8192;

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub cookie: u64,
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub length: u32,
    /// Bytes that it counts against the connection's bound.
    pub charged_bytes: usize,
}

/// What to do with a valid request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Disconnect,
    /// Answer at once; there is nothing to execute.
    Done,
    Execute(BlockOp),
    /// Execute after its data, `length` bytes, has arrived.
    Write,
}

/// Validates a request ("Request types", "Error values"). The caller handles errors that end the
/// connection, such as a wrong magic.
pub(super) fn validate(
    header: &RequestHeader,
    export: &Export,
    negotiated: &Negotiated,
) -> Result<Action, Errno> {
    let RequestHeader { flags, command, offset, length, .. } = *header;
    if flags & !allowed_flags(command, negotiated)? != 0 {
        return Err(Errno::Inval);
    }
    match command {
        command::DISC => return Ok(Action::Disconnect),
        command::FLUSH if (offset, length) == (0, 0) => {
            return Ok(Action::Execute(BlockOp::Flush));
        }
        command::FLUSH => return Err(Errno::Inval),
        _ => {}
    }
    if export.read_only && writes(command) {
        return Err(Errno::Perm);
    }
    let carries_data = matches!(command, command::READ | command::WRITE);
    if length == 0 || (carries_data && length as usize > REQUEST_BYTES_MAX) {
        return Err(Errno::Inval);
    }
    let end = offset.checked_add(u64::from(length));
    if end.is_none_or(|end| end > export.size_bytes) {
        return Err(match command {
            command::WRITE | command::WRITE_ZEROES => Errno::NoSpc,
            _ => Errno::Inval,
        });
    }
    Ok(match command {
        command::READ => Action::Execute(BlockOp::Read { offset, len: length }),
        command::WRITE => Action::Write,
        command::TRIM => Action::Execute(BlockOp::Zero { offset, len: length, how: ZeroHow::Trim }),
        command::WRITE_ZEROES => {
            let how = match flags & command_flag::NO_HOLE != 0 {
                true => ZeroHow::Keep,
                false => ZeroHow::Free,
            };
            Action::Execute(BlockOp::Zero { offset, len: length, how })
        }
        command::BLOCK_STATUS if negotiated.base_allocation => {
            Action::Execute(BlockOp::Status { offset, len: length.min(STATUS_BYTES_MAX) })
        }
        command::CACHE => Action::Done,
        _ => return Err(Errno::Inval),
    })
}

/// Every command allows FUA. Each other flag belongs to one command.
fn allowed_flags(command: u16, negotiated: &Negotiated) -> Result<u16, Errno> {
    let own = match command {
        command::READ if negotiated.structured => command_flag::DF,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        command::READ
        | command::WRITE
        | command::DISC
        | command::FLUSH
        | command::TRIM
        | command::CACHE => 0,
        _ => return Err(Errno::Inval),
    };
    Ok(own | command_flag::FUA)
}

fn writes(command: u16) -> bool {
    matches!(command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
}

/// Bytes that a request occupies until its reply is sent: its own data or its answer's, or the
/// memory that stores will take for it.
pub(super) fn charge_bytes(header: &RequestHeader) -> usize {
    match header.command {
        command::READ | command::WRITE => header.length as usize,
        command::BLOCK_STATUS => 8 * STATUS_RUNS_MAX,
        command::TRIM | command::WRITE_ZEROES => zero_charge_bytes(u64::from(header.length)),
        _ => 0,
    }
}

/// Where replies go. Small pieces are gathered in `scratch`; data is passed on uncopied.
pub(super) struct Sink<'a> {
    pub scratch: &'a mut BytesMut,
    pub unsent_bytes: &'a mut usize,
    pub out: &'a mut Vec<SessionOutput>,
}

impl Sink<'_> {
    pub fn data(&mut self, data: Bytes) {
        self.flush();
        *self.unsent_bytes += data.len();
        self.out.push(SessionOutput::Send(data));
    }

    pub fn zeroes(&mut self, mut len: usize) {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        while len > 0 {
            let count = len.min(ZEROES.len());
            self.data(Bytes::from_static(&ZEROES[..count]));
            len -= count;
        }
    }

    pub fn flush(&mut self) {
        /// Many small replies share one allocation of this size.
        const SCRATCH_BYTES: usize = 8 << 10;
        if self.scratch.is_empty() {
            return;
        }
        let bytes = self.scratch.split().freeze();
        *self.unsent_bytes += bytes.len();
        self.out.push(SessionOutput::Send(bytes));
        if self.scratch.capacity() < wire::HOLE_CHUNK_BYTES {
            self.scratch.reserve(SCRATCH_BYTES);
        }
    }
}

/// Answers a failed request ("Transmission phase"). Reads, and commands with structured answers
/// only, fail with a chunk.
pub(super) fn put_error(
    scratch: &mut BytesMut,
    command: u16,
    cookie: u64,
    error: Errno,
    negotiated: &Negotiated,
) {
    let in_chunks = matches!(command, command::READ | command::BLOCK_STATUS);
    if in_chunks && negotiated.structured {
        wire::put_error_chunk(scratch, cookie, error);
    } else {
        wire::put_simple_reply(scratch, cookie, error as u32);
    }
}

/// Answers an executed request.
pub(super) fn answer(
    request: &InFlight,
    result: Result<BlockReply, BlockError>,
    negotiated: &Negotiated,
    sink: &mut Sink,
) {
    let cookie = request.cookie;
    match result {
        Err(error) => {
            let error = errno(&error, writes(request.command));
            put_error(sink.scratch, request.command, cookie, error, negotiated);
        }
        Ok(BlockReply::Data(segments)) => {
            assert_eq!(request.command, command::READ, "only reads are answered with data");
            let len: usize = segments.iter().map(Segment::len_bytes).sum();
            assert_eq!(len, request.length as usize, "exactly what was asked for");
            if negotiated.structured {
                structured_read(request, segments, sink);
            } else {
                wire::put_simple_reply(sink.scratch, cookie, 0);
                segments.iter().for_each(|segment| put_segment(segment, sink));
            }
        }
        Ok(BlockReply::Status(runs)) => {
            assert_eq!(request.command, command::BLOCK_STATUS, "only status queries");
            put_status(request, &runs, sink.scratch);
        }
        Ok(BlockReply::Done) => {
            let with_content = matches!(request.command, command::READ | command::BLOCK_STATUS);
            assert!(!with_content, "this request is answered with content");
            wire::put_simple_reply(sink.scratch, cookie, 0);
        }
    }
    sink.flush();
}

fn put_segment(segment: &Segment, sink: &mut Sink) {
    match segment {
        Segment::Data(data) => sink.data(data.clone()),
        Segment::Zero(len) => sink.zeroes(*len),
    }
}

/// Writes one chunk for each run of data and each hole. With DF it writes a single chunk, which is
/// a hole only when everything is zero.
fn structured_read(request: &InFlight, mut segments: Vec<Segment>, sink: &mut Sink) {
    segments.retain(|segment| segment.len_bytes() > 0);
    let is_hole = |segment: &Segment| matches!(segment, Segment::Zero(_));
    let whole = request.flags & command_flag::DF != 0 && !segments.iter().all(is_hole);
    let mut offset = request.offset;
    let end = offset + u64::from(request.length);
    for group in segments.chunk_by(|a, b| whole || is_hole(a) == is_hole(b)) {
        let hole = is_hole(&group[0]) && !whole;
        let len: usize = group.iter().map(Segment::len_bytes).sum();
        let (kind, payload_bytes) = match hole {
            true => (chunk::OFFSET_HOLE, 12),
            false => (chunk::OFFSET_DATA, 8 + len),
        };
        let last = offset + len as u64 == end;
        wire::put_chunk(sink.scratch, request.cookie, kind, last, payload_bytes);
        sink.scratch.put_u64(offset);
        if hole {
            let len = u32::try_from(len).expect("a request is at most 32 MiB");
            sink.scratch.put_u32(len);
        } else {
            group.iter().for_each(|segment| put_segment(segment, sink));
        }
        offset += len as u64;
    }
}

/// Adjacent runs with the same state become one descriptor.
fn put_status(request: &InFlight, runs: &[(u64, bool)], scratch: &mut BytesMut) {
    let runs_max = match request.flags & command_flag::REQ_ONE {
        0 => STATUS_RUNS_MAX,
        _ => 1,
    };
    let mut merged: Vec<(u64, bool)> = Vec::with_capacity(runs.len().min(runs_max));
    let mut left = u64::from(request.length);
    for (len, hole) in runs {
        let len = (*len).min(left);
        left -= len;
        let same = merged.last().is_some_and(|last| last.1 == *hole);
        if len == 0 || (!same && merged.len() == runs_max) {
            break;
        }
        match merged.last_mut() {
            Some(last) if same => last.0 += len,
            _ => merged.push((len, *hole)),
        }
    }
    assert!(!merged.is_empty(), "a status query has an answer");
    let payload_bytes = 4 + 8 * merged.len();
    wire::put_chunk(scratch, request.cookie, chunk::BLOCK_STATUS, true, payload_bytes);
    scratch.put_u32(wire::BASE_ALLOCATION_ID);
    for (len, hole) in merged {
        scratch.put_u32(u32::try_from(len).expect("no longer than the request"));
        scratch.put_u32(if hole { wire::STATE_HOLE_ZERO } else { 0 });
    }
}
