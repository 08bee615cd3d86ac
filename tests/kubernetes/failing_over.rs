//! A node is lost, and what it had can be used elsewhere; the controllers are killed in between.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::nodes::{NAMESPACE, Nodes, node_name};
use super::support::network::address;
use super::support::tools::text;
use super::support::wait_until;
use super::{Ending, Enrol, accounts, publish_authority, wait_members};

const DRIVER: &str = "csi.holdfast.io";
const COUNT: usize = 3;
/// A node without a storage pod.
const FAR: usize = COUNT + 1;
/// Kubelets renew their Leases every 10 s.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// The controllers, one on each node.
struct Controllers {
    running: Vec<Option<Child>>,
}

impl Controllers {
    fn start(nodes: &Nodes, mode: &str, on: &[usize]) -> Controllers {
        let running = (0..=COUNT).map(|node| {
            on.contains(&node).then(|| {
                let path = nodes.dir.join(format!("controller-{node}.log"));
                let log = fs::File::options().create(true).append(true).open(path).unwrap();
                let socket = nodes.dir.join(format!("csi-{node}.sock"));
                let mut controller = nodes.command(node, "controller");
                controller
                    .args(["csi", "controller", "--csi-endpoint"])
                    .arg(format!("unix://{}", socket.display()))
                    .args(["--endpoint", &nodes.endpoints(), "--fail-over", mode])
                    .args(["--credentials", text(&nodes.dir.join("credentials-controller"))])
                    .env("NODE_NAME", node_name(node))
                    .env("NAMESPACE", NAMESPACE)
                    .stdin(Stdio::null())
                    .stdout(log.try_clone().unwrap())
                    .stderr(log);
                controller.spawn().expect("run holdfast csi controller")
            })
        });
        Controllers { running: running.collect() }
    }

    /// `kill -9` of all of them.
    fn kill(&mut self) {
        for mut child in self.running.iter_mut().filter_map(Option::take) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The kubelets: they renew the Leases of all nodes but one.
struct Kubelets {
    ended: AtomicBool,
    /// 0: none.
    off: AtomicUsize,
}

impl Kubelets {
    fn run(&self, nodes: &Nodes) {
        let mut renewed: Option<Instant> = None;
        let mut times = 0;
        while !self.ended.load(Ordering::Relaxed) {
            if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
                renewed = Some(Instant::now());
                times += 1;
                let off = self.off.load(Ordering::Relaxed);
                (1..=FAR).filter(|node| *node != off).for_each(|node| renew(nodes, node, times));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn renew(nodes: &Nodes, node: usize, times: u64) {
    let time = format!("2026-01-01T00:{:02}:{:02}.000000Z", times / 60, times % 60);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": node_name(node) }, "spec": { "renewTime": time },
    });
    nodes.api.put("leases", "kube-node-lease", lease);
}

/// A Pod with a claim on one of our volumes, as Kubernetes has them.
fn run_pod(nodes: &Nodes, node: usize, name: &str, driver: &str, handle: &str) {
    let (pv, claim) = (format!("pv-{name}"), format!("claim-{name}"));
    nodes.api.put(
        "persistentvolumes",
        "",
        json!({
            "metadata": { "name": pv },
            "spec": {
                "csi": { "driver": driver, "volumeHandle": handle },
                "claimRef": { "namespace": "apps", "name": claim },
            },
        }),
    );
    nodes.api.put(
        "volumeattachments",
        "",
        json!({
            "metadata": { "name": format!("va-{name}") },
            "spec": {
                "attacher": driver, "nodeName": node_name(node),
                "source": { "persistentVolumeName": pv },
            },
        }),
    );
    nodes.api.put(
        "pods",
        "apps",
        json!({
            "metadata": { "name": name },
            "spec": {
                "nodeName": node_name(node), "containers": [],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }],
            },
        }),
    );
}

/// A Pod that uses a volume of ours, and may write to a server of others.
fn run_mixed_pod(nodes: &Nodes, node: usize, claim: &str) {
    let volumes = json!([
        { "name": "data", "persistentVolumeClaim": { "claimName": claim } },
        { "name": "shared", "nfs": { "server": "nfs", "path": "/" } },
    ]);
    let spec = json!({ "nodeName": node_name(node), "containers": [], "volumes": volumes });
    nodes.api.put("pods", "apps", json!({ "metadata": { "name": "mixed" }, "spec": spec }));
}

/// Makes a volume, publishes it to a node, and returns its handle.
fn publish(nodes: &Nodes, volume: &str, class: &str, node: usize) -> String {
    let create = ["volume", "create", volume, "--size", "1MiB", "--class", class, "--closed"];
    wait_until("a volume is made", || nodes.ask(&create).is_some());
    let made = nodes.ask(&["volume", "show", volume]).expect("the volume is there");
    let to = node_name(node);
    wait_until("a volume is published", || {
        nodes.ask(&["attachment", "publish", volume, &to]).is_some()
    });
    let cluster = nodes.ask(&["status"]).expect("the status");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    format!("{}/{}", text(&cluster["cluster"]), text(&made["meta"]["uid"]))
}

fn set_node(nodes: &Nodes, node: usize, handles: &[String]) {
    let in_use = handles.iter().map(|it| format!("kubernetes.io/csi/{DRIVER}^{it}"));
    let in_use: Vec<String> = in_use.chain(["kubernetes.io/csi/other.io^1".to_owned()]).collect();
    let name = node_name(node);
    let labels = json!({ "holdfast.io/storage": "true" });
    let taint = json!({ "key": "theirs", "effect": "NoExecute" });
    nodes.api.put(
        "nodes",
        "",
        json!({
            "metadata": { "name": name, "labels": labels },
            "spec": { "taints": [taint] }, "status": { "volumesInUse": in_use },
        }),
    );
}

fn in_use(nodes: &Nodes, node: usize) -> Vec<String> {
    let object = nodes.api.get("nodes", "", &node_name(node)).unwrap_or_default();
    let volumes = object["status"]["volumesInUse"].as_array().cloned().unwrap_or_default();
    volumes.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect()
}

fn taints(nodes: &Nodes, node: usize) -> Vec<String> {
    let object = nodes.api.get("nodes", "", &node_name(node)).unwrap_or_default();
    let taints = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.iter().filter_map(|it| it["key"].as_str().map(str::to_owned)).collect()
}

/// What another node's pod says.
fn is_lost(nodes: &Nodes, node: usize) -> bool {
    let other = if node == 1 { 2 } else { 1 };
    let shown = nodes.run(other, &["node", "show", &node_name(node), "-o", "json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
    shown["status"]["lost"] == true
}

/// Reasons of events in Kubernetes, with what they are about.
fn told(nodes: &Nodes) -> BTreeSet<(String, String)> {
    let recorded = nodes.api.recorded();
    let events = recorded.iter().filter(|it| it.what == "POST events");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events.map(|it| (text(&it.body["reason"]), text(&it.body["involvedObject"]["name"]))).collect()
}

fn changes(nodes: &Nodes) -> usize {
    let is_change = |what: &str| !what.starts_with("GET") && !what.ends_with(" events");
    nodes.api.recorded().iter().filter(|it| is_change(&it.what)).count()
}

#[test]
fn what_a_lost_node_had_is_usable_elsewhere() {
    let mut nodes = Nodes::on_machines("kubernetes_fail_over", COUNT);
    accounts(&nodes);
    (1..=COUNT).for_each(|node| nodes.start(node));
    wait_members(&nodes, COUNT);
    let enrol = Enrol::new(&nodes, "csi-controller", "controller");
    wait_until("the authority is published", || publish_authority(&nodes, &enrol.authority));
    assert!(enrol.run().status.success());
    for node in 1..=COUNT {
        let labels = json!({ "app.kubernetes.io/component": "csi-controller" });
        let name = format!("controller-{node}");
        let pod = json!({
            "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": node_name(node), "containers": [] },
            "status": {
                "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        nodes.api.put("pods", NAMESPACE, pod);
    }
    // The controller that acts is on the node that is lost.
    let victim = leader_node(&nodes);
    let (one, two) = (
        publish(&nodes, "one", "replicated", victim),
        publish(&nodes, "two", "replicated", victim),
    );
    set_node(&nodes, victim, &[one.clone(), two.clone()]);
    run_pod(&nodes, victim, "db-0", DRIVER, &one);
    run_pod(&nodes, victim, "db-1", DRIVER, &two);
    run_pod(&nodes, victim, "theirs", "other.io", "1");
    run_mixed_pod(&nodes, victim, "claim-db-0");
    run_pod(&nodes, victim, "foreign", DRIVER, "00000000000000000000000000000001/00");

    let kubelets = Kubelets { ended: AtomicBool::new(false), off: AtomicUsize::new(0) };
    std::thread::scope(|scope| {
        scope.spawn(|| kubelets.run(&nodes));
        // Ends the thread also when the test fails.
        let _end = End(&kubelets.ended);
        let plugin = start_plugin(&nodes);
        lose(&nodes, victim, &kubelets);
        let _controllers = come_back(&nodes, victim, &kubelets);
        notice_the_far_node(&nodes, &kubelets);
        drop(plugin);
    });
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn leader_node(nodes: &Nodes) -> usize {
    let mut leader = None;
    wait_until("three members of the catalog, and a leader", || {
        let pods = nodes.list(&["pod", "list"]);
        let roles: Vec<&str> =
            pods.iter().filter_map(|pod| pod["status"]["catalog"].as_str()).collect();
        let led = pods.iter().find(|pod| pod["status"]["catalog"] == "leader");
        leader = led.and_then(|pod| pod["status"]["node"].as_str().map(str::to_owned));
        leader.is_some() && roles.iter().filter(|role| **role == "voter").count() == COUNT - 1
    });
    let leader = leader.expect("just found");
    (1..=COUNT).find(|node| node_name(*node) == leader).expect("one of the nodes")
}

fn lose(nodes: &Nodes, victim: usize, kubelets: &Kubelets) {
    let network = nodes.network.as_ref().expect("it is on machines");
    let others: Vec<usize> = (1..=COUNT).filter(|node| *node != victim).collect();
    let mut controllers = Controllers::start(nodes, "dry-run", &others);
    let began = Instant::now();
    kubelets.off.store(victim, Ordering::Relaxed);
    network.cut(victim);
    let name = node_name(victim);
    let would = ("HoldfastNodeLost".to_owned(), name.clone());
    wait_until("a dry run tells what it would do", || told(nodes).contains(&would));
    println!("told of after {:.1} s", began.elapsed().as_secs_f64());
    assert!(!is_lost(nodes, victim) && taints(nodes, victim) == ["theirs"]);
    assert_eq!(changes(nodes), changes_of_bootstrap(nodes), "a dry run changes nothing");
    controllers.kill();

    // Killed at every change that they make.
    let on = Instant::now();
    let mut seen = changes(nodes);
    let is_done = || {
        let gone = |kind: &str, space: &str, name: &str| nodes.api.get(kind, space, name).is_none();
        ["db-0", "db-1"].iter().all(|pod| gone("pods", "apps", pod))
            && ["va-db-0", "va-db-1"].iter().all(|it| gone("volumeattachments", "", it))
            && in_use(nodes, victim).len() == 1
            && taints(nodes, victim) == ["theirs", "holdfast.io/lost"]
    };
    let mut kills = 0;
    let mut controllers = Controllers::start(nodes, "on", &others);
    wait_until("all is taken from the lost node", || {
        let now = changes(nodes);
        if now > seen && kills < 2 {
            kills += 1;
            controllers.kill();
            controllers = Controllers::start(nodes, "on", &others);
        }
        seen = now;
        is_done()
    });
    println!("taken after {:.1} s, {kills} kills", on.elapsed().as_secs_f64());
    assert!(is_lost(nodes, victim));
    for (kind, space, name) in [
        ("pods", "apps", "theirs"),
        ("pods", "apps", "mixed"),
        ("pods", "apps", "foreign"),
        ("volumeattachments", "", "va-theirs"),
        ("volumeattachments", "", "va-foreign"),
    ] {
        assert!(nodes.api.get(kind, space, name).is_some(), "{name} is none of our business");
    }
    let recorded = nodes.api.recorded();
    let mut deletions = recorded.iter().filter(|it| it.what.starts_with("DELETE"));
    assert!(deletions.all(|it| it.token == "controller"), "others have no right to that");
    let told = told(nodes);
    for (reason, about) in [
        ("HoldfastPodDeleted", "claim-db-0"),
        ("HoldfastPodDeleted", name.as_str()),
        ("HoldfastPodLeft", "mixed"),
    ] {
        assert!(told.contains(&(reason.to_owned(), about.to_owned())), "{told:?}");
    }
    // Another node can have the volumes now.
    let to = node_name(others[0]);
    assert!(nodes.run(others[0], &["attachment", "publish", "one", &to]).status.success());
}

/// The changes that the storage pods have made: all but those of the fail-over.
fn changes_of_bootstrap(nodes: &Nodes) -> usize {
    let recorded = nodes.api.recorded();
    let of_pods = recorded.iter().filter(|it| {
        ["secrets", "configmaps", "tokenreviews"].iter().any(|kind| it.what.contains(kind))
    });
    of_pods.filter(|it| !it.what.starts_with("GET")).count()
}

fn come_back(nodes: &Nodes, victim: usize, kubelets: &Kubelets) -> Controllers {
    let network = nodes.network.as_ref().expect("it is on machines");
    network.mend(victim);
    kubelets.off.store(0, Ordering::Relaxed);
    let others: Vec<usize> = (1..=COUNT).filter(|node| *node != victim).collect();
    let name = node_name(victim);
    nodes.wait_pods_up(COUNT);
    let cleared = nodes.run(others[0], &["node", "clear-lost", &name]);
    assert!(cleared.status.success(), "{cleared:?}");
    let controllers = Controllers::start(nodes, "on", &others);
    wait_until("the taint is taken away", || taints(nodes, victim) == ["theirs"]);
    controllers
}

/// The node plugin of a node without a storage pod, which has a volume.
fn start_plugin(nodes: &Nodes) -> Ending {
    let name = node_name(FAR);
    let account = format!("system:serviceaccount:{NAMESPACE}:holdfast-csi-node");
    nodes.api.give_token("far", &account, "plugin-far", &name);
    let address = json!([{ "type": "InternalIP", "address": address(FAR) }]);
    let object = json!({ "metadata": { "name": name }, "status": { "addresses": address } });
    nodes.api.put("nodes", "", object);
    let enrol = Enrol::new(nodes, "csi-node", "far");
    assert!(enrol.run().status.success());
    let mut plugin = nodes.command(FAR, "far");
    let socket = format!("unix://{}", nodes.dir.join("far.sock").display());
    plugin
        .args(["csi", "node", "--node", &name, "--csi-endpoint", &socket])
        .args(["--devices", text(&nodes.dir.join("nobody.sock"))])
        .args(["--endpoint", &nodes.endpoints()])
        .args(["--credentials", text(&enrol.credentials)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let plugin = Ending(plugin.spawn().expect("run holdfast csi node"));
    wait_until("the node is known", || nodes.ask(&["node", "show", &name]).is_some());
    publish(nodes, "far", "replicated", FAR);
    plugin
}

/// Nobody but its plugin reports for it, and only its kubelet can be tried. It is not declared lost
/// so soon after another one.
fn notice_the_far_node(nodes: &Nodes, kubelets: &Kubelets) {
    let network = nodes.network.as_ref().expect("it is on machines");
    let name = node_name(FAR);
    let phase = || nodes.ask(&["node", "show", &name]).map(|it| it["status"]["phase"].clone());
    wait_until("its plugin reports", || phase() == Some("up".into()));
    let logs = || -> String {
        let log = |node| fs::read_to_string(nodes.dir.join(format!("controller-{node}.log")));
        (1..=COUNT).filter_map(|node| log(node).ok()).collect()
    };
    // Nobody listens there, and that is an answer.
    wait_until("its kubelet is reached", || logs().contains("reaches the kubelet"));
    let words = "another node was declared lost less than 5 minutes ago";
    let is_refused = || {
        let recorded = nodes.api.recorded();
        let mut events = recorded.iter().filter(|it| it.what == "POST events").map(|it| &it.body);
        events.any(|event| {
            let says = |text: &Value| text.as_str().is_some_and(|it| it.contains(words));
            event["involvedObject"]["name"] == name.as_str() && says(&event["message"])
        })
    };
    assert!(!is_refused());
    let began = Instant::now();
    kubelets.off.store(FAR, Ordering::Relaxed);
    network.cut(FAR);
    wait_until("its silence is noticed", || phase() == Some("unreachable".into()));
    wait_until("it would be declared lost", is_refused);
    println!("the node without a storage pod: after {:.1} s", began.elapsed().as_secs_f64());
    assert!(!is_lost(nodes, FAR));
}
