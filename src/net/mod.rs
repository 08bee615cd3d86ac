//! Peer links: versioned handshake, frames with checksums, bounded queues. Pure: bytes in, bytes
//! out; the worker owns the sockets.
//!
//! Invariant: knows neither `replica` nor `store`; a Raft message is opaque bytes here.

pub mod message;
