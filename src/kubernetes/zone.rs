//! Where a storage node is, by what Kubernetes knows of it: its pod gets the labels `zone` and
//! `region`, by which replicas of the class `replicated-zones` are placed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::time::timeout;

use crate::control::catalog::chain;
use crate::control::state::rows::Labels;
use crate::kubernetes::client::{self, OpenError};

/// In the pod's directory: what Kubernetes said last.
const FILE: &str = "place.json";
/// A pod that is to serve does not wait longer for Kubernetes.
const WITHIN: Duration = Duration::from_secs(5);
/// The labels of a Node that count, and what they are called here.
const NAMES: [(&str, &str); 2] =
    [("topology.kubernetes.io/zone", "zone"), ("topology.kubernetes.io/region", "region")];

/// Why it is not known where a node is.
#[derive(Debug, thiserror::Error)]
enum ZoneError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("could not read the node")]
    Get(#[source] Box<kube::Error>),
    #[error("Kubernetes did not answer within {} seconds", WITHIN.as_secs())]
    Late,
    #[error("could not keep it in {FILE}")]
    Keep(#[from] io::Error),
}

/// The labels of a node. While Kubernetes does not answer, those of the last time.
pub async fn labels(data: &Path, node: &str) -> Labels {
    let asked = timeout(WITHIN, ask(node)).await.map_err(|_| ZoneError::Late);
    let found = asked.and_then(|found| found);
    match found.and_then(|labels| keep(data, &labels).map(|()| labels)) {
        Ok(labels) => labels,
        Err(error) => {
            tracing::warn!("the zone of node {node} is not known anew: {}", chain(&error));
            kept(data)
        }
    }
}

async fn ask(node: &str) -> Result<Labels, ZoneError> {
    let nodes: Api<Node> = Api::all(client::open().await?);
    let found = nodes.get_metadata(node).await;
    let found = found.map_err(|error| ZoneError::Get(Box::new(error)))?;
    Ok(picked(&found.metadata.labels.unwrap_or_default()))
}

/// The labels that count.
fn picked(all: &BTreeMap<String, String>) -> Labels {
    let found = NAMES.iter().filter_map(|(theirs, ours)| Some((ours, all.get(*theirs)?)));
    found.map(|(ours, value)| ((*ours).to_owned(), value.clone())).collect()
}

fn keep(data: &Path, labels: &Labels) -> Result<(), ZoneError> {
    let new = data.join(format!("{FILE}.new"));
    fs::write(&new, serde_json::to_vec(labels).map_err(io::Error::from)?)?;
    Ok(fs::rename(new, data.join(FILE))?)
}

/// What was kept; nothing, if it cannot be read.
fn kept(data: &Path) -> Labels {
    let text = fs::read(data.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_and_region_are_taken_and_kept() {
        let pairs = [
            ("topology.kubernetes.io/zone", "b"),
            ("topology.kubernetes.io/region", "north"),
            ("kubernetes.io/hostname", "worker-1"),
        ];
        let all = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let labels = picked(&all);
        assert_eq!(labels.len(), 2);
        assert_eq!((labels["zone"].as_str(), labels["region"].as_str()), ("b", "north"));
        let root = tempfile::tempdir().unwrap();
        assert!(kept(root.path()).is_empty());
        keep(root.path(), &labels).unwrap();
        assert_eq!(kept(root.path()), labels);
        fs::write(root.path().join(FILE), "{").unwrap();
        assert!(kept(root.path()).is_empty());
    }
}
