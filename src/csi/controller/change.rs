//! Volumes grow, get other attributes, and are compared with what somebody wants.

use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;

use crate::control::proto;
use crate::csi::capability::Use;
use crate::csi::controller::cluster::{Cluster, as_capacity, meta, usable_bytes, wanted_bytes};
use crate::csi::controller::create::out_of_range;
use crate::csi::controller::parameters::{Parameters, mutable_labels};
use crate::csi::controller::size::SizeRange;
use crate::csi::proto as csi;
use crate::csi::proto::validate_volume_capabilities_response::Confirmed;
use crate::csi::served::Call;
use crate::csi::status::{invalid, missing};
use crate::csi::turns::Turns;

/// Interval of looks while a volume grows.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Makes a volume larger. Returns when clients can use the new size.
pub async fn expand(
    cluster: &Cluster,
    turns: &Turns,
    call: &Call,
    request: csi::ControllerExpandVolumeRequest,
) -> Result<csi::ControllerExpandVolumeResponse, Status> {
    let volume_id = &request.volume_id;
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let range = request.capacity_range.as_ref().ok_or_else(|| missing("capacity_range"))?;
    let range = SizeRange::of(Some(range)).map_err(out_of_range)?;
    let capability = request.volume_capability.as_ref().map(Use::of).transpose();
    let capability = capability.map_err(invalid)?;
    let _turn = turns.take(volume_id)?;
    let grow = |volume: &proto::Volume| {
        let now = wanted_bytes(volume);
        let grown = range.grown(now).ok_or_else(|| {
            let message = "and a volume does not shrink";
            Status::out_of_range(format!("volume {volume_id} has {now} bytes, {message}"))
        })?;
        Ok((meta(volume).labels, if grown == now { 0 } else { grown }))
    };
    let mut volume = cluster.update(call, volume_id, grow).await?;
    let wanted = wanted_bytes(&volume);
    while usable_bytes(&volume) < wanted {
        if call.deadline.left().is_zero() {
            let message = "the new size of the volume is recorded, and cannot be used yet";
            return Err(Status::unavailable(message));
        }
        sleep(LOOK_EVERY.min(call.deadline.left())).await;
        volume = cluster.find(call.deadline, volume_id).await?;
    }
    Ok(csi::ControllerExpandVolumeResponse {
        capacity_bytes: as_capacity(usable_bytes(&volume)),
        // Above a block device is no file system of ours that would have to follow.
        node_expansion_required: capability.is_none_or(|wanted| !wanted.is_block),
    })
}

/// Sets labels.
pub async fn modify(
    cluster: &Cluster,
    turns: &Turns,
    call: &Call,
    request: csi::ControllerModifyVolumeRequest,
) -> Result<csi::ControllerModifyVolumeResponse, Status> {
    let volume_id = &request.volume_id;
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let wanted = mutable_labels(&request.mutable_parameters).map_err(invalid)?;
    let _turn = turns.take(volume_id)?;
    let labelled = |volume: &proto::Volume| {
        let mut labels = meta(volume).labels;
        labels.extend(wanted.clone());
        Ok((labels, 0))
    };
    cluster.update(call, volume_id, labelled).await?;
    Ok(csi::ControllerModifyVolumeResponse {})
}

/// Says whether a volume can be used as somebody wants.
pub async fn validate(
    cluster: &Cluster,
    call: &Call,
    request: csi::ValidateVolumeCapabilitiesRequest,
) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    if request.volume_capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    let volume = cluster.find(call.deadline, &request.volume_id).await?;
    Ok(match against(&volume, &request) {
        Some(message) => csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message },
        None => csi::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
    })
}

/// What speaks against using a volume so.
fn against(
    volume: &proto::Volume,
    request: &csi::ValidateVolumeCapabilitiesRequest,
) -> Option<String> {
    if let Err(error) = Use::of_all(&request.volume_capabilities) {
        return Some(error.to_string());
    }
    let wanted = match Parameters::of(&request.parameters, &request.mutable_parameters) {
        Ok(wanted) => wanted,
        Err(error) => return Some(error.to_string()),
    };
    let spec = volume.spec.clone().unwrap_or_default();
    if !spec.closed {
        return Some("everybody may use the volume; `holdfast volume close` ends that".to_owned());
    }
    let is_other = !request.parameters.is_empty() && spec.class != wanted.class;
    is_other.then(|| format!("the volume is of the class {}", spec.class))
}
