//! Disks of the pods.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::control::api::cluster::describe;
use crate::control::api::route::on_leader;
use crate::control::node::Node;
use crate::control::proto::disks_client::DisksClient;
use crate::control::proto::disks_server::Disks;
use crate::control::proto::{ListDisksRequest, ListDisksResponse};

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
            |catalog, _| {
                describe(&self.node, catalog, |all| ListDisksResponse { disks: all.disks() })
            },
            |channel, call| async move { DisksClient::new(channel).list(call).await },
        )
        .await
    }
}
