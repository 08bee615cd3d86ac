//! The helper thread of a lane's index: RocksDB may block, a worker may not.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::store::index::IndexStore;
use crate::store::messages::{Done, IndexDone, IndexJob, OpId};

/// Jobs in the thread's own queue; further ones wait on the worker's side.
const QUEUE_JOBS: usize = 256;

/// Runs index jobs in the order of submission. The simulator has its own.
pub trait IndexRunner {
    /// Starts a job; its end reaches the worker as a message.
    fn submit(&mut self, op: OpId, job: IndexJob);
    /// Called once per round, for runners that hold jobs back.
    fn pump(&mut self);
}

/// Tells the worker that a job ended. Blocks while the worker is behind.
pub type Finish = Box<dyn Fn(OpId, Done) + Send>;

/// A thread that runs the index jobs of one lane.
pub struct IndexThread {
    jobs: Option<SyncSender<(OpId, IndexJob)>>,
    held: VecDeque<(OpId, IndexJob)>,
    thread: Option<JoinHandle<()>>,
}

impl IndexThread {
    pub fn start(store: Box<dyn IndexStore>, finish: Finish) -> std::io::Result<IndexThread> {
        let (jobs, queue) = sync_channel(QUEUE_JOBS);
        let thread = std::thread::Builder::new()
            .name("index".to_owned())
            .spawn(move || run(store, queue, finish))?;
        Ok(IndexThread { jobs: Some(jobs), held: VecDeque::new(), thread: Some(thread) })
    }
}

impl IndexRunner for IndexThread {
    fn submit(&mut self, op: OpId, job: IndexJob) {
        self.held.push_back((op, job));
        self.pump();
    }

    fn pump(&mut self) {
        let Some(jobs) = &self.jobs else { return };
        while let Some(job) = self.held.pop_front() {
            match jobs.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    self.held.push_front(job);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => {
                    panic!("the index thread has ended while its lane still works")
                }
            }
        }
    }
}

impl Drop for IndexThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the index thread panicked");
        }
    }
}

fn run(mut store: Box<dyn IndexStore>, queue: Receiver<(OpId, IndexJob)>, finish: Finish) {
    while let Ok((op, job)) = queue.recv() {
        finish(op, execute(store.as_mut(), job));
    }
}

/// Carries out one job.
pub fn execute(store: &mut dyn IndexStore, job: IndexJob) -> Done {
    let result = match job {
        IndexJob::Get { keys } => store.get(&keys).map(IndexDone::Got),
        IndexJob::Commit { edits, flush } => {
            store.commit(&edits, flush).map(|()| IndexDone::Committed)
        }
        IndexJob::Scan { member, from, limit } => {
            store.scan(member, from, limit).map(IndexDone::Scanned)
        }
    };
    match result {
        Ok(done) => Done::Index(done),
        Err(error) => Done::Failed(std::io::ErrorKind::Other, describe(&error)),
    }
}

/// An error with its causes, in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
