//! What a storage node has at home: the directory of its pod, and its disks. Here are also the
//! steps of [`crate::kubernetes::bootstrap`] that change it. Each of them can be interrupted and
//! done again.
//!
//! ```text
//! <data>/bootstrap/            keys that were made for a new cluster; complete when it is there
//!   pod.crt, pod.key, authority.crt, authority.key, recovery.sealed, recovery.key
//! <data>/bootstrap.new/        being made
//! <data>/catalog.abandoned/    of a cluster that was begun here, and that another one replaced
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::control::identity::{PodDirectory, random_uuid};
use crate::control::membership::database;
use crate::control::tls::SEALED;
use crate::kubernetes::bootstrap::Home;
use crate::security::authority::{Authority, AuthorityError, Places};
use crate::security::files::{FilesError, Paths, pem, read_private, write_private};
use crate::security::issue::{IssueError, issue, leave_key, load_authority, now_s};
use crate::security::recovery::{RecoveryError, RecoveryKey};
use crate::security::secret::Secret;
use crate::security::subject::Role;
use crate::store::superblock::{COPIES, FILE_BYTES, choose};
use crate::types::{BLOCK_BYTES, PodId, Uuid};
use crate::worker::SUPERBLOCK;

const KEY: &str = "recovery.key";

/// Why a step at home failed.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("could not {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |source| HomeError::Io { action, path, source }
}

fn prepared_in(data: &Path) -> PathBuf {
    data.join("bootstrap")
}

/// Looks at the directory of the pod, and at its disks.
pub fn look(config: &Config, directory: &PodDirectory) -> Home {
    if let Some(identity) = directory.file().identity {
        return Home::Member { cluster: identity.cluster };
    }
    // A catalog that was not begun here by a bootstrap belongs to an identity that was lost.
    if database(&config.data).exists() && !prepared_in(&config.data).exists() {
        return Home::Damaged;
    }
    let found = config.disks.iter().map(|disk| look_at_disk(&disk.path));
    found.fold(Home::Empty, |worst, found| match (worst, found) {
        (Home::Damaged, _) | (_, Home::Damaged) => Home::Damaged,
        (Home::Empty, found) => found,
        (used, _) => used,
    })
}

fn look_at_disk(path: &Path) -> Home {
    if !path.is_dir() {
        return Home::Damaged;
    }
    let bytes = match fs::File::open(path.join(SUPERBLOCK)) {
        Ok(file) => {
            let mut bytes = Vec::new();
            let mut file = io::Read::take(file, FILE_BYTES as u64);
            io::Read::read_to_end(&mut file, &mut bytes).map(|_| bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Home::Empty,
        Err(error) => Err(error),
    };
    let Ok(bytes) = bytes else { return Home::Damaged };
    let copies: [&[u8]; COPIES] = std::array::from_fn(|copy| {
        bytes.get(copy * BLOCK_BYTES..(copy + 1) * BLOCK_BYTES).unwrap_or_default()
    });
    match choose(&copies) {
        Ok(superblock) => Home::Used { cluster: superblock.cluster },
        Err(_) => Home::Damaged,
    }
}

/// The cluster whose keys were made here and not used yet.
pub fn prepared(data: &Path) -> Result<Option<Uuid>, HomeError> {
    let place = prepared_in(data);
    match place.exists() {
        true => Ok(Some(load_authority(&place)?.cluster())),
        false => Ok(None),
    }
}

/// Makes the keys of a new cluster.
pub fn prepare(config: &Config) -> Result<(), HomeError> {
    let (done, new) = (prepared_in(&config.data), config.data.join("bootstrap.new"));
    remove(&new)?;
    let cluster = random_uuid().map_err(fail("read", Path::new("/dev/urandom")))?;
    let authority = Authority::new(cluster, now_s())?;
    let recovery = RecoveryKey::new()?;
    let mut addresses = vec![config.api_address().ip(), config.peer_address().ip()];
    addresses.push(config.nbd_address().ip());
    addresses.sort_unstable();
    addresses.dedup();
    let places = Places { addresses, names: Vec::new() };
    issue(&authority, cluster, Role::Pod(PodId(1)), &places, &Paths::in_tls(&new))?;
    leave_key(&new, &authority)?;
    write_private(&new.join(SEALED), &recovery.seal(cluster, authority.key_der())?)?;
    write_private(&new.join(KEY), recovery.text().expose())?;
    fs::rename(&new, &done).map_err(fail("rename", &new))?;
    sync(&config.data)
}

/// Gives this pod the keys that were prepared, so that it can make the cluster.
pub fn take_prepared(data: &Path) -> Result<(), HomeError> {
    let place = prepared_in(data);
    let authority = load_authority(&place)?;
    Paths::of_pod(data).store(&Paths::in_tls(&place).load()?)?;
    leave_key(&data.join("tls"), &authority)?;
    write_private(&data.join("tls").join(SEALED), read_private(&place.join(SEALED))?.expose())?;
    Ok(())
}

/// The recovery key of the cluster that was prepared, as text.
pub fn recovery_key(data: &Path) -> Result<Secret, HomeError> {
    Ok(read_private(&prepared_in(data).join(KEY))?)
}

/// Removes the keys that were prepared: the cluster is made, and its keys are where they belong.
pub fn forget_prepared(data: &Path) -> Result<(), HomeError> {
    remove(&prepared_in(data))
}

/// Removes all that was prepared and begun: this node joins another cluster. It has no identity.
pub fn abandon_prepared(data: &Path) -> Result<(), HomeError> {
    if !prepared_in(data).exists() {
        return Ok(());
    }
    for name in ["authority.key", SEALED] {
        remove(&data.join("tls").join(name))?;
    }
    let catalog = database(data);
    if catalog.exists() {
        let aside = data.join("catalog.abandoned");
        remove(&aside)?;
        fs::rename(&catalog, &aside).map_err(fail("rename", &catalog))?;
    }
    sync(data)?;
    remove(&prepared_in(data))
}

/// Whom the pod with this `data` trusts, PEM; empty when it has no certificate.
pub fn authorities(data: &Path) -> String {
    let roots = Paths::of_pod(data).load().map(|held| held.roots().to_vec()).unwrap_or_default();
    let pems = roots.iter().map(|root| pem("CERTIFICATE", root.der()));
    pems.map(|pem| String::from_utf8_lossy(pem.expose()).into_owned()).collect()
}

/// Removes a file or a directory with all that is in it, if it is there.
fn remove(path: &Path) -> Result<(), HomeError> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), HomeError> {
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(fail("write", directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Disk;
    use crate::config::size::ByteSize;
    use crate::security::recovery::RecoveryKey;

    fn config(root: &Path) -> Config {
        let mut config: Config = toml::from_str("data = 'set below'").unwrap();
        config.data = root.join("data");
        let path = root.join("disk");
        fs::create_dir_all(&path).unwrap();
        config.disks = vec![Disk { path, size: None, wal_size: ByteSize(64 << 20) }];
        config
    }

    #[test]
    fn keys_are_prepared_taken_and_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let data = &config.data;
        let directory = PodDirectory::open(data).unwrap();
        assert_eq!(prepared(data).unwrap(), None);
        prepare(&config).unwrap();
        let cluster = prepared(data).unwrap().unwrap();
        assert_eq!(look(&config, &directory), Home::Empty);
        take_prepared(data).unwrap();
        take_prepared(data).unwrap();
        let held = Paths::of_pod(data).load().unwrap();
        assert_eq!(held.subject().to_string(), format!("holdfast://{cluster}/pod/1"));
        let key = recovery_key(data).unwrap();
        let key = RecoveryKey::parse(std::str::from_utf8(key.expose()).unwrap()).unwrap();
        let sealed = fs::read(data.join("tls").join(SEALED)).unwrap();
        assert!(key.open(cluster, &sealed).is_ok());
        assert!(authorities(data).starts_with("-----BEGIN CERTIFICATE-----"));
        forget_prepared(data).unwrap();
        assert_eq!(prepared(data).unwrap(), None);
        assert!(data.join("tls/authority.key").exists(), "the catalog has yet to get it");
    }

    #[test]
    fn what_was_begun_is_put_aside_when_the_node_joins() {
        let root = tempfile::tempdir().unwrap();
        let config = config(root.path());
        let data = &config.data;
        let directory = PodDirectory::open(data).unwrap();
        prepare(&config).unwrap();
        take_prepared(data).unwrap();
        fs::create_dir(database(data)).unwrap();
        assert_eq!(look(&config, &directory), Home::Empty);
        abandon_prepared(data).unwrap();
        abandon_prepared(data).unwrap();
        assert!(!data.join("tls/authority.key").exists());
        assert!(!database(data).exists() && data.join("catalog.abandoned").exists());
        // A catalog that nothing explains is left alone.
        fs::create_dir(database(data)).unwrap();
        assert_eq!(look(&config, &directory), Home::Damaged);
        abandon_prepared(data).unwrap();
        assert!(database(data).exists());
    }

    #[test]
    fn disks_are_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let mut config = config(root.path());
        let directory = PodDirectory::open(&config.data).unwrap();
        fs::write(config.disks[0].path.join(SUPERBLOCK), b"HOLDDISK and nothing else").unwrap();
        assert_eq!(look(&config, &directory), Home::Damaged);
        config.disks[0].path = root.path().join("missing");
        assert_eq!(look(&config, &directory), Home::Damaged);
    }
}
