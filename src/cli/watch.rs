//! Follows objects: a watch that goes on when the pod or the catalog's leader changes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::cli::client::Client;
use crate::cli::exit::CallError;
use crate::cli::noun::{Telling, Told, Watched};
use crate::control::objects::cursor::Mark;
use crate::control::proto::Query;
use crate::control::reason::Reason;

/// So long nothing may be heard before a watch gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// See the module.
pub struct Follow<'a, T> {
    client: &'a Client,
    query: Query,
    within: String,
    resume_token: String,
    telling: Option<Telling<T>>,
    waiting: VecDeque<Told<T>>,
    failing_since: Option<Instant>,
}

impl<'a, T: Watched> Follow<'a, T> {
    /// `within`: what the objects belong to; empty: anything.
    pub fn new(client: &'a Client, query: Query, within: &str) -> Follow<'a, T> {
        Follow {
            client,
            query,
            within: within.to_owned(),
            resume_token: String::new(),
            telling: None,
            waiting: VecDeque::new(),
            failing_since: None,
        }
    }

    /// The next thing that is told. After an interruption, objects may be told again.
    pub async fn next(&mut self) -> Result<Told<T>, CallError> {
        loop {
            if let Some(told) = self.waiting.pop_front() {
                return Ok(told);
            }
            match self.hear().await {
                Ok(Some(told)) => {
                    self.failing_since = None;
                    if !told.resume_token.is_empty() {
                        self.resume_token.clone_from(&told.resume_token);
                    }
                    self.waiting.push_back(told);
                }
                Ok(None) => self.telling = None,
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// `None`: the watch ended, and can be resumed.
    async fn hear(&mut self) -> Result<Option<Told<T>>, CallError> {
        if self.telling.is_none() {
            let token = self.resume_token.clone();
            let query = self.query.clone();
            self.telling = Some(T::watch(self.client, query, &self.within, token).await?);
        }
        let telling = self.telling.as_mut().expect("it was just begun");
        match telling.next().await {
            None => Ok(None),
            Some(told) => self.client.told(format!("watch the {}s", T::WORD), told).map(Some),
        }
    }

    /// Prepares another try, or gives up.
    async fn recover(&mut self, error: CallError) -> Result<(), CallError> {
        self.telling = None;
        if error.reason() == Some(Reason::WatchTooOld) {
            self.resume_token = String::new();
            return Ok(());
        }
        let passes = matches!(error.code(), Code::Unavailable | Code::Unknown | Code::Cancelled);
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        // A pod that never answered will not begin to.
        let knows_pod = Mark::decode(&self.resume_token).is_ok();
        if !passes || !knows_pod || since.elapsed() >= PATIENCE {
            return Err(error);
        }
        sleep(RETRY_AFTER).await;
        Ok(())
    }
}
