//! Storage nodes of a Kubernetes cluster: each is a process of `holdfast kubernetes pod`, with a
//! directory and ports of its own on loopback, before the API server of `api`. All are gone when
//! the test ends.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::api::FakeApi;
use super::support::network::{Network, address};
use super::support::ports::{API_PORT, HTTP_PORT, NBD_PORT, PEER_PORT, free_offset, port_of};
use super::support::tools::text;
use super::support::{program, remove_dir, wait_until};

pub const NAMESPACE: &str = "storage";
/// Interval of looks at what a process does in between.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// One cluster at a time, on a machine with few cores.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// See the module. Nodes are numbered from 1.
pub struct Nodes {
    pub api: FakeApi,
    pub dir: PathBuf,
    /// The machines of the nodes; `None`: all are on loopback.
    pub network: Option<Network>,
    offset: u16,
    running: Vec<Option<Child>>,
    _turn: MutexGuard<'static, ()>,
}

pub fn node_name(node: usize) -> String {
    format!("worker-{node}")
}

impl Nodes {
    /// Labels `count` nodes as storage nodes. None of them runs a pod yet. `name` names the folder.
    pub fn new(name: &str, count: usize) -> Nodes {
        Nodes::with(name, count, None)
    }

    /// The same, each node on a machine of its own, which is a network namespace. One machine more
    /// is for a node that stores nothing.
    pub fn on_machines(name: &str, count: usize) -> Nodes {
        let network = Network::create(count + 1);
        let network = network.expect("this test needs root, network namespaces, veth and a bridge");
        Nodes::with(name, count, Some(network))
    }

    fn with(name: &str, count: usize, network: Option<Network>) -> Nodes {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        remove_dir(&dir);
        fs::create_dir_all(&dir).unwrap();
        let running = (0..=count).map(|_| None).collect();
        let api = match &network {
            None => FakeApi::start(),
            Some(network) => {
                let bind = || TcpListener::bind((address(0).as_str(), 0)).expect("a free port");
                FakeApi::on(network.machine(0).inside(bind))
            }
        };
        let offset = if network.is_some() { 0 } else { free_offset() };
        let nodes = Nodes { api, dir, network, offset, running, _turn: turn };
        nodes.apply_secrets();
        nodes.api.put(
            "configmaps",
            NAMESPACE,
            json!({ "metadata": { "name": "holdfast-cluster" } }),
        );
        for node in 1..=count {
            let labels = json!({ "holdfast.io/storage": "true" });
            let meta = json!({ "name": node_name(node), "labels": labels });
            nodes.api.put("nodes", "", json!({ "metadata": meta }));
            let (pod, account) = (format!("holdfast-{node}"), "holdfast-pod");
            let username = format!("system:serviceaccount:{NAMESPACE}:{account}");
            nodes.api.give_token(&pod, &username, &pod, &node_name(node));
            fs::create_dir_all(nodes.node_dir(node)).unwrap();
            fs::write(nodes.node_dir(node).join("token"), &pod).unwrap();
            nodes.api.kubeconfig(&nodes.dir, &pod);
            fs::write(nodes.template(node), nodes.template_text(node)).unwrap();
            fs::create_dir_all(nodes.disk(node)).unwrap();
        }
        nodes
    }

    /// Makes the Secrets that are not there, empty, as the manifests do.
    pub fn apply_secrets(&self) {
        for name in ["holdfast-cluster", "holdfast-recovery"] {
            if self.api.get("secrets", NAMESPACE, name).is_none() {
                let secret = json!({ "metadata": { "name": name }, "type": "Opaque" });
                self.api.put("secrets", NAMESPACE, secret);
            }
        }
    }

    fn node_dir(&self, node: usize) -> PathBuf {
        self.dir.join(node_name(node))
    }

    /// The pod's own directory.
    pub fn data(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("data")
    }

    pub fn disk(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("disk")
    }

    fn log(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("log")
    }

    fn template(&self, node: usize) -> PathBuf {
        self.node_dir(node).join("template.toml")
    }

    fn template_text(&self, node: usize) -> String {
        let at = |host, base| format!("listen = \"{host}:{}\"", self.port(base, node));
        let others = if self.network.is_some() { "0.0.0.0" } else { "127.0.0.1" };
        format!(
            "[api]\n{}\n[peer]\n{}\n[nbd]\n{}\n[http]\n{}\n\
             [[disk]]\npath = {:?}\nsize = \"512MiB\"\nwal_size = \"64MiB\"\n",
            at(others, API_PORT),
            at(others, PEER_PORT),
            at("127.0.0.1", NBD_PORT),
            at("127.0.0.1", HTTP_PORT),
            self.disk(node)
        )
    }

    /// Address of the API of a node's pod.
    pub fn endpoint(&self, node: usize) -> String {
        format!("{}:{}", self.host(node), self.port(API_PORT, node))
    }

    fn host(&self, node: usize) -> String {
        if self.network.is_some() { address(node) } else { "127.0.0.1".to_owned() }
    }

    fn port(&self, base: u16, node: usize) -> u16 {
        // Machines have all ports to themselves.
        if self.network.is_some() { base } else { port_of(base, node, self.offset) }
    }

    pub fn endpoints(&self) -> String {
        let all = (1..self.running.len()).map(|node| self.endpoint(node));
        all.collect::<Vec<String>>().join(",")
    }

    /// A command of the program on the machine of a node, which finds the API server.
    pub fn command(&self, node: usize, token: &str) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command(node, &program()),
            None => Command::new(program()),
        };
        command.env("KUBECONFIG", self.api.kubeconfig(&self.dir, token)).stdin(Stdio::null());
        command
    }

    /// Starts the pod of a node.
    pub fn start(&mut self, node: usize) {
        assert!(self.running[node].is_none(), "the pod of node {node} runs");
        let log = fs::File::options().create(true).append(true).open(self.log(node)).unwrap();
        let mut pod = self.command(node, &format!("holdfast-{node}"));
        pod.args(["kubernetes", "pod", "--directory", text(&self.data(node))])
            .args(["--config", text(&self.template(node))])
            .args(["--token-file", text(&self.node_dir(node).join("token"))])
            .env("NODE_NAME", node_name(node))
            .env("HOST_IP", self.host(node))
            .env("NAMESPACE", NAMESPACE)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.running[node] = Some(pod.spawn().expect("run holdfast kubernetes pod"));
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) {
        let mut child = self.running[node].take().expect("it runs");
        child.kill().expect("kill a pod");
        child.wait().expect("wait for a pod");
    }

    /// Kills the pod of a node as soon as a condition holds, and starts it again.
    pub fn kill_when(&mut self, node: usize, what: &str, condition: impl Fn(&Nodes) -> bool) {
        let mut looks = 0;
        while !condition(self) {
            looks += 1;
            assert!(looks < 60_000, "waited in vain: {what}");
            std::thread::sleep(LOOK_EVERY);
        }
        self.kill(node);
        self.start(node);
    }

    /// A machine that is installed anew: neither its own directory nor its disk is left.
    pub fn install_anew(&self, node: usize) {
        assert!(self.running[node].is_none(), "the pod of node {node} runs");
        remove_dir(&self.data(node));
        remove_dir(&self.disk(node));
        fs::create_dir_all(self.disk(node)).unwrap();
    }

    /// Runs a command against the pod of a node, as an administrator of its machine.
    pub fn run(&self, node: usize, arguments: &[&str]) -> Output {
        let socket = self.data(node).join("control/api.sock");
        let endpoint = format!("unix:{}", socket.display());
        let mut command = Command::new(program());
        command.args(arguments).args(["--endpoint", &endpoint]).output().expect("run holdfast")
    }

    /// What a command printed as JSON, of the first pod that answers.
    pub fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let arguments = [arguments, &["-o", "json"]].concat();
        let running = (1..self.running.len()).filter(|node| self.running[*node].is_some());
        running.into_iter().find_map(|node| {
            let output = self.run(node, &arguments);
            serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
        })
    }

    /// A list, or nothing when nobody answers.
    pub fn list(&self, arguments: &[&str]) -> Vec<Value> {
        self.ask(arguments).and_then(|found| found.as_array().cloned()).unwrap_or_default()
    }

    pub fn wait_pods_up(&self, count: usize) {
        wait_until("the pods are up", || {
            self.list(&["pod", "list", "--phase", "up"]).len() == count
        });
    }

    /// The record of the bootstrap.
    pub fn record(&self) -> Option<Value> {
        let secret = self.api.get("secrets", NAMESPACE, "holdfast-cluster")?;
        decoded(&secret["data"]["record"])
    }

    /// What the identity of a node's pod says.
    pub fn identity(&self, node: usize) -> Option<Value> {
        let file = fs::read(self.data(node).join("pod.json")).ok()?;
        let file: Value = serde_json::from_slice(&file).ok()?;
        Some(file["identity"].clone()).filter(|it| !it.is_null())
    }

    fn print_logs(&self) {
        for node in 1..self.running.len() {
            let log = fs::read_to_string(self.log(node)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- end of the log of {}", node_name(node));
            lines[lines.len().saturating_sub(25)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// JSON in the data of a Secret.
pub fn decoded(data: &Value) -> Option<Value> {
    serde_json::from_slice(&base64(data.as_str()?)).ok()
}

/// The bytes of a text in base 64.
pub fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter(|it| *it != b'=') {
        let value = DIGITS.iter().position(|it| *it == digit).expect("base 64");
        (bits, count) = (bits << 6 | value as u32, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            // It may have ended by itself.
            let _ = kill_process(Pid::from_child(child), Signal::KILL);
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
