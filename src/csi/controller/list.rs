//! What there is: volumes, their health, and capacity.

use tonic::Status;

use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::{self, CapacityRequest, ListVolumesRequest, Phase, Query};
use crate::csi::capability::is_possible;
use crate::csi::controller::cluster::{Cluster, as_capacity, described, nodes};
use crate::csi::controller::health::{condition, health};
use crate::csi::controller::parameters::Parameters;
use crate::csi::controller::size::SIZE_BYTES_MIN;
use crate::csi::controller::topology::{is_local, node_of};
use crate::csi::proto as csi;
use crate::csi::proto::list_volumes_response::{Entry, VolumeStatus};
use crate::csi::served::Call;
use crate::csi::spec::Spec;
use crate::csi::status::{invalid, missing};
use crate::limits::VOLUME_BYTES_MAX;

/// Volumes of one page at most: a page has to fit into one message, with all labels and nodes.
const PAGE_SIZE_MAX: u32 = 200;
/// Phases of volumes that can be used.
const PHASES: [Phase; 4] = [Phase::Creating, Phase::Ready, Phase::Degraded, Phase::Paused];

/// Volumes of one page, and the token of the next page.
async fn page(
    cluster: &Cluster,
    call: &Call,
    max_entries: i32,
    token: String,
) -> Result<(Vec<proto::Volume>, String), Status> {
    let wanted = u32::try_from(max_entries).map_err(|_| invalid("max_entries is negative"))?;
    let page_size = if wanted == 0 { PAGE_SIZE_MAX } else { wanted.min(PAGE_SIZE_MAX) };
    let phases = PHASES.map(i32::from).to_vec();
    let query = Query { page_size, page_token: token, phases, ..Query::default() };
    let request = ListVolumesRequest { query: Some(query) };
    let answer = cluster.api.call(call.deadline, request, async |channel, call| {
        VolumesClient::new(channel).list(call).await
    });
    let page = answer.await?;
    Ok((page.volumes, page.next_page_token))
}

/// One page of the volumes that can be used, those that people have made included.
pub async fn list(
    cluster: &Cluster,
    call: &Call,
    spec: Spec,
    request: csi::ListVolumesRequest,
) -> Result<csi::ListVolumesResponse, Status> {
    let csi::ListVolumesRequest { max_entries, starting_token } = request;
    let (volumes, next_token) = page(cluster, call, max_entries, starting_token).await?;
    let mut entries = Vec::with_capacity(volumes.len());
    for volume in &volumes {
        let handle = cluster.handle(call.deadline, volume).await?;
        let status = VolumeStatus {
            published_node_ids: nodes(volume),
            volume_condition: (spec == Spec::V1_12).then(|| condition(volume)),
        };
        entries.push(Entry { volume: Some(described(handle, volume)), status: Some(status) });
    }
    Ok(csi::ListVolumesResponse { entries, next_token })
}

/// One page of the health of volumes.
pub async fn list_health(
    cluster: &Cluster,
    call: &Call,
    request: csi::ControllerListVolumeHealthRequest,
) -> Result<csi::ControllerListVolumeHealthResponse, Status> {
    let csi::ControllerListVolumeHealthRequest { max_entries, starting_token, .. } = request;
    let (volumes, next_token) = page(cluster, call, max_entries, starting_token).await?;
    let mut entries = Vec::with_capacity(volumes.len());
    for volume in &volumes {
        let handle = cluster.handle(call.deadline, volume).await?;
        entries.push(health(handle.to_string(), volume));
    }
    Ok(csi::ControllerListVolumeHealthResponse { entries, next_token })
}

/// One volume.
pub async fn get(
    cluster: &Cluster,
    call: &Call,
    spec: Spec,
    request: csi::ControllerGetVolumeRequest,
) -> Result<csi::ControllerGetVolumeResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let volume = cluster.find(call.deadline, &request.volume_id).await?;
    let handle = cluster.handle(call.deadline, &volume).await?;
    let status = csi::controller_get_volume_response::VolumeStatus {
        published_node_ids: nodes(&volume),
        volume_condition: (spec == Spec::V1_12).then(|| condition(&volume)),
    };
    let volume = Some(described(handle, &volume));
    Ok(csi::ControllerGetVolumeResponse { volume, status: Some(status) })
}

/// The health of one volume.
pub async fn get_health(
    cluster: &Cluster,
    call: &Call,
    request: csi::ControllerGetVolumeHealthRequest,
) -> Result<csi::ControllerGetVolumeHealthResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let volume = cluster.find(call.deadline, &request.volume_id).await?;
    let volume_health = Some(health(request.volume_id, &volume));
    Ok(csi::ControllerGetVolumeHealthResponse { volume_health })
}

/// The largest volume that could be made now. The orchestrator compares sizes of single volumes
/// with it, so it is what is available, too.
pub async fn capacity(
    cluster: &Cluster,
    call: &Call,
    request: csi::GetCapacityRequest,
) -> Result<csi::GetCapacityResponse, Status> {
    let parameters = Parameters::of(&request.parameters, &Default::default()).map_err(invalid)?;
    let class = parameters.class;
    let topology = request.accessible_topology.as_ref().filter(|_| is_local(&class));
    let nodes: Vec<String> = topology.and_then(node_of).into_iter().collect();
    let ask = CapacityRequest { class, nodes };
    let answer = cluster.api.call(call.deadline, ask, async |channel, call| {
        ClusterClient::new(channel).capacity(call).await
    });
    let classes = answer.await?.classes;
    let largest = classes.first().map_or(0, |class| class.available_bytes.min(VOLUME_BYTES_MAX));
    let bytes = match request.volume_capabilities.iter().all(is_possible) {
        true => as_capacity(largest / SIZE_BYTES_MIN * SIZE_BYTES_MIN),
        false => 0,
    };
    Ok(csi::GetCapacityResponse {
        available_capacity: bytes,
        maximum_volume_size: Some(bytes),
        minimum_volume_size: Some(as_capacity(SIZE_BYTES_MIN)),
    })
}
