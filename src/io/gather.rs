//! The memory that an operation still has to move, as a list of iovecs that shrinks from the front.
//! Reused between operations, so that it allocates only to grow.

/// The most iovecs that one system call takes (UIO_MAXIOV).
pub(super) const IOVECS_MAX: usize = 1024;

/// The list of iovecs. It holds pointers: the code that fills it keeps the memory alive and in
/// place until the operation has ended.
#[derive(Default)]
pub(super) struct Gather {
    iovecs: Vec<libc::iovec>,
    /// The first iovec with bytes to move.
    next: usize,
    remaining_bytes: usize,
}

// SAFETY: only the kernel follows the pointers, for the operation that owns the memory; the list
// itself is plain data.
unsafe impl Send for Gather {}

impl Gather {
    /// Empties the list and keeps its capacity.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.next = 0;
        self.remaining_bytes = 0;
    }

    /// Adds memory that is only read.
    pub fn push_source(&mut self, part: &[u8]) {
        self.push(part.as_ptr().cast_mut(), part.len());
    }

    /// Adds memory that is written.
    pub fn push_target(&mut self, part: &mut [u8]) {
        self.push(part.as_mut_ptr(), part.len());
    }

    fn push(&mut self, start: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        self.remaining_bytes += len;
        if let Some(last) = self.iovecs.last_mut()
            && last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == start
        {
            last.iov_len += len;
            return;
        }
        self.iovecs.push(libc::iovec { iov_base: start.cast(), iov_len: len });
    }

    /// The iovecs for the next system call: at most [`IOVECS_MAX`].
    pub fn window(&self) -> &[libc::iovec] {
        let end = self.iovecs.len().min(self.next + IOVECS_MAX);
        &self.iovecs[self.next..end]
    }

    /// Bytes in [`Gather::window`].
    pub fn window_bytes(&self) -> usize {
        self.window().iter().map(|part| part.iov_len).sum()
    }

    /// Bytes not moved yet.
    pub fn remaining_bytes(&self) -> usize {
        self.remaining_bytes
    }

    /// Drops the first `count` bytes, which have been moved.
    pub fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining_bytes, "the kernel moved more than was asked for");
        self.remaining_bytes -= count;
        while count > 0 {
            let part = &mut self.iovecs[self.next];
            let step = count.min(part.iov_len);
            part.iov_base = part.iov_base.cast::<u8>().wrapping_add(step).cast();
            part.iov_len -= step;
            count -= step;
            if part.iov_len == 0 {
                self.next += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_longer_than_a_call_takes_is_walked_to_its_end() {
        let memory = vec![0u8; 3 * 2500];
        let mut gather = Gather::default();
        // Every part is apart from its neighbour, so that none are joined.
        memory.chunks(3).for_each(|part| gather.push_source(&part[..2]));
        assert_eq!(gather.remaining_bytes(), 5000);
        let (mut moved, mut calls) = (0, 0);
        while gather.remaining_bytes() > 0 {
            assert!(gather.window().len() <= IOVECS_MAX);
            let position = moved / 2 * 3 + moved % 2;
            assert_eq!(gather.window()[0].iov_base.addr(), memory.as_ptr().addr() + position);
            let step = gather.window_bytes().min(1023);
            gather.advance(step);
            moved += step;
            calls += 1;
        }
        assert_eq!((moved, calls), (5000, 5));
        assert!(gather.window().is_empty());
    }

    #[test]
    fn neighbours_are_joined_and_nothings_left_out() {
        let mut memory = [0u8; 64];
        let mut gather = Gather::default();
        let (left, right) = memory.split_at_mut(24);
        gather.push_target(left);
        gather.push_target(&mut []);
        gather.push_target(right);
        assert_eq!(gather.window().len(), 1);
        assert_eq!(gather.window_bytes(), 64);
        gather.clear();
        assert_eq!(gather.remaining_bytes(), 0);
    }
}
