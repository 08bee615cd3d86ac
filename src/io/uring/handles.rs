//! The open files and sockets of a ring, with their places in its registered table.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::IoUring;

use super::slots::Target;
use crate::io::driver::{Disk, Token};
use crate::io::file;

/// An open file or socket.
pub(super) struct Handle {
    fd: Arc<OwnedFd>,
    pub is_socket: bool,
    /// Of a file.
    pub disk: Disk,
    /// An operation on this file that has to wait may delay others in the ring.
    pub delays_others: bool,
    /// Connections accepted from it are TCP.
    pub is_tcp: bool,
    /// Slots of the operations in flight on a socket.
    pub in_flight: Vec<u32>,
    /// Set by `Close`: no operation starts any more.
    pub closing: Option<Token>,
}

impl Handle {
    pub fn file(fd: OwnedFd, disk: Disk) -> Handle {
        let delays_others = !file::waits_alone(&fd);
        Handle { disk, delays_others, ..Handle::new(fd, false, false) }
    }

    pub fn socket(fd: OwnedFd, is_tcp: bool) -> Handle {
        Handle::new(fd, true, is_tcp)
    }

    /// Shares the descriptor with a thread that uses it.
    pub fn shared_fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    fn new(fd: OwnedFd, is_socket: bool, is_tcp: bool) -> Handle {
        let (disk, in_flight, closing) = (Disk(0), Vec::new(), None);
        let fd = Arc::new(fd);
        Handle { fd, is_socket, disk, delays_others: false, is_tcp, in_flight, closing }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The table of handles. File and socket ids are indexes into it.
pub(super) struct Handles {
    entries: Vec<Option<Handle>>,
    free: Vec<u32>,
    /// Places in the registered table. A handle beyond them uses its descriptor.
    fixed_count: u32,
}

impl Handles {
    pub fn new(fixed_count: u32) -> Handles {
        Handles { entries: Vec::new(), free: Vec::new(), fixed_count }
    }

    pub fn add(&mut self, ring: &IoUring, handle: Handle) -> io::Result<u32> {
        let index = match self.free.last() {
            Some(index) => *index,
            None => u32::try_from(self.entries.len()).expect("descriptors end first"),
        };
        if index < self.fixed_count {
            let fds = [handle.fd.as_raw_fd()];
            ring.submitter().register_files_update(index, &fds)?;
        }
        if self.free.pop().is_none() {
            self.entries.push(None);
        }
        self.entries[index as usize] = Some(handle);
        Ok(index)
    }

    pub fn remove(&mut self, ring: &IoUring, index: u32) -> io::Result<()> {
        let handle = self.entries[index as usize].take().expect("removed once");
        self.free.push(index);
        if index < self.fixed_count {
            ring.submitter().register_files_update(index, &[-1])?;
        }
        drop(handle);
        Ok(())
    }

    pub fn get(&self, index: u32) -> Option<&Handle> {
        self.entries.get(index as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Handle> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    pub fn target(&self, index: u32) -> Target {
        let handle = self.get(index).expect("an open handle");
        if index < self.fixed_count {
            Target::Fixed(index)
        } else {
            Target::Fd(handle.fd.as_raw_fd())
        }
    }
}
