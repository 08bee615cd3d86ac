//! The pushes to the log that are not durable yet, in order, and the places of their entries. Pure.

use std::collections::VecDeque;

use crate::store::member::Place;
use crate::store::messages::Slot;
use crate::store::wal::{BatchSeq, GroupId, Placed};
use crate::types::MemberId;

#[derive(Default)]
pub(crate) struct Groups {
    waiting: VecDeque<Group>,
    /// Entries of groups without a batch yet, in the order of pushing.
    unplaced: VecDeque<Unplaced>,
    next_group: u64,
    next_push: u64,
}

/// One push.
pub(crate) struct Group {
    pub id: GroupId,
    pub member: MemberId,
    pub kind: GroupKind,
    /// Commit index of its HardState.
    pub commit: Option<u64>,
    /// The group is in this batch or a later one.
    pub not_before: BatchSeq,
    /// Slots of replaced entries, free once it is durable (rule `slot-reuse-after-durable-free`).
    pub left: Vec<Slot>,
}

pub(crate) enum GroupKind {
    Append {
        number: u64,
    },
    /// A HardState of the lane itself: moves only the commit, up to the applied index.
    OwnHard,
    /// (index, push, new place) of each of its entries.
    LogSnapshot {
        places: Vec<(u64, u64, Place)>,
    },
}

/// A pushed entry without a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unplaced {
    pub member: MemberId,
    pub index: u64,
    pub push: u64,
    pub log_snapshot: bool,
}

impl Groups {
    pub(crate) fn next_id(&mut self) -> GroupId {
        self.next_group += 1;
        GroupId(self.next_group)
    }

    pub(crate) fn next_push(&mut self) -> u64 {
        self.next_push += 1;
        self.next_push
    }

    pub(crate) fn push(&mut self, group: Group) {
        self.waiting.push_back(group);
    }

    /// Adds a pushed entry. Its place is known once its batch is formed.
    pub(crate) fn expect(&mut self, entry: Unplaced) {
        self.unplaced.push_back(entry);
    }

    /// Gives an entry its place. Places come in the order of pushing.
    pub(crate) fn placed(&mut self, placed: &Placed, place: Place) -> Unplaced {
        let expected = self.unplaced.pop_front().expect("placed once");
        assert_eq!(
            (placed.member, placed.index),
            (expected.member, expected.index),
            "entries are placed in order"
        );
        if expected.log_snapshot {
            let snapshot = self.waiting.iter_mut().find_map(|group| match &mut group.kind {
                GroupKind::LogSnapshot { places } if group.member == placed.member => Some(places),
                _ => None,
            });
            let places = snapshot.expect("one log snapshot of a member at a time");
            places.push((placed.index, expected.push, place));
        }
        expected
    }

    /// Removes the oldest group: groups become durable in the order of pushing.
    pub(crate) fn pop(&mut self, id: GroupId) -> Group {
        let group = self.waiting.pop_front().expect("durable once");
        assert_eq!(group.id, id, "groups become durable in order");
        group
    }
}
