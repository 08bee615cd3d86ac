//! One NBD connection from its first to its last byte. Pure: bytes in, replies and requests out.
//!
//! States: `Greeting` (nothing sent yet) -> `ClientFlags` -> `Option` <-> `OptionSkip` (data of a
//! too long option) -> `Request` <-> `Payload` (data of a write) | `PayloadSkip` (data of a refused
//! write) -> `Closing` (the client has disconnected, requests are in flight) -> `Closed`.
//!
//! Driving: call [`Session::feed`] after the connection was accepted (the server speaks first),
//! after every receive, and whenever [`Session::wants_input`] becomes true again. Call
//! [`Session::reply`] with each result, in any order, and [`Session::sent`] after every send.
//! Receive only while `wants_input`. Carry out outputs in order. `Close` is the last one; send
//! everything before it first.
//!
//! Bounds: `CONNECTION_REQUESTS_MAX` requests and `CONNECTION_BYTES_MAX` bytes (data of writes,
//! data of reads, unsent replies) per connection. Beyond them the session parses nothing.

use bytes::BytesMut;

use crate::fields::Fields;
use crate::front::nbd::error::Errno;
use crate::front::nbd::messages::{
    CloseReason, Encryption, Export, Exports, LineNumber, SessionHandle, SessionOutput,
};
use crate::front::nbd::option::{self, Negotiated, Next};
use crate::front::nbd::request::{self, Action, InFlight, Sink};
use crate::front::nbd::wire::{self, OptionHeader, RequestHeader, command, reply};
use crate::io::stream::StreamReader;
use crate::limits::{CONNECTION_BYTES_MAX, CONNECTION_REQUESTS_MAX, REQUEST_BYTES_MAX};
use crate::slab::Slab;
use crate::types::{BLOCK_BYTES, BlockError, BlockOp, BlockReply};

/// Longest data of an option; longer data is dropped and the option refused. Must be less than the
/// staging buffer of a [`StreamReader`].
pub const OPTION_BYTES_MAX: usize = 32 << 10;
/// Longest data that is skipped after a refused request. With more, the connection is closed.
const SKIP_BYTES_MAX: usize = 2 * REQUEST_BYTES_MAX;
/// Most unsent replies to options, in bytes, before the next option is read.
const HANDSHAKE_UNSENT_BYTES_MAX: usize = 256 << 10;

/// A session: see the module.
pub struct Session {
    state: SessionState,
    negotiated: Negotiated,
    export: Option<Export>,
    load: Charge,
    /// Size of the next request, while the bounds leave no room for it.
    refused_bytes: Option<usize>,
    /// The name of an export that somebody is asked for. Until then nothing is parsed.
    awaits: Option<String>,
    /// Small replies, gathered for sending.
    scratch: BytesMut,
}

#[derive(Clone, Copy, Debug)]
enum SessionState {
    Greeting,
    ClientFlags,
    Option,
    OptionSkip { option: u32, left: usize },
    Request,
    Payload { handle: u64 },
    PayloadSkip { cookie: u64, error: Errno, left: usize },
    Closing,
    Closed,
}

/// The load that counts against the bounds.
#[derive(Debug)]
struct Charge {
    /// Bound on the sum of `charged_bytes` and `unsent_bytes`.
    bytes_max: usize,
    requests: Slab<InFlight>,
    /// Sum of the charges of all requests in flight.
    charged_bytes: usize,
    unsent_bytes: usize,
}

impl Charge {
    fn new(bytes_max: usize) -> Charge {
        Charge { bytes_max, requests: Slab::default(), charged_bytes: 0, unsent_bytes: 0 }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let used = self.charged_bytes + self.unsent_bytes;
        self.requests.len() < CONNECTION_REQUESTS_MAX
            && (used == 0 || used + bytes <= self.bytes_max)
    }
}

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

impl Session {
    pub fn new() -> Session {
        Session::with_bytes_max(CONNECTION_BYTES_MAX)
    }

    /// A session with another bound on bytes in flight. A single request of any size is allowed.
    pub fn with_bytes_max(bytes_max: usize) -> Session {
        Session {
            state: SessionState::Greeting,
            negotiated: Negotiated::default(),
            export: None,
            load: Charge::new(bytes_max),
            refused_bytes: None,
            awaits: None,
            scratch: BytesMut::new(),
        }
    }

    /// A session of a listener that says this of TLS.
    pub fn with_encryption(mut self, encryption: Encryption) -> Session {
        self.negotiated.encryption = encryption;
        self
    }

    /// The opened export; `None` during the handshake.
    pub fn export(&self) -> Option<&Export> {
        self.export.as_ref()
    }

    /// The client's number for this connection, if it has given one with the export's name.
    pub fn line(&self) -> Option<LineNumber> {
        self.negotiated.line
    }

    /// The volume has grown: requests may go beyond what the client was told. NBD has no message
    /// that tells the client.
    pub fn grow(&mut self, size_bytes: u64) {
        if let Some(export) = &mut self.export {
            export.size_bytes = export.size_bytes.max(size_bytes);
        }
    }

    /// The name of an export that must be asked for before the session goes on: `Exports` opens it
    /// `Later`. Feed again when it does not any more.
    pub fn awaits(&self) -> Option<&str> {
        self.awaits.as_deref()
    }

    /// False while a bound is reached, while an export is asked for, and after the end: then
    /// receive nothing.
    pub fn wants_input(&self) -> bool {
        let waits = self.awaits.is_some();
        self.expects_input()
            && !waits
            && self.refused_bytes.is_none_or(|bytes| self.has_room(bytes))
    }

    /// False when further bytes from the client have no meaning: it has disconnected, or the
    /// session is over.
    pub fn expects_input(&self) -> bool {
        !matches!(self.state, SessionState::Closing | SessionState::Closed)
    }

    /// Number of requests without an answer.
    pub fn requests_in_flight(&self) -> usize {
        self.load.requests.len()
    }

    /// Bytes that count against the bound.
    pub fn bytes_in_flight(&self) -> usize {
        self.load.charged_bytes + self.load.unsent_bytes
    }

    /// Reports that `bytes` of the output have been sent.
    pub fn sent(&mut self, bytes: usize) {
        assert!(bytes <= self.load.unsent_bytes, "more bytes were sent than queued");
        self.load.unsent_bytes -= bytes;
    }

    /// Parses everything that has arrived.
    pub fn feed(
        &mut self,
        reader: &mut StreamReader,
        exports: &dyn Exports,
        out: &mut Vec<SessionOutput>,
    ) {
        (self.refused_bytes, self.awaits) = (None, None);
        while self.step(reader, exports, out) {}
        self.sink(out).flush();
        if let (SessionState::Closing, true) = (self.state, self.load.requests.is_empty()) {
            self.close(CloseReason::Disconnected, out);
        }
    }

    /// Answers one request. Answer every `Request` once; results after the session's end are
    /// dropped.
    pub fn reply(
        &mut self,
        handle: SessionHandle,
        result: Result<BlockReply, BlockError>,
        out: &mut Vec<SessionOutput>,
    ) {
        let request = self.load.requests.remove(handle.0);
        let request = request.expect("a request is answered once");
        self.load.charged_bytes -= request.charged_bytes;
        if let SessionState::Closed = self.state {
            return;
        }
        let mut sink =
            Sink { scratch: &mut self.scratch, unsent_bytes: &mut self.load.unsent_bytes, out };
        request::answer(&request, result, &self.negotiated, &mut sink);
        if let (SessionState::Closing, true) = (self.state, self.load.requests.is_empty()) {
            self.close(CloseReason::Disconnected, out);
        }
    }

    /// Takes one step. False when it needs more input, or an answer or a send first.
    fn step(
        &mut self,
        reader: &mut StreamReader,
        exports: &dyn Exports,
        out: &mut Vec<SessionOutput>,
    ) -> bool {
        match self.state {
            SessionState::Greeting => {
                wire::put_greeting(&mut self.scratch);
                self.state = SessionState::ClientFlags;
                true
            }
            SessionState::ClientFlags => self.on_client_flags(reader, out),
            SessionState::Option => self.on_option(reader, exports, out),
            SessionState::OptionSkip { option, left } => {
                let left = left - skip(reader, left);
                self.state = SessionState::OptionSkip { option, left };
                if left == 0 {
                    wire::put_option_reply(&mut self.scratch, option, reply::ERR_TOO_BIG, &[]);
                    self.state = SessionState::Option;
                }
                left == 0
            }
            SessionState::Request => self.on_request(reader, out),
            SessionState::Payload { handle } => self.on_payload(reader, handle, out),
            SessionState::PayloadSkip { cookie, error, left } => {
                let left = left - skip(reader, left);
                self.state = SessionState::PayloadSkip { cookie, error, left };
                if left == 0 {
                    wire::put_simple_reply(&mut self.scratch, cookie, error as u32);
                    self.state = SessionState::Request;
                }
                left == 0
            }
            SessionState::Closing | SessionState::Closed => false,
        }
    }

    fn on_client_flags(&mut self, reader: &mut StreamReader, out: &mut Vec<SessionOutput>) -> bool {
        let Ok(flags) = Fields::new(reader.peek()).u32_be() else {
            return false;
        };
        reader.consume(wire::CLIENT_FLAGS_BYTES);
        let known = wire::CLIENT_FLAG_FIXED_NEWSTYLE | wire::CLIENT_FLAG_NO_ZEROES;
        if flags & !known != 0 {
            return self.close(CloseReason::Malformed, out);
        }
        self.negotiated.fixed_newstyle = flags & wire::CLIENT_FLAG_FIXED_NEWSTYLE != 0;
        self.negotiated.no_zeroes = flags & wire::CLIENT_FLAG_NO_ZEROES != 0;
        self.state = SessionState::Option;
        true
    }

    fn on_option(
        &mut self,
        reader: &mut StreamReader,
        exports: &dyn Exports,
        out: &mut Vec<SessionOutput>,
    ) -> bool {
        let Ok(header) = OptionHeader::decode(reader.peek()) else {
            return false;
        };
        let data_bytes = header.data_bytes as usize;
        let has_no_answer = header.option == wire::option::EXPORT_NAME;
        if header.magic != wire::OPTION_MAGIC
            || data_bytes > SKIP_BYTES_MAX
            || (has_no_answer && data_bytes > OPTION_BYTES_MAX)
        {
            return self.close(CloseReason::Malformed, out);
        }
        if !self.has_room(0) {
            self.refused_bytes = Some(0);
            return false;
        }
        if data_bytes > OPTION_BYTES_MAX {
            reader.consume(wire::OPTION_HEADER_BYTES);
            self.state = SessionState::OptionSkip { option: header.option, left: data_bytes };
            return true;
        }
        let whole = wire::OPTION_HEADER_BYTES + data_bytes;
        let Some(data) = reader.peek().get(wire::OPTION_HEADER_BYTES..whole) else {
            return false;
        };
        let negotiated = &mut self.negotiated;
        let next = option::answer(header.option, data, negotiated, exports, &mut self.scratch);
        if let Next::Later(name) = next {
            // The whole option is read again.
            self.awaits = Some(name);
            return false;
        }
        reader.consume(whole);
        self.sink(out).flush();
        match next {
            Next::Option => true,
            Next::StartTls => {
                out.push(SessionOutput::StartTls);
                false
            }
            Next::Transmission(export) => {
                self.export = Some(export);
                self.state = SessionState::Request;
                true
            }
            Next::Close(reason) => self.close(reason, out),
            Next::Later(_) => unreachable!("it was looked at before"),
        }
    }

    fn on_request(&mut self, reader: &mut StreamReader, out: &mut Vec<SessionOutput>) -> bool {
        let Ok(header) = RequestHeader::decode(reader.peek()) else {
            return false;
        };
        if header.magic != wire::REQUEST_MAGIC {
            return self.close(CloseReason::Malformed, out);
        }
        let export = self.export.as_ref().expect("transmission has an export");
        let valid = request::validate(&header, export, &self.negotiated);
        let charged_bytes = match valid {
            Ok(_) => request::charge_bytes(&header),
            Err(_) => 0,
        };
        if !self.has_room(charged_bytes) {
            self.refused_bytes = Some(charged_bytes);
            return false;
        }
        reader.consume(wire::REQUEST_HEADER_BYTES);
        match valid {
            Ok(Action::Disconnect) => {
                self.state = SessionState::Closing;
                return false;
            }
            Ok(Action::Done) => wire::put_simple_reply(&mut self.scratch, header.cookie, 0),
            Ok(Action::Execute(op)) => {
                let handle = SessionHandle(self.begin(&header, charged_bytes));
                out.push(SessionOutput::Request { handle, op });
            }
            Ok(Action::Write) => {
                let handle = self.begin(&header, charged_bytes);
                self.state = SessionState::Payload { handle };
            }
            Err(error) => return self.refuse(&header, error, out),
        }
        true
    }

    fn begin(&mut self, header: &RequestHeader, charged_bytes: usize) -> u64 {
        self.load.charged_bytes += charged_bytes;
        self.load.requests.insert(InFlight {
            cookie: header.cookie,
            command: header.command,
            flags: header.flags,
            offset: header.offset,
            length: header.length,
            charged_bytes,
        })
    }

    /// Answers an invalid request, after skipping its data.
    fn refuse(
        &mut self,
        header: &RequestHeader,
        error: Errno,
        out: &mut Vec<SessionOutput>,
    ) -> bool {
        let RequestHeader { command, cookie, .. } = *header;
        if command != command::WRITE {
            request::put_error(&mut self.scratch, command, cookie, error, &self.negotiated);
            return true;
        }
        let left = header.length as usize;
        if left > SKIP_BYTES_MAX {
            return self.close(CloseReason::Malformed, out);
        }
        self.state = SessionState::PayloadSkip { cookie, error, left };
        true
    }

    fn on_payload(
        &mut self,
        reader: &mut StreamReader,
        handle: u64,
        out: &mut Vec<SessionOutput>,
    ) -> bool {
        let request = self.load.requests.get(handle).expect("counted with its header");
        let offset = request.offset;
        let skew = (offset % BLOCK_BYTES as u64) as usize;
        let Some(data) = reader.payload(request.length as usize, skew) else {
            return false;
        };
        let handle = SessionHandle(handle);
        out.push(SessionOutput::Request { handle, op: BlockOp::Write { offset, data } });
        self.state = SessionState::Request;
        true
    }

    fn has_room(&self, bytes: usize) -> bool {
        match self.export {
            None => self.load.unsent_bytes <= HANDSHAKE_UNSENT_BYTES_MAX,
            Some(_) => self.load.has_room(bytes),
        }
    }

    fn sink<'a>(&'a mut self, out: &'a mut Vec<SessionOutput>) -> Sink<'a> {
        Sink { scratch: &mut self.scratch, unsent_bytes: &mut self.load.unsent_bytes, out }
    }

    /// Ends the session. Returns false because no parsing follows.
    fn close(&mut self, reason: CloseReason, out: &mut Vec<SessionOutput>) -> bool {
        self.sink(out).flush();
        out.push(SessionOutput::Close { reason });
        self.state = SessionState::Closed;
        false
    }
}

/// Drops up to `left` bytes of the input, and returns how many.
fn skip(reader: &mut StreamReader, left: usize) -> usize {
    let count = left.min(reader.peek().len());
    reader.consume(count);
    count
}
