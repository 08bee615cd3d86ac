//! Why commands are refused.

use crate::config::size::ByteSize;
use crate::control::names::NameError;
use crate::level::{Level, TooOld};
use crate::limits::SHARDS_MAX;
use crate::types::{FileSystemKind, PodId};

/// Longest id of a request.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    #[error("a volume named {name:?} exists already, and is not what is asked for")]
    NameTaken { name: String },
    #[error(
        "volume {name:?} is being deleted; its name is free when its disks gave its space back"
    )]
    NameNotFreeYet { name: String },
    #[error("volume {name:?} was deleted, and is still kept")]
    VolumeDeleted { name: String },
    #[error("volume {name:?} is not deleted; only what is deleted can be purged")]
    NotDeleted { name: String },
    #[error("a deleted volume is kept for ten years at most")]
    BadRetention,
    #[error(
        "volume {name:?} has {} or is growing to that, and a volume does not shrink; {} is less",
        ByteSize(*.wanted_bytes), ByteSize(*.size_bytes)
    )]
    Shrinks { name: String, wanted_bytes: u64, size_bytes: u64 },
    #[error(
        "volume {name:?} cannot grow to {}: with {SHARDS_MAX} shards of the length that it was \
         made with, it has at most {}",
        ByteSize(*.size_bytes), ByteSize(*.largest_bytes)
    )]
    TooManyShards { name: String, size_bytes: u64, largest_bytes: u64 },
    #[error("the pod's program is too old for this cluster")]
    TooOld(#[source] TooOld),
    #[error("no pod supports level {level}; the newest that one supports is {newest}")]
    NoSuchLevel { level: Level, newest: Level },
    #[error("pod {pod} does not support the level")]
    PodTooOld {
        pod: PodId,
        #[source]
        source: TooOld,
    },
    #[error("there is no volume named {name:?}")]
    NoSuchVolume { name: String },
    #[error("there is no class named {name:?}; there are {known}")]
    NoSuchClass { name: String, known: String },
    #[error("{name:?} cannot be a name")]
    BadName {
        name: String,
        #[source]
        source: NameError,
    },
    #[error(
        "a volume's size is a multiple of 4096 bytes, from 4KiB to 1PiB; {size_bytes} bytes is not"
    )]
    BadSize { size_bytes: u64 },
    #[error("an object has at most {labels} labels of {bytes} bytes each", labels = LABELS_MAX,
        bytes = LABEL_BYTES_MAX)]
    BadLabels,
    #[error("a class named {name:?} exists already, and is not what is asked for")]
    ClassTaken { name: String },
    #[error("class {name:?} cannot be deleted while volumes name it, as {volume} does")]
    ClassInUse { name: String, volume: String },
    #[error("a class cannot be like this: {0}")]
    BadClass(&'static str),
    #[error("I/O may fail after 1 second to a day, or wait for ever (0)")]
    BadIoTimeout,
    #[error("it has changed since revision {based_on}: it is at {revision} now")]
    Conflict { based_on: u64, revision: u64 },
    #[error("pod {pod} is not part of this cluster")]
    NoSuchPod { pod: PodId },
    #[error("pod {pod} has another identity; a directory of another pod was copied or restored")]
    WrongPod { pod: PodId },
    #[error("as many pods have joined this cluster as can")]
    TooManyPods,
    #[error("the disks changed while the replicas were being placed")]
    StalePlacement,
    #[error("there is no node named {node:?}")]
    NoSuchNode { node: String },
    #[error("node {node} was declared lost; it gets no volumes before it has started anew")]
    NodeLost { node: String },
    #[error("node {node} has started anew since; look again whether it is lost")]
    NodeRebooted { node: String },
    #[error("volume {name} is open: anybody may use it, and no node can have it for itself")]
    VolumeOpen { name: String },
    #[error("volume {name} is in use by node {holder}; it has to be unpublished there first")]
    Held { name: String, holder: String },
    #[error("volume {name} is not published to node {node}, or not yet")]
    NotPublished { name: String, node: String },
    #[error("volume {name} has a file system, {kind}, and gets no other one")]
    Formatted { name: String, kind: FileSystemKind },
    #[error("node {node} has this volume in another mode")]
    OtherMode { node: String },
    #[error("volume {name} has as many attachments as it can have")]
    TooManyAttachments { name: String },
    #[error("the name of a request has at most {REQUEST_ID_BYTES_MAX} bytes")]
    BadRequestId,
    #[error("the cluster has another authority")]
    AuthorityExists,
    #[error("the catalog has no authority that could be replaced")]
    NoAuthority,
    #[error("another authority is being introduced; finish that, or abandon it")]
    AuthorityInReplacement,
    #[error("no authority is being replaced")]
    NoReplacement,
    #[error("the new authority does not sign yet, so the old one is still needed")]
    AuthorityNotInUse,
    #[error("the new authority has signed; finish its introduction instead")]
    AuthorityInUse,
    #[error("the authority was retired, and never returns; make another one")]
    AuthorityRetired,
    #[error("the authority that signed was replaced meanwhile")]
    AuthorityReplaced,
    #[error("there are too many tokens; revoke some")]
    TooManyTokens,
    #[error(
        "{subject} has {CERTIFICATES_MAX} valid certificates, and gets no more; revoke some that \
         are not in use"
    )]
    TooManyCertificates { subject: String },
    #[error("there is no token {id:?}")]
    NoSuchToken { id: String },
    #[error("no certificate with the serial {serial:?} was issued here")]
    NoSuchCertificate { serial: String },
    #[error("it is a pod's; remove the pod from the cluster instead")]
    CertificateOfPod,
    #[error("request {id:?} was used for something else before; a new request needs a new id")]
    RequestReused { id: String },
}

/// Valid certificates of one subject, at most.
pub const CERTIFICATES_MAX: usize = 16;
/// Most labels of an object, and the most bytes of a key or a value.
pub const LABELS_MAX: usize = 64;
pub const LABEL_BYTES_MAX: usize = 253;
