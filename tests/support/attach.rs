//! `holdfast attach`, as a node runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::tools::{run, text};
use super::{Cluster, PODS, program, wait_until};

/// `holdfast attach` of one node; ends with the test. Its directory has a short name: that of a
/// socket has 107 bytes at most.
pub struct Attach {
    child: Child,
    pub dir: PathBuf,
    _temporary: tempfile::TempDir,
}

impl Attach {
    pub fn start(cluster: &Cluster) -> Attach {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap();
        let mut attach = Attach { child: spawn(cluster, &dir), dir, _temporary: temporary };
        attach.wait();
        attach
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("attach.sock")
    }

    fn wait(&mut self) {
        wait_until("the devices are served", || self.ask(&["list"]).status.success());
    }

    /// `kill -9`, and another one.
    pub fn kill_and_start(&mut self, cluster: &Cluster) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(cluster, &self.dir);
        self.wait();
    }

    /// `kill -9`, while others use it.
    pub fn kill_shared(&self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
    }

    pub fn ask(&self, arguments: &[&str]) -> Output {
        let socket = self.socket();
        let mut command = Command::new(program());
        command.arg("device").args(arguments).args(["--socket", text(&socket)]);
        command.output().expect("run holdfast device")
    }

    pub fn open(&self, attachment: &str) -> PathBuf {
        let opened = self.ask(&["open", attachment]);
        assert!(opened.status.success(), "{opened:?}");
        String::from_utf8(opened.stdout).unwrap().trim().into()
    }

    pub fn list(&self) -> Vec<Value> {
        let listed = self.ask(&["list", "-o", "json"]);
        serde_json::from_slice::<Value>(&listed.stdout).unwrap().as_array().unwrap().clone()
    }

    /// Nothing that belongs to a device is left.
    pub fn assert_clean(&self) {
        let devices = self.dir.join("devices");
        wait_until("nothing is left of devices", || {
            let left = fs::read_dir(&devices).unwrap().map(|entry| entry.unwrap().file_name());
            left.collect::<Vec<_>>() == [".lock"]
        });
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(text(&devices)));
        assert!(!run("losetup", &["--list"]).contains(text(&devices)));
    }
}

impl Drop for Attach {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(cluster: &Cluster, dir: &Path) -> Child {
    let mut command = Command::new(program());
    command.arg("attach").args(["--socket", text(&dir.join("attach.sock"))]);
    command.args(["--directory", text(&dir.join("devices"))]);
    command.args(["--backend", "fuse", "--endpoint", &cluster.endpoint(1)]);
    for pod in 1..=PODS {
        command.args(["--pod", &cluster.nbd_address(pod).to_string()]);
    }
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().expect("run holdfast attach")
}
