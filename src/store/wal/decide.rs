//! The recovery decision: which of the found batches are the log, which were lost, and where the
//! log ends. Pure, without any I/O.
//!
//! Words: the *mark* is the largest sequence that the superblock or any batch calls durable. A
//! batch is *bad* if its header is missing or a payload fails its CRC.
//!
//! 1. **Void.** An incarnation kept no batch beyond its base. Batches of older incarnations with a
//!    larger sequence were cut off. They never come back, however valid they are.
//! 2. **Missing.** Every batch names its two predecessors. So it is known whether none, one or more
//!    are missing between two batches that were found. The successor's copy of the item index
//!    describes one missing batch. A batch counts as missing if its successor chains to another
//!    CRC.
//! 3. **Torn.** The first bad batch above the mark ends the log. It and all later ones were never
//!    acknowledged, even valid ones (several batches may be in flight).
//! 4. **Corrupt.** A bad batch at or below the mark was acknowledged and is lost. If several in a
//!    row are missing, or the mark is after the last found batch, their content is unknown: any
//!    member may have been in them.
//!
//! The next incarnation chains to the lost batches, not to the remaining ones. So the next recovery
//! reaches the same verdict.

use bytes::Bytes;

use crate::planted::planted;

use super::BatchSeq;
use super::format::{self, Batch, Header, Summary, kinds};
use super::scan::Found;

/// The result of the decision.
pub(super) struct Decision {
    /// In order of sequence.
    pub log: Vec<LogPart>,
    /// The last batch of the log: the predecessor of the next one.
    pub last: Last,
    /// The first sequence that was cut off, if it or a later one was found.
    pub cut: Option<BatchSeq>,
    pub mark: BatchSeq,
    /// Oldest sequence that the log may hold.
    pub start: BatchSeq,
}

/// A part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPart {
    Batch(Batch),
    Lost(Lost),
}

/// Lost batches: they were durable once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub first: BatchSeq,
    pub last: BatchSeq,
    pub members: LostMembers,
}

/// The members whose items were in a lost batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostMembers {
    Known(Vec<Summary>),
    Any,
}

/// A batch, as its successor describes it.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub seq: BatchSeq,
    pub previous_seq: BatchSeq,
    /// 0: the batch was lost.
    pub crc: u32,
    pub index: Bytes,
}

/// `start` and `mark` come from the superblock.
pub(super) fn decide(mut found: Vec<Found>, start: BatchSeq, mark: BatchSeq) -> Decision {
    // A batch's tail was in a superblock before: newer than `start` if the superblock is old.
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
    if mark > walk.last.seq && !planted!(CutAtFirstBad) {
        walk.lose_unknown(mark);
    }
    Decision { log: walk.log, last: walk.last, cut, mark, start }
}

/// Drops void batches (1).
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
        header.seq <= newer_kept_up_to || planted!(CutComesBack)
    });
}

/// Drops batches to which their successor does not chain (2).
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
    /// Appends the next found batch, or returns the sequence at which the log ends.
    fn step(&mut self, found: Found) -> Result<(), BatchSeq> {
        let header = found.batch.header;
        if header.previous_seq > self.last.seq {
            self.missing(&header, &found.batch.previous)?;
        }
        let torn = header.seq > self.mark || planted!(CutAtFirstBad);
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

    /// The predecessor of `header` is missing, perhaps with earlier ones.
    fn missing(&mut self, header: &Header, copy: &Bytes) -> Result<(), BatchSeq> {
        let (seq, only_one) = (header.previous_seq, header.before_previous_seq <= self.last.seq);
        if only_one && (seq > self.mark || planted!(CutAtFirstBad)) {
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

    /// Records everything up to `up_to` as lost, with unknown content.
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
            // Tells the next recovery, too, that more than one may be missing.
            previous_seq: BatchSeq(up_to.0 - 1),
            crc: 0,
            index: index.into(),
        };
    }
}
