//! One member of the catalog as a state machine: a [`Member`] of its Raft group, the state that its
//! entries make, and the requests that wait. It has no thread and no clock: the thread of
//! [`crate::control::catalog`] or the simulator drives it.
//!
//! Driving: give any number of inputs, then call [`CatalogMember::poll`] until it returns false.
//! Then publish what it knows, and only after that send its answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Message};

use crate::control::command::{CatalogCommand, Envelope, Outcome, Ticket, decode, encode, listed};
use crate::control::reconcile::{Group, MembershipChange};
use crate::control::state::rows::RowChange;
use crate::control::state::{CatalogError, CatalogState};
use crate::control::storage::{MemberRow, MemberStorage, Point, Recovered, Snapshot};
use crate::io::buffer::Pool;
use crate::limits::{SHARD_PROPOSAL_BYTES_MAX, TICK};
use crate::log::{Append, Applied};
use crate::planted::planted;
use crate::replica::member::Member;
use crate::replica::messages::{Input, MemberConfig, Output, ReadMode, ReqId, Role};
use crate::replica::meta::{Meta, MetaError};
use crate::types::{BlockError, MemberId, Mono, ShardId, VolumeId};

/// Interval of ticks, longer than on the data path: no client's I/O waits for this election.
/// Leases, and the quiet time before votes, last as long as there, which is shorter than allowed.
pub const TICK_EVERY: Duration = TICK.saturating_mul(2);

/// How much of its log a member keeps.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Applied entries that stay in the log, for members that are behind; up to twice as many.
    pub entries: u64,
    /// Bytes of applied entries kept in memory.
    pub log_tail_bytes: usize,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { entries: 2048, log_tail_bytes: 1 << 20 }
    }
}

/// What other threads may see of a member.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// `None` until the member has received its first snapshot.
    pub state: Option<Arc<CatalogState>>,
    pub group: Group,
    pub role: Role,
    pub applied_index: u64,
    /// The reason, once the member has stopped for good.
    pub failed: Option<String>,
}

impl Published {
    /// The leader, as `me` knows it. `None` for a learner: it never learns that it lost contact
    /// with the leader, or that it was removed from the group.
    pub fn leader(&self, me: MemberId) -> Option<MemberId> {
        self.role.leader.filter(|_| self.group.voters.contains(&me))
    }
}

/// Sends a member's messages to other pods. Must not block.
pub trait Outbound {
    /// Sends a message, or drops it.
    fn send(&self, message: Message);
    /// Sends the state to a member; ended by a call of [`CatalogMember::resync_ended`].
    fn install(&self, member: MemberId, snapshot: Snapshot);
}

/// Why a proposal or a barrier failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The command changed nothing.
    #[error(transparent)]
    Refused(#[from] CatalogError),
    /// Ask the leader. The command may still have been carried out.
    #[error("this pod does not lead the catalog")]
    NotLeader,
    /// Too many requests wait.
    #[error("the catalog is busy; try again")]
    Busy,
    /// The membership has changed since this was decided.
    #[error("the catalog's members have changed since this was decided")]
    Outdated,
    #[error("the catalog of this pod has stopped")]
    Stopped,
}

/// Identifies a request to a member until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(u64);

/// The answer to a proposal or a barrier.
#[derive(Debug)]
pub enum Answer {
    Proposal(AskId, Result<Outcome, AskError>),
    Barrier(AskId, Result<(), AskError>),
}

/// Why a member had to stop.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    #[error(transparent)]
    Storage(Box<dyn std::error::Error + Send + Sync>),
    #[error("a committed entry cannot be carried out")]
    Entry(#[from] crate::control::command::CodecError),
    #[error("the configuration of the catalog's group cannot be read")]
    Meta(#[from] MetaError),
    #[error("a committed entry arrived before the state that it changes")]
    NoState,
    #[error("the member faulted: {0}")]
    Faulted(String),
}

/// A member of the catalog: see the module.
pub struct CatalogMember<S, O> {
    row: MemberRow,
    kept: Kept,
    storage: S,
    outbound: O,
    member: Member,
    known: Published,
    /// Newer than the published one until the next settling. `None` until there is a first one.
    state: Option<CatalogState>,
    /// The newest applied entry, and the rows that are not written since.
    point: Point,
    unwritten: Vec<RowChange>,
    is_written: bool,
    /// Index and term up to which the log is compacted next, once enough is applied beyond it.
    compact_at: (u64, u64),
    /// A received state, until the member resets its log to it.
    pending_install: Option<Snapshot>,
    asked: Asked,
}

/// Requests that wait for an answer.
struct Asked {
    run: u64,
    next: u64,
    proposals: BTreeSet<AskId>,
    /// Proposals that remove a member from the list. Answered ones are dropped lazily.
    removals: BTreeSet<AskId>,
    barriers: BTreeSet<AskId>,
    answers: Vec<Answer>,
}

impl<S: MemberStorage, O: Outbound> CatalogMember<S, O> {
    /// Starts from the recovered state. `run` is a random number of the process.
    pub fn new(
        storage: S,
        recovered: Recovered,
        kept: Kept,
        run: u64,
        outbound: O,
        now: Mono,
    ) -> Result<CatalogMember<S, O>, MetaError> {
        let Recovered { row, start, snapshot } = recovered;
        let config = MemberConfig {
            member: row.member,
            shard: ShardId(0),
            seed: run,
            volume: VolumeId(0),
            first_block_in_volume: 0,
            blocks: 1,
            log_tail_bytes: kept.log_tail_bytes,
            log_on_disk: false,
            proposal_bytes_max: SHARD_PROPOSAL_BYTES_MAX,
            reads: ReadMode::Lease,
            pool: Pool::default(),
        };
        let known = Published {
            state: snapshot.state.clone().map(Arc::new),
            group: group_of(&snapshot.meta)?,
            applied_index: snapshot.index,
            ..Published::default()
        };
        let compact_at = (snapshot.index, snapshot.term);
        let Snapshot { index, term, meta, state } = snapshot;
        Ok(CatalogMember {
            row,
            kept,
            storage,
            outbound,
            member: Member::start(config, start, now),
            known,
            state,
            point: Point { index, term, meta },
            unwritten: Vec::new(),
            is_written: true,
            compact_at,
            pending_install: None,
            asked: Asked {
                run,
                next: 0,
                proposals: BTreeSet::new(),
                removals: BTreeSet::new(),
                barriers: BTreeSet::new(),
                answers: Vec::new(),
            },
        })
    }

    pub fn row(&self) -> MemberRow {
        self.row
    }

    /// The member's knowledge. Publish it only after [`CatalogMember::poll`] has returned false.
    pub fn known(&self) -> &Published {
        &self.known
    }

    /// Call it every [`TICK_EVERY`]. Overdue ticks count as one.
    pub fn tick(&mut self, now: Mono) {
        self.member.handle(now, Input::Tick);
    }

    /// Takes a message from another member.
    pub fn step(&mut self, now: Mono, message: Box<Message>) {
        self.member.handle(now, Input::Peer(message));
    }

    /// Proposes a command at `at_ms` (since 1970); answered when it is applied here.
    pub fn propose(&mut self, now: Mono, at_ms: u64, command: CatalogCommand) -> AskId {
        let ask = self.asked.next_ask();
        if let CatalogCommand::RemoveCatalogMember { member } = command {
            if !self.may_leave(member) {
                self.asked.answers.push(Answer::Proposal(ask, Err(AskError::Outdated)));
                return ask;
            }
            self.asked.removals.insert(ask);
        }
        let ticket = self.ticket(ask);
        let data = encode(&Envelope { ticket, at_ms, command }).into();
        self.asked.proposals.insert(ask);
        self.member.handle(now, Input::Propose { req: ReqId(ask.0), data });
        ask
    }

    /// On the leader: answered when everything that was acknowledged before is applied here.
    pub fn barrier(&mut self, now: Mono) -> AskId {
        let ask = self.asked.next_ask();
        self.asked.barriers.insert(ask);
        self.member.handle(now, Input::Barrier { req: ReqId(ask.0) });
        ask
    }

    /// Changes the group. A promotion is dropped when the members have changed since its decision.
    pub fn change(&mut self, now: Mono, change: &MembershipChange) {
        let new_voters = match change {
            MembershipChange::Promote(members) => members.as_slice(),
            MembershipChange::Replace { by, .. } => std::slice::from_ref(by),
            MembershipChange::AddLearner(_) | MembershipChange::Remove(_) => &[],
        };
        if !new_voters.is_empty() && !self.may_vote(new_voters) {
            let members = listed(new_voters);
            tracing::info!(members, "not promoted: the list of the catalog's members changes");
            return;
        }
        self.member.handle(now, Input::ChangeMembers(conf_change(change)));
    }

    /// A member that leaves the list loses its log. So it must be no voter, and must not become
    /// one: a change that was queued just before may be in the log already.
    fn may_leave(&self, member: MemberId) -> bool {
        let group = &self.known.group;
        !group.joint && !self.member.is_changing() && !group.voters.contains(&member)
    }

    /// Counterpart of `may_leave`: voters are in the list, and no entry in the log removes one.
    fn may_vote(&mut self, members: &[MemberId]) -> bool {
        let Asked { removals, proposals, .. } = &mut self.asked;
        removals.retain(|ask| proposals.contains(ask));
        let state = self.state.as_ref();
        let is_listed =
            |member: &MemberId| state.is_some_and(|state| state.catalog.contains_key(member));
        removals.is_empty() && self.known.role.serving && members.iter().all(is_listed)
    }

    /// Takes the whole state from the leader when this member is too far behind the log.
    pub fn install(&mut self, now: Mono, snapshot: Snapshot) {
        let (index, term, meta) = (snapshot.index, snapshot.term, snapshot.meta.clone());
        if index > self.known.applied_index {
            self.pending_install = Some(snapshot);
            self.member.handle(now, Input::InstallSnapshot { index, term, meta });
        }
    }

    pub fn resync_ended(&mut self, now: Mono, member: MemberId, ok: bool) {
        self.member.handle(now, Input::ResyncEnded { member, ok });
    }

    pub fn unreachable(&mut self, now: Mono, member: MemberId) {
        self.member.handle(now, Input::Unreachable(member));
    }

    /// Carries out what the member asks for. Returns false when nothing was left. After an error
    /// the member must not be used again.
    pub fn poll(&mut self, now: Mono) -> Result<bool, MemberError> {
        let mut outputs = Vec::new();
        self.member.poll(now, &mut outputs);
        if outputs.is_empty() {
            self.write_rows()?;
            self.known.group.changing = self.member.is_changing();
            return Ok(false);
        }
        for output in outputs {
            self.carry_out(now, output)?;
        }
        Ok(true)
    }

    /// Takes the answers that are ready.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.asked.answers)
    }

    /// The ticket of a proposal in the log.
    pub fn ticket(&self, ask: AskId) -> Ticket {
        Ticket { run: self.asked.run, number: ask.0 }
    }

    fn carry_out(&mut self, now: Mono, output: Output) -> Result<(), MemberError> {
        match output {
            Output::Append(append) => self.append(now, append)?,
            Output::Send(message) => self.outbound.send(*message),
            Output::Apply(applied) => self.apply(applied)?,
            Output::Reply { req, result: Err(error) } => self.asked.refuse(AskId(req.0), &error),
            // Answered once it is applied.
            Output::Reply { result: Ok(_), .. } => {}
            Output::Barrier { req } => {
                let ask = AskId(req.0);
                if self.asked.barriers.remove(&ask) {
                    self.asked.answers.push(Answer::Barrier(ask, Ok(())));
                }
            }
            Output::Role(role) => {
                let leader = role.leader.map_or(0, |leader| leader.0);
                let (term, serving) = (role.term, role.serving);
                tracing::info!(term, leader, serving, "the catalog's leader or term changed");
                self.known.role = role;
            }
            Output::NeedsResync { member, .. } => self.send_state(member),
            Output::Faulted { reason } => return Err(MemberError::Faulted(reason)),
            Output::Read { .. } | Output::ReadBase { .. } | Output::FetchLog { .. } => {
                unreachable!("nobody reads blocks or entries of the catalog")
            }
        }
        Ok(())
    }

    fn append(&mut self, now: Mono, append: Append) -> Result<(), MemberError> {
        match &append.reset {
            None => {
                let stored = self.storage.append(&append);
                stored.map_err(|error| MemberError::Storage(error.into()))?;
            }
            Some(reset) => {
                let pending = self.pending_install.take();
                let pending = pending.filter(|pending| pending.index == reset.index);
                self.take_over(&append, pending.ok_or(MemberError::NoState)?)?;
            }
        }
        if planted!(CatalogAnswersEarly) {
            let asks = std::mem::take(&mut self.asked.proposals).into_iter();
            let early = asks.map(|ask| Answer::Proposal(ask, Ok(Outcome::Done)));
            self.asked.answers.extend(early);
        }
        self.member.handle(now, Input::Appended { number: append.number });
        Ok(())
    }

    /// Replaces log and state by those of a snapshot.
    fn take_over(&mut self, append: &Append, snapshot: Snapshot) -> Result<(), MemberError> {
        let stored = self.storage.install(append, &snapshot);
        stored.map_err(|error| MemberError::Storage(error.into()))?;
        tracing::info!(index = snapshot.index, "took over the catalog's state");
        let Snapshot { index, term, meta, state } = snapshot;
        self.known.group = group_of(&meta)?;
        self.known.applied_index = index;
        self.known.state = state.clone().map(Arc::new);
        self.state = state;
        self.point = Point { index, term, meta };
        self.unwritten.clear();
        (self.is_written, self.compact_at) = (true, (index, term));
        Ok(())
    }

    fn apply(&mut self, applied: Applied) -> Result<(), MemberError> {
        if let Some(meta) = applied.meta {
            self.known.group = group_of(&meta)?;
            self.point.meta = meta;
        }
        self.known.applied_index = applied.index;
        (self.point.index, self.point.term) = (applied.index, applied.term);
        self.is_written = false;
        let Some(command) = applied.command else {
            return Ok(());
        };
        let Envelope { ticket, at_ms, command } = decode(&command)?;
        let state = self.state.as_mut().ok_or(MemberError::NoState)?;
        let carried_out = state.apply(at_ms, command);
        self.unwritten.extend(carried_out.changes);
        let ask = AskId(ticket.number);
        if ticket.run == self.asked.run && self.asked.proposals.remove(&ask) {
            let outcome = carried_out.outcome.map_err(AskError::from);
            self.asked.answers.push(Answer::Proposal(ask, outcome));
        }
        Ok(())
    }

    /// Writes the rows that have changed, publishes the state, and compacts the log once enough is
    /// applied.
    fn write_rows(&mut self) -> Result<(), MemberError> {
        if self.is_written {
            return Ok(());
        }
        let compacted = (self.point.index >= self.compact_at.0 + self.kept.entries)
            .then(|| std::mem::replace(&mut self.compact_at, (self.point.index, self.point.term)));
        let stored = self.storage.applied(&self.point, &self.unwritten, compacted);
        stored.map_err(|error| MemberError::Storage(error.into()))?;
        if !self.unwritten.is_empty() {
            self.known.state = self.state.clone().map(Arc::new);
        }
        self.unwritten.clear();
        self.is_written = true;
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let Point { index, term, ref meta } = self.point;
        Snapshot { index, term, meta: meta.clone(), state: self.state.clone() }
    }

    fn send_state(&self, member: MemberId) {
        tracing::info!(member = member.0, "a member of the catalog needs its state");
        self.outbound.install(member, self.snapshot());
    }
}

impl Asked {
    fn next_ask(&mut self) -> AskId {
        self.next += 1;
        AskId(self.next)
    }

    fn refuse(&mut self, ask: AskId, error: &BlockError) {
        let error = || match error {
            BlockError::Busy => AskError::Busy,
            _ => AskError::NotLeader,
        };
        if self.proposals.remove(&ask) {
            self.answers.push(Answer::Proposal(ask, Err(error())));
        }
        if self.barriers.remove(&ask) {
            self.answers.push(Answer::Barrier(ask, Err(error())));
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
        changing: false,
    })
}

fn conf_change(change: &MembershipChange) -> ConfChangeV2 {
    let singles = match change {
        MembershipChange::AddLearner(member) => vec![(ConfChangeType::AddLearnerNode, *member)],
        MembershipChange::Promote(members) => {
            members.iter().map(|member| (ConfChangeType::AddNode, *member)).collect()
        }
        MembershipChange::Replace { voter, by } => {
            vec![(ConfChangeType::AddNode, *by), (ConfChangeType::RemoveNode, *voter)]
        }
        MembershipChange::Remove(member) => vec![(ConfChangeType::RemoveNode, *member)],
    };
    let mut change = ConfChangeV2::default();
    for (kind, member) in singles {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = member.0;
        change.mut_changes().push(single);
    }
    change
}
