//! The one table from [`BlockError`] to NBD's errors ("Error values").

use crate::types::BlockError;

/// An error value of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    Shutdown = 108,
}

/// The client's error number. `writes`: the request would have changed bytes.
pub fn errno(error: &BlockError, writes: bool) -> Errno {
    match error {
        // The router retries these errors, or ends the connection without an answer. One that
        // arrives here is a plain failure.
        BlockError::NotLeader { .. }
        | BlockError::Busy
        | BlockError::Unknown
        | BlockError::StaleSession { .. }
        | BlockError::NotTouched
        | BlockError::NotYet => Errno::Io,
        // For ever: whatever the client does, it does not use this volume again.
        BlockError::Fenced | BlockError::ReadOnly => Errno::Perm,
        BlockError::OutOfRange if writes => Errno::NoSpc,
        BlockError::OutOfRange | BlockError::Invalid => Errno::Inval,
        BlockError::NoSpace => Errno::NoSpc,
        BlockError::MediaFault | BlockError::TimedOut => Errno::Io,
        BlockError::NoSuchVolume => Errno::Shutdown,
    }
}
