//! Block volumes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Response, Status};

use crate::control::api::errors::{Refusal, broken, no_such, of_placement};
use crate::control::api::objects::{Event, Events, describe, describe_applied, get, page, watch};
use crate::control::api::requests::{checked, name_request};
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::catalog::Catalog;
use crate::control::catalog_member::AskError;
use crate::control::command::{
    CatalogCommand, Deletion, NewVolume, Outcome, Placement, VolumeUpdate,
};
use crate::control::identity::random_uuid;
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::placement::{Wish, layout, place_growth, place_on_nodes};
use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::volumes_server::Volumes;
use crate::control::proto::{
    CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest,
    ListVolumesRequest, ListVolumesResponse, SetOpenRequest, UndeleteVolumeRequest,
    UpdateVolumeRequest, View, Volume, WatchVolumesRequest, WatchVolumesResponse,
};
use crate::control::reason::Reason;
use crate::control::state::growth::check_growth;
use crate::control::state::{CatalogError, CatalogState};
use crate::types::VolumeId;

/// For how long a deleted volume is kept if nobody says: a day.
const RETENTION_S: u64 = 24 * 60 * 60;
/// The class of a volume that names none.
const CLASS: &str = "replicated";
/// How many placements are tried while the disks change.
const PLACEMENTS_MAX: usize = 5;
/// Interval of checks while a new leader has not heard from all pods.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Classes that a refusal names at most.
const CLASSES_SHOWN: usize = 20;
/// Stands for a volume that was not there when a request came.
const NOBODY: &str = "-";

pub struct VolumesService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Volumes for VolumesService {
    async fn create(
        &self,
        mut request: Request<CreateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
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
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let query = request.query;
                let page = page::<Volume>(&self.node, &catalog, query, "", |source, after| {
                    Ok(source.keys_after(Volume::KIND, after))
                })
                .await?;
                Ok(ListVolumesResponse {
                    volumes: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { VolumesClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                match request.uid.as_str() {
                    "" => get(&self.node, &catalog, &request.name).await,
                    uid => of_uid(&self.node, &catalog, uid).await,
                }
            },
            |channel, call| async move { VolumesClient::new(channel).get(call).await },
        )
        .await
    }

    type WatchStream = Events<WatchVolumesResponse>;

    async fn watch(
        &self,
        request: Request<WatchVolumesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let token = &request.resume_token;
                let events = watch::<Volume>(&self.node, catalog, request.query, token).await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = VolumesClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }

    async fn update(
        &self,
        mut request: Request<UpdateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| update(&self.node, catalog, request),
            |channel, call| async move { VolumesClient::new(channel).update(call).await },
        )
        .await
    }

    async fn undelete(
        &self,
        mut request: Request<UndeleteVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let wanted = request.get_mut();
        name_request(&mut wanted.request_id)?;
        if wanted.uid.is_empty() {
            wanted.uid = self.uid_of(&wanted.name).await?;
        }
        on_leader(
            &self.node,
            request,
            |catalog, request| undelete(&self.node, catalog, request),
            |channel, call| async move { VolumesClient::new(channel).undelete(call).await },
        )
        .await
    }

    async fn set_open(
        &self,
        mut request: Request<SetOpenRequest>,
    ) -> Result<Response<Volume>, Status> {
        let wanted = request.get_mut();
        name_request(&mut wanted.request_id)?;
        if wanted.uid.is_empty() {
            wanted.uid = self.uid_of(&wanted.name).await?;
        }
        on_leader(
            &self.node,
            request,
            |catalog, request| set_open(&self.node, catalog, request),
            |channel, call| async move { VolumesClient::new(channel).set_open(call).await },
        )
        .await
    }

    async fn delete(
        &self,
        mut request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let wanted = request.get_mut();
        name_request(&mut wanted.request_id)?;
        if wanted.uid.is_empty() {
            // The pod that carries it out deletes this volume and no later one of the name.
            wanted.uid = self.uid_of(&wanted.name).await?;
        }
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { delete(&catalog, request).await },
            |channel, call| async move { VolumesClient::new(channel).delete(call).await },
        )
        .await
    }
}

fn message(event: Event<Volume>) -> WatchVolumesResponse {
    let Event { change, object, resume_token } = event;
    WatchVolumesResponse { change: change.into(), volume: object, resume_token }
}

impl VolumesService {
    /// Uid of the volume that has this name now, or [`NOBODY`]: a repeated request may have deleted
    /// it already, and still gets its answer.
    async fn uid_of(&self, name: &str) -> Result<String, Status> {
        let request = GetVolumeRequest { name: name.to_owned(), ..GetVolumeRequest::default() };
        match self.get(Request::new(request)).await {
            Ok(found) => Ok(found.into_inner().meta.map(|meta| meta.uid).unwrap_or_default()),
            Err(status) if status.code() == Code::NotFound => Ok(NOBODY.to_owned()),
            Err(status) => Err(status),
        }
    }
}

/// The volume with this uid.
async fn of_uid(node: &Node, catalog: &Catalog, uid: &str) -> Result<Volume, Failure> {
    let found = describe(node, catalog, |from, _| {
        let volume = from.source.volume_by_uid(uid.parse().ok()?)?;
        Volume::describe(from, &ObjectKey::Volume(volume), View::Full)
    });
    found.await?.ok_or_else(|| no_such(Kind::Volume, uid).into())
}

async fn update(
    node: &Node,
    catalog: Arc<Catalog>,
    request: UpdateVolumeRequest,
) -> Result<Volume, Failure> {
    let UpdateVolumeRequest { name, revision, labels, request_id, size_bytes } = request;
    let update = VolumeUpdate { based_on: revision, labels: checked(labels)?, size_bytes };
    let mut placements = 0;
    loop {
        let (state, _) = read(&catalog).await?;
        let found = state.volume_by_name(&name);
        let (id, volume) = found.ok_or_else(|| no_such(Kind::Volume, &name))?;
        let is_answered = state.answered(&request_id).is_some();
        let placed = match check_growth(volume, size_bytes) {
            Ok(Some(shards)) if !is_answered => node.reports.with(|pods| {
                let placed = place_growth(&state, pods, volume, size_bytes, shards);
                placed.map_err(|error| (error, pods.has_listened()))
            }),
            // The state refuses it, or has nothing to place.
            _ => Ok(Placement::default()),
        };
        let placement = match placed {
            Ok(placement) => placement,
            Err((error, false)) if error.may_pass() => {
                sleep(LOOK_EVERY).await;
                continue;
            }
            Err((error, _)) => return Err(of_placement(&error).into()),
        };
        placements += 1;
        let (request_id, update) = (request_id.clone(), update.clone());
        let command = CatalogCommand::UpdateVolume { request_id, volume: id, update, placement };
        match catalog.propose(command).await {
            Err(AskError::Refused(CatalogError::StalePlacement)) if placements < PLACEMENTS_MAX => {
            }
            result => {
                result?;
                return get(node, &catalog, &name).await;
            }
        }
    }
}

async fn undelete(
    node: &Node,
    catalog: Arc<Catalog>,
    request: UndeleteVolumeRequest,
) -> Result<Volume, Failure> {
    let UndeleteVolumeRequest { name, request_id, uid } = request;
    let (state, _) = read(&catalog).await?;
    let volume = named(&state, &name, &uid);
    let command = CatalogCommand::UndeleteVolume { request_id, name: name.clone(), volume };
    catalog.propose(command).await?;
    get(node, &catalog, &name).await
}

async fn set_open(
    node: &Node,
    catalog: Arc<Catalog>,
    request: SetOpenRequest,
) -> Result<Volume, Failure> {
    let SetOpenRequest { name, open, request_id, uid } = request;
    let (state, _) = read(&catalog).await?;
    let volume = named(&state, &name, &uid);
    catalog.propose(CatalogCommand::SetOpen { request_id, volume, open }).await?;
    get(node, &catalog, &name).await
}

/// The volume of this name and uid; 0: there is none.
fn named(state: &CatalogState, name: &str, uid: &str) -> VolumeId {
    let found = state.volume_by_name(name).filter(|(_, volume)| volume.uid.to_string() == uid);
    found.map_or(VolumeId(0), |(volume, _)| volume)
}

async fn delete(
    catalog: &Catalog,
    request: DeleteVolumeRequest,
) -> Result<DeleteVolumeResponse, Failure> {
    let DeleteVolumeRequest { name, request_id, uid, force, retention_s, purge } = request;
    let (state, _) = read(catalog).await?;
    let volume = named(&state, &name, &uid);
    let retention_ms = retention_s.unwrap_or(RETENTION_S).saturating_mul(1000);
    let how = Deletion { force, retention_ms, purge };
    catalog.propose(CatalogCommand::DeleteVolume { request_id, name, volume, how }).await?;
    Ok(DeleteVolumeResponse {})
}

async fn create(
    node: &Node,
    catalog: Arc<Catalog>,
    request: CreateVolumeRequest,
) -> Result<Volume, Failure> {
    let outcome = place_and_propose(node, &catalog, &request).await?;
    let Outcome::Volume(id) = outcome else {
        return Err(Failure::Final(broken("creating made no volume")));
    };
    let key = ObjectKey::Volume(id);
    let found =
        describe_applied(node, &catalog, |from, _| Volume::describe(from, &key, View::Full));
    found.await?.ok_or_else(|| no_such(Kind::Volume, &request.name).into())
}

/// What a request asks for, with everything that it left open.
fn wanted(request: &CreateVolumeRequest, state: &CatalogState) -> Result<NewVolume, Status> {
    let spec = request.spec.clone().unwrap_or_default();
    let class = if spec.class.is_empty() { CLASS } else { &spec.class };
    let found = state.classes.get(class).ok_or_else(|| no_such_class(state, class))?;
    let (stripe_bytes, _) = layout(spec.size_bytes);
    let uid =
        random_uuid().map_err(|error| broken(format!("could not make an identity: {error}")))?;
    let labels = checked(request.labels.clone())?;
    Ok(NewVolume {
        uid,
        name: request.name.clone(),
        class: class.to_owned(),
        labels,
        size_bytes: spec.size_bytes,
        stripe_bytes,
        replicas: if spec.replicas == 0 { found.replicas } else { spec.replicas },
        io_timeout_ms: found.io_timeout_ms,
        open: !spec.closed,
    })
}

/// Names the classes that there are.
fn no_such_class(state: &CatalogState, name: &str) -> Status {
    let known: Vec<&str> = state.classes.keys().map(String::as_str).take(CLASSES_SHOWN).collect();
    let message = format!("there is no class named {name:?}; there are {}", known.join(", "));
    Refusal::new(Reason::NoSuchClass, message).about(Kind::Class, name).into()
}

async fn place_and_propose(
    node: &Node,
    catalog: &Catalog,
    request: &CreateVolumeRequest,
) -> Result<Outcome, Failure> {
    let mut placements = 0;
    loop {
        let (state, _) = read(catalog).await?;
        let volume = wanted(request, &state)?;
        let name = &volume.name;
        let propose = |placement: Placement| {
            let (request_id, volume) = (request.request_id.clone(), volume.clone());
            catalog.propose(CatalogCommand::CreateVolume { request_id, volume, placement })
        };
        if state.answered(&request.request_id).is_some() || state.volume_by_name(name).is_some() {
            // It may be what is asked for; the state decides.
            return Ok(propose(Placement::default()).await?);
        }
        let wish = Wish {
            name,
            shards: volume.size_bytes.div_ceil(volume.stripe_bytes),
            shard_bytes: volume.stripe_bytes.min(volume.size_bytes),
            replicas: volume.replicas,
            grows: false,
        };
        let (class, nodes) = (&state.classes[&volume.class], request.nodes.as_slice());
        let (placed, has_listened) = node
            .reports
            .with(|pods| (place_on_nodes(&state, pods, class, wish, nodes), pods.has_listened()));
        let placement = match placed {
            Ok(placement) => placement,
            Err(error) if error.may_pass() && !has_listened => {
                sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(of_placement(&error).into()),
        };
        placements += 1;
        match propose(placement).await {
            Err(AskError::Refused(CatalogError::StalePlacement)) if placements < PLACEMENTS_MAX => {
            }
            result => return Ok(result?),
        }
    }
}
