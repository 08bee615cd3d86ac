//! What the tests of the session share: a client, and the messages of both sides.

use crate::front::nbd::wire::{self, info, option, reply};
use crate::front::nbd::{
    CloseReason, Encryption, Export, Exports, Opened, Session, SessionHandle, SessionOutput,
};
use crate::io::buffer::Pool;
use crate::io::stream::StreamReader;
use crate::limits::REQUEST_BYTES_MAX;
use crate::testing::stream_fixture::receive;
use crate::types::{AttachmentId, BLOCK_BYTES, BlockError, BlockOp, BlockReply, VolumeId};

pub const SIZE_BYTES: u64 = 5 << 30;
/// Flags of a writable export without structured replies.
pub const FLAGS: u16 = 0x0d6d;
pub const FLAG_DF: u16 = 0x80;

pub struct Table(&'static [&'static str]);

impl Exports for Table {
    fn list(&self) -> Vec<String> {
        self.0.iter().map(|name| (*name).to_owned()).collect()
    }

    fn open(&self, name: &str) -> Opened {
        let place = match name {
            "" if self.0.len() == 1 => Some(0),
            _ => self.0.iter().position(|known| *known == name),
        };
        let Some(place) = place else { return Opened::Unknown };
        Opened::Export(Export {
            volume: VolumeId(place as u64),
            attachment: AttachmentId::NONE,
            size_bytes: SIZE_BYTES,
            read_only: self.0[place] == "frozen",
        })
    }

    fn only(&self) -> Option<String> {
        (self.0.len() == 1).then(|| self.0[0].to_owned())
    }
}

pub const EXPORTS: Table = Table(&["a", "frozen"]);

/// A client and its session; requests are kept, or answered at once.
pub struct Client {
    pub pool: Pool,
    pub reader: StreamReader,
    pub session: Session,
    pub out: Vec<SessionOutput>,
    pub sent: Vec<u8>,
    pub requests: Vec<(SessionHandle, BlockOp)>,
    pub closed: Option<CloseReason>,
    pub tls_started: bool,
}

impl Client {
    pub fn new() -> Client {
        Client::with_session(Session::new())
    }

    /// A client of a listener that says this of TLS.
    pub fn of(encryption: Encryption) -> Client {
        Client::with_session(Session::new().with_encryption(encryption))
    }

    fn with_session(session: Session) -> Client {
        let pool = Pool::default();
        let mut client = Client {
            reader: StreamReader::new(pool.clone()),
            pool,
            session,
            out: Vec::new(),
            sent: Vec::new(),
            requests: Vec::new(),
            closed: None,
            tls_started: false,
        };
        client.session.feed(&mut client.reader, &EXPORTS, &mut client.out);
        client.collect(true);
        client
    }

    /// A client that has opened "a" and has read all replies to that.
    pub fn open(structured: bool) -> Client {
        Client::new().opened(structured)
    }

    /// The same, with another bound on the bytes in flight.
    pub fn open_with(structured: bool, bytes_max: usize) -> Client {
        Client::with_session(Session::with_bytes_max(bytes_max)).opened(structured)
    }

    fn opened(mut self, structured: bool) -> Client {
        self.receive(&handshake(structured, "a"), usize::MAX);
        assert!(self.session.export().is_some());
        self.sent.clear();
        self
    }

    /// Sends `stream` in pieces; stops when the session wants no more. What is left of it.
    pub fn receive<'a>(&mut self, mut stream: &'a [u8], piece_bytes: usize) -> &'a [u8] {
        while !stream.is_empty() && self.session.wants_input() {
            stream = receive(&mut self.reader, stream, piece_bytes);
            self.session.feed(&mut self.reader, &EXPORTS, &mut self.out);
            self.collect(true);
        }
        stream
    }

    pub fn collect(&mut self, sent: bool) {
        for output in self.out.drain(..) {
            assert_eq!(self.closed, None, "nothing follows the end");
            match output {
                SessionOutput::Send(bytes) => {
                    self.sent.extend_from_slice(&bytes);
                    if sent {
                        self.session.sent(bytes.len());
                    }
                }
                SessionOutput::Request { handle, op } => self.requests.push((handle, op)),
                SessionOutput::StartTls => self.tls_started = true,
                SessionOutput::Close { reason } => self.closed = Some(reason),
            }
        }
    }

    pub fn reply(&mut self, handle: SessionHandle, result: Result<BlockReply, BlockError>) {
        self.session.reply(handle, result, &mut self.out);
        self.collect(true);
    }

    pub fn only_request(&mut self) -> (SessionHandle, BlockOp) {
        assert_eq!(self.requests.len(), 1);
        self.requests.remove(0)
    }

    pub fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }
}

pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub fn client_option(code: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    let magic = wire::OPTION_MAGIC.to_be_bytes();
    join(&[&magic, &code.to_be_bytes(), &len.to_be_bytes(), data])
}

pub fn answer(code: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let len = data.len() as u32;
    let magic = wire::OPTION_REPLY_MAGIC.to_be_bytes();
    join(&[&magic, &code.to_be_bytes(), &kind.to_be_bytes(), &len.to_be_bytes(), data])
}

pub fn string(text: &str) -> Vec<u8> {
    join(&[&(text.len() as u32).to_be_bytes(), text.as_bytes()])
}

pub fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let infos: Vec<u8> = infos.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    join(&[&string(name), &(infos.len() as u16 / 2).to_be_bytes(), &infos])
}

pub fn query_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let strings: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    join(&[&string(name), &(queries.len() as u32).to_be_bytes(), &strings])
}

pub fn go_answer(code: u32, flags: u16) -> Vec<u8> {
    let size = SIZE_BYTES.to_be_bytes();
    let export = join(&[&info::EXPORT.to_be_bytes(), &size, &flags.to_be_bytes()]);
    let sizes = [1, BLOCK_BYTES as u32, REQUEST_BYTES_MAX as u32];
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_be_bytes()).collect();
    let block_size = join(&[&info::BLOCK_SIZE.to_be_bytes(), &sizes]);
    join(&[&answer(code, reply::INFO, &export), &answer(code, reply::INFO, &block_size)])
}

pub fn handshake(structured: bool, name: &str) -> Vec<u8> {
    let mut stream = 3u32.to_be_bytes().to_vec();
    if structured {
        stream.extend(client_option(option::STRUCTURED_REPLY, &[]));
        let data = query_data(name, &["base:allocation"]);
        stream.extend(client_option(option::SET_META_CONTEXT, &data));
    }
    stream.extend(client_option(option::GO, &go_data(name, &[])));
    stream
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
    let (cookie, offset) = (cookie.to_be_bytes(), offset.to_be_bytes());
    let magic = wire::REQUEST_MAGIC.to_be_bytes();
    join(&[&magic, &flags, &command, &cookie, &offset, &length.to_be_bytes()])
}

pub fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let magic = wire::SIMPLE_REPLY_MAGIC.to_be_bytes();
    join(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes()])
}

pub fn chunk_of(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let magic = wire::STRUCTURED_REPLY_MAGIC.to_be_bytes();
    let (flags, kind, cookie) = (flags.to_be_bytes(), kind.to_be_bytes(), cookie.to_be_bytes());
    join(&[&magic, &flags, &kind, &cookie, &(payload.len() as u32).to_be_bytes(), payload])
}
