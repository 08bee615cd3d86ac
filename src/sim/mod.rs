//! Simulates a whole cluster from one seed, in virtual time, on one thread. The production worker
//! runs with its replicas, store, sessions, router and links. The kernel below it is simulated:
//! disks that crash, tear, rot and fail; a network that delays, stalls and resets; clocks that
//! drift. The index is simulated, too.
//!
//! Invariant: the same seed gives the same run, in every process.
//!
//! Imports point one way. A file may import the files before it in this list: `names`, `rng` and
//! `trace` (shared by all); `disk` and `kernel` (below the pods, observed); `checks` (observers);
//! `shape`, `faults` and `heavy` (drawn from the seed); `client`, `handover`, `catalog`, `lane`,
//! `watch` and `said` (parts of a cluster); `world` (the cluster); `control` (between pods and
//! their control planes); `orchestra` (acts on a cluster); `replicas` (checks at its end); `run`;
//! `shrink`.

mod catalog;
mod checks;
mod client;
mod control;
mod disk;
mod faults;
mod handover;
mod heavy;
#[cfg(test)]
mod heavy_test;
mod kernel;
mod lane;
mod names;
mod orchestra;
#[cfg(test)]
mod planted_test;
mod replicas;
pub mod rng;
mod run;
mod said;
#[cfg(test)]
mod scenarios_test;
mod shape;
mod shrink;
mod trace;
mod watch;
mod world;

pub use checks::{Seen, history};
pub use faults::{Plan, Planned};
pub use run::{Options, Outcome, Violation, run};
pub use shrink::shrink;
