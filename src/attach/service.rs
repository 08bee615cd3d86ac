//! The devices as a service on a socket of this node.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use crate::attach::backend::BackendError;
use crate::attach::devices::{DeviceError, Devices, Shown, Wanted};
use crate::attach::fuse::FuseError;
use crate::attach::kernel::KernelError;
use crate::attach::proto;
use crate::attach::proto::devices_server::Devices as Service;
use crate::control::catalog::chain;
use crate::types::Uuid;

/// See the module.
pub struct DevicesService {
    pub devices: Arc<Devices>,
}

#[tonic::async_trait]
impl Service for DevicesService {
    async fn open(
        &self,
        request: Request<proto::OpenDeviceRequest>,
    ) -> Result<Response<proto::Device>, Status> {
        let proto::OpenDeviceRequest { attachment, read_only, volume } = request.into_inner();
        let wanted = Wanted { attachment: parsed(&attachment)?, read_only, volume };
        let devices = self.devices.clone();
        let opened = to_its_end(async move { devices.open(wanted).await }).await?;
        Ok(Response::new(opened.into()))
    }

    async fn close(
        &self,
        request: Request<proto::CloseDeviceRequest>,
    ) -> Result<Response<proto::CloseDeviceResponse>, Status> {
        let (devices, attachment) = (self.devices.clone(), parsed(&request.get_ref().attachment)?);
        to_its_end(async move { devices.close(attachment).await }).await?;
        Ok(Response::new(proto::CloseDeviceResponse {}))
    }

    async fn is_blank(
        &self,
        request: Request<proto::IsBlankRequest>,
    ) -> Result<Response<proto::IsBlankResponse>, Status> {
        let attachment = parsed(&request.get_ref().attachment)?;
        let answer = self.devices.is_blank(attachment).await;
        let blank = answer.map_err(|error| status_of(&error))?;
        Ok(Response::new(proto::IsBlankResponse { blank }))
    }

    async fn grow(
        &self,
        request: Request<proto::GrowDeviceRequest>,
    ) -> Result<Response<proto::Device>, Status> {
        let proto::GrowDeviceRequest { attachment, size_bytes } = request.into_inner();
        let (devices, attachment) = (self.devices.clone(), parsed(&attachment)?);
        let grown = async move { devices.grow(attachment, size_bytes).await };
        let grown = to_its_end(grown).await?;
        Ok(Response::new(grown.into()))
    }

    async fn list(
        &self,
        request: Request<proto::ListDevicesRequest>,
    ) -> Result<Response<proto::ListDevicesResponse>, Status> {
        let listed = self.devices.list(&request.get_ref().volume).await;
        let listed = listed.map_err(|error| status_of(&error))?;
        let devices = listed.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListDevicesResponse { devices }))
    }
}

/// A caller that goes away leaves nothing half done.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, DeviceError>> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::spawn(work).await;
    let done = done.map_err(|error| Status::internal(format!("it was interrupted: {error}")))?;
    done.map_err(|error| status_of(&error))
}

fn parsed(text: &str) -> Result<Uuid, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is no uid")))
}

/// The one table of errors of devices.
fn status_of(error: &DeviceError) -> Status {
    let code = match error {
        DeviceError::NoPod(_)
        | DeviceError::Busy(_)
        | DeviceError::Blank(_)
        | DeviceError::Grow(_) => Code::Unavailable,
        DeviceError::NoDevice(_) => Code::NotFound,
        DeviceError::OtherMode(_) => Code::AlreadyExists,
        DeviceError::Full => Code::ResourceExhausted,
        DeviceError::Broken { .. } => Code::FailedPrecondition,
        DeviceError::Backend(error) => code_of(error),
        DeviceError::Locked(_)
        | DeviceError::Relay(_)
        | DeviceError::Io { .. }
        | DeviceError::Directory(_) => Code::Internal,
    };
    Status::new(code, chain(error))
}

fn code_of(error: &BackendError) -> Code {
    match error {
        BackendError::Fuse(FuseError::InUse(_)) | BackendError::Kernel(KernelError::InUse(_)) => {
            Code::FailedPrecondition
        }
        BackendError::Kernel(KernelError::NotConnected(_)) => Code::Unavailable,
        BackendError::Kernel(KernelError::Volume) => Code::InvalidArgument,
        BackendError::Listen { .. }
        | BackendError::Directory(_)
        | BackendError::Fuse(_)
        | BackendError::Kernel(_) => Code::Internal,
    }
}

impl From<Shown> for proto::Device {
    fn from(it: Shown) -> proto::Device {
        proto::Device {
            attachment: it.attachment.to_string(),
            path: it.path.display().to_string(),
            size_bytes: it.size_bytes,
            read_only: it.read_only,
            kind: it.kind.to_owned(),
            pod: it.pod.map(|pod| pod.to_string()).unwrap_or_default(),
            broken: it.broken.unwrap_or_default(),
            volume: it.volume,
        }
    }
}
