//! Rule R8: what the log of a disk writes does not overwrite a batch that recovery would start
//! from, after a crash at this moment; entries leave room for what elections need (rule R9); and no
//! batch ever gets the number of another.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::sim::checks::wrong::{Checked, check};
use crate::sim::disk::SimFile;
use crate::sim::names::DiskNumber;
use crate::store::superblock::{self, Superblock};
use crate::store::wal::BatchSeq;
use crate::store::wal::format::{Batch, FoundItem};
use crate::types::BLOCK_BYTES;

/// Entries leave at least this part of a log free. A quarter is kept back from them; what is not
/// theirs (votes, images) may take a part of that before the ones do that had been let in.
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
    /// Where batches were written since the disk was opened, from the tail on: by where each
    /// begins, where it ends. No two overlap.
    batches: BTreeMap<u64, (u64, BatchSeq)>,
    /// Those that nothing durable names as durable, from before the disk was opened, too.
    unmarked: BTreeMap<BatchSeq, Range<u64>>,
}

impl RingChecks {
    /// What was cut off at the start is not known here: earlier batches are not looked at.
    pub fn opened(&mut self, disk: DiskNumber) {
        self.disks.entry(disk).or_default().batches.clear();
    }

    /// What is durable of the superblock.
    pub fn superblock(&mut self, disk: DiskNumber, superblock: &Superblock) {
        let ring = self.disks.entry(disk).or_default();
        ring.bytes = superblock.wal_bytes;
        (ring.tail, ring.tail_offset) = (BatchSeq(superblock.tail_seq), superblock.tail_offset);
        ring.batches.retain(|_, (_, seq)| *seq >= ring.tail);
        self.marked(disk, BatchSeq(superblock.durable_seq));
    }

    /// Something durable says that everything up to this batch is.
    pub fn marked(&mut self, disk: DiskNumber, mark: BatchSeq) {
        let ring = self.disks.entry(disk).or_default();
        ring.unmarked = ring.unmarked.split_off(&BatchSeq(mark.0 + 1));
    }

    /// Where damage would look like a write that power failed in, because nothing durable says
    /// otherwise yet: what a replica answered for in there it would forget, and not notice. That is
    /// more than replication promises to survive.
    pub fn unmarked(&self, disk: DiskNumber) -> Vec<Range<u64>> {
        let ring = self.disks.get(&disk);
        ring.map_or(Vec::new(), |ring| ring.unmarked.values().cloned().collect())
    }

    /// A batch is written. The disk may have lost something: `trusted` is false.
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

/// What is durable of a superblock.
pub fn superblock_of(file: &SimFile) -> Option<Superblock> {
    let mut pages = vec![0; superblock::FILE_BYTES];
    file.read_durable(0, &mut pages);
    let mut copies = pages.chunks(BLOCK_BYTES);
    let copies = std::array::from_fn(|_| copies.next().expect("as many as there are copies"));
    superblock::choose(&copies).ok()
}
