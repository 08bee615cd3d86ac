//! ControllerExpandVolume and ControllerModifyVolume.

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
    ControllerModifyVolumeRequest, VolumeCapability,
};
use tonic::{Code, Status};

use super::driver::{Driver, MIB, assert_refused, block, mounted, range, to_publish};

pub fn expand(
    driver: &Driver,
    volume_id: &str,
    capacity_range: Option<CapacityRange>,
    volume_capability: Option<VolumeCapability>,
) -> Result<ControllerExpandVolumeResponse, Status> {
    let request = ControllerExpandVolumeRequest {
        volume_id: volume_id.to_owned(),
        capacity_range,
        volume_capability,
        ..ControllerExpandVolumeRequest::default()
    };
    driver.controller(async |mut it| it.controller_expand_volume(request).await)
}

pub fn modify(driver: &Driver, volume_id: &str, pairs: &[(&str, &str)]) -> Result<(), Status> {
    let request = ControllerModifyVolumeRequest {
        volume_id: volume_id.to_owned(),
        mutable_parameters: super::driver::map(pairs),
        ..ControllerModifyVolumeRequest::default()
    };
    driver.controller(async |mut it| it.controller_modify_volume(request).await).map(|_| ())
}

pub fn what_is_missing_or_not_there_is_refused(driver: &Driver) {
    let id = driver.volume("grow-fields");
    if driver.has(Rpc::ExpandVolume) {
        let more = || range(2 * MIB, 0);
        assert_refused(expand(driver, "", more(), None), Code::InvalidArgument);
        assert_refused(expand(driver, &id, None, None), Code::InvalidArgument);
        assert_refused(expand(driver, &id, range(-1, 0), None), Code::InvalidArgument);
        let nothing = Some(VolumeCapability::default());
        assert_refused(expand(driver, &id, more(), nothing), Code::InvalidArgument);
        assert_refused(expand(driver, "nothing", more(), None), Code::NotFound);
    }
    if driver.has(Rpc::ModifyVolume) {
        assert_refused(modify(driver, "", &[]), Code::InvalidArgument);
        assert_refused(modify(driver, "nothing", &[]), Code::NotFound);
    }
    driver.delete(&id).unwrap();
}

pub fn a_volume_grows_and_never_shrinks(driver: &Driver) {
    if !driver.has(Rpc::ExpandVolume) {
        return;
    }
    let id = driver.volume("grow");
    let mount = Some(mounted(Mode::SingleNodeWriter));
    let grown = expand(driver, &id, range(2 * MIB, 0), mount.clone()).unwrap();
    assert!(grown.capacity_bytes >= 2 * MIB);
    // It is as large already.
    let same = expand(driver, &id, range(2 * MIB, 0), mount.clone()).unwrap();
    assert_eq!(same, grown);
    let less = expand(driver, &id, range(MIB, 0), mount.clone()).unwrap();
    assert_eq!(less.capacity_bytes, grown.capacity_bytes);
    assert_refused(expand(driver, &id, range(0, MIB), mount.clone()), Code::OutOfRange);
    assert_refused(expand(driver, &id, range(i64::MAX, 0), mount), Code::OutOfRange);
    let more = expand(driver, &id, range(3 * MIB + 1, 4 * MIB), None).unwrap();
    assert!((3 * MIB + 1..=4 * MIB).contains(&more.capacity_bytes));
    driver.delete(&id).unwrap();
}

pub fn a_published_volume_grows(driver: &Driver) {
    if !driver.has(Rpc::ExpandVolume) {
        return;
    }
    let (id, node) = (driver.volume("grow-online"), &driver.nodes[0]);
    driver.publish(to_publish(&id, node)).unwrap();
    let as_device = Some(block(Mode::SingleNodeWriter));
    let grown = expand(driver, &id, range(8 * MIB, 0), as_device).unwrap();
    assert!(grown.capacity_bytes >= 8 * MIB);
    driver.unpublish(&id, node).unwrap();
    driver.delete(&id).unwrap();
}

pub fn attributes_can_be_changed_again_and_again(driver: &Driver) {
    if !driver.has(Rpc::ModifyVolume) {
        return;
    }
    let id = driver.volume("modify");
    modify(driver, &id, &[]).unwrap();
    modify(driver, &id, &[]).unwrap();
    let said = modify(driver, &id, &[("no-such-attribute", "x")]);
    assert_refused(said, Code::InvalidArgument);
    driver.delete(&id).unwrap();
}
