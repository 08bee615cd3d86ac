//! What holds for Holdfast's own driver, beyond the specification.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::AccessType;
use holdfast::csi::proto::volume_capability::MountVolume;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{
    ControllerGetVolumeHealthRequest, ControllerListVolumeHealthRequest, CreateVolumeRequest,
    GetCapacityRequest, GetPluginInfoRequest, ProbeRequest, Topology, TopologyRequirement,
    VolumeHealthErrorType,
};
use holdfast::security::authority::Places;
use holdfast::security::credentials::Credentials;
use holdfast::security::files::Paths;
use holdfast::security::issue::{load_authority, now_s};
use holdfast::security::subject::Subject;
use tonic::{Code, Request};

use super::asking;
use super::capacity;
use super::driver::{
    Driver, MIB, assert_refused, block, map, mounted, range, to_publish, unique, wanted,
};
use super::growing::{expand, modify};
use super::support::tools::run;
use super::support::{Cluster, PODS, Setup, program, wait_until};
use super::together::{delete_all, make_many};

fn start(name: &'static str, arguments: &[&str]) -> Driver {
    Driver::ours(Setup::new(name).disk_sizes("4GiB", "64MiB").start(), arguments)
}

fn cluster(driver: &Driver) -> &Cluster {
    driver.cluster.as_ref().expect("it is ours")
}

fn holdfast(driver: &Driver, arguments: &[&str]) -> String {
    let endpoint = cluster(driver).endpoint(1);
    let all = [arguments, &["--endpoint", &endpoint]].concat();
    run(program().to_str().unwrap(), &all)
}

/// The volume of a handle, as the command line shows it.
fn shown(driver: &Driver, volume_id: &str) -> serde_json::Value {
    let (_, uid) = volume_id.split_once('/').expect("a handle");
    let all = cluster(driver).ask(&["volume", "list"]).expect("a list of volumes");
    let all = all.as_array().expect("a list");
    all.iter().find(|it| it["meta"]["uid"] == uid).expect("the volume is listed").clone()
}

#[test]
fn parameters_sizes_and_places_are_as_documented() {
    let driver = start("csi_parameters", &[]);
    parameters_choose_class_and_labels(&driver);
    unknown_parameters_are_refused_with_the_list(&driver);
    access_modes_that_would_lose_data_are_refused(&driver);
    no_room_is_told_in_numbers(&driver);
    local_volumes_lie_where_they_are_wanted(&driver);
    growing_tells_whether_the_node_has_to_follow(&driver);
    handles_of_other_clusters_are_refused(&driver);
    what_people_do_is_respected(&driver);
    lost_nodes_get_nothing(&driver);
}

fn parameters_choose_class_and_labels(driver: &Driver) {
    let parameters = map(&[
        ("class", "local"),
        ("label.tier", "gold"),
        ("label.team/name", "db"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/fstype", "xfs"),
    ]);
    let mutable_parameters = map(&[("label.tier", "silver")]);
    let request =
        CreateVolumeRequest { parameters, mutable_parameters, ..wanted(&unique("parameters")) };
    let id = driver.create(request.clone()).unwrap().volume_id;
    let volume = shown(driver, &id);
    assert_eq!(volume["spec"]["class"], "local");
    assert_eq!(volume["spec"]["closed"], true, "from birth");
    let labels = &volume["meta"]["labels"];
    assert_eq!((&labels["tier"], &labels["team/name"]), (&"silver".into(), &"db".into()));
    assert!(labels["csi.holdfast.io/made-for"].is_string(), "the driver knows its own: {labels}");
    // Keys of Kubernetes are no part of what is asked for.
    let mut again = request.clone();
    again.parameters.remove("csi.storage.k8s.io/pvc/name");
    assert_eq!(driver.create(again).unwrap().volume_id, id);
    let mut other = request.clone();
    other.parameters.insert("class".to_owned(), "replicated".to_owned());
    assert_refused(driver.create(other), Code::AlreadyExists);
    // The volume stays the same one when it has changed.
    modify(driver, &id, &[("label.tier", "gold"), ("csi.storage.k8s.io/x", "y")]).unwrap();
    assert_eq!(shown(driver, &id)["meta"]["labels"]["tier"], "gold");
    let mut changed = request;
    changed.mutable_parameters = map(&[("label.tier", "gold")]);
    assert_eq!(driver.create(changed).unwrap().volume_id, id);
    driver.delete(&id).unwrap();
}

fn unknown_parameters_are_refused_with_the_list(driver: &Driver) {
    let with = |pairs: &[(&str, &str)]| CreateVolumeRequest {
        parameters: map(pairs),
        ..wanted(&unique("unknown"))
    };
    let said = assert_refused(driver.create(with(&[("replica", "3")])), Code::InvalidArgument);
    assert!(said.contains("\"class\"") && said.contains("\"label.\""), "{said}");
    let said = assert_refused(driver.create(with(&[("class", "no")])), Code::InvalidArgument);
    assert!(said.contains("replicated-zones"), "it names the classes: {said}");
    let said = assert_refused(driver.create(with(&[("label.a", "ä")])), Code::InvalidArgument);
    assert!(said.contains("label"), "{said}");
    let id = driver.volume("unknown");
    let said = assert_refused(modify(driver, &id, &[("class", "local")]), Code::InvalidArgument);
    assert!(said.contains("\"label.\""), "{said}");
    driver.delete(&id).unwrap();
    let of = |pairs: &[(&str, &str)]| GetCapacityRequest {
        parameters: map(pairs),
        ..GetCapacityRequest::default()
    };
    assert_refused(capacity::get(driver, of(&[("class", "no")])), Code::InvalidArgument);
    assert_refused(capacity::get(driver, of(&[("x", "y")])), Code::InvalidArgument);
}

fn access_modes_that_would_lose_data_are_refused(driver: &Driver) {
    let with = |capability| CreateVolumeRequest {
        volume_capabilities: vec![capability],
        ..wanted(&unique("modes"))
    };
    let btrfs = MountVolume { fs_type: "btrfs".to_owned(), ..MountVolume::default() };
    let mut other = mounted(Mode::SingleNodeWriter);
    other.access_type = Some(AccessType::Mount(btrfs));
    for capability in [
        mounted(Mode::MultiNodeMultiWriter),
        mounted(Mode::MultiNodeSingleWriter),
        block(Mode::MultiNodeSingleWriter),
        other,
    ] {
        assert_refused(driver.create(with(capability.clone())), Code::InvalidArgument);
        let request = GetCapacityRequest {
            volume_capabilities: vec![capability],
            ..GetCapacityRequest::default()
        };
        assert_eq!(capacity::get(driver, request).unwrap().available_capacity, 0);
    }
}

fn no_room_is_told_in_numbers(driver: &Driver) {
    let most = capacity::get(driver, GetCapacityRequest::default()).unwrap();
    let most = most.maximum_volume_size.expect("a largest volume");
    let with =
        |bytes| CreateVolumeRequest { capacity_range: range(bytes, 0), ..wanted(&unique("room")) };
    let said = assert_refused(driver.create(with(1 << 49)), Code::ResourceExhausted);
    assert!(said.chars().any(|c| c.is_ascii_digit()), "{said}");
    assert_refused(driver.create(with((1 << 50) + 1)), Code::OutOfRange);
    let id = driver.create(with(most)).unwrap().volume_id;
    let said = expand(driver, &id, range(1 << 40, 0), None);
    assert_refused(said, Code::ResourceExhausted);
    driver.delete(&id).unwrap();
    wait_until("its space is free again", || {
        let now = capacity::get(driver, GetCapacityRequest::default()).unwrap();
        now.maximum_volume_size >= Some(most)
    });
}

fn on(node: &str) -> Topology {
    Topology { segments: map(&[("holdfast.io/node", node)]) }
}

fn local_volumes_lie_where_they_are_wanted(driver: &Driver) {
    let all = || ["pod-1", "pod-2", "pod-3"].map(on).to_vec();
    for node in ["pod-3", "pod-1"] {
        let wishes = TopologyRequirement { requisite: all(), preferred: vec![on(node)] };
        let request = |class: &str| CreateVolumeRequest {
            parameters: map(&[("class", class)]),
            accessibility_requirements: Some(wishes.clone()),
            ..wanted(&unique("place"))
        };
        let local = driver.create(request("local")).unwrap();
        assert_eq!(local.accessible_topology, [on(node)]);
        let got = asking::get(driver, &local.volume_id).unwrap().volume.unwrap();
        assert_eq!(got.accessible_topology, [on(node)]);
        let everywhere = driver.create(request("replicated")).unwrap();
        assert_eq!(everywhere.accessible_topology, []);
        driver.delete(&local.volume_id).unwrap();
        driver.delete(&everywhere.volume_id).unwrap();
    }
    // A later preference counts before the rest, and what is there is not moved.
    let wishes = |preferred: &[&str]| TopologyRequirement {
        requisite: all(),
        preferred: preferred.iter().copied().map(on).collect(),
    };
    let mut request = CreateVolumeRequest {
        parameters: map(&[("class", "local")]),
        accessibility_requirements: Some(wishes(&["no-such-node", "pod-2", "pod-1"])),
        ..wanted(&unique("place"))
    };
    let local = driver.create(request.clone()).unwrap();
    assert_eq!(local.accessible_topology, [on("pod-2")]);
    request.accessibility_requirements =
        Some(TopologyRequirement { requisite: vec![on("pod-1")], preferred: Vec::new() });
    assert_refused(driver.create(request.clone()), Code::AlreadyExists);
    request.accessibility_requirements = Some(wishes(&["pod-1"]));
    assert_eq!(driver.create(request).unwrap().volume_id, local.volume_id);
    driver.delete(&local.volume_id).unwrap();
    let strict = TopologyRequirement { requisite: vec![on("no-such-node")], preferred: Vec::new() };
    let request = CreateVolumeRequest {
        parameters: map(&[("class", "local")]),
        accessibility_requirements: Some(strict),
        ..wanted(&unique("place"))
    };
    assert_refused(driver.create(request), Code::ResourceExhausted);
    let of = |class: &str, node: &str| {
        let request = GetCapacityRequest {
            parameters: map(&[("class", class)]),
            accessible_topology: Some(on(node)),
            ..GetCapacityRequest::default()
        };
        capacity::get(driver, request).unwrap().available_capacity
    };
    assert_eq!(of("local", "no-such-node"), 0);
    assert!(of("local", "pod-2") > 0 && of("replicated", "no-such-node") > 0);
}

fn growing_tells_whether_the_node_has_to_follow(driver: &Driver) {
    let id = driver.volume("follow");
    let mount = expand(driver, &id, range(2 * MIB, 0), Some(mounted(Mode::SingleNodeWriter)));
    assert!(mount.unwrap().node_expansion_required);
    let device = expand(driver, &id, range(3 * MIB, 0), Some(block(Mode::SingleNodeWriter)));
    assert!(!device.unwrap().node_expansion_required);
    // Beyond its first shard.
    let more = expand(driver, &id, range((4 << 30) + 1, 0), None).unwrap();
    assert_eq!(more.capacity_bytes, (4 << 30) + 4096);
    assert_eq!(shown(driver, &id)["status"]["size_bytes"], (4u64 << 30) + 4096);
    driver.delete(&id).unwrap();
}

fn handles_of_other_clusters_are_refused(driver: &Driver) {
    let id = driver.volume("foreign");
    let (_, uid) = id.split_once('/').unwrap();
    let foreign = format!("{}/{uid}", "0f".repeat(16));
    let said = assert_refused(driver.delete(&foreign), Code::FailedPrecondition);
    assert!(said.contains("another cluster"), "{said}");
    assert_refused(asking::get(driver, &foreign), Code::NotFound);
    assert_refused(driver.publish(to_publish(&foreign, "pod-1")), Code::NotFound);
    assert_refused(driver.unpublish(&foreign, "pod-1"), Code::NotFound);
    assert_refused(expand(driver, &foreign, range(2 * MIB, 0), None), Code::NotFound);
    assert!(asking::get(driver, &id).is_ok());
    driver.delete(&id).unwrap();
}

/// Volumes that a person made, deleted or opened.
fn what_people_do_is_respected(driver: &Driver) {
    let request = wanted(&unique("people"));
    let id = driver.create(request.clone()).unwrap().volume_id;
    holdfast(driver, &["volume", "open", &request.name]);
    let said = assert_refused(driver.publish(to_publish(&id, "pod-1")), Code::FailedPrecondition);
    assert!(said.contains("open"), "{said}");
    assert_refused(driver.create(request.clone()), Code::AlreadyExists);
    assert_refused(driver.delete(&id), Code::FailedPrecondition);
    holdfast(driver, &["volume", "close", &request.name]);
    holdfast(driver, &["volume", "delete", &request.name]);
    // For a day it could be brought back; until then the orchestrator has no such volume, and does
    // not shorten that.
    driver.delete(&id).unwrap();
    assert_refused(asking::get(driver, &id), Code::NotFound);
    assert_refused(driver.publish(to_publish(&id, "pod-1")), Code::NotFound);
    assert_refused(driver.create(request.clone()), Code::AlreadyExists);
    holdfast(driver, &["volume", "undelete", &request.name]);
    assert_eq!(driver.create(request.clone()).unwrap().volume_id, id);
    // What the orchestrator deletes is gone.
    driver.delete(&id).unwrap();
    let again = driver.until(|| driver.create(request.clone())).unwrap().volume_id;
    assert_ne!(again, id);
    driver.delete(&again).unwrap();
    // What a person made is not taken over, however alike it is.
    let theirs = wanted(&unique("theirs"));
    let size = driver.create(wanted(&unique("size"))).unwrap();
    let bytes = size.capacity_bytes.to_string();
    let create = ["volume", "create", &theirs.name, "--size", &bytes, "--closed"];
    holdfast(driver, &create);
    let said = assert_refused(driver.create(theirs.clone()), Code::AlreadyExists);
    assert!(said.contains("has not made it"), "{said}");
    holdfast(driver, &["volume", "delete", &theirs.name, "--retention", "0"]);
    driver.delete(&size.volume_id).unwrap();
}

fn lost_nodes_get_nothing(driver: &Driver) {
    let id = driver.volume("lost");
    let node = cluster(driver).ask(&["node", "show", "pod-3"]).expect("the node");
    let boot_id = node["status"]["boot_id"].as_str().expect("a boot id");
    driver.publish(to_publish(&id, "pod-3")).unwrap();
    holdfast(driver, &["node", "lost", "pod-3", "--boot-id", boot_id]);
    // It was fenced, so another node may have the volume.
    driver.publish(to_publish(&id, "pod-1")).unwrap();
    driver.unpublish(&id, "pod-1").unwrap();
    let said = assert_refused(driver.publish(to_publish(&id, "pod-3")), Code::FailedPrecondition);
    assert!(said.contains("lost"), "{said}");
    driver.delete(&id).unwrap();
}

/// Secrets and the values of parameters never reach the log; who asked for what does.
#[test]
fn requests_are_logged_without_secrets_and_the_socket_is_for_its_owner() {
    let mut driver = start("csi_log", &["--driver-name", "block.example.org"]);
    let info = driver.identity(async |mut it| it.get_plugin_info(GetPluginInfoRequest {}).await);
    assert_eq!(info.unwrap().name, "block.example.org");
    let request = CreateVolumeRequest {
        parameters: map(&[("label.tier", "hushed")]),
        secrets: map(&[("key", "5ec2e7")]),
        ..wanted(&unique("logged"))
    };
    let id = driver.create(request.clone()).unwrap().volume_id;
    let wrong = CreateVolumeRequest { parameters: map(&[("other", "hushed")]), ..request.clone() };
    assert_refused(driver.create(wrong), Code::InvalidArgument);
    driver.delete(&id).unwrap();
    let process = driver.process.as_mut().unwrap();
    let mode = fs::metadata(&process.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let log = fs::read_to_string(&process.log).unwrap();
    assert!(!log.contains("5ec2e7") && !log.contains("hushed"), "{log}");
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["message"] == "served").collect();
    let of = |method: &str, code: &str, volume: &str| {
        let fits = |it: &&serde_json::Value| {
            it["method"] == method && it["code"] == code && it["volume"] == volume
        };
        let line = lines.iter().find(fits);
        let line = line.unwrap_or_else(|| panic!("{method} {code} of {volume} is logged: {log}"));
        assert!(line["request"].is_string() && line["duration_ms"].is_number(), "{line}");
    };
    of("CreateVolume", "OK", &request.name);
    of("CreateVolume", "INVALID_ARGUMENT", &request.name);
    of("DeleteVolume", "OK", &id);
    // It ends when it is told, and takes its socket with it.
    assert!(process.stop());
    assert!(!process.socket.exists());
}

/// A pod that is gone or hangs is passed over. Without a majority requests end at their deadlines,
/// and the process still answers for itself.
#[test]
fn requests_go_on_at_other_pods_and_end_at_their_deadlines() {
    let setup = Setup::new("csi_pods").volume("demo", "1MiB").disk_sizes("1GiB", "64MiB");
    let setup = setup.restart_after("never");
    let driver = Driver::ours(setup.start(), &[]);
    let id = driver.volume("pods");
    wait_until("the catalog is on all pods", || {
        let status = cluster(&driver).ask(&["status"]);
        status.is_some_and(|status| status["catalog"]["voters"] == PODS)
    });
    cluster(&driver).kill(1);
    driver.publish(to_publish(&id, "pod-2")).unwrap();
    driver.unpublish(&id, "pod-2").unwrap();
    let node_that_is_off = driver.until(|| driver.publish(to_publish(&id, "pod-1")));
    node_that_is_off.unwrap();
    let began = Instant::now();
    driver.unpublish(&id, "pod-1").unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "a dead node is not waited for");
    cluster(&driver).freeze(2);
    let began = Instant::now();
    // One that needs a majority, whatever the leader knows of the other pods.
    let mut request = Request::new(to_publish(&id, "pod-3"));
    request.set_timeout(Duration::from_secs(3));
    let answer = driver.controller(async |mut it| it.controller_publish_volume(request).await);
    let said = assert_refused(answer, Code::Unavailable);
    assert!(said.contains(&cluster(&driver).endpoint(3)), "it names the pods: {said}");
    assert!(began.elapsed() < Duration::from_millis(3200), "{:?}", began.elapsed());
    let began = Instant::now();
    driver.identity(async |mut it| it.probe(ProbeRequest {}).await).unwrap();
    assert!(began.elapsed() < Duration::from_millis(500));
    cluster(&driver).thaw(2);
    // The publish may have come through after its deadline.
    driver.unpublish(&id, "pod-3").unwrap();
    driver.delete(&id).unwrap();
}

fn credentials(cluster: &Cluster, role: &str) -> std::path::PathBuf {
    let authority = load_authority(&cluster.dir.join("data").join("authority")).unwrap();
    let subject = Subject { cluster: authority.cluster(), role: role.parse().unwrap() };
    let issued = authority.issue(&subject, &Places::default(), now_s()).unwrap();
    let roots = vec![authority.root().clone()];
    let credentials = Credentials::new(issued.certificate, issued.key, roots).unwrap();
    let directory = cluster.dir.join("credentials");
    Paths::of_client(&directory).store(&credentials).unwrap();
    directory
}

/// Under TLS, with the role of a controller and no other rights; and with CSI 1.13.
#[test]
fn the_role_of_a_controller_is_enough_and_health_is_told() {
    let setup = Setup::new("csi_tls").volume("demo", "1MiB").disk_sizes("1GiB", "64MiB");
    let cluster = setup.set("api.plaintext=false").start();
    let directory = credentials(&cluster, "csi-controller/c");
    let endpoints = [1, 2, 3].map(|pod| cluster.endpoint(pod)).join(",");
    let arguments = ["--credentials", directory.to_str().unwrap(), "--csi-spec", "1.13"];
    let driver = Driver::with(cluster, &endpoints, &arguments);
    assert!(driver.has(Rpc::GetVolumeHealth) && driver.has(Rpc::ListVolumeHealth));
    assert!(!driver.has(Rpc::VolumeCondition));
    let id = driver.volume("health");
    driver.publish(to_publish(&id, "pod-1")).unwrap();
    driver.unpublish(&id, "pod-1").unwrap();
    let got = asking::get(&driver, &id).unwrap();
    assert_eq!(got.status.unwrap().volume_condition, None);
    let health = || {
        let request =
            ControllerGetVolumeHealthRequest { volume_id: id.clone(), ..Default::default() };
        let answer =
            driver.controller(async |mut it| it.controller_get_volume_health(request).await);
        answer.unwrap().volume_health.expect("an answer has it").health_statuses
    };
    wait_until("the volume is well", || health().is_empty());
    self::cluster(&driver).freeze(3);
    wait_until("a missing replica is told", || {
        health().iter().any(|it| it.status() == VolumeHealthErrorType::Degraded)
    });
    let request = ControllerListVolumeHealthRequest::default();
    let all = driver.controller(async |mut it| it.controller_list_volume_health(request).await);
    let entries = all.unwrap().entries;
    let entry = entries.iter().find(|entry| entry.volume_id == id).expect("it is listed");
    assert_eq!(entry.health_statuses[0].reason, "ReplicasMissing");
    self::cluster(&driver).thaw(3);
    assert_eq!(entries.len(), 2, "the one that a person made is listed, too");
    driver.delete(&id).unwrap();
}

/// Not a bound of the tests, for machines differ: it prints what it measures.
#[test]
fn volumes_are_made_quickly() {
    let driver = start("csi_speed", &[]);
    let (warm, _) = make_many(&driver, 64);
    let began = Instant::now();
    let (ids, mut took) = make_many(&driver, 640);
    let all = began.elapsed();
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "CreateVolume, 32 at a time, {PODS} pods: {} volumes, p50 {:.1} ms, p99 {:.1} ms, \
         {:.0} a second",
        ids.len(),
        at(50),
        at(99),
        ids.len() as f64 / all.as_secs_f64()
    );
    delete_all(&driver, &ids);
    delete_all(&driver, &warm);
}
