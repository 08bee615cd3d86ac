//! What a pod refuses: a disk that is not its own, without which it goes on and says why, and a
//! setup that is wrong, with which it does not start.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

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

/// Starts the cluster although something is wrong with a disk of this pod. The pod serves without
/// it (by other pods when it has no disk left), and the cluster shows the disk, and why.
fn goes_on_without(cluster: &mut Cluster, pod: usize, disk: &Path, words: &[&str]) {
    cluster.start_again();
    let mut reason = String::new();
    wait_until("the disk shows as failed", || {
        let disks = cluster.ask(&["disk", "list"]).unwrap_or_default();
        let disks = disks.as_array().cloned().unwrap_or_default();
        let here = |shown: &&Value| shown["status"]["path"] == *disk.to_str().unwrap();
        let shown = disks.iter().find(here).map(|shown| shown["status"].clone());
        let shown = shown.filter(|status| status["phase"] == "failed").unwrap_or_default();
        reason = shown["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
        !reason.is_empty()
    });
    assert_says(&reason, words);
    let read = cluster.connect(pod, "demo").read(0, 9).unwrap();
    assert_eq!(read, b"something");
    cluster.stop();
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
    let mut cluster = stopped("refusals_cluster");
    let (disk, spare) = (cluster.pod_dir(1).join("disk-1"), cluster.dir.join("spare"));
    swap(&disk, &kept, &spare);
    goes_on_without(&mut cluster, 1, &disk, &["does not hold it now"]);
    swap(&disk, &kept, &spare);
    fs::remove_dir_all(&kept).unwrap();
    works_again(cluster);
}

#[test]
fn a_missing_disk_is_not_made_anew() {
    let mut cluster = stopped("refusals_missing");
    let (disk, spare) = (cluster.pod_dir(2).join("disk-1"), cluster.dir.join("spare"));
    fs::rename(&disk, &spare).unwrap();
    // `dev` makes the folder; then it is as with a file system that is not mounted.
    goes_on_without(&mut cluster, 2, &disk, &["mount its file system"]);
    assert!(fs::read_dir(&disk).unwrap().next().is_none(), "nothing was made there");
    fs::remove_dir_all(&disk).unwrap();
    fs::rename(&spare, &disk).unwrap();
    works_again(cluster);
}

#[test]
fn a_missing_disk_is_refused_beside_another() {
    let mut cluster = stopped("refusals_one_of_two");
    let config = cluster.pod_dir(2).join("holdfast.toml");
    let (disk, spare) = (cluster.pod_dir(2).join("disk-2"), cluster.dir.join("spare"));
    let more = format!("\n[[disk]]\npath = {disk:?}\nsize = \"1GiB\"\nwal_size = \"64MiB\"\n");
    fs::write(&config, fs::read_to_string(&config).unwrap() + &more).unwrap();
    cluster.start_again();
    cluster.stop();
    fs::rename(&disk, &spare).unwrap();
    goes_on_without(&mut cluster, 2, &disk, &["disk-2", "mount its file system"]);
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
    let mut cluster = stopped("refusals_version");
    let disk = cluster.pod_dir(2).join("disk-1");
    let superblock = disk.join("superblock");
    let before = fs::read(&superblock).unwrap();
    patch_superblock(&superblock, 12, &2u16.to_le_bytes());
    let words = ["version 2", "knows version 1", "start the newer program"];
    goes_on_without(&mut cluster, 2, &disk, &words);
    fs::write(&superblock, &before).unwrap();
    patch_superblock(&superblock, 16, &(1u64 << 40).to_le_bytes());
    goes_on_without(&mut cluster, 2, &disk, &["features", "start the newer program"]);
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
