//! Devices of the kernel's own NBD client.
//!
//! A device has one connection: a pair of sockets, of which the kernel has one and the relay the
//! other. The kernel keeps the device when this process ends; the next process finds it in sysfs,
//! by the identifier that its maker gave it, and hands in another socket.
//!
//! # The kernel's timers
//!
//! `timeout` is 0, so that the kernel leaves no socket because an answer is late: while this
//! process lives, a request waits as long as the cluster needs. With another value each longer
//! pause kills the socket, and all that was in flight is sent again, also to a cluster that is
//! merely slow: a request that takes longer than the timer, each time, would never end.
//!
//! A request in flight on a dead socket is sent again when its timer fires and finds
//! another socket. So the timer (`queue/io_timeout` of the device, 30 s unless it is set) is what a
//! restart of this process costs. [`device::LOOK_MS`] is a compromise: each time it fires, the
//! kernel logs a line for each request that waits.
//!
//! # One connection
//!
//! The kernel keeps no order of requests on different sockets, and needs none: it issues a write
//! that must come later only when the earlier one was answered, and what is sent again was not
//! answered. So several would be safe. But with several the kernel's timer always kills sockets.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::attach::child::{ChildError, run};
use crate::attach::fuse::FuseError;
use crate::types::Uuid;

mod calls;
pub mod device;
mod netlink;
pub mod sysfs;

pub use calls::CallError;

/// Longest name of a volume that a device keeps.
pub const VOLUME_BYTES_MAX: usize = 128;
/// In earlier ones, requests may hang while a device is taken away. The identifier came with 5.14.
const KERNEL_MIN: (u32, u32) = (5, 19);
const MODPROBE_WITHIN: Duration = Duration::from_secs(20);

/// Why there is no device of the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("kernel {0} is too old: the oldest whose NBD client is used is 5.19")]
    TooOld(String),
    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not load the kernel's module `nbd`")]
    Module(#[source] ChildError),
    #[error("could not {doing}")]
    Call {
        doing: &'static str,
        #[source]
        source: CallError,
    },
    #[error("another `holdfast attach` has the kernel's devices of this node ({})", .0.display())]
    Locked(PathBuf),
    #[error("{} is in use: unmount it, and close what has it open", .0.display())]
    InUse(PathBuf),
    #[error("{} is still there after {} seconds", path.display(), within.as_secs())]
    Stays { path: PathBuf, within: Duration },
    #[error("{} has no connection now, and keeps its size; ask again", .0.display())]
    NotConnected(PathBuf),
    #[error("other programs take all indexes of devices that are tried")]
    NoIndex,
    #[error("could not look whether a device is used")]
    Look(#[source] Box<FuseError>),
    #[error("a volume's name for a device has at most {VOLUME_BYTES_MAX} bytes, and no line ends")]
    Volume,
}

/// Whose a device is. The kernel keeps it, as its backend identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub attachment: Uuid,
    /// May be empty.
    pub volume: String,
}

impl Owner {
    pub fn new(attachment: Uuid, volume: &str) -> Result<Owner, KernelError> {
        match volume.len() > VOLUME_BYTES_MAX || volume.contains(char::is_control) {
            true => Err(KernelError::Volume),
            false => Ok(Owner { attachment, volume: volume.to_owned() }),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "holdfast:{}:{}", self.attachment, self.volume)
    }
}

/// It is another program's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotOurs;

impl FromStr for Owner {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Owner, NotOurs> {
        let (attachment, volume) =
            text.strip_prefix("holdfast:").and_then(|rest| rest.split_once(':')).ok_or(NotOurs)?;
        let attachment = attachment.parse().map_err(|_| NotOurs)?;
        Owner::new(attachment, volume).map_err(|_| NotOurs)
    }
}

/// Makes sure that this kernel's NBD client can be used.
pub async fn prepare() -> Result<(), KernelError> {
    let path = Path::new("/proc/sys/kernel/osrelease");
    let release = std::fs::read_to_string(path).map_err(failed("read", path))?;
    let release = release.trim();
    if !is_new_enough(release) {
        return Err(KernelError::TooOld(release.to_owned()));
    }
    if !Path::new("/sys/module/nbd").exists() {
        // No device before it is made, and no partitions.
        let arguments = ["nbd", "nbds_max=0", "max_part=0"];
        run("modprobe", arguments, MODPROBE_WITHIN).await.map_err(KernelError::Module)?;
    }
    let looked = calls::look().await;
    looked.map_err(|source| KernelError::Call { doing: "find the kernel's NBD client", source })
}

/// A release that is not understood is new.
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= KERNEL_MIN,
        _ => true,
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_read_as_they_were_written() {
        let uid: Uuid = "58d587922bd90c3a3f1c9ae0567b9412".parse().unwrap();
        for volume in ["", "db", "a:b", "\u{e4}"] {
            let owner = Owner::new(uid, volume).unwrap();
            assert_eq!(owner.to_string().parse(), Ok(owner));
        }
        assert!(Owner::new(uid, &"a".repeat(129)).is_err() && Owner::new(uid, "a\nb").is_err());
        for other in ["", "holdfast:", "holdfast:x:", "holdfast:12:db", "qemu"] {
            assert_eq!(other.parse::<Owner>(), Err(NotOurs), "{other}");
        }
    }

    #[test]
    fn old_kernels_are_told_from_new_ones() {
        for new in ["5.19.0", "6.1.0-50-cloud-amd64", "10.0", "unknown"] {
            assert!(is_new_enough(new), "{new}");
        }
        for old in ["5.18.99", "5.4", "4.19.0-1"] {
            assert!(!is_new_enough(old), "{old}");
        }
    }
}
