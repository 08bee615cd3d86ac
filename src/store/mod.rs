//! One lane of a disk: write-ahead log, overlay, write-back, index, allocator, checkpoint,
//! recovery, resync. All decisions are pure: a [`lane`] asks for I/O with [`messages::Effect`] and
//! hears of its end; the worker and the simulator carry it out.
//!
//! Imports lead from the first of these to the last, never back:
//! - [`open`]: makes a lane from the files of a disk.
//! - [`lane`]: the interface. It alone knows all parts, and dispatches to them.
//! - The parts, each with its own state: `checkpoint`, `writeback` (with `round`), `resync`,
//!   `bypass`, `read`, `read_repair`, `log_fetch`, `admission`.
//! - `core`: the state that all parts borrow: members, allocator, log, caches, I/O, clock.
//! - The parts of the core: `lane_log`, `groups`, `past`, `effects`, `members` (each is a
//!   `member`), `overlay`, `alloc`.
//! - [`wal`], [`index`] and [`superblock`]: the disk formats. [`messages`]: its inputs and outputs.
//!
//! Invariant: knows neither `replica` nor `net`; touches `io` only for aligned memory. The one
//! place that calls RocksDB is `index/rocks.rs`.

mod admission;
mod alloc;
mod bypass;
#[cfg(test)]
mod bypass_test;
mod checkpoint;
mod core;
pub mod data_files;
#[cfg(test)]
mod discard_test;
mod effects;
mod extent_map;
mod groups;
pub mod index;
pub mod lane;
mod lane_log;
#[cfg(test)]
mod lane_test;
mod log_fetch;
#[cfg(test)]
mod log_fetch_test;
mod member;
mod members;
#[cfg(test)]
pub(crate) mod members_test;
pub mod messages;
pub mod open;
#[cfg(test)]
mod open_test;
mod overlay;
mod past;
mod read;
mod read_repair;
#[cfg(test)]
mod read_repair_test;
mod resync;
#[cfg(test)]
mod resync_test;
mod round;
#[cfg(test)]
mod rules_test;
pub mod superblock;
#[cfg(test)]
mod tail_test;
pub mod wal;
mod writeback;

#[cfg(feature = "bench-internals")]
pub use overlay::{Content, Dirty, Overlay, OverlayBlock, OverlayExtent};

/// Why a lane cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not read or write the disk")]
    Io(#[from] std::io::Error),
    #[error("could not read the index")]
    Index(#[from] index::IndexError),
    #[error("could not open the disk by its superblock")]
    Superblock(#[from] superblock::SuperblockError),
    #[error("could not recover the log")]
    Recover(#[from] wal::recover::RecoverError),
    #[error("could not load an entry of the log")]
    Load(#[from] wal::recover::LoadError),
    #[error("its level does not fit")]
    Level(#[from] crate::level::TooOld),
    #[error("{0}")]
    Unusable(&'static str),
}
