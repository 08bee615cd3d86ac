//! Credentials as files (PEM), in a directory that nobody else can read:
//!
//! ```text
//! <data>/tls/            0700
//!   pod.crt              0600   certificate of this pod
//!   pod.key              0600   its key, PKCS #8
//!   authority.crt        0600   the trusted authorities: one, or two while one is replaced
//! ```
//!
//! The directory of a person or a program has `client-cert.pem`, `client-key.pem` and
//! `ca-cert.pem`, the names that libnbd and QEMU look for. A file is replaced
//! as a whole, and is durable when writing returns. A key that others can read is refused.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::security::certificate::{CertificateError, Root};
use crate::security::credentials::{Credentials, CredentialsError};
use crate::security::secret::Secret;

/// Permission bits that a file with a key may not have.
const OTHERS: u32 = 0o077;
/// More is not what we have written.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why credentials cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("others can read {}: run `chmod go= {}`", path.display(), path.display())]
    Readable { path: PathBuf },
    #[error("{} is not what it should be: {what}", path.display())]
    Content { path: PathBuf, what: &'static str },
    #[error("cannot use {}", path.display())]
    Authority {
        path: PathBuf,
        #[source]
        source: CertificateError,
    },
    #[error("cannot use the credentials in {}", path.display())]
    Credentials {
        path: PathBuf,
        #[source]
        source: CredentialsError,
    },
}

/// Where the three files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

impl Paths {
    /// Those of a pod, below its `data`.
    pub fn of_pod(data: &Path) -> Paths {
        Paths::in_tls(&data.join("tls"))
    }

    /// Those of a pod, in the directory that becomes or is its `<data>/tls`.
    pub fn in_tls(directory: &Path) -> Paths {
        Paths {
            certificate: directory.join("pod.crt"),
            key: directory.join("pod.key"),
            authority: directory.join("authority.crt"),
        }
    }

    /// Those of a person or a program.
    pub fn of_client(directory: &Path) -> Paths {
        Paths {
            certificate: directory.join("client-cert.pem"),
            key: directory.join("client-key.pem"),
            authority: directory.join("ca-cert.pem"),
        }
    }

    /// True when there is a certificate.
    pub fn exist(&self) -> bool {
        self.certificate.exists()
    }

    pub fn load(&self) -> Result<Credentials, FilesError> {
        let kept = self.load_with(&self.certificate);
        // A replacement that was interrupted after its key had its name goes on here.
        kept.or_else(|error| self.load_with(&beside(&self.certificate)).map_err(|_| error))
    }

    fn load_with(&self, certificate: &Path) -> Result<Credentials, FilesError> {
        let content = |path: &Path, what| FilesError::Content { path: path.to_owned(), what };
        let key = read_private(&self.key)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.expose())
            .map_err(|_| content(&self.key, "a key, PEM of PKCS #8"))?;
        let key = Secret::new(key.secret_pkcs8_der());
        let der = CertificateDer::from_pem_slice(&read(certificate)?)
            .map_err(|_| content(certificate, "a certificate, PEM"))?;
        let roots = self.load_roots()?;
        Credentials::new(der.to_vec(), key, roots)
            .map_err(|source| FilesError::Credentials { path: certificate.to_owned(), source })
    }

    fn load_roots(&self) -> Result<Vec<Root>, FilesError> {
        let path = || self.authority.clone();
        let pem = read(&self.authority)?;
        let roots = CertificateDer::pem_slice_iter(&pem).map(|der| {
            let what = "certificates, PEM";
            let der = der.map_err(|_| FilesError::Content { path: path(), what })?;
            Root::from_der(&der).map_err(|source| FilesError::Authority { path: path(), source })
        });
        roots.collect()
    }

    /// Writes all of them; the certificate, whose presence counts, last. After an interruption at
    /// any point [`Paths::load`] finds the old certificate with its key, or the new one, as long as
    /// the new authorities include the one that signed the old certificate.
    pub fn store(&self, credentials: &Credentials) -> Result<(), FilesError> {
        for path in [&self.certificate, &self.key, &self.authority] {
            make_private_directory(path.parent().unwrap_or(Path::new(".")))?;
        }
        if self.load_with(&self.certificate).is_err() && self.load().is_ok() {
            take_over(&self.certificate)?;
        }
        let certificate = pem("CERTIFICATE", credentials.certificate());
        let key = pem("PRIVATE KEY", credentials.key().expose());
        self.store_roots(credentials.roots())?;
        write_new(&self.certificate, certificate.expose())?;
        write_private(&self.key, key.expose())?;
        take_over(&self.certificate)
    }

    /// Replaces the list of authorities.
    pub fn store_roots(&self, roots: &[Root]) -> Result<(), FilesError> {
        let roots = roots.iter().map(|root| pem("CERTIFICATE", root.der()));
        let roots: Vec<_> = roots.collect();
        let roots: Vec<u8> = roots.iter().flat_map(|root| root.expose().to_vec()).collect();
        write_private(&self.authority, &roots)
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { action, path, source }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FilesError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut bytes = Zeroizing::new(Vec::new());
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX), &mut bytes)
        .map_err(io_error("read", path))?;
    Ok(bytes)
}

/// Reads a file with a key, unless others can read it, too.
pub fn read_private(path: &Path) -> Result<Secret, FilesError> {
    let meta = fs::metadata(path).map_err(io_error("open", path))?;
    if meta.permissions().mode() & OTHERS != 0 {
        return Err(FilesError::Readable { path: path.to_owned() });
    }
    Ok(Secret::new(read(path)?.as_slice()))
}

/// Makes a directory for its owner only. An existing one loses the permissions of others.
pub fn make_private_directory(path: &Path) -> Result<(), FilesError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))?;
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(path, private).map_err(io_error("set the permissions of", path))
}

/// Replaces a whole file, for its owner only. Durable when this returns.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    write_new(path, bytes)?;
    take_over(path)
}

/// Where the next content of a file is written.
fn beside(path: &Path) -> PathBuf {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    PathBuf::from(new)
}

/// Writes what is to replace a file, durably.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    let new = beside(path);
    // Whoever left it may have given it other permissions.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &new)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(io_error("create", &new))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &new))?;
    sync_directory_of(path)
}

/// Replaces a file by what was written for it.
fn take_over(path: &Path) -> Result<(), FilesError> {
    fs::rename(beside(path), path).map_err(io_error("replace", path))?;
    sync_directory_of(path)
}

fn sync_directory_of(path: &Path) -> Result<(), FilesError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("write", directory))
}

/// DER as PEM.
pub fn pem(label: &str, der: &[u8]) -> Secret {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    // 48 bytes are a line of 64 digits.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bytes: [u8; 3] = std::array::from_fn(|at| group.get(at).copied().unwrap_or(0));
            let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
            for digit in 0..4 {
                let value = (bits >> (18 - 6 * digit) & 63) as usize;
                text.push(if digit <= group.len() { DIGITS[value].into() } else { '=' });
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    Secret::new(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::authority::{Authority, Places};
    use crate::security::subject::Subject;
    use crate::types::Uuid;

    const NOW_S: u64 = 1_800_000_000;

    fn credentials() -> Credentials {
        let authority = Authority::new(Uuid([1; 16]), NOW_S).unwrap();
        let subject = Subject { cluster: Uuid([1; 16]), role: "pod/3".parse().unwrap() };
        let issued = authority.issue(&subject, &Places::default(), NOW_S).unwrap();
        Credentials::new(issued.certificate, issued.key, vec![authority.root().clone()]).unwrap()
    }

    #[test]
    fn what_was_stored_is_loaded_and_only_its_owner_can() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::of_pod(root.path());
        let credentials = credentials();
        assert!(!paths.exist());
        fs::create_dir(root.path().join("tls")).unwrap();
        fs::set_permissions(root.path().join("tls"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.path().join("tls/pod.key.new"), b"a leftover that all can read").unwrap();
        paths.store(&credentials).unwrap();
        paths.store(&credentials).unwrap();
        let loaded = paths.load().unwrap();
        assert_eq!(loaded.subject(), credentials.subject());
        assert_eq!(loaded.key().expose(), credentials.key().expose());
        assert_eq!(loaded.roots(), credentials.roots());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&root.path().join("tls")), 0o700);
        let files: Vec<_> = fs::read_dir(root.path().join("tls")).unwrap().collect();
        assert_eq!(files.len(), 3, "{files:?}");
        for file in files {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
    }

    /// Every state that an interruption of [`Paths::store`] can leave has a certificate with its
    /// key, and the next replacement starts from there.
    #[test]
    fn an_interrupted_replacement_leaves_the_old_certificate_or_the_new_one() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::of_pod(root.path());
        let (old, new) = (credentials(), credentials());
        let both = vec![old.issuer().clone(), new.issuer().clone()];
        let holds = || paths.load().unwrap().certificate().to_vec();
        let of = |it: &Credentials| pem("CERTIFICATE", it.certificate());
        paths.store(&old).unwrap();
        paths.store_roots(&both).unwrap();
        assert_eq!(holds(), old.certificate());
        write_new(&paths.certificate, &of(&new).expose()[..100]).unwrap();
        assert_eq!(holds(), old.certificate());
        write_new(&paths.certificate, of(&new).expose()).unwrap();
        assert_eq!(holds(), old.certificate());
        write_private(&paths.key, pem("PRIVATE KEY", new.key().expose()).expose()).unwrap();
        assert_eq!(holds(), new.certificate());
        // Interrupted once more, with the first one unfinished.
        let third = old.with_roots(both).unwrap();
        paths.store(&third).unwrap();
        assert_eq!(holds(), old.certificate());
    }

    #[test]
    fn a_key_that_others_can_read_and_pieces_that_do_not_belong_together_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let (paths, others) =
            (Paths::of_pod(root.path()), Paths::of_pod(&root.path().join("other")));
        paths.store(&credentials()).unwrap();
        others.store(&credentials()).unwrap();
        fs::set_permissions(&paths.key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(paths.load(), Err(FilesError::Readable { .. })));
        fs::set_permissions(&paths.key, fs::Permissions::from_mode(0o600)).unwrap();
        paths.load().unwrap();
        for mixed in [
            Paths { key: others.key.clone(), ..paths.clone() },
            Paths { authority: others.authority.clone(), ..paths.clone() },
            Paths { authority: paths.key.clone(), ..paths.clone() },
            Paths { certificate: paths.authority.clone(), ..paths.clone() },
        ] {
            let error = mixed.load().unwrap_err();
            let text = format!("{error:?} {error}");
            assert!(!text.contains("PRIVATE"), "{text}");
        }
    }
}
