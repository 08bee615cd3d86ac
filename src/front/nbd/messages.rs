//! The messages between a session and its caller.

use bytes::Bytes;

use crate::types::{AttachmentId, BlockOp, VolumeId};

/// Identifies a request of one session until its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionHandle(pub u64);

/// A volume as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub volume: VolumeId,
    /// The attachment under which the client uses it.
    pub attachment: AttachmentId,
    pub size_bytes: u64,
    pub read_only: bool,
}

/// A client's number for one of its connections to an export. Other clients have others. It is
/// added to the export's name: `NAME?line=NUMBER`. A new connection takes the place of the old one
/// of its line (rule `a-line-has-one-connection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineNumber(pub u64);

impl LineNumber {
    const MARK: &str = "?line=";

    /// Takes the number off the name of an export, if it has one.
    pub fn split(name: &str) -> (&str, Option<LineNumber>) {
        let split = name.rsplit_once(LineNumber::MARK);
        let split = split.and_then(|(name, number)| Some((name, LineNumber(number.parse().ok()?))));
        split.map_or((name, None), |(name, line)| (name, Some(line)))
    }

    /// The name for a connection of this line.
    pub fn of(self, name: &str) -> String {
        format!("{name}{}{}", LineNumber::MARK, self.0)
    }
}

/// The volumes that can be exported.
pub trait Exports {
    /// All names that anybody may know.
    fn list(&self) -> Vec<String>;
    /// Opens the export of this name. "" means the only one that there is, if there is exactly one.
    fn open(&self, name: &str) -> Opened;
    /// The name of the export that "" means.
    fn only(&self) -> Option<String> {
        None
    }
}

/// What became of the wish for an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    Export(Export),
    /// There is no such export.
    Unknown,
    /// Nobody can say at present whether there is one.
    OutOfReach,
    /// Somebody is asked. Then the same name is opened again.
    Later,
}

/// What a listener says of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// There is none: a unix socket, or a pod without a certificate.
    #[default]
    None,
    /// A client may ask for it.
    Offered,
    /// Before it, nothing else is answered.
    Required,
}

/// What a session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    /// Send these bytes to the client.
    Send(Bytes),
    /// Everything before is sent as it is, and what comes next, both ways, is under TLS. Only when
    /// nothing has come behind the option that asked for it.
    StartTls,
    /// Execute this on the volume of the session's export.
    Request { handle: SessionHandle, op: BlockOp },
    /// Close the connection after everything before is sent.
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
    #[error("the catalog could not be asked for the export")]
    OutOfReach,
    /// Another front end used the volume since. The client may have newer writes there.
    #[error("this front end was outdone")]
    Outdone,
    /// The client gave this line up without this pod's knowledge.
    #[error("the client has opened its line anew")]
    Replaced,
    #[error("the client does not speak the protocol")]
    Malformed,
    #[error("the client asked for an export before TLS, which is required here")]
    NeedsTls,
}
