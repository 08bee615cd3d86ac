//! How full a volume is and how it is, for who has it; and larger ones.

use std::path::Path;

use tonic::Status;

use crate::csi::node::devices::{Device, number_at};
use crate::csi::node::file_system::{Fill, fill, grow};
use crate::csi::node::parts::{Parts, handle, mounts};
use crate::csi::proto::volume_usage::Unit;
use crate::csi::proto::{VolumeCondition, VolumeUsage};
use crate::csi::status::no_volume;
use crate::types::FileSystemKind;

/// A volume at a path of this node.
#[derive(Debug)]
struct Place {
    device: Device,
    /// `None`: it is the device itself.
    file_system: Option<FileSystemKind>,
}

/// Finds a volume at a path, where it is staged or published.
async fn find(parts: &Parts, volume_id: &str, at: &Path) -> Result<Place, Status> {
    let volume = handle(volume_id)?.volume;
    let nowhere = || Status::not_found(format!("volume {volume_id} is not at {}", at.display()));
    let devices = parts.devices.of(volume).await?;
    if devices.is_empty() {
        return Err(no_volume(volume_id));
    }
    let mounts = mounts()?;
    let top = mounts.top(at);
    for device in devices {
        let Ok(number) = device.number() else { continue };
        if let Some(top) = top.filter(|top| top.device == number) {
            let file_system = FileSystemKind::named(&top.kind);
            return Ok(Place { device, file_system: Some(file_system.ok_or_else(nowhere)?) });
        }
        // The device itself is shown as a file, which lies in another file system.
        let is_shown = top.is_none_or(|top| top.root != Path::new("/"));
        if is_shown && number_at(at).is_some_and(|found| found == number) {
            return Ok(Place { device, file_system: None });
        }
    }
    Err(nowhere())
}

/// Usage and condition of a volume. Touches no file system whose device waits for a pod.
pub async fn stats(
    parts: &Parts,
    volume_id: &str,
    at: &Path,
) -> Result<(Vec<VolumeUsage>, VolumeCondition), Status> {
    let Place { device, file_system } = find(parts, volume_id, at).await?;
    let abnormal = match (&device.broken, device.waits) {
        (Some(why), _) => Some(format!("the device cannot be used any more: {why}")),
        (None, true) => Some("no storage pod can be reached: I/O waits".to_owned()),
        (None, false) => None,
    };
    if let Some(message) = abnormal {
        return Ok((Vec::new(), VolumeCondition { abnormal: true, message }));
    }
    let usage = match file_system {
        None => vec![of_device(&device)],
        Some(_) => of_files(fill(at).await?),
    };
    let message = "it can be used".to_owned();
    Ok((usage, VolumeCondition { abnormal: false, message }))
}

fn of_device(device: &Device) -> VolumeUsage {
    let total = i64::try_from(device.size_bytes).unwrap_or(i64::MAX);
    VolumeUsage { total, unit: Unit::Bytes.into(), ..VolumeUsage::default() }
}

fn of_files(fill: Fill) -> Vec<VolumeUsage> {
    let bytes = VolumeUsage {
        available: fill.available_bytes,
        total: fill.total_bytes,
        used: fill.used_bytes,
        unit: Unit::Bytes.into(),
    };
    let inodes = VolumeUsage {
        available: fill.free_inodes,
        total: fill.inodes,
        used: fill.inodes.saturating_sub(fill.free_inodes),
        unit: Unit::Inodes.into(),
    };
    vec![bytes, inodes]
}

/// Makes the device of a volume, and what is mounted of it, as large as the volume. Returns the
/// size in bytes.
pub async fn expand(
    parts: &Parts,
    volume_id: &str,
    at: &Path,
    required_bytes: u64,
) -> Result<u64, Status> {
    let Place { device, file_system } = find(parts, volume_id, at).await?;
    let device = parts.devices.grow(&device.attachment, required_bytes).await?;
    let size_bytes = device.size_bytes;
    if let Some(kind) = file_system {
        grow(kind, &device.path, at).await?;
    }
    Ok(size_bytes)
}
