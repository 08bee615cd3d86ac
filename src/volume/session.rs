//! The source of session numbers (rule `sessions-only-grow`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the sessions of one front end (a pod). They only grow, across restarts, too, if every
/// start has a higher incarnation. Clones share the counter.
#[derive(Clone, Debug)]
pub struct SessionSource {
    last: Arc<AtomicU64>,
}

impl SessionSource {
    /// `incarnation` must grow with every start of the pod, and is never 0.
    pub fn new(incarnation: u32) -> SessionSource {
        let first = u64::from(incarnation) << 32;
        SessionSource { last: Arc::new(AtomicU64::new(first)) }
    }

    /// A session higher than all before.
    pub fn next(&self) -> u64 {
        let session = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(session as u32 != 0, "2^32 sessions of one incarnation were used up");
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards refuse a request from before a restart after they got a newer one.
    #[test]
    fn sessions_only_grow_over_restarts_too() {
        let mut last = 0;
        for incarnation in [1, 2, 3, 9] {
            let source = SessionSource::new(incarnation);
            for volume in 0..3 {
                let session = source.clone().next();
                assert!(session > last, "volume {volume} of start {incarnation}");
                last = session;
            }
        }
    }
}
