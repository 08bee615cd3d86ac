//! Applies committed entries: a pure function of the entry and the shard metadata. A live member
//! and recovery run the same code, so both decide alike (rule `session-checked-at-apply`).

use std::collections::BTreeMap;

use bytes::Bytes;
use protobuf::Message;
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType};
use raft::prelude::ConfChangeSingle;

use crate::log::{Applied, Change, WholeExtents};
use crate::planted::planted;
use crate::replica::command::{self, CommandError, EntryCommand};
use crate::replica::meta::{Meta, changed_conf};
use crate::types::{BLOCKS_PER_EXTENT, BlockError, BlockRange, EXTENT_BYTES, Origin};

/// Applies committed entries to the metadata, in order, and returns their changes of blocks.
#[derive(Clone, Debug)]
pub struct Applier {
    pub meta: Meta,
    /// Decoded commands of large entries that are appended and not applied yet, by index.
    decoded: BTreeMap<u64, Result<(Origin, EntryCommand), CommandError>>,
}

/// Why a committed entry cannot be applied: the member is broken, or a newer version wrote the
/// entry.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("entry {index} carries a command that cannot be decoded")]
    Command {
        index: u64,
        #[source]
        source: CommandError,
    },
    #[error("entry {index} carries a configuration change that cannot be decoded")]
    ConfChange {
        index: u64,
        #[source]
        source: protobuf::ProtobufError,
    },
    #[error("entry {index} reaches beyond the end of the shard")]
    Range { index: u64 },
    #[error("entry {index} has a payload of {bytes} bytes, which does not fit its command")]
    Payload { index: u64, bytes: usize },
}

impl Applier {
    /// `meta` is the metadata as of the index before the first entry that will be applied.
    pub fn new(meta: Meta) -> Applier {
        Applier { meta, decoded: BTreeMap::new() }
    }

    /// The hint for the store about an entry that is being appended, if the entry only writes whole
    /// extents. Its decoded command is kept until the entry is applied or replaced.
    pub fn whole_extents(&mut self, entry: &Entry) -> Option<WholeExtents> {
        while self.decoded.last_key_value().is_some_and(|(index, _)| *index >= entry.index) {
            self.decoded.pop_last();
        }
        if entry.entry_type != EntryType::EntryNormal || entry.data.len() < EXTENT_BYTES {
            return None;
        }
        let decoded = self.decoded.entry(entry.index);
        // A command that cannot be decoded is reported when it is applied.
        let Ok((_, EntryCommand::Write { range, crcs })) =
            decoded.or_insert_with(|| command::decode(&entry.context))
        else {
            return None;
        };
        let whole = range.first.in_extent() == 0 && range.count.is_multiple_of(BLOCKS_PER_EXTENT);
        let (index, first) = (entry.index, range.first.extent());
        whole.then(|| WholeExtents { index, first, crcs: crcs.clone() })
    }

    /// Applies the next entry. A replay may leave out the payload of a write, because the log has
    /// it; `Change::Write::payload` is then empty.
    pub fn apply(&mut self, entry: &Entry) -> Result<Applied, ApplyError> {
        let mut applied = Applied { index: entry.index, term: entry.term, ..Applied::default() };
        if let Some(change) = conf_change_of(entry)? {
            applied.meta = self.change_members(&change);
            return Ok(applied);
        }
        if entry.context.is_empty() && entry.data.is_empty() {
            return Ok(applied);
        }
        let index = entry.index;
        let decoded = self.decoded.remove(&index);
        let (origin, command) = decoded
            .unwrap_or_else(|| command::decode(&entry.context))
            .map_err(|source| ApplyError::Command { index, source })?;
        self.check_payload(entry, &command)?;
        match self.admit(origin, &command) {
            Ok(changed) => applied.meta = changed.then(|| self.meta.encode()),
            Err(refused) => {
                applied.refused = Some(refused);
                return Ok(applied);
            }
        }
        match command {
            EntryCommand::Write { range, crcs } => {
                applied.change = Some(Change::Write { range, crcs, payload: entry.data.clone() });
            }
            EntryCommand::Zero { range, trim } => {
                applied.change = Some(Change::Zero { range, trim })
            }
            EntryCommand::Touch { .. } | EntryCommand::SetAccess(_) => (),
            EntryCommand::Opaque => applied.command = Some(entry.data.clone()),
        }
        Ok(applied)
    }

    /// Checks that the blocks are inside the shard and that the payload fits the command.
    fn check_payload(&self, entry: &Entry, command: &EntryCommand) -> Result<(), ApplyError> {
        let index = entry.index;
        let bytes = entry.data.len();
        let inside = |range: &BlockRange| range.end() <= self.meta.blocks;
        let (inside, fits) = match command {
            EntryCommand::Write { range, .. } => {
                (inside(range), bytes == 0 || bytes as u64 == range.bytes())
            }
            EntryCommand::Zero { range, .. } => (inside(range), bytes == 0),
            EntryCommand::Touch { .. } | EntryCommand::SetAccess(_) => (true, bytes == 0),
            EntryCommand::Opaque => (true, true),
        };
        if !inside {
            return Err(ApplyError::Range { index });
        }
        if !fits {
            return Err(ApplyError::Payload { index, bytes });
        }
        Ok(())
    }

    /// Checks who sent an entry (rule `session-checked-at-apply`), and changes who may use the
    /// shard. True: that was changed. Only a touch and a set do (rule `access-changes-by-entry`).
    fn admit(&mut self, origin: Origin, command: &EntryCommand) -> Result<bool, BlockError> {
        let access = &mut self.meta.access;
        match command {
            EntryCommand::Touch { renews } => access.touch(origin, *renews).map(|()| true),
            EntryCommand::SetAccess(set) => Ok(access.set(set)),
            EntryCommand::Opaque => Ok(false),
            EntryCommand::Write { .. } | EntryCommand::Zero { .. } => {
                if planted!(SessionNotChecked) {
                    return Ok(false);
                }
                let judged = access.judge(origin, true);
                if judged.is_err() && planted!(WriteChangesAccess) {
                    return Ok(access.give_to(origin));
                }
                judged.map(|()| false)
            }
        }
    }

    /// The new metadata, or `None` if the change does not fit. All members then ignore it alike.
    fn change_members(&mut self, change: &ConfChangeV2) -> Option<Bytes> {
        match changed_conf(&self.meta.conf, change) {
            Ok(conf) => {
                self.meta.set_conf(conf);
                Some(self.meta.encode())
            }
            Err(error) => {
                tracing::warn!(%error, "a configuration change does not fit and is ignored");
                None
            }
        }
    }
}

/// The configuration change in an entry, if the entry has one.
pub fn conf_change_of(entry: &Entry) -> Result<Option<ConfChangeV2>, ApplyError> {
    let index = entry.index;
    let failed = |source| ApplyError::ConfChange { index, source };
    match entry.get_entry_type() {
        EntryType::EntryNormal => Ok(None),
        EntryType::EntryConfChange => {
            let old = ConfChange::parse_from_bytes(&entry.data).map_err(failed)?;
            let mut step = ConfChangeSingle { node_id: old.node_id, ..ConfChangeSingle::default() };
            step.set_change_type(old.get_change_type());
            let mut change = ConfChangeV2::default();
            change.mut_changes().push(step);
            Ok(Some(change))
        }
        EntryType::EntryConfChangeV2 => {
            ConfChangeV2::parse_from_bytes(&entry.data).map(Some).map_err(failed)
        }
    }
}
