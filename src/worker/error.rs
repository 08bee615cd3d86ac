//! Errors of the start of a data path.

use std::path::PathBuf;

use crate::io::DriverError;
use crate::io::driver::Address;
use crate::io::file::FileError;
use crate::replica::apply::ApplyError;
use crate::replica::meta::MetaError;
use crate::store::OpenError;
use crate::store::index::IndexError;
use crate::types::Uuid;

/// Why the data path could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not {doing} {path}")]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not prepare {path}")]
    DiskFile {
        path: PathBuf,
        #[source]
        source: FileError,
    },
    #[error(
        "{path} is not empty and not a disk of Holdfast (it holds {name}): give an empty folder"
    )]
    NotEmpty { path: PathBuf, name: String },
    #[error(
        "{path} holds the log and the data of a disk (lane-0), but not its superblock. Perhaps a \
         copy was interrupted, or fsck moved the file to lost+found. Bring superblock back, or \
         give an empty folder; nothing was changed"
    )]
    NoSuperblock { path: PathBuf },
    #[error(
        "the disk {path} is in use by another process: stop that process, or take the disk out of \
         one of the two configurations"
    )]
    InUse { path: PathBuf },
    #[error(
        "I/O of an earlier process is still in flight on {path}: the disk does not answer it; look \
         at the device, and start the pod again when that I/O has ended"
    )]
    Busy { path: PathBuf },
    #[error(
        "the disk {path} does not answer: the pod was started without it. Look at the device; the \
         pod takes the disk back when it is started again"
    )]
    Silent { path: PathBuf },
    #[error(
        "the disk {path} belongs to cluster {theirs}, but this pod is of cluster {ours}: give \
         the pod an empty folder, or start it in the cluster that the disk belongs to"
    )]
    OtherCluster { path: PathBuf, ours: Uuid, theirs: Uuid },
    #[error(
        "{path} held disk {disk} and does not hold it now: mount its file system; if the disk is \
         lost for good, remove it from data-path.json in the pod's directory"
    )]
    Missing { path: PathBuf, disk: Uuid },
    #[error("could not open the disk {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: OpenLaneError,
    },
    #[error("could not open the index of the disk {path}")]
    Index {
        path: PathBuf,
        #[source]
        source: IndexError,
    },
    #[error("could not start the I/O driver")]
    Driver(#[from] DriverError),
    #[error("could not listen on {address:?}: is another process using it?")]
    Listen {
        address: Address,
        #[source]
        source: std::io::Error,
    },
    #[error("could not start a thread")]
    Thread(#[source] std::io::Error),
}

impl StartError {
    /// True when one disk is damaged, fails, is missing or is not the one that was there: a pod
    /// that had the disk goes on without it. False: nothing of the pod can run.
    pub fn is_of_one_disk(&self) -> bool {
        match self {
            StartError::Driver(_) | StartError::Listen { .. } | StartError::Thread(_) => false,
            StartError::File { .. }
            | StartError::DiskFile { .. }
            | StartError::NotEmpty { .. }
            | StartError::NoSuperblock { .. }
            | StartError::InUse { .. }
            | StartError::Busy { .. }
            | StartError::Silent { .. }
            | StartError::OtherCluster { .. }
            | StartError::Missing { .. }
            | StartError::Open { .. }
            | StartError::Index { .. } => true,
        }
    }
}

/// Why a lane could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLaneError {
    #[error("could not recover it")]
    Recover(#[from] OpenError),
    #[error("its log holds an entry that cannot be applied")]
    Replay(#[from] ApplyError),
    #[error("the metadata of a replica cannot be decoded")]
    Meta(#[from] MetaError),
    #[error("entry {index} is of a type that this version does not know")]
    EntryType { index: u64 },
}

/// A worker that fails takes its process with it: a pod without a data path must not look alive.
pub(super) fn or_die(run: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::error!(%error, "the data path failed; this pod ends");
            std::process::abort();
        }
        Err(_) => {
            tracing::error!("the data path panicked; this pod ends");
            std::process::abort();
        }
    }
}
