//! What was pushed into the log and is not durable yet, in order, and where its entries go. Pure.

use std::collections::VecDeque;

use crate::store::member::Place;
use crate::store::seam::Slot;
use crate::store::wal::{BatchSeq, GroupId, Placed};
use crate::types::MemberId;

/// See the module.
#[derive(Default)]
pub(crate) struct Groups {
    waiting: VecDeque<Group>,
    /// Entries of groups whose batch was not formed yet, in the order they were pushed.
    unplaced: VecDeque<Unplaced>,
    next_group: u64,
    next_push: u64,
}

/// One push.
pub(crate) struct Group {
    pub id: GroupId,
    pub member: MemberId,
    pub kind: GroupKind,
    /// Commit of the HardState in it.
    pub commit: Option<u64>,
    /// It is in this batch or a later one.
    pub not_before: BatchSeq,
    /// Slots that entries named which it replaces: free once it is durable (rule R4).
    pub left: Vec<Slot>,
}

pub(crate) enum GroupKind {
    Append {
        number: u64,
    },
    /// The lane's own: only moves the commit up to what was applied.
    OwnHard,
    /// (index, push, new place) of every entry in it.
    Image {
        places: Vec<(u64, u64, Place)>,
    },
}

/// An entry that was pushed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unplaced {
    pub member: MemberId,
    pub index: u64,
    pub push: u64,
    pub image: bool,
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

    /// This entry was pushed: its place will be known when its batch is formed.
    pub(crate) fn expect(&mut self, entry: Unplaced) {
        self.unplaced.push_back(entry);
    }

    /// An entry got its place: entries are placed in the order they were pushed.
    pub(crate) fn placed(&mut self, placed: &Placed, place: Place) -> Unplaced {
        let expected = self.unplaced.pop_front().expect("placed once");
        assert_eq!(
            (placed.member, placed.index),
            (expected.member, expected.index),
            "entries are placed in order"
        );
        if expected.image {
            let image = self.waiting.iter_mut().find_map(|group| match &mut group.kind {
                GroupKind::Image { places } if group.member == placed.member => Some(places),
                _ => None,
            });
            let places = image.expect("one image of a member at a time");
            places.push((placed.index, expected.push, place));
        }
        expected
    }

    /// Groups become durable in the order they were pushed.
    pub(crate) fn pop(&mut self, id: GroupId) -> Group {
        let group = self.waiting.pop_front().expect("durable once");
        assert_eq!(group.id, id, "groups become durable in order");
        group
    }
}
