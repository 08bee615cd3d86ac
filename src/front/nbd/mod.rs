//! NBD (Network Block Device), server side. [`session`] explains how to drive it.
//!
//! Source: the NBD protocol specification, `doc/proto.md` of the reference implementation. Comments
//! cite its sections by their headings.

pub mod error;
mod messages;
mod option;
mod request;
pub mod session;
pub mod wire;

pub use messages::{
    CloseReason, Encryption, Export, Exports, LineNumber, Opened, SessionHandle, SessionOutput,
};
pub use session::Session;

#[cfg(test)]
mod handshake_test;
#[cfg(test)]
mod session_test;
