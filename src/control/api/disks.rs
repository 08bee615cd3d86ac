//! Disks of the pods.

use std::sync::Arc;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::control::api::objects::{Event, Events, get, page, watch};
use crate::control::api::route::on_leader;
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::objects::key::ObjectKey;
use crate::control::proto::disks_client::DisksClient;
use crate::control::proto::disks_server::Disks;
use crate::control::proto::{
    Disk, GetDiskRequest, ListDisksRequest, ListDisksResponse, WatchDisksRequest,
    WatchDisksResponse,
};
use crate::types::PodId;

pub struct DisksService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Disks for DisksService {
    async fn list(
        &self,
        request: Request<ListDisksRequest>,
    ) -> Result<Response<ListDisksResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let ListDisksRequest { query, pod } = request;
                let within = format!("pod {pod}");
                let page = page::<Disk>(&self.node, &catalog, query, &within, |source, after| {
                    Ok(match pod {
                        0 => source.keys_after(Disk::KIND, after),
                        pod => {
                            let disks = source.disks_of(PodId(pod)).map(ObjectKey::Disk);
                            let after = after.cloned();
                            Box::new(
                                disks.filter(move |key| after.as_ref().is_none_or(|it| key > it)),
                            )
                        }
                    })
                })
                .await?;
                Ok(ListDisksResponse {
                    disks: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { DisksClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(&self, request: Request<GetDiskRequest>) -> Result<Response<Disk>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { get(&self.node, &catalog, &request.name).await },
            |channel, call| async move { DisksClient::new(channel).get(call).await },
        )
        .await
    }

    type WatchStream = Events<WatchDisksResponse>;

    async fn watch(
        &self,
        request: Request<WatchDisksRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let token = &request.resume_token;
                let events = watch::<Disk>(&self.node, catalog, request.query, token).await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = DisksClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }
}

fn message(event: Event<Disk>) -> WatchDisksResponse {
    let Event { change, object, resume_token } = event;
    WatchDisksResponse { change: change.into(), disk: object, resume_token }
}
