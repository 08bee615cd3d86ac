//! A pod takes no more memory than its budgets allow, however much clients ask for and however slow
//! other pods are.

mod support;

use std::fs;
use std::process::{Command, Stdio};

use support::nbd::READ;
use support::{Cluster, PODS, Setup, wait_until};

const MIB: u64 = 1 << 20;
/// dirty_cache, index_cache, volume, shard, link to each of two others; connection is part of
/// volume.
const BUDGETS: u64 = (16 + 8 + 16 + 8 + 2 * 16) * MIB;
/// Memory bounded by code instead of budgets: the index's write buffers, one round of write-back
/// (16 MiB), the overlay's own index, receive buffers, and the allocator's surplus.
const BESIDE: u64 = 64 * MIB;

/// A line of `/proc/<pid>/status`, in bytes.
fn memory_of(cluster: &Cluster, pod: usize, line: &str) -> u64 {
    let pid = cluster.pid(pod).expect("the pod runs").as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = status.lines().find_map(|each| each.strip_prefix(line)).unwrap();
    let kib: u64 = found.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap();
    kib << 10
}

/// Many clients with many requests in flight each. `work`: arguments of fio.
fn hammer(cluster: &Cluster, work: &[&str], meanwhile: impl FnOnce()) {
    let mut fio = Command::new("fio")
        .args(["--name=hammer", "--ioengine=nbd", "--numjobs=4", "--iodepth=32"])
        .args(["--size=768M", "--time_based", "--runtime=6", "--norandommap"])
        .arg(format!("--uri={}", cluster.uri(1, "demo")))
        .args(work)
        .stdout(Stdio::null())
        .spawn()
        .expect("run fio");
    meanwhile();
    assert!(fio.wait().expect("wait for fio").success());
}

#[test]
fn a_pod_takes_no_more_memory_than_its_budgets() {
    let cluster = Setup::new("memory_bounds")
        .disk_sizes("1GiB", "64MiB")
        .volume("demo", "800MiB")
        .set("budgets.dirty_cache=16MiB")
        .set("budgets.index_cache=8MiB")
        .set("budgets.log_tail=64KiB")
        .set("budgets.connection=8MiB")
        .set("budgets.volume=16MiB")
        .set("budgets.shard=8MiB")
        .set("budgets.link=16MiB")
        .start();
    cluster.wait_healthy();
    let at_rest: Vec<u64> = (1..=PODS).map(|pod| memory_of(&cluster, pod, "VmRSS")).collect();

    // 128 MiB in flight, while one pod takes nothing.
    let mut client = cluster.connect(2, "demo");
    hammer(&cluster, &["--rw=randwrite", "--bs=1M"], || {
        cluster.freeze(3);
        for _ in 0..200 {
            client.write(780 * MIB, &[1; 4096]).expect("two pods are a majority");
        }
        cluster.thaw(3);
    });
    hammer(&cluster, &["--rw=randwrite", "--bs=4k"], || {});
    hammer(&cluster, &["--rw=randread", "--bs=1M"], || {});

    // A client that sends requests and does not read the answers.
    let mut deaf = cluster.connect(1, "demo");
    for number in 0..512 {
        deaf.send(READ, 0, number % 700 * MIB, MIB as u32, &[]).unwrap();
    }
    let mut other = cluster.connect(1, "demo");
    wait_until("the others are served beside it", || other.read(0, 4096).is_ok());

    for (pod, at_rest) in (1..=PODS).zip(at_rest) {
        let most = memory_of(&cluster, pod, "VmHWM");
        println!("pod {pod}: {} MiB at rest, {} MiB at most", at_rest / MIB, most / MIB);
        assert!(most > at_rest, "it was never used");
        let allowed = at_rest + BUDGETS + BESIDE;
        assert!(most <= allowed, "pod {pod} took {most} bytes, allowed are {allowed}");
    }
}
