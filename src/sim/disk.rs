//! A simulated disk: files of pages, an index, the results of a crash, and the disk's faults.
//!
//! Reads see a write as soon as it ends. The write is durable if it ended with `durable`, or when a
//! later sync ends. When power fails, each page of other writes survives, is lost, or is torn: some
//! sectors are new and the others old. When a process is killed, its writes stay, and are still not
//! durable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use crate::io::driver::Token;
use crate::sim::names::{DiskNumber, FILES, Host};
use crate::sim::rng::Rng;
use crate::store::index::memory::MemoryIndex;
use crate::store::messages::LaneFile;
use crate::types::{BLOCK_BYTES, Mono};

const SECTOR_BYTES: usize = 512;

/// The content of a page. What clients write takes little memory.
#[derive(Clone)]
enum Page {
    Raw(Box<[u8]>),
    /// Each half begins with these bytes; all its others are equal.
    Halves([Half; 2]),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Half {
    head: [u8; HEAD_BYTES],
    rest: u8,
}

const HALF_BYTES: usize = BLOCK_BYTES / 2;
const HEAD_BYTES: usize = 8;

impl Half {
    fn of(bytes: &[u8]) -> Option<Half> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let is_even = rest[1..] == rest[..rest.len() - 1];
        is_even.then_some(Half { head: *head, rest: rest[0] })
    }

    /// Writes the first bytes of the half.
    fn read(&self, into: &mut [u8]) {
        let head_len = HEAD_BYTES.min(into.len());
        into[..head_len].copy_from_slice(&self.head[..head_len]);
        into[head_len..].fill(self.rest);
    }
}

impl Page {
    fn of(bytes: &[u8]) -> Page {
        let (first, second) = bytes.split_at(HALF_BYTES);
        match (Half::of(first), Half::of(second)) {
            (Some(first), Some(second)) => Page::Halves([first, second]),
            _ => Page::Raw(bytes.into()),
        }
    }

    /// Reads the first bytes of the page.
    fn read(&self, into: &mut [u8]) {
        match self {
            Page::Raw(bytes) => into.copy_from_slice(&bytes[..into.len()]),
            Page::Halves(halves) => {
                let halves = halves.iter().zip(into.chunks_mut(HALF_BYTES));
                halves.for_each(|(half, into)| half.read(into));
            }
        }
    }

    /// The bytes, for changes.
    fn bytes_mut(&mut self) -> &mut [u8] {
        if let Page::Halves(_) = self {
            let mut bytes = vec![0; BLOCK_BYTES];
            self.read(&mut bytes);
            *self = Page::Raw(bytes.into());
        }
        match self {
            Page::Raw(bytes) => bytes,
            Page::Halves(_) => unreachable!("it was just replaced"),
        }
    }
}

/// One disk, in whichever pod it is.
#[derive(Default)]
pub struct SimDisk {
    pub number: DiskNumber,
    /// The pod that has the disk now.
    pub host: Host,
    pub superblock: SimFile,
    pub wal: SimFile,
    pub data: SimFile,
    pub index: Rc<RefCell<MemoryIndex>>,
    /// The end of the newest index job. The jobs of a disk run one after the other.
    pub index_ends: Mono,
    pub sick: Sick,
    pub power: Power,
    /// Failed operations since a pod last opened the disk.
    pub failures: u64,
}

/// How long the power stays on while a pod starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    #[default]
    Stays,
    /// Power fails after this many writes.
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

    /// The pod dies. The index has no log: only a prefix of its unflushed commits survives. When
    /// power fails, only some of the files' pages that are not durable survive.
    pub fn crash(&mut self, loss: Loss, rng: &mut Rng) {
        if loss == Loss::Power {
            FILES.iter().for_each(|name| self.file(*name).crash(rng));
        }
        let mut index = self.index.borrow_mut();
        let kept = rng.below(index.unflushed_commits() as u64 + 1);
        index.crash(kept as usize);
    }
}

/// An event of a file.
pub enum FileEvent<'a> {
    /// A pod hands a write to the disk.
    WriteBegins {
        token: Token,
        offset: u64,
        bufs: &'a [Bytes],
    },
    /// A write has ended. `is_durable`: the pod is told that the write survives a crash.
    WriteEnds {
        token: Token,
        is_durable: bool,
    },
    SyncEnds,
}

/// Sees every event of the disks at once, and changes nothing.
pub trait DiskObserver {
    /// `disk` shows the state after the event.
    fn observe(&mut self, disk: &SimDisk, file: LaneFile, event: FileEvent<'_>);
}

/// How a pod dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Power,
    /// The process is killed: its writes stay, and are still not durable.
    Process,
}

/// Slots that were written within this time do not rot: the index may not yet refer to them
/// durably. For the log, the checker knows the exact range.
pub const FRESH_NS: u64 = 1_000_000_000;

/// One file of a disk.
#[derive(Default)]
pub struct SimFile {
    /// `None`: zeroes, as most pages are never written.
    durable: Vec<Option<Page>>,
    /// Pages that reads see, and that are not durable.
    cached: BTreeMap<u64, Page>,
    /// Time of the last write to each page; 0: never written.
    written: Vec<Mono>,
    pub bytes: u64,
}

impl SimFile {
    /// Grows the file, if necessary, so that it has the page that ends at `end`.
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
            bytes.read(&mut into[at..at + len]);
        }
    }

    /// Reads the durable content: without the pages that are only in the cache.
    pub fn read_durable(&self, offset: u64, into: &mut [u8]) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
        let first = offset as usize / BLOCK_BYTES;
        for (page, out) in (first..).zip(into.chunks_mut(BLOCK_BYTES)) {
            match self.durable.get(page) {
                Some(Some(page)) => page.read(out),
                _ => out.fill(0),
            }
        }
    }

    /// True if the page's present content would survive a crash.
    pub fn is_durable(&self, page: u64) -> bool {
        !self.cached.contains_key(&page)
    }

    /// Writes `bufs` one after the other, from `offset` on.
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
            self.cached.extend(pages.zip(bytes.chunks(BLOCK_BYTES).map(Page::of)));
            return;
        }
        if !self.cached.is_empty() {
            pages.clone().for_each(|page| drop(self.cached.remove(&page)));
        }
        for (page, bytes) in pages.zip(bytes.chunks(BLOCK_BYTES)) {
            self.durable[page as usize] = Some(Page::of(bytes));
        }
    }

    /// Makes what was written to this part durable.
    pub fn sync(&mut self, part: Range<u64>) {
        let pages = part.start / BLOCK_BYTES as u64..part.end.div_ceil(BLOCK_BYTES as u64);
        let beyond = self.cached.split_off(&pages.end);
        for (page, bytes) in self.cached.split_off(&pages.start) {
            self.durable[page as usize] = Some(bytes);
        }
        self.cached.extend(beyond);
    }

    /// Flips a bit of some page that was last written before `before`. Half of the time it is one
    /// of the newest pages, which the log may still need.
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

    /// Power fails during a write of `bytes` at `offset`: all of it survives, nothing, or any of
    /// its pages and sectors.
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

    /// The pod is killed during a write: all its pages are written, some, or none. None is durable.
    pub fn leave(&mut self, now: Mono, offset: u64, bytes: &[u8], rng: &mut Rng) {
        let one_in = [1, 2, u64::MAX][rng.below(3) as usize];
        for (page, bytes) in (offset..).step_by(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES)) {
            if rng.one_in(one_in) {
                self.write(now, page, bytes, false);
            }
        }
    }

    pub fn crash(&mut self, rng: &mut Rng) {
        for (page, mut bytes) in std::mem::take(&mut self.cached) {
            self.land(page, bytes.bytes_mut(), Survives::Some, rng);
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

    /// The durable content of a page, for changes.
    fn page_mut(&mut self, page: u64) -> &mut [u8] {
        let page = &mut self.durable[page as usize];
        page.get_or_insert_with(|| Page::Raw(vec![0; BLOCK_BYTES].into())).bytes_mut()
    }
}

/// The part of a write that survives a crash.
#[derive(Clone, Copy)]
enum Survives {
    All,
    Some,
}

/// The present faults of a disk.
#[derive(Default)]
pub struct Sick {
    /// The next operation on this file fails.
    pub fails: Option<LaneFile>,
    /// Every operation fails until this time.
    pub dead_until: Mono,
    /// The next write of this file reports success, and is lost.
    pub loses: Option<LaneFile>,
    /// The next write of this file goes to another place in it.
    pub misdirects: Option<LaneFile>,
    /// The next read of this file returns another place in it.
    pub misreads: Option<LaneFile>,
    /// Until this time flushes of this file report success, and do nothing.
    pub lies: Option<(LaneFile, Mono)>,
    /// Until this time every operation takes about a hundred times as long.
    pub slow_until: Mono,
    /// The same for one file.
    pub slow_file: Option<(LaneFile, Mono)>,
    /// No operation ends before this time; the greatest one: never.
    pub stuck_until: Mono,
    /// The same for each file, in the order of [`FILES`].
    pub stuck_files_until: [Mono; 3],
}

impl Sick {
    /// True while no operation ends.
    pub fn hangs(&self, now: Mono) -> bool {
        self.stuck_until > now
    }
}
