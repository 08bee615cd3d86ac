//! How long the writes of one leader take in each stage, from what the member asks for. A part of
//! the members. Times are those of the rounds; nothing here reads a clock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::log::Append;
use crate::types::Mono;

/// The appends of a leader whose entries are not all applied yet.
#[derive(Debug, Default)]
pub struct Stages {
    appends: VecDeque<Appending>,
    /// When the entry that was applied last went to the log, until its request is answered.
    applied: Option<Mono>,
}

#[derive(Debug)]
struct Appending {
    number: u64,
    first: u64,
    last: u64,
    /// When it went to the log and to the followers.
    at: Mono,
}

impl Stages {
    /// A leader's append goes to the log. Entries that it replaces will not be applied.
    pub fn appended(&mut self, now: Mono, append: &Append) {
        let (Some(first), Some(last)) = (append.entries.first(), append.entries.last()) else {
            return;
        };
        while self.appends.back().is_some_and(|newest| newest.last >= first.index) {
            self.appends.pop_back();
        }
        let (number, first, last) = (append.number, first.index, last.index);
        self.appends.push_back(Appending { number, first, last, at: now });
    }

    /// The log has an append: the time that took, and the number of its entries.
    pub fn logged(&self, now: Mono, number: u64) -> Option<(Duration, u64)> {
        let append = self.appends.iter().find(|append| append.number == number)?;
        Some((now.since(append.at), append.last - append.first + 1))
    }

    /// An entry is applied.
    pub fn applied(&mut self, index: u64) {
        while self.appends.front().is_some_and(|oldest| oldest.last < index) {
            self.appends.pop_front();
        }
        let append = self.appends.front().filter(|oldest| oldest.first <= index);
        self.applied = append.map(|append| append.at);
    }

    /// When the entry that was applied last went to the log, once.
    pub fn take_applied(&mut self) -> Option<Mono> {
        self.applied.take()
    }

    /// The leadership is lost.
    pub fn clear(&mut self) {
        self.appends.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogEntry;

    fn append(number: u64, indexes: std::ops::RangeInclusive<u64>) -> Append {
        let entries = indexes.map(|index| LogEntry { index, ..LogEntry::default() }).collect();
        Append { number, entries, ..Append::default() }
    }

    #[test]
    fn an_entry_is_timed_from_its_own_append() {
        let mut stages = Stages::default();
        stages.appended(Mono(100), &append(1, 5..=7));
        stages.appended(Mono(200), &append(2, 8..=8));
        // One that only makes a commit durable has no entries.
        stages.appended(Mono(250), &Append { number: 3, ..Append::default() });
        assert_eq!(stages.logged(Mono(300), 1), Some((Duration::from_nanos(200), 3)));
        assert_eq!(stages.logged(Mono(300), 3), None);
        stages.applied(6);
        assert_eq!((stages.take_applied(), stages.take_applied()), (Some(Mono(100)), None));
        stages.applied(8);
        assert_eq!(stages.take_applied(), Some(Mono(200)));
        stages.applied(9);
        assert_eq!(stages.take_applied(), None, "an entry of an earlier leader");
    }

    #[test]
    fn replaced_entries_are_forgotten() {
        let mut stages = Stages::default();
        stages.appended(Mono(100), &append(1, 5..=7));
        stages.appended(Mono(200), &append(2, 8..=9));
        stages.appended(Mono(300), &append(3, 6..=6));
        assert_eq!(stages.appends.len(), 1);
        stages.applied(6);
        assert_eq!(stages.take_applied(), Some(Mono(300)));
    }
}
