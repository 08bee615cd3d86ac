//! Reads a ring after a start: the log, lost batches, and the position to continue at. Pure: the
//! caller reads. `decide` has the rules, [`super::replay`] turns the result into the logs of
//! members.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::planted::planted;

use super::decide::{Decision, decide};
pub use super::decide::{LogPart, Lost, LostMembers};
use super::format::{self, Keys};
use super::ring::IN_FLIGHT_MAX;
use super::scan::scan;
pub use super::scan::{Marks, ReadRing, RecoverError};
use super::{BatchSeq, WalConfig, WalPosition};

/// The result of a recovery.
#[derive(Debug)]
pub struct Recovered {
    pub position: WalPosition,
    /// In order of sequence, without payloads.
    pub log: Vec<LogPart>,
    /// Byte ranges of kept batches above the mark: perhaps only in the device's cache. Write them
    /// again, durably, before you acknowledge or write anything (rule `confirm-what-was-found`).
    pub unconfirmed: Vec<Range<u64>>,
    /// The first sequence that was cut off, if it or a later one was found.
    pub cut: Option<BatchSeq>,
    /// Pages that the device could not read; they count as damaged.
    pub unreadable_pages: u64,
}

impl WalConfig {
    pub(super) fn keys(&self) -> Keys {
        Keys { disk: self.disk, seed: self.seed }
    }
}

/// Reads the whole ring once, 1 MiB at a time. `config.incarnation` is the raised one, of this
/// open.
pub fn recover(
    config: &WalConfig,
    marks: &Marks,
    read: &mut ReadRing<'_>,
) -> Result<Recovered, RecoverError> {
    let scanned = scan(config, marks, read)?;
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

/// The start of an empty log: the superblock's offset, if it is valid.
fn first_offset(config: &WalConfig, offset: u64) -> u64 {
    let whole_pages = offset.is_multiple_of(crate::types::BLOCK_BYTES as u64);
    if whole_pages && offset < config.ring_bytes { offset } else { 0 }
}

/// The largest values in any found batch, even if it was cut off.
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

/// Returns a number that was never used. A crash may hide every trace of batches in flight, so as
/// many numbers are skipped. An open may also see a batch and cut it, and the next open overwrite
/// it without a trace of its own. So each open since the newest kept batch starts above all numbers
/// that earlier opens can have used.
fn next_seq(config: &WalConfig, decision: &Decision, newest: &Newest) -> BatchSeq {
    let kept_in = match decision.log.last() {
        Some(LogPart::Batch(batch)) => batch.header.incarnation,
        Some(LogPart::Lost(_)) | None => 0,
    };
    let in_flight = IN_FLIGHT_MAX as u64;
    let opens = config.incarnation.saturating_sub(kept_in).saturating_add(1);
    let kept = decision.last.seq.max(decision.mark).0;
    if planted!(SequenceReused) {
        return BatchSeq(kept + 1);
    }
    let above_kept = kept.saturating_add(opens.saturating_mul(2 * in_flight));
    let above_seen = newest.seq.0.saturating_add(in_flight);
    BatchSeq(above_kept.max(above_seen).saturating_add(1))
}

/// The reason why a payload cannot be loaded.
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

/// Reads the payload of an entry from the ring, into the memory that `read` returns (aligned, if
/// that memory is).
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
