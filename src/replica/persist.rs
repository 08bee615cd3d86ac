//! Log writes under way: what each one makes durable, and the messages that may leave only then.

use std::collections::VecDeque;

use raft::eraftpb::Message;

use crate::log::HardState;
use crate::replica::write::InFlight;

/// Log writes under way before further entries wait in raft-rs.
pub const APPENDS_IN_FLIGHT_MAX: usize = 4;

/// The log writes of one member, oldest first. A Ready that has nothing to write waits with the
/// newest of them: its messages must not overtake what they promise.
pub struct Persist {
    last_number: u64,
    held: VecDeque<Held>,
    /// As of the newest log write, durable or not.
    written: HardState,
    /// Term and vote as of the newest durable one.
    durable: (u64, u64),
    /// There was a log write since the last tick.
    busy: bool,
}

/// One log write.
struct Held {
    number: u64,
    /// The newest Ready of raft-rs that is durable with it.
    ready: u64,
    hard: Option<HardState>,
    /// Index of the snapshot that replaced the log with it.
    reset: Option<u64>,
    entries: usize,
    bytes: usize,
    messages: Vec<Message>,
}

/// What a confirmed log write sets free.
pub struct Freed {
    pub ready: u64,
    pub reset: Option<u64>,
    pub messages: Vec<Message>,
}

impl Persist {
    /// `hard` is what was recovered: durable.
    pub fn new(hard: HardState) -> Persist {
        Persist {
            last_number: 0,
            held: VecDeque::new(),
            durable: (hard.term, hard.vote),
            written: hard,
            busy: false,
        }
    }

    /// Starts a log write: its number, and the hard state if that differs from the last written.
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

    /// Lets messages wait for the newest log write; gives them back when none is under way.
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

    /// A log write is durable. They are confirmed in order.
    pub fn confirm(&mut self, number: u64) -> Freed {
        let held = self.held.pop_front().expect("confirmed what was not under way");
        assert_eq!(held.number, number, "log writes are confirmed in order");
        if let Some(hard) = held.hard {
            self.durable = (hard.term, hard.vote);
        }
        Freed { ready: held.ready, reset: held.reset, messages: held.messages }
    }

    /// True when term and vote of `hard` are to be written before anything else leaves.
    pub fn must_write(&self, hard: &HardState) -> bool {
        (hard.term, hard.vote) != (self.written.term, self.written.vote)
    }

    /// True when this very term and vote would survive a crash.
    pub fn is_durable(&self, hard: &HardState) -> bool {
        (hard.term, hard.vote) == self.durable
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// A snapshot is replacing the log and is not durable yet.
    pub fn is_resetting(&self) -> bool {
        self.held.iter().any(|held| held.reset.is_some())
    }

    pub fn is_full(&self) -> bool {
        self.held.len() >= APPENDS_IN_FLIGHT_MAX
    }

    /// Log writes with entries, for the gate.
    pub fn in_flight(&self) -> InFlight {
        let mut with_entries = self.held.iter().rev().filter(|held| held.entries > 0);
        let newest_bytes = with_entries.next().map(|held| held.bytes);
        InFlight {
            count: newest_bytes.map_or(0, |_| 1 + with_entries.count()),
            newest_bytes: newest_bytes.unwrap_or(0),
        }
    }

    /// Once per tick: true when the commit index went on in memory only, with no log write to
    /// carry it (rule R7: write-back waits for it).
    pub fn wants_commit(&mut self, commit: u64) -> bool {
        let busy = std::mem::take(&mut self.busy);
        !busy && commit > self.written.commit
    }
}
