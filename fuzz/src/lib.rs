//! The parts of Holdfast that read bytes from outside, compiled from its own sources.

#![allow(dead_code, reason = "only the readers are used")]

#[path = "../../src/front/mod.rs"]
pub mod front;
#[path = "../../src/limits.rs"]
pub mod limits;
#[path = "../../src/net/mod.rs"]
pub mod net;
#[path = "../../src/planted.rs"]
pub mod planted;
#[path = "../../src/slab.rs"]
pub mod slab;
#[path = "../../src/types.rs"]
pub mod types;

/// Aligned memory and reassembly, without the drivers.
#[path = "."]
pub mod io {
    #[path = "../../src/io/buffer.rs"]
    pub mod buffer;
    #[path = "../../src/io/driver.rs"]
    pub mod driver;
    #[path = "../../src/io/slabs.rs"]
    mod slabs;
    #[path = "../../src/io/stream.rs"]
    pub mod stream;
}

/// What reads a disk at its start, without the index.
#[path = "."]
pub mod store {
    #[path = "../../src/store/fuzz.rs"]
    mod fuzz;
    #[path = "../../src/store/seam.rs"]
    pub mod seam;
    #[path = "../../src/store/superblock.rs"]
    pub mod superblock;
    #[path = "../../src/store/wal/mod.rs"]
    pub mod wal;

    pub use fuzz::{fuzz_one, fuzz_seeds};
}
