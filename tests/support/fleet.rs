//! A cluster as people run one: `holdfast init`, `join` with tokens, `serve` on machines of their
//! own, which are network namespaces. Pod N is on machine N. Pods talk TLS; the test uses the
//! sockets that are for administrators and clients of the same machine.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::nbd::Client;
use super::network::{Machine, Network, address};
use super::ports::{API_PORT, NBD_PORT, PEER_PORT};
use super::tools::text;
use super::{program, remove_dir, wait_until};

/// Pods report at least this often, so the cluster is well when it was for longer.
const REPORTED_WITHIN: Duration = Duration::from_millis(2500);

/// One pod and its machine.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub node: &'static str,
    pub zone: &'static str,
    pub has_disk: bool,
}

/// The pods; stopped and removed when dropped.
pub struct Fleet {
    pub dir: PathBuf,
    places: Vec<Place>,
    running: Vec<Option<Child>>,
    pub network: Network,
}

impl Fleet {
    /// Makes the cluster, and waits until all pods are up. `name` names the folder.
    pub fn start(name: &str, places: &[Place]) -> Fleet {
        let network = Network::create(places.len());
        let network = network.expect("this test needs root, network namespaces, veth and a bridge");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        remove_dir(&dir);
        fs::create_dir_all(&dir).unwrap();
        let running = (0..=places.len()).map(|_| None).collect();
        let mut fleet = Fleet { dir, places: places.to_vec(), running, network };
        fleet.init();
        fleet.serve(1);
        let token = fleet.dir.join("token");
        wait_until("the first pod gives a token", || {
            let made = fleet.run(1, &["token", "create"]);
            fs::write(&token, &made.stdout).unwrap();
            made.status.success()
        });
        for pod in 2..=fleet.size() {
            fleet.write_config(pod);
            let mut join = fleet.network.command(pod, &program());
            join.arg("join").arg("--config").arg(fleet.config(pod));
            let joined = join.arg("--token-file").arg(&token).output().expect("run holdfast join");
            let said = String::from_utf8_lossy(&joined.stderr).into_owned();
            assert!(joined.status.success(), "pod {pod} does not join: {said}");
            fleet.serve(pod);
        }
        fleet.wait_well();
        fleet
    }

    /// Makes the authority, and gives the first pod its certificate.
    fn init(&self) {
        let keys = self.dir.join("keys");
        let made = Command::new(program())
            .args(["init", text(&keys), "--pods", "1", "--address", &address(1)])
            .output()
            .expect("run holdfast init");
        assert!(made.status.success(), "{made:?}");
        let said = String::from_utf8_lossy(&made.stdout).into_owned();
        let key = said.split_whitespace().find(|word| word.starts_with("holdfast-recovery-"));
        fs::write(self.recovery_key(), key.expect("init prints a recovery key")).unwrap();
        self.write_config(1);
        fs::create_dir_all(self.data(1)).unwrap();
        fs::rename(keys.join("pod-1"), self.data(1).join("tls")).unwrap();
    }

    /// The credentials of an administrator.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("keys").join("admin")
    }

    /// A file with the recovery key.
    pub fn recovery_key(&self) -> PathBuf {
        self.dir.join("keys").join("recovery-key")
    }

    fn write_config(&self, pod: usize) {
        let Place { node, zone, has_disk } = self.places[pod - 1];
        let (dir, own) = (self.pod_dir(pod), address(pod));
        let first = match pod {
            1 => "init = true".to_owned(),
            _ => format!("join = [\"{}:{API_PORT}\"]", address(1)),
        };
        let mut config = format!(
            "data = \"data\"\n{first}\n\
             [node]\nname = {node:?}\nlabels = {{ zone = {zone:?} }}\n\
             [api]\nlisten = \"{own}:{API_PORT}\"\n[peer]\nlisten = \"{own}:{PEER_PORT}\"\n"
        );
        if has_disk {
            config += "[[disk]]\npath = \"disk\"\nsize = \"512MiB\"\nwal_size = \"64MiB\"\n";
        }
        fs::create_dir_all(dir.join("disk")).unwrap();
        fs::write(self.config(pod), config).unwrap();
    }

    /// Number of pods.
    pub fn size(&self) -> usize {
        self.places.len()
    }

    pub fn place(&self, pod: usize) -> Place {
        self.places[pod - 1]
    }

    fn pod_dir(&self, pod: usize) -> PathBuf {
        self.dir.join(format!("pod-{pod}"))
    }

    /// `data` of a pod's configuration.
    pub fn data(&self, pod: usize) -> PathBuf {
        self.pod_dir(pod).join("data")
    }

    pub fn config(&self, pod: usize) -> PathBuf {
        self.pod_dir(pod).join("holdfast.toml")
    }

    /// For `--endpoint`: the socket of a pod for administrators of its machine.
    pub fn endpoint(&self, pod: usize) -> String {
        format!("unix:{}", text(&self.data(pod).join("control/api.sock")))
    }

    /// Starts a pod's process.
    pub fn serve(&mut self, pod: usize) {
        assert!(self.running[pod].is_none(), "pod {pod} runs");
        let log = fs::File::options().create(true).append(true).open(self.log(pod)).unwrap();
        let mut serve = self.network.command(pod, &program());
        serve.arg("serve").arg("--config").arg(self.config(pod)).stdin(Stdio::null());
        let child = serve.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.running[pod] = Some(child.expect("run holdfast serve"));
    }

    pub fn log(&self, pod: usize) -> PathBuf {
        self.pod_dir(pod).join("log")
    }

    /// Asks a pod to end, and waits for that.
    pub fn stop(&mut self, pod: usize) {
        let mut child = self.running[pod].take().expect("it runs");
        kill_process(Pid::from_child(&child), Signal::TERM).expect("signal a pod");
        let mut ended = None;
        wait_until("a pod ends", || {
            ended = child.try_wait().expect("wait for a pod");
            ended.is_some()
        });
        assert!(ended.is_some_and(|ended| ended.success()), "pod {pod} ends in order: {ended:?}");
    }

    /// `kill -9`.
    pub fn kill(&mut self, pod: usize) {
        let mut child = self.running[pod].take().expect("it runs");
        child.kill().expect("kill a pod");
        child.wait().expect("wait for a pod");
    }

    /// Runs a command of the program against a pod.
    pub fn run(&self, pod: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.args(arguments).args(["--endpoint", &self.endpoint(pod)]);
        command.output().expect("run holdfast")
    }

    /// Runs a command of the program on another machine, with an administrator's certificate.
    pub fn over_network(&self, pod: usize, arguments: &[&str]) -> Output {
        let mut command = self.network.command(0, &program());
        command.args(arguments).args(["--credentials", text(&self.admin())]);
        command.args(["--endpoint", &format!("{}:{API_PORT}", address(pod))]);
        command.output().expect("run holdfast")
    }

    /// What a command printed as JSON, of the first pod that answers.
    pub fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let arguments = [arguments, &["-o", "json"]].concat();
        let running = (1..=self.size()).filter(|pod| self.running[*pod].is_some());
        running.into_iter().find_map(|pod| {
            let output = self.run(pod, &arguments);
            serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
        })
    }

    /// Like [`Fleet::ask`], for what must succeed.
    pub fn must(&self, arguments: &[&str]) -> Value {
        let found = self.ask(arguments);
        found.unwrap_or_else(|| {
            let said = self.run(self.some_pod(), arguments).stderr;
            panic!("{arguments:?}: {}", String::from_utf8_lossy(&said))
        })
    }

    /// A list, or nothing when nobody answers.
    pub fn list(&self, arguments: &[&str]) -> Vec<Value> {
        self.ask(arguments).and_then(|found| found.as_array().cloned()).unwrap_or_default()
    }

    fn some_pod(&self) -> usize {
        (1..=self.size()).find(|pod| self.running[*pod].is_some()).expect("some pod runs")
    }

    /// The pod that leads the catalog.
    pub fn catalog_leader(&self) -> usize {
        let mut leader = 0;
        wait_until("the catalog has a leader", || {
            leader = number(&self.ask(&["status"]).unwrap_or_default()["leader_pod"]);
            leader > 0
        });
        usize::try_from(leader).expect("a number of a pod")
    }

    /// True when all pods are up, the catalog has all its voters, and nothing needs attention.
    fn is_well(&self) -> bool {
        let Some(status) = self.ask(&["status"]) else { return false };
        let nodes = self.places.iter().map(|place| place.node);
        let nodes = nodes.collect::<std::collections::BTreeSet<_>>().len();
        let voters = if nodes < 3 {
            1
        } else if nodes < 5 {
            3
        } else {
            5
        };
        let catalog = &status["catalog"];
        let pods = self.list(&["pod", "list", "--phase", "up"]);
        status["problems"].as_array().is_some_and(Vec::is_empty)
            && pods.len() == self.size()
            && [&catalog["voters"], &catalog["voters_up"]].map(number) == [voters; 2]
            && number(&catalog["learners"]) == 0
    }

    /// Waits until the cluster is well, and has been for longer than reports take.
    pub fn wait_well(&self) {
        let mut since = None;
        wait_until("the cluster is well", || {
            since = self.is_well().then(|| since.unwrap_or_else(Instant::now));
            since.is_some_and(|since: Instant| since.elapsed() > REPORTED_WITHIN)
        });
    }

    /// The way to a pod's volumes for clients on its machine.
    pub fn front(&self, pod: usize) -> Front {
        Front { machine: self.network.machine(pod) }
    }

    /// The pods with a replica of each shard of a volume.
    pub fn replicas(&self, volume: &str) -> Vec<Vec<usize>> {
        let shards = self.list(&["shard", "list", "--volume", volume]);
        let pods = |shard: &Value| {
            let replicas = shard["status"]["replicas"].as_array().cloned().unwrap_or_default();
            replicas.iter().map(|it| number(&it["pod"]) as usize).collect()
        };
        shards.iter().map(pods).collect()
    }

    fn print_logs(&self) {
        for pod in 1..=self.size() {
            let log = fs::read_to_string(self.log(pod)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- end of the log of pod {pod}");
            lines[lines.len().saturating_sub(25)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.print_logs();
        }
        if std::env::var_os("HOLDFAST_TEST_KEEP").is_none() {
            remove_dir(&self.dir);
        }
    }
}

/// The NBD server of a pod, for clients on its machine.
#[derive(Clone, Debug)]
pub struct Front {
    machine: Machine,
}

impl Front {
    pub fn connect(&self, export: &str) -> std::io::Result<Client> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, NBD_PORT));
        self.machine.inside(|| Client::connect(at, export))
    }

    /// Connects as soon as the pod is there and knows the export.
    pub fn connect_soon(&self, export: &str) -> Client {
        let mut client = None;
        wait_until("a pod serves a volume", || {
            client = self.connect(export).ok();
            client.is_some()
        });
        client.expect("just connected")
    }
}

/// A number in JSON; those of 64 bits may be texts. A missing one is 0.
pub fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// Of an object: its name.
pub fn name(object: &Value) -> &str {
    object["meta"]["name"].as_str().unwrap_or_default()
}
