//! This pod's own certificate follows the cluster's authorities ([`crate::control::trusting`]): the
//! pod trusts those that the catalog names, and gets a new certificate when another one signs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;
use tonic::Request;

use crate::control::api::credentials::renew_on_leader;
use crate::control::catalog::chain;
use crate::control::enrol::EnrolError;
use crate::control::node::Node;
use crate::control::proto::RenewRequest;
use crate::control::state::rows::TrustedRoot;
use crate::control::trusting::{Due, Told, Trusting, due};
use crate::security::authority::request;
use crate::security::certificate::{CertificateError, Root};
use crate::security::credentials::{Credentials, Tls};
use crate::security::files::{FilesError, Paths};
use crate::security::secret::bytes_from_hex;

/// After something failed, or the leader waits for other pods.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("cannot read or write the certificate of this pod")]
    Files(#[from] FilesError),
    #[error("the catalog names an authority that cannot be read")]
    Told(#[from] CertificateError),
    #[error(transparent)]
    Renew(#[from] EnrolError),
    #[error("the write of the certificate was interrupted")]
    Interrupted(#[from] JoinError),
}

/// Does what is due, for as long as the pod runs.
pub async fn keep_certificate(node: Arc<Node>, tls: Tls) {
    let mut views = node.view.subscribe();
    let paths = Paths::of_pod(&node.data());
    let mut own = match paths.load() {
        Ok(own) => own,
        Err(error) => {
            tracing::error!("this pod's certificate is not kept up to date: {}", chain(&error));
            sleep(AGAIN_AFTER).await;
            return;
        }
    };
    loop {
        views.borrow_and_update();
        match step(&node, &tls, &paths, &own).await {
            Ok(Some(next)) => own = next,
            // The sender lives as long as this pod.
            Ok(None) => drop(views.changed().await),
            Err(error) => {
                tracing::warn!("this pod's certificate is not up to date: {}", chain(&error));
                sleep(AGAIN_AFTER).await;
            }
        }
    }
}

/// Does one thing that is due, and returns what this pod has then; `None`: nothing was due.
async fn step(
    node: &Arc<Node>,
    tls: &Tls,
    paths: &Paths,
    own: &Credentials,
) -> Result<Option<Credentials>, KeepError> {
    let (revision, told) = node.told_roots();
    let next = match due(own.issuer(), own.roots(), &read(&told)?) {
        Due::Trust(roots) => {
            let (next, paths) = (own.with_roots(roots).map_err(EnrolError::from)?, paths.clone());
            let roots = next.roots().to_vec();
            spawn_blocking(move || paths.store_roots(&roots)).await??;
            tls.trust().set_roots(next.roots().to_vec());
            tracing::info!("this pod trusts {} authorities now", next.roots().len());
            Some(next)
        }
        due => {
            tell(node, revision, own);
            match due {
                Due::Renew => Some(renew(node, paths, own).await?),
                Due::Nothing | Due::Trust(_) => None,
            }
        }
    };
    if let Some(next) = &next {
        tls.present(next).map_err(EnrolError::from)?;
    }
    Ok(next)
}

fn read(told: &Told<TrustedRoot>) -> Result<Told<Root>, CertificateError> {
    let roots = told.roots.iter().map(|root| {
        let der = bytes_from_hex(&root.certificate).ok_or(CertificateError::Malformed)?;
        Root::from_der(&der)
    });
    Ok(Told { roots: roots.collect::<Result<_, _>>()?, others: told.others })
}

/// Says to the leader, with the next report, how far this pod is. News make it come at once.
fn tell(node: &Node, revision: u64, own: &Credentials) {
    let now = Trusting {
        revision,
        trusts: own.roots().iter().map(Root::hash).collect(),
        presents: Some(own.issuer().hash()),
    };
    node.trusting.send_if_modified(|known| {
        let is_news = (&known.trusts, known.presents) != (&now.trusts, now.presents);
        *known = now;
        is_news
    });
}

/// Gets a certificate of the authority that signs. The old one stays trusted.
async fn renew(
    node: &Arc<Node>,
    paths: &Paths,
    own: &Credentials,
) -> Result<Credentials, KeepError> {
    let (key, request) = request().map_err(EnrolError::from)?;
    let asked = RenewRequest { request: request.into(), subject: own.subject().to_string() };
    let answer = renew_on_leader(node, Request::new(asked)).await.map_err(EnrolError::Refused)?;
    let certificate = answer.into_inner().certificate.to_vec();
    let next = Credentials::new(certificate, key, own.roots().to_vec());
    let next = next.map_err(EnrolError::from)?;
    if next.subject() != own.subject() {
        return Err(EnrolError::OtherSubject(next.subject().to_string()).into());
    }
    let (paths, stored) = (paths.clone(), next.clone());
    spawn_blocking(move || paths.store(&stored)).await??;
    tracing::info!("this pod has a certificate of the authority that signs now");
    Ok(next)
}
