//! What commands print. A reader that goes away, as `head -1` does, is no failure: what follows is
//! not wanted. So a command ends quietly then, and `dev` goes on. The macros of the standard
//! library panic instead, so `src/lib.rs` forbids them.

use std::io::{ErrorKind, Write};

/// Why a result was not printed.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The reader of the output is gone.
    #[error("nobody reads the output any more")]
    Closed,
    #[error("could not write the result to standard output")]
    Write(#[source] std::io::Error),
}

/// Prints a result.
pub fn print(text: &str) -> Result<(), OutputError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => OutputError::Closed,
        _ => OutputError::Write(error),
    })
}

/// Prints a line of a result.
pub fn line(text: &str) -> Result<(), OutputError> {
    print(&format!("{text}\n"))
}

/// Tells people something beside the result. They may have closed the output for it.
pub fn note(text: &str) {
    let _unread = writeln!(std::io::stderr().lock(), "{text}");
}
