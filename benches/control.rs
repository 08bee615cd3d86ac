//! The catalog at the size of a large cluster: `make bench BENCH="--control"`.
//!
//! One production member of the catalog (its thread, its database, its state) and the reports of
//! simulated pods. Volumes are placed and proposed as the API does it, 32 at a time. Other members,
//! the network and the data path are not part of it.
//!
//! `HOLDFAST_CONTROL="PODS DISKS_PER_POD VOLUMES SHARDS"` gives another size.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use raft::eraftpb::Message;

use holdfast::control::catalog::Catalog;
use holdfast::control::catalog_member::Outbound;
use holdfast::control::command::{Addresses, CatalogCommand, NewDisk, NewNode, NewVolume, Outcome};
use holdfast::control::membership::first;
use holdfast::control::placement::{Wish, layout, place_on_pods};
use holdfast::control::reports::{Also, Heard, Reports};
use holdfast::control::state::audience::{audience, volumes_of};
use holdfast::control::state::rows::encode_row;
use holdfast::control::state::{CatalogState, NewCluster};
use holdfast::control::storage::{Snapshot, Storage};
use holdfast::control::sync::follower::{Follower, Idle};
use holdfast::control::sync::mirror::Mirror;
use holdfast::control::sync::update::{Part, Position};
use holdfast::level::NEWEST;
use holdfast::types::{AccessMode, MemberId, PodId, Uuid, VolumeId, mix64};
use holdfast::view::{DiskReport, PodReport};

const CONCURRENT: u64 = 32;
const MEASURED: u64 = 2_000;
const DISK_BYTES: u64 = 4 << 40;
const SHARD_BYTES: u64 = 4 << 30;

/// The size of the cluster.
struct Size {
    pods: u64,
    disks_per_pod: u64,
    volumes: u64,
    shards_per_volume: u64,
}

struct Nobody;

impl Outbound for Nobody {
    fn send(&self, _: Message) {}
    fn install(&self, _: MemberId, _: Snapshot) {}
}

/// A random identity for a number.
fn uid(kind: u64, number: u64) -> Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&mix64(kind).to_be_bytes());
    bytes[8..].copy_from_slice(&mix64(number).to_be_bytes());
    Uuid(bytes)
}

fn addresses(pod: u64) -> Addresses {
    let port = |offset| (10_000 + (pod * 4 + offset) % 50_000) as u16;
    let at = |offset| std::net::SocketAddr::from(([127, 0, 0, 1], port(offset)));
    Addresses { api: at(0), peer: at(1), nbd: Some(at(2)) }
}

fn node(pod: u64) -> NewNode {
    NewNode { name: format!("node-{pod}"), ..NewNode::default() }
}

fn disk_of(size: &Size, pod: u64, disk: u64) -> Uuid {
    uid(2, pod * size.disks_per_pod + disk)
}

/// A cluster without volumes.
fn cluster(size: &Size) -> CatalogState {
    let mut state = CatalogState::new(NewCluster {
        uid: uid(0, 0),
        history: uid(0, 1),
        pod: (uid(1, 1), addresses(1), node(1)),
        now_ms: 1,
    });
    for pod in 1..=size.pods {
        let disks = (0..size.disks_per_pod).map(|disk| NewDisk {
            disk: disk_of(size, pod, disk),
            path: format!("/disk-{disk}"),
            capacity_bytes: DISK_BYTES,
        });
        let (id, uid, addresses, node) = (PodId(pod), uid(1, pod), addresses(pod), node(pod));
        let newest = NEWEST;
        let join = CatalogCommand::Join { uid, addresses, node: node.clone(), newest };
        let disks = disks.collect();
        let register = CatalogCommand::Register { pod: id, uid, addresses, node, newest, disks };
        for command in [join, register] {
            state.apply(1, command).outcome.expect("pods may join and register");
        }
    }
    state
}

/// What the pods report: empty disks.
fn reports(size: &Size) -> Reports {
    let reports = Reports::default();
    reports.set_leading(true);
    for pod in 1..=size.pods {
        let disks = (0..size.disks_per_pod).map(|disk| DiskReport {
            disk: disk_of(size, pod, disk),
            capacity_bytes: DISK_BYTES,
            ..DiskReport::default()
        });
        let report = PodReport { pod: PodId(pod), disks: disks.collect() };
        reports.hear(PodId(pod), Heard { report, is_open: true, ..Heard::default() });
    }
    reports
}

/// The pods say again and again that nothing has changed.
async fn keep_up(reports: Arc<Reports>, pods: u64) {
    loop {
        for pod in 1..=pods {
            assert!(reports.hear_again(PodId(pod), 0, Also::default()), "its report is known");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn create(state: &CatalogState, reports: &Reports, number: u64, shards: u64) -> CatalogCommand {
    let name = format!("pvc-{}", uid(3, number));
    let class = state.classes.get("replicated").expect("every cluster has it");
    let size_bytes = shards * SHARD_BYTES;
    let (stripe_bytes, shards) = layout(size_bytes);
    let shard_bytes = stripe_bytes;
    let wish = Wish { name: &name, shards, shard_bytes, replicas: 3, grows: false };
    let placed = reports.with(|pods| place_on_pods(state, pods, class, wish));
    let placement = placed.unwrap_or_else(|error| panic!("{error}"));
    let volume = NewVolume {
        uid: uid(3, number),
        name: name.clone(),
        class: "replicated".to_owned(),
        labels: Default::default(),
        size_bytes,
        stripe_bytes,
        replicas: 3,
        io_timeout_ms: 0,
        open: false,
    };
    CatalogCommand::CreateVolume { request_id: name, volume, placement }
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number of pages") * 4096
}

/// Bytes that this process has given to the system to write.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("Linux has it");
    let line = io.lines().find(|line| line.starts_with("wchar:")).expect("Linux counts it");
    line.trim_start_matches("wchar:").trim().parse().expect("a number")
}

fn state_of(catalog: &Catalog) -> Arc<CatalogState> {
    catalog.published.borrow().state.clone().expect("it has a state")
}

/// Carries out `count` commands, [`CONCURRENT`] at a time, and prints what one takes.
async fn measure<F>(catalog: &Arc<Catalog>, what: &str, count: u64, command: F)
where
    F: Fn(u64, &CatalogState) -> CatalogCommand + Send + Sync + 'static,
{
    let (next, command) = (Arc::new(AtomicU64::new(0)), Arc::new(command));
    let (began, written) = (Instant::now(), written_bytes());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONCURRENT {
        let (catalog, next, command) = (catalog.clone(), next.clone(), command.clone());
        tasks.spawn(async move {
            let mut times = Histogram::<u64>::new(3).expect("three digits");
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return times;
                }
                let began = Instant::now();
                let command = command(number, &state_of(&catalog));
                catalog.propose(command).await.expect("the command is carried out");
                let took_us = began.elapsed().as_micros() as u64;
                times.record(took_us).expect("it grows with its values");
            }
        });
    }
    let mut times = Histogram::<u64>::new(3).expect("three digits");
    while let Some(done) = tasks.join_next().await {
        times.add(done.expect("the task ends")).expect("the same bounds");
    }
    let seconds = began.elapsed().as_secs_f64();
    let bytes = (written_bytes() - written) / count;
    println!(
        "{what:<44} {:>7.0}/s   p50 {:>6.1} ms   p99 {:>6.1} ms   {bytes:>6} bytes written each",
        count as f64 / seconds,
        times.value_at_quantile(0.5) as f64 / 1000.0,
        times.value_at_quantile(0.99) as f64 / 1000.0,
    );
}

/// Volumes without reports of their replicas, applied to a state and not logged.
fn fill(state: &mut CatalogState, size: &Size, reports: &Reports) {
    for number in 0..size.volumes {
        let disks = (0..3).map(|copy| {
            let pod = (mix64(number) + copy * size.pods / 3) % size.pods + 1;
            disk_of(size, pod, mix64(number + copy) % size.disks_per_pod)
        });
        let disks: Vec<Uuid> = disks.collect();
        let mut command = match number {
            0 => create(state, reports, number, size.shards_per_volume),
            _ => create_on(number, &disks, size.shards_per_volume),
        };
        if let CatalogCommand::CreateVolume { request_id, .. } = &mut command {
            request_id.clear();
        }
        let volume = match state.apply(1, command).outcome.expect("it is created") {
            Outcome::Volume(volume) => volume,
            other => panic!("creating gave {other:?}"),
        };
        let created = CatalogCommand::Created { volumes: vec![volume] };
        state.apply(1, created).outcome.expect("it is recorded");
    }
}

fn create_on(number: u64, disks: &[Uuid], shards: u64) -> CatalogCommand {
    let size_bytes = shards * SHARD_BYTES;
    let placement = holdfast::control::command::Placement {
        disks: disks.to_vec(),
        shards: (0..shards).map(|_| vec![0, 1, 2]).collect(),
    };
    let volume = NewVolume {
        uid: uid(3, number),
        name: format!("pvc-{}", uid(3, number)),
        class: "replicated".to_owned(),
        labels: Default::default(),
        size_bytes,
        stripe_bytes: SHARD_BYTES,
        replicas: 3,
        io_timeout_ms: 0,
        open: false,
    };
    CatalogCommand::CreateVolume { request_id: String::new(), volume, placement }
}

/// Starts the only member of a catalog with this state.
fn start(path: &std::path::Path, state: CatalogState) -> Arc<Catalog> {
    let (row, snapshot) = first(MemberId(1), state);
    let mut storage = Storage::open(path).expect("the folder can be written");
    storage.create(row, &snapshot).expect("the disk has room");
    drop(snapshot);
    let recovered = storage.recover().expect("it was just written").expect("there is a member");
    let lost = |reason| panic!("the catalog has stopped: {reason}");
    let catalog = Catalog::start(storage, recovered, 1, Nobody, lost).expect("its own state");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !catalog.leads() {
        assert!(Instant::now() < deadline, "the only voter leads");
        std::thread::sleep(Duration::from_millis(10));
    }
    Arc::new(catalog)
}

/// A pod's mirror, and what it was told.
struct Told {
    mirror: Mirror,
    follower: Follower,
}

impl Told {
    /// From nothing.
    fn new(state: &CatalogState, pod: PodId) -> Told {
        let (at, none) = (Position::default(), BTreeSet::new);
        let follower = Follower::new(pod, at, none(), none());
        let mut told = Told { mirror: Mirror::default(), follower };
        let began = Instant::now();
        let bytes = told.take(state, Idle::Now);
        let took = began.elapsed();
        let mib = bytes as f64 / 1_048_576.0;
        let volumes = told.mirror.volumes().len();
        println!("{pod} from nothing: {mib:.2} MiB, {volumes} volumes, {took:.1?} with its view");
        told
    }

    /// Bytes that it is sent.
    fn take(&mut self, state: &CatalogState, idle: Idle) -> usize {
        let Some(update) = self.follower.next(state, idle) else { return 0 };
        let bytes = update.encode().len();
        self.mirror.take(&update).expect("it follows");
        bytes
    }
}

/// What pods are told of small commands, one after another.
fn sync(state: &CatalogState, size: &Size) {
    let mut state = state.clone();
    let (volume, concerned) = (VolumeId(7), |state: &CatalogState| audience(state, VolumeId(7)));
    let pods = concerned(&state);
    let away = (1..=size.pods).map(PodId).find(|pod| !pods.contains(pod));
    let mut there = Told::new(&state, pods[0]);
    let mut away = away.map(|pod| Told::new(&state, pod));
    let record = |state: &CatalogState| encode_row(1, &state.volumes[&volume]).len();
    println!("a volume's row has {} bytes", record(&state));
    for number in 0..4 {
        let node = format!("node-{}", size.pods + 1 + number);
        let publish = CatalogCommand::Publish {
            request_id: String::new(),
            volume,
            node: node.clone(),
            mode: AccessMode::Raw,
            io_timeout_ms: None,
            uid: uid(5, number),
        };
        let report = |what: &str,
                      there: &mut Told,
                      away: &mut Option<Told>,
                      state: &CatalogState| {
            let here = there.take(state, Idle::Later);
            let away = away.as_mut().map_or(0, |away| away.take(state, Idle::Later));
            println!("{what}: {here} bytes to a pod of the volume, {away} bytes to another pod");
        };
        match number {
            0 | 1 => {
                let boot_id = "boot".to_owned();
                // A node without a pod.
                let machine = NewNode { name: node.clone(), boot_id, ..NewNode::default() };
                let (uid, addresses) = (uid(9, number), addresses(size.pods + 1 + number));
                let join = CatalogCommand::Join { uid, addresses, node: machine, newest: NEWEST };
                state.apply(1, join);
                report("a pod joins", &mut there, &mut away, &state);
                state.apply(1, publish).outcome.expect("it is published");
                report("publish", &mut there, &mut away, &state);
            }
            2 => {
                let generation = state.access_of(volume).generation;
                let shards = state.volumes[&volume].shard_ids().count() as u64;
                state.apply(1, CatalogCommand::AccessIsSet { volume, generation, shards });
                report("a round over the shards ends", &mut there, &mut away, &state);
            }
            _ => {
                let position = away.as_mut().map_or(0, |away| away.take(&state, Idle::Now));
                println!("how far the catalog is, every 3 s: {position} bytes to another pod");
            }
        }
    }
    scan(&mut state, size);
    reconnect(&mut state, size);
}

/// All pods connect at once: those that know an older revision, and then those that know nothing.
/// One core does all of it here; a leader has its other members beside it.
fn reconnect(state: &mut CatalogState, size: &Size) {
    let mut told: Vec<Follower> = (1..=size.pods).map(|pod| follower_of(state, pod)).collect();
    for number in 0..100 {
        let volume = VolumeId(mix64(number) % size.volumes + 1);
        let open = !state.volumes[&volume].access.open;
        state.apply(1, CatalogCommand::SetOpen { request_id: String::new(), volume, open });
    }
    let none = BTreeSet::new;
    let nothing = |pod| Follower::new(PodId(pod), Position::default(), none(), none());
    let again = measure_told("that know a revision of 100 commands ago", &mut told, state);
    let mut told: Vec<Follower> = (1..=size.pods).map(nothing).collect();
    let anew = measure_told("that know nothing", &mut told, state);
    println!("{again}{anew}");
}

fn measure_told(which: &str, told: &mut [Follower], state: &CatalogState) -> String {
    let began = Instant::now();
    let updates = told.iter_mut().filter_map(|follower| follower.next(state, Idle::Now));
    let bytes: usize = updates.map(|update| update.encode().len()).sum();
    let (took, mib) = (began.elapsed(), bytes as f64 / 1_048_576.0);
    format!("{} pods {which}: {mib:.1} MiB, {took:.1?} of one core\n", told.len())
}

/// Time that this process has had on cores.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    // Fields 14 and 15 of the line, in hundredths of a second.
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

/// 200 commands a second, with a stream to each pod and without: what the streams cost.
async fn streams(catalog: &Arc<Catalog>, size: &Size) {
    for with_streams in [false, true] {
        let mut tasks = tokio::task::JoinSet::new();
        for pod in (1..=size.pods).filter(|_| with_streams) {
            let mut published = catalog.published.clone();
            tasks.spawn(async move {
                let mut follower: Option<Follower> = None;
                loop {
                    let now = published.borrow_and_update().clone();
                    let state = now.state.expect("it has a state");
                    let follower = follower.get_or_insert_with(|| follower_of(&state, pod));
                    if let Some(update) = follower.next(&state, Idle::Later) {
                        std::hint::black_box(update.encode());
                    }
                    if published.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (began, before) = (Instant::now(), cpu_time());
        for number in 0..1_000 {
            let volume = VolumeId(mix64(number) % size.volumes + 1);
            let open = !state_of(catalog).volumes[&volume].access.open;
            let command = CatalogCommand::SetOpen { request_id: String::new(), volume, open };
            // A volume with an attachment stays closed.
            let _outcome = catalog.propose(command).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let share = (cpu_time() - before).as_secs_f64() / began.elapsed().as_secs_f64();
        let streams = if with_streams { size.pods } else { 0 };
        let rate = 1_000.0 / began.elapsed().as_secs_f64();
        println!(
            "{rate:.0} commands a second, {streams} streams: {:.0} % of a core",
            share * 100.0
        );
        tasks.shutdown().await;
    }
}

fn follower_of(state: &CatalogState, pod: u64) -> Follower {
    let (history, revision) = (state.cluster.history, state.revision());
    let volumes = volumes_of(state, PodId(pod));
    let at = Position { history, revision, part: Part::of(&volumes) };
    Follower::new(PodId(pod), at, volumes, BTreeSet::new())
}

/// All pods look at commands that do not concern most of them.
fn scan(state: &mut CatalogState, size: &Size) {
    let mut told: Vec<Follower> = (1..=size.pods).map(|pod| follower_of(state, pod)).collect();
    // What the first look takes is not repeated.
    told.iter_mut().for_each(|follower| drop(follower.next(state, Idle::Now)));
    let commands = 200;
    let (mut bytes, mut updates) = (0, 0);
    let mut took = Duration::ZERO;
    for number in 0..commands {
        let volume = VolumeId(mix64(number) % size.volumes + 1);
        let open = !state.volumes[&volume].access.open;
        state.apply(1, CatalogCommand::SetOpen { request_id: String::new(), volume, open });
        let began = Instant::now();
        for follower in &mut told {
            if let Some(update) = follower.next(state, Idle::Later) {
                bytes += update.encode().len();
                updates += 1;
            }
        }
        took += began.elapsed();
    }
    let each = took / (commands as u32 * told.len() as u32);
    println!(
        "{} streams and {commands} commands: {took:.1?}, {each:.0?} for each look; \
         {updates} updates of {} bytes on average",
        told.len(),
        bytes / updates.max(1)
    );
}

async fn run(size: Size, folder: &std::path::Path) {
    let Size { pods, disks_per_pod, volumes, shards_per_volume } = size;
    println!(
        "{pods} pods, {} disks, {volumes} volumes, {} shards of 3 replicas; {CONCURRENT} at a time",
        pods * disks_per_pod,
        volumes * shards_per_volume
    );
    let reports = Arc::new(reports(&size));
    let empty = start(&folder.join("empty"), cluster(&size));
    tokio::spawn(keep_up(reports.clone(), pods));
    let told = reports.clone();
    let make = move |number, state: &CatalogState| create(state, &told, u64::MAX / 2 + number, 1);
    measure(&empty, "create, no volumes yet", MEASURED, make.clone()).await;
    empty.stop();
    drop(empty);

    let before_bytes = resident_bytes();
    let began = Instant::now();
    let mut state = cluster(&size);
    fill(&mut state, &size, &reports);
    let used = resident_bytes().saturating_sub(before_bytes);
    println!(
        "the state: made in {:.1?}, {:.0} MiB in memory",
        began.elapsed(),
        used as f64 / 1048576.0
    );
    let began = Instant::now();
    let full = start(&folder.join("full"), state);
    println!("written, read again and checked in {:.1?}", began.elapsed());
    measure(&full, "create, with all volumes", MEASURED, make).await;
    sync(&state_of(&full), &size);
    streams(&full, &size).await;
    let publish = move |number: u64, _: &CatalogState| CatalogCommand::Publish {
        request_id: String::new(),
        volume: VolumeId(number % volumes + 1),
        node: format!("node-{}", number % pods + 1),
        mode: AccessMode::ReadWrite,
        io_timeout_ms: None,
        uid: uid(4, number),
    };
    measure(&full, "publish, without the round over the shards", MEASURED.min(volumes), publish)
        .await;
    println!("the process has {:.0} MiB in memory", resident_bytes() as f64 / 1048576.0);
    full.stop();
}

fn main() {
    let words = std::env::var("HOLDFAST_CONTROL").unwrap_or_else(|_| "1000 10 100000 3".to_owned());
    let numbers: Vec<u64> = words.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [pods, disks_per_pod, volumes, shards_per_volume] = numbers[..] else {
        panic!("HOLDFAST_CONTROL has four numbers: pods, disks of each, volumes, shards of each")
    };
    let size = Size { pods, disks_per_pod, volumes, shards_per_volume };
    let folder = std::env::temp_dir().join(format!("holdfast-control-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
    let runtime = tokio::runtime::Runtime::new().expect("the system has threads");
    runtime.block_on(run(size, &folder));
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}
