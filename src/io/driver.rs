//! The completion trait of the data path. A worker owns exactly one driver; nothing here is
//! shared between threads but the [`Waker`].
//!
//! Order: operations start in the order they are submitted; completions come in any order.
//! At most one `Recv` and one `Send` are under way per socket (the caller sees to that).
//! Buffers belong to the driver from `submit` to the completion, which gives them back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::io::buffer::AlignedBuf;
use crate::types::Mono;

/// A file opened through [`Driver::open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A socket or listener of a driver. Reused only after its `Close` completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// Chosen by the caller, handed back with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// An address to listen on or to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP; TCP_NODELAY is set on every connection.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How to open a file for O_DIRECT. Offsets, lengths and memory are multiples of 4 KiB.
#[derive(Clone, Debug)]
pub struct OpenFile {
    pub path: PathBuf,
    /// Create it when it is missing.
    pub create: bool,
}

/// What can be asked of the kernel.
#[derive(Debug)]
pub enum Op {
    /// Fills `buf` from `offset`; a short read at the end of the file is the caller's to judge.
    Read { file: FileId, offset: u64, buf: AlignedBuf },
    /// Writes all of `bufs`, in order, from `offset`. With `durable` it completes only when the
    /// bytes are past the device's cache (DSYNC); short writes are finished by the driver.
    Write { file: FileId, offset: u64, bufs: Vec<Bytes>, durable: bool },
    /// Makes every completed write to the file durable (fdatasync).
    Sync { file: FileId },
    /// Takes what has arrived, at least 1 byte: first into `landing` from `landing_from` on, when
    /// there is one, then into `staging` from `staging_from` on. 0 bytes: the peer has closed.
    Recv { socket: SocketId, bufs: RecvBufs },
    /// Sends all of `bufs`; short sends are finished by the driver.
    Send { socket: SocketId, bufs: Vec<Bytes> },
    /// Waits for one connection; its id is in the completion.
    Accept { listener: SocketId },
    /// Makes one connection; its id is in the completion.
    Connect { address: Address },
    /// Ends what is under way on the socket (with an error) and closes it.
    Close { socket: SocketId },
}

/// Where received bytes go.
#[derive(Debug)]
pub struct RecvBufs {
    pub landing: Option<AlignedBuf>,
    pub landing_from: usize,
    pub staging: AlignedBuf,
    pub staging_from: usize,
}

/// An operation that ended.
#[derive(Debug)]
pub struct Completion {
    pub token: Token,
    pub result: std::io::Result<Done>,
    /// The buffers of a `Read` or `Recv`, also after an error.
    pub buffers: Buffers,
}

/// How an operation ended well.
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

/// Wakes a driver that waits in [`Driver::enter`], from any thread. Costs a system call: a
/// mailbox calls it only when the worker is parked.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

/// See [`Wake`].
pub type Waker = Arc<dyn Wake>;

/// The kernel, as a worker sees it.
pub trait Driver {
    /// The time (CLOCK_BOOTTIME), read anew.
    fn now(&self) -> Mono;

    /// Opens a file, which no other driver may have open, of this process or another: that is
    /// `ResourceBusy`, also while requests of a process that was killed are under way. Blocks, so
    /// only for start and control.
    fn open(&mut self, file: &OpenFile) -> std::io::Result<FileId>;

    /// Size of an open file in bytes.
    fn size_bytes(&self, file: FileId) -> std::io::Result<u64>;

    /// Listens; `Accept` then takes connections. The bound address is returned (port 0 works).
    fn listen(&mut self, address: &Address) -> std::io::Result<(SocketId, Address)>;

    /// Queues an operation. Nothing happens before [`Driver::enter`].
    fn submit(&mut self, token: Token, op: Op);

    /// Starts what was submitted and appends completions to `out`. Waits for the first one, but
    /// not beyond `timeout` (`None`: as long as it takes; zero: not at all), and returns early
    /// when woken. One system call on io_uring.
    fn enter(
        &mut self,
        timeout: Option<Duration>,
        out: &mut Vec<Completion>,
    ) -> std::io::Result<()>;

    /// True when the other end of a connection has closed it, or is known to be gone, whatever
    /// still waits to be received. Does not wait.
    fn has_hung_up(&self, socket: SocketId) -> bool;

    /// A handle that wakes this driver.
    fn waker(&self) -> Waker;

    /// What it is, for logs and `status`: `io_uring` or `epoll`.
    fn name(&self) -> &'static str;
}
