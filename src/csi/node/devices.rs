//! What the plugin asks of `holdfast attach`, which has the devices of this node.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{major, minor};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::attach::mounts::DeviceNumber;
use crate::attach::proto::devices_client::DevicesClient;
use crate::attach::proto::{
    self, CloseDeviceRequest, GrowDeviceRequest, IsBlankRequest, ListDevicesRequest,
};
use crate::control::local;
use crate::types::Uuid;

/// Longest wait for an answer; a device that is made waits for a pod.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// A block device of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Uid of the attachment.
    pub attachment: String,
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Requests wait: no pod can be reached.
    pub waits: bool,
    /// Why it cannot be used any more.
    pub broken: Option<String>,
    /// Uid of the volume.
    pub volume: String,
}

impl From<proto::Device> for Device {
    fn from(it: proto::Device) -> Device {
        Device {
            attachment: it.attachment,
            path: it.path.into(),
            size_bytes: it.size_bytes,
            waits: it.pod.is_empty(),
            broken: Some(it.broken).filter(|why| !why.is_empty()),
            volume: it.volume,
        }
    }
}

impl Device {
    /// What the kernel calls it. Opens nothing.
    pub fn number(&self) -> Result<DeviceNumber, Status> {
        let found = std::fs::metadata(&self.path).map_err(|error| {
            Status::internal(format!("could not find the device {}: {error}", self.path.display()))
        })?;
        Ok(number(found.rdev()))
    }
}

/// The number of the device whose node is at a path.
pub fn number_at(path: &Path) -> Option<DeviceNumber> {
    Some(number(std::fs::symlink_metadata(path).ok()?.rdev()))
}

fn number(raw: u64) -> DeviceNumber {
    DeviceNumber { major: major(raw), minor: minor(raw) }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Devices {
    socket: PathBuf,
    channel: Channel,
}

/// The socket cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be the socket of `holdfast attach`", socket.display())]
pub struct SocketError {
    socket: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Devices {
    /// A client of the socket of `holdfast attach`. Connects when it is used.
    pub fn at(socket: &Path) -> Result<Devices, SocketError> {
        let failed = |source| SocketError { socket: socket.to_owned(), source };
        let short = local::short(socket).map_err(|error| failed(error.into()))?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", short.display()));
        let endpoint = endpoint.map_err(|error| failed(error.into()))?;
        Ok(Devices { socket: socket.to_owned(), channel: endpoint.connect_lazy() })
    }

    fn client(&self) -> DevicesClient<Channel> {
        DevicesClient::new(self.channel.clone())
    }

    /// The device of an attachment, made if it is not there.
    pub async fn open(
        &self,
        attachment: Uuid,
        read_only: bool,
        volume: Uuid,
    ) -> Result<Device, Status> {
        let request = proto::OpenDeviceRequest {
            attachment: attachment.to_string(),
            read_only,
            volume: volume.to_string(),
        };
        let answer = self.client().open(timed(request)).await;
        Ok(answer.map_err(|status| self.said(&status))?.into_inner().into())
    }

    /// Lets a device show all that its volume has by now, so many bytes at least.
    pub async fn grow(&self, attachment: &str, size_bytes: u64) -> Result<Device, Status> {
        let request = GrowDeviceRequest { attachment: attachment.to_owned(), size_bytes };
        let answer = self.client().grow(timed(request)).await;
        Ok(answer.map_err(|status| self.said(&status))?.into_inner().into())
    }

    /// Takes a device away. Refused while something uses it.
    pub async fn close(&self, attachment: &str) -> Result<(), Status> {
        let request = CloseDeviceRequest { attachment: attachment.to_owned() };
        let answer = self.client().close(timed(request)).await;
        answer.map(drop).map_err(|status| self.said(&status))
    }

    /// True when nothing is allocated in the volume of a device.
    pub async fn is_blank(&self, attachment: Uuid) -> Result<bool, Status> {
        let request = IsBlankRequest { attachment: attachment.to_string() };
        let answer = self.client().is_blank(timed(request)).await;
        Ok(answer.map_err(|status| self.said(&status))?.into_inner().blank)
    }

    /// The devices of a volume: that of its present attachment, and those of ones that ended.
    pub async fn of(&self, volume: Uuid) -> Result<Vec<Device>, Status> {
        self.listed(volume.to_string()).await
    }

    /// All devices of this node.
    pub async fn all(&self) -> Result<Vec<Device>, Status> {
        self.listed(String::new()).await
    }

    async fn listed(&self, volume: String) -> Result<Vec<Device>, Status> {
        let answer = self.client().list(timed(ListDevicesRequest { volume })).await;
        let all = answer.map_err(|status| self.said(&status))?.into_inner().devices;
        Ok(all.into_iter().map(Device::from).collect())
    }

    fn said(&self, status: &Status) -> Status {
        let message = format!(
            "`holdfast attach` at {}: {}",
            self.socket.display(),
            match status.code() {
                Code::Unavailable if status.message().is_empty() => "it does not answer",
                _ => status.message(),
            }
        );
        Status::new(status.code(), message)
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWERED_WITHIN);
    request
}
