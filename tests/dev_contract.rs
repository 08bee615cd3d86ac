//! `holdfast dev` is a contract for tests and scripts: directories, output, end, and kept data.

mod support;

use std::fs;
use std::process::{Command, Output};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, test_kill_process};

use support::{Cluster, PODS, Setup, program, wait_until};

/// Another `dev`, which must end by itself.
fn dev(cluster: &Cluster, data: &str, offset: u16) -> Output {
    Command::new(program())
        .args(["dev", "--port-offset", &offset.to_string(), "--data"])
        .arg(cluster.dir.join(data))
        .output()
        .expect("run holdfast dev")
}

fn refused(output: &Output, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(word), "does not say {word:?}: {said}");
    assert!(output.stdout.is_empty(), "nothing is ready");
}

#[test]
fn a_cluster_is_where_it_should_be_ends_when_told_and_keeps_its_data() {
    // The limit of a usual session, which the pods inherit.
    let limit = Rlimit { current: Some(1024), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    // `start` waits for the line that reports the volume as ready.
    let mut cluster = Setup::new("dev_contract").volume("demo", "64MiB").start();
    let pids: Vec<_> = (1..=PODS).map(|pod| cluster.pid(pod).expect("it runs")).collect();
    for pod in 1..=PODS {
        let directory = cluster.pod_dir(pod);
        assert!(directory.join("disk-1").join("superblock").is_file());
        let config = fs::read_to_string(directory.join("holdfast.toml")).unwrap();
        assert!(config.contains(&cluster.nbd_address(pod).to_string()), "{config}");
        let pid = pids[pod - 1].as_raw_pid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let files: Vec<&str> = files.split_whitespace().skip(3).take(2).collect();
        assert_eq!(files[0], files[1], "what is allowed is used: {limits}");
        let log = fs::read_to_string(directory.join("log")).unwrap();
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON");
        }
        cluster.connect(pod, "demo").write(4096 * pod as u64, &[pod as u8; 4096]).unwrap();
    }

    refused(&dev(&cluster, "data", cluster.offset), "--data");
    refused(&dev(&cluster, "elsewhere", cluster.offset), "--port-offset");

    assert_eq!(ids(&cluster), [1, 2, 3], "pod N has the id N");
    let status = cluster.terminate();
    assert!(status.success(), "{status}");
    for (pod, pid) in (1..).zip(&pids) {
        // The pods' processes end before `dev` does.
        assert!(test_kill_process(*pid).is_err(), "pod {pod} still runs");
        assert!(!cluster.pod_dir(pod).join("pid").exists(), "pod {pod} took its pid file away");
    }

    cluster.start_again();
    for pod in 1..=PODS {
        let read = cluster.connect(PODS, "demo").read(4096 * pod as u64, 4096).unwrap();
        assert_eq!(read, [pod as u8; 4096]);
    }
    assert_eq!(ids(&cluster), [1, 2, 3]);
}

/// The ids that pods 1, 2, ... have in the cluster.
fn ids(cluster: &Cluster) -> Vec<u64> {
    let pods = cluster.ask(&["pod", "list"]).expect("a pod answers");
    let pods = pods.as_array().expect("pods are listed");
    let id = |pod: usize| {
        let at = cluster.endpoint(pod);
        let of = pods.iter().find(|found| found["status"]["api"] == at.as_str());
        let name = of.and_then(|found| found["meta"]["name"].as_str()).expect("it is listed");
        name.parse().expect("pods have numbers")
    };
    (1..=PODS).map(id).collect()
}

/// The directory of a pod is restored from a copy of before the last starts. The shards have
/// recorded higher sessions of this pod since.
#[test]
fn a_pod_whose_directory_is_an_old_copy_writes_again() {
    let mut cluster = Setup::new("dev_contract_restored").volume("demo", "64MiB").start();
    cluster.stop();
    let files = ["data/pod.json", "data/data-path.json"];
    let paths: Vec<_> = files.iter().map(|name| cluster.pod_dir(2).join(name)).collect();
    let copies: Vec<String> = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for start in 1..=3 {
        cluster.start_again();
        cluster.connect(2, "demo").write(0, &[start; 4096]).unwrap();
        cluster.stop();
    }
    for (path, text) in paths.iter().zip(&copies) {
        fs::write(path, text).unwrap();
    }
    cluster.start_again();
    cluster.connect(2, "demo").write(0, &[9; 4096]).unwrap();
    assert_eq!(cluster.connect(1, "demo").read(0, 4096).unwrap(), [9; 4096]);
}

#[test]
fn a_pod_that_died_is_started_again_or_left_as_it_was_told() {
    let cluster = Setup::new("dev_contract_restart").volume("demo", "64MiB").start();
    let before = cluster.pid(2);
    cluster.kill(2);
    wait_until("it is started again", || cluster.pid(2).is_some_and(|pid| Some(pid) != before));
    drop(cluster);

    let mut cluster =
        Setup::new("dev_contract_never").volume("demo", "64MiB").restart_after("never").start();
    cluster.kill(2);
    let says = |words: &str| {
        fs::read_to_string(cluster.dir.join("dev.log")).is_ok_and(|log| log.contains(words))
    };
    wait_until("dev has noticed", || says("is not restarted"));
    // The others notice later than a restart would take.
    wait_until("the others miss it", || {
        let output = Command::new(program())
            .args(["status", "--endpoint", &cluster.endpoint(1)])
            .output()
            .expect("run holdfast status");
        String::from_utf8_lossy(&output.stdout).contains("pod 2 is unreachable")
    });
    assert_eq!(cluster.pid(2), None);
    assert!(cluster.terminate().success());
}
