//! A simulated disk: files of pages, an index, what a crash leaves of them, and what can be wrong
//! with it.
//!
//! A write shows at once to reads when it ends; it is durable when it ended with `durable` or when
//! a later sync ends. At a crash every page of a write that is not durable survives or not, page
//! by page.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::sim::kernel::Host;
use crate::sim::rng::Rng;
use crate::store::index::memory::MemoryIndex;
use crate::types::{BLOCK_BYTES, Mono};

type Page = Box<[u8]>;

/// Number of a disk in the world.
pub type DiskNumber = usize;

/// One disk, wherever it is plugged in.
#[derive(Default)]
pub struct SimDisk {
    /// The pod that has it now.
    pub host: Host,
    pub superblock: SimFile,
    pub wal: SimFile,
    pub data: SimFile,
    pub index: Rc<RefCell<MemoryIndex>>,
    pub sick: Sick,
}

/// The files of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    Superblock,
    Wal,
    Data,
}

impl FileName {
    const ALL: [(FileName, &'static str); 3] =
        [(FileName::Superblock, "superblock"), (FileName::Wal, "wal"), (FileName::Data, "data")];

    /// Where a disk's file is found: the number of the disk, and the name.
    pub fn path(self, disk: DiskNumber) -> PathBuf {
        let found = FileName::ALL.iter().find(|(name, _)| *name == self);
        Path::new(&disk.to_string()).join(found.expect("all have one").1)
    }

    /// The reverse of [`FileName::path`].
    pub fn parse(path: &Path) -> Option<(DiskNumber, FileName)> {
        let (disk, name) = path.to_str()?.split_once('/')?;
        let found = FileName::ALL.iter().find(|(_, text)| *text == name)?;
        Some((disk.parse().ok()?, found.0))
    }
}

impl SimDisk {
    pub fn file(&mut self, name: FileName) -> &mut SimFile {
        match name {
            FileName::Superblock => &mut self.superblock,
            FileName::Wal => &mut self.wal,
            FileName::Data => &mut self.data,
        }
    }

    /// Power fails: of what was not durable some survives, and of the index a prefix.
    pub fn crash(&mut self, rng: &mut Rng) {
        for (name, _) in FileName::ALL {
            self.file(name).crash(rng);
        }
        let mut index = self.index.borrow_mut();
        let kept = rng.below(index.unflushed_commits() as u64 + 1);
        index.crash(kept as usize);
    }
}

/// What was written more recently than this is not yet named durable by anything else in the log:
/// rot in there looks like a write that was torn (see `store/wal/decide.rs`), and one replica that
/// forgets what it answered is more than replication promises to survive.
const FRESH_NS: u64 = 1_000_000_000;

/// One file of a disk.
#[derive(Default)]
pub struct SimFile {
    durable: BTreeMap<u64, Page>,
    /// Written, shown to reads, not durable.
    cached: BTreeMap<u64, Page>,
    /// When pages were written last.
    written: BTreeMap<u64, Mono>,
    pub bytes: u64,
}

impl SimFile {
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (number, chunk) in into.chunks_mut(BLOCK_BYTES).enumerate() {
            let page = offset / BLOCK_BYTES as u64 + number as u64;
            match self.cached.get(&page).or_else(|| self.durable.get(&page)) {
                Some(bytes) => chunk.copy_from_slice(&bytes[..chunk.len()]),
                None => chunk.fill(0),
            }
        }
    }

    pub fn write(&mut self, now: Mono, offset: u64, bytes: &[u8], durable: bool) {
        assert!(
            offset.is_multiple_of(BLOCK_BYTES as u64) && bytes.len().is_multiple_of(BLOCK_BYTES)
        );
        for (number, chunk) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let page = offset / BLOCK_BYTES as u64 + number as u64;
            self.written.insert(page, now);
            if durable {
                self.cached.remove(&page);
                self.durable.insert(page, chunk.into());
            } else {
                self.cached.insert(page, chunk.into());
            }
        }
        self.bytes = self.bytes.max(offset + bytes.len() as u64);
    }

    pub fn sync(&mut self) {
        self.durable.append(&mut self.cached);
    }

    /// Flips a bit of some page that is durable and was not written for a while.
    pub fn rot(&mut self, now: Mono, rng: &mut Rng) {
        let written = &self.written;
        let is_old = |page: &u64| written.get(page).is_none_or(|at| at.0 + FRESH_NS < now.0);
        let mut old: Vec<&mut Page> = self
            .durable
            .iter_mut()
            .filter(|(page, _)| is_old(page))
            .map(|(_, bytes)| bytes)
            .collect();
        if !old.is_empty() {
            let number = rng.below(old.len() as u64) as usize;
            old[number][rng.below(BLOCK_BYTES as u64) as usize] ^= 1 << rng.below(8);
        }
    }

    pub fn crash(&mut self, rng: &mut Rng) {
        for (page, bytes) in std::mem::take(&mut self.cached) {
            if rng.one_in(2) {
                self.durable.insert(page, bytes);
            }
        }
    }
}

/// What is wrong with a disk.
#[derive(Default)]
pub struct Sick {
    /// The next operation on this file fails.
    pub fails: Option<FileName>,
    /// The next write of data says that it was done, and was not.
    pub loses: bool,
    /// The next write of data lands elsewhere.
    pub misdirects: bool,
    /// Until then flushes of data say that they were done, and were not.
    pub lies_until: Mono,
    /// Until then every operation takes about a hundred times as long.
    pub slow_until: Mono,
    /// Nothing ends before.
    pub stuck_until: Mono,
}
