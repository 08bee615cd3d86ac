//! Pooled memory, aligned to 4 KiB, so that received data is written with O_DIRECT without a copy.
//! Frozen buffers are [`Bytes`], and go back to the pool with the last clone.

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::io::slabs::{Memory, Place, Slabs, part_to_trim};
use crate::types::BLOCK_BYTES;

/// Capacities of buffers that share slabs.
const SMALL_BYTES: [usize; 3] = [4 << 10, 16 << 10, 64 << 10];
/// Capacities of buffers that are kept singly for reuse. A larger buffer is rounded up to 4 KiB and
/// not kept.
const LARGE_BYTES: [usize; 2] = [256 << 10, (1 << 20) + (64 << 10)];

/// The memory behind a buffer of `bytes` bytes.
pub fn backing_bytes(bytes: usize) -> usize {
    let class = SMALL_BYTES.iter().chain(&LARGE_BYTES).find(|capacity| **capacity >= bytes);
    class.copied().unwrap_or_else(|| bytes.next_multiple_of(BLOCK_BYTES))
}

/// A pool of aligned buffers. Clones are cheap and share the pool. Free buffers are kept until
/// [`Pool::trim`] finds that they were not needed for a while.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    small: [Mutex<Slabs>; SMALL_BYTES.len()],
    large: [Mutex<Large>; LARGE_BYTES.len()],
    in_use_bytes: AtomicUsize,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            small: SMALL_BYTES.map(|bytes| Mutex::new(Slabs::new(bytes))),
            large: Default::default(),
            in_use_bytes: AtomicUsize::new(0),
        }
    }
}

/// The free buffers of one large capacity.
#[derive(Default)]
struct Large {
    free: Vec<Memory>,
    /// The minimum of free buffers since the last trim.
    free_min: usize,
}

/// The origin of a buffer's memory.
enum Home {
    Slab { class: usize, place: Place },
    Own(Memory),
}

/// Memory owned by one buffer.
struct Block {
    start: NonNull<u8>,
    capacity: usize,
    home: Home,
}

// SAFETY: a Block is the only owner of plain memory; slabs are behind a mutex.
unsafe impl Send for Block {}
// SAFETY: shared access to a Block gives shared access to plain bytes only.
unsafe impl Sync for Block {}

impl Shared {
    fn take(&self, len: usize) -> Block {
        if let Some(class) = SMALL_BYTES.iter().position(|capacity| *capacity >= len) {
            let (place, start) = lock(&self.small[class]).take();
            return Block {
                start,
                capacity: SMALL_BYTES[class],
                home: Home::Slab { class, place },
            };
        }
        let capacity = backing_bytes(len);
        let class = LARGE_BYTES.iter().position(|large| *large == capacity);
        let recycled = class.and_then(|class| lock(&self.large[class]).take());
        let memory = recycled.unwrap_or_else(|| Memory::new(capacity));
        Block { start: memory.start(), capacity, home: Home::Own(memory) }
    }

    fn give_back(&self, block: Block) {
        match block.home {
            Home::Slab { class, place } => lock(&self.small[class]).give_back(place),
            Home::Own(memory) => {
                let class = LARGE_BYTES.iter().position(|capacity| *capacity == block.capacity);
                if let Some(class) = class {
                    lock(&self.large[class]).free.push(memory);
                }
            }
        }
    }
}

impl Large {
    fn take(&mut self) -> Option<Memory> {
        let taken = self.free.pop();
        self.free_min = self.free_min.min(self.free.len());
        taken
    }

    fn trim(&mut self) {
        self.free.truncate(self.free.len() - part_to_trim(self.free_min));
        self.free_min = self.free.len();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} bytes in use)", self.in_use_bytes())
    }
}

impl Pool {
    /// A buffer of `len` bytes with unspecified content, aligned to 4 KiB.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let block = self.shared.take(len);
        self.shared.in_use_bytes.fetch_add(block.capacity, Ordering::Relaxed);
        AlignedBuf { block: Some(block), len, shared: Arc::clone(&self.shared) }
    }

    /// A frozen copy of `data` in aligned memory.
    pub fn copy(&self, data: &[u8]) -> Bytes {
        let mut buf = self.take(data.len());
        buf.copy_from_slice(data);
        buf.freeze()
    }

    /// Returns to the system a part of the memory that stayed free since the last call.
    pub fn trim(&self) {
        self.shared.small.iter().for_each(|slabs| lock(slabs).trim());
        self.shared.large.iter().for_each(|large| lock(large).trim());
    }

    /// Bytes of memory that is handed out, counted by capacity.
    pub fn in_use_bytes(&self) -> usize {
        self.shared.in_use_bytes.load(Ordering::Relaxed)
    }
}

/// An aligned buffer with exclusive access.
pub struct AlignedBuf {
    /// Present until dropped.
    block: Option<Block>,
    len: usize,
    shared: Arc<Shared>,
}

impl AlignedBuf {
    /// Makes the buffer immutable and shareable, without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Like [`AlignedBuf::freeze`], for `range` only.
    pub fn freeze_range(self, range: Range<usize>) -> Bytes {
        self.freeze().slice(range)
    }

    /// Shortens the visible part; the memory behind it stays.
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
        // SAFETY: as in `deref`; `&mut self` excludes other access.
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
        self.shared.give_back(block);
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
    fn large_buffers_stay_while_they_are_needed() {
        let pool = Pool::default();
        let free = || lock(&pool.shared.large[0]).free.len();
        drop([pool.take(100 << 10), pool.take(100 << 10)]);
        pool.trim();
        assert_eq!(free(), 2);
        drop(pool.take(100 << 10));
        pool.trim();
        assert_eq!(free(), 1, "one was not needed");
        pool.trim();
        assert_eq!(free(), 0);
    }

    #[test]
    fn a_buffer_is_used_again() {
        let pool = Pool::default();
        let first = pool.take(4096).as_ptr().addr();
        assert_eq!(pool.take(4096).as_ptr().addr(), first);
    }
}
