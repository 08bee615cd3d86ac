//! The round: reap -> handle -> poll -> submit. [`Worker`] owns all components.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::io::buffer::Pool;
use crate::io::driver::{Address, Completion, Driver};
use crate::limits::{HEARTBEAT_TICKS, TICK};
use crate::net::handshake::Identity;
use crate::net::link::LinkEvent;
use crate::net::message::PeerMessage;
use crate::replica::messages::Output;
use crate::store::lane::Lane;
use crate::store::messages::{Done, Event, OpId};
use crate::telemetry::metrics::data_path::DataPath as Meters;
use crate::types::{AccessSet, Mono, Uuid, VolumeId};
use crate::view::{ClusterView, DiskReport, PodReport};
use crate::volume::VolumeOutput;
use crate::worker::WorkerConfig;
use crate::worker::backlog::Backlog;
use crate::worker::clients::{Clients, Exported};
use crate::worker::control_plane::{ControlPlane, Resolution};
use crate::worker::error::StartError;
use crate::worker::follow::WINDOW;
use crate::worker::fronts::{FRONT_OPENED, front_of};
use crate::worker::lanes::{LaneRuntime, Lanes};
use crate::worker::listeners::{Listeners, Purpose};
use crate::worker::mailbox::Receiver;
use crate::worker::members::{MemberRuntime, Members};
use crate::worker::meters::{self, Look};
use crate::worker::observer::Observer;
use crate::worker::peers::Peers;
use crate::worker::read_repair::ReadRepairs;
use crate::worker::reconcile::Reconciler;
use crate::worker::reports::Reports;
use crate::worker::resync::Resyncs;
use crate::worker::routers::{AccessAnswer, Routers};
use crate::worker::tls::{WorkerTls, encryption_at};
use crate::worker::token::Target;

/// Messages taken from the mailbox in one round.
const MESSAGES_PER_ROUND: usize = 256;
/// Unused memory begins to go back after this time, which is longer than write-back's waves.
const TRIM_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at what metrics show as of now.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What other threads tell a worker.
#[derive(Debug)]
pub enum WorkerCommand {
    View(Arc<ClusterView>),
    /// A job of a lane's index ended.
    Index {
        lane: u8,
        op: OpId,
        done: Done,
    },
    /// Have an access set committed in every shard of a volume.
    SetAccess {
        volume: VolumeId,
        set: AccessSet,
        answer: AccessAnswer,
    },
    /// The answer to a question about the name of an export.
    Resolved {
        question: u64,
        answer: Resolution,
    },
    /// Hand the leaderships away, then stop.
    Stop,
}

/// One data-path thread: its components, and the order of their turns.
pub struct Worker {
    pub(super) config: WorkerConfig,
    pub(super) driver: Box<dyn Driver>,
    pub(super) now: Mono,
    pub(super) lanes: Lanes,
    pub(super) members: Members,
    pub(super) routers: Routers,
    pub(super) peers: Peers,
    pub(super) clients: Clients,
    pub(super) exported: Exported,
    pub(super) listeners: Listeners,
    pub(super) resyncs: Resyncs,
    pub(super) read_repairs: ReadRepairs,
    pub(super) reconciler: Reconciler,
    pub(super) reports: Reports,
    pub(super) control: Box<dyn ControlPlane>,
    pub(super) meters: Arc<Meters>,
    pub(super) scratch: Scratch,
    inbox: Receiver<WorkerCommand>,
    pool: Pool,
    pub(super) next_tick: Mono,
    next_beat: Mono,
    next_window: Mono,
    next_trim: Mono,
    next_look: Mono,
    stopping: Option<Mono>,
}

/// Vectors that keep their capacity from round to round.
#[derive(Default)]
pub struct Scratch {
    pub outputs: Vec<Output>,
    pub routes: Vec<VolumeOutput>,
    pub link_events: Vec<LinkEvent>,
    pub events: Vec<Event>,
    completions: Vec<Completion>,
}

impl Worker {
    /// A worker with its lanes and members, before its first round.
    pub fn new(
        config: WorkerConfig,
        driver: Box<dyn Driver>,
        pool: Pool,
        inbox: Receiver<WorkerCommand>,
        control: Box<dyn ControlPlane>,
    ) -> Worker {
        let now = driver.now();
        let meters = Arc::new(Meters::default());
        meters::set_limits(&meters, &config.budgets);
        Worker {
            lanes: Lanes::default(),
            members: Members::new(config.clone(), pool.clone(), Arc::clone(&meters)),
            routers: Routers::new(&config, Arc::clone(&meters)),
            peers: Peers::new(&config, pool.clone()),
            clients: Clients::new(&config, pool.clone(), Arc::clone(&meters)),
            exported: Exported::default(),
            listeners: Listeners::default(),
            resyncs: Resyncs::default(),
            read_repairs: ReadRepairs::default(),
            reconciler: Reconciler::default(),
            reports: Reports::new(now),
            control,
            meters,
            scratch: Scratch::default(),
            config,
            driver,
            now,
            inbox,
            pool,
            next_tick: now + TICK,
            next_beat: now,
            next_window: now + WINDOW,
            next_trim: now + TRIM_EVERY,
            next_look: now,
            stopping: None,
        }
    }

    /// Links are under TLS from now on. Clients of listeners that are added later may ask for it.
    pub fn use_tls(&mut self, tls: WorkerTls) {
        self.clients.use_tls(tls.clone());
        self.peers.use_tls(tls);
    }

    /// Adds a recovered lane.
    pub fn add_lane(&mut self, mut runtime: LaneRuntime) {
        let place = &runtime.place;
        runtime.meters = self.meters.add_disk(place.disk.to_string(), place.path.clone());
        let superblock = runtime.lane.superblock();
        self.peers.add_local(Identity {
            cluster: superblock.cluster,
            pod: self.config.pod,
            disk: superblock.disk,
            lane: 0,
            incarnation: superblock.incarnation,
        });
        self.lanes.all.push(runtime);
    }

    /// Adds the identity of a pod without a lane, by which its clients reach those of other pods.
    pub fn add_front(&mut self) {
        let WorkerConfig { cluster, pod, .. } = self.config;
        let disk = front_of(pod);
        self.peers.add_local(Identity { cluster, pod, disk, lane: 0, incarnation: FRONT_OPENED });
    }

    /// Adds a disk that could not be opened: it has no lane, and shows in reports.
    pub fn add_failed_disk(&mut self, disk: Uuid, path: String, capacity: u64, reason: String) {
        self.meters.add_disk(disk.to_string(), path.clone());
        let (capacity_bytes, failed) = (capacity, Some(reason));
        let report = DiskReport { disk, path, capacity_bytes, failed, ..DiskReport::default() };
        self.lanes.failed.push(report);
    }

    pub fn listen_nbd(&mut self, address: &Address) -> Result<Address, StartError> {
        self.listen(address, Purpose::Nbd(encryption_at(address, self.clients.tls())))
    }

    pub fn listen_peers(&mut self, address: &Address) -> Result<Address, StartError> {
        self.listen(address, Purpose::Peer)
    }

    fn listen(&mut self, address: &Address, purpose: Purpose) -> Result<Address, StartError> {
        let bound = self.listeners.listen(self.driver.as_mut(), address, purpose);
        bound.map_err(|source| StartError::Listen { address: address.clone(), source })
    }

    /// Shows the inputs and outputs of members to `observer` from now on.
    pub fn watch(&mut self, observer: Box<dyn Observer>) {
        self.members.observer = Some(observer);
    }

    /// The lanes, for a simulation that looks into them.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.lanes.all.iter_mut().map(|runtime| &mut runtime.lane)
    }

    /// What the queues hold.
    pub fn load(&self) -> Backlog {
        Backlog::of(&self.lanes, &self.members, &self.peers, &self.routers)
    }

    /// What this pod reports to the catalog.
    pub fn report(&self) -> PodReport {
        let disks = self.reconciler.report(&self.lanes, &self.members, &self.resyncs);
        PodReport { pod: self.config.pod, disks }
    }

    /// Its metrics, which it goes on writing.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    /// Runs rounds until it is told to stop.
    pub fn run(&mut self) -> std::io::Result<()> {
        while !self.is_finished() {
            self.round()?;
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.stopping.is_some_and(|deadline| {
            let leads = self.members.iter().any(|(_, runtime)| runtime.role.serving);
            self.now >= deadline || !leads
        })
    }

    pub fn round(&mut self) -> std::io::Result<()> {
        self.meters.rounds.fetch_add(1, Ordering::Relaxed);
        let timeout = self.timeout();
        let mut completions = std::mem::take(&mut self.scratch.completions);
        match self.driver.enter(Some(timeout), &mut completions) {
            // The kernel took nothing this time; the next call submits it again.
            Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {}
            result => result?,
        }
        let messages = self.inbox.unpark().min(MESSAGES_PER_ROUND);
        self.now = self.driver.now();
        for completion in completions.drain(..) {
            self.completed(completion);
        }
        self.scratch.completions = completions;
        for _ in 0..messages {
            let Some(command) = self.inbox.receive() else { break };
            self.command(command);
        }
        let is_tick = self.now >= self.next_tick;
        if is_tick {
            self.tick();
        }
        if self.reports.is_due(self.now) {
            let report = self.report();
            meters::count_replicas(&self.lanes.all, &report);
            self.reports.send(self.now, report, &*self.control);
        }
        self.lanes.wake(self.now, is_tick);
        self.routers.wake(self.now);
        self.settle();
        self.submit();
        Ok(())
    }

    /// How long to wait for the kernel: zero when there is a message.
    fn timeout(&mut self) -> Duration {
        if !self.inbox.park() {
            return Duration::ZERO;
        }
        let lanes = self.lanes.all.iter().filter_map(|lane| lane.lane.deadline());
        let until = lanes.chain(self.routers.deadline()).fold(self.next_tick, Mono::min);
        until.since(self.driver.now())
    }

    fn completed(&mut self, completion: Completion) {
        match Target::of(completion.token) {
            Target::Lane(lane, op) => {
                self.lanes.completed(self.now, (lane, op), false, completion);
            }
            Target::LaneSync(lane, op) => {
                self.lanes.completed(self.now, (lane, op), true, completion);
            }
            Target::Accept(listener) => self.accepted(listener, completion),
            Target::ClientRecv(conn) => self.client_handler().received(conn, completion),
            Target::ClientSend(conn) => self.client_handler().sent(conn, completion),
            Target::PeerConnect(conn) => self.peer_handler().connected(conn, completion),
            Target::PeerRecv(conn) => self.peer_received(conn, completion),
            Target::PeerSend(conn) => self.peer_sent(conn, &completion),
            Target::Closed => {}
        }
    }

    fn command(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::View(view) => self.view_changed(view),
            WorkerCommand::Index { lane, op, done } => self.lanes.at(lane).complete(op, done),
            WorkerCommand::SetAccess { volume, set, answer } => {
                self.routers.set_access(volume, set, answer);
            }
            WorkerCommand::Resolved { question, answer } => {
                self.client_handler().resolved(question, answer);
            }
            WorkerCommand::Stop => {
                tracing::info!("stopping: leaderships move away");
                self.stopping.get_or_insert(self.now + Duration::from_secs(2));
                self.members.transfer_leaders(self.now, |pod| self.peers.is_up(pod), |_| true);
            }
        }
    }

    /// Overdue ticks coalesce into one.
    fn tick(&mut self) {
        let now = self.now;
        self.next_tick = now + TICK;
        self.rest();
        self.members.tick(now);
        self.step_down_from_hung_lanes();
        self.resync_handler().tick();
        self.repair_handler().tick();
        self.routers.tick(now);
        self.listeners.tick(self.driver.as_mut());
        self.client_handler().tick();
        self.peer_handler().tick();
        self.announce_space();
        self.reports.tick(now);
        if now >= self.next_trim {
            self.next_trim = now + TRIM_EVERY;
            self.pool.trim();
        }
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            meters::look(&self.seen());
        }
        if now >= self.next_window {
            self.next_window = now + WINDOW;
            self.members.follow_clients(now);
        }
    }

    fn seen(&self) -> Look<'_> {
        Look {
            meters: &self.meters,
            clients: &self.clients,
            routers: &self.routers,
            members: &self.members,
            peers: &self.peers,
            resyncs: &self.resyncs,
            lanes: &self.lanes.all,
            read_repairs: self.read_repairs.len(),
            buffer_bytes: self.pool.in_use_bytes(),
        }
    }

    /// Offers rest to groups in which nothing happens, and beats for those that rest. Before their
    /// ticks: what they sent at the last one is answered by now, and answers would wake them.
    fn rest(&mut self) {
        for offer in self.members.offers_of_rest() {
            let leader = offer.leader;
            if let Some(others) = self.peer_handler().offer_rest(&offer) {
                self.members.rest_leader(self.now, leader, others);
            }
        }
        if self.now >= self.next_beat {
            self.next_beat = self.now + TICK * HEARTBEAT_TICKS as u32;
            for conn in self.members.beats().into_iter().chain(self.peers.front_conns()) {
                self.peer_handler().send_on(conn, PeerMessage::Beat);
            }
        }
    }

    fn step_down_from_hung_lanes(&mut self) {
        for lane in &mut self.lanes.all {
            if !lane.is_hung(self.now) {
                continue;
            }
            tracing::warn!(disk = %lane.place.disk, "the disk hangs: leaders step down");
            let here = |runtime: &MemberRuntime| runtime.lane == lane.number;
            self.members.transfer_leaders(self.now, |pod| self.peers.is_up(pod), here);
        }
    }

    /// Tells other pods how much the lanes can still allocate.
    fn announce_space(&mut self) {
        let news = self.lanes.all.iter_mut().filter_map(|lane| lane.news_of_space(self.now));
        let news: Vec<(Uuid, u64)> = news.collect();
        for (disk, free_bytes) in news {
            for conn in self.peers.conns_of(disk) {
                self.peer_handler().send_on(conn, PeerMessage::Space { free_bytes });
            }
        }
    }

    /// Polls touched parts until none is left. Lanes come last: a round's log writes share a batch.
    fn settle(&mut self) {
        loop {
            if let Some(key) = self.routers.touched.pop() {
                self.poll_volume(key);
            } else if let Some(member) = self.members.touched.pop() {
                self.poll_member(member);
            } else if let Some((from, conn, to)) = self.members.woken.pop() {
                self.peer_handler().send_on(conn, PeerMessage::Awake { to, from });
            } else if let Some(lane) = self.lanes.touched.pop() {
                self.poll_lane(lane);
            } else {
                return;
            }
        }
    }

    /// Hands all to the driver. The kernel starts one after another, and a send takes its time. One
    /// follower and this pod's log are enough for a commit: other followers come after the log.
    fn submit(&mut self) {
        self.client_handler().submit();
        if let Some(uses) = self.clients.new_uses() {
            self.control.uses(uses);
        }
        self.peers.submit_first(self.driver.as_mut());
        for lane in &mut self.lanes.all {
            lane.submit(self.now, self.driver.as_mut());
        }
        self.peers.submit(self.driver.as_mut());
    }
}
