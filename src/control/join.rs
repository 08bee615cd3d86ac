//! How a pod that belongs to no cluster gets its identity.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use crate::config::Config;
use crate::control::command::{Addresses, NewNode};
use crate::control::connector::Connector;
use crate::control::identity::{Identity, IdentityError, PodDirectory};
use crate::control::membership::{MembershipError, initialise};
use crate::control::proto::internal::JoinRequest;
use crate::control::proto::internal::joining_client::JoiningClient;
use crate::control::tls::{OwnTlsError, load_subject, own_connector};
use crate::level::NEWEST;
use crate::types::{ParseUuidError, PodId};

const CALL_WITHIN: Duration = Duration::from_secs(15);
const RETRY_AFTER: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(
        "this pod belongs to no cluster: set `init = true` to make one, or set `join` to the API \
         addresses of pods of the cluster to join"
    )]
    Nowhere,
    #[error(
        "`init` would make a new cluster, but disk {disk} was used by a cluster before: restore \
         {data}/pod.json, or set `join`, or use an empty directory"
    )]
    UsedDisk { disk: PathBuf, data: PathBuf },
    #[error("the cluster does not take this pod: {}", .0.message())]
    Refused(Status),
    #[error("the cluster has a malformed identity")]
    Identity(#[from] ParseUuidError),
    #[error(transparent)]
    File(#[from] IdentityError),
    #[error("could not make a new cluster")]
    Initialise(#[from] MembershipError),
    #[error(transparent)]
    Tls(#[from] OwnTlsError),
}

/// Returns the identity of this pod: its own, or a new one as the configuration says, with the API
/// addresses of other pods. Tries again until a pod of the cluster decides.
pub async fn identity(
    config: &Config,
    directory: &mut PodDirectory,
    addresses: Addresses,
    node: &NewNode,
) -> Result<(Identity, Vec<String>), JoinError> {
    if let Some(identity) = directory.file().identity {
        return Ok((identity, Vec::new()));
    }
    if config.init {
        for disk in &config.disks {
            if disk.path.join("superblock").exists() {
                let (disk, data) = (disk.path.clone(), config.data.clone());
                return Err(JoinError::UsedDisk { disk, data });
            }
        }
        // Its certificate was issued before there was a cluster.
        let cluster = load_subject(&config.data)?.map(|subject| subject.cluster);
        let identity = initialise(directory, addresses, node.clone(), cluster)?;
        tracing::info!(cluster = %identity.cluster, "made a new cluster");
        return Ok((identity, Vec::new()));
    }
    if config.join.is_empty() {
        return Err(JoinError::Nowhere);
    }
    let request = JoinRequest {
        uid: directory.file().uid.to_string(),
        api: addresses.api.to_string(),
        peer: addresses.peer.to_string(),
        nbd: addresses.nbd.map(|nbd| nbd.to_string()).unwrap_or_default(),
        newest_level: NEWEST.0,
        node: Some(node.clone().into()),
    };
    let connector = own_connector(&config.data)?;
    for seed in config.join.iter().cycle() {
        match ask(seed, &request, connector.as_ref()).await {
            Ok((identity, others)) => {
                directory.set_identity(identity)?;
                tracing::info!(cluster = %identity.cluster, pod = identity.pod.0, "joined");
                return Ok((identity, others));
            }
            Err(JoinError::Refused(status)) if is_passing(&status) => {
                tracing::info!("{seed} cannot take this pod yet: {}", status.message());
                sleep(RETRY_AFTER).await;
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("`cycle` of a list that is not empty never ends")
}

async fn ask(
    seed: &str,
    request: &JoinRequest,
    connector: Option<&Connector>,
) -> Result<(Identity, Vec<String>), JoinError> {
    let endpoint = Endpoint::from_shared(format!("http://{seed}"))
        .map_err(|error| JoinError::Refused(Status::invalid_argument(error.to_string())))?;
    let endpoint = endpoint.connect_timeout(CALL_WITHIN).timeout(CALL_WITHIN);
    let channel = match connector {
        Some(connector) => endpoint.connect_with_connector_lazy(connector.clone()),
        None => endpoint.connect_lazy(),
    };
    let answer = JoiningClient::new(channel).join(Request::new(request.clone())).await;
    let answer = answer.map_err(JoinError::Refused)?.into_inner();
    let identity = Identity { cluster: answer.cluster.parse()?, pod: PodId(answer.pod) };
    Ok((identity, answer.api))
}

/// True while nobody answers, or nobody who can decide: worth another try.
fn is_passing(status: &Status) -> bool {
    !matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument)
}
