//! A pod that finds disks other than its own refuses to start, and says why.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Cluster, PODS, Setup, program, wait_until};

/// A cluster that was used, and is stopped.
fn stopped(name: &'static str) -> Cluster {
    let mut cluster = Setup::new(name).volume("demo", "64MiB").start();
    cluster.connect(1, "demo").write(0, b"something").unwrap();
    cluster.stop();
    cluster
}

/// Runs one pod, which must end itself with an error. Returns its output.
fn refuses(cluster: &Cluster, pod: usize) -> String {
    let said = cluster.dir.join("said");
    let file = fs::File::create(&said).unwrap();
    let mut child = Command::new(program())
        .arg("serve")
        .arg("--config")
        .arg(cluster.pod_dir(pod).join("holdfast.toml"))
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .expect("run holdfast serve");
    let mut status = None;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("a pod refuses to start", || {
            status = child.try_wait().expect("wait for a pod");
            status.is_some()
        });
    }));
    let said = fs::read_to_string(&said).unwrap();
    if ended.is_err() {
        child.kill().expect("kill a pod that runs on");
        child.wait().expect("wait for a pod");
        panic!("the pod started all the same: {said}");
    }
    assert!(!status.expect("it has ended").success(), "{said}");
    said
}

fn assert_says(said: &str, words: &[&str]) {
    let lower = said.to_lowercase();
    for word in words {
        assert!(lower.contains(word), "does not say {word:?}: {said}");
    }
}

/// Without the cause, the cluster has all its data again.
fn works_again(mut cluster: Cluster) {
    cluster.start_again();
    let read = cluster.connect(PODS, "demo").read(0, 9).unwrap();
    assert_eq!(read, b"something");
}

fn swap(one: &Path, other: &Path, spare: &Path) {
    fs::rename(one, spare).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(spare, other).unwrap();
}

#[test]
fn a_disk_of_another_cluster_is_refused() {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("refusals_other_disk");
    let _ = fs::remove_dir_all(&kept);
    {
        let other = stopped("refusals_other");
        fs::rename(other.pod_dir(1).join("disk-1"), &kept).unwrap();
    }
    let cluster = stopped("refusals_cluster");
    let (disk, spare) = (cluster.pod_dir(1).join("disk-1"), cluster.dir.join("spare"));
    swap(&disk, &kept, &spare);
    assert_says(&refuses(&cluster, 1), &["cluster"]);
    swap(&disk, &kept, &spare);
    fs::remove_dir_all(&kept).unwrap();
    works_again(cluster);
}

#[test]
fn a_missing_disk_is_refused_and_not_made_anew() {
    let cluster = stopped("refusals_missing");
    let (disk, spare) = (cluster.pod_dir(2).join("disk-1"), cluster.dir.join("spare"));
    fs::rename(&disk, &spare).unwrap();
    assert_says(&refuses(&cluster, 2), &["disk"]);
    // As with a file system that is not mounted: the folder exists and is empty.
    fs::create_dir_all(&disk).unwrap();
    assert_says(&refuses(&cluster, 2), &["disk"]);
    fs::remove_dir_all(&disk).unwrap();
    fs::rename(&spare, &disk).unwrap();
    works_again(cluster);
}

#[test]
fn a_missing_disk_is_refused_although_the_pod_has_another() {
    let mut cluster = stopped("refusals_one_of_two");
    let config = cluster.pod_dir(2).join("holdfast.toml");
    let (disk, spare) = (cluster.pod_dir(2).join("disk-2"), cluster.dir.join("spare"));
    let more = format!("\n[[disk]]\npath = {disk:?}\nsize = \"1GiB\"\nwal_size = \"64MiB\"\n");
    fs::write(&config, fs::read_to_string(&config).unwrap() + &more).unwrap();
    cluster.start_again();
    cluster.stop();
    fs::rename(&disk, &spare).unwrap();
    fs::create_dir(&disk).unwrap();
    assert_says(&refuses(&cluster, 2), &["disk-2", "mount its file system"]);
    fs::remove_dir(&disk).unwrap();
    fs::rename(&spare, &disk).unwrap();
    works_again(cluster);
}

#[test]
fn a_disk_that_is_given_twice_is_refused() {
    let cluster = stopped("refusals_twice");
    let config = cluster.pod_dir(3).join("holdfast.toml");
    let before = fs::read_to_string(&config).unwrap();
    let disk = cluster.pod_dir(3).join("disk-1");
    let again = format!("{before}\n[[disk]]\npath = {disk:?}\n");
    fs::write(&config, again).unwrap();
    assert_says(&refuses(&cluster, 3), &["disk"]);
    fs::write(&config, before).unwrap();
    works_again(cluster);
}

/// Patches every copy of the superblock, and corrects its checksum.
fn patch_superblock(path: &Path, at: usize, bytes: &[u8]) {
    let mut all = fs::read(path).unwrap();
    for copy in all.chunks_exact_mut(4096) {
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32fast::hash(&copy[12..]);
        copy[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(path, all).unwrap();
}

#[test]
fn a_disk_of_a_newer_version_is_refused_and_says_what_to_do() {
    let cluster = stopped("refusals_version");
    let superblock = cluster.pod_dir(2).join("disk-1/superblock");
    let before = fs::read(&superblock).unwrap();
    patch_superblock(&superblock, 12, &2u16.to_le_bytes());
    let said = refuses(&cluster, 2);
    assert_says(&said, &["version 2", "knows version 1", "start the newer program"]);
    fs::write(&superblock, &before).unwrap();
    patch_superblock(&superblock, 16, &(1u64 << 40).to_le_bytes());
    assert_says(&refuses(&cluster, 2), &["features", "start the newer program"]);
    fs::write(&superblock, &before).unwrap();
    works_again(cluster);
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_with_its_name() {
    let cluster = stopped("refusals_config");
    let config = cluster.pod_dir(1).join("holdfast.toml");
    let before = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("colour = \"blue\"\n{before}")).unwrap();
    assert_says(&refuses(&cluster, 1), &["colour"]);
    fs::write(&config, before).unwrap();
    works_again(cluster);
}
