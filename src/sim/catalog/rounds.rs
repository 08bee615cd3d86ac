//! Rounds of access sets, as [`crate::control::tasks::set_access`] has them committed: on the leader,
//! through its own pod's data path.

use std::sync::Arc;

use crate::sim::catalog::Catalog;
use crate::sim::catalog::call::Round;
use crate::sim::catalog::pod::{Answers, Waiting};
use crate::sim::names::Host;
use crate::worker::AccessAnswer;

impl Catalog {
    /// The rounds that have begun since the last call.
    pub fn take_rounds(&mut self) -> Vec<Round> {
        std::mem::take(&mut self.rounds)
    }

    pub(super) fn access_rounds(&mut self, host: Host) {
        let (now, at_ms) = (self.local_time(host), self.wall_ms());
        let pod = &mut self.pods[host];
        if !pod.leads() {
            // What is on its way is nobody's.
            pod.rounds.forget();
            pod.round_answers = Answers::default();
            return;
        }
        let ended = std::mem::take(&mut *pod.round_answers.lock().expect("nobody panics with it"));
        for (volume, result) in ended {
            let Some(command) = pod.rounds.ended(volume, result) else { continue };
            let member = pod.member.as_mut().expect("it leads");
            let id = member.propose(now, at_ms, command);
            pod.waiting.insert(id, Waiting::Access);
        }
        let Some(state) = pod.state().cloned() else { return };
        for (volume, set) in pod.rounds.due(&state) {
            let answers = Arc::clone(&pod.round_answers);
            let told = move |result| {
                answers.lock().expect("nobody panics with it").push((volume, result));
            };
            let answer = AccessAnswer(Box::new(told));
            self.rounds.push(Round { host, volume, set, answer });
        }
    }
}
