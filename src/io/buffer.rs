//! Memory aligned to 4 KiB, pooled, so that what arrives from a socket can be written with
//! O_DIRECT without a copy. Frozen buffers are [`Bytes`] and go back to the pool when the last
//! clone is dropped.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::types::BLOCK_BYTES;

/// Capacities that are kept for reuse; a larger buffer is rounded up to 4 KiB and not kept.
const CLASS_BYTES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, (1 << 20) + (64 << 10)];
/// At most this many bytes are kept for reuse in each class.
const KEPT_PER_CLASS_BYTES: usize = 4 << 20;

/// A pool of aligned buffers. Cheap to clone; clones share the pool.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    free: [Mutex<Vec<Block>>; CLASS_BYTES.len()],
    in_use_bytes: AtomicUsize,
}

/// One aligned allocation, owned.
struct Block {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a Block is the only owner of plain memory.
unsafe impl Send for Block {}
// SAFETY: shared access to a Block gives shared access to plain bytes only.
unsafe impl Sync for Block {}

impl Block {
    fn new(capacity: usize) -> Block {
        let layout = Block::layout(capacity);
        // SAFETY: the layout's size is not zero: `take` rounds up to at least one block.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Block { start, capacity },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("a capacity far below isize::MAX")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout.
        unsafe { dealloc(self.start.as_ptr(), Block::layout(self.capacity)) }
    }
}

impl Pool {
    /// A buffer of `len` bytes (its contents are unspecified), aligned to 4 KiB.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let class = CLASS_BYTES.iter().position(|capacity| *capacity >= len);
        let recycled = class.and_then(|class| {
            self.shared.free[class].lock().unwrap_or_else(PoisonError::into_inner).pop()
        });
        let block = recycled.unwrap_or_else(|| {
            Block::new(match class {
                Some(class) => CLASS_BYTES[class],
                None => len.next_multiple_of(BLOCK_BYTES),
            })
        });
        self.shared.in_use_bytes.fetch_add(block.capacity, Ordering::Relaxed);
        AlignedBuf { block: Some(block), len, shared: Arc::clone(&self.shared) }
    }

    /// A frozen copy of `data` in aligned memory.
    pub fn copy(&self, data: &[u8]) -> Bytes {
        let mut buf = self.take(data.len());
        buf.copy_from_slice(data);
        buf.freeze()
    }

    /// Bytes of backing memory that are handed out, by capacity.
    pub fn in_use_bytes(&self) -> usize {
        self.shared.in_use_bytes.load(Ordering::Relaxed)
    }
}

/// An aligned buffer that only its holder can see.
pub struct AlignedBuf {
    /// Present until dropped.
    block: Option<Block>,
    len: usize,
    shared: Arc<Shared>,
}

impl AlignedBuf {
    /// Makes it immutable and shareable, without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// As [`AlignedBuf::freeze`], keeping only `range`.
    pub fn freeze_range(self, range: Range<usize>) -> Bytes {
        self.freeze().slice(range)
    }

    /// Shortens the visible part; the backing memory stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn block(&self) -> &Block {
        self.block.as_ref().expect("present until dropped")
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` never exceeds the capacity, and the memory was initialised.
        unsafe { std::slice::from_raw_parts(self.block().start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.block().start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let block = self.block.take().expect("dropped once");
        self.shared.in_use_bytes.fetch_sub(block.capacity, Ordering::Relaxed);
        let Some(class) = CLASS_BYTES.iter().position(|capacity| *capacity == block.capacity)
        else {
            return;
        };
        let mut free = self.shared.free[class].lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() * block.capacity < KEPT_PER_CLASS_BYTES {
            free.push(block);
        }
    }
}

/// True when `data` may be handed to O_DIRECT as it is: aligned start, whole blocks.
pub fn is_aligned(data: &[u8]) -> bool {
    data.as_ptr().addr().is_multiple_of(BLOCK_BYTES) && data.len().is_multiple_of(BLOCK_BYTES)
}

/// One block of zeroes, aligned.
pub fn zero_block() -> Bytes {
    #[repr(align(4096))]
    struct Zeroes([u8; BLOCK_BYTES]);
    static ZEROES: Zeroes = Zeroes([0; BLOCK_BYTES]);
    Bytes::from_static(&ZEROES.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_counted_until_the_last_clone_is_gone() {
        let pool = Pool::default();
        let mut buf = pool.take(5000);
        buf[4999] = 9;
        assert!(buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        assert_eq!(pool.in_use_bytes(), 16 << 10);
        let frozen = buf.freeze();
        let tail = frozen.slice(4999..);
        drop(frozen);
        assert_eq!(pool.in_use_bytes(), 16 << 10);
        assert_eq!(&tail[..], [9]);
        drop(tail);
        assert_eq!(pool.in_use_bytes(), 0);
    }

    #[test]
    fn a_buffer_is_used_again() {
        let pool = Pool::default();
        let first = pool.take(4096).as_ptr().addr();
        assert_eq!(pool.take(4096).as_ptr().addr(), first);
    }
}
