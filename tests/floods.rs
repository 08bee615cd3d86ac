//! Thousands of connections that say nothing lock nobody out, and take no descriptor that a pod
//! needs for its own files (rules `every-handshake-has-a-deadline` and
//! `descriptors-for-our-own-files`).

mod support;

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use support::{Cluster, Setup, nbd, wait_until};

/// Connections to each port.
const FLOOD: usize = 5000;

/// Lets this process have as many descriptors as it may. Returns how many.
fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap())
}

/// Opens connections and says nothing. A pod may have closed some of them already.
fn flood(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(address).expect("a listening pod takes connections");
    let opened: Vec<TcpStream> = (0..count).map(connect).collect();
    opened.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    opened
}

/// True when the pod has closed it; what came before is dropped.
fn is_closed(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

fn wait_for_their_end(mut flood: Vec<TcpStream>) {
    wait_until("the silent connections are closed", || {
        flood.retain_mut(|stream| !is_closed(stream));
        flood.is_empty()
    });
}

fn open_files(cluster: &Cluster, pod: usize) -> usize {
    let pid = cluster.pid(pod).expect("the pod runs").as_raw_nonzero();
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn thousands_of_silent_connections_lock_nobody_out() {
    let count = FLOOD.min((raise_open_files() - 1000) / 3);
    let cluster = Setup::new("floods").volume("demo", "64MiB").start();
    let before = open_files(&cluster, 1);
    let clients = flood(cluster.nbd_address(1), count);
    let peers = flood(cluster.peer_address(1), count);
    let mut client = cluster.connect(1, "demo");
    client.write(0, b"in the flood").expect("a real client is served");
    let others = flood(cluster.api_address(1), count / 4);
    client.write(4096, b"in the flood").expect("it is still served");
    println!("{before} descriptors before, {} during the flood", open_files(&cluster, 1));
    [clients, peers, others].into_iter().for_each(wait_for_their_end);
    wait_until("their descriptors are free", || open_files(&cluster, 1) < before + 64);
    assert_eq!(client.read(0, 12).unwrap(), b"in the flood");
    cluster.wait_healthy();
}

#[test]
fn clients_take_no_descriptor_that_the_index_needs() {
    const LIMIT: usize = 512;
    raise_open_files();
    let cluster = Setup::new("few_descriptors").open_files(512).volume("demo", "64MiB").start();
    println!("{} descriptors at rest", open_files(&cluster, 1));
    // Those to the API end in turns, which takes long.
    let floods = [
        flood(cluster.nbd_address(1), LIMIT),
        flood(cluster.peer_address(1), LIMIT),
        flood(cluster.api_address(1), LIMIT / 8),
    ];
    // As many as are served, and those that are not.
    let served: Vec<nbd::Client> = (0..LIMIT)
        .map_while(|_| nbd::Client::connect(cluster.nbd_address(1), "demo").ok())
        .collect();
    assert!((20..LIMIT).contains(&served.len()), "{} are served", served.len());
    let during = open_files(&cluster, 1);
    println!("{} clients, {during} descriptors", served.len());
    assert!(during < LIMIT, "there is one left");
    // Each needs durable records in the index of every pod.
    for name in ["a", "b", "c"] {
        let created = cluster.ask(&["volume", "create", name, "--size", "64MiB"]);
        created.expect("a volume can be created");
        wait_until("its shard has a leader", || cluster.leader(name).is_some());
    }
    drop((floods, served));
    cluster.wait_healthy();
    let log = fs::read_to_string(cluster.pod_dir(1).join("log")).unwrap();
    assert!(!log.to_lowercase().contains("too many open files"), "{log}");
}
