//! The pieces of volumes.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::control::api::errors::no_such;
use crate::control::api::objects::{get, page};
use crate::control::api::route::on_leader;
use crate::control::node::Node;
use crate::control::objects::describe::Object as _;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::proto::shards_client::ShardsClient;
use crate::control::proto::shards_server::Shards;
use crate::control::proto::{GetShardRequest, ListShardsRequest, ListShardsResponse, Shard};

pub struct ShardsService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Shards for ShardsService {
    async fn list(
        &self,
        request: Request<ListShardsRequest>,
    ) -> Result<Response<ListShardsResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let ListShardsRequest { query, volume } = request;
                let within = format!("volume {volume}");
                let page = page::<Shard>(&self.node, &catalog, query, &within, |source, after| {
                    if volume.is_empty() {
                        return Ok(source.keys_after(Shard::KIND, after));
                    }
                    let found = source.volume_by_name(&volume);
                    let found = found.ok_or_else(|| no_such(Kind::Volume, &volume))?;
                    let shards = source.shards_of(&found.1.value);
                    let shards = shards.map(|(shard, _)| ObjectKey::Shard(shard));
                    let after = after.cloned();
                    Ok(Box::new(shards.filter(move |key| after.as_ref().is_none_or(|it| key > it))))
                })
                .await?;
                Ok(ListShardsResponse {
                    shards: page.objects,
                    next_page_token: page.next.unwrap_or_default(),
                    resume_token: page.mark.encode(),
                })
            },
            |channel, call| async move { ShardsClient::new(channel).list(call).await },
        )
        .await
    }

    async fn get(&self, request: Request<GetShardRequest>) -> Result<Response<Shard>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move { get(&self.node, &catalog, &request.name).await },
            |channel, call| async move { ShardsClient::new(channel).get(call).await },
        )
        .await
    }
}
