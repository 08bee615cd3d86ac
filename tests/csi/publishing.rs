//! ControllerPublishVolume and ControllerUnpublishVolume.

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{ControllerPublishVolumeRequest, CreateVolumeRequest, VolumeCapability};
use tonic::Code;

use super::driver::{Driver, assert_refused, block, mounted, to_publish, unique, wanted};

pub fn what_is_missing_is_refused(driver: &Driver) {
    let id = driver.volume("fields");
    let whole = to_publish(&id, &driver.nodes[0]);
    let empty = String::new;
    for part in [
        ControllerPublishVolumeRequest { volume_id: empty(), ..whole.clone() },
        ControllerPublishVolumeRequest { node_id: empty(), ..whole.clone() },
        ControllerPublishVolumeRequest { volume_capability: None, ..whole.clone() },
        ControllerPublishVolumeRequest {
            volume_capability: Some(VolumeCapability {
                access_type: None,
                ..mounted(Mode::SingleNodeWriter)
            }),
            ..whole.clone()
        },
        ControllerPublishVolumeRequest {
            volume_capability: Some(mounted(Mode::Unknown)),
            ..whole.clone()
        },
    ] {
        assert_refused(driver.publish(part), Code::InvalidArgument);
    }
    assert_refused(driver.unpublish("", &driver.nodes[0]), Code::InvalidArgument);
    driver.delete(&id).unwrap();
}

pub fn what_is_not_there_is_not_found(driver: &Driver) {
    let id = driver.volume("there");
    assert_refused(driver.publish(to_publish("nothing", &driver.nodes[0])), Code::NotFound);
    assert_refused(driver.publish(to_publish(&id, "no-such-node")), Code::NotFound);
    driver.delete(&id).unwrap();
    assert_refused(driver.publish(to_publish(&id, &driver.nodes[0])), Code::NotFound);
}

pub fn a_volume_is_published_to_one_node_at_a_time(driver: &Driver) {
    let (id, [first, second]) = (driver.volume("single"), &driver.nodes);
    let modes = [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly];
    let more = [Mode::SingleNodeSingleWriter, Mode::SingleNodeMultiWriter];
    let more = more.into_iter().filter(|_| driver.has(Rpc::SingleNodeMultiWriter));
    for mode in modes.into_iter().chain(more) {
        for capability in [mounted(mode), block(mode)] {
            let to = |node: &str| ControllerPublishVolumeRequest {
                volume_capability: Some(capability.clone()),
                ..to_publish(&id, node)
            };
            driver.publish(to(first)).unwrap();
            driver.publish(to(first)).unwrap();
            let said = assert_refused(driver.publish(to(second)), Code::FailedPrecondition);
            assert!(said.contains(first), "the holder is named: {said}");
            driver.unpublish(&id, first).unwrap();
            driver.publish(to(second)).unwrap();
            driver.unpublish(&id, second).unwrap();
        }
    }
    driver.delete(&id).unwrap();
}

pub fn another_mode_on_the_same_node_is_refused(driver: &Driver) {
    if !driver.has(Rpc::PublishReadonly) {
        return;
    }
    let (id, node) = (driver.volume("mode"), &driver.nodes[0]);
    let readonly = |readonly| ControllerPublishVolumeRequest { readonly, ..to_publish(&id, node) };
    driver.publish(readonly(true)).unwrap();
    driver.publish(readonly(true)).unwrap();
    assert_refused(driver.publish(readonly(false)), Code::AlreadyExists);
    // One node at a time, also if it only reads.
    let elsewhere =
        ControllerPublishVolumeRequest { readonly: true, ..to_publish(&id, &driver.nodes[1]) };
    assert_refused(driver.publish(elsewhere), Code::FailedPrecondition);
    driver.unpublish(&id, node).unwrap();
    driver.publish(readonly(false)).unwrap();
    assert_refused(driver.publish(readonly(true)), Code::AlreadyExists);
    driver.unpublish(&id, node).unwrap();
    driver.delete(&id).unwrap();
}

pub fn taking_away_what_nobody_has_is_no_error(driver: &Driver) {
    let (id, [first, second]) = (driver.volume("away"), &driver.nodes);
    driver.unpublish(&id, first).unwrap();
    driver.publish(to_publish(&id, first)).unwrap();
    driver.unpublish(&id, second).unwrap();
    driver.unpublish(&id, "no-such-node").unwrap();
    driver.unpublish("nothing", first).unwrap();
    // The node has it still.
    assert_refused(driver.publish(to_publish(&id, second)), Code::FailedPrecondition);
    driver.unpublish(&id, first).unwrap();
    driver.unpublish(&id, first).unwrap();
    driver.delete(&id).unwrap();
    driver.unpublish(&id, first).unwrap();
}

pub fn without_a_node_all_lose_the_volume(driver: &Driver) {
    let (id, [first, second]) = (driver.volume("all"), &driver.nodes);
    for node in [first, second] {
        let readonly = Some(mounted(Mode::MultiNodeReaderOnly));
        let request =
            ControllerPublishVolumeRequest { volume_capability: readonly, ..to_publish(&id, node) };
        driver.publish(request).unwrap();
    }
    driver.unpublish(&id, "").unwrap();
    driver.unpublish(&id, "").unwrap();
    driver.delete(&id).unwrap();
}

pub fn a_published_volume_is_not_deleted(driver: &Driver) {
    let (id, node) = (driver.volume("held"), &driver.nodes[0]);
    driver.publish(to_publish(&id, node)).unwrap();
    let said = assert_refused(driver.delete(&id), Code::FailedPrecondition);
    assert!(said.contains(node), "the holder is named: {said}");
    driver.unpublish(&id, node).unwrap();
    driver.delete(&id).unwrap();
}

pub fn many_nodes_read_and_many_write_blocks(driver: &Driver) {
    let cases = [mounted(Mode::MultiNodeReaderOnly), block(Mode::MultiNodeMultiWriter)];
    for capability in cases {
        let volume_capabilities = vec![capability.clone()];
        let request = CreateVolumeRequest { volume_capabilities, ..wanted(&unique("many")) };
        let id = driver.create(request).unwrap().volume_id;
        let to = |node: &str| ControllerPublishVolumeRequest {
            volume_capability: Some(capability.clone()),
            ..to_publish(&id, node)
        };
        driver.nodes.iter().for_each(|node| driver.publish(to(node)).unwrap());
        // One writer beside them would be a surprise for all.
        let single = driver.publish(to_publish(&id, &driver.nodes[0]));
        assert_refused(single, Code::AlreadyExists);
        driver.unpublish(&id, &driver.nodes[0]).unwrap();
        let single = driver.publish(to_publish(&id, &driver.nodes[0]));
        assert_refused(single, Code::FailedPrecondition);
        driver.unpublish(&id, &driver.nodes[1]).unwrap();
        driver.delete(&id).unwrap();
    }
}
