//! Many clients read and write the same few blocks through different pods, while pods are killed
//! and frozen. Every block's history must be linearizable, and no read may see a torn block.
//!
//! Reads go through any pod. The writes of a block go through one pod only, from several clients:
//! without attachments, linearizability is promised only for that (docs/adr/0002).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use holdfast::sim::history;
use holdfast::sim::rng::Rng;
use holdfast::types::Mono;
use support::nbd::{Client, NbdError};
use support::{Cluster, PODS, Setup, wait_until};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 6;
const CLIENTS: u64 = 9;
const FAULTS: usize = 5;
const STRIDE_BYTES: u64 = 3 << 20;

/// The end of an operation with unknown outcome: it may take effect at any later time.
const NEVER: u64 = u64::MAX;

/// One operation of one client on one block. Times are of one clock, in any unit, above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    is_write: bool,
    /// The written or read value; a block holds 0 at first.
    value: u64,
    start: u64,
    end: u64,
}

/// Runs the simulator's checker on the operations of one block by real clients.
fn check(operations: &[Operation]) -> Result<(), history::Contradiction> {
    let mut history = history::History::default();
    for operation in operations {
        let (start, end) = (Mono(operation.start), Mono(operation.end));
        match operation.is_write {
            true => {
                // The checker needs no real connections here: each write gets its own.
                history.writing(0, operation.value, operation.value, start);
                if operation.end != NEVER {
                    history.acknowledged(0, operation.value, end);
                }
            }
            // A read without an end proves nothing.
            false if operation.end == NEVER => {}
            false => history.read(0, operation.value, start, end),
        }
    }
    history.check()
}

/// Block and operation.
type History = Vec<(u64, Operation)>;

/// State shared by the clients.
struct Shared {
    began: Instant,
    next_value: AtomicU64,
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        1 + self.began.elapsed().as_nanos() as u64
    }
}

/// A block filled with one value, so that a torn block shows.
fn filled(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

fn value_of(block: &[u8]) -> u64 {
    let first = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(block == filled(first), "a torn block");
    first
}

/// A client of one pod. It reconnects after its pod was killed.
struct Worker {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    /// Counted from 0.
    pod: u64,
    random: Rng,
    history: History,
}

impl Worker {
    fn run(mut self) -> History {
        let mut client = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            client = match client.take() {
                Some(mut connected) => self.step(&mut connected).then_some(connected),
                None => Client::connect(self.address, "demo").ok(),
            };
            if client.is_none() {
                // Its pod is down; other clients continue.
                thread::sleep(Duration::from_millis(20));
            }
        }
        self.history
    }

    /// One operation; false when the connection broke.
    fn step(&mut self, client: &mut Client) -> bool {
        let is_write = self.random.below(2) == 0;
        let block = match is_write {
            true => self.pod + PODS as u64 * self.random.below(BLOCKS / PODS as u64),
            false => self.random.below(BLOCKS),
        };
        let offset = block * STRIDE_BYTES;
        let start = self.shared.now();
        let (value, result) = if is_write {
            let value = self.shared.next_value.fetch_add(1, Ordering::Relaxed);
            (value, client.write(offset, &filled(value)))
        } else {
            match client.read(offset, BLOCK_BYTES) {
                Ok(data) => (value_of(&data), Ok(())),
                Err(error) => (0, Err(error)),
            }
        };
        let end = match &result {
            Ok(()) => self.shared.now(),
            Err(NbdError::Connection(_)) => NEVER,
            Err(NbdError::Server(error)) => panic!("the server answered with error {error}"),
        };
        self.history.push((block, Operation { is_write, value, start, end }));
        self.shared.acknowledged.fetch_add(u64::from(end != NEVER), Ordering::Relaxed);
        result.is_ok()
    }
}

fn start_workers(cluster: &Cluster, shared: &Arc<Shared>) -> Vec<JoinHandle<History>> {
    (0..CLIENTS)
        .map(|number| {
            let worker = Worker {
                shared: Arc::clone(shared),
                address: cluster.nbd_address(1 + number as usize % PODS),
                pod: number % PODS as u64,
                random: Rng::new(0xfeed + number),
                history: Vec::new(),
            };
            thread::spawn(move || worker.run())
        })
        .collect()
}

/// Waits until the clients have completed some operations after a fault.
fn progress(shared: &Shared, workers: &[JoinHandle<History>]) {
    let goal = shared.acknowledged.load(Ordering::Relaxed) + 300;
    wait_until("reads and writes go on", || {
        let all_there = workers.iter().all(|worker| !worker.is_finished());
        assert!(all_there, "a client saw something impossible");
        shared.acknowledged.load(Ordering::Relaxed) >= goal
    });
}

#[test]
fn every_block_is_linearizable_through_kills_and_stops() {
    let cluster = Setup::new("linearizable").volume("demo", "64MiB").start();
    let shared = Arc::new(Shared {
        began: Instant::now(),
        next_value: AtomicU64::new(1),
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
    });
    let workers = start_workers(&cluster, &shared);
    for number in 0..FAULTS {
        progress(&shared, &workers);
        let pod = 1 + number % PODS;
        if number % 2 == 0 {
            cluster.kill(pod);
            progress(&shared, &workers);
            cluster.wait_serving(pod);
        } else {
            cluster.freeze(pod);
            // The clients of the two others must go on with a new leader.
            progress(&shared, &workers);
            cluster.thaw(pod);
        }
        cluster.wait_healthy();
    }
    progress(&shared, &workers);
    shared.stop.store(true, Ordering::Relaxed);
    let all: History = workers
        .into_iter()
        .flat_map(|worker| worker.join().expect("a client saw something impossible"))
        .collect();
    println!("{} operations", all.len());
    for block in 0..BLOCKS {
        let operations: Vec<Operation> =
            all.iter().filter(|(at, _)| *at == block).map(|(_, operation)| *operation).collect();
        assert!(operations.len() > 50, "block {block} was used");
        if let Err(reason) = check(&operations) {
            panic!("block {block}: {reason}");
        }
    }
}

fn write(value: u64, start: u64, end: u64) -> Operation {
    Operation { is_write: true, value, start, end }
}

fn read(value: u64, start: u64, end: u64) -> Operation {
    Operation { is_write: false, value, start, end }
}

#[test]
fn the_checker_accepts_what_some_order_explains() {
    let fine: &[&[Operation]] = &[
        &[],
        &[read(0, 1, 2), write(1, 3, 4), read(1, 5, 6)],
        // Concurrent: either value may be read.
        &[write(1, 1, 10), read(0, 2, 3), read(1, 4, 5)],
        &[write(1, 1, 10), write(2, 1, 10), read(2, 11, 12), read(2, 13, 14)],
        // Unknown outcome: it may happen late, or never.
        &[write(1, 1, NEVER), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)],
        &[write(1, 1, NEVER), write(2, 3, 4), read(2, 5, 6), read(2, 7, 8)],
        &[write(1, 1, 2), read(9, 3, NEVER)],
    ];
    for history in fine {
        assert_eq!(check(history), Ok(()), "{history:?}");
    }
}

#[test]
fn the_checker_rejects_what_no_order_explains() {
    let wrong: &[(&str, &[Operation])] = &[
        ("a lost write", &[write(1, 1, 2), read(0, 3, 4)]),
        ("a stale read", &[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]),
        ("out of thin air", &[read(7, 1, 2)]),
        ("from the future", &[read(1, 1, 2), write(1, 3, 4)]),
        ("a ghost write", &[write(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)]),
        (
            "two readers disagree on the order",
            &[write(1, 1, 20), write(2, 1, 20), read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)],
        ),
        (
            "a write of unknown outcome that is seen and then undone",
            &[write(1, 1, 2), write(2, 3, NEVER), read(2, 4, 5), read(1, 6, 7)],
        ),
        (
            "a write that is never seen between two reads of the old value",
            &[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(1, 7, 8)],
        ),
    ];
    for (what, history) in wrong {
        assert!(check(history).is_err(), "{what}");
    }
}
