//! Nodes without storage pods: where their kubelets listen, and whether a pod has reached them.
//! Silence tells nothing of a node that a firewall hides. So each is tried once while it is well.
//! Every controller does that for itself, so that any of them can take over at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::csi::api::OpenError;
use crate::kubernetes::catalog_view::{Catalog, CatalogView};
use crate::kubernetes::kube_view::{KubeError, Kubernetes};

/// Nodes that are tried in one look.
const MET_AT_ONCE: usize = 4;
/// Before a node that was not reached is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Why a node was not tried.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    #[error(transparent)]
    Kube(#[from] KubeError),
    #[error("could not connect to a pod")]
    Pod(#[from] OpenError),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Strangers {
    /// As their Node objects said last: these may be gone by now.
    kubelets: BTreeMap<String, Vec<String>>,
    reached: BTreeSet<String>,
    /// Of the others, when they were tried last.
    tried: BTreeMap<String, Instant>,
}

impl Strangers {
    /// Tries some of the nodes that were not reached yet.
    pub async fn meet(
        &mut self,
        kubernetes: &Kubernetes,
        catalog: &Catalog,
        view: &CatalogView,
    ) -> Result<(), MeetError> {
        self.kubelets.retain(|node, _| view.nodes.contains_key(node));
        self.reached.retain(|node| view.podless.contains(node));
        self.tried.retain(|node, _| view.podless.contains(node));
        let is_due = |node: &&String| {
            let is_well = view.nodes.get(*node).is_some_and(|it| !it.is_silent && !it.is_lost);
            let tried = self.tried.get(*node);
            is_well
                && !self.reached.contains(*node)
                && tried.is_none_or(|at| at.elapsed() >= AGAIN_AFTER)
        };
        let due: Vec<String> =
            view.podless.iter().filter(is_due).take(MET_AT_ONCE).cloned().collect();
        for node in due {
            self.tried.insert(node.clone(), Instant::now());
            let Some(addresses) = kubernetes.kubelet_of(&node).await? else { continue };
            let probes = catalog.probe(view, &node, &addresses).await?;
            self.lives_at(&node, addresses);
            match probes.reached > 0 {
                true => {
                    tracing::info!(node, "a storage pod reaches the kubelet of this node");
                    self.tried.remove(&node);
                    self.reached.insert(node);
                }
                false => tracing::warn!(
                    node,
                    "no storage pod reaches the kubelet of this node: it cannot be declared lost \
                     by itself"
                ),
            }
        }
        Ok(())
    }

    /// Where the kubelet of a node listens.
    pub fn lives_at(&mut self, node: &str, addresses: Vec<String>) {
        self.kubelets.insert(node.to_owned(), addresses);
    }

    /// Where the kubelet of a node listened last, as far as is known.
    pub fn addresses(&self, node: &str) -> &[String] {
        self.kubelets.get(node).map_or(&[], Vec::as_slice)
    }

    /// True for a node that nobody has ever reached.
    pub fn is_one(&self, node: &str) -> bool {
        !self.reached.contains(node)
    }
}
