//! One connection of an NBD client: the handshake, and requests in flight. It blocks only in
//! [`Connection::wait`], for a bounded time.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use crate::fields::Fields;
use crate::front::nbd::wire::{
    self, OptionReplyHeader, RequestHeader, SimpleReply, command, info, option, reply,
};

/// Time limit of the connection attempt, and of each step of the handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Longest reply to an option; longer ones are not read.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;
const RECEIVE_BYTES: usize = 256 << 10;

/// Where a volume is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => address.fmt(f),
            Target::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    /// NBD error number; 0: success.
    pub error: u32,
}

/// A connection after its handshake.
pub struct Connection {
    socket: File,
    pub size_bytes: u64,
    out: Vec<u8>,
    /// Bytes of `out` that were sent.
    sent: usize,
    input: Vec<u8>,
    /// Bytes of `input` that were received, and how many of them were parsed.
    filled: usize,
    taken: usize,
    /// The read whose data is arriving, and its missing bytes.
    data: Option<(Answer, usize)>,
}

impl Connection {
    pub fn open(target: &Target, export: &str) -> anyhow::Result<Connection> {
        let mut socket =
            connect(target).with_context(|| format!("could not connect to {target}"))?;
        let size_bytes = handshake(&mut socket, export)
            .with_context(|| format!("could not open {export} at {target}"))?;
        rustix::io::ioctl_fionbio(&socket, true).context("could not set up a socket")?;
        Ok(Connection {
            socket,
            size_bytes,
            out: Vec::new(),
            sent: 0,
            input: vec![0; RECEIVE_BYTES],
            filled: 0,
            taken: 0,
            data: None,
        })
    }

    /// Queues a read of `length` bytes.
    pub fn read(&mut self, cookie: u64, offset: u64, length: u32) {
        self.request(command::READ, cookie, offset, length);
    }

    /// Queues a write.
    pub fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).expect("bounded by the largest request");
        self.request(command::WRITE, cookie, offset, length);
        self.out.extend_from_slice(data);
    }

    fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        let magic = wire::REQUEST_MAGIC;
        let request = RequestHeader { magic, flags: 0, command, cookie, offset, length };
        wire::put_request(&mut self.out, &request);
    }

    /// Queued bytes that were not sent yet.
    pub fn queued(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Sends what the socket takes. Then waits for input or for room to send, at most this long.
    pub fn wait(&mut self, at_most: Duration) -> anyhow::Result<()> {
        self.send()?;
        let mut events = PollFlags::IN;
        if self.queued() > 0 {
            events |= PollFlags::OUT;
        }
        let timeout = at_most.try_into().context("could not wait for a socket")?;
        match poll(&mut [PollFd::new(&self.socket, events)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("could not wait for a socket"),
        }
    }

    fn send(&mut self) -> anyhow::Result<()> {
        while self.queued() > 0 {
            match self.socket.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("could not send"),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Receives once and hands out the answers. `read_bytes` gives the data length of the request
    /// with a cookie: 0 for a write, `None` when no such request exists.
    pub fn receive(
        &mut self,
        read_bytes: impl Fn(u64) -> Option<usize>,
        answers: &mut Vec<Answer>,
    ) -> anyhow::Result<()> {
        self.input.copy_within(self.taken..self.filled, 0);
        (self.filled, self.taken) = (self.filled - self.taken, 0);
        match self.socket.read(&mut self.input[self.filled..]) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(count) => self.filled += count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error).context("could not receive"),
        }
        loop {
            if let Some((answer, missing)) = self.data {
                let here = missing.min(self.filled - self.taken);
                self.taken += here;
                if here < missing {
                    self.data = Some((answer, missing - here));
                    return Ok(());
                }
                self.data = None;
                answers.push(answer);
            }
            let Ok(head) = SimpleReply::decode(&self.input[self.taken..self.filled]) else {
                return Ok(());
            };
            ensure!(head.magic == wire::SIMPLE_REPLY_MAGIC, "the server sent no reply");
            self.taken += wire::SIMPLE_REPLY_BYTES;
            let answer = Answer { cookie: head.cookie, error: head.error };
            let bytes =
                read_bytes(head.cookie).context("the server sent an answer without a request")?;
            match head.error {
                0 => self.data = Some((answer, bytes)),
                _ => answers.push(answer),
            }
        }
    }
}

fn connect(target: &Target) -> std::io::Result<File> {
    let fd: OwnedFd = match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, HANDSHAKE_WITHIN)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(HANDSHAKE_WITHIN))?;
            stream.into()
        }
        Target::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(HANDSHAKE_WITHIN))?;
            stream.into()
        }
    };
    Ok(File::from(fd))
}

/// Negotiates the export and returns its size in bytes.
fn handshake(socket: &mut File, export: &str) -> anyhow::Result<u64> {
    let mut greeting = [0; wire::GREETING_BYTES];
    socket.read_exact(&mut greeting).context("could not receive the greeting")?;
    let mut fields = Fields::new(&greeting[..]);
    let magics = (fields.u64_be()?, fields.u64_be()?);
    ensure!(magics == (wire::MAGIC, wire::OPTION_MAGIC), "this is not an NBD server");
    let flags = wire::CLIENT_FLAG_FIXED_NEWSTYLE | wire::CLIENT_FLAG_NO_ZEROES;
    let mut out = flags.to_be_bytes().to_vec();
    wire::put_option(&mut out, option::GO, &wire::export_query(export));
    socket.write_all(&out).context("could not send")?;
    let mut size_bytes = None;
    loop {
        let mut head = [0; wire::OPTION_REPLY_HEADER_BYTES];
        socket.read_exact(&mut head).context("could not receive an answer")?;
        let head = OptionReplyHeader::decode(&head).context("the answer is too short")?;
        ensure!(head.magic == wire::OPTION_REPLY_MAGIC, "the server sent no answer to an option");
        ensure!(head.data_bytes <= OPTION_REPLY_BYTES_MAX, "the server's answer is too long");
        let mut data = vec![0; head.data_bytes as usize];
        socket.read_exact(&mut data).context("the answer ended early")?;
        let mut fields = Fields::new(&data[..]);
        match head.kind {
            reply::ACK => return size_bytes.context("the server sent no volume size"),
            reply::INFO if fields.u16_be() == Ok(info::EXPORT) => size_bytes = fields.u64_be().ok(),
            reply::INFO => {}
            reply::ERR_UNKNOWN => bail!("there is no such volume"),
            kind => bail!("refused ({kind:#x}): {}", String::from_utf8_lossy(&data)),
        }
    }
}
