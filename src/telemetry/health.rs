//! Whether the pod is well, for the program that started it and for those who send it clients.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a pod must have to serve, and has not.
type Missing = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What is known of the pod.
#[derive(Default)]
pub struct Health {
    /// The counter of rounds of the data path, once it runs.
    rounds: OnceLock<Arc<AtomicU64>>,
    checks: Mutex<Vec<Missing>>,
    steps: Mutex<Vec<Missing>>,
}

impl Health {
    /// The data path runs, and listens for clients.
    pub fn serves(&self, rounds: Arc<AtomicU64>) {
        // There is one data path.
        let _first = self.rounds.set(rounds);
    }

    /// Adds a check, which returns what is missing.
    pub fn check(&self, missing: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(missing));
    }

    /// Adds a check, which returns what makes another pod's absence harmful now.
    pub fn check_step(&self, lags: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(lags));
    }

    /// Rounds that the data path has made; `None` before it runs.
    pub fn rounds(&self) -> Option<u64> {
        self.rounds.get().map(|rounds| rounds.load(Ordering::Relaxed))
    }

    /// Why this pod does not serve, in words; nothing when it does.
    pub fn missing(&self) -> Vec<String> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<String> = checks.iter().flat_map(|check| check()).collect();
        if self.rounds.get().is_none() {
            let text = "NBD does not listen yet: the pod joins its cluster, or opens its disks";
            missing.push(text.to_owned());
        }
        missing
    }
    /// Why another pod should not be stopped now, in words: this one does not serve, or is not in
    /// step with the others.
    pub fn out_of_step(&self) -> Vec<String> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let lags = steps.iter().flat_map(|lags| lags());
        self.missing().into_iter().chain(lags).collect()
    }
}
