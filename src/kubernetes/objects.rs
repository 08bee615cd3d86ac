//! What the storage pods keep in Kubernetes:
//!
//! ```text
//! Secret    holdfast-cluster    record: the record of the bootstrap, JSON
//! Secret    holdfast-recovery   recovery-key, cluster: a person should copy it, and delete it here
//! ConfigMap holdfast-cluster    ca.crt (PEM), uid, endpoints: for programs of the namespace
//! ```
//!
//! The manifests make them, empty, so that storage pods need no right to make Secrets.

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret as SecretObject};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kubernetes::bootstrap::Record;
use crate::kubernetes::client::{is_conflict, is_missing, list_all};
use crate::security::secret::Secret;
use crate::types::Uuid;

const CLUSTER: &str = "holdfast-cluster";
const RECOVERY: &str = "holdfast-recovery";
const RECORD: &str = "record";

/// Why objects cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    #[error("could not {action} in Kubernetes")]
    Api {
        action: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the Secret {CLUSTER} holds a record that this version cannot read")]
    Record(#[source] serde_json::Error),
    #[error("{0} is not there: apply the manifests again, which make it anew, empty")]
    Missing(&'static str),
}

fn fail(action: &'static str) -> impl FnOnce(kube::Error) -> ObjectsError {
    move |source| ObjectsError::Api { action, source: Box::new(source) }
}

/// What programs of the namespace may know of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Public {
    /// PEM.
    pub authorities: String,
    pub uid: String,
    /// `host:port,...` of the pods' APIs.
    pub endpoints: String,
}

/// The objects of one namespace.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    namespace: String,
}

/// The record as it was read.
#[derive(Clone, Debug)]
pub struct Read {
    pub record: Option<Record>,
    /// What is to be replaced; `None`: there is no Secret.
    object: Option<SecretObject>,
}

impl Objects {
    pub fn new(client: Client, namespace: String) -> Objects {
        Objects { client, namespace }
    }

    fn secrets(&self) -> Api<SecretObject> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Reads the record.
    pub async fn record(&self) -> Result<Read, ObjectsError> {
        let object = self.secrets().get_opt(CLUSTER).await;
        let object = object.map_err(fail("read the Secret holdfast-cluster"))?;
        let data = object.as_ref().and_then(|object| object.data.as_ref()?.get(RECORD));
        let record = data.map(|data| serde_json::from_slice(&data.0)).transpose();
        Ok(Read { record: record.map_err(ObjectsError::Record)?, object })
    }

    /// Replaces the record; false: somebody else has changed it since it was read.
    pub async fn write(&self, read: &Read, record: &Record) -> Result<bool, ObjectsError> {
        let bytes = serde_json::to_vec(record).map_err(ObjectsError::Record)?;
        let missing = ObjectsError::Missing("the Secret holdfast-cluster");
        let mut object = read.object.clone().ok_or(missing)?;
        object.data.get_or_insert_default().insert(RECORD.to_owned(), ByteString(bytes));
        let written = put(&self.secrets(), &object).await;
        written.map_err(fail("write the Secret holdfast-cluster"))
    }

    /// Leaves the recovery key of a cluster for a person; false: somebody else has changed the
    /// object meanwhile.
    pub async fn leave_recovery_key(
        &self,
        cluster: Uuid,
        key: &Secret,
    ) -> Result<bool, ObjectsError> {
        let data = [
            ("cluster".to_owned(), ByteString(cluster.to_string().into_bytes())),
            ("recovery-key".to_owned(), ByteString(key.expose().to_vec())),
        ];
        let found = self.secrets().get_opt(RECOVERY).await;
        let found = found.map_err(fail("read the Secret holdfast-recovery"))?;
        let mut object = found.ok_or(ObjectsError::Missing("the Secret holdfast-recovery"))?;
        object.data = Some(BTreeMap::from(data));
        let written = put(&self.secrets(), &object).await;
        written.map_err(fail("write the Secret holdfast-recovery"))
    }

    /// What is published.
    pub async fn public(&self) -> Result<Public, ObjectsError> {
        let found = self.config_maps().get_opt(CLUSTER).await;
        Ok(public_of(found.map_err(fail("read the ConfigMap holdfast-cluster"))?.as_ref()))
    }

    /// Publishes what `change` makes of what is published.
    pub async fn publish(&self, change: impl Fn(&Public) -> Public) -> Result<(), ObjectsError> {
        let found = self.config_maps().get_opt(CLUSTER).await;
        let found = found.map_err(fail("read the ConfigMap holdfast-cluster"))?;
        let before = public_of(found.as_ref());
        let now = change(&before);
        if now == before {
            return Ok(());
        }
        let mut object = found.ok_or(ObjectsError::Missing("the ConfigMap holdfast-cluster"))?;
        let data = object.data.get_or_insert_default();
        data.insert("ca.crt".to_owned(), now.authorities);
        data.insert("uid".to_owned(), now.uid);
        data.insert("endpoints".to_owned(), now.endpoints);
        // What another one has written meanwhile is looked at the next time.
        let written = put(&self.config_maps(), &object).await;
        written.map(drop).map_err(fail("write the ConfigMap holdfast-cluster"))
    }

    /// The names of the nodes that a selector of labels matches.
    pub async fn nodes(&self, selector: &str) -> Result<Vec<String>, ObjectsError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let params = ListParams::default().labels(selector);
        let found = list_all(&nodes, params).await.map_err(fail("list the nodes"))?;
        Ok(found.into_iter().filter_map(|node| node.metadata.name).collect())
    }
}

fn public_of(found: Option<&ConfigMap>) -> Public {
    let data = found.and_then(|found| found.data.clone()).unwrap_or_default();
    let of = |key: &str| data.get(key).cloned().unwrap_or_default();
    Public { authorities: of("ca.crt"), uid: of("uid"), endpoints: of("endpoints") }
}

/// Replaces an object that was read; false: it has changed meanwhile.
async fn put<K>(api: &Api<K>, object: &K) -> Result<bool, kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Serialize + kube::Resource,
{
    let name = object.meta().name.clone().unwrap_or_default();
    match api.replace(&name, &PostParams::default(), object).await {
        Ok(_) => Ok(true),
        Err(error) if is_conflict(&error) || is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
