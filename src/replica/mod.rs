//! One member of one shard: a pure Raft state machine around raft-rs. No clock, socket, file,
//! thread, randomness or `async` in here; the worker and the simulator drive the same code
//! through [`seam`].
//!
//! Invariant: knows neither `store` nor `net` nor `io`; what it wants from them leaves as
//! [`seam::Output`] and comes back as [`seam::Input`].

pub mod member;
pub mod seam;
