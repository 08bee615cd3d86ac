//! Answers with data that are promised to a connection of another pod: asked for and being read,
//! beside the frames that wait to leave. A part of the peers. Without a bound, a pod that asks
//! faster than the network carries would fill a link's queue, which ends the link for all users.

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

/// The promised answers of one connection.
#[derive(Debug, Default)]
pub struct Owed {
    bytes: usize,
    /// Questions that wait for their turn, a few for each member in a resync.
    pub waiting: VecDeque<ExtentAsk>,
}

impl Owed {
    /// True when this answer, the promised ones and the queue fit into a quarter of the queue's
    /// limit: other messages need room, too. One answer may always be promised.
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
