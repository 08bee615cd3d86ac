//! Everything that enters the kernel on the data path: one completion trait ([`driver::Driver`])
//! with an io_uring and an epoll implementation (and, in `sim/`, a simulated one), and the aligned
//! memory that files and sockets share.
//!
//! Invariant: nothing in here knows what the bytes mean.

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
    /// io_uring where it is permitted, epoll elsewhere.
    #[default]
    Auto,
    IoUring,
    Epoll,
}

/// Who carries out durable writes for io_uring. (Epoll has threads for all of its file I/O.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurableWrites {
    /// The ring, with RWF_DSYNC: the least work. The flush waits for a worker of the kernel,
    /// which takes milliseconds on a machine whose processors are all busy.
    Ring,
    /// A few threads, with `pwritev2`.
    Threads,
}

/// Why a driver cannot be had.
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

/// A driver for the calling thread: io_uring serves only the thread that made it.
pub fn driver(kind: DriverKind) -> Result<Box<dyn Driver>, DriverError> {
    driver_with(kind, DurableWrites::Ring)
}

/// As [`driver()`], with the choice of who carries out durable writes.
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
