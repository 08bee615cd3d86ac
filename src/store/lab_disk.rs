//! A disk for tests that forgets what was not made durable, and random numbers that come again.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::store::lane::LaneFiles;
use crate::store::seam::LaneFile;
use crate::types::{BLOCK_BYTES, mix64};

/// Random numbers of a test: the same from the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix64(self.0)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// A file in sectors of 4 KiB.
#[derive(Clone, Default)]
pub struct SimFile {
    pub now: Vec<u8>,
    durable: Vec<u8>,
    /// What was written to a sector since it was last durable.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl SimFile {
    pub fn new(bytes: usize) -> SimFile {
        SimFile { now: vec![0; bytes], durable: vec![0; bytes], unsynced: BTreeMap::new() }
    }

    pub fn put(&mut self, sector: usize, bytes: &[u8], durable: bool) {
        let range = sector * BLOCK_BYTES..(sector + 1) * BLOCK_BYTES;
        self.now[range.clone()].copy_from_slice(bytes);
        if durable {
            self.durable[range].copy_from_slice(bytes);
            self.unsynced.remove(&sector);
        } else {
            self.unsynced.entry(sector).or_default().push(bytes.to_vec());
        }
    }

    pub fn sync(&mut self) {
        for (sector, mut versions) in std::mem::take(&mut self.unsynced) {
            let last = versions.pop().unwrap();
            self.durable[sector * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&last);
        }
    }

    /// Of every sector any version since the last durable one may survive.
    pub fn crash(&mut self, random: &mut Random) {
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            if let Some(kept) = versions.get(random.below(versions.len() as u64 + 1) as usize) {
                self.durable[sector * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(kept);
            }
        }
        self.now = self.durable.clone();
    }
}

pub struct Disk {
    pub files: HashMap<LaneFile, SimFile>,
    pub pool: Pool,
}

impl LaneFiles for Disk {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let bytes = &self.files[&file].now[offset as usize..offset as usize + len];
        Ok(self.pool.copy(bytes))
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let file = self.files.get_mut(&file).unwrap();
        for (number, sector) in bytes.chunks(BLOCK_BYTES).enumerate() {
            file.put(offset as usize / BLOCK_BYTES + number, sector, true);
        }
        Ok(())
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        Ok(self.files[&file].now.len() as u64)
    }
}
