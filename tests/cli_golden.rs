//! What people see: the tables of the command line, on fixed data, against files in
//! `tests/golden/cli/`. To accept a change: `UPDATE_GOLDEN=1 cargo test --release --test
//! cli_golden`, then read the difference.

use std::path::Path;

use holdfast::cli::bench::report::{self, Report, Side};
use holdfast::cli::{class, explain, render};
use holdfast::control::objects::condition::{Statement, Truth, Type, Why};
use holdfast::control::proto::{
    CatalogStatus, Class, ClassCapacity, ClassSpec, ClassStatus, Condition, Disk, DiskStatus,
    Event, EventSeverity, Meta, Phase, PhaseCount, Pod, PodStatus, Problem, Progress, Replica,
    Shard, ShardStatus, StatusResponse, Summary, Volume, VolumeSpec, VolumeStatus,
};

/// When the tables are made: 2026-03-01 07:08:09 UTC.
const NOW_MS: u64 = 1_772_348_889_000;

fn meta(uid: &str, name: &str) -> Option<Meta> {
    Some(Meta {
        uid: uid.to_owned(),
        name: name.to_owned(),
        generation: 1,
        revision: 17,
        created_unix_ms: NOW_MS - 86_400_000,
        ..Meta::default()
    })
}

/// A statement of a minute ago.
fn condition(kind: Type, truth: Truth, why: Why, message: &str) -> Condition {
    let statement = Statement::new(kind, truth, why, message);
    Condition {
        r#type: statement.kind.word().to_owned(),
        status: statement.truth.status().into(),
        reason: statement.why.word().to_owned(),
        message: statement.message,
        since_unix_ms: NOW_MS - 60_000,
        observed_generation: 1,
    }
}

fn pods() -> Vec<Pod> {
    let pod = |id: u64, phase: Phase, catalog: &str| {
        let is_up = phase == Phase::Up;
        let reachable = match is_up {
            true => condition(Type::Reachable, Truth::True, Why::Reporting, ""),
            false => condition(Type::Reachable, Truth::False, Why::Silent, "it does not report"),
        };
        let status = PodStatus {
            phase: phase.into(),
            conditions: vec![reachable],
            observed_generation: 1,
            api: format!("192.0.2.{id}:7400"),
            peer: format!("192.0.2.{id}:7401"),
            nbd: format!("192.0.2.{id}:10809"),
            catalog: catalog.to_owned(),
            disks: 1,
            replicas: 12,
            version: if is_up { "0.1.0".to_owned() } else { String::new() },
            node: format!("rack-{id}"),
        };
        let uid = format!("{id:x}").repeat(32);
        Pod { meta: meta(&uid[..32], &id.to_string()), status: Some(status) }
    };
    vec![
        pod(1, Phase::Up, "leader"),
        pod(2, Phase::Up, "voter"),
        pod(3, Phase::Unreachable, "voter"),
        pod(12, Phase::Up, ""),
    ]
}

fn disks() -> Vec<Disk> {
    let disk = |digit: char, pod: u64, used_bytes: u64, phase: Phase, usable: Condition| {
        let status = DiskStatus {
            phase: phase.into(),
            conditions: vec![usable],
            observed_generation: 1,
            pod,
            path: "/mnt/nvme0".to_owned(),
            capacity_bytes: 3 << 40,
            used_bytes,
            replicas: 12,
            log_bytes: 1 << 30,
            log_used_bytes: used_bytes >> 12,
            dirty_bytes: used_bytes >> 13,
            read_bytes: 8 << 20,
            read_dirty_bytes: 2 << 20,
            resyncs: 5,
        };
        let id = digit.to_string().repeat(32);
        Disk { meta: meta(&id, &id), status: Some(status) }
    };
    let usable = |truth, why, message: &str| condition(Type::Usable, truth, why, message);
    let failed = "a flush failed: input/output error";
    vec![
        disk('a', 1, 1536 << 30, Phase::Up, usable(Truth::True, Why::Working, "")),
        disk('b', 2, 0, Phase::Failed, usable(Truth::False, Why::GivenUp, failed)),
        disk('c', 3, 4096, Phase::Unreachable, {
            usable(Truth::Unknown, Why::PodSilent, "pod 3 is silent")
        }),
    ]
}

fn volume(name: &str, size_bytes: u64, phase: Phase, conditions: [Condition; 2]) -> Volume {
    let status = VolumeStatus {
        phase: phase.into(),
        conditions: conditions.to_vec(),
        observed_generation: 1,
        progress: (phase == Phase::Creating).then(|| Progress {
            done: 3,
            total: 6,
            unit: "replicas".to_owned(),
        }),
        shards: 2,
        stripe_bytes: 4 << 30,
        nbd: vec!["192.0.2.1:10809".to_owned(), "192.0.2.2:10809".to_owned()],
        id: 7,
        size_bytes,
        deleted_unix_ms: 0,
        purge_unix_ms: 0,
        io_timeout_ms: 0,
        nodes: vec!["node-2".to_owned()],
        replica_nodes: ["node-1", "node-2", "node-3"].map(str::to_owned).to_vec(),
        file_system: None,
    };
    let class = "replicated".to_owned();
    let spec = VolumeSpec { size_bytes, class, replicas: 3, closed: false };
    let mut meta = meta(&"7".repeat(32), name);
    meta.as_mut().unwrap().labels.insert("tier".to_owned(), "gold".to_owned());
    Volume { meta, spec: Some(spec), status: Some(status) }
}

fn volumes() -> Vec<Volume> {
    let led = || condition(Type::Available, Truth::True, Why::AllShardsLed, "");
    let lacks = |why, message| condition(Type::Redundant, Truth::False, why, message);
    let not = |why, message| condition(Type::Available, Truth::False, why, message);
    let missing = || lacks(Why::ReplicasMissing, "2 replicas are missing");
    let good = condition(Type::Redundant, Truth::True, Why::AllReplicasGood, "");
    let new = not(Why::NotMadeYet, "1 of 2 shards have no leader yet");
    let waits = "1 of 2 shards have no leader; their I/O waits";
    let waits = not(Why::ShardsWithoutLeader, waits);
    vec![
        volume("demo", 8 << 30, Phase::Degraded, [led(), missing()]),
        volume("a-volume-with-a-long-name", 5000 << 20, Phase::Ready, [led(), good]),
        volume("new", 8 << 30, Phase::Creating, [new, missing()]),
        volume("stuck", 8 << 30, Phase::Paused, [waits, missing()]),
        growing(),
        retained(),
    ]
}

/// Clients use the old size, and wait for the new one.
fn growing() -> Volume {
    let led = condition(Type::Available, Truth::True, Why::AllShardsLed, "");
    let good = condition(Type::Redundant, Truth::True, Why::AllReplicasGood, "");
    let mut volume = volume("growing", 20 << 30, Phase::Ready, [led, good]);
    let message = "from 8GiB to 20GiB: 1 of 3 new shards have no leader yet";
    let grown = condition(Type::Grown, Truth::False, Why::NewShardsNotReady, message);
    let status = volume.status.as_mut().unwrap();
    status.conditions.push(grown);
    status.size_bytes = 8 << 30;
    status.progress = Some(Progress { done: 7, total: 9, unit: "replicas".to_owned() });
    volume
}

/// Deleted, and kept for a day.
fn retained() -> Volume {
    let message = "it can be brought back";
    let gone = condition(Type::Available, Truth::False, Why::Retained, message);
    let good = condition(Type::Redundant, Truth::True, Why::AllReplicasGood, "");
    let mut volume = volume("retained", 8 << 30, Phase::Retained, [gone, good]);
    let status = volume.status.as_mut().unwrap();
    status.nbd.clear();
    status.deleted_unix_ms = 1_772_348_889_000;
    status.purge_unix_ms = status.deleted_unix_ms + 24 * 60 * 60 * 1000;
    volume
}

fn shards() -> Vec<Shard> {
    let replica = |member: u64, pod: u64, state: &str| Replica {
        member,
        pod,
        disk: "abc".chars().nth(pod as usize - 1).unwrap().to_string().repeat(32),
        state: state.to_owned(),
    };
    let shard = |id: u64, leader_pod: u64, phase: Phase| {
        let status = ShardStatus {
            phase: phase.into(),
            conditions: Vec::new(),
            observed_generation: 1,
            volume: "demo".to_owned(),
            position: id - 1,
            leader_pod,
            replicas: vec![
                replica(10 * id + 1, 1, "leader"),
                replica(10 * id + 2, 2, "follower"),
                replica(10 * id + 3, 3, "unreported"),
            ],
        };
        Shard { meta: meta(&id.to_string(), &id.to_string()), status: Some(status) }
    };
    vec![shard(1, 1, Phase::Degraded), shard(2, 0, Phase::Paused)]
}

fn classes() -> Vec<Class> {
    let class = |name: &str, replicas: u32, failure_domain: &str, io_timeout_ms: u64| {
        let spec = ClassSpec {
            replicas,
            failure_domain: failure_domain.to_owned(),
            overcommit_percent: 200,
            io_timeout_ms,
            ..ClassSpec::default()
        };
        let status = ClassStatus { phase: Phase::Ready.into(), ..ClassStatus::default() };
        Class { meta: meta(name, name), spec: Some(spec), status: Some(status) }
    };
    vec![class("local", 1, "node", 0), class("replicated-zones", 3, "zone", 30_000)]
}

fn capacities() -> Vec<ClassCapacity> {
    vec![ClassCapacity {
        class: "replicated".to_owned(),
        disks: 3,
        capacity_bytes: 9 << 40,
        used_bytes: 3 << 40,
        provisioned_bytes: 6 << 40,
        available_bytes: 4 << 40,
    }]
}

fn status() -> StatusResponse {
    let summary = |phases: &[(Phase, u64)]| {
        let count =
            |(phase, count): &(Phase, u64)| PhaseCount { phase: (*phase).into(), count: *count };
        let total = phases.iter().map(|(_, count)| count).sum();
        Some(Summary { total, phases: phases.iter().map(count).collect() })
    };
    let problem = |kind: &str, name: &str, phase: Phase, why: Why, message: &str| Problem {
        kind: kind.to_owned(),
        name: name.to_owned(),
        phase: phase.into(),
        reason: why.word().to_owned(),
        message: message.to_owned(),
        since_unix_ms: NOW_MS - 200_000,
    };
    StatusResponse {
        cluster: "0123456789abcdef".repeat(2),
        revision: 42,
        leader_pod: 1,
        catalog: Some(CatalogStatus { voters: 3, voters_up: 2, learners: 0 }),
        pods: summary(&[(Phase::Up, 3), (Phase::Unreachable, 1)]),
        disks: summary(&[(Phase::Up, 1), (Phase::Unreachable, 1), (Phase::Failed, 1)]),
        volumes: summary(&[(Phase::Ready, 99_997), (Phase::Degraded, 1), (Phase::Paused, 2)]),
        shards: 300_000,
        capacity_bytes: 3 << 40,
        used_bytes: 1536 << 30,
        problems: vec![
            problem(
                "volume",
                "stuck",
                Phase::Paused,
                Why::ShardsWithoutLeader,
                "1 of 2 shards have no leader; their I/O waits",
            ),
            problem("pod", "3", Phase::Unreachable, Why::Silent, "it does not report"),
        ],
        problems_total: 4,
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

fn events() -> Vec<Event> {
    let about = |kind: &str, name: &str, reason: &str, message: &str| Event {
        object_kind: kind.to_owned(),
        object_name: name.to_owned(),
        object_uid: "0a".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        severity: EventSeverity::Normal.into(),
        count: 1,
        first_unix_ms: NOW_MS - 3_600_000,
        last_unix_ms: NOW_MS - 3_600_000,
        ..Event::default()
    };
    let missing = Event {
        condition: "Redundant".to_owned(),
        severity: EventSeverity::Warning.into(),
        count: 3,
        last_unix_ms: NOW_MS - 5_000,
        ..about("volume", "demo", "ReplicasMissing", "1 replica is missing")
    };
    vec![
        about("volume", "demo", "VolumeCreated", "64MiB, of class replicated"),
        about("cluster", "", "TokenMade", "4f, for pod"),
        missing,
    ]
}

#[test]
fn tables_look_as_they_did() {
    check("volume_list.txt", &render::objects(&volumes(), false));
    check("volume_list_wide.txt", &render::objects(&volumes(), true));
    check("volume_show.txt", &render::object(&volumes()[2], NOW_MS));
    check("volume_show_growing.txt", &render::object(&volumes()[4], NOW_MS));
    check("volume_show_retained.txt", &render::object(&volumes()[5], NOW_MS));
    check("pod_list.txt", &render::objects(&pods(), false));
    check("pod_list_wide.txt", &render::objects(&pods(), true));
    check("pod_show.txt", &render::object(&pods()[2], NOW_MS));
    check("disk_list.txt", &render::objects(&disks(), false));
    check("disk_show.txt", &render::object(&disks()[1], NOW_MS));
    check("shard_list.txt", &render::objects(&shards(), false));
    check("shard_show.txt", &render::object(&shards()[0], NOW_MS));
    check("class_list.txt", &render::objects(&classes(), false));
    check("event_list.txt", &render::objects(&events(), false));
    check("event_list_wide.txt", &render::objects(&events(), true));
    check("class_capacity.txt", &class::capacities(&capacities()));
    check("status.txt", &render::status(&status(), NOW_MS));
    check("bench.txt", &report::text(&bench()));
    check("status_empty.txt", &render::status(&StatusResponse::default(), NOW_MS));
    check("volume_list_empty.txt", &render::objects::<Volume>(&[], false));
}

#[test]
fn explanations_read_as_they_did() {
    let parts = ["the replica of shard 1 on pod 3 is unreported".to_owned()];
    let told = |sentences: Vec<String>| sentences.join("\n") + "\n";
    let volumes = volumes();
    check("explain_paused.txt", &told(explain::sentences(&volumes[3], &parts, NOW_MS)));
    check("explain_ready.txt", &told(explain::sentences(&volumes[1], &[], NOW_MS)));
    check("explain_growing.txt", &told(explain::sentences(&volumes[4], &[], NOW_MS)));
    check("explain_retained.txt", &told(explain::sentences(&volumes[5], &[], NOW_MS)));
    let many: Vec<String> = (1..12).map(|n| format!("the replica of shard {n} is gone")).collect();
    check("explain_degraded.txt", &told(explain::sentences(&volumes[0], &many, NOW_MS)));
    check("explain_history.txt", &told(explain::history(&events(), NOW_MS)));
    check("explain_disk.txt", &told(explain::sentences(&disks()[1], &[], NOW_MS)));
}

#[test]
fn json_and_yaml_look_as_they_did() {
    check("bench.json", &render::json(&bench()).unwrap());
    check("status.json", &render::json(&status()).unwrap());
    check("volume_show.json", &render::json(&volumes()[2]).unwrap());
    check("volume_show.yaml", &render::yaml(&volumes()[2]).unwrap());
    check("shard_list.json", &render::json(&shards()).unwrap());
}
