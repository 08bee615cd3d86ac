//! A staged volume is shown to a workload at its own place; and taken away from there.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use tonic::Status;

use crate::attach::mounts::DeviceNumber;
use crate::csi::api::Deadline;
use crate::csi::node::devices::{Device, number_at};
use crate::csi::node::file_system::{bind, make_read_only, unmount};
use crate::csi::node::parts::{Parts, mounts};
use crate::csi::node::stage::{Wanted, cannot_be_read_only, occupied, stage, use_of};

/// Shows a volume at `target`. What is not staged is staged first: an empty directory is never
/// shown in place of a volume.
pub async fn publish(
    parts: &Parts,
    deadline: Deadline,
    wanted: &Wanted,
    target: &Path,
    read_only: bool,
) -> Result<(), Status> {
    let staged = stage(parts, deadline, wanted).await?;
    if read_only && wanted.mounted.is_none() && !staged.read_only {
        return Err(cannot_be_read_only());
    }
    let read_only = read_only || staged.read_only;
    if wanted.is_alone && mounts()?.top(target).is_none() {
        check_alone(&staged.device, &wanted.at)?;
    }
    match wanted.mounted {
        Some(_) => show_files(&staged.device, &wanted.at, target, read_only).await,
        None => show_device(&staged.device, target, read_only).await,
    }
}

/// A volume for one writer is at one place beside the one where it is staged.
fn check_alone(device: &Device, staged_at: &Path) -> Result<(), Status> {
    match use_of(device, Some(staged_at))? {
        None => Ok(()),
        Some(other) => Err(Status::failed_precondition(format!(
            "the volume is for one workload alone, and another one has it at {}",
            other.display()
        ))),
    }
}

async fn show_files(
    device: &Device,
    from: &Path,
    target: &Path,
    read_only: bool,
) -> Result<(), Status> {
    let number = device.number()?;
    if let Some(found) = mounts()?.top(target) {
        return match found.device == number {
            true if found.is_read_only == read_only => Ok(()),
            // An earlier try ended between its two steps.
            true if read_only => make_read_only(target).await,
            true => Err(other_way(target)),
            false => Err(occupied(target, found)),
        };
    }
    match fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("create", target, &error));
        }
        _ => {}
    }
    // It was there when it was staged; nobody else unmounts it between.
    if mounts()?.top(from).is_none_or(|found| found.device != number) {
        return Err(Status::aborted("the volume was unstaged meanwhile; try again"));
    }
    bind(from, target, read_only).await
}

async fn show_device(device: &Device, target: &Path, read_only: bool) -> Result<(), Status> {
    let number = device.number()?;
    if let Some(found) = mounts()?.top(target) {
        return match number_at(target) == Some(number) {
            true if found.is_read_only == read_only => Ok(()),
            true => Err(other_way(target)),
            false => Err(occupied(target, found)),
        };
    }
    File::options()
        .create(true)
        .append(true)
        .open(target)
        .map_err(|error| failed("create", target, &error))?;
    bind(&device.path, target, read_only).await?;
    check_shown(number, target).await
}

/// The path of a device may have become another's while it was bound.
async fn check_shown(number: DeviceNumber, target: &Path) -> Result<(), Status> {
    if number_at(target) == Some(number) {
        return Ok(());
    }
    unmount(target).await?;
    Err(Status::aborted("the device has changed meanwhile; try again"))
}

fn other_way(target: &Path) -> Status {
    Status::already_exists(format!(
        "the volume is at {} already, and is not read-only as asked, or is",
        target.display()
    ))
}

/// Takes a volume away from a workload's place, and the place itself. Asks nobody.
pub async fn unpublish(target: &Path) -> Result<(), Status> {
    while mounts()?.top(target).is_some() {
        unmount(target).await?;
    }
    let found = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|error| failed("look at", target, &error))?,
    };
    // Only what is empty goes: it could be the node's own disk.
    let removed = match (found.is_dir(), found.is_file() && found.len() == 0) {
        (true, _) => fs::remove_dir(target),
        (false, true) => fs::remove_file(target),
        (false, false) => {
            return Err(Status::failed_precondition(format!(
                "{} is neither an empty directory nor an empty file, and is left alone",
                target.display()
            )));
        }
    };
    removed.map_err(|error| failed("remove", target, &error))
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("could not {doing} {}: {error}", path.display()))
}
