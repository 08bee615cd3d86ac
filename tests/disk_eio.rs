//! The disk under the leader starts to answer EIO: its replicas stop, the others elect a leader,
//! and I/O continues without an error. The disk is ext4 on a loop device, on a server that fails on
//! command.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::tools::{noise, run_as_root, text, try_run, try_run_as_root};
use support::{Setup, wait_until};

const PIECE: usize = 64 << 10;

/// A mounted file system that fails while a certain file exists. Removed when dropped.
struct FailingDisk {
    server: Child,
    folder: PathBuf,
    device: Option<String>,
    mounted: bool,
}

impl FailingDisk {
    fn new(name: &str) -> FailingDisk {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("fuse")).unwrap();
        fs::create_dir_all(folder.join("mnt")).unwrap();
        let file = folder.join("fuse/disk");
        let fuse = format!("exec nbdfuse {} $uri", text(&file));
        let trigger = format!("error-file={}", text(&folder.join("trigger")));
        let server = Command::new("nbdkit")
            .args(["--unix", "-", "--filter=error", "memory", "512M"])
            .args(["error=EIO", "error-rate=100%", &trigger, "--run", &fuse])
            .stdin(Stdio::null())
            .spawn()
            .expect("run nbdkit");
        let mut disk = FailingDisk { server, folder, device: None, mounted: false };
        wait_until("nbdfuse shows the disk", || file.exists());
        let device = run_as_root("losetup", &["--find", "--show", text(&file)]);
        let device = device.trim().to_owned();
        disk.device = Some(device.clone());
        run_as_root("mkfs.ext4", &["-q", &device]);
        run_as_root("mount", &["-t", "ext4", &device, text(&disk.folder.join("mnt"))]);
        disk.mounted = true;
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let is_ours = |line: &str| line.starts_with(&format!("{device} "));
        assert!(mounts.lines().any(is_ours), "mounted: {mounts}");
        // A pod's disk must be an otherwise empty folder.
        run_as_root("mkdir", &[text(&disk.path())]);
        run_as_root("chmod", &["777", text(&disk.path())]);
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.join("mnt/disk")
    }

    fn fails(&self, fails: bool) {
        let trigger = self.folder.join("trigger");
        match fails {
            true => fs::write(trigger, []).unwrap(),
            false => fs::remove_file(trigger).unwrap(),
        }
    }
}

fn has_ended(process: &mut Child) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if !matches!(process.try_wait(), Ok(None)) {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        if self.mounted {
            try_run_as_root("umount", &["-l", text(&self.folder.join("mnt"))]);
        }
        if let Some(device) = &self.device {
            try_run_as_root("losetup", &["-d", device]);
        }
        try_run("fusermount3", &["-u", "-z", text(&self.folder.join("fuse"))]);
        // Terminated, so that it also ends its own server; a kill would leave that running.
        if !has_ended(&mut self.server) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn io_goes_on_when_the_disk_of_the_leader_fails() {
    let disk = FailingDisk::new("disk_eio_disk");
    let cluster = Setup::new("disk_eio")
        .disk_sizes("256MiB", "64MiB")
        .disk_path(2, disk.path())
        .volume("demo", "64MiB")
        .start();
    let mut client = cluster.connect(1, "demo");
    let piece = |number: u64| noise(number, PIECE);
    for number in 0..64 {
        client.write(number * PIECE as u64, &piece(number)).unwrap();
    }
    cluster.lead_from(2, "demo");
    disk.fails(true);
    for number in 64..256 {
        client.write(number * PIECE as u64, &piece(number)).unwrap();
    }
    wait_until("the cluster says which disk failed", || {
        let status = cluster.ask(&["status"]).unwrap_or_default().to_string();
        status.contains("failed")
    });
    for pod in 1..=3 {
        let mut client = cluster.connect(pod, "demo");
        for number in 0..256 {
            let read = client.read(number * PIECE as u64, PIECE).unwrap();
            assert!(read == piece(number), "piece {number} through pod {pod}");
        }
    }
    disk.fails(false);
}
