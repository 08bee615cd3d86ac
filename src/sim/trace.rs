//! What happened in a run: a number that two runs share only if they were the same, and, when it
//! is wanted, a line for everything.

use crate::types::{Mono, mix64};

/// See the module.
#[derive(Default)]
pub struct Trace {
    /// Of everything so far.
    pub hash: u64,
    pub prints: bool,
}

impl Trace {
    /// Something happened. `numbers` say all of it, `text` the same for people.
    pub fn note(&mut self, now: Mono, numbers: &[u64], text: impl FnOnce() -> String) {
        self.hash = mix64(self.hash ^ now.0);
        for number in numbers {
            self.hash = mix64(self.hash ^ *number);
        }
        if self.prints {
            println!("{:12.6} {}", now.0 as f64 / 1e9, text());
        }
    }
}
