//! A real file system on an NBD export, through nbdfuse and a loop device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::tools::{run_as_root, text, try_run};
use super::wait_until;

/// An export as a file.
struct Shown {
    nbdfuse: Child,
    dir: PathBuf,
    file: PathBuf,
}

impl Shown {
    fn start(dir: PathBuf, uri: &str) -> Shown {
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("disk");
        let nbdfuse = Command::new("nbdfuse")
            .args([text(&file), uri])
            .stdin(Stdio::null())
            .spawn()
            .expect("run nbdfuse");
        let shown = Shown { nbdfuse, dir, file };
        wait_until("nbdfuse shows the volume", || shown.file.exists());
        shown
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        try_run("fusermount3", &["-u", "-z", text(&self.dir)]);
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// An export as a mounted file system. Removed when dropped, in any state.
pub struct Mounted {
    pub device: String,
    pub mount_point: PathBuf,
    mounted: bool,
    /// Dropped last.
    _shown: Shown,
}

impl Mounted {
    /// Attaches the export to a loop device, without a file system. Mount points are made in `dir`.
    pub fn attach(dir: &Path, uri: &str) -> Mounted {
        let mount_point = dir.join("mnt");
        fs::create_dir_all(&mount_point).unwrap();
        let shown = Shown::start(dir.join("fuse"), uri);
        let device = run_as_root("losetup", &["--find", "--show", text(&shown.file)]);
        Mounted { device: device.trim().to_string(), mount_point, mounted: false, _shown: shown }
    }

    pub fn mount(&mut self) {
        run_as_root("mount", &["-t", "ext4", &self.device, text(&self.mount_point)]);
        self.mounted = true;
        // Without the mount, the test would write to the folder below.
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let is_ours = |line: &str| line.starts_with(&format!("{} ", self.device));
        assert!(mounts.lines().any(is_ours), "mounted: {mounts}");
    }

    /// Unmounts once it is unused. The kernel may close the files of a killed process a moment
    /// later.
    pub fn unmount(&mut self) {
        let target = text(&self.mount_point);
        wait_until("nobody uses the file system", || as_root(&["umount", target]).status.success());
        self.mounted = false;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            as_root(&["umount", "-l", text(&self.mount_point)]);
        }
        as_root(&["losetup", "-d", &self.device]);
    }
}

fn as_root(arguments: &[&str]) -> Output {
    match rustix::process::geteuid().is_root() {
        true => try_run(arguments[0], &arguments[1..]),
        false => try_run("sudo", &[&["-n"], arguments].concat()),
    }
}
