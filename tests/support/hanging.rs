//! A file, and a disk on it, that stop to answer on command: nbdfuse shows a server's memory as a
//! file, and is stopped with a signal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::tools::{run_as_root, text, try_run, try_run_as_root};
use super::wait_until;

/// The file. Everything that waits for it fails when this is dropped.
pub struct HangingFile {
    nbdfuse: Child,
    dir: PathBuf,
    pub file: PathBuf,
}

/// The longest hang: a process that waits for the file cannot be killed, not even looked at.
const HANG_SECONDS_MAX: &str = "50";

/// While it exists, the file answers nothing.
pub struct Hang {
    server: Pid,
    /// Kills the server when the test takes too long, or dies.
    guard: Child,
}

impl HangingFile {
    /// A file of zeroes, such as of `64M`, in a new folder.
    pub fn new(dir: PathBuf, size: &str) -> HangingFile {
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("disk");
        let nbdfuse = Command::new("nbdfuse")
            .args([text(&file), "[", "nbdkit", "--exit-with-parent", "memory", size, "]"])
            .stdin(Stdio::null())
            .spawn()
            .expect("run nbdfuse (scripts/setup.sh test installs it)");
        let hanging = HangingFile { nbdfuse, dir, file };
        wait_until("nbdfuse shows the file", || hanging.file.exists());
        hanging
    }

    pub fn hang(&self) -> Hang {
        let server = Pid::from_child(&self.nbdfuse);
        let guard = Command::new("bash")
            .args(["-c", "read -r -t \"$1\" || kill -KILL \"$0\""])
            .args([&server.as_raw_nonzero().to_string(), HANG_SECONDS_MAX])
            .stdin(Stdio::piped())
            .spawn()
            .expect("run bash");
        kill_process(server, Signal::STOP).unwrap();
        Hang { server, guard }
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        // The guard, and with it the server, may have ended.
        let _ = kill_process(self.server, Signal::CONT);
        let mut line = self.guard.stdin.take().expect("piped");
        let _ = std::io::Write::write_all(&mut line, b"\n");
        let _ = self.guard.wait();
    }
}

impl Drop for HangingFile {
    fn drop(&mut self) {
        // Also ends what waits for an answer.
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
        try_run("fusermount3", &["-u", "-z", text(&self.dir)]);
    }
}

/// A mounted file system on such a file.
pub struct HangingDisk {
    folder: PathBuf,
    device: Option<String>,
    mounted: bool,
    file: HangingFile,
}

impl HangingDisk {
    /// `name` is that of a new folder.
    pub fn new(name: &str) -> HangingDisk {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("mnt")).unwrap();
        let file = HangingFile::new(folder.join("fuse"), "512M");
        let mut disk = HangingDisk { folder, device: None, mounted: false, file };
        let shown = text(&disk.file.file).to_owned();
        let device = run_as_root("losetup", &["--find", "--show", &shown]).trim().to_owned();
        disk.device = Some(device.clone());
        run_as_root("mkfs.ext4", &["-q", &device]);
        run_as_root("mount", &["-t", "ext4", &device, text(&disk.folder.join("mnt"))]);
        disk.mounted = true;
        // A pod's disk must be an otherwise empty folder.
        run_as_root("mkdir", &[text(&disk.path())]);
        run_as_root("chmod", &["777", text(&disk.path())]);
        disk
    }

    /// The folder for a pod's disk.
    pub fn path(&self) -> PathBuf {
        self.folder.join("mnt/disk-1")
    }

    /// The device stops to answer until the result is dropped. A process that waits for it cannot
    /// be killed meanwhile.
    pub fn hang(&self) -> Hang {
        self.file.hang()
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        if self.mounted {
            try_run_as_root("umount", &["-l", text(&self.folder.join("mnt"))]);
        }
        if let Some(device) = &self.device {
            try_run_as_root("losetup", &["-d", device]);
        }
    }
}
