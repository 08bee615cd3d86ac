//! What all methods of the node service use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Status;

use crate::attach::mounts::{MOUNTS, Mounts};
use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::{
    Attachment, ClaimRequest, ClaimResponse, FileSystem, RecordFileSystemRequest, Volume,
};
use crate::control::reason::Reason;
use crate::csi::api::{Api, Deadline};
use crate::csi::handle::Handle;
use crate::csi::node::devices::Devices;
use crate::csi::node::making::Record;
use crate::csi::status::{missing, no_volume};
use crate::types::{FileSystemKind, Uuid};

/// Longest wait for the catalog to record something.
const RECORD_WITHIN: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub struct Parts {
    pub api: Api,
    pub devices: Devices,
    /// Name of this node, and the present boot of its machine.
    pub node: String,
    pub boot_id: String,
}

/// The right of this node to use a volume.
#[derive(Clone, Debug)]
pub struct Claim {
    pub attachment: Uuid,
    /// The shards refuse writes.
    pub read_only: bool,
    /// Other nodes write, too.
    pub is_shared: bool,
    pub record: Record,
}

impl Parts {
    /// Finds the attachment by which this node has a volume.
    pub async fn claim(&self, deadline: Deadline, volume_id: &str) -> Result<Claim, Status> {
        let handle = handle(volume_id)?;
        let request = ClaimRequest {
            volume_uid: handle.volume.to_string(),
            node: self.node.clone(),
            boot_id: self.boot_id.clone(),
        };
        let claim = async |channel, call| AttachmentsClient::new(channel).claim(call).await;
        let answer = self.api.call(deadline, request, claim).await;
        let answer = answer.map_err(|error| match error.reason() {
            Some(Reason::NoSuchVolume | Reason::VolumeDeleted) => no_volume(volume_id),
            _ => Status::from(error),
        })?;
        let strange = || Status::internal("the cluster's answer to a claim cannot be read");
        claimed(answer).ok_or_else(strange)
    }

    /// Tells the catalog that a file system is begun, or made, on a volume.
    pub async fn record(
        &self,
        volume: Uuid,
        attachment: Uuid,
        kind: FileSystemKind,
        made: bool,
    ) -> Result<(), Status> {
        let request = RecordFileSystemRequest {
            volume_uid: volume.to_string(),
            node: self.node.clone(),
            attachment_uid: attachment.to_string(),
            file_system: Some(FileSystem { kind: kind.name().to_owned(), made }),
        };
        let record =
            async |channel, call| AttachmentsClient::new(channel).record_file_system(call).await;
        self.api.call(Deadline::after(RECORD_WITHIN), request, record).await?;
        Ok(())
    }
}

fn claimed(answer: ClaimResponse) -> Option<Claim> {
    use crate::control::proto::AccessMode;
    let Attachment { meta, spec, .. } = answer.attachment?;
    let Volume { status, .. } = answer.volume?;
    let record = match status?.file_system {
        None => Record::None,
        Some(FileSystem { made: false, kind }) => Record::Begun(FileSystemKind::named(&kind)?),
        Some(FileSystem { kind, .. }) => Record::Made(FileSystemKind::named(&kind)?),
    };
    let mode = spec?.mode();
    Some(Claim {
        attachment: meta?.uid.parse().ok()?,
        read_only: mode == AccessMode::ReadOnly,
        is_shared: mode == AccessMode::Raw,
        record,
    })
}

/// The handle of a volume's id.
pub fn handle(volume_id: &str) -> Result<Handle, Status> {
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    volume_id.parse().map_err(|_| no_volume(volume_id))
}

/// A path of a request.
pub fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    if text.is_empty() {
        return Err(missing(field));
    }
    let path = Path::new(text);
    let is_plain = path.is_absolute()
        && path.components().all(|part| {
            use std::path::Component::{Normal, RootDir};
            matches!(part, Normal(_) | RootDir)
        });
    match is_plain && path != Path::new("/") {
        // Without what is doubled or at the end: the kernel's table has it so.
        true => Ok(path.components().collect()),
        false => Err(Status::invalid_argument(format!("{field} is no absolute path: {text:?}"))),
    }
}

/// What is mounted now.
pub fn mounts() -> Result<Mounts, Status> {
    Mounts::read().map_err(|error| Status::internal(format!("could not read {MOUNTS}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(path("p", "/a//b/").unwrap(), Path::new("/a/b"));
        for wrong in ["", "a", "./a", "/", "/a/../b"] {
            assert_eq!(path("p", wrong).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
