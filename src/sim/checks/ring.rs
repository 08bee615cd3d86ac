//! Rule R8: what the log of a disk writes does not overwrite a batch that recovery would start
//! from, after a crash at this moment.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::sim::checks::Wrong;
use crate::sim::disk::DiskNumber;
use crate::store::wal::BatchSeq;
use crate::store::wal::format::Header;

/// See the module.
#[derive(Default)]
pub struct RingChecks {
    disks: BTreeMap<DiskNumber, Ring>,
}

#[derive(Default)]
struct Ring {
    tail: BatchSeq,
    /// Where batches were written since the disk was opened, from the tail on.
    batches: BTreeMap<BatchSeq, Range<u64>>,
}

impl RingChecks {
    /// What was cut off at the start is not known here: earlier batches are not looked at.
    pub fn opened(&mut self, disk: DiskNumber) {
        self.disks.remove(&disk);
    }

    /// What is durable of the superblock names this batch as the tail.
    pub fn tail(&mut self, disk: DiskNumber, tail: BatchSeq) {
        let ring = self.disks.entry(disk).or_default();
        ring.tail = tail;
        ring.batches = ring.batches.split_off(&tail);
    }

    /// A batch is written.
    pub fn begins(&mut self, disk: DiskNumber, header: &Header) -> Result<(), Wrong> {
        let ring = self.disks.entry(disk).or_default();
        let written = header.offset..header.offset + header.total_bytes();
        let overlaps = |batch: &Range<u64>| batch.start < written.end && written.start < batch.end;
        let lost = ring.batches.iter().find(|(_, batch)| overlaps(batch));
        if let Some((lost, _)) = lost {
            let (seq, tail) = (header.seq.0, ring.tail.0);
            let lost = lost.0;
            return Err(format!(
                "disk {disk}: batch {seq} overwrites {lost}, and the superblock's tail is {tail}"
            ));
        }
        ring.batches.insert(header.seq, written);
        Ok(())
    }
}
