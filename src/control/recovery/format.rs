//! A copy of the catalog as a file: what `catalog backup` writes, and what a recovery keeps of its
//! sources.
//!
//! ```text
//!  0  magic     8 bytes   "HOLDCAT1"
//!  8  records             each: length u32, CRC-32 u32, payload
//! ```
//!
//! | record | payload |
//! |---|---|
//! | first | JSON of [`Head`] |
//! | others | rows, one after another: length of key u16, length of row u32, key, row |
//! | last | nothing: the copy is complete |
//!
//! Numbers are little endian. Keys and rows are those of [`crate::control::state::rows`]. A copy
//! that was cut short anywhere is refused.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::control::state::rows::{RowError, RowKey};
use crate::types::Uuid;

const MAGIC: &[u8; 8] = b"HOLDCAT1";
/// A record of rows ends at the first row beyond this length.
const RECORD_BYTES: usize = 256 << 10;
/// The longest row: a shard's, with its members and its birth record, is far shorter.
const ROW_BYTES_MAX: usize = 16 << 20;
const RECORD_HEAD_BYTES: usize = 8;
const ROW_HEAD_BYTES: usize = 6;

/// What a copy is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub cluster: Uuid,
    pub history: Uuid,
    pub revision: u64,
    /// When it was made, in ms since 1970.
    pub made_ms: u64,
    pub rows: u64,
}

/// A copy that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub head: Head,
    pub rows: Vec<(RowKey, Bytes)>,
}

/// Why bytes are no copy of a catalog.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("it is not a copy of a catalog")]
    Magic,
    #[error("it was cut short, or is damaged, {0} bytes from its begin")]
    Damaged(usize),
    #[error("its head cannot be read; a newer version may have written it")]
    Head(#[from] serde_json::Error),
    #[error("it says that it has {expected} rows, and has {found}")]
    Rows { expected: u64, found: u64 },
    #[error("a row of it cannot be read")]
    Row(#[from] RowError),
}

/// The pieces of a copy, which follow each other in its file. `rows` are as many as the head says.
pub fn pieces(
    head: &Head,
    rows: impl Iterator<Item = (RowKey, Bytes)>,
) -> impl Iterator<Item = Vec<u8>> {
    let json = serde_json::to_vec(head).expect("our own types have a JSON form");
    let first = [MAGIC.to_vec(), record(&json)].concat();
    let mut rows = rows.peekable();
    let records = std::iter::from_fn(move || {
        rows.peek()?;
        let mut payload = Vec::new();
        for (key, row) in rows.by_ref() {
            add_row(&mut payload, &key.encode(), &row);
            if payload.len() >= RECORD_BYTES {
                break;
            }
        }
        Some(record(&payload))
    });
    std::iter::once(first).chain(records).chain(std::iter::once(record(&[])))
}

fn add_row(payload: &mut Vec<u8>, key: &[u8], row: &[u8]) {
    let key_len = u16::try_from(key.len()).expect("names are short");
    assert!(row.len() <= ROW_BYTES_MAX, "rows are short");
    payload.extend_from_slice(&key_len.to_le_bytes());
    payload.extend_from_slice(&(row.len() as u32).to_le_bytes());
    payload.extend_from_slice(key);
    payload.extend_from_slice(row);
}

fn record(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a record is short");
    [&len.to_le_bytes()[..], &crc32fast::hash(payload).to_le_bytes(), payload].concat()
}

/// Reads a whole file.
pub fn read(bytes: &[u8]) -> Result<Copy, FormatError> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(FormatError::Magic)?;
    let at = |rest: &[u8]| bytes.len() - rest.len();
    let damaged = |rest: &[u8]| FormatError::Damaged(at(rest));
    let first = take_record(&mut rest).ok_or_else(|| damaged(rest))?;
    let head: Head = serde_json::from_slice(first)?;
    let mut rows = Vec::new();
    loop {
        let mut payload = take_record(&mut rest).ok_or_else(|| damaged(rest))?;
        if payload.is_empty() {
            break;
        }
        while !payload.is_empty() {
            let (key, row) = take_row(&mut payload).ok_or_else(|| damaged(rest))?;
            rows.push((RowKey::decode(key)?, Bytes::copy_from_slice(row)));
        }
    }
    if !rest.is_empty() {
        return Err(damaged(rest));
    }
    let found = rows.len() as u64;
    match found == head.rows {
        true => Ok(Copy { head, rows }),
        false => Err(FormatError::Rows { expected: head.rows, found }),
    }
}

fn take_record<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD_BYTES>()?;
    let (len, crc) = head.split_first_chunk::<4>()?;
    let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(crc.try_into().ok()?) {
        return None;
    }
    *bytes = rest;
    Some(payload)
}

fn take_row<'a>(bytes: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (head, rest) = bytes.split_first_chunk::<ROW_HEAD_BYTES>()?;
    let (key_len, row_len) = head.split_first_chunk::<2>()?;
    let (key, rest) = rest.split_at_checked(u16::from_le_bytes(*key_len).into())?;
    let row_len = u32::from_le_bytes(row_len.try_into().ok()?) as usize;
    let (row, rest) = rest.split_at_checked(row_len).filter(|_| row_len <= ROW_BYTES_MAX)?;
    *bytes = rest;
    Some((key, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::catalog_fixture::{cluster, create_on};

    fn copy() -> (Copy, Vec<u8>) {
        let mut state = cluster(3);
        state.apply(5, create_on("one", &[1, 2, 3])).outcome.unwrap();
        let rows: Vec<_> = state.rows().collect();
        let head = Head {
            cluster: state.cluster.uid,
            history: state.cluster.history,
            revision: state.revision(),
            made_ms: 7,
            rows: rows.len() as u64,
        };
        let bytes = pieces(&head, rows.clone().into_iter()).flatten().collect();
        (Copy { head, rows }, bytes)
    }

    #[test]
    fn a_copy_reads_back_and_no_part_of_one_does() {
        let (copy, bytes) = copy();
        assert_eq!(read(&bytes).unwrap(), copy);
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "{cut} bytes of {}", bytes.len());
        }
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 1;
            assert!(read(&rotten).is_err(), "byte {at}");
        }
        assert!(read(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_head_with_another_number_of_rows_is_refused() {
        let (copy, _) = copy();
        let head = Head { rows: copy.head.rows + 1, ..copy.head };
        let bytes: Vec<u8> = pieces(&head, copy.rows.into_iter()).flatten().collect();
        assert!(matches!(read(&bytes), Err(FormatError::Rows { .. })));
    }
}
