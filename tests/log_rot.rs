//! A bit flips in the log of one replica while its pod is dead. Wherever it is, all acknowledged
//! data is there afterwards, and the pod comes back.

mod support;

use std::fs;

use support::disk::{find_blocks, log_file, rot, wait_written_back};
use support::tools::noise;
use support::{Cluster, PODS, Setup, wait_until};

const PIECE: usize = 64 << 10;
const BYTES: usize = 4 << 20;
/// The part of the log that is searched.
const LOG_BYTES_MAX: usize = 64 << 20;

/// All writes are acknowledged and have reached pod 2; all processes are stopped.
fn killed(name: &'static str, seed: u64) -> (Cluster, Vec<u8>) {
    let mut cluster = Setup::new(name).volume("demo", "64MiB").start();
    cluster.wait_healthy();
    let content = noise(seed, BYTES);
    let mut client = cluster.connect(1, "demo");
    for (number, piece) in content.chunks(PIECE).enumerate() {
        client.write((number * PIECE) as u64, piece).unwrap();
    }
    // A majority acknowledges, so pod 2 may get the data a moment later.
    let log = log_file(&cluster, 2);
    wait_until("all of it is in the log of pod 2", || {
        find_blocks(&log, LOG_BYTES_MAX, &content).is_some()
    });
    cluster.kill_everything();
    (cluster, content)
}

fn everything_is_there(cluster: &Cluster, content: &[u8]) {
    for pod in 1..=PODS {
        cluster.wait_serving(pod);
        let mut client = cluster.connect(pod, "demo");
        assert!(client.read(0, BYTES).unwrap() == content, "wrong through pod {pod}");
    }
}

/// Flips a bit beside payload block `block` in the log of pod 2, and checks the outcome.
fn survives(name: &'static str, block: usize, beside: i64) {
    let (mut cluster, content) = killed(name, block as u64 + 77);
    let log = log_file(&cluster, 2);
    let places = find_blocks(&log, LOG_BYTES_MAX, &content).expect("the log holds all of it");
    let at = places[block].saturating_add_signed(beside);
    rot(&log, &[at]);
    cluster.start_again();
    everything_is_there(&cluster, &content);
    // More data can be written, and survives another crash.
    let more = noise(5, BYTES);
    cluster.connect(3, "demo").write(0, &more).unwrap();
    cluster.kill_everything();
    cluster.start_again();
    everything_is_there(&cluster, &more);
}

#[test]
fn a_flipped_bit_in_a_payload_in_the_middle_of_the_log() {
    survives("log_rot_middle", 300, 0);
}

#[test]
fn a_flipped_bit_in_the_header_of_a_batch() {
    survives("log_rot_header", 512, -4096);
}

#[test]
fn a_flipped_bit_in_the_newest_payload() {
    survives("log_rot_newest", BYTES / 4096 - 1, 0);
}

#[test]
fn a_payload_that_rots_before_it_is_written_back_is_brought_by_another_replica() {
    let setup = Setup::new("log_rot_payload").set("wal_bypass=false");
    let cluster = setup.disk_sizes("256MiB", "64MiB").volume("demo", "64MiB").start();
    // Pod 2 keeps few payloads in memory, so write-back has to read its log.
    let config = cluster.pod_dir(2).join("holdfast.toml");
    let text = fs::read_to_string(&config).unwrap();
    let lines = text.lines().map(|line| match line.starts_with("dirty_cache") {
        true => "dirty_cache = \"1MiB\"",
        false => line,
    });
    let changed = lines.collect::<Vec<_>>().join("\n");
    assert_ne!(text.trim_end(), changed, "the configuration says how much memory there is");
    fs::write(&config, changed).unwrap();
    cluster.kill(2);
    cluster.wait_serving(2);
    cluster.wait_healthy();

    let mut client = cluster.connect(1, "demo");
    let mut content = Vec::new();
    // Write-back may be faster than the flips: repeat until it meets a bad payload.
    wait_until("write-back meets a bad payload", || {
        let piece = noise(content.len() as u64, 4 << 20);
        client.write(content.len() as u64, &piece).unwrap();
        content.extend_from_slice(&piece);
        cluster.freeze(2);
        if let Some(places) = find_blocks(&log_file(&cluster, 2), LOG_BYTES_MAX, &piece) {
            rot(&log_file(&cluster, 2), &places[100..110]);
        }
        cluster.thaw(2);
        wait_written_back(&cluster, 2, &content);
        let said = fs::read_to_string(cluster.pod_dir(2).join("log")).unwrap();
        said.contains("the block is intact again")
    });
    cluster.wait_healthy();
    cluster.lead_from(2, "demo");
    for pod in 1..=PODS {
        assert!(cluster.connect(pod, "demo").read(0, content.len()).unwrap() == content);
    }
}
