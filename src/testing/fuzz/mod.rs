//! One run of a fuzzer over each reader of bytes from outside. The tests of the corpora and of
//! mutations call them, and the fuzzers in `fuzz/`, which compile this folder by its path.

pub mod catalog;
pub mod disk;
// The fuzzers are built without the Raft library.
#[cfg(test)]
pub mod entry;
pub mod nbd;
pub mod peer;

pub use crate::store::index::fuzz as index;

/// Good inputs by name, for a fuzzer to start from.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;
