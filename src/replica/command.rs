//! Codec of `Entry.context`: the command of a log entry. `Entry.data` holds only the payload.
//!
//! Layout, little endian, version 2:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version (2) |
//! | 1 | 1 | kind: 1 write, 2 zero, 3 trim, 4 touch, 5 opaque, 6 touch that renews, 7 access |
//! | 2 | 2 | zero |
//! | 4 | 4 | first block of the shard |
//! | 8 | 4 | number of blocks |
//! | 12 | 4 | zero |
//! | 16 | 8 | attachment |
//! | 24 | 8 | counter of the session |
//! | 32 | 8 | pod of the session |
//! | 40 | 4 x blocks | write only: one checksum per block |
//! | 40 | 13 | access only: generation u64, open u8, number of attachments u32 |
//! | 53 | 9 each | attachment u64, mode u8: 1 read and write, 2 read only, 3 raw |
//!
//! Nothing follows. Kinds without blocks have zeroes in the block fields. An `EntryNormal` with
//! empty context and data is the no-op of raft-rs. The payload is exactly the blocks of a write,
//! any bytes for an opaque command, and empty otherwise.

use bytes::{BufMut, Bytes};

use crate::fields::{FieldError, Fields, PutFields};
use crate::limits::ENTRY_BYTES_MAX;
use crate::types::{AccessSet, BLOCK_BYTES, Block, BlockRange, Origin};

const VERSION: u8 = 2;
const HEADER_BYTES: usize = 40;
const KIND_WRITE: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_TRIM: u8 = 3;
const KIND_TOUCH: u8 = 4;
const KIND_OPAQUE: u8 = 5;
const KIND_RENEW: u8 = 6;
const KIND_ACCESS: u8 = 7;
/// Largest number of blocks in one write.
const WRITE_BLOCKS_MAX: u32 = (ENTRY_BYTES_MAX / BLOCK_BYTES) as u32;

/// The command of an entry, carried out when the entry is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryCommand {
    /// Whole blocks; one checksum per block.
    Write { range: BlockRange, crcs: Vec<u32> },
    /// The blocks read as zeroes from then on; with `trim` their space is given back.
    Zero { range: BlockRange, trim: bool },
    /// Changes no block. Records the session of its origin (rule `touch-before-anything`).
    Touch { renews: bool },
    /// Changes no block. Sets who may use the shard.
    SetAccess(AccessSet),
    /// A command of the catalog's own group; the payload is passed on unchanged.
    Opaque,
}

/// Why the context of an entry cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("the command has the wrong length: {0}")]
    Length(#[from] FieldError),
    #[error("command version {0} is not known")]
    Version(u8),
    #[error("command kind {0} is not known")]
    Kind(u8),
    #[error("the command names a wrong run of {count} blocks from {first}")]
    Range { first: u32, count: u32 },
    #[error("reserved bytes of the command are in use")]
    Reserved,
}

/// Encodes a write without building an [`EntryCommand`].
pub fn encode_write(origin: Origin, range: BlockRange, crcs: &[u32]) -> Bytes {
    assert_eq!(crcs.len(), range.count as usize, "one checksum per block");
    let mut context = header(KIND_WRITE, origin, range.first.0, range.count, crcs.len());
    context.put_u32s_le(crcs);
    Bytes::from(context)
}

/// Encodes any command.
pub fn encode(origin: Origin, command: &EntryCommand) -> Bytes {
    let context = match command {
        EntryCommand::Write { range, crcs } => return encode_write(origin, *range, crcs),
        EntryCommand::Zero { range, trim } => {
            let kind = if *trim { KIND_TRIM } else { KIND_ZERO };
            header(kind, origin, range.first.0, range.count, 0)
        }
        EntryCommand::Touch { renews: false } => header(KIND_TOUCH, origin, 0, 0, 0),
        EntryCommand::Touch { renews: true } => header(KIND_RENEW, origin, 0, 0, 0),
        EntryCommand::SetAccess(set) => {
            let mut context = header(KIND_ACCESS, origin, 0, 0, 0);
            context.put_access_set(set);
            context
        }
        EntryCommand::Opaque => header(KIND_OPAQUE, origin, 0, 0, 0),
    };
    Bytes::from(context)
}

fn header(kind: u8, origin: Origin, first: u32, count: u32, crcs: usize) -> Vec<u8> {
    let mut context = Vec::with_capacity(HEADER_BYTES + crcs * 4);
    context.put_slice(&[VERSION, kind, 0, 0]);
    context.put_u32s_le(&[first, count, 0]);
    context.put_origin(origin);
    context
}

/// Decodes the output of [`encode`]. Any other bytes are an error, never a panic.
pub fn decode(context: &[u8]) -> Result<(Origin, EntryCommand), CommandError> {
    let mut fields = Fields::new(context);
    let (version, kind) = (fields.u8()?, fields.u8()?);
    if version != VERSION {
        return Err(CommandError::Version(version));
    }
    let reserved = fields.u16()?;
    let (first, count) = (fields.u32()?, fields.u32()?);
    if reserved != 0 || fields.u32()? != 0 {
        return Err(CommandError::Reserved);
    }
    let origin = fields.origin()?;
    let wrong_range = CommandError::Range { first, count };
    let with_blocks = matches!(kind, KIND_WRITE | KIND_ZERO | KIND_TRIM);
    if with_blocks && (count == 0 || first.checked_add(count).is_none()) {
        return Err(wrong_range);
    }
    if !with_blocks && (first != 0 || count != 0) {
        return Err(wrong_range);
    }
    let range = BlockRange { first: Block(first), count };
    let command = match kind {
        KIND_WRITE if count > WRITE_BLOCKS_MAX => return Err(wrong_range),
        KIND_WRITE => EntryCommand::Write { range, crcs: fields.u32s(count as usize)? },
        KIND_ZERO => EntryCommand::Zero { range, trim: false },
        KIND_TRIM => EntryCommand::Zero { range, trim: true },
        KIND_TOUCH => EntryCommand::Touch { renews: false },
        KIND_RENEW => EntryCommand::Touch { renews: true },
        KIND_ACCESS => EntryCommand::SetAccess(fields.access_set()?),
        KIND_OPAQUE => EntryCommand::Opaque,
        other => return Err(CommandError::Kind(other)),
    };
    fields.end()?;
    Ok((origin, command))
}

/// True for a command that sets who may use the shard.
pub fn sets_access(context: &[u8]) -> bool {
    context.get(1) == Some(&KIND_ACCESS)
}

/// Extents that a command zeroes, for accounts; 0 when it cannot be decoded.
pub fn zero_extents(context: &[u8]) -> u64 {
    let is_zero = matches!(context.get(1), Some(&KIND_ZERO | &KIND_TRIM));
    match is_zero.then(|| decode(context)) {
        Some(Ok((_, EntryCommand::Zero { range, .. }))) => range.extent_count(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{AccessMode, AttachmentId, Generation, Grant, PodId, Session};

    fn any_access() -> impl Strategy<Value = AccessSet> {
        let modes = [AccessMode::ReadWrite, AccessMode::ReadOnly, AccessMode::Raw];
        let ids = prop::collection::btree_map(1u64..100, 0..modes.len(), 0..5);
        (100u64..200, any::<bool>(), ids).prop_map(move |(generation, open, ids)| {
            let grant = |(id, mode)| Grant { attachment: AttachmentId(id), mode: modes[mode] };
            let grants = ids.into_iter().map(grant).collect();
            AccessSet { generation: Generation(generation), open, grants }
        })
    }

    fn any_command() -> impl Strategy<Value = EntryCommand> {
        let range = (0u32..1 << 20, 1u32..=WRITE_BLOCKS_MAX)
            .prop_map(|(first, count)| BlockRange { first: Block(first), count });
        prop_oneof![
            range.clone().prop_map(|range| EntryCommand::Write {
                range,
                crcs: (0..range.count).map(|i| i.wrapping_mul(0x9e37_79b9)).collect(),
            }),
            (range, any::<bool>()).prop_map(|(range, trim)| EntryCommand::Zero { range, trim }),
            any::<bool>().prop_map(|renews| EntryCommand::Touch { renews }),
            any_access().prop_map(EntryCommand::SetAccess),
            Just(EntryCommand::Opaque),
        ]
    }

    proptest! {
        #[test]
        fn a_command_survives_its_encoding(
            command in any_command(),
            attachment in any::<u64>(),
            counter in any::<u64>(),
            pod in any::<u64>(),
        ) {
            let session = Session { counter, pod: PodId(pod) };
            let origin = Origin { attachment: AttachmentId(attachment), session };
            let bytes = encode(origin, &command);
            prop_assert_eq!(decode(&bytes).unwrap(), (origin, command));
            for cut in [0, 1, 39, bytes.len() - 1] {
                prop_assert!(decode(&bytes[..cut]).is_err());
            }
            let longer = [&bytes[..], &[0; 4]].concat();
            prop_assert!(decode(&longer).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_judged_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..96),
        ) {
            // Whatever is accepted must encode to the very same bytes: one meaning, one form.
            if let Ok((origin, command)) = decode(&bytes) {
                prop_assert_eq!(&encode(origin, &command)[..], &bytes[..]);
            }
        }

        #[test]
        fn nearly_valid_bytes_are_judged_without_panic(
            command in any_command(),
            at in 0usize..40,
            value in any::<u8>(),
        ) {
            let mut bytes = encode(Origin::default(), &command).to_vec();
            bytes[at] = value;
            if let Ok((origin, command)) = decode(&bytes) {
                prop_assert_eq!(&encode(origin, &command)[..], &bytes[..]);
            }
        }
    }
}
