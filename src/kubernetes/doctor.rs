//! Judges the objects of a Kubernetes cluster: what keeps Holdfast from working there, and what
//! blocks the drain of a node. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt};

use crate::doctor::Finding;
use crate::kubernetes::kube_view::TAINT;
use crate::kubernetes::survey::{Listed, Survey, SurveyedPod};

/// The sidecars need it (docs/kubernetes.md).
const VERSION_MIN: (u32, u32) = (1, 34);
/// An object is stuck when its next step is late by this time.
const STUCK_AFTER_S: i64 = 60;
/// Names in one finding.
const NAMES_MAX: usize = 10;

const COMPONENT: &str = "app.kubernetes.io/component";
const STORAGE: &str = "pod";
const NODE: &str = "csi-node";
const GUARD: &str = "guard";
/// What a cluster of Kubernetes has of Holdfast; guards can be left out.
const NEEDED: [&str; 4] = [STORAGE, "attach", NODE, "csi-controller"];
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// All findings.
pub fn judge(survey: &Survey) -> Vec<Finding> {
    let mut all = vec![
        version(&survey.version),
        driver(survey),
        listed("programs", &survey.daemon_sets, |sets| {
            listed("programs", &survey.deployments, |deployments| {
                programs(sets, deployments, survey)
            })
        }),
        listed("guards", &survey.daemon_sets, |sets| {
            listed("guards", &survey.deployments, |deployments| guards(sets, deployments))
        }),
        listed("registration", &survey.pods, |pods| registration(pods, survey)),
        listed("default-class", &survey.classes, default_class),
        listed("lost-nodes", &survey.nodes, lost),
        listed("attachments", &survey.attachments, |attachments| stuck(attachments, survey.now)),
        listed("ending-pods", &survey.pods, |pods| ending(pods, survey.now)),
    ];
    match (&survey.pods, &survey.budgets) {
        (Ok(pods), Ok(budgets)) => all.extend(drains(pods, budgets)),
        (Err(error), _) | (_, Err(error)) => all.push(unknown("drain", error)),
    }
    all
}

/// A finding about objects that could be listed.
fn listed<T>(check: &'static str, all: &Listed<T>, judge: impl FnOnce(&[T]) -> Finding) -> Finding {
    match all {
        Ok(all) => judge(all),
        Err(error) => unknown(check, error),
    }
}

fn unknown(check: &'static str, error: &str) -> Finding {
    Finding::unknown(check, error, "Use a KUBECONFIG of a user who may list these objects.")
}

fn version(version: &Result<(u32, u32), String>) -> Finding {
    let (least_major, least_minor) = VERSION_MIN;
    match version {
        Err(error) => unknown("kubernetes", error),
        Ok((major, minor)) if (*major, *minor) >= VERSION_MIN => {
            Finding::good("kubernetes", format!("version {major}.{minor}"))
        }
        Ok((major, minor)) => Finding::bad(
            "kubernetes",
            format!("version {major}.{minor}"),
            "The sidecars ask for objects that it does not have.",
            format!("Use Kubernetes {least_major}.{least_minor} or newer, or older sidecars."),
        ),
    }
}

fn driver(survey: &Survey) -> Finding {
    let name = &survey.driver_name;
    match &survey.driver {
        Err(error) => unknown("driver", error),
        Ok(Some(_)) => Finding::good("driver", format!("CSIDriver {name} is there")),
        Ok(None) => Finding::bad(
            "driver",
            format!("there is no CSIDriver {name}"),
            "Nobody attaches or mounts volumes.",
            "Apply the manifests (docs/kubernetes.md), or give the driver's name by --driver.",
        ),
    }
}

/// The pods of ours that should run, and do.
fn programs(sets: &[DaemonSet], deployments: &[Deployment], survey: &Survey) -> Finding {
    let namespace = &survey.namespace;
    if sets.is_empty() {
        return Finding::bad(
            "programs",
            format!("nothing of Holdfast is in namespace {namespace}"),
            "No volume can be made or used.",
            "Apply the manifests (docs/kubernetes.md), or give the namespace by --namespace.",
        );
    }
    let of_sets = sets.iter().map(|set| {
        let status = set.status.as_ref();
        let wanted = status.map_or(0, |it| it.desired_number_scheduled);
        (&set.metadata, wanted, status.map_or(0, |it| it.number_ready))
    });
    let of_deployments = deployments.iter().map(|it| {
        let wanted = it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        (&it.metadata, wanted, it.status.as_ref().and_then(|it| it.ready_replicas).unwrap_or(0))
    });
    let all: Vec<(&ObjectMeta, i32, i32)> = of_sets.chain(of_deployments).collect();
    let is_there =
        |component: &&str| all.iter().any(|(meta, ..)| label(meta, COMPONENT) == *component);
    let missing = NEEDED.iter().filter(|component| !is_there(component));
    let missing = missing.map(|component| format!("holdfast-{component} is missing"));
    // Nothing that is wanted nowhere works.
    let lacking = all.iter().filter(|(_, wanted, ready)| ready < wanted || *wanted == 0);
    let lacking = lacking
        .map(|(meta, wanted, ready)| format!("{}: {ready} of {wanted} are ready", name(meta)));
    let lacking: Vec<String> = missing.chain(lacking).collect();
    if lacking.is_empty() {
        return Finding::good("programs", "all pods of Holdfast are ready");
    }
    Finding::bad(
        "programs",
        lacking.join("; "),
        "Volumes lack replicas there, or cannot be made, attached or mounted.",
        format!("kubectl -n {namespace} get pods -o wide; then describe those that are not ready."),
    )
}

fn guards(sets: &[DaemonSet], deployments: &[Deployment]) -> Finding {
    let storage = sets.iter().find(|set| label(&set.metadata, COMPONENT) == STORAGE);
    let storage = storage.and_then(|set| set.status.as_ref());
    let storage = storage.map_or(0, |status| status.desired_number_scheduled);
    let guard = deployments.iter().find(|it| label(&it.metadata, COMPONENT) == GUARD);
    let guards = guard.and_then(|it| it.spec.as_ref()?.replicas).unwrap_or(0);
    if guards >= storage {
        return Finding::good("guards", format!("{guards} for {storage} storage pods"));
    }
    Finding::warning(
        "guards",
        format!("{guards} for {storage} storage pods"),
        "A storage node without a guard can be drained while another one is away, and volumes then \
         wait.",
        format!("Set guard.replicas to {storage}, and apply the manifests again."),
    )
}

/// Kubelets know the plugin that runs beside them.
fn registration(pods: &[SurveyedPod], survey: &Survey) -> Finding {
    listed("registration", &survey.csi_nodes, |csi_nodes| {
        let knows = |node: &str| {
            let csi_node = csi_nodes.iter().find(|it| it.metadata.name.as_deref() == Some(node));
            csi_node
                .is_some_and(|it| it.spec.drivers.iter().any(|it| it.name == survey.driver_name))
        };
        let plugins = pods.iter().filter(|it| label(&it.pod.metadata, COMPONENT) == NODE);
        let nodes: BTreeSet<&str> = plugins.filter_map(|it| node_of(&it.pod)).collect();
        let without: Vec<String> =
            nodes.iter().filter(|node| !knows(node)).map(|it| (*it).to_owned()).collect();
        if without.is_empty() {
            return Finding::good("registration", format!("the kubelets of {} nodes", nodes.len()));
        }
        Finding::bad(
            "registration",
            format!("kubelet does not know the driver on {}", some(&without)),
            "No pod with a volume of ours starts there.",
            "Compare csi.kubeletRootDir with kubelet's --root-dir: run this on such a node.",
        )
    })
}

fn default_class(classes: &[StorageClass]) -> Finding {
    let is_default = |class: &&StorageClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(DEFAULT_CLASS)).is_some_and(|it| it == "true")
    };
    let defaults: Vec<String> =
        classes.iter().filter(is_default).map(|class| name(&class.metadata)).collect();
    match &defaults[..] {
        [] => Finding::warning(
            "default-class",
            "no StorageClass is the default",
            "A claim that names no class waits for ever.",
            format!("kubectl annotate storageclass holdfast {DEFAULT_CLASS}=true"),
        ),
        [one] => Finding::good("default-class", one.clone()),
        many => Finding::warning(
            "default-class",
            format!("several StorageClasses are the default: {}", some(many)),
            "A claim that names no class gets the youngest of them.",
            format!("Take the annotation {DEFAULT_CLASS} off all but one."),
        ),
    }
}

fn lost(nodes: &[Node]) -> Finding {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    let is_lost =
        |node: &&Node| taints(node).is_some_and(|all| all.iter().any(|it| it.key == TAINT));
    let lost: Vec<String> = nodes.iter().filter(is_lost).map(|it| name(&it.metadata)).collect();
    if lost.is_empty() {
        return Finding::good("lost-nodes", format!("no node has the taint {TAINT}"));
    }
    Finding::warning(
        "lost-nodes",
        format!("declared lost, with the taint {TAINT}: {}", some(&lost)),
        "No pod starts there until the node is back and has no old device.",
        "`holdfast explain node NAME` tells what is waited for. A node that never returns: delete \
         its Node object.",
    )
}

/// Attachments that fail, and those that should be gone.
fn stuck(attachments: &[VolumeAttachment], now: Timestamp) -> Finding {
    let complaint = |it: &VolumeAttachment| {
        let volume = it.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let at = format!("{volume} on {}", it.spec.node_name);
        let status = it.status.as_ref();
        let error = status.and_then(|status| {
            let error = status.detach_error.as_ref().or(status.attach_error.as_ref())?;
            error.message.clone()
        });
        let is_attached = status.is_some_and(|status| status.attached);
        let made = it.metadata.creation_timestamp.as_ref();
        let is_old = made.is_none_or(|made| now.as_second() - made.0.as_second() > STUCK_AFTER_S);
        match error {
            Some(error) => Some(format!("{at}: {error}")),
            None if is_overdue(&it.metadata, now) => Some(format!("{at}: waits to be detached")),
            None if !is_attached && is_old => Some(format!("{at}: waits to be attached")),
            None => None,
        }
    };
    let all: Vec<String> = attachments.iter().filter_map(complaint).collect();
    if all.is_empty() {
        let count = attachments.len();
        return Finding::good("attachments", format!("none of {count} waits for long"));
    }
    Finding::bad(
        "attachments",
        some(&all),
        "The pods that use these volumes wait.",
        "holdfast explain volume NAME tells who holds it, and what is waited for.",
    )
}

fn ending(pods: &[SurveyedPod], now: Timestamp) -> Finding {
    let stuck = pods.iter().filter(|it| !it.claims.is_empty());
    let stuck = stuck.filter(|it| is_overdue(&it.pod.metadata, now));
    let at =
        |it: &SurveyedPod| format!("{} on {}", pod_name(it), node_of(&it.pod).unwrap_or("no node"));
    let stuck: Vec<String> = stuck.map(at).collect();
    if stuck.is_empty() {
        return Finding::good("ending-pods", "no pod with a volume of ours ends for too long");
    }
    Finding::bad(
        "ending-pods",
        format!("these should have ended: {}", some(&stuck)),
        "Their volumes stay on their nodes, and nothing else may use them.",
        "Look at the kubelet of the node. If it is off for good: `holdfast node show NAME` tells \
         its boot, `holdfast node lost NAME --boot-id BOOT` fences its volumes; then delete the \
         pods with --grace-period=0 --force.",
    )
}

/// True when the time of an object's end is over.
fn is_overdue(meta: &ObjectMeta, now: Timestamp) -> bool {
    let end = meta.deletion_timestamp.as_ref();
    end.is_some_and(|end| now.as_second() - end.0.as_second() > STUCK_AFTER_S)
}

/// What `kubectl drain` would wait for, or refuse, per node.
fn drains(pods: &[SurveyedPod], budgets: &[PodDisruptionBudget]) -> Vec<Finding> {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for it in pods.iter().filter(|it| !is_of_daemon_set(&it.pod) && !has_ended(&it.pod)) {
        let Some(node) = node_of(&it.pod) else { continue };
        let blocks = by_node.entry(node).or_default();
        if it.pod.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) {
            blocks
                .push(format!("{} has no controller: drain refuses without --force", pod_name(it)));
        }
        for budget in budgets.iter().filter(|budget| holds_back(budget, &it.pod)) {
            let reason = match label(&it.pod.metadata, COMPONENT) == GUARD {
                true => "another storage pod is away or not in step",
                false => "it allows no disruption now",
            };
            let budget = name(&budget.metadata);
            blocks.push(format!("{}: PodDisruptionBudget {budget}: {reason}", pod_name(it)));
        }
    }
    by_node.retain(|_, blocks| !blocks.is_empty());
    if by_node.is_empty() {
        return vec![Finding::good(
            "drain",
            "nothing of Holdfast or on its volumes blocks a drain",
        )];
    }
    let finding = |(node, blocks): (&str, Vec<String>)| {
        Finding::warning(
            "drain",
            format!("node {node}: {}", some(&blocks)),
            "`kubectl drain` waits there.",
            "holdfast status tells which storage pod is not in step; wait until it is.",
        )
    };
    by_node.into_iter().map(finding).collect()
}

fn holds_back(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let has_room = budget.status.as_ref().is_none_or(|status| status.disruptions_allowed > 0);
    if has_room || budget.metadata.namespace != pod.metadata.namespace {
        return false;
    }
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    let selector = selector.and_then(|selector| Selector::try_from(selector).ok());
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    selector.is_some_and(|selector| selector.matches(&labels))
}

fn is_of_daemon_set(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.kind == "DaemonSet")
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn pod_name(it: &SurveyedPod) -> String {
    let meta = &it.pod.metadata;
    format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), name(meta))
}

fn name(meta: &ObjectMeta) -> String {
    meta.name.clone().unwrap_or_default()
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> &'a str {
    meta.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str)
}

/// The first few, and how many there are.
fn some(all: &[String]) -> String {
    let mut text = all.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > NAMES_MAX {
        text.push_str(&format!("; and {} more", all.len() - NAMES_MAX));
    }
    text
}

#[cfg(test)]
#[path = "doctor_test.rs"]
mod tests;
