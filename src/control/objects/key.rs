//! Names of objects inside a pod, across all kinds.

use crate::types::{AttachmentId, PodId, ShardId, Uuid, VolumeId};

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Pod,
    Disk,
    Class,
    Volume,
    Shard,
    Attachment,
    Event,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Node,
        Kind::Pod,
        Kind::Disk,
        Kind::Class,
        Kind::Volume,
        Kind::Shard,
        Kind::Attachment,
        Kind::Event,
    ];

    /// The word for one object, as on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Node => "node",
            Kind::Pod => "pod",
            Kind::Disk => "disk",
            Kind::Class => "class",
            Kind::Volume => "volume",
            Kind::Shard => "shard",
            Kind::Attachment => "attachment",
            Kind::Event => "event",
        }
    }

    /// The kind of a word.
    pub fn of(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    Node(String),
    Pod(PodId),
    Disk(Uuid),
    Class(String),
    Volume(VolumeId),
    Shard(ShardId),
    Attachment((VolumeId, AttachmentId)),
    Event(u64),
}

impl ObjectKey {
    pub fn kind(&self) -> Kind {
        match self {
            ObjectKey::Node(_) => Kind::Node,
            ObjectKey::Pod(_) => Kind::Pod,
            ObjectKey::Disk(_) => Kind::Disk,
            ObjectKey::Class(_) => Kind::Class,
            ObjectKey::Volume(_) => Kind::Volume,
            ObjectKey::Shard(_) => Kind::Shard,
            ObjectKey::Attachment(_) => Kind::Attachment,
            ObjectKey::Event(_) => Kind::Event,
        }
    }

    /// The uid, where the key is the uid.
    pub fn uid(&self) -> Option<String> {
        match self {
            ObjectKey::Node(name) | ObjectKey::Class(name) => Some(name.clone()),
            ObjectKey::Disk(disk) => Some(disk.to_string()),
            ObjectKey::Shard(shard) => Some(shard.to_string()),
            ObjectKey::Event(number) => Some(number.to_string()),
            ObjectKey::Pod(_) | ObjectKey::Volume(_) | ObjectKey::Attachment(_) => None,
        }
    }

    /// The key without its kind, for a page token.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ObjectKey::Node(name) | ObjectKey::Class(name) => name.as_bytes().to_vec(),
            ObjectKey::Pod(PodId(id))
            | ObjectKey::Volume(VolumeId(id))
            | ObjectKey::Shard(ShardId(id))
            | ObjectKey::Event(id) => id.to_be_bytes().to_vec(),
            ObjectKey::Disk(disk) => disk.0.to_vec(),
            ObjectKey::Attachment((volume, id)) => {
                [volume.0.to_be_bytes(), id.0.to_be_bytes()].concat()
            }
        }
    }

    /// The reverse of [`ObjectKey::encode`]; `None` for bytes that are no key of this kind.
    pub fn decode(kind: Kind, bytes: &[u8]) -> Option<ObjectKey> {
        let number = || bytes.try_into().map(u64::from_be_bytes).ok();
        let name = || String::from_utf8(bytes.to_vec()).ok();
        Some(match kind {
            Kind::Node => ObjectKey::Node(name()?),
            Kind::Pod => ObjectKey::Pod(PodId(number()?)),
            Kind::Disk => ObjectKey::Disk(Uuid(bytes.try_into().ok()?)),
            Kind::Class => ObjectKey::Class(name()?),
            Kind::Volume => ObjectKey::Volume(VolumeId(number()?)),
            Kind::Shard => ObjectKey::Shard(ShardId(number()?)),
            Kind::Event => ObjectKey::Event(number()?),
            Kind::Attachment => {
                let (volume, id) = bytes.split_first_chunk::<8>()?;
                let id = u64::from_be_bytes(id.try_into().ok()?);
                let volume = VolumeId(u64::from_be_bytes(*volume));
                ObjectKey::Attachment((volume, AttachmentId(id)))
            }
        })
    }
}
