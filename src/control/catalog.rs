//! This pod's member of the catalog: a thread that drives [`Member`] with its log in
//! [`Storage`]. Log writes are made by the same thread: a disk that hangs stops the ticks too,
//! and so loses the leadership.
//!
//! Others talk to it through a [`Catalog`]; what it knows is published as [`Published`].

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Message};
use tokio::sync::{oneshot, watch};

use crate::control::command::{Command, Envelope, Outcome, Ticket, decode, encode};
use crate::control::reconcile::{Group, MembershipChange};
use crate::control::state::{CatalogError, State};
use crate::control::storage::{MemberRow, Recovered, Snapshot, Storage, StorageError};
use crate::limits::{SHARD_PROPOSAL_BYTES_MAX, TICK};
use crate::replica::member::Member;
use crate::replica::meta::{Meta, MetaError};
use crate::replica::seam::{Append, Applied, Input, MemberConfig, Output, ReadMode, ReqId, Role};
use crate::types::{BlockError, MemberId, Mono, ShardId};

/// Events that wait for the thread; more are refused.
const EVENTS_MAX: usize = 1024;
/// Entries applied between two snapshots.
const SNAPSHOT_EVERY: u64 = 256;
/// Applied entries kept in memory.
const LOG_TAIL_BYTES: usize = 1 << 20;
/// Its ticks are rarer than those of the data path, where nobody's I/O waits for an election.
/// (Leases and the quiet time before votes are as long as there, which is less than it could be.)
const TICK_EVERY: Duration = TICK.saturating_mul(2);
/// Events handled before the member is polled.
const EVENTS_PER_ROUND: usize = 64;

/// How to reach the thread, and what it published last.
pub struct Catalog {
    pub row: MemberRow,
    events: SyncSender<Event>,
    pub published: watch::Receiver<Published>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a member of the catalog knows.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// `None` until the member has got its first snapshot.
    pub state: Option<Arc<State>>,
    pub group: Group,
    pub role: Role,
    pub applied_index: u64,
    /// It stopped for good, and why.
    pub failed: Option<String>,
}

/// What leaves the thread for other pods. Called on it; must not block.
pub trait Outbound: Send {
    /// May drop the message.
    fn send(&self, message: Message);
    /// This member needs the state; answered with [`Catalog::resync_ended`].
    fn install(&self, member: MemberId, snapshot: Snapshot);
}

/// Why a proposal or a barrier did not get its answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The command changed nothing.
    #[error(transparent)]
    Refused(#[from] CatalogError),
    /// Ask the leader. What was asked may have happened.
    #[error("this pod does not lead the catalog")]
    NotLeader,
    /// Too much waits.
    #[error("the catalog is busy")]
    Busy,
    #[error("the catalog of this pod has stopped")]
    Stopped,
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
        outbound: Box<dyn Outbound>,
    ) -> Result<Catalog, MetaError> {
        let (events, inbox) = sync_channel(EVENTS_MAX);
        let row = recovered.row;
        let (driver, published) = Driver::new(storage, recovered, run, outbound)?;
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

/// Why the thread ended by itself.
#[derive(Debug, thiserror::Error)]
enum DriverError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("a committed entry cannot be carried out")]
    Entry(#[from] crate::control::command::CodecError),
    #[error("the configuration of the catalog's group cannot be read")]
    Meta(#[from] MetaError),
    #[error("a committed entry arrived before the state that it changes")]
    NoState,
    #[error("the member faulted: {0}")]
    Faulted(String),
}

struct Driver {
    storage: Storage,
    member: Member,
    outbound: Box<dyn Outbound>,
    publish: watch::Sender<Published>,
    now: Published,
    /// Of the newest applied entry, beside `now.applied_index`.
    applied_term: u64,
    meta: Bytes,
    /// Index and term of the last snapshot: the log is compacted up to here at the next.
    snapshot_at: (u64, u64),
    /// Received, and used when the member resets its log to it.
    pending_install: Option<Snapshot>,
    asked: Asked,
    epoch: Instant,
}

/// Who waits for what.
struct Asked {
    run: u64,
    next: u64,
    proposals: HashMap<u64, oneshot::Sender<Result<Outcome, AskError>>>,
    barriers: HashMap<u64, oneshot::Sender<Result<(), AskError>>>,
    /// Sent at the end of the round, after everything was published.
    answers: Vec<Answer>,
}

enum Answer {
    Proposal(oneshot::Sender<Result<Outcome, AskError>>, Result<Outcome, AskError>),
    Barrier(oneshot::Sender<Result<(), AskError>>, Result<(), AskError>),
}

impl Driver {
    fn new(
        storage: Storage,
        recovered: Recovered,
        run: u64,
        outbound: Box<dyn Outbound>,
    ) -> Result<(Driver, watch::Receiver<Published>), MetaError> {
        let Recovered { row, start, snapshot } = recovered;
        let config = MemberConfig {
            member: row.member,
            shard: ShardId(0),
            seed: run,
            volume: crate::types::VolumeId(0),
            first_block_in_volume: 0,
            blocks: 1,
            log_tail_bytes: LOG_TAIL_BYTES,
            proposal_bytes_max: SHARD_PROPOSAL_BYTES_MAX,
            reads: ReadMode::Lease,
        };
        let now = Published {
            state: snapshot.state.map(Arc::new),
            group: group_of(&snapshot.meta)?,
            applied_index: snapshot.index,
            ..Published::default()
        };
        let (publish, published) = watch::channel(now.clone());
        let snapshot_at = (snapshot.index, snapshot.term);
        let driver = Driver {
            storage,
            member: Member::start(config, start, Mono(0)),
            outbound,
            publish,
            now,
            applied_term: snapshot.term,
            meta: snapshot.meta,
            snapshot_at,
            pending_install: None,
            asked: Asked {
                run,
                next: 0,
                proposals: HashMap::new(),
                barriers: HashMap::new(),
                answers: Vec::new(),
            },
            epoch: Instant::now(),
        };
        Ok((driver, published))
    }

    fn run(mut self, inbox: &Receiver<Event>) {
        if let Err(error) = self.serve(inbox) {
            let reason = chain(&error);
            tracing::error!("the catalog of this pod has stopped: {reason}");
            self.now.failed = Some(reason);
            self.now.role = Role::default();
            self.publish.send_replace(self.now.clone());
        }
    }

    /// Rounds of events, until told to stop.
    fn serve(&mut self, inbox: &Receiver<Event>) -> Result<(), DriverError> {
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
                self.input(Input::Tick);
                // Overdue ticks coalesce into one.
                next_tick = Instant::now() + TICK_EVERY;
            }
            self.settle()?;
        }
    }

    fn mono(&self) -> Mono {
        Mono(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn input(&mut self, input: Input) {
        let now = self.mono();
        self.member.handle(now, input);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Peer(message) => self.input(Input::Peer(message)),
            Event::Propose(command, reply) => {
                let number = self.asked.next_number();
                let ticket = Ticket { run: self.asked.run, number };
                let data = encode(&Envelope { ticket, command }).into();
                self.asked.proposals.insert(number, reply);
                self.input(Input::Propose { req: ReqId(number), data });
            }
            Event::Barrier(reply) => {
                let number = self.asked.next_number();
                self.asked.barriers.insert(number, reply);
                self.input(Input::Barrier { req: ReqId(number) });
            }
            Event::Change(change) => self.input(Input::ChangeMembers(conf_change(&change))),
            Event::Install(snapshot) => {
                let (index, term, meta) = (snapshot.index, snapshot.term, snapshot.meta.clone());
                if index > self.now.applied_index {
                    self.pending_install = Some(*snapshot);
                    self.input(Input::InstallSnapshot { index, term, meta });
                }
            }
            Event::ResyncEnded(member, ok) => self.input(Input::ResyncEnded { member, ok }),
            Event::Unreachable(member) => self.input(Input::Unreachable(member)),
            Event::Stop => unreachable!("handled by the caller"),
        }
    }

    /// Polls and carries out until nothing is left, then publishes, then answers.
    fn settle(&mut self) -> Result<(), DriverError> {
        let mut outputs = Vec::new();
        loop {
            let now = self.mono();
            self.member.poll(now, &mut outputs);
            if outputs.is_empty() {
                break;
            }
            for output in outputs.drain(..) {
                self.carry_out(output)?;
            }
        }
        self.checkpoint()?;
        self.publish.send_if_modified(|published| {
            let same = published.applied_index == self.now.applied_index
                && published.role == self.now.role
                && published.group == self.now.group;
            *published = self.now.clone();
            !same
        });
        self.asked.send_answers();
        Ok(())
    }

    fn carry_out(&mut self, output: Output) -> Result<(), DriverError> {
        match output {
            Output::Append(append) => self.append(append)?,
            Output::Send(message) => self.outbound.send(*message),
            Output::Apply(applied) => self.apply(applied)?,
            Output::Reply { req, result: Err(error) } => self.asked.refuse(req.0, &error),
            // Answered when it was applied.
            Output::Reply { result: Ok(_), .. } => {}
            Output::Barrier { req } => {
                if let Some(reply) = self.asked.barriers.remove(&req.0) {
                    self.asked.answers.push(Answer::Barrier(reply, Ok(())));
                }
            }
            Output::Role(role) => {
                let leader = role.leader.map_or(0, |leader| leader.0);
                let (term, serving) = (role.term, role.serving);
                tracing::info!(term, leader, serving, "the catalog's leader or term changed");
                self.now.role = role;
            }
            Output::NeedsResync { member } => self.send_state(member),
            Output::Faulted { reason } => return Err(DriverError::Faulted(reason)),
            Output::Read { .. } | Output::ReadBase { .. } => {
                unreachable!("nobody reads blocks of the catalog")
            }
        }
        Ok(())
    }

    fn append(&mut self, append: Append) -> Result<(), DriverError> {
        let mut installed = None;
        if let Some(reset) = &append.reset {
            let pending = self.pending_install.take();
            installed = pending.filter(|pending| pending.index == reset.index);
            if installed.is_none() {
                return Err(DriverError::NoState);
            }
        }
        self.storage.append(&append, installed.as_ref())?;
        if let Some(snapshot) = installed {
            tracing::info!(index = snapshot.index, "took over the catalog's state");
            self.now.group = group_of(&snapshot.meta)?;
            self.now.applied_index = snapshot.index;
            self.now.state = snapshot.state.map(Arc::new);
            self.applied_term = snapshot.term;
            self.meta = snapshot.meta;
            self.snapshot_at = (snapshot.index, snapshot.term);
        }
        self.input(Input::Appended { number: append.number });
        Ok(())
    }

    fn apply(&mut self, applied: Applied) -> Result<(), DriverError> {
        if let Some(meta) = applied.meta {
            self.now.group = group_of(&meta)?;
            self.meta = meta;
        }
        self.now.applied_index = applied.index;
        self.applied_term = applied.term;
        let Some(command) = applied.command else {
            return Ok(());
        };
        let Envelope { ticket, command } = decode(&command)?;
        let state = self.now.state.as_mut().ok_or(DriverError::NoState)?;
        let outcome = Arc::make_mut(state).apply(command);
        if ticket.run == self.asked.run
            && let Some(reply) = self.asked.proposals.remove(&ticket.number)
        {
            self.asked.answers.push(Answer::Proposal(reply, outcome.map_err(AskError::from)));
        }
        Ok(())
    }

    /// Writes a snapshot now and then, and compacts the log up to the one before it.
    fn checkpoint(&mut self) -> Result<(), DriverError> {
        if self.now.applied_index < self.snapshot_at.0 + SNAPSHOT_EVERY {
            return Ok(());
        }
        let snapshot = self.snapshot();
        self.storage.checkpoint(&snapshot, self.snapshot_at)?;
        self.snapshot_at = (snapshot.index, snapshot.term);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            index: self.now.applied_index,
            term: self.applied_term,
            meta: self.meta.clone(),
            state: self.now.state.as_deref().cloned(),
        }
    }

    fn send_state(&mut self, member: MemberId) {
        tracing::info!(member = member.0, "a member of the catalog needs its state");
        self.outbound.install(member, self.snapshot());
    }
}

impl Asked {
    fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn refuse(&mut self, number: u64, error: &BlockError) {
        let error = || match error {
            BlockError::Busy => AskError::Busy,
            _ => AskError::NotLeader,
        };
        if let Some(reply) = self.proposals.remove(&number) {
            self.answers.push(Answer::Proposal(reply, Err(error())));
        }
        if let Some(reply) = self.barriers.remove(&number) {
            self.answers.push(Answer::Barrier(reply, Err(error())));
        }
    }

    fn send_answers(&mut self) {
        for answer in self.answers.drain(..) {
            // Whoever asked may have gone.
            let _gone = match answer {
                Answer::Proposal(reply, result) => reply.send(result).is_err(),
                Answer::Barrier(reply, result) => reply.send(result).is_err(),
            };
        }
    }
}

fn group_of(meta: &[u8]) -> Result<Group, MetaError> {
    let conf = Meta::decode(meta)?.conf;
    let set = |ids: &[u64]| ids.iter().copied().map(MemberId).collect();
    Ok(Group {
        voters: set(&conf.voters),
        learners: set(&conf.learners),
        joint: !conf.voters_outgoing.is_empty(),
    })
}

fn conf_change(change: &MembershipChange) -> ConfChangeV2 {
    let (kind, members) = match change {
        MembershipChange::AddLearner(member) => (ConfChangeType::AddLearnerNode, vec![*member]),
        MembershipChange::Promote(members) => (ConfChangeType::AddNode, members.clone()),
        MembershipChange::Remove(member) => (ConfChangeType::RemoveNode, vec![*member]),
    };
    let mut change = ConfChangeV2::default();
    for member in members {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = member.0;
        change.mut_changes().push(single);
    }
    change
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
