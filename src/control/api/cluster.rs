//! The cluster as a whole.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tonic::{Request, Response, Status};

use crate::control::api::route::{Failure, on_leader, read};
use crate::control::catalog::Catalog;
use crate::control::describe::Describe;
use crate::control::node::Node;
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::cluster_server::Cluster;
use crate::control::proto::{StatusRequest, StatusResponse};

pub struct ClusterService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, _| describe(&self.node, catalog, |describe| describe.status()),
            |channel, call| async move { ClusterClient::new(channel).status(call).await },
        )
        .await
    }
}

/// Interval of checks while a new leader has not heard from all pods.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Reads the leader's state and describes it. A new leader first listens to the pods.
pub async fn describe<T>(
    node: &Node,
    catalog: Arc<Catalog>,
    with: impl FnOnce(Describe<'_>) -> T,
) -> Result<T, Failure> {
    loop {
        let (state, published) = read(&catalog).await?;
        let group = &published.group;
        let me = node.identity.pod;
        // Held only while the answer is made.
        let pods_known = node
            .reports
            .with(|pods| pods.has_listened() || state.pods.keys().all(|pod| pods.is_up(*pod)));
        if pods_known {
            return Ok(node.reports.with(|pods| with(Describe::new(&state, group, pods, me))));
        }
        sleep(LOOK_EVERY).await;
    }
}
