//! A simulated disk: files of pages, an index, what a crash leaves of them, and what can be wrong
//! with it.
//!
//! A write shows at once to reads when it ends; it is durable when it ended with `durable` or when
//! a later sync ends. When power fails, every page of a write that is not durable survives, is
//! lost, or is torn: some of its sectors are new and the others old. When a process is killed, what
//! it wrote stays, and is not durable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use crate::io::driver::Token;
use crate::sim::names::{DiskNumber, FILES, Host};
use crate::sim::rng::Rng;
use crate::store::index::memory::MemoryIndex;
use crate::store::seam::LaneFile;
use crate::types::{BLOCK_BYTES, Mono};

const SECTOR_BYTES: usize = 512;

type Page = Box<[u8]>;

/// One disk, wherever it is plugged in.
#[derive(Default)]
pub struct SimDisk {
    pub number: DiskNumber,
    /// The pod that has it now.
    pub host: Host,
    pub superblock: SimFile,
    pub wal: SimFile,
    pub data: SimFile,
    pub index: Rc<RefCell<MemoryIndex>>,
    /// When the last job of the index that was asked for ends: one comes after the other.
    pub index_ends: Mono,
    pub sick: Sick,
    pub power: Power,
    /// Operations that failed since a pod opened it.
    pub failures: u64,
}

/// How long a pod that starts has power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    #[default]
    Stays,
    /// Until the write after so many.
    FailsAfter(u64),
    HasFailed,
}

impl SimDisk {
    pub fn file(&mut self, name: LaneFile) -> &mut SimFile {
        match name {
            LaneFile::Superblock => &mut self.superblock,
            LaneFile::Wal => &mut self.wal,
            LaneFile::Data => &mut self.data,
        }
    }

    /// The pod that has it is gone, and with it all but a prefix of what was not flushed in the
    /// index, which has no log. When power fails, of the files some survives of what was not
    /// durable.
    pub fn crash(&mut self, loss: Loss, rng: &mut Rng) {
        if loss == Loss::Power {
            FILES.iter().for_each(|name| self.file(*name).crash(rng));
        }
        let mut index = self.index.borrow_mut();
        let kept = rng.below(index.unflushed_commits() as u64 + 1);
        index.crash(kept as usize);
    }
}

/// What happens to a file of a disk.
pub enum FileEvent<'a> {
    /// A pod hands a write to the disk.
    WriteBegins {
        token: Token,
        offset: u64,
        bufs: &'a [Bytes],
    },
    /// A write has ended. `is_durable`: the pod is told that a crash keeps it.
    WriteEnds {
        token: Token,
        is_durable: bool,
    },
    SyncEnds,
}

/// Sees all that happens to disks, at the moment when it happens, and changes nothing of it.
pub trait DiskObserver {
    /// `disk` is as the event has left it.
    fn observe(&mut self, disk: &SimDisk, file: LaneFile, event: FileEvent<'_>);
}

/// How a pod dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Power,
    /// It is killed: what it wrote is there, and still not durable.
    Process,
}

/// Slots that were written more recently than this do not rot: what they are for may not be known
/// durably yet. Of the log it is known exactly which part that is.
pub const FRESH_NS: u64 = 1_000_000_000;

/// One file of a disk.
#[derive(Default)]
pub struct SimFile {
    /// `None`: zeroes. Pages of their own, because a run ends with most of a file never written,
    /// and what the allocator has kept from the run before is faster than new memory.
    durable: Vec<Option<Page>>,
    /// Written, shown to reads, not durable.
    cached: BTreeMap<u64, Page>,
    /// When every page was written last; 0 for never.
    written: Vec<Mono>,
    pub bytes: u64,
}

impl SimFile {
    /// Room for the page that ends here, in a file that may still grow.
    fn reach(&mut self, end: u64) {
        self.bytes = self.bytes.max(end);
        let pages = end.div_ceil(BLOCK_BYTES as u64) as usize;
        if self.durable.len() < pages {
            self.durable.resize(pages, None);
            self.written.resize(pages, Mono(0));
        }
    }

    pub fn read(&self, offset: u64, into: &mut [u8]) {
        self.read_durable(offset, into);
        let first = offset / BLOCK_BYTES as u64;
        let end = first + into.len().div_ceil(BLOCK_BYTES) as u64;
        for (page, bytes) in self.cached.range(first..end) {
            let at = (page - first) as usize * BLOCK_BYTES;
            let len = BLOCK_BYTES.min(into.len() - at);
            into[at..at + len].copy_from_slice(&bytes[..len]);
        }
    }

    /// What a crash would certainly leave, or write over.
    pub fn read_durable(&self, offset: u64, into: &mut [u8]) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
        let first = offset as usize / BLOCK_BYTES;
        for (page, out) in (first..).zip(into.chunks_mut(BLOCK_BYTES)) {
            match self.durable.get(page) {
                Some(Some(bytes)) => out.copy_from_slice(&bytes[..out.len()]),
                _ => out.fill(0),
            }
        }
    }

    /// What this page shows now would survive a crash.
    pub fn is_durable(&self, page: u64) -> bool {
        !self.cached.contains_key(&page)
    }

    /// Writes `bufs` one after the other.
    pub fn write_all(&mut self, now: Mono, mut offset: u64, bufs: &[Bytes], durable: bool) {
        for buf in bufs {
            self.write(now, offset, buf, durable);
            offset += buf.len() as u64;
        }
    }

    pub fn write(&mut self, now: Mono, offset: u64, bytes: &[u8], durable: bool) {
        assert!(
            offset.is_multiple_of(BLOCK_BYTES as u64) && bytes.len().is_multiple_of(BLOCK_BYTES)
        );
        self.reach(offset + bytes.len() as u64);
        let first = offset / BLOCK_BYTES as u64;
        let pages = first..first + (bytes.len() / BLOCK_BYTES) as u64;
        self.written[pages.start as usize..pages.end as usize].fill(now);
        if !durable {
            self.cached.extend(pages.zip(bytes.chunks(BLOCK_BYTES).map(Page::from)));
            return;
        }
        if !self.cached.is_empty() {
            pages.clone().for_each(|page| drop(self.cached.remove(&page)));
        }
        for (page, bytes) in pages.zip(bytes.chunks(BLOCK_BYTES)) {
            self.page_mut(page).copy_from_slice(bytes);
        }
    }

    pub fn sync(&mut self) {
        for (page, bytes) in std::mem::take(&mut self.cached) {
            self.durable[page as usize] = Some(bytes);
        }
    }

    /// Flips a bit of some page that was written before this moment; half of the time one that was
    /// written later than most, which the log may still need.
    pub fn rot(&mut self, before: Mono, rng: &mut Rng, spared: &[Range<u64>]) {
        let is_old = |at: Mono| at != Mono(0) && at < before;
        let is_spared = |page: usize| {
            let offset = (page * BLOCK_BYTES) as u64;
            spared.iter().any(|spared| spared.contains(&offset))
        };
        let pages = self.written.iter().zip(0usize..);
        let old = pages.filter(|(at, page)| is_old(**at) && !is_spared(*page));
        let mut old: Vec<_> = old.collect();
        if old.is_empty() {
            return;
        }
        if rng.one_in(2) {
            old.sort_unstable_by(|one, other| other.cmp(one));
            old.truncate(1 + old.len() / 16);
        }
        let (_, page) = old[rng.below(old.len() as u64) as usize];
        let byte = rng.below(BLOCK_BYTES as u64) as usize;
        self.page_mut(page as u64)[byte] ^= 1 << rng.below(8);
    }

    /// Of a write that was under way when power failed, `bytes` at `offset`: all, nothing, or
    /// whatever of its pages and sectors.
    pub fn tear(&mut self, now: Mono, offset: u64, bytes: &[u8], rng: &mut Rng) {
        let survives = match rng.below(3) {
            0 => return,
            1 => Survives::All,
            _ => Survives::Some,
        };
        self.reach(offset + bytes.len() as u64);
        for (number, page) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let page_number = offset / BLOCK_BYTES as u64 + number as u64;
            self.cached.remove(&page_number);
            self.written[page_number as usize] = now;
            self.land(page_number, page, survives, rng);
        }
    }

    /// Of a write that was under way when the pod was killed: its pages, or some, and none for
    /// sure.
    pub fn leave(&mut self, now: Mono, offset: u64, bytes: &[u8], rng: &mut Rng) {
        let one_in = [1, 2, u64::MAX][rng.below(3) as usize];
        for (page, bytes) in (offset..).step_by(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES)) {
            if rng.one_in(one_in) {
                self.write(now, page, bytes, false);
            }
        }
    }

    pub fn crash(&mut self, rng: &mut Rng) {
        for (page, bytes) in std::mem::take(&mut self.cached) {
            self.land(page, &bytes, Survives::Some, rng);
        }
    }

    fn land(&mut self, page: u64, bytes: &[u8], survives: Survives, rng: &mut Rng) {
        let old = self.page_mut(page);
        match (survives, rng.below(5)) {
            (Survives::All, _) | (Survives::Some, 0 | 1) => old.copy_from_slice(bytes),
            (Survives::Some, 2 | 3) => {}
            (Survives::Some, _) => {
                let sectors = old.chunks_mut(SECTOR_BYTES).zip(bytes.chunks(SECTOR_BYTES));
                for (old, new) in sectors.filter(|_| rng.one_in(2)) {
                    old.copy_from_slice(new);
                }
            }
        }
    }

    /// What is durable of a page, to be changed.
    fn page_mut(&mut self, page: u64) -> &mut [u8] {
        let page = &mut self.durable[page as usize];
        page.get_or_insert_with(|| vec![0; BLOCK_BYTES].into())
    }
}

/// How much of a write is there after a crash.
#[derive(Clone, Copy)]
enum Survives {
    All,
    Some,
}

/// What is wrong with a disk.
#[derive(Default)]
pub struct Sick {
    /// The next operation on this file fails.
    pub fails: Option<LaneFile>,
    /// Until then every operation fails.
    pub dead_until: Mono,
    /// The next write of this file says that it was done, and was not.
    pub loses: Option<LaneFile>,
    /// The next write of this file lands elsewhere in it.
    pub misdirects: Option<LaneFile>,
    /// The next read of this file comes from elsewhere in it.
    pub misreads: Option<LaneFile>,
    /// Until then flushes of this file say that they were done, and were not.
    pub lies: Option<(LaneFile, Mono)>,
    /// Until then every operation takes about a hundred times as long.
    pub slow_until: Mono,
    /// The same for one file.
    pub slow_file: Option<(LaneFile, Mono)>,
    /// Nothing ends before.
    pub stuck_until: Mono,
    /// The same for each file, in the order of [`FILES`].
    pub stuck_files_until: [Mono; 3],
}
