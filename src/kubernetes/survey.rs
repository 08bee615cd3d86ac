//! Reads the objects of a Kubernetes cluster that [`crate::kubernetes::doctor`] judges.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::control::catalog::chain;
use crate::kubernetes::client::{is_missing, list_all};
use crate::kubernetes::failover::ObjectRef;
use crate::kubernetes::storage_of::{Claim, Owner, claims_of, owner_of};

const OURS: &str = "app.kubernetes.io/name=holdfast";

/// Objects, or why they cannot be listed.
pub type Listed<T> = Result<Vec<T>, String>;

/// The objects of a cluster, at one time.
#[derive(Debug)]
pub struct Survey {
    pub now: Timestamp,
    pub driver_name: String,
    pub namespace: String,
    /// Major and minor.
    pub version: Result<(u32, u32), String>,
    pub driver: Result<Option<CSIDriver>, String>,
    pub classes: Listed<StorageClass>,
    pub nodes: Listed<Node>,
    pub csi_nodes: Listed<CSINode>,
    /// Ours.
    pub daemon_sets: Listed<DaemonSet>,
    /// Ours.
    pub deployments: Listed<Deployment>,
    /// Ours, and those that use our volumes.
    pub pods: Listed<SurveyedPod>,
    pub budgets: Listed<PodDisruptionBudget>,
    /// Of our driver.
    pub attachments: Listed<VolumeAttachment>,
}

/// A pod, and the claims of our volumes that it uses.
#[derive(Clone, Debug)]
pub struct SurveyedPod {
    pub pod: Pod,
    pub claims: Vec<Claim>,
}

impl Survey {
    /// Reads all of it. `driver_name`: of our CSI driver. `namespace`: of our programs.
    pub async fn read(client: &Client, driver_name: &str, namespace: &str) -> Survey {
        let everywhere = ListParams::default;
        let ours = || ListParams::default().labels(OURS);
        let drivers: Api<CSIDriver> = Api::all(client.clone());
        let attachments = said(list_all(&Api::all(client.clone()), everywhere()).await);
        let is_ours = |it: &VolumeAttachment| it.spec.attacher == driver_name;
        Survey {
            now: Timestamp::now(),
            driver_name: driver_name.to_owned(),
            namespace: namespace.to_owned(),
            version: version(client).await,
            driver: match drivers.get(driver_name).await {
                Err(error) if is_missing(&error) => Ok(None),
                other => said(other).map(Some),
            },
            classes: said(list_all(&Api::all(client.clone()), everywhere()).await),
            nodes: said(list_all(&Api::all(client.clone()), everywhere()).await),
            csi_nodes: said(list_all(&Api::all(client.clone()), everywhere()).await),
            daemon_sets: said(list_all(&Api::namespaced(client.clone(), namespace), ours()).await),
            deployments: said(list_all(&Api::namespaced(client.clone(), namespace), ours()).await),
            pods: pods(client, driver_name, namespace).await,
            budgets: said(list_all(&Api::all(client.clone()), everywhere()).await),
            attachments: attachments.map(|all| all.into_iter().filter(is_ours).collect()),
        }
    }
}

async fn version(client: &Client) -> Result<(u32, u32), String> {
    let info = said(client.apiserver_version().await)?;
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse::<u32>()
            .map_err(|_| format!("the version {:?} is no number", info.git_version))
    };
    Ok((number(&info.major)?, number(&info.minor)?))
}

async fn pods(client: &Client, driver: &str, namespace: &str) -> Listed<SurveyedPod> {
    let volumes: Vec<PersistentVolume> =
        said(list_all(&Api::all(client.clone()), ListParams::default()).await)?;
    let claims: BTreeSet<Claim> = volumes.into_iter().filter_map(|it| claim(it, driver)).collect();
    let pods: Vec<Pod> = said(list_all(&Api::all(client.clone()), ListParams::default()).await)?;
    let surveyed = pods.into_iter().filter_map(|pod| {
        let meta = &pod.metadata;
        let (namespace_of, name) = (meta.namespace.clone()?, meta.name.clone()?);
        let is_ours = namespace_of == namespace && is_labelled(meta.labels.as_ref());
        let own = ObjectRef { namespace: namespace_of, name, uid: String::new() };
        let mut claims_here = claims_of(&own, &pod);
        claims_here.retain(|claim| claims.contains(claim));
        (is_ours || !claims_here.is_empty()).then_some(SurveyedPod { pod, claims: claims_here })
    });
    Ok(surveyed.collect())
}

/// The claim of one of our volumes.
fn claim(volume: PersistentVolume, driver: &str) -> Option<Claim> {
    let spec = volume.spec.filter(|spec| matches!(owner_of(spec, driver), Owner::Holdfast(_)))?;
    let claim = spec.claim_ref?;
    Some((claim.namespace?, claim.name?))
}

fn is_labelled(labels: Option<&BTreeMap<String, String>>) -> bool {
    let (key, value) = OURS.split_once('=').expect("it is a pair");
    labels.and_then(|labels| labels.get(key)).is_some_and(|it| it == value)
}

fn said<T>(result: Result<T, kube::Error>) -> Result<T, String> {
    result.map_err(|error| chain(&error))
}
