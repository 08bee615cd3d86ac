//! A driver under test, and short words for what the cases ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::controller_service_capability::Type as Capability;
use holdfast::csi::proto::controller_service_capability::rpc::Type as Rpc;
use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use holdfast::csi::proto::{
    CapacityRange, ControllerGetCapabilitiesRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, Volume,
    VolumeCapability,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use super::support::{Cluster, Setup, program, wait_until};

pub const MIB: i64 = 1 << 20;
/// A driver may say ABORTED while it still frees a name or a volume.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of the driver; it is told to stop when this is dropped.
pub struct Process {
    child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
}

/// See the module.
pub struct Driver {
    // Before the cluster, so that it ends first.
    pub process: Option<Process>,
    pub cluster: Option<Cluster>,
    pub nodes: [String; 2],
    pub capabilities: BTreeSet<Rpc>,
    channel: Channel,
    runtime: Runtime,
}

static NAMES: AtomicUsize = AtomicUsize::new(0);

/// A name that no other volume has.
pub fn unique(what: &str) -> String {
    let number = NAMES.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{}-{number}", std::process::id())
}

pub fn channel_of(endpoint: &str) -> Channel {
    let path = endpoint.strip_prefix("unix:").unwrap_or(endpoint);
    let path = path.strip_prefix("//").unwrap_or(path);
    Endpoint::from_shared(format!("unix:{path}")).expect("a path").connect_lazy()
}

impl Process {
    /// Starts the controller of Holdfast's driver.
    pub fn start(cluster: &Cluster, endpoints: &str, arguments: &[&str]) -> Process {
        let socket = cluster.dir.join("csi.sock");
        let log = cluster.dir.join("csi.log");
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(program())
            .args(["csi", "controller", "--csi-endpoint"])
            .arg(format!("unix://{}", socket.display()))
            .args(["--endpoint", endpoints])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start holdfast csi controller");
        wait_until("the driver serves", || socket.exists());
        Process { child, socket, log }
    }

    /// Tells it to stop, and says whether it ended well.
    pub fn stop(&mut self) -> bool {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        self.child.wait().expect("wait for the driver").success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
        if std::thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- end of {}", self.log.display());
            lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Driver {
    /// The driver that the environment names, or one of Holdfast's own.
    pub fn start(name: &'static str, arguments: &[&str]) -> Driver {
        let Ok(endpoint) = std::env::var("HOLDFAST_CSI_ENDPOINT") else {
            return Driver::ours(Setup::new(name).disk_sizes("4GiB", "64MiB").start(), arguments);
        };
        let nodes = std::env::var("HOLDFAST_CSI_NODES").expect("HOLDFAST_CSI_NODES names two");
        let (first, second) = nodes.split_once(',').expect("two nodes with a comma between them");
        Driver::of(None, None, &endpoint, [first.to_owned(), second.to_owned()])
    }

    /// One of Holdfast's own, before this cluster.
    pub fn ours(cluster: Cluster, arguments: &[&str]) -> Driver {
        wait_until("all nodes are there", || {
            let nodes = cluster.ask(&["node", "list"]);
            nodes.is_some_and(|nodes| nodes.as_array().is_some_and(|nodes| nodes.len() == 3))
        });
        let endpoints = [1, 2, 3].map(|pod| cluster.endpoint(pod)).join(",");
        Driver::with(cluster, &endpoints, arguments)
    }

    /// One of Holdfast's own, with these endpoints of the API.
    pub fn with(cluster: Cluster, endpoints: &str, arguments: &[&str]) -> Driver {
        let process = Process::start(&cluster, endpoints, arguments);
        let endpoint = process.socket.to_str().unwrap().to_owned();
        let nodes = ["pod-1", "pod-2"].map(str::to_owned);
        Driver::of(Some(process), Some(cluster), &endpoint, nodes)
    }

    fn of(
        process: Option<Process>,
        cluster: Option<Cluster>,
        endpoint: &str,
        nodes: [String; 2],
    ) -> Driver {
        let runtime = Runtime::new().unwrap();
        let channel = runtime.block_on(async { channel_of(endpoint) });
        let mut driver =
            Driver { process, cluster, nodes, channel, runtime, capabilities: BTreeSet::new() };
        let request = ControllerGetCapabilitiesRequest {};
        let answer =
            driver.controller(async |mut it| it.controller_get_capabilities(request).await);
        let all = answer.expect("capabilities").capabilities.into_iter();
        driver.capabilities =
            all.filter_map(|it| it.r#type.map(|Capability::Rpc(rpc)| rpc.r#type())).collect();
        driver
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Asks the controller service.
    pub fn controller<T, Answer>(
        &self,
        ask: impl FnOnce(ControllerClient<Channel>) -> Answer,
    ) -> Result<T, Status>
    where
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let client = ControllerClient::new(self.channel());
        self.wait(ask(client)).map(Response::into_inner)
    }

    /// Asks the identity service.
    pub fn identity<T, Answer>(
        &self,
        ask: impl FnOnce(IdentityClient<Channel>) -> Answer,
    ) -> Result<T, Status>
    where
        Answer: Future<Output = Result<Response<T>, Status>>,
    {
        let client = IdentityClient::new(self.channel());
        self.wait(ask(client)).map(Response::into_inner)
    }

    pub fn has(&self, capability: Rpc) -> bool {
        self.capabilities.contains(&capability)
    }

    pub fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let answer = self.controller(async |mut it| it.create_volume(request).await);
        answer.map(|it| it.volume.expect("an answer has the volume"))
    }

    /// A new volume of a MiB.
    pub fn volume(&self, what: &str) -> String {
        let made = self.create(wanted(&unique(what)));
        made.unwrap_or_else(|status| panic!("create a volume: {status}")).volume_id
    }

    pub fn delete(&self, volume_id: &str) -> Result<(), Status> {
        let volume_id = volume_id.to_owned();
        let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
        self.controller(async |mut it| it.delete_volume(request).await).map(|_| ())
    }

    pub fn publish(&self, request: ControllerPublishVolumeRequest) -> Result<(), Status> {
        let answer = self.controller(async |mut it| it.controller_publish_volume(request).await);
        answer.map(|_| ())
    }

    pub fn unpublish(&self, volume_id: &str, node_id: &str) -> Result<(), Status> {
        let (volume_id, node_id) = (volume_id.to_owned(), node_id.to_owned());
        let request = ControllerUnpublishVolumeRequest { volume_id, node_id, ..Default::default() };
        let answer = self.controller(async |mut it| it.controller_unpublish_volume(request).await);
        answer.map(|_| ())
    }

    /// Repeats what is refused with ABORTED: the specification has callers come again.
    pub fn until<T>(&self, mut ask: impl FnMut() -> Result<T, Status>) -> Result<T, Status> {
        let until = Instant::now() + PATIENCE;
        loop {
            match ask() {
                Err(status) if status.code() == Code::Aborted && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                answer => return answer,
            }
        }
    }
}

pub fn mounted(mode: Mode) -> VolumeCapability {
    let access_mode = Some(AccessMode { mode: mode.into() });
    let access_type = Some(AccessType::Mount(MountVolume::default()));
    VolumeCapability { access_mode, access_type }
}

pub fn block(mode: Mode) -> VolumeCapability {
    let access_mode = Some(AccessMode { mode: mode.into() });
    VolumeCapability { access_mode, access_type: Some(AccessType::Block(BlockVolume {})) }
}

pub fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

/// A request for a volume of a MiB, to be mounted.
pub fn wanted(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: range(MIB, 0),
        volume_capabilities: vec![mounted(Mode::SingleNodeWriter)],
        ..CreateVolumeRequest::default()
    }
}

pub fn to_publish(volume_id: &str, node_id: &str) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        node_id: node_id.to_owned(),
        volume_capability: Some(mounted(Mode::SingleNodeWriter)),
        ..ControllerPublishVolumeRequest::default()
    }
}

pub fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Checks the code of a refusal, and that people are told something.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.expect_err("it should be refused");
    assert_eq!(status.code(), code, "{status}");
    assert!(!status.message().is_empty(), "a refusal has words");
    status.message().to_owned()
}
