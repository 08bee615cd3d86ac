//! The objects of the catalog's state, and the form of their rows on disks and between pods.
//!
//! | key | object |
//! |---|---|
//! | `h` | [`Head`] |
//! | `c` | [`Cluster`] |
//! | `n` name | [`Node`] |
//! | `p` id (u64) | [`Pod`] |
//! | `d` id (16 bytes) | [`Disk`] |
//! | `k` name | [`Class`] |
//! | `v` id (u64) | [`Volume`] |
//! | `s` id (u64) | [`Shard`] |
//! | `a` volume (u64), id (u64) | [`Attachment`] |
//! | `m` id (u64) | [`CatalogMember`] |
//! | `r` number (u64) | [`Answered`] |
//! | `u` number (u64) | [`Authority`] |
//! | `t` id (text) | [`Token`] |
//! | `x` serial (text) | [`Certificate`] |
//! | `y` serial (text) | [`Revoked`] |
//! | `e` number (u64) | [`Event`] |
//!
//! Numbers are big endian. A row is the revision that changed it (u64, big endian) and JSON. A
//! field that the reader does not know is an error: rows of a newer feature level are not read.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::command::{Addresses, Outcome};
pub use crate::control::command::{Authority, Certificate, Hidden, Token};
use crate::level::Level;
use crate::types::{
    AccessMode, AccessSet, AttachmentId, FileSystemKind, Generation, MemberId, PodId, ShardId,
    Uuid, VolumeId,
};

/// Labels of an object: what people and placement choose by.
pub type Labels = BTreeMap<String, String>;

/// What changes with every command that changes anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Grows by one with each command that changes something.
    pub revision: u64,
    pub next: Counters,
    /// The newest time that a command carried, in ms since 1970. It never goes back.
    pub now_ms: u64,
}

/// The next id of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    pub pod: u64,
    pub volume: u64,
    pub shard: u64,
    pub member: u64,
    pub request: u64,
    pub event: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub uid: Uuid,
    /// Made by `init`, and made anew by every restore. Revisions of two histories cannot be
    /// compared.
    pub history: Uuid,
    /// The histories that this one descends from, the oldest first.
    pub ancestors: Vec<Uuid>,
    /// How often the catalog was restored or recovered. Revisions and ids begin anew, above all
    /// earlier ones, with each time ([`crate::control::state::rebirth`]).
    pub restores: u64,
    /// The feature level that all pods have to support.
    pub level: Level,
    /// The authorities whose certificates are accepted. The first one signs. Two while one is
    /// replaced; none where pods have no certificates.
    pub roots: Vec<TrustedRoot>,
    /// Pods may trust others, too, and keep them: a catalog that was restored does not know who has
    /// signed after its backup.
    pub others_trusted: bool,
    /// The certificates of authorities that were retired last, hexadecimal: none of them returns.
    pub retired: Vec<String>,
    pub created_ms: u64,
}

/// An authority that is trusted. All pods are told of it; its key is a row of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedRoot {
    pub number: u64,
    /// DER, hexadecimal.
    pub certificate: String,
}

/// A machine on which volumes are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Of the machine's present boot; empty when it is not known.
    pub boot_id: String,
    pub labels: Labels,
    /// The boot in which it was declared lost: it gets no new attachments in that boot.
    pub lost_boot_id: Option<String>,
    pub created_ms: u64,
}

impl Node {
    /// True when it was declared lost, and has not started anew since.
    pub fn is_lost(&self) -> bool {
        self.lost_boot_id.as_ref() == Some(&self.boot_id)
    }
}

/// A storage pod. It may have no disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Chosen by the pod before it joined; never changes.
    pub uid: Uuid,
    /// Name of its node.
    pub node: String,
    pub addresses: Addresses,
    /// The newest feature level that its program supports, as it said at its last start.
    pub newest_level: Level,
    pub created_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub pod: PodId,
    pub path: String,
    pub capacity_bytes: u64,
    pub created_ms: u64,
}

/// What a user may ask for when a volume is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// 1, 3 or 5.
    pub replicas: u32,
    /// The replicas of a shard differ in this label of their nodes; `node`: in the node.
    pub failure_domain: String,
    /// Only disks of this class; empty: all.
    pub disk_class: String,
    /// How much may be provisioned on a disk, in percent of its capacity.
    pub overcommit_percent: u32,
    /// What its volumes get: I/O fails when it has waited for so long; 0: it waits for ever.
    pub io_timeout_ms: u64,
    /// Limits of each volume; 0: none. Not enforced yet.
    pub iops_max: u64,
    pub bytes_per_second_max: u64,
    pub labels: Labels,
    /// Counts the changes of all but the labels.
    pub generation: u64,
    pub created_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    pub uid: Uuid,
    pub name: String,
    pub class: String,
    pub labels: Labels,
    /// What clients may use.
    pub size_bytes: u64,
    /// The size that is wanted, while new shards are not ready for it (rule
    /// `size-after-new-shards`).
    pub growing_to: Option<u64>,
    /// Always 1 for now.
    pub stripe_width: u32,
    /// Length of every shard.
    pub stripe_bytes: u64,
    pub replicas: u32,
    /// I/O without an attachment fails when it has waited for so long; 0: it waits for ever. As its
    /// class said when it was made.
    pub io_timeout_ms: u64,
    /// Its shards in the order of their places, those for the size that is wanted included.
    pub runs: Vec<ShardRun>,
    pub access: VolumeAccess,
    /// Until all shards have leaders for the first time.
    pub creating: bool,
    /// Deleted, and kept with its data.
    pub kept: Option<Kept>,
    /// What a node has made of it.
    pub file_system: Option<FileSystem>,
    /// Brought back after it was deleted: clients may use it when every shard has this generation.
    pub restoring: Option<Generation>,
    /// Its replicas are being destroyed. The volume is forgotten, and its name free, with the last.
    pub deleting: bool,
    pub created_ms: u64,
}

/// A file system that a node makes of a volume (rule `a-volume-is-formatted-once`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSystem {
    pub kind: FileSystemKind,
    /// It is complete. Otherwise it is being made, and nobody has written to it.
    pub made: bool,
}

/// Shards with ids that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRun {
    pub first: ShardId,
    pub count: u32,
}

impl ShardRun {
    pub fn ids(self) -> std::ops::Range<ShardId> {
        self.first..ShardId(self.first.0.saturating_add(self.count.into()))
    }
}

/// How long a deleted volume is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// In ms since 1970, by the catalog's time.
    pub deleted_ms: u64,
    /// From then on it is destroyed.
    pub purge_ms: u64,
}

impl Volume {
    /// The ids that its shards have or had, in the order of their places.
    pub fn shard_ids(&self) -> impl Iterator<Item = ShardId> {
        let ids = self.runs.iter().map(|run| run.ids());
        ids.flat_map(|ids| (ids.start.0..ids.end.0).map(ShardId))
    }

    /// The shard at a place.
    pub fn shard_at(&self, place: u32) -> Option<ShardId> {
        let mut left = place;
        for run in &self.runs {
            if left < run.count {
                return Some(ShardId(run.first.0.checked_add(left.into())?));
            }
            left -= run.count;
        }
        None
    }

    /// Number of its shards.
    pub fn shards(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// How many of its shards, from the first one on, the size that clients may use takes.
    pub fn shards_in_use(&self) -> u64 {
        self.size_bytes.div_ceil(self.stripe_bytes)
    }

    /// The size that is wanted, in use or not yet.
    pub fn wanted_bytes(&self) -> u64 {
        self.growing_to.unwrap_or(self.size_bytes)
    }

    /// How much of the wanted size lies in the shard at a place.
    pub fn bytes_at(&self, place: u32) -> u64 {
        let begin = self.stripe_bytes.saturating_mul(place.into());
        self.wanted_bytes().saturating_sub(begin).min(self.stripe_bytes)
    }

    /// Nobody may use it now, and it may come back: it is kept, or not yet back.
    pub fn is_withheld(&self) -> bool {
        self.kept.is_some() || self.restoring.is_some()
    }
}

/// How far the access sets of a volume's shards are (rule `grant-waits-for-all-shards`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeAccess {
    /// Anybody may use it, without an attachment.
    pub open: bool,
    /// The newest number that was given to an attachment or to a generation.
    pub counter: u64,
    /// The generation that every shard is to have, and the newest one that every shard has.
    pub wanted: Generation,
    pub applied: Generation,
}

/// A node's right to use a volume. It survives the node's reboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The name of its export.
    pub uid: Uuid,
    pub node: String,
    pub mode: AccessMode,
    /// Its I/O fails when it has waited for so long; 0: it waits for ever.
    pub io_timeout_ms: u64,
    /// Every shard has admitted it.
    pub active: bool,
    /// It ends: the first generation without it. It is forgotten when every shard has that.
    pub ends_with: Option<Generation>,
    pub created_ms: u64,
}

/// The volume of an attachment, and its id in that volume.
pub type AttachmentKey = (VolumeId, AttachmentId);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    pub volume: VolumeId,
    /// Position in the volume, from 0 on.
    pub place: u32,
    /// How much of the volume's wanted size lies in it: what its disks promise. Its length is that
    /// of the volume's stripe.
    pub bytes: u64,
    /// Of a volume that is being deleted: the members that are still to be destroyed.
    pub members: Vec<ShardMember>,
    /// Who may use it when it is made (rule `born-from-the-birth-record`). Never changes.
    pub birth: AccessSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMember {
    pub member: MemberId,
    pub disk: Uuid,
}

/// A member of the catalog, also one that its pod is still to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogMember {
    pub pod: PodId,
}

/// A named request that was carried out (rule `request-carried-out-once`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub id: String,
    /// Of method and content: another request must not use the id.
    pub content: u64,
    pub outcome: Outcome,
    pub at_ms: u64,
}

/// A certificate that is void before its time. All pods know these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    pub subject: String,
    /// Seconds since 1970.
    pub expires_s: u64,
    pub revoked_ms: u64,
}

/// Something that happened to an object, perhaps several times ([`crate::control::state::events`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Kind and name of the object, as on the command line. It may be gone by now.
    pub kind: String,
    pub name: String,
    pub uid: String,
    /// Type of the condition that has become another; empty: it was decided.
    pub condition: String,
    /// One word of a list that docs/api.md has.
    pub reason: String,
    pub message: String,
    /// Somebody should look.
    pub warns: bool,
    pub count: u32,
    pub first_ms: u64,
    pub last_ms: u64,
}

/// Names a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    Head,
    Cluster,
    Node(String),
    Pod(PodId),
    Disk(Uuid),
    Class(String),
    Volume(VolumeId),
    Shard(ShardId),
    Attachment(AttachmentKey),
    CatalogMember(MemberId),
    Answered(u64),
    Authority(u64),
    Token(String),
    Certificate(String),
    Revoked(String),
    Event(u64),
}

/// A row that a command has changed: its encoded form, or `None` for one that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    pub key: RowKey,
    pub row: Option<Bytes>,
}

/// Why a row cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("a row has a key that is not known: {0:?}")]
    Key(Vec<u8>),
    #[error("a row is too short")]
    Short,
    #[error("the row {key:?} cannot be read; it may come from a newer version")]
    Value {
        key: RowKey,
        #[source]
        source: serde_json::Error,
    },
}

impl RowKey {
    pub fn encode(&self) -> Vec<u8> {
        let with = |kind: u8, id: &[u8]| [&[kind], id].concat();
        match self {
            RowKey::Head => vec![b'h'],
            RowKey::Cluster => vec![b'c'],
            RowKey::Node(name) => with(b'n', name.as_bytes()),
            RowKey::Pod(pod) => with(b'p', &pod.0.to_be_bytes()),
            RowKey::Disk(disk) => with(b'd', &disk.0),
            RowKey::Class(name) => with(b'k', name.as_bytes()),
            RowKey::Volume(volume) => with(b'v', &volume.0.to_be_bytes()),
            RowKey::Shard(shard) => with(b's', &shard.0.to_be_bytes()),
            RowKey::Attachment((volume, id)) => {
                with(b'a', &[volume.0.to_be_bytes(), id.0.to_be_bytes()].concat())
            }
            RowKey::CatalogMember(member) => with(b'm', &member.0.to_be_bytes()),
            RowKey::Answered(number) => with(b'r', &number.to_be_bytes()),
            RowKey::Authority(number) => with(b'u', &number.to_be_bytes()),
            RowKey::Token(id) => with(b't', id.as_bytes()),
            RowKey::Certificate(serial) => with(b'x', serial.as_bytes()),
            RowKey::Revoked(serial) => with(b'y', serial.as_bytes()),
            RowKey::Event(number) => with(b'e', &number.to_be_bytes()),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<RowKey, RowError> {
        let unknown = || RowError::Key(bytes.to_vec());
        let (kind, id) = bytes.split_first().ok_or_else(unknown)?;
        let number = || id.try_into().map(u64::from_be_bytes).map_err(|_| unknown());
        let name = || String::from_utf8(id.to_vec()).map_err(|_| unknown());
        Ok(match kind {
            b'h' if id.is_empty() => RowKey::Head,
            b'c' if id.is_empty() => RowKey::Cluster,
            b'n' => RowKey::Node(name()?),
            b'p' => RowKey::Pod(PodId(number()?)),
            b'd' => RowKey::Disk(Uuid(id.try_into().map_err(|_| unknown())?)),
            b'k' => RowKey::Class(name()?),
            b'v' => RowKey::Volume(VolumeId(number()?)),
            b's' => RowKey::Shard(ShardId(number()?)),
            b'a' => {
                let (volume, id) = id.split_first_chunk::<8>().ok_or_else(unknown)?;
                let id = id.try_into().map_err(|_| unknown())?;
                let (volume, id) = (u64::from_be_bytes(*volume), u64::from_be_bytes(id));
                RowKey::Attachment((VolumeId(volume), AttachmentId(id)))
            }
            b'm' => RowKey::CatalogMember(MemberId(number()?)),
            b'r' => RowKey::Answered(number()?),
            b'u' => RowKey::Authority(number()?),
            b't' => RowKey::Token(name()?),
            b'x' => RowKey::Certificate(name()?),
            b'y' => RowKey::Revoked(name()?),
            b'e' => RowKey::Event(number()?),
            _ => return Err(unknown()),
        })
    }
}

/// The encoded form of a row: the revision and JSON.
pub fn encode_row<V: Serialize>(revision: u64, value: &V) -> Bytes {
    let mut bytes = revision.to_be_bytes().to_vec();
    serde_json::to_writer(&mut bytes, value).expect("our own types have a JSON form");
    Bytes::from(bytes)
}

/// Reads the revision and the object of a row.
pub fn decode_row<V: DeserializeOwned>(key: &RowKey, row: &[u8]) -> Result<(u64, V), RowError> {
    let (revision, json) = row.split_first_chunk::<8>().ok_or(RowError::Short)?;
    let value = serde_json::from_slice(json)
        .map_err(|source| RowError::Value { key: key.clone(), source })?;
    Ok((u64::from_be_bytes(*revision), value))
}

/// A stable hash of a row, by its key and its encoded form (FNV-1a, 64 bits).
pub(super) fn hash_row(key: &RowKey, row: &[u8]) -> u64 {
    let bytes = key.encode();
    bytes.iter().chain(row).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_encoding_and_others_are_refused() {
        let keys = [
            RowKey::Head,
            RowKey::Cluster,
            RowKey::Node("worker-1".to_owned()),
            RowKey::Pod(PodId(7)),
            RowKey::Disk(Uuid([3; 16])),
            RowKey::Class("replicated".to_owned()),
            RowKey::Volume(VolumeId(u64::MAX)),
            RowKey::Shard(ShardId(0)),
            RowKey::Attachment((VolumeId(3), AttachmentId(4))),
            RowKey::CatalogMember(MemberId(1)),
            RowKey::Answered(9),
            RowKey::Authority(1),
            RowKey::Token("0123456789abcdef".to_owned()),
            RowKey::Certificate("4f".to_owned()),
            RowKey::Revoked("4f".to_owned()),
            RowKey::Event(5),
        ];
        for key in keys {
            assert_eq!(RowKey::decode(&key.encode()).unwrap(), key);
        }
        for bytes in [&b""[..], b"z", b"h1", b"p1234567", b"d123", b"n\xff", b"a12345678", b"a1"] {
            assert!(RowKey::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_row_of_a_newer_version_is_refused() {
        let key = RowKey::CatalogMember(MemberId(1));
        let row = encode_row(5, &CatalogMember { pod: PodId(2) });
        assert_eq!(decode_row(&key, &row).unwrap(), (5, CatalogMember { pod: PodId(2) }));
        let mut newer = 5u64.to_be_bytes().to_vec();
        newer.extend_from_slice(br#"{"pod":2,"soul":1}"#);
        let error = decode_row::<CatalogMember>(&key, &newer).unwrap_err();
        assert!(error.to_string().contains("newer version"), "{error}");
        assert!(decode_row::<CatalogMember>(&key, &newer[..7]).is_err());
    }
}
