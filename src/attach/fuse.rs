//! The slow path, for kernels without a useful NBD client: nbdfuse makes a file of an NBD export,
//! and a loop device makes a block device of the file.
//!
//! ```text
//! <directory>/relay.sock        the relay, which nbdfuse talks to
//! <directory>/device/nbd        the file; `device` is a mount of nbdfuse
//! ```
//!
//! The file is much larger than the volume, and the loop device shows the part that the volume has.
//! So the device can grow: nbdfuse never changes the size of its file.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::attach::child::{ChildError, run};
use crate::attach::loops;
use crate::attach::mounts::{MOUNTS, Mounts};
use crate::attach::thread::within;

/// Longest wait for a program that does one thing.
const WITHIN: Duration = Duration::from_secs(20);
/// Interval of looks at the kernel's tables, which tell of no change.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Size of the file: what loop devices take, in whole blocks of any size.
pub const FILE_BYTES: u64 = (1 << 62) - (1 << 20);
/// As devices of the kernel's NBD client have, so that a file system can be mounted on both.
const SECTOR_BYTES: u64 = 4096;

/// Why a device is not made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("nbdfuse has ended: {0}")]
    Ended(String),
    #[error("nbdfuse made no file within {} seconds", WITHIN.as_secs())]
    Late,
    #[error("{} is in use: unmount it, and close what has it open", .0.display())]
    InUse(PathBuf),
}

/// A path as it stands in a URI (RFC 3986, 2.1).
fn encoded(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte);
    let bytes = path.as_os_str().as_bytes().iter();
    bytes
        .map(|byte| match plain(*byte) {
            true => char::from(*byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// Where the relay of a device listens.
pub fn socket_in(directory: &Path) -> PathBuf {
    directory.join("relay.sock")
}

fn mount_in(directory: &Path) -> PathBuf {
    directory.join("device")
}

fn file_in(directory: &Path) -> PathBuf {
    mount_in(directory).join("nbd")
}

/// A device of the slow path.
#[derive(Debug)]
pub struct FuseDevice {
    directory: PathBuf,
    nbdfuse: Child,
    path: PathBuf,
}

impl FuseDevice {
    /// Makes a block device of what the relay in `directory` serves as [`FILE_BYTES`].
    pub async fn make(
        directory: &Path,
        read_only: bool,
        size_bytes: u64,
    ) -> Result<FuseDevice, FuseError> {
        let mount = mount_in(directory);
        fs::create_dir_all(&mount).map_err(failed("create", &mount))?;
        let uri = format!("nbd+unix:///?socket={}", encoded(&socket_in(directory)));
        let mut command = Command::new("nbdfuse");
        if read_only {
            command.arg("--readonly");
        }
        let program = "nbdfuse";
        command.arg(file_in(directory)).arg(uri).stdin(Stdio::null()).stdout(Stdio::null());
        let spawned = command.kill_on_drop(true).spawn();
        let mut nbdfuse = spawned.map_err(|source| ChildError::Run { program, source })?;
        let until = Instant::now() + WITHIN;
        while !is_mounted(&mount)? {
            let ended = nbdfuse.try_wait().map_err(failed("wait for nbdfuse at", &mount))?;
            if let Some(status) = ended {
                return Err(FuseError::Ended(status.to_string()));
            }
            if Instant::now() > until {
                return Err(FuseError::Late);
            }
            sleep(LOOK_EVERY).await;
        }
        let mut arguments: Vec<OsString> =
            ["--find", "--show", "--sector-size"].map(Into::into).into();
        arguments.push(SECTOR_BYTES.to_string().into());
        arguments.extend(["--sizelimit".into(), size_bytes.to_string().into()]);
        if read_only {
            arguments.push("--read-only".into());
        }
        arguments.push(file_in(directory).into_os_string());
        let path = PathBuf::from(run("losetup", arguments, WITHIN).await?);
        Ok(FuseDevice { directory: directory.to_owned(), nbdfuse, path })
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why the device cannot be used any more, if it cannot. Its path may be another's then.
    pub fn broken(&mut self) -> Option<String> {
        match self.nbdfuse.try_wait() {
            Ok(None) => match loops_of(&file_in(&self.directory)) {
                Ok(found) if found == [self.path.as_path()] => None,
                Ok(_) => Some("its loop device is another by now".to_owned()),
                Err(error) => Some(format!("its loop device cannot be looked at: {error}")),
            },
            Ok(Some(status)) => Some(format!("nbdfuse has ended: {status}")),
            Err(error) => Some(format!("nbdfuse cannot be waited for: {error}")),
        }
    }

    /// Lets the loop device show more of the file. Waits for writes that the kernel holds back.
    pub async fn grow(&self, size_bytes: u64) -> Result<(), FuseError> {
        let path = self.path.clone();
        let grown = within(WITHIN, move || loops::limit(&path, size_bytes)).await;
        grown.and_then(|done| done).map_err(failed("let grow", &self.path))
    }

    /// Takes it away, unless something uses it. After an error it may be broken.
    pub async fn take_away(&mut self) -> Result<(), FuseError> {
        take_down(&self.directory).await?;
        // Its mount is gone.
        match timeout(WITHIN, self.nbdfuse.wait()).await {
            Ok(waited) => waited.map(drop).map_err(failed("wait for nbdfuse at", &self.directory)),
            Err(_) => Err(ChildError::Late { program: "nbdfuse", within: WITHIN }.into()),
        }
    }
}

/// Takes away the rest of a device in `directory`, also of one that an earlier process made.
pub async fn take_down(directory: &Path) -> Result<(), FuseError> {
    let file = file_in(directory);
    for device in loops_of(&file)? {
        if is_used(&device)? {
            return Err(FuseError::InUse(device));
        }
        run("losetup", [Path::new("--detach"), &device], WITHIN).await?;
    }
    // The kernel keeps one that somebody has open until it is closed.
    if let Some(device) = loops_of(&file)?.pop() {
        return Err(FuseError::InUse(device));
    }
    let mount = mount_in(directory);
    if is_mounted(&mount)? {
        run("fusermount3", [Path::new("-u"), &mount], WITHIN).await?;
    }
    gone(fs::remove_dir(&mount), &mount)?;
    let socket = socket_in(directory);
    gone(fs::remove_file(&socket), &socket)?;
    // It removes nothing that is not ours.
    gone(fs::remove_dir(directory), directory)
}

fn gone(removed: io::Result<()>, path: &Path) -> Result<(), FuseError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FuseError {
    let path = path.to_owned();
    move |source| FuseError::Io { doing, path, source }
}

/// True when a file system is mounted there. Touches nothing of it, which could block.
fn is_mounted(at: &Path) -> Result<bool, FuseError> {
    let mounts = Mounts::read().map_err(failed("read", Path::new(MOUNTS)))?;
    Ok(mounts.top(at).is_some())
}

/// The loop devices whose content is this file.
pub fn loops_of(file: &Path) -> Result<Vec<PathBuf>, FuseError> {
    let table = Path::new("/sys/block");
    let mut found = Vec::new();
    for entry in fs::read_dir(table).map_err(failed("read", table))? {
        let entry = entry.map_err(failed("read", table))?;
        // Only loop devices with content have it.
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|text| Path::new(text.trim_end()) == file) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(found)
}

/// True when a file system, a program with exclusive access or another device uses it.
pub fn is_used(device: &Path) -> Result<bool, FuseError> {
    let exclusive = i32::try_from((OFlags::EXCL | OFlags::CLOEXEC).bits()).unwrap_or_default();
    match OpenOptions::new().read(true).custom_flags(exclusive).open(device) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        Err(error) => Err(failed("open", device)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_and_paths_stand_in_uris() {
        assert_eq!(encoded(Path::new("/a b/c?d")), "/a%20b/c%3Fd");
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/no such mount")).unwrap());
    }
}
