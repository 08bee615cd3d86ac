//! What a pod's mirror lacks. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::control::proto::internal as proto;
use crate::control::state::CatalogState;
use crate::control::state::rows::{RowError, RowKey, encode_row};
use crate::control::state::table::Table;
use crate::control::state::tables::Object;
use crate::planted::planted;
use crate::types::Uuid;

/// How far a mirror is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub history: Uuid,
    /// 0: it has nothing.
    pub revision: u64,
}

/// The changes from one position to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub from: Position,
    pub to: Position,
    /// The rows are everything that there is; nothing before counts.
    pub is_whole: bool,
    /// The rows that differ, with their encoded form, or `None` for those that are gone.
    pub rows: Vec<(RowKey, Option<Bytes>)>,
}

/// True for a kind of row that pods are told of.
fn concerns(key: &RowKey) -> bool {
    match key {
        RowKey::Cluster
        | RowKey::Node(_)
        | RowKey::Pod(_)
        | RowKey::Disk(_)
        | RowKey::Class(_)
        | RowKey::Volume(_)
        | RowKey::Shard(_)
        | RowKey::Attachment(_)
        | RowKey::CatalogMember(_)
        | RowKey::Revoked(_) => true,
        RowKey::Head | RowKey::Answered(_) => false,
        // The authority's key is the catalog's own.
        RowKey::Authority(_) | RowKey::Token(_) | RowKey::Certificate(_) => false,
    }
}

/// Bytes of rows in one message.
const PIECE_BYTES: usize = 256 << 10;

/// What a mirror at `from` lacks; `None` when it lacks nothing, or knows more than this state.
pub fn update(state: &CatalogState, from: Position) -> Option<Update> {
    let to = Position { history: state.cluster.history, revision: state.revision() };
    let same_history = from.history == to.history || planted!(HistoriesCompared);
    if same_history && from.revision >= to.revision {
        return None;
    }
    let changed = (same_history && from.revision > 0).then(|| state.changed_since(from.revision));
    Some(match changed.flatten() {
        Some(keys) => {
            let keys: BTreeSet<&RowKey> = keys.filter(|key| concerns(key)).collect();
            let rows = keys.into_iter().map(|key| (key.clone(), row(state, key)));
            let rows = rows.filter(|(_, row)| row.is_some() || !planted!(SyncForgetsRemovals));
            Update { from, to, is_whole: false, rows: rows.collect() }
        }
        None => {
            let all = state.rows().filter(|(key, _)| concerns(key));
            let rows = all.map(|(key, row)| (key, Some(row))).collect();
            Update { from: Position::default(), to, is_whole: true, rows }
        }
    })
}

/// A row in its encoded form, if it is there.
fn row(state: &CatalogState, key: &RowKey) -> Option<Bytes> {
    fn of<T: Object>(table: &Table<T::Key, T>, key: &T::Key) -> Option<Bytes> {
        table.row(key).map(|row| encode_row(row.revision, &row.value))
    }
    match key {
        RowKey::Cluster => Some(encode_row(state.cluster_revision, &state.cluster)),
        RowKey::Node(name) => of(&state.nodes, name),
        RowKey::Pod(pod) => of(&state.pods, pod),
        RowKey::Disk(disk) => of(&state.disks, disk),
        RowKey::Class(name) => of(&state.classes, name),
        RowKey::Volume(volume) => of(&state.volumes, volume),
        RowKey::Shard(shard) => of(&state.shards, shard),
        RowKey::Attachment(key) => of(&state.attachments, key),
        RowKey::CatalogMember(member) => of(&state.catalog, member),
        RowKey::Revoked(serial) => of(&state.revoked, serial),
        RowKey::Head | RowKey::Answered(_) => None,
        RowKey::Authority(_) | RowKey::Token(_) | RowKey::Certificate(_) => None,
    }
}

/// Why bytes are no update.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("an update of the cluster cannot be decoded")]
    Message(#[from] prost::DecodeError),
    #[error("an update of the cluster lacks a part")]
    Part,
    #[error("a row of an update cannot be read")]
    Row(#[from] RowError),
}

impl Update {
    /// The form in which it is kept and sent.
    pub fn message(&self) -> proto::SyncUpdate {
        let position = |of: Position| proto::SyncPosition {
            history: Bytes::copy_from_slice(&of.history.0),
            revision: of.revision,
        };
        let rows = self
            .rows
            .iter()
            .map(|(key, row)| proto::SyncRow { key: Bytes::from(key.encode()), row: row.clone() });
        proto::SyncUpdate {
            from: Some(position(self.from)),
            to: Some(position(self.to)),
            is_whole: self.is_whole,
            rows: rows.collect(),
        }
    }

    pub fn from_message(message: proto::SyncUpdate) -> Result<Update, UpdateError> {
        let rows = message.rows.into_iter();
        let rows = rows.map(|row| Ok((RowKey::decode(&row.key)?, row.row)));
        Ok(Update {
            from: position_of(message.from)?,
            to: position_of(message.to)?,
            is_whole: message.is_whole,
            rows: rows.collect::<Result<_, RowError>>()?,
        })
    }

    /// The same update in pieces of bounded size, of which all have rows but the last.
    pub fn pieces(&self) -> Vec<proto::SyncUpdate> {
        let mut whole = self.message();
        let rows = std::mem::take(&mut whole.rows);
        let mut pieces = vec![whole.clone()];
        let mut bytes = 0;
        for row in rows {
            if bytes >= PIECE_BYTES {
                pieces.push(whole.clone());
                bytes = 0;
            }
            bytes += row.key.len() + row.row.as_ref().map_or(0, Bytes::len);
            pieces.last_mut().expect("there is one").rows.push(row);
        }
        pieces
    }

    pub fn encode(&self) -> Vec<u8> {
        self.message().encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Update, UpdateError> {
        Update::from_message(proto::SyncUpdate::decode(bytes)?)
    }
}

/// Reads a position that another pod sent.
pub fn position_of(message: Option<proto::SyncPosition>) -> Result<Position, UpdateError> {
    let proto::SyncPosition { history, revision } = message.ok_or(UpdateError::Part)?;
    let history = history[..].try_into().map_err(|_| UpdateError::Part)?;
    Ok(Position { history: Uuid(history), revision })
}
