//! The simulated cluster: pods that run the production worker over the simulated kernel, clients,
//! and the faults that happen to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::control::command::Addresses;
use crate::io::buffer::Pool;
use crate::io::driver::{Address, Driver};
use crate::limits::{OVERLAY_BYTES_MAX, SocketLimits};
use crate::replica::messages::{ReadMode, Start};
use crate::sim::catalog::{CATALOG_ALARMS, Catalog, Ended, NewVolume, Pods, Told, What};
use crate::sim::checks::Checks;
use crate::sim::client::{Client, RARELY, Shared, Target};
use crate::sim::disk::{Loss, Power, Sick, SimDisk};
use crate::sim::faults::Plan;
use crate::sim::handover::{HANDED, Handover};
use crate::sim::kernel::{Due, Kernel, SimDriver};
use crate::sim::lane::{INDEX_ALARMS, Job, Jobs, SimFiles, SimIndex};
use crate::sim::names::{DiskNumber, Host, disk_id, pod_id};
use crate::sim::said::{Said, SimControl};
use crate::sim::shape::{Shape, Theme};
use crate::sim::watch::Watch;
use crate::store::OpenError;
use crate::store::lane::LaneConfig;
use crate::store::messages::{LaneFile, MemberRecord};
use crate::store::open::{LaneFormat, data_files, format_lane};
use crate::types::{Mono, Uuid};
use crate::view::ClusterView;
use crate::worker::{
    DiskPlace, LaneRuntime, OpenFiles, OpenLaneError, Receiver, Sender, Wake, Worker,
    WorkerCommand, WorkerConfig, mailbox, open_lane,
};

const CLUSTER: Uuid = Uuid([7; 16]);
/// The volume that most clients use. Other volumes have one client each.
const MAIN: &str = "main";
/// The register numbers of different volumes differ above this bit.
pub const VOLUME_SHIFT: u32 = 32;

/// Number of the second volume. Numbers of faults that create volumes stay below.
const SECOND: u64 = 1 << 16;
/// Number of the volume whose holder changes.
pub const NUMBER_OF_HANDED: u64 = SECOND + (1 << 15);
/// Number of the volume of the first workload.
pub const WORKLOADS: u64 = NUMBER_OF_HANDED + 1;
/// Time limit until all pods have joined and the first volume exists.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// How often pods look for newer views.
const GOVERN_EVERY: Duration = Duration::from_millis(100);

/// One pod: the worker while it runs, and the world's data about it.
#[derive(Default)]
pub(super) struct Pod {
    pub worker: Option<Worker>,
    pub inbox: Option<Sender<WorkerCommand>>,
    waits: Rc<Cell<bool>>,
    woken: Arc<AtomicBool>,
    starts: u32,
    pub stopped: bool,
    /// The pod is down until all its disks work again.
    waits_for_disk: bool,
    /// The newest view that it got, and the version of the attachments in it.
    pub view: Arc<ClusterView>,
    pub told_access: u64,
    /// What its worker has said to its control plane.
    pub said: Rc<RefCell<Said>>,
}

/// A client, the volume that it uses, and the pod that it connects to.
pub(super) struct Attached {
    pub client: Client,
    volume: String,
    front: Host,
    /// It connects to any pod.
    roams: bool,
}

/// What an orchestrator has to know of.
pub(super) enum News {
    /// The machine of a pod.
    LostPower(Host),
    HasPower(Host),
    /// A closed volume of this name is there.
    Born(String),
    /// The answer to an order.
    Told(usize, Told),
}

/// A member from the store, and its start state.
type Recovered = (MemberRecord, Start);

/// See the module.
pub struct World {
    pub kernel: Rc<RefCell<Kernel>>,
    pub checks: Rc<RefCell<Checks>>,
    pub shared: Shared,
    pub shape: Shape,
    pub(super) pods: Vec<Pod>,
    pub(super) catalog: Catalog,
    pub(super) attached: Vec<Attached>,
    clients_pool: Pool,
    pools: Vec<Pool>,
    /// Pods that clients must not connect to.
    avoided: Vec<Host>,
    /// Any disk may lose data.
    unbounded: bool,
    /// The volume whose holder changes, when it exists.
    pub(super) handover: Option<Handover>,
    /// What an orchestrator has to know of, in order.
    pub(super) news: Vec<News>,
    /// Clients that stand still.
    pub(super) still: BTreeSet<usize>,
    seed: u64,
    jobs: Jobs,
}

impl World {
    pub fn new(seed: u64, shape: Shape, plan: Plan) -> World {
        let checks = Rc::new(RefCell::new(Checks::default()));
        let mut kernel = Kernel::new(seed, checks.clone());
        kernel.wire = shape.wire;
        let kernel = Rc::new(RefCell::new(kernel));
        let addresses = (0..shape.pods).map(|host| Addresses {
            api: peer_address(host),
            peer: peer_address(host),
            nbd: None,
        });
        let clocks_are_good = shape.reads == ReadMode::Lease && plan != Plan::Clocks;
        let mut catalog =
            Catalog::new(Rc::clone(&kernel), seed, CLUSTER, addresses, clocks_are_good);
        if shape.workloads > 0 {
            catalog.count_boots();
        }
        let mut world = World {
            kernel,
            checks,
            shared: Shared::default(),
            pods: Vec::new(),
            catalog,
            attached: Vec::new(),
            clients_pool: Pool::default(),
            pools: (0..shape.pods).map(|_| Pool::default()).collect(),
            avoided: Vec::new(),
            unbounded: plan == Plan::Unbounded,
            handover: None,
            news: Vec::new(),
            still: BTreeSet::new(),
            seed,
            jobs: Jobs::default(),
            shape,
        };
        for host in 0..world.shape.pods {
            for _ in 0..world.shape.disks_per_pod {
                world.format(host);
            }
            world.pods.push(Pod { waits: Rc::new(Cell::new(true)), ..Pod::default() });
            world.start(host);
        }
        world.begin();
        world
    }

    /// Attaches a client to an open volume.
    pub(super) fn attach(
        &mut self,
        volume: &str,
        number: u64,
        front: Host,
        region: std::ops::Range<u64>,
        blocks: u64,
        blocks_per_shard: u64,
    ) {
        let mut load = self.shape.load;
        if self.shape.theme == Some(Theme::IdleShards) && volume != MAIN {
            load.rest = RARELY;
        }
        let target = Target {
            export: volume.to_owned(),
            first_register: number << VOLUME_SHIFT,
            region,
            blocks,
            blocks_per_shard,
            load,
            half: (self.shape.load.halves && volume == MAIN).then_some(front as u64),
            may_be_full: self.shape.is_tight,
            may_be_lost: self.unbounded,
            may_time_out: self.shape.io_timeout.is_some(),
            read_only: false,
            is_one_line: false,
        };
        self.add_client(target, volume, front, false);
    }

    /// Returns the client's number.
    pub(super) fn add_client(
        &mut self,
        target: Target,
        volume: &str,
        front: Host,
        roams: bool,
    ) -> usize {
        let number = self.attached.len();
        let host = self.shape.pods + number;
        let driver = self.driver(host, Rc::default(), Arc::default());
        let client = Client::new(driver, target, self.clients_pool.clone());
        self.attached.push(Attached { client, volume: volume.to_owned(), front, roams });
        self.kernel.borrow_mut().wake(host, Duration::from_millis(1));
        number
    }

    /// Changes of the holder of the handed volume.
    pub fn handovers(&self) -> u64 {
        self.handover.as_ref().map_or(0, |handover| handover.ended)
    }

    /// Creates a volume with a client of its own. `number` is unique within the run.
    pub fn create_volume(&mut self, number: u64, shards: u64, blocks_per_shard: u64) {
        let (name, number) = (volume_name(number), Some(number));
        let closed = false;
        self.catalog.ask(What::Create(NewVolume {
            name,
            number,
            shards,
            blocks_per_shard,
            closed,
            io_timeout_ms: self.shape.io_timeout_ms(),
        }));
    }

    pub fn delete_volume(&mut self, number: u64) {
        let name = volume_name(number);
        if self.catalog.delete(&name) {
            let mut all = self.attached.iter_mut();
            if let Some(attached) = all.find(|attached| attached.volume == name) {
                attached.client.retire();
            }
        }
    }

    /// If there is one.
    fn tell_orchestra(&mut self, news: News) {
        if self.shape.workloads > 0 {
            self.news.push(news);
        }
    }

    fn driver(&self, host: Host, waits: Rc<Cell<bool>>, woken: Arc<AtomicBool>) -> SimDriver {
        self.kernel.borrow_mut().add_host(host);
        SimDriver { kernel: Rc::clone(&self.kernel), host, waits, woken }
    }

    /// Blocking access to a disk.
    pub(super) fn files(&self, disk: DiskNumber, pool: Pool) -> SimFiles {
        SimFiles { kernel: Rc::clone(&self.kernel), disk, pool }
    }

    /// The pod that has this disk.
    pub fn host_of(&self, disk: DiskNumber) -> Host {
        self.kernel.borrow().disks[disk].host
    }

    pub fn now(&self) -> Mono {
        self.kernel.borrow().now
    }

    /// The disks of a pod, in the order of its lanes.
    pub(super) fn disks_of(&self, host: Host) -> Vec<DiskNumber> {
        let kernel = self.kernel.borrow();
        (0..kernel.disks.len()).filter(|disk| kernel.disks[*disk].host == host).collect()
    }

    /// Adds a new, formatted disk.
    fn format(&mut self, host: Host) {
        let number = self.kernel.borrow().disks.len();
        let mut disk = SimDisk { number, host, ..SimDisk::default() };
        let data_bytes_max = self.shape.data_bytes_of(number);
        (disk.wal.bytes, disk.data.bytes) = (self.shape.wal_bytes, data_bytes_max);
        self.kernel.borrow_mut().disks.push(disk);
        let format = LaneFormat {
            cluster: CLUSTER,
            disk: disk_id(number),
            seed: 0x5eed ^ number as u64,
            wal_bytes: self.shape.wal_bytes,
            data_bytes_max,
            data_file_bytes: self.shape.data_file_bytes_of(number),
        };
        let mut files = self.files(number, Pool::default());
        format_lane(&mut files, &format).expect("the shape of a run makes a good disk");
    }

    /// Starts a pod from its disks. The pod stays down if one of them cannot be opened.
    pub fn start(&mut self, host: Host) {
        self.tell_orchestra(News::HasPower(host));
        let disks = self.disks_of(host);
        let is_dead = |disk: &DiskNumber| {
            let kernel = self.kernel.borrow();
            kernel.disks[*disk].sick.dead_until > kernel.now
        };
        self.pods[host].waits_for_disk = disks.iter().any(is_dead);
        if self.pods[host].waits_for_disk {
            return;
        }
        self.catalog.start(host, &disks, self.shape.data_bytes);
        let power = self.power_at_start();
        disks.iter().for_each(|disk| self.kernel.borrow_mut().disks[*disk].power = power);
        let pod = &mut self.pods[host];
        pod.starts += 1;
        let starts = pod.starts;
        let (waits, woken) = (Rc::clone(&pod.waits), Arc::clone(&pod.woken));
        let mut driver = self.driver(host, waits, woken);
        let waker = driver.waker();
        let wake: Wake = Arc::new(move || waker.wake());
        let (inbox, receiver): (Sender<WorkerCommand>, Receiver<WorkerCommand>) =
            mailbox(4096, wake);
        // Reuses the memory of the last process: mapping memory takes time.
        let pool = self.pools[host].clone();
        let lanes = disks.iter().zip(0u8..);
        let lanes: Option<Vec<_>> = lanes
            .map(|(disk, lane)| self.open_lane(&mut driver, &pool, host, *disk, lane))
            .collect();
        let Some(lanes) = lanes else {
            self.crash(host, Loss::Power);
            let failed =
                |disk: &DiskNumber| self.kernel.borrow().disks[*disk].power == Power::HasFailed;
            if disks.iter().any(failed) {
                self.start(host);
            }
            return;
        };
        let config = WorkerConfig {
            cluster: CLUSTER,
            pod: pod_id(host),
            levels: self.catalog.levels(host),
            process: u64::from(starts),
            seed: host as u64 + 1,
            log_tail_bytes: self.shape.log_tail_bytes,
            leaders_follow_clients: self.shape.leaders_follow_clients,
            reads: self.shape.reads,
            budgets: self.shape.budgets,
            sockets: SocketLimits::default(),
        };
        let said = Rc::clone(&self.pods[host].said);
        *said.borrow_mut() = Said::default();
        let control = Box::new(SimControl(said));
        let mut worker = Worker::new(config, Box::new(driver), pool, receiver, control);
        let (kernel, checks) = (Rc::clone(&self.kernel), Rc::clone(&self.checks));
        worker.watch(Box::new(Watch { kernel, checks, host }));
        for (lane, (runtime, members)) in (0u8..).zip(lanes) {
            worker.add_lane(runtime);
            for (record, start) in members {
                worker.start_member(lane, &record, start, Vec::new());
            }
        }
        worker.listen_peers(&Address::Tcp(peer_address(host))).expect("it always listens");
        worker.listen_nbd(&nbd_address(host)).expect("it always listens");
        let pod = &mut self.pods[host];
        pod.worker = Some(worker);
        pod.inbox = Some(inbox);
        pod.stopped = false;
        pod.view = Arc::default();
        // It may serve the members of its stored view again.
        self.tell(host, self.catalog.stored_view(host));
        self.kernel.borrow_mut().wake(host, Duration::ZERO);
    }

    /// Draws the power supply of a pod's start: in one of eight it fails again.
    fn power_at_start(&self) -> Power {
        let rng = &mut self.kernel.borrow_mut().rng;
        match rng.one_in(8) {
            true => Power::FailsAfter(rng.below(9)),
            false => Power::Stays,
        }
    }

    fn open_lane(
        &self,
        driver: &mut SimDriver,
        pool: &Pool,
        host: Host,
        disk: DiskNumber,
        lane: u8,
    ) -> Option<(LaneRuntime, Vec<Recovered>)> {
        let config = LaneConfig {
            levels: self.catalog.levels(host),
            data_bytes_max: self.shape.data_bytes_of(disk),
            dirty_cache_bytes: self.shape.dirty_cache_bytes,
            // A bound that runs with large discards reach.
            overlay_bytes_max: match self.shape.theme {
                Some(Theme::Discards) => self.shape.wal_bytes / 32,
                _ => OVERLAY_BYTES_MAX,
            },
            index_cache_bytes: 1 << 16,
            log_tail_bytes: self.shape.log_tail_bytes,
            bypass_bytes_min: self.shape.bypass_bytes_min,
            listing_extents: self.shape.listing_extents,
        };
        let index = Rc::clone(&self.kernel.borrow().disks[disk].index);
        let mut files = self.files(disk, pool.clone());
        let opened = open_lane(config, pool, &mut files, &mut *index.borrow_mut());
        let (opened, members) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let mut checks = self.checks.borrow_mut();
                match self.kernel.borrow().disks[disk].power {
                    // Its program is older than the disk.
                    _ if matches!(error, OpenLaneError::Recover(OpenError::Level(_))) => {}
                    Power::HasFailed => checks.seen.failed_starts += 1,
                    Power::Stays | Power::FailsAfter(_) => checks.unusable(disk, &error),
                }
                return None;
            }
        };
        self.kernel.borrow_mut().disks[disk].failures = 0;
        let superblock = opened.superblock();
        self.checks.borrow_mut().opened(disk, superblock, &mut index.borrow_mut(), &members);
        let places = data_files(superblock).expect("the shape of a run makes a good disk");
        let parts = (0..places.count()).map(|number| {
            let start = places.start_of(number);
            start..start + places.bytes_of(number)
        });
        let files = OpenFiles {
            superblock: driver.open(disk, LaneFile::Superblock, 0..u64::MAX),
            wal: driver.open(disk, LaneFile::Wal, 0..u64::MAX),
            data: parts.map(|part| driver.open(disk, LaneFile::Data, part)).collect(),
            places,
        };
        let runner = SimIndex {
            disk,
            starts: self.pods[host].starts,
            lane,
            index,
            kernel: Rc::clone(&self.kernel),
            checks: Rc::clone(&self.checks),
            jobs: Rc::clone(&self.jobs),
        };
        let path = format!("disk-{disk}");
        let place = DiskPlace { disk: disk_id(disk), path, lock: None };
        let runner = Box::new(runner);
        Some((LaneRuntime::new(lane, opened, place, files, runner, pool.clone()), members))
    }

    /// Cuts a pod's power, or kills its process.
    pub fn crash(&mut self, host: Host, loss: Loss) {
        let pod = &mut self.pods[host];
        (pod.worker, pod.inbox) = (None, None);
        self.catalog.crash(host);
        self.kernel.borrow_mut().crash(host, loss);
        if loss == Loss::Power {
            self.catalog.rebooted(host);
            self.tell_orchestra(News::LostPower(host));
        }
    }

    /// Cuts the power of two pods and moves a disk from one to the other. A pod keeps its last
    /// disk: without a disk it has no links.
    pub fn move_disk(&mut self, disk: DiskNumber, to: Host) {
        let from = self.kernel.borrow().disks[disk].host;
        if self.disks_of(from).len() == 1 {
            return;
        }
        self.crash(from, Loss::Power);
        self.crash(to, Loss::Power);
        self.kernel.borrow_mut().disks[disk].host = to;
    }

    /// Replaces a hung disk's pod by a new process, for which the disk works.
    pub fn unhang(&mut self, disk: DiskNumber) {
        let host = self.host_of(disk);
        self.crash(host, Loss::Power);
        self.kernel.borrow_mut().disks[disk].sick = Sick::default();
        self.start(host);
    }

    pub fn is_up(&self, host: Host) -> bool {
        self.pods[host].worker.is_some()
    }

    /// A stopped pod keeps its memory and does nothing.
    pub fn set_stopped(&mut self, host: Host, stopped: bool) {
        self.pods[host].stopped = stopped;
        if !stopped {
            self.kernel.borrow_mut().wake(host, Duration::ZERO);
        }
    }

    /// Restarts pods with disks that were given up, like an operator.
    pub fn restart_poisoned(&mut self) {
        for host in 0..self.shape.pods {
            let report = self.pods[host].worker.as_ref().map(Worker::report);
            let reports = report.into_iter().flat_map(|report| report.disks);
            let given_up: Vec<_> = self
                .disks_of(host)
                .into_iter()
                .zip(reports)
                .filter_map(|(disk, report)| Some((disk, report.failed?)))
                .collect();
            for (disk, why) in &given_up {
                let failures = self.kernel.borrow().disks[*disk].failures;
                self.checks.borrow_mut().given_up(*disk, failures, why);
            }
            if !given_up.is_empty() || self.pods[host].waits_for_disk {
                self.crash(host, Loss::Power);
                self.start(host);
            }
        }
    }

    /// Breaks the connection of a client.
    pub fn hang_up(&mut self, client: usize) {
        self.attached[client].client.hang_up();
        self.wake_client(client);
    }

    /// A client has got something to do.
    pub fn wake_client(&mut self, client: usize) {
        self.kernel.borrow_mut().wake(self.shape.pods + client, Duration::from_millis(1));
    }

    /// Each client reads all its blocks once, through other pods than `avoided`.
    pub fn read_all(&mut self, avoided: &[Host]) {
        self.avoided = avoided.to_vec();
        self.catalog.is_closing = true;
        self.retire_fenced();
        for client in 0..self.attached.len() {
            self.attached[client].client.read_all();
            // Also wakes clients that had nothing left to do and no connection.
            self.hang_up(client);
        }
    }

    /// No more is asked by clients that are fenced, or are about to be.
    fn retire_fenced(&mut self) {
        let clients = self.attached.iter_mut().map(|attached| &mut attached.client);
        for client in clients.filter(|client| client.may_be_fenced && client.is_free()) {
            client.retire();
        }
    }

    /// Clients of `volumes` (`None`: of all) that have not yet read everything.
    fn wait(&self, volumes: Option<&BTreeSet<String>>) -> impl Iterator<Item = &Attached> {
        self.attached.iter().filter(move |attached| {
            let is_wanted = volumes.is_none_or(|volumes| volumes.contains(&attached.volume));
            is_wanted && !attached.client.is_done()
        })
    }

    pub fn all_read(&self, volumes: Option<&BTreeSet<String>>) -> bool {
        self.wait(volumes).next().is_none()
    }

    /// Describes the clients that have not yet read everything.
    pub fn waiting(&self, volumes: Option<&BTreeSet<String>>) -> String {
        let texts = self.wait(volumes).map(|Attached { client, volume, front, .. }| {
            format!("a client of {volume} through pod {front}: {client}")
        });
        texts.collect::<Vec<String>>().join(", ")
    }

    /// The answers that each busy client has had, and the slowest of them since the last call.
    pub fn answers(&mut self) -> Vec<(u64, Duration)> {
        let busy = self.attached.iter_mut().map(|attached| &mut attached.client);
        let busy = busy.filter(|client| client.is_busy());
        busy.map(|client| (client.answers, std::mem::take(&mut client.slowest))).collect()
    }

    pub fn errors(&self) -> u64 {
        self.attached.iter().map(|attached| attached.client.errors).sum()
    }

    /// Processes one event. `Some`: an alarm of the caller rang.
    pub fn step(&mut self) -> Option<u64> {
        let due = self.kernel.borrow_mut().step().expect("something always happens");
        match due {
            Due::World(alarm) if alarm >= CATALOG_ALARMS => {
                self.catalog_happens(alarm);
                None
            }
            Due::World(alarm) if alarm >= INDEX_ALARMS => {
                self.index_job_ends(alarm);
                None
            }
            Due::World(alarm) => Some(alarm),
            Due::Host(host) if host >= self.shape.pods => {
                self.run_client(host - self.shape.pods);
                None
            }
            Due::Host(host) => {
                self.run_pod(host);
                None
            }
        }
    }

    /// Runs until the main volume exists. The second volume may come later.
    fn begin(&mut self) {
        let (shards, blocks_per_shard) = (self.shape.shards as u64, self.shape.blocks_per_shard);
        let (name, number, closed) = (MAIN.to_owned(), None, false);
        self.catalog.ask(What::Create(NewVolume {
            name,
            number,
            shards,
            blocks_per_shard,
            closed,
            io_timeout_ms: self.shape.io_timeout_ms(),
        }));
        let mut next = self.kernel.borrow().now;
        let deadline = next + BEGINS_WITHIN;
        while self.attached.is_empty() {
            assert_eq!(self.step(), None, "nothing else goes on yet");
            let now = self.kernel.borrow().now;
            let wrong = self.checks.borrow().wrong().cloned();
            assert_eq!(wrong, None, "at the start");
            assert!(now < deadline, "no volume came about: {}", self.catalog.unanswered());
            if now >= next {
                self.govern(false);
                next = now + GOVERN_EVERY;
            }
        }
        if self.shape.handed_shards > 0 && !self.unbounded {
            let (name, number) = (HANDED.to_owned(), Some(NUMBER_OF_HANDED));
            let shards = self.shape.handed_shards;
            let closed = false;
            let io_timeout_ms = self.shape.io_timeout_ms();
            let volume =
                NewVolume { name, number, shards, blocks_per_shard, closed, io_timeout_ms };
            self.catalog.ask(What::Create(volume));
        }
        if self.shape.second_volume {
            // The number picks the first front end, which other clients use, too.
            self.create_volume(SECOND * self.shape.pods as u64, 1, blocks_per_shard);
        }
        for further in 1..=self.shape.further_volumes {
            let shards = self.shape.further_shards.unwrap_or(shards);
            self.create_volume(SECOND + further, shards, blocks_per_shard);
        }
    }

    /// An alarm of the catalog rang.
    fn catalog_happens(&mut self, alarm: u64) {
        let all = &self.pods;
        let pods = Pods {
            is_stopped: &|host| all[host].stopped,
            report: &|host| all[host].worker.as_ref().map(Worker::report),
        };
        self.catalog.happens(alarm, &pods);
        for (shard, newest) in self.catalog.take_grown() {
            self.checks.borrow_mut().grown(shard, newest);
        }
        for round in std::mem::take(&mut self.catalog.rounds) {
            self.send_round(round);
        }
        for ended in std::mem::take(&mut self.catalog.ended) {
            match ended {
                Ended::Created(volume) => self.attach_to(&volume),
                Ended::Told(ask, told) => self.tell_orchestra(News::Told(ask, told)),
            }
        }
    }

    /// Attaches the clients of a new volume.
    fn attach_to(&mut self, volume: &NewVolume) {
        let NewVolume { name, number, shards, blocks_per_shard, closed, .. } = volume;
        if *closed {
            return self.tell_orchestra(News::Born(name.clone()));
        }
        let (blocks, pods) = (shards * blocks_per_shard, self.shape.pods);
        match number {
            Some(_) if self.catalog.is_closing => {}
            Some(NUMBER_OF_HANDED) => self.handover = Some(Handover::new(self.seed, *shards)),
            Some(number) => {
                let front = *number as Host % pods;
                self.attach(name, number + 1, front, 0..blocks, blocks, *blocks_per_shard);
            }
            None => {
                let fronts = self.shape.fronts as u64;
                for client in 0..self.shape.clients {
                    // Clients of different front ends write different blocks.
                    let front = client as u64 % fronts;
                    let region = match self.shape.load.halves {
                        true => 0..blocks,
                        false => blocks * front / fronts..blocks * (front + 1) / fronts,
                    };
                    self.attach(name, 0, front as Host, region, blocks, *blocks_per_shard);
                }
            }
        }
    }

    fn index_job_ends(&mut self, alarm: u64) {
        let job = self.jobs.borrow_mut().remove(&alarm);
        let Job { host, starts, lane, op, done, flush } = job.expect("every alarm has its job");
        let pod = &self.pods[host];
        if pod.starts != starts || pod.worker.is_none() {
            return;
        }
        if let Some((index, commits, flushed)) = flush {
            index.borrow_mut().flush(commits);
            self.checks.borrow_mut().index_flushed(flushed);
        }
        if let Some(inbox) = &pod.inbox {
            let sent = inbox.send(WorkerCommand::Index { lane, op, done });
            assert!(sent.is_ok(), "a mailbox in virtual time is never full");
            self.run_pod(host);
        }
    }

    /// Runs rounds of the worker until the pod waits.
    fn run_pod(&mut self, host: Host) {
        let pod = &mut self.pods[host];
        let Some(worker) = &mut pod.worker else { return };
        if pod.stopped {
            return;
        }
        loop {
            worker.round().expect("the simulated kernel takes everything");
            if self.shape.theme.is_some_and(|theme| theme != Theme::IdleShards) {
                let mut checks = self.checks.borrow_mut();
                checks.load(&worker.load(), &self.shape.budgets, self.attached.len());
                worker.lanes().for_each(|lane| checks.memory(&lane.space()));
            }
            let woken = pod.woken.swap(false, Ordering::Relaxed);
            if pod.waits.get() && !woken {
                break;
            }
        }
        self.hear(host);
    }

    fn run_client(&mut self, number: usize) {
        if self.still.contains(&number) {
            return;
        }
        let Attached { client, front, roams, .. } = &mut self.attached[number];
        let mut rng = self.kernel.borrow_mut().rng.clone();
        if *roams && client.is_idle() {
            *front = rng.below(self.shape.pods as u64) as Host;
        }
        let fronts = (0..self.shape.pods).map(|further| (*front + further) % self.shape.pods);
        let front = fronts.into_iter().find(|front| !self.avoided.contains(front));
        let front = front.expect("some pods are not avoided");
        client.run(&nbd_address(front), &mut rng, &mut self.shared);
        self.kernel.borrow_mut().rng.next();
    }
}

fn volume_name(number: u64) -> String {
    format!("volume-{number}")
}

fn peer_address(host: Host) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 7401 + host as u16))
}

fn nbd_address(host: Host) -> Address {
    Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 10_809 + host as u16)))
}
