//! Finds every batch in the ring. Reads it once, 1 MiB at a time, and keeps no payload in memory.

use std::io;

use bytes::Bytes;

use crate::planted::planted;
use crate::types::BLOCK_BYTES;

use super::format::{self, Batch, FormatError, FoundEntry, FoundItem, Keys};
use super::{BatchSeq, WalConfig};

/// Bytes to read at a time: a size that the pool keeps buffers for.
const CHUNK_BYTES: usize = 1 << 20;

/// Reads bytes of the ring file (offset, length): exactly that many, or an error.
pub type ReadRing<'a> = dyn FnMut(u64, usize) -> io::Result<Bytes> + 'a;

/// The superblock's positions in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The newest open that the superblock knows. No batch can be of a later one.
    pub last_open: u64,
    pub tail_seq: BatchSeq,
    pub tail_offset: u64,
    pub durable_seq: BatchSeq,
}

/// The reason why a log cannot be recovered at all.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("could not read the log at byte {offset}")]
    Read {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error(
        "the log holds batches of format version {version}: start the newer program that wrote them"
    )]
    NewerVersion { version: u16 },
    #[error("the log holds batch {seq} twice, which Holdfast never writes: do not use this disk")]
    Twice { seq: u64 },
    #[error(
        "the log was written by open {found} of this disk, but the superblock knows only {ours}: \
         the superblock was restored from an older copy, or the disk was cloned. Bring back the \
         superblock that belongs to the log; without it, give the pod an empty folder, and its \
         replicas are rebuilt from the others"
    )]
    NewerIncarnation { found: u64, ours: u64 },
}

/// A batch whose header pages are intact.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub batch: Batch,
    /// True if every payload passed its CRC; the entries say which ones failed.
    pub payload_ok: bool,
}

pub(super) struct Scan {
    pub found: Vec<Found>,
    /// Pages that the device could not read; they count as damaged.
    pub unreadable_pages: u64,
}

/// Every batch of this disk from the superblock's tail on, in order of offset.
pub(super) fn scan(
    config: &WalConfig,
    marks: &Marks,
    read: &mut ReadRing<'_>,
) -> Result<Scan, RecoverError> {
    let keys = config.keys();
    let mut window = Window {
        read,
        ring_bytes: config.ring_bytes,
        at: 0,
        bytes: Bytes::new(),
        unreadable_pages: 0,
    };
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < config.ring_bytes {
        offset += match batch_at(config, &keys, marks, offset, &mut window)? {
            // No newer batch can start inside a batch that is intact to its end.
            Some(batch) => {
                let intact = batch.payload_ok;
                let bytes = batch.batch.header.total_bytes();
                found.push(batch);
                if intact { bytes } else { BLOCK_BYTES as u64 }
            }
            None => BLOCK_BYTES as u64,
        };
    }
    Ok(Scan { found, unreadable_pages: window.unreadable_pages })
}

fn batch_at(
    config: &WalConfig,
    keys: &Keys,
    marks: &Marks,
    offset: u64,
    window: &mut Window<'_, '_>,
) -> Result<Option<Found>, RecoverError> {
    let start = marks.tail_seq;
    let page = window.get(offset, BLOCK_BYTES)?;
    let header = match format::decode_fixed(keys, &page) {
        Ok(header) => header,
        Err(FormatError::Version { version, seq }) if seq >= start => {
            return Err(RecoverError::NewerVersion { version });
        }
        Err(_) => return Ok(None),
    };
    let fits = offset.checked_add(header.total_bytes()) <= Some(config.ring_bytes);
    if header.seq < start || header.offset != offset || !fits {
        return Ok(None);
    }
    let pages = window.get(offset, header.header_bytes())?;
    let Ok(mut batch) = format::decode(keys, &header, &pages) else { return Ok(None) };
    // An open raises the superblock's count before it writes (rule `incarnation-per-open`).
    let known = if planted!(OldSuperblockTrusted) { config.incarnation } else { marks.last_open };
    if header.incarnation > known {
        return Err(RecoverError::NewerIncarnation {
            found: header.incarnation,
            ours: marks.last_open,
        });
    }
    let mut payload_ok = true;
    for entry in batch.items.iter_mut().flat_map(entries_of) {
        entry.payload_ok = payload_passes(entry, window)?;
        payload_ok &= entry.payload_ok;
    }
    Ok(Some(Found { batch, payload_ok }))
}

fn entries_of(item: &mut FoundItem) -> &mut [FoundEntry] {
    match item {
        FoundItem::Entry { entry, .. } => std::slice::from_mut(entry),
        FoundItem::LogSnapshot { entries, .. } => entries,
        FoundItem::Hard { .. } | FoundItem::Reset { .. } | FoundItem::Fault { .. } => &mut [],
    }
}

fn payload_passes(entry: &FoundEntry, window: &mut Window<'_, '_>) -> Result<bool, RecoverError> {
    let mut hasher = crc32fast::Hasher::new_with_initial(entry.crc_start);
    let mut done = 0;
    while done < entry.payload_bytes as usize {
        let len = (entry.payload_bytes as usize - done).min(CHUNK_BYTES);
        hasher.update(&window.get(entry.payload_offset + done as u64, len)?);
        done += len;
    }
    Ok(hasher.finalize() == entry.payload_crc)
}

/// The part of the ring that is in memory.
struct Window<'a, 'b> {
    read: &'a mut ReadRing<'b>,
    ring_bytes: u64,
    at: u64,
    bytes: Bytes,
    unreadable_pages: u64,
}

impl Window<'_, '_> {
    /// `len` bytes at `offset`, a multiple of 4 KiB; both lie within the ring.
    fn get(&mut self, offset: u64, len: usize) -> Result<Bytes, RecoverError> {
        let end = self.at + self.bytes.len() as u64;
        if offset < self.at || offset + len as u64 > end {
            let pages = format::pages(len.max(CHUNK_BYTES)) * BLOCK_BYTES;
            let left = usize::try_from(self.ring_bytes - offset).unwrap_or(usize::MAX);
            self.bytes = Bytes::new();
            self.bytes = self.load(offset, pages.min(left))?;
            self.at = offset;
        }
        let from = (offset - self.at) as usize;
        Ok(self.bytes.slice(from..from + len))
    }

    /// An unreadable page counts as damaged. If a whole chunk is unreadable, the device does not
    /// work, and the log must not be judged by the rest.
    fn load(&mut self, offset: u64, len: usize) -> Result<Bytes, RecoverError> {
        if let Ok(bytes) = read_exactly(self.read, offset, len) {
            return Ok(bytes);
        }
        let mut all = vec![0; len];
        let (mut good, mut error) = (0, None);
        for (page, out) in all.chunks_mut(BLOCK_BYTES).enumerate() {
            let at = offset + (page * BLOCK_BYTES) as u64;
            match read_exactly(self.read, at, out.len()) {
                Ok(bytes) => {
                    out.copy_from_slice(&bytes);
                    good += 1;
                }
                Err(source) => {
                    self.unreadable_pages += 1;
                    error = Some(source);
                }
            }
        }
        match error {
            Some(source) if good == 0 => Err(RecoverError::Read { offset, source }),
            _ => Ok(all.into()),
        }
    }
}

fn read_exactly(read: &mut ReadRing<'_>, offset: u64, len: usize) -> io::Result<Bytes> {
    let bytes = read(offset, len)?;
    if bytes.len() != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
