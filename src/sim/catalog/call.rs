//! Requests of the world to the catalog, and the calls between pods that carry them.

use crate::control::command::{NewDisk, Outcome};
use crate::control::state::CatalogError;
use crate::level::Level;
use crate::sim::catalog::orders::{Order, Told};
use crate::sim::names::Host;
use crate::types::{AccessSet, Uuid, VolumeId};
use crate::worker::AccessAnswer;

/// The parameters of a new volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    pub name: String,
    /// Unique in a run; `None` for the volume that most clients use.
    pub number: Option<u64>,
    pub shards: u64,
    pub blocks_per_shard: u64,
    /// Only attachments may use it, and the caller gives them clients.
    pub closed: bool,
    /// 0: requests wait for ever.
    pub io_timeout_ms: u64,
}

/// A request to the catalog.
#[derive(Clone, Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "only scenarios ask for some of them"))]
pub enum What {
    /// A pod joins the cluster.
    Join {
        host: Host,
        life: u64,
    },
    /// A pod started; `life`: the number of that start.
    Register {
        host: Host,
        life: u64,
        disks: Vec<NewDisk>,
    },
    Create(NewVolume),
    Delete {
        name: String,
        volume: VolumeId,
        /// In ms; 0: it cannot be brought back.
        retention_ms: u64,
    },
    Undelete {
        name: String,
        volume: VolumeId,
    },
    /// A volume gets so many shards.
    Grow {
        name: String,
        shards: u64,
    },
    /// A pod's node may use a closed volume.
    Publish {
        volume: VolumeId,
        host: Host,
        uid: Uuid,
    },
    Unpublish {
        volume: VolumeId,
        host: Host,
    },
    /// The feature level is raised, as soon as every pod supports it.
    RaiseLevel(Level),
    /// Changes nothing, but adds an entry to the log.
    DeleteNothing,
    /// Of an orchestrator, or of a node's plugin.
    Order(Order),
}

/// A round of an access set, for the worker of a pod.
pub struct Round {
    /// The leader's pod.
    pub from: Host,
    /// Who is to carry it out.
    pub host: Host,
    pub volume: VolumeId,
    pub set: AccessSet,
    pub answer: AccessAnswer,
}

/// A request and its progress.
pub struct Ask {
    pub what: What,
    pub attempt: u64,
    pub is_done: bool,
}

/// One attempt of a request, through one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub ask: usize,
    pub attempt: u64,
    pub from: Host,
    /// The pod's life: its callers end with it.
    pub life: u64,
}

/// The attempt of a late copy: nobody waits for its answer.
pub const COPY: u64 = 0;

impl Call {
    /// The request id, the same in all attempts.
    pub fn request_id(&self) -> String {
        format!("request-{}", self.ask)
    }
}

/// The result of an attempt.
#[derive(Clone, Debug)]
pub enum Verdict {
    Done(Outcome),
    /// The answer to an order.
    Told(Told),
    Refused(CatalogError),
    /// This pod cannot answer, or not now.
    Again,
    /// A disk is in use elsewhere, or too few pods have a disk.
    Later,
}

/// An event for the world.
#[derive(Debug)]
pub enum Ended {
    Created(NewVolume),
    /// The order with this number.
    Told(usize, Told),
}
