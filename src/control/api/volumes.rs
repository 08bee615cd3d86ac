//! Block volumes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tonic::{Code, Request, Response, Status};

use crate::control::api::cluster::describe;
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::catalog::Catalog;
use crate::control::catalog_member::AskError;
use crate::control::command::{CatalogCommand, NewVolume, Outcome, Placement};
use crate::control::describe::Describe;
use crate::control::identity::random_uuid;
use crate::control::node::Node;
use crate::control::placement::{PlacementError, candidates, layout, place};
use crate::control::proto;
use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::volumes_server::Volumes;
use crate::control::state::CatalogError;
use crate::types::VolumeId;

/// Default number of replicas.
const REPLICAS: u32 = 3;
/// How many placements are tried while the disks change.
const PLACEMENTS_MAX: usize = 5;
/// Interval of checks while a new leader has not heard from all pods.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct VolumesService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Volumes for VolumesService {
    async fn create(
        &self,
        mut request: Request<proto::CreateVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| create(&self.node, catalog, request),
            |channel, call| async move { VolumesClient::new(channel).create(call).await },
        )
        .await
    }

    async fn list(
        &self,
        request: Request<proto::ListVolumesRequest>,
    ) -> Result<Response<proto::ListVolumesResponse>, Status> {
        let list = |all: Describe<'_>| proto::ListVolumesResponse { volumes: all.volumes() };
        on_leader(
            &self.node,
            request,
            |catalog, _| describe(&self.node, catalog, list),
            |channel, call| async move { VolumesClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(
        &self,
        request: Request<proto::GetVolumeRequest>,
    ) -> Result<Response<proto::Volume>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| get(&self.node, catalog, request.name),
            |channel, call| async move { VolumesClient::new(channel).get(call).await },
        )
        .await
    }

    async fn delete(
        &self,
        mut request: Request<proto::DeleteVolumeRequest>,
    ) -> Result<Response<proto::DeleteVolumeResponse>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        let volume = match request.get_ref().volume {
            Some(volume) => VolumeId(volume),
            None => self.resolve(&request.get_ref().name).await?,
        };
        // The pod that carries it out deletes this volume and no later one of the name.
        request.get_mut().volume = Some(volume.0);
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let proto::DeleteVolumeRequest { name, request_id, .. } = request;
                catalog
                    .propose(CatalogCommand::DeleteVolume {
                        request_id,
                        name,
                        volume,
                        force: false,
                    })
                    .await?;
                Ok(proto::DeleteVolumeResponse {})
            },
            |channel, call| async move { VolumesClient::new(channel).delete(call).await },
        )
        .await
    }
}

impl VolumesService {
    /// Id of the volume that has this name now, or 0: a repeated request may have deleted it
    /// already, and still gets its answer.
    async fn resolve(&self, name: &str) -> Result<VolumeId, Status> {
        if let Some(catalog) = self.node.leading()
            && let Ok((state, _)) = read(&catalog).await
        {
            return Ok(state.volume_by_name(name).map_or(VolumeId(0), |(volume, _)| volume));
        }
        match self.get(Request::new(proto::GetVolumeRequest { name: name.to_owned() })).await {
            Ok(found) => Ok(VolumeId(found.into_inner().id)),
            Err(status) if status.code() == Code::NotFound => Ok(VolumeId(0)),
            Err(status) => Err(status),
        }
    }
}

/// Gives a request without an id one, so that it can be forwarded and repeated.
fn name_request(request_id: &mut String) -> Result<(), Status> {
    if request_id.is_empty() {
        let name = random_uuid()
            .map_err(|error| Status::internal(format!("could not name the request: {error}")))?;
        *request_id = name.to_string();
    }
    Ok(())
}

async fn get(node: &Node, catalog: Arc<Catalog>, name: String) -> Result<proto::Volume, Failure> {
    let found = describe(node, catalog, |all| all.volume_by_name(&name)).await?;
    found.ok_or_else(|| no_such_volume(name))
}

fn no_such_volume(name: String) -> Failure {
    AskError::Refused(CatalogError::NoSuchVolume { name }).into()
}

async fn create(
    node: &Node,
    catalog: Arc<Catalog>,
    request: proto::CreateVolumeRequest,
) -> Result<proto::Volume, Failure> {
    let outcome = place_and_propose(node, &catalog, &request).await?;
    let Outcome::Volume(id) = outcome else {
        return Err(Failure::Final(Status::internal("creating made no volume")));
    };
    let found = describe(node, catalog, |all| all.volume_by_id(id)).await?;
    found.ok_or_else(|| no_such_volume(request.name))
}

async fn place_and_propose(
    node: &Node,
    catalog: &Catalog,
    request: &proto::CreateVolumeRequest,
) -> Result<Outcome, Failure> {
    let proto::CreateVolumeRequest { name, size_bytes, replicas, request_id } = request;
    let replicas = if *replicas == 0 { REPLICAS } else { *replicas };
    let (stripe_bytes, shards) = layout(*size_bytes);
    let volume = NewVolume {
        uid: random_uuid().map_err(|error| Status::internal(error.to_string()))?,
        name: name.clone(),
        class: if replicas == 1 { "local" } else { "replicated" }.to_owned(),
        labels: BTreeMap::new(),
        size_bytes: *size_bytes,
        stripe_bytes,
        replicas,
        open: true,
    };
    let mut placements = 0;
    loop {
        let (state, _) = read(catalog).await?;
        if state.answered(request_id).is_some() || state.volume_by_name(name).is_some() {
            // It may be what is asked for; the state decides.
            return Ok(catalog.propose(create_command(request_id, &volume, None)).await?);
        }
        let (placed, has_listened) = node.reports.with(|pods| {
            let (candidates, unreachable) = candidates(&state, pods);
            let placed = place(name, shards, replicas, &candidates, &unreachable);
            (placed, pods.has_listened())
        });
        let placement = match placed {
            Ok(placement) => placement,
            Err(PlacementError::TooFewPods { .. }) if !has_listened => {
                sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error @ PlacementError::BadReplicas { .. }) => {
                return Err(Failure::Final(Status::invalid_argument(error.to_string())));
            }
            Err(error) => {
                return Err(Failure::Final(Status::failed_precondition(format!(
                    "{error}; add pods, or ask for fewer replicas"
                ))));
            }
        };
        placements += 1;
        let command = create_command(request_id, &volume, Some(placement));
        match catalog.propose(command).await {
            Err(AskError::Refused(CatalogError::StalePlacement)) if placements < PLACEMENTS_MAX => {
            }
            result => return Ok(result?),
        }
    }
}

fn create_command(
    request_id: &str,
    volume: &NewVolume,
    placement: Option<Placement>,
) -> CatalogCommand {
    CatalogCommand::CreateVolume {
        request_id: request_id.to_owned(),
        volume: volume.clone(),
        placement: placement.unwrap_or_default(),
    }
}
