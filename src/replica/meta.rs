//! Shard metadata: the state of a member besides its blocks. The store, checkpoints and manifests
//! carry it as opaque bytes (rule `meta-with-blocks`).
//!
//! Layout, little endian, version 2:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version (2) |
//! | 1 | 1 | 1 when a joint configuration is left by itself |
//! | 2 | 1 | 1 when the shard is open |
//! | 3 | 1 | zero |
//! | 4 | 4 | length of the shard in blocks |
//! | 8 | 8 | generation of the access set |
//! | 16 | 8 | the floor of forgotten front ends |
//! | 24 | 8 | four u16 counts: voters, outgoing voters, learners, next learners |
//! | 32 | 4 | two u16 counts: holders, front ends |
//! | 36 | 4 | zero |
//! | 40 | 8 each | the members, in the order of the counts |
//! | ... | 25 each | holders by id: attachment u64, mode u8, session |
//! | ... | 16 each | sessions of front ends without an attachment, by pod |
//!
//! A session is its counter and its pod, u64 each.

use bytes::{BufMut, Bytes};
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use raft::{Changer, ProgressTracker};

use crate::fields::{FieldError, Fields, PutFields};
use crate::replica::access::{Access, FRONT_ENDS_MAX, Holder};
use crate::types::{AccessSet, GRANTS_MAX, Generation, MemberId};

const VERSION: u8 = 2;
const HEADER_BYTES: usize = 40;
const HOLDER_BYTES: usize = 25;
const SESSION_BYTES: usize = 16;
/// Largest number of members of each kind in one configuration. The encoder relies on it. It is
/// checked where a configuration comes in: in [`changed_conf`], in [`Meta::decode`], and when a pod
/// makes a member.
pub const MEMBERS_MAX: usize = 64;

/// The metadata of a shard as of some applied index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Length of the shard in blocks. Entries beyond it are never applied.
    pub blocks: u32,
    /// Who may use the shard.
    pub access: Access,
    /// The Raft configuration.
    pub conf: ConfState,
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

impl Meta {
    /// Metadata of a new shard that anybody may use. All members of a shard start with the same
    /// voters in the same order. The first voter campaigns first. At most [`MEMBERS_MAX`] voters.
    pub fn new(voters: &[MemberId], blocks: u32) -> Meta {
        let conf = ConfState {
            voters: voters.iter().map(|member| member.0).collect(),
            ..ConfState::default()
        };
        Meta { blocks, conf, ..Meta::default() }
    }

    /// The same for a shard that is born with this access set (rule `born-from-the-birth-record`).
    pub fn born(voters: &[MemberId], blocks: u32, access: &AccessSet) -> Meta {
        Meta { access: Access::born(access), ..Meta::new(voters, blocks) }
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
        let (lists, access) = (self.member_lists(), &self.access);
        let members: usize = lists.iter().map(|list| list.len()).sum();
        let (holders, front_ends) = (access.holders.len(), access.front_ends.len());
        assert!(holders <= GRANTS_MAX && front_ends <= FRONT_ENDS_MAX, "they are bounded");
        let access_bytes = holders * HOLDER_BYTES + front_ends * SESSION_BYTES;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + members * 8 + access_bytes);
        let flags = [u8::from(self.conf.auto_leave), u8::from(access.open)];
        bytes.put_slice(&[VERSION, flags[0], flags[1], 0]);
        bytes.put_u32_le(self.blocks);
        bytes.put_u64s_le(&[access.generation.0, access.floor]);
        for list in lists {
            assert!(list.len() <= MEMBERS_MAX, "checked where a configuration comes in");
            bytes.put_u16_le(list.len() as u16);
        }
        bytes.put_u16_le(holders as u16);
        bytes.put_u16_le(front_ends as u16);
        bytes.put_u32_le(0);
        lists.into_iter().for_each(|list| bytes.put_u64s_le(list));
        for holder in &access.holders {
            bytes.put_grant(holder.grant);
            bytes.put_session(holder.session);
        }
        access.front_ends.iter().for_each(|session| bytes.put_session(*session));
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
        let open = fields.flag("open")?;
        fields.skip(1)?;
        let blocks = fields.u32()?;
        let (generation, floor) = (Generation(fields.u64()?), fields.u64()?);
        let mut counts = [0; 6];
        for count in &mut counts {
            *count = usize::from(fields.u16()?);
        }
        fields.skip(4)?;
        let [members @ .., holders, front_ends] = counts;
        let too_many = members.iter().any(|count| *count > MEMBERS_MAX);
        if too_many || holders > GRANTS_MAX || front_ends > FRONT_ENDS_MAX {
            return Err(MetaError::Bounds);
        }
        let mut list = |count: usize| (0..count).map(|_| fields.u64()).collect::<Result<_, _>>();
        let conf = ConfState {
            voters: list(members[0])?,
            voters_outgoing: list(members[1])?,
            learners: list(members[2])?,
            learners_next: list(members[3])?,
            auto_leave,
            ..ConfState::default()
        };
        let mut access = Access { generation, open, floor, ..Access::default() };
        for _ in 0..holders {
            let (grant, session) = (fields.grant()?, fields.session()?);
            access.holders.push(Holder { grant, session });
        }
        for _ in 0..front_ends {
            access.front_ends.push(fields.session()?);
        }
        fields.end()?;
        match access.is_valid() {
            true => Ok(Meta { blocks, access, conf }),
            false => Err(MetaError::Bounds),
        }
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
    use crate::types::{AccessMode, AttachmentId, Grant, Origin, PodId, Session};

    proptest! {
        #[test]
        fn metadata_survives_its_encoding(
            voters in prop::collection::vec(1u64..9, 0..5),
            learners in prop::collection::vec(10u64..19, 0..3),
            blocks in any::<u32>(),
            generation in 50u64..1 << 60,
            open in any::<bool>(),
            holders in prop::collection::btree_map(1u64..50, 1u64..9, 0..8),
            sessions in prop::collection::btree_map(1u64..50, 1u64..9, 0..8),
        ) {
            let ids: Vec<MemberId> = voters.into_iter().map(MemberId).collect();
            let modes = [AccessMode::ReadWrite, AccessMode::ReadOnly, AccessMode::Raw];
            let grant = |(id, counter): (&u64, &u64)| Grant {
                attachment: AttachmentId(*id),
                mode: modes[*counter as usize % 3],
            };
            let grants = holders.iter().map(grant).collect();
            let set = AccessSet { generation: Generation(generation), open, grants };
            let mut meta = Meta::born(&ids, blocks, &set);
            meta.conf.learners = learners;
            for (attachment, counter) in holders {
                let session = Session { counter, pod: PodId(counter) };
                let origin = Origin { attachment: AttachmentId(attachment), session };
                meta.access.touch(origin, false).unwrap();
            }
            for (pod, counter) in sessions.into_iter().filter(|_| open) {
                let session = Session { counter, pod: PodId(pod) };
                let origin = Origin { attachment: AttachmentId::NONE, session };
                meta.access.touch(origin, false).unwrap();
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
