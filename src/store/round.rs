//! One round of write-back: its extents, what happens to each, and the new records. Plain data and
//! its consequences; [`crate::store::writeback`] carries it out.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::io::buffer::{Pool, is_aligned};
use crate::planted::planted;
use crate::store::alloc::Allocator;
use crate::store::member::LaneMember;
use crate::store::messages::{ExtentKey, ExtentRecord, ReadId, Slot};
use crate::store::overlay::{Content, OverlayBlock, ZeroRun};
use crate::store::read_repair::patched;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Extent, ExtentContent, MemberId};

/// Extents from a resync.
pub(super) struct Install {
    pub read: ReadId,
    pub member: MemberId,
    /// Lower bound of the index that the source had applied.
    pub as_of: u64,
    pub extents: Vec<ExtentContent>,
    pub delete: Vec<Extent>,
    /// Malformed, failing their checksums, or without a slot.
    pub refused: Vec<Extent>,
}

pub(super) struct Round {
    pub updates: Vec<Update>,
    /// Effects of the current stage in flight.
    pub in_flight: usize,
    /// Data writes that are not started yet: offset and memory.
    pub writes: VecDeque<(u64, Vec<Bytes>)>,
    pub writes_max: usize,
    /// The install that this round carries out.
    pub install: Option<(ReadId, Vec<Extent>)>,
}

/// What happens to one extent.
pub(super) struct Update {
    pub key: ExtentKey,
    pub source: Source,
    /// The slot of a bypassed entry, which the record takes over as it is.
    pub adopted: Option<Slot>,
    /// Newest change that is included.
    pub newest: u64,
    pub old: Option<ExtentRecord>,
    /// Last change in the record that an install replaces, if the log has not reached it yet.
    pub included: Option<u64>,
    /// Known once the slot is known.
    pub outcome: Outcome,
}

pub(super) enum Source {
    /// Blocks of the overlay: written ones, and zeroed ones.
    Overlay(Vec<Snapshot>, Vec<ZeroRun>),
    /// Replaces the whole extent, and drops its overlay.
    Replace(ExtentContent),
    /// Deletes the extent and its overlay.
    Delete,
    /// The same blocks from another replica, for another slot.
    Move(ExtentContent),
}

/// One overlay block as of the start of the round.
pub(super) struct Snapshot {
    pub position: u32,
    pub index: u64,
    pub crc: u32,
    pub content: Content,
    pub data: Option<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Undecided,
    Put(ExtentRecord),
    /// The record, when there is one, is deleted.
    Delete,
    /// There was no slot, or the bytes cannot be read.
    Skipped,
    /// A log entry names its slot.
    Parked,
}

impl Round {
    pub(super) fn new(updates: Vec<Update>, writes_max: usize) -> Round {
        let (in_flight, writes) = (0, VecDeque::new());
        Round { updates, in_flight, writes, writes_max, install: None }
    }
}

impl Snapshot {
    /// `patch`: another replica's copy of the extent.
    pub(super) fn new(position: u32, of: &OverlayBlock, patch: Option<&ExtentContent>) -> Snapshot {
        let OverlayBlock { index, crc, content, .. } = *of;
        let data = of.cached.clone().or_else(|| patched(patch, position, crc, index));
        Snapshot { position, index, crc, content, data }
    }
}

impl Outcome {
    /// False: nothing of the extent has changed.
    pub(super) fn is_done(&self) -> bool {
        !matches!(self, Outcome::Skipped | Outcome::Parked)
    }
}

impl Update {
    pub(super) fn new(key: ExtentKey, newest: u64, source: Source) -> Update {
        let (adopted, old, included) = (None, None, None);
        Update { key, source, adopted, newest, old, included, outcome: Outcome::Undecided }
    }

    /// The new record, without its slot; `None`: nothing is left of the extent.
    pub(super) fn record(&self, member: &LaneMember) -> Option<ExtentRecord> {
        let mut record = match (&self.source, &self.old) {
            // A bypassed entry's slot does not have the blocks of the old slot.
            (Source::Overlay(..), Some(old)) if self.adopted.is_none() => old.clone(),
            _ => ExtentRecord {
                slot: Slot(0),
                present: 0,
                zero: 0,
                last_changed: 0,
                birth: member.record.volume,
                crcs: [0; 16],
            },
        };
        record.last_changed = record.last_changed.max(self.newest);
        match &self.source {
            Source::Overlay(snapshots, zeroes) => {
                for snapshot in snapshots {
                    let bit = 1 << snapshot.position;
                    record.present |= bit;
                    record.zero &= !bit;
                    record.crcs[snapshot.position as usize] = snapshot.crc;
                }
                zeroes.iter().for_each(|run| clear_blocks(&mut record, run.mask, run.keep));
            }
            Source::Replace(content) => {
                record.present = content.present;
                let positions = (0..16).filter(|bit| content.present & (1 << bit) != 0);
                for (position, crc) in positions.zip(&content.crcs) {
                    record.crcs[position] = *crc;
                }
            }
            Source::Delete | Source::Move(_) => return None,
        }
        (record.present != 0 || record.zero != 0).then_some(record)
    }

    /// True when it brings no block, and only takes some away.
    pub(super) fn only_zeroes(&self) -> bool {
        matches!(&self.source, Source::Overlay(snapshots, _) if snapshots.is_empty())
    }

    /// True when it writes bytes to its slot.
    pub(super) fn has_data(&self) -> bool {
        match &self.source {
            Source::Overlay(snapshots, _) => {
                snapshots.iter().any(|snapshot| matches!(snapshot.content, Content::Log { .. }))
            }
            Source::Replace(content) | Source::Move(content) => content.present != 0,
            Source::Delete => false,
        }
    }

    /// The writes that fill its slot: one per run of neighbouring blocks.
    pub(super) fn writes(&self, slot: Slot, pool: &Pool, out: &mut VecDeque<(u64, Vec<Bytes>)>) {
        let mut last = None;
        let mut add = |position: u32, data: Bytes| {
            let data = if is_aligned(&data) { data } else { pool.copy(&data) };
            if last.is_some_and(|last| last + 1 == position)
                && let Some((_, bufs)) = out.back_mut()
            {
                bufs.push(data);
            } else {
                let offset = slot.offset() + u64::from(position) * BLOCK_BYTES as u64;
                out.push_back((offset, vec![data]));
            }
            last = Some(position);
        };
        match &self.source {
            Source::Overlay(snapshots, _) => {
                for snapshot in snapshots {
                    if let Content::Log { .. } = snapshot.content {
                        let data = snapshot.data.clone().expect("read back before the writes");
                        add(snapshot.position, data);
                    }
                }
            }
            Source::Replace(content) | Source::Move(content) => {
                let positions = (0..16).filter(|bit| content.present & (1 << bit) != 0);
                for (number, position) in positions.enumerate() {
                    let start = number * BLOCK_BYTES;
                    add(position, content.data.slice(start..start + BLOCK_BYTES));
                }
            }
            Source::Delete => {}
        }
    }
}

/// Makes these blocks read as zeroes. Above another layer they become *zero*: to clear *present*
/// alone would bring that layer's content back (rule `trim-hides-lower-layers`).
fn clear_blocks(record: &mut ExtentRecord, mask: u16, stays: bool) {
    record.present &= !mask;
    if stays && !planted!(TrimClearsPresent) {
        record.zero |= mask;
    } else {
        record.zero &= !mask;
    }
}

/// The record of an extent that moves to a new slot with the blocks of `content`. `None`: a block
/// is missing (perhaps superseded meanwhile), or there is no slot to spare.
pub(super) fn moved_record(
    old: Option<&ExtentRecord>,
    content: &ExtentContent,
    alloc: &mut Allocator,
) -> Option<ExtentRecord> {
    let old = old?;
    let brings = |position: &u32| {
        let crc = old.crcs[*position as usize];
        patched(Some(content), *position, crc, old.last_changed).is_some()
    };
    let mut present = (0..BLOCKS_PER_EXTENT).filter(|bit| old.present & (1 << bit) != 0);
    if !present.all(|position| brings(&position)) || alloc.free_unreserved() == 0 {
        return None;
    }
    Some(ExtentRecord { slot: alloc.allocate()?, ..old.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VolumeId;

    #[test]
    fn blocks_above_a_layer_become_zero_and_others_become_absent() {
        let record = ExtentRecord {
            slot: Slot(1),
            present: 0b1111,
            zero: 0b10000,
            last_changed: 1,
            birth: VolumeId(1),
            crcs: [7; 16],
        };
        let mut above = record.clone();
        clear_blocks(&mut above, 0b0110, true);
        assert_eq!((above.present, above.zero), (0b1001, 0b10110));
        let mut lowest = record;
        clear_blocks(&mut lowest, 0b10110, false);
        assert_eq!((lowest.present, lowest.zero), (0b1001, 0));
    }

    #[test]
    fn broken_rules_are_noticed() {
        let scenario = blocks_above_a_layer_become_zero_and_others_become_absent;
        crate::planted::assert_found(crate::planted::Mistake::TrimClearsPresent, scenario);
    }
}
