//! The session of a front end in one shard (rules `touch-before-anything`, `sessions-only-grow`).
//!
//! Before its first request to a shard, and before it sends again what may have taken place, a
//! front end has a *touch* committed there. It records a session above all that the front end has
//! seen there. A refusal names the recorded one, so a front end needs no memory over its restarts.

use crate::planted::planted;
use crate::types::{PodId, Session};

/// Shift of the part of a counter that counts; below it is the tag of the process.
const COUNT_SHIFT: u32 = Session::TAG_MASK.count_ones();

/// A process as a front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontEnd {
    pub pod: PodId,
    tag: u64,
}

impl FrontEnd {
    /// `random` is drawn by every start of the pod: it tells two processes of one pod apart.
    pub fn new(pod: PodId, random: u64) -> FrontEnd {
        FrontEnd { pod, tag: random & Session::TAG_MASK }
    }

    /// The lowest session of this process above a counter.
    pub fn above(self, counter: u64) -> Session {
        // At a million a second, counts last for weeks of every shard; peers are checked.
        let count = (counter >> COUNT_SHIFT) + 1;
        Session { counter: (count << COUNT_SHIFT) | self.tag, pod: self.pod }
    }

    /// True when a session is of this process.
    pub fn is_of(self, session: Session) -> bool {
        session.is_of_the_process_of(Session { counter: self.tag, pod: self.pod })
    }
}

/// What a front end knows of the sessions in one shard.
#[derive(Debug, Default)]
pub(super) struct ShardSession {
    /// Recorded, as far as is known. `None`: it must be touched before anything else.
    current: Option<Session>,
    /// The highest counter seen.
    highest: u64,
    /// The touch in flight.
    pub touch: Option<u64>,
    /// Clients have seen what this process did here, over connections that are still there. So what
    /// they send next must not come after what another front end has done (rule
    /// `outdone-hangs-up`).
    pub is_relied_on: bool,
}

impl ShardSession {
    pub fn current(&self) -> Option<Session> {
        self.current
    }

    /// The session to record, above all that were seen.
    pub fn next(&mut self, front_end: FrontEnd) -> Session {
        let next = front_end.above(self.highest);
        self.highest = next.counter;
        next
    }

    /// The touch has ended: the shard has recorded this session. `is_used`: by clients.
    pub fn recorded(&mut self, session: Session, is_used: bool) {
        self.touch = None;
        self.current = Some(session);
        self.is_relied_on |= is_used;
    }

    /// A change under this session may still take place, or the shard does not know it.
    pub fn lost(&mut self, used: Session) {
        if self.current == Some(used) {
            self.current = None;
        }
    }

    /// Nothing more is asked for in the present session.
    pub fn close(&mut self) {
        self.current = None;
    }

    /// A shard refused session `used`, because it has recorded a higher one. True: another front
    /// end's, or another process's of this pod.
    pub fn refused(&mut self, front_end: FrontEnd, used: Session, recorded: Session) -> bool {
        self.lost(used);
        if self.current.is_some_and(|current| current.counter < recorded.counter) {
            self.current = None;
        }
        if !planted!(RefusedSessionCountsOn) {
            self.highest = self.highest.max(recorded.counter);
        }
        !front_end.is_of(recorded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_grow_above_all_that_were_seen() {
        let (ours, others) = (FrontEnd::new(PodId(1), 5), FrontEnd::new(PodId(1), 6));
        let mut session = ShardSession::default();
        let first = session.next(ours);
        let second = session.next(ours);
        assert!(first < second && ours.is_of(second) && !others.is_of(second));
        session.recorded(second, true);
        let recorded = others.above(7 << COUNT_SHIFT);
        assert!(session.refused(ours, second, recorded), "another process of this pod");
        assert_eq!(session.current(), None);
        let third = session.next(ours);
        assert!(third > recorded);
        session.recorded(third, true);
        assert!(!session.refused(ours, second, third), "it was our own");
        assert_eq!(session.current(), Some(third), "the answer came late");
        session.lost(second);
        assert_eq!(session.current(), Some(third));
    }
}
