//! Replay: turns the items of a recovered log into the log of each member, and finds members that
//! may have forgotten a vote or an acknowledgement (*faulted*).
//!
//! A lost HardState is harmless once a newer one follows. Lost entries are harmless once they are
//! flushed, replaced by a later append, or replaced with the whole log (reset, log snapshot).

use std::collections::BTreeMap;

use crate::log::HardState;
use crate::planted::planted;
use crate::types::MemberId;

use super::BatchSeq;
use super::decide::{LogPart, LostMembers};
use super::format::{FoundEntry, FoundItem, Summary, kinds};

/// The flushed position of a member: nothing up to it is needed from the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub index: u64,
    pub term: u64,
}

/// The log of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberLog {
    /// `commit` is at least the flushed index (rule `recovery-commit-covers-flushed`).
    pub hard: HardState,
    /// The point before the first of `entries`.
    pub compacted_index: u64,
    pub compacted_term: u64,
    /// Contiguous, unless faulted.
    pub entries: Vec<LoggedEntry>,
    /// The batch of the newest HardState, if the log holds one.
    pub hard_seq: Option<BatchSeq>,
    pub faulted: Option<FaultReason>,
}

/// An entry and the batch that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEntry {
    pub seq: BatchSeq,
    pub entry: FoundEntry,
}

/// Why a member cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultReason {
    #[error("batch {0} is lost, and may have held items of any member")]
    AnythingLost(u64),
    #[error("its newest HardState was in batch {0}, which is lost")]
    HardStateLost(u64),
    #[error("entries up to {0} are lost")]
    EntriesLost(u64),
    #[error("the payload of entry {0} is damaged")]
    PayloadDamaged(u64),
    #[error("entry {0} names a slot that belongs to something else")]
    SlotConflict(u64),
    #[error("entries are missing between {after} and {before}")]
    Gap { after: u64, before: u64 },
    #[error("its log starts behind entry {compacted}, the store holds everything up to {flushed}")]
    StoreBehind { compacted: u64, flushed: u64 },
    #[error("it had committed entry {commit}, but its log ends at {last}")]
    CommitBeyondLog { commit: u64, last: u64 },
    #[error("an earlier start found that it lost a part of its log")]
    Marked,
}

/// Replays a log. `members`: as the index has them. A member that only the log knows counts as
/// flushed up to its compacted point. `tombstones` (sorted) are skipped.
pub fn replay(
    log: Vec<LogPart>,
    members: &BTreeMap<MemberId, Flushed>,
    tombstones: &[MemberId],
) -> BTreeMap<MemberId, MemberLog> {
    debug_assert!(tombstones.is_sorted());
    let mut states: BTreeMap<MemberId, MemberReplay> =
        members.keys().map(|id| (*id, MemberReplay::default())).collect();
    // The first state of a member that is seen for the first time.
    let mut unseen = MemberReplay::default();
    let dead = |member: &MemberId| {
        tombstones.binary_search(member).is_ok() && !planted!(TombstonesForgotten)
    };
    for part in log {
        match part {
            LogPart::Batch(batch) => {
                let seq = batch.header.seq;
                for item in batch.items {
                    let member = member_of(&item);
                    if !dead(&member) {
                        let state = states.entry(member).or_insert_with(|| unseen.clone());
                        state.item(seq, item);
                    }
                }
            }
            LogPart::Lost(lost) => match lost.members {
                LostMembers::Any => {
                    unseen.lose_anything(lost.last);
                    states.values_mut().for_each(|s| s.lose_anything(lost.last));
                }
                LostMembers::Known(summaries) => {
                    for summary in summaries.iter().filter(|s| !dead(&s.member)) {
                        let state = states.entry(summary.member);
                        let state = state.or_insert_with(|| unseen.clone());
                        state.lose(lost.last, summary);
                    }
                }
            },
        }
    }
    let alive = states.into_iter().filter(|(member, _)| !dead(member));
    alive.map(|(member, state)| (member, state.finish(members.get(&member).copied()))).collect()
}

fn member_of(item: &FoundItem) -> MemberId {
    match item {
        FoundItem::Hard { member, .. }
        | FoundItem::Entry { member, .. }
        | FoundItem::Reset { member, .. }
        | FoundItem::LogSnapshot { member, .. }
        | FoundItem::Fault { member } => *member,
    }
}

#[derive(Clone, Default)]
struct MemberReplay {
    hard: HardState,
    hard_seq: Option<BatchSeq>,
    compacted: Option<(u64, u64)>,
    /// Contiguous: a gap starts it anew.
    entries: Vec<LoggedEntry>,
    /// The newest HardState was in this lost batch.
    hard_lost: Option<BatchSeq>,
    /// The log ends at this index, with lost entries.
    lost_up_to: Option<u64>,
    /// This lost batch may have changed the log in any way.
    log_lost: Option<BatchSeq>,
    marked: bool,
}

impl MemberReplay {
    fn item(&mut self, seq: BatchSeq, item: FoundItem) {
        match item {
            FoundItem::Hard { hard, .. } => self.set_hard(seq, hard),
            FoundItem::Entry { entry, .. } => self.append(LoggedEntry { seq, entry }),
            FoundItem::Reset { index, term, .. } => self.restart(index, term),
            FoundItem::LogSnapshot { hard, compacted_index, compacted_term, entries, .. } => {
                self.set_hard(seq, hard);
                if !planted!(LogSnapshotAppends) {
                    self.restart(compacted_index, compacted_term);
                }
                let entries = entries.into_iter();
                entries.for_each(|entry| self.append(LoggedEntry { seq, entry }));
            }
            FoundItem::Fault { .. } => self.marked = true,
        }
    }

    fn set_hard(&mut self, seq: BatchSeq, hard: HardState) {
        self.hard = hard;
        self.hard_seq = Some(seq);
        self.hard_lost = None;
    }

    fn restart(&mut self, index: u64, term: u64) {
        self.compacted = Some((index, term));
        self.entries.clear();
        self.lost_up_to = None;
        self.log_lost = None;
    }

    fn append(&mut self, entry: LoggedEntry) {
        if !planted!(SuffixNotTruncated) {
            self.truncate(entry.entry.index);
        }
        let previous = self.entries.last().map(|last| last.entry.index);
        if previous.is_some_and(|previous| previous + 1 != entry.entry.index) {
            self.entries.clear();
        }
        // Lost entries below it now show as a gap, unless they are flushed or it replaced them.
        self.lost_up_to = None;
        self.entries.push(entry);
    }

    /// Drops the entry with this index and all after it.
    fn truncate(&mut self, index: u64) {
        if let Some(first) = self.entries.first().map(|first| first.entry.index) {
            let keep = usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX);
            self.entries.truncate(keep);
        }
    }

    fn lose(&mut self, seq: BatchSeq, summary: &Summary) {
        if summary.kinds & kinds::HARD != 0 {
            self.hard_lost = Some(seq);
        }
        if summary.kinds & (kinds::RESET | kinds::LOG_SNAPSHOT) != 0 {
            self.entries.clear();
            self.compacted = None;
            self.log_lost = None;
            self.lost_up_to = Some(summary.last);
        } else if summary.kinds & kinds::ENTRY != 0 {
            self.truncate(summary.first);
            self.lost_up_to = Some(summary.last);
        }
        self.marked |= summary.kinds & kinds::FAULT != 0;
    }

    fn lose_anything(&mut self, seq: BatchSeq) {
        self.hard_lost = Some(seq);
        self.log_lost = Some(seq);
    }

    fn finish(mut self, flushed: Option<Flushed>) -> MemberLog {
        let compacted = self.compacted.unwrap_or((0, 0));
        let known = flushed.map(|flushed| (flushed.index, flushed.term));
        // Without a record in the index there is nothing to compare with.
        let (base_index, base_term) = match known {
            Some(known) if known.0 >= compacted.0 => known,
            _ => compacted,
        };
        let covered = self.entries.partition_point(|e| e.entry.index <= base_index);
        self.entries.drain(..covered);
        // A resync went beyond a log of another history, with older terms. Its rest, perhaps only a
        // part, and its losses count for nothing (rule `other-history-is-void`).
        if self.entries.first().is_some_and(|first| first.entry.term < base_term)
            && !planted!(OldHistoryCounts)
        {
            self.entries.clear();
            self.lost_up_to = None;
        }
        let faulted = self.fault(flushed, base_index);
        let committed = match flushed {
            Some(flushed) if !planted!(CommitBelowFlushed) => flushed.index,
            _ => 0,
        };
        MemberLog {
            hard: HardState { commit: self.hard.commit.max(committed), ..self.hard },
            compacted_index: base_index,
            compacted_term: base_term,
            entries: self.entries,
            hard_seq: self.hard_seq,
            faulted,
        }
    }

    /// The reason not to trust this log; `entries` are those above `base_index`.
    fn fault(&self, flushed: Option<Flushed>, base_index: u64) -> Option<FaultReason> {
        let entries = &self.entries;
        if self.marked {
            return Some(FaultReason::Marked);
        }
        if let Some(seq) = self.log_lost {
            return Some(FaultReason::AnythingLost(seq.0));
        }
        if let Some(seq) = self.hard_lost {
            return Some(FaultReason::HardStateLost(seq.0));
        }
        let lost = self.lost_up_to.filter(|last| *last > base_index);
        if let Some(last) = lost {
            return Some(FaultReason::EntriesLost(last));
        }
        if let (Some(flushed), Some((compacted, _))) = (flushed, self.compacted)
            && compacted > flushed.index
        {
            let flushed = flushed.index;
            return Some(FaultReason::StoreBehind { compacted, flushed });
        }
        let first = entries.first().map(|first| first.entry.index);
        if let Some(before) = first.filter(|first| *first != base_index + 1) {
            let after = base_index;
            return Some(FaultReason::Gap { after, before });
        }
        if let Some(damaged) = entries.iter().find(|e| !e.entry.payload_ok) {
            return Some(FaultReason::PayloadDamaged(damaged.entry.index));
        }
        let last = entries.last().map_or(base_index, |last| last.entry.index);
        let commit = self.hard.commit;
        (commit > last).then_some(FaultReason::CommitBeyondLog { commit, last })
    }
}

#[cfg(test)]
#[path = "replay_test.rs"]
mod tests;
