//! Received bytes that wait to be parsed.

use crate::log::leak;

/// Room for received bytes: more than a batch and its header.
const BYTES: usize = 1 << 20;

/// A buffer that the kernel fills at the end while the front is parsed.
pub struct Stream {
    memory: *mut u8,
    from: usize,
    to: usize,
    /// The kernel has the rest of the memory.
    armed: bool,
}

impl Stream {
    pub fn new() -> Stream {
        Stream { memory: leak(BYTES).as_mut_ptr(), from: 0, to: 0, armed: false }
    }

    /// The received bytes that were not taken.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory has `BYTES` bytes and lives for ever; the kernel writes behind `to`.
        unsafe { std::slice::from_raw_parts(self.memory.add(self.from), self.to - self.from) }
    }

    /// Takes bytes from the front.
    pub fn take(&mut self, count: usize) {
        assert!(count <= self.to - self.from);
        self.from += count;
    }

    /// The memory for the next receive, until [`Stream::received`]. None while it is out already,
    /// and when there is no room.
    pub fn arm(&mut self) -> Option<&'static mut [u8]> {
        if self.armed {
            return None;
        }
        // SAFETY: both ranges are inside the memory; no receive is in flight.
        unsafe { std::ptr::copy(self.memory.add(self.from), self.memory, self.to - self.from) };
        (self.from, self.to) = (0, self.to - self.from);
        if self.to == BYTES {
            return None;
        }
        self.armed = true;
        // SAFETY: it is the part behind `to`, which nobody else uses before `received`.
        Some(unsafe { std::slice::from_raw_parts_mut(self.memory.add(self.to), BYTES - self.to) })
    }

    /// A receive ended with so many bytes.
    pub fn received(&mut self, count: usize) {
        assert!(self.armed && count <= BYTES - self.to);
        (self.armed, self.to) = (false, self.to + count);
    }
}
