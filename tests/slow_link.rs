//! Pods on a slow network, and clients that write as much as it carries (rule
//! `heartbeats-go-first`). No shard changes its leader, and no lease lapses.
//!
//! Each pod has a network namespace of its own, joined to the others by a bridge in another one.
//! The test needs root and a kernel with `tbf`; without, it says so and does nothing.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use support::network::{Network, address};
use support::{PODS, program, wait_until};

/// Of every pod's network interface, in both directions. With a third of the usual gigabit, what
/// waits in front of a heartbeat counts three times as much.
const RATE: &str = "300mbit";
/// How long the clients write.
const RUNTIME: &str = "--runtime=8";
const VOLUMES: [&str; 4] = ["a", "b", "c", "d"];

/// The pods, each in its namespace; killed when dropped.
struct Cluster {
    pods: Vec<Child>,
    dir: PathBuf,
    network: Network,
}

impl Cluster {
    fn start(network: Network) -> Cluster {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slow_link");
        let _ = fs::remove_dir_all(&dir);
        let mut cluster = Cluster { pods: Vec::new(), dir, network };
        for pod in 1..=PODS {
            let child = cluster.spawn(pod);
            cluster.pods.push(child);
        }
        cluster
    }

    fn pod_dir(&self, pod: usize) -> PathBuf {
        self.dir.join(pod.to_string())
    }

    fn spawn(&self, pod: usize) -> Child {
        let (own, dir) = (address(pod), self.pod_dir(pod));
        let join = match pod {
            1 => "init = true".to_owned(),
            _ => format!("join = [\"{}:7400\"]", address(1)),
        };
        let config = format!(
            "data = {:?}\n{join}\ninsecure = true\n[node]\nname = \"node-{pod}\"\n\
             [api]\nlisten = \"{own}:7400\"\n[peer]\nlisten = \"{own}:7401\"\n\
             [nbd]\nlisten = \"{own}:10809\"\nsocket = {:?}\n\
             [[disk]]\npath = {:?}\nsize = \"2GiB\"\nwal_size = \"512MiB\"\n",
            dir.join("data"),
            self.socket(pod),
            dir.join("disk")
        );
        fs::create_dir_all(dir.join("disk")).unwrap();
        fs::write(dir.join("holdfast.toml"), config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        self.network
            .command(pod, &program())
            .arg("serve")
            .arg("--config")
            .arg(dir.join("holdfast.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start a pod")
    }

    fn socket(&self, pod: usize) -> PathBuf {
        self.pod_dir(pod).join("nbd")
    }

    /// Runs a command of the program, and returns what it printed as JSON.
    fn ask(&self, arguments: &[&str]) -> Option<serde_json::Value> {
        let output = self
            .network
            .command(0, &program())
            .args(arguments)
            .args(["-o", "json", "--endpoint", &format!("{}:7400", address(1))])
            .output()
            .expect("run the program");
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    /// fio against a volume, through pod 1.
    fn fio(&self, volume: &str, arguments: &[&str]) -> Command {
        let uri = format!("nbd+unix:///{volume}?socket={}", self.socket(1).display());
        let mut fio = Command::new("fio");
        fio.args(["--ioengine=nbd", "--time_based", "--norandommap", "--output-format=json"])
            .args([&format!("--uri={uri}"), "--size=400M"])
            .args(arguments)
            .stdout(Stdio::piped());
        fio
    }

    /// The log of each pod.
    fn logs(&self) -> Vec<String> {
        let log = |pod| fs::read_to_string(self.pod_dir(pod).join("log")).unwrap_or_default();
        (1..=PODS).map(log).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for pod in &mut self.pods {
            // It may have ended by itself.
            let _ = pod.kill();
            let _ = pod.wait();
        }
        if std::thread::panicking() {
            for log in self.logs() {
                let lines: Vec<&str> = log.lines().collect();
                lines[lines.len().saturating_sub(30)..].iter().for_each(|line| eprintln!("{line}"));
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What fio measured. It may say something before its JSON.
fn figures(fio: &Output) -> serde_json::Value {
    let said = String::from_utf8_lossy(&fio.stdout);
    assert!(fio.status.success(), "{said} {}", String::from_utf8_lossy(&fio.stderr));
    let json = said.find('{').map(|start| &said[start..]).expect("fio speaks JSON");
    let parsed: serde_json::Value = serde_json::from_str(json).expect("fio speaks JSON");
    parsed["jobs"][0].clone()
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

#[test]
fn a_saturated_network_causes_no_election_and_no_lapse_of_a_lease() {
    let held = |network: Network| network.hold_to(RATE).map(|()| network);
    let network = match Network::create(PODS).and_then(held) {
        Ok(network) => network,
        Err(error) => {
            eprintln!("SKIPPED, NOTHING WAS TESTED: this machine cannot hold a network to a rate");
            eprintln!("({error})");
            return;
        }
    };
    let cluster = Cluster::start(network);
    wait_until("three pods are up", || {
        let pods = cluster.ask(&["pod", "list"]);
        let pods = pods.as_ref().and_then(|pods| pods.as_array());
        pods.is_some_and(|pods| pods.len() == PODS)
    });
    for volume in VOLUMES {
        wait_until("a volume is created", || {
            cluster.ask(&["volume", "create", volume, "--size", "400MiB"]).is_some()
        });
        wait_until("the leader follows its client", || {
            let warm = ["--name=warm", "--rw=randread", "--bs=4k", "--runtime=1"];
            figures(&cluster.fio(volume, &warm).output().expect("run fio"));
            let shards = cluster.ask(&["shard", "list", "--volume", volume]);
            shards.is_some_and(|shards| shards[0]["status"]["leader_pod"] == 1)
        });
    }
    let before: Vec<usize> = cluster.logs().iter().map(String::len).collect();

    let writes = ["--name=w", "--rw=randwrite", "--bs=1M", "--iodepth=32", RUNTIME];
    let writer = |volume: &str| cluster.fio(volume, &writes).spawn().expect("run fio");
    let writers = VOLUMES.map(writer);
    let reads = ["--name=r", "--rw=randread", "--bs=4k", RUNTIME];
    let read = figures(&cluster.fio(VOLUMES[0], &reads).output().expect("run fio"));
    let ends = writers.map(|writer| writer.wait_with_output().expect("wait for fio"));
    let written = ends.map(|end| number(&figures(&end)["write"]["bw_bytes"]) / 1e6);
    println!(
        "writes: {written:.0?} MB/s; reads: {:.2} ms, at most {:.0} ms",
        number(&read["read"]["clat_ns"]["mean"]) / 1e6,
        number(&read["read"]["clat_ns"]["max"]) / 1e6,
    );
    assert!(written.iter().sum::<f64>() > 5.0, "they wrote");

    let logs = cluster.logs();
    let told = logs.iter().zip(before).flat_map(|(log, before)| log[before..].lines());
    let told: Vec<&str> = told.collect();
    let bad = ["\"role\"", "lapsed", "link down", "is closed"];
    let count = |word: &str| told.iter().filter(|line| line.contains(word)).count();
    for word in bad {
        println!("{word}: {}", count(word));
    }
    for word in bad {
        assert_eq!(count(word), 0, "lines with {word}");
    }
}
