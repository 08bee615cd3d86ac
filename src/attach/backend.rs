//! The two ways to make a block device of a relay.

use std::path::{Path, PathBuf};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::attach::fuse::{FILE_BYTES, FuseDevice, FuseError, socket_in, take_down};
use crate::attach::kernel::device::{Indexes, KernelDevice};
use crate::attach::kernel::{KernelError, Owner};
use crate::attach::relay::hello::Export;
use crate::attach::relay::run::Relay;
use crate::attach::relay::serve::serve;
use crate::control::local::replace;
use crate::security::files::{FilesError, make_private_directory};

/// Why a device is not made, changed or taken away.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("could not listen on {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Directory(#[from] FilesError),
    #[error(transparent)]
    Fuse(#[from] FuseError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A block device. One of nbdfuse ends with this value; the kernel keeps its own.
pub enum Backend {
    Kernel(KernelDevice),
    Fuse { fuse: FuseDevice, _server: Serving },
}

/// A task that ends with this.
pub struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Backend {
    /// A device of the kernel's NBD client.
    pub async fn kernel(
        indexes: &Mutex<Indexes>,
        owner: Owner,
        relay: &Relay,
        export: Export,
    ) -> Result<Backend, BackendError> {
        Ok(Backend::Kernel(KernelDevice::make(indexes, owner, relay, export).await?))
    }

    /// A device by nbdfuse and loop, which has `directory` for itself.
    pub async fn fuse(
        directory: &Path,
        relay: &Relay,
        size_bytes: u64,
        read_only: bool,
    ) -> Result<Backend, BackendError> {
        take_down(directory).await?;
        make_private_directory(directory)?;
        let made = fuse_in(directory, relay, size_bytes, read_only).await;
        if made.is_err() {
            // The next try removes the rest, too.
            if let Err(left) = take_down(directory).await {
                tracing::warn!("{} stays: {left}", directory.display());
            }
        }
        made
    }

    /// For programs that show or decide by it.
    pub fn kind(&self) -> &'static str {
        match self {
            Backend::Kernel(_) => "kernel",
            Backend::Fuse { .. } => "fuse",
        }
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        match self {
            Backend::Kernel(device) => device.path(),
            Backend::Fuse { fuse, .. } => fuse.path(),
        }
    }

    /// Why the device cannot be used any more, if it cannot. Its path may be another's then.
    pub fn broken(&mut self) -> Option<String> {
        match self {
            Backend::Kernel(device) => device.broken(),
            Backend::Fuse { fuse, .. } => fuse.broken(),
        }
    }

    /// Takes it away, unless something uses it. After an error it may be broken.
    pub async fn take_away(&mut self) -> Result<(), BackendError> {
        match self {
            Backend::Kernel(device) => Ok(device.take_away().await?),
            Backend::Fuse { fuse, .. } => Ok(fuse.take_away().await?),
        }
    }

    /// Lets its users see a larger size. The relay already takes requests up to it.
    pub async fn grow(&self, size_bytes: u64) -> Result<(), BackendError> {
        match self {
            Backend::Kernel(device) => Ok(device.grow(size_bytes).await?),
            Backend::Fuse { fuse, .. } => Ok(fuse.grow(size_bytes).await?),
        }
    }
}

async fn fuse_in(
    directory: &Path,
    relay: &Relay,
    size_bytes: u64,
    read_only: bool,
) -> Result<Backend, BackendError> {
    let path = socket_in(directory);
    let listener = replace(&path).map_err(|source| BackendError::Listen { path, source })?;
    let serving = relay.clone();
    let server = async move { serve(&serving, &listener, Some(FILE_BYTES)).await };
    let _server = Serving(tokio::spawn(server));
    let fuse = FuseDevice::make(directory, read_only, size_bytes).await?;
    Ok(Backend::Fuse { fuse, _server })
}
