//! Volumes are made and deleted.

use tonic::Status;

use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::{self, CreateVolumeRequest, DeleteVolumeRequest, VolumeSpec};
use crate::control::reason::Reason;
use crate::csi::api::ApiError;
use crate::csi::capability::Use;
use crate::csi::controller::cluster::{Cluster, Lookup, described, is_deleted, meta, wanted_bytes};
use crate::csi::controller::parameters::{MADE_FOR, Parameters};
use crate::csi::controller::size::{SizeError, SizeRange};
use crate::csi::controller::topology;
use crate::csi::handle::{hash_of, volume_name};
use crate::csi::proto as csi;
use crate::csi::served::Call;
use crate::csi::status::{invalid, missing};
use crate::csi::turns::Turns;

/// A deleted volume is not kept: the orchestrator has its own protection against mistakes.
const RETENTION_S: u64 = 0;

/// A volume that is asked for.
struct Wanted {
    name: String,
    size: SizeRange,
    parameters: Parameters,
    tries: Vec<Vec<String>>,
}

impl Wanted {
    fn of(request: &csi::CreateVolumeRequest) -> Result<Wanted, Status> {
        let name = volume_name(&request.name).map_err(invalid)?;
        Use::of_all(&request.volume_capabilities).map_err(invalid)?;
        if request.volume_content_source.is_some() {
            return Err(invalid("this driver makes no volumes from snapshots or other volumes"));
        }
        let size = SizeRange::of(request.capacity_range.as_ref()).map_err(out_of_range)?;
        let (parameters, mutable) = (&request.parameters, &request.mutable_parameters);
        let mut parameters = Parameters::of(parameters, mutable).map_err(invalid)?;
        parameters.labels.insert(MADE_FOR.to_owned(), hash_of(&request.name));
        let topology = request.accessibility_requirements.as_ref();
        let tries = topology::tries(&parameters.class, topology);
        Ok(Wanted { name, size, parameters, tries })
    }

    /// Why a volume that is there is not what is asked for.
    fn differs_from(&self, volume: &proto::Volume) -> Option<String> {
        let spec = volume.spec.clone().unwrap_or_default();
        let Parameters { class, labels } = &self.parameters;
        let has = |(key, value): (&String, &String)| meta(volume).labels.get(key) == Some(value);
        let bytes = wanted_bytes(volume);
        Some(match () {
            () if is_deleted(volume) => "it was deleted, and still has its name".to_owned(),
            () if !has((&MADE_FOR.to_owned(), &labels[MADE_FOR])) => {
                "this driver has not made it for this name".to_owned()
            }
            () if !spec.closed => {
                "everybody may use it; `holdfast volume close` ends that".to_owned()
            }
            () if spec.class != *class => format!("it is of the class {}", spec.class),
            () if !self.size.has(bytes) => format!("it has {bytes} bytes"),
            () if !labels.iter().all(has) => "it has other labels".to_owned(),
            () => return None,
        })
    }
}

/// The code for a range without a size that a volume can have.
pub fn out_of_range(error: SizeError) -> Status {
    match error {
        SizeError::Negative => invalid(error),
        SizeError::Empty { .. } | SizeError::TooLarge { .. } => {
            Status::out_of_range(error.to_string())
        }
    }
}

/// Makes a volume, or finds the one that was made before.
pub async fn create(
    cluster: &Cluster,
    turns: &Turns,
    call: &Call,
    request: csi::CreateVolumeRequest,
) -> Result<csi::CreateVolumeResponse, Status> {
    let wanted = Wanted::of(&request)?;
    if wanted.tries.is_empty() {
        return Err(Status::resource_exhausted(format!(
            "none of the requisite places names a node of this driver ({})",
            crate::csi::TOPOLOGY_KEY
        )));
    }
    let _turn = turns.take(&wanted.name)?;
    let volume = match make(cluster, call, &wanted).await {
        Ok(volume) => volume,
        // It may be one that has grown, or got other labels, since it was made.
        Err(error) if error.reason() == Some(Reason::NameTaken) => {
            let volume = cluster.of_name(call.deadline, &wanted.name).await?;
            if let Some(difference) = wanted.differs_from(&volume) {
                return Err(Status::already_exists(format!("{error}: {difference}")));
            }
            volume
        }
        Err(error) => return Err(error.into()),
    };
    if !topology::fits(&volume, &wanted.tries) {
        return Err(Status::already_exists(format!(
            "volume {} is there, and its data is on none of the nodes that are asked for",
            wanted.name
        )));
    }
    let handle = cluster.handle(call.deadline, &volume).await?;
    Ok(csi::CreateVolumeResponse { volume: Some(described(handle, &volume)) })
}

/// Asks for the volume on the nodes that are wanted, those that are wanted most first.
async fn make(cluster: &Cluster, call: &Call, wanted: &Wanted) -> Result<proto::Volume, ApiError> {
    let mut part = 0;
    loop {
        let spec = VolumeSpec {
            size_bytes: wanted.size.chosen(),
            class: wanted.parameters.class.clone(),
            replicas: 0,
            closed: true,
        };
        let request = CreateVolumeRequest {
            name: wanted.name.clone(),
            spec: Some(spec),
            labels: wanted.parameters.labels.clone().into_iter().collect(),
            request_id: call.id_of(part),
            nodes: wanted.tries.get(part).cloned().unwrap_or_default(),
        };
        let create = async |channel, call| VolumesClient::new(channel).create(call).await;
        part += 1;
        match cluster.api.call(call.deadline, request, create).await {
            Err(error) if part < wanted.tries.len() && is_full(&error) => {}
            answer => return answer,
        }
    }
}

fn is_full(error: &ApiError) -> bool {
    matches!(error.reason(), Some(Reason::NoCapacity | Reason::TooFewDomains))
}

/// Deletes a volume. What is not there is deleted.
pub async fn delete(
    cluster: &Cluster,
    turns: &Turns,
    call: &Call,
    request: csi::DeleteVolumeRequest,
) -> Result<csi::DeleteVolumeResponse, Status> {
    let volume_id = &request.volume_id;
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let _turn = turns.take(volume_id)?;
    let volume = match cluster.look_up(call.deadline, volume_id).await? {
        Lookup::There(volume) => volume,
        Lookup::Nowhere => return Ok(csi::DeleteVolumeResponse {}),
        Lookup::OfAnotherCluster => {
            return Err(Status::failed_precondition(format!(
                "volume {volume_id} belongs to another cluster, and is not deleted here"
            )));
        }
    };
    if is_deleted(&volume) {
        // By a person, who keeps it for a while.
        return Ok(csi::DeleteVolumeResponse {});
    }
    if !volume.spec.as_ref().is_some_and(|spec| spec.closed) {
        return Err(Status::failed_precondition(format!(
            "volume {} is open, and may be in use: `holdfast volume close` it first",
            meta(&volume).name
        )));
    }
    let request = DeleteVolumeRequest {
        name: meta(&volume).name,
        request_id: call.id(),
        uid: meta(&volume).uid,
        force: false,
        retention_s: Some(RETENTION_S),
        purge: false,
    };
    let delete = async |channel, call| VolumesClient::new(channel).delete(call).await;
    match cluster.api.call(call.deadline, request, delete).await {
        Ok(_) => Ok(csi::DeleteVolumeResponse {}),
        // Somebody else was faster.
        Err(error) if error.reason() == Some(Reason::NoSuchVolume) => {
            Ok(csi::DeleteVolumeResponse {})
        }
        Err(error) => Err(error.into()),
    }
}
