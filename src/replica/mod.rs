//! One member of one shard: a pure Raft state machine around raft-rs. It has no clock, socket,
//! file, thread, randomness or `async`. The worker and the simulator drive the same code through
//! [`messages`].
//!
//! Invariant: depends neither on `store` nor on `net`, and on `io` only for aligned memory.
//! Requests to them leave as [`messages::Output`]; answers arrive as [`messages::Input`].

pub mod access;
#[cfg(test)]
mod access_test;
pub mod apply;
pub mod command;
mod contradiction;
pub mod entry;
mod feed;
#[cfg(test)]
mod feed_test;
mod keep;
mod log_tail;
pub mod member;
#[cfg(test)]
mod member_test;
pub mod messages;
pub mod meta;
mod persist;
mod raft_adapter;
pub mod raft_message;
mod read;
mod rest;
#[cfg(test)]
mod rest_test;
mod resync;
#[cfg(test)]
mod rules_test;
mod running;
pub mod terms;
mod votes;
mod write;
mod zeroes;
