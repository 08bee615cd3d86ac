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
    let mut keeper = None;
    let mut said = String::new();
    loop {
        views.borrow_and_update();
        let done = match &mut keeper {
            None => Keeper::open(&node).map(|opened| {
                keeper = Some(opened);
                true
            }),
            Some(keeper) => keeper.step(&node, &tls).await,
        };
        match done {
            Ok(true) => {}
            // The sender lives as long as this pod.
            Ok(false) => drop(views.changed().await),
            Err(error) => {
                let text = chain(&error);
                if text != said {
                    tracing::warn!("this pod's certificate is not up to date: {text}");
                    said = text;
                }
                sleep(AGAIN_AFTER).await;
            }
        }
    }
}

/// What this pod has.
struct Keeper {
    paths: Paths,
    own: Credentials,
    /// A certificate that was signed, and is not stored yet.
    signed: Option<Credentials>,
    /// What the catalog said last, as it said it and as it is read.
    told: (Told<TrustedRoot>, Told<Root>),
}

impl Keeper {
    fn open(node: &Node) -> Result<Keeper, KeepError> {
        let paths = Paths::of_pod(&node.data());
        let own = paths.load()?;
        Ok(Keeper { paths, own, signed: None, told: Default::default() })
    }

    /// Does one thing that is due; false: nothing is.
    async fn step(&mut self, node: &Arc<Node>, tls: &Tls) -> Result<bool, KeepError> {
        let (revision, told) = node.told_roots();
        if told != self.told.0 {
            self.told = (told.clone(), read(&told)?);
        }
        match due(self.own.issuer(), self.own.roots(), &self.told.1) {
            Due::Trust(roots) => {
                let next = self.own.with_roots(roots).map_err(EnrolError::from)?;
                let (paths, roots) = (self.paths.clone(), next.roots().to_vec());
                spawn_blocking(move || paths.store_roots(&roots)).await??;
                tls.trust().set_roots(next.roots().to_vec());
                tracing::info!("this pod trusts {} authorities now", next.roots().len());
                self.take(tls, next)?;
                Ok(true)
            }
            Due::Renew => {
                tell(node, revision, &self.own);
                let signed = self.signed.take().filter(|it| it.issuer() == self.signer());
                let next = match signed {
                    Some(signed) => signed.with_roots(self.own.roots().to_vec()),
                    None => Ok(renewed(node, &self.own).await?),
                };
                let next = next.map_err(EnrolError::from)?;
                self.signed = Some(next.clone());
                let (paths, stored) = (self.paths.clone(), next.clone());
                spawn_blocking(move || paths.store(&stored)).await??;
                self.signed = None;
                tracing::info!("this pod has a certificate of the authority that signs now");
                self.take(tls, next)?;
                Ok(true)
            }
            Due::Nothing => {
                tell(node, revision, &self.own);
                Ok(false)
            }
        }
    }

    fn signer(&self) -> &Root {
        &self.told.1.roots[0]
    }

    /// Presents what is stored.
    fn take(&mut self, tls: &Tls, next: Credentials) -> Result<(), KeepError> {
        tls.present(&next).map_err(EnrolError::from)?;
        self.own = next;
        Ok(())
    }
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
async fn renewed(node: &Arc<Node>, own: &Credentials) -> Result<Credentials, EnrolError> {
    let (key, request) = request()?;
    let asked = RenewRequest { request: request.into(), subject: own.subject().to_string() };
    let answer = renew_on_leader(node, Request::new(asked)).await.map_err(EnrolError::Refused)?;
    let certificate = answer.into_inner().certificate.to_vec();
    let next = Credentials::new(certificate, key, own.roots().to_vec())?;
    match next.subject() == own.subject() {
        true => Ok(next),
        false => Err(EnrolError::OtherSubject(next.subject().to_string())),
    }
}
