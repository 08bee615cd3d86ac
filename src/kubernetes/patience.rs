//! Waiting for something outside: with growing pauses, and words that are logged when they change,
//! and once a minute.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Patience {
    pause: Duration,
    said: Option<(String, Instant)>,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { pause: PAUSE_FIRST, said: None }
    }
}

impl Patience {
    /// Waits a while, for the reason `why`.
    pub async fn wait(&mut self, why: &str) {
        let is_news = self
            .said
            .as_ref()
            .is_none_or(|(said, at)| said != why || at.elapsed() >= SAY_AGAIN_AFTER);
        if is_news {
            tracing::info!("waiting: {why}");
            self.said = Some((why.to_owned(), Instant::now()));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// Something happened: the next pause is short again.
    pub fn renew(&mut self) {
        self.pause = PAUSE_FIRST;
    }
}
