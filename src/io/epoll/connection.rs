//! One non-blocking socket with its waiting operations. Attempts repeat until the kernel says
//! "would block"; the next edge then starts the next attempt.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::io::driver::{Completion, Done, Op, SocketId, Token};
use crate::io::gather::Gather;
use crate::io::operation::{buffers_of, closed, gather_op};
use crate::io::socket;

/// A connected, connecting or listening socket.
pub(super) struct Connection {
    fd: OwnedFd,
    id: SocketId,
    /// Connections accepted from it are TCP.
    pub is_tcp: bool,
    recv: Transfer,
    send: Transfer,
    accepts: VecDeque<Token>,
    connect: Option<Token>,
}

/// The receiving or the sending half of a socket. Its list keeps its capacity.
#[derive(Default)]
struct Transfer {
    in_flight: Option<(Token, Op)>,
    gather: Gather,
    total_bytes: usize,
}

/// The result of an attempt.
pub(super) enum Progress {
    Ended(Completion),
    /// A new connection, for the operation of the listener.
    Accepted(Token, OwnedFd),
}

impl Connection {
    pub fn new(fd: OwnedFd, id: SocketId, is_tcp: bool) -> Connection {
        Connection {
            fd,
            id,
            is_tcp,
            recv: Transfer::default(),
            send: Transfer::default(),
            accepts: VecDeque::new(),
            connect: None,
        }
    }

    /// Stores a `Recv`, `Send` or `Accept`, which [`Connection::progress`] then attempts.
    pub fn begin(&mut self, token: Token, op: Op) {
        match op {
            Op::Recv { .. } => self.recv.begin(token, op),
            Op::Send { .. } => self.send.begin(token, op),
            Op::Accept { .. } => self.accepts.push_back(token),
            _ => unreachable!("not an operation of an open socket"),
        }
    }

    /// Records a connection attempt in flight.
    pub fn begin_connect(&mut self, token: Token) {
        self.connect = Some(token);
    }

    pub fn has_hung_up(&self) -> bool {
        socket::has_hung_up(&self.fd)
    }

    pub fn is_connecting(&self) -> bool {
        self.connect.is_some()
    }

    /// Does everything that is possible without waiting.
    pub fn progress(&mut self, ended: &mut Vec<Progress>) {
        if let Some(token) = self.connect {
            let Some(result) = self.connected() else {
                return;
            };
            self.connect = None;
            let result = result.map(|()| Done::Connected(self.id));
            ended.push(Progress::Ended(completion(token, result)));
            return;
        }
        let fd = self.fd.as_raw_fd();
        ended.extend(self.recv.attempt(|gather| recv(fd, gather)));
        ended.extend(self.send.attempt(|gather| send_all(fd, gather)));
        while let Some(token) = self.accepts.front().copied() {
            let Some(result) = self.accept() else {
                return;
            };
            self.accepts.pop_front();
            ended.push(match result {
                Ok(fd) => Progress::Accepted(token, fd),
                Err(error) => Progress::Ended(completion(token, Err(error))),
            });
        }
    }

    /// Ends all operations in flight and returns their buffers.
    pub fn abort(&mut self, out: &mut Vec<Completion>) {
        for transfer in [&mut self.recv, &mut self.send] {
            if let Some((token, op)) = transfer.take() {
                out.push(Completion { token, result: Err(closed()), buffers: buffers_of(op) });
            }
        }
        for token in self.accepts.drain(..) {
            out.push(completion(token, Err(closed())));
        }
    }

    /// The result of the connection attempt; `None` while it is in flight.
    fn connected(&self) -> Option<io::Result<()>> {
        match rustix::net::sockopt::socket_error(&self.fd) {
            Ok(Ok(())) => {}
            Ok(Err(errno)) | Err(errno) => return Some(Err(errno.into())),
        }
        match rustix::net::getpeername(&self.fd) {
            Ok(_) => Some(Ok(())),
            Err(Errno::NOTCONN) => None,
            Err(errno) => Some(Err(errno.into())),
        }
    }

    fn accept(&self) -> Option<io::Result<OwnedFd>> {
        loop {
            match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                result => return Some(result.map_err(io::Error::from)),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Transfer {
    fn begin(&mut self, token: Token, mut op: Op) {
        assert!(self.in_flight.is_none(), "one receive and one send at a time");
        gather_op(&mut self.gather, &mut op);
        self.total_bytes = self.gather.remaining_bytes();
        self.in_flight = Some((token, op));
    }

    fn take(&mut self) -> Option<(Token, Op)> {
        self.gather.clear();
        self.in_flight.take()
    }

    /// `None` when no operation waits, or when the operation would block.
    fn attempt(
        &mut self,
        transfer: impl FnOnce(&mut Gather) -> Option<io::Result<()>>,
    ) -> Option<Progress> {
        self.in_flight.as_ref()?;
        let result = transfer(&mut self.gather)?;
        let moved = self.total_bytes - self.gather.remaining_bytes();
        let (token, op) = self.take().expect("in flight");
        Some(Progress::Ended(Completion {
            token,
            result: result.map(|()| Done::Bytes(moved)),
            buffers: buffers_of(op),
        }))
    }
}

fn completion(token: Token, result: io::Result<Done>) -> Completion {
    Completion { token, result, buffers: crate::io::driver::Buffers::None }
}

fn recv(fd: libc::c_int, gather: &mut Gather) -> Option<io::Result<()>> {
    let mut header = header(gather);
    // SAFETY: the gathered memory belongs to the operation in flight.
    let count = call(|| unsafe { libc::recvmsg(fd, &mut header, libc::MSG_DONTWAIT) })?;
    Some(count.map(|count| gather.advance(count)))
}

fn send_all(fd: libc::c_int, gather: &mut Gather) -> Option<io::Result<()>> {
    while gather.remaining_bytes() > 0 {
        let header = header(gather);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `recv`.
        match call(|| unsafe { libc::sendmsg(fd, &header, flags) })? {
            Ok(count) => gather.advance(count),
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(()))
}

fn header(gather: &Gather) -> libc::msghdr {
    let window = gather.window();
    // SAFETY: a msghdr of zeroes is a valid, empty one.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = window.as_ptr().cast_mut();
    header.msg_iovlen = window.len() as _;
    header
}

/// Repeats a call after signals. `None` when it would block.
fn call(mut call: impl FnMut() -> isize) -> Option<io::Result<usize>> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Some(Ok(count));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return None,
            _ => return Some(Err(error)),
        }
    }
}
