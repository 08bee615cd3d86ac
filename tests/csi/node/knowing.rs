//! NodeGetInfo, NodeGetCapabilities, and the identity service of a node.

use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::csi::proto::node_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::plugin_capability::{Type, service};
use holdfast::csi::proto::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeExpandVolumeRequest,
    NodeGetStorageHealthRequest, NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest,
    NodeStageVolumeRequest, NodeUnstageVolumeRequest, ProbeRequest,
};
use tonic::{Code, Status};

use super::driver::Node;

pub fn the_node_has_a_name(node: &Node) {
    let info = &node.info;
    assert!((1..=256).contains(&info.node_id.len()), "{:?}", info.node_id);
    assert!(info.max_volumes_per_node >= 0, "{}", info.max_volumes_per_node);
    let mut identity = IdentityClient::new(node.channel());
    let request = GetPluginCapabilitiesRequest {};
    let all = node.driver().wait(identity.get_plugin_capabilities(request)).unwrap().into_inner();
    let is_bound = all.capabilities.into_iter().any(|it| match it.r#type {
        Some(Type::Service(it)) => it.r#type() == service::Type::VolumeAccessibilityConstraints,
        _ => false,
    });
    if let Some(topology) = &info.accessible_topology {
        assert!(is_bound, "a topology takes VOLUME_ACCESSIBILITY_CONSTRAINTS");
        assert!(!topology.segments.is_empty());
    }
}

pub fn the_node_is_of_the_same_driver(node: &Node) {
    let mut identity = IdentityClient::new(node.channel());
    let info = node.driver().wait(identity.get_plugin_info(GetPluginInfoRequest {})).unwrap();
    let request = GetPluginInfoRequest {};
    let other = node.driver().identity(async |mut it| it.get_plugin_info(request).await).unwrap();
    assert_eq!(info.into_inner().name, other.name);
    let ready = node.driver().wait(identity.probe(ProbeRequest {})).unwrap().into_inner().ready;
    assert_ne!(ready, Some(false));
}

/// A method that there is refuses an empty request with another code.
pub fn every_capability_has_its_methods_and_others_are_unimplemented(node: &Node) {
    let check = |is_meant: bool, method: &str, refused: Option<Status>| {
        let is_there = refused.is_none_or(|status| status.code() != Code::Unimplemented);
        assert_eq!(is_there, is_meant, "{method}");
    };
    macro_rules! check {
        ($is_meant:expr, $method:ident, $request:ident) => {
            let request = $request::default();
            let answer = node.ask(async |mut it| it.$method(request).await);
            check($is_meant, stringify!($method), answer.err());
        };
    }
    let stages = node.has(Rpc::StageUnstageVolume);
    check!(stages, node_stage_volume, NodeStageVolumeRequest);
    check!(stages, node_unstage_volume, NodeUnstageVolumeRequest);
    let tells = node.has(Rpc::GetVolumeStats) || node.has(Rpc::VolumeCondition);
    check!(tells, node_get_volume_stats, NodeGetVolumeStatsRequest);
    check!(node.has(Rpc::ExpandVolume), node_expand_volume, NodeExpandVolumeRequest);
    check!(node.has(Rpc::GetVolumeHealth), node_get_volume_health, NodeGetVolumeHealthRequest);
    check!(node.has(Rpc::GetStorageHealth), node_get_storage_health, NodeGetStorageHealthRequest);
    assert!(!node.has(Rpc::Unknown));
}
