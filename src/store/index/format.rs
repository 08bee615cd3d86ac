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

use bytes::Bytes;

use crate::store::index::IndexError;
use crate::store::seam::{ExtentKey, ExtentRecord, IndexEdit, MemberRecord, Slot};
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
    bytes.push(EXTENT);
    bytes.extend(key.member.0.to_be_bytes());
    bytes.extend(key.extent.0.to_be_bytes());
    bytes.extend(key.layer.to_be_bytes());
    bytes
}

pub(super) fn decode_extent_key(bytes: &[u8]) -> Result<ExtentKey, IndexError> {
    let mut reader = Reader(bytes);
    if reader.u8()? != EXTENT {
        return Err(corrupt("the key of an extent has another kind"));
    }
    let member = MemberId(u64::from_be_bytes(reader.array()?));
    let extent = Extent(u32::from_be_bytes(reader.array()?));
    let layer = u32::from_be_bytes(reader.array()?);
    reader.end()?;
    Ok(ExtentKey { member, extent, layer })
}

fn member_key(member: MemberId) -> Vec<u8> {
    short_key(MEMBER, member)
}

fn short_key(kind: u8, member: MemberId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9);
    bytes.push(kind);
    bytes.extend(member.0.to_be_bytes());
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
    let mut reader = Reader(bytes);
    reader.u8()?;
    let member = MemberId(u64::from_be_bytes(reader.array()?));
    reader.end()?;
    Ok(member)
}

pub fn encode_extent(record: &ExtentRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(25 + 4 * record.present.count_ones() as usize);
    bytes.push(VERSION);
    bytes.extend(record.slot.0.to_le_bytes());
    bytes.extend(record.present.to_le_bytes());
    bytes.extend(record.zero.to_le_bytes());
    bytes.extend(record.last_changed.to_le_bytes());
    bytes.extend(record.birth.0.to_le_bytes());
    for block in 0..BLOCKS_PER_EXTENT as usize {
        if record.present & (1 << block) != 0 {
            bytes.extend(record.crcs[block].to_le_bytes());
        }
    }
    bytes
}

pub fn decode_extent(bytes: &[u8]) -> Result<ExtentRecord, IndexError> {
    let mut reader = Reader(bytes);
    reader.version()?;
    let mut record = ExtentRecord {
        slot: Slot(reader.u32()?),
        present: u16::from_le_bytes(reader.array()?),
        zero: u16::from_le_bytes(reader.array()?),
        last_changed: reader.u64()?,
        birth: VolumeId(reader.u64()?),
        crcs: [0; 16],
    };
    if record.present & record.zero != 0 {
        return Err(corrupt("a block is both present and zero"));
    }
    for block in 0..BLOCKS_PER_EXTENT as usize {
        if record.present & (1 << block) != 0 {
            record.crcs[block] = reader.u32()?;
        }
    }
    reader.end()?;
    Ok(record)
}

fn encode_member(record: &MemberRecord) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(46 + record.meta.len());
    bytes.push(VERSION);
    bytes.extend(record.shard.0.to_le_bytes());
    bytes.extend(record.volume.0.to_le_bytes());
    bytes.extend(record.first_block_in_volume.to_le_bytes());
    bytes.extend(record.blocks.to_le_bytes());
    bytes.extend(record.flushed_index.to_le_bytes());
    bytes.extend(record.flushed_term.to_le_bytes());
    bytes.push(u8::from(record.resyncing));
    bytes.extend_from_slice(&record.meta);
    bytes
}

pub(super) fn decode_member(key: &[u8], value: &[u8]) -> Result<MemberRecord, IndexError> {
    let mut reader = Reader(value);
    reader.version()?;
    Ok(MemberRecord {
        member: decode_short_key(key)?,
        shard: ShardId(reader.u64()?),
        volume: VolumeId(reader.u64()?),
        first_block_in_volume: reader.u64()?,
        blocks: reader.u32()?,
        flushed_index: reader.u64()?,
        flushed_term: reader.u64()?,
        resyncing: match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(corrupt("the resyncing flag is neither 0 nor 1")),
        },
        meta: Bytes::copy_from_slice(reader.0),
    })
}

fn corrupt(what: &'static str) -> IndexError {
    IndexError::Corrupt { what }
}

/// Takes fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], IndexError> {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else {
            return Err(corrupt("it ends too early"));
        };
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, IndexError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, IndexError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, IndexError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn version(&mut self) -> Result<(), IndexError> {
        match self.u8()? {
            VERSION => Ok(()),
            _ => Err(corrupt("its version is unknown")),
        }
    }

    fn end(&self) -> Result<(), IndexError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(corrupt("bytes follow its end"))
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
