//! The source of session numbers (rule `sessions-only-grow`).
//!
//! A session is the number of a start of the pod, its *incarnation*, and a counter. A directory
//! that was restored from an older copy makes a pod count its starts from an old number. A shard
//! then refuses its sessions, and names the one that it has recorded. The source goes on in an
//! incarnation above that: earlier processes of this pod may have used any session of the recorded
//! one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::planted::planted;

fn incarnation_of(session: u64) -> u32 {
    (session >> 32) as u32
}

/// Stores an incarnation, so that later starts get higher ones. Must not block; it may fail, and is
/// asked again.
pub type Recorder = Arc<dyn Fn(u32) + Send + Sync>;

/// Numbers the sessions of one front end (a pod). They only grow, across restarts, too, if every
/// start has a higher incarnation. Clones share the counter.
#[derive(Clone)]
pub struct SessionSource {
    last: Arc<AtomicU64>,
    recorder: Option<Recorder>,
}

impl fmt::Debug for SessionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionSource({})", self.last())
    }
}

impl SessionSource {
    /// `incarnation` must grow with every start of the pod, and is never 0.
    pub fn new(incarnation: u32) -> SessionSource {
        let first = u64::from(incarnation) << 32;
        SessionSource { last: Arc::new(AtomicU64::new(first)), recorder: None }
    }

    /// A higher incarnation must be stored before it is used. [`SessionSource::raise`] says that it
    /// is. Without a recorder it is used at once.
    pub fn with_recorder(mut self, recorder: Recorder) -> SessionSource {
        self.recorder = Some(recorder);
        self
    }

    /// A session higher than all before.
    pub fn next(&self) -> u64 {
        let session = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(session as u32 != 0, "2^32 sessions of one incarnation were used up");
        session
    }

    /// The newest session.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// The incarnation of new sessions.
    pub fn incarnation(&self) -> u32 {
        incarnation_of(self.last())
    }

    /// A session above one that a shard has recorded. `None`: a higher incarnation must be stored
    /// first, so ask again later.
    pub fn above(&self, recorded: u64) -> Option<u64> {
        if recorded <= self.last() {
            return Some(self.next());
        }
        // Without a number left, the shard stays out of reach.
        let incarnation = incarnation_of(recorded).checked_add(1)?;
        if let Some(recorder) = &self.recorder {
            recorder(incarnation);
            return None;
        }
        self.raise(incarnation);
        Some(self.next())
    }

    /// All further sessions are of this incarnation, or a higher one. It is stored durably.
    pub fn raise(&self, incarnation: u32) {
        self.last.fetch_max(u64::from(incarnation) << 32, Ordering::Relaxed);
    }
}

/// The session of a volume's requests.
#[derive(Debug)]
pub(super) struct VolumeSession {
    source: SessionSource,
    number: u64,
    /// Incarnations of all numbers so far: this process has them for itself.
    incarnations: Vec<u32>,
    /// A shard has recorded this session, and we have none above it yet. No write is sent.
    outdone_by: Option<u64>,
}

impl VolumeSession {
    pub fn new(source: SessionSource) -> VolumeSession {
        let number = source.next();
        let incarnations = vec![incarnation_of(number)];
        VolumeSession { number, source, incarnations, outdone_by: None }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// True while every write would be refused.
    pub fn is_outdone(&self) -> bool {
        self.outdone_by.is_some()
    }

    /// A write under session `used` may still arrive: takes a higher one, unless that has happened.
    pub fn lost(&mut self, used: u64) {
        if used == self.number {
            let next = self.source.next();
            self.use_number(next);
        }
    }

    /// A shard refused session `used`, because it has recorded a higher one. True: that is not one
    /// of this process.
    pub fn refused(&mut self, used: u64, recorded: u64) -> bool {
        if recorded < self.number {
            self.lost(used);
        } else {
            self.outdone_by = self.outdone_by.max(Some(recorded));
            self.catch_up();
        }
        !self.incarnations.contains(&incarnation_of(recorded))
    }

    /// Takes a session above the recorded one, if there is one by now.
    pub fn catch_up(&mut self) {
        let Some(recorded) = self.outdone_by else { return };
        let above = match planted!(RefusedSessionCountsOn) {
            true => Some(self.source.next()),
            false => self.source.above(recorded),
        };
        if let Some(number) = above {
            self.outdone_by = None;
            self.use_number(number);
        }
    }

    fn use_number(&mut self, number: u64) {
        self.number = number;
        let incarnation = incarnation_of(number);
        if self.incarnations.last() != Some(&incarnation) {
            self.incarnations.push(incarnation);
        }
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

    #[test]
    fn a_higher_incarnation_is_stored_before_it_is_used() {
        let stored = Arc::new(AtomicU64::new(0));
        let recorder = Arc::clone(&stored);
        let store = move |incarnation| recorder.store(u64::from(incarnation), Ordering::Relaxed);
        let source = SessionSource::new(2).with_recorder(Arc::new(store));
        let own = source.next();
        assert_eq!(source.above(own), Some(own + 1), "a newer one of its own is enough");
        let recorded = (7 << 32) + 5;
        assert_eq!(source.above(recorded), None);
        assert_eq!(stored.load(Ordering::Relaxed), 8);
        source.raise(8);
        assert_eq!(source.above(recorded), Some((8 << 32) + 1));
        source.raise(3);
        assert_eq!(source.next(), (8 << 32) + 2, "it never goes back");
        assert_eq!(source.above(u64::MAX), None, "nothing is higher");
    }
}
