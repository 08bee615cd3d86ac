//! How a program that runs beside the cluster in Kubernetes gets its certificate: by the token of
//! its service account. It waits for a cluster that is not there yet.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Code;

use crate::control::catalog::chain;
use crate::control::enrol::{EnrolError, Proof, credentials_for, show};
use crate::csi::credentials::is_due;
use crate::kubernetes::patience::Patience;
use crate::security::certificate::{CertificateError, Root};
use crate::security::credentials::Credentials;
use crate::security::files::{FilesError, Paths};
use crate::security::issue::now_s;
use crate::security::secret::Secret;
use crate::security::subject::Role;
use crate::security::trust::Trust;

/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why there is no certificate, and waiting does not help.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    #[error("no endpoint of the API is named")]
    NoEndpoint,
    #[error("{} has no certificates of authorities, PEM", .0.display())]
    Authority(PathBuf),
    #[error("cannot use an authority of {}", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: CertificateError,
    },
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    #[error(
        "the token is for a {found}, and a {wanted} was asked for: run this with the service \
         account of a {wanted}"
    )]
    OtherRole { wanted: String, found: String },
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Who wants a certificate.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The first word of the role.
    pub role: String,
    /// The node that a node's certificate must be for; `None`: any.
    pub node: Option<String>,
    /// `host:port` of pods, with commas between them.
    pub endpoints: String,
    /// File with the cluster's authorities, PEM.
    pub authority: PathBuf,
    /// File with the token. It is read for each try: Kubernetes replaces it.
    pub token: PathBuf,
    /// Directory for the certificate and its key.
    pub credentials: PathBuf,
}

/// Gets a certificate, or finds that there is a good one already.
pub async fn get(wish: &Wish) -> Result<Role, GetError> {
    let mut patience = Patience::default();
    loop {
        match attempt(wish).await? {
            Ok(role) => return Ok(role),
            Err(why) => patience.wait(&why).await,
        }
    }
}

/// One try. `Ok(Err(_))`: what is waited for.
async fn attempt(wish: &Wish) -> Result<Result<Role, String>, GetError> {
    let roots = match read(&wish.authority) {
        Ok(pem) => roots_of(&wish.authority, pem.expose())?,
        Err(error) => return Ok(Err(missing(&wish.authority, &error))),
    };
    let paths = Paths::of_client(&wish.credentials);
    let held = held(&paths, wish, &roots);
    let opinion = match &held {
        Some(held) => opinion(wish, held).await?,
        None => Opinion::Refused,
    };
    // It is good as far as this machine knows, also when nobody can be asked.
    let kept = held.filter(|_| opinion != Opinion::Refused);
    let kept = kept.map(|held| held.subject().role.clone());
    if let (Some(role), Opinion::Accepted) = (&kept, opinion) {
        return Ok(Ok(role.clone()));
    }
    Ok(match (enrol(wish, &roots).await?, kept) {
        (Err(why), Some(role)) => {
            tracing::warn!("nobody has looked at the certificate that is here: {why}");
            Ok(role)
        }
        (result, _) => result,
    })
}

/// Gets a new certificate. `Ok(Err(_))`: what is waited for.
async fn enrol(wish: &Wish, roots: &[Root]) -> Result<Result<Role, String>, GetError> {
    let paths = Paths::of_client(&wish.credentials);
    let token = match read_token(&wish.token) {
        Ok(token) => token,
        Err(error) => return Ok(Err(missing(&wish.token, &error))),
    };
    let trust = Trust::new(roots[0].cluster(), roots.to_vec());
    let proof = Proof::ServiceAccount { token: &token, trust: &trust };
    let mut last = None;
    for endpoint in names(wish) {
        match credentials_for(endpoint, proof).await {
            Ok(credentials) => return taken(&paths, wish, &credentials).map(Ok),
            Err(EnrolError::Refused(status)) if is_passing(status.code()) => {
                last = Some(format!("{endpoint}: {}", chain(&EnrolError::Refused(status))));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Err(last.ok_or(GetError::NoEndpoint)?))
}

fn names(wish: &Wish) -> impl Iterator<Item = &str> {
    wish.endpoints.split(',').map(str::trim).filter(|name| !name.is_empty())
}

/// What the cluster thinks of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opinion {
    Accepted,
    /// It was revoked, say.
    Refused,
    /// Nobody has answered.
    Unknown,
}

/// Shows a certificate to one pod after the other. One that is behind may refuse what is good.
async fn opinion(wish: &Wish, held: &Credentials) -> Result<Opinion, GetError> {
    let mut opinion = Opinion::Unknown;
    for endpoint in names(wish) {
        match show(endpoint, held).await {
            Ok(()) => return Ok(Opinion::Accepted),
            Err(EnrolError::Refused(status)) if status.code() == Code::Unauthenticated => {
                opinion = Opinion::Refused;
            }
            Err(EnrolError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(opinion)
}

fn taken(paths: &Paths, wish: &Wish, credentials: &Credentials) -> Result<Role, GetError> {
    let role = credentials.subject().role.clone();
    if role.kind() != wish.role {
        let (wanted, found) = (wish.role.clone(), role.kind().to_owned());
        return Err(GetError::OtherRole { wanted, found });
    }
    paths.store(credentials)?;
    Ok(role)
}

/// A certificate that is there already and good for a while, as far as this machine knows. A disk
/// that was copied from another node has one of that node.
fn held(paths: &Paths, wish: &Wish, roots: &[Root]) -> Option<Credentials> {
    let held = paths.load().ok()?;
    let is_good = is_wished(&held.subject().role, wish)
        && roots.contains(held.issuer())
        && !is_due(&held, now_s()).unwrap_or(true);
    is_good.then_some(held)
}

fn is_wished(role: &Role, wish: &Wish) -> bool {
    let is_of_node = match (role, &wish.node) {
        (Role::CsiNode(name), Some(node)) => name.as_str() == node,
        _ => true,
    };
    role.kind() == wish.role && is_of_node
}

/// True when another try may succeed: nobody has looked at the token, or nobody could.
fn is_passing(code: Code) -> bool {
    !matches!(
        code,
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
    )
}

fn missing(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read ({error}); it comes with the cluster", path.display())
}

/// The token in a file.
pub fn read_token(path: &Path) -> io::Result<Secret> {
    Ok(Secret::new(read(path)?.expose().trim_ascii()))
}

fn read(path: &Path) -> io::Result<Secret> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX), &mut bytes)?;
    match bytes.is_empty() {
        true => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")),
        false => Ok(Secret::new(bytes)),
    }
}

/// The authorities in a file's content.
pub fn roots_of(path: &Path, pem: &[u8]) -> Result<Vec<Root>, GetError> {
    let malformed = || GetError::Authority(path.to_owned());
    let roots = CertificateDer::pem_slice_iter(pem).map(|der| {
        let der = der.map_err(|_| malformed())?;
        Root::from_der(&der).map_err(|source| GetError::Root { path: path.to_owned(), source })
    });
    let roots = roots.collect::<Result<Vec<Root>, GetError>>()?;
    match roots.is_empty() {
        true => Err(malformed()),
        false => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tls_fixture::Cluster;

    #[test]
    fn a_certificate_that_is_there_has_to_be_of_this_node_and_a_trusted_authority() {
        let (cluster, other) = (Cluster::new(1), Cluster::new(1));
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::of_client(root.path());
        let stored = cluster.credentials("csi-node/n");
        let roots = stored.roots().to_vec();
        let others = other.credentials("csi-node/n").roots().to_vec();
        let wish = |role: &str, node: Option<&str>| Wish {
            role: role.to_owned(),
            node: node.map(str::to_owned),
            endpoints: String::new(),
            authority: PathBuf::new(),
            token: PathBuf::new(),
            credentials: root.path().to_owned(),
        };
        let found = |role, node, roots: &[Root]| held(&paths, &wish(role, node), roots).is_some();
        assert!(!found("csi-node", None, &roots), "there is none");
        paths.store(&stored).unwrap();
        assert!(found("csi-node", Some("n"), &roots) && found("csi-node", None, &roots));
        assert!(!found("csi-node", Some("m"), &roots));
        assert!(!found("csi-controller", Some("n"), &roots));
        assert!(!found("csi-node", Some("n"), &others));
    }
}
