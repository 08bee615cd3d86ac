//! What Holdfast's catalog says of nodes, for the fail-over: asked over the API, as by anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;

use crate::control::catalog::chain;
use crate::control::proto::attachments_client::AttachmentsClient;
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::events_client::EventsClient;
use crate::control::proto::nodes_client::NodesClient;
use crate::control::proto::pods_client::PodsClient;
use crate::control::proto::volumes_client::VolumesClient;
use crate::control::proto::{
    CheckReachableRequest, DeclareLostRequest, GetVolumeRequest, ListAttachmentsRequest,
    ListEventsRequest, ListNodesRequest, ListPodsRequest, Phase, Pod, Query, StatusRequest,
};
use crate::control::reason::Reason;
use crate::csi::api::{Api, ApiError, Deadline, OpenError};
use crate::kubernetes::failover::{Handle, Node, Probes};
use crate::security::credentials::Tls;

/// The time for one question.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The time for one pod to try whether it reaches a machine.
const PROBE_WITHIN: Duration = Duration::from_secs(3);
const PAGE: u32 = 1000;
/// Pods outside of the catalog that try to reach a machine.
const PROBERS: usize = 5;
/// Pods of a machine that are tried: with its other addresses, 16 are allowed.
const PODS_TRIED_MAX: usize = 8;

/// The catalog's view of nodes.
#[derive(Debug, Default)]
pub struct CatalogView {
    /// Without what Kubernetes says.
    pub nodes: BTreeMap<String, Node>,
    /// The node of the pod that leads the catalog.
    pub leader: Option<String>,
    /// Nodes without storage pods.
    pub podless: BTreeSet<String>,
    pods: Vec<Pod>,
    cluster: String,
}

/// Asks the cluster.
pub struct Catalog {
    api: Api,
    tls: Option<Tls>,
}

impl Catalog {
    pub fn new(api: Api, tls: Option<Tls>) -> Catalog {
        Catalog { api, tls }
    }

    /// The nodes, how they are, and who leads.
    pub async fn view(&self) -> Result<CatalogView, ApiError> {
        let status = self.api.call(deadline(), StatusRequest {}, async |channel, call| {
            ClusterClient::new(channel).status(call).await
        });
        let status = status.await?;
        let pods = self.pods().await?;
        let leads = |pod: &&Pod| number(pod) == status.leader_pod && status.leader_pod > 0;
        let leader = pods.iter().find(leads).map(node_of);
        let mut view = CatalogView { pods, leader, cluster: status.cluster, ..Default::default() };
        let with_pods: BTreeSet<String> = view.pods.iter().map(node_of).collect();
        let mut token = String::new();
        loop {
            let asked = ListNodesRequest { query: Some(page(&token)) };
            let answer = self.api.call(deadline(), asked, async |channel, call| {
                NodesClient::new(channel).list(call).await
            });
            let answer = answer.await?;
            for node in answer.nodes {
                let status = node.status.unwrap_or_default();
                let is_silent = status.phase() == Phase::Unreachable;
                let (boot_id, is_lost) = (status.boot_id, status.lost);
                let seen = Node { boot_id, is_silent, is_lost, ..Node::default() };
                let name = node.meta.unwrap_or_default().name;
                if !with_pods.contains(&name) {
                    view.podless.insert(name.clone());
                }
                view.nodes.insert(name, seen);
            }
            token = answer.next_page_token;
            if token.is_empty() {
                return Ok(view);
            }
        }
    }

    async fn pods(&self) -> Result<Vec<Pod>, ApiError> {
        let (mut pods, mut token) = (Vec::new(), String::new());
        loop {
            let asked = ListPodsRequest { query: Some(page(&token)) };
            let answer = self.api.call(deadline(), asked, async |channel, call| {
                PodsClient::new(channel).list(call).await
            });
            let answer = answer.await?;
            pods.extend(answer.pods);
            token = answer.next_page_token;
            if token.is_empty() {
                return Ok(pods);
            }
        }
    }

    /// Those of these volumes that are among the `attached` ones of a node. A volume of another
    /// cluster counts as one that it has: nobody here can fence it.
    pub async fn held(
        &self,
        view: &CatalogView,
        attached: &BTreeSet<String>,
        volumes: &BTreeSet<Handle>,
    ) -> Result<BTreeSet<Handle>, ApiError> {
        let mut held = BTreeSet::new();
        for volume in volumes {
            let own = volume.split_once('/').filter(|(cluster, _)| *cluster == view.cluster);
            let is_held = match own {
                Some((_, uid)) => {
                    let name = self.name_of(uid).await?;
                    name.is_some_and(|name| attached.contains(&name))
                }
                None => true,
            };
            if is_held {
                held.insert(volume.clone());
            }
        }
        Ok(held)
    }

    /// The names of the volumes that a node has attachments of, or that shards have yet to take
    /// from it.
    pub async fn attached(&self, node: &str) -> Result<BTreeSet<String>, ApiError> {
        let (mut volumes, mut token) = (BTreeSet::new(), String::new());
        loop {
            let query = Some(page(&token));
            let asked =
                ListAttachmentsRequest { query, node: node.to_owned(), volume: String::new() };
            let answer = self.api.call(deadline(), asked, async |channel, call| {
                AttachmentsClient::new(channel).list(call).await
            });
            let answer = answer.await?;
            let specs = answer.attachments.into_iter().filter_map(|it| it.spec);
            volumes.extend(specs.map(|spec| spec.volume));
            token = answer.next_page_token;
            if token.is_empty() {
                return Ok(volumes);
            }
        }
    }

    async fn name_of(&self, uid: &str) -> Result<Option<String>, ApiError> {
        let asked = GetVolumeRequest { uid: uid.to_owned(), ..GetVolumeRequest::default() };
        let answer = self.api.call(deadline(), asked, async |channel, call| {
            VolumesClient::new(channel).get(call).await
        });
        match answer.await {
            Ok(volume) => Ok(volume.meta.map(|meta| meta.name)),
            // It is gone by now, and nobody can write to it.
            Err(error) if error.reason() == Some(Reason::NoSuchVolume) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The time since a node was declared lost the last time; `None`: that was never, or long ago.
    pub async fn since_last(&self) -> Result<Option<Duration>, ApiError> {
        let (mut last_ms, mut token) = (None, String::new());
        loop {
            let asked = ListEventsRequest {
                query: Some(page(&token)),
                object_kind: "node".to_owned(),
                object_name: String::new(),
            };
            let answer = self.api.call(deadline(), asked, async |channel, call| {
                EventsClient::new(channel).list(call).await
            });
            let answer = answer.await?;
            let lost = answer.events.iter().filter(|event| event.reason == "NodeLost");
            last_ms = last_ms.max(lost.map(|event| event.last_unix_ms).max());
            token = answer.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The clocks of two machines may differ: what lies ahead has just happened.
        Ok(last_ms.map(|ms| now.saturating_sub(Duration::from_millis(ms))))
    }

    /// Lets pods try whether they reach a node: its pods, and programs at these addresses
    /// (`IP:PORT`).
    pub async fn probe(
        &self,
        view: &CatalogView,
        node: &str,
        addresses: &[String],
    ) -> Result<Probes, OpenError> {
        let (own, others): (Vec<&Pod>, Vec<&Pod>) =
            view.pods.iter().partition(|pod| node_of(pod) == node);
        let own: Vec<u64> = own.into_iter().map(number).take(PODS_TRIED_MAX).collect();
        let in_catalog = |pod: &Pod| matches!(role(pod), "leader" | "voter");
        let catalog = view.pods.iter().filter(|pod| in_catalog(pod)).count();
        let mut probes = Probes { catalog, ..Probes::default() };
        let is_up = |pod: &&&Pod| pod.status.as_ref().is_some_and(|it| it.phase() == Phase::Up);
        let (voters, rest): (Vec<&Pod>, Vec<&Pod>) =
            others.iter().filter(is_up).partition(|pod| in_catalog(pod));
        let mut asked = JoinSet::new();
        let probers = voters.into_iter().map(|pod| (true, pod));
        for (votes, pod) in probers.chain(rest.into_iter().take(PROBERS).map(|pod| (false, pod))) {
            let endpoint = pod.status.as_ref().map(|status| status.api.clone());
            let endpoint = endpoint.unwrap_or_default();
            let api = Api::new(&endpoint, self.tls.as_ref())?;
            let (pods, addresses) = (own.clone(), addresses.to_vec());
            let request = CheckReachableRequest { pods, addresses };
            asked.spawn(async move {
                let until = Deadline::after(PROBE_WITHIN);
                let answer = api.call(until, request, async |channel, call| {
                    NodesClient::new(channel).check_reachable(call).await
                });
                match answer.await {
                    Ok(answer) => Some((votes, answer)),
                    Err(error) => {
                        let error = chain(&error);
                        tracing::info!(
                            pod = endpoint,
                            "a pod cannot tell whom it reaches: {error}"
                        );
                        None
                    }
                }
            });
        }
        while let Some(answer) = asked.join_next().await {
            match answer.ok().flatten() {
                Some((_, answer)) if answer.reached => probes.reached += 1,
                Some((true, answer)) if answer.tried => probes.catalog_failed += 1,
                _ => {}
            }
        }
        Ok(probes)
    }

    /// Declares a node lost in this boot.
    pub async fn declare_lost(&self, node: &str, boot_id: &str) -> Result<(), ApiError> {
        let asked = DeclareLostRequest { name: node.to_owned(), boot_id: boot_id.to_owned() };
        let answer = self.api.call(deadline(), asked, async |channel, call| {
            NodesClient::new(channel).declare_lost(call).await
        });
        answer.await.map(drop)
    }
}

fn deadline() -> Deadline {
    Deadline::after(ANSWER_WITHIN)
}

fn page(token: &str) -> Query {
    Query { page_size: PAGE, page_token: token.to_owned(), ..Query::default() }
}

/// The name of a pod is its number; its uid is another thing.
fn number(pod: &Pod) -> u64 {
    pod.meta.as_ref().and_then(|meta| meta.name.parse().ok()).unwrap_or(0)
}

fn node_of(pod: &Pod) -> String {
    pod.status.as_ref().map(|status| status.node.clone()).unwrap_or_default()
}

fn role(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("", |status| status.catalog.as_str())
}
