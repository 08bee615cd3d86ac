//! Answers with data that a connection to another pod was promised: what was asked for and is being
//! read, beside what waits to leave. Without a bound, whoever asks faster than the network carries
//! the answers would fill the link's queue, and a full queue ends the link for all who use it.

use std::collections::VecDeque;

use crate::net::message::CallId;
use crate::types::{Extent, MemberId};

/// A question for an extent of a member here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentAsk {
    pub call: CallId,
    pub source: MemberId,
    pub extent: Extent,
    pub layer: u32,
}

/// What one connection is owed.
#[derive(Debug, Default)]
pub struct Owed {
    bytes: usize,
    /// Questions that wait for their turn, few per member that is resynced.
    pub waiting: VecDeque<ExtentAsk>,
}

impl Owed {
    /// True when an answer of this size, with what waits to leave, is within a quarter of the
    /// queue: messages of other kinds need room, too. One answer always may be promised.
    pub fn has_room(&self, bytes: usize, queued_bytes: usize, queue_bytes_max: usize) -> bool {
        let before = self.bytes + queued_bytes;
        before == 0 || before + bytes <= queue_bytes_max / 4
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn promise(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// A promised answer was handed to the link.
    pub fn answered(&mut self, bytes: usize) {
        self.bytes = self.bytes.checked_sub(bytes).expect("only what was promised is answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_and_what_waits_to_leave_stay_within_a_quarter_of_the_queue() {
        let mut owed = Owed::default();
        assert!(owed.has_room(9, 0, 16), "one always may be");
        owed.promise(9);
        assert!(!owed.has_room(1, 0, 16));
        owed.answered(9);
        assert!(!owed.has_room(1, 4, 16), "it waits to leave");
        owed.promise(1);
        assert!(owed.has_room(1, 2, 16) && !owed.has_room(1, 3, 16));
    }
}
