//! Holdfast before an API server of Kubernetes: storage pods that make one cluster by themselves,
//! and programs that get certificates by the tokens of their service accounts. The API server is a
//! recording one (`tests/kubernetes/api.rs`), the programs are the real ones.

mod support;

#[allow(dead_code, reason = "tests/manifests.rs uses the rest of it")]
#[path = "kubernetes/api.rs"]
mod api;
#[path = "kubernetes/doctor.rs"]
mod doctor;
#[path = "kubernetes/failing_over.rs"]
mod failing_over;
#[path = "kubernetes/nodes.rs"]
mod nodes;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nodes::{NAMESPACE, Nodes, base64, node_name};
use serde_json::{Value, json};
use support::tools::text;
use support::{program, wait_until};

/// The state of the bootstrap: `empty`, `initializing` or `made`.
fn state(nodes: &Nodes) -> String {
    let record = nodes.record().unwrap_or_default();
    match &record["state"] {
        Value::Object(state) => state.keys().next().cloned().unwrap_or_default(),
        state => state.as_str().unwrap_or_default().to_owned(),
    }
}

fn reports(nodes: &Nodes) -> usize {
    nodes.record().and_then(|record| Some(record["reports"].as_object()?.len())).unwrap_or(0)
}

/// The clusters that nodes belong to.
fn clusters(nodes: &Nodes, count: usize) -> BTreeSet<String> {
    let of = |node| Some(nodes.identity(node)?["cluster"].as_str()?.to_owned());
    (1..=count).filter_map(of).collect()
}

fn wait_members(nodes: &Nodes, count: usize) {
    wait_until("all nodes belong to a cluster", || {
        (1..=count).all(|node| nodes.identity(node).is_some())
    });
    nodes.wait_pods_up(count);
}

/// `holdfast kubernetes enrol`, not started yet.
struct Enrol<'a> {
    nodes: &'a Nodes,
    role: &'static str,
    token: &'static str,
    credentials: PathBuf,
    authority: PathBuf,
}

impl<'a> Enrol<'a> {
    fn new(nodes: &'a Nodes, role: &'static str, token: &'static str) -> Enrol<'a> {
        let credentials = nodes.dir.join(format!("credentials-{token}"));
        let authority = nodes.dir.join("ca.crt");
        Enrol { nodes, role, token, credentials, authority }
    }

    fn command(&self) -> Command {
        let token = self.nodes.dir.join(format!("token-{}", self.token));
        fs::write(&token, format!("{}\n", self.token)).unwrap();
        let mut command = self.nodes.command(1, self.token);
        command
            .args(["kubernetes", "enrol", "--role", self.role, "--token-file", text(&token)])
            .args(["--credentials", text(&self.credentials)])
            .args(["--authority", text(&self.authority)])
            .args(["--endpoint", &self.nodes.endpoints()])
            .stdin(Stdio::null());
        command
    }

    fn run(&self) -> Output {
        self.command().output().expect("run holdfast kubernetes enrol")
    }

    fn spawn(&self) -> Ending {
        Ending(self.command().spawn().expect("run holdfast kubernetes enrol"))
    }
}

/// A process that is killed when the test ends before it.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn assert_refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(words), "does not say {words:?}: {said}");
}

fn accounts(nodes: &Nodes) {
    let account = |name: &str| format!("system:serviceaccount:{NAMESPACE}:{name}");
    let node = node_name(2);
    nodes.api.give_token("controller", &account("holdfast-csi-controller"), "controller-x", &node);
    nodes.api.give_token("plugin", &account("holdfast-csi-node"), "plugin-x", &node);
    nodes.api.give_token("stranger", &account("default"), "stranger-x", &node);
    nodes.api.give("old", &account("holdfast-csi-node"), "holdfast", json!({}));
    let extra = json!({ "authentication.kubernetes.io/node-name": [node] });
    nodes.api.give("other-audience", &account("holdfast-csi-node"), "kubernetes", extra);
}

/// Puts the authority where programs look for it; false: it is not published yet.
fn publish_authority(nodes: &Nodes, to: &Path) -> bool {
    let public = nodes.api.get("configmaps", NAMESPACE, "holdfast-cluster").unwrap_or_default();
    let authority = public["data"]["ca.crt"].as_str();
    authority.is_some_and(|pem| fs::write(to, pem).is_ok())
}

#[test]
fn pods_make_one_cluster_and_programs_get_certificates() {
    let mut nodes = Nodes::new("kubernetes_bootstrap", 3);
    accounts(&nodes);

    // Two of three have reported: nothing is made.
    nodes.start(1);
    nodes.start(2);
    wait_until("two nodes have reported", || reports(&nodes) == 2);
    assert_eq!(state(&nodes), "empty");
    assert_eq!(clusters(&nodes, 3).len(), 0);

    // The third one reports, and nodes are killed at every step.
    nodes.start(3);
    nodes.kill_when(1, "a node makes its keys", |nodes| nodes.data(1).join("bootstrap").exists());
    nodes.kill_when(1, "a node makes the cluster", |nodes| state(nodes) == "initializing");
    nodes.kill_when(1, "it has an identity", |nodes| nodes.identity(1).is_some());
    nodes.kill_when(2, "the cluster is made", |nodes| state(nodes) == "made");
    wait_members(&nodes, 3);
    let made = clusters(&nodes, 3);
    assert_eq!(made.len(), 1, "{made:?}");

    // What it leaves for people and programs.
    let cluster = made.first().unwrap().as_str();
    wait_until("all addresses are published", || {
        let public = nodes.api.get("configmaps", NAMESPACE, "holdfast-cluster");
        let public = public.unwrap_or_default();
        let endpoints = public["data"]["endpoints"].as_str().unwrap_or_default();
        public["data"]["uid"] == cluster && endpoints.split(',').count() == 3
    });
    let recovery = nodes.api.get("secrets", NAMESPACE, "holdfast-recovery").unwrap();
    let key = recovery["data"]["recovery-key"].as_str().unwrap_or_default();
    assert!(base64(key).starts_with(b"holdfast-recovery-"));
    wait_until("the keys are where they belong", || !nodes.data(1).join("bootstrap").exists());

    programs_get_certificates(&nodes);
    a_node_that_is_installed_anew_joins(&mut nodes, cluster);
    a_record_that_is_lost_comes_back(&mut nodes, cluster);
}

fn programs_get_certificates(nodes: &Nodes) {
    // One waits until the authority is there.
    let controller = Enrol::new(nodes, "csi-controller", "controller");
    let mut waiting = controller.spawn();
    assert!(publish_authority(nodes, &controller.authority));
    assert!(waiting.0.wait().expect("wait for it").success());
    let credentials = ["--credentials", text(&controller.credentials)];
    let endpoint = nodes.endpoint(3);
    let ask = |arguments: &[&str], credentials: &[&str]| {
        let all = [arguments, credentials, &["--endpoint", &endpoint]].concat();
        Command::new(program()).args(all).output().expect("run holdfast")
    };
    let create = ["volume", "create", "one", "--size", "1MiB", "--closed"];
    wait_until("the controller makes a volume", || ask(&create, &credentials).status.success());
    let held = |it: &Enrol<'_>| fs::read(it.credentials.join("client-cert.pem")).unwrap();
    let before = held(&controller);
    assert!(controller.run().status.success(), "again");
    assert_eq!(held(&controller), before, "a good certificate is kept");

    let plugin = Enrol::new(nodes, "csi-node", "plugin");
    assert!(plugin.run().status.success());
    let certificate = plugin.credentials.join("client-cert.pem");
    let shown = ask(&["cert", "show", text(&certificate)], &[]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&format!("csi-node/{}", node_name(2))), "{shown}");
    let plugins = ["--credentials", text(&plugin.credentials)];
    assert!(ask(&["volume", "list"], &plugins).status.success());
    assert_refused(&ask(&["volume", "delete", "one"], &plugins), "may not do this");

    for (token, role, words) in [
        ("forged", "csi-node", "does not know the token"),
        ("stranger", "csi-node", "no service account of Holdfast's"),
        ("old", "csi-node", "does not name its node"),
        ("other-audience", "csi-node", "does not know the token"),
        ("holdfast-1", "csi-node", "for something else"),
    ] {
        assert_refused(&Enrol::new(nodes, role, token).run(), words);
    }
    let other = Enrol {
        credentials: nodes.dir.join("other"),
        ..Enrol::new(nodes, "csi-controller", "plugin")
    };
    assert_refused(&other.run(), "a csi-controller was asked for");
    assert!(!other.credentials.join("client-cert.pem").exists());
}

fn a_node_that_is_installed_anew_joins(nodes: &mut Nodes, cluster: &str) {
    nodes.kill(3);
    nodes.install_anew(3);
    nodes.start(3);
    wait_until("it belongs to the cluster", || nodes.identity(3).is_some());
    wait_until("it is a new pod", || {
        let pods = nodes.list(&["pod", "list", "--phase", "up"]);
        pods.iter().any(|pod| pod["meta"]["name"] == "4")
    });
    assert_eq!(clusters(nodes, 3), BTreeSet::from([cluster.to_owned()]));
}

fn a_record_that_is_lost_comes_back(nodes: &mut Nodes, cluster: &str) {
    // A pod that belongs to a cluster needs nobody's leave to serve.
    nodes.api.set_down(true);
    nodes.kill(2);
    nodes.start(2);
    wait_until("it serves without Kubernetes", || nodes.run(2, &["status"]).status.success());
    assert!(nodes.api.remove("secrets", NAMESPACE, "holdfast-cluster"));
    nodes.kill(3);
    nodes.install_anew(3);
    nodes.api.set_down(false);
    nodes.start(3);
    // Pods may not make it. A person applies the manifests again.
    nodes.apply_secrets();
    wait_until("the record is back, and the new node has joined", || {
        state(nodes) == "made" && nodes.identity(3).is_some()
    });
    assert_eq!(clusters(nodes, 3), BTreeSet::from([cluster.to_owned()]));
}
