//! What is mounted where, by the kernel's table (proc_pid_mountinfo(5)). Reading it touches no file
//! system, so that it cannot block on one whose device is paused.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The table of this process.
pub const MOUNTS: &str = "/proc/self/mountinfo";

/// Number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    id: u64,
    parent: u64,
    /// Of the file system: what `stat` tells of its files.
    pub device: DeviceNumber,
    /// What of the file system is mounted: `/`, or the source of a bind mount in it.
    pub root: PathBuf,
    pub at: PathBuf,
    pub is_read_only: bool,
    /// The mount namespaces of its peers see mounts below it.
    pub is_shared: bool,
    pub kind: String,
}

/// The table, in the kernel's order.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// The table as it is now.
    pub fn read() -> io::Result<Mounts> {
        Mounts::read_from(Path::new(MOUNTS))
    }

    /// The table in a file of `/proc`.
    pub fn read_from(file: &Path) -> io::Result<Mounts> {
        Ok(Mounts::parse(&fs::read(file)?))
    }

    /// Lines that are not as the kernel writes them are left out.
    fn parse(text: &[u8]) -> Mounts {
        Mounts(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
    }

    /// What is seen at a path: the uppermost of the mounts there.
    pub fn top(&self, at: &Path) -> Option<&Mount> {
        let here = || self.0.iter().filter(|mount| mount.at == at);
        here().rev().find(|mount| here().all(|other| other.parent != mount.id))
    }

    /// The mount that has a path: the nearest above it, or there.
    pub fn covering(&self, path: &Path) -> Option<&Mount> {
        path.ancestors().find_map(|at| self.top(at))
    }

    /// The mounts of a device's file system.
    pub fn of(&self, device: DeviceNumber) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let root = unescaped(fields.next()?);
    let at = unescaped(fields.next()?);
    let is_read_only = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    // Optional fields end with a dash.
    let mut is_shared = false;
    fields.by_ref().find(|field| {
        is_shared |= field.starts_with(b"shared:");
        *field == b"-"
    })?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { id, parent, device, root, at, is_read_only, is_shared, kind })
}

/// Blanks and the like are written as three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = br"21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
30 21 7:0 / /mnt/a\040b rw,noatime shared:5 master:1 - ext4 /dev/loop0 rw
31 30 7:1 /inner /mnt/a\040b ro,noatime - xfs /dev/loop1 rw
32 21 7:0 / /mnt/c ro - ext4 /dev/loop0 rw
33 21 0:5 /loop0 /mnt/d rw - devtmpfs udev rw
nonsense
34 21 7:x / /mnt/e rw - ext4 /dev/loop0 rw";

    #[test]
    fn the_uppermost_mount_at_a_path_is_found() {
        let mounts = Mounts::parse(TABLE);
        assert_eq!(mounts.iter().count(), 6);
        let top = mounts.top(Path::new("/mnt/a b")).unwrap();
        assert_eq!((top.device.minor, top.is_read_only, top.kind.as_str()), (1, true, "xfs"));
        assert_eq!(top.root, Path::new("/inner"));
        assert!(mounts.top(Path::new("/mnt/a")).is_none());
        let at = |mount: &Mount| mount.at.clone();
        let all: Vec<_> = mounts.of(DeviceNumber { major: 7, minor: 0 }).map(at).collect();
        assert_eq!(all, [Path::new("/mnt/a b"), Path::new("/mnt/c")]);
        assert!(Mounts::read().unwrap().top(Path::new("/proc")).is_some());
    }

    #[test]
    fn paths_are_read_as_the_kernel_writes_them() {
        assert_eq!(unescaped(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescaped(br"/plain\9"), Path::new(r"/plain\9"));
    }
}
