//! Reads a ring after a start: what the log holds, what was lost, where to go on. Pure: the caller
//! reads. `decide` holds the rules, [`super::fold`] turns the result into member logs.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::planted::{Mistake, planted};

use super::decide::{Decision, decide};
use super::format::{self, Batch, Keys, Summary};
use super::ring::IN_FLIGHT_MAX;
use super::scan::scan;
use super::{BatchSeq, WalConfig, WalPosition};

/// Reads bytes of the ring file: offset and length in bytes. Exactly that much, or an error.
pub type ReadRing<'a> = dyn FnMut(u64, usize) -> io::Result<Bytes> + 'a;

/// What the superblock says about the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub tail_seq: BatchSeq,
    pub tail_offset: u64,
    pub durable_seq: BatchSeq,
}

/// A ring after a start.
#[derive(Debug)]
pub struct Recovered {
    pub position: WalPosition,
    /// In order of sequence, without payloads.
    pub log: Vec<LogPart>,
    /// Byte ranges of kept batches that no mark calls durable. They may live only in the device's
    /// cache: write them back as they are, durably, before anything is acknowledged or written.
    pub unconfirmed: Vec<Range<u64>>,
    /// The first sequence that was cut off, if something of it or after it was found.
    pub cut: Option<BatchSeq>,
    /// Pages that the device could not read (taken for damaged).
    pub unreadable_pages: u64,
}

/// A piece of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPart {
    Batch(Batch),
    Lost(Lost),
}

/// Batches that were durable once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub first: BatchSeq,
    pub last: BatchSeq,
    pub members: LostMembers,
}

/// Whose items were in a lost batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostMembers {
    Known(Vec<Summary>),
    Any,
}

/// Why a log cannot be recovered at all.
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
    #[error("the log holds batch {seq} twice, which no open of this disk writes: do not use it")]
    Twice { seq: u64 },
    #[error(
        "the log was written by opening {found} of this disk, the superblock knows of {ours} only: \
         the superblock is an old copy, or the disk was cloned; do not use it"
    )]
    NewerIncarnation { found: u64, ours: u64 },
}

impl WalConfig {
    pub(super) fn keys(&self) -> Keys {
        Keys { disk: self.disk, seed: self.seed }
    }
}

/// Reads the whole ring once, a few MiB at a time. `config.incarnation` may be the superblock's or
/// the raised one; [`super::Wal::new`] needs the raised one.
pub fn recover(
    config: &WalConfig,
    marks: &Marks,
    read: &mut ReadRing<'_>,
) -> Result<Recovered, RecoverError> {
    let scanned = scan(config, marks.tail_seq, read)?;
    let headers = || scanned.found.iter().map(|found| &found.batch.header);
    let newest = Newest {
        seq: headers().map(|h| h.seq).max().unwrap_or_default(),
        incarnation: headers().map(|h| h.incarnation).max().unwrap_or(0),
    };
    let decision = decide(scanned.found, marks.tail_seq, marks.durable_seq);

    let batches = || {
        decision.log.iter().filter_map(|part| match part {
            LogPart::Batch(batch) => Some(batch),
            LogPart::Lost(_) => None,
        })
    };
    let mut last = None;
    for seq in batches().map(|batch| batch.header.seq) {
        if last.replace(seq).is_some_and(|before| before >= seq) {
            return Err(RecoverError::Twice { seq: seq.0 });
        }
    }
    let unconfirmed = batches()
        .map(|batch| &batch.header)
        .filter(|header| header.seq > decision.mark)
        .map(|header| header.offset..header.offset + header.total_bytes())
        .collect();
    let kept = batches().map(|b| (b.header.seq, b.header.offset)).collect();
    let head_offset = match batches().last().map(|batch| &batch.header) {
        Some(header) => (header.offset + header.total_bytes()) % config.ring_bytes,
        None => first_offset(config, marks.tail_offset),
    };
    let position = position(config, &decision, kept, head_offset, newest);
    Ok(Recovered {
        position,
        unconfirmed,
        cut: decision.cut,
        unreadable_pages: scanned.unreadable_pages,
        log: decision.log,
    })
}

/// Where an empty log starts: the superblock's word, if it can be true.
fn first_offset(config: &WalConfig, offset: u64) -> u64 {
    let whole_pages = offset.is_multiple_of(crate::types::BLOCK_BYTES as u64);
    if whole_pages && offset < config.ring_bytes { offset } else { 0 }
}

/// The largest that was seen in any batch, cut off or not.
struct Newest {
    seq: BatchSeq,
    incarnation: u64,
}

fn position(
    config: &WalConfig,
    decision: &Decision,
    kept: Vec<(BatchSeq, u64)>,
    head_offset: u64,
    newest: Newest,
) -> WalPosition {
    let last = &decision.last;
    WalPosition {
        next_seq: next_seq(config, decision, &newest),
        head_offset,
        tail_seq: decision.start,
        tail_offset: kept.first().map_or(head_offset, |batch| batch.1),
        chain_seq: last.seq,
        chain_incarnation: newest.incarnation,
        chain_crc: last.crc,
        chain_previous_seq: last.previous_seq,
        previous_items: last.index.clone(),
        durable_mark: decision.mark,
        kept,
    }
}

/// A number that was never used. A crash may have hidden every trace of what was in flight, so as
/// many numbers are skipped. And what was cut may have been seen by one open and be overwritten,
/// without a trace of its own, by the next: so every open since the newest batch that was kept
/// starts higher than anything the opens before it can have used.
fn next_seq(config: &WalConfig, decision: &Decision, newest: &Newest) -> BatchSeq {
    let kept_in = match decision.log.last() {
        Some(LogPart::Batch(batch)) => batch.header.incarnation,
        Some(LogPart::Lost(_)) | None => 0,
    };
    let in_flight = IN_FLIGHT_MAX as u64;
    let opens = config.incarnation.saturating_sub(kept_in).saturating_add(1);
    let kept = decision.last.seq.max(decision.mark).0;
    if planted(Mistake::SequenceReused) {
        return BatchSeq(kept + 1);
    }
    let above_kept = kept.saturating_add(opens.saturating_mul(2 * in_flight));
    let above_seen = newest.seq.0.saturating_add(in_flight);
    BatchSeq(above_kept.max(above_seen).saturating_add(1))
}

/// Why a payload cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not read the log at byte {offset}")]
    Read {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error("a payload in the log at byte {offset} fails its checksum")]
    Checksum { offset: u64 },
}

/// Reads the payload of an entry that is in the ring, in the memory that `read` returns (aligned,
/// when that is).
pub fn load_payload(
    entry: &format::FoundEntry,
    read: &mut ReadRing<'_>,
) -> Result<Bytes, LoadError> {
    let (offset, len) = (entry.payload_offset, entry.payload_bytes as usize);
    if len == 0 {
        return Ok(Bytes::new());
    }
    let whole = format::pages(len) * crate::types::BLOCK_BYTES;
    let mut bytes = read(offset, whole).map_err(|source| LoadError::Read { offset, source })?;
    bytes.truncate(len);
    let passes = format::crc_from(entry.crc_start, &[&bytes]) == entry.payload_crc;
    if bytes.len() != len || !passes {
        return Err(LoadError::Checksum { offset });
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "recover_test.rs"]
mod tests;
