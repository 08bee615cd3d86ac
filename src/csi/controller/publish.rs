//! Nodes get the right to use volumes, and lose it.

use tonic::Status;

use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::{self, AccessMode, PublishRequest, UnpublishRequest};
use crate::csi::capability::{Use, is_for_one_node};
use crate::csi::controller::cluster::{Cluster, Lookup, meta, nodes};
use crate::csi::proto as csi;
use crate::csi::served::Call;
use crate::csi::status::{invalid, missing, no_volume};
use crate::csi::turns::Turns;

/// Gives a node the right to use a volume. It is never taken from another node. The node finds the
/// way to the volume itself, so the answer has no context.
pub async fn publish(
    cluster: &Cluster,
    turns: &Turns,
    call: &Call,
    request: csi::ControllerPublishVolumeRequest,
) -> Result<csi::ControllerPublishVolumeResponse, Status> {
    let volume_id = &request.volume_id;
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    if request.node_id.is_empty() {
        return Err(missing("node_id"));
    }
    let capability = request.volume_capability.as_ref();
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    let wanted = Use::of(capability).map_err(invalid)?.read_only(request.readonly);
    let _turn = turns.take(volume_id)?;
    let volume = cluster.find(call.deadline, volume_id).await?;
    // The cluster would let many nodes read.
    let others = || nodes(&volume).into_iter().find(|holder| *holder != request.node_id);
    let reads = wanted.mode == AccessMode::ReadOnly;
    if let Some(holder) = others().filter(|_| reads && is_for_one_node(capability)) {
        return Err(Status::failed_precondition(format!(
            "volume {volume_id} is for one node at a time, and node {holder} has it"
        )));
    }
    let publish = PublishRequest {
        volume: meta(&volume).name,
        node: request.node_id,
        mode: wanted.mode.into(),
        request_id: call.id(),
        io_timeout_ms: None,
        volume_uid: meta(&volume).uid,
    };
    let answer = cluster.api.call(call.deadline, publish, async |channel, call| {
        AttachmentsClient::new(channel).publish(call).await
    });
    answer.await?;
    Ok(csi::ControllerPublishVolumeResponse::default())
}

/// Takes the right away, in whatever state the node is: every shard refuses it when this returns.
/// Without a node, all that have it lose it.
pub async fn unpublish(
    cluster: &Cluster,
    turns: &Turns,
    call: &Call,
    request: csi::ControllerUnpublishVolumeRequest,
) -> Result<csi::ControllerUnpublishVolumeResponse, Status> {
    let volume_id = &request.volume_id;
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let _turn = turns.take(volume_id)?;
    let volume = match cluster.look_up(call.deadline, volume_id).await? {
        Lookup::There(volume) => volume,
        Lookup::Nowhere => return Ok(csi::ControllerUnpublishVolumeResponse {}),
        // Nobody was fenced there, so it is no success.
        Lookup::OfAnotherCluster => return Err(no_volume(volume_id)),
    };
    let holders = match request.node_id.is_empty() {
        true => nodes(&volume),
        false => vec![request.node_id],
    };
    for (part, node) in holders.into_iter().enumerate() {
        fence(cluster, call, &volume, node, part).await?;
    }
    Ok(csi::ControllerUnpublishVolumeResponse {})
}

async fn fence(
    cluster: &Cluster,
    call: &Call,
    volume: &proto::Volume,
    node: String,
    part: usize,
) -> Result<(), Status> {
    let request = UnpublishRequest {
        volume: meta(volume).name,
        node,
        request_id: call.id_of(part),
        volume_uid: meta(volume).uid,
    };
    let answer = cluster.api.call(call.deadline, request, async |channel, call| {
        AttachmentsClient::new(channel).unpublish(call).await
    });
    answer.await?;
    Ok(())
}
