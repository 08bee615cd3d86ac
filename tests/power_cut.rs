//! Power cuts on the real path: io_uring, O_DIRECT and ext4, on disks that forget unflushed writes.
//! The simulator proves Holdfast against a model of a disk. This proves that the program's system
//! calls really make data durable.
//!
//! Three pods keep everything on file systems of their own. Below each, a server records every
//! write and flush. Clients write; the position in that record is noted for each answer. Then power
//! is cut in hindsight, at points of the record: an image has all writes up to the last completed
//! flush, and of later writes none or some, whole or torn. On each image the pods must start
//! without a replica that calls its log corrupt. Each block must hold its last acknowledged content
//! before the cut, or newer content that had been sent by then.
//!
//! `HOLDFAST_POWER_CUT_SEED` and `HOLDFAST_POWER_CUTS` set the places and number of cuts.

mod support;

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use holdfast::io::{DriverKind, driver};
use holdfast::sim::rng::Rng;

use support::mounted::Mounted;
use support::nbd::{Client, DISCONNECT};
use support::power::{Left, Log, Unflushed, serve};
use support::tools::{noise, run, text};
use support::{Cluster, PODS, Setup, wait_until};

const VOLUME: &str = "demo";
const WRITERS: u64 = 6;
/// Small, so that most blocks are written repeatedly, and an outdated value is noticed.
const REGION: usize = 16 << 20;
const BLOCK: usize = 4096;
const EXTENT: usize = 64 << 10;
/// What a pod's log and data take on its disk, and the disk.
const WAL_SIZE: &str = "64MiB";
const DATA_SIZE: &str = "256MiB";
const DISK_SIZE: &str = "768M";
/// Space for the writers' parts and a little more.
const VOLUME_SIZE: &str = "100MiB";
/// Least payload through the logs, so that they wrap.
const LOGGED_BYTES: u64 = 96 << 20;
/// Writes from this size on that cover whole extents bypass the WAL.
const BYPASS_BYTES_MIN: usize = 256 << 10;

/// One content of a block.
struct Version {
    hash: u64,
    /// A log position at or before the moment of sending.
    sent: usize,
    /// A log position at or after the moment of the answer.
    answered: usize,
}

/// A client with its own part of the volume, and all contents that its blocks ever had.
struct Writer {
    number: u64,
    random: Rng,
    content: Vec<u8>,
    blocks: Vec<Vec<Version>>,
    answers: Vec<usize>,
}

fn hash_of(block: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(block);
    hasher.finish()
}

impl Writer {
    fn new(number: u64, seed: u64) -> Writer {
        let hash = hash_of(&[0; BLOCK]);
        let blocks = (0..REGION / BLOCK).map(|_| vec![Version { hash, sent: 0, answered: 0 }]);
        Writer {
            number,
            random: Rng::new(seed.rotate_left(32) ^ number),
            content: vec![0; REGION],
            blocks: blocks.collect(),
            answers: Vec::new(),
        }
    }

    fn offset(&self) -> u64 {
        self.number * REGION as u64
    }

    /// Place of the next request: small and large, parts of blocks, whole extents.
    fn next_range(&mut self) -> (usize, usize) {
        let (unit, units) = match self.random.index(8) {
            0 => (EXTENT, 4 + self.random.index(13)),
            1 | 2 => (512, 1 + self.random.index(40)),
            3 => (BLOCK, 16 + self.random.index(47)),
            _ => (BLOCK, 1 + self.random.index(8)),
        };
        (self.random.index(REGION / unit - units) * unit, units * unit)
    }

    /// Writes until enough has gone through the logs.
    fn run(&mut self, client: &mut Client, log: &Log, logged: &AtomicU64) {
        while logged.load(Ordering::Relaxed) < LOGGED_BYTES {
            let (at, len) = self.next_range();
            let zeroes = self.random.index(12) == 0;
            let bytes = if zeroes { vec![0; len] } else { noise(self.random.next(), len) };
            let offset = self.offset() + at as u64;
            let sent = log.position();
            let result = match zeroes {
                true => client.write_zeroes(offset, len as u32),
                false => client.write(offset, &bytes),
            };
            result.expect("a write");
            let answered = log.position();
            self.answers.push(answered);
            self.content[at..at + len].copy_from_slice(&bytes);
            for block in at / BLOCK..(at + len).div_ceil(BLOCK) {
                let hash = hash_of(&self.content[block * BLOCK..][..BLOCK]);
                self.blocks[block].push(Version { hash, sent, answered });
            }
            if !zeroes && len < BYPASS_BYTES_MIN {
                logged.fetch_add(len as u64, Ordering::Relaxed);
            }
        }
    }

    /// Reads the content of every block.
    fn look(&self, client: &mut Client) -> Vec<u64> {
        let pieces = (0..REGION).step_by(1 << 20);
        let read = |start| client.read(self.offset() + start as u64, 1 << 20).expect("read");
        pieces
            .map(read)
            .flat_map(|piece| piece.chunks(BLOCK).map(hash_of).collect::<Vec<_>>())
            .collect()
    }

    /// Compares the blocks with their allowed contents after a cut at `cut`. Returns how many hold
    /// content that was not acknowledged yet.
    fn judge(&self, held: &[u64], cut: usize) -> usize {
        let mut newer = 0;
        for (number, (versions, held)) in self.blocks.iter().zip(held).enumerate() {
            let acknowledged = versions.iter().rposition(|version| version.answered <= cut);
            let acknowledged = acknowledged.expect("the first content");
            let mut allowed = versions[acknowledged..].iter().filter(|v| v.sent <= cut);
            let found = allowed.position(|version| version.hash == *held);
            assert!(
                found.is_some(),
                "block {number} of writer {} holds {}, after a cut at {cut}; version \
                 {acknowledged} of {} was acknowledged at {}",
                self.number,
                // All zeroed contents look alike: take the oldest match.
                match versions.iter().position(|version| version.hash == *held) {
                    Some(version) => format!("version {version}"),
                    None => "something that was never written".to_owned(),
                },
                versions.len(),
                versions[acknowledged].answered,
            );
            newer += usize::from(found > Some(0));
        }
        newer
    }
}

/// The disks of all pods, with their file systems in `dir/1` and so on.
struct Disks {
    dir: PathBuf,
    mounted: Vec<Mounted>,
}

impl Disks {
    fn new() -> Disks {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("power_cut_disks");
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        for number in 1..=PODS {
            fs::create_dir_all(dir.join(number.to_string())).unwrap();
        }
        let disks = Disks { dir, mounted: Vec::new() };
        for number in 1..=PODS {
            let image = disks.image(number, "initial");
            let options = ["-q", "-E", "root_owner", text(&image), DISK_SIZE];
            run("mkfs.ext4", &options);
        }
        disks
    }

    fn image(&self, number: usize, name: &str) -> PathBuf {
        self.dir.join(number.to_string()).join(name)
    }

    fn mount_point(&self, number: usize) -> PathBuf {
        self.dir.join(number.to_string()).join("mnt")
    }

    fn new_log(&self) -> Arc<Log> {
        Log::new(&self.dir)
    }

    /// Copies images to keep them.
    fn copy(&self, from: &str, to: &str) {
        for number in 1..=PODS {
            let (from, to) = (self.image(number, from), self.image(number, to));
            run("cp", &["--sparse=always", text(&from), text(&to)]);
        }
    }

    fn mount(&mut self, image: &str, log: &Arc<Log>) {
        for number in 1..=PODS {
            let address = serve(number, &self.image(number, image), log);
            let dir = self.dir.join(number.to_string());
            let mut mounted = Mounted::attach(&dir, &format!("nbd://{address}"));
            mounted.mount();
            self.mounted.push(mounted);
        }
    }

    fn unmount(&mut self) {
        for mut mounted in self.mounted.drain(..) {
            mounted.unmount();
        }
    }

    /// Makes the images that a power cut leaves, for all disks.
    fn crash(&self, log: &Log, cut: usize, unflushed: Unflushed, from: &str, to: &str) {
        let left: Vec<Left> = (1..=PODS)
            .map(|number| {
                let unflushed = match unflushed {
                    Unflushed::Lost => Unflushed::Lost,
                    Unflushed::Drawn(seed) => Unflushed::Drawn(seed + number as u64),
                };
                let (from, to) = (self.image(number, from), self.image(number, to));
                log.crash_image(number, cut, unflushed, &from, &to)
            })
            .collect();
        println!("cut at {cut}, {unflushed:?}: {left:?}");
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.mounted.clear();
        let keep = thread::panicking() && std::env::var_os("HOLDFAST_TEST_KEEP").is_some();
        if !keep && let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("remove {}: {error}", self.dir.display());
        }
    }
}

/// Draws the cuts, spread over the record from `start` to `end`.
fn draw_cuts(
    random: &mut Rng,
    count: usize,
    (start, end): (usize, usize),
    log: &Log,
    writers: &[Writer],
) -> Vec<usize> {
    let unflushed = log.unflushed(end);
    let flushes = log.flushes(end);
    let answers: Vec<usize> = writers.iter().flat_map(|writer| &writer.answers).copied().collect();
    let mut cuts = Vec::new();
    for number in 0..count {
        let from = start + (end - start) * number / count;
        let to = start + (end - start) * (number + 1) / count;
        // A write needs two disks: the number of writes that the second one may lose.
        let second = |at: &usize| {
            let mut counts = unflushed[*at];
            counts.sort_unstable();
            counts[PODS / 2]
        };
        let within = |places: &[usize], worth: &dyn Fn(&usize) -> usize| {
            let places = places.iter().filter(|at| (from..to).contains(at));
            places.copied().max_by_key(|at| (worth(at), *at))
        };
        let cut = match number % 3 {
            // An answer has just arrived, and the disks may still lose many writes.
            0 => within(&answers, &second),
            // A flush that covers many writes was about to be answered.
            1 => within(&flushes, &|at| unflushed[*at].into_iter().max().unwrap_or_default()),
            _ => None,
        };
        cuts.push(cut.unwrap_or_else(|| from + random.index(to - from)));
    }
    cuts
}

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// The content of every block of every writer.
type Held = Vec<Vec<u64>>;

fn judge(writers: &[Writer], held: &Held, cut: usize) {
    let newer = |(writer, held): (&Writer, &Vec<u64>)| writer.judge(held, cut);
    let newer: usize = writers.iter().zip(held).map(newer).sum();
    println!("    everything is there, and {newer} blocks that were not acknowledged");
}

fn assert_same(held: &Held, before: &Held) {
    for (writer, (held, before)) in held.iter().zip(before).enumerate() {
        let differs = (0..held.len()).find(|block| held[*block] != before[*block]);
        assert!(differs.is_none(), "block {differs:?} of writer {writer} was read before");
    }
}

/// One run of the cluster on the images of a cut.
struct Life<'a> {
    disks: &'a mut Disks,
    cluster: &'a mut Cluster,
    writers: &'a [Writer],
    log: Arc<Log>,
}

impl Life<'_> {
    /// Starts the pods.
    fn begin<'a>(
        disks: &'a mut Disks,
        cluster: &'a mut Cluster,
        writers: &'a [Writer],
        image: &str,
    ) -> Life<'a> {
        let log = disks.new_log();
        disks.mount(image, &log);
        cluster.start_again();
        Life { disks, cluster, writers, log }
    }

    /// Reads all blocks through one of the pods.
    fn look(&self, pod: usize) -> Held {
        self.cluster.wait_serving(pod);
        let mut client = self.cluster.connect(pod, VOLUME);
        self.writers.iter().map(|writer| writer.look(&mut client)).collect()
    }

    /// Checks that reads return the same when other replicas lead.
    fn others_hold(&self, held: &Held) {
        for pod in 2..=PODS {
            self.cluster.lead_from(pod, VOLUME);
            assert_same(&self.look(pod), held);
        }
    }

    /// Checks that no replica is lost and writes succeed.
    fn goes_on(&self) {
        wait_until("the cluster is healthy", || self.cluster.is_healthy());
        let scratch = WRITERS * REGION as u64;
        let mut client = self.cluster.connect(1, VOLUME);
        let bytes = noise(self.log.position() as u64, 1 << 20);
        client.write(scratch, &bytes).unwrap();
        assert!(client.read(scratch, 1 << 20).unwrap() == bytes, "what was written just now");
    }

    fn end(self) {
        self.cluster.kill_everything();
        self.disks.unmount();
    }
}

/// Pods use io_uring wherever it is permitted. Returns whether it is.
fn uses_io_uring(cluster: &Cluster) -> bool {
    let permitted = driver(DriverKind::IoUring).is_ok();
    for pod in 1..=PODS {
        let pid = cluster.pid(pod).expect("a pod runs").as_raw_nonzero();
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut targets = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        let used = targets.any(|target| target.to_string_lossy().contains("[io_uring]"));
        assert_eq!(used, permitted, "pod {pod} uses io_uring");
    }
    permitted
}

fn write_everywhere(cluster: &Cluster, log: &Log, seed: u64) -> Vec<Writer> {
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();
    let logged = AtomicU64::new(0);
    thread::scope(|scope| {
        for writer in &mut writers {
            let pod = 1 + writer.number as usize % PODS;
            let mut client = cluster.connect(pod, VOLUME);
            let logged = &logged;
            scope.spawn(move || writer.run(&mut client, log, logged));
        }
    });
    writers
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_of_all_machines() {
    let seed = number_from("HOLDFAST_POWER_CUT_SEED", 1);
    let count = number_from("HOLDFAST_POWER_CUTS", 3) as usize;
    println!("seed {seed}, {count} cuts");
    let random = &mut Rng::new(seed);

    let disks = &mut Disks::new();
    let log = disks.new_log();
    disks.copy("initial", "live");
    disks.mount("live", &log);
    let mut setup =
        Setup::new("power_cut").disk_sizes(DATA_SIZE, WAL_SIZE).volume(VOLUME, VOLUME_SIZE);
    for pod in 1..=PODS {
        setup = setup.disk_path(pod, disks.mount_point(pod).join("disk-1"));
        setup = setup.data_path(pod, disks.mount_point(pod).join("data"));
    }
    let cluster = &mut setup.start();
    println!("with io_uring: {}", uses_io_uring(cluster));
    let start = log.position();
    let writers = &write_everywhere(cluster, &log, seed);
    let end = log.position();
    cluster.kill_everything();
    disks.unmount();
    let answers: usize = writers.iter().map(|writer| writer.answers.len()).sum();
    println!("{answers} answers while {} writes and flushes reached the disks", end - start);

    let cuts = draw_cuts(random, count, (start, end), &log, writers);
    for cut in &cuts {
        for unflushed in [Unflushed::drawn(random), Unflushed::Lost] {
            disks.crash(&log, *cut, unflushed, "initial", "crashed");
            let life = Life::begin(disks, cluster, writers, "crashed");
            judge(writers, &life.look(1 + random.index(PODS)), *cut);
            life.goes_on();
            life.end();
        }
    }

    // Power comes back and is cut again, during the start or after everything was read.
    let cut = cuts[random.index(count)];
    disks.crash(&log, cut, Unflushed::drawn(random), "initial", "crashed");
    disks.copy("crashed", "live");
    let life = Life::begin(disks, cluster, writers, "live");
    let log = Arc::clone(&life.log);
    let started = log.position();
    let held = life.look(1);
    let read = log.position();
    judge(writers, &held, cut);
    life.end();

    disks.crash(&log, random.index(started), Unflushed::drawn(random), "crashed", "live");
    let life = Life::begin(disks, cluster, writers, "live");
    judge(writers, &life.look(2), cut);
    life.goes_on();
    life.end();

    disks.crash(&log, read, Unflushed::Lost, "crashed", "live");
    let life = Life::begin(disks, cluster, writers, "live");
    life.goes_on();
    life.others_hold(&held);
    life.end();
}

#[test]
fn a_disk_without_power_keeps_what_was_flushed_and_any_part_of_the_rest() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [initial, live, image] = ["initial", "live", "image"].map(|name| dir.path().join(name));
    for path in [&initial, &live] {
        fs::write(path, vec![1; 8 * BLOCK]).unwrap();
    }
    let log = Log::new(dir.path());
    let mut client = Client::connect(serve(1, &live, &log), "").unwrap();
    let page = |number: usize| (number * BLOCK) as u64;
    client.write(page(2), &[2; 2 * BLOCK]).unwrap();
    client.flush().unwrap();
    let flushed = log.position();
    client.write(page(3), &[3; 2 * BLOCK]).unwrap();
    client.write(page(5), &[0; BLOCK]).unwrap();
    let end = log.position();
    assert_eq!((flushed, end), (2, 4));
    let unflushed: Vec<usize> = log.unflushed(end).iter().map(|counts| counts[0]).collect();
    assert_eq!(unflushed, [0, 1, 0, 1, 2]);

    let crash = |cut: usize, unflushed: Unflushed| {
        log.crash_image(1, cut, unflushed, &initial, &image);
        fs::read(&image).unwrap()
    };
    let whole = |pages: [u8; 8]| pages.map(|byte| [byte; BLOCK]).concat();
    assert!(crash(flushed - 1, Unflushed::Lost) == whole([1; 8]));
    for cut in flushed..=end {
        assert!(crash(cut, Unflushed::Lost) == whole([1, 1, 2, 2, 1, 1, 1, 1]));
    }
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let held = crash(end, Unflushed::Drawn(seed));
        assert!(held[..3 * BLOCK] == whole([1, 1, 2, 0, 0, 0, 0, 0])[..3 * BLOCK]);
        assert!(held[6 * BLOCK..] == whole([1; 8])[6 * BLOCK..]);
        seen.insert([3, 4, 5].map(|page| [0, 512].map(|at| held[page * BLOCK + at])));
    }
    // Whole, half, in sectors; the zeroes independently of it.
    for expected in [
        [[2, 2], [1, 1], [1, 1]],
        [[3, 3], [3, 3], [0, 0]],
        [[3, 3], [1, 1], [1, 1]],
        [[2, 2], [3, 3], [0, 0]],
        [[2, 3], [3, 1], [1, 1]],
    ] {
        assert!(seen.contains(&expected), "{expected:?} of {seen:?}");
    }
    client.send(DISCONNECT, 0, 0, 0, &[]).unwrap();
    assert!(client.is_closed());
    assert!(fs::read(&live).unwrap() == whole([1, 1, 2, 3, 3, 0, 1, 1]));
}
