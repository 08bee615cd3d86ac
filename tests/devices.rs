//! Block devices of a node by nbdfuse and loop: a file system on one notices no pod that goes, and
//! nothing is left of a device that was closed; it grows with its volume. Needs root, FUSE and loop
//! devices.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::attach::Attach;
use support::tools::{noise, run, text};
use support::{Setup, program, wait_until};

/// A mounted file system; unmounted when the test fails.
struct Mount(PathBuf, bool);

impl Mount {
    fn new(device: &Path, at: PathBuf) -> Mount {
        fs::create_dir_all(&at).unwrap();
        run("mount", &[text(device), text(&at)]);
        run("mountpoint", &["-q", text(&at)]);
        Mount(at, true)
    }

    fn end(mut self) {
        run("umount", &[text(&self.0)]);
        self.1 = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.1 {
            return;
        }
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn write(mount: &Mount, name: &str, seed: u64) {
    let path = mount.0.join(name);
    fs::write(&path, noise(seed, 1 << 20)).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
}

#[test]
fn a_file_system_on_a_device_notices_no_pod_that_goes() {
    let cluster = Setup::new("devices").volume("demo", "64MiB").start();
    let attach = Attach::start(&cluster);
    let attachment = cluster.publish("db");
    let device = attach.open(&attachment);
    assert_eq!(attach.open(&attachment), device, "it is there");
    let listed = attach.list();
    assert_eq!((listed.len(), &listed[0]["path"]), (1, &text(&device).into()));
    let other = attach.ask(&["open", &attachment, "--read-only"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("read-only"), "{other:?}");

    run("mkfs.ext4", &["-q", text(&device)]);
    let mount = Mount::new(&device, cluster.dir.join("mount"));
    for (seed, pod) in [1, 2, 3, 1].into_iter().enumerate() {
        cluster.kill(pod);
        write(&mount, &format!("file-{seed}"), seed as u64);
        cluster.wait_serving(pod);
        cluster.wait_healthy();
    }
    let refused = attach.ask(&["close", &attachment]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"), "{refused:?}");
    cluster.ask(&["volume", "resize", "db", "128MiB"]).expect("the volume grows");
    let grown = attach.ask(&["grow", &attachment, "--size", "128MiB"]);
    assert!(grown.status.success(), "{grown:?}");
    assert_eq!(attach.list()[0]["size_bytes"], 128 << 20);
    write(&mount, "last", 9);
    mount.end();
    run("e2fsck", &["-f", "-p", text(&device)]);
    run("resize2fs", &[text(&device)]);
    let mount = Mount::new(&device, cluster.dir.join("mount"));
    // More than the volume had.
    fs::write(mount.0.join("large"), noise(10, 80 << 20)).expect("it fits");
    for (name, seed) in [("file-0", 0), ("file-1", 1), ("file-2", 2), ("file-3", 3), ("last", 9)] {
        assert!(fs::read(mount.0.join(name)).unwrap() == noise(seed, 1 << 20), "{name}");
    }
    mount.end();
    for _ in 0..2 {
        let closed = attach.ask(&["close", &attachment]);
        assert!(closed.status.success(), "{closed:?}");
    }
    attach.assert_clean();
    // Nobody opens what is published no more.
    let unpublished = cluster.ask(&["attachment", "list", "--volume", "db"]).unwrap();
    let node = unpublished[0]["spec"]["node"].as_str().unwrap().to_owned();
    cluster.ask(&["attachment", "unpublish", "db", &node]);
    let gone = attach.ask(&["open", &attachment]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no pod opens"), "{gone:?}");
    attach.assert_clean();
}

#[test]
fn what_a_killed_process_has_left_is_taken_away_when_nobody_uses_it() {
    let cluster = Setup::new("devices_left").volume("demo", "64MiB").start();
    let mut attach = Attach::start(&cluster);
    let (one, two) = (cluster.publish("one"), cluster.publish("two"));
    let (first, second) = (attach.open(&one), attach.open(&two));
    run("mkfs.ext4", &["-q", text(&second)]);
    let mount = Mount::new(&second, cluster.dir.join("mount"));
    attach.kill_and_start(&cluster);
    // One is used, so it stays, and the other one is made anew.
    assert!(attach.list().is_empty());
    let left = fs::read_dir(attach.dir.join("devices")).unwrap();
    let left: BTreeSet<String> =
        left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left, BTreeSet::from([".lock".to_owned(), two.clone()]));
    let second_one = Command::new(program())
        .args(["attach", "--socket", text(&attach.dir.join("other.sock"))])
        .args(["--directory", text(&attach.dir.join("devices"))])
        .output()
        .expect("run holdfast attach");
    assert!(String::from_utf8_lossy(&second_one.stderr).contains("another"), "{second_one:?}");
    let refused = attach.ask(&["open", &two]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"), "{refused:?}");
    let again = attach.open(&one);
    run("mkfs.ext4", &["-q", "-F", text(&again)]);
    drop(first);
    // The slow path does not outlive its process: what is mounted has to be unmounted.
    drop(mount);
    wait_until("the other device is made anew", || attach.ask(&["open", &two]).status.success());
    for attachment in [one, two] {
        assert!(attach.ask(&["close", &attachment]).status.success());
    }
    attach.assert_clean();
}

/// A node loses a volume that is mounted there: its requests fail, and everything can be undone,
/// although one of the pods is dead.
#[test]
fn a_fenced_device_fails_and_can_be_taken_away() {
    let cluster =
        Setup::new("devices_fenced").volume("demo", "64MiB").restart_after("never").start();
    let attach = Attach::start(&cluster);
    let attachment = cluster.publish("db");
    let device = attach.open(&attachment);
    run("mkfs.ext4", &["-q", text(&device)]);
    let mount = Mount::new(&device, cluster.dir.join("mount"));
    write(&mount, "before", 1);
    cluster.kill(1);
    let listed = cluster.ask(&["attachment", "list", "--volume", "db"]).unwrap();
    let node = listed[0]["spec"]["node"].as_str().unwrap().to_owned();
    cluster.ask(&["attachment", "unpublish", "db", &node]);
    wait_until("requests fail", || {
        let path = mount.0.join("after");
        let written = fs::write(&path, noise(2, 1 << 20));
        written.and_then(|()| fs::File::open(&path)?.sync_all()).is_err()
    });
    mount.end();
    wait_until("the device is closed", || attach.ask(&["close", &attachment]).status.success());
    attach.assert_clean();
}
