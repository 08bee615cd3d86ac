//! What to do about nodes that are lost. Pure: from what the catalog and Kubernetes say to steps,
//! each of which can be repeated. Nothing is remembered between two looks, so that a controller may
//! end at any moment and another one go on.
//!
//! A node is declared lost when all of these hold:
//!
//! - Its pods are silent; a node without pods: its node plugin is, and it has attachments.
//! - A majority of the catalog's pods have tried to reach it and could not, and no prober could.
//! - Its kubelet has not renewed its Lease for [`LEASE_AGE_MAX`], or its Node object is gone.
//! - Nobody was declared lost in the last [`ONE_PER`], and with it no more than a third are lost.
//!
//! A node without a Node object and without attachments has nothing to lose: it neither counts, nor
//! is it declared lost.
//!
//! Then the catalog fences it. What is fenced, and only that, is taken from it in Kubernetes: so no
//! other node can get a volume that this one may still write to. All is lifted when the catalog
//! does not call the node lost any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The kubelet renews its Lease every 10 s.
pub const LEASE_AGE_MAX: Duration = Duration::from_secs(12);
/// One node is declared lost in this time. If there are more, the fault is elsewhere.
pub const ONE_PER: Duration = Duration::from_secs(5 * 60);

/// A volume, as the driver names it.
pub type Handle = String;

/// An object of Kubernetes that is deleted only while it is this very one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Attempts to reach a node, of those that may have been up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// No address of it is known.
    pub is_placeless: bool,
    /// It has no pods, and nobody has ever reached its kubelet: a firewall may be in between.
    pub is_stranger: bool,
    /// The pods of the catalog, also those that did not answer.
    pub catalog: usize,
    /// Those of them that tried, and could not reach it.
    pub catalog_failed: usize,
    /// Anybody who reached it.
    pub reached: usize,
}

impl Probes {
    /// Why nobody can tell whether it is there.
    fn say_nothing(self) -> Option<Refusal> {
        match (self.is_placeless, self.is_stranger && self.reached == 0) {
            (true, _) => Some(Refusal::NoAddress),
            (false, true) => Some(Refusal::NeverReached),
            (false, false) => None,
        }
    }

    fn say_cut_off(self) -> bool {
        self.reached == 0 && self.catalog_failed > self.catalog / 2 && !self.is_stranger
    }
}

/// A Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeNode {
    /// It has our taint.
    pub tainted: bool,
    /// Our volumes in its `status.volumesInUse`.
    pub in_use: BTreeSet<Handle>,
    /// For how long its Lease was seen not to change; `None`: there is no Lease.
    pub lease_age: Option<Duration>,
}

/// A Pod on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsingPod {
    pub object: ObjectRef,
    /// Our volumes that it uses.
    pub volumes: BTreeSet<Handle>,
    /// Storage of others, which nobody fences, that it may write to: names of its volumes.
    pub others: Vec<String>,
}

/// A node of the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub boot_id: String,
    /// Nobody reports for it: no pod of it, or without pods, not its node plugin.
    pub is_silent: bool,
    pub is_lost: bool,
    /// Nothing is attached to it. Not looked at while all is well with it.
    pub is_unused: bool,
    /// The volumes that it has, or that shards have yet to take from it.
    pub holds: BTreeSet<Handle>,
    /// `None`: nobody was asked.
    pub probes: Option<Probes>,
    /// `None`: there is no such object.
    pub kube: Option<KubeNode>,
    /// VolumeAttachments of ours.
    pub attachments: Vec<(ObjectRef, Handle)>,
    pub pods: Vec<UsingPod>,
}

/// Everything that is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// Since a node was declared lost the last time.
    pub since_last: Option<Duration>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// In the catalog: it fences what the node has.
    DeclareLost {
        node: String,
        boot_id: String,
    },
    /// Keeps new Pods away.
    Taint {
        node: String,
    },
    /// The node is not lost any more.
    Untaint {
        node: String,
    },
    /// Take fenced volumes from `status.volumesInUse`: nothing waits for the node to unmount them.
    RemoveInUse {
        node: String,
        volumes: BTreeSet<Handle>,
    },
    DeleteAttachment {
        node: String,
        attachment: ObjectRef,
    },
    /// With grace 0: the kubelet cannot confirm the end.
    DeletePod {
        node: String,
        pod: ObjectRef,
    },
    /// Its volumes of ours are fenced, and it may still write to these of others.
    LeavePod {
        node: String,
        pod: ObjectRef,
        others: Vec<String>,
    },
    /// A node is cut off, and is not declared lost.
    Refuse {
        node: String,
        why: Refusal,
    },
}

impl Step {
    /// True when it changes something. The others are for people to know.
    pub fn is_change(&self) -> bool {
        !matches!(self, Step::LeavePod { .. } | Step::Refuse { .. })
    }
}

/// Why a node that is cut off is not declared lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "another node was declared lost less than 5 minutes ago; if this one is off, run \
         `holdfast node lost`"
    )]
    TooSoon,
    #[error(
        "more than a third of the nodes would be lost, so the fault may be in the network; if \
         this one is off, run `holdfast node lost`"
    )]
    TooMany,
    #[error(
        "no pod has ever reached its kubelet, perhaps because of a firewall; let the storage nodes \
         connect to it; if the node is off, run `holdfast node lost`"
    )]
    NeverReached,
    #[error(
        "no address of it is known, so that nobody can try to reach it; if it is off, run \
         `holdfast node lost`"
    )]
    NoAddress,
}

/// True when the controller on node `own` acts. Of all that have a controller the one acts that is
/// beside the catalog's leader; if there is none, the first that is well. All controllers know the
/// same, by the catalog's leader: so one acts, but for the moment in which that changes. Steps can
/// be repeated, so two of them do no harm.
pub fn acts(
    own: &str,
    leader: Option<&str>,
    controllers: &BTreeSet<String>,
    nodes: &BTreeMap<String, Node>,
) -> bool {
    let is_well =
        |node: &&String| nodes.get(*node).is_none_or(|node| !node.is_silent && !node.is_lost);
    match leader {
        Some(leader) if controllers.contains(leader) => leader == own,
        _ => controllers.iter().find(is_well).is_some_and(|node| node == own),
    }
}

/// The nodes that look lost from afar, and have to be probed.
pub fn suspects(seen: &Seen) -> Vec<String> {
    let suspects = seen.nodes.iter().filter(|(_, node)| looks_gone(node));
    suspects.map(|(name, _)| name.clone()).collect()
}

fn looks_gone(node: &Node) -> bool {
    let lease_ended = match &node.kube {
        None => true,
        Some(kube) => kube.lease_age.is_some_and(|age| age >= LEASE_AGE_MAX),
    };
    !node.is_lost && node.is_silent && lease_ended && !is_retired(node)
}

/// True for a machine that was taken away: there is nothing to fence.
fn is_retired(node: &Node) -> bool {
    node.kube.is_none() && node.is_unused
}

/// Decides what to do now.
pub fn decide(seen: &Seen) -> Vec<Step> {
    let mut steps = declare(seen);
    let untried = seen.nodes.iter().filter(|(_, node)| looks_gone(node));
    steps.extend(untried.filter_map(|(name, node)| {
        let why = node.probes?.say_nothing()?;
        Some(Step::Refuse { node: name.clone(), why })
    }));
    for (name, node) in &seen.nodes {
        match node.is_lost {
            true => take_from(name, node, &mut steps),
            false if node.kube.as_ref().is_some_and(|kube| kube.tainted) => {
                steps.push(Step::Untaint { node: name.clone() });
            }
            false => {}
        }
    }
    steps
}

/// Declares one node lost, if one is, and says why others are not.
fn declare(seen: &Seen) -> Vec<Step> {
    let counted = || seen.nodes.values().filter(|node| !is_retired(node));
    let (lost, all) = (counted().filter(|node| node.is_lost).count(), counted().count());
    let cut_off = seen
        .nodes
        .iter()
        .filter(|(_, node)| looks_gone(node) && node.probes.is_some_and(Probes::say_cut_off));
    let mut is_free = seen.since_last.is_none_or(|since| since >= ONE_PER);
    let mut steps = Vec::new();
    for (name, found) in cut_off {
        let node = name.clone();
        steps.push(if (lost + 1) * 3 > all {
            Step::Refuse { node, why: Refusal::TooMany }
        } else if !is_free {
            Step::Refuse { node, why: Refusal::TooSoon }
        } else {
            is_free = false;
            Step::DeclareLost { node, boot_id: found.boot_id.clone() }
        });
    }
    steps
}

/// Takes what is fenced from a lost node.
fn take_from(name: &str, node: &Node, steps: &mut Vec<Step>) {
    let node_name = || name.to_owned();
    let is_fenced = |volume: &Handle| !node.holds.contains(volume);
    if let Some(kube) = &node.kube {
        if !kube.tainted {
            steps.push(Step::Taint { node: node_name() });
        }
        let volumes: BTreeSet<Handle> =
            kube.in_use.iter().filter(|volume| is_fenced(volume)).cloned().collect();
        if !volumes.is_empty() {
            steps.push(Step::RemoveInUse { node: node_name(), volumes });
        }
    }
    for (attachment, volume) in &node.attachments {
        if is_fenced(volume) {
            let attachment = attachment.clone();
            steps.push(Step::DeleteAttachment { node: node_name(), attachment });
        }
    }
    for UsingPod { object, volumes, others } in &node.pods {
        // One that has another volume still may write to that.
        if volumes.is_empty() || !volumes.iter().all(is_fenced) {
            continue;
        }
        let (node, pod, others) = (node_name(), object.clone(), others.clone());
        steps.push(match others.is_empty() {
            true => Step::DeletePod { node, pod },
            false => Step::LeavePod { node, pod, others },
        });
    }
}

#[cfg(test)]
#[path = "failover_test.rs"]
mod tests;
