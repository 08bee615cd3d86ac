//! The index in memory, for the simulator and for tests. It has the codec of the disk format, and a
//! crash loses any suffix of the commits since the last flush.

use std::collections::BTreeMap;

use crate::store::index::format::{self, Change};
use crate::store::index::{IndexError, IndexStore};
use crate::store::messages::{ExtentKey, ExtentRecord, IndexEdit, MemberRecord};
use crate::types::{Extent, MemberId};

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// See the module.
#[derive(Clone, Default)]
pub struct MemoryIndex {
    now: Table,
    durable: Table,
    /// Number of commits that are durable or lost.
    settled: u64,
    /// All later commits.
    unflushed: Vec<Vec<Change>>,
}

impl MemoryIndex {
    /// Commits that a crash may lose.
    pub fn unflushed_commits(&self) -> usize {
        self.unflushed.len()
    }

    /// The number of all commits so far.
    pub fn commits(&self) -> u64 {
        self.settled + self.unflushed.len() as u64
    }

    /// Makes the first `commits` of all commits durable.
    pub fn flush(&mut self, commits: u64) {
        let count = commits.saturating_sub(self.settled) as usize;
        for commit in self.unflushed.drain(..count) {
            apply(&mut self.durable, &commit);
        }
        self.settled += count as u64;
    }

    /// Loses all unflushed commits but the first `kept`.
    pub fn crash(&mut self, kept: usize) {
        self.flush(self.settled + kept as u64);
        self.settled += self.unflushed.drain(..).count() as u64;
        self.now = self.durable.clone();
    }

    fn keys(&self, range: (Vec<u8>, Vec<u8>)) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        self.now.range(range.0..range.1)
    }
}

fn apply(table: &mut Table, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(key, value) => {
                table.insert(key.clone(), value.clone());
            }
            Change::Delete(key) => {
                table.remove(key);
            }
            Change::DeleteRange(from, to) => {
                table.retain(|key, _| key < from || key >= to);
            }
        }
    }
}

impl IndexStore for MemoryIndex {
    fn get(&mut self, keys: &[ExtentKey]) -> Result<Vec<Option<ExtentRecord>>, IndexError> {
        keys.iter()
            .map(|key| {
                let value = self.now.get(&format::extent_key(*key));
                value.map(|value| format::decode_extent(value)).transpose()
            })
            .collect()
    }

    fn commit(&mut self, edits: &[IndexEdit], flush: bool) -> Result<(), IndexError> {
        let mut changes = Vec::new();
        for edit in edits {
            format::changes(edit, &mut changes);
        }
        apply(&mut self.now, &changes);
        self.unflushed.push(changes);
        if flush {
            self.flush(self.commits());
        }
        Ok(())
    }

    fn scan(
        &mut self,
        member: MemberId,
        from: Extent,
        limit: usize,
    ) -> Result<Vec<(ExtentKey, ExtentRecord)>, IndexError> {
        let (_, end) = format::extents_of(member);
        let start = format::extent_key(ExtentKey { member, extent: from, layer: 0 });
        self.keys((start, end))
            .take(limit)
            .map(|(key, value)| {
                Ok((format::decode_extent_key(key)?, format::decode_extent(value)?))
            })
            .collect()
    }

    fn members(&mut self) -> Result<Vec<MemberRecord>, IndexError> {
        self.keys(format::members_range())
            .map(|(key, value)| format::decode_member(key, value))
            .collect()
    }

    fn tombstones(&mut self) -> Result<Vec<MemberId>, IndexError> {
        self.keys(format::tombstones_range())
            .map(|(key, _)| format::decode_short_key(key))
            .collect()
    }

    fn faulted(&mut self) -> Result<Vec<MemberId>, IndexError> {
        self.keys(format::faults_range()).map(|(key, _)| format::decode_short_key(key)).collect()
    }
}
