//! The observer of this pod, for use by several tasks.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::control::objects::observer::Observer;
use crate::control::objects::source::Source;
use crate::control::reports::{Pods, Reports};
use crate::control::state::CatalogState;

/// See the module.
#[derive(Debug)]
pub struct Observed {
    observer: Mutex<Observer>,
    /// The number of the last change.
    last: watch::Sender<u64>,
}

impl Observed {
    pub fn new(run: u64) -> Observed {
        Observed { observer: Mutex::new(Observer::new(run)), last: watch::Sender::new(0) }
    }

    /// Takes over the state and the reports of now, then looks at what is known.
    pub fn look<T>(
        &self,
        state: &CatalogState,
        reports: &Reports,
        with: impl FnOnce(&mut Observer, u64) -> T,
    ) -> T {
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = unix_ms();
        if reports.with(|pods| observer.update(Source::new(state), pods, now_ms)) {
            self.last.send_replace(observer.mark().sequence);
        }
        with(&mut observer, now_ms)
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

/// True when the reports tell of every pod that is up: a new leader has not heard from all.
pub fn is_telling(state: &CatalogState, pods: Pods<'_>) -> bool {
    pods.has_listened() || state.pods.keys().all(|pod| pods.is_up(*pod))
}

/// Time since 1970; 0 on a clock that is before that.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
