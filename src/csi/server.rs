//! The endpoint of the driver: a unix socket that only its owner can use, on which the sidecars and
//! the kubelet of the same machine call it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::control::local;

/// How long requests may go on when the driver is told to stop. They can be repeated.
const FINISH_WITHIN: Duration = Duration::from_secs(10);

/// Why the driver does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{text:?} is no endpoint of a driver: give unix:///PATH or an absolute path")]
    Endpoint { text: String },
    #[error("could not {action} {}", path.display())]
    Socket {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no socket; it is left alone", path.display())]
    NoSocket { path: PathBuf },
    #[error("another process serves {}", path.display())]
    InUse { path: PathBuf },
    #[error("could not serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Where a driver is called: `unix:///PATH`, `unix:/PATH` or an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

impl FromStr for SocketPath {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<SocketPath, ServeError> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let path = path.strip_prefix("//").unwrap_or(path);
        let is_path = path.starts_with('/') && !path.ends_with('/');
        match is_path {
            true => Ok(SocketPath(PathBuf::from(path))),
            false => Err(ServeError::Endpoint { text: text.to_owned() }),
        }
    }
}

impl std::fmt::Display for SocketPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::Socket { action, path, source }
}

impl SocketPath {
    /// Listens there, in place of a process that is gone.
    fn listen(&self) -> Result<UnixListener, ServeError> {
        let path = &self.0;
        self.check_free()?;
        // It has its mode before anybody finds it.
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        remove(&new)?;
        let fail = || failed("listen on", path);
        let short = local::short(&new).map_err(fail())?;
        let listener = UnixListener::bind(short).map_err(fail())?;
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&new, owner_only).map_err(failed("set the permissions of", &new))?;
        fs::rename(&new, path).map_err(fail())?;
        Ok(listener)
    }

    /// Refuses to take the place of a file, or of a process that serves.
    fn check_free(&self) -> Result<(), ServeError> {
        let path = &self.0;
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(failed("look at", path))?,
        };
        if !found.file_type().is_socket() {
            return Err(ServeError::NoSocket { path: path.clone() });
        }
        let short = local::short(path).map_err(failed("look at", path))?;
        match UnixStream::connect(short) {
            Ok(_) => Err(ServeError::InUse { path: path.clone() }),
            // Nobody listens: a process that is gone has left it.
            Err(_) => Ok(()),
        }
    }
}

fn remove(path: &Path) -> Result<(), ServeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Serves until `stop`, and then a little longer, for requests in flight.
pub async fn serve(
    at: &SocketPath,
    services: Routes,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let listener = at.listen()?;
    tracing::info!("serving at {at}");
    let (tell, told) = oneshot::channel::<()>();
    let serving = Server::builder().add_routes(services).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async {
            // It is told, or the other side is gone: both end the serving.
            let _ = told.await;
        },
    );
    let finish = async {
        stop.await;
        tracing::info!("stopping");
        let _ = tell.send(());
        sleep(FINISH_WITHIN).await;
    };
    let ended = tokio::select! {
        ended = serving => ended.map_err(ServeError::Serve),
        () = finish => Ok(()),
    };
    remove(&at.0)?;
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_paths() {
        for text in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            let path: SocketPath = text.parse().unwrap();
            assert_eq!(path.to_string(), "/run/csi.sock", "{text}");
        }
        for text in ["", "unix://", "unix:///", "tcp://127.0.0.1:1", "csi.sock", "/run/"] {
            assert!(text.parse::<SocketPath>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_is_for_its_owner_and_takes_the_place_of_a_dead_one_only() {
        let root = tempfile::tempdir().unwrap();
        // Deeper than the name of a socket may be long.
        let folder = root.path().join("d".repeat(60)).join("e".repeat(60));
        fs::create_dir_all(&folder).unwrap();
        let path = SocketPath(folder.join("csi.sock"));
        let listener = path.listen().unwrap();
        assert_eq!(fs::metadata(&path.0).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(path.listen(), Err(ServeError::InUse { .. })));
        drop(listener);
        drop(path.listen().unwrap());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_file(&path.0).unwrap();
        fs::write(&path.0, "precious").unwrap();
        assert!(matches!(path.listen(), Err(ServeError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path.0).unwrap(), "precious");
    }

    #[tokio::test]
    async fn serving_ends_when_it_is_told_and_leaves_no_socket() {
        let root = tempfile::tempdir().unwrap();
        let path = SocketPath(root.path().join("csi.sock"));
        let (tell, told) = oneshot::channel::<()>();
        tell.send(()).unwrap();
        serve(&path, Routes::default(), async { told.await.unwrap() }).await.unwrap();
        assert!(!path.0.exists());
    }
}
