//! A small NBD client with one request at a time, which can also break the protocol. It uses the
//! fixed newstyle handshake and simple replies (NetworkBlockDevice/nbd, `doc/proto.md`).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
pub const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

pub const OPTION_EXPORT_NAME: u32 = 1;
pub const OPTION_ABORT: u32 = 2;
pub const OPTION_LIST: u32 = 3;
pub const OPTION_GO: u32 = 7;

pub const REPLY_ACK: u32 = 1;
pub const REPLY_INFO: u32 = 3;
pub const REPLY_ERR_UNSUP: u32 = 0x8000_0001;
pub const REPLY_ERR_INVALID: u32 = 0x8000_0003;
pub const REPLY_ERR_UNKNOWN: u32 = 0x8000_0006;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;

pub const FLAG_FUA: u16 = 1;

pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;

/// Only ends tests that hang: longer than any pause that a test causes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a request did not succeed.
#[derive(Debug)]
pub enum NbdError {
    /// The server answered with this error number.
    Server(u32),
    /// The connection broke: the outcome of a write is unknown.
    Connection(io::Error),
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> NbdError {
        NbdError::Connection(error)
    }
}

/// A connection in the negotiation phase.
pub struct Negotiation<S = TcpStream> {
    pub stream: S,
}

impl Negotiation {
    /// Connects and answers the greeting with these client flags (1 fixed newstyle, 2 no zeroes).
    pub fn start(address: SocketAddr, client_flags: u32) -> io::Result<Negotiation> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Negotiation::over(stream, client_flags)
    }
}

impl<S: Read + Write> Negotiation<S> {
    /// Answers the greeting that comes over a stream.
    pub fn over(mut stream: S, client_flags: u32) -> io::Result<Negotiation<S>> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if greeting[..8] != INIT_MAGIC[..] || greeting[8..16] != OPTION_MAGIC[..] {
            return Err(io::Error::other("not an NBD server"));
        }
        stream.write_all(&client_flags.to_be_bytes())?;
        Ok(Negotiation { stream })
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = OPTION_MAGIC.to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes)
    }

    /// Reply type and data of the next answer.
    pub fn reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let magic = u64::from_be_bytes(head[..8].try_into().unwrap());
        assert_eq!(magic, OPTION_REPLY_MAGIC, "magic of an option reply");
        assert_eq!(word(8), option, "an answer to what was asked");
        let mut data = vec![0; word(16) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((word(12), data))
    }

    /// Chooses an export; the connection then carries requests.
    pub fn go(mut self, export: &str) -> io::Result<Client<S>> {
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend(export.as_bytes());
        data.extend(0u16.to_be_bytes());
        self.send_option(OPTION_GO, &data)?;
        let (mut size_bytes, mut flags) = (None, 0);
        loop {
            match self.reply(OPTION_GO)? {
                (REPLY_INFO, info) if info[..2] == [0, 0] => {
                    size_bytes = Some(u64::from_be_bytes(info[2..10].try_into().unwrap()));
                    flags = u16::from_be_bytes(info[10..12].try_into().unwrap());
                }
                (REPLY_INFO, _) => {}
                (REPLY_ACK, _) => break,
                (error, text) => {
                    let text = String::from_utf8_lossy(&text).into_owned();
                    return Err(io::Error::other(format!("{error:#x} {text}")));
                }
            }
        }
        Ok(Client {
            stream: self.stream,
            size_bytes: size_bytes.ok_or_else(|| io::Error::other("no size"))?,
            flags,
            cookie: 0,
        })
    }
}

/// A connection that carries requests.
pub struct Client<S = TcpStream> {
    pub stream: S,
    pub size_bytes: u64,
    /// Transmission flags of the export.
    pub flags: u16,
    cookie: u64,
}

impl Client {
    pub fn connect(address: SocketAddr, export: &str) -> io::Result<Client> {
        Negotiation::start(address, 3)?.go(export)
    }

    /// True when the server has closed the connection (or closes it now).
    pub fn is_closed(&mut self) -> bool {
        closes(&mut self.stream)
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends any request, followed by `payload` unchanged. Returns its cookie.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let mut bytes = Vec::with_capacity(28 + payload.len());
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes)?;
        Ok(self.cookie)
    }

    /// Cookie and error number of the next answer. The data of a read must still be received.
    pub fn receive(&mut self) -> io::Result<(u64, u32)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let magic = u32::from_be_bytes(head[..4].try_into().unwrap());
        assert_eq!(magic, SIMPLE_REPLY_MAGIC, "magic of a reply");
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        Ok((u64::from_be_bytes(head[8..16].try_into().unwrap()), error))
    }

    fn answer_to(&mut self, cookie: u64) -> Result<(), NbdError> {
        let (answered, error) = self.receive()?;
        assert_eq!(answered, cookie, "one request at a time");
        match error {
            0 => Ok(()),
            error => Err(NbdError::Server(error)),
        }
    }

    fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Result<(), NbdError> {
        let cookie = self.send(command, flags, offset, len, &[])?;
        self.answer_to(cookie)
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, NbdError> {
        self.call(READ, 0, offset, len as u32)?;
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let cookie = self.send(WRITE, 0, offset, data.len() as u32, data)?;
        self.answer_to(cookie)
    }

    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.call(FLUSH, 0, 0, 0)
    }

    pub fn trim(&mut self, offset: u64, len: u32) -> Result<(), NbdError> {
        self.call(TRIM, 0, offset, len)
    }

    pub fn write_zeroes(&mut self, offset: u64, len: u32) -> Result<(), NbdError> {
        self.call(WRITE_ZEROES, 0, offset, len)
    }
}

/// Reads until the server closes the connection; false when it stays open for too long.
pub fn closes(stream: &mut TcpStream) -> bool {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}
