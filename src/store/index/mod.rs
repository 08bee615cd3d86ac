//! The index of a lane: the slot of each extent, and the checksums of its blocks.

use crate::store::messages::{
    ExtentKey, ExtentRecord, IndexDone, IndexEdit, IndexJob, MemberRecord,
};
use crate::types::{Extent, MemberId};

pub(crate) mod cache;
mod error;
mod format;
#[cfg(test)]
#[path = "../../testing/fuzz/index.rs"]
pub mod fuzz;
pub mod memory;
pub mod rocks;
pub mod rocks_threads;
#[cfg(test)]
mod store_test;

pub use error::IndexError;
#[cfg(feature = "bench-internals")]
pub use format::{decode_extent, encode_extent};

/// Storage of the index. Commits are atomic. They become durable in order, at the latest with the
/// next flush; a crash loses a suffix of the commits since then.
pub trait IndexStore: Send {
    fn get(&mut self, keys: &[ExtentKey]) -> Result<Vec<Option<ExtentRecord>>, IndexError>;
    fn commit(&mut self, edits: &[IndexEdit], flush: bool) -> Result<(), IndexError>;
    fn scan(
        &mut self,
        member: MemberId,
        from: Extent,
        limit: usize,
    ) -> Result<Vec<(ExtentKey, ExtentRecord)>, IndexError>;
    fn members(&mut self) -> Result<Vec<MemberRecord>, IndexError>;
    /// Members that were destroyed on this lane.
    fn tombstones(&mut self) -> Result<Vec<MemberId>, IndexError>;
    /// Members with an [`IndexEdit::Fault`].
    fn faulted(&mut self) -> Result<Vec<MemberId>, IndexError>;
}

/// Does one job and blocks. For the helper thread of a lane.
pub fn run(store: &mut dyn IndexStore, job: IndexJob) -> Result<IndexDone, IndexError> {
    match job {
        IndexJob::Get { keys } => store.get(&keys).map(IndexDone::Got),
        IndexJob::Commit { edits, flush } => {
            store.commit(&edits, flush)?;
            Ok(IndexDone::Committed)
        }
        IndexJob::Scan { member, from, limit } => {
            store.scan(member, from, limit).map(IndexDone::Scanned)
        }
    }
}
