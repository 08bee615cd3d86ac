//! What the objects of a Kubernetes cluster are judged to be.

use serde_json::{Value, json};

use super::*;
use crate::doctor::Verdict;

const NOW: i64 = 1_800_000_000;
const DRIVER: &str = "csi.holdfast.io";

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn labels(component: &str) -> Value {
    json!({ "app.kubernetes.io/name": "holdfast", COMPONENT: component })
}

fn set(component: &str, wanted: u32, ready: u32) -> DaemonSet {
    let name = format!("holdfast-{component}");
    let status = json!({
        "desiredNumberScheduled": wanted, "numberReady": ready,
        "currentNumberScheduled": wanted, "numberMisscheduled": 0,
    });
    of(json!({ "metadata": { "name": name, "labels": labels(component) }, "status": status }))
}

fn deployment(component: &str, wanted: u32, ready: u32) -> Deployment {
    let name = format!("holdfast-{component}");
    let selector = json!({ "matchLabels": labels(component) });
    of(json!({
        "metadata": { "name": name, "labels": labels(component) },
        "spec": { "replicas": wanted, "selector": selector, "template": {} },
        "status": { "readyReplicas": ready },
    }))
}

/// A pod of ours on node `a`.
fn ours(component: &str, owner: &str) -> SurveyedPod {
    let pod = json!({
        "metadata": {
            "name": format!("holdfast-{component}-x"), "namespace": "there",
            "labels": labels(component),
            "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "1" },
            ],
        },
        "spec": { "nodeName": "a", "containers": [] }, "status": { "phase": "Running" },
    });
    SurveyedPod { pod: of(pod), claims: Vec::new() }
}

/// A pod on node `b` that uses a claim of ours.
fn using(meta: Value) -> SurveyedPod {
    let mut all = json!({ "name": "db-0", "namespace": "shop", "labels": { "app": "db" } });
    all.as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
    let pod = json!({
        "metadata": all, "spec": { "nodeName": "b", "containers": [] },
        "status": { "phase": "Running" },
    });
    SurveyedPod { pod: of(pod), claims: vec![("shop".to_owned(), "data-db-0".to_owned())] }
}

fn owned() -> Value {
    json!({ "ownerReferences": [
        { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "2" },
    ] })
}

fn budget(namespace: &str, selector: Value, allowed: u32) -> PodDisruptionBudget {
    of(json!({
        "metadata": { "name": "keep", "namespace": namespace },
        "spec": { "selector": { "matchLabels": selector } },
        "status": {
            "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
            "expectedPods": 1,
        },
    }))
}

fn good() -> Survey {
    let class = json!({
        "metadata": { "name": "holdfast", "annotations": { DEFAULT_CLASS: "true" } },
        "provisioner": DRIVER,
    });
    let registered = json!({
        "metadata": { "name": "a" },
        "spec": { "drivers": [{ "name": DRIVER, "nodeID": "a" }] },
    });
    Survey {
        now: Timestamp::from_second(NOW).unwrap(),
        driver_name: DRIVER.to_owned(),
        namespace: "there".to_owned(),
        version: Ok((1, 34)),
        driver: Ok(Some(of(json!({ "metadata": { "name": DRIVER }, "spec": {} })))),
        classes: Ok(vec![of(class)]),
        nodes: Ok(vec![of(json!({ "metadata": { "name": "a" } }))]),
        csi_nodes: Ok(vec![of(registered)]),
        daemon_sets: Ok(vec![set("pod", 3, 3), set("csi-node", 3, 3), set("attach", 3, 3)]),
        deployments: Ok(vec![deployment("guard", 3, 3), deployment("csi-controller", 3, 3)]),
        pods: Ok(vec![ours("csi-node", "DaemonSet"), ours("guard", "ReplicaSet"), using(owned())]),
        budgets: Ok(vec![budget("there", labels("guard"), 1)]),
        attachments: Ok(Vec::new()),
    }
}

/// The finding of one check after a change; all others must be good.
fn finding(check: &str, change: impl FnOnce(&mut Survey)) -> Finding {
    let mut survey = good();
    change(&mut survey);
    let all = judge(&survey);
    let of_others = all.iter().filter(|finding| finding.check != check);
    assert!(of_others.clone().all(|it| it.verdict == Verdict::Good), "{check}: {all:#?}");
    let found = all.iter().find(|finding| finding.check == check).expect("it is checked").clone();
    let is_good = found.verdict == Verdict::Good;
    assert_eq!((found.fix.is_empty(), found.found.is_empty()), (is_good, false), "{found:?}");
    found
}

/// Its verdict, and a text that it must contain.
fn expect(check: &str, verdict: Verdict, text: &str, change: impl FnOnce(&mut Survey)) {
    let found = finding(check, change);
    assert_eq!(found.verdict, verdict, "{found:?}");
    assert!(found.found.contains(text), "{found:?}");
}

#[test]
fn a_good_cluster_has_no_other_findings() {
    expect("drain", Verdict::Good, "nothing", |_| {});
    assert!(judge(&good()).len() >= 10);
}

#[test]
fn what_is_not_installed_or_not_ready_is_told() {
    let bad = Verdict::Bad;
    expect("kubernetes", bad, "1.33", |it| it.version = Ok((1, 33)));
    expect("kubernetes", Verdict::Good, "2.0", |it| it.version = Ok((2, 0)));
    expect("driver", bad, DRIVER, |it| it.driver = Ok(None));
    expect("programs", bad, "nothing of Holdfast is in namespace there", |it| {
        (it.daemon_sets, it.deployments) = (Ok(Vec::new()), Ok(Vec::new()));
    });
    expect("programs", bad, "holdfast-attach: 1 of 3 are ready", |it| {
        it.daemon_sets = Ok(vec![set("pod", 3, 3), set("csi-node", 3, 3), set("attach", 3, 1)]);
    });
    expect("programs", bad, "holdfast-csi-node is missing", |it| {
        it.daemon_sets = Ok(vec![set("pod", 3, 3), set("attach", 3, 3)]);
    });
    expect("programs", bad, "holdfast-attach: 0 of 0", |it| {
        it.daemon_sets = Ok(vec![set("pod", 3, 3), set("csi-node", 3, 3), set("attach", 0, 0)]);
    });
    expect("programs", bad, "holdfast-csi-controller: 0 of 3", |it| {
        it.deployments = Ok(vec![deployment("guard", 3, 3), deployment("csi-controller", 3, 0)]);
    });
    expect("guards", Verdict::Warning, "3 for 5", |it| {
        it.daemon_sets = Ok(vec![set("pod", 5, 5), set("csi-node", 5, 5), set("attach", 5, 5)]);
    });
    expect("registration", bad, "does not know the driver on a", |it| {
        it.csi_nodes =
            Ok(vec![of(json!({ "metadata": { "name": "a" }, "spec": { "drivers": [] } }))]);
    });
}

#[test]
fn classes_and_lost_nodes_are_told() {
    let class = |name: &str| -> StorageClass {
        let annotations = json!({ DEFAULT_CLASS: "true" });
        of(json!({
            "metadata": { "name": name, "annotations": annotations }, "provisioner": "p",
        }))
    };
    let warning = Verdict::Warning;
    expect("default-class", warning, "no StorageClass", |it| it.classes = Ok(Vec::new()));
    let two = vec![class("one"), class("two")];
    expect("default-class", warning, "one; two", |it| it.classes = Ok(two));
    let taint = json!({ "key": TAINT, "effect": "NoSchedule" });
    let node = json!({ "metadata": { "name": "gone" }, "spec": { "taints": [taint] } });
    expect("lost-nodes", warning, "gone", |it| it.nodes = Ok(vec![of(node)]));
}

#[test]
fn what_waits_for_too_long_is_told() {
    let time = |second: i64| Timestamp::from_second(second).unwrap().to_string();
    let attachment = |meta: Value, status: Value| -> VolumeAttachment {
        of(json!({
            "metadata": meta, "status": status,
            "spec": {
                "attacher": DRIVER, "nodeName": "b", "source": { "persistentVolumeName": "pv-1" },
            },
        }))
    };
    let failed = json!({ "attached": false, "attachError": { "message": "held by c" } });
    let failed = attachment(json!({ "name": "x" }), failed);
    expect("attachments", Verdict::Bad, "pv-1 on b: held by c", |it| {
        it.attachments = Ok(vec![failed]);
    });
    let late = |second| {
        let meta = json!({ "name": "x", "deletionTimestamp": time(second) });
        attachment(meta, json!({ "attached": true }))
    };
    expect("attachments", Verdict::Bad, "waits to be detached", |it| {
        it.attachments = Ok(vec![late(NOW - 61)]);
    });
    expect("attachments", Verdict::Good, "none of 1", |it| {
        it.attachments = Ok(vec![late(NOW - 60)]);
    });
    let waits = |second| {
        let meta = json!({ "name": "x", "creationTimestamp": time(second) });
        attachment(meta, json!({ "attached": false }))
    };
    expect("attachments", Verdict::Bad, "waits to be attached", |it| {
        it.attachments = Ok(vec![waits(NOW - 61)]);
    });
    expect("attachments", Verdict::Good, "none of 1", |it| {
        it.attachments = Ok(vec![waits(NOW - 60)]);
    });
    let ends = |second| {
        let mut meta = owned();
        meta["deletionTimestamp"] = json!(time(second));
        vec![ours("csi-node", "DaemonSet"), using(meta)]
    };
    expect("ending-pods", Verdict::Bad, "shop/db-0 on b", |it| it.pods = Ok(ends(NOW - 61)));
    expect("ending-pods", Verdict::Good, "no pod", |it| it.pods = Ok(ends(NOW + 30)));
}

#[test]
fn what_blocks_a_drain_is_told_per_node() {
    let warning = Verdict::Warning;
    let guard = || budget("there", labels("guard"), 0);
    expect(
        "drain",
        warning,
        "node a: there/holdfast-guard-x: PodDisruptionBudget keep: another",
        |it| {
            it.budgets = Ok(vec![guard()]);
        },
    );
    expect("drain", warning, "node b: shop/db-0: PodDisruptionBudget keep: it allows", |it| {
        it.budgets = Ok(vec![budget("shop", json!({ "app": "db" }), 0)]);
    });
    let other =
        vec![budget("other", json!({ "app": "db" }), 0), budget("shop", json!({ "app": "x" }), 0)];
    expect("drain", Verdict::Good, "nothing", |it| it.budgets = Ok(other));
    expect("drain", warning, "node b: shop/db-0 has no controller", |it| {
        it.pods = Ok(vec![ours("csi-node", "DaemonSet"), using(json!({}))]);
    });
    let mut survey = good();
    survey.pods = Ok(vec![ours("guard", "ReplicaSet"), using(json!({}))]);
    survey.budgets = Ok(vec![guard()]);
    let all = judge(&survey);
    assert_eq!(all.iter().filter(|finding| finding.check == "drain").count(), 2);
}

#[test]
fn what_may_not_be_listed_is_unknown() {
    let no = || "forbidden".to_owned();
    let mut survey = good();
    (survey.pods, survey.classes) = (Err(no()), Err(no()));
    (survey.version, survey.driver) = (Err(no()), Err(no()));
    let unknown = judge(&survey).into_iter().filter(|it| it.verdict == Verdict::Unknown);
    let checks: Vec<&str> = unknown.map(|it| it.check).collect();
    let expected =
        ["kubernetes", "driver", "registration", "default-class", "ending-pods", "drain"];
    assert_eq!(checks, expected);
    let names: Vec<String> = (0..12).map(|it| it.to_string()).collect();
    assert!(some(&names).ends_with("9; and 2 more"));
}
