//! Internal calls between pods: the catalog's own traffic, views and reports.

use std::sync::Arc;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::control::api::errors::invalid;
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::api::telling::tell_pod;
use crate::control::api::{parse_addresses, parse_node};
use crate::control::catalog::{Catalog, chain};
use crate::control::command::{CatalogCommand, NewDisk};
use crate::control::connections::{Caller, Who};
use crate::control::node::Node;
use crate::control::proto::internal as proto;
use crate::control::proto::internal::catalog_client::CatalogClient;
use crate::control::proto::internal::catalog_server::Catalog as CatalogApi;
use crate::control::recovery::format;
use crate::control::reports::{Also, DISKS_FREE_AFTER, Heard, Use};
use crate::control::state::CatalogState;
use crate::control::state::rows::RowKey;
use crate::control::storage::Snapshot;
use crate::control::supersede::superseded;
use crate::control::sync::resolve::{exported, known_from};
use crate::control::trusting::Trusting;
use crate::level::Level;
use crate::replica::meta::Meta;
use crate::security::subject::Role;
use crate::security::trust::ROOTS_MAX;
use crate::types::{MemberId, PodId};
use crate::view::PodReport;

/// What a pod knows of a very large cluster.
const OFFER_BYTES_MAX: usize = 1 << 30;
/// A pod that wants to be told says so at once.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(5);
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
        request: Request<Streaming<proto::InstallPiece>>,
    ) -> Result<Response<proto::InstallResponse>, Status> {
        install(&self.node, request.into_inner()).await?;
        Ok(Response::new(proto::InstallResponse {}))
    }

    type SyncStream = ReceiverStream<Result<proto::SyncMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<proto::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let mut requests = request.into_inner();
        let nothing = || Status::invalid_argument("the pod says nothing");
        let first = timeout(FIRST_REQUEST_WITHIN, requests.message()).await;
        let first = first.map_err(|_| nothing())??.ok_or_else(nothing)?;
        check_cluster(&self.node, &first.cluster)?;
        check_speaks_for_itself(caller.as_ref(), PodId(first.pod))?;
        learn_address(&self.node, PodId(first.pod), &first.api)?;
        Ok(Response::new(tell_pod(Arc::clone(&self.node), first, requests)?))
    }

    async fn resolve(
        &self,
        request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        check_cluster(&self.node, &request.get_ref().cluster)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let (state, _) = read(&catalog).await?;
                let volume = exported(&state, &request.name).unwrap_or_default();
                let revision = known_from(&state, volume, &request.name);
                Ok(proto::ResolveResponse { volume: volume.0, revision })
            },
            |channel, call| async move { CatalogClient::new(channel).resolve(call).await },
        )
        .await
    }

    async fn offer(
        &self,
        request: Request<Streaming<proto::OfferPiece>>,
    ) -> Result<Response<proto::OfferResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        take_offer(&self.node, caller.as_ref(), request.into_inner()).await?;
        Ok(Response::new(proto::OfferResponse {}))
    }

    async fn supersede(
        &self,
        request: Request<proto::SupersedeRequest>,
    ) -> Result<Response<proto::SupersedeResponse>, Status> {
        let request = request.into_inner();
        check_cluster(&self.node, &request.cluster)?;
        Ok(Response::new(superseded(&self.node, request).await?))
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

/// Takes a whole state in pieces, and gives it to this pod's member.
async fn install(node: &Node, mut pieces: Streaming<proto::InstallPiece>) -> Result<(), Status> {
    let incomplete = || Status::invalid_argument("the state of the catalog is incomplete");
    let mut piece = pieces.message().await?.ok_or_else(incomplete)?;
    let head = piece.head.take().ok_or_else(incomplete)?;
    let proto::InstallHead { cluster, to_member, index, term, meta, rows: expected } = head;
    check_cluster(node, &cluster)?;
    Meta::decode(&meta).map_err(|error| invalid(&error))?;
    let is_here = || node.catalog().filter(|it| it.row.member.0 == to_member);
    let absent = || Status::unavailable("this pod has no such member of the catalog yet");
    is_here().ok_or_else(absent)?;
    let mut rows = Vec::new();
    loop {
        for proto::StateRow { key, row } in piece.rows {
            rows.push((RowKey::decode(&key).map_err(|error| invalid(&error))?, row));
        }
        match pieces.message().await? {
            Some(next) => piece = next,
            None => break,
        }
    }
    if rows.len() as u64 != expected {
        return Err(incomplete());
    }
    let state = CatalogState::from_rows(rows).map_err(|error| invalid(&error))?;
    if state.cluster.uid != node.identity.cluster {
        return Err(Status::invalid_argument("this is not the state of this cluster"));
    }
    let catalog = is_here().ok_or_else(absent)?;
    catalog.install(Snapshot { index, term, meta, state: Some(state) });
    Ok(())
}

/// Takes what a pod knows, for the recovery that this pod carries out.
async fn take_offer(
    node: &Node,
    caller: Option<&Caller>,
    mut pieces: Streaming<proto::OfferPiece>,
) -> Result<(), Status> {
    let incomplete = || Status::invalid_argument("an offer for a recovery is incomplete");
    let mut piece = pieces.message().await?.ok_or_else(incomplete)?;
    let head = piece.head.take().ok_or_else(incomplete)?;
    check_cluster(node, &head.cluster)?;
    check_speaks_for_itself(caller, PodId(head.pod))?;
    let other = || Status::failed_precondition("this pod does not recover that catalog");
    let recovery = node.recovery().filter(|it| it.plan.history.to_string() == head.history);
    let recovery = recovery.ok_or_else(other)?;
    // One at a time: what pods know may be large.
    let _turn = recovery.turn.lock().await;
    let mut bytes = Vec::new();
    loop {
        if bytes.len() + piece.data.len() > OFFER_BYTES_MAX {
            return Err(Status::resource_exhausted("an offer for a recovery is too large"));
        }
        bytes.extend_from_slice(&piece.data);
        match pieces.message().await? {
            Some(next) => piece = next,
            None => break,
        }
    }
    let copy = format::read(&bytes).map_err(|error| invalid(&error))?;
    let heard = recovery.hear(PodId(head.pod), head.is_complete, copy);
    heard.map_err(|error| Status::failed_precondition(chain(&error)))
}

pub(super) fn check_cluster(node: &Node, cluster: &str) -> Result<(), Status> {
    match node.is_our_cluster(cluster) {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!(
            "pod {} belongs to cluster {}, not to {cluster}; check the addresses",
            node.identity.pod, node.identity.cluster
        ))),
    }
}

/// What concerns a pod is told to that pod alone.
fn check_speaks_for_itself(caller: Option<&Caller>, pod: PodId) -> Result<(), Status> {
    match caller.map(Caller::who) {
        Some(Who::Holder(holder)) if holder.subject.role != Role::Pod(pod) => {
            Err(Status::permission_denied("a pod asks for itself"))
        }
        _ => Ok(()),
    }
}

fn learn_address(node: &Node, pod: PodId, api: &str) -> Result<(), Status> {
    let api = api.parse().map_err(|_| Status::invalid_argument("an address is not ip:port"))?;
    node.peers.learn(pod, api);
    Ok(())
}

async fn register(
    node: &Node,
    catalog: Arc<Catalog>,
    request: proto::RegisterRequest,
) -> Result<proto::RegisterResponse, Failure> {
    let addresses = parse_addresses(&request.api, &request.peer, &request.nbd)?;
    let pod = PodId(request.pod);
    let uid = request.uid.parse().map_err(|error| invalid(&error))?;
    let machine = parse_node(request.node)?;
    let newest = Level(request.newest_level);
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
    let command = CatalogCommand::Register { pod, uid, addresses, node: machine, newest, disks };
    catalog.propose(command).await?;
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
    let revision = published.state.as_ref().map_or(0, |state| state.revision());
    if request.is_same {
        let also = Also { catalog: member, trusting: trusting_of(request.trusting.as_ref()) };
        let known = node.reports.hear_again(PodId(request.pod), request.report_id, also);
        return Ok(proto::ReportResponse { revision, is_unknown: !known });
    }
    let is_open = !request.report.is_empty();
    let report = match is_open {
        true => serde_json::from_slice(&request.report).map_err(|error| invalid(&error))?,
        false => PodReport { pod: PodId(request.pod), disks: Vec::new() },
    };
    let (id, version) = (request.report_id, request.version.clone());
    let catalog_failed = request.catalog_failed.clone();
    let trusting = trusting_of(request.trusting.as_ref());
    let heard = Heard { report, id, is_open, catalog: member, catalog_failed, version, trusting };
    if node.reports.hear(PodId(request.pod), heard) {
        node.wake.notify_one();
    }
    Ok(proto::ReportResponse { revision, is_unknown: false })
}

/// What cannot be read counts as nothing.
fn trusting_of(said: Option<&proto::Trusting>) -> Trusting {
    let Some(proto::Trusting { revision, trusts, presents }) = said else {
        return Trusting::default();
    };
    let trusts = trusts.iter().take(ROOTS_MAX).filter_map(|hash| hash[..].try_into().ok());
    Trusting {
        revision: *revision,
        trusts: trusts.collect(),
        presents: presents[..].try_into().ok(),
    }
}
