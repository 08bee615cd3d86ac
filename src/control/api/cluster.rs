//! The cluster as a whole.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::control::api::errors::no_such;
use crate::control::api::objects::describe;
use crate::control::api::route::on_leader;
use crate::control::node::Node;
use crate::control::objects::describe::Describe;
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::cluster_server::Cluster;
use crate::control::proto::{CapacityRequest, CapacityResponse, StatusRequest, StatusResponse};

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
                let found =
                    describe(&self.node, &catalog, |from, _| capacity(from, &request.class));
                Ok(found.await??)
            },
            |channel, call| async move { ClusterClient::new(channel).capacity(call).await },
        )
        .await
    }
}

/// Of one class, or of all.
fn capacity(from: &Describe<'_>, class: &str) -> Result<CapacityResponse, Status> {
    let names = from.source.keys_after(Kind::Class, None).filter_map(|key| match key {
        ObjectKey::Class(name) => Some(name),
        _ => None,
    });
    let wanted = names.filter(|name| class.is_empty() || class == name);
    let classes: Vec<_> = wanted
        .filter_map(|name| {
            let row = from.source.class(&name)?;
            Some(from.capacity(&name, &row.value))
        })
        .collect();
    match classes.is_empty() && !class.is_empty() {
        true => Err(no_such(Kind::Class, class)),
        false => Ok(CapacityResponse { classes }),
    }
}
