//! What Kubernetes says of nodes, for the fail-over, and the changes that it makes there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Event, EventSource, Node as KubeObject, ObjectReference, PersistentVolume, Pod, Taint,
};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::kubernetes::client::{is_conflict, is_missing, list_all};
use crate::kubernetes::failover::{Handle, KubeNode, ObjectRef, UsingPod};
use crate::kubernetes::storage_of::{Claim, Owner, claims_of, owner_of, used_by};

/// Keeps Pods away from a lost node.
pub const TAINT: &str = "holdfast.io/lost";
/// Where a kubelet listens that does not say otherwise.
const KUBELET_PORT: u16 = 10250;
/// A machine may have many network cards.
const KUBELET_ADDRESSES_MAX: usize = 8;
const LEASES: &str = "kube-node-lease";

/// Why Kubernetes cannot be asked or changed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} in Kubernetes")]
pub struct KubeError {
    action: &'static str,
    #[source]
    source: Box<kube::Error>,
}

fn fail(action: &'static str) -> impl FnOnce(kube::Error) -> KubeError {
    move |source| KubeError { action, source: Box::new(source) }
}

/// What is listed once for all nodes that are looked at.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Our PersistentVolumes by name.
    volumes: BTreeMap<String, Handle>,
    /// Whose the volume of each claim is.
    claims: BTreeMap<Claim, Owner>,
    /// VolumeAttachments of our driver, by node, with the names of PersistentVolumes.
    attachments: Vec<(String, ObjectRef, String)>,
}

/// What Kubernetes says of one node.
#[derive(Clone, Debug, Default)]
pub struct OfNode {
    /// `None`: there is no such object. The age of the Lease is not filled in.
    pub kube: Option<KubeNode>,
    /// VolumeAttachments of our driver.
    pub attachments: Vec<(ObjectRef, Handle)>,
    pub pods: Vec<UsingPod>,
    /// The claims of our volumes that Pods use, by the uid of the Pod.
    pub claims: BTreeMap<String, Vec<Claim>>,
}

/// The API server of Kubernetes.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    driver: String,
}

impl Kubernetes {
    /// `driver`: name of our CSI driver.
    pub fn new(client: Client, driver: String) -> Kubernetes {
        Kubernetes { client, driver }
    }

    /// When each kubelet has renewed its Lease, as it says.
    pub async fn leases(&self) -> Result<BTreeMap<String, String>, KubeError> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let leases =
            list_all(&leases, ListParams::default()).await.map_err(fail("list the Leases"))?;
        let renewed = leases.into_iter().filter_map(|lease| {
            let time = lease.spec.and_then(|spec| spec.renew_time);
            Some((lease.metadata.name?, time.map(|time| time.0.to_string()).unwrap_or_default()))
        });
        Ok(renewed.collect())
    }

    /// The nodes on which Pods with these labels run, and are ready.
    pub async fn nodes_of_pods(
        &self,
        namespace: &str,
        selector: &str,
    ) -> Result<BTreeSet<String>, KubeError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels(selector);
        let pods =
            list_all(&pods, params).await.map_err(fail("list the Pods of the controller"))?;
        Ok(pods.into_iter().filter(is_ready).filter_map(|pod| pod.spec?.node_name).collect())
    }

    /// Where the kubelet of a node listens (`IP:PORT`); `None`: there is no such Node object.
    pub async fn kubelet_of(&self, node: &str) -> Result<Option<Vec<String>>, KubeError> {
        let found = self.nodes().get_opt(node).await.map_err(fail("read a Node"))?;
        Ok(found.map(|node| kubelet_addresses(&node)))
    }

    /// The nodes that have our taint.
    pub async fn tainted(&self) -> Result<Vec<String>, KubeError> {
        let nodes: Api<KubeObject> = Api::all(self.client.clone());
        let nodes =
            list_all(&nodes, ListParams::default()).await.map_err(fail("list the Nodes"))?;
        let tainted = nodes.into_iter().filter(|node| taints(node).iter().any(is_ours));
        Ok(tainted.filter_map(|node| node.metadata.name).collect())
    }

    /// Lists the volumes and attachments of the whole cluster.
    pub async fn inventory(&self) -> Result<Inventory, KubeError> {
        let mut all_of = Inventory::default();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volumes = list_all(&volumes, ListParams::default()).await;
        for volume in volumes.map_err(fail("list the PersistentVolumes"))? {
            let Some(spec) = volume.spec else { continue };
            let owner = owner_of(&spec, &self.driver);
            if let (Owner::Holdfast(handle), Some(name)) = (&owner, volume.metadata.name) {
                all_of.volumes.insert(name, handle.clone());
            }
            let claim = spec.claim_ref.and_then(|claim| Some((claim.namespace?, claim.name?)));
            if let Some(claim) = claim {
                all_of.claims.insert(claim, owner);
            }
        }
        let attachments: Api<VolumeAttachment> = Api::all(self.client.clone());
        let attachments = list_all(&attachments, ListParams::default()).await;
        for found in attachments.map_err(fail("list the VolumeAttachments"))? {
            let spec = found.spec;
            if let (true, Some(volume)) =
                (spec.attacher == self.driver, spec.source.persistent_volume_name)
            {
                all_of.attachments.push((spec.node_name, reference(&found.metadata), volume));
            }
        }
        Ok(all_of)
    }

    /// All that matters of one node.
    pub async fn of_node(&self, node: &str, all: &Inventory) -> Result<OfNode, KubeError> {
        let object = self.nodes().get_opt(node).await.map_err(fail("read a Node"))?;
        let prefix = self.in_use_prefix();
        let kube = object.map(|object| {
            let in_use = object.status.as_ref().and_then(|status| status.volumes_in_use.clone());
            let in_use = in_use.unwrap_or_default();
            let ours = in_use.iter().filter_map(|it| it.strip_prefix(&prefix));
            KubeNode {
                tainted: taints(&object).iter().any(is_ours),
                in_use: ours.map(str::to_owned).collect(),
                lease_age: None,
            }
        });
        let ours = all.attachments.iter().filter(|(of, ..)| of == node);
        let attachments = ours.filter_map(|(_, attachment, volume)| {
            Some((attachment.clone(), all.volumes.get(volume)?.clone()))
        });
        let mut found = OfNode { kube, attachments: attachments.collect(), ..OfNode::default() };
        self.pods_of(node, &all.claims, &mut found).await?;
        Ok(found)
    }

    async fn pods_of(
        &self,
        node: &str,
        owners: &BTreeMap<Claim, Owner>,
        found: &mut OfNode,
    ) -> Result<(), KubeError> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        for pod in list_all(&pods, params).await.map_err(fail("list the Pods of a node"))? {
            // Servers choose by the field; a server that does not must not cost a Pod its life.
            if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(node) {
                continue;
            }
            let used = used_by(reference(&pod.metadata), &pod, owners);
            let is_ours = |claim: &Claim| matches!(owners.get(claim), Some(Owner::Holdfast(_)));
            let claims = claims_of(&used.object, &pod).into_iter().filter(is_ours);
            found.claims.insert(used.object.uid.clone(), claims.collect());
            found.pods.push(used);
        }
        Ok(())
    }

    fn nodes(&self) -> Api<KubeObject> {
        Api::all(self.client.clone())
    }

    fn in_use_prefix(&self) -> String {
        format!("kubernetes.io/csi/{}^", self.driver)
    }

    /// Adds our taint to a node, or takes it away.
    pub async fn set_taint(&self, node: &str, wanted: bool) -> Result<(), KubeError> {
        let action = "change the taints of a Node";
        let Some(object) = self.nodes().get_opt(node).await.map_err(fail(action))? else {
            return Ok(());
        };
        let mut now = taints(&object);
        if now.iter().any(is_ours) == wanted {
            return Ok(());
        }
        now.retain(|taint| !is_ours(taint));
        if wanted {
            let effect = "NoSchedule".to_owned();
            now.push(Taint { key: TAINT.to_owned(), effect, ..Taint::default() });
        }
        let patch = json!({ "metadata": unchanged(&object.metadata), "spec": { "taints": now } });
        let params = PatchParams::default();
        let patched = self.nodes().patch(node, &params, &Patch::Merge(&patch)).await;
        settled(patched).map_err(fail(action))
    }

    /// Takes volumes from what a node uses, as its kubelet would when it has unmounted them.
    pub async fn remove_in_use(
        &self,
        node: &str,
        volumes: &BTreeSet<Handle>,
    ) -> Result<(), KubeError> {
        let action = "change the status of a Node";
        let Some(object) = self.nodes().get_opt(node).await.map_err(fail(action))? else {
            return Ok(());
        };
        let prefix = self.in_use_prefix();
        let before = object.status.and_then(|status| status.volumes_in_use).unwrap_or_default();
        let stays =
            |it: &&String| it.strip_prefix(&prefix).is_none_or(|handle| !volumes.contains(handle));
        let now: Vec<&String> = before.iter().filter(stays).collect();
        let status = json!({ "volumesInUse": now });
        let patch = json!({ "metadata": unchanged(&object.metadata), "status": status });
        let params = PatchParams::default();
        let patched = self.nodes().patch_status(node, &params, &Patch::Merge(&patch)).await;
        settled(patched).map_err(fail(action))
    }

    /// Deletes a VolumeAttachment, if it is still the same.
    pub async fn delete_attachment(&self, attachment: &ObjectRef) -> Result<(), KubeError> {
        let attachments: Api<VolumeAttachment> = Api::all(self.client.clone());
        let deleted = attachments.delete(&attachment.name, &only(attachment, None)).await;
        settled(deleted).map_err(fail("delete a VolumeAttachment"))
    }

    /// Deletes a Pod at once, if it is still the same.
    pub async fn delete_pod(&self, pod: &ObjectRef) -> Result<(), KubeError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let deleted = pods.delete(&pod.name, &only(pod, Some(0))).await;
        settled(deleted).map_err(fail("delete a Pod"))
    }

    /// Tells people of something. The same key is told once.
    pub async fn tell(&self, about: About<'_>, told: Told<'_>) -> Result<(), KubeError> {
        let About { kind, namespace, name } = about;
        let of = if namespace.is_empty() { "default" } else { namespace };
        let now = Time(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("holdfast-{}", told.key)),
                namespace: Some(of.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                kind: Some(kind.to_owned()),
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()).filter(|it| !it.is_empty()),
                // The kubelet tells of nodes by their names.
                uid: (kind == "Node").then(|| name.to_owned()),
                ..ObjectReference::default()
            },
            reason: Some(told.reason.to_owned()),
            message: Some(told.message.to_owned()),
            type_: Some(if told.is_warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource { component: Some("holdfast".to_owned()), host: None }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), of);
        let told = events.create(&PostParams::default(), &event).await;
        settled(told).map_err(fail("tell of an event"))
    }
}

/// What an event is about. Without a namespace: of the whole cluster.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// What an event says.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Letters, digits and dashes.
    pub key: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
    pub is_warning: bool,
}

/// All of its addresses within the cluster.
fn kubelet_addresses(node: &KubeObject) -> Vec<String> {
    let Some(status) = &node.status else { return Vec::new() };
    let port = status.daemon_endpoints.as_ref().and_then(|it| it.kubelet_endpoint.as_ref());
    let port = port.and_then(|it| u16::try_from(it.port).ok()).unwrap_or(KUBELET_PORT);
    let all = status.addresses.iter().flatten().filter(|it| it.type_ == "InternalIP");
    let all = all.filter_map(|it| it.address.parse::<IpAddr>().ok()).take(KUBELET_ADDRESSES_MAX);
    all.map(|ip| SocketAddr::new(ip, port).to_string()).collect()
}

fn taints(node: &KubeObject) -> Vec<Taint> {
    node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
}

fn is_ours(taint: &Taint) -> bool {
    taint.key == TAINT
}

fn reference(meta: &ObjectMeta) -> ObjectRef {
    ObjectRef {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    }
}

/// True for a Pod that runs, is ready, and stays.
fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let is_ready = conditions
        .is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"));
    let is_running = status.and_then(|status| status.phase.as_deref()) == Some("Running");
    is_running && is_ready && pod.metadata.deletion_timestamp.is_none()
}

/// A patch is refused when the object has changed since it was read.
fn unchanged(meta: &ObjectMeta) -> Value {
    json!({ "resourceVersion": meta.resource_version })
}

fn only(object: &ObjectRef, grace_period_seconds: Option<u32>) -> DeleteParams {
    let preconditions = Preconditions { uid: Some(object.uid.clone()), resource_version: None };
    DeleteParams {
        grace_period_seconds,
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    }
}

/// What has changed meanwhile, or is gone, is looked at anew.
fn settled<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if !is_conflict(&error) && !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}
