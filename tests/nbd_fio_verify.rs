//! fio writes blocks with checksums while pods die, freeze and come back. Then every block is read
//! through every pod and checked. Pauses are allowed, errors and wrong bytes are not.

mod support;

use std::process::{Child, Command, Stdio};

use support::tools::run;
use support::{Cluster, PODS, Setup, wait_until};

/// Written at this rate, one run lasts about ten seconds.
const WRITES_PER_SECOND: &str = "2500";
const SIZE: &str = "96M";
/// At least this many faults happen while fio writes; it runs again until then.
const FAULTS_MIN: usize = 3;

/// The same job for writing and checking: the seed makes fio find the same blocks.
fn arguments(uri: &str, block_size: &str) -> Vec<String> {
    [
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        &format!("--bs={block_size}"),
        "--iodepth=16",
        &format!("--size={SIZE}"),
        "--randseed=4711",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--exitall_on_error=1",
    ]
    .map(String::from)
    .to_vec()
}

fn start_writing(uri: &str, block_size: &str) -> Child {
    Command::new("fio")
        .args(arguments(uri, block_size))
        .args(["--do_verify=0", "--rate_iops", WRITES_PER_SECOND])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run fio")
}

fn verify_through_every_pod(cluster: &Cluster, block_size: &str) {
    for pod in 1..=PODS {
        let mut arguments = arguments(&cluster.uri(pod, "demo"), block_size);
        arguments.push("--verify_only".to_string());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run("fio", &arguments);
    }
}

/// Causes `fault` again and again while fio writes through pod 1; each time waits for recovery.
fn write_through(cluster: &Cluster, block_size: &str, fault: impl Fn(&Cluster, usize)) {
    let mut faults = 0;
    while faults < FAULTS_MIN {
        let mut fio = start_writing(&cluster.uri(1, "demo"), block_size);
        while fio.try_wait().expect("wait for fio").is_none() {
            fault(cluster, faults);
            faults += 1;
            cluster.wait_healthy();
        }
        let output = fio.wait_with_output().expect("read what fio said");
        assert!(
            output.status.success(),
            "fio failed after {faults} faults: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn nothing_is_lost_when_other_pods_are_killed() {
    let cluster = Setup::new("fio_kill").volume("demo", "256MiB").start();
    // Never the pod that fio talks to: it cannot connect again.
    write_through(&cluster, "4k", |cluster, number| {
        let pod = 2 + number % 2;
        cluster.kill(pod);
        cluster.wait_serving(pod);
    });
    verify_through_every_pod(&cluster, "4k");
}

#[test]
fn nothing_is_lost_when_leaders_change() {
    let cluster = Setup::new("fio_freeze").volume("demo", "256MiB").start();
    // Leaders follow their client to pod 1. It is frozen for longer than an election takes, so the
    // others elect new leaders, and the requests in its queues are outdated.
    write_through(&cluster, "3k", |cluster, _| {
        cluster.freeze(1);
        let mut client = cluster.connect(2, "demo");
        // The new leader answers. The range lies behind fio's.
        let last = client.size_bytes - 4096;
        wait_until("the others serve without the frozen pod", || {
            client.write(last, &[1; 4096]).is_ok()
        });
        cluster.thaw(1);
    });
    verify_through_every_pod(&cluster, "3k");
}
