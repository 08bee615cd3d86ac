//! Storage pods.

use std::sync::Arc;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};

use crate::control::api::objects::{Event, Events, get, page, watch};
use crate::control::api::route::on_leader;
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::proto::pods_client::PodsClient;
use crate::control::proto::pods_server::Pods;
use crate::control::proto::{
    GetPodRequest, ListPodsRequest, ListPodsResponse, Pod, WatchPodsRequest, WatchPodsResponse,
};

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
            |catalog, request| async move {
                let page = page::<Pod>(&self.node, &catalog, request.query, "", |source, after| {
                    Ok(source.keys_after(Pod::KIND, after))
                })
                .await?;
                Ok(ListPodsResponse {
                    pods: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { PodsClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(&self, request: Request<GetPodRequest>) -> Result<Response<Pod>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { get(&self.node, &catalog, &request.name).await },
            |channel, call| async move { PodsClient::new(channel).get(call).await },
        )
        .await
    }

    type WatchStream = Events<WatchPodsResponse>;

    async fn watch(
        &self,
        request: Request<WatchPodsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let token = &request.resume_token;
                let events = watch::<Pod>(&self.node, catalog, request.query, token).await?;
                Ok(Box::pin(events.map(|event| event.map(message))) as Self::WatchStream)
            },
            |channel, call| async move {
                let events = PodsClient::new(channel).watch(call).await?;
                Ok(events.map(|events| Box::pin(events) as Self::WatchStream))
            },
        )
        .await
    }
}

fn message(event: Event<Pod>) -> WatchPodsResponse {
    let Event { change, object, resume_token } = event;
    WatchPodsResponse { change: change.into(), pod: object, resume_token }
}
