//! Peer links: versioned handshake, frames with checksums, bounded queues. Pure: bytes in, bytes
//! out. The worker owns the sockets.
//!
//! Invariant: depends neither on `replica` nor on `store`. A Raft message is opaque bytes here.

pub mod backoff;
pub mod codec;
pub mod frame;
pub mod handshake;
pub mod incarnations;
pub mod link;
pub mod message;
mod operation;
mod output;
