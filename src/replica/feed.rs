//! Feeds followers that are behind the memory of their leader, with entries that the store reads
//! back from its log. raft-rs asks, this decides when the store is asked, and what came goes to the
//! followers that wait for it. Per follower, one fetch is in flight, and a bounded number of bytes.

use raft::ProgressState;

use crate::limits::{FED_BYTES_MAX, FED_TICKS_MAX};
use crate::log::{LogEntry, LogGone};
use crate::planted::planted;
use crate::replica::log_tail::Asked;
use crate::replica::messages::{NotFetched, Output};
use crate::replica::raft_adapter::RaftAdapter;
use crate::types::MemberId;

/// What the store is asked for, and what followers were sent of it.
#[derive(Default)]
pub struct Feeds {
    /// First entries of fetches in flight.
    in_flight: Vec<u64>,
    fed: Vec<Fed>,
}

/// Entries that a follower was sent and has not answered.
struct Fed {
    to: u64,
    last: u64,
    bytes: usize,
    /// What the follower had acknowledged when it was last seen to move, and ticks since then.
    matched: u64,
    ticks: u32,
}

impl Feeds {
    /// Asks the store for entries, if a follower can take them now.
    pub fn ask(&mut self, raft: &RaftAdapter, asked: Asked, out: &mut Vec<Output>) {
        let Asked { low, high } = asked;
        if self.in_flight.contains(&low) {
            return;
        }
        self.fed.retain(|fed| is_on_its_way(raft, fed));
        let fed_bytes = |to: u64| {
            let fed = self.fed.iter().filter(|fed| fed.to == to);
            fed.map(|fed| fed.bytes).sum::<usize>()
        };
        // One that was not heard for an election timeout is not fed: it may be gone.
        let is_fit = |to: &u64| raft.is_heard(*to) && fed_bytes(*to) < FED_BYTES_MAX;
        let Some(to) = raft.waiting_at(low).into_iter().find(is_fit) else { return };
        self.in_flight.push(low);
        out.push(Output::FetchLog { to: MemberId(to), low, high });
    }

    /// A fetch came back. Sends what it brought to the followers that wait for it; without entries,
    /// they may need a resync.
    pub fn fetched(
        &mut self,
        raft: &mut RaftAdapter,
        low: u64,
        result: Result<Vec<LogEntry>, NotFetched>,
    ) {
        self.in_flight.retain(|other| *other != low);
        if !raft.is_leader() {
            return;
        }
        let bytes = match &result {
            Ok(entries) => entries.iter().map(|entry| entry.payload.len()).sum(),
            Err(_) => 0,
        };
        let log = raft.raw.mut_store();
        if low <= log.base() {
            // The log was replaced meanwhile.
            return;
        }
        match result {
            Ok(entries) => {
                if let Err(error) = log.lend(low, &entries) {
                    tracing::error!(%error, "the store gave entries of another log; not sent");
                    log.gone_up_to(low);
                }
            }
            Err(NotFetched::Busy) => return,
            Err(NotFetched::Gone(LogGone { first })) => log.gone_up_to(low.max(first - 1)),
        }
        for to in raft.waiting_at(low) {
            raft.raw.raft.send_append(to);
            let last = raft.next_index(to).map_or(0, |next| next - 1);
            let matched = raft.matched_index(to).unwrap_or(0);
            self.fed.push(Fed { to, last, bytes, matched, ticks: 0 });
        }
        raft.raw.mut_store().take_back();
    }

    /// Forgets what was sent to followers that acknowledge nothing. It may be lost: a follower
    /// whose log is full drops entries without a word. The next append then shows where it is.
    pub fn tick(&mut self, raft: &RaftAdapter) {
        for fed in &mut self.fed {
            match raft.matched_index(fed.to) {
                Some(matched) if matched > fed.matched => (fed.matched, fed.ticks) = (matched, 0),
                _ => fed.ticks += 1,
            }
        }
        self.fed.retain(|fed| fed.ticks < FED_TICKS_MAX || planted!(FedForEver));
    }

    /// This member does not lead any more. Fetches in flight come back and are dropped.
    pub fn clear(&mut self) {
        self.fed.clear();
    }
}

/// False once the follower has answered, or the leader has begun again.
fn is_on_its_way(raft: &RaftAdapter, fed: &Fed) -> bool {
    let progress = raft.raw.raft.prs().get(fed.to);
    progress.is_some_and(|progress| {
        progress.state == ProgressState::Replicate
            && progress.matched < fed.last
            && fed.last < progress.next_idx
    })
}
