//! What an orchestrator and the plugins of nodes ask of the catalog, carried out and answered as
//! the API does it ([`crate::control::api`]): an answer waits until shards have done their part.

use crate::control::command::{CatalogCommand, NewNode};
use crate::control::state::rows::{AttachmentKey, FileSystem};
use crate::control::state::{CatalogError, CatalogState};
use crate::types::{AccessMode, AttachmentId, FileSystemKind, Uuid, VolumeId};

/// A request. `request`: the id under which it is repeated.
#[derive(Clone, Debug)]
pub enum Order {
    Publish {
        volume: VolumeId,
        node: String,
        uid: Uuid,
        request: String,
    },
    Unpublish {
        volume: VolumeId,
        node: String,
        request: String,
    },
    Claim {
        volume: VolumeId,
        node: String,
        boot_id: String,
    },
    /// A file system is being made, or it is made.
    Record {
        volume: VolumeId,
        node: String,
        attachment: Uuid,
        made: bool,
    },
    Report {
        node: NewNode,
        has_no_device: bool,
    },
    DeclareLost {
        node: String,
        boot_id: String,
    },
}

/// The answer.
#[derive(Clone, Debug)]
pub enum Told {
    /// Every shard has admitted the node.
    Published {
        uid: Uuid,
        attachment: AttachmentId,
    },
    Claimed {
        uid: Uuid,
        attachment: AttachmentId,
        /// What is known of the volume's file system.
        record: Option<FileSystem>,
    },
    /// For an order to unpublish: every shard has fenced the node.
    Done,
    /// The attachment was ended while it was waited for.
    Gone,
    Refused(CatalogError),
}

/// What the answer to an order waits for.
pub enum Until {
    Active(AttachmentKey),
    Ended(Vec<AttachmentKey>),
    Told(Told),
}

impl Order {
    /// `None`: the leader's state says whether there is anything to do.
    pub fn command(&self) -> Option<CatalogCommand> {
        Some(match self.clone() {
            Order::Publish { volume, node, uid, request } => CatalogCommand::Publish {
                request_id: request,
                volume,
                node,
                mode: AccessMode::ReadWrite,
                io_timeout_ms: None,
                uid,
            },
            Order::Unpublish { volume, node, request } => {
                CatalogCommand::Unpublish { request_id: request, volume, node }
            }
            Order::Claim { volume, node, boot_id } => {
                CatalogCommand::Claim { volume, node, boot_id }
            }
            Order::Record { volume, node, attachment, made } => {
                let kind = FileSystemKind::Ext4;
                CatalogCommand::RecordFileSystem { volume, node, attachment, kind, made }
            }
            Order::Report { .. } => return None,
            Order::DeclareLost { node, boot_id } => CatalogCommand::DeclareLost { node, boot_id },
        })
    }

    /// True when a report says nothing new.
    pub fn is_known(state: &CatalogState, node: &NewNode, has_no_device: bool) -> bool {
        let has_pods = state.index.pods_by_node.contains_key(&node.name);
        state.nodes.get(&node.name).is_some_and(|known| {
            let is_so = has_pods || known.labels == node.labels;
            let is_new = has_no_device && known.lost_boot_id.is_some();
            known.boot_id == node.boot_id && is_so && !is_new
        })
    }
}

impl Until {
    /// `None`: not yet.
    pub fn told(&self, state: &CatalogState) -> Option<Told> {
        match self {
            Until::Active(key) => match state.attachments.get(key) {
                None => Some(Told::Gone),
                Some(it) if it.active => Some(Told::Published { uid: it.uid, attachment: key.1 }),
                Some(_) => None,
            },
            Until::Ended(keys) => {
                let is_there = |key: &AttachmentKey| state.attachments.get(key).is_some();
                (!keys.iter().any(is_there)).then_some(Told::Done)
            }
            Until::Told(told) => Some(told.clone()),
        }
    }
}
