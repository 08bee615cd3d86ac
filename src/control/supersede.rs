//! Tells pods that were away during a recovery that the catalog has a new history. Two of them may
//! have a majority of the old members, and would go on without noticing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::{Request, Status};

use crate::control::catalog::chain;
use crate::control::membership;
use crate::control::node::Node;
use crate::control::proto::internal::{SupersedeRequest, SupersedeResponse};
use crate::control::state::rows::Cluster;
use crate::types::{PodId, Uuid};

/// Interval of rounds, and the pods that one round tells.
const ROUND_EVERY: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 64;
const CALL_WITHIN: Duration = Duration::from_secs(2);
/// Ancestors in one request: a cluster is seldom restored.
const ANCESTORS_MAX: usize = 4096;

/// On the leader: tells the pods that do not report. A cluster that was never recovered has none.
pub async fn tell_left_behind(node: Arc<Node>) {
    let mut next = 0;
    loop {
        sleep(ROUND_EVERY).await;
        let Some(catalog) = node.leading() else { continue };
        let Some(state) = catalog.published.borrow().state.clone() else { continue };
        if state.cluster.restores == 0 {
            continue;
        }
        let silent: Vec<PodId> = node.reports.with(|pods| {
            let silent = state.pods.keys().filter(|pod| !pods.is_up(**pod));
            silent.copied().collect()
        });
        // At once: those that are off must not delay those that come back.
        let mut calls = JoinSet::new();
        for turn in 0..silent.len().min(AT_ONCE) {
            let pod = silent[(next + turn) % silent.len()];
            let Some(api) = node.peers.api_of(pod) else { continue };
            let (node, cluster) = (Arc::clone(&node), state.cluster.clone());
            calls.spawn(async move { (pod, tell(&node, api, &cluster).await) });
        }
        while let Some(ended) = calls.join_next().await {
            if let Ok((pod, Err(status))) = ended {
                tracing::debug!(pod = pod.0, "not told of the new catalog: {}", status.message());
            }
        }
        next += AT_ONCE;
    }
}

async fn tell(node: &Node, api: SocketAddr, cluster: &Cluster) -> Result<(), Status> {
    let ancestors = cluster.ancestors.iter().rev().take(ANCESTORS_MAX);
    let mut request = Request::new(SupersedeRequest {
        cluster: cluster.uid.to_string(),
        history: cluster.history.to_string(),
        ancestors: ancestors.map(Uuid::to_string).collect(),
        leader_pod: node.identity.pod.0,
        leader_api: node.addresses.api.to_string(),
    });
    request.set_timeout(CALL_WITHIN);
    node.peers.catalog(api).supersede(request).await?;
    Ok(())
}

/// Gives up this pod's member of the catalog if its history was replaced by another one.
pub async fn superseded(
    node: &Arc<Node>,
    request: SupersedeRequest,
) -> Result<SupersedeResponse, Status> {
    let bad = |_| Status::invalid_argument("a part of the request cannot be read");
    if request.ancestors.len() > ANCESTORS_MAX {
        return Err(Status::invalid_argument("too many ancestors"));
    }
    let ancestors: Vec<Uuid> =
        request.ancestors.iter().map(|it| it.parse()).collect::<Result<_, _>>().map_err(bad)?;
    let api: SocketAddr = request
        .leader_api
        .parse()
        .map_err(|_| Status::invalid_argument("an address is not ip:port"))?;
    let ours = node.catalog().and_then(|catalog| {
        let published = catalog.published.borrow();
        published.state.as_ref().map(|state| (state.cluster.history, catalog.row))
    });
    if let Some((_, row)) = ours.filter(|(ours, _)| ancestors.contains(ours)) {
        tracing::warn!(
            history = request.history,
            "the catalog was recovered without this pod: its member gives up"
        );
        membership::give_up(node, row).await.map_err(|error| Status::internal(chain(&error)))?;
        node.set_leader(Some((PodId(request.leader_pod), api)));
    }
    Ok(SupersedeResponse {})
}
