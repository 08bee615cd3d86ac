//! The parts of Holdfast that read bytes from outside, compiled from its own sources.

#![allow(dead_code, reason = "only the readers are used")]

#[path = "../../src/fields.rs"]
pub mod fields;
#[path = "../../src/front/mod.rs"]
pub mod front;
#[path = "../../src/limits.rs"]
pub mod limits;
#[path = "../../src/log.rs"]
pub mod log;
#[path = "../../src/net/mod.rs"]
pub mod net;
#[path = "../../src/planted.rs"]
pub mod planted;
#[path = "../../src/slab.rs"]
pub mod slab;
#[path = "../../src/types.rs"]
pub mod types;
#[path = "../../src/view.rs"]
pub mod view;

#[path = "."]
pub mod config {
    #[path = "../../src/config/size.rs"]
    pub mod size;
}

/// What the catalog agrees on, without its storage and its API.
#[path = "."]
pub mod control {
    #[path = "../../src/control/command.rs"]
    pub mod command;
    #[path = "../../src/control/names.rs"]
    pub mod names;
    #[path = "../../src/control/state/mod.rs"]
    pub mod state;
}

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

/// What reads a disk at its start; of the index its records only, not the key-value store.
#[path = "."]
pub mod store {
    #[path = "."]
    pub mod index {
        #[path = "../../src/store/index/error.rs"]
        mod error;
        #[path = "../../src/store/index/format.rs"]
        mod format;
        #[path = "../../src/testing/fuzz/index.rs"]
        pub mod fuzz;

        pub use error::IndexError;
    }
    #[path = "../../src/store/messages.rs"]
    pub mod messages;
    #[path = "../../src/store/superblock.rs"]
    pub mod superblock;
    #[path = "../../src/store/wal/mod.rs"]
    pub mod wal;
}

/// What the fuzzers run.
#[path = "."]
pub mod testing {
    #[path = "../../src/testing/fuzz/mod.rs"]
    pub mod fuzz;
    #[path = "../../src/testing/catalog_fixture.rs"]
    mod catalog_fixture;
    #[path = "../../src/testing/peer_fixture.rs"]
    mod peer_fixture;
    #[path = "../../src/testing/stream_fixture.rs"]
    mod stream_fixture;
}
