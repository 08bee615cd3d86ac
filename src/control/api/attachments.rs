//! Who may use closed volumes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::control::api::errors::{Refusal, broken, no_such};
use crate::control::api::objects::{Event, Events, describe, get, page, watch};
use crate::control::api::requests::name_request;
use crate::control::api::rights::speaks_for;
use crate::control::api::route::{Failure, on_leader, read};
use crate::control::catalog::Catalog;
use crate::control::command::{CatalogCommand, Outcome};
use crate::control::connections::Caller;
use crate::control::identity::random_uuid;
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::attachments_server::Attachments;
use crate::control::proto::{
    self, AccessMode, Attachment, ClaimRequest, ClaimResponse, GetAttachmentRequest,
    ListAttachmentsRequest, ListAttachmentsResponse, PublishRequest, RecordFileSystemRequest,
    RecordFileSystemResponse, UnpublishRequest, UnpublishResponse, View, WatchAttachmentsRequest,
    WatchAttachmentsResponse,
};
use crate::control::reason::Reason;
use crate::control::state::CatalogState;
use crate::control::state::rows::AttachmentKey;
use crate::types::{self, VolumeId};

/// How long a call waits for the shards. It goes on without the call, and the call can be repeated.
const SHARDS_WITHIN: Duration = Duration::from_secs(4);

pub struct AttachmentsService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Attachments for AttachmentsService {
    async fn publish(
        &self,
        mut request: Request<PublishRequest>,
    ) -> Result<Response<Attachment>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| publish(&self.node, catalog, request),
            |channel, call| async move { AttachmentsClient::new(channel).publish(call).await },
        )
        .await
    }

    async fn unpublish(
        &self,
        mut request: Request<UnpublishRequest>,
    ) -> Result<Response<UnpublishResponse>, Status> {
        name_request(&mut request.get_mut().request_id)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { unpublish(&catalog, request).await },
            |channel, call| async move { AttachmentsClient::new(channel).unpublish(call).await },
        )
        .await
    }

    async fn claim(
        &self,
        request: Request<ClaimRequest>,
    ) -> Result<Response<ClaimResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        speaks_for(caller.who(), &request.get_ref().node)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| claim(&self.node, catalog, request),
            |channel, call| async move { AttachmentsClient::new(channel).claim(call).await },
        )
        .await
    }

    async fn record_file_system(
        &self,
        request: Request<RecordFileSystemRequest>,
    ) -> Result<Response<RecordFileSystemResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        speaks_for(caller.who(), &request.get_ref().node)?;
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { record_file_system(&catalog, request).await },
            |channel, call| async move {
                AttachmentsClient::new(channel).record_file_system(call).await
            },
        )
        .await
    }

    async fn list(
        &self,
        request: Request<ListAttachmentsRequest>,
    ) -> Result<Response<ListAttachmentsResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let ListAttachmentsRequest { query, volume, node } = request;
                let within = format!("volume {volume} node {node}");
                let page =
                    page::<Attachment>(&self.node, &catalog, query, &within, |from, after| {
                        let after = after.cloned();
                        let behind =
                            move |key: &ObjectKey| after.as_ref().is_none_or(|it| key > it);
                        if volume.is_empty() && node.is_empty() {
                            let all = from.keys_after(Attachment::KIND, None);
                            return Ok(Box::new(all.filter(behind)));
                        }
                        if volume.is_empty() {
                            let keys = from.attachments_on(&node).map(ObjectKey::Attachment);
                            return Ok(Box::new(keys.filter(behind)));
                        }
                        let found = from.volume_by_name(&volume);
                        let (id, _) = found.ok_or_else(|| no_such(Kind::Volume, &volume))?;
                        let of_node = move |key: &AttachmentKey| {
                            let row = from.attachment(*key);
                            node.is_empty() || row.is_some_and(|row| row.value.node == node)
                        };
                        let keys = from.attachments_of(id).filter(of_node);
                        Ok(Box::new(keys.map(ObjectKey::Attachment).filter(behind)))
                    })
                    .await?;
                Ok(ListAttachmentsResponse {
                    attachments: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { AttachmentsClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(
        &self,
        request: Request<GetAttachmentRequest>,
    ) -> Result<Response<Attachment>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { get(&self.node, &catalog, &request.name).await },
            |channel, call| async move { AttachmentsClient::new(channel).get(call).await },
        )
        .await
    }

    type WatchStream = Events<WatchAttachmentsResponse>;

    async fn watch(
        &self,
        request: Request<WatchAttachmentsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let token = &request.resume_token;
                let events = watch::<Attachment>(&self.node, catalog, request.query, token).await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = AttachmentsClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }
}

fn message(event: Event<Attachment>) -> WatchAttachmentsResponse {
    let Event { change, object, resume_token } = event;
    WatchAttachmentsResponse { change: change.into(), attachment: object, resume_token }
}

async fn publish(
    node: &Node,
    catalog: Arc<Catalog>,
    request: PublishRequest,
) -> Result<Attachment, Failure> {
    let mode = match request.mode() {
        AccessMode::Unspecified | AccessMode::ReadWrite => types::AccessMode::ReadWrite,
        AccessMode::ReadOnly => types::AccessMode::ReadOnly,
        AccessMode::Raw => types::AccessMode::Raw,
    };
    let (state, _) = read(&catalog).await?;
    let (name, uid) = (&request.volume, &request.volume_uid);
    let volume = meant(&state, name, uid).ok_or_else(|| no_such(Kind::Volume, name))?;
    let uid =
        random_uuid().map_err(|error| broken(format!("could not make an identity: {error}")))?;
    let PublishRequest { request_id, node: holder, io_timeout_ms, .. } = request;
    let command =
        CatalogCommand::Publish { request_id, volume, node: holder, mode, io_timeout_ms, uid };
    let Outcome::Attachment(volume, id) = catalog.propose(command).await? else {
        return Err(Failure::Final(broken("publishing made no attachment")));
    };
    let key = (volume, id);
    let is_done = |state: &CatalogState| state.attachments.get(&key).is_none_or(|it| it.active);
    until(&catalog, "admitted the node", is_done).await?;
    let key = ObjectKey::Attachment(key);
    let found = describe(node, &catalog, |from, _| Attachment::describe(from, &key, View::Full));
    let gone = || {
        let message = "the attachment was ended while it was waited for";
        Status::from(Refusal::new(Reason::NoSuchAttachment, message))
    };
    found.await?.ok_or_else(|| gone().into())
}

async fn claim(
    node: &Node,
    catalog: Arc<Catalog>,
    request: ClaimRequest,
) -> Result<ClaimResponse, Failure> {
    let ClaimRequest { volume_uid, node: holder, boot_id } = request;
    let volume = of_uid(&catalog, &volume_uid).await?;
    let command = CatalogCommand::Claim { volume, node: holder, boot_id };
    let Outcome::Attachment(volume, id) = catalog.propose(command).await? else {
        return Err(Failure::Final(broken("a claim found no attachment")));
    };
    let attachment = ObjectKey::Attachment((volume, id));
    let volume = ObjectKey::Volume(volume);
    let found = describe(node, &catalog, |from, _| {
        let attachment = Attachment::describe(from, &attachment, View::Full)?;
        let volume = proto::Volume::describe(from, &volume, View::Full)?;
        Some(ClaimResponse { attachment: Some(attachment), volume: Some(volume) })
    });
    let gone = || {
        let message = "the attachment was ended while it was claimed";
        Status::from(Refusal::new(Reason::NotPublished, message))
    };
    found.await?.ok_or_else(|| gone().into())
}

async fn record_file_system(
    catalog: &Catalog,
    request: RecordFileSystemRequest,
) -> Result<RecordFileSystemResponse, Failure> {
    let RecordFileSystemRequest { volume_uid, node, attachment_uid, file_system } = request;
    let bad = |message: &str| Status::from(Refusal::new(Reason::BadRequest, message));
    let file_system = file_system.ok_or_else(|| bad("no file system is named"))?;
    let kind = types::FileSystemKind::named(&file_system.kind);
    let kind = kind.ok_or_else(|| bad("a file system is ext4 or xfs"))?;
    let attachment = attachment_uid.parse();
    let attachment = attachment.map_err(|_| bad("that is no uid of an attachment"))?;
    let volume = of_uid(catalog, &volume_uid).await?;
    let made = file_system.made;
    let command = CatalogCommand::RecordFileSystem { volume, node, attachment, kind, made };
    catalog.propose(command).await?;
    Ok(RecordFileSystemResponse {})
}

async fn of_uid(catalog: &Catalog, uid: &str) -> Result<VolumeId, Failure> {
    let (state, _) = read(catalog).await?;
    let found = uid.parse().ok().and_then(|uid| state.volume_by_uid(uid));
    Ok(found.ok_or_else(|| no_such(Kind::Volume, uid))?.0)
}

/// The volume of this name. `uid`: empty, or that of the volume that is meant.
fn meant(state: &CatalogState, name: &str, uid: &str) -> Option<VolumeId> {
    let (id, volume) = state.volume_by_name(name)?;
    (uid.is_empty() || volume.uid.to_string() == uid).then_some(id)
}

async fn unpublish(
    catalog: &Catalog,
    request: UnpublishRequest,
) -> Result<UnpublishResponse, Failure> {
    let UnpublishRequest { volume, node, request_id, volume_uid } = request;
    let (state, _) = read(catalog).await?;
    let Some(volume) = meant(&state, &volume, &volume_uid) else {
        return Ok(UnpublishResponse {});
    };
    let command = CatalogCommand::Unpublish { request_id, volume, node: node.clone() };
    catalog.propose(command).await?;
    let (state, _) = read(catalog).await?;
    // One that the node got since, when this request is a repeated one, stays.
    let ending = state.attachments_of(volume).filter(|(_, it)| it.node == node);
    let ending = ending.filter(|(_, it)| it.ends_with.is_some());
    let ending: Vec<AttachmentKey> = ending.map(|(id, _)| (volume, id)).collect();
    let is_done =
        |state: &CatalogState| ending.iter().all(|key| !state.attachments.contains_key(key));
    until(catalog, "fenced the node", is_done).await?;
    Ok(UnpublishResponse {})
}

/// Waits until the state is as it should be.
async fn until(
    catalog: &Catalog,
    what: &str,
    is_done: impl Fn(&CatalogState) -> bool,
) -> Result<(), Failure> {
    let deadline = Instant::now() + SHARDS_WITHIN;
    let mut published = catalog.published.clone();
    loop {
        {
            let now = published.borrow_and_update();
            if !now.role.serving {
                return Err(Failure::NotLeader);
            }
            if now.state.as_ref().is_some_and(|state| is_done(state)) {
                return Ok(());
            }
        }
        match timeout_at(deadline, published.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Failure::NotLeader),
            Err(_) => {
                let message = format!(
                    "not every shard has {what} yet; it goes on by itself, and `holdfast \
                     attachment list` tells what it waits for"
                );
                let refusal = Refusal::new(Reason::ShardsWaiting, message).passing();
                return Err(Failure::Final(refusal.into()));
            }
        }
    }
}
