//! A pod without disks serves clients: their requests go to the pods that have the shards.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use support::metrics::{get, scrape};
use support::nbd::{Client, Negotiation};
use support::ports::{API_PORT, HTTP_PORT, NBD_PORT, PEER_PORT, port_of};
use support::tools::noise;
use support::{Cluster, PODS, Setup, program, wait_until};

const DISKLESS: usize = PODS + 1;
const PIECE: usize = 64 << 10;

/// A process of the pod; killed when dropped.
struct Pod {
    child: Child,
}

impl Pod {
    fn start(cluster: &Cluster, config: &PathBuf) -> Pod {
        let log = cluster.dir.join("diskless.log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program());
        command.arg("serve").arg("--config").arg(config).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let pod = Pod { child: child.expect("run holdfast serve") };
        wait_until("the pod without disks is ready", || {
            get(DISKLESS, cluster.offset, "/readyz").is_ok_and(|(status, _)| status == 200)
        });
        pod
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("see diskless.log");
        }
    }
}

fn config(cluster: &Cluster) -> PathBuf {
    let directory = cluster.dir.join("diskless");
    fs::create_dir_all(&directory).unwrap();
    let at = |base: u16| format!("127.0.0.1:{}", port_of(base, DISKLESS, cluster.offset));
    let text = format!(
        "data = {:?}\njoin = [{:?}, {:?}]\n[api]\nlisten = {:?}\n[peer]\nlisten = {:?}\n\
         [nbd]\nlisten = {:?}\n[http]\nlisten = {:?}\n",
        directory.join("data"),
        cluster.endpoint(1),
        cluster.endpoint(2),
        at(API_PORT),
        at(PEER_PORT),
        at(NBD_PORT),
        at(HTTP_PORT)
    );
    let path = directory.join("holdfast.toml");
    fs::write(&path, text).unwrap();
    path
}

fn write(client: &mut Client, pieces: std::ops::Range<u64>) {
    for number in pieces {
        client.write(number * PIECE as u64, &noise(number, PIECE)).unwrap();
    }
}

fn check(client: &mut Client, pieces: std::ops::Range<u64>) {
    for number in pieces {
        let read = client.read(number * PIECE as u64, PIECE).unwrap();
        assert!(read == noise(number, PIECE), "piece {number}");
    }
}

#[test]
fn clients_of_a_pod_without_disks_are_served_by_the_others() {
    let cluster = Setup::new("diskless_pod").volume("demo", "64MiB").start();
    write(&mut cluster.connect(1, "demo"), 0..10);
    let config = config(&cluster);
    cluster.join(&config);
    let pod = Pod::start(&cluster, &config);
    let address = cluster.nbd_address(DISKLESS);
    let connect = || Client::connect(address, "demo").expect("connect to the pod without disks");
    let mut client = connect();
    check(&mut client, 0..10);
    write(&mut client, 10..20);
    check(&mut cluster.connect(2, "demo"), 0..20);
    // It has links to all others, and they lead nowhere else.
    let metrics = scrape(DISKLESS, cluster.offset);
    assert_eq!(metrics.sum("holdfast_disk_up"), 0.0);
    assert!(metrics.sum("holdfast_forwarded_request_duration_seconds_count") >= 20.0);

    // The pod that leads goes away: the requests find the next one.
    let leader = cluster.leader("demo").expect("somebody leads");
    cluster.kill(leader);
    write(&mut client, 20..30);
    check(&mut client, 0..30);

    // So does this pod: its front comes back as a later one.
    drop((client, pod));
    let _pod = Pod::start(&cluster, &config);
    let mut client = connect();
    check(&mut client, 0..30);
    write(&mut client, 30..40);
    cluster.wait_serving(leader);
    check(&mut cluster.connect(1, "demo"), 0..40);
    cluster.wait_healthy();
    let listed = cluster.ask(&["pod", "list"]).expect("a pod answers");
    let pods = listed.as_array().expect("pods are listed");
    let has_none = |pod: &serde_json::Value| pod["status"]["disks"].as_u64().unwrap_or(0) == 0;
    assert_eq!((pods.len(), pods.iter().filter(|pod| has_none(pod)).count()), (4, 1), "{listed}");
}

/// The code of the error that a name gets.
fn refusal(address: std::net::SocketAddr, name: &str) -> String {
    match Negotiation::start(address, 3).unwrap().go(name) {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    }
}

const UNKNOWN: &str = "0x80000006";
const SHUTDOWN: &str = "0x80000007";

/// Takes the catalog from all pods that have it. Their disks stay.
fn lose_catalog(cluster: &Cluster) {
    for pod in 1..=PODS {
        cluster.kill(pod);
        let database = cluster.pod_dir(pod).join("data/catalog");
        fs::rename(&database, database.with_extension("lost")).unwrap();
    }
    (1..=PODS).for_each(|pod| cluster.wait_serving(pod));
}

#[test]
fn a_pod_serves_what_its_clients_had_open_without_the_catalog() {
    let setup = Setup::new("sync_wants").restart_after("3s").volume("demo", "64MiB");
    let cluster = setup.volume("other", "64MiB").start();
    let config = config(&cluster);
    cluster.join(&config);
    let pod = Pod::start(&cluster, &config);
    let address = cluster.nbd_address(DISKLESS);
    // The pod has no replica of any volume: it asks for the one that its client names.
    let mut client = Client::connect(address, "demo").expect("a volume that does not concern it");
    write(&mut client, 0..10);
    assert!(refusal(address, "nothing").starts_with(UNKNOWN), "nobody has it");
    assert!(refusal(address, "").starts_with(UNKNOWN), "there are two");

    lose_catalog(&cluster);
    check(&mut client, 0..10);
    drop((client, pod));
    let _pod = Pod::start(&cluster, &config);
    let mut client = Client::connect(address, "demo").expect("it had it open");
    check(&mut client, 0..10);
    write(&mut client, 10..20);
    check(&mut client, 0..20);
    // It never heard of this one, and nobody can tell it.
    assert!(refusal(address, "other").starts_with(SHUTDOWN), "it may be there");
    let mut known = Client::connect(cluster.nbd_address(1), "other").expect("pod 1 has a replica");
    write(&mut known, 0..3);
}
