//! Operations in flight. A slot holds all memory that the kernel may still touch for one operation,
//! at a fixed address. Slots are reused.

use std::io;
use std::mem;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};
use socket2::SockAddr;

use crate::io::driver::{Buffers, Done, Op, Token};
use crate::io::gather::Gather;
use crate::io::operation::{buffers_of, closed, gather_op};
use crate::types::BLOCK_BYTES;

/// How often an operation is restarted that the kernel interrupted before its begin.
const RETRIES_MAX: u8 = 64;

/// The low half of an entry's user data: a slot, or one of these two values. The high half counts
/// the uses of the slot, so that a late cancellation cannot hit another operation.
pub(super) const WAKE: u32 = u32::MAX;
pub(super) const CANCEL: u32 = u32::MAX - 1;

/// Joins the two halves of an entry's user data.
pub(super) fn user_data(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// How an entry names its file: index into the registered files, or descriptor.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Fixed(u32),
    Fd(RawFd),
}

/// What a completion means for its operation.
pub(super) enum Verdict {
    /// Incomplete: start the entry again.
    Again,
    Ended(io::Result<Ended>),
}

/// The result of a successful operation.
pub(super) enum Ended {
    Done(Done),
    Accepted(RawFd),
    Connected,
}

pub(super) struct Slot {
    generation: u32,
    retries_left: u8,
    pub token: Token,
    /// The file or socket of the operation.
    pub handle: u32,
    target: Target,
    /// Absent while the slot is free. Owns the memory to which `gather` points.
    op: Option<Op>,
    gather: Gather,
    total_bytes: usize,
    header: libc::msghdr,
    address: Option<SockAddr>,
    /// A send that ends at once: with nothing sent while the socket's buffer is full. The driver
    /// then starts it again, to wait.
    at_once: bool,
}

/// The slots. They are boxed because the kernel holds pointers into them.
#[derive(Default)]
pub(super) struct Slots {
    #[allow(clippy::vec_box, reason = "slots must not move when the list grows")]
    slots: Vec<Box<Slot>>,
    free: Vec<u32>,
}

impl Slots {
    /// Takes a slot for an operation.
    pub fn start(&mut self, token: Token, handle: u32, target: Target, op: Op) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("memory ends first");
            assert!(index < CANCEL);
            self.slots.push(Box::new(Slot::vacant()));
            index
        });
        self.slots[index as usize].fill(token, handle, target, op);
        index
    }

    pub fn get(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// The slot in an entry's user data. The kernel answers each entry once.
    pub fn answered(&mut self, index: u32, generation: u32) -> &mut Slot {
        let slot = self.get(index);
        assert!(
            slot.op.is_some() && slot.generation == generation,
            "a completion for an operation that has ended"
        );
        slot
    }

    /// Ends an operation and returns its buffers.
    pub fn end(&mut self, index: u32) -> Buffers {
        let slot = self.get(index);
        slot.generation = slot.generation.wrapping_add(1);
        slot.gather.clear();
        slot.address = None;
        let op = slot.op.take().expect("ended once");
        self.free.push(index);
        buffers_of(op)
    }

    /// Number of operations that the kernel has not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The slots in use.
    pub fn in_use(&self) -> impl Iterator<Item = u32> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, slot)| slot.op.is_some().then_some(index as u32))
    }
}

impl Slot {
    fn vacant() -> Slot {
        Slot {
            generation: 0,
            retries_left: 0,
            token: Token(0),
            handle: 0,
            target: Target::Fd(-1),
            op: None,
            gather: Gather::default(),
            total_bytes: 0,
            // SAFETY: a msghdr of zeroes is a valid, empty one.
            header: unsafe { mem::zeroed() },
            address: None,
            at_once: false,
        }
    }

    fn fill(&mut self, token: Token, handle: u32, target: Target, mut op: Op) {
        assert!(self.op.is_none());
        self.token = token;
        self.handle = handle;
        self.target = target;
        self.retries_left = RETRIES_MAX;
        self.at_once = false;
        gather_op(&mut self.gather, &mut op);
        self.total_bytes = self.gather.remaining_bytes();
        self.op = Some(op);
    }

    /// Sets the address of a `Connect`.
    pub fn set_address(&mut self, address: SockAddr) {
        self.address = Some(address);
    }

    /// Makes this `Send` end at once, whatever the socket's buffer takes.
    pub fn set_at_once(&mut self) {
        self.at_once = true;
    }

    /// The operation, while it is in flight.
    pub fn op(&self) -> &Op {
        self.op.as_ref().expect("in use")
    }

    pub fn is_connect(&self) -> bool {
        matches!(self.op, Some(Op::Connect { .. }))
    }

    /// User data for this use of the slot.
    pub fn user_data(&self, index: u32) -> u64 {
        user_data(self.generation, index)
    }

    /// The entry for the rest of the operation. It points into this slot, so the slot must stay in
    /// place and unchanged until the completion.
    pub fn entry(&mut self, index: u32) -> squeue::Entry {
        let user_data = self.user_data(index);
        let (number, flags) = match self.target {
            Target::Fixed(index) => (index as RawFd, squeue::Flags::FIXED_FILE),
            Target::Fd(fd) => (fd, squeue::Flags::empty()),
        };
        // The entry's flag turns this number into an index, as `types::Fixed` would.
        let fd = types::Fd(number);
        let window = self.gather.window();
        let entry = match self.op.as_ref().expect("in use") {
            Op::Read { offset, .. } => {
                let part = window.first().copied();
                let start = part.map_or(std::ptr::null_mut(), |part| part.iov_base.cast());
                let len = part.map_or(0, |part| part.iov_len);
                let len = u32::try_from(len).expect("a read is far below 4 GiB");
                opcode::Read::new(fd, start, len).offset(*offset).build()
            }
            Op::Write { offset, durable, .. } => {
                let moved = self.total_bytes - self.gather.remaining_bytes();
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, window.as_ptr(), window.len() as u32)
                    .offset(offset + moved as u64)
                    .rw_flags(flags)
                    .build()
            }
            Op::Sync { .. } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Op::Recv { .. } => {
                self.header.msg_iov = window.as_ptr().cast_mut();
                self.header.msg_iovlen = window.len() as _;
                opcode::RecvMsg::new(fd, &raw mut self.header).build()
            }
            Op::Send { .. } => {
                self.header.msg_iov = window.as_ptr().cast_mut();
                self.header.msg_iovlen = window.len() as _;
                // With WAITALL the kernel continues a short send itself.
                let wait = if self.at_once { libc::MSG_DONTWAIT } else { libc::MSG_WAITALL };
                opcode::SendMsg::new(fd, &raw const self.header)
                    .flags((libc::MSG_NOSIGNAL | wait) as u32)
                    .build()
            }
            Op::Accept { .. } => {
                opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Op::Connect { .. } => {
                let address = self.address.as_ref().expect("set before the first entry");
                opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build()
            }
            Op::Close { .. } => unreachable!("the driver closes by itself"),
        };
        entry.flags(flags).user_data(user_data)
    }

    /// Interprets the kernel's answer: bytes, a descriptor, or a negative errno. On a socket that
    /// is `closing` no operation starts again.
    pub fn judge(&mut self, result: i32, closing: bool) -> Verdict {
        let was_at_once = std::mem::take(&mut self.at_once);
        if was_at_once && result == -libc::EAGAIN && !closing {
            return Verdict::Again;
        }
        let Ok(count) = usize::try_from(result) else {
            let never_began = matches!(-result, libc::EINTR | libc::EAGAIN);
            if never_began && !closing && self.retries_left > 0 {
                self.retries_left -= 1;
                return Verdict::Again;
            }
            return Verdict::Ended(Err(match closing {
                true => closed(),
                false => io::Error::from_raw_os_error(-result),
            }));
        };
        let done = match self.op.as_ref().expect("in use") {
            Op::Recv { .. } if count == 0 && closing => Err(closed()),
            Op::Read { .. } | Op::Recv { .. } => Ok(Ended::Done(Done::Bytes(count))),
            Op::Sync { .. } => Ok(Ended::Done(Done::Bytes(0))),
            Op::Write { .. } | Op::Send { .. } => return self.moved(count, closing),
            Op::Accept { .. } => Ok(Ended::Accepted(result)),
            Op::Connect { .. } => Ok(Ended::Connected),
            Op::Close { .. } => unreachable!("the driver closes by itself"),
        };
        Verdict::Ended(done)
    }

    fn moved(&mut self, count: usize, closing: bool) -> Verdict {
        let is_write = matches!(self.op, Some(Op::Write { .. }));
        // A write cut within a block is repeated from the block's start.
        let count = if is_write && count < self.gather.window_bytes() {
            count - count % BLOCK_BYTES
        } else {
            count
        };
        self.gather.advance(count);
        if self.gather.remaining_bytes() == 0 {
            return Verdict::Ended(Ok(Ended::Done(Done::Bytes(self.total_bytes))));
        }
        if closing {
            return Verdict::Ended(Err(closed()));
        }
        if count == 0 {
            return Verdict::Ended(Err(io::ErrorKind::WriteZero.into()));
        }
        Verdict::Again
    }
}
