//! The io_uring driver: one ring per worker, used only by the thread that made it. A round is one
//! system call that submits, runs the kernel's deferred work, and waits.
//!
//! Each operation has at most one entry in the kernel. Memory that the kernel may touch meanwhile
//! lives in a slot ([`slots`]). Entries reach the kernel in the order of submission; while the
//! submission queue is full, they wait in `backlog`.
//!
//! To close a socket: mark it, cancel its operations in flight, and close it after the last answer.
//! No operation starts on a marked socket.

mod disks;
mod handles;
mod slots;

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use self::disks::Disks;
use self::handles::{Handle, Handles};
use self::slots::{CANCEL, Ended, Slots, Verdict, WAKE, user_data};
use crate::io::driver::{
    Address, Completion, Disk, Done, Driver, FileId, Op, SocketId, Token, Wake, Waker,
};
use crate::io::file::ExclusiveFile;
use crate::io::operation::{buffers_of, closed, file_of, is_empty_transfer, unknown};
use crate::io::threads::{FileThreads, Kind};
use crate::io::wake::EventFd;
use crate::io::{DriverError, DurableWrites, clock, file, socket};
use crate::types::Mono;

/// Number of flag sets to try, best first: for Linux 6.1, 6.0, 5.19, and any.
const FLAG_SETS: u32 = 4;
/// How long a dropped driver waits for the kernel to release its memory.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// The limit of [`is_small_send`].
const SMALL_SEND_BYTES: usize = 16 << 10;

/// The io_uring driver: see the module.
pub(super) struct Uring {
    ring: IoUring,
    /// True when the kernel signals deferred work in shared memory.
    has_taskrun_flag: bool,
    backlog: VecDeque<squeue::Entry>,
    slots: Slots,
    handles: Handles,
    /// Completions of operations that needed no kernel.
    ready: Vec<Completion>,
    /// Reused list of the completions that one look at the queue finds.
    reaped: Vec<cqueue::Entry>,
    /// What each disk has in the ring.
    disks: Disks,
    /// Operations for the threads; they start with the next round.
    for_threads: VecDeque<(Disk, Token, Arc<OwnedFd>, Op)>,
    threads: FileThreads,
    durable_writes: DurableWrites,
    /// Small sends that the next system call starts. They are marked to end at once, and the caller
    /// does not wait for them. So the wait counts past them, which saves a wake-up per round.
    small_sends: u32,
    wake: Arc<EventFd>,
    /// Where the kernel writes the eventfd's count.
    wake_count: Box<UnsafeCell<u64>>,
    wake_armed: bool,
    woken: bool,
}

/// Sizes of a ring.
struct Sizes {
    /// Most entries that one system call submits.
    submission_entries: u32,
    /// Completions in shared memory. The kernel keeps further ones in its own memory.
    completion_entries: u32,
    /// Registered files and sockets. Further ones work a little slower.
    registered_max: u32,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { submission_entries: 512, completion_entries: 4096, registered_max: 4096 }
    }
}

/// How long a system call waits for a completion.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    No,
    AtMost(Duration),
    Forever,
}

impl Uring {
    /// Creates a ring for the calling thread.
    pub fn new(durable_writes: DurableWrites) -> Result<Uring, DriverError> {
        let mut uring = Uring::with(Sizes::default(), 0)?;
        uring.durable_writes = durable_writes;
        Ok(uring)
    }

    /// Like [`Uring::new`], without the flag sets before `first_flag_set`.
    fn with(sizes: Sizes, first_flag_set: u32) -> Result<Uring, DriverError> {
        let (ring, has_taskrun_flag) = build_ring(&sizes, first_flag_set)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(DriverError::TooOld { missing: "timeouts of a wait (Linux 5.11)" });
        }
        let fixed_count = register_table(&ring, sizes.registered_max)?;
        // Asks only: two zeroes change nothing.
        if ring.submitter().register_iowq_max_workers(&mut [0, 0]).is_err() {
            return Err(DriverError::TooOld { missing: "a limit of kernel workers (Linux 5.15)" });
        }
        let wake = EventFd::new(false)
            .map_err(|source| DriverError::Setup { what: "an eventfd", source })?;
        let wake = Arc::new(wake);
        Ok(Uring {
            ring,
            has_taskrun_flag,
            backlog: VecDeque::new(),
            slots: Slots::default(),
            handles: Handles::new(fixed_count),
            ready: Vec::new(),
            reaped: Vec::with_capacity(sizes.completion_entries as usize),
            small_sends: 0,
            disks: Disks::default(),
            for_threads: VecDeque::new(),
            threads: FileThreads::new(Arc::clone(&wake)),
            durable_writes: DurableWrites::Ring,
            wake,
            wake_count: Box::new(UnsafeCell::new(0)),
            wake_armed: false,
            woken: false,
        })
    }

    /// Adds an entry to the submission queue, or to the backlog while that is full.
    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the entry points into a slot or to `self.wake_count`, which live until the
            // kernel has answered; `Drop` waits for that too.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Moves entries from the backlog to the submission queue while there is room.
    fn push_backlog(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut submission = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { submission.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// Starts an operation on an open handle.
    fn start(&mut self, token: Token, handle: u32, op: Op) -> u32 {
        let target = self.handles.target(handle);
        let index = self.slots.start(token, handle, target, op);
        let open = self.handles.get_mut(handle).expect("an open handle");
        if open.is_socket {
            open.in_flight.push(index);
        }
        index
    }

    /// Ends an operation that needs no kernel.
    fn end_at_once(&mut self, token: Token, op: Op, result: io::Result<Done>) {
        self.ready.push(Completion { token, result, buffers: buffers_of(op) });
    }

    fn submit_connect(&mut self, token: Token, op: Op, address: &Address) {
        let is_tcp = matches!(address, Address::Tcp(_));
        let prepared = socket::prepare_connect(address).and_then(|(fd, sockaddr)| {
            let handle = self.handles.add(&self.ring, Handle::socket(fd, is_tcp))?;
            Ok((handle, sockaddr))
        });
        match prepared {
            Ok((handle, sockaddr)) => {
                let index = self.start(token, handle, op);
                let slot = self.slots.get(index);
                slot.set_address(sockaddr);
                let entry = slot.entry(index);
                self.push(entry);
            }
            Err(error) => self.end_at_once(token, op, Err(error)),
        }
    }

    fn submit_close(&mut self, token: Token, id: SocketId) {
        let op = Op::Close { socket: id };
        let Some(open) = self.handles.get_mut(id.0).filter(|open| is_open(open)) else {
            return self.end_at_once(token, op, Err(unknown()));
        };
        open.closing = Some(token);
        if open.in_flight.is_empty() {
            let completion = self.close(id.0);
            self.ready.push(completion);
            return;
        }
        for position in 0..self.in_flight(id.0).len() {
            let index = self.in_flight(id.0)[position];
            self.cancel(index, id.0);
        }
    }

    fn in_flight(&self, handle: u32) -> &[u32] {
        let open = self.handles.get(handle);
        open.map_or(&[], |open| &open.in_flight)
    }

    fn cancel(&mut self, index: u32, handle: u32) {
        let target = self.slots.get(index).user_data(index);
        let entry = opcode::AsyncCancel::new(target).build();
        self.push(entry.user_data(user_data(handle, CANCEL)));
    }

    /// Closes a socket without operations in flight.
    fn close(&mut self, handle: u32) -> Completion {
        let open = self.handles.get(handle).expect("an open handle");
        let token = open.closing.expect("marked before");
        // Old kernels release a registered file only when older operations have ended.
        socket::hang_up(open);
        let result = self.handles.remove(&self.ring, handle);
        Completion {
            token,
            result: result.map(|()| Done::Bytes(0)),
            buffers: buffers_of(Op::Close { socket: SocketId(handle) }),
        }
    }

    /// One system call. True when the kernel took all submitted entries.
    fn cross(&mut self, wait: Wait) -> io::Result<bool> {
        let (count, idle) = {
            let submission = self.ring.submission();
            let idle = self.has_taskrun_flag && !submission.taskrun() && !submission.cq_overflow();
            (submission.len() as u32, idle)
        };
        if wait == Wait::No && count == 0 && idle {
            return Ok(true);
        }
        let small_sends = std::mem::take(&mut self.small_sends);
        let submitter = self.ring.submitter();
        let flags = EnterFlags::GETEVENTS;
        // SAFETY: every entry in the queue meets the conditions of `push`, and the argument is of
        // the type that the flags announce.
        let crossed = unsafe {
            match wait {
                Wait::No => submitter.enter::<libc::sigset_t>(count, 0, flags.bits(), None),
                Wait::Forever => submitter.enter::<libc::sigset_t>(count, 1, flags.bits(), None),
                Wait::AtMost(duration) => {
                    let timespec = types::Timespec::from(duration);
                    let args = types::SubmitArgs::new().timespec(&timespec);
                    let flags = flags | EnterFlags::EXT_ARG;
                    submitter.enter(count, 1 + small_sends, flags.bits(), Some(&args))
                }
            }
        };
        match crossed {
            Ok(taken) => Ok(taken as u32 == count),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME) => Ok(true),
                // After a signal, return to the caller.
                Some(libc::EINTR) => {
                    self.woken = true;
                    Ok(true)
                }
                // Out of memory, or the completions must be taken first.
                Some(libc::EAGAIN | libc::EBUSY) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Takes all available completions. True when there was one.
    fn reap(&mut self, out: &mut Vec<Completion>) -> bool {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion());
        let any = !reaped.is_empty();
        for entry in reaped.drain(..) {
            let (high, low) = ((entry.user_data() >> 32) as u32, entry.user_data() as u32);
            match low {
                WAKE => {
                    self.wake_armed = false;
                    self.woken = true;
                    self.threads.take_done(out);
                }
                CANCEL => self.cancelled(high, entry.result()),
                index => self.answered(index, high, entry.result(), out),
            }
        }
        self.reaped = reaped;
        any
    }

    /// Called when a cancellation did not find its operation waiting: it has ended, or a kernel
    /// thread runs it. Such a thread ends with the connection.
    fn cancelled(&mut self, handle: u32, result: i32) {
        if result == 0 {
            return;
        }
        if let Some(open) = self.handles.get(handle)
            && open.closing.is_some()
        {
            socket::hang_up(open);
        }
    }

    fn answered(&mut self, index: u32, generation: u32, result: i32, out: &mut Vec<Completion>) {
        let slot = self.slots.answered(index, generation);
        let (token, handle) = (slot.token, slot.handle);
        let open = self.handles.get_mut(handle).expect("open while in flight");
        let closing = open.closing.is_some();
        let ended = match slot.judge(result, closing) {
            Verdict::Again => {
                let entry = slot.entry(index);
                return self.push(entry);
            }
            Verdict::Ended(ended) => ended,
        };
        if open.is_socket {
            let position = open.in_flight.iter().position(|other| *other == index);
            open.in_flight.swap_remove(position.expect("the operation was in flight"));
        }
        let failed_connect = slot.is_connect() && ended.is_err();
        let close_now = closing && open.in_flight.is_empty();
        let is_tcp = open.is_tcp;
        let of_disk = (!open.is_socket).then(|| (open.disk, Kind::of(slot.op())));
        let buffers = self.slots.end(index);
        let result = ended.and_then(|ended| match ended {
            Ended::Done(done) => Ok(done),
            Ended::Connected => Ok(Done::Connected(SocketId(handle))),
            Ended::Accepted(fd) => self.adopt(fd, is_tcp, closing),
        });
        out.push(Completion { token, result, buffers });
        if let Some((disk, kind)) = of_disk
            && let Some((token, handle, op)) = self.disks.leave(disk, kind)
        {
            self.begin(token, handle, op);
        }
        if failed_connect {
            // The error of the connect itself is the useful one.
            let _ = self.handles.remove(&self.ring, handle);
        } else if close_now {
            let completion = self.close(handle);
            out.push(completion);
        }
    }

    /// Registers an accepted descriptor as a socket.
    fn adopt(&mut self, fd: RawFd, is_tcp: bool, closing: bool) -> io::Result<Done> {
        // SAFETY: the kernel has just made this descriptor for us; no other code knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if closing {
            return Err(closed());
        }
        socket::prepare_accepted(&fd, is_tcp)?;
        let handle = self.handles.add(&self.ring, Handle::socket(fd, is_tcp))?;
        Ok(Done::Accepted(SocketId(handle)))
    }

    /// Keeps a read of the eventfd in flight.
    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        self.wake_armed = true;
        let fd = types::Fd(self.wake.as_raw_fd());
        let read = opcode::Read::new(fd, self.wake_count.get().cast(), size_of::<u64>() as u32);
        self.push(read.build().user_data(user_data(0, WAKE)));
    }

    /// Hands operations to their threads just before the system call: a thread takes longer to wake
    /// up than the kernel takes to start a send.
    fn start_threads(&mut self) {
        for (disk, token, file, op) in self.for_threads.drain(..) {
            self.threads.queue(disk, token, file, op);
        }
    }

    /// True for an operation on a file that the ring must not carry out.
    fn is_for_threads(&self, open: &Handle, op: &Op) -> bool {
        let all = open.delays_others && self.disks.are_several();
        all || Kind::of(op) == Kind::Durable && self.durable_writes == DurableWrites::Threads
    }

    /// Puts an operation into the ring.
    fn begin(&mut self, token: Token, handle: u32, op: Op) {
        let is_small_send = is_small_send(&op);
        let index = self.start(token, handle, op);
        let slot = self.slots.get(index);
        if is_small_send {
            self.small_sends += 1;
            slot.set_at_once();
        }
        let entry = slot.entry(index);
        self.push(entry);
    }

    /// True while entries wait for submission to the kernel.
    fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }
}

/// True for a send that usually fits into the socket's buffer at once.
fn is_small_send(op: &Op) -> bool {
    let Op::Send { bufs, .. } = op else { return false };
    bufs.iter().map(Bytes::len).sum::<usize>() <= SMALL_SEND_BYTES
}

impl Driver for Uring {
    fn now(&self) -> Mono {
        clock::now()
    }

    fn add_file(&mut self, file: ExclusiveFile, disk: Disk) -> io::Result<FileId> {
        let workers = self.disks.add(disk);
        self.ring.submitter().register_iowq_max_workers(&mut [workers, 0])?;
        let handle = self.handles.add(&self.ring, Handle::file(file.into_fd(), disk))?;
        Ok(FileId(handle))
    }

    fn size_bytes(&self, file: FileId) -> io::Result<u64> {
        let handle = self.handles.get(file.0).ok_or_else(unknown)?;
        file::size_bytes(handle)
    }

    fn listen(&mut self, address: &Address) -> io::Result<(SocketId, Address)> {
        let (fd, bound) = socket::listen(address)?;
        let is_tcp = matches!(address, Address::Tcp(_));
        let handle = self.handles.add(&self.ring, Handle::socket(fd, is_tcp))?;
        Ok((SocketId(handle), bound))
    }

    fn submit(&mut self, token: Token, op: Op) {
        let (number, wants_socket) = match &op {
            Op::Connect { address } => {
                let address = address.clone();
                return self.submit_connect(token, op, &address);
            }
            Op::Close { socket } => return self.submit_close(token, *socket),
            Op::Recv { socket, .. } | Op::Send { socket, .. } => (socket.0, true),
            Op::Accept { listener } => (listener.0, true),
            file_op => {
                let file = file_of(file_op).expect("all other operations are on files");
                (file.0, false)
            }
        };
        match self.handles.get(number) {
            Some(open) if open.is_socket == wants_socket && open.closing.is_none() => {
                if is_empty_transfer(&op) {
                    return self.end_at_once(token, op, Ok(Done::Bytes(0)));
                }
                if wants_socket {
                    return self.begin(token, number, op);
                }
                let disk = open.disk;
                if self.is_for_threads(open, &op) {
                    return self.for_threads.push_back((disk, token, open.shared_fd(), op));
                }
                if let Some((token, number, op)) = self.disks.enter(disk, (token, number, op)) {
                    self.begin(token, number, op);
                }
            }
            _ => self.end_at_once(token, op, Err(unknown())),
        }
    }

    fn enter(&mut self, timeout: Option<Duration>, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        out.append(&mut self.ready);
        let mut wait = match timeout {
            _ if out.len() > before => Wait::No,
            None => Wait::Forever,
            Some(timeout) if timeout.is_zero() => Wait::No,
            Some(timeout) => Wait::AtMost(timeout),
        };
        let deadline = match wait {
            Wait::AtMost(timeout) => Some(self.now() + timeout),
            _ => None,
        };
        self.arm_wake();
        self.start_threads();
        loop {
            self.push_backlog();
            let wait_now = if self.backlog.is_empty() { wait } else { Wait::No };
            let took_all = self.cross(wait_now)?;
            let any = self.reap(out);
            if !took_all && !any {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let woken = std::mem::take(&mut self.woken);
            if woken || out.len() > before {
                wait = Wait::No;
            }
            if let (Some(deadline), Wait::AtMost(_)) = (deadline, wait) {
                let left = deadline.since(self.now());
                wait = if left.is_zero() { Wait::No } else { Wait::AtMost(left) };
            }
            if wait == Wait::No && !self.has_unsubmitted() {
                return Ok(());
            }
        }
    }

    fn source(&self, socket: SocketId) -> Option<IpAddr> {
        self.handles.get(socket.0).filter(|open| open.is_socket).and_then(socket::source)
    }

    fn has_hung_up(&self, socket: SocketId) -> bool {
        self.handles.get(socket.0).is_some_and(|open| open.is_socket && socket::has_hung_up(open))
    }

    fn waker(&self) -> Waker {
        Arc::clone(&self.wake) as Waker
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for Uring {
    /// Waits until the kernel has released every buffer; leaks them after a time limit.
    fn drop(&mut self) {
        let in_use: Vec<u32> = self.slots.in_use().collect();
        for index in in_use {
            let handle = self.slots.get(index).handle;
            if let Some(open) = self.handles.get_mut(handle)
                && open.is_socket
            {
                open.closing.get_or_insert(Token(u64::MAX));
                self.cancel(index, handle);
            }
        }
        self.wake.wake();
        let deadline = self.now() + DROP_WAIT;
        let mut out = Vec::new();
        while self.slots.in_flight() > 0 || self.wake_armed {
            self.push_backlog();
            let left = deadline.since(self.now());
            let crossed = self.cross(Wait::AtMost(left));
            self.reap(&mut out);
            out.clear();
            if left.is_zero() || crossed.is_err() {
                tracing::warn!("the kernel still uses memory of a dropped driver; leaking it");
                Box::leak(Box::new(std::mem::take(&mut self.slots)));
                Box::leak(std::mem::replace(&mut self.wake_count, Box::new(UnsafeCell::new(0))));
                return;
            }
        }
    }
}

/// True for a socket that takes operations.
fn is_open(handle: &Handle) -> bool {
    handle.is_socket && handle.closing.is_none()
}

/// A ring with the best flags that this kernel accepts, and whether `TASKRUN_FLAG` is among them.
fn build_ring(sizes: &Sizes, first_flag_set: u32) -> Result<(IoUring, bool), DriverError> {
    let mut refused = None;
    for flag_set in first_flag_set..FLAG_SETS {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(sizes.completion_entries);
        if flag_set < 3 {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        if flag_set < 2 {
            builder.setup_single_issuer();
        }
        if flag_set < 1 {
            builder.setup_defer_taskrun();
        }
        match builder.build(sizes.submission_entries) {
            Ok(ring) => return Ok((ring, flag_set < 3)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL) => refused = Some(error),
                Some(libc::EPERM | libc::EACCES) => return Err(DriverError::Forbidden(error)),
                Some(libc::ENOSYS) => return Err(DriverError::Missing(error)),
                _ => return Err(setup("io_uring")(error)),
            },
        }
    }
    Err(setup("io_uring")(refused.expect("tried at least once")))
}

/// Registers an empty table of files and returns its size.
fn register_table(ring: &IoUring, count_max: u32) -> Result<u32, DriverError> {
    // The kernel refuses a table larger than the process's limit of open files.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count =
        limit.map_or(count_max, |limit| u32::try_from(limit).unwrap_or(u32::MAX).min(count_max));
    let submitter = ring.submitter();
    submitter
        .register_files_sparse(count)
        .or_else(|_| submitter.register_files(&vec![-1; count as usize]))
        .map_err(setup("io_uring's table of files"))?;
    Ok(count)
}

fn setup(what: &'static str) -> impl FnOnce(io::Error) -> DriverError {
    move |source| DriverError::Setup { what, source }
}

#[cfg(test)]
#[path = "uring_test.rs"]
mod tests;
