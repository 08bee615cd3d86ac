//! Another node, which is this machine: a volume that was taken from the virtual one is mounted
//! here, by nbdfuse and loop. Needs root, FUSE and loop devices.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::attach::Attach;
use crate::support::tools::{noise, run, text, try_run};
use crate::support::{Cluster, wait_until};

/// See the module.
pub struct Elsewhere {
    mount_point: PathBuf,
    device: PathBuf,
    attachment: String,
    attach: Attach,
}

impl Elsewhere {
    /// Why there can be none.
    pub fn lacks() -> Option<&'static str> {
        match rustix::process::geteuid().is_root() {
            false => Some("mounting takes root"),
            true if !Path::new("/dev/fuse").exists() => Some("there is no FUSE"),
            true if !Path::new("/dev/loop-control").exists() => Some("there are no loop devices"),
            true => None,
        }
    }

    /// Mounts the volume as a node does that gets it: the journal's rest is carried out before.
    pub fn mount(cluster: &Cluster, attachment: String) -> Elsewhere {
        let attach = Attach::start(cluster);
        let device = attach.open(&attachment);
        let mount_point = attach.dir.join("elsewhere");
        fs::create_dir_all(&mount_point).unwrap();
        let checked = try_run("/sbin/e2fsck", &["-p", text(&device)]);
        // 1: errors were corrected, as an inode that nothing names any more.
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        let elsewhere = Elsewhere { mount_point, device, attachment, attach };
        elsewhere.mount_again();
        elsewhere
    }

    fn mount_again(&self) {
        run("mount", &["-t", "ext4", text(&self.device), text(&self.mount_point)]);
    }

    /// Files are as `sha256sum` has said.
    pub fn check(&self, sums: &str) {
        let file = self.attach.dir.join("sums");
        fs::write(&file, sums).unwrap();
        let line = format!(
            "cd '{}' && sha256sum --quiet --check '{}'",
            text(&self.mount_point),
            text(&file)
        );
        run("sh", &["-c", &line]);
    }

    /// Writes a file of noise, durably.
    pub fn write(&self, name: &str, seed: u64) {
        let path = self.mount_point.join(name);
        fs::write(&path, noise(seed, 8 << 20)).unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
    }

    pub fn check_noise(&self, name: &str, seed: u64) {
        let found = fs::read(self.mount_point.join(name)).unwrap();
        assert!(found == noise(seed, 8 << 20), "{name} is as it was written here");
    }

    /// Looks at the file system while it is not mounted: it is whole.
    pub fn check_whole(&self) {
        self.unmount();
        run("/sbin/e2fsck", &["-fn", text(&self.device)]);
        self.mount_again();
    }

    fn unmount(&self) {
        wait_until("nobody uses the file system", || {
            try_run("umount", &[text(&self.mount_point)]).status.success()
        });
    }

    pub fn end(self) {
        self.unmount();
        let closed = self.attach.ask(&["close", &self.attachment]);
        assert!(closed.status.success(), "{closed:?}");
        self.attach.assert_clean();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if std::thread::panicking() {
            try_run("umount", &["-l", text(&self.mount_point)]);
            try_run("losetup", &["--detach", text(&self.device)]);
        }
    }
}
