//! The watchdog: a thread that ends the process when the worker hangs, so that its supervisor
//! starts it again. A hung worker sends no heartbeats, so it loses its leaderships. But its
//! clients, and the replicas on its disks, would wait for ever.
//!
//! A worker makes a round at least with every tick, even when idle. A counter of rounds that stands
//! still means that it has hung, whatever it was doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Looks in a row without a new round, until the worker counts as hung.
const LOOKS: u32 = 20;
/// A look that is this many intervals late says nothing: this thread was stopped or starved, too.
const LATE: u32 = 3;

/// What the looks have shown so far. Pure.
#[derive(Debug)]
struct Watch {
    /// Between looks.
    every: Duration,
    /// When the newest look was.
    looked: Duration,
    /// Rounds that were counted then.
    rounds: u64,
    /// Looks in a row that found no new round.
    still: u32,
}

impl Watch {
    /// A worker hangs that makes no round for as long as `limit`.
    fn new(limit: Duration) -> Watch {
        Watch { every: limit / LOOKS, looked: Duration::ZERO, rounds: 0, still: 0 }
    }

    /// Takes note of the counter. True: the worker has hung.
    fn look(&mut self, at: Duration, rounds: u64) -> bool {
        let late = at.saturating_sub(self.looked) > self.every * LATE;
        self.looked = at;
        if late || rounds != self.rounds {
            self.rounds = rounds;
            self.still = 0;
            return false;
        }
        self.still += 1;
        self.still >= LOOKS
    }
}

/// A running watchdog; it ends when this is dropped.
pub struct Watchdog {
    _ends_with: Sender<()>,
}

impl Watchdog {
    /// Ends the process when the counter of rounds stands still for as long as `limit`.
    pub fn start(limit: Duration, rounds: Arc<AtomicU64>) -> std::io::Result<Watchdog> {
        let (ends_with, ended) = channel::<()>();
        let run = move || {
            let start = Instant::now();
            let mut watch = Watch::new(limit);
            while ended.recv_timeout(watch.every) == Err(RecvTimeoutError::Timeout) {
                if watch.look(start.elapsed(), rounds.load(Ordering::Relaxed)) {
                    tracing::error!(
                        rounds = watch.rounds,
                        "the data path has hung for {} seconds; this pod ends",
                        limit.as_secs()
                    );
                    std::process::abort();
                }
            }
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(run)?;
        Ok(Watchdog { _ends_with: ends_with })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const EVERY: Duration = Duration::from_millis(500);

    /// Looks every half second, at the counter that `rounds` gives for each; the look (from 1)
    /// at which it is hung.
    fn hung_at(looks: u32, rounds: impl Fn(u32) -> u64) -> Option<u32> {
        let mut watch = Watch::new(LIMIT);
        (1..=looks).find(|look| watch.look(EVERY * *look, rounds(*look)))
    }

    #[test]
    fn a_worker_that_makes_rounds_is_left_alone() {
        assert_eq!(hung_at(1000, u64::from), None);
        // However slow it is, as long as it moves.
        assert_eq!(hung_at(1000, |look| u64::from(look / 19)), None);
    }

    #[test]
    fn one_that_stands_still_for_the_limit_has_hung_and_not_before() {
        assert_eq!(hung_at(1000, |look| u64::from(look.min(7))), Some(27));
        assert_eq!(hung_at(1000, |_| 0), Some(20), "also one that never made a round");
    }

    #[test]
    fn a_process_that_was_stopped_has_not_hung() {
        let mut watch = Watch::new(LIMIT);
        let mut at = Duration::ZERO;
        for _ in 0..19 {
            at += EVERY;
            assert!(!watch.look(at, 0));
        }
        // SIGSTOP, an hour, SIGCONT: the first look after it may come before the worker's round.
        at += Duration::from_secs(3600);
        assert!(!watch.look(at, 0));
        for _ in 0..19 {
            at += EVERY;
            assert!(!watch.look(at, 0), "it counts from there again");
        }
        assert!(watch.look(at + EVERY, 0));
    }

    #[test]
    fn a_machine_on_which_nobody_gets_to_run_is_not_a_hung_worker() {
        let mut watch = Watch::new(LIMIT);
        for look in 1..1000 {
            assert!(!watch.look(EVERY * 4 * look, 0));
        }
    }

    #[test]
    fn a_watchdog_ends_without_harm() {
        let rounds = Arc::new(AtomicU64::new(0));
        let watchdog = Watchdog::start(LIMIT, rounds.clone()).unwrap();
        drop(watchdog);
        while Arc::strong_count(&rounds) > 1 {
            std::thread::yield_now();
        }
    }
}
