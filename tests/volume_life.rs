//! A volume grows while a client writes and the catalog loses its leader. Deleted, it is kept, and
//! comes back with all that was acknowledged.

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use support::nbd::{Client, ENOSPC, NbdError};
use support::tools::noise;
use support::{Cluster, PODS, Setup, program, wait_until};

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What was acknowledged: the seed of each block, by its offset.
type Written = BTreeMap<u64, u64>;

/// A client that overwrites blocks at the start of a volume until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Client, Written)>,
}

impl Writer {
    fn start(mut client: Client, blocks: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut written = Written::new();
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                let offset = number * 7919 % blocks * BLOCK;
                write(&mut client, offset, number, &mut written);
            }
            (client, written)
        });
        Writer { stop, thread }
    }

    fn end(self) -> (Client, Written) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no write fails")
    }
}

fn write(client: &mut Client, offset: u64, seed: u64, written: &mut Written) {
    client.write(offset, &noise(seed, BLOCK as usize)).expect("a write waits, and does not fail");
    written.insert(offset, seed);
}

fn verify(client: &mut Client, written: &Written) {
    for (offset, seed) in written {
        let found = client.read(*offset, BLOCK as usize).unwrap();
        assert!(found == noise(*seed, BLOCK as usize), "what is at {offset} was not written there");
    }
}

fn volume(cluster: &Cluster) -> Value {
    cluster.ask(&["volume", "show", "demo"]).unwrap_or_default()
}

fn usable_bytes(cluster: &Cluster) -> u64 {
    let found = volume(cluster);
    // Numbers of 64 bits may be texts.
    let size = &found["status"]["size_bytes"];
    size.as_u64().or_else(|| size.as_str()?.parse().ok()).unwrap_or(0)
}

/// The pod that leads the catalog.
fn catalog_leader(cluster: &Cluster) -> usize {
    let mut leader = 0;
    wait_until("the catalog has a leader", || {
        let status = cluster.ask(&["status"]).unwrap_or_default();
        let pod = &status["leader_pod"];
        leader = pod.as_u64().or_else(|| pod.as_str()?.parse().ok()).unwrap_or(0) as usize;
        leader > 0
    });
    leader
}

/// Exit code and errors of a command through some pod.
fn run(cluster: &Cluster, pod: usize, arguments: &[&str]) -> (Option<i32>, String) {
    let endpoint = cluster.endpoint(pod);
    let output = Command::new(program())
        .args(arguments)
        .args(["--endpoint", &endpoint])
        .output()
        .expect("run holdfast");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn must(cluster: &Cluster, pod: usize, arguments: &[&str]) {
    let (code, said) = run(cluster, pod, arguments);
    assert_eq!(code, Some(0), "{arguments:?}: {said}");
}

/// A connection through a pod that may hear of the volume a moment later.
fn connect(cluster: &Cluster, pod: usize, size_bytes: u64) -> Client {
    let mut client = None;
    wait_until("the pod serves the volume as it is now", || {
        client = Client::connect(cluster.nbd_address(pod), "demo").ok();
        client.as_ref().is_some_and(|client| client.size_bytes == size_bytes)
    });
    client.expect("just connected")
}

fn other_than(pod: usize) -> usize {
    pod % PODS + 1
}

#[test]
fn a_volume_grows_under_its_client_while_pods_die() {
    let mut cluster = Setup::new("volume_grows").volume("demo", "64MiB").start();
    cluster.wait_healthy();
    let leader = catalog_leader(&cluster);
    let front = other_than(leader);
    let writer = Writer::start(cluster.connect(front, "demo"), 64 * MIB / BLOCK);

    // Within the last shard: at once. A connection that was there before can use it, too.
    let mut before = cluster.connect(front, "demo");
    assert_eq!(before.size_bytes, 64 * MIB);
    assert!(matches!(before.read(GIB, 4096), Err(NbdError::Server(_))));
    must(&cluster, front, &["volume", "resize", "demo", "2GiB"]);
    assert_eq!(usable_bytes(&cluster), 2 * GIB);
    let mut written = Written::new();
    wait_until("a client that was connected can use it", || before.read(GIB, 4096).is_ok());
    assert!(before.read(GIB, 4096).unwrap() == vec![0; 4096], "nobody has written there");
    write(&mut before, 64 * MIB, 1, &mut written);
    write(&mut before, 2 * GIB - BLOCK, 2, &mut written);
    let beyond = before.write(2 * GIB, &[1; 4096]);
    assert!(matches!(beyond, Err(NbdError::Server(ENOSPC))), "{beyond:?}");

    // By several shards, while the leader of the catalog dies.
    let (code, said) = run(&cluster, front, &["volume", "resize", "demo", "1GiB"]);
    assert!(code == Some(2) && said.contains("does not shrink"), "{code:?}: {said}");
    must(&cluster, front, &["volume", "resize", "demo", "17GiB", "--no-wait"]);
    cluster.kill(leader);
    wait_until("the volume has grown", || usable_bytes(&cluster) == 17 * GIB);
    must(&cluster, front, &["volume", "resize", "demo", "17GiB"]);
    // A pod that was killed makes what it missed, by what its disk knows and then by the catalog.
    cluster.wait_serving(leader);
    let mut new = connect(&cluster, leader, 17 * GIB);
    for (number, offset) in
        [4 * GIB - BLOCK, 4 * GIB, 12 * GIB, 17 * GIB - BLOCK].into_iter().enumerate()
    {
        write(&mut new, offset, 100 + number as u64, &mut written);
    }
    let beyond = new.write(17 * GIB, &[1; 4096]);
    assert!(matches!(beyond, Err(NbdError::Server(ENOSPC))), "{beyond:?}");
    // Across the border of two shards.
    let across = noise(7, 8192);
    new.write(8 * GIB - 4096, &across).unwrap();
    let (_, old) = writer.end();
    assert!(old.len() > 100, "it has written meanwhile");
    written.extend(old);
    drop((before, new));

    cluster.kill_everything();
    cluster.start_again();
    let mut client = connect(&cluster, front, 17 * GIB);
    verify(&mut client, &written);
    assert!(client.read(8 * GIB - 4096, 8192).unwrap() == across);
    assert!(client.read(16 * GIB, 4096).unwrap() == vec![0; 4096]);
    cluster.wait_healthy();
    cluster.stop();
}

#[test]
fn a_deleted_volume_comes_back_with_all_that_was_acknowledged() {
    let mut cluster = Setup::new("volume_undeleted").volume("demo", "64MiB").start();
    cluster.wait_healthy();
    let mut client = cluster.connect(2, "demo");
    let mut written = Written::new();
    for number in 0..200 {
        write(&mut client, number * 64 * BLOCK, number, &mut written);
    }
    let mut other = cluster.connect(3, "demo");
    must(&cluster, 1, &["volume", "delete", "demo"]);
    assert!(client.is_closed() && other.is_closed(), "front ends stop at once");
    assert!(Client::connect(cluster.nbd_address(2), "demo").is_err());
    let found = volume(&cluster);
    assert_eq!(found["status"]["phase"], "retained", "{found}");
    assert!(found["status"]["purge_unix_ms"] != 0, "{found}");
    let create = ["volume", "create", "demo", "--size", "64MiB", "--class", "dev"];
    let (code, said) = run(&cluster, 1, &create);
    assert!(code == Some(5) && said.contains("undelete"), "{code:?}: {said}");

    // It is kept while pods die.
    cluster.kill(catalog_leader(&cluster));
    must(&cluster, other_than(catalog_leader(&cluster)), &["volume", "undelete", "demo"]);
    let mut client = connect(&cluster, 2, 64 * MIB);
    verify(&mut client, &written);
    write(&mut client, 0, 1000, &mut written);
    cluster.wait_healthy();

    must(&cluster, 1, &["volume", "delete", "demo", "--retention", "1h"]);
    let before: Vec<_> = (1..=PODS).map(|pod| cluster.pid(pod)).collect();
    (1..=PODS).for_each(|pod| cluster.kill(pod));
    for (pod, before) in (1..=PODS).zip(before) {
        wait_until("the pod is there again", || {
            cluster.pid(pod).is_some_and(|now| Some(now) != before)
        });
        cluster.wait_serving(pod);
    }
    catalog_leader(&cluster);
    assert!(Client::connect(cluster.nbd_address(2), "demo").is_err(), "still nobody uses it");
    must(&cluster, 1, &["volume", "undelete", "demo"]);
    let mut client = connect(&cluster, 2, 64 * MIB);
    verify(&mut client, &written);

    // Its time ends by itself, or on demand.
    must(&cluster, 1, &["volume", "delete", "demo", "--retention", "2s"]);
    must(&cluster, 1, &["wait", "volume/demo", "--for", "deleted"]);
    must(&cluster, 1, &create);
    must(&cluster, 1, &["volume", "delete", "demo"]);
    must(&cluster, 1, &["volume", "delete", "demo", "--purge"]);
    must(&cluster, 1, &["wait", "volume/demo", "--for", "deleted"]);
    let (code, _) = run(&cluster, 1, &["volume", "undelete", "demo"]);
    assert_eq!(code, Some(3));
    cluster.stop();
}
