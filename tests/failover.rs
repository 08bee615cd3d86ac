//! The time until I/O continues is printed, not asserted. That it continues with all acknowledged
//! data is asserted.

mod support;

use std::time::Instant;

use support::tools::noise;
use support::{PODS, Setup};

#[test]
fn a_client_of_another_pod_goes_on_after_its_leader_was_killed() {
    let cluster = Setup::new("failover").volume("demo", "64MiB").start();
    let mut client = cluster.connect(2, "demo");
    for round in 0..3u8 {
        for leader in [1, 3] {
            cluster.lead_from(leader, "demo");
            client.write(0, &[round; 4096]).unwrap();
            cluster.kill(leader);
            let killed = Instant::now();
            client.write(4096, &[leader as u8; 4096]).unwrap();
            println!("round {round}, leader {leader}: paused {:?}", killed.elapsed());
            assert_eq!(client.read(0, 4096).unwrap(), [round; 4096]);
            assert_eq!(client.read(4096, 4096).unwrap(), [leader as u8; 4096]);
            cluster.wait_serving(leader);
            cluster.wait_healthy();
        }
    }
}

#[test]
fn pods_with_a_full_log_start_again_after_they_were_killed() {
    const PIECE: usize = 16 << 10;
    let mut cluster =
        Setup::new("full_log").disk_sizes("512MiB", "64MiB").volume("demo", "256MiB").start();
    let mut client = cluster.connect(1, "demo");
    // Twice the size of a log, in pieces that are not adjacent.
    let pieces = (128 << 20) / PIECE as u64;
    let place = |number: u64| number * 12_289 % pieces * 2 * PIECE as u64;
    for number in 0..pieces {
        client.write(place(number), &noise(number, PIECE)).unwrap();
    }
    cluster.kill_everything();
    let started = Instant::now();
    cluster.start_again();
    println!("serves again after {:?}", started.elapsed());
    for pod in 1..=PODS {
        cluster.wait_serving(pod);
    }
    println!("every pod serves after {:?}", started.elapsed());
    let mut client = cluster.connect(3, "demo");
    for number in 0..pieces {
        let read = client.read(place(number), PIECE).unwrap();
        assert!(read == noise(number, PIECE), "piece {number}");
    }
}
