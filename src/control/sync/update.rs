//! What a pod's mirror lacks, in the form in which it is sent and kept. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::control::proto::internal as proto;
use crate::control::state::rows::{RowError, RowKey};
use crate::types::{Uuid, VolumeId, mix64};

/// How far a mirror is, and which volumes it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub history: Uuid,
    /// 0: it has nothing.
    pub revision: u64,
    pub part: Part,
}

impl From<Position> for proto::SyncPosition {
    fn from(of: Position) -> proto::SyncPosition {
        let history = Bytes::copy_from_slice(&of.history.0);
        proto::SyncPosition { history, revision: of.revision, part: of.part.0 }
    }
}

/// A fingerprint of a set of volumes. Two mirrors of one revision with equal parts are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part(pub u64);

impl Part {
    pub fn of<'a>(volumes: impl IntoIterator<Item = &'a VolumeId>) -> Part {
        let mut part = Part::default();
        volumes.into_iter().for_each(|volume| part.add(*volume));
        part
    }

    /// A volume that was not in the set comes in.
    pub fn add(&mut self, volume: VolumeId) {
        self.0 = self.0.wrapping_add(mix64(volume.0));
    }

    /// A volume of the set goes.
    pub fn remove(&mut self, volume: VolumeId) {
        self.0 = self.0.wrapping_sub(mix64(volume.0));
    }
}

/// The changes from one position to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub from: Position,
    pub to: Position,
    /// The rows are everything that there is; nothing before counts.
    pub is_whole: bool,
    /// The rows that differ, with their encoded form, or `None` for those that are gone. With a
    /// volume go its shards and its attachments.
    pub rows: Vec<(RowKey, Option<Bytes>)>,
    /// The volumes that the pod wants, when these differ.
    pub wants: Option<BTreeSet<VolumeId>>,
}

/// Bytes of rows in one message.
const PIECE_BYTES: usize = 256 << 10;

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
        let wants = |wants: &BTreeSet<VolumeId>| proto::SyncWants {
            volumes: wants.iter().map(|volume| volume.0).collect(),
        };
        let rows = self
            .rows
            .iter()
            .map(|(key, row)| proto::SyncRow { key: Bytes::from(key.encode()), row: row.clone() });
        proto::SyncUpdate {
            from: Some(self.from.into()),
            to: Some(self.to.into()),
            is_whole: self.is_whole,
            rows: rows.collect(),
            wants: self.wants.as_ref().map(wants),
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
            wants: message.wants.map(|wants| wants.volumes.into_iter().map(VolumeId).collect()),
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
    let proto::SyncPosition { history, revision, part } = message.ok_or(UpdateError::Part)?;
    let history = history[..].try_into().map_err(|_| UpdateError::Part)?;
    Ok(Position { history: Uuid(history), revision, part: Part(part) })
}
