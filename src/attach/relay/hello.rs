//! The client's side of the NBD handshake: opens an export with simple replies, or with structured
//! ones that tell what is allocated ("Fixed newstyle negotiation"; NetworkBlockDevice/nbd,
//! `doc/proto.md`). Pure.

use bytes::{Buf, BytesMut};

use crate::fields::{FieldError, Fields};
use crate::front::nbd::wire::{
    BASE_ALLOCATION, CLIENT_FLAG_FIXED_NEWSTYLE, CLIENT_FLAG_NO_ZEROES, FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES, GREETING_BYTES, MAGIC, OPTION_MAGIC, OPTION_REPLY_HEADER_BYTES,
    OPTION_REPLY_MAGIC, OptionReplyHeader, export_query, info, option, put_option, reply,
};

/// Longer answers to options are not ours.
const ANSWER_BYTES_MAX: u32 = 64 << 10;

/// An export, by the words of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
}

/// Why an export was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("it is not an NBD server that this program knows")]
    Server,
    #[error("the pod answers what was not asked")]
    Answer,
    #[error("the pod knows no such export, or does not show it")]
    Unknown,
    #[error("the pod does not open the export: {0}")]
    Refused(String),
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed. Send these first, which may be none.
    Send(Vec<u8>),
    /// TLS begins here; call [`Hello::under_tls`] then.
    Tls,
    /// Requests may follow.
    Open(Export),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    StartTls,
    Structured,
    Context,
    Go,
}

/// A handshake that goes on.
#[derive(Debug)]
pub struct Hello {
    export: String,
    state: State,
    tls: bool,
    /// Asks for what is allocated, too.
    allocation: bool,
    has_context: bool,
    found: Option<Export>,
}

impl Hello {
    /// For simple replies.
    pub fn new(export: &str, tls: bool) -> Hello {
        let (export, state) = (export.to_owned(), State::Greeting);
        Hello { export, state, tls, allocation: false, has_context: false, found: None }
    }

    /// For structured replies, with the context that tells what is allocated.
    pub fn for_allocation(export: &str, tls: bool) -> Hello {
        Hello { allocation: true, ..Hello::new(export, tls) }
    }

    /// Reads the server's bytes, and takes them off the front of `bytes`.
    pub fn step(&mut self, bytes: &mut BytesMut) -> Result<Step, HelloError> {
        match self.state {
            State::Greeting => self.greeting(bytes),
            _ => self.answers(bytes),
        }
    }

    /// TLS is up: returns the bytes to send under it.
    pub fn under_tls(&mut self) -> Vec<u8> {
        self.first()
    }

    fn greeting(&mut self, bytes: &mut BytesMut) -> Result<Step, HelloError> {
        if bytes.len() < GREETING_BYTES {
            return Ok(Step::Send(Vec::new()));
        }
        let mut fields = Fields::new(&bytes[..GREETING_BYTES]);
        let read = (fields.u64_be(), fields.u64_be(), fields.u16_be());
        let (Ok(MAGIC), Ok(OPTION_MAGIC), Ok(flags)) = read else { return Err(HelloError::Server) };
        if flags & FLAG_FIXED_NEWSTYLE == 0 || flags & FLAG_NO_ZEROES == 0 {
            return Err(HelloError::Server);
        }
        bytes.advance(GREETING_BYTES);
        let client_flags = CLIENT_FLAG_FIXED_NEWSTYLE | CLIENT_FLAG_NO_ZEROES;
        let mut out = client_flags.to_be_bytes().to_vec();
        match self.tls {
            true => {
                self.state = State::StartTls;
                put_option(&mut out, option::STARTTLS, &[]);
            }
            false => out.extend(self.first()),
        }
        Ok(Step::Send(out))
    }

    /// The first option behind TLS.
    fn first(&mut self) -> Vec<u8> {
        if !self.allocation {
            return self.go();
        }
        self.state = State::Structured;
        let mut out = Vec::new();
        put_option(&mut out, option::STRUCTURED_REPLY, &[]);
        out
    }

    fn context(&mut self) -> Vec<u8> {
        self.state = State::Context;
        let mut data = Vec::new();
        put_text(&mut data, &self.export);
        data.extend(1u32.to_be_bytes());
        put_text(&mut data, BASE_ALLOCATION);
        let mut out = Vec::new();
        put_option(&mut out, option::SET_META_CONTEXT, &data);
        out
    }

    fn go(&mut self) -> Vec<u8> {
        self.state = State::Go;
        let mut out = Vec::new();
        put_option(&mut out, option::GO, &export_query(&self.export));
        out
    }

    fn answers(&mut self, bytes: &mut BytesMut) -> Result<Step, HelloError> {
        loop {
            let header = match OptionReplyHeader::decode(bytes) {
                Err(FieldError::Short) => return Ok(Step::Send(Vec::new())),
                Err(_) => return Err(HelloError::Server),
                Ok(header) => header,
            };
            if header.magic != OPTION_REPLY_MAGIC || header.data_bytes > ANSWER_BYTES_MAX {
                return Err(HelloError::Server);
            }
            let whole_bytes = OPTION_REPLY_HEADER_BYTES + header.data_bytes as usize;
            if bytes.len() < whole_bytes {
                return Ok(Step::Send(Vec::new()));
            }
            let answer = bytes.split_to(whole_bytes).freeze();
            let data = &answer[OPTION_REPLY_HEADER_BYTES..];
            match (self.state, header.option, header.kind) {
                (State::StartTls, option::STARTTLS, reply::ACK) => return Ok(Step::Tls),
                (State::Structured, option::STRUCTURED_REPLY, reply::ACK) => {
                    return Ok(Step::Send(self.context()));
                }
                (State::Context, option::SET_META_CONTEXT, reply::META_CONTEXT) => {
                    // There is one, with the id that the pod's side of this program gives.
                    self.has_context = data.get(4..) == Some(BASE_ALLOCATION.as_bytes());
                }
                (State::Context, option::SET_META_CONTEXT, reply::ACK) if self.has_context => {
                    return Ok(Step::Send(self.go()));
                }
                (State::Go, option::GO, reply::INFO) => self.info(data)?,
                (State::Go, option::GO, reply::ACK) => {
                    return self.found.map(Step::Open).ok_or(HelloError::Answer);
                }
                (State::Go, option::GO, reply::ERR_UNKNOWN) => return Err(HelloError::Unknown),
                (_, asked, kind) if self.has_asked(asked) && kind & (1 << 31) != 0 => {
                    let text = String::from_utf8_lossy(data).into_owned();
                    return Err(HelloError::Refused(format!("{text} ({kind:#x})")));
                }
                _ => return Err(HelloError::Answer),
            }
        }
    }

    fn has_asked(&self, asked: u32) -> bool {
        match self.state {
            State::Greeting => false,
            State::StartTls => asked == option::STARTTLS,
            State::Structured => asked == option::STRUCTURED_REPLY,
            State::Context => asked == option::SET_META_CONTEXT,
            State::Go => asked == option::GO,
        }
    }

    fn info(&mut self, data: &[u8]) -> Result<(), HelloError> {
        let mut fields = Fields::new(data);
        let Ok(kind) = fields.u16_be() else { return Err(HelloError::Answer) };
        if kind != info::EXPORT {
            return Ok(());
        }
        let (Ok(size_bytes), Ok(flags)) = (fields.u64_be(), fields.u16_be()) else {
            return Err(HelloError::Answer);
        };
        self.found = Some(Export { size_bytes, flags });
        Ok(())
    }
}

/// A text with its length. Both are short: a uid or the name of a volume, and a constant.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.as_bytes());
}
