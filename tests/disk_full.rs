//! Small disks run full: clients get an error, no acknowledged data is lost, and freed space
//! (trimmed, zeroed, deleted) can be written again.

mod support;

use support::nbd::{Client, ENOSPC, NbdError};
use support::tools::noise;
use support::{Cluster, PODS, Setup, wait_until};

const PIECE: usize = 1 << 20;

fn piece(number: u64) -> Vec<u8> {
    noise(number, PIECE)
}

/// Writes pieces from `next` on until there is no space. Returns the number of pieces.
fn fill(client: &mut Client, mut next: u64) -> u64 {
    loop {
        assert!((next + 1) * PIECE as u64 <= client.size_bytes, "the disks are never full");
        match client.write(next * PIECE as u64, &piece(next)) {
            Ok(()) => next += 1,
            Err(NbdError::Server(ENOSPC)) => return next,
            Err(other) => panic!("piece {next}: {other:?}"),
        }
    }
}

fn check(cluster: &Cluster, pieces: std::ops::Range<u64>) {
    for pod in 1..=PODS {
        let mut client = cluster.connect(pod, "demo");
        for number in pieces.clone() {
            let read = client.read(number * PIECE as u64, PIECE).unwrap();
            assert!(read == piece(number), "piece {number} is wrong through pod {pod}");
        }
    }
}

/// Waits until there is space for a piece again, and writes it.
fn space_comes_back(client: &mut Client, number: u64) {
    wait_until("there is space again", || {
        match client.write(number * PIECE as u64, &piece(number)) {
            Ok(()) => true,
            Err(NbdError::Server(ENOSPC)) => false,
            Err(other) => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_full_disk_is_told_and_space_that_is_given_back_is_used_again() {
    let mut cluster = Setup::new("disk_full")
        .disk_sizes("256MiB", "64MiB")
        .volume("demo", "512MiB")
        .volume("other", "64MiB")
        .start();
    let mut other = cluster.connect(2, "other");
    for number in 0..48 {
        other.write(number * PIECE as u64, &piece(1000 + number)).unwrap();
    }
    let mut client = cluster.connect(1, "demo");
    let full = fill(&mut client, 0);
    assert!(full > 100, "far too early: after {full} MiB");
    // Existing data can be overwritten in place, and read.
    client.write(0, &piece(0)).unwrap();
    check(&cluster, 0..full);
    drop(client);

    // The same holds after a crash.
    cluster.kill_everything();
    cluster.start_again();
    check(&cluster, 0..full);
    let mut client = cluster.connect(1, "demo");
    let full = fill(&mut client, full);

    // Trimming, then zeroing, frees space. Replicas reserve 16 MiB for writes on their way, part of
    // which may be used already, so the freed space must exceed that.
    // A write comes at once and must not be told that there is no space. The trims meet inside a
    // block.
    client.trim(0, 16 * PIECE as u32 - 512).unwrap();
    client.trim(16 * PIECE as u64 - 512, 16 * PIECE as u32 + 512).unwrap();
    client.write(full * PIECE as u64, &piece(full)).unwrap();
    let full = fill(&mut client, full + 1);
    client.write_zeroes(32 * PIECE as u64, 32 * PIECE as u32).unwrap();
    client.write(full * PIECE as u64, &piece(full)).unwrap();
    let full = fill(&mut client, full + 1);
    assert!(client.read(0, PIECE).unwrap() == [0; PIECE]);
    assert!(client.read(63 * PIECE as u64, PIECE).unwrap() == [0; PIECE]);

    // Deleting a volume frees space too.
    drop(other);
    wait_until("the volume is deleted", || {
        cluster.ask(&["volume", "delete", "other", "--retention", "0"]).is_some()
    });
    space_comes_back(&mut client, full);
    check(&cluster, 64..full + 1);
    cluster.wait_healthy();
}
