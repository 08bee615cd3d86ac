//! Log lines about peers, and only a few in a second: a peer that breaks the protocol may do it
//! with every attempt. A part of the peers.

use std::time::Duration;

use crate::types::{Mono, PodId};

/// Between two lines with the same text.
const PAUSE: Duration = Duration::from_secs(1);
/// Lines within a [`PAUSE`]: a peer could make up many texts.
const LINES_MAX: usize = 8;

/// The lines of the last [`PAUSE`], and how many were left out since the last one. Two reasons that
/// always come together are both told.
#[derive(Debug, Default)]
pub struct Complaints {
    recent: Vec<Line>,
    left_out: u64,
}

#[derive(Debug)]
struct Line {
    pod: Option<PodId>,
    reason: String,
    at: Mono,
}

impl Complaints {
    /// Logs why a link is closed, with its causes. `pod`: the other end, once it is known.
    pub fn warn(&mut self, now: Mono, pod: Option<PodId>, error: &dyn std::error::Error) {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            cause = error.source();
        }
        let Some(left_out) = self.admit(now, pod, &reason) else { return };
        let pod = pod.map_or_else(|| "unknown".to_owned(), |pod| pod.to_string());
        tracing::warn!(pod, reason, left_out, "a link to another pod is closed");
    }

    /// Returns how many lines were left out before this one; `None`: this one is left out.
    fn admit(&mut self, now: Mono, pod: Option<PodId>, reason: &str) -> Option<u64> {
        self.recent.retain(|line| now.since(line.at) < PAUSE);
        let is_known = self.recent.iter().any(|line| line.pod == pod && line.reason == reason);
        if is_known || self.recent.len() == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.recent.push(Line { pod, reason: reason.to_owned(), at: now });
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_rare_and_each_reason_has_its_own() {
        let mut complaints = Complaints::default();
        let mut admit = |ms: u64, reason: &str| {
            complaints.admit(Mono(1) + Duration::from_millis(ms), Some(PodId(1)), reason)
        };
        assert_eq!([admit(0, "cut"), admit(0, "void")], [Some(0); 2], "two that come together");
        assert_eq!([admit(1, "cut"), admit(999, "void")], [None; 2]);
        assert_eq!([admit(1000, "void"), admit(1001, "cut")], [Some(2), Some(0)]);
        let many = (0..20).filter_map(|number| admit(1500, &format!("made up {number}")));
        assert_eq!(many.count(), LINES_MAX - 2);
        assert_eq!(admit(2500, "made up 0"), Some(14));
    }
}
