//! GetCapacity.

use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::{GetCapacityRequest, GetCapacityResponse};
use tonic::Status;

use super::driver::{Driver, block, map, mounted};

pub fn get(driver: &Driver, request: GetCapacityRequest) -> Result<GetCapacityResponse, Status> {
    driver.controller(async |mut it| it.get_capacity(request).await)
}

/// Nothing given is everything; keys of the sidecars and modes that are not known yet change
/// nothing.
pub fn there_is_some(driver: &Driver) {
    let all = get(driver, GetCapacityRequest::default()).unwrap();
    assert!(all.available_capacity > 0);
    assert!(all.maximum_volume_size.is_none_or(|most| most > 0));
    assert!(all.minimum_volume_size.is_none_or(|least| least > 0));
    for capability in
        [mounted(Mode::SingleNodeWriter), block(Mode::SingleNodeWriter), mounted(Mode::Unknown)]
    {
        let request = GetCapacityRequest {
            volume_capabilities: vec![capability],
            parameters: map(&[("csi.storage.k8s.io/fstype", "ext4")]),
            ..GetCapacityRequest::default()
        };
        assert!(get(driver, request).unwrap().available_capacity > 0);
    }
}
