//! The node service: the kubelet of this node calls it, and it makes volumes of the cluster usable
//! here. The devices are those of `holdfast attach`, another program: one that waits in the kernel
//! for a paused device cannot be replaced. Every step that may block is a program of its own.

mod devices;
mod file_system;
mod look;
pub mod making;
mod parts;
mod publish;
mod report;
mod stage;

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::csi::TOPOLOGY_KEY;
use crate::csi::api::Api;
pub use crate::csi::node::devices::{Devices, SocketError};
use crate::csi::node::look::{expand, stats};
use crate::csi::node::parts::{Parts, path};
use crate::csi::node::publish::{publish, unpublish};
use crate::csi::node::report::report;
use crate::csi::node::stage::{Wanted, stage, unstage};
use crate::csi::proto::node_server::Node;
use crate::csi::proto::node_service_capability::rpc::Type;
use crate::csi::proto::node_service_capability::{Rpc, Type as Capability};
use crate::csi::proto::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetStorageHealthRequest, NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest,
    NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, Topology,
};
use crate::csi::served::{Call, served};
use crate::csi::spec::Spec;
use crate::csi::status::{missing, unimplemented};
use crate::csi::turns::Turns;

/// Volumes of a node at a time: as many as it has devices.
const VOLUMES_MAX: i64 = 128;

const CAPABILITIES: [Type; 4] = [
    Type::StageUnstageVolume,
    Type::GetVolumeStats,
    Type::ExpandVolume,
    Type::SingleNodeMultiWriter,
];

/// See the module.
#[derive(Debug)]
pub struct NodeService {
    parts: Arc<Parts>,
    turns: Turns,
    spec: Spec,
}

impl NodeService {
    /// The service of a node. `boot_id`: of the machine's present boot.
    pub fn new(api: Api, devices: Devices, node: String, boot_id: String, spec: Spec) -> Self {
        let parts = Arc::new(Parts { api, devices, node, boot_id });
        NodeService { parts, turns: Turns::default(), spec }
    }

    /// Tells the cluster of this node until it has heard it.
    pub fn report(&self) -> impl Future<Output = ()> + Send + use<> {
        report(self.parts.clone())
    }

    /// Works on a volume, alone, and to the end: a caller that goes away leaves nothing half done.
    async fn work<T: Send + 'static, Work>(
        &self,
        volume_id: &str,
        work: impl FnOnce(Arc<Parts>) -> Work,
    ) -> Result<T, Status>
    where
        Work: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let turn = self.turns.take(volume_id)?;
        let work = work(self.parts.clone());
        let done = tokio::spawn(async move {
            let result = work.await;
            drop(turn);
            result
        });
        done.await.map_err(|error| Status::internal(format!("it was interrupted: {error}")))?
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        served!(request, "NodeStageVolume", volume_id, |call, request| async {
            let volume_id = present(request.volume_id)?;
            let at = path("staging_target_path", &request.staging_target_path)?;
            let capability = request.volume_capability.as_ref();
            let wanted = Wanted::new(&volume_id, at, capability)?;
            let deadline = call.deadline;
            let work =
                |parts: Arc<Parts>| async move { stage(&parts, deadline, &wanted).await.map(drop) };
            self.work(&volume_id, work).await?;
            Ok(NodeStageVolumeResponse {})
        })
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        served!(request, "NodeUnstageVolume", volume_id, |call, request| async {
            let at = path("staging_target_path", &request.staging_target_path)?;
            let volume_id = present(request.volume_id)?;
            let id = volume_id.clone();
            let work = |parts: Arc<Parts>| async move { unstage(&parts, &id, &at).await };
            self.work(&volume_id, work).await?;
            Ok(NodeUnstageVolumeResponse {})
        })
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        served!(request, "NodePublishVolume", volume_id, |call, request| async {
            let volume_id = present(request.volume_id)?;
            let target = path("target_path", &request.target_path)?;
            if request.staging_target_path.is_empty() {
                return Err(Status::failed_precondition("staging_target_path is missing"));
            }
            let at = path("staging_target_path", &request.staging_target_path)?;
            let capability = request.volume_capability.as_ref();
            let wanted = Wanted::new(&volume_id, at, capability)?;
            let (deadline, readonly) = (call.deadline, request.readonly);
            let work = |parts: Arc<Parts>| async move {
                publish(&parts, deadline, &wanted, &target, readonly).await
            };
            self.work(&volume_id, work).await?;
            Ok(NodePublishVolumeResponse {})
        })
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        served!(request, "NodeUnpublishVolume", volume_id, |call, request| async {
            let target = path("target_path", &request.target_path)?;
            let volume_id = present(request.volume_id)?;
            let work = |_: Arc<Parts>| async move { unpublish(&target).await };
            self.work(&volume_id, work).await?;
            Ok(NodeUnpublishVolumeResponse {})
        })
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        served!(request, "NodeGetVolumeStats", volume_id, |call, request| async {
            let at = path("volume_path", &request.volume_path)?;
            let (usage, condition) = stats(&self.parts, &request.volume_id, &at).await?;
            let volume_condition = Some(condition).filter(|_| self.spec == Spec::V1_12);
            Ok(NodeGetVolumeStatsResponse { usage, volume_condition })
        })
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        served!(request, "NodeGetVolumeHealth", volume_id, |call, _request| async {
            Err(unimplemented("volume health of nodes; the controller tells it"))
        })
    }

    async fn node_get_storage_health(
        &self,
        request: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        served!(request, "NodeGetStorageHealth", |call, _request| async {
            Err(unimplemented("storage health"))
        })
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        served!(request, "NodeExpandVolume", volume_id, |call, request| async {
            let at = path("volume_path", &request.volume_path)?;
            let volume_id = present(request.volume_id)?;
            let range = request.capacity_range.unwrap_or_default();
            let required = u64::try_from(range.required_bytes)
                .map_err(|_| Status::invalid_argument("required_bytes is negative"))?;
            let id = volume_id.clone();
            let work = |parts: Arc<Parts>| async move { expand(&parts, &id, &at, required).await };
            let size_bytes = self.work(&volume_id, work).await?;
            let capacity_bytes = i64::try_from(size_bytes).unwrap_or(i64::MAX);
            Ok(NodeExpandVolumeResponse { capacity_bytes })
        })
    }

    async fn node_get_capabilities(
        &self,
        request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let call = Call::begin("NodeGetCapabilities", "", request.metadata())?;
        let condition = (self.spec == Spec::V1_12).then_some(Type::VolumeCondition);
        let rpc = |it: Type| Some(Capability::Rpc(Rpc { r#type: it.into() }));
        let all = CAPABILITIES.into_iter().chain(condition);
        let capabilities = all.map(|it| NodeServiceCapability { r#type: rpc(it) }).collect();
        call.end(Ok(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let call = Call::begin("NodeGetInfo", "", request.metadata())?;
        let node = self.parts.node.clone();
        let segments = [(TOPOLOGY_KEY.to_owned(), node.clone())].into();
        call.end(Ok(NodeGetInfoResponse {
            node_id: node,
            max_volumes_per_node: VOLUMES_MAX,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

fn present(volume_id: String) -> Result<String, Status> {
    match volume_id.is_empty() {
        true => Err(missing("volume_id")),
        false => Ok(volume_id),
    }
}
