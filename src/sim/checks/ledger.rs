//! What every member's log holds durably, told from the writes of the logs alone: a batch counts
//! when its write and those of all before it have ended. Whatever a crash leaves, recovery must
//! find this and may find more of what was written since, or call the member faulted; what a
//! recovery did not find never comes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::io::driver::Token;
use crate::replica::seam::Start;
use crate::sim::checks::wrong::{Checked, check};
use crate::sim::names::DiskNumber;
use crate::store::seam::Slot;
use crate::store::wal::format::{Batch, FoundEntry, FoundItem};
use crate::types::MemberId;

/// See the module.
#[derive(Default)]
pub struct Ledger {
    under_way: BTreeMap<DiskNumber, VecDeque<Write>>,
    members: BTreeMap<MemberId, Promised>,
    /// What members had promised that lost something: others may have counted on it.
    faulted: BTreeMap<MemberId, Promised>,
    /// What a recovery may find: entries, by index and term, that the last one found, and those
    /// that were handed to the disk since.
    offered: BTreeMap<MemberId, BTreeSet<(u64, u64)>>,
    /// Entries that took the place of others.
    pub replaced: u64,
}

/// A batch on its way to a disk.
struct Write {
    token: Token,
    batch: Batch,
    ended: bool,
}

/// What a member may have promised to others.
#[derive(Clone, Debug, Default)]
struct Promised {
    term: u64,
    vote: u64,
    commit: u64,
    /// Everything up to here is in the store for good.
    floor: u64,
    /// What is logged above, by index.
    entries: BTreeMap<u64, Logged>,
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Logged {
    term: u64,
    /// Where its payload is, if that is not in the log.
    slots: Vec<Slot>,
}

impl Logged {
    fn of(entry: &FoundEntry) -> Logged {
        let slots = entry.redirect.iter().flat_map(|redirect| &redirect.slots);
        Logged { term: entry.term, slots: slots.map(|slot| slot.slot).collect() }
    }
}

/// The entries that an item of a batch holds, and whose they are.
pub fn entries_of(item: &FoundItem) -> Vec<(MemberId, &FoundEntry)> {
    match item {
        FoundItem::Entry { member, entry } => vec![(*member, entry)],
        FoundItem::Image { member, entries, .. } => {
            entries.iter().map(|entry| (*member, entry)).collect()
        }
        _ => Vec::new(),
    }
}

impl Ledger {
    /// A pod opened this disk: what was on its way there has ended, one way or the other.
    pub fn opened(&mut self, disk: DiskNumber) {
        self.under_way.remove(&disk);
    }

    pub fn begins(&mut self, disk: DiskNumber, token: Token, batch: Batch) {
        for (member, entry) in batch.items.iter().flat_map(entries_of) {
            self.offered.entry(member).or_default().insert((entry.index, entry.term));
        }
        let write = Write { token, batch, ended: false };
        self.under_way.entry(disk).or_default().push_back(write);
    }

    /// The write is durable; returns the batches that count from now on.
    pub fn ends(&mut self, disk: DiskNumber, token: Token) -> (Vec<Batch>, Checked) {
        let under_way = self.under_way.entry(disk).or_default();
        if let Some(write) = under_way.iter_mut().find(|write| write.token == token) {
            write.ended = true;
        }
        let mut counted = Vec::new();
        while under_way.front().is_some_and(|write| write.ended) {
            counted.extend(under_way.pop_front().map(|write| write.batch));
        }
        counted.iter().flat_map(|batch| &batch.items).for_each(|item| self.count(item));
        let mut entries = counted.iter().flat_map(|batch| &batch.items).flat_map(entries_of);
        let checked = entries.try_for_each(|(member, entry)| self.knows_term(member, entry));
        (counted, checked)
    }

    /// Whoever has an entry of a term durably must not forget that term.
    fn knows_term(&self, member: MemberId, entry: &FoundEntry) -> Checked {
        let known = self.members.get(&member).map_or(0, |promised| promised.term);
        let (index, term) = (entry.index, entry.term);
        check(known >= term, || {
            format!(
                "{member:?} has entry {index} of term {term} durably, and could start in {known}"
            )
        })
    }

    fn count(&mut self, item: &FoundItem) {
        match item {
            FoundItem::Hard { member, hard } => {
                let promised = self.members.entry(*member).or_default();
                (promised.term, promised.vote) = (hard.term, hard.vote);
                promised.commit = promised.commit.max(hard.commit);
            }
            FoundItem::Entry { member, entry } => {
                let promised = self.members.entry(*member).or_default();
                self.replaced += promised.append(entry) as u64;
            }
            FoundItem::Reset { member, index, .. } => {
                let promised = self.members.entry(*member).or_default();
                promised.floor = *index;
                promised.entries.clear();
            }
            FoundItem::Image { member, hard, compacted_index, entries, .. } => {
                let entries = entries.iter().map(|entry| (entry.index, Logged::of(entry)));
                let promised = self.members.entry(*member).or_default();
                *promised = Promised {
                    term: hard.term,
                    vote: hard.vote,
                    commit: hard.commit,
                    floor: promised.floor.max(*compacted_index),
                    entries: entries.collect(),
                };
            }
            FoundItem::Fault { member } => self.lost(*member),
        }
    }

    /// What recovery found of a member is compared with what it may have promised, and counts from
    /// now on.
    pub fn recovered(&mut self, member: MemberId, start: &Start) -> Checked {
        if start.faulted {
            self.lost(member);
            return Ok(());
        }
        let found = Promised {
            term: start.hard.term,
            vote: start.hard.vote,
            commit: start.hard.commit,
            floor: start.compacted_index,
            entries: start
                .entries
                .iter()
                .map(|entry| (entry.index, Logged { term: entry.term, slots: Vec::new() }))
                .collect(),
        };
        let checked = self.members.get_mut(&member).map_or(Ok(()), |promised| {
            // What was not flushed may have become durable before the pod died.
            promised.stored(start.compacted_index, start.compacted_term);
            promised.is_in(&found)
        });
        let checked = checked.and_then(|()| found.covers(start.applied_index));
        let logged = found.entries.iter().map(|(index, logged)| (*index, logged.term)).collect();
        let offered = self.offered.insert(member, logged).unwrap_or_default();
        let checked = checked.and_then(|()| found.is_among(&offered, start.applied_index));
        self.members.insert(member, found);
        checked.map_err(|what| format!("recovery of {member:?}: {what}"))
    }

    /// A member takes no part any more, durably: what it had promised holds for the others only.
    pub fn lost(&mut self, member: MemberId) {
        self.faulted.extend(self.members.remove(&member).map(|promised| (member, promised)));
    }

    /// The index of a member's disk says, durably, that it holds everything up to here.
    pub fn flushed(&mut self, member: MemberId, index: u64, term: u64) {
        if let Some(promised) = self.members.get_mut(&member) {
            promised.stored(index, term);
        }
    }

    /// The index of a member's disk says that it is gone: nothing in the log matters any more, and
    /// what others do because of what it had is right.
    pub fn destroyed(&mut self, member: MemberId) {
        let promised = Promised { term: u64::MAX, floor: u64::MAX, ..Promised::default() };
        self.members.insert(member, promised);
    }

    pub fn is_destroyed(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|promised| promised.floor == u64::MAX)
    }

    /// The index up to which a member would still know what is committed after a crash.
    pub fn committed(&self, member: MemberId) -> u64 {
        self.members.get(&member).map_or(0, |promised| promised.commit.max(promised.floor))
    }

    /// The entry of one of these members whose payload is in this slot, and is needed.
    pub fn names(&self, members: &BTreeSet<MemberId>, slot: Slot) -> Option<(MemberId, u64)> {
        members.iter().find_map(|member| {
            let mut entries = self.members.get(member)?.entries.iter();
            let (index, _) = entries.find(|(_, logged)| logged.slots.contains(&slot))?;
            Some((*member, *index))
        })
    }

    /// True when everything up to this index would survive a crash.
    pub fn reaches(&self, member: MemberId, index: u64) -> bool {
        let promised = self.members.get(&member);
        index == 0 || promised.is_some_and(|promised| promised.last() >= index)
    }

    /// True when this very entry would survive a crash, or would have until it was lost.
    pub fn holds(&self, member: MemberId, index: u64, term: u64) -> bool {
        let promised = self.members.get(&member).or_else(|| self.faulted.get(&member));
        promised.is_some_and(|promised| {
            let logged = promised.entries.get(&index);
            promised.floor >= index || logged.is_some_and(|logged| logged.term == term)
        })
    }

    /// True when a member would know after a crash that this term is over.
    pub fn is_beyond(&self, member: MemberId, term: u64) -> bool {
        self.members.get(&member).is_some_and(|promised| promised.term > term)
    }

    /// True when this vote would survive a crash, or a later term, in which it does not matter.
    pub fn has_voted(&self, member: MemberId, term: u64, vote: u64) -> bool {
        self.members.get(&member).is_some_and(|promised| {
            promised.term > term || (promised.term, promised.vote) == (term, vote)
        })
    }
}

impl Promised {
    /// Adds an entry; returns how many it replaced. One that the store has already is not looked at
    /// by any recovery.
    fn append(&mut self, entry: &FoundEntry) -> usize {
        let replaced = self.entries.split_off(&entry.index).len();
        if entry.index > self.floor {
            self.entries.insert(entry.index, Logged::of(entry));
        }
        replaced
    }

    /// The store has everything up to here. When a resync has brought it, the log may be that of
    /// another history above, whose terms are older, and which no recovery takes.
    fn stored(&mut self, index: u64, term: u64) {
        self.floor = self.floor.max(index);
        self.entries = self.entries.split_off(&self.floor.saturating_add(1));
        if self.entries.first_key_value().is_some_and(|(_, first)| first.term < term) {
            self.entries.clear();
        }
    }

    /// Rule R7: what the store has is committed.
    fn covers(&self, applied_index: u64) -> Checked {
        let commit = self.commit;
        check(commit >= applied_index, || {
            format!("the store has entry {applied_index}, and only {commit} is committed")
        })
    }

    /// Everything that is not in the store was written since a recovery last looked, or was found
    /// by that.
    fn is_among(&self, offered: &BTreeSet<(u64, u64)>, applied: u64) -> Checked {
        let entries = self.entries.range(applied + 1..);
        let mut entries = entries.map(|(index, logged)| (*index, logged.term));
        let found = entries.find(|entry| !offered.contains(entry));
        found.map_or(Ok(()), |(index, term)| {
            Err(format!("entry {index} of term {term}, which was cut off, is back"))
        })
    }

    fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.floor, |(index, _)| (*index).max(self.floor))
    }

    /// Whether `found` has all of this; a write that was under way may have replaced a part by
    /// something of a later term.
    fn is_in(&self, found: &Promised) -> Checked {
        let same_term = found.term == self.term;
        if found.term < self.term || same_term && self.vote != 0 && found.vote != self.vote {
            return Err(format!(
                "it voted for {} in term {} and knows of {} in {}",
                self.vote, self.term, found.vote, found.term
            ));
        }
        if found.last() < self.floor {
            return Err(format!("it had all up to {} and ends at {}", self.floor, found.last()));
        }
        for (index, Logged { term, .. }) in self.entries.range(found.floor + 1..) {
            match found.entries.get(index).map(|logged| logged.term) {
                Some(same) if same == *term => {}
                Some(later) if later > *term => return Ok(()),
                other => {
                    return Err(format!("entry {index} of term {term} became {other:?}"));
                }
            }
        }
        Ok(())
    }
}
