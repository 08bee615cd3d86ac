//! Shard metadata: the state of a member besides its blocks. The store, checkpoints and manifests
//! carry it as opaque bytes (rule `meta-with-blocks`).
//!
//! Layout, little endian, version 1:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version (1) |
//! | 1 | 1 | 1 when a joint configuration is left by itself |
//! | 2 | 2 | zero |
//! | 4 | 4 | length of the shard in blocks |
//! | 8 | 8 | attachment epoch |
//! | 16 | 8 | four u16 counts: voters, outgoing voters, learners, next learners |
//! | 24 | 4 | number of front ends |
//! | 28 | 4 | zero |
//! | 32 | 8 each | the members, in the order of the counts |
//! | ... | 16 each | front end and its highest session, ordered by front end |

use bytes::{BufMut, Bytes};
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use raft::{Changer, ProgressTracker};

use crate::fields::{FieldError, Fields, PutFields};
use crate::types::{MemberId, PodId};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 32;
/// Front ends whose sessions are remembered. Requests of any further front end are refused.
pub const FRONT_ENDS_MAX: usize = 4096;
/// Largest number of members of each kind in one configuration. The encoder relies on it. It is
/// checked where a configuration comes in: in [`changed_conf`], in [`Meta::decode`], and when a pod
/// makes a member.
pub const MEMBERS_MAX: usize = 64;

/// The metadata of a shard as of some applied index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Length of the shard in blocks. Entries beyond it are never applied.
    pub blocks: u32,
    /// Entries with a lower epoch are refused.
    pub attachment_epoch: u64,
    /// The Raft configuration.
    pub conf: ConfState,
    /// Highest session seen per front end, ordered by front end.
    sessions: Vec<(PodId, u64)>,
}

/// Why bytes cannot be decoded as shard metadata.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("shard metadata is malformed: {0}")]
    Fields(#[from] FieldError),
    #[error("shard metadata version {0} is not known")]
    Version(u8),
    #[error("shard metadata contains values that are out of bounds")]
    Bounds,
}

/// How a session number compares with the recorded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionVerdict {
    /// The recorded session, or one that is exempt from the check.
    Current,
    /// Higher than the recorded one, or the first of its front end. To be recorded.
    Newer,
    /// Lower than the recorded one.
    Stale { recorded: u64 },
    /// The limit of remembered front ends is reached.
    TooMany,
}

impl Meta {
    /// Metadata of a new shard. All members of a shard start with the same voters in the same
    /// order. The first voter campaigns first. At most [`MEMBERS_MAX`] voters.
    pub fn new(voters: &[MemberId], blocks: u32) -> Meta {
        let conf = ConfState {
            voters: voters.iter().map(|member| member.0).collect(),
            ..ConfState::default()
        };
        Meta { blocks, conf, ..Meta::default() }
    }

    /// Judges a session without recording it. Front end 0 and session 0 are exempt.
    pub fn judge_session(&self, front_end: PodId, session: u64) -> SessionVerdict {
        if front_end.0 == 0 || session == 0 {
            return SessionVerdict::Current;
        }
        match self.sessions.binary_search_by_key(&front_end, |(id, _)| *id) {
            Ok(at) if self.sessions[at].1 == session => SessionVerdict::Current,
            Ok(at) if self.sessions[at].1 > session => {
                SessionVerdict::Stale { recorded: self.sessions[at].1 }
            }
            Ok(_) => SessionVerdict::Newer,
            Err(_) if self.sessions.len() >= FRONT_ENDS_MAX => SessionVerdict::TooMany,
            Err(_) => SessionVerdict::Newer,
        }
    }

    /// Records a session that was judged [`SessionVerdict::Newer`].
    pub fn record_session(&mut self, front_end: PodId, session: u64) {
        match self.sessions.binary_search_by_key(&front_end, |(id, _)| *id) {
            Ok(at) => self.sessions[at].1 = self.sessions[at].1.max(session),
            Err(at) => {
                assert!(self.sessions.len() < FRONT_ENDS_MAX, "judged before");
                self.sessions.insert(at, (front_end, session));
            }
        }
    }

    /// True when `member` is the only voter.
    pub fn is_sole_voter(&self, member: MemberId) -> bool {
        self.conf.voters == [member.0] && self.conf.voters_outgoing.is_empty()
    }

    /// True between two configurations, when both majorities are needed.
    pub fn is_joint(&self) -> bool {
        !self.conf.voters_outgoing.is_empty()
    }

    /// Installs a configuration, with its members sorted.
    pub fn set_conf(&mut self, mut conf: ConfState) {
        conf.voters.sort_unstable();
        conf.voters_outgoing.sort_unstable();
        conf.learners.sort_unstable();
        conf.learners_next.sort_unstable();
        self.conf = conf;
    }

    pub fn encode(&self) -> Bytes {
        let lists = self.member_lists();
        let members: usize = lists.iter().map(|list| list.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + members * 8 + self.sessions.len() * 16);
        bytes.put_slice(&[VERSION, u8::from(self.conf.auto_leave), 0, 0]);
        bytes.put_u32_le(self.blocks);
        bytes.put_u64_le(self.attachment_epoch);
        for list in lists {
            assert!(list.len() <= MEMBERS_MAX, "checked where a configuration comes in");
            bytes.put_u16_le(list.len() as u16);
        }
        bytes.put_count(self.sessions.len());
        bytes.put_u32_le(0);
        lists.into_iter().for_each(|list| bytes.put_u64s_le(list));
        for (front_end, session) in &self.sessions {
            bytes.put_u64s_le(&[front_end.0, *session]);
        }
        Bytes::from(bytes)
    }

    fn member_lists(&self) -> [&Vec<u64>; 4] {
        let conf = &self.conf;
        [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next]
    }

    pub fn decode(bytes: &[u8]) -> Result<Meta, MetaError> {
        let mut fields = Fields::new(bytes);
        let version = fields.u8()?;
        if version != VERSION {
            return Err(MetaError::Version(version));
        }
        let auto_leave = fields.flag("leaving a joint configuration")?;
        fields.skip(2)?;
        let (blocks, attachment_epoch) = (fields.u32()?, fields.u64()?);
        let mut counts = [0; 4];
        for count in &mut counts {
            *count = usize::from(fields.u16()?);
        }
        let front_ends = fields.u32()? as usize;
        fields.skip(4)?;
        if counts.iter().any(|count| *count > MEMBERS_MAX) || front_ends > FRONT_ENDS_MAX {
            return Err(MetaError::Bounds);
        }
        let mut list = |count: usize| (0..count).map(|_| fields.u64()).collect::<Result<_, _>>();
        let conf = ConfState {
            voters: list(counts[0])?,
            voters_outgoing: list(counts[1])?,
            learners: list(counts[2])?,
            learners_next: list(counts[3])?,
            auto_leave,
            ..ConfState::default()
        };
        let pair = |_| Ok((PodId(fields.u64()?), fields.u64()?));
        let sessions = (0..front_ends).map(pair).collect::<Result<Vec<_>, FieldError>>()?;
        fields.end()?;
        if !sessions.is_sorted_by(|left, right| left.0 < right.0) {
            return Err(MetaError::Bounds);
        }
        Ok(Meta { blocks, attachment_epoch, conf, sessions })
    }
}

/// Applies `change` to `conf` by the rules of raft-rs. Fails if the change does not fit; every
/// member then ignores it.
pub fn changed_conf(conf: &ConfState, change: &ConfChangeV2) -> Result<ConfState, raft::Error> {
    let mut tracker = tracker_of(conf)?;
    let mut changer = Changer::new(&tracker);
    let (next, changes) = if change.leave_joint() {
        changer.leave_joint()?
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, &change.changes)?
    } else {
        changer.simple(&change.changes)?
    };
    tracker.apply_conf(next, changes, 1);
    let conf = tracker.conf().to_conf_state();
    let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
    match lists.iter().all(|list| list.len() <= MEMBERS_MAX) {
        true => Ok(conf),
        false => Err(raft::Error::ConfChangeError(format!(
            "a configuration has at most {MEMBERS_MAX} members of a kind"
        ))),
    }
}

/// A tracker in the given configuration, built by the steps that led to it.
fn tracker_of(conf: &ConfState) -> Result<ProgressTracker, raft::Error> {
    let mut tracker = ProgressTracker::new(1);
    let base = if conf.voters_outgoing.is_empty() { &conf.voters } else { &conf.voters_outgoing };
    for voter in base {
        add(&mut tracker, single(*voter, ConfChangeType::AddNode))?;
    }
    let learners = conf.learners.iter().chain(&conf.learners_next);
    let learners = learners.map(|id| single(*id, ConfChangeType::AddLearnerNode));
    if conf.voters_outgoing.is_empty() {
        for learner in learners {
            add(&mut tracker, learner)?;
        }
        return Ok(tracker);
    }
    let removed = base.iter().map(|id| single(*id, ConfChangeType::RemoveNode));
    let added = conf.voters.iter().map(|id| single(*id, ConfChangeType::AddNode));
    let steps: Vec<ConfChangeSingle> = removed.chain(added).chain(learners).collect();
    let (next, changes) = Changer::new(&tracker).enter_joint(conf.auto_leave, &steps)?;
    tracker.apply_conf(next, changes, 1);
    Ok(tracker)
}

fn add(tracker: &mut ProgressTracker, step: ConfChangeSingle) -> Result<(), raft::Error> {
    let (next, changes) = Changer::new(tracker).simple(&[step])?;
    tracker.apply_conf(next, changes, 1);
    Ok(())
}

fn single(id: u64, change: ConfChangeType) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    single.set_change_type(change);
    single
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::ConfChangeTransition;

    use super::*;

    proptest! {
        #[test]
        fn metadata_survives_its_encoding(
            voters in prop::collection::vec(1u64..9, 0..5),
            learners in prop::collection::vec(10u64..19, 0..3),
            blocks in any::<u32>(),
            epoch in any::<u64>(),
            sessions in prop::collection::btree_map(1u64..50, 1u64..9, 0..8),
        ) {
            let ids: Vec<MemberId> = voters.into_iter().map(MemberId).collect();
            let mut meta = Meta::new(&ids, blocks);
            meta.attachment_epoch = epoch;
            meta.conf.learners = learners;
            for (front_end, session) in sessions {
                meta.record_session(PodId(front_end), session);
            }
            let bytes = meta.encode();
            prop_assert_eq!(Meta::decode(&bytes).unwrap(), meta);
            prop_assert!(Meta::decode(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_judged_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = Meta::decode(&bytes);
        }
    }

    #[test]
    fn sessions_are_bounded_and_only_grow() {
        let mut meta = Meta::new(&[], 1);
        for front_end in 1..=FRONT_ENDS_MAX as u64 {
            meta.record_session(PodId(front_end), 5);
        }
        let verdict = |front_end, session| meta.judge_session(PodId(front_end), session);
        assert_eq!(verdict(7, 4), SessionVerdict::Stale { recorded: 5 });
        assert_eq!(verdict(7, 5), SessionVerdict::Current);
        assert_eq!(verdict(7, 6), SessionVerdict::Newer);
        assert_eq!(verdict(7, 0), SessionVerdict::Current);
        assert_eq!(verdict(0, 9), SessionVerdict::Current);
        assert_eq!(verdict(FRONT_ENDS_MAX as u64 + 1, 1), SessionVerdict::TooMany);
    }

    #[test]
    fn a_configuration_that_could_not_be_stored_is_refused() {
        let mut meta = Meta::new(&[MemberId(1)], 1);
        let add = |id: u64| {
            let mut change = ConfChangeV2::default();
            change.mut_changes().push(single(id, ConfChangeType::AddLearnerNode));
            change
        };
        for id in 2..2 + MEMBERS_MAX as u64 {
            meta.set_conf(changed_conf(&meta.conf, &add(id)).unwrap());
            assert_eq!(Meta::decode(&meta.encode()).unwrap(), meta);
        }
        assert!(changed_conf(&meta.conf, &add(1000)).is_err());
    }

    #[test]
    fn a_joint_change_and_its_end_give_the_expected_members() {
        let start = Meta::new(&[MemberId(1), MemberId(2), MemberId(3)], 1).conf;
        let mut enter = ConfChangeV2::default();
        enter.set_transition(ConfChangeTransition::Explicit);
        enter.mut_changes().push(single(3, ConfChangeType::RemoveNode));
        enter.mut_changes().push(single(4, ConfChangeType::AddNode));
        let mut meta = Meta::default();
        meta.set_conf(changed_conf(&start, &enter).unwrap());
        assert_eq!(meta.conf.voters, [1, 2, 4]);
        assert_eq!(meta.conf.voters_outgoing, [1, 2, 3]);
        assert!(changed_conf(&meta.conf, &enter).is_err(), "joint already");
        meta.set_conf(changed_conf(&meta.conf, &ConfChangeV2::default()).unwrap());
        assert_eq!(meta.conf.voters, [1, 2, 4]);
        assert!(!meta.is_joint());
    }
}
