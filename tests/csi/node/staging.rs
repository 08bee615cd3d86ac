//! NodeStageVolume and NodeUnstageVolume.

use std::fs;

use holdfast::csi::proto::node_client::NodeClient;
use holdfast::csi::proto::node_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{NodeStageVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::driver::{Held, Node};
use crate::driver::{assert_refused, block, mounted};
use crate::support::tools::noise;

fn unstage(node: &Node, volume_id: &str, at: &str) -> Result<(), Status> {
    let (volume_id, staging_target_path) = (volume_id.to_owned(), at.to_owned());
    let request = NodeUnstageVolumeRequest { volume_id, staging_target_path };
    node.ask(async |mut it| it.node_unstage_volume(request).await).map(drop)
}

pub fn what_is_missing_is_refused(node: &Node) {
    if !node.has(Rpc::StageUnstageVolume) {
        return;
    }
    let volume = node.volume("stage-fields", mounted(Mode::SingleNodeWriter));
    let (whole, empty) = (volume.to_stage(), String::new);
    let with = |volume_capability| NodeStageVolumeRequest { volume_capability, ..whole.clone() };
    let no_type = VolumeCapability { access_type: None, ..volume.capability.clone() };
    for part in [
        NodeStageVolumeRequest { volume_id: empty(), ..whole.clone() },
        NodeStageVolumeRequest { staging_target_path: empty(), ..whole.clone() },
        with(None),
        with(Some(no_type)),
        with(Some(mounted(Mode::Unknown))),
    ] {
        assert_refused(volume.stage_as(part), Code::InvalidArgument);
    }
    let at = whole.staging_target_path;
    assert_refused(unstage(node, "", &at), Code::InvalidArgument);
    assert_refused(unstage(node, &volume.id, ""), Code::InvalidArgument);
    volume.end();
}

pub fn what_is_not_there_is_not_found(node: &Node) {
    if !node.has(Rpc::StageUnstageVolume) {
        return;
    }
    let volume = node.volume("stage-nothing", mounted(Mode::SingleNodeWriter));
    for volume_id in node.ids_of_nothing() {
        let request = NodeStageVolumeRequest { volume_id: volume_id.clone(), ..volume.to_stage() };
        let at = request.staging_target_path.clone();
        assert_refused(volume.stage_as(request), Code::NotFound);
        // Nothing is staged there, and a volume is not there: both are right.
        if let Err(status) = unstage(node, &volume_id, &at) {
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
    }
    volume.end();
}

/// Each step again and again, as after answers that were lost.
pub fn steps_may_be_repeated(node: &Node) {
    if !node.has(Rpc::StageUnstageVolume) {
        return;
    }
    for capability in [mounted(Mode::SingleNodeWriter), block(Mode::SingleNodeWriter)] {
        let volume = node.volume("stage-again", capability);
        volume.unstage().unwrap();
        for _ in 0..2 {
            (0..3).for_each(|_| volume.stage().unwrap());
            (0..3).for_each(|_| volume.unstage().unwrap());
        }
        volume.end();
    }
}

pub fn another_use_of_the_same_place_is_refused(node: &Node) {
    if !node.has(Rpc::StageUnstageVolume) {
        return;
    }
    let volume = node.volume("stage-other", mounted(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    let as_reader = NodeStageVolumeRequest {
        volume_capability: Some(mounted(Mode::SingleNodeReaderOnly)),
        ..volume.to_stage()
    };
    assert_refused(volume.stage_as(as_reader), Code::AlreadyExists);
    // The first one is as it was.
    volume.stage().unwrap();
    volume.end();
}

pub fn data_stay_when_a_volume_is_staged_again(node: &Node) {
    let volume = node.volume("stage-data", mounted(Mode::SingleNodeWriter));
    let write = |volume: &Held<'_>| {
        let file = volume.target("a").join("file");
        fs::write(&file, noise(7, 1 << 20)).unwrap();
        fs::File::open(&file).unwrap().sync_all().unwrap();
    };
    for round in 0..2 {
        volume.stage().unwrap();
        volume.publish("a").unwrap();
        match round {
            0 => write(&volume),
            _ => assert!(fs::read(volume.target("a").join("file")).unwrap() == noise(7, 1 << 20)),
        }
        volume.unpublish("a").unwrap();
        volume.unstage().unwrap();
    }
    volume.end();
}

/// Calls at the same time are carried out, or refused for now.
pub fn the_same_at_once_is_done_or_aborted(node: &Node) {
    let volume = node.volume("stage-at-once", mounted(Mode::SingleNodeWriter));
    let ended = node.driver().wait(async {
        let mut begun = JoinSet::new();
        for _ in 0..4 {
            let (mut client, request) = (NodeClient::new(node.channel()), volume.to_stage());
            begun.spawn(async move { client.node_stage_volume(request).await });
        }
        begun.join_all().await
    });
    for status in ended.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::Aborted, "{status}");
    }
    node.driver().until(|| volume.stage()).unwrap();
    volume.end();
}
