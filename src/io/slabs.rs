//! Aligned buffers of one small size, many to a mapping. They bypass the program's allocator: it
//! would use twice the memory for aligned 4 KiB. Small allocations between large ones would also
//! keep their memory from going back to the system after a load.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::types::BLOCK_BYTES;

/// The largest slab. The first has one buffer, and each further one twice as many as the last.
const SLAB_BYTES_MAX: usize = 256 << 10;

/// Zeroed pages, owned by this value.
pub(super) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is the only owner of plain memory.
unsafe impl Send for Memory {}
// SAFETY: shared access to it gives shared access to plain bytes only.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `bytes` of memory: a multiple of [`BLOCK_BYTES`], not zero.
    pub fn new(bytes: usize) -> Memory {
        Memory::map(bytes, MapFlags::PRIVATE)
    }

    /// Like [`Memory::new`], with all pages present. This saves a page fault for each, when all are
    /// used at once.
    fn with_pages(bytes: usize) -> Memory {
        Memory::map(bytes, MapFlags::PRIVATE | MapFlags::POPULATE)
    }

    fn map(bytes: usize, flags: MapFlags) -> Memory {
        let layout =
            Layout::from_size_align(bytes, BLOCK_BYTES).expect("a size far below isize::MAX");
        assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "whole blocks");
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let mapped = unsafe { mmap_anonymous(null_mut(), bytes, access, flags) };
        match mapped.ok().and_then(|start| NonNull::new(start.cast())) {
            Some(start) => Memory { start, bytes },
            None => handle_alloc_error(layout),
        }
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` made the mapping with this size, and no other code knows it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
        assert!(unmapped.is_ok(), "could not unmap our own memory: {unmapped:?}");
    }
}

/// A slab, and a buffer in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    slab: u32,
    position: u32,
}

struct Slab {
    memory: Memory,
    buffers: u32,
    /// One bit per buffer; set: free.
    free: u64,
}

impl Slab {
    fn new(buffers: u32, buffer_bytes: usize) -> Slab {
        let memory = Memory::with_pages(buffers as usize * buffer_bytes);
        Slab { memory, buffers, free: all(buffers) }
    }

    fn is_unused(&self) -> bool {
        self.free == all(self.buffers)
    }
}

/// The slabs of one size of buffer.
pub(super) struct Slabs {
    buffer_bytes: usize,
    /// `None`: returned to the system.
    slabs: Vec<Option<Slab>>,
    vacant: Vec<u32>,
    /// Slabs with a free buffer. The last one is used first.
    open: Vec<u32>,
    /// Free buffers of all slabs.
    free: usize,
    /// The minimum of `free` since the last [`Slabs::trim`].
    free_min: usize,
    /// Number of buffers in the newest slab.
    newest: u32,
}

impl Slabs {
    pub fn new(buffer_bytes: usize) -> Slabs {
        assert!(buffer_bytes.is_multiple_of(BLOCK_BYTES) && buffer_bytes <= SLAB_BYTES_MAX);
        let (slabs, vacant, open) = (Vec::new(), Vec::new(), Vec::new());
        Slabs { buffer_bytes, slabs, vacant, open, free: 0, free_min: 0, newest: 0 }
    }

    /// Takes a free buffer, for exclusive use until it is returned.
    pub fn take(&mut self) -> (Place, NonNull<u8>) {
        let number = match self.open.last() {
            Some(number) => *number,
            None => self.grow(),
        };
        let slab = self.slabs[number as usize].as_mut().expect("an open slab is there");
        let position = slab.free.trailing_zeros();
        assert!(position < slab.buffers, "an open slab has a free buffer");
        slab.free &= !(1 << position);
        self.free -= 1;
        self.free_min = self.free_min.min(self.free);
        // SAFETY: the buffer of this number lies inside the slab's memory.
        let start = unsafe { slab.memory.start().add(position as usize * self.buffer_bytes) };
        if slab.free == 0 {
            self.open.pop();
        }
        (Place { slab: number, position }, start)
    }

    pub fn give_back(&mut self, place: Place) {
        let slab = self.slabs[place.slab as usize].as_mut().expect("in use");
        let bit = 1 << place.position;
        assert!(slab.free & bit == 0, "given back once");
        if slab.free == 0 {
            self.open.push(place.slab);
        }
        slab.free |= bit;
        self.free += 1;
    }

    /// Returns a part of the buffers that stayed unused since the last call, in whole slabs.
    pub fn trim(&mut self) {
        let slab = self.buffers_max();
        let mut surplus = part_to_trim(self.free_min).max(self.free_min.min(slab));
        let (slabs, vacant) = (&mut self.slabs, &mut self.vacant);
        self.open.retain(|number| {
            let slab = &mut slabs[*number as usize];
            let unused = slab.take_if(|slab| slab.is_unused() && slab.buffers as usize <= surplus);
            let Some(unused) = unused else { return true };
            surplus -= unused.buffers as usize;
            self.free -= unused.buffers as usize;
            vacant.push(*number);
            false
        });
        self.free_min = self.free;
    }

    /// Buffers of the largest slab: at most 64, the number of bits.
    fn buffers_max(&self) -> usize {
        (SLAB_BYTES_MAX / self.buffer_bytes).min(64)
    }

    fn grow(&mut self) -> u32 {
        self.newest = (2 * self.newest).clamp(1, self.buffers_max() as u32);
        let slab = Slab::new(self.newest, self.buffer_bytes);
        self.free += slab.buffers as usize;
        let number = match self.vacant.pop() {
            Some(number) => number,
            None => {
                self.slabs.push(None);
                u32::try_from(self.slabs.len() - 1).expect("fewer slabs than memory has pages")
            }
        };
        self.slabs[number as usize] = Some(slab);
        self.open.push(number);
        number
    }
}

/// The part of a surplus that goes back at once. Loads come in waves, and returned memory must be
/// faulted in page by page when it is needed again.
pub(super) fn part_to_trim(surplus: usize) -> usize {
    surplus.div_ceil(2)
}

/// A mask with one bit per buffer.
fn all(buffers: u32) -> u64 {
    u64::MAX >> (64 - buffers)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl Slabs {
        fn bytes(&self) -> usize {
            self.slabs.iter().flatten().map(|slab| slab.buffers as usize * self.buffer_bytes).sum()
        }
    }

    #[test]
    fn memory_goes_back_when_what_was_in_use_is_free() {
        let mut slabs = Slabs::new(BLOCK_BYTES);
        let taken: Vec<Place> = (0..10_000).map(|_| slabs.take().0).collect();
        assert!(slabs.bytes() < 10_000 * BLOCK_BYTES + SLAB_BYTES_MAX);
        let (still_used, unused) = taken.split_at(100);
        unused.iter().for_each(|place| slabs.give_back(*place));
        let all = slabs.bytes();
        slabs.trim();
        assert_eq!(slabs.bytes(), all, "all were in use a moment ago");
        slabs.trim();
        assert!(slabs.bytes() < all && slabs.bytes() > all / 3);
        (0..20).for_each(|_| slabs.trim());
        // The first slabs are the small ones.
        assert!(slabs.bytes() <= 100 * BLOCK_BYTES + SLAB_BYTES_MAX, "{}", slabs.bytes());
        assert_eq!(slabs.bytes(), (slabs.free + 100) * BLOCK_BYTES);
        still_used.iter().for_each(|place| slabs.give_back(*place));
        (0..5).for_each(|_| slabs.trim());
        assert_eq!((slabs.bytes(), slabs.free), (0, 0));
    }

    #[test]
    fn what_is_needed_again_and_again_stays() {
        let mut slabs = Slabs::new(BLOCK_BYTES);
        for _ in 0..3 {
            let taken: Vec<Place> = (0..1000).map(|_| slabs.take().0).collect();
            let bytes = slabs.bytes();
            taken.into_iter().for_each(|place| slabs.give_back(place));
            slabs.trim();
            assert!(slabs.bytes() + SLAB_BYTES_MAX > bytes);
        }
    }

    #[test]
    fn a_pool_for_one_buffer_is_no_larger_than_that() {
        let mut slabs = Slabs::new(BLOCK_BYTES);
        slabs.take();
        assert_eq!(slabs.bytes(), BLOCK_BYTES);
    }

    proptest! {
        /// No two buffers in use overlap, all are aligned, and what was written stays.
        #[test]
        fn nobody_shares_a_buffer(
            steps in prop::collection::vec((any::<bool>(), any::<u16>()), 1..600),
        ) {
            let mut slabs = Slabs::new(4 * BLOCK_BYTES);
            let mut used: Vec<(Place, NonNull<u8>, u64)> = Vec::new();
            for (number, (take, pick)) in steps.into_iter().enumerate() {
                if take || used.is_empty() {
                    let (place, start) = slabs.take();
                    prop_assert_eq!(start.addr().get() % BLOCK_BYTES, 0);
                    // SAFETY: a buffer of four blocks that nobody else has.
                    unsafe { start.cast::<u64>().write(number as u64) };
                    used.push((place, start, number as u64));
                } else {
                    let (place, start, mark) = used.swap_remove(pick as usize % used.len());
                    // SAFETY: still ours.
                    prop_assert_eq!(unsafe { start.cast::<u64>().read() }, mark);
                    slabs.give_back(place);
                    slabs.trim();
                }
                let starts: HashMap<usize, u64> =
                    used.iter().map(|(_, start, mark)| (start.addr().get(), *mark)).collect();
                prop_assert_eq!(starts.len(), used.len());
            }
        }
    }
}
