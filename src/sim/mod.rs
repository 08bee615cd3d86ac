//! A whole cluster from one seed, in virtual time, on one thread: the production worker with its
//! replicas, store, sessions, router and links, over a simulated kernel (disks that crash, tear,
//! rot and fail, a network that delays, stalls and resets, clocks that drift) and a simulated
//! index.
//!
//! Invariant: the same seed gives the same run, in every process.

mod catalog;
mod checks;
mod client;
mod disk;
mod faults;
mod kernel;
#[cfg(test)]
mod planted_test;
pub mod rng;
mod run;
#[cfg(test)]
mod scenarios_test;
mod shape;
mod shrink;
mod trace;
mod world;

pub use checks::{Seen, history};
pub use faults::{Plan, Planned};
pub use run::{Options, Outcome, Violation, run};
pub use shrink::shrink;
