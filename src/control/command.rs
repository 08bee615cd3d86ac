//! Commands of the catalog: all that can change its state. Entries of its Raft log are
//! [`Envelope`]s, encoded as one version byte and JSON: they are few and small, can be read by
//! people, and fields can be added.
//!
//! A command that this version does not know must never be skipped: the members would differ.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::types::{MemberId, PodId, Uuid, VolumeId};

/// Version of the commands and of the state that this software writes.
pub const FORMAT: u8 = 1;

/// A command and who waits for its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Unique over all members and restarts; the member that proposed it waits under this name.
    pub ticket: Ticket,
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// Random, drawn by each process.
    pub run: u64,
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A pod becomes part of the cluster. The same `join_id` gives the same pod, always.
    Join { join_id: Uuid, addresses: Addresses },
    /// A pod started: these are its addresses and disks now. A disk may come from another pod.
    Register { pod: PodId, addresses: Addresses, disks: Vec<NewDisk> },
    CreateVolume {
        request_id: String,
        name: String,
        size_bytes: u64,
        stripe_bytes: u64,
        placement: Placement,
    },
    DeleteVolume {
        request_id: String,
        name: String,
        /// Only this one. Missing in commands of the first versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<VolumeId>,
    },
    /// These members are gone from this disk, durably.
    Destroyed { disk: Uuid, members: Vec<MemberId> },
    /// These pods are to have a member of the catalog; those that have one are passed over.
    AddCatalogMembers { pods: Vec<PodId> },
    /// This member leaves the catalog for good.
    RemoveCatalogMember { member: MemberId },
}

/// Where a pod answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub api: SocketAddr,
    pub peer: SocketAddr,
    pub nbd: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisk {
    pub disk: Uuid,
    pub path: String,
    pub capacity_bytes: u64,
}

/// Where the replicas of a volume go: for each shard, positions in `disks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub disks: Vec<Uuid>,
    pub shards: Vec<Vec<u16>>,
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done,
    Pod(PodId),
    Volume(VolumeId),
}

/// An entry or a state that this software cannot read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("it is empty")]
    Empty,
    #[error("it is of version {found}, and this software knows versions up to {FORMAT}; upgrade")]
    Version { found: u8 },
    #[error("its content is not understood")]
    Content(#[from] serde_json::Error),
}

/// Version byte and JSON.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, value).expect("our own types have a JSON form");
    bytes
}

/// The reverse of [`encode`], for bytes from disk and from peers.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&FORMAT, json)) => Ok(serde_json::from_slice(json)?),
        Some((&found, _)) => Err(CodecError::Version { found }),
    }
}
