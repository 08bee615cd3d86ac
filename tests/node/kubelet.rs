//! A node as the kubelet sees it: it calls the node service step by step, and each step again until
//! it is done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast::csi::proto::node_client::NodeClient;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use holdfast::csi::proto::{
    CapacityRange, ControllerPublishVolumeRequest, CreateVolumeRequest, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::driver::{Driver, MIB, unique};
use super::support::attach::Attach;
use super::support::tools::text;
use super::support::{Cluster, Setup, program, wait_until};

/// The node of the tests is that of the first pod.
pub const NODE: &str = "pod-1";
const PATIENCE: Duration = Duration::from_secs(120);

/// `holdfast csi node`; killed when this is dropped.
pub struct Plugin {
    child: Child,
    socket: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    /// Searched for programs before the system's folders.
    tools: PathBuf,
}

impl Plugin {
    fn start(cluster: &Cluster, attach: &Attach) -> Plugin {
        let socket = attach.dir.join("csi.sock");
        let endpoints = [1, 2, 3].map(|pod| cluster.endpoint(pod)).join(",");
        let socket_text = format!("unix://{}", socket.display());
        let arguments = ["csi", "node", "--csi-endpoint", &socket_text, "--node", NODE]
            .into_iter()
            .chain(["--devices", text(&attach.socket()), "--endpoint", &endpoints])
            .map(str::to_owned)
            .collect();
        let log = attach.dir.join("csi.log");
        let tools = attach.dir.join("tools");
        fs::create_dir_all(&tools).unwrap();
        let child = spawn(&arguments, &log, &tools);
        let plugin = Plugin { child, socket, arguments, log, tools };
        plugin.wait();
        plugin
    }

    fn wait(&self) {
        wait_until("the plugin serves", || {
            std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
        });
    }

    /// Where it serves.
    #[allow(dead_code, reason = "for the cases of tests/csi")]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `kill -9`, while others use it.
    pub fn kill_shared(&self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
    }

    /// Another process, after the first one was killed.
    pub fn start_again(&mut self) {
        self.child.wait().unwrap();
        self.child = spawn(&self.arguments, &self.log, &self.tools);
        self.wait();
    }

    /// True once the process has ended by itself.
    pub fn is_gone(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

fn spawn(arguments: &Vec<String>, log: &Path, tools: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new(program())
        .args(arguments)
        .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", tools.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("start holdfast csi node")
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- the plugin's log\n{said}");
        }
    }
}

/// How a volume is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Empty: the driver's choice.
    Mounted(&'static str),
    Block,
}

/// See the module.
pub struct Kubelet {
    // In the order in which they end.
    pub plugin: Plugin,
    pub attach: Attach,
    pub driver: Driver,
    pub root: PathBuf,
}

impl Kubelet {
    pub fn start(name: &'static str) -> Kubelet {
        Kubelet::before(Setup::new(name).disk_sizes("4GiB", "64MiB"))
    }

    pub fn before(setup: Setup) -> Kubelet {
        let driver = Driver::ours(setup.start(), &[]);
        let cluster = driver.cluster.as_ref().unwrap();
        let attach = Attach::start(cluster);
        let plugin = Plugin::start(cluster, &attach);
        let root = attach.dir.join("kubelet");
        fs::create_dir_all(&root).unwrap();
        Kubelet { plugin, attach, driver, root }
    }

    pub fn cluster(&self) -> &Cluster {
        self.driver.cluster.as_ref().unwrap()
    }

    pub fn node<T, Answer>(
        &self,
        ask: impl FnOnce(NodeClient<Channel>) -> Answer,
    ) -> Result<T, Status>
    where
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let socket = text(&self.plugin.socket).to_owned();
        self.driver.wait(async {
            // A new connection each time: the plugin may be another process by now.
            let endpoint = Endpoint::from_shared(format!("unix:{socket}")).unwrap();
            let channel = endpoint.connect_lazy();
            ask(NodeClient::new(channel)).await.map(Response::into_inner)
        })
    }

    /// A volume of 512 MiB that is published to this node.
    pub fn volume(&self, kind: Kind) -> Volume<'_> {
        let name = unique("node");
        let request = CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: 512 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability(kind, Mode::SingleNodeWriter)],
            ..CreateVolumeRequest::default()
        };
        let id = self.driver.create(request).unwrap().volume_id;
        let volume = Volume { kubelet: self, id, kind, name };
        volume.publish_to_node(NODE).unwrap();
        fs::create_dir_all(volume.staging_parent()).unwrap();
        if kind != Kind::Block {
            fs::create_dir_all(volume.staging()).unwrap();
        }
        volume
    }
}

pub fn capability(kind: Kind, mode: Mode) -> VolumeCapability {
    let access_type = match kind {
        Kind::Block => AccessType::Block(BlockVolume {}),
        Kind::Mounted(fs_type) => {
            let fs_type = fs_type.to_owned();
            AccessType::Mount(MountVolume { fs_type, ..MountVolume::default() })
        }
    };
    let access_mode = Some(AccessMode { mode: mode.into() });
    VolumeCapability { access_mode, access_type: Some(access_type) }
}

/// A volume that is published to this node. Steps are named as the specification has them.
pub struct Volume<'a> {
    kubelet: &'a Kubelet,
    pub id: String,
    pub kind: Kind,
    pub name: String,
}

/// A step that is carried out without the rest of the test.
pub struct Begun {
    socket: String,
    step: Step,
}

enum Step {
    Stage(NodeStageVolumeRequest),
    Publish(NodePublishVolumeRequest),
    Unpublish(NodeUnpublishVolumeRequest),
    Unstage(NodeUnstageVolumeRequest),
}

impl Begun {
    pub fn run(self) -> Result<(), Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket)).unwrap();
            let mut client = NodeClient::new(endpoint.connect_lazy());
            match self.step {
                Step::Stage(it) => client.node_stage_volume(it).await.map(drop),
                Step::Publish(it) => client.node_publish_volume(it).await.map(drop),
                Step::Unpublish(it) => client.node_unpublish_volume(it).await.map(drop),
                Step::Unstage(it) => client.node_unstage_volume(it).await.map(drop),
            }
        })
    }
}

impl<'a> Volume<'a> {
    /// One that an earlier part of a test has made.
    pub fn again(kubelet: &'a Kubelet, id: String, kind: Kind, name: String) -> Volume<'a> {
        let volume = Volume { kubelet, id, kind, name };
        if kind != Kind::Block {
            fs::create_dir_all(volume.staging()).unwrap();
        }
        volume
    }

    /// A step by its name; for the pod "a".
    pub fn begin(&self, step: &str) -> Begun {
        let step = match step {
            "stage" => Step::Stage(self.stage_request()),
            "publish" => Step::Publish(self.publish_request("a", false)),
            "unpublish" => Step::Unpublish(self.unpublish_request("a")),
            "unstage" => Step::Unstage(self.unstage_request()),
            other => panic!("{other} is no step"),
        };
        Begun { socket: text(&self.kubelet.plugin.socket).to_owned(), step }
    }

    fn staging_parent(&self) -> PathBuf {
        self.kubelet.root.join("staging")
    }

    pub fn staging(&self) -> PathBuf {
        self.staging_parent().join(&self.name)
    }

    pub fn target(&self, pod: &str) -> PathBuf {
        let pods = self.kubelet.root.join("pods");
        fs::create_dir_all(&pods).unwrap();
        pods.join(format!("{pod}-{}", self.name))
    }

    pub fn publish_to_node(&self, node: &str) -> Result<(), Status> {
        self.kubelet.driver.publish(ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: node.to_owned(),
            volume_capability: Some(capability(self.kind, Mode::SingleNodeWriter)),
            ..ControllerPublishVolumeRequest::default()
        })
    }

    pub fn stage_request(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging()).to_owned(),
            volume_capability: Some(capability(self.kind, Mode::SingleNodeWriter)),
            ..NodeStageVolumeRequest::default()
        }
    }

    pub fn stage(&self) -> Result<(), Status> {
        let request = self.stage_request();
        self.kubelet.node(async |mut it| it.node_stage_volume(request).await).map(drop)
    }

    pub fn publish_request(&self, pod: &str, readonly: bool) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging()).to_owned(),
            target_path: text(&self.target(pod)).to_owned(),
            volume_capability: Some(capability(self.kind, Mode::SingleNodeWriter)),
            readonly,
            ..NodePublishVolumeRequest::default()
        }
    }

    pub fn publish(&self, pod: &str, readonly: bool) -> Result<(), Status> {
        let request = self.publish_request(pod, readonly);
        self.kubelet.node(async |mut it| it.node_publish_volume(request).await).map(drop)
    }

    fn unpublish_request(&self, pod: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: text(&self.target(pod)).to_owned(),
        }
    }

    fn unstage_request(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: text(&self.staging()).to_owned(),
        }
    }

    pub fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let request = self.unpublish_request(pod);
        self.kubelet.node(async |mut it| it.node_unpublish_volume(request).await).map(drop)
    }

    pub fn unstage(&self) -> Result<(), Status> {
        let request = self.unstage_request();
        self.kubelet.node(async |mut it| it.node_unstage_volume(request).await).map(drop)
    }

    pub fn stats(&self, at: &Path) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: text(at).to_owned(),
            ..NodeGetVolumeStatsRequest::default()
        };
        self.kubelet.node(async |mut it| it.node_get_volume_stats(request).await)
    }

    pub fn expand(&self, at: &Path, required_bytes: i64) -> Result<i64, Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: text(at).to_owned(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            ..NodeExpandVolumeRequest::default()
        };
        let answer = self.kubelet.node(async |mut it| it.node_expand_volume(request).await);
        answer.map(|it| it.capacity_bytes)
    }

    /// Takes it away from the node and deletes it.
    pub fn end(self) {
        self.kubelet.driver.unpublish(&self.id, NODE).unwrap();
        self.kubelet.driver.until(|| self.kubelet.driver.delete(&self.id)).unwrap();
    }
}

/// Repeats a step as the kubelet does: what was refused for now is tried again.
#[track_caller]
pub fn until_done(what: &str, mut step: impl FnMut() -> Result<(), Status>) {
    let until = Instant::now() + PATIENCE;
    loop {
        match step() {
            Ok(()) => return,
            Err(status) if status.code() == Code::InvalidArgument || Instant::now() > until => {
                panic!("{what}: {status}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
