//! The members of a lane, counted: totals over all of them, and sets of those that need something.
//! So a round costs nothing for members that are idle in it.
//!
//! A member that was borrowed for a change is *touched*. Its part of the totals is taken anew
//! before the totals are asked the next time. What a total consists of is in [`Share`], once.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;

use crate::planted::planted;
use crate::store::member::{LaneMember, Phase};
use crate::store::wal::BatchSeq;
use crate::types::{MemberId, Unappended};

/// The members of a lane. See the module.
#[derive(Default)]
pub(crate) struct Members {
    all: BTreeMap<MemberId, Box<Counted>>,
    touched: Vec<MemberId>,
    totals: Totals,
    /// Members that counts and walks looked at since the start.
    pub visits: Cell<u64>,
}

struct Counted {
    member: LaneMember,
    /// Its share as of the newest count; none: it is not counted yet.
    share: Share,
    touched: bool,
}

/// What one member adds to the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub unapplied_bytes: u64,
    pub unappended: Unappended,
    pub overlay_blocks: u64,
    /// Oldest batch that recovery needs now, and after a checkpoint.
    pub needed: Option<BatchSeq>,
    pub needed_later: Option<BatchSeq>,
    /// A resync step waits for its overlay to be written back.
    pub has_task: bool,
    /// A flush of the index would move its flushed position.
    pub unflushed: bool,
    /// The lane must write a HardState of its own before everything applied can be written back.
    pub uncovered: bool,
    /// A checkpoint would make something of it durable.
    pub unsettled: bool,
}

/// The sums of all shares, and the members that need something.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub unapplied_bytes: u64,
    pub unappended: Unappended,
    pub overlay_blocks: u64,
    /// By batch, then by member.
    pub needed: BTreeSet<(BatchSeq, MemberId)>,
    pub needed_later: BTreeSet<(BatchSeq, MemberId)>,
    pub with_task: BTreeSet<MemberId>,
    pub unflushed: BTreeSet<MemberId>,
    pub uncovered: BTreeSet<MemberId>,
    pub unsettled: BTreeSet<MemberId>,
}

impl Share {
    pub(crate) fn of(member: &LaneMember) -> Share {
        let flushed = member.flushed();
        let hard = &member.hard;
        let in_flight = hard.own_in_flight || hard.groups_in_flight > 0;
        Share {
            unapplied_bytes: member.log.unapplied_bytes(),
            unappended: member.unappended,
            overlay_blocks: member.overlay.blocks(),
            needed: member.oldest_needed(member.durable_flushed),
            needed_later: member.oldest_needed(flushed),
            has_task: member.task.is_some(),
            unflushed: flushed > member.durable_flushed,
            uncovered: hard.durable_commit < member.applied_index
                && !member.is_ahead()
                && !in_flight
                && member.phase == Phase::Live,
            unsettled: !member.is_settled(),
        }
    }
}

impl Totals {
    pub(crate) fn add(&mut self, id: MemberId, share: &Share) {
        self.unapplied_bytes += share.unapplied_bytes;
        self.unappended.payload_bytes += share.unappended.payload_bytes;
        self.unappended.extents += share.unappended.extents;
        self.overlay_blocks += share.overlay_blocks;
        self.needed.extend(share.needed.map(|seq| (seq, id)));
        self.needed_later.extend(share.needed_later.map(|seq| (seq, id)));
        for (set, is_in) in self.sets(share) {
            if is_in {
                set.insert(id);
            }
        }
    }

    fn remove(&mut self, id: MemberId, share: &Share) {
        self.unapplied_bytes -= share.unapplied_bytes;
        self.unappended.payload_bytes -= share.unappended.payload_bytes;
        self.unappended.extents -= share.unappended.extents;
        self.overlay_blocks -= share.overlay_blocks;
        share.needed.map(|seq| self.needed.remove(&(seq, id)));
        share.needed_later.map(|seq| self.needed_later.remove(&(seq, id)));
        for (set, was_in) in self.sets(share) {
            if was_in {
                set.remove(&id);
            }
        }
    }

    fn sets(&mut self, share: &Share) -> [(&mut BTreeSet<MemberId>, bool); 4] {
        [
            (&mut self.with_task, share.has_task),
            (&mut self.unflushed, share.unflushed),
            (&mut self.uncovered, share.uncovered),
            (&mut self.unsettled, share.unsettled),
        ]
    }
}

impl Members {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn contains_key(&self, id: &MemberId) -> bool {
        self.all.contains_key(id)
    }

    pub(crate) fn get(&self, id: &MemberId) -> Option<&LaneMember> {
        self.all.get(id).map(|counted| &counted.member)
    }

    /// The member, to change it: it is counted anew.
    pub(crate) fn get_mut(&mut self, id: &MemberId) -> Option<&mut LaneMember> {
        let counted = self.all.get_mut(id)?;
        if !std::mem::replace(&mut counted.touched, true) && !planted!(ChangeNotCounted) {
            self.touched.push(*id);
        }
        Some(&mut counted.member)
    }

    pub(crate) fn insert(&mut self, id: MemberId, member: LaneMember) {
        self.remove(&id);
        let counted = Counted { member, share: Share::default(), touched: true };
        self.all.insert(id, Box::new(counted));
        self.touched.push(id);
    }

    pub(crate) fn remove(&mut self, id: &MemberId) {
        if let Some(gone) = self.all.remove(id) {
            self.totals.remove(*id, &gone.share);
        }
    }

    /// All members, in the order of their ids. Not for the data path.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&MemberId, &LaneMember)> {
        self.all.iter().map(|(id, counted)| {
            self.visits.set(self.visits.get() + 1);
            (id, &counted.member)
        })
    }

    /// The totals as of now. Costs as much as was touched since the last call.
    pub(crate) fn totals(&mut self) -> &Totals {
        self.visits.set(self.visits.get() + self.touched.len() as u64);
        for id in self.touched.drain(..) {
            // It may have been removed, or be here for the second time.
            let Some(counted) = self.all.get_mut(&id).filter(|counted| counted.touched) else {
                continue;
            };
            counted.touched = false;
            let share = Share::of(&counted.member);
            let before = std::mem::replace(&mut counted.share, share);
            if before != share {
                self.totals.remove(id, &before);
                self.totals.add(id, &share);
            }
        }
        &self.totals
    }

    /// Blocks in all overlays, also while members are touched.
    pub(crate) fn overlay_blocks(&self) -> u64 {
        let touched = self.touched.iter().filter_map(|id| self.all.get(id));
        touched.fold(self.totals.overlay_blocks, |blocks, counted| {
            blocks + counted.member.overlay.blocks() - counted.share.overlay_blocks
        })
    }

    /// Up to `most` members that need a batch `in_reach` and for which `can` is true, oldest batch
    /// first. Looks at a bounded number of them.
    pub(crate) fn holders(
        &mut self,
        most: usize,
        in_reach: impl Fn(BatchSeq) -> bool,
        can: impl Fn(&LaneMember) -> bool,
    ) -> Vec<MemberId> {
        self.totals();
        let holders = self.totals.needed.iter().take_while(|(seq, _)| in_reach(*seq));
        let holders = holders.map(|(_, id)| *id).take(4 * most);
        holders.filter(|id| self.get(id).is_some_and(&can)).take(most).collect()
    }

    /// The oldest batch that recovery needs of any member now, or would need after a checkpoint.
    pub(crate) fn oldest_needed(&mut self, after_checkpoint: bool) -> Option<BatchSeq> {
        let totals = self.totals();
        let needed = if after_checkpoint { &totals.needed_later } else { &totals.needed };
        needed.first().map(|(seq, _)| *seq)
    }
}

impl Index<&MemberId> for Members {
    type Output = LaneMember;

    fn index(&self, id: &MemberId) -> &LaneMember {
        self.get(id).expect("the member is here")
    }
}
