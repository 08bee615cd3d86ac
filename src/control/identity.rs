//! Identity of this pod: `<data>/pod.json`, written atomically, and durable before its first use.
//!
//! A pod first chooses its `uid` and writes it down; only then it joins. After a crash in between
//! it joins again under the same id and gets the same pod id.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::{MemberId, PodId, Uuid};

/// Version of the file that this software writes.
const FORMAT: u32 = 1;

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodFile {
    pub format: u32,
    pub uid: Uuid,
    /// Missing until the pod has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The member of the catalog whose log is in `<data>/catalog`. Written after that log was made.
    /// If the log is missing later, its promises are lost, and the member must not vote again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_member: Option<MemberId>,
    /// The newest member of the catalog that was ever here. Its promises, and those of older ones,
    /// may be gone: none of them is made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_member: Option<MemberId>,
}

/// A cluster, and a pod in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub cluster: Uuid,
    pub pod: PodId,
}

/// Why the identity of a pod is unknown.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("could not {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged; restore it from a copy, or remove it to join as a new pod")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} is of format {found}, written by a newer version; start that version")]
    Newer { path: PathBuf, found: u32 },
    #[error("another process uses {path}; stop it first")]
    InUse { path: PathBuf },
}

/// True when the pod with this directory belongs to a cluster.
pub fn has_joined(directory: &Path) -> bool {
    peek(directory).is_some_and(|file| file.identity.is_some())
}

/// What the file of the pod with this directory says now; another process may use the directory.
pub fn peek(directory: &Path) -> Option<PodFile> {
    let name = directory.join("pod.json");
    fs::read(&name).ok().and_then(|bytes| parse(&name, &bytes).ok())
}

/// The directory of a pod, locked against a second process.
#[derive(Debug)]
pub struct PodDirectory {
    path: PathBuf,
    file: PodFile,
    _lock: File,
}

impl PodDirectory {
    /// Opens and locks the directory, or creates it. A pod without a file gets one with a fresh
    /// `uid`.
    pub fn open(path: &Path) -> Result<PodDirectory, IdentityError> {
        fs::create_dir_all(path).map_err(|source| fail("create", path, source))?;
        let lock = lock(&path.join("lock"))?;
        let name = path.join("pod.json");
        let file = match fs::read(&name) {
            Ok(bytes) => parse(&name, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let uid = random_uuid().map_err(|source| fail("read", random(), source))?;
                let (format, identity, catalog_member) = (FORMAT, None, None);
                let newest_member = None;
                let file = PodFile { format, uid, identity, catalog_member, newest_member };
                write(path, &file)?;
                file
            }
            Err(source) => return Err(fail("read", &name, source)),
        };
        Ok(PodDirectory { path: path.to_owned(), file, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self) -> &PodFile {
        &self.file
    }

    /// Durable when this returns.
    pub fn set_identity(&mut self, identity: Identity) -> Result<(), IdentityError> {
        self.file.identity = Some(identity);
        write(&self.path, &self.file)
    }

    /// Durable when this returns.
    pub fn set_catalog_member(&mut self, member: Option<MemberId>) -> Result<(), IdentityError> {
        self.file.catalog_member = member;
        self.file.newest_member = self.file.newest_member.max(member);
        write(&self.path, &self.file)
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<PodFile, IdentityError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |source| IdentityError::Damaged { path: path.to_owned(), source };
    let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format > FORMAT {
        return Err(IdentityError::Newer { path: path.to_owned(), found: format });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn write(directory: &Path, file: &PodFile) -> Result<(), IdentityError> {
    let bytes = serde_json::to_vec_pretty(file).expect("our own types have a JSON form");
    let path = directory.join("pod.json");
    write_atomically(&path, &bytes).map_err(|source| fail("write", &path, source))
}

/// Replaces a whole file atomically. Durable when this returns.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn lock(path: &Path) -> Result<File, IdentityError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|source| fail("open", path, source))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(IdentityError::InUse { path: path.to_owned() }),
        Err(error) => Err(fail("lock", path, error.into())),
    }
}

fn random() -> &'static Path {
    Path::new("/dev/urandom")
}

/// 128 random bits.
pub fn random_uuid() -> io::Result<Uuid> {
    let mut bytes = [0u8; 16];
    File::open(random())?.read_exact(&mut bytes)?;
    Ok(Uuid(bytes))
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_and_the_uid_never_changes() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("data");
        let identity = Identity { cluster: Uuid([3; 16]), pod: PodId(7) };
        let uid = {
            let mut directory = PodDirectory::open(&path).unwrap();
            assert_eq!(directory.file().identity, None);
            assert!(!has_joined(&path));
            assert!(matches!(PodDirectory::open(&path), Err(IdentityError::InUse { .. })));
            directory.set_identity(identity).unwrap();
            directory.set_catalog_member(Some(MemberId(9))).unwrap();
            directory.file().uid
        };
        assert!(has_joined(&path));
        let directory = PodDirectory::open(&path).unwrap();
        assert_eq!(directory.file().identity, Some(identity));
        assert_eq!(directory.file().catalog_member, Some(MemberId(9)));
        assert_eq!(directory.file().uid, uid);
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("pod.json");
        fs::write(&file, b"{").unwrap();
        assert!(matches!(PodDirectory::open(root.path()), Err(IdentityError::Damaged { .. })));
        fs::write(&file, br#"{"format": 2, "soul": 1}"#).unwrap();
        let error = PodDirectory::open(root.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Newer { found: 2, .. }));
    }
}
