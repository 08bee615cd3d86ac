//! The driver's certificate is valid for some months only. It is renewed when two thirds of its
//! time are over, and read anew when somebody else has replaced its files. Connections that are
//! made after that present the new one.

use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;

use crate::control::catalog::chain;
use crate::control::enrol::{EnrolError, renew};
use crate::security::certificate::{Certificate, CertificateError};
use crate::security::credentials::{Credentials, CredentialsError, Tls};
use crate::security::files::{FilesError, Paths};
use crate::security::issue::now_s;

/// Interval of looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Looks between two tries to renew, where the first one failed: the files may be read-only.
const LOOKS_PER_TRY: u32 = 60;

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("the credentials cannot be read")]
    Read(#[from] FilesError),
    #[error("the reading of the credentials was interrupted")]
    Interrupted(#[from] JoinError),
    #[error("the credentials cannot be used")]
    Use(#[from] CredentialsError),
    #[error("the certificate cannot be read")]
    Certificate(#[from] CertificateError),
    #[error("the certificate was not renewed")]
    Renew(#[from] EnrolError),
}

/// Keeps the certificate valid for as long as the driver runs. `endpoints`: as of the API's client.
pub async fn keep(paths: Paths, tls: Tls, endpoints: String, first: Credentials) {
    // `looks`: until the next try to renew.
    let (mut known, mut looks) = (first, 0u32);
    loop {
        let may_renew = looks == 0;
        looks = looks.saturating_sub(1);
        match step(&paths, &tls, &endpoints, &known, may_renew).await {
            Ok(Some(next)) => known = next,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("the driver's certificate: {}", chain(&error));
                if may_renew {
                    looks = LOOKS_PER_TRY;
                }
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// One look. Returns what is presented from now on; `None`: nothing has changed.
async fn step(
    paths: &Paths,
    tls: &Tls,
    endpoints: &str,
    known: &Credentials,
    may_renew: bool,
) -> Result<Option<Credentials>, KeepError> {
    if may_renew && is_due(known, now_s())? {
        renew_at_one(endpoints, paths).await?;
    }
    let paths = paths.clone();
    let found = spawn_blocking(move || paths.load()).await??;
    if found.certificate() == known.certificate() && found.roots() == known.roots() {
        return Ok(None);
    }
    tls.present(&found)?;
    tls.trust().set_roots(found.roots().to_vec());
    tracing::info!("the driver presents another certificate now");
    Ok(Some(found))
}

/// True when two thirds of a certificate's time are over.
pub fn is_due(credentials: &Credentials, now_s: u64) -> Result<bool, CertificateError> {
    let held = Certificate::from_der(credentials.certificate())?;
    let third_s = held.not_after_s.saturating_sub(held.not_before_s) / 3;
    let due_s = held.not_after_s.saturating_sub(third_s);
    Ok(i64::try_from(now_s).unwrap_or(i64::MAX) >= due_s)
}

/// Renews it at the first pod that answers.
async fn renew_at_one(endpoints: &str, paths: &Paths) -> Result<(), EnrolError> {
    let mut result = Ok(());
    for endpoint in endpoints.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        match renew(endpoint, paths).await {
            Ok(_) => return Ok(()),
            Err(error) => result = Err(error),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tls_fixture::Cluster;

    #[test]
    fn a_certificate_is_renewed_when_two_thirds_of_its_time_are_over() {
        let credentials = Cluster::new(1).credentials("csi-controller/c");
        let held = Certificate::from_der(credentials.certificate()).unwrap();
        let span_s = held.not_after_s - held.not_before_s;
        let at = |part_s: i64| u64::try_from(held.not_before_s + part_s).unwrap();
        assert!(!is_due(&credentials, at(span_s / 2)).unwrap());
        assert!(is_due(&credentials, at(span_s * 2 / 3 + 2)).unwrap());
        assert!(is_due(&credentials, at(2 * span_s)).unwrap());
    }

    #[tokio::test]
    async fn files_that_somebody_replaces_are_presented() {
        let cluster = Cluster::new(1);
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::of_client(root.path());
        let (old, new) = (cluster.credentials("csi-node/n"), cluster.credentials("csi-node/n"));
        let tls = Tls::new(&old, old.trust()).unwrap();
        paths.store(&old).unwrap();
        assert!(step(&paths, &tls, "", &old, true).await.unwrap().is_none());
        paths.store(&new).unwrap();
        let found = step(&paths, &tls, "", &old, true).await.unwrap().unwrap();
        assert_eq!(found.certificate(), new.certificate());
    }
}
