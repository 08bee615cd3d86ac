//! Rounds of access sets that this pod carries out for the catalog's leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use crate::control::api::catalog::check_cluster;
use crate::control::api::errors::invalid;
use crate::control::node::Node;
use crate::control::proto::internal::rounds_server::Rounds;
use crate::control::proto::internal::{SetAccessRequest, SetAccessResponse};
use crate::control::rounds::set_access_of;
use crate::types::{AccessSet, VolumeId};

/// Rounds for others at a time.
const AT_ONCE: usize = 64;
/// A round that takes longer is asked for again, here or elsewhere.
const CARRIED_OUT_WITHIN: Duration = Duration::from_secs(5);

pub struct RoundsService {
    node: Arc<Node>,
    room: Semaphore,
}

impl RoundsService {
    pub fn new(node: Arc<Node>) -> RoundsService {
        RoundsService { node, room: Semaphore::new(AT_ONCE) }
    }
}

#[tonic::async_trait]
impl Rounds for RoundsService {
    async fn set_access(
        &self,
        request: Request<SetAccessRequest>,
    ) -> Result<Response<SetAccessResponse>, Status> {
        let SetAccessRequest { cluster, volume, set } = request.into_inner();
        check_cluster(&self.node, &cluster)?;
        let set: AccessSet = serde_json::from_slice(&set).map_err(|error| invalid(&error))?;
        if !set.is_valid() {
            return Err(Status::invalid_argument("no catalog asks for such an access set"));
        }
        let full = |_| Status::resource_exhausted("this pod carries out as many rounds as it can");
        let _room = self.room.try_acquire().map_err(full)?;
        let closed = || Status::unavailable("this pod's data path does not run");
        let data_path = self.node.data_path().ok_or_else(closed)?;
        let round = set_access_of(&self.node, &*data_path, VolumeId(volume), set);
        let waits = || Status::unavailable("not every shard has answered yet");
        let done = timeout(CARRIED_OUT_WITHIN, round).await.map_err(|_| waits())?;
        let done = done.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(SetAccessResponse {
            generation: done.generation.0,
            highest: done.highest.0,
            shards: done.shards as u64,
        }))
    }
}
