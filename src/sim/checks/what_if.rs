//! Rule R8, asked of the recovery itself: once an image of a member is durable, everything that the
//! log held before may be lost, and the member starts as if nothing had been.

use std::io;

use bytes::Bytes;

use crate::sim::checks::ring::superblock_of;
use crate::sim::checks::wrong::Checked;
use crate::sim::disk::SimDisk;
use crate::store::index::IndexStore;
use crate::store::open::wal_config;
use crate::store::wal::BatchSeq;
use crate::store::wal::fold::{Flushed, fold};
use crate::store::wal::format::{Batch, FoundItem};
use crate::store::wal::recover::{Marks, recover};
use crate::types::{BLOCK_BYTES, MemberId};

/// What recovery reads at a time, at most.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Recovers the log of a disk with nothing in it but a batch that has just become durable, if that
/// holds images.
pub fn images_are_enough(batch: &Batch, disk: &SimDisk) -> Checked {
    let images: Vec<MemberId> = batch.items.iter().filter_map(image_of).collect();
    let header = &batch.header;
    // Earlier ones that no mark calls durable would look like writes that power failed in.
    if images.is_empty() || header.durable_seq.0 + 1 < header.seq.0 {
        return Ok(());
    }
    let superblock = superblock_of(&disk.superblock).ok_or("an image, and no superblock")?;
    let written = header.offset..header.offset + header.total_bytes();
    let read = &mut |offset: u64, len: usize| -> io::Result<Bytes> {
        if offset >= written.end || offset + len as u64 <= written.start {
            return Ok(Bytes::from_static(&ZEROES[..len]));
        }
        let mut bytes = vec![0; len];
        disk.wal.read_durable(offset, &mut bytes);
        for (at, page) in (offset..).step_by(BLOCK_BYTES).zip(bytes.chunks_mut(BLOCK_BYTES)) {
            if !written.contains(&at) {
                page.fill(0);
            }
        }
        Ok(bytes.into())
    };
    let marks = Marks {
        tail_seq: BatchSeq(superblock.tail_seq),
        tail_offset: superblock.tail_offset,
        durable_seq: BatchSeq(superblock.durable_seq),
    };
    let recovered = recover(&wal_config(&superblock), &marks, read);
    let log = recovered.map_err(|error| format!("a log of one image: {error}"))?.log;
    let records = disk.index.borrow_mut().members().expect("a simulated index answers");
    let flushed = records.iter().map(|record| {
        let flushed = Flushed { index: record.flushed_index, term: record.flushed_term };
        (record.member, flushed)
    });
    let logs = fold(log, &flushed.collect(), &[]);
    images.into_iter().try_for_each(|member| {
        let found = logs.get(&member).ok_or("an image of a member without a log")?;
        match found.faulted {
            None => Ok(()),
            Some(why) => {
                Err(format!("the image of {member:?} does not stand for what was before: {why}"))
            }
        }
    })
}

/// Whose image this is.
fn image_of(item: &FoundItem) -> Option<MemberId> {
    match item {
        FoundItem::Image { member, .. } => Some(*member),
        _ => None,
    }
}
