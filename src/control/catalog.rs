//! This pod's member of the catalog: a thread that drives [`CatalogMember`] with its log in
//! [`Storage`]. Log writes are made by the same thread: a disk that hangs stops the ticks too,
//! and so loses the leadership.
//!
//! Others talk to it through a [`Catalog`]; what it knows is published as [`Published`].

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft::eraftpb::Message;
use tokio::sync::{oneshot, watch};

use crate::control::catalog_member::{
    Answer, AskError, AskId, CatalogMember, Kept, MemberError, Outbound, Published, TICK_EVERY,
};
use crate::control::command::{Command, Outcome};
use crate::control::reconcile::MembershipChange;
use crate::control::storage::{MemberRow, Recovered, Snapshot, Storage};
use crate::io::clock;
use crate::replica::meta::MetaError;
use crate::replica::seam::Role;
use crate::types::MemberId;

/// Events that wait for the thread; more are refused.
const EVENTS_MAX: usize = 1024;
/// Events handled before the member is polled.
const EVENTS_PER_ROUND: usize = 64;

/// How to reach the thread, and what it published last.
pub struct Catalog {
    pub row: MemberRow,
    events: SyncSender<Event>,
    pub published: watch::Receiver<Published>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Event {
    Peer(Box<Message>),
    Propose(Command, oneshot::Sender<Result<Outcome, AskError>>),
    Barrier(oneshot::Sender<Result<(), AskError>>),
    Change(MembershipChange),
    Install(Box<Snapshot>),
    ResyncEnded(MemberId, bool),
    Unreachable(MemberId),
    Stop,
}

impl Catalog {
    /// Starts the thread. `run` is drawn at random for each process.
    pub fn start(
        storage: Storage,
        recovered: Recovered,
        run: u64,
        outbound: impl Outbound + Send + 'static,
    ) -> Result<Catalog, MetaError> {
        let (events, inbox) = sync_channel(EVENTS_MAX);
        let row = recovered.row;
        let now = clock::now();
        let member = CatalogMember::new(storage, recovered, Kept::default(), run, outbound, now)?;
        let (publish, published) = watch::channel(member.known().clone());
        let driver = Driver { member, publish, asked: Asked::default() };
        let thread = std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || driver.run(&inbox))
            .expect("the system has room for a thread");
        Ok(Catalog { row, events, published, thread: Mutex::new(Some(thread)) })
    }

    /// A message from another member; dropped when too much waits.
    pub fn step(&self, message: Message) {
        self.tell(Event::Peer(Box::new(message)));
    }

    /// Proposes a command and waits until it is applied here.
    pub async fn propose(&self, command: Command) -> Result<Outcome, AskError> {
        self.ask(|reply| Event::Propose(command, reply)).await
    }

    /// Waits until everything that was acknowledged before is applied here, on the leader.
    pub async fn barrier(&self) -> Result<(), AskError> {
        self.ask(Event::Barrier).await
    }

    pub fn change(&self, change: MembershipChange) {
        self.tell(Event::Change(change));
    }

    /// The whole state, from the leader, for a member that is behind the log.
    pub fn install(&self, snapshot: Snapshot) {
        self.tell(Event::Install(Box::new(snapshot)));
    }

    pub fn resync_ended(&self, member: MemberId, ok: bool) {
        self.tell(Event::ResyncEnded(member, ok));
    }

    pub fn unreachable(&self, member: MemberId) {
        self.tell(Event::Unreachable(member));
    }

    /// True when this member leads and has applied everything of earlier terms.
    pub fn leads(&self) -> bool {
        let published = self.published.borrow();
        published.role.serving && published.failed.is_none()
    }

    /// Ends the thread; blocks until it has.
    pub fn stop(&self) {
        // An error means that it has ended already.
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

/// What the thread owns.
struct Driver<O> {
    member: CatalogMember<Storage, O>,
    publish: watch::Sender<Published>,
    asked: Asked,
}

/// Who waits for what.
#[derive(Default)]
struct Asked {
    proposals: HashMap<AskId, oneshot::Sender<Result<Outcome, AskError>>>,
    barriers: HashMap<AskId, oneshot::Sender<Result<(), AskError>>>,
}

impl<O: Outbound> Driver<O> {
    fn run(mut self, inbox: &Receiver<Event>) {
        if let Err(error) = self.serve(inbox) {
            let reason = chain(&error);
            tracing::error!("the catalog of this pod has stopped: {reason}");
            let known = self.member.known().clone();
            let stopped = Published { failed: Some(reason), role: Role::default(), ..known };
            self.publish.send_replace(stopped);
        }
    }

    /// Rounds of events, until told to stop.
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
                // Overdue ticks coalesce into one.
                next_tick = Instant::now() + TICK_EVERY;
            }
            self.settle()?;
        }
    }

    fn handle(&mut self, event: Event) {
        let (now, member) = (clock::now(), &mut self.member);
        match event {
            Event::Peer(message) => member.step(now, message),
            Event::Propose(command, reply) => {
                let ask = member.propose(now, command);
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
            // Whoever asked may have gone.
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
