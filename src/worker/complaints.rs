//! Log lines about peers, not more than one in a second: a peer that breaks the protocol may do it
//! with every attempt. A part of the peers.

use std::time::Duration;

use crate::types::{Mono, PodId};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// When the last line was written, and how many were left out since.
#[derive(Debug, Default)]
pub struct Complaints {
    last: Option<Mono>,
    left_out: u64,
}

impl Complaints {
    /// Logs why a link is closed, with its causes. `pod`: the other end, once it is known.
    pub fn warn(&mut self, now: Mono, pod: Option<PodId>, error: &dyn std::error::Error) {
        if !self.is_due(now) {
            return;
        }
        let left_out = std::mem::take(&mut self.left_out);
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            cause = error.source();
        }
        let pod = pod.map_or_else(|| "unknown".to_owned(), |pod| pod.to_string());
        tracing::warn!(pod, reason, left_out, "a link to another pod is closed");
    }

    /// True when a line may be written now; otherwise counts one that was left out.
    fn is_due(&mut self, now: Mono) -> bool {
        if self.last.is_some_and(|last| now.since(last) < PAUSE) {
            self.left_out += 1;
            return false;
        }
        self.last = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_rare_and_those_left_out_are_counted() {
        let mut complaints = Complaints::default();
        let due = [0, 1, 999, 1000, 1001].map(|ms| {
            let due = complaints.is_due(Mono(1) + Duration::from_millis(ms));
            if due { std::mem::take(&mut complaints.left_out) } else { u64::MAX }
        });
        assert_eq!(due, [0, u64::MAX, u64::MAX, 2, u64::MAX]);
    }
}
