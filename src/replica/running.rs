//! The state machine of a member that is not faulted: takes inputs, and turns Readies into outputs.

use bytes::Bytes;
use raft::Storage as _;
use raft::eraftpb::{ConfChangeTransition, ConfChangeV2, Entry, Message, MessageType, Snapshot};

use crate::log::{Append, Change, HardState, Reset};
use crate::planted::planted;
use crate::replica::apply::{Applier, ApplyError, conf_change_of};
use crate::replica::command;
use crate::replica::contradiction::contradiction;
use crate::replica::entry::log_entry;
use crate::replica::feed::Feeds;
use crate::replica::keep::LogKeep;
use crate::replica::log_tail::{Kept, LogError, LogTail};
use crate::replica::messages::{Input, MemberConfig, Output, ReqId, ResyncReason, Role, Start};
use crate::replica::meta::{Meta, MetaError};
use crate::replica::persist::{APPENDS_IN_FLIGHT_MAX, Persist};
use crate::replica::raft_adapter::RaftAdapter;
use crate::replica::read::{ReadKind, ReadState, Reads};
use crate::replica::resync::{Resync, mark_uninitialised};
use crate::replica::terms::Terms;
use crate::replica::votes::{Situation, Votes};
use crate::replica::write::{Geometry, Writes};
use crate::replica::zeroes::UnappliedZeroes;
use crate::types::{BlockError, MemberId, Mono, Origin, ShardOp, ShardReply, Unappended};

/// Why a member cannot go on: the step that failed, with its cause.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("read the shard metadata")]
    Meta(#[from] MetaError),
    #[error("use the recovered log")]
    Log(#[from] LogError),
    #[error("apply a committed entry")]
    Apply(#[from] ApplyError),
    #[error("start raft")]
    Raft(#[source] raft::Error),
}

/// A member that is not faulted. See the module.
pub struct Running {
    pub(super) config: MemberConfig,
    pub(super) raft: RaftAdapter,
    pub(super) applier: Applier,
    pub(super) applied_index: u64,
    /// Term of the newest applied entry.
    applied_term: u64,
    pub(super) persist: Persist,
    pub(super) votes: Votes,
    pub(super) writes: Writes,
    pub(super) reads: Reads,
    pub(super) resync: Resync,
    pub(super) feeds: Feeds,
    /// The newest time of any call. No request arrived later, so leases are judged by it.
    newest: Mono,
    /// The term in which this member led after the last event.
    led_term: Option<u64>,
    /// The last reported role.
    role: Role,
    /// A snapshot that waits for a known leader, or for its log write.
    pub(super) install: Option<Reset>,
    /// Number of the round of heartbeats that leaves in this poll.
    round: Option<u64>,
    /// The commit index must be written even if nothing else is.
    write_commit: bool,
    /// Appended entries that zero blocks and are not applied yet.
    zeroes: UnappliedZeroes,
    /// The part of the log that is kept for a follower.
    pub(super) keep: LogKeep,
    /// Ticks in a row without any other event than an answer to a heartbeat.
    pub(super) quiet_ticks: u32,
    /// The first leader of a new shard: it campaigns at once.
    goes_first: bool,
    /// Outputs that leave first at the next poll.
    outbox: Vec<Output>,
}

impl Running {
    pub fn start(config: MemberConfig, start: Start, now: Mono) -> Result<Running, Broken> {
        let meta = Meta::decode(&start.meta)?;
        let fresh = start.hard == HardState::default()
            && start.applied_index == 0
            && start.compacted_index == 0
            && start.entries.is_empty();
        let terms = start.on_disk.filter(|_| config.log_on_disk);
        let terms = terms.unwrap_or(Terms::new(start.compacted_index, start.compacted_term));
        let applied_index = start.applied_index;
        let conf = meta.conf.clone();
        let mut zeroes = UnappliedZeroes::default();
        for entry in start.entries.iter().filter(|entry| entry.index > applied_index) {
            zeroes.appended(entry.index, &entry.context);
        }
        let mut log = LogTail::new(start.hard, conf, terms, applied_index, start.entries)?;
        if config.log_on_disk {
            log = log.with_disk();
        }
        let applied_term = log.term(applied_index).map_err(Broken::Raft)?;
        let mut raft = RaftAdapter::new(config.member, config.seed, applied_index, log)
            .map_err(Broken::Raft)?;
        let goes_first = fresh && meta.conf.voters.first() == Some(&config.member.0);
        if goes_first {
            raft.hasten_election();
        }
        let geometry = Geometry {
            blocks: config.blocks.min(meta.blocks),
            volume: config.volume,
            first_block_in_volume: config.first_block_in_volume,
        };
        raft.raw.mut_store().compact_to(config.log_tail_bytes, None);
        let writes = Writes::new(geometry, config.proposal_bytes_max, config.pool.clone());
        let reads = Reads::new(config.reads);
        Ok(Running {
            config,
            raft,
            applier: Applier::new(meta),
            applied_index,
            applied_term,
            persist: Persist::new(start.hard),
            votes: Votes::new(now, fresh, start.resyncing),
            writes,
            reads,
            resync: Resync::default(),
            feeds: Feeds::default(),
            newest: now,
            led_term: None,
            role: Role::default(),
            install: None,
            round: None,
            write_commit: false,
            zeroes,
            keep: LogKeep::default(),
            quiet_ticks: 0,
            goes_first,
            outbox: Vec::new(),
        })
    }

    pub fn meta(&self) -> bytes::Bytes {
        self.applier.meta.encode()
    }

    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    pub fn role(&self) -> Role {
        Role { term: self.raft.term(), leader: self.raft.leader(), serving: self.is_serving() }
    }

    /// The log has a configuration change that is not applied yet.
    pub fn is_changing(&self) -> bool {
        self.raft.raw.raft.has_pending_conf()
    }

    /// This member leads and has applied an entry of its own term.
    pub(super) fn is_serving(&self) -> bool {
        let own_term = self.applied_term == self.raft.term() || planted!(ReadBeforeOwnTerm);
        self.raft.is_leader() && own_term && !self.votes.resyncing
    }

    fn is_sole_voter(&self) -> bool {
        self.applier.meta.is_sole_voter(self.config.member)
    }

    fn situation(&self) -> Situation {
        let waits = self.install.is_some() && planted!(MuteUntilInstalled);
        Situation {
            term: self.raft.term(),
            is_leader: self.raft.is_leader(),
            initialised: !self.applier.meta.conf.voters.is_empty(),
            resetting: waits || self.persist.is_resetting(),
            sole_voter: self.is_sole_voter(),
        }
    }

    pub fn handle(&mut self, now: Mono, input: Input) -> Result<(), Broken> {
        self.newest = self.newest.max(now);
        self.count_quiet(&input);
        match input {
            Input::Tick => self.on_tick(now),
            Input::Peer(message) => self.on_peer(now, *message),
            Input::Client { req, term, origin, op } => self.on_client(req, term, origin, op),
            Input::Appended { number } => self.on_appended(number),
            Input::Base { ticket, result } => {
                if let Some((req, error)) = self.writes.on_base(ticket, result) {
                    self.refuse(req, error);
                }
            }
            Input::LogFetched { low, result } => {
                self.feeds.fetched(&mut self.raft, low, result);
            }
            Input::Unreachable(member) => self.raft.raw.report_unreachable(member.0),
            Input::TransferLeader(member) => self.on_transfer(member),
            Input::InstallSnapshot { index, term, meta } => {
                self.on_install(Reset { index, term, meta });
            }
            Input::ResyncEnded { member, ok } => {
                self.keep.end();
                self.resync.ended(member, ok);
            }
            Input::KeepLog { anew } => {
                let applied_bytes = self.raft.raw.store().applied_bytes();
                self.keep.keep(anew, self.applied_index, applied_bytes);
            }
            Input::Resyncing(resyncing) => self.votes.resyncing = resyncing,
            Input::ChangeMembers(change) => self.on_change_members(change),
            Input::Propose { req, data } => self.on_propose(req, data),
            Input::Barrier { req } => self.on_read(req, ReadKind::Barrier),
            Input::Woken { heard } => self.on_woken(now, heard),
        }
        self.after_raft();
        Ok(())
    }

    /// Call after every event that raft-rs saw.
    fn after_raft(&mut self) {
        self.raft.pin();
        let led_term = self.raft.is_leader().then_some(self.raft.term());
        if led_term == self.led_term {
            return;
        }
        self.led_term = led_term;
        for (req, error) in self.abandon() {
            self.refuse(req, error);
        }
        self.reads.reset();
        self.resync.clear();
        self.feeds.clear();
        self.writes.recheck();
    }

    /// Removes all unanswered requests and returns the answer of each, when this member stops
    /// leading.
    pub fn abandon(&mut self) -> Vec<(ReqId, BlockError)> {
        let not_leader = self.not_leader();
        let mut answers = Vec::new();
        self.writes.lose(&not_leader, &mut answers);
        let reads = self.reads.drain();
        answers.extend(reads.map(|req| (req, not_leader.clone())));
        answers
    }

    fn not_leader(&self) -> BlockError {
        BlockError::NotLeader { hint: self.raft.leader(), term: self.raft.term() }
    }

    fn refuse(&mut self, req: ReqId, error: BlockError) {
        self.outbox.push(Output::Reply { req, result: Err(error) });
    }

    fn on_tick(&mut self, now: Mono) {
        let at = self.situation();
        let campaigns = self.raft.is_about_to_campaign();
        // `elect_sole_voter` elects a sole voter, at a safe moment.
        let held_back = !at.is_leader && at.sole_voter;
        if !held_back && (!campaigns || self.votes.may_campaign(now, &at)) {
            self.raft.raw.tick();
            // The other voters may not exist yet. A question before the vote raises no term.
            if campaigns && self.goes_first && self.raft.term() == 0 {
                self.raft.hasten_election();
            }
        }
        self.write_commit = self.persist.wants_commit(self.raft.committed());
        self.keep.tick();
        if at.is_leader {
            self.resync.tick(&mut self.outbox);
            self.feeds.tick(&self.raft);
        }
    }

    fn on_peer(&mut self, now: Mono, mut message: Message) {
        let at = self.situation();
        if message.to != self.config.member.0 || !self.votes.admits(now, &message, &at) {
            return;
        }
        if at.is_leader && message.term == at.term {
            match message.get_msg_type() {
                MessageType::MsgHeartbeatResponse => self.on_heartbeat_answer(&mut message),
                MessageType::MsgAppendResponse if !message.reject => {
                    self.resync.caught_up(message.from);
                }
                _ => (),
            }
        }
        // Errors mean that raft-rs dropped the message: unknown sender, or too late.
        if let Err(error) = self.raft.raw.step(message) {
            tracing::debug!(member = self.config.member.0, %error, "dropped a message");
        }
    }

    /// Removes the round's number, which means nothing to raft-rs, from the message.
    fn on_heartbeat_answer(&mut self, message: &mut Message) {
        let context = std::mem::take(&mut message.context);
        if let Ok(round) = <[u8; 8]>::try_from(&context[..]) {
            let conf = &self.applier.meta.conf;
            let me = self.config.member.0;
            self.reads.answered(message.from, u64::from_le_bytes(round), me, conf);
        }
        if std::mem::take(&mut message.request_snapshot) != 0 {
            let reason = ResyncReason::Uninitialised;
            self.resync.wanted(message.from, reason, &mut self.outbox);
            return;
        }
        let base = self.raft.raw.store().base();
        let caught_up = message.commit >= base && message.commit <= self.raft.last_index();
        if !self.resync.is_lagging(message.from) || !caught_up {
            return;
        }
        // The follower's commit is durable there and part of this log. So it is progress, even if
        // the answer to the snapshot was lost.
        self.resync.caught_up(message.from);
        let mut progress = Message::default();
        progress.set_msg_type(MessageType::MsgAppendResponse);
        (progress.from, progress.to) = (message.from, message.to);
        progress.term = message.term;
        progress.index = message.commit;
        progress.commit = message.commit;
        if let Err(error) = self.raft.raw.step(progress) {
            tracing::debug!(member = self.config.member.0, %error, "dropped a follower's progress");
        }
    }

    fn on_client(&mut self, req: ReqId, term: u64, origin: Origin, op: ShardOp) {
        let meant = term == 0 || term == self.raft.term() || planted!(TermNotCompared);
        if !self.raft.is_leader() || !meant {
            let error = self.not_leader();
            self.refuse(req, error);
            return;
        }
        let status = matches!(op, ShardOp::Status { .. });
        match op {
            ShardOp::Read { range } | ShardOp::Status { range } => {
                let end = range.first.0.checked_add(range.count);
                if range.count == 0 || end.is_none_or(|end| end > self.config.blocks) {
                    self.refuse(req, BlockError::OutOfRange);
                    return;
                }
                self.on_read(req, ReadKind::Blocks { origin, range, status });
            }
            logged => {
                if let ShardOp::SetAccess(set) = &logged
                    && planted!(FenceAnswersEarly)
                {
                    let result = Ok(ShardReply::Access { generation: set.generation });
                    self.outbox.push(Output::Reply { req, result });
                }
                if let Err(error) = self.writes.push(req, origin, logged) {
                    self.refuse(req, error);
                }
            }
        }
    }

    fn on_read(&mut self, req: ReqId, kind: ReadKind) {
        if !self.raft.is_leader() {
            let error = self.not_leader();
            self.refuse(req, error);
        } else if !self.reads.push(req, kind, self.raft.committed()) {
            self.refuse(req, BlockError::Busy);
        }
    }

    fn on_propose(&mut self, req: ReqId, data: Bytes) {
        let taken = if self.raft.is_leader() {
            self.writes.push_opaque(req, data)
        } else {
            Err(self.not_leader())
        };
        if let Err(error) = taken {
            self.refuse(req, error);
        }
    }

    /// raft-rs refuses proposals during a transfer. A transfer to a follower that lags behind the
    /// log would fail, so it is not started.
    fn on_transfer(&mut self, member: MemberId) {
        let known = self.applier.meta.conf.voters.contains(&member.0);
        let lags = self.resync.is_lagging(member.0) || !self.raft.replicates_to(member.0);
        if self.raft.is_leader() && known && !lags && member != self.config.member {
            self.raft.raw.transfer_leader(member.0);
        }
    }

    /// Goes through a joint configuration, which a second change leaves. The leader never removes
    /// itself: raft-rs would panic. Control transfers the leadership first.
    fn on_change_members(&mut self, mut change: ConfChangeV2) {
        let me = self.config.member.0;
        if !change.changes.is_empty() {
            change.set_transition(ConfChangeTransition::Explicit);
        }
        let touches_me = change.changes.iter().any(|step| step.node_id == me);
        if !self.raft.is_leader() || !self.raft.accepts(0) || touches_me {
            tracing::info!(member = me, "a configuration change cannot be proposed here now");
            return;
        }
        if let Err(error) = self.raft.raw.propose_conf_change(Vec::new(), change) {
            tracing::info!(member = me, %error, "a configuration change was refused");
        }
    }

    fn on_appended(&mut self, number: u64) {
        let freed = self.persist.confirm(number);
        self.raft.raw.on_persist_ready(freed.ready);
        if let Some(index) = freed.reset {
            self.raft.raw.advance_apply_to(index);
            self.votes.resyncing = false;
        }
        let sends = freed.messages.into_iter().map(|message| Output::Send(Box::new(message)));
        self.outbox.extend(sends);
    }

    pub fn poll(&mut self, now: Mono, out: &mut Vec<Output>) -> Result<(), Broken> {
        self.newest = self.newest.max(now);
        self.round = None;
        out.append(&mut self.outbox);
        self.step_install();
        loop {
            self.drain(now, out)?;
            let moved = self.elect_sole_voter() || self.leave_joint() || self.begin_round(now);
            if !moved {
                break;
            }
            self.after_raft();
        }
        self.append_commit(out);
        out.append(&mut self.outbox);
        let state = self.read_state();
        self.reads.serve(&state, &self.applier.meta.access, out);
        let wanted = self.raft.raw.mut_store().take_wanted();
        let asked = self.raft.raw.mut_store().take_asked();
        if self.raft.is_leader() {
            for member in wanted {
                self.resync.wanted(member, ResyncReason::BehindLog, out);
            }
            asked.into_iter().for_each(|asked| self.feeds.ask(&self.raft, asked, out));
        }
        let role = self.role();
        if role != self.role {
            self.role = role;
            out.push(Output::Role(role));
        }
        Ok(())
    }

    /// See [`contradiction`].
    pub fn contradiction(&self, message: &Message) -> Option<&'static str> {
        contradiction(&self.raft, message)
    }

    pub fn has_entry(&self, index: u64, term: u64) -> bool {
        index <= self.applied_index || self.raft.raw.raft.raft_log.match_term(index, term)
    }

    pub fn committed(&self) -> u64 {
        self.raft.committed()
    }

    /// Bytes of proposals in flight: payload and overhead.
    pub fn proposed_bytes(&self) -> usize {
        self.writes.bytes()
    }

    /// Accepted changes that no [`Output::Append`] contains yet: requests behind the gate, and
    /// entries from the leader that wait because too many appends are in flight.
    pub fn unappended(&self) -> Unappended {
        let mut found = self.writes.unappended();
        let entries = self.raft.raw.raft.raft_log.unstable_entries();
        entries.iter().for_each(|entry| found.add(entry.data.len()));
        found
    }

    fn read_state(&self) -> ReadState {
        ReadState {
            now: self.newest,
            applied_index: self.applied_index,
            serving: self.is_serving(),
            sole_voter: self.is_sole_voter(),
        }
    }

    /// Extents that accepted changes zero which are not applied yet.
    pub fn unapplied_zeroes(&self) -> u64 {
        let unstable = self.raft.raw.raft.raft_log.unstable_entries().iter();
        let unstable: u64 = unstable.map(|entry| command::zero_extents(&entry.context)).sum();
        self.writes.waiting_zeroes() + unstable + self.zeroes.extents()
    }

    /// Proposes, and turns Readies into outputs, until nothing is left to do.
    fn drain(&mut self, now: Mono, out: &mut Vec<Output>) -> Result<(), Broken> {
        loop {
            if self.raft.is_leader() {
                let serving = self.is_serving();
                self.writes.unblock(serving, out);
                let in_flight = self.persist.in_flight();
                let applied_bytes = self.raft.raw.store().applied_bytes();
                let chunks = self.keep.proposals(applied_bytes, self.config.proposal_bytes_max);
                if self.writes.propose(&mut self.raft, in_flight, APPENDS_IN_FLIGHT_MAX, chunks) {
                    self.keep.proposed();
                }
                self.raft.pin();
            }
            let raft = &self.raft.raw.raft;
            let must_wait = self.persist.is_full()
                && !self.raft.is_leader()
                && !raft.raft_log.unstable_entries().is_empty();
            if must_wait || !self.raft.raw.has_ready() {
                return Ok(());
            }
            self.take_ready(now, out)?;
            self.after_raft();
        }
    }

    fn take_ready(&mut self, now: Mono, out: &mut Vec<Output>) -> Result<(), Broken> {
        let mut ready = self.raft.raw.ready();
        let number = ready.number();
        let hard = HardState::from(self.raft.raw.raft.hard_state());
        let at_once = self.persist.is_durable(&hard);
        let mut held = ready.take_persisted_messages();
        let messages = ready.take_messages();
        if !self.situation().initialised {
            mark_uninitialised(&mut held);
        }
        if at_once {
            // A leader sends entries while it writes them itself (Raft thesis, 10.2.1).
            for message in messages {
                self.send(now, message, out);
            }
            self.send_heartbeat_answers(&mut held, out);
        } else {
            // A sole voter elects itself before its new term is durable. Its learners must not hear
            // of the term, because after a crash it could use that term a second time.
            held.extend(messages);
        }
        let reset = self.take_snapshot(ready.snapshot())?;
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        if reset.is_some() || !entries.is_empty() || self.persist.must_write(&hard) {
            out.push(Output::Append(self.append(number, hard, reset, entries)));
        }
        self.raft.raw.advance_append_async(ready);
        if planted!(AnsweredBeforeDurable) {
            for message in std::mem::take(&mut held) {
                self.send(now, message, out);
            }
        }
        if let Some(free) = self.persist.hold(number, held) {
            self.raft.raw.on_persist_ready(number);
            for message in free {
                self.send(now, message, out);
            }
        }
        self.apply(committed, out)
    }

    /// Makes the log write of a Ready. raft-rs must be able to read the entries back before it is
    /// told that they were taken.
    fn append(
        &mut self,
        ready: u64,
        hard: HardState,
        reset: Option<Reset>,
        entries: Vec<Entry>,
    ) -> Append {
        let bytes = entries.iter().map(|entry| entry.data.len()).sum();
        let reset_index = reset.as_ref().map(|reset| reset.index);
        let (number, hard) = self.persist.begin(ready, hard, entries.len(), bytes, reset_index);
        self.write_commit = false;
        let whole = entries.iter().filter_map(|entry| self.applier.whole_extents(entry));
        let whole_extents = whole.collect();
        let logged = entries.iter().map(log_entry).collect();
        entries.iter().for_each(|entry| self.zeroes.appended(entry.index, &entry.context));
        self.raft.raw.mut_store().append(entries);
        let member = self.config.member;
        Append { member, number, hard, reset, entries: logged, whole_extents }
    }

    /// An answer to a heartbeat promises only a term that is already durable, so it need not wait
    /// for log writes. Its commit index is lowered to the index that is durable here.
    fn send_heartbeat_answers(&mut self, held: &mut Vec<Message>, out: &mut Vec<Output>) {
        let durable_commit = self.raft.raw.raft.raft_log.persisted.min(self.raft.committed());
        held.retain_mut(|message| {
            if message.get_msg_type() != MessageType::MsgHeartbeatResponse {
                return true;
            }
            let mut answer = std::mem::take(message);
            answer.commit = answer.commit.min(durable_commit);
            out.push(Output::Send(Box::new(answer)));
            false
        });
    }

    fn send(&mut self, now: Mono, mut message: Message, out: &mut Vec<Output>) {
        match message.get_msg_type() {
            MessageType::MsgHeartbeat => {
                let round = match self.round {
                    Some(round) => round,
                    None => self.reads.begin_round(now),
                };
                self.round = Some(round);
                message.context = Bytes::copy_from_slice(&round.to_le_bytes());
            }
            MessageType::MsgTimeoutNow => self.reads.give_up_lease(),
            _ => (),
        }
        out.push(Output::Send(Box::new(message)));
    }

    /// Replaces log and metadata by the snapshot of a Ready, which is always the one of `install`.
    fn take_snapshot(&mut self, snapshot: &Snapshot) -> Result<Option<Reset>, Broken> {
        if snapshot.is_empty() {
            return Ok(None);
        }
        let reset = self.install.take().expect("snapshots come from `install` alone");
        assert_eq!(snapshot.get_metadata().index, reset.index, "the one that was stepped");
        let mut meta = Meta::decode(&reset.meta)?;
        let conf = meta.conf.clone();
        if planted!(SessionsNotInstalled) {
            meta = Meta::new(&[], meta.blocks);
            meta.set_conf(conf.clone());
        }
        self.raft.raw.mut_store().reset(reset.index, reset.term, conf);
        self.applier = Applier::new(meta);
        self.applied_index = reset.index;
        self.applied_term = reset.term;
        self.zeroes = UnappliedZeroes::default();
        Ok(Some(reset))
    }

    /// Stores a snapshot to install. Another pod sent its metadata, so it may be malformed.
    fn on_install(&mut self, reset: Reset) {
        match Meta::decode(&reset.meta) {
            Ok(_) => self.install = Some(reset),
            Err(error) => {
                let member = self.config.member.0;
                tracing::warn!(member, %error, "a snapshot is dropped: cannot decode its metadata");
            }
        }
    }

    /// Steps the snapshot that ends a resync as if the leader had sent it. raft-rs answers the
    /// leader even if it no longer needs the snapshot. Without a known leader, the old log stays
    /// and decides the votes of this member.
    fn step_install(&mut self) {
        let Some(reset) = &self.install else {
            return;
        };
        let Some(leader) = self.raft.leader().filter(|leader| *leader != self.config.member) else {
            if self.raft.is_leader() {
                self.install = None;
            }
            return;
        };
        let Ok(meta) = Meta::decode(&reset.meta) else {
            unreachable!("decoded on arrival");
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to) = (leader.0, self.config.member.0);
        message.term = self.raft.term();
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (reset.index, reset.term);
        metadata.set_conf_state(meta.conf);
        if let Err(error) = self.raft.raw.step(message) {
            tracing::warn!(member = self.config.member.0, %error, "a snapshot was refused");
        }
        if self.raft.raw.snap().is_none() {
            // The log reaches beyond the snapshot, and raft-rs told the leader.
            if self.raft.committed() >= reset.index {
                self.votes.resyncing = false;
            }
            self.install = None;
        }
        self.after_raft();
    }

    fn apply(&mut self, committed: Vec<Entry>, out: &mut Vec<Output>) -> Result<(), Broken> {
        let Some(last) = committed.last() else {
            return Ok(());
        };
        let (last_index, last_term) = (last.index, last.term);
        for entry in &committed {
            assert_eq!(entry.index, self.applied_index + 1, "entries are applied in order");
            let applied = self.applier.apply(entry)?;
            if let Some(Change::Write { payload, .. }) = &applied.change {
                assert!(!payload.is_empty(), "entry {} lost its payload", entry.index);
            }
            if let Some(change) = conf_change_of(entry)? {
                self.change_conf(&change, applied.meta.is_some());
            }
            self.applied_index = entry.index;
            self.zeroes.applied(entry.index);
            let generation = self.applier.meta.access.generation;
            let answer = self.writes.applied(entry.index, applied.refused.clone(), generation);
            out.push(Output::Apply(applied));
            if let Some((req, result)) = answer {
                out.push(Output::Reply { req, result });
            }
        }
        if last_term != self.applied_term {
            self.applied_term = last_term;
            self.writes.recheck();
        }
        self.raft.raw.advance_apply_to(last_index);
        let log = self.raft.raw.mut_store();
        log.applied_to(last_index);
        let bytes_max = self.config.proposal_bytes_max;
        let kept = self.keep.above().map(|above| Kept { above, bytes_max });
        log.compact_to(self.config.log_tail_bytes, kept);
        Ok(())
    }

    /// Tells raft-rs of a configuration change, and compares its result with that of the applier.
    fn change_conf(&mut self, change: &ConfChangeV2, fits: bool) {
        match self.raft.raw.apply_conf_change(change) {
            Ok(conf) => {
                let mut meta = Meta::default();
                meta.set_conf(conf);
                assert_eq!(meta.conf, self.applier.meta.conf, "one configuration, not two");
            }
            Err(error) => assert!(!fits, "raft-rs refused a configuration: {error}"),
        }
        self.reads.forget_answers();
    }

    /// Elects the only voter. Waits until no Ready is in flight, because raft-rs would panic.
    fn elect_sole_voter(&mut self) -> bool {
        let at = self.situation();
        let waits = at.sole_voter && !at.is_leader && !at.resetting && !self.votes.resyncing;
        if !waits || !self.persist.is_idle() || self.raft.raw.has_ready() {
            return false;
        }
        let campaign = self.raft.raw.campaign();
        campaign.is_ok() && self.raft.is_leader()
    }

    /// Leaves an applied joint configuration; every leader tries until it succeeds. A leader that
    /// the new configuration removes transfers the leadership first.
    fn leave_joint(&mut self) -> bool {
        let meta = &self.applier.meta;
        let raft = &self.raft.raw.raft;
        if !self.raft.is_leader() || !meta.is_joint() || raft.has_pending_conf() {
            return false;
        }
        if !self.raft.accepts(0) {
            return false;
        }
        let me = self.config.member.0;
        if !meta.conf.voters.contains(&me) {
            let progress = |id: &&u64| raft.prs().get(**id).map(|progress| progress.matched);
            if let Some(heir) = meta.conf.voters.iter().max_by_key(progress).copied() {
                self.raft.raw.transfer_leader(heir);
            }
            return false;
        }
        let proposed = self.raft.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
        proposed.is_ok()
    }

    /// Starts one round of heartbeats for all reads of this poll that no lease covers.
    fn begin_round(&mut self, now: Mono) -> bool {
        if !self.reads.wants_round(&self.read_state()) {
            return false;
        }
        if self.reads.has_lapsed(now) {
            let member = self.config.member.0;
            tracing::info!(member, "the lease has lapsed: reads wait for a majority");
        }
        self.round = Some(self.reads.begin_round(now));
        self.raft.raw.ping();
        true
    }

    /// Writes the commit index of an idle member (rule `write-back-after-durable-commit`).
    fn append_commit(&mut self, out: &mut Vec<Output>) {
        // A commit must not become durable before its entries, so none may still wait in raft-rs.
        let taken = self.raft.raw.raft.raft_log.unstable_entries().is_empty();
        if !self.write_commit || !taken || self.persist.is_full() {
            return;
        }
        let hard = HardState::from(self.raft.raw.raft.hard_state());
        self.write_commit = false;
        if self.persist.must_write(&hard) {
            return;
        }
        let (number, hard) = self.persist.begin(0, hard, 0, 0, None);
        let member = self.config.member;
        out.push(Output::Append(Append { member, number, hard, ..Append::default() }));
    }
}
