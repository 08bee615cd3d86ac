//! Front ends: the protocols by which clients reach volumes. Each is a `wire` (structures and
//! codec), a `session` (a pure state machine) and one table from [`crate::types::BlockError`] to
//! the protocol's own errors.
//!
//! Invariant: nothing in here knows `replica`, `store` or `net`; a session neither owns a socket
//! nor reads a clock.

pub mod nbd;
