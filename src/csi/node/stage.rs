//! A volume becomes a mounted file system, or a device, of this node; and back.
//!
//! Nothing that an earlier process wrote is trusted. Each time, the mount is compared with the
//! device, the device with its attachment, and the attachment with the catalog.

use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::attach::mounts::Mount;
use crate::csi::api::Deadline;
use crate::csi::capability::Use;
use crate::csi::node::devices::Device;
use crate::csi::node::file_system::{check, check_clean, grow, make, mount, probe, unmount};
use crate::csi::node::making::{Plan, Record, plan};
use crate::csi::node::parts::{Claim, Parts, handle, mounts};
use crate::csi::proto::VolumeCapability;
use crate::csi::proto::volume_capability::AccessType;
use crate::csi::proto::volume_capability::access_mode::Mode;
use crate::csi::status::{invalid, missing};
use crate::types::{FileSystemKind, Uuid};

/// What is to be staged, and where.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub volume_id: String,
    pub at: PathBuf,
    /// `None`: the device itself.
    pub mounted: Option<Mounted>,
    /// The workload reads only.
    pub read_only: bool,
    /// No other workload has it beside this one.
    pub is_alone: bool,
}

/// How a file system is wanted.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// `None`: what is there, or ext4.
    pub kind: Option<FileSystemKind>,
    /// Options of mount(8).
    pub options: Vec<String>,
}

impl Wanted {
    /// Reads a capability.
    pub fn new(
        volume_id: &str,
        at: PathBuf,
        capability: Option<&VolumeCapability>,
    ) -> Result<Wanted, Status> {
        let capability = capability.ok_or_else(|| missing("volume_capability"))?;
        Use::of(capability).map_err(invalid)?;
        let mode = capability.access_mode.as_ref().map(|it| it.mode());
        let reads = matches!(mode, Some(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly));
        let mounted = match &capability.access_type {
            Some(AccessType::Mount(mount)) => {
                // Read-only is asked for by modes, but people write it here, too.
                let options =
                    mount.mount_flags.iter().filter(|flag| *flag != "ro" && *flag != "rw");
                let kind = FileSystemKind::named(&mount.fs_type);
                Some(Mounted { kind, options: options.cloned().collect() })
            }
            _ => None,
        };
        let asks = match &capability.access_type {
            Some(AccessType::Mount(mount)) => mount.mount_flags.iter().any(|flag| flag == "ro"),
            _ => false,
        };
        let volume_id = volume_id.to_owned();
        let is_alone = mode == Some(Mode::SingleNodeSingleWriter);
        Ok(Wanted { volume_id, at, mounted, read_only: reads || asks, is_alone })
    }
}

/// A volume that is staged.
#[derive(Clone, Debug)]
pub struct Staged {
    pub device: Device,
    /// As the workload asks, or as the volume is published to this node.
    pub read_only: bool,
}

/// Stages a volume, or finds it staged.
pub async fn stage(parts: &Parts, deadline: Deadline, wanted: &Wanted) -> Result<Staged, Status> {
    let volume = handle(&wanted.volume_id)?.volume;
    let claim = parts.claim(deadline, &wanted.volume_id).await?;
    if claim.is_shared && wanted.mounted.is_some() {
        return Err(Status::failed_precondition(
            "the volume is published for several nodes that write: two that mount a file system \
             destroy it",
        ));
    }
    if wanted.mounted.is_none() && wanted.read_only && !claim.read_only {
        return Err(cannot_be_read_only());
    }
    clear(parts, volume, claim.attachment, &wanted.at).await?;
    let device = parts.devices.open(claim.attachment, claim.read_only, volume).await?;
    let read_only = wanted.read_only || claim.read_only;
    match &wanted.mounted {
        Some(mounted) => {
            let staging = Staging { parts, volume, claim, mounted, device: &device, read_only };
            staging.put_at(&wanted.at).await?;
        }
        None => {
            // Somebody may write from now on: an unfinished file system is no reason any more to
            // make one over it.
            if let Record::Begun(kind) = claim.record
                && !read_only
            {
                parts.record(volume, claim.attachment, kind, true).await?;
            }
        }
    }
    Ok(Staged { device, read_only })
}

/// A file system that is being staged.
struct Staging<'a> {
    parts: &'a Parts,
    volume: Uuid,
    claim: Claim,
    mounted: &'a Mounted,
    device: &'a Device,
    read_only: bool,
}

impl Staging<'_> {
    /// Mounts the device at its place, if it is not.
    async fn put_at(&self, at: &Path) -> Result<(), Status> {
        let Staging { mounted, device, read_only, .. } = *self;
        let number = device.number()?;
        match mounts()?.top(at) {
            Some(found) if found.device == number => {
                let kind = self.as_wanted(at, found)?;
                return self.grow(kind, at).await;
            }
            Some(found) => return Err(occupied(at, found)),
            None => {}
        }
        let is_dir = std::fs::symlink_metadata(at).is_ok_and(|found| found.is_dir());
        if !is_dir {
            return Err(Status::failed_precondition(format!("{} is no directory", at.display())));
        }
        let kind = self.ready().await?;
        mount(kind, &device.path, at, &mounted.options, read_only).await?;
        self.grow(kind, at).await
    }

    /// The volume may have grown while it was not mounted, or an earlier try ended before this.
    async fn grow(&self, kind: FileSystemKind, at: &Path) -> Result<(), Status> {
        match self.read_only {
            true => Ok(()),
            false => grow(kind, &self.device.path, at).await,
        }
    }

    /// The file system of what is mounted, if it is so as it is wanted.
    fn as_wanted(&self, at: &Path, found: &Mount) -> Result<FileSystemKind, Status> {
        let is_so = found.root == Path::new("/") && found.is_read_only == self.read_only;
        let kind = FileSystemKind::named(&found.kind)
            .filter(|kind| is_so && self.mounted.kind.is_none_or(|wanted| wanted == *kind));
        kind.ok_or_else(|| {
            let at = at.display();
            Status::already_exists(format!("the volume is mounted at {at} in another way"))
        })
    }

    /// Makes sure that the device has a file system which can be mounted.
    async fn ready(&self) -> Result<FileSystemKind, Status> {
        let (device, attachment) = (&self.device.path, self.claim.attachment);
        let found = probe(device).await?;
        let planned = plan(self.claim.record, &found, self.mounted.kind, self.read_only);
        let planned = planned.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let (kind, is_blank) = match planned {
            Plan::Use { kind, is_news } => {
                if is_news {
                    self.parts.record(self.volume, attachment, kind, true).await?;
                }
                match self.read_only {
                    true => check_clean(kind, device).await?,
                    false => check(kind, device).await?,
                }
                return Ok(kind);
            }
            Plan::MakeOverOurs(kind) => (kind, false),
            Plan::MakeIfBlank(kind) => {
                if !self.parts.devices.is_blank(attachment).await? {
                    return Err(Status::failed_precondition(
                        "the volume holds data without a file system that is known, and is not \
                         overwritten",
                    ));
                }
                (kind, true)
            }
        };
        // Rule `a-volume-is-formatted-once`.
        self.parts.record(self.volume, attachment, kind, false).await?;
        make(kind, device, is_blank).await?;
        self.parts.record(self.volume, attachment, kind, true).await?;
        Ok(kind)
    }
}

pub fn occupied(at: &Path, found: &Mount) -> Status {
    Status::failed_precondition(format!(
        "something else is mounted at {} ({}, device {}:{}); unmount it first",
        at.display(),
        found.kind,
        found.device.major,
        found.device.minor
    ))
}

/// Numbers of loop devices and of NBD devices: what a volume is mounted from.
const MAJORS: [u32; 2] = [7, 43];

/// What is left of earlier attachments, of devices that cannot be used any more, and of processes
/// that are gone, goes: none of it can reach the volume. Workloads that have it open are named.
async fn clear(parts: &Parts, volume: Uuid, present: Uuid, at: &Path) -> Result<(), Status> {
    let present = present.to_string();
    let devices = parts.devices.of(volume).await?;
    let is_good = |it: &Device| it.attachment == present && it.broken.is_none();
    let good = devices.iter().find(|it| is_good(it)).map(Device::number).transpose()?;
    while let Some(top) = mounts()?.top(at) {
        if Some(top.device) == good {
            break;
        }
        if !MAJORS.contains(&top.device.major) {
            return Err(occupied(at, top));
        }
        tracing::warn!("unmounting {}, which is left of a device that is gone", at.display());
        unmount(at).await?;
    }
    for device in devices.iter().filter(|it| !is_good(it)) {
        give_back(parts, device).await?;
    }
    Ok(())
}

/// Takes a device away that nothing is mounted from.
async fn give_back(parts: &Parts, device: &Device) -> Result<(), Status> {
    if let Some(other) = use_of(device, None)? {
        return Err(Status::failed_precondition(format!(
            "the device {} of the volume is still mounted at {}",
            device.path.display(),
            other.display()
        )));
    }
    parts.devices.close(&device.attachment).await
}

/// Where a device is mounted, or shown to a workload; `beside` does not count.
pub fn use_of(device: &Device, beside: Option<&Path>) -> Result<Option<PathBuf>, Status> {
    // The path of one that cannot be used may be another's by now: its closing tells.
    if device.broken.is_some() {
        return Ok(None);
    }
    let (number, mounts) = (device.number()?, mounts()?);
    // The file of a device, bound from where devices are.
    let name = device.path.file_name().map(|name| Path::new("/").join(name));
    let is_shown = |mount: &&Mount| {
        mount.kind == "devtmpfs" && name.as_ref().is_some_and(|name| mount.root == *name)
    };
    let shown = mounts.iter().filter(is_shown);
    let found = mounts.of(number).chain(shown).find(|mount| Some(&*mount.at) != beside);
    Ok(found.map(|mount| mount.at.clone()))
}

/// A device whose writes nobody refuses would be shown as one that is only read.
pub fn cannot_be_read_only() -> Status {
    Status::failed_precondition(
        "the volume is published to this node for writing, so its device cannot be read-only; \
         publish it read-only",
    )
}

/// Undoes [`stage`], whatever of it was done. Asks nothing of the cluster.
pub async fn unstage(parts: &Parts, volume_id: &str, at: &Path) -> Result<(), Status> {
    // An id that is none was never staged.
    let volume = match handle(volume_id) {
        Ok(handle) => handle.volume,
        Err(status) if status.code() == Code::NotFound => return Ok(()),
        Err(status) => return Err(status),
    };
    let devices = parts.devices.of(volume).await?;
    // What is there is mounted from a device of the volume, or from one that is no more. Anything
    // else was never staged.
    while let Some(top) = mounts()?.top(at).filter(|top| MAJORS.contains(&top.device.major)) {
        tracing::debug!("unmounting {}, of a {}", at.display(), top.kind);
        unmount(at).await?;
    }
    for device in devices {
        give_back(parts, &device).await?;
    }
    Ok(())
}
