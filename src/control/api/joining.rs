//! How a process becomes a pod.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::control::api::errors::{broken, invalid};
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::api::{parse_addresses, parse_node};
use crate::control::catalog::Catalog;
use crate::control::command::{CatalogCommand, Outcome};
use crate::control::node::Node;
use crate::control::proto::internal::joining_client::JoiningClient;
use crate::control::proto::internal::joining_server::Joining;
use crate::control::proto::internal::{JoinRequest, JoinResponse};
use crate::level::Level;

pub struct JoiningService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Joining for JoiningService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        on_leader(&self.node, request, join, |channel, call| async move {
            JoiningClient::new(channel).join(call).await
        })
        .await
    }
}

async fn join(catalog: Arc<Catalog>, request: JoinRequest) -> Result<JoinResponse, Failure> {
    let uid = request.uid.parse().map_err(|error| invalid(&error))?;
    let node = parse_node(request.node)?;
    let newest = Level(request.newest_level);
    let addresses = parse_addresses(&request.api, &request.peer, &request.nbd)?;
    let outcome = catalog.propose(CatalogCommand::Join { uid, addresses, node, newest }).await?;
    let Outcome::Pod(pod) = outcome else {
        return Err(Failure::Final(broken("joining made no pod")));
    };
    let (state, _) = read(&catalog).await?;
    let others = state.pods.iter().filter(|(other, _)| **other != pod);
    Ok(JoinResponse {
        cluster: state.cluster.uid.to_string(),
        pod: pod.0,
        api: others.map(|(_, record)| record.addresses.api.to_string()).collect(),
    })
}
