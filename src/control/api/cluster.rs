//! The cluster as a whole.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::control::api::errors::no_such;
use crate::control::api::objects::describe;
use crate::control::api::route::{on_leader, read};
use crate::control::command::CatalogCommand;
use crate::control::node::Node;
use crate::control::objects::describe::Describe;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::cluster_server::Cluster;
use crate::control::proto::{
    CapacityRequest, CapacityResponse, GetLevelRequest, GetLevelResponse, RaiseLevelRequest,
    RaiseLevelResponse, StatusRequest, StatusResponse,
};
use crate::control::state::CatalogState;
use crate::control::state::upgrade::holding_back;
use crate::level::Level;

/// Pods that are named at most.
const OLDER_PODS_MAX: usize = 20;

pub struct ClusterService {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, _| async move {
                describe(&self.node, &catalog, |from, _| from.status()).await
            },
            |channel, call| async move { ClusterClient::new(channel).status(call).await },
        )
        .await
    }

    async fn capacity(
        &self,
        request: Request<CapacityRequest>,
    ) -> Result<Response<CapacityResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let found = describe(&self.node, &catalog, |from, _| capacity(from, &request));
                Ok(found.await??)
            },
            |channel, call| async move { ClusterClient::new(channel).capacity(call).await },
        )
        .await
    }

    async fn get_level(
        &self,
        request: Request<GetLevelRequest>,
    ) -> Result<Response<GetLevelResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, _| async move { Ok(levels(&read(&catalog).await?.0)) },
            |channel, call| async move { ClusterClient::new(channel).get_level(call).await },
        )
        .await
    }

    async fn raise_level(
        &self,
        request: Request<RaiseLevelRequest>,
    ) -> Result<Response<RaiseLevelResponse>, Status> {
        on_leader(
            &self.node,
            request,
            |catalog, request| async move {
                let level = match request.level {
                    0 => levels(&read(&catalog).await?.0).level_of_all,
                    level => level,
                };
                catalog.propose(CatalogCommand::RaiseLevel { level: Level(level) }).await?;
                let level = read(&catalog).await?.0.cluster.level.0;
                Ok(RaiseLevelResponse { level })
            },
            |channel, call| async move { ClusterClient::new(channel).raise_level(call).await },
        )
        .await
    }
}

fn levels(state: &CatalogState) -> GetLevelResponse {
    let level = state.cluster.level;
    let supported = || holding_back(state, Level(u32::MAX)).map(|(_, newest)| newest);
    let newest = supported().max().unwrap_or(level).max(level);
    let older = holding_back(state, newest).map(|(pod, _)| pod.0);
    GetLevelResponse {
        level: level.0,
        level_of_all: supported().min().unwrap_or(level).max(level).0,
        newest_level: newest.0,
        older_pods: older.take(OLDER_PODS_MAX).collect(),
    }
}

/// Of one class, or of all.
fn capacity(from: &Describe<'_>, of: &CapacityRequest) -> Result<CapacityResponse, Status> {
    let CapacityRequest { class, nodes } = of;
    let names = from.source.keys_after(Kind::Class, None).filter_map(|key| match key {
        ObjectKey::Class(name) => Some(name),
        _ => None,
    });
    let wanted = names.filter(|name| class.is_empty() || class == name.as_str());
    let classes: Vec<_> = wanted
        .filter_map(|name| {
            let row = from.source.class(&name)?;
            Some(from.capacity(&name, &row.value, nodes))
        })
        .collect();
    match classes.is_empty() && !class.is_empty() {
        true => Err(no_such(Kind::Class, class)),
        false => Ok(CapacityResponse { classes }),
    }
}
