//! A real file system on a volume, through nbdfuse and a loop device. It does not notice the death
//! of another pod. After a crash of all pods, its journal finds all durable data.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use support::mounted::Mounted;
use support::tools::{noise, run, run_as_root};
use support::{Cluster, Setup, wait_until};

/// Writes a file and makes it durable, as a database would.
fn write_durably(path: &Path, seed: u64) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(&noise(seed, 100_000))?;
    file.sync_all()?;
    // Makes the name durable too.
    fs::File::open(path.parent().expect("a file in a folder"))?.sync_all()
}

fn name(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("file-{number}"))
}

fn check_files(folder: &Path, count: u64) {
    for number in 0..count {
        let content = fs::read(name(folder, number)).unwrap();
        assert!(content == noise(number, 100_000), "file {number} of {count}");
    }
}

fn start(test: &'static str) -> Cluster {
    Setup::new(test).volume("demo", "256MiB").start()
}

#[test]
fn a_file_system_does_not_notice_that_a_pod_dies() {
    let cluster = start("ext4_one");
    let mut disk = Mounted::attach(&cluster.dir, &cluster.uri(1, "demo"));
    run_as_root("mkfs.ext4", &["-q", &disk.device]);
    disk.mount();
    const FILES: u64 = 120;
    for number in 0..FILES {
        // One follower after the other is killed while files are written.
        match number {
            20 => cluster.kill(2),
            60 => {
                cluster.wait_serving(2);
                cluster.wait_healthy();
                cluster.kill(3);
            }
            _ => {}
        }
        write_durably(&name(&disk.mount_point, number), number).unwrap();
    }
    disk.unmount();
    run_as_root("e2fsck", &["-f", "-n", &disk.device]);
    drop(disk);
    cluster.wait_healthy();
    // The other pods have the same content.
    let mut disk = Mounted::attach(&cluster.dir, &cluster.uri(3, "demo"));
    disk.mount();
    check_files(&disk.mount_point, FILES);
    disk.unmount();
}

#[test]
fn a_file_system_survives_a_crash_of_everything() {
    let mut cluster = start("ext4_all");
    let mut disk = Mounted::attach(&cluster.dir, &cluster.uri(1, "demo"));
    run_as_root("mkfs.ext4", &["-q", &disk.device]);
    disk.mount();
    let folder = disk.mount_point.clone();
    // Writes files until the volume is gone. Files that were made durable must survive.
    let writer = std::thread::spawn(move || {
        let mut promised = 0;
        while write_durably(&name(&folder, promised), promised).is_ok() {
            promised += 1;
        }
        promised
    });
    let twentieth = name(&disk.mount_point, 20);
    wait_until("some files are written", || twentieth.exists());
    cluster.kill_everything();
    let promised = writer.join().unwrap();
    assert!(promised >= 20);
    drop(disk);

    cluster.start_again();
    let mut disk = Mounted::attach(&cluster.dir, &cluster.uri(2, "demo"));
    // Mounting replays the journal; a check afterwards finds nothing to repair.
    disk.mount();
    check_files(&disk.mount_point, promised);
    disk.unmount();
    run_as_root("e2fsck", &["-f", "-n", &disk.device]);
    println!("{}", run("nbdinfo", &["--size", &cluster.uri(3, "demo")]));
}
