//! Log writes overwrite no batch from which recovery would start after a crash now (rule
//! `tail-after-superblock`). Entries leave room for elections (rule `log-reserve`). No batch gets
//! the number of another (rule `sequence-never-reused`).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::sim::checks::wrong::{Checked, check};
use crate::sim::disk::SimFile;
use crate::sim::names::DiskNumber;
use crate::store::superblock::{self, Superblock};
use crate::store::wal::BatchSeq;
use crate::store::wal::format::{Batch, FoundItem};
use crate::types::BLOCK_BYTES;

/// Entries leave at least one part in this many of a log free. A quarter is reserved, but votes and
/// log snapshots may take some of it before admitted entries arrive.
const RESERVE_PART: u64 = 8;

/// See the module.
#[derive(Default)]
pub struct RingChecks {
    disks: BTreeMap<DiskNumber, Ring>,
}

#[derive(Default)]
struct Ring {
    bytes: u64,
    tail: BatchSeq,
    tail_offset: u64,
    /// The newest batch that was ever handed to the disk.
    newest: BatchSeq,
    /// Batches written since the disk was opened, from the tail on: start, end and sequence. No two
    /// overlap.
    batches: BTreeMap<u64, (u64, BatchSeq)>,
    /// Batches above every durable mark, also from before the disk was opened.
    unmarked: BTreeMap<BatchSeq, Range<u64>>,
}

impl RingChecks {
    /// The cut of a recovery is unknown here: forget earlier batches.
    pub fn opened(&mut self, disk: DiskNumber) {
        self.disks.entry(disk).or_default().batches.clear();
    }

    /// The durable content of the superblock has changed.
    pub fn superblock(&mut self, disk: DiskNumber, superblock: &Superblock) {
        let ring = self.disks.entry(disk).or_default();
        ring.bytes = superblock.wal_bytes;
        (ring.tail, ring.tail_offset) = (BatchSeq(superblock.tail_seq), superblock.tail_offset);
        ring.batches.retain(|_, (_, seq)| *seq >= ring.tail);
        self.marked(disk, BatchSeq(superblock.durable_seq));
    }

    /// A durable mark covers everything up to this batch.
    pub fn marked(&mut self, disk: DiskNumber, mark: BatchSeq) {
        let ring = self.disks.entry(disk).or_default();
        ring.unmarked = ring.unmarked.split_off(&BatchSeq(mark.0 + 1));
    }

    /// Ranges in which damage looks like a torn write, because no durable mark covers them. A
    /// replica would forget its answers there and not notice, and replication does not promise to
    /// survive that.
    pub fn unmarked(&self, disk: DiskNumber) -> Vec<Range<u64>> {
        let ring = self.disks.get(&disk);
        ring.map_or(Vec::new(), |ring| ring.unmarked.values().cloned().collect())
    }

    /// A batch is written. `trusted`: the disk does not lose data.
    pub fn begins(&mut self, disk: DiskNumber, batch: &Batch, trusted: bool) -> Checked {
        let header = &batch.header;
        let ring = self.disks.entry(disk).or_default();
        let written = header.offset..header.offset + header.total_bytes();
        let (seq, newest) = (header.seq.0, ring.newest.0);
        check(seq > newest || !trusted, || {
            format!("disk {disk}: a batch has number {seq}, and {newest} was there before")
        })?;
        ring.newest = header.seq;
        let used = (written.end + ring.bytes - ring.tail_offset) % ring.bytes;
        let has_entries = batch.items.iter().any(|item| matches!(item, FoundItem::Entry { .. }));
        let left = ring.bytes - used;
        check(!has_entries || left >= ring.bytes / RESERVE_PART, || {
            format!("disk {disk}: batch {seq} has entries, and leaves {left} bytes of the log")
        })?;
        let before_its_end = ring.batches.range(..written.end).next_back();
        if let Some((_, (end, lost))) = before_its_end
            && *end > written.start
        {
            let (lost, tail) = (lost.0, ring.tail.0);
            return Err(format!(
                "disk {disk}: batch {seq} overwrites {lost}, and the superblock's tail is {tail}"
            ));
        }
        ring.batches.insert(written.start, (written.end, header.seq));
        ring.unmarked.insert(header.seq, written);
        Ok(())
    }
}

/// The durable superblock.
pub fn superblock_of(file: &SimFile) -> Option<Superblock> {
    let mut pages = vec![0; superblock::FILE_BYTES];
    file.read_durable(0, &mut pages);
    let mut copies = pages.chunks(BLOCK_BYTES);
    let copies = std::array::from_fn(|_| copies.next().expect("as many as there are copies"));
    superblock::choose(&copies).ok()
}
