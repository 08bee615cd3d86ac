//! The health service of gRPC. The pod itself (the empty name) serves as long as it answers. The
//! services of the API serve while the pod knows a leader of the catalog.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::health_reporter;

use crate::control::api::attachments::AttachmentsService;
use crate::control::api::classes::ClassesService;
use crate::control::api::cluster::ClusterService;
use crate::control::api::disks::DisksService;
use crate::control::api::nodes::NodesService;
use crate::control::api::pods::PodsService;
use crate::control::api::shards::ShardsService;
use crate::control::api::volumes::VolumesService;
use crate::control::node::Node;
use crate::control::proto::attachments_server::AttachmentsServer;
use crate::control::proto::classes_server::ClassesServer;
use crate::control::proto::cluster_server::ClusterServer;
use crate::control::proto::disks_server::DisksServer;
use crate::control::proto::nodes_server::NodesServer;
use crate::control::proto::pods_server::PodsServer;
use crate::control::proto::shards_server::ShardsServer;
use crate::control::proto::volumes_server::VolumesServer;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Services whose health is told.
const SERVICES: [&str; 8] = [
    <AttachmentsServer<AttachmentsService> as NamedService>::NAME,
    <ClassesServer<ClassesService> as NamedService>::NAME,
    <ClusterServer<ClusterService> as NamedService>::NAME,
    <DisksServer<DisksService> as NamedService>::NAME,
    <NodesServer<NodesService> as NamedService>::NAME,
    <PodsServer<PodsService> as NamedService>::NAME,
    <ShardsServer<ShardsService> as NamedService>::NAME,
    <VolumesServer<VolumesService> as NamedService>::NAME,
];

/// Must be called on the runtime that serves. The task behind it ends with the node.
pub fn service(node: &Arc<Node>) -> HealthServer<impl Health> {
    let (reporter, service) = health_reporter();
    let node = Arc::downgrade(node);
    tokio::spawn(async move {
        let mut told = None;
        while let Some(node) = node.upgrade() {
            let knows = node.leading().is_some() || node.leader().is_some();
            drop(node);
            if told.replace(knows) != Some(knows) {
                let status = if knows { ServingStatus::Serving } else { ServingStatus::NotServing };
                for name in SERVICES {
                    reporter.set_service_status(name, status).await;
                }
            }
            sleep(LOOK_EVERY).await;
        }
    });
    service
}
