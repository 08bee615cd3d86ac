//! ValidateVolumeCapabilities, ControllerGetVolume, and the health of volumes.

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{
    ControllerGetVolumeHealthRequest, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, VolumeCapability,
};
use tonic::{Code, Status};

use super::driver::{Driver, MIB, assert_refused, block, map, mounted, to_publish};

fn validate(
    driver: &Driver,
    volume_id: &str,
    volume_capabilities: Vec<VolumeCapability>,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: volume_id.to_owned(),
        volume_capabilities,
        // Sidecars add some of their own.
        volume_context: map(&[("storage.kubernetes.io/csiProvisionerIdentity", "1-csi")]),
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    driver.controller(async |mut it| it.validate_volume_capabilities(request).await)
}

pub fn get(driver: &Driver, volume_id: &str) -> Result<ControllerGetVolumeResponse, Status> {
    let request = ControllerGetVolumeRequest { volume_id: volume_id.to_owned() };
    driver.controller(async |mut it| it.controller_get_volume(request).await)
}

pub fn what_is_missing_or_not_there_is_refused(driver: &Driver) {
    let one = || vec![mounted(Mode::SingleNodeWriter)];
    let id = driver.volume("validate");
    assert_refused(validate(driver, "", one()), Code::InvalidArgument);
    assert_refused(validate(driver, &id, Vec::new()), Code::InvalidArgument);
    assert_refused(validate(driver, "nothing", one()), Code::NotFound);
    if driver.has(Rpc::GetVolume) {
        assert_refused(get(driver, ""), Code::InvalidArgument);
        assert_refused(get(driver, "nothing"), Code::NotFound);
    }
    if driver.has(Rpc::GetVolumeHealth) {
        for (volume_id, code) in [("", Code::InvalidArgument), ("nothing", Code::NotFound)] {
            let volume_id = volume_id.to_owned();
            let request = ControllerGetVolumeHealthRequest { volume_id, ..Default::default() };
            let answer =
                driver.controller(async |mut it| it.controller_get_volume_health(request).await);
            assert_refused(answer, code);
        }
    }
    driver.delete(&id).unwrap();
    assert_refused(validate(driver, &id, one()), Code::NotFound);
}

pub fn possible_capabilities_are_confirmed(driver: &Driver) {
    let id = driver.volume("possible");
    let all = vec![
        mounted(Mode::SingleNodeWriter),
        block(Mode::SingleNodeWriter),
        mounted(Mode::SingleNodeReaderOnly),
    ];
    let confirmed = validate(driver, &id, all.clone()).unwrap().confirmed.expect("confirmed");
    assert_eq!(confirmed.volume_capabilities, all);
    driver.delete(&id).unwrap();
}

pub fn impossible_capabilities_are_not_confirmed(driver: &Driver) {
    let id = driver.volume("impossible");
    let nothing = VolumeCapability::default();
    let answer = validate(driver, &id, vec![mounted(Mode::SingleNodeWriter), nothing]);
    match answer {
        Ok(answer) => {
            assert_eq!(answer.confirmed, None);
            assert!(!answer.message.is_empty(), "it says why");
        }
        Err(status) => drop(assert_refused::<()>(Err(status), Code::InvalidArgument)),
    }
    driver.delete(&id).unwrap();
}

pub fn one_volume_is_told_of(driver: &Driver) {
    if !driver.has(Rpc::GetVolume) {
        return;
    }
    let (id, node) = (driver.volume("get"), &driver.nodes[0]);
    driver.publish(to_publish(&id, node)).unwrap();
    let got = get(driver, &id).unwrap();
    let (volume, status) = (got.volume.unwrap(), got.status.expect("its status"));
    assert_eq!((&volume.volume_id, volume.capacity_bytes), (&id, MIB));
    if driver.has(Rpc::ListVolumesPublishedNodes) {
        assert_eq!(status.published_node_ids, [node.as_str()]);
    }
    let condition = status.volume_condition;
    assert_eq!(condition.is_some(), driver.has(Rpc::VolumeCondition));
    assert!(condition.is_none_or(|it| !it.message.is_empty()));
    driver.unpublish(&id, node).unwrap();
    let status = get(driver, &id).unwrap().status.unwrap();
    assert!(status.published_node_ids.is_empty());
    driver.delete(&id).unwrap();
}
