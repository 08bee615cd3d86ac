//! What the commands say and do, on a cluster of processes.

mod support;

use std::process::Command;

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
    let status: Value =
        serde_json::from_str(&holdfast(cluster, pod, &["status", "-o", "json"])).unwrap();
    status["disks"].as_array().expect("disks are listed").clone()
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
    // Three copies, each on its way through a log to its place.
    wait_until("every replica has the data in its place, and says so", || {
        sum(&cluster, "used_bytes") >= 3 * (4 << 20) && sum(&cluster, "overlay_bytes") == 0
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
