//! The simulated cluster: pods that run the production worker over the simulated kernel, clients,
//! and the faults that happen to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::driver::{Address, Driver, OpenFile};
use crate::limits::Budgets;
use crate::sim::client::Client;
use crate::sim::history::{History, Value};
use crate::sim::kernel::{Due, Host, Kernel, SimDriver};
use crate::store::index::memory::MemoryIndex;
use crate::store::lane::{self, LaneConfig};
use crate::store::open::{LaneFormat, format_lane};
use crate::store::seam::{Done, IndexJob, LaneFile, OpId};
use crate::types::{BLOCK_BYTES, MemberId, PodId, ShardId, Uuid, VolumeId};
use crate::view::{ClusterView, DiskView, MemberView, PodView, ShardView, VolumeView};
use crate::volume::SessionSource;
use crate::worker::{
    Command, DiskPlace, IndexRunner, LaneRuntime, Receiver, Sender, Wake, Worker, WorkerConfig,
    WorkerFiles, execute, mailbox, open_lane,
};

const CLUSTER: Uuid = Uuid([7; 16]);
/// Alarms above this number belong to index jobs.
const INDEX_ALARMS: u64 = 1 << 32;

/// Sizes of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    pub pods: usize,
    pub clients: usize,
    /// Pods that clients connect to.
    pub fronts: usize,
    pub shards: usize,
    pub blocks_per_shard: u64,
    pub wal_bytes: u64,
    pub data_bytes: u64,
    pub log_tail_bytes: usize,
    pub overlay_cache_bytes: usize,
    pub redirect_bytes_min: usize,
    /// The most whole extents that a client writes with one request.
    pub large_extents: u64,
}

/// One pod: what survives a crash, and the worker while it runs.
pub(super) struct Pod {
    pub worker: Option<Worker>,
    inbox: Option<Sender<Command>>,
    waits: Rc<Cell<bool>>,
    woken: Arc<Mutex<bool>>,
    pub index: Rc<RefCell<MemoryIndex>>,
    starts: u32,
    pub stopped: bool,
}

/// Index jobs under way: host and life, lane, and how each ends.
type Jobs = Rc<RefCell<BTreeMap<u64, (Host, u32, OpId, Done)>>>;

/// See the module.
pub struct World {
    pub kernel: Rc<RefCell<Kernel>>,
    pub history: History,
    pub shape: Shape,
    pub(super) pods: Vec<Pod>,
    clients: Vec<Client>,
    values: Value,
    jobs: Jobs,
}

impl World {
    pub fn new(seed: u64, shape: Shape) -> World {
        let kernel = Rc::new(RefCell::new(Kernel::new(seed)));
        let mut world = World {
            kernel,
            history: History::default(),
            pods: Vec::new(),
            clients: Vec::new(),
            values: 0,
            jobs: Jobs::default(),
            shape,
        };
        for host in 0..world.shape.pods {
            world.format(host);
            world.pods.push(Pod {
                worker: None,
                inbox: None,
                waits: Rc::new(Cell::new(true)),
                woken: Arc::default(),
                index: Rc::default(),
                starts: 0,
                stopped: false,
            });
            world.start(host);
        }
        let blocks = world.shape.blocks_per_shard * world.shape.shards as u64;
        for client in 0..world.shape.clients {
            let driver = world.driver(world.shape.pods + client, Rc::default(), Arc::default());
            let (front, fronts) = (world.front(client) as u64, world.shape.fronts as u64);
            let region = blocks * front / fronts..blocks * (front + 1) / fronts;
            world.clients.push(Client::new(driver, region, blocks, &world.shape));
            world.kernel.borrow_mut().wake(world.shape.pods + client, Duration::from_millis(1));
        }
        world
    }

    fn driver(&self, host: Host, waits: Rc<Cell<bool>>, woken: Arc<Mutex<bool>>) -> SimDriver {
        SimDriver { kernel: Rc::clone(&self.kernel), host, waits, woken }
    }

    /// Blocking access to a host's disk.
    pub(super) fn files(&self, host: Host, pool: Pool) -> SimFiles {
        SimFiles { kernel: Rc::clone(&self.kernel), host, pool }
    }

    fn format(&mut self, host: Host) {
        for (name, len) in [("wal", self.shape.wal_bytes), ("data", self.shape.data_bytes)] {
            let mut kernel = self.kernel.borrow_mut();
            kernel.files.entry((host, name.into())).or_default().bytes = len;
        }
        let format = LaneFormat {
            cluster: CLUSTER,
            disk: disk(host),
            seed: 0x5eed ^ host as u64,
            wal_bytes: self.shape.wal_bytes,
            data_bytes_max: self.shape.data_bytes,
        };
        let pool = Pool::default();
        let mut files = self.files(host, pool);
        format_lane(&mut files, &format).expect("the shape of a run makes a good disk");
    }

    /// Starts a pod on what its disk holds.
    pub fn start(&mut self, host: Host) {
        let (waits, woken) =
            (Rc::clone(&self.pods[host].waits), Arc::clone(&self.pods[host].woken));
        let mut driver = self.driver(host, waits, woken);
        let waker = driver.waker();
        let wake: Wake = Arc::new(move || waker.wake());
        let (inbox, receiver): (Sender<Command>, Receiver<Command>) = mailbox(4096, wake);
        let pod = &mut self.pods[host];
        pod.starts += 1;
        let pool = Pool::default();
        let config = LaneConfig {
            data_bytes_max: self.shape.data_bytes,
            overlay_cache_bytes: self.shape.overlay_cache_bytes,
            index_cache_bytes: 1 << 16,
            log_tail_bytes: self.shape.log_tail_bytes,
            redirect_bytes_min: self.shape.redirect_bytes_min,
        };
        let mut files = SimFiles { kernel: Rc::clone(&self.kernel), host, pool: pool.clone() };
        let mut index = pod.index.borrow_mut();
        let opened = open_lane(config, &pool, &mut files, &mut *index);
        drop(index);
        let (lane, members) = opened.expect("what a pod wrote can be opened again");
        let mut open = |name: &str| {
            driver.open(&OpenFile { path: name.into(), create: false }).expect("it always opens")
        };
        let files =
            WorkerFiles { superblock: open("superblock"), wal: open("wal"), data: open("data") };
        let runner = SimIndex {
            host,
            starts: pod.starts,
            index: Rc::clone(&pod.index),
            kernel: Rc::clone(&self.kernel),
            jobs: Rc::clone(&self.jobs),
        };
        let place = DiskPlace { disk: disk(host), path: format!("sim-{host}"), lock: None };
        let runtime = LaneRuntime::new(0, lane, place, files, Box::new(runner), pool.clone());
        let config = WorkerConfig {
            cluster: CLUSTER,
            pod: PodId(host as u64 + 1),
            seed: host as u64 + 1,
            log_tail_bytes: self.shape.log_tail_bytes,
            leaders_follow_clients: true,
            budgets: Budgets::default(),
        };
        let sessions = SessionSource::new(pod.starts);
        let report = Box::new(|_| {});
        let mut worker = Worker::new(config, Box::new(driver), pool, receiver, report, sessions);
        worker.add_lane(runtime);
        for (record, start) in members {
            worker.start_member(0, &record, start, Vec::new());
        }
        worker.listen_peers(&Address::Tcp(peer_address(host))).expect("it always listens");
        worker.listen_nbd(&nbd_address(host)).expect("it always listens");
        let view = Arc::new(view(&self.shape));
        assert!(inbox.send(Command::View(view)).is_ok(), "the mailbox is empty");
        pod.worker = Some(worker);
        pod.inbox = Some(inbox);
        pod.stopped = false;
        self.kernel.borrow_mut().wake(host, Duration::ZERO);
    }

    /// Pulls the plug of a pod.
    pub fn crash(&mut self, host: Host) {
        let pod = &mut self.pods[host];
        (pod.worker, pod.inbox) = (None, None);
        let mut kernel = self.kernel.borrow_mut();
        kernel.crash(host);
        let unflushed = pod.index.borrow().unflushed_commits() as u64;
        let kept = kernel.rng.below(unflushed + 1) as usize;
        pod.index.borrow_mut().crash(kept);
    }

    pub fn is_up(&self, host: Host) -> bool {
        self.pods[host].worker.is_some()
    }

    /// A pod that is stopped keeps its memory and does nothing.
    pub fn set_stopped(&mut self, host: Host, stopped: bool) {
        self.pods[host].stopped = stopped;
        if !stopped {
            self.kernel.borrow_mut().wake(host, Duration::ZERO);
        }
    }

    /// Restarts the pods whose disks were given up, as somebody who looks after them would.
    pub fn restart_poisoned(&mut self) {
        for host in 0..self.shape.pods {
            let report = self.pods[host].worker.as_ref().map(Worker::report);
            let mut disks = report.into_iter().flat_map(|report| report.disks);
            if disks.any(|disk| disk.failed.is_some()) {
                self.crash(host);
                self.start(host);
            }
        }
    }

    /// A client vanishes.
    pub fn hang_up(&mut self, client: usize) {
        self.clients[client].hang_up();
        self.kernel.borrow_mut().wake(self.shape.pods + client, Duration::from_millis(1));
    }

    /// Every client reads everything once.
    pub fn read_all(&mut self) {
        for client in &mut self.clients {
            client.hang_up();
            client.read_all();
        }
    }

    pub fn all_read(&self) -> bool {
        self.clients.iter().all(Client::is_done)
    }

    pub fn errors(&self) -> u64 {
        self.clients.iter().map(|client| client.errors).sum()
    }

    /// One thing happens. `Some`: an alarm of the caller rang.
    pub fn step(&mut self) -> Option<u64> {
        let due = self.kernel.borrow_mut().step().expect("something always happens");
        match due {
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

    fn index_job_ends(&mut self, alarm: u64) {
        let job = self.jobs.borrow_mut().remove(&alarm);
        let (host, starts, op, done) = job.expect("every alarm has its job");
        let pod = &self.pods[host];
        if pod.starts != starts {
            return;
        }
        if let Some(inbox) = &pod.inbox {
            let sent = inbox.send(Command::Index { lane: 0, op, done });
            assert!(sent.is_ok(), "a mailbox in virtual time is never full");
            self.run_pod(host);
        }
    }

    /// Rounds until the pod waits.
    fn run_pod(&mut self, host: Host) {
        let pod = &mut self.pods[host];
        let Some(worker) = &mut pod.worker else { return };
        if pod.stopped {
            return;
        }
        loop {
            worker.round().expect("the simulated kernel takes everything");
            let woken = pod.woken.lock().map(|mut woken| std::mem::take(&mut *woken));
            if pod.waits.get() && !woken.unwrap_or(false) {
                return;
            }
        }
    }

    /// The pod that a client connects to.
    fn front(&self, client: usize) -> Host {
        client % self.shape.fronts
    }

    fn run_client(&mut self, number: usize) {
        let to = self.front(number);
        let mut rng = self.kernel.borrow_mut().rng.clone();
        self.clients[number].run(&nbd_address(to), &mut rng, &mut self.values, &mut self.history);
        self.kernel.borrow_mut().rng.next();
    }
}

/// Blocking access to a simulated disk.
pub(super) struct SimFiles {
    kernel: Rc<RefCell<Kernel>>,
    host: Host,
    pool: Pool,
}

impl SimFiles {
    fn path(&self, file: LaneFile) -> (Host, PathBuf) {
        let name = match file {
            LaneFile::Superblock => "superblock",
            LaneFile::Wal => "wal",
            LaneFile::Data => "data",
        };
        (self.host, name.into())
    }
}

impl lane::LaneFiles for SimFiles {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let mut buf = self.pool.take(len);
        let mut kernel = self.kernel.borrow_mut();
        kernel.files.entry(self.path(file)).or_default().read(offset, &mut buf);
        Ok(buf.freeze())
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut kernel = self.kernel.borrow_mut();
        let now = kernel.now;
        kernel.files.entry(self.path(file)).or_default().write(now, offset, bytes, true);
        Ok(())
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        let kernel = self.kernel.borrow();
        Ok(kernel.files.get(&self.path(file)).map_or(0, |file| file.bytes))
    }
}

/// The index of a simulated lane: jobs take effect at once and end a little later.
struct SimIndex {
    host: Host,
    starts: u32,
    index: Rc<RefCell<MemoryIndex>>,
    kernel: Rc<RefCell<Kernel>>,
    jobs: Jobs,
}

impl IndexRunner for SimIndex {
    fn submit(&mut self, op: OpId, job: IndexJob) {
        let done = execute(&mut *self.index.borrow_mut(), job);
        let mut jobs = self.jobs.borrow_mut();
        let mut kernel = self.kernel.borrow_mut();
        let alarm = INDEX_ALARMS + kernel.next_job();
        jobs.insert(alarm, (self.host, self.starts, op, done));
        // In order: every job of the world takes equally long.
        kernel.alarm(Duration::from_micros(200), alarm);
    }

    fn pump(&mut self) {}
}

fn disk(host: Host) -> Uuid {
    Uuid([host as u8 + 1; 16])
}

fn peer_address(host: Host) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 7401 + host as u16))
}

fn nbd_address(host: Host) -> Address {
    Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 10_809 + host as u16)))
}

/// The catalog's view: one volume, every shard with a replica on three pods.
fn view(shape: &Shape) -> ClusterView {
    let pods = (0..shape.pods).map(|host| PodView {
        pod: PodId(host as u64 + 1),
        peer: peer_address(host),
        api: peer_address(host),
        nbd: None,
    });
    let disks = (0..shape.pods)
        .map(|host| DiskView { disk: disk(host), pod: PodId(host as u64 + 1) })
        .collect();
    let member = |shard: usize, replica: usize| {
        let host = (shard + replica) % shape.pods;
        MemberView {
            member: MemberId(1 + (shard * 3 + replica) as u64),
            disk: disk(host),
            pod: PodId(host as u64 + 1),
        }
    };
    let shards = (0..shape.shards)
        .map(|shard| ShardView {
            shard: ShardId(shard as u64 + 1),
            members: (0..3.min(shape.pods)).map(|replica| member(shard, replica)).collect(),
        })
        .collect();
    let stripe_bytes = shape.blocks_per_shard * BLOCK_BYTES as u64;
    ClusterView {
        revision: 1,
        cluster: CLUSTER,
        pods: pods.collect(),
        disks,
        volumes: vec![VolumeView {
            volume: VolumeId(1),
            name: "sim".to_owned(),
            size_bytes: stripe_bytes * shape.shards as u64,
            stripe_width: 1,
            stripe_bytes,
            shards,
            deleting: false,
        }],
        destroyed: Vec::new(),
    }
}
