//! The terms of entries that are not in memory, as runs.

use std::collections::VecDeque;

/// The terms of the entries from one index to another. There is always one: that of the entry
/// before a log begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    first: u64,
    last: u64,
    /// (first index, term), ascending; the first run begins at or before `first`.
    runs: VecDeque<(u64, u64)>,
}

impl Terms {
    pub fn new(index: u64, term: u64) -> Terms {
        Terms { first: index, last: index, runs: [(index, term)].into() }
    }

    /// Adds the term of the entry after the last.
    pub fn push(&mut self, term: u64) {
        self.last += 1;
        if self.last().1 != term {
            self.runs.push_back((self.last, term));
        }
    }

    /// The first index and its term.
    pub fn first(&self) -> (u64, u64) {
        (self.first, self.runs[0].1)
    }

    /// The last index and its term.
    pub fn last(&self) -> (u64, u64) {
        (self.last, self.runs[self.runs.len() - 1].1)
    }

    pub fn get(&self, index: u64) -> Option<u64> {
        if index < self.first || index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|(first, _)| *first <= index);
        Some(self.runs[run - 1].1)
    }

    /// Forgets the entries before `index`, which is not after the last.
    pub fn forget_before(&mut self, index: u64) {
        assert!(index <= self.last, "one entry is always left");
        self.first = self.first.max(index);
        while self.runs.get(1).is_some_and(|(first, _)| *first <= self.first) {
            self.runs.pop_front();
        }
    }

    /// Forgets the oldest entries until at most `runs_max` terms are left.
    pub fn limit(&mut self, runs_max: usize) {
        if let Some(over) = self.runs.len().checked_sub(runs_max).filter(|over| *over > 0) {
            self.forget_before(self.runs[over].0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    #[test]
    fn runs_tell_the_same_as_a_list() {
        let mut rng = Rng::new(4);
        for _ in 0..50 {
            let (mut base, mut term) = (rng.below(10), 1);
            let mut terms = Terms::new(base, term);
            let mut list = vec![term];
            for _ in 0..200 {
                match rng.below(20) {
                    0 => {
                        let gone = rng.below(list.len() as u64);
                        list.drain(..gone as usize);
                        base += gone;
                        terms.forget_before(base);
                    }
                    1 => {
                        terms.limit(5);
                        let mut distinct = list.clone();
                        distinct.dedup();
                        if let Some(oldest) = distinct.iter().rev().nth(4) {
                            let gone = list.iter().position(|term| term == oldest).unwrap();
                            if distinct.len() > 5 {
                                list.drain(..gone);
                                base += gone as u64;
                            }
                        }
                    }
                    step => {
                        term += u64::from(step < 6);
                        terms.push(term);
                        list.push(term);
                    }
                }
                let last = base + list.len() as u64 - 1;
                assert_eq!(terms.first(), (base, list[0]));
                assert_eq!(terms.last(), (last, term));
                for index in base.saturating_sub(2)..last + 2 {
                    let at = index.checked_sub(base).and_then(|at| list.get(at as usize));
                    assert_eq!(terms.get(index), at.copied());
                }
            }
        }
    }
}
