//! Tokens that clients keep and give back: how far a list or a watch has come. Clients must not
//! look into them. A token is hexadecimal digits of these bytes (numbers little endian):
//!
//! | token | fields |
//! |---|---|
//! | page | 1: u8, mark, hash of the filters: u64, key of the last object: the rest, CRC: u32 |
//! | watch | 2: u8, mark, CRC: u32 |
//!
//! A mark is: history: 16 bytes, revision: u64, run: u64, sequence: u64. The CRC covers everything
//! before it. It is no protection against forgery: a token gives no rights.

use bytes::BufMut;

use crate::fields::{FieldError, Fields};
use crate::types::Uuid;

/// Longest token: names are the longest keys.
const TOKEN_CHARS_MAX: usize = 1024;
const PAGE: u8 = 1;
const WATCH: u8 = 2;
const CRC_BYTES: usize = 4;

/// A moment in the life of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// History of the catalog. Revisions of two histories cannot be compared.
    pub history: Uuid,
    /// Revision of the catalog.
    pub revision: u64,
    /// Process that led the catalog.
    pub run: u64,
    /// Number of the last change that this process had seen.
    pub sequence: u64,
}

/// How far a list has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageCursor {
    /// Of the first page.
    pub mark: Mark,
    /// Hash of the filters: another query cannot go on here.
    pub filters: u64,
    /// Key of the last object that was given.
    pub last: Vec<u8>,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token was not made by this cluster, or was changed on its way")]
pub struct CursorError;

impl From<FieldError> for CursorError {
    fn from(_: FieldError) -> CursorError {
        CursorError
    }
}

impl PageCursor {
    pub fn encode(&self) -> String {
        let mut bytes = vec![PAGE];
        put_mark(&mut bytes, &self.mark);
        bytes.put_u64_le(self.filters);
        bytes.extend_from_slice(&self.last);
        seal(bytes)
    }

    pub fn decode(text: &str) -> Result<PageCursor, CursorError> {
        let bytes = open(text, PAGE)?;
        let mut fields = Fields::new(&bytes[..]);
        let (mark, filters) = (mark(&mut fields)?, fields.u64()?);
        Ok(PageCursor { mark, filters, last: fields.rest().to_vec() })
    }
}

impl Mark {
    /// The token of a watch.
    pub fn encode(&self) -> String {
        let mut bytes = vec![WATCH];
        put_mark(&mut bytes, self);
        seal(bytes)
    }

    pub fn decode(text: &str) -> Result<Mark, CursorError> {
        let bytes = open(text, WATCH)?;
        let mut fields = Fields::new(&bytes[..]);
        let mark = mark(&mut fields)?;
        fields.end()?;
        Ok(mark)
    }
}

fn put_mark(bytes: &mut Vec<u8>, mark: &Mark) {
    bytes.extend_from_slice(&mark.history.0);
    bytes.put_u64_le(mark.revision);
    bytes.put_u64_le(mark.run);
    bytes.put_u64_le(mark.sequence);
}

fn mark(fields: &mut Fields<&[u8]>) -> Result<Mark, FieldError> {
    Ok(Mark {
        history: fields.uuid()?,
        revision: fields.u64()?,
        run: fields.u64()?,
        sequence: fields.u64()?,
    })
}

fn seal(mut bytes: Vec<u8>) -> String {
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32_le(crc);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fields of a token of this kind.
fn open(text: &str, kind: u8) -> Result<Vec<u8>, CursorError> {
    if text.len() > TOKEN_CHARS_MAX || !text.len().is_multiple_of(2) {
        return Err(CursorError);
    }
    if !text.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit)) {
        return Err(CursorError);
    }
    let digits = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).map_err(|_| CursorError)?;
        u8::from_str_radix(pair, 16).map_err(|_| CursorError)
    };
    let mut bytes: Vec<u8> = digits.map(byte).collect::<Result<_, _>>()?;
    let fields = bytes.len().checked_sub(CRC_BYTES).ok_or(CursorError)?;
    let crc = bytes.split_off(fields);
    if crc32fast::hash(&bytes).to_le_bytes() != crc[..] || bytes.first() != Some(&kind) {
        return Err(CursorError);
    }
    bytes.remove(0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_mark() -> impl Strategy<Value = Mark> {
        any::<([u8; 16], u64, u64, u64)>().prop_map(|(history, revision, run, sequence)| Mark {
            history: Uuid(history),
            revision,
            run,
            sequence,
        })
    }

    proptest! {
        #[test]
        fn tokens_survive_and_damaged_ones_are_refused(
            mark in any_mark(),
            filters in any::<u64>(),
            last in proptest::collection::vec(any::<u8>(), 0..128),
            at in any::<proptest::sample::Index>(),
            digit in 0u8..16,
        ) {
            let page = PageCursor { mark, filters, last };
            let text = page.encode();
            prop_assert_eq!(PageCursor::decode(&text), Ok(page));
            prop_assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
            // A token of the other kind is none.
            prop_assert!(Mark::decode(&text).is_err());
            prop_assert!(PageCursor::decode(&mark.encode()).is_err());
            let at = at.index(text.len());
            let mut other = text.clone().into_bytes();
            other[at] = format!("{digit:x}").into_bytes()[0];
            let other = String::from_utf8(other).unwrap();
            prop_assert_eq!(PageCursor::decode(&other).is_ok(), other == text);
            prop_assert!(PageCursor::decode(&text[..at]).is_err());
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in "[0-9a-f]{0,80}|.{0,40}") {
            let _ = (PageCursor::decode(&text), Mark::decode(&text));
        }
    }
}
