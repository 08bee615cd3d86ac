//! The durable log of every member, derived only from the writes of logs. A batch counts when its
//! write and all earlier ones have ended. After any crash, recovery must find these batches, and
//! may find later ones, or report the member as faulted. Batches that a recovery cut off never come
//! back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::io::driver::Token;
use crate::replica::messages::Start;
use crate::sim::checks::wrong::{Checked, check};
use crate::sim::names::DiskNumber;
use crate::store::messages::Slot;
use crate::store::wal::format::{Batch, FoundEntry, FoundItem};
use crate::types::MemberId;

/// See the module.
#[derive(Default)]
pub struct Ledger {
    in_flight: BTreeMap<DiskNumber, VecDeque<Write>>,
    members: BTreeMap<MemberId, Promised>,
    /// Promises of faulted members: others may rely on them.
    faulted: BTreeMap<MemberId, Promised>,
    /// Entries that a recovery may find, by index and term: those of the last recovery, and all
    /// that were handed to the disk since.
    offered: BTreeMap<MemberId, BTreeSet<(u64, u64)>>,
    /// The number of entries that others replaced.
    pub replaced: u64,
}

/// A log write in flight.
struct Write {
    token: Token,
    batch: Batch,
    ended: bool,
}

/// A member's promises to others.
#[derive(Clone, Debug, Default)]
struct Promised {
    term: u64,
    vote: u64,
    commit: u64,
    /// Everything up to this index is durable in the store.
    floor: u64,
    /// Logged entries above `floor`, by index.
    entries: BTreeMap<u64, Logged>,
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Logged {
    term: u64,
    /// The slots of its payload, if a WAL bypass wrote it.
    slots: Vec<Slot>,
}

impl Logged {
    fn of(entry: &FoundEntry) -> Logged {
        let slots = entry.bypass.iter().flat_map(|bypass| &bypass.slots);
        Logged { term: entry.term, slots: slots.map(|slot| slot.slot).collect() }
    }
}

/// The entries in an item of a batch, and their member.
pub fn entries_of(item: &FoundItem) -> Vec<(MemberId, &FoundEntry)> {
    match item {
        FoundItem::Entry { member, entry } => vec![(*member, entry)],
        FoundItem::LogSnapshot { member, entries, .. } => {
            entries.iter().map(|entry| (*member, entry)).collect()
        }
        _ => Vec::new(),
    }
}

impl Ledger {
    /// A pod has opened this disk: no earlier write is in flight any more.
    pub fn opened(&mut self, disk: DiskNumber) {
        self.in_flight.remove(&disk);
    }

    pub fn begins(&mut self, disk: DiskNumber, token: Token, batch: Batch) {
        for (member, entry) in batch.items.iter().flat_map(entries_of) {
            self.offered.entry(member).or_default().insert((entry.index, entry.term));
        }
        let write = Write { token, batch, ended: false };
        self.in_flight.entry(disk).or_default().push_back(write);
    }

    /// The write is durable; returns the batches that count from now on.
    pub fn ends(&mut self, disk: DiskNumber, token: Token) -> (Vec<Batch>, Checked) {
        let in_flight = self.in_flight.entry(disk).or_default();
        if let Some(write) = in_flight.iter_mut().find(|write| write.token == token) {
            write.ended = true;
        }
        let mut counted = Vec::new();
        while in_flight.front().is_some_and(|write| write.ended) {
            counted.extend(in_flight.pop_front().map(|write| write.batch));
        }
        counted.iter().flat_map(|batch| &batch.items).for_each(|item| self.count(item));
        let mut entries = counted.iter().flat_map(|batch| &batch.items).flat_map(entries_of);
        let checked = entries.try_for_each(|(member, entry)| self.knows_term(member, entry));
        (counted, checked)
    }

    /// A member with a durable entry of a term must know that term durably.
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
            FoundItem::LogSnapshot { member, hard, compacted_index, entries, .. } => {
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

    /// Compares the recovered state of a member with its promises. The recovered state counts from
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
            // Edits that were not flushed may have become durable before the pod died.
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

    /// A member is faulted, durably: only other members may still use its promises.
    pub fn lost(&mut self, member: MemberId) {
        self.faulted.extend(self.members.remove(&member).map(|promised| (member, promised)));
    }

    /// The index of the member's disk durably has everything up to this entry.
    pub fn flushed(&mut self, member: MemberId, index: u64, term: u64) {
        if let Some(promised) = self.members.get_mut(&member) {
            promised.stored(index, term);
        }
    }

    /// The index of the member's disk durably has its tombstone. Its log no longer matters, and
    /// nothing that others derive from its promises is wrong.
    pub fn destroyed(&mut self, member: MemberId) {
        let promised = Promised { term: u64::MAX, floor: u64::MAX, ..Promised::default() };
        self.members.insert(member, promised);
    }

    pub fn is_destroyed(&self, member: MemberId) -> bool {
        self.members.get(&member).is_some_and(|promised| promised.floor == u64::MAX)
    }

    /// The commit index that a member would still know after a crash.
    pub fn committed(&self, member: MemberId) -> u64 {
        self.members.get(&member).map_or(0, |promised| promised.commit.max(promised.floor))
    }

    /// The entry, of one of these members, whose payload is in this slot.
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

    /// True when this entry would survive a crash, or would have before the member was faulted.
    pub fn holds(&self, member: MemberId, index: u64, term: u64) -> bool {
        let promised = self.members.get(&member).or_else(|| self.faulted.get(&member));
        promised.is_some_and(|promised| {
            let logged = promised.entries.get(&index);
            promised.floor >= index || logged.is_some_and(|logged| logged.term == term)
        })
    }

    /// The newest entry of `follower` that `leader` has, too; `None`: one of them has no log.
    pub fn agreed(&self, follower: MemberId, leader: MemberId) -> Option<u64> {
        let (own, other) = (self.members.get(&follower)?, self.members.get(&leader)?);
        let is_same = |(index, logged): (&u64, &Logged)| {
            let same = other.entries.get(index).is_some_and(|other| other.term == logged.term);
            (same || *index <= other.floor).then_some(*index)
        };
        Some(own.entries.iter().rev().find_map(is_same).unwrap_or(own.floor))
    }

    /// True when a member would know a later term after a crash.
    pub fn is_beyond(&self, member: MemberId, term: u64) -> bool {
        self.members.get(&member).is_some_and(|promised| promised.term > term)
    }

    /// True when a crash would keep this vote, or a later term in which it does not matter.
    pub fn has_voted(&self, member: MemberId, term: u64, vote: u64) -> bool {
        self.members.get(&member).is_some_and(|promised| {
            promised.term > term || (promised.term, promised.vote) == (term, vote)
        })
    }
}

impl Promised {
    /// Adds an entry; returns the number of entries that it replaced. Recovery ignores entries that
    /// the store has already.
    fn append(&mut self, entry: &FoundEntry) -> usize {
        let replaced = self.entries.split_off(&entry.index).len();
        if entry.index > self.floor {
            self.entries.insert(entry.index, Logged::of(entry));
        }
        replaced
    }

    /// The store has everything up to this index. After a resync, the rest of the log may belong to
    /// another history with older terms, which recovery ignores.
    fn stored(&mut self, index: u64, term: u64) {
        self.floor = self.floor.max(index);
        self.entries = self.entries.split_off(&self.floor.saturating_add(1));
        if self.entries.first_key_value().is_some_and(|(_, first)| first.term < term) {
            self.entries.clear();
        }
    }

    /// The store has only committed entries (rule `recovery-commit-covers-flushed`).
    fn covers(&self, applied_index: u64) -> Checked {
        let commit = self.commit;
        check(commit >= applied_index, || {
            format!("the store has entry {applied_index}, and only {commit} is committed")
        })
    }

    /// Checks that the last recovery found each entry above `applied`, or that it was handed to the
    /// disk since then.
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

    /// Checks that `found` contains all promises. Log writes in flight may have replaced a suffix
    /// by entries of a later term.
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
