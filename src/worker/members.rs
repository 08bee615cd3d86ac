//! Members at work: carries out what they ask for, and routes what they answer.

use raft::eraftpb::Message;

use crate::log::{Append, Applied};
use crate::net::message::PeerMessage;
use crate::planted::{Mistake, planted};
use crate::replica::member::Member;
use crate::replica::message;
use crate::replica::seam::{Input, Output, ReqId, Role};
use crate::types::{
    BlockError, BlockRange, MemberId, Mono, Origin, ShardId, ShardOp, ShardReply, VolumeId,
};
use crate::view::{MemberState, MemberView};
use crate::worker::Worker;
use crate::worker::follow::Demand;
use crate::worker::reads::{BlockRead, ReadTarget};
use crate::worker::requests::Waiter;
use crate::worker::resync::Resync;

/// One member of this worker.
pub struct MemberRuntime {
    pub member: Member,
    pub lane: u8,
    pub shard: ShardId,
    pub volume: VolumeId,
    pub role: Role,
    /// The other voters and where they live; empty while the catalog has not told.
    pub peers: Vec<MemberView>,
    /// Has inputs that were not polled.
    pub touched: bool,
    pub faulted: Option<String>,
    /// Being brought up to date from another member.
    pub resync: Option<Resync>,
    /// It has the durable *resyncing* mark and no resync under way: from this moment on it asks by
    /// itself, because its log may already reach far enough for the leader not to offer one.
    pub resume_at: Option<Mono>,
    /// The catalog knows it.
    pub known: bool,
    /// Where its requests come from.
    pub demand: Demand,
}

impl MemberRuntime {
    /// A crash or a failure has left it with the mark of a resync.
    pub fn has_mark(&self) -> bool {
        self.resume_at.is_some()
    }

    /// For reports.
    pub fn state(&self) -> MemberState {
        if self.faulted.is_some() {
            MemberState::Faulted
        } else if !self.known {
            MemberState::Unknown
        } else if self.resync.is_some() || self.has_mark() {
            // Also between two attempts: it is not whole.
            MemberState::Resyncing
        } else if self.role.serving {
            MemberState::Leader
        } else {
            MemberState::Follower
        }
    }
}

impl Worker {
    /// Gives a member an input; it is polled at the end of the round.
    pub fn input(&mut self, member: MemberId, input: Input) {
        let now = self.now;
        let Some(runtime) = self.members.get_mut(&member) else { return };
        if runtime.faulted.is_some() {
            return;
        }
        if let Some(probe) = &mut self.probe {
            probe.input(member, &input);
        }
        runtime.member.handle(now, input);
        if !runtime.touched {
            runtime.touched = true;
            self.touched.members.push(member);
        }
    }

    /// A client's operation for a member of this worker. The answer goes to `waiter`.
    pub fn request(
        &mut self,
        member: MemberId,
        term: u64,
        origin: Origin,
        op: ShardOp,
        waiter: Waiter,
    ) {
        let req = self.requests.add(member, waiter);
        let through = match waiter {
            Waiter::Volume { .. } => Some(self.config.pod),
            Waiter::Peer { conn, .. } => self.peers.pod_of(conn),
        };
        if let (Some(runtime), Some(pod)) = (self.members.get_mut(&member), through) {
            runtime.demand.note(pod);
        }
        let refused = match self.members.get(&member) {
            None => Some(BlockError::NotLeader { hint: None, term: 0 }),
            Some(runtime) if runtime.faulted.is_some() => {
                Some(BlockError::NotLeader { hint: None, term: 0 })
            }
            Some(runtime) if op.is_write() => self.refuse_write(runtime, member, &op),
            Some(_) => None,
        };
        match refused {
            Some(error) => self.answer(req, Err(error)),
            None => self.input(member, Input::Client { req, term, origin, op }),
        }
    }

    /// Why a write must not be proposed; `None` when it may be, or the member refuses it by itself.
    /// A member takes writes as soon as it is elected, which it tells, and serves, later.
    fn refuse_write(
        &self,
        runtime: &MemberRuntime,
        member: MemberId,
        op: &ShardOp,
    ) -> Option<BlockError> {
        let role = runtime.member.role();
        if role.leader != Some(member) || !role.serving && planted(Mistake::NewLeaderTakesAll) {
            return None;
        }
        let (ranges, payload_bytes) = ([op.range()], op.payload_bytes() as u64);
        let refused = self
            .admit(runtime.lane, member, payload_bytes, &ranges)
            .or_else(|| self.refuse_without_space(runtime, member, payload_bytes, &ranges));
        // What it has not applied yet may give space back.
        refused.map(|error| if role.serving { error } else { BlockError::Busy })
    }

    /// Polls a member and carries out its outputs, in order.
    pub fn poll_member(&mut self, member: MemberId) {
        let mut outputs = std::mem::take(&mut self.scratch.outputs);
        if let Some(runtime) = self.members.get_mut(&member) {
            runtime.touched = false;
            runtime.member.poll(self.now, &mut outputs);
        }
        for output in outputs.drain(..) {
            self.carry_out(member, output);
        }
        self.scratch.outputs = outputs;
        if let Some(runtime) = self.members.get(&member) {
            let unappended = runtime.member.unappended();
            self.lanes[usize::from(runtime.lane)].lane.set_unappended(member, unappended);
        }
    }

    fn carry_out(&mut self, member: MemberId, output: Output) {
        if let Some(probe) = &mut self.probe {
            probe.output(member, &output);
        }
        match output {
            Output::Send(message) => self.send_raft(*message),
            Output::Append(append) => self.append(member, append),
            Output::Apply(applied) => self.apply(member, applied),
            Output::Read { req, range, status } => {
                let target = match status {
                    true => ReadTarget::Status(req),
                    false => ReadTarget::Read(BlockRead::new(member, range, req.0)),
                };
                self.start_read(member, range, target);
            }
            Output::ReadBase { ticket, block } => {
                let range = BlockRange { first: block, count: 1 };
                let read = BlockRead::new(member, range, ticket);
                self.start_read(member, range, ReadTarget::Base(read));
            }
            Output::Reply { req, result } => self.answer(req, result),
            Output::Barrier { .. } => {
                unreachable!("only the catalog's member is asked for barriers")
            }
            Output::Role(role) => self.role_changed(member, role),
            Output::NeedsResync { member: behind } => {
                let offer = PeerMessage::ResyncOffer { to: behind, source: member };
                self.send_to_member(behind, offer);
            }
            Output::Faulted { reason } => {
                tracing::error!(%member, reason, "a replica is faulted: it takes no part any more");
                if let Some(runtime) = self.members.get_mut(&member) {
                    runtime.faulted = Some(reason);
                }
                self.report_due = true;
            }
        }
    }

    fn append(&mut self, member: MemberId, append: Append) {
        let Some(runtime) = self.members.get(&member) else { return };
        let lane = runtime.lane;
        self.lanes[usize::from(lane)].lane.append(append);
        self.touch_lane(lane);
    }

    fn apply(&mut self, member: MemberId, applied: Applied) {
        let Some(runtime) = self.members.get(&member) else { return };
        let lane = runtime.lane;
        self.lanes[usize::from(lane)].lane.apply(member, applied);
        self.touch_lane(lane);
    }

    fn role_changed(&mut self, member: MemberId, role: Role) {
        let Some(runtime) = self.members.get_mut(&member) else { return };
        let before = std::mem::replace(&mut runtime.role, role);
        let (volume, shard) = (runtime.volume, runtime.shard);
        let Role { term, leader, serving } = role;
        tracing::info!(%member, %shard, term, ?leader, serving, "role");
        // A leader that does not serve yet would only refuse what the router sends.
        let leader = role.leader.filter(|leader| *leader != member || role.serving);
        if let Some(router) = self.volumes.get_mut(&volume) {
            // A leader that was replaced may be silent on a connection that still stands.
            if let Some(old) = before.leader.filter(|old| leader.is_some_and(|new| new != *old)) {
                router.link_down(self.now, old);
            }
            router.role(shard, leader, role.term);
            self.touch_volume(volume);
        }
        self.report_due = true;
    }

    fn send_raft(&mut self, message: Message) {
        let to = MemberId(message.to);
        let (header, payloads) = message::split(message);
        self.send_to_member(to, PeerMessage::Raft { to, header, payloads });
    }

    /// A Raft message from a peer. Entries are taken only while the lane has room for them
    /// (rule R9): Raft sends a refused append again.
    pub fn raft_message(&mut self, to: MemberId, header: &[u8], payloads: Vec<bytes::Bytes>) {
        if !self.members.contains_key(&to) {
            return;
        }
        let mut message = match message::join(header, payloads) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%to, %error, "a peer sent a Raft message that cannot be decoded");
                return;
            }
        };
        if message.to != to.0 {
            tracing::warn!(%to, addressed = message.to, "a Raft message went to the wrong member");
            return;
        }
        if !message.entries.is_empty() {
            if self.refuses_entries(to) {
                // The leader sends them again.
                return;
            }
            match self.admit_entries(to, &message) {
                Ok(0) if !self.tells_of_commits(to, &message) => return,
                // Raft acknowledges what it took, and the leader sends the rest again.
                Ok(count) => message.entries.truncate(count),
                Err(error) => {
                    tracing::warn!(%to, %error, "a peer sent an entry that cannot be decoded");
                    return;
                }
            }
        }
        self.input(to, Input::Peer(Box::new(message)));
    }

    /// Answers a request once.
    pub fn answer(&mut self, req: ReqId, result: Result<ShardReply, BlockError>) {
        let Some((member, waiter)) = self.requests.take(req) else { return };
        let term = self.members.get(&member).map_or(0, |runtime| runtime.role.term);
        match waiter {
            Waiter::Volume { volume, ticket } => {
                if let Some(router) = self.volumes.get_mut(&volume) {
                    router.shard_result(self.now, ticket, member, term, result);
                    self.touch_volume(volume);
                }
            }
            Waiter::Peer { conn, call, owed_bytes } => {
                self.peers.answered(conn, owed_bytes);
                self.send_on(conn, PeerMessage::Response { call, term, result });
            }
        }
    }

    /// One tick of every member.
    pub fn tick_members(&mut self, now: Mono) {
        let members: Vec<MemberId> = self.members.keys().copied().collect();
        for member in members {
            self.input(member, Input::Tick);
        }
        self.step_down_from_hung_lanes(now);
    }

    fn step_down_from_hung_lanes(&mut self, now: Mono) {
        for number in 0..self.lanes.len() {
            if !self.lanes[number].is_hung(now) {
                continue;
            }
            let disk = self.lanes[number].place.disk;
            tracing::warn!(%disk, "the disk hangs: leaders step down");
            self.transfer_leaders(|runtime| usize::from(runtime.lane) == number);
        }
    }

    /// Asks every leading member that `of` picks, also one that cannot serve yet, to hand its
    /// leadership to another voter. Not every other can take it: each has its turn, for a second.
    pub fn transfer_leaders(&mut self, of: impl Fn(&MemberRuntime) -> bool) {
        let (own, turn) = (self.config.pod, self.now.0 / 1_000_000_000);
        let transfers: Vec<(MemberId, MemberId)> = self
            .members
            .iter()
            .filter(|(id, runtime)| runtime.role.leader == Some(**id) && of(runtime))
            .filter_map(|(id, runtime)| {
                let up = |peer: &&MemberView| peer.pod != own && self.peers.is_up(peer.pod);
                let up: Vec<&MemberView> = runtime.peers.iter().filter(up).collect();
                let next = turn.checked_rem(up.len() as u64)?;
                Some((*id, up[next as usize].member))
            })
            .collect();
        for (member, to) in transfers {
            self.input(member, Input::TransferLeader(to));
        }
    }
}
