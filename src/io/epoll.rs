//! The epoll driver for machines that forbid io_uring. Sockets are edge-triggered and tried at
//! once; [`FileThreads`] serve files.

mod connection;

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::Timespec;
use socket2::SockAddr;

use self::connection::{Connection, Progress};
use crate::io::driver::{
    Address, Completion, Disk, Done, Driver, FileId, Op, SocketId, Token, Waker,
};
use crate::io::file::ExclusiveFile;
use crate::io::operation::{buffers_of, file_of, is_empty_transfer, unknown};
use crate::io::threads::FileThreads;
use crate::io::wake::EventFd;
use crate::io::{DriverError, clock, file, socket};
use crate::types::Mono;

/// Events per system call.
const EVENTS_MAX: usize = 256;
/// Event id of the eventfd. Events of sockets carry the socket's id.
const WAKE: u64 = u64::MAX;

/// The epoll driver: see the module.
pub(super) struct Epoll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    submitted: VecDeque<(Token, Op)>,
    handles: Vec<Option<Handle>>,
    free: Vec<u32>,
    files: FileThreads,
    wake: Arc<EventFd>,
    /// Reused list of the operations that one attempt ended.
    progress: Vec<Progress>,
}

enum Handle {
    File(Arc<OwnedFd>, Disk),
    Socket(Box<Connection>),
}

impl Epoll {
    pub fn new() -> Result<Epoll, DriverError> {
        let make = || -> io::Result<Epoll> {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let wake = Arc::new(EventFd::new(true)?);
            let data = epoll::EventData::new_u64(WAKE);
            epoll::add(&epoll, &wake, data, epoll::EventFlags::IN)?;
            Ok(Epoll {
                epoll,
                events: Vec::with_capacity(EVENTS_MAX),
                submitted: VecDeque::new(),
                handles: Vec::new(),
                free: Vec::new(),
                files: FileThreads::new(Arc::clone(&wake)),
                wake,
                progress: Vec::new(),
            })
        };
        make().map_err(|source| DriverError::Setup { what: "epoll", source })
    }

    fn begin(&mut self, token: Token, op: Op, out: &mut Vec<Completion>) {
        let ended = match op {
            Op::Connect { ref address } => match self.connect(token, address) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Op::Close { socket } => self.close(socket, out),
            Op::Recv { socket, .. } | Op::Send { socket, .. } => {
                return self.begin_on_socket(token, socket, op, out);
            }
            Op::Accept { listener } => return self.begin_on_socket(token, listener, op, out),
            _ => match self.file(file_of(&op).expect("all other operations are on files")) {
                Some(_) if is_empty_transfer(&op) => Ok(Done::Bytes(0)),
                Some((file, disk)) => {
                    let (file, disk) = (Arc::clone(file), disk);
                    return self.files.queue(disk, token, file, op);
                }
                None => Err(unknown()),
            },
        };
        out.push(Completion { token, result: ended, buffers: buffers_of(op) });
    }

    fn begin_on_socket(&mut self, token: Token, id: SocketId, op: Op, out: &mut Vec<Completion>) {
        match self.socket(id) {
            Some(connection) if !connection.is_connecting() => {
                connection.begin(token, op);
                self.progress(id, out);
            }
            _ => out.push(Completion { token, result: Err(unknown()), buffers: buffers_of(op) }),
        }
    }

    /// Starts a connection attempt. The completion follows even if it succeeds at once.
    fn connect(&mut self, token: Token, address: &Address) -> io::Result<()> {
        let (fd, sockaddr) = socket::prepare_connect(address)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        start_connect(&fd, &sockaddr)?;
        // Registered only now: before the attempt, epoll would report a hang-up.
        let id = self.add_socket(fd, matches!(address, Address::Tcp(_)))?;
        let connection = self.socket(id).expect("just added");
        connection.begin_connect(token);
        Ok(())
    }

    fn close(&mut self, id: SocketId, out: &mut Vec<Completion>) -> io::Result<Done> {
        let connection = self.socket(id).ok_or_else(unknown)?;
        connection.abort(out);
        self.remove(id.0);
        Ok(Done::Bytes(0))
    }

    /// Tries the operations that wait for a socket.
    fn progress(&mut self, id: SocketId, out: &mut Vec<Completion>) {
        let mut progress = std::mem::take(&mut self.progress);
        let Some(connection) = self.socket(id) else {
            self.progress = progress;
            return;
        };
        let was_connecting = connection.is_connecting();
        let is_tcp = connection.is_tcp;
        connection.progress(&mut progress);
        for step in progress.drain(..) {
            let completion = match step {
                Progress::Ended(completion) => completion,
                Progress::Accepted(token, fd) => Completion {
                    token,
                    result: self.adopt(fd, is_tcp),
                    buffers: crate::io::driver::Buffers::None,
                },
            };
            if was_connecting && completion.result.is_err() {
                self.remove(id.0);
            }
            out.push(completion);
        }
        self.progress = progress;
    }

    /// Registers an accepted descriptor as a socket.
    fn adopt(&mut self, fd: OwnedFd, is_tcp: bool) -> io::Result<Done> {
        socket::prepare_accepted(&fd, is_tcp)?;
        Ok(Done::Accepted(self.add_socket(fd, is_tcp)?))
    }

    fn add_socket(&mut self, fd: OwnedFd, is_tcp: bool) -> io::Result<SocketId> {
        let index = self.vacant();
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(u64::from(index));
        epoll::add(&self.epoll, &fd, data, flags)?;
        let id = SocketId(index);
        self.put(index, Handle::Socket(Box::new(Connection::new(fd, id, is_tcp))));
        Ok(id)
    }

    /// Index of the next handle.
    fn vacant(&self) -> u32 {
        match self.free.last() {
            Some(index) => *index,
            None => u32::try_from(self.handles.len()).expect("descriptors end first"),
        }
    }

    fn put(&mut self, index: u32, handle: Handle) {
        if self.free.pop().is_none() {
            self.handles.push(None);
        }
        self.handles[index as usize] = Some(handle);
    }

    /// Closes the descriptor, which also ends its registration.
    fn remove(&mut self, index: u32) {
        let handle = self.handles[index as usize].take();
        assert!(handle.is_some(), "removed once");
        self.free.push(index);
    }

    fn socket(&mut self, id: SocketId) -> Option<&mut Connection> {
        match self.handles.get_mut(id.0 as usize)?.as_mut()? {
            Handle::Socket(connection) => Some(connection),
            Handle::File(..) => None,
        }
    }

    fn file(&self, id: FileId) -> Option<(&Arc<OwnedFd>, Disk)> {
        match self.handles.get(id.0 as usize)?.as_ref()? {
            Handle::File(file, disk) => Some((file, *disk)),
            Handle::Socket(_) => None,
        }
    }

    /// Waits for events and handles them. True when woken.
    fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<bool> {
        let timespec = timeout.map(whole_milliseconds);
        let mut events = std::mem::take(&mut self.events);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        let waited = epoll::wait(&self.epoll, buffer, timespec.as_ref());
        let mut woken = false;
        match waited {
            Ok(_) => {}
            // After a signal, return to the caller.
            Err(rustix::io::Errno::INTR) => woken = true,
            Err(errno) => {
                self.events = events;
                return Err(errno.into());
            }
        }
        for event in events.drain(..) {
            match { event.data }.u64() {
                WAKE => {
                    woken = true;
                    // In this order: a file operation that completes later wakes again.
                    self.wake.drain();
                    self.files.take_done(out);
                }
                id => self.progress(SocketId(id as u32), out),
            }
        }
        self.events = events;
        Ok(woken)
    }
}

impl Driver for Epoll {
    fn now(&self) -> Mono {
        clock::now()
    }

    fn add_file(&mut self, file: ExclusiveFile, disk: Disk) -> io::Result<FileId> {
        let index = self.vacant();
        self.put(index, Handle::File(Arc::new(file.into_fd()), disk));
        Ok(FileId(index))
    }

    fn size_bytes(&self, file: FileId) -> io::Result<u64> {
        file::size_bytes(self.file(file).ok_or_else(unknown)?.0.as_fd())
    }

    fn listen(&mut self, address: &Address) -> io::Result<(SocketId, Address)> {
        let (fd, bound) = socket::listen(address)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        let id = self.add_socket(fd, matches!(address, Address::Tcp(_)))?;
        Ok((id, bound))
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.submitted.push_back((token, op));
    }

    fn enter(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        let deadline = timeout.map(|timeout| self.now() + timeout);
        while let Some((token, op)) = self.submitted.pop_front() {
            self.begin(token, op, out);
        }
        let mut left = timeout;
        loop {
            if out.len() > before {
                left = Some(Duration::ZERO);
            }
            let woken = self.wait(left, out)?;
            if woken || out.len() > before {
                return Ok(());
            }
            if let Some(deadline) = deadline {
                let rest = deadline.since(self.now());
                if rest.is_zero() {
                    return Ok(());
                }
                left = Some(rest);
            }
        }
    }

    fn source(&self, socket: SocketId) -> Option<IpAddr> {
        match self.handles.get(socket.0 as usize) {
            Some(Some(Handle::Socket(connection))) => socket::source(connection),
            _ => None,
        }
    }

    fn has_hung_up(&self, socket: SocketId) -> bool {
        match self.handles.get(socket.0 as usize) {
            Some(Some(Handle::Socket(connection))) => connection.has_hung_up(),
            _ => false,
        }
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.wake) as Waker
    }

    fn name(&self) -> &'static str {
        "epoll"
    }
}

/// epoll counts in milliseconds. Rounds up, because rounding down would make a busy loop.
fn whole_milliseconds(timeout: Duration) -> Timespec {
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    Timespec { tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000 }
}

/// Succeeds when the connection is open or the attempt is in flight.
fn start_connect(fd: &OwnedFd, address: &SockAddr) -> io::Result<()> {
    // SAFETY: the address outlives the call, and has the stated length.
    let result = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len()) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // An interrupted attempt continues in the kernel.
        Some(libc::EINPROGRESS | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}
