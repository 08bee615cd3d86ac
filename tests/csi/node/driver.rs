//! The node service of a driver under test, and a volume on its way through the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use holdfast::csi::proto::controller_service_capability::rpc::Type as ControllerRpc;
use holdfast::csi::proto::node_client::NodeClient;
use holdfast::csi::proto::node_service_capability::Type as Capability;
use holdfast::csi::proto::node_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::{
    ControllerPublishVolumeRequest, CreateVolumeRequest, NodeGetCapabilitiesRequest,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::driver::{Driver, MIB, channel_of, range, unique, wanted};
use crate::kubelet::Kubelet;
use crate::support::Setup;
use crate::support::tools::text;

/// Of the volumes of the cases: each file system that drivers make has room in it.
pub const VOLUME_BYTES: i64 = 512 * MIB;

/// Where the driver is from.
enum Source {
    Ours(Box<Kubelet>),
    Named { driver: Box<Driver>, _directory: tempfile::TempDir },
}

/// See the module.
pub struct Node {
    source: Source,
    /// Staging and target paths are made in here.
    root: PathBuf,
    channel: Channel,
    pub info: NodeGetInfoResponse,
    capabilities: BTreeSet<Rpc>,
}

impl Node {
    /// The node service that the environment names, or one of Holdfast's own.
    pub fn start() -> Result<Node, &'static str> {
        let endpoint = match std::env::var("HOLDFAST_CSI_NODE_ENDPOINT") {
            Ok(endpoint) => endpoint,
            Err(_) if std::env::var_os("HOLDFAST_CSI_ENDPOINT").is_some() => {
                return Err("HOLDFAST_CSI_NODE_ENDPOINT names no node service");
            }
            Err(_) => return Ok(Node::ours()),
        };
        let directory = match std::env::var_os("HOLDFAST_CSI_NODE_DIRECTORY") {
            Some(parent) => tempfile::tempdir_in(parent),
            None => tempfile::tempdir(),
        };
        let directory = directory.expect("a directory for the volumes");
        let root = directory.path().canonicalize().unwrap();
        let driver = Box::new(Driver::start("csi_node_conformance", &[]));
        Ok(Node::of(Source::Named { driver, _directory: directory }, &endpoint, root))
    }

    fn ours() -> Node {
        let setup = Setup::new("csi_node_conformance").disk_sizes("4GiB", "64MiB");
        let kubelet = Kubelet::before(setup);
        let (endpoint, root) = (kubelet.plugin.endpoint(), kubelet.root.clone());
        Node::of(Source::Ours(Box::new(kubelet)), &endpoint, root)
    }

    fn of(source: Source, endpoint: &str, root: PathBuf) -> Node {
        let driver = match &source {
            Source::Ours(kubelet) => &kubelet.driver,
            Source::Named { driver, .. } => driver,
        };
        let channel = driver.wait(async { channel_of(endpoint) });
        let mut client = NodeClient::new(channel.clone());
        let info = driver.wait(client.node_get_info(NodeGetInfoRequest {}));
        let info = info.expect("NodeGetInfo is answered").into_inner();
        let all = driver.wait(client.node_get_capabilities(NodeGetCapabilitiesRequest {}));
        let all = all.expect("NodeGetCapabilities is answered").into_inner().capabilities;
        let rpcs = all.into_iter().filter_map(|it| it.r#type.map(|Capability::Rpc(rpc)| rpc));
        let capabilities = rpcs.map(|rpc| rpc.r#type()).collect();
        Node { source, root, channel, info, capabilities }
    }

    /// The controller of the same driver.
    pub fn driver(&self) -> &Driver {
        match &self.source {
            Source::Ours(kubelet) => &kubelet.driver,
            Source::Named { driver, .. } => driver,
        }
    }

    pub fn has(&self, capability: Rpc) -> bool {
        self.capabilities.contains(&capability)
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Asks the node service.
    pub fn ask<T, Answer>(
        &self,
        ask: impl FnOnce(NodeClient<Channel>) -> Answer,
    ) -> Result<T, Status>
    where
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let client = NodeClient::new(self.channel());
        self.driver().wait(ask(client)).map(Response::into_inner)
    }

    /// A new volume for this use, which this node may use.
    pub fn volume(&self, what: &str, capability: VolumeCapability) -> Held<'_> {
        let request = CreateVolumeRequest {
            capacity_range: range(VOLUME_BYTES, 0),
            volume_capabilities: vec![capability.clone()],
            ..wanted(&unique(what))
        };
        let made = self.driver().create(request);
        let made = made.unwrap_or_else(|status| panic!("create a volume: {status}"));
        let name = unique(what);
        // The shortest length that every plugin has to take.
        let staging = self.root.join(format!("{name}-{}", "s".repeat(128)));
        let (id, volume_context) = (made.volume_id, made.volume_context);
        let publish_context = BTreeMap::new();
        let mut held =
            Held { node: self, id, name, capability, staging, volume_context, publish_context };
        held.publish_to_node();
        fs::create_dir_all(&held.staging).unwrap();
        held
    }

    /// Volume ids of volumes that are not there.
    pub fn ids_of_nothing(&self) -> [String; 2] {
        let deleted = self.driver().volume("deleted");
        self.driver().until(|| self.driver().delete(&deleted)).unwrap();
        [deleted, "nothing".to_owned()]
    }
}

/// A volume that the node may use.
pub struct Held<'a> {
    pub node: &'a Node,
    pub id: String,
    name: String,
    pub capability: VolumeCapability,
    pub staging: PathBuf,
    volume_context: BTreeMap<String, String>,
    publish_context: BTreeMap<String, String>,
}

impl Held<'_> {
    fn publish_to_node(&mut self) {
        let driver = self.node.driver();
        if !driver.has(ControllerRpc::PublishUnpublishVolume) {
            return;
        }
        let request = ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: self.node.info.node_id.clone(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = driver.controller(async |mut it| it.controller_publish_volume(request).await);
        self.publish_context = answer.expect("the node may have the volume").publish_context;
    }

    pub fn to_stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish_context.clone(),
            staging_target_path: text(&self.staging).to_owned(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        }
    }

    pub fn stage_as(&self, request: NodeStageVolumeRequest) -> Result<(), Status> {
        self.node.ask(async |mut it| it.node_stage_volume(request).await).map(drop)
    }

    /// Nothing without the capability.
    pub fn stage(&self) -> Result<(), Status> {
        match self.node.has(Rpc::StageUnstageVolume) {
            true => self.stage_as(self.to_stage()),
            false => Ok(()),
        }
    }

    pub fn unstage(&self) -> Result<(), Status> {
        if !self.node.has(Rpc::StageUnstageVolume) {
            return Ok(());
        }
        let request = NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging).to_owned(),
        };
        self.node.ask(async |mut it| it.node_unstage_volume(request).await).map(drop)
    }

    /// Where a workload wants it.
    pub fn target(&self, workload: &str) -> PathBuf {
        let parent = self.node.root.join(format!("{workload}-{}", "t".repeat(128)));
        fs::create_dir_all(&parent).unwrap();
        parent.join(&self.name)
    }

    pub fn to_publish(&self, workload: &str) -> NodePublishVolumeRequest {
        let is_staged = self.node.has(Rpc::StageUnstageVolume);
        let staging = if is_staged { text(&self.staging).to_owned() } else { String::new() };
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish_context.clone(),
            staging_target_path: staging,
            target_path: text(&self.target(workload)).to_owned(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        }
    }

    pub fn publish_as(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.node.ask(async |mut it| it.node_publish_volume(request).await).map(drop)
    }

    pub fn publish(&self, workload: &str) -> Result<(), Status> {
        self.publish_as(self.to_publish(workload))
    }

    pub fn unpublish(&self, workload: &str) -> Result<(), Status> {
        let target_path = text(&self.target(workload)).to_owned();
        let request = NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path };
        self.node.ask(async |mut it| it.node_unpublish_volume(request).await).map(drop)
    }

    pub fn stats(&self, at: &Path) -> Result<NodeGetVolumeStatsResponse, Status> {
        stats(self.node, &self.id, text(at))
    }

    /// Takes it back from the node, which uses it no more, and deletes it.
    pub fn end(self) {
        self.unstage().unwrap();
        let driver = self.node.driver();
        if driver.has(ControllerRpc::PublishUnpublishVolume) {
            driver.unpublish(&self.id, &self.node.info.node_id).unwrap();
        }
        driver.until(|| driver.delete(&self.id)).unwrap();
    }
}

pub fn stats(node: &Node, volume_id: &str, at: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
    let request = NodeGetVolumeStatsRequest {
        volume_id: volume_id.to_owned(),
        volume_path: at.to_owned(),
        ..NodeGetVolumeStatsRequest::default()
    };
    node.ask(async |mut it| it.node_get_volume_stats(request).await)
}

/// True when another file system than that of the directory above is there.
pub fn is_mounted(at: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    device(at).is_some_and(|found| Some(found) != at.parent().and_then(device))
}
