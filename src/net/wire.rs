//! Reads and writes little-endian fields. Checks every length.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::types::{Block, BlockRange, Extent, MemberId, Origin, PodId, Uuid};

/// Why a message cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("message kind {0} is not known")]
    Kind(u8),
    #[error("a message ends too early")]
    Short,
    #[error("a message has bytes after its end")]
    Long,
    #[error("{field} has the value {value}, which is not allowed")]
    Value { field: &'static str, value: u64 },
}

/// Takes fields from the front of a byte string.
pub struct Fields {
    rest: Bytes,
}

impl Fields {
    pub fn new(bytes: Bytes) -> Fields {
        Fields { rest: bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let array = *self.rest.first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.rest.advance(N);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn uuid(&mut self) -> Result<Uuid, DecodeError> {
        Ok(Uuid(self.array()?))
    }

    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(value(field, other)),
        }
    }

    pub fn member(&mut self) -> Result<MemberId, DecodeError> {
        Ok(MemberId(self.u64()?))
    }

    pub fn extent(&mut self) -> Result<Extent, DecodeError> {
        Ok(Extent(self.u32()?))
    }

    pub fn optional_u64(&mut self, field: &'static str) -> Result<Option<u64>, DecodeError> {
        self.flag(field)?.then(|| self.u64()).transpose()
    }

    pub fn origin(&mut self) -> Result<Origin, DecodeError> {
        Ok(Origin {
            attachment_epoch: self.u64()?,
            front_end: PodId(self.u64()?),
            session: self.u64()?,
        })
    }

    /// A range of at least one block whose end does not overflow.
    pub fn range(&mut self) -> Result<BlockRange, DecodeError> {
        let range = BlockRange { first: Block(self.u32()?), count: self.u32()? };
        if range.count == 0 || range.first.0.checked_add(range.count).is_none() {
            return Err(value("number of blocks", range.count));
        }
        Ok(range)
    }

    /// The next `len` bytes. Shares the memory of the whole.
    pub fn bytes(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.rest.len() {
            return Err(DecodeError::Short);
        }
        Ok(self.rest.split_to(len))
    }

    /// A byte string after its length.
    pub fn string(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u32()? as usize;
        self.bytes(len)
    }

    /// The number of following items, each of at least `item_bytes_min` bytes. Refuses an
    /// impossible number before any allocation for it.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        match count.checked_mul(item_bytes_min) {
            Some(bytes) if bytes <= self.rest.len() => Ok(count),
            _ => Err(DecodeError::Short),
        }
    }

    /// A list of checksums after its length.
    pub fn crcs(&mut self) -> Result<Vec<u32>, DecodeError> {
        let count = self.count(4)?;
        (0..count).map(|_| self.u32()).collect()
    }

    pub fn remaining_bytes(&self) -> usize {
        self.rest.len()
    }

    /// Checks that nothing is left.
    pub fn end(self) -> Result<(), DecodeError> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(DecodeError::Long),
        }
    }
}

/// The error for a field with an invalid value.
pub fn value(field: &'static str, value: impl Into<u64>) -> DecodeError {
    DecodeError::Value { field, value: value.into() }
}

pub fn put_range(out: &mut BytesMut, range: BlockRange) {
    out.put_u32_le(range.first.0);
    out.put_u32_le(range.count);
}

pub fn put_origin(out: &mut BytesMut, origin: Origin) {
    out.put_u64_le(origin.attachment_epoch);
    out.put_u64_le(origin.front_end.0);
    out.put_u64_le(origin.session);
}

pub fn put_string(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("far below 4 GiB"));
    out.put_slice(bytes);
}

pub fn put_crcs(out: &mut BytesMut, crcs: &[u32]) {
    out.put_u32_le(u32::try_from(crcs.len()).expect("far below 4 Gi"));
    crcs.iter().for_each(|crc| out.put_u32_le(*crc));
}

pub fn put_optional_u64(out: &mut BytesMut, optional: Option<u64>) {
    out.put_u8(u8::from(optional.is_some()));
    if let Some(number) = optional {
        out.put_u64_le(number);
    }
}
