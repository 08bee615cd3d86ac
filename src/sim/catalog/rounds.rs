//! Rounds of access sets, as [`crate::control::tasks::set_access`] has them committed: on the
//! leader, through the data path of its own pod.

use std::sync::Arc;

use crate::sim::catalog::call::Round;
use crate::sim::catalog::pod::{Answers, ControlPod, Waiting};
use crate::sim::names::Host;
use crate::types::Mono;
use crate::worker::AccessAnswer;

impl ControlPod {
    /// Records the rounds that have ended, and returns those that begin.
    pub fn access_rounds(&mut self, host: Host, now: Mono, at_ms: u64) -> Vec<Round> {
        if !self.leads() {
            // What is on its way is nobody's.
            self.rounds.forget();
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
        let due = self.rounds.due(&state).into_iter();
        let begin = |(volume, set)| {
            let answers = Arc::clone(&self.round_answers);
            let told = move |result| {
                answers.lock().expect("nobody panics with it").push((volume, result));
            };
            Round { host, volume, set, answer: AccessAnswer(Box::new(told)) }
        };
        due.map(begin).collect()
    }
}
