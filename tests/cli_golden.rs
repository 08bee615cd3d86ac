//! What people see: the tables of the command line, on fixed data, against files in
//! `tests/golden/cli/`. To accept a change: `UPDATE_GOLDEN=1 cargo test --release --test
//! cli_golden`, then read the difference.

use std::path::Path;

use holdfast::cli::bench::report::{self, Report, Side};
use holdfast::cli::render;
use holdfast::control::proto::{
    Disk, DiskState, Pod, PodState, Replica, Shard, StatusResponse, Volume, VolumeState,
};

fn pods() -> Vec<Pod> {
    let pod = |id: u64, state: PodState, catalog: &str| Pod {
        id,
        api: format!("192.0.2.{id}:7400"),
        peer: format!("192.0.2.{id}:7401"),
        nbd: format!("192.0.2.{id}:10809"),
        state: state.into(),
        catalog: catalog.to_owned(),
        disks: 1,
        replicas: 12,
        version: if state == PodState::Up { "0.1.0".to_owned() } else { String::new() },
    };
    vec![
        pod(1, PodState::Up, "leader"),
        pod(2, PodState::Up, "voter"),
        pod(3, PodState::Unreachable, "voter"),
        pod(12, PodState::Up, ""),
    ]
}

fn disks() -> Vec<Disk> {
    let disk = |digit: char, pod: u64, used_bytes: u64, state: DiskState, reason: &str| Disk {
        id: digit.to_string().repeat(32),
        pod,
        path: "/mnt/nvme0".to_owned(),
        capacity_bytes: 3 << 40,
        used_bytes,
        replicas: 12,
        state: state.into(),
        reason: reason.to_owned(),
        log_bytes: 1 << 30,
        log_used_bytes: used_bytes >> 12,
        dirty_bytes: used_bytes >> 13,
        read_bytes: 8 << 20,
        read_dirty_bytes: 2 << 20,
        resyncs: 5,
    };
    vec![
        disk('a', 1, 1536 << 30, DiskState::Up, ""),
        disk('b', 2, 0, DiskState::Failed, "a flush failed: input/output error"),
        disk('c', 3, 4096, DiskState::Unreachable, ""),
    ]
}

fn volumes() -> Vec<Volume> {
    let replica = |member: u64, pod: u64, state: &str| Replica {
        member,
        pod,
        disk: "abc".chars().nth(pod as usize - 1).unwrap().to_string().repeat(32),
        state: state.to_owned(),
    };
    let shard = |id: u64, leader_pod: u64| Shard {
        id,
        replicas: vec![
            replica(10 * id + 1, 1, "leader"),
            replica(10 * id + 2, 2, "follower"),
            replica(10 * id + 3, 3, "unreported"),
        ],
        leader_pod,
    };
    let volume = |name: &str, size_bytes: u64, state: VolumeState, reason: &str| Volume {
        id: 7,
        name: name.to_owned(),
        size_bytes,
        replicas: 3,
        state: state.into(),
        reason: reason.to_owned(),
        shards: vec![shard(1, 1), shard(2, 1)],
        nbd: vec!["192.0.2.1:10809".to_owned(), "192.0.2.2:10809".to_owned()],
    };
    let waits = "1 of 2 shards have no leader; their I/O waits";
    vec![
        volume("demo", 8 << 30, VolumeState::Degraded, "2 replicas are missing"),
        volume("a-volume-with-a-long-name", 5000 << 20, VolumeState::Ready, ""),
        volume("new", 8 << 30, VolumeState::Creating, "1 of 2 shards have no leader yet"),
        volume("stuck", 8 << 30, VolumeState::Paused, waits),
    ]
}

fn status() -> StatusResponse {
    StatusResponse {
        cluster: "0123456789abcdef".repeat(2),
        revision: 42,
        leader_pod: 1,
        pods: pods(),
        disks: disks(),
        volumes: volumes(),
        problems: vec!["pod 3 is unreachable".to_owned(), "volume stuck is paused".to_owned()],
    }
}

fn bench() -> Report {
    let side = |operations: u64| Side {
        operations,
        iops: operations as f64 / 10.0,
        mb_s: operations as f64 * 4096.0 / 10e6,
        mean_us: 402.5,
        p50_us: 375.25,
        p90_us: 512.0,
        p99_us: 1234.5,
        p999_us: 9876.5,
        max_us: 31_843.25,
    };
    Report {
        volume: "demo".to_owned(),
        nbd: "192.0.2.1:10809".to_owned(),
        pattern: "randrw".to_owned(),
        block_bytes: 4096,
        depth: 32,
        connections: 4,
        seconds: 10.0,
        interrupted: true,
        read: Some(side(315_200)),
        write: Some(side(135_010)),
        errors: 1,
        unanswered: 32,
        reconnects: 2,
    }
}

fn check(name: &str, text: &str) {
    let path = Path::new("tests/golden/cli").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs", path.display());
}

#[test]
fn tables_look_as_they_did() {
    check("volume_list.txt", &render::volumes(&volumes()));
    check("volume_show.txt", &render::volume(&volumes()[0]));
    check("pod_list.txt", &render::pods(&pods()));
    check("disk_list.txt", &render::disks(&disks()));
    check("status.txt", &render::status(&status()));
    check("bench.txt", &report::text(&bench()));
    check("status_empty.txt", &render::status(&StatusResponse::default()));
}

#[test]
fn json_looks_as_it_did() {
    check("bench.json", &render::json(&bench()).unwrap());
    check("status.json", &render::json(&status()).unwrap());
}
