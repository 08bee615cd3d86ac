//! A client of `holdfast relay` does not notice that pods go: its connection stays, no request
//! fails, and what was acknowledged is there, also when all pods are away for a while.

mod support;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use holdfast::types::mix64;
use support::nbd::{Client, Negotiation};
use support::tools::{noise, run, text};
use support::{Cluster, PODS, Setup, program, wait_until};

const PIECE: usize = 16 << 10;
const PIECES: u64 = 512;

/// A running relay; ends with the test.
struct Relay {
    child: Child,
    socket: PathBuf,
}

impl Relay {
    fn start(cluster: &Cluster, export: &str, more: &[&str]) -> Relay {
        let socket = cluster.dir.join("relay.sock");
        let pods = (1..=PODS).map(|pod| cluster.nbd_address(pod).to_string());
        let pods: Vec<String> = pods.flat_map(|pod| ["--pod".to_owned(), pod]).collect();
        let child = Command::new(program())
            .args(["relay", export, "--listen", text(&socket)])
            .args(pods)
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .expect("run holdfast relay");
        let relay = Relay { child, socket };
        wait_until("the relay listens", || UnixStream::connect(&relay.socket).is_ok());
        relay
    }

    fn connect(&self, export: &str) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        Negotiation::over(stream, 3).unwrap().go(export).unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes pieces and reads others back, over one connection, until it has done `rounds`.
fn work(client: &mut Client<UnixStream>, rounds: std::ops::Range<u64>) {
    for number in rounds {
        let piece = mix64(number) % PIECES;
        client.write(piece * PIECE as u64, &noise(piece ^ number, PIECE)).expect("no error");
        let read = client.read(piece * PIECE as u64, PIECE).expect("no error");
        assert!(read == noise(piece ^ number, PIECE), "piece {piece} is not what was written");
    }
}

#[test]
fn a_client_notices_no_pod_that_goes() {
    let cluster = Setup::new("relay").volume("demo", "64MiB").start();
    let attachment = cluster.publish("db");
    let relay = Relay::start(&cluster, &attachment, &[]);
    let mut client = relay.connect(&attachment);
    work(&mut client, 0..50);
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            work(&mut client, 50..2000);
            client
        });
        for pod in [1, 2, 1, 3] {
            cluster.kill(pod);
            cluster.wait_serving(pod);
            cluster.wait_healthy();
        }
        // A pod that hangs is left.
        cluster.freeze(1);
        let mut client = worker.join().expect("the client saw nothing of it");
        work(&mut client, 2000..2100);
        cluster.thaw(1);
        // No pod at all: requests wait.
        for pod in 1..=PODS {
            cluster.freeze(pod);
        }
        let waits = scope.spawn(move || {
            work(&mut client, 2100..2110);
            client
        });
        thread::sleep(Duration::from_secs(8));
        assert!(!waits.is_finished());
        for pod in 1..=PODS {
            cluster.thaw(pod);
        }
        waits.join().expect("the client waited");
    });
    drop(relay);
    let mut direct = cluster.connect(2, &attachment);
    work_is_there(&mut direct);
}

/// The last write to each piece is what a pod has.
fn work_is_there(direct: &mut Client<std::net::TcpStream>) {
    let mut last = std::collections::BTreeMap::new();
    for number in 0..2110 {
        let piece = mix64(number) % PIECES;
        last.insert(piece, piece ^ number);
    }
    for (piece, seed) in last {
        let read = direct.read(piece * PIECE as u64, PIECE).unwrap();
        assert!(read == noise(seed, PIECE), "piece {piece}");
    }
}

#[test]
fn real_clients_use_it_over_tls_to_pods() {
    let cluster = Setup::new("relay_tls").volume("demo", "64MiB").set("nbd.plaintext=false");
    let cluster = cluster.start();
    let admin = cluster.dir.join("data").join("admin");
    let open = Command::new(program())
        .args(["relay", "demo", "--listen", text(&cluster.dir.join("open.sock"))])
        .args(["--pod", "127.0.0.1:1", "--pod", "127.0.0.1:2"])
        .output()
        .expect("run holdfast relay");
    let said = String::from_utf8_lossy(&open.stderr).into_owned();
    assert!(!open.status.success() && said.contains("one pod only"), "{said}");
    let attachment = cluster.publish("db");
    let relay = Relay::start(&cluster, &attachment, &["--credentials", text(&admin)]);
    let uri = format!("nbd+unix:///{attachment}?socket={}", text(&relay.socket));
    let (image, copy) = (cluster.dir.join("image"), cluster.dir.join("copy"));
    support::tools::write_image(&image, 9, 64 << 20);
    run("nbdcopy", &[text(&image), &uri]);
    run("nbdcopy", &[&uri, text(&copy)]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap());
}
