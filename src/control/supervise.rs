//! Keeps background tasks alive: one that panics is started again, after a pause that grows, and
//! counted. A task that returns has done its work.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::replica::member::panic_text;
use crate::telemetry::metrics::Samples;
use crate::telemetry::metrics::list;

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often each task was started again.
#[derive(Debug, Default)]
pub struct Restarts(Mutex<BTreeMap<&'static str, u64>>);

impl Restarts {
    fn add(&self, task: &'static str, count: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(task).or_default() += count;
    }

    pub fn collect(&self, into: &mut Samples) {
        for (task, count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            into.count(&list::TASK_RESTARTS, &[task], *count);
        }
    }
}

/// A pause that doubles, unless what it follows has lasted for long.
#[derive(Debug)]
pub struct Pause {
    next: Duration,
    most: Duration,
    began: Instant,
}

impl Pause {
    pub fn new(least: Duration, most: Duration) -> Pause {
        Pause { next: least, most, began: Instant::now() }
    }

    /// Waits, each time for longer.
    pub async fn wait(&mut self, least: Duration) {
        if self.began.elapsed() > 2 * self.most {
            self.next = least;
        }
        sleep(self.next).await;
        self.next = (2 * self.next).min(self.most);
        self.began = Instant::now();
    }
}

/// Runs a task until it returns.
pub async fn supervise<T: Future<Output = ()>>(
    name: &'static str,
    restarts: Arc<Restarts>,
    task: impl Fn() -> T,
) {
    restarts.add(name, 0);
    let mut pause = Pause::new(PAUSE_MIN, PAUSE_MAX);
    loop {
        let mut running = Box::pin(task());
        let ended = poll_fn(|context| {
            let poll = AssertUnwindSafe(|| running.as_mut().poll(context));
            match catch_unwind(poll) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
                Err(panic) => Poll::Ready(Err(panic_text(panic))),
            }
        });
        let Err(panic) = ended.await else { return };
        tracing::error!(task = name, "a background task panicked and is started again: {panic}");
        restarts.add(name, 1);
        pause.wait(PAUSE_MIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_started_again_and_one_that_returns_is_not() {
        let (restarts, runs) = (Arc::new(Restarts::default()), AtomicU32::new(0));
        let task = async || {
            tokio::task::yield_now().await;
            assert!(runs.fetch_add(1, Ordering::Relaxed) == 2, "not yet");
        };
        supervise("test", restarts.clone(), task).await;
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert_eq!(restarts.0.lock().unwrap()["test"], 2);
    }
}
