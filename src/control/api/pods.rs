//! Storage pods, and how a process becomes one.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::control::api::cluster::describe;
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::api::{invalid, parse_addresses, parse_node};
use crate::control::catalog::Catalog;
use crate::control::command::{CatalogCommand, FORMAT, Outcome};
use crate::control::node::Node;
use crate::control::proto::pods_client::PodsClient;
use crate::control::proto::pods_server::Pods;
use crate::control::proto::{JoinRequest, JoinResponse, ListPodsRequest, ListPodsResponse};

pub struct PodsService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Pods for PodsService {
    async fn list(
        &self,
        request: Request<ListPodsRequest>,
    ) -> Result<Response<ListPodsResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, _| describe(&self.node, catalog, |all| ListPodsResponse { pods: all.pods() }),
            |channel, call| async move { PodsClient::new(channel).list(call).await },
        )
        .await
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        on_leader(&self.node, request, join, |channel, call| async move {
            PodsClient::new(channel).join(call).await
        })
        .await
    }
}

async fn join(catalog: Arc<Catalog>, request: JoinRequest) -> Result<JoinResponse, Failure> {
    if request.format < u32::from(FORMAT) {
        return Err(Failure::Final(Status::failed_precondition(format!(
            "the pod knows the catalog's format up to {}, and this cluster uses {FORMAT}; start \
             a newer version",
            request.format
        ))));
    }
    let uid = request.uid.parse().map_err(|error| invalid(&error))?;
    let node = parse_node(request.node)?;
    let addresses = parse_addresses(&request.api, &request.peer, &request.nbd)?;
    let outcome = catalog.propose(CatalogCommand::Join { uid, addresses, node }).await?;
    let Outcome::Pod(pod) = outcome else {
        return Err(Failure::Final(Status::internal("joining made no pod")));
    };
    let (state, _) = read(&catalog).await?;
    let others = state.pods.iter().filter(|(other, _)| **other != pod);
    Ok(JoinResponse {
        cluster: state.cluster.uid.to_string(),
        pod: pod.0,
        api: others.map(|(_, record)| record.addresses.api.to_string()).collect(),
    })
}
