//! A disk for tests that forgets what was not made durable.
//!
//! Not the simulator's: that one is part of the program, keeps time (what rots, what is slow) and
//! tears sectors; this one keeps every version of a sector, any of which may survive.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::sim::rng::Rng;
use crate::store::lane::LaneFiles;
use crate::store::messages::LaneFile;
use crate::types::BLOCK_BYTES;

/// A file in sectors of 4 KiB.
#[derive(Clone, Default)]
pub struct SimFile {
    pub now: Vec<u8>,
    durable: Vec<u8>,
    /// By offset, what was written to a sector since it was last durable.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl SimFile {
    pub fn new(bytes: usize) -> SimFile {
        SimFile { now: vec![0; bytes], durable: vec![0; bytes], unsynced: BTreeMap::new() }
    }

    /// Writes whole sectors. What is not `durable` is read at once, and may be lost.
    pub fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        for (at, bytes) in (offset as usize..).step_by(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES)) {
            self.now[at..at + BLOCK_BYTES].copy_from_slice(bytes);
            if durable {
                self.durable[at..at + BLOCK_BYTES].copy_from_slice(bytes);
                self.unsynced.remove(&at);
            } else {
                self.unsynced.entry(at).or_default().push(bytes.to_vec());
            }
        }
    }

    pub fn sync(&mut self) {
        for (at, mut versions) in std::mem::take(&mut self.unsynced) {
            let last = versions.pop().unwrap();
            self.durable[at..at + BLOCK_BYTES].copy_from_slice(&last);
        }
    }

    /// Of every sector any version since the last durable one may survive.
    pub fn crash(&mut self, rng: &mut Rng) {
        for (at, versions) in std::mem::take(&mut self.unsynced) {
            if let Some(kept) = versions.get(rng.index(versions.len() + 1)) {
                self.durable[at..at + BLOCK_BYTES].copy_from_slice(kept);
            }
        }
        self.now = self.durable.clone();
    }
}

#[derive(Default)]
pub struct Disk {
    pub files: HashMap<LaneFile, SimFile>,
    pub pool: Pool,
}

impl Disk {
    pub fn new(wal_bytes: u64, data_bytes: u64) -> Disk {
        let files = [
            (LaneFile::Superblock, SimFile::new(4 * BLOCK_BYTES)),
            (LaneFile::Wal, SimFile::new(wal_bytes as usize)),
            (LaneFile::Data, SimFile::new(data_bytes as usize)),
        ];
        Disk { files: files.into_iter().collect(), pool: Pool::default() }
    }

    pub fn file(&mut self, file: LaneFile) -> &mut SimFile {
        self.files.get_mut(&file).unwrap()
    }
}

impl LaneFiles for Disk {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let bytes = &self.files[&file].now[offset as usize..offset as usize + len];
        Ok(self.pool.copy(bytes))
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.file(file).write(offset, bytes, true);
        Ok(())
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        Ok(self.files[&file].now.len() as u64)
    }
}
