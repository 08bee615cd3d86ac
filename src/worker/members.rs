//! The members: replicas on this pod's disks.
//! - Owns: the members, and the requests that they have not answered.
//! - May call: nobody.
//! - Is told: inputs, by all other components.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::io::buffer::Pool;
use crate::log::Append;
use crate::replica::member::Member;
use crate::replica::messages::{Input, MemberConfig, Output, ReqId, Rest, Role, Start};
use crate::store::messages::MemberRecord;
use crate::telemetry::metrics::data_path::{DataPath as Meters, ReadStage, WriteStage};
use crate::types::{MemberId, Mono, PodId, ShardId, Uuid, VolumeId};
use crate::view::{MemberState, MemberView};
use crate::worker::WorkerConfig;
use crate::worker::follow::Demand;
use crate::worker::observer::Observer;
use crate::worker::requests::{Kind, Requests, Waiting};
use crate::worker::rests::Rests;
use crate::worker::stages::Stages;
use crate::worker::token::ConnKey;

/// One member of this worker.
pub struct MemberRuntime {
    pub member: Member,
    pub lane: u8,
    pub shard: ShardId,
    pub volume: VolumeId,
    pub role: Role,
    /// The other voters and their places; empty until the catalog names them.
    pub peers: Vec<MemberView>,
    /// Has unpolled inputs.
    touched: bool,
    pub faulted: Option<String>,
    /// The catalog knows it.
    pub known: bool,
    /// Where its requests come from.
    pub demand: Demand,
    /// Stages of its writes, while it leads.
    stages: Stages,
    /// Lapsed leases that are counted.
    lapses: u64,
}

impl MemberRuntime {
    /// True when `other` is another replica of this shard, on that pod.
    pub fn is_peer(&self, other: MemberId, pod: PodId) -> bool {
        self.peers.iter().any(|peer| (peer.member, peer.pod) == (other, pod))
    }

    /// The state for reports; `resyncing`: the replica is not whole.
    pub fn state(&self, resyncing: bool) -> MemberState {
        match self.faulted {
            Some(_) => MemberState::Faulted,
            None if !self.known => MemberState::Orphan,
            None if resyncing => MemberState::Resyncing,
            None if self.role.serving => MemberState::Leader,
            None => MemberState::Follower,
        }
    }
}

/// The members of a worker.
pub struct Members {
    config: WorkerConfig,
    pool: Pool,
    members: FxHashMap<MemberId, MemberRuntime>,
    /// Members with unpolled inputs.
    pub touched: Vec<MemberId>,
    pub requests: Requests,
    /// Members that clients asked in this window, or of whose clients earlier windows know.
    pub asked: BTreeSet<MemberId>,
    /// Members that do not rest: they have ticks.
    awake: BTreeSet<MemberId>,
    pub rests: Rests,
    /// Members that woke, and those that they must tell.
    pub woken: Vec<(MemberId, ConnKey, MemberId)>,
    pub observer: Option<Box<dyn Observer>>,
    pub meters: Arc<Meters>,
}

impl Members {
    pub fn new(config: WorkerConfig, pool: Pool, meters: Arc<Meters>) -> Members {
        Members {
            config,
            pool,
            members: FxHashMap::default(),
            touched: Vec::new(),
            requests: Requests::default(),
            asked: BTreeSet::new(),
            awake: BTreeSet::new(),
            rests: Rests::default(),
            woken: Vec::new(),
            observer: None,
            meters,
        }
    }

    pub fn get(&self, member: MemberId) -> Option<&MemberRuntime> {
        self.members.get(&member)
    }

    pub fn get_mut(&mut self, member: MemberId) -> Option<&mut MemberRuntime> {
        self.members.get_mut(&member)
    }

    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &MemberRuntime)> {
        self.members.iter().map(|(member, runtime)| (*member, runtime))
    }

    pub fn lane_of(&self, member: MemberId) -> Option<u8> {
        self.get(member).map(|runtime| runtime.lane)
    }

    pub fn role_of(&self, member: MemberId) -> Role {
        self.get(member).map(|runtime| runtime.role).unwrap_or_default()
    }

    /// Starts a member on a lane.
    pub fn start(
        &mut self,
        now: Mono,
        lane: u8,
        record: &MemberRecord,
        start: Start,
        peers: Vec<MemberView>,
    ) {
        let config = MemberConfig {
            member: record.member,
            shard: record.shard,
            volume: record.volume,
            first_block_in_volume: record.first_block_in_volume,
            seed: self.config.seed ^ record.member.0,
            blocks: record.blocks,
            log_tail_bytes: self.config.log_tail_bytes,
            log_on_disk: true,
            proposal_bytes_max: self.config.budgets.shard_bytes,
            reads: self.config.reads,
            pool: self.pool.clone(),
        };
        let faulted = start.faulted.then(|| "a part of its log is corrupt".to_owned());
        let runtime = MemberRuntime {
            member: Member::start(config, start, now),
            lane,
            shard: record.shard,
            volume: record.volume,
            role: Default::default(),
            known: !peers.is_empty(),
            peers,
            touched: true,
            faulted,
            demand: Default::default(),
            stages: Stages::default(),
            lapses: 0,
        };
        self.members.insert(record.member, runtime);
        self.awake.insert(record.member);
        self.touched.push(record.member);
    }

    pub fn remove(&mut self, member: MemberId) {
        self.end_rest(Mono::default(), member);
        self.awake.remove(&member);
        self.members.remove(&member);
    }

    /// A leader rests, if all its followers were offered that; see [`Rests::rest_leader`].
    pub fn rest_leader(&mut self, now: Mono, leader: MemberId, others: Vec<(ConnKey, MemberId)>) {
        if self.awake.remove(&leader) {
            self.rests.rest_leader(now, leader, others);
        }
    }

    /// A follower takes an offer to rest. False: it must stay awake.
    pub fn rest_follower(&mut self, now: Mono, to: MemberId, conn: ConnKey, offer: &Rest) -> bool {
        let found = self.members.get(&to).filter(|runtime| runtime.faulted.is_none());
        let rests = found.is_some_and(|runtime| runtime.member.may_rest(offer));
        if rests && self.awake.remove(&to) {
            self.rests.rest_follower(now, to, conn, offer.leader);
        }
        // One that rests by another connection will miss the beat there, and say so.
        rests && self.rests.is_resting(to)
    }

    /// The connections over which lanes of this pod must beat for resting leaders.
    pub fn beats(&self) -> Vec<ConnKey> {
        self.rests.beats().collect()
    }

    /// Wakes a member, if it rests.
    pub fn wake(&mut self, now: Mono, member: MemberId) {
        let Some(heard) = self.end_rest(now, member) else { return };
        self.input(now, member, Input::Woken { heard });
    }

    /// Wakes all members that rest by a connection.
    pub fn wake_conn(&mut self, now: Mono, conn: ConnKey) {
        for member in self.rests.of_conn(conn) {
            self.wake(now, member);
        }
    }

    /// Returns when the member last heard its leader's lane, if it rested.
    fn end_rest(&mut self, now: Mono, member: MemberId) -> Option<Mono> {
        let woken = self.rests.wake(now, member)?;
        self.awake.insert(member);
        let told = woken.others.into_iter().map(|(conn, other)| (member, conn, other));
        self.woken.extend(told);
        Some(woken.heard)
    }

    /// Gives a member an input; it is polled at the end of the round.
    pub fn input(&mut self, now: Mono, member: MemberId, input: Input) {
        if self.rests.is_resting(member) && !matches!(input, Input::Tick) {
            self.wake(now, member);
        }
        let Some(runtime) = self.members.get_mut(&member) else { return };
        if runtime.faulted.is_some() {
            return;
        }
        if let Some(observer) = &mut self.observer {
            observer.input(member, &input);
        }
        runtime.member.handle(now, input);
        if !std::mem::replace(&mut runtime.touched, true) {
            self.touched.push(member);
        }
    }

    pub fn poll(&mut self, now: Mono, member: MemberId, outputs: &mut Vec<Output>) {
        if let Some(runtime) = self.members.get_mut(&member) {
            runtime.touched = false;
            runtime.member.poll(now, outputs);
            let lapses = runtime.member.lease_lapses();
            let before = std::mem::replace(&mut runtime.lapses, lapses);
            self.meters.lease_lapses.add(lapses.saturating_sub(before));
        }
    }

    pub fn tick(&mut self, now: Mono) {
        for member in self.rests.due(now) {
            self.wake(now, member);
        }
        let awake: Vec<MemberId> = self.awake.iter().copied().collect();
        for member in awake {
            self.input(now, member, Input::Tick);
        }
    }

    /// Leaders in whose groups nothing happens, and their offers to their followers.
    pub fn offers_of_rest(&self) -> Vec<Rest> {
        let awake = self.awake.iter().filter_map(|member| self.members.get(member));
        let awake = awake.filter(|runtime| runtime.role.serving && runtime.faulted.is_none());
        awake.filter_map(|runtime| runtime.member.offers_rest()).collect()
    }

    /// Tells members that the data connection to a disk of another pod is down.
    pub fn unreachable(&mut self, now: Mono, disk: Uuid) {
        let there = |(member, runtime): (&MemberId, &MemberRuntime)| {
            let there = runtime.peers.iter().filter(|peer| peer.disk == disk);
            there.map(|peer| (*member, peer.member)).collect::<Vec<_>>()
        };
        let told: Vec<(MemberId, MemberId)> = self.members.iter().flat_map(there).collect();
        for (member, peer) in told {
            self.input(now, member, Input::Unreachable(peer));
        }
    }

    /// Asks every leading member that `of` picks, serving or not, to hand its leadership to another
    /// voter. Some voters cannot take it, so each has a turn of one second.
    pub fn transfer_leaders(
        &mut self,
        now: Mono,
        is_up: impl Fn(PodId) -> bool,
        of: impl Fn(&MemberRuntime) -> bool,
    ) {
        let (own, turn) = (self.config.pod, now.0 / 1_000_000_000);
        let transfers: Vec<(MemberId, MemberId)> = self
            .iter()
            .filter(|(id, runtime)| runtime.role.leader == Some(*id) && of(runtime))
            .filter_map(|(id, runtime)| {
                let up = |peer: &&MemberView| peer.pod != own && is_up(peer.pod);
                let up: Vec<&MemberView> = runtime.peers.iter().filter(up).collect();
                let next = turn.checked_rem(up.len() as u64)?;
                Some((id, up[next as usize].member))
            })
            .collect();
        for (member, to) in transfers {
            self.input(now, member, Input::TransferLeader(to));
        }
    }

    /// A member's role changed.
    pub fn set_role(&mut self, member: MemberId, role: Role) -> Option<Role> {
        let runtime = self.members.get_mut(&member)?;
        let before = std::mem::replace(&mut runtime.role, role);
        let (led, leads) = (before.leader == Some(member), role.leader == Some(member));
        if !leads {
            runtime.stages.clear();
        }
        self.meters.term_changes.add(u64::from(role.term > before.term));
        self.meters.elections_won.add(u64::from(leads && !led));
        Some(before)
    }

    /// A member writes to its log.
    pub fn note_append(&mut self, now: Mono, member: MemberId, append: &Append) {
        let Some(runtime) = self.members.get_mut(&member) else { return };
        if runtime.role.leader == Some(member) {
            runtime.stages.appended(now, append);
        }
    }

    /// The log has what a member wrote.
    pub fn note_logged(&mut self, now: Mono, member: MemberId, number: u64) {
        let Some(runtime) = self.members.get(&member) else { return };
        if let Some((took, entries)) = runtime.stages.logged(now, number) {
            self.meters.write_stage(WriteStage::Logged).record(took, entries);
        }
    }

    /// A member applies an entry.
    pub fn note_apply(&mut self, member: MemberId, index: u64) {
        if let Some(runtime) = self.members.get_mut(&member) {
            runtime.stages.applied(index);
        }
    }

    /// A read may be served: its leader knows that it leads.
    pub fn note_read(&self, now: Mono, req: ReqId, leased: bool) {
        let stage = if leased { ReadStage::Leased } else { ReadStage::Asked };
        if let Some(read) = self.requests.get(req).filter(|read| read.kind == Kind::Read) {
            self.meters.read_stage(stage).record(now.since(read.since), 1);
        }
    }

    /// A resync into a member here ended.
    pub fn note_resync_end(&self, ok: bool) {
        let Meters { resyncs_done, resyncs_failed, .. } = &*self.meters;
        if ok { resyncs_done.add(1) } else { resyncs_failed.add(1) }
    }

    /// A request was carried out.
    pub fn note_done(&mut self, now: Mono, request: &Waiting) {
        let (took, meters) = (now.since(request.since), &self.meters);
        match request.kind {
            Kind::Read => meters.read_stage(ReadStage::Answered).record(took, 1),
            Kind::Write => {
                meters.write_stage(WriteStage::Answered).record(took, 1);
                let runtime = self.members.get_mut(&request.member);
                if let Some(logged) = runtime.and_then(|runtime| runtime.stages.take_applied()) {
                    let queued = logged.since(request.since);
                    meters.write_stage(WriteStage::Queued).record(queued, 1);
                    meters.write_stage(WriteStage::Committed).record(now.since(logged), 1);
                }
            }
            Kind::Other => {}
        }
    }

    /// Ends a window of the members that clients ask, and moves leaderships to their clients.
    pub fn follow_clients(&mut self, now: Mono) {
        let here = self.config.pod;
        let mut moves: Vec<(MemberId, MemberId)> = Vec::new();
        let Members { members, asked, config, .. } = self;
        asked.retain(|member| {
            let Some(runtime) = members.get_mut(member) else { return false };
            let pod = runtime.demand.end_of_window();
            let pod = pod.filter(|pod| config.leaders_follow_clients && *pod != here);
            let there = runtime.peers.iter().find(|peer| Some(peer.pod) == pod);
            let there = there.filter(|_| runtime.role.serving);
            moves.extend(there.map(|there| (*member, there.member)));
            !runtime.demand.is_at_rest()
        });
        for (member, to) in moves {
            tracing::info!(%member, %to, "the leadership follows its client");
            self.input(now, member, Input::TransferLeader(to));
        }
    }
}
