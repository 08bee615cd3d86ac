//! Rest: a group in which nothing happens needs neither ticks nor heartbeats of its own (ADR 9).
//!
//! A leader offers rest when all voters have its whole log, committed and applied, and nobody asked
//! for anything for a while. Here is only who may rest, and what is made up for afterwards. The
//! worker beats for all resting members of a pair of lanes at once, and wakes them.
//!
//! Invariant: a beat grants no lease (rule `lease-ends-before-election`). Leases come from answered
//! rounds of heartbeats alone, so a resting leader loses its lease, and asks a majority first. A
//! beat only keeps followers quiet for longer, which is safe at any time.

use raft::ProgressState;
use raft::eraftpb::MessageType;

use crate::limits::{REST_AFTER_TICKS, TICK};
use crate::replica::messages::{Input, Rest};
use crate::replica::running::Running;
use crate::types::Mono;

impl Running {
    /// Counts ticks without any event that could be work.
    pub(super) fn count_quiet(&mut self, input: &Input) {
        match input {
            Input::Tick => self.quiet_ticks = self.quiet_ticks.saturating_add(1),
            Input::Peer(message) if message.get_msg_type() == MessageType::MsgHeartbeatResponse => {
            }
            _ => self.quiet_ticks = 0,
        }
    }

    pub(super) fn offers_rest(&self) -> Option<Rest> {
        let index = self.raft.last_index();
        let raft = &self.raft.raw.raft;
        let me = self.config.member.0;
        let is_up_to_date = |voter: &u64| {
            *voter == me
                || raft.prs().get(*voter).is_some_and(|progress| {
                    progress.state == ProgressState::Replicate
                        && progress.matched == index
                        && progress.recent_active
                })
        };
        let conf = &self.applier.meta.conf;
        let rests = self.quiet_ticks >= REST_AFTER_TICKS
            && self.is_serving()
            && raft.lead_transferee.is_none()
            && !raft.has_pending_conf()
            && !self.applier.meta.is_joint()
            && conf.learners.is_empty()
            && self.writes.bytes() == 0
            && self.reads.is_empty()
            && self.resync.is_empty()
            && self.has_everything(index)
            && conf.voters.iter().all(is_up_to_date);
        rests.then_some(Rest { leader: self.config.member, term: self.raft.term(), index })
    }

    pub(super) fn may_rest(&self, offer: &Rest) -> bool {
        self.raft.term() == offer.term
            && self.raft.leader() == Some(offer.leader)
            && offer.leader != self.config.member
            && self.raft.last_index() == offer.index
            && self.has_everything(offer.index)
    }

    /// The log up to `index`, its end, is durable, known to be committed, and applied.
    fn has_everything(&self, index: u64) -> bool {
        self.raft.committed() == index
            && self.applied_index == index
            && self.persist.has_all(index)
            && self.raft.raw.raft.raft_log.unstable_entries().is_empty()
            && self.install.is_none()
            && self.keep.above().is_none()
            && !self.votes.resyncing
    }

    /// Makes up for the time without ticks.
    pub(super) fn on_woken(&mut self, now: Mono, heard: Mono) {
        if self.raft.is_leader() {
            // It counts again whether a majority answers, from now on.
            self.raft.raw.raft.election_elapsed = 0;
            self.reads.rested(now);
            return;
        }
        self.votes.heard(heard);
        let ticks = now.since(heard).as_millis() / TICK.as_millis();
        let raft = &mut self.raft.raw.raft;
        let before_campaign = raft.randomized_election_timeout().saturating_sub(2);
        raft.election_elapsed = before_campaign.min(ticks as usize);
    }
}
