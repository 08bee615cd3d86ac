//! Whom a pod, or a client of the cluster, trusts. Shared by all listeners and links of a process,
//! and changed while they run: an authority is replaced, a pod removed, a certificate revoked.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use crate::planted::planted;
use crate::security::certificate::{Certificate, CertificateError, Root, check};
use crate::security::subject::Role;
use crate::types::{PodId, Uuid};

/// Two are trusted while an authority is being replaced, and more for a while after a restore.
pub const ROOTS_MAX: usize = 8;

/// Clones share their content.
#[derive(Clone, Debug)]
pub struct Trust {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    known: RwLock<Known>,
    /// Counts the changes.
    version: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    cluster: Uuid,
    roots: Vec<Root>,
    /// `None`: no list was seen yet, by a pod that has just joined.
    pods: Option<BTreeSet<PodId>>,
    /// Serials.
    revoked: BTreeSet<String>,
}

impl Trust {
    pub fn new(cluster: Uuid, roots: Vec<Root>) -> Trust {
        let known = Known { cluster, roots, pods: None, revoked: BTreeSet::new() };
        let shared = Shared { known: RwLock::new(known), version: AtomicU64::new(0) };
        Trust { shared: Arc::new(shared) }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        // No change can be left half done.
        self.shared.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Replaces one part, unless it is the same.
    fn set<T: PartialEq>(&self, part: impl FnOnce(&mut Known) -> &mut T, now: T) {
        let mut known = self.shared.known.write();
        let known = known.as_mut().unwrap_or_else(|poisoned| poisoned.get_mut());
        let part = part(known);
        if *part != now {
            *part = now;
            self.shared.version.fetch_add(1, Ordering::Release);
        }
    }

    /// Replaces the trusted authorities.
    pub fn set_roots(&self, roots: Vec<Root>) {
        self.set(|known| &mut known.roots, roots);
    }

    /// Replaces the list of pods. A pod that is not in it is refused from now on.
    pub fn set_pods(&self, pods: impl IntoIterator<Item = PodId>) {
        self.set(|known| &mut known.pods, Some(pods.into_iter().collect()));
    }

    /// Replaces the serials of certificates that are void before their time.
    pub fn set_revoked(&self, serials: impl IntoIterator<Item = String>) {
        self.set(|known| &mut known.revoked, serials.into_iter().collect());
    }

    /// Another number after each change: time to look at connections that exist.
    pub fn version(&self) -> u64 {
        self.shared.version.load(Ordering::Acquire)
    }

    /// The trusted authorities.
    pub fn roots(&self) -> Vec<Root> {
        self.known().roots.clone()
    }

    pub fn cluster(&self) -> Uuid {
        self.known().cluster
    }

    /// Checks a certificate of anybody in the cluster, for a handshake at `now_s` (seconds since
    /// 1970). What may change while a connection lasts is for [`Trust::check_again`].
    pub fn check(&self, der: &[u8], now_s: u64) -> Result<Certificate, CertificateError> {
        let known = self.known();
        let certificate = check(der, &known.roots)?;
        if certificate.subject.cluster != known.cluster {
            return Err(CertificateError::OtherCluster);
        }
        certificate.check_dates(now_s)?;
        Ok(certificate)
    }

    /// Checks a certificate that must be a pod's. No clock is needed (rule `pods-need-no-clock`).
    pub fn check_pod(&self, der: &[u8]) -> Result<PodId, CertificateError> {
        let certificate = check(der, &self.known().roots)?;
        let Role::Pod(pod) = certificate.subject.role else {
            return Err(CertificateError::NotAPod);
        };
        let known = self.known();
        match certificate.subject.cluster == known.cluster {
            true => Ok(pod),
            false => Err(CertificateError::OtherCluster),
        }
    }

    /// Checks a pod's certificate, and that the pod is still part of the cluster.
    pub fn check_member(&self, der: &[u8]) -> Result<PodId, CertificateError> {
        let pod = self.check_pod(der)?;
        match self.is_member(pod) {
            true => Ok(pod),
            false => Err(CertificateError::RemovedPod),
        }
    }

    /// True unless the list of pods lacks this one (rule `removed-pods-are-refused`). Before there
    /// is a list, the authority's word is enough: a pod that has just joined must be able to listen
    /// to somebody.
    pub fn is_member(&self, pod: PodId) -> bool {
        let is_in = |pods: &BTreeSet<PodId>| pods.contains(&pod) || planted!(RemovedPodTrusted);
        self.known().pods.as_ref().is_none_or(is_in)
    }

    /// The largest number in the list of pods.
    pub fn newest_pod(&self) -> Option<PodId> {
        self.known().pods.as_ref()?.last().copied()
    }

    /// Checks a holder whose certificate was accepted before, for each request.
    pub fn check_again(&self, held: &Certificate, now_s: u64) -> Result<(), CertificateError> {
        self.check_while_connected(held)?;
        held.check_dates(now_s)
    }

    /// The same, whatever the dates: a link or a client that this fails for is cut off.
    pub fn check_while_connected(&self, held: &Certificate) -> Result<(), CertificateError> {
        match held.subject.role {
            Role::Pod(pod) if !self.is_member(pod) => Err(CertificateError::RemovedPod),
            _ => self.check_holder(held),
        }
    }

    /// The same for a connection to the API, which a pod may have that is about to join.
    pub fn check_holder(&self, held: &Certificate) -> Result<(), CertificateError> {
        if let Role::Pod(pod) = held.subject.role
            && !self.is_member(pod)
            && self.newest_pod().is_some_and(|newest| pod <= newest)
        {
            return Err(CertificateError::RemovedPod);
        }
        let known = self.known();
        if !known.roots.iter().any(|root| root.is_issuer_of(held)) {
            return Err(CertificateError::Replaced);
        }
        match known.revoked.contains(&held.serial) {
            true => Err(CertificateError::Revoked),
            false => Ok(()),
        }
    }
}
