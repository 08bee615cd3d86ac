//! NodeGetVolumeStats and NodeExpandVolume.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use holdfast::csi::proto::controller_service_capability::rpc::Type as ControllerRpc;
use holdfast::csi::proto::node_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::volume_usage::Unit;
use holdfast::csi::proto::{NodeExpandVolumeRequest, NodeGetVolumeStatsResponse, VolumeUsage};
use tonic::{Code, Status};

use super::driver::{Node, VOLUME_BYTES, stats};
use crate::driver::{assert_refused, block, mounted, range};
use crate::support::tools::text;

/// The usage in a unit, which is told once at most.
fn usage(told: &NodeGetVolumeStatsResponse, unit: Unit) -> Option<&VolumeUsage> {
    let mut of_unit = told.usage.iter().filter(|it| it.unit() == unit);
    let found = of_unit.next();
    assert!(of_unit.next().is_none(), "{told:?}");
    found
}

fn check(told: &NodeGetVolumeStatsResponse) {
    for it in &told.usage {
        assert_ne!(it.unit(), Unit::Unknown, "{told:?}");
        assert!(it.total > 0 && it.used >= 0 && it.available >= 0, "{told:?}");
        assert!(it.used <= it.total && it.available <= it.total, "{told:?}");
    }
}

pub fn usage_is_told_where_the_volume_is(node: &Node) {
    if !node.has(Rpc::GetVolumeStats) {
        return;
    }
    let volume = node.volume("stats", mounted(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    volume.publish("a").unwrap();
    let target = volume.target("a");
    let before = volume.stats(&target).unwrap();
    check(&before);
    let bytes = usage(&before, Unit::Bytes).expect("a file system tells its bytes");
    assert!(bytes.total <= VOLUME_BYTES, "{before:?}");
    fs::write(target.join("file"), vec![1; 8 << 20]).unwrap();
    fs::File::open(target.join("file")).unwrap().sync_all().unwrap();
    let after = volume.stats(&target).unwrap();
    check(&after);
    assert!(usage(&after, Unit::Bytes).unwrap().used >= bytes.used + (4 << 20), "{after:?}");
    if let (Some(before), Some(after)) = (usage(&before, Unit::Inodes), usage(&after, Unit::Inodes))
    {
        assert_eq!(after.used, before.used + 1);
    }
    assert_eq!(after.volume_condition.is_some(), node.has(Rpc::VolumeCondition));
    assert!(after.volume_condition.is_none_or(|it| !it.abnormal && !it.message.is_empty()));
    volume.unpublish("a").unwrap();
    assert_refused(volume.stats(&target), Code::NotFound);
    volume.end();
}

pub fn usage_of_a_device_is_its_size(node: &Node) {
    if !node.has(Rpc::GetVolumeStats) {
        return;
    }
    let volume = node.volume("stats-device", block(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    volume.publish("a").unwrap();
    let told = volume.stats(&volume.target("a")).unwrap();
    check(&told);
    if let Some(bytes) = usage(&told, Unit::Bytes) {
        assert_eq!(bytes.total, size_of_device(&volume.target("a")));
    }
    volume.unpublish("a").unwrap();
    volume.end();
}

pub fn stats_of_nothing_are_refused(node: &Node) {
    if !node.has(Rpc::GetVolumeStats) {
        return;
    }
    let volume = node.volume("stats-fields", mounted(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    volume.publish("a").unwrap();
    let target = volume.target("a");
    assert_refused(stats(node, "", text(&target)), Code::InvalidArgument);
    assert_refused(stats(node, &volume.id, ""), Code::InvalidArgument);
    for volume_id in node.ids_of_nothing() {
        assert_refused(stats(node, &volume_id, text(&target)), Code::NotFound);
    }
    // Paths where it is not: one that is nowhere, one beside it, and one of the node.
    let nowhere = target.with_file_name("nowhere");
    for at in [&nowhere, &volume.target("b"), Path::new("/")] {
        if at != Path::new("/") {
            assert_refused(volume.stats(at), Code::NotFound);
        } else {
            assert!(volume.stats(at).is_err(), "the root is no volume");
        }
    }
    volume.unpublish("a").unwrap();
    volume.end();
}

fn size_of_device(at: &Path) -> i64 {
    let size = fs::File::open(at).and_then(|mut it| it.seek(SeekFrom::End(0)));
    i64::try_from(size.unwrap()).unwrap()
}

fn expand(node: &Node, volume_id: &str, at: &str, bytes: i64) -> Result<i64, Status> {
    let request = NodeExpandVolumeRequest {
        volume_id: volume_id.to_owned(),
        volume_path: at.to_owned(),
        capacity_range: range(bytes, 0),
        ..NodeExpandVolumeRequest::default()
    };
    let answer = node.ask(async |mut it| it.node_expand_volume(request).await);
    answer.map(|it| it.capacity_bytes)
}

pub fn growth_of_nothing_is_refused(node: &Node) {
    if !node.has(Rpc::ExpandVolume) {
        return;
    }
    let volume = node.volume("expand-fields", block(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    volume.publish("a").unwrap();
    let target = volume.target("a");
    assert_refused(expand(node, "", text(&target), VOLUME_BYTES), Code::InvalidArgument);
    assert_refused(expand(node, &volume.id, "", VOLUME_BYTES), Code::InvalidArgument);
    for volume_id in node.ids_of_nothing() {
        let answer = expand(node, &volume_id, text(&target), VOLUME_BYTES);
        assert_refused(answer, Code::NotFound);
    }
    let elsewhere = volume.target("b");
    assert_refused(expand(node, &volume.id, text(&elsewhere), VOLUME_BYTES), Code::NotFound);
    // It is as large already.
    for bytes in [VOLUME_BYTES, VOLUME_BYTES / 2] {
        expand(node, &volume.id, text(&target), bytes).unwrap();
        assert_eq!(size_of_device(&target), VOLUME_BYTES);
    }
    volume.unpublish("a").unwrap();
    volume.end();
}

pub fn a_device_grows_while_it_is_used(node: &Node) {
    let controller = node.driver().has(ControllerRpc::ExpandVolume);
    if !node.has(Rpc::ExpandVolume) || !controller {
        return;
    }
    let volume = node.volume("expand", block(Mode::SingleNodeWriter));
    volume.stage().unwrap();
    volume.publish("a").unwrap();
    let (target, larger) = (volume.target("a"), VOLUME_BYTES * 2);
    let capability = Some(volume.capability.clone());
    let grown = crate::growing::expand(node.driver(), &volume.id, range(larger, 0), capability);
    assert!(grown.unwrap().capacity_bytes >= larger);
    for _ in 0..2 {
        let bytes = expand(node, &volume.id, text(&target), larger).unwrap();
        assert!(bytes == 0 || bytes >= larger, "{bytes}");
    }
    assert!(size_of_device(&target) >= larger);
    volume.unpublish("a").unwrap();
    volume.end();
}
