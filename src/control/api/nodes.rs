//! Machines on which volumes are used.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::control::api::objects::{Event, Events, get, page, watch};
use crate::control::api::reaching;
use crate::control::api::requests::checked;
use crate::control::api::rights::speaks_for;
use crate::control::api::route::{on_leader, read};
use crate::control::command::{CatalogCommand, NewNode};
use crate::control::connections::Caller;
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::proto;
use crate::control::proto::nodes_client::NodesClient;
use crate::control::proto::nodes_server::Nodes;
use crate::control::proto::{
    CheckReachableRequest, CheckReachableResponse, ClearLostRequest, DeclareLostRequest,
    GetNodeRequest, ListNodesRequest, ListNodesResponse, ReportRequest, WatchNodesRequest,
    WatchNodesResponse,
};
use crate::types::PodId;

/// Pods and addresses of one machine that can be tried.
const TRIED_MAX: usize = 16;

pub struct NodesService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Nodes for NodesService {
    async fn list(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let page = page::<proto::Node>(
                    &self.node,
                    &catalog,
                    request.query,
                    "",
                    |source, after| Ok(source.keys_after(proto::Node::KIND, after)),
                )
                .await?;
                Ok(ListNodesResponse {
                    nodes: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { NodesClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(&self, request: Request<GetNodeRequest>) -> Result<Response<proto::Node>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { get(&self.node, &catalog, &request.name).await },
            |channel, call| async move { NodesClient::new(channel).get(call).await },
        )
        .await
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<proto::Node>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        speaks_for(caller.who(), &request.get_ref().name)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let ReportRequest { name, boot_id, labels, has_no_device, again_after_ms } =
                    request;
                let node = NewNode { name: name.clone(), boot_id, labels: checked(labels)? };
                let (state, _) = read(&catalog).await?;
                // Nodes say it again and again.
                let known = state.nodes.get(&name);
                let is_known = known.is_some_and(|known| {
                    let has_pods = state.index.pods_by_node.contains_key(&name);
                    let is_new = has_no_device && known.lost_boot_id.is_some();
                    let is_so = has_pods || known.labels == node.labels;
                    known.boot_id == node.boot_id && is_so && !is_new
                });
                if !is_known {
                    catalog.propose(CatalogCommand::ReportNode { node, has_no_device }).await?;
                }
                let shown = get(&self.node, &catalog, &name).await?;
                // The catalog has it, so the leader may remember its name.
                let every = Duration::from_millis(again_after_ms.into());
                self.node.reports.hear_node(&name, every);
                Ok(shown)
            },
            |channel, call| async move { NodesClient::new(channel).report(call).await },
        )
        .await
    }

    async fn declare_lost(
        &self,
        request: Request<DeclareLostRequest>,
    ) -> Result<Response<proto::Node>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let DeclareLostRequest { name, boot_id } = request;
                let node = name.clone();
                catalog.propose(CatalogCommand::DeclareLost { node, boot_id }).await?;
                get(&self.node, &catalog, &name).await
            },
            |channel, call| async move { NodesClient::new(channel).declare_lost(call).await },
        )
        .await
    }

    async fn clear_lost(
        &self,
        request: Request<ClearLostRequest>,
    ) -> Result<Response<proto::Node>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let node = request.name.clone();
                catalog.propose(CatalogCommand::ClearLost { node }).await?;
                get(&self.node, &catalog, &request.name).await
            },
            |channel, call| async move { NodesClient::new(channel).clear_lost(call).await },
        )
        .await
    }

    async fn check_reachable(
        &self,
        request: Request<CheckReachableRequest>,
    ) -> Result<Response<CheckReachableResponse>, Status> {
        let CheckReachableRequest { pods, addresses } = request.into_inner();
        if pods.len() + addresses.len() > TRIED_MAX {
            let message = format!("at most {TRIED_MAX} pods and addresses can be tried");
            return Err(Status::invalid_argument(message));
        }
        let pods = pods.into_iter().filter_map(|pod| self.node.peers.api_of(PodId(pod)));
        let mut all: Vec<SocketAddr> = pods.collect();
        for address in addresses {
            let parsed = address.parse().ok().filter(reaching::is_of_a_machine);
            all.push(parsed.ok_or_else(|| {
                let message = format!("{address:?} is no IP address of a machine, with a port");
                Status::invalid_argument(message)
            })?);
        }
        Ok(Response::new(reaching::check(all).await))
    }

    type WatchStream = Events<WatchNodesResponse>;

    async fn watch(
        &self,
        request: Request<WatchNodesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let token = &request.resume_token;
                let events =
                    watch::<proto::Node>(&self.node, catalog, request.query, token).await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = NodesClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }
}

fn message(event: Event<proto::Node>) -> WatchNodesResponse {
    let Event { change, object, resume_token } = event;
    WatchNodesResponse { change: change.into(), node: object, resume_token }
}
