//! All I/O of the data path: one completion trait ([`driver::Driver`]) with an io_uring and an
//! epoll implementation (and a simulated one in `sim/`), and the aligned memory that files and
//! sockets share.
//!
//! Invariant: nothing here knows the meaning of the bytes.

pub mod buffer;
pub mod clock;
pub mod driver;
pub mod file;
pub mod stream;

mod epoll;
mod gather;
mod operation;
mod slabs;
mod socket;
mod threads;
mod uring;
mod wake;

use crate::io::driver::Driver;

/// Which driver a worker uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverKind {
    /// io_uring where it is permitted, else epoll.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

/// How io_uring carries out durable writes. (Epoll has threads for all file I/O.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurableWrites {
    /// In the ring, with RWF_DSYNC: least work. The flush waits for a kernel worker, which takes
    /// milliseconds while all processors are busy.
    Ring,
    /// In a few threads per disk, with `pwritev2`.
    Threads,
}

/// Why a driver is not available.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(
        "io_uring is forbidden here (sysctl kernel.io_uring_disabled, or a container's seccomp \
         profile)"
    )]
    Forbidden(#[source] std::io::Error),
    #[error("this kernel has no io_uring")]
    Missing(#[source] std::io::Error),
    #[error("this kernel's io_uring is too old: it lacks {missing}")]
    TooOld { missing: &'static str },
    #[error("could not set up {what}")]
    Setup {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// A driver for the calling thread: only the thread that made a ring may use it.
pub fn driver(kind: DriverKind) -> Result<Box<dyn Driver>, DriverError> {
    driver_with(kind, DurableWrites::Ring)
}

/// Like [`driver()`], with a choice of how durable writes are carried out.
pub fn driver_with(
    kind: DriverKind,
    durable_writes: DurableWrites,
) -> Result<Box<dyn Driver>, DriverError> {
    match kind {
        DriverKind::IoUring => Ok(Box::new(uring::Uring::new(durable_writes)?)),
        DriverKind::Epoll => Ok(Box::new(epoll::Epoll::new()?)),
        DriverKind::Auto => match uring::Uring::new(durable_writes) {
            Ok(uring) => Ok(Box::new(uring)),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(%error, cause, "using epoll instead of io_uring");
                Ok(Box::new(epoll::Epoll::new()?))
            }
        },
    }
}
