//! Rounds of access sets, as [`crate::control::rounds::set_access`] has them committed: on the
//! leader, through the data path of its own pod, and of others when that takes long.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::control::access::{HELP_AFTER, helper};
use crate::control::state::CatalogState;
use crate::sim::catalog::call::Round;
use crate::sim::catalog::pod::{Answers, ControlPod, Waiting};
use crate::sim::names::{Host, host_of, pod_id};
use crate::types::{AccessSet, Mono, VolumeId};
use crate::worker::AccessAnswer;

impl ControlPod {
    /// Records the rounds that have ended, and returns those that begin.
    pub fn access_rounds(&mut self, host: Host, now: Mono, at_ms: u64) -> Vec<Round> {
        if !self.leads() {
            // What is on its way is nobody's.
            self.rounds.forget();
            self.helps.clear();
            self.round_answers = Answers::default();
            return Vec::new();
        }
        let ended = std::mem::take(&mut *self.round_answers.lock().expect("nobody panics with it"));
        for (volume, result) in ended {
            let Some(command) = self.rounds.ended(volume, result) else { continue };
            let member = self.member.as_mut().expect("it leads");
            let id = member.propose(now, at_ms, command);
            self.waiting.insert(id, Waiting::Access);
        }
        let Some(state) = self.state().cloned() else { return Vec::new() };
        let due = self.rounds.due(&state);
        let mut begun: Vec<Round> =
            due.into_iter().map(|(volume, set)| self.round(host, host, volume, set)).collect();
        begun.extend(self.helps(host, now, &state));
        begun
    }

    fn round(&self, from: Host, host: Host, volume: VolumeId, set: AccessSet) -> Round {
        let answers = Arc::clone(&self.round_answers);
        let told = move |result| {
            answers.lock().expect("nobody panics with it").push((volume, result));
        };
        Round { from, host, volume, set, answer: AccessAnswer(Box::new(told)) }
    }

    /// Rounds that have taken long, for other pods.
    fn helps(&mut self, from: Host, now: Mono, state: &CatalogState) -> Vec<Round> {
        let on_their_way: BTreeSet<VolumeId> = self.rounds.on_their_way().collect();
        self.helps.retain(|volume, _| on_their_way.contains(volume));
        let mut asked = Vec::new();
        for volume in on_their_way {
            let (at, attempt) = self.helps.entry(volume).or_insert((now + HELP_AFTER, 0));
            if now < *at {
                continue;
            }
            let set = state.access_of(volume);
            let (pods, own) = (self.reports.pods(now), pod_id(from));
            let pod = helper(state, pods, own, volume, set.generation, *attempt);
            (*at, *attempt) = (now + HELP_AFTER, *attempt + 1);
            asked.extend(pod.map(|pod| (host_of(pod), volume, set)));
        }
        let round = |(host, volume, set)| self.round(from, host, volume, set);
        asked.into_iter().map(round).collect()
    }
}
