//! Holdfast: replicated block storage. The module map, top down; imports point down only
//! (`tests/tidy.rs` holds this, `ARCHITECTURE.md` explains it).

// These macros panic when nobody reads the output any more: see `cli::output`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod attach;
pub mod cli;
pub mod config;
pub mod control;
pub mod csi;
pub mod doctor;
pub mod fields;
pub mod front;
pub mod io;
pub mod kubernetes;
pub mod level;
pub mod limits;
pub mod log;
pub mod net;
pub mod planted;
pub mod replica;
pub mod security;
pub mod sim;
pub mod slab;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod types;
pub mod view;
pub mod volume;
pub mod worker;
