//! The recovery decision: which of the batches that were found are the log, what was lost, where
//! the log ends. Pure, and without any I/O.
//!
//! Words: *mark* is the largest sequence that the superblock or any batch calls durable. A batch
//! is *bad* when its header is not there or a payload fails its CRC.
//!
//! 1. **Void.** An incarnation kept nothing beyond its base: batches of older incarnations with a
//!    larger sequence were cut off and never come back, however valid they are.
//! 2. **Missing.** Every batch names its predecessor and that one's predecessor, so between two
//!    batches that follow each other in the file it is known whether none, one or more are
//!    missing. What one missing batch held is in its successor's copy of the item index. A batch
//!    whose CRC is not the one its successor chains to counts as missing.
//! 3. **Torn.** The first bad batch above the mark ends the log: it and everything after it were
//!    never acknowledged, even what is valid (several batches may be in flight).
//! 4. **Corrupt.** A bad batch at or below the mark was acknowledged and is lost. When more than
//!    one is missing in a row, or the mark lies beyond the last batch found, nobody knows what
//!    they held: any member may have been in them.
//!
//! The next incarnation chains to what was lost, not to what is left, so that the next recovery
//! comes to the same verdict.

use bytes::Bytes;

use crate::planted::{Mistake, planted};

use super::BatchSeq;
use super::format::{self, Batch, Header, Summary, kinds};
use super::scan::Found;

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

/// What was decided.
pub(super) struct Decision {
    /// In order of sequence.
    pub log: Vec<LogPart>,
    /// The end of the log: what the next batch follows.
    pub last: Last,
    /// The first sequence that was cut off, although something of it or after it was found.
    pub cut: Option<BatchSeq>,
    pub mark: BatchSeq,
    /// Oldest sequence that the log may hold.
    pub start: BatchSeq,
}

/// A batch as its successor sees it.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub seq: BatchSeq,
    pub previous_seq: BatchSeq,
    /// 0 when it was lost.
    pub crc: u32,
    pub index: Bytes,
}

/// `start` and `mark` are the superblock's.
pub(super) fn decide(mut found: Vec<Found>, start: BatchSeq, mark: BatchSeq) -> Decision {
    // The tail in a batch was in a superblock before: newer than this one if that went back.
    let tails = found.iter().map(|f| f.batch.header.tail_seq);
    let start = tails.fold(start, BatchSeq::max);
    drop_void(&mut found);
    found.retain(|f| f.batch.header.seq >= start);
    found.sort_by_key(|f| f.batch.header.seq);
    let marks = found.iter().map(|f| f.batch.header.durable_seq);
    let mark = marks.fold(mark, BatchSeq::max);
    drop_unchained(&mut found);

    let mut walk = Walk {
        log: Vec::with_capacity(found.len()),
        mark,
        last: Last {
            seq: BatchSeq(start.0.saturating_sub(1)),
            previous_seq: BatchSeq(0),
            crc: 0,
            index: Bytes::new(),
        },
    };
    let cut = found.into_iter().find_map(|batch| walk.step(batch).err());
    if mark > walk.last.seq && !planted(Mistake::CutAtFirstBad) {
        walk.lose_unknown(mark);
    }
    Decision { log: walk.log, last: walk.last, cut, mark, start }
}

/// Rule 1.
fn drop_void(found: &mut Vec<Found>) {
    found.sort_by_key(|f| std::cmp::Reverse(f.batch.header.incarnation));
    let mut kept_up_to = BatchSeq(u64::MAX);
    let (mut newer_kept_up_to, mut incarnation) = (kept_up_to, u64::MAX);
    found.retain(|f| {
        let header = &f.batch.header;
        if header.incarnation != incarnation {
            incarnation = header.incarnation;
            newer_kept_up_to = kept_up_to;
        }
        kept_up_to = kept_up_to.min(header.base_seq);
        header.seq <= newer_kept_up_to || planted(Mistake::CutComesBack)
    });
}

/// Rule 2, last sentence.
fn drop_unchained(found: &mut Vec<Found>) {
    let mut next: Option<Header> = None;
    for position in (0..found.len()).rev() {
        let header = found[position].batch.header;
        let chained = next
            .is_none_or(|next| next.previous_seq != header.seq || next.previous_crc == header.crc);
        if chained {
            next = Some(header);
        } else {
            found.remove(position);
        }
    }
}

struct Walk {
    log: Vec<LogPart>,
    mark: BatchSeq,
    last: Last,
}

impl Walk {
    /// Appends the next batch that was found, or names the sequence at which the log ends.
    fn step(&mut self, found: Found) -> Result<(), BatchSeq> {
        let header = found.batch.header;
        if header.previous_seq > self.last.seq {
            self.missing(&header, &found.batch.previous)?;
        }
        let torn = header.seq > self.mark || planted(Mistake::CutAtFirstBad);
        if !found.payload_ok && torn {
            return Err(header.seq);
        }
        self.last = Last {
            seq: header.seq,
            previous_seq: header.previous_seq,
            crc: header.crc,
            index: found.batch.index.clone(),
        };
        self.log.push(LogPart::Batch(found.batch));
        Ok(())
    }

    /// The predecessor of `header`, and perhaps more before it, is not there.
    fn missing(&mut self, header: &Header, copy: &Bytes) -> Result<(), BatchSeq> {
        let (seq, only_one) = (header.previous_seq, header.before_previous_seq <= self.last.seq);
        if only_one && (seq > self.mark || planted(Mistake::CutAtFirstBad)) {
            return Err(seq);
        }
        if only_one {
            let summaries = format::decode_index(copy);
            let any = summaries.iter().any(|s| s.kinds & kinds::ANY != 0);
            self.log.push(LogPart::Lost(Lost {
                first: seq,
                last: seq,
                members: if any { LostMembers::Any } else { LostMembers::Known(summaries) },
            }));
            self.last =
                Last { seq, previous_seq: header.before_previous_seq, crc: 0, index: copy.clone() };
            return Ok(());
        }
        if self.mark > self.last.seq {
            self.lose_unknown(seq.min(self.mark));
        }
        match seq > self.mark {
            true => Err(BatchSeq(self.last.seq.0 + 1)),
            false => Ok(()),
        }
    }

    /// Everything up to `up_to` is lost, and nobody knows what it was.
    fn lose_unknown(&mut self, up_to: BatchSeq) {
        let mut index = Vec::new();
        Summary::ANY.encode(&mut index);
        self.log.push(LogPart::Lost(Lost {
            first: BatchSeq(self.last.seq.0 + 1),
            last: up_to,
            members: LostMembers::Any,
        }));
        self.last = Last {
            seq: up_to,
            // So that the next recovery too sees that more than one may be missing.
            previous_seq: BatchSeq(up_to.0 - 1),
            crc: 0,
            index: index.into(),
        };
    }
}
