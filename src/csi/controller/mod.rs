//! The controller service: one to one on the API. Every request is checked completely before the
//! cluster is asked. Nothing is kept between requests but which volumes are being worked on.

mod change;
mod cluster;
mod create;
mod health;
mod list;
mod parameters;
mod publish;
mod size;
mod topology;

use std::future::ready;

use tonic::{Request, Response, Status};

use crate::csi::api::Api;
use crate::csi::controller::cluster::Cluster;
use crate::csi::proto::controller_server::Controller;
use crate::csi::proto::controller_service_capability::rpc::Type;
use crate::csi::proto::controller_service_capability::{Rpc, Type as Capability};
use crate::csi::proto::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
    ControllerGetVolumeHealthRequest, ControllerGetVolumeHealthResponse,
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerListVolumeHealthRequest,
    ControllerListVolumeHealthResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse,
    CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
};
use crate::csi::served::{Call, served};
use crate::csi::spec::Spec;
use crate::csi::status::unimplemented;
use crate::csi::turns::Turns;

/// What the controller can do, in each version of the specification.
const CAPABILITIES: [Type; 10] = [
    Type::CreateDeleteVolume,
    Type::PublishUnpublishVolume,
    Type::ListVolumes,
    Type::GetCapacity,
    Type::PublishReadonly,
    Type::ExpandVolume,
    Type::ListVolumesPublishedNodes,
    Type::GetVolume,
    Type::SingleNodeMultiWriter,
    Type::ModifyVolume,
];

/// See the module.
#[derive(Debug)]
pub struct ControllerService {
    cluster: Cluster,
    turns: Turns,
    spec: Spec,
}

impl ControllerService {
    pub fn new(api: Api, spec: Spec) -> ControllerService {
        ControllerService { cluster: Cluster::new(api), turns: Turns::default(), spec }
    }

    fn capabilities(&self) -> Vec<ControllerServiceCapability> {
        let of_spec: &[Type] = match self.spec {
            Spec::V1_12 => &[Type::VolumeCondition],
            Spec::V1_13 => &[Type::GetVolumeHealth, Type::ListVolumeHealth],
        };
        let all = CAPABILITIES.iter().chain(of_spec);
        let rpc = |it: &Type| Capability::Rpc(Rpc { r#type: (*it).into() });
        all.map(|it| ControllerServiceCapability { r#type: Some(rpc(it)) }).collect()
    }

    /// Refuses what is not in the version of the specification that is spoken.
    fn needs_health(&self) -> Result<(), Status> {
        match self.spec {
            Spec::V1_12 => Err(unimplemented("volume health; it is started for CSI 1.12")),
            Spec::V1_13 => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        served!(request, "CreateVolume", name, |call, request| {
            create::create(&self.cluster, &self.turns, &call, request)
        })
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        served!(request, "DeleteVolume", volume_id, |call, request| {
            create::delete(&self.cluster, &self.turns, &call, request)
        })
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        served!(request, "ControllerPublishVolume", volume_id, |call, request| {
            publish::publish(&self.cluster, &self.turns, &call, request)
        })
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        served!(request, "ControllerUnpublishVolume", volume_id, |call, request| {
            publish::unpublish(&self.cluster, &self.turns, &call, request)
        })
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        served!(request, "ValidateVolumeCapabilities", volume_id, |call, request| {
            change::validate(&self.cluster, &call, request)
        })
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        served!(request, "ListVolumes", |call, request| {
            list::list(&self.cluster, &call, self.spec, request)
        })
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        served!(request, "ControllerListVolumeHealth", |call, request| async {
            self.needs_health()?;
            list::list_health(&self.cluster, &call, request).await
        })
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        served!(request, "ControllerGetVolumeHealth", volume_id, |call, request| async {
            self.needs_health()?;
            list::get_health(&self.cluster, &call, request).await
        })
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        served!(request, "GetCapacity", |call, request| {
            list::capacity(&self.cluster, &call, request)
        })
    }

    async fn controller_get_capabilities(
        &self,
        request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let call = Call::begin("ControllerGetCapabilities", "", request.metadata())?;
        call.end(Ok(ControllerGetCapabilitiesResponse { capabilities: self.capabilities() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        served!(request, "CreateSnapshot", |call, _request| ready(Err(unimplemented("snapshots"))))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        served!(request, "DeleteSnapshot", |call, _request| ready(Err(unimplemented("snapshots"))))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        served!(request, "ListSnapshots", |call, _request| ready(Err(unimplemented("snapshots"))))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        served!(request, "GetSnapshot", |call, _request| ready(Err(unimplemented("snapshots"))))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        served!(request, "ControllerExpandVolume", volume_id, |call, request| {
            change::expand(&self.cluster, &self.turns, &call, request)
        })
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        served!(request, "ControllerGetVolume", volume_id, |call, request| {
            list::get(&self.cluster, &call, self.spec, request)
        })
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        served!(request, "ControllerModifyVolume", volume_id, |call, request| {
            change::modify(&self.cluster, &self.turns, &call, request)
        })
    }
}
