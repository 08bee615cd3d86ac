//! Entries in the log of a member that zero blocks and are not applied yet. Each of their extents
//! will take memory of the store (rule `overlay-is-bounded`).

use std::collections::VecDeque;

use crate::replica::command;

#[derive(Default)]
pub struct UnappliedZeroes {
    /// (index, extents), in order.
    entries: VecDeque<(u64, u64)>,
    extents: u64,
}

impl UnappliedZeroes {
    pub fn extents(&self) -> u64 {
        self.extents
    }

    /// An entry goes into the log, and replaces those from its index on.
    pub fn appended(&mut self, index: u64, context: &[u8]) {
        while let Some((newer, extents)) = self.entries.back().copied()
            && newer >= index
        {
            self.entries.pop_back();
            self.extents -= extents;
        }
        let extents = command::zero_extents(context);
        if extents > 0 {
            self.entries.push_back((index, extents));
            self.extents += extents;
        }
    }

    /// Entries up to here are applied.
    pub fn applied(&mut self, index: u64) {
        while let Some((known, extents)) = self.entries.front().copied()
            && known <= index
        {
            self.entries.pop_front();
            self.extents -= extents;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::command::EntryCommand;
    use crate::types::{Block, BlockRange, Origin};

    #[test]
    fn an_entry_counts_until_it_is_applied_or_replaced() {
        let mut zeroes = UnappliedZeroes::default();
        let trim = |extents: u32| {
            let range = BlockRange { first: Block(0), count: 16 * extents };
            let command = EntryCommand::Zero { range, trim: true };
            command::encode(Origin::default(), &command)
        };
        zeroes.appended(1, &trim(10));
        zeroes.appended(2, &[]);
        zeroes.appended(3, &trim(5));
        assert_eq!(zeroes.extents(), 15);
        zeroes.applied(2);
        assert_eq!(zeroes.extents(), 5);
        zeroes.appended(4, &trim(1));
        zeroes.appended(3, &trim(2));
        assert_eq!(zeroes.extents(), 2, "the new third entry took the place of two");
        zeroes.applied(3);
        assert_eq!(zeroes.extents(), 0);
    }
}
