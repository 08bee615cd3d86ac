//! A real cluster for tests: `holdfast dev` with its pods as processes, on its own ports and in its
//! own folder. All processes of a test are gone when it ends, even if it fails; then the ends of
//! the logs are printed.
//!
//! `HOLDFAST_TEST_PROGRAM` tests another program than the one just built; `HOLDFAST_TEST_KEEP=1`
//! keeps the folders.

#![allow(dead_code, reason = "every test program uses another part of this")]

pub mod attach;
pub mod disk;
pub mod fleet;
pub mod hanging;
pub mod load;
pub mod metrics;
pub mod mounted;
pub mod nbd;
pub mod network;
pub mod ports;
pub mod power;
pub mod tools;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use self::ports::{API_PORT, NBD_PORT, PEER_PORT, port_of};

/// Pods of every test cluster, numbered from 1.
pub const PODS: usize = 3;
/// Pods report at least this often, and count as unreachable after this long.
const REPORT_AGE_MAX: Duration = Duration::from_secs(6);
/// Longest wait for a cluster to start or to heal. It only ends tests that hang.
const PATIENCE: Duration = Duration::from_secs(90);

/// One cluster at a time: the tests of a program run in threads, on a machine with few cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The description of a cluster.
pub struct Setup {
    name: &'static str,
    volumes: Vec<(&'static str, &'static str)>,
    restart_after: &'static str,
    disk_sizes: Option<(&'static str, &'static str)>,
    disk_paths: Vec<(usize, PathBuf)>,
    data_paths: Vec<(usize, PathBuf)>,
    settings: Vec<&'static str>,
    open_files: Option<u32>,
}

impl Setup {
    /// `name` names the folder; it must be unique among the tests of a program.
    pub fn new(name: &'static str) -> Setup {
        Setup {
            name,
            volumes: Vec::new(),
            restart_after: "1s",
            disk_sizes: None,
            disk_paths: Vec::new(),
            data_paths: Vec::new(),
            settings: Vec::new(),
            open_files: None,
        }
    }

    /// A volume to create, such as `("demo", "256MiB")`.
    pub fn volume(mut self, name: &'static str, size: &'static str) -> Setup {
        self.volumes.push((name, size));
        self
    }

    /// When `dev` restarts a dead pod: such as `2s`, or `never`.
    pub fn restart_after(mut self, pause: &'static str) -> Setup {
        self.restart_after = pause;
        self
    }

    /// Size of every disk's data, and of its log.
    pub fn disk_sizes(mut self, data: &'static str, log: &'static str) -> Setup {
        self.disk_sizes = Some((data, log));
        self
    }

    /// Directory of a pod's disk, instead of one in its folder.
    pub fn disk_path(mut self, pod: usize, path: PathBuf) -> Setup {
        self.disk_paths.push((pod, path));
        self
    }

    /// Directory of a pod's identity and catalog, instead of one in its folder.
    pub fn data_path(mut self, pod: usize, path: PathBuf) -> Setup {
        self.data_paths.push((pod, path));
        self
    }

    /// Descriptors that each process may have.
    pub fn open_files(mut self, count: u32) -> Setup {
        self.open_files = Some(count);
        self
    }

    fn link_data(&self, dir: &Path) {
        for (pod, path) in &self.data_paths {
            let pod_dir = dir.join("data").join(format!("pod-{pod}"));
            fs::create_dir_all(path).unwrap();
            fs::create_dir_all(&pod_dir).unwrap();
            std::os::unix::fs::symlink(path, pod_dir.join("data")).unwrap();
        }
    }

    /// Writes configurations with the changed disks, which `dev` then keeps.
    fn write_disks(&self, dir: &Path) {
        for pod in 1..=PODS {
            let moved = self.disk_paths.iter().find(|(of, _)| *of == pod);
            if self.disk_sizes.is_none() && moved.is_none() {
                continue;
            }
            let pod_dir = dir.join("data").join(format!("pod-{pod}"));
            let path = moved.map_or_else(|| pod_dir.join("disk-1"), |(_, path)| path.clone());
            let (data, log) = self.disk_sizes.unwrap_or(("256MiB", "64MiB"));
            let text = format!(
                "data = {:?}\n[[disk]]\npath = {path:?}\nsize = {data:?}\nwal_size = {log:?}\n",
                pod_dir.join("data")
            );
            fs::create_dir_all(&pod_dir).unwrap();
            fs::write(pod_dir.join("holdfast.toml"), text).unwrap();
        }
    }

    /// Sets a key of every pod's configuration, such as `io=epoll`.
    pub fn set(mut self, setting: &'static str) -> Setup {
        self.settings.push(setting);
        self
    }

    /// Starts the cluster and waits until every volume can be used.
    pub fn start(self) -> Cluster {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(self.name);
        remove_dir(&dir);
        fs::create_dir_all(&dir).unwrap();
        self.write_disks(&dir);
        self.link_data(&dir);
        let offset = ports::free_offset();
        let mut cluster = Cluster {
            dev: spawn_dev(&dir, offset, &self),
            lines: None,
            setup: self,
            dir,
            offset,
            _turn: turn,
        };
        cluster.wait_ready();
        cluster
    }
}

/// A running cluster; stopped and removed when dropped.
pub struct Cluster {
    dev: Child,
    lines: Option<Receiver<String>>,
    setup: Setup,
    pub dir: PathBuf,
    pub offset: u16,
    _turn: MutexGuard<'static, ()>,
}

pub fn program() -> PathBuf {
    std::env::var_os("HOLDFAST_TEST_PROGRAM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_holdfast")), PathBuf::from)
}

fn spawn_dev(dir: &Path, offset: u16, setup: &Setup) -> Child {
    let mut command = match setup.open_files {
        None => Command::new(program()),
        Some(count) => {
            let mut limited = Command::new("prlimit");
            limited.arg(format!("--nofile={count}:{count}")).arg(program());
            limited
        }
    };
    command
        .arg("dev")
        .args(["--pods", &PODS.to_string()])
        .args(["--port-offset", &offset.to_string()])
        .args(["--restart-after", setup.restart_after])
        .arg("--data")
        .arg(dir.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::options().create(true).append(true).open(dir.join("dev.log")).unwrap());
    for setting in &setup.settings {
        command.args(["--set", setting]);
    }
    for (name, size) in &setup.volumes {
        command.args(["--volume", &format!("{name}:{size}")]);
    }
    command.spawn().expect("start holdfast dev")
}

impl Cluster {
    fn wait_ready(&mut self) {
        let (sender, lines) = channel();
        let stdout = self.dev.stdout.take().expect("stdout is a pipe");
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let until = Instant::now() + PATIENCE;
        let mut waiting = self.setup.volumes.len();
        while waiting > 0 {
            let left = until.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => waiting -= usize::from(line.starts_with("ready nbd://")),
                Err(error) => panic!("holdfast dev did not become ready: {error}"),
            }
        }
        // Keeps reading, so that the pipe stays open.
        self.lines = Some(lines);
    }

    /// The NBD address of a pod.
    pub fn nbd_address(&self, pod: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port_of(NBD_PORT, pod, self.offset)))
    }

    /// The address of a pod for its peers.
    pub fn peer_address(&self, pod: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port_of(PEER_PORT, pod, self.offset)))
    }

    /// The address of a pod's API.
    pub fn api_address(&self, pod: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port_of(API_PORT, pod, self.offset)))
    }

    /// URI of a volume through a pod.
    pub fn uri(&self, pod: usize, volume: &str) -> String {
        format!("nbd://{}/{volume}", self.nbd_address(pod))
    }

    /// A connection with the tests' own client.
    pub fn connect(&self, pod: usize, volume: &str) -> nbd::Client {
        nbd::Client::connect(self.nbd_address(pod), volume).expect("connect to a pod")
    }

    /// Makes a pod with this configuration a part of the cluster.
    pub fn join(&self, config: &Path) {
        let made = Command::new(program())
            .args(["token", "create", "--endpoint", &self.endpoint(1)])
            .output()
            .expect("run holdfast token");
        let file = self.dir.join("join-token");
        fs::write(&file, made.stdout).unwrap();
        let joined = Command::new(program())
            .arg("join")
            .arg("--config")
            .arg(config)
            .arg("--token-file")
            .arg(&file)
            .output()
            .expect("run holdfast join");
        assert!(joined.status.success(), "{joined:?}");
    }

    /// Address of a pod's API, for `--endpoint`.
    pub fn endpoint(&self, pod: usize) -> String {
        let port = port_of(API_PORT, pod, self.offset);
        format!("{}:{port}", Ipv4Addr::LOCALHOST)
    }

    /// Directory of a pod: its configuration, its log, its disk.
    pub fn pod_dir(&self, pod: usize) -> PathBuf {
        self.dir.join("data").join(format!("pod-{pod}"))
    }

    /// The process of a pod, if it runs and belongs to this test.
    pub fn pid(&self, pod: usize) -> Option<Pid> {
        let text = fs::read_to_string(self.pod_dir(pod).join("pid")).ok()?;
        let pid = text.trim().parse().ok()?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // The system may have reused the number: check which program has it.
        let ours = String::from_utf8_lossy(&command_line).contains(self.dir.to_str()?);
        Pid::from_raw(pid).filter(|_| ours)
    }

    /// Runs a command of the program against this cluster and returns what it printed as JSON.
    pub fn ask(&self, arguments: &[&str]) -> Option<serde_json::Value> {
        (1..=PODS).find_map(|pod| {
            let output = Command::new(program())
                .args(arguments)
                .args(["-o", "json", "--endpoint", &self.endpoint(pod)])
                .output()
                .expect("run the program");
            serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
        })
    }

    /// Makes a closed volume, publishes it to the cluster's first node, and returns the uid of its
    /// attachment, which names its export.
    pub fn publish(&self, volume: &str) -> String {
        let create = ["volume", "create", volume, "--size", "64MiB", "--class", "dev", "--closed"];
        self.ask(&create).expect("the volume is created");
        let nodes = self.ask(&["node", "list"]).expect("nodes are listed");
        let node = nodes[0]["meta"]["name"].as_str().expect("a node has a name");
        let attachment = self.ask(&["attachment", "publish", volume, node]);
        let attachment = attachment.expect("the volume is published");
        attachment["meta"]["uid"].as_str().expect("an attachment has a uid").to_owned()
    }

    /// The pod that leads the first shard of a volume, as the cluster reports it.
    pub fn leader(&self, volume: &str) -> Option<usize> {
        let shards = self.ask(&["shard", "list", "--volume", volume])?;
        let leader = shards[0]["status"]["leader_pod"].as_u64().filter(|pod| *pod > 0)?;
        let led = self.ask(&["pod", "show", &leader.to_string()])?;
        // Pods are identified by their addresses here.
        (1..=PODS).find(|pod| led["status"]["api"] == self.endpoint(*pod).as_str())
    }

    /// Leaders follow their client: reads a one-shard volume through a pod until that pod leads it.
    pub fn lead_from(&self, pod: usize, volume: &str) {
        let mut client = self.connect(pod, volume);
        wait_until("the leader follows its client", || {
            for _ in 0..200 {
                // A block behind those that the tests damage.
                client.read(client.size_bytes - 4096, 4096).expect("read while leaders move");
            }
            self.leader(volume) == Some(pod)
        });
    }

    fn signal(&self, pod: usize, signal: Signal) -> Pid {
        let pid = self.pid(pod).unwrap_or_else(|| panic!("pod {pod} does not run"));
        kill_process(pid, signal).unwrap_or_else(|error| panic!("signal pod {pod}: {error}"));
        pid
    }

    /// `kill -9`; returns when the process is gone.
    pub fn kill(&self, pod: usize) {
        let pid = self.signal(pod, Signal::KILL);
        wait_until("a killed pod is gone", || !is_running(pid));
    }

    /// Stops a pod's process (SIGSTOP). To the others it looks like a cut network. On a busy
    /// machine its threads run on for a moment: returns when all have stopped.
    pub fn freeze(&self, pod: usize) {
        let pid = self.signal(pod, Signal::STOP);
        wait_until("all threads of a pod have stopped", || has_stopped(pid));
    }

    /// Lets a frozen pod continue.
    pub fn thaw(&self, pod: usize) {
        self.signal(pod, Signal::CONT);
    }

    /// Waits until a pod runs and serves NBD (again).
    pub fn wait_serving(&self, pod: usize) {
        wait_until("a pod serves again", || {
            self.pid(pod).is_some() && TcpStream::connect(self.nbd_address(pod)).is_ok()
        });
    }

    /// Waits until every replica of every volume is there and has caught up. Reports may be as old
    /// as [`REPORT_AGE_MAX`], so the state must last longer than that.
    pub fn wait_healthy(&self) {
        let mut since = None;
        wait_until("the cluster is healthy", || {
            since = since
                .filter(|_| self.is_healthy())
                .or_else(|| self.is_healthy().then(Instant::now));
            since.is_some_and(|since| since.elapsed() > REPORT_AGE_MAX)
        });
    }

    /// True when `holdfast status` reports no problem.
    pub fn is_healthy(&self) -> bool {
        (1..=PODS).all(|pod| self.pid(pod).is_some())
            && (1..=PODS).any(|pod| {
                let output = Command::new(program())
                    .args(["status", "-o", "json", "--endpoint", &self.endpoint(pod)])
                    .output()
                    .expect("run holdfast status");
                serde_json::from_slice(&output.stdout).is_ok_and(|status: serde_json::Value| {
                    // Empty when nothing needs attention; missing without an answer.
                    status["problems"].as_array().is_some_and(Vec::is_empty)
                })
            })
    }

    /// Stops the cluster in order and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// `kill -9` of `dev` and every pod: like a power cut, but the page cache stays.
    /// [`Cluster::start_again`] brings it back.
    pub fn kill_everything(&mut self) {
        self.dev.kill().expect("kill holdfast dev");
        self.dev.wait().expect("wait for holdfast dev");
        // Pods die with their parent; kill any that does not.
        for pod in 1..=PODS {
            if let Some(pid) = self.pid(pod) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        wait_until("every pod is gone", || (1..=PODS).all(|pod| self.pid(pod).is_none()));
    }

    /// Stops `dev`, and with it every pod, in order. [`Cluster::start_again`] brings it back.
    pub fn stop(&mut self) {
        self.stop_dev();
        wait_until("every pod is gone", || (1..=PODS).all(|pod| self.pid(pod).is_none()));
    }

    /// Asks `dev` to end, and returns its exit status.
    pub fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.dev), Signal::TERM).expect("signal holdfast dev");
        let mut ended = None;
        wait_until("dev ends", || {
            ended = self.dev.try_wait().expect("wait for holdfast dev");
            ended.is_some()
        });
        ended.expect("it has ended")
    }

    /// Starts a stopped cluster on its data, and waits until its volumes can be used.
    pub fn start_again(&mut self) {
        self.dev = spawn_dev(&self.dir, self.offset, &self.setup);
        self.wait_ready();
    }

    fn stop_dev(&mut self) {
        let pid = Pid::from_child(&self.dev);
        if matches!(self.dev.try_wait(), Ok(None)) {
            let _ = kill_process(pid, Signal::TERM);
            let until = Instant::now() + Duration::from_secs(20);
            while matches!(self.dev.try_wait(), Ok(None)) && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
            let _ = self.dev.kill();
        }
        let _ = self.dev.wait();
        for pod in 1..=PODS {
            if let Some(pid) = self.pid(pod) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    fn print_logs(&self) {
        let logs = (1..=PODS).map(|pod| self.pod_dir(pod).join("log"));
        for log in std::iter::once(self.dir.join("dev.log")).chain(logs) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- end of {}", log.display());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_dev();
        if thread::panicking() {
            self.print_logs();
        }
        if std::env::var_os("HOLDFAST_TEST_KEEP").is_none() {
            remove_dir(&self.dir);
        }
    }
}

pub fn remove_dir(dir: &Path) {
    if dir.exists() {
        fs::remove_dir_all(dir).unwrap_or_else(|e| eprintln!("remove {}: {e}", dir.display()));
    }
}

/// True when no thread of a process runs.
fn has_stopped(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let stopped = |task: std::io::Result<fs::DirEntry>| {
        let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
        // The state follows the name, which is in parentheses.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    };
    tasks.is_ok_and(|mut tasks| tasks.all(stopped))
}

fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // The state follows the name in parentheses; a zombie has ended.
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with('Z'))
}

/// Polls a condition; panics when it does not hold within [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
