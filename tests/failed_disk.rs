//! A pod has two disks, one of them damaged. It starts with the other one, and the cluster reports
//! the failed disk and the reason.

mod support;

use std::fs;

use serde_json::Value;

use support::{Cluster, Setup, wait_until};

/// The disk `name` of pod 2, as the cluster shows it.
fn disk(cluster: &Cluster, name: &str) -> Option<Value> {
    let path = cluster.pod_dir(2).join(name).to_str()?.to_owned();
    let status = cluster.ask(&["status"])?;
    status["disks"].as_array()?.iter().find(|disk| disk["path"] == *path).cloned()
}

fn wait_for_state(cluster: &Cluster, name: &str, state: &str) -> Value {
    let mut found = Value::Null;
    wait_until("a disk is in the state it should be in", || {
        found = disk(cluster, name).unwrap_or_default();
        found["state"].to_string().to_lowercase().contains(state)
    });
    found
}

#[test]
fn a_pod_starts_without_a_disk_that_is_damaged() {
    let mut cluster = Setup::new("failed_disk").volume("demo", "64MiB").start();
    cluster.connect(1, "demo").write(0, b"something").unwrap();
    cluster.stop();
    let config = cluster.pod_dir(2).join("holdfast.toml");
    let before = fs::read_to_string(&config).unwrap();
    let second = cluster.pod_dir(2).join("disk-2");
    let more = format!("[[disk]]\npath = {second:?}\nsize = \"1GiB\"\nwal_size = \"64MiB\"\n");
    fs::write(&config, format!("{before}\n{more}")).unwrap();
    cluster.start_again();
    wait_for_state(&cluster, "disk-2", "up");
    cluster.stop();

    let superblock = cluster.pod_dir(2).join("disk-1/superblock");
    let intact = fs::read(&superblock).unwrap();
    fs::write(&superblock, vec![0; intact.len()]).unwrap();
    cluster.start_again();
    let failed = wait_for_state(&cluster, "disk-1", "failed");
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.contains("disk-1") && reason.contains("superblock"), "{reason}");
    wait_for_state(&cluster, "disk-2", "up");
    assert_eq!(cluster.connect(2, "demo").read(0, 9).unwrap(), b"something");
    // Needs all three pods: one replica must be on the remaining disk of this pod.
    cluster.ask(&["volume", "create", "more", "--size", "64MiB"]).expect("a volume can be created");
    wait_until("a volume on the disk that is left can be used", || {
        cluster.leader("more").is_some()
    });
    let mut client = cluster.connect(2, "more");
    client.write(0, b"more").unwrap();
    assert_eq!(client.read(0, 4).unwrap(), b"more");
    assert_eq!(wait_for_state(&cluster, "disk-2", "up")["replicas"], 1);

    cluster.stop();
    fs::write(&superblock, intact).unwrap();
    cluster.start_again();
    wait_for_state(&cluster, "disk-1", "up");
    cluster.wait_healthy();
}
