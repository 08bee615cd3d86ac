//! A new cluster's credentials: its authority, and certificates from it, as files.
//!
//! ```text
//! <directory>/authority.crt   0600
//! <directory>/authority.key   0600   who has it is the authority
//! ```

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::security::authority::{Authority, AuthorityError, Places};
use crate::security::credentials::{Credentials, CredentialsError};
use crate::security::files::{
    FilesError, Paths, make_private_directory, pem, read_private, write_private,
};
use crate::security::secret::Secret;
use crate::security::subject::{Role, Subject};
use crate::types::Uuid;

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("{} is not what it should be", path.display())]
    Content { path: PathBuf },
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    // A clock before 1970 is as wrong as one in 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn files(directory: &Path) -> [PathBuf; 2] {
    [directory.join("authority.crt"), directory.join("authority.key")]
}

/// True when there is an authority with its key.
pub fn has_authority(directory: &Path) -> bool {
    files(directory).iter().all(|file| file.exists())
}

/// Stores an authority; its certificate last.
pub fn store_authority(directory: &Path, authority: &Authority) -> Result<(), IssueError> {
    make_private_directory(directory)?;
    let [certificate, key] = files(directory);
    write_private(&key, pem("PRIVATE KEY", authority.key_der().expose()).expose())?;
    write_private(&certificate, pem("CERTIFICATE", authority.root().der()).expose())?;
    Ok(())
}

/// Leaves the authority's key in the directory of the pod that makes the cluster, where its
/// certificate is already: the pod gives it to the catalog.
pub fn leave_key(directory: &Path, authority: &Authority) -> Result<(), IssueError> {
    let [_, key] = files(directory);
    Ok(write_private(&key, pem("PRIVATE KEY", authority.key_der().expose()).expose())?)
}

/// Loads an authority. Of several certificates it is the one that the key belongs to.
pub fn load_authority(directory: &Path) -> Result<Authority, IssueError> {
    let [certificate, key] = files(directory);
    let content = |path: &Path| IssueError::Content { path: path.to_owned() };
    let pem = read_private(&certificate)?;
    let ders = CertificateDer::pem_slice_iter(pem.expose()).collect::<Result<Vec<_>, _>>();
    let ders = ders.map_err(|_| content(&certificate))?;
    let pkcs8 = PrivatePkcs8KeyDer::from_pem_slice(read_private(&key)?.expose())
        .map_err(|_| content(&key))?;
    let key = Secret::new(pkcs8.secret_pkcs8_der());
    let all = ders.iter().map(|der| Authority::from_parts(der, key.clone()));
    let found = all.reduce(|one, other| one.or(other));
    Ok(found.ok_or_else(|| content(&certificate))??)
}

/// Issues credentials and stores them.
pub fn issue(
    authority: &Authority,
    cluster: Uuid,
    role: Role,
    places: &Places,
    paths: &Paths,
) -> Result<(), IssueError> {
    let issued = authority.issue(&Subject { cluster, role }, places, now_s())?;
    let roots = vec![authority.root().clone()];
    paths.store(&Credentials::new(issued.certificate, issued.key, roots)?)?;
    Ok(())
}
