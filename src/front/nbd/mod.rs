//! NBD (Network Block Device), server side. See [`session`] for how it is driven.
//!
//! Source: the NBD protocol specification, `doc/proto.md` of the reference implementation; its
//! sections are cited by their headings.

pub mod error;
mod option;
mod request;
pub mod session;
pub mod wire;

pub use session::{CloseReason, Export, Exports, Session, SessionHandle, SessionOutput};

#[cfg(test)]
mod handshake_test;
#[cfg(test)]
mod session_test;
