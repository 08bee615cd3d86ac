//! The API on a unix socket, `<data>/control/api.sock`, for administrators of this machine: the
//! kernel says who they are. Its directory is for the pod's own user only.
//!
//! The path of a socket is bounded by 107 bytes, and `data` may lie deeper: a longer one is reached
//! through the descriptor of its directory.

use std::fs::{File, remove_file};
use std::io;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::security::files::{FilesError, make_private_directory};

const SOCKET_PATH_BYTES_MAX: usize = 100;

/// Why there is no local socket.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    Directory(#[from] FilesError),
    #[error("could not listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The socket of the pod with this `data`.
pub fn socket_of(data: &Path) -> PathBuf {
    data.join("control").join("api.sock")
}

/// Listens on the socket of the pod with this `data`, which is locked by this process.
pub fn listen(data: &Path) -> Result<UnixListener, LocalError> {
    let path = socket_of(data);
    make_private_directory(path.parent().expect("it has a folder"))?;
    replace(&path).map_err(|source| LocalError::Listen { path: path.clone(), source })
}

/// Listens on a socket for its owner only, instead of a process that is gone.
pub fn replace(path: &Path) -> io::Result<UnixListener> {
    match remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(short(path)?)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode)?;
    Ok(listener)
}

/// A path of the same socket that is short enough. The descriptor that it needs stays open.
pub fn short(path: &Path) -> io::Result<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path.to_owned());
    };
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(path.to_owned());
    }
    let folder = File::open(folder)?.into_raw_fd();
    Ok(Path::new("/proc/self/fd").join(folder.to_string()).join(name))
}
