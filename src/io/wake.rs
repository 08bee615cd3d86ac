//! The eventfd behind a driver's [`Waker`](crate::io::driver::Waker).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::io::driver::Wake;

/// A counter in the kernel: every wake adds one, a read takes all.
pub(super) struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// `nonblocking` is false for io_uring, which would not wait for a non-blocking eventfd.
    pub fn new(nonblocking: bool) -> io::Result<EventFd> {
        let mut flags = EventfdFlags::CLOEXEC;
        if nonblocking {
            flags |= EventfdFlags::NONBLOCK;
        }
        Ok(EventFd { fd: eventfd(0, flags)? })
    }

    /// Resets the counter. Only for a non-blocking eventfd.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        // EAGAIN (nothing to take) is fine, and an eventfd has no other error.
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl std::os::fd::AsFd for EventFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Wake for EventFd {
    fn wake(&self) {
        // It fails only when the counter is full (2^64 unread wakes): awake already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}
