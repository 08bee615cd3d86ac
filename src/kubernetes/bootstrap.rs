//! How a cluster comes to be on the storage nodes of a Kubernetes cluster, without a person. Pure:
//! from what a node has at home and the record that all of them share, to the next step of that
//! node.
//!
//! The record lies in a Secret, and is changed by compare-and-swap only:
//!
//! ```text
//! empty --> initializing(node, directory, cluster) --> made(cluster, authorities)
//! ```
//!
//! Every node reports what its disks carry. When all that are expected report empty disks, the
//! first of them by name makes the cluster, and the others join it. The rules:
//!
//! - A node that belongs to a cluster serves, whatever the record says, and writes down that the
//!   cluster is made. So a record that was lost comes back from the disks.
//! - Only the node that the record names makes a cluster, and only the cluster that it names. That
//!   node has its keys on its disk before.
//! - A node with nothing at home never makes a cluster while another node has one: not when it was
//!   installed anew, and not when the record was lost.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::kubernetes::authorities::{Told, published};
use crate::types::Uuid;

/// What a node has at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Home {
    /// It belongs to no cluster, and its disks are empty.
    Empty,
    /// It belongs to no cluster, and disks carry data of one.
    Used { cluster: Uuid },
    /// There is something that cannot be read: it counts as data.
    Damaged,
    /// It belongs to a cluster.
    Member { cluster: Uuid },
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Of its directory: another one after the machine was installed anew.
    pub uid: Uuid,
    /// Address of its API, `host:port`.
    pub api: String,
    pub home: Home,
}

/// How far the cluster is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum State {
    #[default]
    Empty,
    /// This node makes this cluster.
    Initializing { node: String, uid: Uuid, cluster: Uuid },
    /// The cluster can be joined. `authorities`: PEM.
    Made { cluster: Uuid, authorities: String },
}

/// What the nodes share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub state: State,
    /// By the name of the node.
    pub reports: BTreeMap<String, Report>,
}

impl Record {
    /// Addresses of the pods of a cluster, as they have reported.
    pub fn pods_of(&self, cluster: Uuid) -> Vec<String> {
        let home = Home::Member { cluster };
        let members = self.reports.values().filter(|report| report.home == home);
        members.map(|report| report.api.clone()).collect()
    }
}

/// A node, as it knows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub node: String,
    pub report: Report,
    /// The cluster whose keys this node has made, and not used yet.
    pub prepared: Option<Uuid>,
    /// Whom it trusts, PEM, if it belongs to a cluster.
    pub authorities: String,
}

/// The nodes that have to report before a cluster is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub nodes: BTreeSet<String>,
    /// There must be as many.
    pub least: usize,
}

/// The next step of a node. After each of them but `Serve`, the node looks again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Replace the record, unless somebody else has changed it since it was read.
    Write(Record),
    /// Make the keys of a new cluster, durably.
    Prepare,
    /// Make this cluster, which was prepared, and serve.
    Make {
        cluster: Uuid,
    },
    /// Join the cluster by one of these pods, and serve.
    Join {
        cluster: Uuid,
        authorities: String,
        pods: Vec<String>,
    },
    /// Serve: it belongs to a cluster.
    Serve,
    Wait(Why),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error(
        "{missing} more storage nodes are needed, labelled as the values say, before a cluster is \
         made"
    )]
    TooFew { missing: usize },
    #[error("storage nodes have not reported yet: {}", .0.join(", "))]
    Reports(Vec<String>),
    #[error("this node is not among the expected storage nodes, and there is no cluster to join")]
    NotExpected,
    #[error("node {0} is about to make the cluster")]
    Turn(String),
    #[error(
        "node {0} makes the cluster. If that node is gone for good, and never served, delete the \
         Secret holdfast-cluster and apply the manifests again: the others begin anew"
    )]
    Making(String),
    #[error(
        "the disks of node {node} carry cluster {cluster}, and no node belongs to it: bring back \
         the nodes' own directories, or restore the catalog; or wipe the disks if nobody needs them"
    )]
    Used { node: String, cluster: Uuid },
    #[error(
        "node {0} has a disk or a directory that cannot be read, so it may carry data: repair it, \
         or wipe it if nobody needs it"
    )]
    Damaged(String),
    #[error(
        "cluster {0} was made here before, and none of its nodes has come up: nobody makes another \
         one. If it is gone for good, delete the ConfigMap holdfast-cluster and apply the \
         manifests again"
    )]
    Known(Uuid),
}

/// Decides the next step. `known`: the cluster that a second place names, which outlives the
/// record.
pub fn decide(
    own: &Own,
    record: Option<&Record>,
    known: Option<Uuid>,
    expected: &Expected,
) -> Step {
    if let Home::Member { .. } = own.report.home {
        return Step::Serve;
    }
    let Some(record) = record else { return Step::Write(reported(own, &Record::default())) };
    let with_report = reported(own, record);
    if with_report != *record {
        return Step::Write(with_report);
    }
    match &record.state {
        State::Made { cluster, authorities } => Step::Join {
            cluster: *cluster,
            authorities: authorities.clone(),
            pods: record.pods_of(*cluster),
        },
        State::Initializing { node, .. } if *node != own.node => {
            Step::Wait(Why::Making(node.clone()))
        }
        State::Initializing { .. } => initialise(own, record),
        State::Empty => match obstacle(own, record, known, expected) {
            Some(why) => Step::Wait(why),
            None => initialise(own, record),
        },
    }
}

/// What a node that belongs to a cluster has to write down, if anything. `told`: what the catalog
/// says of authorities; `None`: it did not answer.
pub fn publish(
    own: &Own,
    record: Option<&Record>,
    told: Option<&Told>,
) -> Result<Option<Record>, OtherCluster> {
    let Home::Member { cluster } = own.report.home else { return Ok(None) };
    let before = record.cloned().unwrap_or_default();
    let mut now = reported(own, &before);
    match &before.state {
        State::Made { cluster: found, .. } if *found != cluster => {
            return Err(OtherCluster { own: cluster, found: *found });
        }
        State::Made { authorities, .. } => {
            let authorities = published(authorities, &own.authorities, told);
            now.state = State::Made { cluster, authorities };
        }
        State::Empty | State::Initializing { .. } => {
            let authorities = published("", &own.authorities, told);
            now.state = State::Made { cluster, authorities };
        }
    }
    Ok((record != Some(&now)).then_some(now))
}

/// The record names another cluster than this node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this node belongs to cluster {own}, and the Secret names cluster {found}: this node serves \
     its own; remove the one that is not wanted"
)]
pub struct OtherCluster {
    own: Uuid,
    found: Uuid,
}

fn reported(own: &Own, record: &Record) -> Record {
    let mut record = record.clone();
    record.reports.insert(own.node.clone(), own.report.clone());
    record
}

/// Why no cluster may be made by this node now.
fn obstacle(own: &Own, record: &Record, known: Option<Uuid>, expected: &Expected) -> Option<Why> {
    for (node, report) in &record.reports {
        match report.home {
            Home::Empty => {}
            Home::Damaged => return Some(Why::Damaged(node.clone())),
            Home::Used { cluster } | Home::Member { cluster } => {
                return Some(Why::Used { node: node.clone(), cluster });
            }
        }
    }
    if let Some(cluster) = known {
        return Some(Why::Known(cluster));
    }
    let missing = expected.least.max(1).saturating_sub(expected.nodes.len());
    if missing > 0 {
        return Some(Why::TooFew { missing });
    }
    let silent = expected.nodes.iter().filter(|node| !record.reports.contains_key(*node));
    let silent: Vec<String> = silent.cloned().collect();
    if !silent.is_empty() {
        return Some(Why::Reports(silent));
    }
    if !expected.nodes.contains(&own.node) {
        return Some(Why::NotExpected);
    }
    let first = expected.nodes.first()?;
    (*first != own.node).then(|| Why::Turn(first.clone()))
}

/// The step of the node that makes the cluster.
fn initialise(own: &Own, record: &Record) -> Step {
    match own.report.home {
        Home::Empty => {}
        Home::Used { cluster } | Home::Member { cluster } => {
            return Step::Wait(Why::Used { node: own.node.clone(), cluster });
        }
        Home::Damaged => return Step::Wait(Why::Damaged(own.node.clone())),
    }
    let Some(cluster) = own.prepared else { return Step::Prepare };
    let uid = own.report.uid;
    let state = State::Initializing { node: own.node.clone(), uid, cluster };
    match record.state == state {
        true => Step::Make { cluster },
        // It begins, or was installed anew meanwhile: nobody can have joined what it began before.
        false => Step::Write(Record { state, ..record.clone() }),
    }
}

#[cfg(test)]
#[path = "bootstrap_test.rs"]
mod tests;
