//! What every member's log holds durably, told from the writes of the logs alone: a batch counts
//! when its write and those of all before it have ended. Whatever a crash leaves, recovery must find
//! this and may find more, or call the member faulted.

use std::collections::{BTreeMap, VecDeque};

use crate::io::driver::Token;
use crate::replica::seam::Start;
use crate::sim::checks::Wrong;
use crate::sim::disk::DiskNumber;
use crate::store::wal::format::{Batch, FoundEntry, FoundItem};
use crate::types::MemberId;

/// See the module.
#[derive(Default)]
pub struct Ledger {
    under_way: BTreeMap<DiskNumber, VecDeque<Write>>,
    members: BTreeMap<MemberId, Promised>,
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
    /// Everything up to here is in the store for good.
    floor: u64,
    /// Index and term of what is logged above.
    entries: BTreeMap<u64, u64>,
}

impl Ledger {
    /// A pod opened this disk: what was on its way there has ended, one way or the other.
    pub fn opened(&mut self, disk: DiskNumber) {
        self.under_way.remove(&disk);
    }

    pub fn begins(&mut self, disk: DiskNumber, token: Token, batch: Batch) {
        let write = Write { token, batch, ended: false };
        self.under_way.entry(disk).or_default().push_back(write);
    }

    /// The write is durable; returns the batches that count from now on.
    pub fn ends(&mut self, disk: DiskNumber, token: Token) -> Vec<Batch> {
        let under_way = self.under_way.entry(disk).or_default();
        if let Some(write) = under_way.iter_mut().find(|write| write.token == token) {
            write.ended = true;
        }
        let mut counted = Vec::new();
        while under_way.front().is_some_and(|write| write.ended) {
            counted.extend(under_way.pop_front().map(|write| write.batch));
        }
        counted.iter().flat_map(|batch| &batch.items).for_each(|item| self.count(item));
        counted
    }

    fn count(&mut self, item: &FoundItem) {
        match item {
            FoundItem::Hard { member, hard } => {
                let promised = self.members.entry(*member).or_default();
                (promised.term, promised.vote) = (hard.term, hard.vote);
            }
            FoundItem::Entry { member, entry } => {
                self.members.entry(*member).or_default().append(entry);
            }
            FoundItem::Reset { member, index, .. } => {
                let promised = self.members.entry(*member).or_default();
                promised.floor = *index;
                promised.entries.clear();
            }
            FoundItem::Image { member, hard, compacted_index, entries, .. } => {
                let (term, vote, floor) = (hard.term, hard.vote, *compacted_index);
                let entries = entries.iter().map(|entry| (entry.index, entry.term)).collect();
                self.members.insert(*member, Promised { term, vote, floor, entries });
            }
            FoundItem::Fault { member } => drop(self.members.remove(member)),
        }
    }

    /// What recovery found of a member is compared with what it may have promised, and counts from
    /// now on.
    pub fn recovered(&mut self, member: MemberId, start: &Start) -> Result<(), Wrong> {
        if start.faulted {
            self.members.remove(&member);
            return Ok(());
        }
        let found = Promised {
            term: start.hard.term,
            vote: start.hard.vote,
            floor: start.compacted_index,
            entries: start.entries.iter().map(|entry| (entry.index, entry.term)).collect(),
        };
        let checked = self.members.get(&member).map_or(Ok(()), |promised| promised.is_in(&found));
        self.members.insert(member, found);
        checked.map_err(|what| format!("recovery of {member:?}: {what}"))
    }

    /// True when everything up to this index would survive a crash.
    pub fn reaches(&self, member: MemberId, index: u64) -> bool {
        let promised = self.members.get(&member);
        index == 0 || promised.is_some_and(|promised| promised.last() >= index)
    }

    /// True when this very entry would survive a crash.
    pub fn holds(&self, member: MemberId, index: u64, term: u64) -> bool {
        self.members.get(&member).is_some_and(|promised| {
            promised.floor >= index || promised.entries.get(&index) == Some(&term)
        })
    }

    /// True when this vote would survive a crash, or a later term, in which it does not matter.
    pub fn has_voted(&self, member: MemberId, term: u64, vote: u64) -> bool {
        self.members.get(&member).is_some_and(|promised| {
            promised.term > term || (promised.term, promised.vote) == (term, vote)
        })
    }
}

impl Promised {
    fn append(&mut self, entry: &FoundEntry) {
        self.entries.split_off(&entry.index);
        self.entries.insert(entry.index, entry.term);
    }

    fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(self.floor, |(index, _)| (*index).max(self.floor))
    }

    /// Whether `found` has all of this; a write that was under way may have replaced a part by
    /// something of a later term.
    fn is_in(&self, found: &Promised) -> Result<(), Wrong> {
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
        for (index, term) in self.entries.range(found.floor + 1..) {
            match found.entries.get(index) {
                Some(same) if same == term => {}
                Some(later) if later > term => return Ok(()),
                other => {
                    return Err(format!("entry {index} of term {term} became {other:?}"));
                }
            }
        }
        Ok(())
    }
}
