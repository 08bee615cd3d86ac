//! Checks that a follower is resynced only when its leader's log does not have all entries that it
//! misses. The payload of an entry that bypassed the log is in slots, which may be used anew once
//! the entry is written back. So a follower that lacks such an entry is not judged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::sim::checks::ledger::{Ledger, entries_of};
use crate::sim::checks::wrong::{Checked, Wrong, check};
use crate::sim::names::DiskNumber;
use crate::store::superblock::Superblock;
use crate::store::wal::BatchSeq;
use crate::store::wal::format::{Batch, FoundItem};
use crate::types::{MemberId, Mono};

/// The tail of a log moves while a follower asks: entries that it passes within this time were too
/// late to be served.
const TOO_LATE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub struct CatchUp {
    /// The tails of the logs.
    tails: BTreeMap<DiskNumber, BatchSeq>,
    members: BTreeMap<MemberId, Kept>,
    /// Resyncs that may have been needless, in the order of time.
    judged: VecDeque<Judged>,
}

/// A resync whose missing entries were in the log.
struct Judged {
    at: Mono,
    disk: DiskNumber,
    /// The batch with the first of them.
    seq: BatchSeq,
    what: Wrong,
}

/// The entries of a member that were written to a log since the disk was opened.
#[derive(Default)]
struct Kept {
    disk: DiskNumber,
    entries: BTreeMap<u64, Place>,
}

/// Where an entry is.
struct Place {
    seq: BatchSeq,
    /// Its payload is not in the log.
    bypassed: bool,
}

impl CatchUp {
    /// What the log had before need not be in the memory of the pod.
    pub fn opened(&mut self, disk: DiskNumber, superblock: &Superblock) {
        self.members.retain(|_, kept| kept.disk != disk);
        self.judged.retain(|judged| judged.disk != disk);
        self.superblock(disk, superblock);
    }

    /// The durable content of the superblock has changed.
    pub fn superblock(&mut self, disk: DiskNumber, superblock: &Superblock) {
        let tail = BatchSeq(superblock.tail_seq);
        self.tails.insert(disk, tail);
        for kept in self.members.values_mut().filter(|kept| kept.disk == disk) {
            while let Some(oldest) = kept.entries.first_entry().filter(|of| of.get().seq < tail) {
                oldest.remove();
            }
        }
    }

    /// A batch is handed to the disk.
    pub fn begins(&mut self, disk: DiskNumber, batch: &Batch) {
        for item in &batch.items {
            if let FoundItem::Reset { member, .. } = item {
                self.members.remove(member);
            }
            for (member, entry) in entries_of(item) {
                let kept = self.members.entry(member).or_default();
                kept.disk = disk;
                kept.entries.split_off(&entry.index);
                let (seq, bypassed) = (batch.header.seq, entry.bypass.is_some());
                kept.entries.insert(entry.index, Place { seq, bypassed });
            }
        }
    }

    /// A leader wants a follower to be resynced.
    pub fn resyncs(&mut self, ledger: &Ledger, leader: MemberId, follower: MemberId, now: Mono) {
        let Some(agreed) = ledger.agreed(follower, leader) else { return };
        let Some(kept) = self.members.get(&leader) else { return };
        let Some(Place { seq, .. }) = kept.entries.get(&(agreed + 1)) else { return };
        if kept.entries.range(agreed + 1..).any(|(_, place)| place.bypassed) {
            return;
        }
        let newest = kept.entries.last_key_value().map_or(0, |(index, _)| *index);
        let what = format!(
            "{leader:?} resyncs {follower:?}, which has entry {agreed}, and its log has all \
             further ones up to {newest}"
        );
        self.judged.push_back(Judged { at: now + TOO_LATE, disk: kept.disk, seq: *seq, what });
    }

    /// Judges the resyncs that began a while ago.
    pub fn judge(&mut self, now: Mono) -> Checked {
        while self.judged.front().is_some_and(|judged| judged.at <= now) {
            let Judged { disk, seq, what, .. } = self.judged.pop_front().expect("just seen");
            let is_gone = self.tails.get(&disk).is_some_and(|tail| seq < *tail);
            check(is_gone, || what)?;
        }
        Ok(())
    }
}
