//! Front ends: the protocols through which clients use volumes. Each has a `wire` (structures and
//! codec), a `session` (a pure state machine), and one table from [`crate::types::BlockError`] to
//! the protocol's errors.
//!
//! Invariant: a front end does not use `replica`, `store` or `net`. A session neither owns a socket
//! nor reads a clock.

pub mod nbd;
