//! The byte codec of every format of ours, on disk and on the wire. [`Fields`] takes fields off the
//! front of a byte string and checks every length; [`PutFields`] appends them. Numbers are little
//! endian, but for the functions that end in `_be`.
//!
//! A format describes its layout itself and maps [`FieldError`] into its own error.

use bytes::{Buf, BufMut, Bytes};

use crate::types::{
    AccessMode, AccessSet, AttachmentId, Block, BlockRange, Extent, Generation, Grant, MemberId,
    Origin, PodId, Session, Uuid,
};

/// Why bytes do not hold the fields that a format demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("it ends too early")]
    Short,
    #[error("it goes on behind its end")]
    Long,
    #[error("{field} has the value {value}, which is not allowed")]
    Value { field: &'static str, value: u64 },
}

/// A field has a value that is not allowed.
pub fn value(field: &'static str, value: impl Into<u64>) -> FieldError {
    FieldError::Value { field, value: value.into() }
}

/// Encoded bytes of one grant.
const GRANT_BYTES: usize = 9;

/// Takes fields off the front of a byte string in one piece: [`Bytes`] or a slice.
pub struct Fields<B = Bytes> {
    rest: B,
}

impl<B: Buf> Fields<B> {
    pub fn new(bytes: B) -> Fields<B> {
        Fields { rest: bytes }
    }

    /// The next `N` bytes as they are.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FieldError> {
        let array = *self.rest.chunk().first_chunk::<N>().ok_or(FieldError::Short)?;
        self.rest.advance(N);
        Ok(array)
    }

    pub fn u8(&mut self) -> Result<u8, FieldError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, FieldError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, FieldError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, FieldError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn u16_be(&mut self) -> Result<u16, FieldError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32_be(&mut self) -> Result<u32, FieldError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64_be(&mut self) -> Result<u64, FieldError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn uuid(&mut self) -> Result<Uuid, FieldError> {
        Ok(Uuid(self.array()?))
    }

    pub fn flag(&mut self, field: &'static str) -> Result<bool, FieldError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(value(field, other)),
        }
    }

    pub fn member(&mut self) -> Result<MemberId, FieldError> {
        Ok(MemberId(self.u64()?))
    }

    pub fn extent(&mut self) -> Result<Extent, FieldError> {
        Ok(Extent(self.u32()?))
    }

    pub fn optional_u64(&mut self, field: &'static str) -> Result<Option<u64>, FieldError> {
        self.flag(field)?.then(|| self.u64()).transpose()
    }

    pub fn origin(&mut self) -> Result<Origin, FieldError> {
        Ok(Origin { attachment: AttachmentId(self.u64()?), session: self.session()? })
    }

    /// Counter and pod.
    pub fn session(&mut self) -> Result<Session, FieldError> {
        Ok(Session { counter: self.u64()?, pod: PodId(self.u64()?) })
    }

    /// Attachment and mode.
    pub fn grant(&mut self) -> Result<Grant, FieldError> {
        let attachment = AttachmentId(self.u64()?);
        let mode = match self.u8()? {
            1 => AccessMode::ReadWrite,
            2 => AccessMode::ReadOnly,
            3 => AccessMode::Raw,
            other => return Err(value("mode of an attachment", other)),
        };
        Ok(Grant { attachment, mode })
    }

    /// A valid access set: generation, open, and the grants behind their number.
    pub fn access_set(&mut self) -> Result<AccessSet, FieldError> {
        let (generation, open) = (Generation(self.u64()?), self.flag("open")?);
        let count = self.count(GRANT_BYTES)?;
        let grants = (0..count).map(|_| self.grant()).collect::<Result<Vec<_>, _>>()?;
        let set = AccessSet { generation, open, grants };
        match set.is_valid() {
            true => Ok(set),
            false => Err(value("generation of an access set", generation.0)),
        }
    }

    /// A range of at least one block, whose end does not overflow.
    pub fn range(&mut self) -> Result<BlockRange, FieldError> {
        let range = BlockRange { first: Block(self.u32()?), count: self.u32()? };
        if range.count == 0 || range.first.0.checked_add(range.count).is_none() {
            return Err(value("number of blocks", range.count));
        }
        Ok(range)
    }

    /// The number of items that follow, of which each takes at least `item_bytes_min`: a number
    /// that cannot be true is refused before memory is taken for it.
    pub fn count(&mut self, item_bytes_min: usize) -> Result<usize, FieldError> {
        let count = self.u32()? as usize;
        match count.checked_mul(item_bytes_min) {
            Some(bytes) if bytes <= self.rest.remaining() => Ok(count),
            _ => Err(FieldError::Short),
        }
    }

    /// The next `count` numbers of 32 bits.
    pub fn u32s(&mut self, count: usize) -> Result<Vec<u32>, FieldError> {
        let bytes = count.checked_mul(4).ok_or(FieldError::Short)?;
        let (words, _) = self.rest.chunk().get(..bytes).ok_or(FieldError::Short)?.as_chunks::<4>();
        let numbers = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        self.rest.advance(bytes);
        Ok(numbers)
    }

    /// A list of checksums behind its length.
    pub fn crcs(&mut self) -> Result<Vec<u32>, FieldError> {
        let count = self.count(4)?;
        self.u32s(count)
    }

    /// Leaves out bytes, whatever they hold.
    pub fn skip(&mut self, bytes: usize) -> Result<(), FieldError> {
        self.holds(bytes)?;
        self.rest.advance(bytes);
        Ok(())
    }

    pub fn remaining_bytes(&self) -> usize {
        self.rest.remaining()
    }

    /// Everything must have been taken.
    pub fn end(self) -> Result<(), FieldError> {
        match self.rest.has_remaining() {
            true => Err(FieldError::Long),
            false => Ok(()),
        }
    }

    fn holds(&self, bytes: usize) -> Result<(), FieldError> {
        match bytes <= self.rest.remaining() {
            true => Ok(()),
            false => Err(FieldError::Short),
        }
    }
}

impl Fields {
    /// The next `len` bytes, sharing the memory of the whole.
    pub fn bytes(&mut self, len: usize) -> Result<Bytes, FieldError> {
        self.holds(len)?;
        Ok(self.rest.split_to(len))
    }

    /// A byte string behind its length.
    pub fn string(&mut self) -> Result<Bytes, FieldError> {
        let len = self.u32()? as usize;
        self.bytes(len)
    }
}

impl<'a> Fields<&'a [u8]> {
    /// The next `len` bytes.
    pub fn slice(&mut self, len: usize) -> Result<&'a [u8], FieldError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(FieldError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// Everything that was not taken.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// Appends fields to bytes: to a `Vec`, to a `BytesMut`, or to the front of a slice, which then
/// becomes shorter. Panics where a slice has no room left: our own formats know their lengths.
pub trait PutFields: BufMut {
    fn put_u32s_le(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| self.put_u32_le(*number));
    }

    fn put_u64s_le(&mut self, numbers: &[u64]) {
        numbers.iter().for_each(|number| self.put_u64_le(*number));
    }

    /// A length or a number of items, in 32 bits.
    fn put_count(&mut self, count: usize) {
        self.put_u32_le(u32::try_from(count).expect("far below 4 Gi"));
    }

    fn put_range(&mut self, range: BlockRange) {
        self.put_u32s_le(&[range.first.0, range.count]);
    }

    fn put_origin(&mut self, origin: Origin) {
        self.put_u64_le(origin.attachment.0);
        self.put_session(origin.session);
    }

    fn put_session(&mut self, session: Session) {
        self.put_u64s_le(&[session.counter, session.pod.0]);
    }

    fn put_grant(&mut self, grant: Grant) {
        self.put_u64_le(grant.attachment.0);
        self.put_u8(match grant.mode {
            AccessMode::ReadWrite => 1,
            AccessMode::ReadOnly => 2,
            AccessMode::Raw => 3,
        });
    }

    fn put_access_set(&mut self, set: &AccessSet) {
        self.put_u64_le(set.generation.0);
        self.put_flag(set.open);
        self.put_count(set.grants.len());
        set.grants.iter().for_each(|grant| self.put_grant(*grant));
    }

    fn put_flag(&mut self, flag: bool) {
        self.put_u8(u8::from(flag));
    }

    /// A byte string behind its length.
    fn put_string(&mut self, bytes: &[u8]) {
        self.put_count(bytes.len());
        self.put_slice(bytes);
    }

    /// A list of checksums behind its length.
    fn put_crcs(&mut self, crcs: &[u32]) {
        self.put_count(crcs.len());
        self.put_u32s_le(crcs);
    }

    fn put_optional_u64(&mut self, optional: Option<u64>) {
        self.put_flag(optional.is_some());
        if let Some(number) = optional {
            self.put_u64_le(number);
        }
    }
}

impl<B: BufMut + ?Sized> PutFields for B {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_is_refused_and_nothing_may_follow() {
        let session = Session { counter: 3, pod: PodId(2) };
        let origin = Origin { attachment: AttachmentId(1), session };
        let mut bytes = Vec::new();
        bytes.put_origin(origin);
        bytes.put_string(b"text");
        bytes.put_crcs(&[5, 6]);
        bytes.put_optional_u64(Some(7));
        let read = |bytes: &[u8]| {
            let mut fields = Fields::new(Bytes::copy_from_slice(bytes));
            let origin = fields.origin()?;
            let (text, crcs) = (fields.string()?, fields.crcs()?);
            let number = fields.optional_u64("number")?;
            fields.end().map(|()| (origin, text, crcs, number))
        };
        let whole = (origin, Bytes::from_static(b"text"), vec![5, 6], Some(7));
        assert_eq!(read(&bytes), Ok(whole));
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), Err(FieldError::Short), "{len} bytes");
        }
        bytes.push(0);
        assert_eq!(read(&bytes), Err(FieldError::Long));
    }

    #[test]
    fn a_number_of_items_that_cannot_be_true_is_refused() {
        let mut fields = Fields::new(&[0xff; 8][..]);
        assert_eq!(fields.count(1), Err(FieldError::Short));
        assert_eq!(fields.u32s(usize::MAX), Err(FieldError::Short));
        assert_eq!(fields.skip(5), Err(FieldError::Short));
        assert_eq!(fields.slice(5), Err(FieldError::Short));
        assert_eq!(fields.flag("last"), Err(value("last", 0xffu8)));
    }
}
