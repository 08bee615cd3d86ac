//! The node service of the driver on this machine: file systems and devices by nbdfuse and loop.
//! Needs root, FUSE and loop devices.

mod support;

#[allow(dead_code, reason = "the controller's tests use the rest")]
#[path = "csi/driver.rs"]
mod driver;
#[path = "node/kubelet.rs"]
mod kubelet;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use driver::assert_refused;
use holdfast::csi::proto::volume_usage::Unit;
use holdfast::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, NodeGetInfoRequest, NodeStageVolumeRequest,
};
use kubelet::{Kind, Kubelet, NODE, Volume, until_done};
use rustix::thread::CapabilitySet;
use support::tools::{noise, run, text, try_run};
use support::{PODS, wait_until};
use tonic::Code;

fn write(at: &Path, name: &str, seed: u64) {
    let path = at.join(name);
    fs::write(&path, noise(seed, 1 << 20)).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
}

#[track_caller]
fn assert_holds(at: &Path, name: &str, seed: u64) {
    assert!(fs::read(at.join(name)).unwrap() == noise(seed, 1 << 20), "{name} is as written");
}

fn is_mounted(at: &Path) -> bool {
    try_run("mountpoint", &["-q", text(at)]).status.success()
}

/// The life of a volume with a file system, every step twice.
fn live(kubelet: &Kubelet, kind: &'static str) {
    let volume = kubelet.volume(Kind::Mounted(kind));
    let (staging, target) = (volume.staging(), volume.target("a"));
    for _ in 0..2 {
        volume.stage().unwrap();
    }
    let shown = run("findmnt", &["--noheadings", "--output", "FSTYPE", text(&staging)]);
    assert_eq!(shown.trim(), if kind.is_empty() { "ext4" } else { kind });
    for _ in 0..2 {
        volume.publish("a", false).unwrap();
    }
    write(&target, "first", 1);
    // A second pod of the node writes, and a third one reads.
    volume.publish("b", false).unwrap();
    volume.publish("c", true).unwrap();
    write(&volume.target("b"), "second", 2);
    assert_holds(&volume.target("c"), "second", 2);
    assert!(fs::write(volume.target("c").join("third"), "no").is_err(), "it is read-only");
    assert_refused(volume.publish("c", false), Code::AlreadyExists);
    let stats = volume.stats(&target).unwrap();
    let [bytes, inodes] = &stats.usage[..] else { panic!("{stats:?}") };
    assert_eq!((bytes.unit(), inodes.unit()), (Unit::Bytes, Unit::Inodes));
    assert!(bytes.used > 2 << 20 && bytes.total > 400 << 20 && inodes.used > 0, "{stats:?}");
    assert!(!stats.volume_condition.unwrap().abnormal);
    // What is used is not taken away.
    let busy = assert_refused(volume.unstage(), Code::FailedPrecondition);
    assert!(busy.contains(text(&target)), "it names the user: {busy}");
    for pod in ["a", "b", "c"] {
        for _ in 0..2 {
            volume.unpublish(pod).unwrap();
        }
        assert!(!volume.target(pod).exists());
    }
    for _ in 0..2 {
        volume.unstage().unwrap();
    }
    assert!(!is_mounted(&staging) && staging.exists());
    // The same data at the next time, under another attachment.
    kubelet.driver.unpublish(&volume.id, NODE).unwrap();
    let began = Instant::now();
    volume.publish_to_node(NODE).unwrap();
    volume.stage().unwrap();
    println!("{kind}: published and staged in {:?}", began.elapsed());
    volume.publish("a", false).unwrap();
    assert_holds(&target, "first", 1);
    assert_holds(&target, "second", 2);
    volume.unpublish("a").unwrap();
    volume.unstage().unwrap();
    volume.end();
}

#[test]
fn a_volume_lives_as_a_file_system_or_a_device() {
    let kubelet = Kubelet::start("node_life");
    let info = kubelet.node(async |mut it| it.node_get_info(NodeGetInfoRequest {}).await);
    let info = info.unwrap();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), (NODE, 128));
    assert_eq!(info.accessible_topology.unwrap().segments["holdfast.io/node"], NODE);
    for kind in ["", "ext4", "xfs"] {
        live(&kubelet, kind);
    }
    live_as_a_device(&kubelet);
    kubelet.attach.assert_clean();
}

/// A volume grows while it is mounted and written, or while it is not.
#[test]
fn a_volume_grows_with_its_file_system() {
    let kubelet = Kubelet::start("node_grow");
    let grow = |volume: &Volume<'_>, mib: i64| {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: mib << 20, limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        let answer =
            kubelet.driver.controller(async |mut it| it.controller_expand_volume(request).await);
        assert!(answer.unwrap().node_expansion_required);
    };
    let total = |volume: &Volume<'_>| volume.stats(&volume.target("a")).unwrap().usage[0].total;
    // Linux grows a mounted ext4 only for who has this right.
    let has_right = rustix::thread::capabilities(None)
        .is_ok_and(|it| it.effective.contains(CapabilitySet::SYS_RESOURCE));
    let kinds: &[&str] = if has_right { &["ext4", "xfs"] } else { &["xfs"] };
    if !has_right {
        println!("ext4 is not grown here: this machine gives nobody CAP_SYS_RESOURCE");
    }
    for kind in kinds {
        let volume = kubelet.volume(Kind::Mounted(kind));
        let target = volume.target("a");
        volume.publish("a", false).unwrap();
        write(&target, "first", 1);
        grow(&volume, 1024);
        for _ in 0..2 {
            assert_eq!(volume.expand(&target, 1024 << 20).unwrap(), 1024 << 20);
        }
        assert!(total(&volume) > 900 << 20, "{}", total(&volume));
        // More than it had.
        fs::write(target.join("large"), noise(2, 520 << 20)).unwrap();
        volume.unpublish("a").unwrap();
        volume.unstage().unwrap();
        grow(&volume, 1200);
        volume.publish("a", false).unwrap();
        assert!(total(&volume) > 1050 << 20, "{}", total(&volume));
        assert_holds(&target, "first", 1);
        assert!(fs::read(target.join("large")).unwrap() == noise(2, 520 << 20));
        volume.unpublish("a").unwrap();
        volume.unstage().unwrap();
        volume.end();
    }
    kubelet.attach.assert_clean();
}

fn live_as_a_device(kubelet: &Kubelet) {
    let volume = kubelet.volume(Kind::Block);
    for _ in 0..2 {
        volume.stage().unwrap();
        volume.publish("a", false).unwrap();
    }
    let target = volume.target("a");
    // Nothing keeps writers from a device that only looks read-only.
    assert_refused(volume.publish("b", true), Code::FailedPrecondition);
    let busy = assert_refused(volume.unstage(), Code::FailedPrecondition);
    assert!(busy.contains(text(&target)), "it names the user: {busy}");
    assert!(fs::metadata(&target).unwrap().file_type().is_block_device());
    let mut device = fs::File::options().read(true).write(true).open(&target).unwrap();
    device.write_all(&noise(1, 1 << 20)).unwrap();
    device.sync_all().unwrap();
    drop(device);
    let stats = volume.stats(&target).unwrap();
    assert_eq!(stats.usage[0].total, 512 << 20);
    volume.unpublish("a").unwrap();
    assert!(!target.exists());
    volume.unstage().unwrap();
    volume.publish("a", false).unwrap();
    let mut device = fs::File::open(&target).unwrap();
    let mut found = vec![0; 1 << 20];
    device.seek(SeekFrom::Start(0)).unwrap();
    device.read_exact(&mut found).unwrap();
    assert!(found == noise(1, 1 << 20));
    drop(device);
    volume.unpublish("a").unwrap();
    volume.unstage().unwrap();
    // Somebody's data without a file system is not overwritten by one.
    let Volume { id, name, .. } = volume;
    let as_files = Volume::again(kubelet, id, Kind::Mounted("ext4"), name);
    assert_refused(as_files.stage(), Code::FailedPrecondition);
    as_files.unstage().unwrap();
    as_files.end();
}

#[test]
fn requests_are_checked_and_foreign_mounts_left_alone() {
    let kubelet = Kubelet::start("node_checks");
    let volume = kubelet.volume(Kind::Mounted(""));
    let stage = |change: &dyn Fn(&mut NodeStageVolumeRequest)| {
        let mut request = volume.stage_request();
        change(&mut request);
        kubelet.node(async |mut it| it.node_stage_volume(request).await)
    };
    assert_refused(stage(&|it| it.volume_id.clear()), Code::InvalidArgument);
    assert_refused(stage(&|it| it.staging_target_path.clear()), Code::InvalidArgument);
    assert_refused(stage(&|it| it.staging_target_path = "a/b".into()), Code::InvalidArgument);
    assert_refused(stage(&|it| it.volume_capability = None), Code::InvalidArgument);
    assert_refused(stage(&|it| it.volume_id = "nonsense".into()), Code::NotFound);
    let stranger = volume.id.replace(|it: char| it.is_ascii_hexdigit(), "7");
    assert_refused(stage(&|it| it.volume_id.clone_from(&stranger)), Code::NotFound);
    assert_refused(volume.stats(&volume.target("a")), Code::NotFound);
    // Something of the node lies where the volume should.
    let staging = volume.staging();
    run("mount", &["-t", "tmpfs", "mine", text(&staging)]);
    fs::write(staging.join("precious"), "mine").unwrap();
    assert_refused(volume.stage(), Code::FailedPrecondition);
    assert_refused(volume.publish("a", false), Code::FailedPrecondition);
    assert_eq!(fs::read_to_string(staging.join("precious")).unwrap(), "mine");
    run("umount", &[text(&staging)]);
    // A place with files is not removed.
    let target = volume.target("a");
    fs::create_dir_all(&target).unwrap();
    fs::write(target.join("precious"), "mine").unwrap();
    assert!(volume.unpublish("a").is_err());
    assert_eq!(fs::read_to_string(target.join("precious")).unwrap(), "mine");
    fs::remove_file(target.join("precious")).unwrap();
    volume.unpublish("a").unwrap();
    // A volume that this node does not have.
    kubelet.driver.unpublish(&volume.id, NODE).unwrap();
    assert_refused(volume.stage(), Code::FailedPrecondition);
    volume.publish_to_node("pod-2").unwrap();
    assert_refused(volume.stage(), Code::FailedPrecondition);
    kubelet.driver.unpublish(&volume.id, "pod-2").unwrap();
    volume.unstage().unwrap();
    kubelet.attach.assert_clean();
}

/// A node that has started anew: its mounts are gone, and the kubelet stages nothing again.
#[test]
fn a_volume_is_staged_again_when_its_mount_is_gone() {
    let mut kubelet = Kubelet::start("node_reboot");
    let id = {
        let volume = kubelet.volume(Kind::Mounted("xfs"));
        volume.stage().unwrap();
        volume.publish("a", false).unwrap();
        write(&volume.target("a"), "first", 1);
        run("umount", &[text(&volume.target("a"))]);
        run("umount", &[text(&volume.staging())]);
        volume.id.clone()
    };
    let (staging, name) = {
        let listed = fs::read_dir(kubelet.root.join("staging")).unwrap().next().unwrap().unwrap();
        (listed.path(), listed.file_name().into_string().unwrap())
    };
    kubelet.plugin.kill();
    let kubelet_ref = &mut kubelet;
    kubelet_ref.attach.kill_and_start(kubelet_ref.driver.cluster.as_ref().unwrap());
    kubelet_ref.plugin.start_again();
    let volume = Volume::again(&kubelet, id, Kind::Mounted("xfs"), name);
    // The empty directory is the node's own disk: a workload must never see it.
    let own = fs::metadata(&staging).unwrap().dev();
    volume.publish("a", false).unwrap();
    assert_ne!(fs::metadata(volume.target("a")).unwrap().dev(), own);
    assert_holds(&volume.target("a"), "first", 1);
    volume.unpublish("a").unwrap();
    // An empty staging directory under a live device is mounted again, too.
    run("umount", &[text(&staging)]);
    volume.publish("a", false).unwrap();
    assert_holds(&volume.target("a"), "first", 1);
    volume.unpublish("a").unwrap();
    volume.unstage().unwrap();
    volume.end();
    kubelet.attach.assert_clean();
}

/// The plugin and its mkfs are killed in the middle; the next try begins anew, and once it is made
/// it is never made again.
#[test]
fn a_file_system_is_made_once_whatever_is_killed() {
    let mut kubelet = Kubelet::start("node_mkfs");
    let tools = kubelet.attach.dir.join("tools");
    for kind in ["ext4", "xfs"] {
        let (program, marker) = (tools.join(format!("mkfs.{kind}")), tools.join("was-killed"));
        // Leaves rubbish, and takes the plugin with it.
        let script = format!(
            "#!/bin/bash\nfor last; do :; done\nif [ ! -e {marker} ]; then\n touch {marker}\n \
             dd if=/dev/urandom of=$last bs=1M count=8 conv=fsync status=none\n kill -9 $PPID\n \
             exit 1\nfi\nexec /usr/sbin/mkfs.{kind} \"$@\"\n",
            marker = marker.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (id, name) = {
            let volume = kubelet.volume(Kind::Mounted(kind));
            assert!(volume.stage().is_err(), "the plugin was killed");
            (volume.id, volume.name)
        };
        wait_until("the plugin is gone", || kubelet.plugin.is_gone());
        kubelet.plugin.start_again();
        {
            let volume = Volume::again(&kubelet, id.clone(), Kind::Mounted(kind), name.clone());
            volume.stage().unwrap();
            volume.publish("a", false).unwrap();
            write(&volume.target("a"), "first", 1);
            volume.unpublish("a").unwrap();
            volume.unstage().unwrap();
            // The wrong one is refused, and nothing is made in its place.
            let other = if kind == "xfs" { "ext4" } else { "xfs" };
            let other = Volume::again(&kubelet, id.clone(), Kind::Mounted(other), name.clone());
            assert_refused(other.stage(), Code::FailedPrecondition);
            other.unstage().unwrap();
        }
        // The sign of the file system is destroyed: that is no reason to make another one.
        {
            let device = Volume::again(&kubelet, id.clone(), Kind::Block, format!("{name}-raw"));
            device.stage().unwrap();
            device.publish("raw", false).unwrap();
            let target = device.target("raw");
            let mut file = fs::File::options().write(true).open(&target).unwrap();
            file.write_all(&vec![0; 128 << 10]).unwrap();
            file.sync_all().unwrap();
            drop(file);
            device.unpublish("raw").unwrap();
            device.unstage().unwrap();
            let volume = Volume::again(&kubelet, id, Kind::Mounted(kind), name);
            let said = assert_refused(volume.stage(), Code::FailedPrecondition);
            assert!(said.contains("not made anew"), "{said}");
            volume.unstage().unwrap();
            volume.end();
        }
        fs::remove_file(&marker).unwrap();
    }
    kubelet.attach.assert_clean();
}

/// A file system whose making failed is no licence to make one later: somebody has had the device
/// since.
#[test]
fn data_on_a_device_survive_a_file_system_that_was_only_begun() {
    let kubelet = Kubelet::start("node_begun");
    let program = kubelet.attach.dir.join("tools/mkfs.ext4");
    fs::write(&program, "#!/bin/sh\necho it fails >&2\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let volume = kubelet.volume(Kind::Mounted("ext4"));
    let said = assert_refused(volume.stage(), Code::Internal);
    assert!(said.contains("it fails"), "{said}");
    volume.unstage().unwrap();
    fs::remove_file(&program).unwrap();
    let (id, name) = (volume.id.clone(), volume.name.clone());
    let device = Volume::again(&kubelet, id.clone(), Kind::Block, format!("{name}-raw"));
    device.publish("raw", false).unwrap();
    let mut file = fs::File::options().write(true).open(device.target("raw")).unwrap();
    file.write_all(&noise(1, 1 << 20)).unwrap();
    file.sync_all().unwrap();
    drop(file);
    device.unpublish("raw").unwrap();
    device.unstage().unwrap();
    assert_refused(volume.stage(), Code::FailedPrecondition);
    volume.unstage().unwrap();
    device.publish("raw", false).unwrap();
    let mut found = vec![0; 1 << 20];
    fs::File::open(device.target("raw")).unwrap().read_exact(&mut found).unwrap();
    assert!(found == noise(1, 1 << 20), "the data are there");
    device.unpublish("raw").unwrap();
    device.unstage().unwrap();
    volume.end();
    kubelet.attach.assert_clean();
}

/// Somebody is killed at every step: the step is done at one of the next tries, and the data are
/// there.
#[test]
fn every_step_is_done_although_everybody_is_killed() {
    let mut kubelet = Kubelet::start("node_kills");
    let (id, name) = {
        let volume = kubelet.volume(Kind::Mounted("ext4"));
        volume.publish("a", false).unwrap();
        write(&volume.target("a"), "first", 1);
        volume.unpublish("a").unwrap();
        volume.unstage().unwrap();
        (volume.id, volume.name)
    };
    let all = ["stage", "publish", "unpublish", "unstage"];
    // Pods have a part in what mounts and in what flushes.
    let of_pods = ["stage", "unstage"];
    for (victim, steps) in [
        ("plugin", &all[..]),
        ("attach", &all[..]),
        ("pod", &of_pods[..]),
        ("leader", &of_pods[..]),
    ] {
        for step in steps {
            let pause_ms = ((step.len() * 7 + victim.len() * 13) % 40) as u64;
            kill_in(&mut kubelet, victim, step, pause_ms, &id, &name);
        }
        let volume = Volume::again(&kubelet, id.clone(), Kind::Mounted("ext4"), name.clone());
        until_done("publish", || volume.publish("a", false));
        assert_holds(&volume.target("a"), "first", 1);
        until_done("unpublish", || volume.unpublish("a"));
        until_done("unstage", || volume.unstage());
    }
    Volume::again(&kubelet, id, Kind::Mounted("ext4"), name).end();
    kubelet.attach.assert_clean();
}

/// Begins a step, kills while it goes on, and repeats it until it is done.
fn kill_in(kubelet: &mut Kubelet, victim: &str, step: &str, pause_ms: u64, id: &str, name: &str) {
    std::thread::scope(|scope| {
        let volume = Volume::again(kubelet, id.to_owned(), Kind::Mounted("ext4"), name.to_owned());
        let begun = volume.begin(step);
        let step = scope.spawn(move || begun.run());
        // Where in the step it strikes differs from one to the next.
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        match victim {
            "pod" => kubelet.cluster().kill(1),
            "leader" => {
                let leader = kubelet.cluster().ask(&["status"]).and_then(|status| {
                    let leader = status["catalog"]["leader"].as_u64();
                    leader.and_then(|pod| usize::try_from(pod).ok())
                });
                kubelet.cluster().kill(leader.unwrap_or(PODS));
            }
            "plugin" => kubelet.plugin.kill_shared(),
            _ => kubelet.attach.kill_shared(),
        }
        // How it ended is of no interest: it is repeated.
        let _ended = step.join().expect("the step ends");
    });
    match victim {
        "plugin" => kubelet.plugin.start_again(),
        "attach" => {
            let Kubelet { attach, driver, .. } = kubelet;
            attach.kill_and_start(driver.cluster.as_ref().unwrap());
        }
        _ => kubelet.cluster().wait_healthy(),
    }
    let volume = Volume::again(kubelet, id.to_owned(), Kind::Mounted("ext4"), name.to_owned());
    if victim == "attach" {
        // The slow path ends with its process: what hangs on it is taken away first.
        until_done("unpublish", || volume.unpublish("a"));
        if step != "unstage" {
            until_done("publish", || volume.publish("a", false));
        }
    }
    until_done(step, || volume.begin(step).run());
}

/// A node that loses a volume which is mounted: nothing is staged by it, and all can be taken away
/// without the cluster.
#[test]
fn a_fenced_volume_is_no_success_and_can_be_taken_away() {
    let kubelet = Kubelet::start("node_fenced");
    let volume = kubelet.volume(Kind::Mounted("ext4"));
    volume.publish("a", false).unwrap();
    write(&volume.target("a"), "first", 1);
    kubelet.driver.unpublish(&volume.id, NODE).unwrap();
    volume.publish_to_node("pod-2").unwrap();
    assert_refused(volume.stage(), Code::FailedPrecondition);
    assert_refused(volume.publish("a", false), Code::FailedPrecondition);
    wait_until("the volume's condition tells", || {
        // Requests tell that the volume is another node's by now.
        let written = fs::write(volume.target("a").join("late"), noise(2, 1 << 20));
        let _failed =
            written.and_then(|()| fs::File::open(volume.target("a").join("late"))?.sync_all());
        let stats = volume.stats(&volume.target("a"));
        let condition = stats.ok().and_then(|it| it.volume_condition);
        condition.is_some_and(|it| it.abnormal && it.message.contains("taken from this node"))
    });
    for pod in 1..=PODS {
        kubelet.cluster().freeze(pod);
    }
    volume.unpublish("a").unwrap();
    volume.unstage().unwrap();
    for pod in 1..=PODS {
        kubelet.cluster().thaw(pod);
    }
    kubelet.attach.assert_clean();
    // And back, with what was written before.
    kubelet.driver.unpublish(&volume.id, "pod-2").unwrap();
    volume.publish_to_node(NODE).unwrap();
    volume.publish("a", false).unwrap();
    assert_holds(&volume.target("a"), "first", 1);
    volume.unpublish("a").unwrap();
    volume.unstage().unwrap();
    volume.end();
}
