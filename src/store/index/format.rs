//! Keys and values of the index. Integers of keys are big-endian, so that keys sort by
//! (member, extent, layer); those of values are little-endian.
//!
//! ```text
//! key                                    value
//! 'e' member u64, extent u32, layer u32  version u8 = 1, slot u32, present u16, zero u16,
//!                                        last-changed u64, birth volume u64, then one CRC u32
//!                                        per *present* block, in order
//! 'f' member u64                         empty: its log lost something it had promised
//! 'm' member u64                         version u8 = 1, shard u64, volume u64, first block u64,
//!                                        blocks u32, flushed index u64, flushed term u64,
//!                                        resyncing u8, then the metadata
//! 't' member u64                         empty: the tombstone of a destroyed member
//! ```
//!
//! A value that is shorter or longer than its fields say is corrupt.

use bytes::{BufMut, Bytes};

use crate::fields::{FieldError, Fields, PutFields};
use crate::store::index::IndexError;
use crate::store::messages::{ExtentKey, ExtentRecord, IndexEdit, MemberRecord, Slot};
use crate::types::{BLOCKS_PER_EXTENT, Extent, MemberId, ShardId, VolumeId};

const EXTENT: u8 = b'e';
const FAULT: u8 = b'f';
const MEMBER: u8 = b'm';
const TOMBSTONE: u8 = b't';
const VERSION: u8 = 1;

/// One primitive change of a sorted key-value store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    /// Deletes every key from the first up to, not including, the second.
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Translates an edit into changes of the key-value store, in order.
pub(super) fn changes(edit: &IndexEdit, out: &mut Vec<Change>) {
    match edit {
        IndexEdit::Put(key, record) => {
            out.push(Change::Put(extent_key(*key), encode_extent(record)));
        }
        IndexEdit::Delete(key) => out.push(Change::Delete(extent_key(*key))),
        IndexEdit::PutMember(record) => {
            out.push(Change::Put(member_key(record.member), encode_member(record)));
        }
        IndexEdit::Fault(member) => {
            out.push(Change::Put(short_key(FAULT, *member), Vec::new()));
        }
        IndexEdit::Destroy(member) => {
            let (from, to) = extents_of(*member);
            out.push(Change::DeleteRange(from, to));
            out.push(Change::Delete(member_key(*member)));
            out.push(Change::Delete(short_key(FAULT, *member)));
            out.push(Change::Put(short_key(TOMBSTONE, *member), Vec::new()));
        }
    }
}

pub(super) fn extent_key(key: ExtentKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(17);
    bytes.put_u8(EXTENT);
    bytes.put_u64(key.member.0);
    bytes.put_u32(key.extent.0);
    bytes.put_u32(key.layer);
    bytes
}

pub fn decode_extent_key(bytes: &[u8]) -> Result<ExtentKey, IndexError> {
    let mut fields = Fields::new(bytes);
    if fields.u8()? != EXTENT {
        return Err(corrupt("the key of an extent has another kind"));
    }
    let member = MemberId(fields.u64_be()?);
    let (extent, layer) = (Extent(fields.u32_be()?), fields.u32_be()?);
    fields.end()?;
    Ok(ExtentKey { member, extent, layer })
}

fn member_key(member: MemberId) -> Vec<u8> {
    short_key(MEMBER, member)
}

fn short_key(kind: u8, member: MemberId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9);
    bytes.put_u8(kind);
    bytes.put_u64(member.0);
    bytes
}

/// First key of a member's extents, and the first key after them.
pub(super) fn extents_of(member: MemberId) -> (Vec<u8>, Vec<u8>) {
    let to = match member.0.checked_add(1) {
        Some(next) => short_key(EXTENT, MemberId(next)),
        None => vec![EXTENT + 1],
    };
    (short_key(EXTENT, member), to)
}

/// First key of all member records, and the first key after them.
pub(super) fn members_range() -> (Vec<u8>, Vec<u8>) {
    (vec![MEMBER], vec![MEMBER + 1])
}

pub(super) fn tombstones_range() -> (Vec<u8>, Vec<u8>) {
    (vec![TOMBSTONE], vec![TOMBSTONE + 1])
}

pub(super) fn faults_range() -> (Vec<u8>, Vec<u8>) {
    (vec![FAULT], vec![FAULT + 1])
}

/// Decodes the key of a member record, tombstone or fault.
pub(super) fn decode_short_key(bytes: &[u8]) -> Result<MemberId, IndexError> {
    let mut fields = Fields::new(bytes);
    fields.skip(1)?;
    let member = MemberId(fields.u64_be()?);
    fields.end()?;
    Ok(member)
}

pub fn encode_extent(record: &ExtentRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(25 + 4 * record.present.count_ones() as usize);
    bytes.put_u8(VERSION);
    bytes.put_u32_le(record.slot.0);
    bytes.put_u16_le(record.present);
    bytes.put_u16_le(record.zero);
    bytes.put_u64s_le(&[record.last_changed, record.birth.0]);
    for block in 0..BLOCKS_PER_EXTENT as usize {
        if record.present & (1 << block) != 0 {
            bytes.put_u32_le(record.crcs[block]);
        }
    }
    bytes
}

pub fn decode_extent(bytes: &[u8]) -> Result<ExtentRecord, IndexError> {
    let mut fields = versioned(bytes)?;
    let mut record = ExtentRecord {
        slot: Slot(fields.u32()?),
        present: fields.u16()?,
        zero: fields.u16()?,
        last_changed: fields.u64()?,
        birth: VolumeId(fields.u64()?),
        crcs: [0; 16],
    };
    if record.present & record.zero != 0 {
        return Err(corrupt("a block is both present and zero"));
    }
    for block in 0..BLOCKS_PER_EXTENT as usize {
        if record.present & (1 << block) != 0 {
            record.crcs[block] = fields.u32()?;
        }
    }
    fields.end()?;
    Ok(record)
}

fn encode_member(record: &MemberRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(46 + record.meta.len());
    bytes.put_u8(VERSION);
    bytes.put_u64s_le(&[record.shard.0, record.volume.0, record.first_block_in_volume]);
    bytes.put_u32_le(record.blocks);
    bytes.put_u64s_le(&[record.flushed_index, record.flushed_term]);
    bytes.put_flag(record.resyncing);
    bytes.put_slice(&record.meta);
    bytes
}

pub(super) fn decode_member(key: &[u8], value: &[u8]) -> Result<MemberRecord, IndexError> {
    let mut fields = versioned(value)?;
    Ok(MemberRecord {
        member: decode_short_key(key)?,
        shard: ShardId(fields.u64()?),
        volume: VolumeId(fields.u64()?),
        first_block_in_volume: fields.u64()?,
        blocks: fields.u32()?,
        flushed_index: fields.u64()?,
        flushed_term: fields.u64()?,
        resyncing: fields.flag("the resyncing flag is neither 0 nor 1")?,
        meta: Bytes::copy_from_slice(fields.rest()),
    })
}

fn corrupt(what: &'static str) -> IndexError {
    IndexError::Corrupt { what }
}

impl From<FieldError> for IndexError {
    fn from(error: FieldError) -> IndexError {
        corrupt(match error {
            FieldError::Short => "it ends too early",
            FieldError::Long => "bytes follow its end",
            FieldError::Value { field, .. } => field,
        })
    }
}

/// The fields of a value, behind its version.
fn versioned(value: &[u8]) -> Result<Fields<&[u8]>, IndexError> {
    let mut fields = Fields::new(value);
    match fields.u8()? {
        VERSION => Ok(fields),
        _ => Err(corrupt("its version is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_and_every_extra_byte_of_an_extent_is_refused() {
        let record = ExtentRecord {
            slot: Slot(7),
            present: 0b1010,
            zero: 0b0101,
            last_changed: 99,
            birth: VolumeId(3),
            crcs: [0, 11, 0, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        let mut bytes = encode_extent(&record);
        assert_eq!(decode_extent(&bytes).unwrap(), record);
        for len in 0..bytes.len() {
            assert!(decode_extent(&bytes[..len]).is_err(), "{len} bytes");
        }
        bytes.push(0);
        assert!(decode_extent(&bytes).is_err());
    }

    #[test]
    fn keys_sort_by_member_extent_and_layer() {
        let key = |member, extent, layer| {
            extent_key(ExtentKey { member: MemberId(member), extent: Extent(extent), layer })
        };
        let sorted = [key(1, 2, 0), key(1, 2, 1), key(1, 300, 0), key(2, 0, 0), key(300, 0, 0)];
        assert!(sorted.is_sorted());
        let (from, to) = extents_of(MemberId(1));
        assert!(sorted[..3].iter().all(|key| from <= *key && *key < to));
        assert!(sorted[3..].iter().all(|key| *key >= to));
        let (from, to) = extents_of(MemberId(u64::MAX));
        assert!(from < key(u64::MAX, u32::MAX, u32::MAX) && key(u64::MAX, u32::MAX, 0) < to);
    }
}
