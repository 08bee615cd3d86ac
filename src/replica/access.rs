//! Who may use a shard: a part of its metadata. Changed by entries only (rule
//! `access-changes-by-entry`), and asked when an entry is applied and when a read is served (rule
//! `session-checked-at-apply`).
//!
//! A holder is an attachment, with the session in which a front end uses it now. An open shard may
//! also be used without an attachment, by several front ends at once. It remembers the sessions of
//! [`FRONT_ENDS_MAX`] of them. When one more comes, the one with the lowest counter is forgotten,
//! and the *floor* is its counter: no forgotten front end is recorded at or below it. So a session
//! that was outdone before never counts again.

use crate::planted::planted;
use crate::types::{
    AccessMode, AccessSet, AttachmentId, BlockError, Generation, Grant, Origin, PodId, Session,
};

/// Front ends of an open shard whose sessions are remembered.
pub const FRONT_ENDS_MAX: usize = 64;

/// Who may use a shard. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub generation: Generation,
    pub open: bool,
    /// In the order of their ids.
    pub(super) holders: Vec<Holder>,
    /// The sessions without an attachment, in the order of their pods.
    pub(super) front_ends: Vec<Session>,
    pub(super) floor: u64,
}

/// An attachment that may use the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub grant: Grant,
    /// Counter 0: no front end has used it here yet.
    pub session: Session,
}

impl Default for Access {
    fn default() -> Access {
        Access::born(&AccessSet::default())
    }
}

impl Access {
    /// The access set of a shard that is made now.
    pub fn born(set: &AccessSet) -> Access {
        let holder = |grant: &Grant| Holder { grant: *grant, session: Session::default() };
        Access {
            generation: set.generation,
            open: set.open,
            holders: set.grants.iter().map(holder).collect(),
            front_ends: Vec::new(),
            floor: 0,
        }
    }

    /// Whether a request takes effect here: its attachment may use the shard, and its session is
    /// exactly the recorded one.
    pub fn judge(&self, origin: Origin, writes: bool) -> Result<(), BlockError> {
        let (recorded, mode) = self.recorded(origin)?;
        let session = origin.session;
        if session != recorded || recorded.counter == 0 {
            let is_higher = recorded.counter == 0 || session.counter > recorded.counter;
            match is_higher {
                true if planted!(HigherSessionCounts) => (),
                true => return Err(BlockError::NotTouched),
                false => return Err(BlockError::StaleSession { recorded }),
            }
        }
        match mode {
            AccessMode::ReadOnly if writes && !planted!(ReadOnlyWrites) => {
                Err(BlockError::ReadOnly)
            }
            _ => Ok(()),
        }
    }

    /// Records a session if it is higher than the one before. One that renews must follow a session
    /// of the same process: its front end may hold requests that are older than what another one
    /// has done since.
    pub fn touch(&mut self, origin: Origin, renews: bool) -> Result<(), BlockError> {
        let (recorded, _) = self.recorded(origin)?;
        let session = origin.session;
        let is_known = recorded.counter > 0;
        if is_known
            && renews
            && !session.is_of_the_process_of(recorded)
            && !planted!(RenewsOverOthers)
        {
            return Err(BlockError::StaleSession { recorded });
        }
        if is_known && session.counter <= recorded.counter {
            return Err(BlockError::StaleSession { recorded });
        }
        let is_open = origin.attachment == AttachmentId::NONE;
        if session.counter == 0 || (is_open && !is_known && session.counter <= self.floor) {
            // Nobody else is known to have followed it. It goes on above the floor.
            let tag = session.counter & Session::TAG_MASK;
            let counter = (self.floor & !Session::TAG_MASK) | tag;
            let recorded = Session { counter, pod: session.pod };
            return Err(BlockError::StaleSession { recorded });
        }
        match is_open {
            true => self.record_front_end(session),
            false => {
                let at = self.place_of(origin.attachment).expect("it was found above");
                self.holders[at].session = session;
            }
        }
        Ok(())
    }

    /// Takes a newer access set. False: it changes nothing, because it is not newer, or because it
    /// names an attachment that this shard had and has no more (rule `fenced-for-ever`).
    pub fn set(&mut self, set: &AccessSet) -> bool {
        let is_known = |grant: &Grant| {
            let is_new = grant.attachment.0 > self.generation.0;
            is_new || self.place_of(grant.attachment).is_ok() || planted!(FencedIdAdmitted)
        };
        let is_newer = set.generation > self.generation && set.is_valid();
        if !is_newer || !set.grants.iter().all(is_known) {
            return false;
        }
        let session_of = |grant: &Grant| {
            let place = self.place_of(grant.attachment);
            place.map_or(Session::default(), |at| self.holders[at].session)
        };
        let holder = |grant: &Grant| Holder { grant: *grant, session: session_of(grant) };
        self.holders = set.grants.iter().map(holder).collect();
        self.generation = set.generation;
        self.open = set.open;
        if !set.open {
            let highest = self.front_ends.iter().map(|session| session.counter).max();
            self.floor = self.floor.max(highest.unwrap_or(0));
            self.front_ends.clear();
        }
        true
    }

    /// What a mistake that tests plant does: a write takes the shard.
    pub(super) fn give_to(&mut self, origin: Origin) -> bool {
        let first = self.holders.first_mut();
        first
            .map(|holder| {
                (holder.grant.attachment, holder.session) = (origin.attachment, origin.session)
            })
            .is_some()
    }

    /// False for what [`Access::set`] and [`Access::touch`] never make.
    pub(super) fn is_valid(&self) -> bool {
        let grants = self.holders.iter().map(|holder| holder.grant).collect();
        let set = AccessSet { generation: self.generation, open: self.open, grants };
        let front_ends = &self.front_ends;
        let in_order = front_ends.is_sorted_by(|one, next| one.pod < next.pod);
        set.is_valid() && in_order && (self.open || front_ends.is_empty())
    }

    /// The session that counts for this origin (counter 0: none), and what its attachment may do.
    fn recorded(&self, origin: Origin) -> Result<(Session, AccessMode), BlockError> {
        if origin.attachment == AttachmentId::NONE {
            if !self.open {
                return Err(BlockError::Fenced);
            }
            let pod = origin.session.pod;
            let place = self.place_of_pod(pod);
            let recorded = place.map_or(Session { counter: 0, pod }, |at| self.front_ends[at]);
            return Ok((recorded, AccessMode::ReadWrite));
        }
        match self.place_of(origin.attachment) {
            Ok(at) => Ok((self.holders[at].session, self.holders[at].grant.mode)),
            Err(_) if origin.attachment.0 > self.generation.0 => Err(BlockError::NotYet),
            Err(_) => Err(BlockError::Fenced),
        }
    }

    fn place_of(&self, attachment: AttachmentId) -> Result<usize, usize> {
        self.holders.binary_search_by_key(&attachment, |holder| holder.grant.attachment)
    }

    fn place_of_pod(&self, pod: PodId) -> Result<usize, usize> {
        self.front_ends.binary_search_by_key(&pod, |session| session.pod)
    }

    fn record_front_end(&mut self, session: Session) {
        match self.place_of_pod(session.pod) {
            Ok(at) => self.front_ends[at] = session,
            Err(_) => {
                if self.front_ends.len() >= FRONT_ENDS_MAX {
                    let all = self.front_ends.iter().enumerate();
                    let lowest = all.min_by_key(|(_, session)| **session).expect("it is full").0;
                    self.floor = self.floor.max(self.front_ends.remove(lowest).counter);
                }
                let at = self.place_of_pod(session.pod).expect_err("it is not there");
                self.front_ends.insert(at, session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::{Mistake, assert_found};

    fn origin(attachment: u64, counter: u64, pod: u64) -> Origin {
        let session = Session { counter: counter << 24, pod: PodId(pod) };
        Origin { attachment: AttachmentId(attachment), session }
    }

    fn set(generation: u64, open: bool, attachments: &[u64], mode: AccessMode) -> AccessSet {
        let grant = |id: &u64| Grant { attachment: AttachmentId(*id), mode };
        let grants = attachments.iter().map(grant).collect();
        AccessSet { generation: Generation(generation), open, grants }
    }

    fn closed(generation: u64, attachments: &[u64]) -> AccessSet {
        set(generation, false, attachments, AccessMode::ReadWrite)
    }

    fn stale(counter: u64, pod: u64) -> Result<(), BlockError> {
        Err(BlockError::StaleSession { recorded: origin(0, counter, pod).session })
    }

    #[test]
    fn only_the_recorded_session_of_a_holder_counts() {
        let mut access = Access::born(&closed(2, &[1]));
        assert_eq!(access.judge(origin(1, 0, 0), true), Err(BlockError::NotTouched));
        assert_eq!(access.judge(origin(1, 1, 7), true), Err(BlockError::NotTouched));
        assert_eq!(access.touch(origin(1, 4, 7), false), Ok(()));
        assert_eq!(access.judge(origin(1, 4, 7), true), Ok(()));
        assert_eq!(access.judge(origin(1, 4, 8), true), stale(4, 7), "another pod's");
        assert_eq!(access.judge(origin(1, 3, 7), false), stale(4, 7), "reads, too");
        assert_eq!(access.judge(origin(1, 5, 7), true), Err(BlockError::NotTouched));
        assert_eq!(access.touch(origin(1, 4, 8), false), stale(4, 7));
        assert_eq!(access.touch(origin(1, 5, 8), false), Ok(()), "it has moved to pod 8");
        assert_eq!(access.touch(origin(1, 6, 7), true), stale(5, 8), "pod 7 was outdone");
        assert_eq!(access.touch(origin(1, 6, 8), true), Ok(()));
    }

    /// A pod's directory and disks run elsewhere, too: two processes with one identity.
    #[test]
    fn another_process_of_the_same_pod_is_another_front_end() {
        for attachment in [0, 1] {
            let mut access = Access::born(&set(2, true, &[1], AccessMode::ReadWrite));
            let of = |counter: u64, tag: u64| {
                let mut origin = origin(attachment, counter, 7);
                origin.session.counter |= tag;
                origin
            };
            assert_eq!(access.touch(of(1, 5), false), Ok(()));
            assert_eq!(access.touch(of(2, 6), false), Ok(()));
            let recorded = of(2, 6).session;
            let outdone = Err(BlockError::StaleSession { recorded });
            assert_eq!(access.touch(of(3, 5), true), outdone);
            assert_eq!(access.touch(of(3, 6), true), Ok(()));
        }
    }

    #[test]
    fn a_fenced_attachment_never_comes_back() {
        let mut access = Access::born(&closed(1, &[]));
        assert_eq!(access.judge(origin(2, 1, 7), false), Err(BlockError::NotYet));
        assert_eq!(access.judge(origin(0, 1, 7), false), Err(BlockError::Fenced), "it is closed");
        assert!(access.set(&closed(4, &[2, 3])));
        assert_eq!(access.touch(origin(2, 1, 7), false), Ok(()));
        assert!(!access.set(&closed(4, &[])), "repeated, or older");
        assert!(access.set(&closed(6, &[2, 5])), "3 is fenced");
        assert_eq!(access.judge(origin(2, 1, 7), true), Ok(()), "who stays keeps its session");
        for fenced in [1, 3, 4, 6] {
            assert_eq!(access.judge(origin(fenced, 1, 7), true), Err(BlockError::Fenced));
            assert_eq!(access.touch(origin(fenced, 9, 7), false), Err(BlockError::Fenced));
        }
        let before = access.clone();
        assert!(!access.set(&closed(9, &[2, 3])), "whatever a restored catalog believes");
        assert!(!access.set(&closed(9, &[2, 10])), "an id above the generation");
        assert_eq!(access, before, "nothing of it was taken");
        assert!(access.set(&closed(9, &[5, 8])) && access.generation == Generation(9));
    }

    #[test]
    fn read_only_attachments_write_nothing() {
        let mut access = Access::born(&set(3, false, &[1, 2], AccessMode::ReadOnly));
        assert_eq!(access.touch(origin(2, 1, 7), false), Ok(()));
        assert_eq!(access.judge(origin(2, 1, 7), false), Ok(()));
        assert_eq!(access.judge(origin(2, 1, 7), true), Err(BlockError::ReadOnly));
    }

    #[test]
    fn a_forgotten_front_end_is_never_taken_under_an_old_session() {
        let mut access = Access::default();
        for pod in 1..=FRONT_ENDS_MAX as u64 {
            assert_eq!(access.touch(origin(0, 5, pod), false), Ok(()));
        }
        assert_eq!(access.touch(origin(0, 6, 1), true), Ok(()));
        assert_eq!(access.touch(origin(0, 1, 99), false), Ok(()), "pod 2 is forgotten");
        assert_eq!(access.judge(origin(0, 5, 2), true), Err(BlockError::NotTouched));
        assert_eq!(access.touch(origin(0, 5, 2), true), stale(5, 2), "at the floor");
        assert_eq!(access.touch(origin(0, 6, 2), true), Ok(()), "pod 99 is forgotten");
        assert_eq!(access.touch(origin(0, 1, 99), false), stale(5, 99));
        assert_eq!(access.front_ends.len(), FRONT_ENDS_MAX);
    }

    #[test]
    fn a_volume_that_was_closed_takes_no_session_from_before() {
        let mut access = Access::default();
        assert_eq!(access.touch(origin(0, 5, 7), false), Ok(()));
        assert!(access.set(&closed(1, &[])) && access.set(&set(2, true, &[], AccessMode::Raw)));
        assert_eq!(access.judge(origin(0, 5, 7), true), Err(BlockError::NotTouched));
        assert_eq!(access.touch(origin(0, 5, 7), false), stale(5, 7));
        assert_eq!(access.touch(origin(0, 6, 7), false), Ok(()));
    }

    #[test]
    fn broken_rules_are_noticed() {
        assert_found(Mistake::FencedIdAdmitted, a_fenced_attachment_never_comes_back);
        assert_found(Mistake::ReadOnlyWrites, read_only_attachments_write_nothing);
        assert_found(Mistake::HigherSessionCounts, only_the_recorded_session_of_a_holder_counts);
        assert_found(
            Mistake::RenewsOverOthers,
            another_process_of_the_same_pod_is_another_front_end,
        );
    }
}
