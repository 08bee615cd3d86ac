//! A volume goes from node to node, again and again, while the client before keeps on writing: it
//! gets errors only, and nothing that it does after the fence is ever seen.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use support::nbd::Client;
use support::{Cluster, Setup};

const MOVES: usize = 50;
const BLOCK_BYTES: usize = 4096;
/// Spread over the shards: the volume is made of pieces of 4 GiB.
const SHARDS: u64 = 3;
const SHARD_BYTES: u64 = 4 << 30;
const BLOCKS_PER_SHARD: u64 = 8;

/// Offsets of the blocks that everybody writes.
fn offsets() -> impl Iterator<Item = u64> {
    (0..SHARDS).flat_map(|shard| {
        (0..BLOCKS_PER_SHARD).map(move |block| shard * SHARD_BYTES + block * BLOCK_BYTES as u64)
    })
}

/// The content of a block: who wrote it, and when.
fn content(holder: u64, round: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    block[..8].copy_from_slice(&holder.to_le_bytes());
    block[8..16].copy_from_slice(&round.to_le_bytes());
    block[BLOCK_BYTES - 8..].copy_from_slice(&holder.to_le_bytes());
    block
}

fn holder_of(block: &[u8]) -> u64 {
    let first = u64::from_le_bytes(block[..8].try_into().unwrap());
    let last = u64::from_le_bytes(block[BLOCK_BYTES - 8..].try_into().unwrap());
    assert_eq!(first, last, "a block is written as a whole");
    first
}

/// A client that writes all blocks, round after round, until it gets an error, and then tries a few
/// times more.
struct Writer {
    thread: JoinHandle<()>,
    rounds: Arc<AtomicU64>,
    is_fenced: Arc<AtomicBool>,
}

impl Writer {
    fn start(mut client: Client, holder: u64) -> Writer {
        let (rounds, is_fenced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (done, fenced) = (rounds.clone(), is_fenced.clone());
        let thread = thread::spawn(move || {
            let mut errors = 0;
            for round in 1.. {
                for offset in offsets() {
                    // What is sent after the fence was told must fail.
                    let must_fail = fenced.load(Ordering::SeqCst);
                    let wrote = client.write(offset, &content(holder, round)).is_ok();
                    assert!(!(must_fail && wrote), "holder {holder} wrote after it was fenced");
                    errors += usize::from(!wrote);
                    let must_fail = fenced.load(Ordering::SeqCst);
                    if must_fail {
                        let read = client.read(offset, BLOCK_BYTES).is_ok();
                        assert!(!read, "holder {holder} read after it was fenced");
                    }
                    if errors > 0 && must_fail {
                        return;
                    }
                }
                done.store(round, Ordering::SeqCst);
            }
        });
        Writer { thread, rounds, is_fenced }
    }
}

/// Gives the volume to a node, and returns the name of its export.
fn publish(cluster: &Cluster, node: &str) -> String {
    let published = cluster.ask(&["attachment", "publish", "own", node]);
    let published = published.expect("nobody else has the volume");
    published["meta"]["name"].as_str().expect("an attachment has a uid").to_owned()
}

/// Connects as soon as the pod has heard of the attachment, a moment after the catalog's leader.
fn connect(cluster: &Cluster, pod: usize, export: &str) -> Client {
    let mut client = None;
    support::wait_until("the pod knows the export", || {
        client = Client::connect(cluster.nbd_address(pod), export).ok();
        client.is_some()
    });
    client.expect("it was waited for")
}

#[test]
fn a_client_before_the_fence_writes_nothing_behind_it() {
    let cluster = Setup::new("fencing").volume("demo", "64MiB").start();
    let create = ["volume", "create", "own", "--size", "12GiB", "--closed", "--class", "dev"];
    cluster.ask(&create).expect("there is room");
    let mut before: Option<(Writer, u64)> = None;
    for holder in 1..=MOVES as u64 {
        let (pod, node) = match holder % 2 {
            0 => (1, "pod-1"),
            _ => (2, "pod-2"),
        };
        if let Some((writer, last)) = &before {
            let old = if last % 2 == 0 { "pod-1" } else { "pod-2" };
            cluster.ask(&["attachment", "unpublish", "own", old]).expect("it has the volume");
            writer.is_fenced.store(true, Ordering::SeqCst);
        }
        let export = publish(&cluster, node);
        let mut client = connect(&cluster, pod, &export);
        // The last holder's data, of no other.
        let seen: Vec<Vec<u8>> =
            offsets().map(|offset| client.read(offset, BLOCK_BYTES).unwrap()).collect();
        if let Some((_, last)) = before {
            assert!(seen.iter().all(|block| holder_of(block) == last), "at move {holder}");
        }
        for offset in offsets() {
            client.write(offset, &content(holder, 0)).expect("it holds the volume");
        }
        if let Some((writer, _)) = before.take() {
            writer.thread.join().expect("the client before saw errors only");
        }
        for offset in offsets() {
            let block = client.read(offset, BLOCK_BYTES).expect("it holds the volume");
            assert_eq!(block, content(holder, 0), "the client before changed something");
        }
        let writer = Writer::start(client, holder);
        let rounds = writer.rounds.clone();
        support::wait_until("the holder writes", || rounds.load(Ordering::SeqCst) > 0);
        before = Some((writer, holder));
    }
    let (writer, last) = before.expect("there was a holder");
    let old = if last % 2 == 0 { "pod-1" } else { "pod-2" };
    cluster.ask(&["attachment", "unpublish", "own", old]).expect("it has the volume");
    writer.is_fenced.store(true, Ordering::SeqCst);
    writer.thread.join().expect("the client before saw errors only");
}
