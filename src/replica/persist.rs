//! Log writes in flight, and the messages that must wait until a log write is durable.

use std::collections::VecDeque;

use raft::eraftpb::Message;

use crate::log::HardState;
use crate::replica::write::InFlight;

/// Log writes in flight, beyond which further entries wait in raft-rs.
pub const APPENDS_IN_FLIGHT_MAX: usize = 4;

/// The log writes of one member, oldest first. A Ready without a log write waits for the newest of
/// them: its messages must not overtake the writes that they promise.
pub struct Persist {
    last_number: u64,
    held: VecDeque<Held>,
    /// As of the newest log write, durable or not.
    written: HardState,
    /// Term and vote as of the newest durable log write.
    durable: (u64, u64),
    /// A log write was started since the last tick.
    busy: bool,
}

/// One log write.
struct Held {
    number: u64,
    /// The newest Ready of raft-rs that this write makes durable.
    ready: u64,
    hard: Option<HardState>,
    /// Index of the snapshot by which this write replaces the log.
    reset: Option<u64>,
    entries: usize,
    bytes: usize,
    messages: Vec<Message>,
}

/// Everything that waited for a log write that is now durable.
pub struct Freed {
    pub ready: u64,
    pub reset: Option<u64>,
    pub messages: Vec<Message>,
}

impl Persist {
    /// `hard` is the recovered HardState, which is durable.
    pub fn new(hard: HardState) -> Persist {
        Persist {
            last_number: 0,
            held: VecDeque::new(),
            durable: (hard.term, hard.vote),
            written: hard,
            busy: false,
        }
    }

    /// Starts a log write. Returns its number, and `hard` if it differs from the last written one.
    pub fn begin(
        &mut self,
        ready: u64,
        hard: HardState,
        entries: usize,
        bytes: usize,
        reset: Option<u64>,
    ) -> (u64, Option<HardState>) {
        self.last_number += 1;
        let hard = (hard != self.written).then_some(hard);
        self.written = hard.unwrap_or(self.written);
        self.busy = true;
        self.held.push_back(Held {
            number: self.last_number,
            ready,
            hard,
            reset,
            entries,
            bytes,
            messages: Vec::new(),
        });
        (self.last_number, hard)
    }

    /// Holds messages until the newest log write is durable. Returns them if none is in flight.
    pub fn hold(&mut self, ready: u64, messages: Vec<Message>) -> Option<Vec<Message>> {
        match self.held.back_mut() {
            Some(newest) => {
                newest.ready = newest.ready.max(ready);
                newest.messages.extend(messages);
                None
            }
            None => Some(messages),
        }
    }

    /// Notes that log write `number` is durable. Log writes are confirmed in order.
    pub fn confirm(&mut self, number: u64) -> Freed {
        let held = self.held.pop_front().expect("only log writes in flight are confirmed");
        assert_eq!(held.number, number, "log writes are confirmed in order");
        if let Some(hard) = held.hard {
            self.durable = (hard.term, hard.vote);
        }
        Freed { ready: held.ready, reset: held.reset, messages: held.messages }
    }

    /// True when term or vote of `hard` must be written before any message leaves.
    pub fn must_write(&self, hard: &HardState) -> bool {
        (hard.term, hard.vote) != (self.written.term, self.written.vote)
    }

    /// True when exactly this term and vote would survive a crash.
    pub fn is_durable(&self, hard: &HardState) -> bool {
        (hard.term, hard.vote) == self.durable
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// True when everything written is durable, and a commit index of at least `commit` is written.
    pub fn has_all(&self, commit: u64) -> bool {
        self.is_idle() && self.written.commit >= commit
    }

    /// True while a log write that replaces the log by a snapshot is in flight.
    pub fn is_resetting(&self) -> bool {
        self.held.iter().any(|held| held.reset.is_some())
    }

    pub fn is_full(&self) -> bool {
        self.held.len() >= APPENDS_IN_FLIGHT_MAX
    }

    /// The log writes with entries in flight, for the gate.
    pub fn in_flight(&self) -> InFlight {
        let mut with_entries = self.held.iter().rev().filter(|held| held.entries > 0);
        let newest_bytes = with_entries.next().map(|held| held.bytes);
        InFlight {
            count: newest_bytes.map_or(0, |_| 1 + with_entries.count()),
            newest_bytes: newest_bytes.unwrap_or(0),
        }
    }

    /// Call once per tick. True when the commit index advanced in memory and no log write carried
    /// it; write-back waits for that (rule `write-back-after-durable-commit`).
    pub fn wants_commit(&mut self, commit: u64) -> bool {
        let busy = std::mem::take(&mut self.busy);
        !busy && commit > self.written.commit
    }
}
