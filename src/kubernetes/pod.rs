//! A storage pod in Kubernetes: carries out the steps of [`crate::kubernetes::bootstrap`] until it
//! can serve, and writes down afterwards which cluster there is.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

use crate::config::Config;
use crate::control::catalog::chain;
use crate::control::command::Addresses;
use crate::control::enrol::{self, EnrolError, Proof};
use crate::control::identity::{IdentityError, PodDirectory, peek};
use crate::control::local::socket_of;
use crate::control::machine::this_node;
use crate::control::proto::GetAuthoritiesRequest;
use crate::control::proto::credentials_client::CredentialsClient;
use crate::csi::api::{Api, Deadline, OpenError as OpenApiError};
use crate::kubernetes::authorities::{Told, published};
use crate::kubernetes::bootstrap::{
    Expected, Home, OtherCluster, Own, Report, Step, decide, publish,
};
use crate::kubernetes::client::{self, OpenError};
use crate::kubernetes::enrol::{GetError, read_token, roots_of};
use crate::kubernetes::home::{self, HomeError};
use crate::kubernetes::objects::{Objects, ObjectsError, Public};
use crate::kubernetes::patience::Patience;
use crate::security::trust::Trust;
use crate::types::{ParseUuidError, Uuid};

/// Between two looks at what is published.
const PUBLISH_EVERY: Duration = Duration::from_secs(60);
/// Between two looks whether this pod has an identity yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The time in which the catalog has to say whom to trust.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a step failed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the ConfigMap holdfast-cluster names no cluster")]
    Uid(#[from] ParseUuidError),
    #[error("the record of the bootstrap names unusable authorities")]
    Authorities(#[from] GetError),
    #[error("could not read the token of the service account from {}", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not join cluster {cluster}")]
    Join {
        cluster: Uuid,
        #[source]
        source: EnrolError,
    },
    #[error("cluster {0} has no pod that has reported its address")]
    Nobody(Uuid),
    #[error(transparent)]
    OtherCluster(#[from] OtherCluster),
    #[error("could not ask this pod")]
    Api(#[from] OpenApiError),
}

/// What a storage pod is told at its start.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Filled in for this node.
    pub config: Config,
    /// Name of the Node object.
    pub node: String,
    pub namespace: String,
    /// Of the labels of storage nodes.
    pub selector: String,
    /// The storage nodes by name; empty: those that the selector matches.
    pub named: Vec<String>,
    /// There must be as many before a cluster is made.
    pub least: usize,
    /// File with the token of the service account, for the audience of Holdfast.
    pub token: PathBuf,
}

/// What comes of one step.
enum Then {
    Serve(Box<Config>),
    LookAgain,
    Wait(String),
}

/// Returns the configuration to serve with, when this pod can serve. A pod with an identity can,
/// and nobody is asked.
pub async fn bootstrap(setting: &Setting) -> Result<Config, IdentityError> {
    let mut directory = PodDirectory::open(&setting.config.data)?;
    if directory.file().identity.is_some() {
        return Ok(setting.config.clone());
    }
    let (mut patience, mut objects) = (Patience::default(), None);
    loop {
        match step(setting, &mut directory, &mut objects).await {
            Ok(Then::Serve(config)) => return Ok(*config),
            Ok(Then::LookAgain) => patience.renew(),
            Ok(Then::Wait(why)) => patience.wait(&why).await,
            Err(error) => patience.wait(&chain(&error)).await,
        }
    }
}

async fn step(
    setting: &Setting,
    directory: &mut PodDirectory,
    opened: &mut Option<Objects>,
) -> Result<Then, PodError> {
    let objects = match opened {
        Some(objects) => objects,
        None => {
            let objects = Objects::new(client::open().await?, setting.namespace.clone());
            opened.insert(objects)
        }
    };
    let Setting { config, .. } = setting;
    let own = Own {
        node: setting.node.clone(),
        report: Report {
            uid: directory.file().uid,
            api: config.api_address().to_string(),
            home: home::look(config, directory),
        },
        prepared: home::prepared(&config.data)?,
        authorities: home::authorities(&config.data),
    };
    let read = objects.record().await?;
    let known = match objects.public().await?.uid.as_str() {
        "" => None,
        uid => Some(uid.parse()?),
    };
    let expected = expected(setting, objects).await?;
    let step = decide(&own, read.record.as_ref(), known, &expected);
    match step {
        Step::Serve => Ok(Then::Serve(Box::new(config.clone()))),
        Step::Wait(why) => Ok(Then::Wait(why.to_string())),
        Step::Write(record) => objects.write(&read, &record).await.map(|_| Then::LookAgain),
        Step::Prepare => {
            home::prepare(config)?;
            tracing::info!("this node has made the keys of a new cluster");
            return Ok(Then::LookAgain);
        }
        Step::Make { cluster } => {
            home::take_prepared(&config.data)?;
            let key = home::recovery_key(&config.data)?;
            if !objects.leave_recovery_key(cluster, &key).await? {
                return Ok(Then::LookAgain);
            }
            tracing::info!(%cluster, "this node makes the cluster");
            return Ok(Then::Serve(Box::new(Config { init: true, ..config.clone() })));
        }
        Step::Join { cluster, authorities, pods } => {
            home::abandon_prepared(&config.data)?;
            join(setting, directory, cluster, &authorities, &pods).await?;
            return Ok(Then::Serve(Box::new(Config { join: pods, ..config.clone() })));
        }
    }
    .map_err(PodError::from)
}

async fn expected(setting: &Setting, objects: &Objects) -> Result<Expected, ObjectsError> {
    let nodes = match setting.named.is_empty() {
        true => objects.nodes(&setting.selector).await?,
        false => setting.named.clone(),
    };
    let nodes: std::collections::BTreeSet<String> = nodes.into_iter().collect();
    // Names say how many there are.
    let least = if setting.named.is_empty() { setting.least } else { nodes.len() };
    Ok(Expected { nodes, least })
}

/// Joins by the first pod that lets this one in.
async fn join(
    setting: &Setting,
    directory: &mut PodDirectory,
    cluster: Uuid,
    authorities: &str,
    pods: &[String],
) -> Result<(), PodError> {
    let Setting { config, token, .. } = setting;
    let roots = roots_of(token, authorities.as_bytes())?;
    let trust = Trust::new(cluster, roots);
    let read = read_token(token);
    let token = read.map_err(|source| PodError::Token { path: token.clone(), source })?;
    let proof = Proof::ServiceAccount { token: &token, trust: &trust };
    let addresses = Addresses {
        api: config.api_address(),
        peer: config.peer_address(),
        nbd: Some(config.nbd_address()),
    };
    let mut last = PodError::Nobody(cluster);
    for pod in pods {
        match enrol::join(pod, proof, directory, addresses, this_node(config)).await {
            Ok(identity) => {
                tracing::info!(%cluster, pod = identity.pod.0, "this node has joined the cluster");
                return Ok(());
            }
            Err(source) => last = PodError::Join { cluster, source },
        }
    }
    Err(last)
}

/// Writes down for ever which cluster there is and where its pods are, once this pod is part of it.
pub async fn publish_for_ever(setting: Setting) {
    let (mut patience, mut opened) = (Patience::default(), Opened::default());
    loop {
        match publish_once(&setting, &mut opened).await {
            Ok(true) => {
                patience.renew();
                sleep(PUBLISH_EVERY).await;
            }
            Ok(false) => sleep(LOOK_EVERY).await,
            Err(error) => patience.wait(&chain(&error)).await,
        }
    }
}

/// What stays open between two looks.
#[derive(Default)]
struct Opened {
    objects: Option<Objects>,
    /// Of this pod itself.
    api: Option<Api>,
}

/// False: it has to be done again soon.
async fn publish_once(setting: &Setting, opened: &mut Opened) -> Result<bool, PodError> {
    let Setting { config, node, namespace, .. } = setting;
    let Some(file) = peek(&config.data) else { return Ok(false) };
    let Some(identity) = file.identity else { return Ok(false) };
    let objects = match &mut opened.objects {
        Some(objects) => objects,
        none => none.insert(Objects::new(client::open().await?, namespace.clone())),
    };
    let cluster = identity.cluster;
    let own = Own {
        node: node.clone(),
        report: Report {
            uid: file.uid,
            api: config.api_address().to_string(),
            home: Home::Member { cluster },
        },
        prepared: None,
        authorities: home::authorities(&config.data),
    };
    let read = objects.record().await?;
    let told = told(setting, &mut opened.api).await?;
    let record = match publish(&own, read.record.as_ref(), told.as_ref())? {
        Some(record) if !objects.write(&read, &record).await? => return Ok(false),
        Some(record) => record,
        None => read.record.unwrap_or_default(),
    };
    let endpoints = record.pods_of(cluster).join(",");
    let publics = |before: &Public| Public {
        authorities: published(&before.authorities, &own.authorities, told.as_ref()),
        uid: cluster.to_string(),
        endpoints: endpoints.clone(),
    };
    objects.publish(publics).await?;
    home::forget_prepared(&config.data)?;
    Ok(true)
}

/// The authorities, as the catalog says; `None`: it does not answer. It is asked by way of this
/// pod.
async fn told(setting: &Setting, opened: &mut Option<Api>) -> Result<Option<Told>, OpenApiError> {
    let api = match opened {
        Some(api) => api,
        None => {
            let endpoint = format!("unix:{}", socket_of(&setting.config.data).display());
            opened.insert(Api::new(&endpoint, None)?)
        }
    };
    let asked = GetAuthoritiesRequest {};
    let answer = api.call(Deadline::after(ANSWER_WITHIN), asked, async |channel, call| {
        CredentialsClient::new(channel).get_authorities(call).await
    });
    match answer.await {
        Ok(answer) => {
            let all = answer.authorities.into_iter();
            let fingerprints = all.map(|it| it.fingerprint).collect();
            Ok(Some(Told { fingerprints, others: answer.others_trusted }))
        }
        Err(error) => {
            tracing::debug!("the catalog does not say whom to trust: {}", chain(&error));
            Ok(None)
        }
    }
}
