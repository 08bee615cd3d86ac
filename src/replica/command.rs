//! Codec of `Entry.context`: the command of a log entry. `Entry.data` holds only the payload.
//!
//! Layout, little endian, version 1:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | version (1) |
//! | 1 | 1 | kind: 1 write, 2 zero, 3 trim, 4 touch, 5 opaque |
//! | 2 | 2 | zero |
//! | 4 | 4 | first block of the shard |
//! | 8 | 4 | number of blocks |
//! | 12 | 4 | zero |
//! | 16 | 8 | attachment epoch |
//! | 24 | 8 | front end |
//! | 32 | 8 | session |
//! | 40 | 4 x blocks | write only: one checksum per block |
//!
//! Nothing follows. Kinds without blocks have zeroes in the block fields. An `EntryNormal` with
//! empty context and data is the no-op of raft-rs. The payload is exactly the blocks of a write,
//! any bytes for an opaque command, and empty otherwise.

use bytes::{BufMut, Bytes};

use crate::fields::{FieldError, Fields, PutFields};
use crate::limits::ENTRY_BYTES_MAX;
use crate::types::{BLOCK_BYTES, Block, BlockRange, Origin};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 40;
const KIND_WRITE: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_TRIM: u8 = 3;
const KIND_TOUCH: u8 = 4;
const KIND_OPAQUE: u8 = 5;
/// Largest number of blocks in one write.
const WRITE_BLOCKS_MAX: u32 = (ENTRY_BYTES_MAX / BLOCK_BYTES) as u32;

/// The command of an entry, carried out when the entry is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryCommand {
    /// Whole blocks; one checksum per block.
    Write { range: BlockRange, crcs: Vec<u32> },
    /// The blocks read as zeroes from then on; with `trim` their space is given back.
    Zero { range: BlockRange, trim: bool },
    /// Changes no block. Only raises the recorded attachment epoch and session of its origin.
    Touch,
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
        EntryCommand::Touch => header(KIND_TOUCH, origin, 0, 0, 0),
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
        KIND_TOUCH => EntryCommand::Touch,
        KIND_OPAQUE => EntryCommand::Opaque,
        other => return Err(CommandError::Kind(other)),
    };
    fields.end()?;
    Ok((origin, command))
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
    use crate::types::PodId;

    fn any_command() -> impl Strategy<Value = EntryCommand> {
        let range = (0u32..1 << 20, 1u32..=WRITE_BLOCKS_MAX)
            .prop_map(|(first, count)| BlockRange { first: Block(first), count });
        prop_oneof![
            range.clone().prop_map(|range| EntryCommand::Write {
                range,
                crcs: (0..range.count).map(|i| i.wrapping_mul(0x9e37_79b9)).collect(),
            }),
            (range, any::<bool>()).prop_map(|(range, trim)| EntryCommand::Zero { range, trim }),
            Just(EntryCommand::Touch),
            Just(EntryCommand::Opaque),
        ]
    }

    proptest! {
        #[test]
        fn a_command_survives_its_encoding(
            command in any_command(),
            epoch in any::<u64>(),
            front_end in any::<u64>(),
            session in any::<u64>(),
        ) {
            let origin = Origin { attachment_epoch: epoch, front_end: PodId(front_end), session };
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
