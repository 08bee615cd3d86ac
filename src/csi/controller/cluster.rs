//! What the controller asks of the cluster: volumes by their handles.

use tokio::sync::OnceCell;
use tokio::time::timeout;
use tonic::Status;

use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::{
    self, GetVolumeRequest, Meta, Phase, StatusRequest, UpdateVolumeRequest,
};
use crate::control::reason::Reason;
use crate::csi::api::{Api, ApiError, Deadline};
use crate::csi::controller::parameters::Labels;
use crate::csi::controller::topology;
use crate::csi::handle::Handle;
use crate::csi::proto::Volume;
use crate::csi::served::Call;
use crate::csi::status::no_volume;
use crate::types::Uuid;

/// How often an update is tried while the volume's record changes.
const UPDATES_MAX: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    pub api: Api,
    uid: OnceCell<Uuid>,
}

/// What there is of a handle.
pub enum Lookup {
    /// It may be one that is deleted.
    There(Box<proto::Volume>),
    OfAnotherCluster,
    Nowhere,
}

impl Cluster {
    pub fn new(api: Api) -> Cluster {
        Cluster { api, uid: OnceCell::new() }
    }

    /// The cluster's uid, which never changes.
    pub async fn uid(&self, deadline: Deadline) -> Result<Uuid, Status> {
        let ask = || async {
            let status = self.api.call(deadline, StatusRequest {}, async |channel, call| {
                ClusterClient::new(channel).status(call).await
            });
            let uid = status.await?.cluster;
            let strange = || Status::internal(format!("{uid:?} is no uid of a cluster"));
            uid.parse().map_err(|_| strange())
        };
        // Another call may be asking, and wait longer than this one.
        let found = timeout(deadline.left(), self.uid.get_or_try_init(ask)).await;
        let late = |_| Status::unavailable("the cluster's uid is not known yet: no pod answers");
        found.map_err(late)?.copied()
    }

    /// The handle of a volume of this cluster.
    pub async fn handle(
        &self,
        deadline: Deadline,
        volume: &proto::Volume,
    ) -> Result<Handle, Status> {
        let uid = &meta(volume).uid;
        let strange = || Status::internal(format!("{uid:?} is no uid of a volume"));
        let volume = uid.parse().map_err(|_| strange())?;
        Ok(Handle { cluster: self.uid(deadline).await?, volume })
    }

    /// Looks a volume up.
    pub async fn look_up(&self, deadline: Deadline, volume_id: &str) -> Result<Lookup, Status> {
        let Ok(handle) = volume_id.parse::<Handle>() else { return Ok(Lookup::Nowhere) };
        if handle.cluster != self.uid(deadline).await? {
            return Ok(Lookup::OfAnotherCluster);
        }
        match self.of_uid(deadline, handle.volume).await {
            Ok(volume) => Ok(Lookup::There(Box::new(volume))),
            Err(error) if error.reason() == Some(Reason::NoSuchVolume) => {
                // An older pod looks at the name alone, and does not find the one without a name.
                if error.about() == Some(handle.volume.to_string()) {
                    return Ok(Lookup::Nowhere);
                }
                let message = "the pods do not find volumes by their uids; upgrade them first";
                Err(Status::unavailable(message))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn of_uid(&self, deadline: Deadline, uid: Uuid) -> Result<proto::Volume, ApiError> {
        let request = GetVolumeRequest { uid: uid.to_string(), ..GetVolumeRequest::default() };
        let get = async |channel, call| VolumesClient::new(channel).get(call).await;
        self.api.call(deadline, request, get).await
    }

    /// The volume of this name.
    pub async fn of_name(&self, deadline: Deadline, name: &str) -> Result<proto::Volume, ApiError> {
        let request = GetVolumeRequest { name: name.to_owned(), ..GetVolumeRequest::default() };
        let get = async |channel, call| VolumesClient::new(channel).get(call).await;
        self.api.call(deadline, request, get).await
    }

    /// A volume that can be used.
    pub async fn find(&self, deadline: Deadline, volume_id: &str) -> Result<proto::Volume, Status> {
        match self.look_up(deadline, volume_id).await? {
            Lookup::There(volume) if !is_deleted(&volume) => Ok(*volume),
            Lookup::There(_) | Lookup::OfAnotherCluster | Lookup::Nowhere => {
                Err(no_volume(volume_id))
            }
        }
    }

    /// Changes a volume: `change` makes labels and size (0: as it is) from what it is now. Nothing
    /// is sent when nothing changes.
    pub async fn update(
        &self,
        call: &Call,
        volume_id: &str,
        change: impl Fn(&proto::Volume) -> Result<(Labels, u64), Status>,
    ) -> Result<proto::Volume, Status> {
        let mut tries = 0;
        loop {
            let volume = self.find(call.deadline, volume_id).await?;
            let (labels, size_bytes) = change(&volume)?;
            let meta = meta(&volume);
            if labels == meta.labels && size_bytes == 0 {
                return Ok(volume);
            }
            let request = UpdateVolumeRequest {
                name: meta.name.clone(),
                // No other volume has this revision, also none of the same name.
                revision: meta.revision,
                labels: labels.into_iter().collect(),
                request_id: call.id_of(tries),
                size_bytes,
            };
            let update = async |channel, call| VolumesClient::new(channel).update(call).await;
            tries += 1;
            match self.api.call(call.deadline, request, update).await {
                Err(error)
                    if error.reason() == Some(Reason::RevisionConflict) && tries < UPDATES_MAX => {}
                answer => return Ok(answer?),
            }
        }
    }
}

/// Who a volume is.
pub fn meta(volume: &proto::Volume) -> Meta {
    volume.meta.clone().unwrap_or_default()
}

/// True for a volume that nobody can use any more, unless a person brings it back.
pub fn is_deleted(volume: &proto::Volume) -> bool {
    let phase = volume.status.as_ref().map_or(Phase::Unspecified, |status| status.phase());
    matches!(phase, Phase::Retained | Phase::Deleting) || meta(volume).deleting
}

/// The size that is wanted of a volume.
pub fn wanted_bytes(volume: &proto::Volume) -> u64 {
    volume.spec.as_ref().map_or(0, |spec| spec.size_bytes)
}

/// The size that clients can use.
pub fn usable_bytes(volume: &proto::Volume) -> u64 {
    volume.status.as_ref().map_or(0, |status| status.size_bytes)
}

/// The nodes that have a volume.
pub fn nodes(volume: &proto::Volume) -> Vec<String> {
    volume.status.as_ref().map(|status| status.nodes.clone()).unwrap_or_default()
}

/// A size as the specification writes it. No volume is larger than that can be.
pub fn as_capacity(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A volume as the orchestrator knows it.
pub fn described(handle: Handle, volume: &proto::Volume) -> Volume {
    Volume {
        capacity_bytes: as_capacity(wanted_bytes(volume)),
        volume_id: handle.to_string(),
        accessible_topology: topology::of(volume),
        ..Volume::default()
    }
}
