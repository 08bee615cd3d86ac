//! What each disk has in the ring. The kernel has few workers for what cannot be carried out at
//! once, and a disk that hangs keeps those that it has. So a disk has a limited number of
//! operations in the ring, and the kernel may start as many workers as all disks have operations.

use std::collections::{BTreeMap, VecDeque};

use crate::io::driver::{Disk, Op, Token};
use crate::io::threads::Kind;
use crate::limits::DISK_RING_OPS;

/// An operation on a file that waits for a place: its handle comes second.
pub(super) type Waiting = (Token, u32, Op);

#[derive(Default)]
pub(super) struct Disks {
    all: BTreeMap<Disk, [Places; 2]>,
}

/// The operations of one kind on one disk.
#[derive(Default)]
struct Places {
    in_ring: usize,
    waiting: VecDeque<Waiting>,
}

impl Disks {
    /// Adds a disk if it is not known, and returns how many workers the kernel may need.
    pub fn add(&mut self, disk: Disk) -> u32 {
        self.all.entry(disk).or_default();
        (self.all.len() * 2 * DISK_RING_OPS) as u32
    }

    pub fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// Gives an operation a place in the ring, and it back; otherwise it waits.
    pub fn enter(&mut self, disk: Disk, waiting: Waiting) -> Option<Waiting> {
        let places = self.places(disk, Kind::of(&waiting.2));
        if places.in_ring >= DISK_RING_OPS {
            places.waiting.push_back(waiting);
            return None;
        }
        places.in_ring += 1;
        Some(waiting)
    }

    /// An operation has left the ring. Returns the one that takes its place.
    pub fn leave(&mut self, disk: Disk, kind: Kind) -> Option<Waiting> {
        let places = self.places(disk, kind);
        let next = places.waiting.pop_front();
        if next.is_none() {
            places.in_ring -= 1;
        }
        next
    }

    fn places(&mut self, disk: Disk, kind: Kind) -> &mut Places {
        let places = self.all.get_mut(&disk).expect("a disk with an open file");
        &mut places[kind as usize]
    }
}
