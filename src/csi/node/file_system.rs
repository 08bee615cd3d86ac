//! File systems on devices. Each step that can block is a program of its own with a deadline: a
//! thread in the kernel that waits for a paused device cannot be ended.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use tonic::Status;

use crate::attach::child::{ChildError, run};
use crate::csi::node::making::{Found, read_probe};
use crate::types::FileSystemKind;

const PROBE_WITHIN: Duration = Duration::from_secs(60);
const MOUNT_WITHIN: Duration = Duration::from_secs(120);
const MAKE_WITHIN: Duration = Duration::from_secs(600);
const CHECK_WITHIN: Duration = Duration::from_secs(1800);
const GROW_WITHIN: Duration = Duration::from_secs(600);
const COUNT_WITHIN: Duration = Duration::from_secs(10);

/// Exit codes of blkid(8): nothing was found, and several things at once were.
const NOTHING_FOUND: i32 = 2;
const AMBIVALENT: i32 = 8;
/// Exit codes of e2fsck(8) from this one on: errors are left.
const ERRORS_LEFT: i32 = 4;

fn code_of(error: &ChildError) -> Option<i32> {
    match error {
        ChildError::Failed { code, .. } => *code,
        _ => None,
    }
}

/// What a caller is told of a program that failed.
pub fn failed(doing: &str, error: &ChildError) -> Status {
    let message = format!("could not {doing}: {}", crate::control::catalog::chain(error));
    match error {
        ChildError::Late { .. } => Status::deadline_exceeded(message),
        ChildError::Run { .. } | ChildError::Failed { .. } => Status::internal(message),
    }
}

/// What lies on a device.
pub async fn probe(device: &Path) -> Result<Found, Status> {
    let arguments = ["-p".as_ref(), "-o".as_ref(), "export".as_ref(), device.as_os_str()];
    match run("blkid", arguments, PROBE_WITHIN).await {
        Ok(printed) => Ok(read_probe(&printed)),
        Err(error) => match code_of(&error) {
            Some(NOTHING_FOUND) => Ok(Found::Nothing),
            Some(AMBIVALENT) => Ok(Found::Other("signs of several file systems".to_owned())),
            _ => Err(failed("look at the device", &error)),
        },
    }
}

/// Makes a file system that Linux 5.10 mounts, too. `is_blank`: the device reads as zeroes. Refused
/// by the program while anybody else uses the device.
pub async fn make(kind: FileSystemKind, device: &Path, is_blank: bool) -> Result<(), Status> {
    let (program, options): (_, &[&str]) = match (kind, is_blank) {
        (FileSystemKind::Ext4, true) => {
            ("mkfs.ext4", &["-E", "nodiscard,assume_storage_prezeroed=1"])
        }
        (FileSystemKind::Ext4, false) => ("mkfs.ext4", &[]),
        (FileSystemKind::Xfs, true) => ("mkfs.xfs", &["-K"]),
        (FileSystemKind::Xfs, false) => ("mkfs.xfs", &[]),
    };
    let common: &[&str] = match kind {
        FileSystemKind::Ext4 => &["-F", "-q", "-m", "0", "-O", "^orphan_file,^metadata_csum_seed"],
        FileSystemKind::Xfs => {
            &["-f", "-q", "-m", "bigtime=1,inobtcount=1,reflink=1", "-i", "nrext64=0"]
        }
    };
    let arguments = common.iter().chain(options).map(OsStr::new).chain([device.as_os_str()]);
    let made = run(program, arguments, MAKE_WITHIN).await;
    made.map(drop).map_err(|error| failed("make a file system", &error))
}

/// Mends what can be mended without a question, before it is mounted. A file system that replays
/// its journal itself is left alone.
pub async fn check(kind: FileSystemKind, device: &Path) -> Result<(), Status> {
    if kind == FileSystemKind::Xfs {
        return Ok(());
    }
    match run("e2fsck", ["-p".as_ref(), device.as_os_str()], CHECK_WITHIN).await {
        Ok(_) => Ok(()),
        Err(error) => match code_of(&error) {
            Some(code) if code < ERRORS_LEFT => Ok(()),
            Some(_) => Err(Status::failed_precondition(format!(
                "the file system has errors that a person has to look at (e2fsck -n {}): {error}",
                device.display()
            ))),
            None => Err(failed("check the file system", &error)),
        },
    }
}

/// Refuses a file system that has to be mended before it can be read: nothing may be written.
pub async fn check_clean(kind: FileSystemKind, device: &Path) -> Result<(), Status> {
    if kind == FileSystemKind::Xfs {
        // Mounting it tells.
        return Ok(());
    }
    let printed = run("dumpe2fs", ["-h".as_ref(), device.as_os_str()], PROBE_WITHIN).await;
    let printed = printed.map_err(|error| failed("look at the file system", &error))?;
    match printed.contains("needs_recovery") {
        true => Err(Status::failed_precondition(
            "the file system was not unmounted where it was written: mount it for writing once",
        )),
        false => Ok(()),
    }
}

/// Mounts a device. `options`: of mount(8), without `ro`.
pub async fn mount(
    kind: FileSystemKind,
    device: &Path,
    at: &Path,
    options: &[String],
    read_only: bool,
) -> Result<(), Status> {
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    if read_only {
        all.push("ro");
    }
    let mut arguments: Vec<OsString> = vec!["-t".into(), kind.name().into()];
    if !all.is_empty() {
        arguments.extend(["-o".into(), all.join(",").into()]);
    }
    arguments.extend([device.into(), at.into()]);
    let mounted = run("mount", arguments, MOUNT_WITHIN).await;
    mounted.map(drop).map_err(|error| match (read_only, code_of(&error)) {
        // Its journal cannot be replayed.
        (true, Some(_)) => Status::failed_precondition(format!(
            "the file system cannot be mounted for reading alone: {error}"
        )),
        _ => failed("mount the file system", &error),
    })
}

/// Shows a path, or a device, at another place, too.
pub async fn bind(from: &Path, at: &Path, read_only: bool) -> Result<(), Status> {
    let arguments = ["--bind".as_ref(), from.as_os_str(), at.as_os_str()];
    let bound = run("mount", arguments, MOUNT_WITHIN).await;
    bound.map_err(|error| failed("bind the volume to its place", &error))?;
    if !read_only {
        return Ok(());
    }
    let made = make_read_only(at).await;
    if made.is_err() {
        // Or somebody would write.
        unmount(at).await?;
    }
    made
}

/// Nobody writes at this place any more. What is shown elsewhere stays as it is.
pub async fn make_read_only(at: &Path) -> Result<(), Status> {
    let arguments = ["-o".as_ref(), "remount,bind,ro".as_ref(), at.as_os_str()];
    let made = run("mount", arguments, MOUNT_WITHIN).await;
    made.map(drop).map_err(|error| failed("make the place read-only", &error))
}

/// Takes the uppermost mount at a path away.
pub async fn unmount(at: &Path) -> Result<(), Status> {
    let unmounted = run("umount", [at], MOUNT_WITHIN).await;
    unmounted.map(drop).map_err(|error| failed(&format!("unmount {}", at.display()), &error))
}

/// Makes a mounted file system as large as its device.
pub async fn grow(kind: FileSystemKind, device: &Path, at: &Path) -> Result<(), Status> {
    let grown = match kind {
        FileSystemKind::Ext4 => run("resize2fs", [device], GROW_WITHIN).await,
        FileSystemKind::Xfs => run("xfs_growfs", [at], GROW_WITHIN).await,
    };
    grown.map(drop).map_err(|error| failed("grow the file system", &error))
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub total_bytes: i64,
    pub used_bytes: i64,
    /// For who is not root.
    pub available_bytes: i64,
    pub inodes: i64,
    pub free_inodes: i64,
}

/// Looks at a mounted file system.
pub async fn fill(at: &Path) -> Result<Fill, Status> {
    let arguments =
        ["--file-system".as_ref(), "--format=%S %b %f %a %c %d".as_ref(), at.as_os_str()];
    let printed = run("stat", arguments, COUNT_WITHIN).await;
    let printed = printed.map_err(|error| failed("look at the file system", &error))?;
    let strange = || Status::internal(format!("stat(1) said {printed:?}"));
    read_fill(&printed).ok_or_else(strange)
}

/// Block size, blocks, free ones, those for everybody, inodes, free ones.
fn read_fill(printed: &str) -> Option<Fill> {
    let numbers: Option<Vec<i64>> = printed.split(' ').map(|word| word.parse().ok()).collect();
    let [block_bytes, blocks, free, available, inodes, free_inodes] =
        <[i64; 6]>::try_from(numbers?).ok()?;
    Some(Fill {
        total_bytes: blocks.checked_mul(block_bytes)?,
        used_bytes: blocks.checked_sub(free)?.checked_mul(block_bytes)?,
        available_bytes: available.checked_mul(block_bytes)?,
        inodes,
        free_inodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_stat_are_read() {
        let fill = read_fill("4096 100 40 30 1000 900").unwrap();
        assert_eq!((fill.total_bytes, fill.used_bytes), (409_600, 245_760));
        assert_eq!((fill.available_bytes, fill.inodes, fill.free_inodes), (122_880, 1000, 900));
        for wrong in ["", "4096", "a b c d e f", "4096 1 2 3 4 5 6"] {
            assert!(read_fill(wrong).is_none(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_mounted_file_system_is_looked_at() {
        let fill = fill(Path::new("/")).await.unwrap();
        assert!(fill.total_bytes > 0 && fill.used_bytes > 0);
        assert!(super::fill(Path::new("/no such path")).await.is_err());
    }
}
