//! A simulated disk: files of pages, what a crash leaves of them, and what can be wrong with it.
//!
//! A write shows at once to reads when it ends; it is durable when it ended with `durable` or when
//! a later sync ends. At a crash every page of a write that is not durable survives or not, page
//! by page.

use std::collections::BTreeMap;

use crate::sim::rng::Rng;
use crate::types::{BLOCK_BYTES, Mono};

type Page = [u8; BLOCK_BYTES];

/// What was written more recently than this is not yet named durable by anything else in the log:
/// rot in there looks like a write that was torn (see `store/wal/decide.rs`), and one replica that
/// forgets what it answered is more than replication promises to survive.
const FRESH_NS: u64 = 1_000_000_000;

/// One file of one host.
#[derive(Default)]
pub struct SimFile {
    durable: BTreeMap<u64, Box<Page>>,
    /// Written, shown to reads, not durable.
    cached: BTreeMap<u64, Box<Page>>,
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
            let mut boxed = Box::new([0; BLOCK_BYTES]);
            boxed.copy_from_slice(chunk);
            self.written.insert(page, now);
            if durable {
                self.cached.remove(&page);
                self.durable.insert(page, boxed);
            } else {
                self.cached.insert(page, boxed);
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
        let mut old: Vec<&mut Box<Page>> = self
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

/// What is wrong with the disk of a host.
#[derive(Default)]
pub struct Sick {
    /// The next operation on this file fails.
    pub fails: Option<&'static str>,
    /// The next write to this file says that it was done, and was not.
    pub loses: Option<&'static str>,
    /// The next write to this file lands elsewhere in it.
    pub misdirects: Option<&'static str>,
    /// Until then every operation takes about a hundred times as long.
    pub slow_until: Mono,
    /// Nothing ends before.
    pub stuck_until: Mono,
}

/// Takes the mark off when it is this file's.
pub fn take(mark: &mut Option<&'static str>, file: &str) -> bool {
    let hit = *mark == Some(file);
    if hit {
        *mark = None;
    }
    hit
}
