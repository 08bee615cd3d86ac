//! A whole cluster from one seed, in virtual time, on one thread: the production worker with its
//! replicas, store, sessions, router and links, over a simulated kernel (disks that crash and
//! tear, a network that delays, stalls and resets) and a simulated index.
//!
//! Invariant: the same seed gives the same run, in every process.

mod client;
pub mod history;
mod kernel;
mod rng;
mod run;
#[cfg(test)]
mod scenarios_test;
mod world;

pub use run::{Options, Outcome, Plan, Violation, run, run_plan};
