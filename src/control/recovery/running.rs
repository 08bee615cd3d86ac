//! A recovery that this pod carries out, as its tasks and services share it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::control::recovery::format::Copy;
use crate::control::recovery::gathering::Gathering;
use crate::control::recovery::merge::MergeError;
use crate::control::recovery::plan::{Loaded, Plan};
use crate::types::PodId;

/// See the module.
pub struct Recovery {
    pub plan: Plan,
    gathering: Mutex<Gathering>,
    /// Held while an offer is taken.
    pub turn: tokio::sync::Mutex<()>,
    /// Counts what was heard.
    heard: watch::Sender<u64>,
    /// Why the new catalog could not be made.
    failed: Mutex<Option<String>>,
}

impl Recovery {
    /// Begins with the sources of the plan.
    pub fn new(loaded: Loaded, me: PodId) -> Result<Recovery, MergeError> {
        let plan = loaded.plan.clone();
        let gathering = Mutex::new(Gathering::new(loaded, me)?);
        let (turn, heard) = (tokio::sync::Mutex::default(), watch::Sender::new(0));
        Ok(Recovery { plan, gathering, turn, heard, failed: Mutex::default() })
    }

    /// Looks at what was gathered. Keep it short: others wait meanwhile.
    pub fn with<T>(&self, look: impl FnOnce(&Gathering) -> T) -> T {
        look(&self.gathering())
    }

    /// Takes what a pod knows.
    pub fn hear(&self, pod: PodId, is_complete: bool, copy: Copy) -> Result<(), MergeError> {
        let revision = copy.head.revision;
        let heard = self.gathering().hear(pod, is_complete, copy);
        match &heard {
            Ok(()) => tracing::info!(pod = pod.0, revision, "a pod told what it knows"),
            Err(error) => tracing::error!(pod = pod.0, "not used for the recovery: {error}"),
        }
        self.heard.send_modify(|count| *count += 1);
        heard
    }

    /// See [`Gathering::leave_out`].
    pub fn leave_out(&self, pods: &[PodId]) -> bool {
        let is_done = self.gathering().leave_out(pods);
        self.heard.send_modify(|count| *count += 1);
        is_done
    }

    /// Why the new catalog could not be made at the last try.
    pub fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records why the new catalog could not be made.
    pub fn fail(&self, why: String) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Tells when something was heard.
    pub fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering> {
        // A source is added as a whole, or not at all.
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
