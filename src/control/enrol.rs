//! The asking side of tokens: how a pod joins by one, and how anybody gets or renews a certificate.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::control::command::{Addresses, NewNode};
use crate::control::connector::{Connector, connector};
use crate::control::identity::{Identity, IdentityError, PodDirectory};
use crate::control::proto::cluster_client::ClusterClient;
use crate::control::proto::credentials_client::CredentialsClient;
use crate::control::proto::{EnrolPod, EnrolRequest, EnrolResponse, RenewRequest, StatusRequest};
use crate::level::NEWEST;
use crate::security::authority::{AuthorityError, request};
use crate::security::certificate::{CertificateError, Root};
use crate::security::credentials::{
    Credentials, CredentialsError, Tls, client_with_token, client_without_certificate,
};
use crate::security::files::{FilesError, Paths};
use crate::security::secret::Secret;
use crate::security::subject::Role;
use crate::security::token::Token;
use crate::security::trust::Trust;

const CALL_WITHIN: Duration = Duration::from_secs(30);
/// The time for a pod to look at a certificate.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("{0:?} is not host:port")]
    Address(String),
    #[error("the cluster gives no certificate: {}", .0.message())]
    Refused(Status),
    #[error("could not ask for a certificate")]
    Request(#[from] AuthorityError),
    #[error("the cluster's answer cannot be used")]
    Answer(#[from] CertificateError),
    #[error("the cluster's certificate cannot be used")]
    Credentials(#[from] CredentialsError),
    #[error("the cluster gave a certificate for {0}, which was not asked for")]
    OtherSubject(String),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What somebody without a certificate shows to get one.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    Token(&'a Token),
    /// A token of Kubernetes, for one of our service accounts. `trust`: the cluster's authorities.
    ServiceAccount {
        token: &'a Secret,
        trust: &'a Trust,
    },
}

impl Proof<'_> {
    fn connector(&self) -> Result<Connector, CredentialsError> {
        Ok(Connector::new(match self {
            Proof::Token(token) => client_with_token(token.authority)?,
            Proof::ServiceAccount { trust, .. } => client_without_certificate((*trust).clone())?,
        }))
    }

    /// A request that shows it.
    fn request(&self, request: Vec<u8>, pod: Option<EnrolPod>) -> EnrolRequest {
        let text = |secret: &Secret| String::from_utf8_lossy(secret.expose()).into_owned();
        let (token, service_account_token) = match self {
            Proof::Token(token) => (text(&token.text()), String::new()),
            Proof::ServiceAccount { token, .. } => (String::new(), text(token)),
        };
        EnrolRequest { token, request: request.into(), pod, service_account_token }
    }
}

fn channel(endpoint: &str, connector: Connector) -> Result<Channel, EnrolError> {
    let address = endpoint.strip_prefix("https://").unwrap_or(endpoint);
    let wrong = || EnrolError::Address(endpoint.to_owned());
    let parsed = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
    parsed.uri().port().ok_or_else(wrong)?;
    let parsed = parsed.connect_timeout(CALL_WITHIN).timeout(CALL_WITHIN);
    Ok(parsed.connect_with_connector_lazy(connector))
}

fn client(endpoint: &str, connector: Connector) -> Result<CredentialsClient<Channel>, EnrolError> {
    Ok(CredentialsClient::new(channel(endpoint, connector)?))
}

/// Shows a certificate to a pod: an error that is `Refused` has what the pod, or the connection,
/// has against it.
pub async fn show(endpoint: &str, held: &Credentials) -> Result<(), EnrolError> {
    let tls = Tls::new(held, held.trust())?;
    let mut request = Request::new(StatusRequest {});
    request.set_timeout(SHOWN_WITHIN);
    let mut client = ClusterClient::new(channel(endpoint, connector(&tls)?)?);
    let answer = timeout(SHOWN_WITHIN, client.status(request)).await;
    let late = |_| Status::deadline_exceeded("the pod took too long");
    answer.map_err(late).and_then(|answer| answer).map(drop).map_err(EnrolError::Refused)
}

/// Joins a cluster: this pod gets its number and its certificate. Can be repeated after
/// an interruption, and gives the same pod then. `endpoint`: the API of any pod.
pub async fn join(
    endpoint: &str,
    proof: Proof<'_>,
    directory: &mut PodDirectory,
    addresses: Addresses,
    node: NewNode,
) -> Result<Identity, EnrolError> {
    let pod = EnrolPod {
        uid: directory.file().uid.to_string(),
        api: addresses.api.to_string(),
        peer: addresses.peer.to_string(),
        nbd: addresses.nbd.map(|nbd| nbd.to_string()).unwrap_or_default(),
        newest_level: NEWEST.0,
        node: node.name,
        boot_id: node.boot_id,
        labels: node.labels.into_iter().collect(),
    };
    let credentials = enrol(endpoint, proof, Some(pod)).await?;
    let subject = credentials.subject();
    let Role::Pod(number) = subject.role else {
        return Err(EnrolError::OtherSubject(subject.to_string()));
    };
    let identity = Identity { cluster: subject.cluster, pod: number };
    if directory.file().identity.is_some_and(|known| known != identity) {
        return Err(EnrolError::OtherSubject(subject.to_string()));
    }
    Paths::of_pod(directory.path()).store(&credentials)?;
    directory.set_identity(identity)?;
    Ok(identity)
}

/// Gets a certificate for the role that the proof is for.
pub async fn get(endpoint: &str, proof: Proof<'_>, to: &Path) -> Result<Role, EnrolError> {
    let credentials = enrol(endpoint, proof, None).await?;
    Paths::of_client(to).store(&credentials)?;
    Ok(credentials.subject().role.clone())
}

/// Gets a certificate for the role that the proof is for, and stores it nowhere.
pub async fn credentials_for(endpoint: &str, proof: Proof<'_>) -> Result<Credentials, EnrolError> {
    enrol(endpoint, proof, None).await
}

async fn enrol(
    endpoint: &str,
    proof: Proof<'_>,
    pod: Option<EnrolPod>,
) -> Result<Credentials, EnrolError> {
    let (key, request) = request()?;
    let asked = proof.request(request, pod);
    let answer = client(endpoint, proof.connector()?)?.enrol(Request::new(asked)).await;
    credentials_of(key, answer.map_err(EnrolError::Refused)?.into_inner())
}

/// Replaces a certificate by a new one for the same subject, under a new key.
pub async fn renew(endpoint: &str, paths: &Paths) -> Result<Role, EnrolError> {
    let old = paths.load()?;
    let tls = Tls::new(&old, old.trust())?;
    let (key, request) = request()?;
    let asked = RenewRequest { request: request.into(), subject: String::new() };
    let answer = client(endpoint, connector(&tls)?)?.renew(Request::new(asked)).await;
    let new = credentials_of(key, answer.map_err(EnrolError::Refused)?.into_inner())?;
    if new.subject() != old.subject() {
        return Err(EnrolError::OtherSubject(new.subject().to_string()));
    }
    paths.store(&new)?;
    Ok(new.subject().role.clone())
}

fn credentials_of(key: Secret, answer: EnrolResponse) -> Result<Credentials, EnrolError> {
    Ok(Credentials::new(answer.certificate.to_vec(), key, roots_of(&answer)?)?)
}

/// The authorities that an answer names.
fn roots_of(answer: &EnrolResponse) -> Result<Vec<Root>, CertificateError> {
    answer.authorities.iter().map(|der| Root::from_der(der)).collect()
}
