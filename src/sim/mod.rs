//! A whole cluster from one seed, in virtual time, on one thread: the production worker with its
//! replicas, store, sessions, router and links, over a simulated kernel (disks that crash, tear,
//! rot and fail, a network that delays, stalls and resets, clocks that drift) and a simulated
//! index.
//!
//! Invariant: the same seed gives the same run, in every process.
//!
//! Imports point one way. A file may import those that stand before it here: `names`, `rng` and
//! `trace` (what all share); `disk` and `kernel` (what is below the pods, and is observed);
//! `checks` (the judge, which observes); `shape` and `faults` (what a seed draws); `client`,
//! `catalog` and `lane` (what a cluster is made of); `world` (all of it); `replicas` (what must be
//! true at its end); `run`; `shrink`.

mod catalog;
mod checks;
mod client;
mod disk;
mod faults;
mod kernel;
mod lane;
mod names;
#[cfg(test)]
mod planted_test;
mod replicas;
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
