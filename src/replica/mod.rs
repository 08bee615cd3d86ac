//! One member of one shard: a pure Raft state machine around raft-rs. No clock, socket, file,
//! thread, randomness or `async` in here; the worker and the simulator drive the same code
//! through [`seam`].
//!
//! Invariant: knows neither `store` nor `net`, and `io` only for aligned memory; what it wants
//! from them leaves as [`seam::Output`] and comes back as [`seam::Input`].

pub mod apply;
pub mod command;
mod log_tail;
pub mod member;
#[cfg(test)]
mod member_test;
pub mod message;
pub mod meta;
mod persist;
mod raft_adapter;
mod read;
mod resync;
#[cfg(test)]
mod rules_test;
mod running;
pub mod seam;
mod votes;
mod write;
