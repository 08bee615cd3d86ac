//! What a session is told of the world, and what it asks of it.

use bytes::Bytes;

use crate::types::{BlockOp, VolumeId};

/// Names a request of one session until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionHandle(pub u64);

/// A volume as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub volume: VolumeId,
    pub size_bytes: u64,
    pub read_only: bool,
}

/// What can be exported.
pub trait Exports {
    /// Every name.
    fn list(&self) -> Vec<String>;
    /// "" is the only export, when there is exactly one.
    fn open(&self, name: &str) -> Option<Export>;
}

/// What a session asks of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    /// Bytes for the client.
    Send(Bytes),
    /// Execute this on the volume of the session's export.
    Request { handle: SessionHandle, op: BlockOp },
    /// Close the connection when everything before was sent.
    Close { reason: CloseReason },
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the client has disconnected")]
    Disconnected,
    #[error("the client has ended the handshake")]
    Aborted,
    #[error("the client asked for an unknown export")]
    UnknownExport,
    #[error("the client does not speak the protocol")]
    Malformed,
}
