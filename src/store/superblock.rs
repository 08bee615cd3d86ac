//! The superblock: the identity of a disk, and the start of its log. It has four copies of 4 KiB. A
//! write needs three of them, an open two. Pure codec.
//!
//! Copy N lies at byte N x 4096 of its file; numbers are little endian (offset, type, meaning):
//!
//! ```text
//!  0 [u8;8] magic "HOLDDISK"          64 u64 incarnation
//!  8 u32    CRC-32 of bytes 12..4096  72 u64 secret seed of the log
//! 12 u16    format version, 1         80 u64 bytes of the log's ring
//! 14 u16    copy number, 0 to 3       88 u64 largest size of all data in bytes
//! 16 u64    feature bits             96 u64 sequence of the log's tail
//! 24 u64    sequence                 104 u64 offset of the log's tail
//! 32 uuid   cluster                  112 u64 largest sequence of the log known durable
//! 48 uuid   disk                     120 u16 lanes; 124 u32 feature level
//!                                    128 u64 size of a data file, 0: one for all; then zeroes
//! ```
//!
//! Bytes 0 to 32 keep their place and meaning in every later version.

use bytes::BufMut;

use crate::fields::{FieldError, Fields, PutFields};
use crate::level::Level;
use crate::types::{BLOCK_BYTES, Uuid};

/// Copies of a superblock.
pub const COPIES: usize = 4;
/// Copies that must be durable before an update counts.
pub const WRITE_QUORUM: usize = 3;
/// Copies that must agree to open a disk.
pub const OPEN_QUORUM: usize = 2;
/// Bytes of all copies together: the superblock file.
pub const FILE_BYTES: usize = COPIES * BLOCK_BYTES;

/// The log may hold bypassed entries, whose payload is in slots of the data file.
pub const FEATURE_BYPASS: u64 = 1;
/// The data is in several files.
pub const FEATURE_DATA_FILES: u64 = 2;
/// Feature bits that this program knows.
pub const FEATURES_KNOWN: u64 = FEATURE_BYPASS | FEATURE_DATA_FILES;

const MAGIC: [u8; 8] = *b"HOLDDISK";
const VERSION: u16 = 1;
const CRC_AT: usize = 8;
const CRC_END: usize = 12;

const _: () =
    assert!(WRITE_QUORUM + OPEN_QUORUM > COPIES, "every open sees the newest update that counted");

/// One superblock. Its copies differ only in their copy number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows with every write. The newest one in two equal copies counts.
    pub sequence: u64,
    pub cluster: Uuid,
    pub disk: Uuid,
    /// Raised by every open.
    pub incarnation: u64,
    pub lanes: u16,
    /// The feature level of the cluster when the disk was opened last, or higher.
    pub level: Level,
    /// Features that a program must know to open the disk.
    pub features: u64,
    /// Secret of the log's checksums.
    pub seed: u64,
    pub wal_bytes: u64,
    pub data_bytes_max: u64,
    /// Size of a data file, a multiple of the size of a slot. 0: all data is in one file.
    pub data_file_bytes: u64,
    /// Sequence of the oldest batch that recovery reads, and its offset in bytes.
    pub tail_seq: u64,
    pub tail_offset: u64,
    /// Largest batch known to be durable at the time of writing.
    pub durable_seq: u64,
}

/// The reason why a disk cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    #[error("this is not a Holdfast disk: format it first, or check the path")]
    NotHoldfast,
    #[error(
        "this disk has format version {found}, this program knows version {known}: \
         start the newer program that wrote it"
    )]
    NewerVersion { found: u16, known: u16 },
    #[error(
        "this disk uses features ({bits:#x}) that this program does not know: \
         start the newer program that wrote it"
    )]
    UnknownFeatures { bits: u64 },
    #[error(
        "the superblock is damaged: only {intact} of 4 copies can be read and no two agree; \
         replace the disk and let its replicas be rebuilt"
    )]
    Damaged { intact: usize },
}

/// Encodes the four copies, in the order of the file.
pub fn encode(superblock: &Superblock) -> [[u8; BLOCK_BYTES]; COPIES] {
    std::array::from_fn(|copy| encode_copy(superblock, copy as u16))
}

fn encode_copy(superblock: &Superblock, copy: u16) -> [u8; BLOCK_BYTES] {
    let mut page = [0; BLOCK_BYTES];
    let mut fields = &mut page[CRC_END..];
    fields.put_u16_le(VERSION);
    fields.put_u16_le(copy);
    fields.put_u64s_le(&[superblock.features, superblock.sequence]);
    fields.put_slice(&superblock.cluster.0);
    fields.put_slice(&superblock.disk.0);
    fields.put_u64s_le(&[
        superblock.incarnation,
        superblock.seed,
        superblock.wal_bytes,
        superblock.data_bytes_max,
        superblock.tail_seq,
        superblock.tail_offset,
        superblock.durable_seq,
    ]);
    fields.put_u16_le(superblock.lanes);
    fields.put_slice(&[0; 2]);
    fields.put_u32_le(superblock.level.0);
    fields.put_u64_le(superblock.data_file_bytes);
    let crc = crc32fast::hash(&page[CRC_END..]);
    page[..CRC_AT].copy_from_slice(&MAGIC);
    page[CRC_AT..CRC_END].copy_from_slice(&crc.to_le_bytes());
    page
}

/// The superblock that at least two copies agree on, the newest if there are several. `copies`
/// are the four pages of the file, in order; one that could not be read may be empty.
pub fn choose(copies: &[&[u8]; COPIES]) -> Result<Superblock, SuperblockError> {
    if !copies.iter().any(|copy| copy.starts_with(&MAGIC)) {
        return Err(SuperblockError::NotHoldfast);
    }
    let read: Vec<Copy> =
        copies.iter().enumerate().filter_map(|(place, page)| read_copy(page, place)).collect();
    let agreeing = |copy: &Copy| read.iter().filter(|other| *other == copy).count();
    let newest =
        read.iter().filter(|copy| agreeing(copy) >= OPEN_QUORUM).max_by_key(|copy| copy.sequence);
    match newest.map(|copy| &copy.content) {
        None => Err(SuperblockError::Damaged { intact: read.len() }),
        Some(Err(error)) => Err(*error),
        Some(Ok(superblock)) => Ok(superblock.clone()),
    }
}

/// A copy that passed its CRC, of any version.
#[derive(PartialEq, Eq)]
struct Copy {
    sequence: u64,
    content: Result<Superblock, SuperblockError>,
}

fn read_copy(page: &[u8], place: usize) -> Option<Copy> {
    let page: &[u8; BLOCK_BYTES] = page.try_into().ok()?;
    let mut fields = Fields::new(&page[CRC_AT..]);
    let crc = fields.u32().ok()?;
    if page[..CRC_AT] != MAGIC || crc != crc32fast::hash(&page[CRC_END..]) {
        return None;
    }
    let (version, copy) = (fields.u16().ok()?, fields.u16().ok()?);
    let (features, sequence) = (fields.u64().ok()?, fields.u64().ok()?);
    let content = if version != VERSION {
        Err(SuperblockError::NewerVersion { found: version, known: VERSION })
    } else if features & !FEATURES_KNOWN != 0 {
        Err(SuperblockError::UnknownFeatures { bits: features & !FEATURES_KNOWN })
    } else {
        Ok(take_superblock(&mut fields, features, sequence).ok()?)
    };
    (usize::from(copy) == place).then_some(Copy { sequence, content })
}

/// What stands behind the sequence.
fn take_superblock(
    fields: &mut Fields<&[u8]>,
    features: u64,
    sequence: u64,
) -> Result<Superblock, FieldError> {
    let mut superblock = Superblock {
        features,
        sequence,
        cluster: fields.uuid()?,
        disk: fields.uuid()?,
        incarnation: fields.u64()?,
        seed: fields.u64()?,
        wal_bytes: fields.u64()?,
        data_bytes_max: fields.u64()?,
        tail_seq: fields.u64()?,
        tail_offset: fields.u64()?,
        durable_seq: fields.u64()?,
        lanes: fields.u16()?,
        level: Level::default(),
        data_file_bytes: 0,
    };
    let _zeroes = fields.u16()?;
    superblock.level = Level(fields.u32()?);
    superblock.data_file_bytes = fields.u64()?;
    Ok(superblock)
}

#[cfg(test)]
#[path = "superblock_test.rs"]
mod tests;
