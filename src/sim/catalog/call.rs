//! What the world asks of the catalog, and the calls between pods by which it does.

use crate::control::command::{NewDisk, Outcome};
use crate::control::state::CatalogError;
use crate::sim::names::Host;
use crate::types::VolumeId;

/// What a volume is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    pub name: String,
    /// No other volume of the run has it; the one that all clients use has none.
    pub number: Option<u64>,
    pub shards: u64,
    pub blocks_per_shard: u64,
}

/// Something that is asked of the catalog.
#[derive(Clone, Debug)]
pub enum What {
    /// A pod becomes part of the cluster.
    Join {
        host: Host,
        life: u64,
    },
    /// A pod started, for the time `life` that it lives.
    Register {
        host: Host,
        life: u64,
        disks: Vec<NewDisk>,
    },
    Create(NewVolume),
    Delete {
        name: String,
        volume: VolumeId,
    },
    /// Changes nothing, and is in the log all the same.
    DeleteNothing,
}

/// What was asked, and how far it is.
pub struct Ask {
    pub what: What,
    pub attempt: u64,
    pub is_done: bool,
}

/// One attempt, by the pod through which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub ask: usize,
    pub attempt: u64,
    pub from: Host,
    /// Of that pod: its callers are gone when it dies.
    pub life: u64,
}

impl Call {
    /// Names the request, the same in all attempts.
    pub fn request_id(&self) -> String {
        format!("request-{}", self.ask)
    }
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    Done(Outcome),
    Refused(CatalogError),
    /// Not here, or not now.
    Again,
    /// A disk is in use elsewhere, or there are too few pods that have one.
    Later,
}

/// What the world is told.
#[derive(Debug)]
pub enum Ended {
    Created(NewVolume),
}
