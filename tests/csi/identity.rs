//! Who the driver is, and what it can do.

use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::group_controller_client::GroupControllerClient;
use holdfast::csi::proto::plugin_capability::{Type, service};
use holdfast::csi::proto::{
    ControllerGetVolumeHealthRequest, ControllerListVolumeHealthRequest, CreateSnapshotRequest,
    DeleteSnapshotRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest, GetSnapshotRequest,
    GroupControllerGetCapabilitiesRequest, ListSnapshotsRequest, ProbeRequest,
};
use tonic::{Code, Status};

use super::driver::Driver;

pub fn the_plugin_has_a_name_and_a_version(driver: &Driver) {
    let request = GetPluginInfoRequest {};
    let info = driver.identity(async |mut it| it.get_plugin_info(request).await).unwrap();
    let name = info.name;
    assert!((1..=63).contains(&name.len()), "{name}");
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)), "{name}");
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    assert!(is_edge(name.chars().next()) && is_edge(name.chars().next_back()), "{name}");
    assert!(!info.vendor_version.is_empty());
}

pub fn the_plugin_says_what_it_can_do(driver: &Driver) {
    assert!(services(driver).contains(&service::Type::ControllerService));
}

fn services(driver: &Driver) -> Vec<service::Type> {
    let request = GetPluginCapabilitiesRequest {};
    let answer = driver.identity(async |mut it| it.get_plugin_capabilities(request).await);
    let types = answer.unwrap().capabilities.into_iter().map(|it| it.r#type.expect("its type"));
    let services = types.filter_map(|it| match it {
        Type::Service(service) => Some(service.r#type()),
        Type::VolumeExpansion(_) => None,
    });
    services.collect()
}

fn has_groups(driver: &Driver) -> bool {
    let mut client = GroupControllerClient::new(driver.channel());
    let request = GroupControllerGetCapabilitiesRequest {};
    let answer = driver.wait(client.group_controller_get_capabilities(request));
    answer.err().is_none_or(|status| status.code() != Code::Unimplemented)
}

pub fn a_probe_is_answered(driver: &Driver) {
    let answer = driver.identity(async |mut it| it.probe(ProbeRequest {}).await).unwrap();
    assert_ne!(answer.ready, Some(false));
}

/// A method that there is refuses an empty request with another code.
pub fn every_capability_has_its_methods_and_others_are_unimplemented(driver: &Driver) {
    let check = |capability: Rpc, method: &str, refused: Option<Status>| {
        let is_there = refused.is_none_or(|status| status.code() != Code::Unimplemented);
        assert_eq!(is_there, driver.has(capability), "{method}");
    };
    macro_rules! check {
        ($capability:ident, $method:ident, $request:ident) => {
            let request = $request::default();
            let answer = driver.controller(async |mut it| it.$method(request).await);
            check(Rpc::$capability, stringify!($method), answer.err());
        };
    }
    check!(CreateDeleteSnapshot, create_snapshot, CreateSnapshotRequest);
    check!(CreateDeleteSnapshot, delete_snapshot, DeleteSnapshotRequest);
    check!(ListSnapshots, list_snapshots, ListSnapshotsRequest);
    check!(GetSnapshot, get_snapshot, GetSnapshotRequest);
    check!(GetVolumeHealth, controller_get_volume_health, ControllerGetVolumeHealthRequest);
    check!(ListVolumeHealth, controller_list_volume_health, ControllerListVolumeHealthRequest);
    assert_eq!(
        has_groups(driver),
        services(driver).contains(&service::Type::GroupControllerService)
    );
    assert!(!driver.has(Rpc::Unknown));
    assert!(driver.has(Rpc::GetVolume) || !driver.has(Rpc::VolumeCondition));
    assert!(driver.has(Rpc::ListVolumes) || !driver.has(Rpc::ListVolumesPublishedNodes));
    assert!(driver.has(Rpc::PublishUnpublishVolume) || !driver.has(Rpc::PublishReadonly));
}
