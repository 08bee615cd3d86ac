//! Commands of the catalog: every change of its state is one. Entries of its Raft log are
//! [`Envelope`]s, encoded as one version byte and JSON. They are few and small, people can read
//! them, and fields can be added.
//!
//! A member must never skip a command that its version does not know: the members would differ.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::level::Level;
use crate::types::{
    AccessMode, AttachmentId, FileSystemKind, Generation, MemberId, PodId, Uuid, VolumeId,
};

/// Version of commands and state that this software writes.
pub const FORMAT: u8 = 1;

/// Longest list of ids in a log line.
const LISTED_MAX: usize = 8;

/// A command, with the ticket of the request that waits for its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Unique over all members and restarts. The proposing member answers the request by it.
    pub ticket: Ticket,
    /// The proposer's time, in ms since 1970. The state takes its time from here.
    pub at_ms: u64,
    pub command: CatalogCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// A random number of the process.
    pub run: u64,
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatalogCommand {
    /// A pod joins the cluster. The same `uid` always gives the same pod.
    Join {
        uid: Uuid,
        addresses: Addresses,
        node: NewNode,
        /// The newest feature level that its program supports.
        newest: Level,
    },
    /// A pod has started: its addresses, node and disks now. A disk may come from another pod.
    Register {
        pod: PodId,
        uid: Uuid,
        addresses: Addresses,
        node: NewNode,
        newest: Level,
        disks: Vec<NewDisk>,
    },
    /// The feature level of the cluster is at least this one from now on.
    RaiseLevel {
        level: Level,
    },
    CreateVolume {
        request_id: String,
        volume: NewVolume,
        placement: Placement,
    },
    DeleteVolume {
        request_id: String,
        name: String,
        /// Deletes only the volume with this id.
        volume: VolumeId,
        how: Deletion,
    },
    /// A deleted volume comes back, if it is the one with this id.
    UndeleteVolume {
        request_id: String,
        name: String,
        volume: VolumeId,
    },
    /// The time of a deleted volume is over.
    PurgeVolume {
        volume: VolumeId,
        /// The end that is meant, in ms since 1970.
        purge_ms: u64,
    },
    /// A node may use a volume, once every shard has admitted it. `uid`: of a new attachment.
    Publish {
        request_id: String,
        volume: VolumeId,
        node: String,
        mode: AccessMode,
        /// `None`: as the volume says, or as the node has it.
        io_timeout_ms: Option<u64>,
        uid: Uuid,
    },
    /// A node may not use a volume any more, once every shard has fenced it.
    Unpublish {
        request_id: String,
        volume: VolumeId,
        node: String,
    },
    /// A node is about to use a volume that it may use, in this boot.
    Claim {
        volume: VolumeId,
        node: String,
        boot_id: String,
    },
    /// A node makes a file system of a volume that it has, or has found one there.
    RecordFileSystem {
        volume: VolumeId,
        node: String,
        attachment: Uuid,
        kind: FileSystemKind,
        made: bool,
    },
    /// What a node says of itself.
    ReportNode {
        node: NewNode,
        /// It has no device of a volume.
        has_no_device: bool,
    },
    /// Anybody may use a volume, or only attachments.
    SetOpen {
        request_id: String,
        volume: VolumeId,
        open: bool,
    },
    /// A node is lost in this boot: it loses its volumes, and gets no others.
    DeclareLost {
        node: String,
        boot_id: String,
    },
    /// No device of a lost node is left from before.
    ClearLost {
        node: String,
    },
    /// So many shards of the volume, all that were known, have this generation of its access set.
    AccessIsSet {
        volume: VolumeId,
        generation: Generation,
        shards: u64,
    },
    /// Every new shard of a growing volume has this generation of its access set.
    Grown {
        volume: VolumeId,
        size_bytes: u64,
        generation: Generation,
    },
    /// A shard of the volume has a generation that this catalog did not give.
    AccessOutdone {
        volume: VolumeId,
        /// The generation that the round asked the shard for.
        asked: Generation,
        /// The generation that the shard has.
        seen: Generation,
    },
    /// Changes what may be changed of a volume.
    UpdateVolume {
        request_id: String,
        volume: VolumeId,
        update: VolumeUpdate,
        /// Of the shards that are added.
        placement: Placement,
    },
    /// Makes a class, unless the same one is there.
    CreateClass {
        request_id: String,
        name: String,
        class: NewClass,
    },
    /// Changes a class. Volumes that are there stay as they are.
    UpdateClass {
        request_id: String,
        name: String,
        class: NewClass,
        based_on: u64,
    },
    /// Removes a class that no volume names.
    DeleteClass {
        request_id: String,
        name: String,
    },
    /// Every shard of these volumes has had a leader: they can be used.
    Created {
        volumes: Vec<VolumeId>,
    },
    /// These members no longer exist on this disk, durably.
    Destroyed {
        disk: Uuid,
        members: Vec<MemberId>,
    },
    /// The catalog gets the authority's key, once.
    SetAuthority {
        authority: Authority,
    },
    /// Another authority is trusted, too, and is to sign later.
    ReplaceAuthority {
        authority: Authority,
    },
    /// The next step of a replacement.
    MoveAuthority {
        step: AuthorityStep,
        /// Revision of the cluster's row that it was decided on.
        based_on: u64,
    },
    PutToken {
        request_id: String,
        id: String,
        token: Token,
    },
    RemoveToken {
        request_id: String,
        id: String,
    },
    /// A certificate was signed.
    PutCertificate {
        serial: String,
        certificate: Certificate,
    },
    RevokeCertificate {
        serial: String,
    },
    /// Gives these pods a member of the catalog each, except those that have one.
    AddCatalogMembers {
        pods: Vec<PodId>,
    },
    /// This member leaves the catalog for good.
    RemoveCatalogMember {
        member: MemberId,
    },
    /// The leader has seen how objects are by now.
    RecordEvents {
        seen: Vec<Sighting>,
    },
}

/// What it does, in words.
impl fmt::Display for CatalogCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CatalogCommand::Join { addresses, .. } => {
                write!(f, "the pod at {} joins", addresses.api)
            }
            CatalogCommand::Register { pod, disks, .. } => {
                write!(f, "pod {pod} registers {} disks", disks.len())
            }
            CatalogCommand::RaiseLevel { level } => write!(f, "the feature level is {level}"),
            CatalogCommand::CreateVolume { volume: NewVolume { name, size_bytes, .. }, .. } => {
                write!(f, "volume {name} of {size_bytes} bytes is created")
            }
            CatalogCommand::DeleteVolume { name, volume, .. } => {
                write!(f, "volume {name} ({volume}) is deleted")
            }
            CatalogCommand::UndeleteVolume { name, volume, .. } => {
                write!(f, "volume {name} ({volume}) comes back")
            }
            CatalogCommand::PurgeVolume { volume, .. } => {
                write!(f, "the time of the deleted volume {volume} is over")
            }
            CatalogCommand::Publish { volume, node, .. } => {
                write!(f, "volume {volume} is published to node {node}")
            }
            CatalogCommand::Unpublish { volume, node, .. } => {
                write!(f, "volume {volume} is taken from node {node}")
            }
            CatalogCommand::Claim { volume, node, .. } => {
                write!(f, "node {node} is about to use volume {volume}")
            }
            CatalogCommand::RecordFileSystem { volume, kind, made, .. } => match made {
                true => write!(f, "volume {volume} has a file system, {kind}"),
                false => write!(f, "volume {volume} gets a file system, {kind}"),
            },
            CatalogCommand::ReportNode { node, .. } => {
                write!(f, "node {} reports itself", node.name)
            }
            CatalogCommand::SetOpen { volume, open, .. } => match open {
                true => write!(f, "volume {volume} is open to everybody"),
                false => write!(f, "volume {volume} is for attachments only"),
            },
            CatalogCommand::DeclareLost { node, .. } => write!(f, "node {node} is lost"),
            CatalogCommand::ClearLost { node } => write!(f, "node {node} is not lost any more"),
            CatalogCommand::AccessIsSet { volume, generation, shards } => {
                write!(f, "{shards} shards of volume {volume} have access set {generation}")
            }
            CatalogCommand::Grown { volume, size_bytes, .. } => {
                write!(f, "volume {volume} has {size_bytes} bytes")
            }
            CatalogCommand::AccessOutdone { volume, seen, .. } => {
                write!(f, "a shard of volume {volume} has access set {seen} of another history")
            }
            CatalogCommand::UpdateVolume { volume, .. } => {
                write!(f, "volume {volume} is changed")
            }
            CatalogCommand::CreateClass { name, .. } => write!(f, "class {name} is created"),
            CatalogCommand::UpdateClass { name, .. } => write!(f, "class {name} is changed"),
            CatalogCommand::DeleteClass { name, .. } => write!(f, "class {name} is deleted"),
            CatalogCommand::Created { volumes } => {
                write!(f, "volumes {} can be used", listed(volumes))
            }
            CatalogCommand::Destroyed { disk, members } => {
                write!(f, "replicas {} are gone from disk {disk}", listed(members))
            }
            CatalogCommand::SetAuthority { .. } => f.write_str("the catalog gets the authority"),
            CatalogCommand::ReplaceAuthority { .. } => f.write_str("a new authority is trusted"),
            CatalogCommand::MoveAuthority { step, .. } => f.write_str(match step {
                AuthorityStep::Switch => "the new authority signs",
                AuthorityStep::Finish => "the old authority is trusted no more",
                AuthorityStep::Abandon => "the new authority is trusted no more",
            }),
            CatalogCommand::PutToken { id, token, .. } => {
                write!(f, "token {id} for {} is made", token.kind)
            }
            CatalogCommand::RemoveToken { id, .. } => write!(f, "token {id} is revoked"),
            CatalogCommand::PutCertificate { serial, certificate } => {
                write!(f, "certificate {serial} for {} is issued", certificate.subject)
            }
            CatalogCommand::RevokeCertificate { serial } => {
                write!(f, "certificate {serial} is revoked")
            }
            CatalogCommand::AddCatalogMembers { pods } => {
                write!(f, "pods {} get members of the catalog", listed(pods))
            }
            CatalogCommand::RemoveCatalogMember { member } => {
                write!(f, "member {member} leaves the catalog")
            }
            CatalogCommand::RecordEvents { seen } => {
                write!(f, "{} conditions of objects have changed", seen.len())
            }
        }
    }
}

/// Ids in a text: `1, 2, 3`. Of many, only the first.
pub fn listed<T: fmt::Display>(ids: &[T]) -> String {
    let shown: Vec<String> = ids.iter().take(LISTED_MAX).map(T::to_string).collect();
    let more = ids.len() - shown.len();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The cluster's authority, which signs certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// DER, hexadecimal.
    pub certificate: String,
    pub key: Hidden,
    /// The key, sealed by the recovery key, hexadecimal: this is what backups have. Empty: it was
    /// never sealed.
    pub sealed: String,
    pub created_ms: u64,
}

/// What becomes of an authority that is being replaced, and of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityStep {
    /// The new one signs.
    Switch,
    /// The old one is trusted no more.
    Finish,
    /// The new one, which has not signed yet, is trusted no more.
    Abandon,
}

/// A text that nobody may read in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// A token. Its secret is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub kind: String,
    /// SHA-256, hexadecimal.
    pub secret_hash: String,
    /// Of the request that made it: a repeated one gets the same token.
    pub request_id: String,
    /// Seconds since 1970.
    pub expires_s: u64,
    pub created_ms: u64,
}

/// A certificate that the authority has signed for somebody who asked this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub subject: String,
    /// Number of the authority that signed it.
    pub authority: u64,
    /// Seconds since 1970.
    pub expires_s: u64,
    pub created_ms: u64,
}

/// The addresses on which a pod listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    pub api: SocketAddr,
    pub peer: SocketAddr,
    pub nbd: Option<SocketAddr>,
}

/// The machine of a pod, as the pod describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    pub name: String,
    /// Of the present boot; empty when it is not known.
    pub boot_id: String,
    pub labels: BTreeMap<String, String>,
}

/// What a new volume is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    pub uid: Uuid,
    pub name: String,
    pub class: String,
    pub labels: BTreeMap<String, String>,
    pub size_bytes: u64,
    pub stripe_bytes: u64,
    /// 1, 3 or 5.
    pub replicas: u32,
    /// As its class says.
    pub io_timeout_ms: u64,
    /// Anybody may use it; otherwise only attachments may, from birth.
    pub open: bool,
}

/// What may be changed of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUpdate {
    /// Revision of the volume's row that this is based on; 0: whatever it is.
    pub based_on: u64,
    /// All labels from now on.
    pub labels: BTreeMap<String, String>,
    /// The size that is wanted; 0: as it is.
    pub size_bytes: u64,
}

/// How a volume is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Also while a node has it.
    pub force: bool,
    /// For how long it can be brought back; 0: not at all.
    pub retention_ms: u64,
    /// Only what is deleted already: it is destroyed now.
    pub purge: bool,
}

/// What a class is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewClass {
    /// 1, 3 or 5.
    pub replicas: u32,
    /// A label of nodes, or `node`.
    pub failure_domain: String,
    /// Empty: any.
    pub disk_class: String,
    pub overcommit_percent: u32,
    pub io_timeout_ms: u64,
    /// 0: no limit.
    pub iops_max: u64,
    pub bytes_per_second_max: u64,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisk {
    pub disk: Uuid,
    pub path: String,
    pub capacity_bytes: u64,
}

/// A condition of an object that has become another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// Kind of the object, as on the command line.
    pub kind: String,
    pub name: String,
    pub uid: String,
    /// Type of the condition.
    pub condition: String,
    /// The reason, in one word.
    pub reason: String,
    pub message: String,
    /// It is as it should be.
    pub well: bool,
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
    Attachment(VolumeId, AttachmentId),
}

/// Why an entry or a state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("it is empty")]
    Empty,
    #[error("it is of version {found}, and this software knows versions up to {FORMAT}; upgrade")]
    Version { found: u8 },
    #[error("its content cannot be parsed")]
    Content(#[from] serde_json::Error),
}

/// Encodes as a version byte and JSON.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, value).expect("our own types have a JSON form");
    bytes
}

/// The reverse of [`encode`], for bytes from disk and from other pods.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Empty),
        Some((&FORMAT, json)) => Ok(serde_json::from_slice(json)?),
        Some((&found, _)) => Err(CodecError::Version { found }),
    }
}
