//! The completion trait of the data path. A worker owns exactly one driver. Threads share nothing
//! of it but the [`Waker`].
//!
//! Order: operations on a socket start in the order of submission, as do the durable writes to the
//! files of one disk, and the other operations on them. They complete in any order. At most one
//! `Recv` and one `Send` are in flight per socket; the caller ensures that. The driver owns the
//! buffers from `submit` until the completion, which returns them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::io::buffer::AlignedBuf;
use crate::io::file::ExclusiveFile;
use crate::types::Mono;

/// A file of a driver: see [`Driver::add_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A disk of a driver: files that fail and hang together. One that hangs delays operations on its
/// own files only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disk(pub u8);

/// A socket or listener of a driver. Reused only after its `Close` completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// Chosen by the caller and returned with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// An address to listen on or to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP; TCP_NODELAY is set on every connection.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Operations on files and sockets.
#[derive(Debug)]
pub enum Op {
    /// Fills `buf` from `offset`. A read may come back short at the end of the file.
    Read { file: FileId, offset: u64, buf: AlignedBuf },
    /// Writes all of `bufs`, in order, from `offset`. If `durable`, it completes only when the
    /// bytes are past the device's cache (DSYNC). The driver finishes short writes.
    Write { file: FileId, offset: u64, bufs: Vec<Bytes>, durable: bool },
    /// Makes every completed write to the file durable (fdatasync).
    Sync { file: FileId },
    /// Receives at least 1 byte: first into `landing` from `landing_from` on, if there is one, then
    /// into `staging` from `staging_from` on. 0 bytes: the peer has closed.
    Recv { socket: SocketId, bufs: RecvBufs },
    /// Sends all of `bufs`. The driver finishes short sends.
    Send { socket: SocketId, bufs: Vec<Bytes> },
    /// Accepts one connection. The completion carries its id.
    Accept { listener: SocketId },
    /// Opens one connection. The completion carries its id.
    Connect { address: Address },
    /// Ends the operations in flight on the socket with an error, and closes it.
    Close { socket: SocketId },
}

/// Memory for received bytes.
#[derive(Debug)]
pub struct RecvBufs {
    pub landing: Option<AlignedBuf>,
    pub landing_from: usize,
    pub staging: AlignedBuf,
    pub staging_from: usize,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    pub token: Token,
    pub result: std::io::Result<Done>,
    /// The buffers of a `Read` or `Recv`, also after an error.
    pub buffers: Buffers,
}

/// The result of a successful operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Bytes moved (`Read`, `Write`, `Recv`, `Send`), or 0.
    Bytes(usize),
    Accepted(SocketId),
    Connected(SocketId),
}

/// Buffers that come back with a completion.
#[derive(Debug)]
pub enum Buffers {
    None,
    Read(AlignedBuf),
    Recv(RecvBufs),
}

/// Wakes a driver that waits in [`Driver::enter`], from any thread. It costs a system call, so a
/// mailbox calls it only when the worker is parked.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

/// See [`Wake`].
pub type Waker = Arc<dyn Wake>;

/// I/O and time, as a worker sees them.
pub trait Driver {
    /// Reads the clock (CLOCK_BOOTTIME).
    fn now(&self) -> Mono;

    /// Takes over a file of `disk`.
    fn add_file(&mut self, file: ExclusiveFile, disk: Disk) -> std::io::Result<FileId>;

    /// Size of an open file in bytes.
    fn size_bytes(&self, file: FileId) -> std::io::Result<u64>;

    /// Starts to listen, for later `Accept`s. Returns the bound address (port 0 works).
    fn listen(&mut self, address: &Address) -> std::io::Result<(SocketId, Address)>;

    /// Queues an operation. Nothing happens before [`Driver::enter`].
    fn submit(&mut self, token: Token, op: Op);

    /// Starts the submitted operations and appends completions to `out`. Waits until the first one,
    /// a wake-up, or `timeout` (`None`: no limit; zero: no wait). One system call on io_uring.
    fn enter(
        &mut self,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> std::io::Result<()>;

    /// The address at the other end of a TCP connection; `None` for unix sockets, and when it is
    /// gone.
    fn source(&self, socket: SocketId) -> Option<IpAddr>;

    /// True when the other end has closed the connection or is known to be gone, even if received
    /// bytes still wait. Does not block.
    fn has_hung_up(&self, socket: SocketId) -> bool;

    /// A handle that wakes this driver.
    fn waker(&self) -> Waker;

    /// Name for logs and `status`: `io_uring` or `epoll`.
    fn name(&self) -> &'static str;
}
