//! A whole cluster from one seed, in virtual time, on one thread: the production worker with its
//! replicas, store, sessions, router and links, over a simulated kernel (disks that crash, tear,
//! rot and fail, a network that delays, stalls and resets, clocks that drift) and a simulated
//! index.
//!
//! Invariant: the same seed gives the same run, in every process.

mod catalog;
mod checks;
mod client;
mod converge;
mod disk;
mod faults;
pub mod history;
mod kernel;
#[cfg(test)]
mod planted_test;
mod rng;
mod run;
#[cfg(test)]
mod scenarios_test;
mod shrink;
mod trace;
mod world;

pub use faults::{Plan, Planned};
pub use run::{Options, Outcome, Violation, run};
pub use shrink::shrink;
