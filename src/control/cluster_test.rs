//! A few whole control planes in one process, over loopback: real gRPC, real logs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::config::Config;
use crate::control::identity::PodDirectory;
use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::shards_client::ShardsClient;
use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::{
    CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, ListShardsRequest, Phase,
    PublishRequest, StatusRequest, StatusResponse, Summary, VolumeSpec,
};
use crate::control::server::Server;
use crate::testing::null_data_path::NullDataPath;
use crate::types::Uuid;

/// Far longer than any step; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct TestPod {
    number: u8,
    data: PathBuf,
    seeds: Vec<String>,
    pub(super) server: Option<Server>,
    data_path: Option<Arc<NullDataPath>>,
}

impl TestPod {
    async fn new(root: &Path, number: u8, seed: Option<SocketAddr>) -> TestPod {
        let mut pod = TestPod {
            number,
            data: root.join(format!("pod-{number}")),
            seeds: seed.iter().map(SocketAddr::to_string).collect(),
            server: None,
            data_path: None,
        };
        pod.start().await;
        pod
    }

    /// Starts it on ports that the system picks: others after every start.
    pub(super) async fn start(&mut self) {
        let mut config: Config = toml::from_str("data = 'set below'").unwrap();
        config.data = self.data.clone();
        config.init = self.seeds.is_empty();
        config.join = self.seeds.clone();
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        config.node.name = Some(format!("node-{}", self.number));
        let directory = PodDirectory::open(&config.data).unwrap();
        let server = Server::start(&config, directory, 64).await.unwrap();
        let disk = Uuid([self.number; 16]);
        let data_path = NullDataPath::new(server.identity(), vec![disk], server.control_link());
        let data_path = Arc::new(data_path);
        server.attach(data_path.clone());
        (self.server, self.data_path) = (Some(server), Some(data_path));
    }

    pub(super) async fn stop(&mut self) {
        self.data_path = None;
        self.server.take().unwrap().stop().await;
    }

    fn api(&self) -> SocketAddr {
        self.server.as_ref().unwrap().addresses().api
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.api())
    }

    pub(super) fn id(&self) -> u64 {
        self.server.as_ref().unwrap().identity().pod.0
    }

    async fn status(&self) -> Result<StatusResponse, tonic::Status> {
        let client = ClusterClient::connect(self.endpoint()).await;
        let mut client = client.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        Ok(client.status(StatusRequest {}).await?.into_inner())
    }

    /// Waits until the status is as it should be.
    pub(super) async fn until(
        &self,
        what: &str,
        holds: impl Fn(&StatusResponse) -> bool,
    ) -> StatusResponse {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            match status {
                Ok(status) if holds(&status) => return status,
                last if Instant::now() > deadline => panic!("waited until {what}: {last:#?}"),
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(super) async fn volumes(&self) -> VolumesClient<tonic::transport::Channel> {
        VolumesClient::connect(self.endpoint()).await.unwrap()
    }

    /// Creates a volume, and returns its number.
    pub(super) async fn create(
        &self,
        name: &str,
        request_id: &str,
        size_bytes: u64,
    ) -> Result<u64, tonic::Status> {
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            spec: Some(VolumeSpec { size_bytes, ..VolumeSpec::default() }),
            request_id: request_id.to_owned(),
            ..CreateVolumeRequest::default()
        };
        let volume = self.volumes().await.create(request).await?.into_inner();
        Ok(volume.status.unwrap().id)
    }
}

pub(super) const SIZE: u64 = 10 << 30;

/// How many objects there are, and how many of them in a phase.
fn counts(summary: &Option<Summary>, phase: Phase) -> (u64, u64) {
    let summary = summary.as_ref().unwrap();
    let of_phase = summary.phases.iter().filter(|count| count.phase() == phase);
    (summary.total, of_phase.map(|count| count.count).sum())
}

fn voters(status: &StatusResponse) -> u32 {
    status.catalog.unwrap().voters
}

pub(super) fn all_up(status: &StatusResponse, count: u64) -> bool {
    let up = (count, count);
    counts(&status.pods, Phase::Up) == up
        && counts(&status.disks, Phase::Up) == up
        && status.problems.is_empty()
}

pub(super) async fn three_pods(root: &Path) -> Vec<TestPod> {
    let mut pods = vec![TestPod::new(root, 1, None).await];
    let first = pods[0].api();
    for number in 2..=3 {
        pods.push(TestPod::new(root, number, Some(first)).await);
    }
    let whole = |status: &StatusResponse| voters(status) == 3 && all_up(status, 3);
    for pod in &pods {
        pod.until("there are three voters", whole).await;
    }
    pods
}

fn usable(status: &StatusResponse) -> bool {
    let (all, ready) = counts(&status.volumes, Phase::Ready);
    all == ready
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_three_survives_the_loss_of_its_leader_and_of_all() {
    let root = tempfile::tempdir().unwrap();
    let mut pods = three_pods(root.path()).await;
    let ids: BTreeSet<u64> = pods.iter().map(TestPod::id).collect();
    assert_eq!(ids, BTreeSet::from([1, 2, 3]));

    // A request repeated through another pod is carried out once.
    let demo = pods[2].create("demo", "request-1", SIZE).await.unwrap();
    assert_eq!(pods[1].create("demo", "request-1", SIZE).await.unwrap(), demo);
    // So is another one that asks for the same.
    assert_eq!(pods[1].create("demo", "request-2", SIZE).await.unwrap(), demo);
    let taken = pods[0].create("demo", "request-3", 2 * SIZE).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    let taken = pods[0].create("other", "request-1", SIZE).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    let status = pods[1].until("the volume is ready", usable).await;
    let mut shards = ShardsClient::connect(pods[1].endpoint()).await.unwrap();
    let request = ListShardsRequest { volume: "demo".to_owned(), ..ListShardsRequest::default() };
    let shards = shards.list(request).await.unwrap().into_inner().shards;
    assert_eq!(shards.len(), 3);
    let replicas = shards[0].status.as_ref().unwrap().replicas.iter();
    assert_eq!(replicas.map(|it| it.pod).collect::<BTreeSet<_>>(), ids);

    let leads = |pod: &TestPod| pod.id() == status.leader_pod;
    let leader = pods.iter().position(leads).unwrap();
    pods[leader].stop().await;
    let others: Vec<&TestPod> = pods.iter().filter(|pod| pod.server.is_some()).collect();
    two_of_three_answer(others[0], others[1], demo).await;

    // It comes back on another port, and frees the space of the deleted volume.
    pods[leader].start().await;
    let clean = |status: &StatusResponse| {
        counts(&status.volumes, Phase::Deleting) == (0, 0) && all_up(status, 3)
    };
    for pod in &pods {
        pod.until("everything is gone and everybody is back", clean).await;
    }
    let third = pods[0].create("third", "", SIZE).await.unwrap();
    assert!(third > demo, "ids are never used again");
    all_restart(&mut pods, third).await;
}

/// Deletes the volume `demo`.
async fn two_of_three_answer(one: &TestPod, other: &TestPod, demo: u64) {
    let second = one.create("second", "", SIZE).await;
    let second = second.expect_err("two pods cannot hold three replicas");
    assert_eq!(second.code(), Code::FailedPrecondition, "{second}");
    let text = "volume second needs 3 replicas on different nodes, but only 2 nodes have a";
    assert!(second.message().contains(text), "{second}");

    let mut volumes = other.volumes().await;
    let name = "demo".to_owned();
    let get = GetVolumeRequest { name: name.clone(), uid: String::new() };
    let found = volumes.get(get).await.unwrap().into_inner();
    assert_eq!(found.status.unwrap().id, demo);
    let delete =
        DeleteVolumeRequest { name, retention_s: Some(0), ..DeleteVolumeRequest::default() };
    let late = DeleteVolumeRequest { uid: "another".to_owned(), ..delete.clone() };
    assert_eq!(volumes.delete(late).await.unwrap_err().code(), Code::NotFound);
    volumes.delete(delete.clone()).await.unwrap();
    volumes.delete(delete).await.expect("it is being deleted, as asked for");
    let deleting = |status: &StatusResponse| counts(&status.volumes, Phase::Deleting) == (1, 1);
    one.until("the deleted volume waits for the pod", deleting).await;
}

/// All pods stop, and come back on other ports.
async fn all_restart(pods: &mut [TestPod], volume: u64) {
    for pod in pods.iter_mut() {
        pod.stop().await;
    }
    let mut first: Option<SocketAddr> = None;
    for pod in pods.iter_mut() {
        pod.seeds = first.iter().map(SocketAddr::to_string).collect();
        pod.start().await;
        first.get_or_insert(pod.api());
    }
    let back = |status: &StatusResponse| {
        all_up(status, 3) && counts(&status.volumes, Phase::Ready) == (1, 1)
    };
    for pod in pods.iter() {
        pod.until("everybody is back", back).await;
    }
    for pod in pods {
        let data_path = pod.data_path.clone().unwrap();
        let views = data_path.views.lock().unwrap().clone();
        assert!(views.is_sorted_by_key(|view| view.revision), "views only get newer");
        let mut volumes = views.last().unwrap().volumes.iter();
        assert!(volumes.any(|it| it.volume.0 == volume));
        pod.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_away_for_long_gets_the_whole_state() {
    let root = tempfile::tempdir().unwrap();
    let mut pods = three_pods(root.path()).await;
    pods[2].stop().await;
    pods[0].until("the others lead", |status| status.leader_pod < 3).await;
    // More entries than between two snapshots. After a restart the followers have only their logs.
    let mut volumes = pods[0].volumes().await;
    for _ in 0..600 {
        let name = "nothing".to_owned();
        let delete =
            DeleteVolumeRequest { name, retention_s: Some(0), ..DeleteVolumeRequest::default() };
        assert_eq!(volumes.delete(delete).await.unwrap_err().code(), Code::NotFound);
    }
    for pod in &mut pods[..2] {
        pod.stop().await;
    }
    pods[0].start().await;
    pods[1].seeds = vec![pods[0].api().to_string()];
    pods[1].start().await;
    let two =
        |status: &StatusResponse| counts(&status.disks, Phase::Up).0 == 3 && status.leader_pod > 0;
    pods[0].until("two of three lead", two).await;

    pods[2].seeds = vec![pods[0].api().to_string()];
    pods[2].start().await;
    pods[2].until("everybody is back", |status| all_up(status, 3)).await;
    // The pod holds the state itself: it can lead together with either of the others.
    let caught_up = async |pods: &[TestPod]| {
        let applied = |pod: &TestPod| pod.server.as_ref().unwrap().catalog_applied();
        let deadline = Instant::now() + PATIENCE;
        while applied(&pods[2]) < applied(&pods[0]) {
            assert!(Instant::now() < deadline, "the state never arrived");
            sleep(Duration::from_millis(50)).await;
        }
        applied(&pods[2])
    };
    assert!(caught_up(&pods).await > 600);
    pods[0].stop().await;
    let leads = |status: &StatusResponse| status.leader_pod == 2 || status.leader_pod == 3;
    pods[2].until("the others lead", leads).await;
    pods[1].stop().await;
    pods[2].stop().await;
}

/// The leader of the catalog reaches no shard, nor does the pod that it asks first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pod_carries_out_a_round_that_the_leader_cannot() {
    let root = tempfile::tempdir().unwrap();
    let mut pods = three_pods(root.path()).await;
    let spec = VolumeSpec { size_bytes: SIZE, closed: true, ..VolumeSpec::default() };
    let name = "far".to_owned();
    let create = CreateVolumeRequest { name, spec: Some(spec), ..CreateVolumeRequest::default() };
    pods[0].volumes().await.create(create).await.unwrap();
    let leader =
        pods[0].until("there is a leader", |status| status.leader_pod > 0).await.leader_pod;
    let asked_first = (1..).find(|pod| *pod != leader).expect("there are others");
    for pod in pods.iter().filter(|pod| [leader, asked_first].contains(&pod.id())) {
        let data_path = pod.data_path.as_ref().expect("it runs");
        data_path.is_cut_off.store(true, Ordering::Relaxed);
    }
    let (volume, node) = ("far".to_owned(), "node-1".to_owned());
    let request = PublishRequest { volume, node, ..PublishRequest::default() };
    let mut attachments = AttachmentsClient::connect(pods[0].endpoint()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(status) = attachments.publish(request.clone()).await {
        assert!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(50)).await;
    }
    for pod in &mut pods {
        pod.stop().await;
    }
}
