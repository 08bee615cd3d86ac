//! This pod's member of the catalog: a thread that drives [`CatalogMember`] with its log in
//! [`MemberStorage`]. The same thread writes the log: a disk that hangs also stops the ticks, so
//! the member loses its leadership.
//!
//! When the thread fails or panics, it publishes that, and calls back the code that started it.
//!
//! Other threads use it through a [`Catalog`], and read its knowledge as [`Published`].

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft::eraftpb::Message;
use tokio::sync::{oneshot, watch};

use crate::control::catalog_member::{
    Answer, AskError, AskId, CatalogMember, Kept, MemberError, Outbound, Published, TICK_EVERY,
};
use crate::control::command::{CatalogCommand, Outcome};
use crate::control::reconcile::MembershipChange;
use crate::control::storage::{MemberRow, MemberStorage, Recovered, Snapshot};
use crate::io::clock;
use crate::replica::member::panic_text;
use crate::replica::messages::Role;
use crate::replica::meta::MetaError;
use crate::types::MemberId;

/// Events that may wait for the thread. Further ones are refused.
const EVENTS_MAX: usize = 1024;
/// Events handled before the member is polled.
const EVENTS_PER_ROUND: usize = 64;

/// A handle of the thread, with its last published knowledge.
pub struct Catalog {
    pub row: MemberRow,
    events: SyncSender<Event>,
    pub published: watch::Receiver<Published>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Event {
    Peer(Box<Message>),
    Propose(Box<CatalogCommand>, oneshot::Sender<Result<Outcome, AskError>>),
    Barrier(oneshot::Sender<Result<(), AskError>>),
    Change(MembershipChange),
    Install(Box<Snapshot>),
    ResyncEnded(MemberId, bool),
    Unreachable(MemberId),
    Stop,
}

impl Catalog {
    /// Starts the thread. `run` is a random number of the process. `lost` is called when the thread
    /// ended by itself and a restart may help.
    pub fn start(
        storage: impl MemberStorage + Send + 'static,
        recovered: Recovered,
        run: u64,
        outbound: impl Outbound + Send + 'static,
        lost: impl FnOnce(String) + Send + 'static,
    ) -> Result<Catalog, MetaError> {
        let (events, inbox) = sync_channel(EVENTS_MAX);
        let row = recovered.row;
        let now = clock::now();
        let member = CatalogMember::new(storage, recovered, Kept::default(), run, outbound, now)?;
        let (publish, published) = watch::channel(member.known().clone());
        let driver = Driver { member, publish, asked: Asked::default() };
        let thread = std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || driver.run(&inbox, lost))
            .expect("the system has room for a thread");
        Ok(Catalog { row, events, published, thread: Mutex::new(Some(thread)) })
    }

    /// Takes a message from another member; drops it when too many events wait.
    pub fn step(&self, message: Message) {
        self.tell(Event::Peer(Box::new(message)));
    }

    /// Proposes a command and waits until it is applied here.
    pub async fn propose(&self, command: CatalogCommand) -> Result<Outcome, AskError> {
        self.ask(|reply| Event::Propose(Box::new(command), reply)).await
    }

    /// On the leader: waits until everything that was acknowledged before is applied here.
    pub async fn barrier(&self) -> Result<(), AskError> {
        self.ask(Event::Barrier).await
    }

    pub fn change(&self, change: MembershipChange) {
        self.tell(Event::Change(change));
    }

    /// Takes the whole state from the leader when this member is too far behind the log.
    pub fn install(&self, snapshot: Snapshot) {
        self.tell(Event::Install(Box::new(snapshot)));
    }

    pub fn resync_ended(&self, member: MemberId, ok: bool) {
        self.tell(Event::ResyncEnded(member, ok));
    }

    pub fn unreachable(&self, member: MemberId) {
        self.tell(Event::Unreachable(member));
    }

    /// True when this member leads and has applied all entries of earlier terms.
    pub fn leads(&self) -> bool {
        let published = self.published.borrow();
        published.role.serving && published.failed.is_none()
    }

    /// Stops the thread, and blocks until it has ended.
    pub fn stop(&self) {
        // An error means that it has already ended.
        let _ended = self.events.send(Event::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the catalog's thread panicked");
        }
    }

    fn tell(&self, event: Event) {
        match self.events.try_send(event) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => tracing::debug!("the catalog is busy; dropped an event"),
        }
    }

    async fn ask<T>(
        &self,
        event: impl FnOnce(oneshot::Sender<Result<T, AskError>>) -> Event,
    ) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        match self.events.try_send(event(reply)) {
            Ok(()) => answer.await.unwrap_or(Err(AskError::Stopped)),
            Err(TrySendError::Full(_)) => Err(AskError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(AskError::Stopped),
        }
    }
}

/// State owned by the thread.
struct Driver<S, O> {
    member: CatalogMember<S, O>,
    publish: watch::Sender<Published>,
    asked: Asked,
}

/// The waiting requests, and where to answer them.
#[derive(Default)]
struct Asked {
    proposals: HashMap<AskId, oneshot::Sender<Result<Outcome, AskError>>>,
    barriers: HashMap<AskId, oneshot::Sender<Result<(), AskError>>>,
}

impl<S: MemberStorage, O: Outbound> Driver<S, O> {
    fn run(mut self, inbox: &Receiver<Event>, lost: impl FnOnce(String)) {
        let (reason, is_lost) = match catch_unwind(AssertUnwindSafe(|| self.serve(inbox))) {
            Ok(Ok(())) => return,
            // Any other error comes from the log and would return after a restart. The pod can
            // serve blocks without the catalog.
            Ok(Err(error)) => (chain(&error), matches!(error, MemberError::Storage(_))),
            Err(panic) => (format!("it panicked: {}", panic_text(panic)), true),
        };
        tracing::error!("the catalog of this pod has stopped: {reason}");
        self.publish.send_modify(|published| {
            (published.failed, published.role) = (Some(reason.clone()), Role::default());
        });
        // Requests get their errors before the failure is reported.
        drop(self);
        if is_lost {
            lost(reason);
        }
    }

    /// Handles events in rounds until it is told to stop.
    fn serve(&mut self, inbox: &Receiver<Event>) -> Result<(), MemberError> {
        let mut next_tick = Instant::now() + TICK_EVERY;
        loop {
            let mut event = inbox.recv_timeout(next_tick.saturating_duration_since(Instant::now()));
            for _ in 0..EVENTS_PER_ROUND {
                match event {
                    Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    Ok(event) => self.handle(event),
                    Err(RecvTimeoutError::Timeout) => break,
                }
                event = inbox.recv_timeout(Duration::ZERO);
            }
            if Instant::now() >= next_tick {
                self.member.tick(clock::now());
                // Overdue ticks count as one.
                next_tick = Instant::now() + TICK_EVERY;
            }
            self.settle()?;
        }
    }

    fn handle(&mut self, event: Event) {
        let (now, member) = (clock::now(), &mut self.member);
        match event {
            Event::Peer(message) => member.step(now, message),
            // The requester is gone, and may have sent another request since.
            Event::Propose(_, reply) if reply.is_closed() => {}
            Event::Propose(command, reply) => {
                let ask = member.propose(now, clock::wall_ms(), *command);
                self.asked.proposals.insert(ask, reply);
            }
            Event::Barrier(reply) => {
                let ask = member.barrier(now);
                self.asked.barriers.insert(ask, reply);
            }
            Event::Change(change) => member.change(now, &change),
            Event::Install(snapshot) => member.install(now, *snapshot),
            Event::ResyncEnded(of, ok) => member.resync_ended(now, of, ok),
            Event::Unreachable(of) => member.unreachable(now, of),
            Event::Stop => unreachable!("handled by the caller"),
        }
    }

    /// Polls until nothing is left, then publishes, then answers.
    fn settle(&mut self) -> Result<(), MemberError> {
        while self.member.poll(clock::now())? {}
        let known = self.member.known();
        self.publish.send_if_modified(|published| {
            let same = published.applied_index == known.applied_index
                && published.role == known.role
                && published.group == known.group;
            *published = known.clone();
            !same
        });
        self.asked.send(self.member.take_answers());
        Ok(())
    }
}

impl Asked {
    fn send(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            // An error means that the requester is gone.
            let _gone = match answer {
                Answer::Proposal(ask, result) => {
                    self.proposals.remove(&ask).map(|reply| reply.send(result).is_err())
                }
                Answer::Barrier(ask, result) => {
                    self.barriers.remove(&ask).map(|reply| reply.send(result).is_err())
                }
            };
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::membership::first;
    use crate::control::state::rows::RowChange;
    use crate::control::storage::{Point, Storage};
    use crate::log::Append;
    use crate::testing::catalog_fixture::{first_pod, join};

    /// Far longer than any step takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    struct Nobody;

    impl Outbound for Nobody {
        fn send(&self, _: Message) {}
        fn install(&self, _: MemberId, _: Snapshot) {}
    }

    enum Broken {
        Fails,
        Panics,
    }

    impl MemberStorage for Broken {
        type Error = std::io::Error;

        fn append(&mut self, _: &Append) -> std::io::Result<()> {
            match self {
                Broken::Fails => Err(std::io::Error::other("the disk is full")),
                Broken::Panics => panic!("the disk is a mess"),
            }
        }

        fn applied(
            &mut self,
            _: &Point,
            _: &[RowChange],
            _: Option<(u64, u64)>,
        ) -> std::io::Result<()> {
            Ok(())
        }

        fn install(&mut self, _: &Append, _: &Snapshot) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The only member of a new catalog.
    fn recovered() -> (tempfile::TempDir, Storage, Recovered) {
        let root = tempfile::tempdir().unwrap();
        let (row, snapshot) = first(MemberId(1), first_pod());
        let mut storage = Storage::open(root.path()).unwrap();
        storage.create(row, &snapshot).unwrap();
        let recovered = storage.recover().unwrap().unwrap();
        (root, storage, recovered)
    }

    #[test]
    fn a_write_of_the_log_that_fails_is_told() {
        for (broken, text) in
            [(Broken::Fails, "the disk is full"), (Broken::Panics, "the disk is a mess")]
        {
            let (_root, _storage, recovered) = recovered();
            let (tell, told) = std::sync::mpsc::channel();
            let lost = move |reason| tell.send(reason).unwrap();
            let catalog = Catalog::start(broken, recovered, 1, Nobody, lost).unwrap();
            // As the only voter it votes for itself, and writes that down.
            let reason = told.recv_timeout(PATIENCE).unwrap();
            assert!(reason.contains(text), "{reason}");
            assert_eq!(catalog.published.borrow().failed.as_ref(), Some(&reason));
            assert!(!catalog.leads());
            catalog.stop();
        }
    }

    #[test]
    fn a_proposal_whose_caller_has_gone_is_dropped() {
        let (_root, storage, recovered) = recovered();
        let kept = Kept::default();
        let member = CatalogMember::new(storage, recovered, kept, 1, Nobody, clock::now()).unwrap();
        let (publish, published) = watch::channel(member.known().clone());
        let mut driver = Driver { member, publish, asked: Asked::default() };
        let deadline = Instant::now() + PATIENCE;
        while !published.borrow().role.serving {
            driver.member.tick(clock::now());
            driver.settle().unwrap();
            assert!(Instant::now() < deadline, "the only voter leads");
        }
        let revision = || published.borrow().state.as_ref().unwrap().revision();
        let before = revision();
        let (reply, answer) = oneshot::channel();
        drop(answer);
        driver.handle(Event::Propose(Box::new(join(3)), reply));
        driver.settle().unwrap();
        assert_eq!(revision(), before);
        let (reply, mut answer) = oneshot::channel();
        driver.handle(Event::Propose(Box::new(join(4)), reply));
        driver.settle().unwrap();
        assert!(answer.try_recv().unwrap().is_ok());
        assert_eq!(revision(), before + 1);
    }
}
