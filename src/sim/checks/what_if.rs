//! Rule `log-snapshot-replaces`, tested by real recoveries: once a log snapshot of a member is
//! durable, the member starts as before even if the rest of the log is lost.

use std::io;

use bytes::Bytes;

use crate::sim::checks::ring::superblock_of;
use crate::sim::checks::wrong::Checked;
use crate::sim::disk::SimDisk;
use crate::store::index::IndexStore;
use crate::store::open::wal_config;
use crate::store::wal::BatchSeq;
use crate::store::wal::format::{Batch, FoundItem};
use crate::store::wal::recover::{Marks, recover};
use crate::store::wal::replay::{Flushed, replay};
use crate::types::{BLOCK_BYTES, MemberId};

/// Recovery reads at most this much at once.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Recovers a log that has only this batch, which has just become durable, if the batch has log
/// snapshots.
pub fn log_snapshots_are_enough(batch: &Batch, disk: &SimDisk) -> Checked {
    let snapshots: Vec<MemberId> = batch.items.iter().filter_map(log_snapshot_of).collect();
    let header = &batch.header;
    // Missing batches above every mark would look like torn writes.
    if snapshots.is_empty() || header.durable_seq.0 + 1 < header.seq.0 {
        return Ok(());
    }
    let superblock = superblock_of(&disk.superblock).ok_or("a log snapshot, no superblock")?;
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
        last_open: superblock.incarnation,
        tail_seq: BatchSeq(superblock.tail_seq),
        tail_offset: superblock.tail_offset,
        durable_seq: BatchSeq(superblock.durable_seq),
    };
    let recovered = recover(&wal_config(&superblock), &marks, read);
    let log = recovered.map_err(|error| format!("a log of one snapshot: {error}"))?.log;
    let records = disk.index.borrow_mut().members().expect("a simulated index answers");
    let flushed = records.iter().map(|record| {
        let flushed = Flushed { index: record.flushed_index, term: record.flushed_term };
        (record.member, flushed)
    });
    let logs = replay(log, &flushed.collect(), &[]);
    snapshots.into_iter().try_for_each(|member| {
        let found = logs.get(&member).ok_or("a log snapshot of a member without a log")?;
        match found.faulted {
            None => Ok(()),
            Some(why) => {
                Err(format!("the log snapshot of {member:?} does not replace its log: {why}"))
            }
        }
    })
}

/// The member of a log snapshot.
fn log_snapshot_of(item: &FoundItem) -> Option<MemberId> {
    match item {
        FoundItem::LogSnapshot { member, .. } => Some(*member),
        _ => None,
    }
}
