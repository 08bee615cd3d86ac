//! The round: reap -> handle -> poll -> submit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::front::nbd::SessionHandle;
use crate::io::buffer::Pool;
use crate::io::driver::{Completion, Driver};
use crate::limits::{Budgets, TICK};
use crate::net::handshake::Identity;
use crate::net::link::LinkEvent;
use crate::replica::seam::Output;
use crate::replica::seam::ReadMode;
use crate::store::lane::Lane;
use crate::store::seam::{Done, Effect, Event, OpId};
use crate::types::{MemberId, Mono, PodId, Uuid, VolumeId};
use crate::view::{ClusterView, DiskReport, PodReport};
use crate::volume::{SessionSource, Volume, VolumeOutput};
use crate::worker::clients::Clients;
use crate::worker::follow::WINDOW;
use crate::worker::lanes::LaneRuntime;
use crate::worker::mailbox::Receiver;
use crate::worker::members::MemberRuntime;
use crate::worker::peers::Peers;
use crate::worker::probe::Probe;
use crate::worker::reads::Reads;
use crate::worker::reconcile::Pending;
use crate::worker::requests::Requests;
use crate::worker::rescue::Rescues;
use crate::worker::token::{ConnId, Target};

/// Messages taken from the mailbox in one round.
const MESSAGES_PER_ROUND: usize = 256;
/// Between reports when nothing changed but space: as often as control passes them on.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Memory that was not needed for so long begins to go back: longer than write-back's waves.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// What never changes about a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub cluster: Uuid,
    pub pod: PodId,
    /// Seeds the election timeouts.
    pub seed: u64,
    /// Payloads of applied entries that a member keeps for followers.
    pub log_tail_bytes: usize,
    /// Leaderships move to the pods that their requests come through.
    pub leaders_follow_clients: bool,
    pub reads: ReadMode,
    /// Bounds on memory under way.
    pub budgets: Budgets,
}

/// What other threads tell a worker.
#[derive(Debug)]
pub enum Command {
    View(Arc<ClusterView>),
    /// A job of a lane's index ended.
    Index {
        lane: u8,
        op: OpId,
        done: Done,
    },
    /// Hand the leaderships away, then stop.
    Stop,
}

/// One data-path thread's state.
pub struct Worker {
    pub(super) config: WorkerConfig,
    pub(super) driver: Box<dyn Driver>,
    pub(super) now: Mono,
    pub(super) lanes: Vec<LaneRuntime>,
    /// Disks that could not be opened, for reports.
    pub(super) failed_disks: Vec<DiskReport>,
    pub(super) members: FxHashMap<MemberId, MemberRuntime>,
    /// Members that the store was asked to make or to forget.
    pub(super) pending: FxHashMap<MemberId, Pending>,
    /// Members that are gone, for reports.
    pub(super) destroyed: Vec<(Uuid, MemberId)>,
    /// Members that are something else than the catalog says: see `reconcile`.
    pub(super) strangers: FxHashSet<MemberId>,
    pub(super) volumes: FxHashMap<VolumeId, Volume>,
    /// Routers with a deadline.
    pub(super) waiting_volumes: Vec<VolumeId>,
    pub(super) sessions: SessionSource,
    pub(super) requests: Requests,
    pub(super) reads: Reads,
    pub(super) rescues: Rescues,
    pub(super) peers: Peers,
    pub(super) clients: Clients,
    /// Requests for volumes that are gone.
    pub(super) orphans: Vec<(ConnId, SessionHandle)>,
    pub(super) view: Arc<ClusterView>,
    pub(super) touched: Touched,
    pub(super) scratch: Scratch,
    pub(super) report_due: bool,
    pub(super) probe: Option<Box<dyn Probe>>,
    report: Box<dyn Fn(PodReport) + Send>,
    inbox: Receiver<Command>,
    pub(super) pool: Pool,
    /// Rounds made, for the watchdog.
    rounds: Arc<AtomicU64>,
    next_tick: Mono,
    next_report: Mono,
    next_window: Mono,
    next_trim: Mono,
    stopping: Option<Mono>,
}

/// What has inputs that were not polled.
#[derive(Default)]
pub struct Touched {
    pub members: Vec<MemberId>,
    lanes: Vec<u8>,
    volumes: Vec<VolumeId>,
}

/// Vectors that keep their capacity from round to round.
#[derive(Default)]
pub struct Scratch {
    pub outputs: Vec<Output>,
    pub routes: Vec<VolumeOutput>,
    pub link_events: Vec<LinkEvent>,
    effects: Vec<Effect>,
    events: Vec<Event>,
    completions: Vec<Completion>,
}

impl Worker {
    /// A worker with its lanes and members, before its first round.
    pub fn new(
        config: WorkerConfig,
        driver: Box<dyn Driver>,
        pool: Pool,
        inbox: Receiver<Command>,
        report: Box<dyn Fn(PodReport) + Send>,
        sessions: SessionSource,
    ) -> Worker {
        let now = driver.now();
        Worker {
            peers: Peers::new(&config, pool.clone()),
            clients: Clients::new(pool.clone()),
            pool,
            config,
            driver,
            now,
            lanes: Vec::new(),
            failed_disks: Vec::new(),
            members: FxHashMap::default(),
            pending: FxHashMap::default(),
            destroyed: Vec::new(),
            strangers: FxHashSet::default(),
            volumes: FxHashMap::default(),
            waiting_volumes: Vec::new(),
            sessions,
            orphans: Vec::new(),
            requests: Requests::default(),
            reads: Reads::default(),
            rescues: Rescues::default(),
            view: Arc::default(),
            touched: Touched::default(),
            scratch: Scratch::default(),
            report_due: true,
            probe: None,
            report,
            inbox,
            rounds: Arc::default(),
            next_tick: now + TICK,
            next_report: now,
            next_window: now + WINDOW,
            next_trim: now + TRIM_EVERY,
            stopping: None,
        }
    }

    /// A recovered lane goes to work.
    pub fn add_lane(&mut self, runtime: LaneRuntime) {
        let superblock = runtime.lane.superblock();
        self.peers.add_local(Identity {
            cluster: superblock.cluster,
            pod: self.config.pod,
            disk: superblock.disk,
            lane: 0,
            incarnation: superblock.incarnation,
        });
        self.lanes.push(runtime);
    }

    /// A disk that could not be opened has no lane; it is reported, so that somebody learns of it.
    pub fn add_failed_disk(&mut self, disk: Uuid, path: String, capacity: u64, reason: String) {
        let (capacity_bytes, failed) = (capacity, Some(reason));
        let report = DiskReport { disk, path, capacity_bytes, failed, ..DiskReport::default() };
        self.failed_disks.push(report);
    }

    /// From now on `probe` sees what members ask for.
    pub fn watch(&mut self, probe: Box<dyn Probe>) {
        self.probe = Some(probe);
    }

    /// The lanes, for a simulation that looks into them.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.lanes.iter_mut().map(|runtime| &mut runtime.lane)
    }

    /// How far away the next tick is.
    #[cfg(test)]
    pub(super) fn until_tick(&self) -> Duration {
        self.next_tick.since(self.now)
    }

    /// Counts the rounds: while the worker is well, at least one for every tick.
    pub fn rounds(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.rounds)
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
            let leads = self.members.values().any(|runtime| runtime.role.serving);
            self.now >= deadline || !leads
        })
    }

    /// One round.
    pub fn round(&mut self) -> std::io::Result<()> {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        let timeout = self.timeout();
        let mut completions = std::mem::take(&mut self.scratch.completions);
        match self.driver.enter(Some(timeout), &mut completions) {
            // The kernel took nothing this time, and keeps what was submitted for the next.
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
        self.tick_when_due();
        self.wake_lanes();
        self.wake_volumes(self.now);
        self.settle();
        self.submit();
        Ok(())
    }

    /// How long to wait for the kernel; nothing when there is a message.
    fn timeout(&mut self) -> Duration {
        if !self.inbox.park() {
            return Duration::ZERO;
        }
        let lanes = self.lanes.iter().filter_map(|lane| lane.lane.deadline());
        let waiting = self.waiting_volumes.iter().filter_map(|volume| self.volumes.get(volume));
        let deadlines = lanes.chain(waiting.filter_map(Volume::deadline));
        let until = deadlines.fold(self.next_tick, Mono::min);
        until.since(self.driver.now())
    }

    fn completed(&mut self, completion: Completion) {
        match Target::of(completion.token) {
            Target::Lane { lane, op } => {
                self.lanes[usize::from(lane)].completed(op, false, completion);
                self.touch_lane(lane);
            }
            Target::LaneSync { lane, op } => {
                self.lanes[usize::from(lane)].completed(op, true, completion);
                self.touch_lane(lane);
            }
            Target::Accept { listener } => self.accepted(listener, completion),
            Target::ClientRecv(conn) => self.client_received(conn, completion),
            Target::ClientSend(conn) => self.client_sent(conn, completion),
            Target::PeerConnect(conn) => self.peer_connected(conn, completion),
            Target::PeerRecv(conn) => self.peer_received(conn, completion),
            Target::PeerSend(conn) => self.peer_sent(conn, completion),
            Target::Closed => {}
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::View(view) => self.view_changed(view),
            Command::Index { lane, op, done } => {
                self.lanes[usize::from(lane)].lane.complete(op, done);
                self.touch_lane(lane);
            }
            Command::Stop => {
                tracing::info!("stopping: leaderships move away");
                self.stopping.get_or_insert(self.now + Duration::from_secs(2));
                self.transfer_leaders(|_| true);
            }
        }
    }

    /// Overdue ticks coalesce into one.
    fn tick_when_due(&mut self) {
        let now = self.now;
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick_members(now);
            self.tick_resyncs();
            self.tick_rescues();
            self.tick_volumes(now);
            self.tick_clients();
            self.tick_peers(now);
            self.announce_space();
            for lane in 0..self.lanes.len() {
                self.touch_lane(lane as u8);
            }
            if now >= self.next_report {
                self.report_due = true;
            }
            if now >= self.next_trim {
                self.next_trim = now + TRIM_EVERY;
                self.pool.trim();
            }
            if now >= self.next_window {
                self.next_window = now + WINDOW;
                self.follow_clients();
            }
        }
        if self.report_due {
            self.report_due = false;
            self.next_report = now + REPORT_EVERY;
            (self.report)(self.report());
        }
    }

    /// Lanes whose moment has come are polled.
    fn wake_lanes(&mut self) {
        for number in 0..self.lanes.len() {
            let deadline = self.lanes[number].lane.deadline();
            if deadline.is_some_and(|deadline| deadline <= self.now) {
                self.touch_lane(number as u8);
            }
        }
    }

    /// Polls everything that was touched until nothing is. Lanes come last, so that everything of
    /// a round that wants to be logged shares a batch.
    fn settle(&mut self) {
        loop {
            if let Some(volume) = self.touched.volumes.pop() {
                self.poll_volume(volume);
            } else if let Some(member) = self.touched.members.pop() {
                self.poll_member(member);
            } else if let Some(lane) = self.touched.lanes.pop() {
                self.poll_lane(lane);
            } else {
                return;
            }
        }
    }

    fn poll_lane(&mut self, number: u8) {
        let mut effects = std::mem::take(&mut self.scratch.effects);
        let mut events = std::mem::take(&mut self.scratch.events);
        let runtime = &mut self.lanes[usize::from(number)];
        runtime.lane.poll(self.now, &mut effects, &mut events);
        runtime.pending.append(&mut effects);
        self.scratch.effects = effects;
        for event in events.drain(..) {
            self.lane_event(number, event);
        }
        self.scratch.events = events;
    }

    /// Hands everything to the driver: sends first, so that followers write their logs while this
    /// pod writes its own.
    fn submit(&mut self) {
        self.submit_peers();
        self.submit_clients();
        for lane in &mut self.lanes {
            lane.submit(self.now, self.driver.as_mut());
        }
    }

    pub fn touch_lane(&mut self, lane: u8) {
        if !self.touched.lanes.contains(&lane) {
            self.touched.lanes.push(lane);
        }
    }

    pub fn touch_volume(&mut self, volume: VolumeId) {
        if !self.touched.volumes.contains(&volume) {
            self.touched.volumes.push(volume);
        }
    }
}
