//! Internal calls between pods: the catalog's own traffic, views and reports.

use std::sync::Arc;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use crate::control::api::route::{Failure, on_leader, read};
use crate::control::api::{invalid, parse_addresses};
use crate::control::catalog::Catalog;
use crate::control::command::{CatalogCommand, NewDisk, decode};
use crate::control::node::Node;
use crate::control::proto;
use crate::control::proto::catalog_client::CatalogClient;
use crate::control::proto::catalog_server::Catalog as CatalogApi;
use crate::control::reports::{DISKS_FREE_AFTER, Heard, Use};
use crate::control::state::CatalogState;
use crate::control::storage::Snapshot;
use crate::replica::meta::Meta;
use crate::types::{MemberId, PodId};
use crate::view::PodReport;

/// The longest wait for a newer view.
const WATCH_MS_MAX: u32 = 10_000;
/// Messages in one call at most.
const MESSAGES_MAX: usize = 1024;

pub struct CatalogService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl CatalogApi for CatalogService {
    async fn raft(
        &self,
        request: Request<proto::RaftBatch>,
    ) -> Result<Response<proto::RaftAck>, Status> {
        let batch = request.into_inner();
        let node = &self.node;
        check_cluster(node, &batch.cluster)?;
        if batch.messages.len() > MESSAGES_MAX {
            return Err(Status::invalid_argument("too many messages at once"));
        }
        let from = PodId(batch.from_pod);
        learn_address(node, from, &batch.from_api)?;
        let Some(catalog) = node.catalog().filter(|it| it.row.member.0 == batch.to_member) else {
            // The member may not be made here yet, or may be gone already.
            return Ok(Response::new(proto::RaftAck {}));
        };
        for bytes in &batch.messages {
            let message =
                Message::parse_from_carllerche_bytes(bytes).map_err(|error| invalid(&error))?;
            node.peers.learn_member(MemberId(message.from), from);
            catalog.step(message);
        }
        Ok(Response::new(proto::RaftAck {}))
    }

    async fn install(
        &self,
        request: Request<proto::InstallRequest>,
    ) -> Result<Response<proto::InstallResponse>, Status> {
        let proto::InstallRequest { cluster, to_member, index, term, meta, state } =
            request.into_inner();
        check_cluster(&self.node, &cluster)?;
        let state: Option<CatalogState> = decode(&state).map_err(|error| invalid(&error))?;
        Meta::decode(&meta).map_err(|error| invalid(&error))?;
        let cluster = self.node.identity.cluster;
        if state.as_ref().is_none_or(|state| state.cluster != cluster) {
            return Err(Status::invalid_argument("this is not the state of this cluster"));
        }
        state.iter().try_for_each(CatalogState::check).map_err(|error| invalid(&error))?;
        let catalog = self.node.catalog().filter(|it| it.row.member.0 == to_member);
        let catalog = catalog
            .ok_or_else(|| Status::unavailable("this pod has no such member of the catalog yet"))?;
        catalog.install(Snapshot { index, term, meta, state });
        Ok(Response::new(proto::InstallResponse {}))
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<proto::WatchResponse>, Status> {
        let request = request.into_inner();
        check_cluster(&self.node, &request.cluster)?;
        learn_address(&self.node, PodId(request.pod), &request.api)?;
        watch(&self.node, &request).await.map(Response::new)
    }

    async fn register(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        check_cluster(&self.node, &request.get_ref().cluster)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| register(&self.node, catalog, request),
            |channel, call| async move { CatalogClient::new(channel).register(call).await },
        )
        .await
    }

    async fn report(
        &self,
        request: Request<proto::ReportRequest>,
    ) -> Result<Response<proto::ReportResponse>, Status> {
        check_cluster(&self.node, &request.get_ref().cluster)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { report(&self.node, &catalog, &request) },
            |channel, call| async move { CatalogClient::new(channel).report(call).await },
        )
        .await
    }
}

fn check_cluster(node: &Node, cluster: &str) -> Result<(), Status> {
    match node.is_our_cluster(cluster) {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!(
            "pod {} belongs to cluster {}, not to {cluster}; check the addresses",
            node.identity.pod, node.identity.cluster
        ))),
    }
}

fn learn_address(node: &Node, pod: PodId, api: &str) -> Result<(), Status> {
    let api = api.parse().map_err(|_| Status::invalid_argument("an address is not ip:port"))?;
    node.peers.learn(pod, api);
    Ok(())
}

async fn watch(node: &Node, request: &proto::WatchRequest) -> Result<proto::WatchResponse, Status> {
    let deadline = Instant::now() + Duration::from_millis(request.wait_ms.min(WATCH_MS_MAX).into());
    let Some(catalog) = node.catalog() else {
        return Err(Status::unavailable("this pod is not a member of the catalog"));
    };
    let mut published = catalog.published.clone();
    let newer = |state: &Option<Arc<CatalogState>>| {
        state.as_ref().is_some_and(|state| state.revision > request.known_revision)
    };
    loop {
        let now = published.borrow_and_update().clone();
        let leader = now.leader(catalog.row.member).and_then(|leader| node.peers.pod_of(leader));
        let (Some(state), Some(leader)) = (&now.state, leader) else {
            // The state of this pod may be outdated.
            return Err(Status::unavailable("this pod knows no leader of the catalog"));
        };
        let waited = !newer(&now.state)
            && matches!(timeout_at(deadline, published.changed()).await, Ok(Ok(())));
        if !waited {
            let view = match newer(&now.state) {
                true => serde_json::to_vec(&state.view()).expect("our own types have a JSON form"),
                false => Vec::new(),
            };
            let api = |pod: PodId| node.peers.api_of(pod).map(|api| api.to_string());
            let members = state.catalog.iter().map(|(member, pod)| proto::CatalogMember {
                member: member.0,
                pod: pod.0,
                api: api(*pod).unwrap_or_default(),
            });
            return Ok(proto::WatchResponse {
                revision: state.revision,
                view: view.into(),
                members: members.collect(),
                leader_pod: leader.0,
                leader_api: api(leader).unwrap_or_default(),
            });
        }
    }
}

async fn register(
    node: &Node,
    catalog: Arc<Catalog>,
    request: proto::RegisterRequest,
) -> Result<proto::RegisterResponse, Failure> {
    let addresses = parse_addresses(&request.api, &request.peer, &request.nbd)?;
    let pod = PodId(request.pod);
    let mut disks = Vec::with_capacity(request.disks.len());
    for disk in request.disks {
        let proto::RegisterDisk { disk, path, capacity_bytes } = disk;
        let disk = disk.parse().map_err(|error| invalid(&error))?;
        disks.push(NewDisk { disk, path, capacity_bytes });
    }
    let (state, _) = read(&catalog).await?;
    for new in &disks {
        let Some(known) = state.disks.get(&new.disk).filter(|known| known.pod != pod) else {
            continue;
        };
        let NewDisk { disk, path, .. } = new;
        let why = match node.reports.uses(known.pod, *disk) {
            Use::No => continue,
            Use::Yes => "in use there; a disk and a copy of it must not be used at once".to_owned(),
            Use::Maybe => format!(
                "maybe in use there; it can be used here when pod {} has started without it, or \
                 was unreachable for {} seconds",
                known.pod,
                DISKS_FREE_AFTER.as_secs()
            ),
        };
        return Err(Failure::Final(Status::failed_precondition(format!(
            "disk {disk} ({path}) belongs to pod {} and is {why}",
            known.pod
        ))));
    }
    catalog.propose(CatalogCommand::Register { pod, addresses, disks }).await?;
    Ok(proto::RegisterResponse {})
}

fn report(
    node: &Node,
    catalog: &Catalog,
    request: &proto::ReportRequest,
) -> Result<proto::ReportResponse, Failure> {
    let member = (request.catalog_member > 0)
        .then_some((MemberId(request.catalog_member), request.catalog_applied));
    let published = catalog.published.borrow();
    let revision = published.state.as_ref().map_or(0, |state| state.revision);
    if request.is_same {
        let known = node.reports.hear_again(PodId(request.pod), request.report_id, member);
        return Ok(proto::ReportResponse { revision, is_unknown: !known });
    }
    let is_open = !request.report.is_empty();
    let report = match is_open {
        true => serde_json::from_slice(&request.report).map_err(|error| invalid(&error))?,
        false => PodReport { pod: PodId(request.pod), disks: Vec::new() },
    };
    let (id, version) = (request.report_id, request.version.clone());
    let heard = Heard { report, id, is_open, catalog: member, version };
    if node.reports.hear(PodId(request.pod), heard) {
        node.wake.notify_one();
    }
    Ok(proto::ReportResponse { revision, is_unknown: false })
}
