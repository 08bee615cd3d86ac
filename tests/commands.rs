//! Output and effects of the commands, on a cluster of processes.

mod support;

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use support::{Cluster, PODS, Setup, program, wait_until};

/// Runs a command against a pod and returns what it printed; panics when it fails.
fn holdfast(cluster: &Cluster, pod: usize, arguments: &[&str]) -> String {
    let output = Command::new(program())
        .args(arguments)
        .args(["--endpoint", &cluster.endpoint(pod)])
        .output()
        .expect("run holdfast");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn disks(cluster: &Cluster, pod: usize) -> Vec<Value> {
    let disks: Value =
        serde_json::from_str(&holdfast(cluster, pod, &["disk", "list", "-o", "json"])).unwrap();
    let disks = disks.as_array().expect("disks are listed");
    disks.iter().map(|disk| disk["status"].clone()).collect()
}

/// The sum of a number over all disks.
fn sum(cluster: &Cluster, key: &str) -> u64 {
    disks(cluster, 1).iter().map(|disk| disk[key].as_u64().expect("a number")).sum()
}

#[test]
fn status_shows_what_is_not_written_back_and_where_reads_come_from() {
    let cluster = Setup::new("commands_status").volume("demo", "64MiB").start();
    let mut client = cluster.connect(1, "demo");
    let block = [0x5a; 1 << 20];
    for at in 0..4 {
        client.write(at << 20, &block).unwrap();
    }
    // Three copies, each first in a log and then in its slots.
    wait_until("every replica has the data in its place, and says so", || {
        sum(&cluster, "used_bytes") >= 3 * (4 << 20) && sum(&cluster, "dirty_bytes") == 0
    });
    let read_before = sum(&cluster, "read_bytes");
    for at in 0..4 {
        assert_eq!(client.read(at << 20, 1 << 20).unwrap(), block);
    }
    wait_until("the reads are counted, on the leader only", || {
        sum(&cluster, "read_bytes") - read_before >= 4 << 20
    });
    let disks = disks(&cluster, PODS);
    assert_eq!(disks.len(), PODS);
    for disk in &disks {
        let [log, used] = ["log_bytes", "log_used_bytes"].map(|key| disk[key].as_u64().unwrap());
        assert!(used > 0 && used < log, "{used} of a log of {log} bytes are in use");
    }
}

/// Runs a command whose output nobody reads; returns its exit code and what it says of errors.
fn unread(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(program())
        .args(arguments)
        .args(["--endpoint", &cluster.endpoint(1)])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("run holdfast");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn commands_end_quietly_when_nobody_reads_what_they_print() {
    let cluster = Setup::new("commands_unread").volume("demo", "64MiB").start();
    let commands = [
        &["status"][..],
        &["volume", "list"],
        &["volume", "show", "demo"],
        &["volume", "create", "more", "--size", "64MiB"],
        &["volume", "delete", "more", "--retention", "0"],
        &["pod", "list"],
        &["disk", "list"],
        &["shard", "list"],
        &["class", "list"],
        &["class", "capacity"],
        &["explain", "volume", "demo"],
        &["wait", "volume/demo", "--for", "ready"],
        &["completion", "bash"],
        &["bench", "demo", "--seconds", "1"],
        &["sim", "--seconds", "1"],
    ];
    for output in ["table", "wide", "json", "yaml"] {
        for command in commands {
            let command = [command, &["--output", output]].concat();
            assert_eq!(unread(&cluster, &command), (Some(0), String::new()), "{command:?}");
        }
    }
    // What was asked for is done all the same, and a failure is one.
    let (code, said) = unread(&cluster, &["volume", "show", "more"]);
    assert!(code == Some(3) && said.contains("more"), "{code:?}: {said}");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(program())
        .args(["status", "--endpoint", &cluster.endpoint(1)])
        .stdout(full)
        .output()
        .expect("run holdfast");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("standard output"), "{said}");
}

#[test]
fn a_new_volume_can_be_used_at_once_and_is_led_by_all_pods() {
    let cluster = Setup::new("commands_create").volume("demo", "64MiB").start();
    let create = ["volume", "create", "wide", "--size", "48GiB", "--class", "dev", "--json"];
    let volume: Value = serde_json::from_str(&holdfast(&cluster, 2, &create)).unwrap();
    assert_eq!(volume["status"]["phase"], "ready", "{volume}");
    let list = ["shard", "list", "--volume", "wide", "--json"];
    let shards: Value = serde_json::from_str(&holdfast(&cluster, 1, &list)).unwrap();
    let leaders: Vec<u64> = shards
        .as_array()
        .expect("shards are listed")
        .iter()
        .map(|shard| shard["status"]["leader_pod"].as_u64().expect("it is led"))
        .collect();
    assert_eq!(leaders.len(), 12);
    for pod in 1..=PODS as u64 {
        assert!(leaders.contains(&pod), "pod {pod} leads nothing of {leaders:?}");
    }
    // A command that does not wait says that the volume is new, and not that it needs attention.
    let create = ["volume", "create", "later", "--size", "200GiB", "--class", "dev"];
    let create = [&create[..], &["--no-wait", "--json"]].concat();
    let volume: Value = serde_json::from_str(&holdfast(&cluster, 3, &create)).unwrap();
    assert_eq!(volume["status"]["phase"], "creating", "{volume}");
    wait_until("it can be used", || {
        let show = ["volume", "show", "later", "--json"];
        let volume: Value = serde_json::from_str(&holdfast(&cluster, 1, &show)).unwrap();
        let status: Value =
            serde_json::from_str(&holdfast(&cluster, 1, &["status", "--json"])).unwrap();
        assert!(!status["problems"].to_string().contains("later"), "{status}");
        volume["status"]["phase"] == "ready"
    });
}

/// Runs a command that fails; returns its exit code and what it says.
fn refused(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program())
        .args(arguments)
        .args(["--endpoint", &cluster.endpoint(2)])
        .output()
        .expect("run holdfast");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_closed_volume_is_published_to_one_node_at_a_time() {
    let cluster = Setup::new("commands_publish").volume("demo", "64MiB").start();
    let create = ["volume", "create", "own", "--size", "64MiB", "--closed"];
    holdfast(&cluster, 1, &create);
    let publish = |node: &'static str| ["attachment", "publish", "own", node];
    let published = holdfast(&cluster, 2, &publish("pod-1"));
    assert!(published.contains("Admitted"), "{published}");
    // The same again finds it; another node is told who has the volume.
    holdfast(&cluster, 3, &publish("pod-1"));
    let (code, said) = refused(&cluster, &publish("pod-2"));
    assert!(code == Some(5) && said.contains("pod-1"), "{code:?}: {said}");
    let (code, said) = refused(&cluster, &["attachment", "publish", "demo", "pod-1"]);
    assert!(code == Some(5) && said.contains("[VOLUME_OPEN]"), "{code:?}: {said}");
    let (code, said) = refused(&cluster, &["volume", "delete", "own"]);
    assert!(code == Some(5) && said.contains("[VOLUME_IN_USE]"), "{code:?}: {said}");
    let list = holdfast(&cluster, 1, &["attachment", "list", "--node", "pod-1"]);
    assert!(list.contains("own") && list.contains("ready"), "{list}");
    holdfast(&cluster, 1, &["attachment", "unpublish", "own", "pod-1"]);
    let none = holdfast(&cluster, 1, &["attachment", "list", "--volume", "own"]);
    assert!(none.contains("no attachments"), "{none}");
    holdfast(&cluster, 2, &publish("pod-2"));

    // A node that is lost loses its volumes, and gets them back when it is cleared.
    let node: Value =
        serde_json::from_str(&holdfast(&cluster, 1, &["node", "show", "pod-2", "--json"])).unwrap();
    let boot_id = node["status"]["boot_id"].as_str().expect("it has started").to_owned();
    let (code, said) = refused(&cluster, &["node", "lost", "pod-2", "--boot-id", "another"]);
    assert!(code == Some(5) && said.contains("[NODE_REBOOTED]"), "{code:?}: {said}");
    holdfast(&cluster, 1, &["node", "lost", "pod-2", "--boot-id", &boot_id]);
    let (code, said) = refused(&cluster, &publish("pod-2"));
    assert!(code == Some(5) && said.contains("[NODE_LOST]"), "{code:?}: {said}");
    holdfast(&cluster, 3, &publish("pod-3"));
    holdfast(&cluster, 1, &["node", "clear-lost", "pod-2"]);
    holdfast(&cluster, 1, &["volume", "delete", "own", "--force", "--retention", "0"]);
}

#[test]
fn objects_can_be_waited_for_watched_and_explained() {
    let cluster = Setup::new("commands_wait").volume("demo", "64MiB").start();
    let name = "Db_01.main";
    let create = ["volume", "create", name, "--size", "64MiB", "--class", "replicated"];
    holdfast(&cluster, 1, &create);
    // The same again does nothing, and something else under the name is refused.
    holdfast(&cluster, 2, &create);
    let (code, said) = refused(&cluster, &["volume", "create", name, "--size", "128MiB"]);
    assert!(code == Some(5) && said.contains("[NAME_TAKEN]"), "{code:?}: {said}");
    let unknown = ["volume", "create", "x", "--size", "1GiB", "--class", "y"];
    let (code, said) = refused(&cluster, &unknown);
    assert!(code == Some(3) && said.contains("replicated-zones"), "{code:?}: {said}");
    assert_eq!(cluster.connect(3, name).size_bytes, 64 << 20);

    // Labels choose what is listed; a class of the user's own is checked and promised within.
    holdfast(&cluster, 3, &["volume", "label", name, "tier=gold", "old=1"]);
    holdfast(&cluster, 3, &["volume", "label", name, "old-"]);
    let gold = holdfast(&cluster, 1, &["volume", "list", "-l", "tier=gold,!old", "-o", "wide"]);
    assert!(gold.contains(name) && !gold.contains("demo"), "{gold}");
    let class = ["class", "create", "tight", "--overcommit", "10", "--failure-domain", "node"];
    holdfast(&cluster, 1, &class);
    let large = ["volume", "create", "large", "--size", "512TiB", "--class", "tight"];
    let (code, said) = refused(&cluster, &large);
    assert!(code == Some(5) && said.contains("[NO_CAPACITY]"), "{code:?}: {said}");
    let (code, said) = refused(&cluster, &["class", "delete", "replicated"]);
    assert!(code == Some(5) && said.contains(name), "{code:?}: {said}");
    holdfast(&cluster, 1, &["class", "delete", "tight"]);

    let waited = holdfast(&cluster, 2, &["wait", &format!("volume/{name}"), "--for", "ready"]);
    assert!(waited.contains("AllReplicasGood"), "{waited}");
    let (code, said) = refused(&cluster, &["wait", "volume/none", "--for", "ready"]);
    assert!(code == Some(3) && said.contains("none"), "{code:?}: {said}");
    let never = ["wait", "volume/demo", "--for", "paused", "--timeout", "1"];
    let (code, said) = refused(&cluster, &never);
    assert!(code == Some(4) && said.contains("it is ready"), "{code:?}: {said}");
    let explained = holdfast(&cluster, 1, &["explain", "volume", "demo"]);
    assert!(explained.contains("volume demo is ready."), "{explained}");

    cluster.freeze(3);
    holdfast(&cluster, 1, &["wait", "pod/3", "--for", "condition=Reachable=false"]);
    holdfast(&cluster, 1, &["wait", "volume/demo", "--for", "degraded"]);
    let explained = holdfast(&cluster, 1, &["explain", "volume", "demo"]);
    assert!(explained.contains("on pod 3 is unreported"), "{explained}");
    let status = holdfast(&cluster, 1, &["status"]);
    assert!(status.contains("attention: pod 3 is unreachable"), "{status}");
    // What is over before it is recorded, within half a second, has no event.
    wait_until("the conditions are recorded", || {
        let told = |object, reason| reasons(&cluster, object).iter().any(|it| it == reason);
        told("pod/3", "Silent") && told("volume/demo", "ReplicasMissing")
    });
    cluster.thaw(3);
    holdfast(&cluster, 1, &["wait", "volume/demo", "--for", "condition=redundant"]);
    holdfast(&cluster, 1, &["volume", "delete", name, "--retention", "0"]);
    holdfast(&cluster, 1, &["wait", &format!("volume/{name}"), "--for", "deleted"]);
    history_is_told(&cluster, name);
}

/// The reasons of an object's events, the oldest first.
fn reasons(cluster: &Cluster, object: &str) -> Vec<String> {
    let events = holdfast(cluster, 2, &["event", "list", "--for", object, "-o", "json"]);
    let events: Vec<Value> = serde_json::from_str(&events).unwrap();
    let reasons = events.iter().map(|event| event["reason"].as_str().unwrap().to_owned());
    reasons.collect()
}

/// What has happened to `demo`, to pod 3 and to a volume that is gone.
fn history_is_told(cluster: &Cluster, gone: &str) {
    let reasons = |object: &str| reasons(cluster, object);
    let life = ["VolumeCreated", "VolumeUsable", "DestructionBegun", "Destroyed"];
    let told = reasons(&format!("volume/{gone}"));
    assert!(life.iter().all(|reason| told.iter().any(|it| it == reason)), "{told:?}");
    assert_eq!(told.last().map(String::as_str), Some("Destroyed"), "{told:?}");
    // Conditions are recorded soon after they are seen.
    let is_told = |object: &str, bad: &str, well: &str| {
        let told = reasons(object);
        let at = |reason: &str| told.iter().rposition(|it| it == reason);
        at(bad).is_some() && at(well) > at(bad)
    };
    wait_until("the conditions are told", || {
        is_told("pod/3", "Silent", "Reporting")
            && is_told("volume/demo", "ReplicasMissing", "AllReplicasGood")
    });
    let explained = holdfast(cluster, 1, &["explain", "volume", "demo"]);
    assert!(explained.contains("AllReplicasGood"), "{explained}");
    assert!(explained.contains("ago: ReplicasMissing: "), "{explained}");
}

/// `holdfast bench` as JSON; panics when it fails.
fn bench(cluster: &Cluster, arguments: &[&str]) -> Value {
    let whole = [&["bench", "demo", "--seconds", "1", "--json"], arguments].concat();
    serde_json::from_str(&holdfast(cluster, 2, &whole)).unwrap()
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {report}"))
}

#[test]
fn bench_measures_every_pattern_over_tcp_and_unix_sockets() {
    let cluster =
        Setup::new("commands_bench").volume("demo", "64MiB").set("nbd.socket=nbd.sock").start();
    for pattern in ["write", "randwrite", "read", "randread", "randrw"] {
        let report = bench(
            &cluster,
            &["--pattern", pattern, "--destroy-data", "--connections", "2", "--depth", "5"],
        );
        for (side, expected) in [
            ("read", pattern.contains("read") || pattern == "randrw"),
            ("write", pattern.contains("write") || pattern == "randrw"),
        ] {
            assert_eq!(!report[side].is_null(), expected, "{pattern}: {report}");
            if expected {
                let at = |key: &str| number(&report, &format!("/{side}/{key}"));
                assert!(at("operations") > 0.0 && at("iops") > 0.0, "{report}");
                assert!(at("p50_us") <= at("p99_us") && at("p99_us") <= at("max_us"), "{report}");
            }
        }
        assert_eq!(number(&report, "/errors") + number(&report, "/unanswered"), 0.0, "{report}");
    }
    let socket = cluster.pod_dir(3).join("nbd.sock");
    let report = bench(
        &cluster,
        &["--pattern", "write", "--block-size", "1MiB", "--destroy-data", "--depth", "4"],
    );
    assert!(number(&report, "/write/mb_s") > number(&report, "/write/iops"), "{report}");
    let report = bench(&cluster, &["--block-size", "64KiB", "--nbd", socket.to_str().unwrap()]);
    assert!(number(&report, "/read/operations") > 0.0, "{report}");
    let written = cluster.connect(1, "demo").read(0, 4096).unwrap();
    assert!(written.iter().any(|byte| *byte != 0), "it has written what it said");
}

#[test]
fn bench_writes_to_nothing_without_permission_and_names_what_is_missing() {
    let run = |arguments: &[&str]| {
        let output = Command::new(program())
            .args(["bench", "demo", "--endpoint", "127.0.0.1:1"])
            .args(arguments)
            .output()
            .expect("run holdfast");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["--pattern", "randwrite"]);
    assert!(code == Some(2) && said.contains("--destroy-data"), "{code:?}: {said}");
    let (code, said) = run(&["--pattern", "randread"]);
    assert!(code == Some(4) && said.contains("127.0.0.1:1"), "{code:?}: {said}");
    let (code, said) = run(&["--nbd", "/nowhere/at/all"]);
    assert!(code == Some(1) && said.contains("/nowhere/at/all"), "{code:?}: {said}");
}

/// A program that a test started; killed when the test fails before it has ended.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bench_goes_on_after_its_pod_was_killed_and_ends_with_ctrl_c() {
    let cluster = Setup::new("commands_bench_kill").volume("demo", "64MiB").start();
    bench(&cluster, &["--pattern", "write", "--destroy-data", "--block-size", "1MiB"]);
    let nbd = cluster.nbd_address(1).to_string();
    let child = Command::new(program())
        .args(["bench", "demo", "--seconds", "100000", "--json", "--nbd", &nbd])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("run holdfast bench");
    let mut started = Started(child);
    let before = sum(&cluster, "read_bytes");
    wait_until("it reads", || sum(&cluster, "read_bytes") > before);
    cluster.kill(1);
    cluster.wait_serving(1);
    cluster.wait_healthy();
    let before = sum(&cluster, "read_bytes");
    wait_until("it reads again", || sum(&cluster, "read_bytes") > before);
    kill_process(Pid::from_child(&started.0), Signal::INT).unwrap();
    let mut said = String::new();
    let mut stdout = started.0.stdout.take().unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut said).unwrap();
    assert!(started.0.wait().unwrap().success());
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["interrupted"], true);
    assert!(number(&report, "/reconnects") >= 1.0, "{report}");
    assert!(number(&report, "/read/operations") > 0.0, "{report}");
}
