//! NodePublishVolume and NodeUnpublishVolume.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;

use holdfast::csi::proto::node_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
};
use tonic::{Code, Status};

use super::driver::{Node, is_mounted};
use crate::driver::{assert_refused, block, mounted};
use crate::support::tools::noise;

fn unpublish(node: &Node, volume_id: &str, at: &str) -> Result<(), Status> {
    let (volume_id, target_path) = (volume_id.to_owned(), at.to_owned());
    let request = NodeUnpublishVolumeRequest { volume_id, target_path };
    node.ask(async |mut it| it.node_unpublish_volume(request).await).map(drop)
}

pub fn what_is_missing_is_refused(node: &Node) {
    let volume = node.volume("publish-fields", mounted(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    let (whole, empty) = (volume.to_publish("a"), String::new);
    let with = |volume_capability| NodePublishVolumeRequest { volume_capability, ..whole.clone() };
    let no_type = VolumeCapability { access_type: None, ..volume.capability.clone() };
    for part in [
        NodePublishVolumeRequest { volume_id: empty(), ..whole.clone() },
        NodePublishVolumeRequest { target_path: empty(), ..whole.clone() },
        with(None),
        with(Some(no_type)),
        with(Some(mounted(Mode::Unknown))),
    ] {
        assert_refused(volume.publish_as(part), Code::InvalidArgument);
    }
    if node.has(Rpc::StageUnstageVolume) {
        let part = NodePublishVolumeRequest { staging_target_path: empty(), ..whole.clone() };
        assert_refused(volume.publish_as(part), Code::FailedPrecondition);
    }
    let at = whole.target_path;
    assert_refused(unpublish(node, "", &at), Code::InvalidArgument);
    assert_refused(unpublish(node, &volume.id, ""), Code::InvalidArgument);
    assert!(!volume.target("a").exists());
    volume.end();
}

pub fn what_is_not_there_is_not_found(node: &Node) {
    let volume = node.volume("publish-nothing", mounted(Mode::SingleNodeWriter));
    for volume_id in node.ids_of_nothing() {
        let request = NodePublishVolumeRequest { volume_id, ..volume.to_publish("a") };
        let (volume_id, at) = (request.volume_id.clone(), request.target_path.clone());
        assert_refused(volume.publish_as(request), Code::NotFound);
        if let Err(status) = unpublish(node, &volume_id, &at) {
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
    }
    assert!(!volume.target("a").exists());
    volume.end();
}

pub fn a_file_system_is_at_its_target(node: &Node) {
    let volume = node.volume("publish-files", mounted(Mode::SingleNodeWriter));
    let target = volume.target("a");
    volume.stage().unwrap();
    // Nothing is there to be taken away.
    volume.unpublish("a").unwrap();
    for _ in 0..2 {
        (0..2).for_each(|_| volume.publish("a").unwrap());
        assert!(target.is_dir() && is_mounted(&target), "the volume is at its target");
        fs::write(target.join("file"), noise(1, 1 << 20)).unwrap();
        (0..2).for_each(|_| volume.unpublish("a").unwrap());
        assert!(!target.exists(), "the plugin made the target, and takes it away");
    }
    let as_reader = NodePublishVolumeRequest { readonly: true, ..volume.to_publish("a") };
    (0..2).for_each(|_| volume.publish_as(as_reader.clone()).unwrap());
    assert!(fs::read(target.join("file")).unwrap() == noise(1, 1 << 20));
    assert!(fs::write(target.join("other"), "no").is_err(), "it is read-only");
    assert_refused(volume.publish("a"), Code::AlreadyExists);
    volume.unpublish("a").unwrap();
    volume.end();
}

pub fn a_device_is_at_its_target(node: &Node) {
    let volume = node.volume("publish-device", block(Mode::SingleNodeWriter));
    let target = volume.target("a");
    volume.stage().unwrap();
    volume.unpublish("a").unwrap();
    for round in 0..2 {
        (0..2).for_each(|_| volume.publish("a").unwrap());
        assert!(fs::metadata(&target).unwrap().file_type().is_block_device());
        let mut device = fs::File::options().read(true).write(true).open(&target).unwrap();
        if round == 0 {
            device.write_all(&noise(2, 1 << 20)).unwrap();
            device.sync_all().unwrap();
        } else {
            let mut found = vec![0; 1 << 20];
            device.read_exact(&mut found).unwrap();
            assert!(found == noise(2, 1 << 20));
        }
        drop(device);
        (0..2).for_each(|_| volume.unpublish("a").unwrap());
        assert!(!target.exists(), "the plugin made the target, and takes it away");
        volume.unstage().unwrap();
        volume.stage().unwrap();
    }
    volume.end();
}

/// The modes that say how many workloads of a node write.
pub fn one_writer_is_alone_and_many_are_not(node: &Node) {
    if !node.has(Rpc::SingleNodeMultiWriter) {
        return;
    }
    for of in [mounted, block] {
        let volume = node.volume("publish-one", of(Mode::SingleNodeSingleWriter));
        volume.stage().unwrap();
        (0..2).for_each(|_| volume.publish("a").unwrap());
        assert_refused(volume.publish("b"), Code::FailedPrecondition);
        assert!(!volume.target("b").exists());
        volume.unpublish("a").unwrap();
        volume.publish("b").unwrap();
        volume.publish("b").unwrap();
        volume.unpublish("b").unwrap();
        volume.end();
    }
    let volume = node.volume("publish-many", mounted(Mode::SingleNodeMultiWriter));
    volume.stage().unwrap();
    volume.publish("a").unwrap();
    volume.publish("b").unwrap();
    fs::write(volume.target("a").join("file"), "both see it").unwrap();
    assert_eq!(fs::read_to_string(volume.target("b").join("file")).unwrap(), "both see it");
    ["a", "b"].iter().for_each(|workload| volume.unpublish(workload).unwrap());
    volume.end();
}
