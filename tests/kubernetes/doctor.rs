//! `holdfast doctor --kubernetes`, as a person runs it on a node: it reads the node and the API
//! server, tells the faults, and its exit code says whether there are any.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::api::FakeApi;
use crate::support::program;
use crate::support::tools::text;

const DRIVER: &str = "csi.holdfast.io";

fn put(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A node with a kubelet in another place than the manifests say.
fn node(root: &Path) {
    put(root, "proc/sys/kernel/osrelease", "6.12.9\n");
    put(root, "sys/module/nbd/parameters/max_part", "0\n");
    put(root, "proc/1/comm", "systemd\n");
    put(root, "proc/9/comm", "kubelet\n");
    put(root, "proc/9/cmdline", "kubelet\0--root-dir=/data/kubelet\0");
    put(root, "proc/1/mountinfo", "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n");
}

fn labels(component: &str) -> Value {
    json!({ "app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": component })
}

/// A cluster in which a storage pod is not in step, so that its guard holds drains back.
fn objects(api: &FakeApi) {
    api.put("csidrivers", "", json!({ "metadata": { "name": DRIVER }, "spec": {} }));
    let status = json!({
        "desiredNumberScheduled": 3, "numberReady": 3,
        "currentNumberScheduled": 3, "numberMisscheduled": 0,
    });
    for component in ["pod", "attach", "csi-node"] {
        let name = format!("holdfast-{component}");
        let meta = json!({ "name": name, "labels": labels(component) });
        api.put("daemonsets", "holdfast", json!({ "metadata": meta, "status": status }));
    }
    for (component, ready) in [("guard", 2), ("csi-controller", 3)] {
        let selector = json!({ "matchLabels": labels(component) });
        let spec = json!({ "replicas": 3, "selector": selector, "template": {} });
        let name = format!("holdfast-{component}");
        let meta = json!({ "name": name, "labels": labels(component) });
        let status = json!({ "readyReplicas": ready });
        let object = json!({ "metadata": meta, "spec": spec, "status": status });
        api.put("deployments", "holdfast", object);
    }
    for pod in 0..3 {
        let owner =
            json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "g", "uid": "g" });
        let name = format!("holdfast-guard-{pod}");
        let meta = json!({ "name": name, "labels": labels("guard"), "ownerReferences": [owner] });
        let spec = json!({ "nodeName": format!("w{pod}"), "containers": [] });
        let pod = json!({ "metadata": meta, "spec": spec, "status": { "phase": "Running" } });
        api.put("pods", "holdfast", pod);
    }
    allow(api, 0);
    let annotations = json!({ "storageclass.kubernetes.io/is-default-class": "true" });
    let meta = json!({ "name": "holdfast", "annotations": annotations });
    api.put("storageclasses", "", json!({ "metadata": meta, "provisioner": DRIVER }));
    api.put("nodes", "", json!({ "metadata": { "name": "w0" } }));
}

/// How many guards may be evicted now.
fn allow(api: &FakeApi, count: u32) {
    let status = json!({
        "disruptionsAllowed": count, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 3,
    });
    let budget = json!({
        "metadata": { "name": "holdfast-guard" },
        "spec": { "selector": { "matchLabels": labels("guard") } }, "status": status,
    });
    api.put("poddisruptionbudgets", "holdfast", budget);
}

fn doctor(api: &FakeApi, root: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.env("KUBECONFIG", api.kubeconfig(root, "person")).env_remove("KUBERNETES_SERVICE_HOST");
    command.args(["doctor", "--kubernetes", "--root", text(root)]).args(more);
    command.output().expect("run holdfast doctor")
}

/// Verdict and text of each check; of `drain`, of one node.
fn findings(output: &Output) -> BTreeMap<String, (String, String)> {
    let all: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let words = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    all.iter().map(|it| (words(it, "check"), (words(it, "verdict"), words(it, "found")))).collect()
}

#[test]
fn the_doctor_tells_what_is_wrong_with_a_node_and_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let api = FakeApi::start();
    node(root);
    objects(&api);
    let ill = doctor(&api, root, &["-o", "json"]);
    assert_eq!(ill.status.code(), Some(1));
    let found = findings(&ill);
    let of =
        |check: &str| found.get(check).unwrap_or_else(|| panic!("no {check}: {found:?}")).clone();
    for (check, verdict, words) in [
        ("kubelet", "bad", "/data/kubelet, not /var/lib/kubelet"),
        ("mount-propagation", "good", "shared"),
        ("nbd", "good", "6.12.9"),
        ("kubernetes", "good", "1.34"),
        ("programs", "bad", "holdfast-guard: 2 of 3"),
        ("drain", "warning", "not in step"),
        ("default-class", "good", "holdfast"),
        ("registration", "good", "0 nodes"),
    ] {
        let (is, said) = of(check);
        assert!(is == verdict && said.contains(words), "{check}: {is}: {said}");
    }
    let said = doctor(&api, root, &[]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("bad      kubelet: its directory is /data/kubelet"), "{said}");
    assert!(said.contains("csi.kubeletRootDir to /data/kubelet"), "{said}");

    // All of it is mended.
    allow(&api, 1);
    let mut guard = api.get("deployments", "holdfast", "holdfast-guard").unwrap();
    guard["status"]["readyReplicas"] = json!(3);
    api.put("deployments", "holdfast", guard);
    let well = doctor(&api, root, &["-o", "json", "--kubelet-root", "/data/kubelet"]);
    assert!(well.status.success(), "{}", String::from_utf8_lossy(&well.stdout));
    let mut well = findings(&well);
    well.remove("io_uring");
    assert!(well.values().all(|(verdict, _)| verdict == "good"), "{well:?}");

    // Without an API server, the node is looked at all the same.
    api.set_down(true);
    let alone = doctor(&api, root, &["-o", "json", "--kubelet-root", "/data/kubelet"]);
    assert!(alone.status.success());
    let alone = findings(&alone);
    assert_eq!((&*alone["programs"].0, &*alone["nbd"].0), ("unknown", "good"));
}
