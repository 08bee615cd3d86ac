//! The certificate of this pod, and whom it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::control::catalog::chain;
use crate::control::catalog_member::AskError;
use crate::control::command::CatalogCommand;
use crate::control::connector::{Connector, connector};
use crate::control::identity::Identity;
use crate::control::node::Node;
use crate::control::state::rows::{Authority, Hidden};
use crate::security::credentials::{CredentialsError, Tls};
use crate::security::files::{FilesError, Paths};
use crate::security::issue::{load_authority, now_s};
use crate::security::secret::to_hex;
use crate::security::subject::{Role, Subject};
use crate::security::trust::Trust;
use crate::view::ClusterView;

/// The authority's key, sealed by the recovery key, beside it.
pub const SEALED: &str = "recovery.sealed";
/// Interval at which a pod looks whether it leads the catalog.
const LEAD_LOOK: Duration = Duration::from_millis(200);

/// Why this pod cannot use the certificate that it has.
#[derive(Debug, thiserror::Error)]
pub enum OwnTlsError {
    #[error("cannot read the certificate of this pod")]
    Files(#[from] FilesError),
    #[error("cannot use the certificate of this pod")]
    Credentials(#[from] CredentialsError),
    #[error(
        "the certificate of this pod is for {found}, and the pod is {wanted}: restore its own \
         certificate in {}",
        directory.display()
    )]
    OtherPod { found: String, wanted: String, directory: PathBuf },
}

/// For whom the certificate below `data` is; `None`: there is none.
pub fn load_subject(data: &Path) -> Result<Option<Subject>, OwnTlsError> {
    let paths = Paths::of_pod(data);
    match paths.exist() {
        true => Ok(Some(paths.load()?.subject().clone())),
        false => Ok(None),
    }
}

/// Connects with the certificate below `data`, if there is one, before this pod has an identity.
pub fn own_connector(data: &Path) -> Result<Option<Connector>, OwnTlsError> {
    let paths = Paths::of_pod(data);
    if !paths.exist() {
        return Ok(None);
    }
    let credentials = paths.load()?;
    let tls = Tls::new(&credentials, credentials.trust())?;
    Ok(Some(connector(&tls)?))
}

/// Loads the certificate of this pod from below `data`; `None`: it has none.
pub fn load_own(data: &Path, identity: Identity) -> Result<Option<Tls>, OwnTlsError> {
    let paths = Paths::of_pod(data);
    if !paths.exist() {
        return Ok(None);
    }
    let credentials = paths.load()?;
    let wanted = Subject { cluster: identity.cluster, role: Role::Pod(identity.pod) };
    let found = credentials.subject();
    if *found != wanted {
        let (found, wanted) = (found.to_string(), wanted.to_string());
        return Err(OwnTlsError::OtherPod { found, wanted, directory: data.join("tls") });
    }
    Ok(Some(Tls::new(&credentials, credentials.trust())?))
}

/// Trusts the pods that a view names, and no others any more.
pub fn trust_pods_of(view: &ClusterView, trust: &Trust) {
    if view.revision > 0 {
        trust.set_pods(view.pods.iter().map(|pod| pod.pod));
    }
}

/// Follows the views, and with them the list of revoked certificates.
pub async fn trust_pods_of_views(node: Arc<Node>, trust: Trust) {
    let mut views = node.view.subscribe();
    loop {
        trust_pods_of(&views.borrow_and_update(), &trust);
        trust.set_revoked(node.revoked());
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Gives the catalog the authority's key, if `init` has left it with this pod, once this pod leads.
/// The key is then a row of the catalog, and no file any more.
pub async fn give_authority(node: Arc<Node>, directory: PathBuf) {
    let file = directory.join("authority.key");
    if !file.exists() {
        return;
    }
    let authority = match load_authority(&directory) {
        Ok(authority) => authority,
        Err(error) => {
            tracing::error!("the catalog does not get the authority's key: {}", chain(&error));
            return;
        }
    };
    let sealed = std::fs::read(directory.join(SEALED)).ok();
    let row = Authority {
        certificate: to_hex(authority.root().der()),
        key: Hidden(to_hex(authority.key_der().expose())),
        sealed: sealed.map(|sealed| to_hex(&sealed)).unwrap_or_default(),
        created_ms: now_s() * 1000,
    };
    loop {
        let Some(catalog) = node.leading() else {
            sleep(LEAD_LOOK).await;
            continue;
        };
        match catalog.propose(CatalogCommand::SetAuthority { authority: row.clone() }).await {
            Ok(_) => break,
            Err(AskError::Refused(error)) => {
                tracing::error!("the catalog does not take the authority's key: {error}");
                return;
            }
            Err(_) => sleep(LEAD_LOOK).await,
        }
    }
    // Another key may come here later, and must not be taken for what this one seals.
    for file in [directory.join(SEALED), file] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("could not remove {}: {error}", file.display());
            }
            _ => {}
        }
    }
    tracing::info!("the catalog has the authority's key");
}
