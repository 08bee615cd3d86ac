//! The trace of a run: a hash of all events, which only equal runs share, and on demand a line for
//! every event.

use std::io::Write;

use crate::types::{Mono, mix64};

/// See the module.
#[derive(Default)]
pub struct Trace {
    /// Hash of all events so far.
    pub hash: u64,
    pub prints: bool,
}

impl Trace {
    /// Adds an event. `numbers` identify it, `text` describes it.
    pub fn note(&mut self, now: Mono, numbers: &[u64], text: impl FnOnce() -> String) {
        self.hash = mix64(self.hash ^ now.0);
        for number in numbers {
            self.hash = mix64(self.hash ^ *number);
        }
        if self.prints {
            let mut out = std::io::stdout().lock();
            // The command notices a closed output when it prints the outcome.
            let _unread = writeln!(out, "{:12.6} {}", now.0 as f64 / 1e9, text());
        }
    }
}
