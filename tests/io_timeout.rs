//! A volume whose class has an `io_timeout`: without a majority requests fail instead of waiting,
//! and when the majority is back, requests succeed again. Nothing that was acknowledged is lost.

mod support;

use std::thread;
use std::time::Duration;

use serde_json::Value;

use support::nbd::{Client, NbdError};
use support::tools::noise;
use support::{Cluster, PODS, Setup, wait_until};

const BLOCK: u64 = 4096;
/// EIO in the NBD protocol.
const EIO: u32 = 5;
/// Longer than the timeout: then the request still waits for ever.
const ANSWERS_WITHIN: Duration = Duration::from_secs(6);

fn seed_of(block: u64) -> Vec<u8> {
    noise(block, BLOCK as usize)
}

/// A connection through a pod that may hear of the volume a moment later.
fn connect(cluster: &Cluster, pod: usize, export: &str) -> Client {
    let mut client = None;
    wait_until("the pod serves the volume", || {
        client = Client::connect(cluster.nbd_address(pod), export).ok();
        client.is_some()
    });
    client.expect("just connected")
}

/// Runs a command until it succeeds: pods may still be joining.
fn run(cluster: &Cluster, command: &[&str]) -> Value {
    let mut printed = None;
    wait_until("a command succeeds", || {
        printed = cluster.ask(command);
        printed.is_some()
    });
    printed.expect("just printed")
}

fn failed(result: &Result<(), NbdError>) -> bool {
    matches!(result, Err(NbdError::Server(EIO)))
}

/// Writes until a write succeeds.
fn goes_on(client: &mut Client, block: u64) {
    wait_until("I/O works again", || client.write(block * BLOCK, &seed_of(block)).is_ok());
}

/// The pods lose their power, and start again.
#[test]
fn io_fails_without_a_majority_and_works_again_with_one() {
    let cluster = Setup::new("io_timeout").restart_after("20s").start();
    for command in [
        &["class", "create", "quick", "--io-timeout", "2s"][..],
        &["volume", "create", "demo", "--size", "64MiB", "--class", "quick"],
    ] {
        run(&cluster, command);
    }
    let shown = cluster.ask(&["volume", "show", "demo"]).expect("it was made");
    let timeout = &shown["status"]["io_timeout_ms"];
    assert!(*timeout == 2000 || *timeout == "2000", "{shown}");
    let mut client = connect(&cluster, 1, "demo");
    for block in 0..100 {
        client.write(block * BLOCK, &seed_of(block)).unwrap();
    }
    let mut second = connect(&cluster, 1, "demo");
    cluster.kill(2);
    cluster.kill(3);
    // Until its lease is over, the leader reads by itself.
    assert!(failed(&client.write(503 * BLOCK, &seed_of(7))));
    // Two requests wait side by side; one of them is a write of what the other one reads.
    let reader = thread::spawn(move || {
        let read = second.read(500 * BLOCK, BLOCK as usize);
        assert!(matches!(read, Err(NbdError::Server(EIO))), "{read:?}");
        second
    });
    let written = client.write(500 * BLOCK, &seed_of(7));
    assert!(failed(&written), "{written:?}");
    // It fails if the write was handed over to a leader: nobody knows what became of it.
    let flushed = client.flush();
    assert!(flushed.is_ok() || failed(&flushed), "{flushed:?}");
    let mut second = reader.join().expect("the read fails");
    // Now others fail, too.
    assert!(failed(&client.write(501 * BLOCK, &seed_of(7))));
    goes_on(&mut client, 100);
    client.flush().unwrap();
    // What timed out has taken place, or never will. What is written over it stays.
    let found = second.read(500 * BLOCK, BLOCK as usize).unwrap();
    assert!(found == seed_of(7) || found.iter().all(|byte| *byte == 0));
    client.write(500 * BLOCK, &seed_of(500)).unwrap();
    for pod in 1..=PODS {
        cluster.wait_serving(pod);
    }
    cluster.wait_healthy();
    assert!(second.read(500 * BLOCK, BLOCK as usize).unwrap() == seed_of(500));
    for block in 0..=100 {
        let found = second.read(block * BLOCK, BLOCK as usize).unwrap();
        assert!(found == seed_of(block), "block {block}");
    }
}

/// An attachment whose I/O waits for ever gets a timeout later: this is how a machine is shut down.
#[test]
fn an_attachment_gets_a_timeout_later() {
    let cluster = Setup::new("io_timeout_later").start();
    let node = run(&cluster, &["node", "list"]);
    let node = node[0]["meta"]["name"].as_str().expect("it has a name").to_owned();
    run(&cluster, &["volume", "create", "demo", "--size", "64MiB", "--closed"]);
    let publish = ["attachment", "publish", "demo", &node];
    let attachment = run(&cluster, &publish);
    let uid = attachment["meta"]["uid"].as_str().expect("it has a uid").to_owned();
    connect(&cluster, 1, &uid).write(0, &seed_of(1)).unwrap();
    run(&cluster, &[&publish[..], &["--io-timeout", "2s"]].concat());
    let shown = cluster.ask(&["attachment", "show", &uid]).expect("it is there");
    let timeout = &shown["spec"]["io_timeout_ms"];
    assert!(*timeout == 2000 || *timeout == "2000", "{shown}");
    // The pod hears of it a moment later.
    wait_until("a request fails without a majority", || {
        let mut client = connect(&cluster, 1, &uid);
        client.stream.set_read_timeout(Some(ANSWERS_WITHIN)).unwrap();
        cluster.freeze(2);
        cluster.freeze(3);
        let written = client.write(0, &seed_of(3));
        cluster.thaw(2);
        cluster.thaw(3);
        failed(&written)
    });
    let mut client = connect(&cluster, 1, &uid);
    goes_on(&mut client, 0);
    assert!(client.read(0, BLOCK as usize).unwrap() == seed_of(0));
}
