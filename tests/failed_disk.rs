//! A pod has two disks. One of them is damaged: the pod starts with the other one, and the cluster
//! reports the failed disk and the reason. Then one of them hangs: the other one goes on.

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;

use support::hanging::HangingDisk;
use support::tools::noise;
use support::{Cluster, Setup, wait_until};

const PIECE: usize = 16 << 10;
/// More than a pod has threads for the files of a disk.
const READERS: u64 = 40;

/// The disk in `path`, as the cluster shows it.
fn disk(cluster: &Cluster, path: &Path) -> Option<Value> {
    let path = path.to_str()?;
    let disks = cluster.ask(&["disk", "list"])?;
    let disks = disks.as_array()?.iter().map(|disk| disk["status"].clone());
    disks.into_iter().find(|disk| disk["path"] == *path)
}

fn wait_for_state(cluster: &Cluster, path: &Path, state: &str) -> Value {
    let mut found = Value::Null;
    wait_until("a disk is in the state it should be in", || {
        found = disk(cluster, path).unwrap_or_default();
        found["phase"] == state
    });
    found
}

#[test]
fn a_pod_goes_on_without_a_disk_that_is_damaged_or_hangs() {
    let hanging = HangingDisk::new("failed_disk_disk");
    let first = hanging.path();
    // As in most containers. The contract of the drivers holds the same for io_uring.
    let setup = Setup::new("failed_disk").set("io=epoll").disk_path(2, first.clone());
    let mut cluster = setup.volume("demo", "64MiB").start();
    let mut client = cluster.connect(1, "demo");
    for number in 0..READERS {
        client.write(number * PIECE as u64, &noise(number, PIECE)).unwrap();
    }
    cluster.stop();
    let config = cluster.pod_dir(2).join("holdfast.toml");
    let before = fs::read_to_string(&config).unwrap();
    let second = cluster.pod_dir(2).join("disk-2");
    fs::create_dir_all(&second).unwrap();
    let more = format!("[[disk]]\npath = {second:?}\nsize = \"256MiB\"\nwal_size = \"64MiB\"\n");
    fs::write(&config, format!("{before}\n{more}")).unwrap();
    cluster.start_again();
    wait_for_state(&cluster, &second, "up");
    cluster.stop();

    let superblock = first.join("superblock");
    let intact = fs::read(&superblock).unwrap();
    fs::write(&superblock, vec![0; intact.len()]).unwrap();
    cluster.start_again();
    let failed = wait_for_state(&cluster, &first, "failed");
    let reason = failed["conditions"][0]["message"].as_str().unwrap();
    assert!(reason.contains("disk-1") && reason.contains("superblock"), "{reason}");
    wait_for_state(&cluster, &second, "up");
    assert!(cluster.connect(2, "demo").read(0, PIECE).unwrap() == noise(0, PIECE));
    // Needs all three pods: one replica must be on the remaining disk of this pod.
    cluster.ask(&["volume", "create", "more", "--size", "64MiB"]).expect("a volume can be created");
    wait_until("a volume on the disk that is left can be used", || {
        cluster.leader("more").is_some()
    });
    let mut client = cluster.connect(2, "more");
    client.write(0, b"more").unwrap();
    assert_eq!(client.read(0, 4).unwrap(), b"more");
    assert_eq!(wait_for_state(&cluster, &second, "up")["replicas"], 1);

    cluster.stop();
    fs::write(&superblock, intact).unwrap();
    cluster.start_again();
    wait_for_state(&cluster, &first, "up");
    cluster.wait_healthy();
    one_disk_hangs(&cluster, &hanging);
    cluster.wait_healthy();
    cluster.stop();
}

/// `demo` is on the disk of pod 2 that hangs, and `more` on the other one. Without pod 3, every
/// write of `more` needs that one.
fn one_disk_hangs(cluster: &Cluster, hanging: &HangingDisk) {
    cluster.lead_from(1, "more");
    cluster.lead_from(2, "demo");
    let mut client = cluster.connect(1, "more");
    let readers: Vec<_> = (0..READERS).map(|_| cluster.connect(2, "demo")).collect();
    let hang = hanging.hang();
    // They fill what the two disks might share.
    let readers: Vec<_> = readers
        .into_iter()
        .zip(0..)
        .map(|(mut reader, number)| {
            std::thread::spawn(move || reader.read(number * PIECE as u64, PIECE))
        })
        .collect();
    cluster.freeze(3);
    for number in 0..300 {
        client.write(number * PIECE as u64, &noise(number, PIECE)).unwrap();
    }
    for number in 0..300 {
        let read = client.read(number * PIECE as u64, PIECE).unwrap();
        assert!(read == noise(number, PIECE), "piece {number}");
    }
    drop(hang);
    cluster.thaw(3);
    for (reader, number) in readers.into_iter().zip(0..) {
        assert!(reader.join().unwrap().unwrap() == noise(number, PIECE), "piece {number}");
    }
}
