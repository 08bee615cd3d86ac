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
    /// A blocking one suits io_uring: it would not wait for a non-blocking one.
    pub fn new(nonblocking: bool) -> io::Result<EventFd> {
        let mut flags = EventfdFlags::CLOEXEC;
        if nonblocking {
            flags |= EventfdFlags::NONBLOCK;
        }
        Ok(EventFd { fd: eventfd(0, flags)? })
    }

    /// Takes everything that was added. Only for a non-blocking one.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        // Nothing to take (EAGAIN) is fine, and no other error exists for an eventfd.
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
        // The one possible failure is a full counter (2^64 wakes unread): awake already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}
