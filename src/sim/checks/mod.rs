//! What must be true at every moment of a run, whatever fails, and what must be true at its end.
//!
//! | file | what it checks |
//! |---|---|
//! | `catalog` | one history of the cluster's state, answers that keep, ids given once |
//! | `history` | linearizability of what clients saw; nothing acknowledged is lost (R15) |
//! | `raft` | one leader and one vote per term, one history of entries |
//! | | nothing is answered or applied before it is durable (R1, R12) |
//! | | reads see what was applied before (R14) |
//! | `ledger` | what the logs hold durably; recovery finds all of it (R1, R3, R8) |
//! | `slots` | data is durable before the log or the index names it (R2, R6) |
//! | | no slot has two owners (R4) |
//! | `ring` | the log is not overwritten before the superblock lets go of it (R8) |
//! | `bounds` | memory and queues |
//! | `replicas` | at the end: equal replicas, exact space, everything written back |
//!
//! The kernel and the pods tell [`Checks`] what they do; the first thing that is wrong is kept, and
//! ends the run.

mod bounds;
pub mod catalog;
pub mod history;
mod ledger;
mod raft;
mod replicas;
mod ring;
mod seen;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;

use crate::io::driver::Token;
use crate::limits::Budgets;
use crate::replica::seam::{Input, Output, Start};
use crate::sim::checks::ledger::Ledger;
use crate::sim::checks::raft::RaftChecks;
use crate::sim::checks::ring::RingChecks;
pub use crate::sim::checks::seen::Seen;
use crate::sim::disk::{DiskNumber, SimDisk, SimFile};
use crate::store::index::memory::MemoryIndex;
use crate::store::seam::{IndexEdit, IndexJob, MemberRecord, Slot};
use crate::store::superblock::{self, Superblock};
use crate::store::wal::format::{Keys, decode, decode_fixed};
use crate::types::{BLOCK_BYTES, EXTENT_BYTES, MemberId, Uuid};
use crate::view::ClusterView;
use crate::worker::Load;

/// What is wrong, in words.
pub type Wrong = String;

/// See the module.
#[derive(Default)]
pub struct Checks {
    ledger: Ledger,
    raft: RaftChecks,
    rings: RingChecks,
    keys: BTreeMap<DiskNumber, Keys>,
    /// All that were ever on a disk.
    members: BTreeMap<Uuid, BTreeSet<MemberId>>,
    resyncing: BTreeSet<MemberId>,
    /// Whose data may get lost by a fault of its own: nothing is expected of it.
    bad_disk: Option<DiskNumber>,
    expects_nothing: bool,
    wrong: Option<Wrong>,
    pub seen: Seen,
}

impl Checks {
    /// The disk that does not keep what it is given.
    pub fn distrust(&mut self, disk: DiskNumber) {
        self.bad_disk = Some(disk);
    }

    /// Nothing is expected of anything any more.
    pub fn expect_nothing(&mut self) {
        self.expects_nothing = true;
    }

    /// A disk cannot be opened.
    pub fn unusable(&mut self, disk: DiskNumber, error: &dyn std::error::Error) {
        let mut what = format!("disk {disk} cannot be opened: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            what += &format!(": {error}");
            cause = error.source();
        }
        self.note(Err(what));
    }

    /// The first thing that was wrong.
    pub fn wrong(&self) -> Option<&Wrong> {
        self.wrong.as_ref().filter(|_| !self.expects_nothing)
    }

    fn note(&mut self, checked: Result<(), Wrong>) {
        if let (Err(wrong), None) = (checked, &self.wrong) {
            self.wrong = Some(wrong);
        }
    }

    /// The cluster as it is from now on.
    pub fn learn(&mut self, view: &ClusterView) {
        if self.raft.learn(view) {
            let shards = view.volumes.iter().flat_map(|volume| &volume.shards);
            for member in shards.flat_map(|shard| &shard.members) {
                self.members.entry(member.disk).or_default().insert(member.member);
            }
        }
    }

    /// A member's record is in the index.
    fn mark(&mut self, record: &MemberRecord) {
        match record.resyncing {
            true => self.resyncing.insert(record.member),
            false => self.resyncing.remove(&record.member),
        };
    }

    /// A member is given something.
    pub fn input(&mut self, member: MemberId, input: &Input) {
        self.raft.input(member, input);
    }

    /// A member asks for something.
    pub fn output(&mut self, member: MemberId, output: &Output) {
        let checked = self.raft.output(&self.ledger, member, output);
        self.seen.terms = self.raft.terms();
        self.seen.replaced = self.ledger.replaced;
        self.note(checked);
    }

    /// A pod opened a disk and found these members.
    pub fn opened(
        &mut self,
        disk: DiskNumber,
        superblock: &Superblock,
        index: &mut MemoryIndex,
        members: &[(MemberRecord, Start)],
    ) {
        self.keys.insert(disk, Keys { disk: superblock.disk, seed: superblock.seed });
        self.ledger.opened(disk);
        self.rings.opened(disk);
        self.rings.superblock(disk, superblock);
        self.seen.recoveries += u64::from(!members.is_empty());
        for (record, start) in members {
            self.seen.faulted += u64::from(start.faulted);
            self.mark(record);
            let found = self.ledger.recovered(record.member, start);
            self.note(found);
        }
        self.note(slots::owned(index).map(drop));
    }

    /// A pod hands a write of its log to the disk.
    pub fn log_write_begins(
        &mut self,
        number: DiskNumber,
        disk: &SimDisk,
        token: Token,
        bufs: &[Bytes],
    ) {
        let Some(keys) = self.keys.get(&number) else { return };
        let header = bufs.first().ok_or("nothing is written".to_owned()).and_then(|first| {
            decode_fixed(keys, first).map_err(|error| format!("disk {number} logs: {error}"))
        });
        let batch = header.and_then(|header| {
            let pages = match &bufs[0] {
                first if first.len() >= header.header_bytes() => first.clone(),
                _ => Bytes::from(bufs.concat()),
            };
            decode(keys, &header, &pages[..header.header_bytes()])
                .map_err(|error| format!("disk {number} logs: {error}"))
        });
        let batch = match batch {
            Ok(batch) => batch,
            Err(wrong) => return self.note(Err(wrong)),
        };
        if self.bad_disk != Some(number) {
            self.note(slots::named_by_log(&batch, &disk.data));
        }
        let overwrites = self.rings.begins(number, &batch.header);
        self.note(overwrites);
        self.ledger.begins(number, token, batch);
    }

    /// A write of a log is durable.
    pub fn log_write_ends(&mut self, disk: DiskNumber, token: Token) {
        for batch in self.ledger.ends(disk, token) {
            self.rings.marked(disk, batch.header.durable_seq);
            self.seen.batch(&batch);
            self.seen.laps += u64::from(batch.header.offset == 0);
            let checked = self.raft.logged(&batch);
            self.note(checked);
        }
    }

    /// What a pod has under way.
    pub fn load(&mut self, load: &Load, budgets: &Budgets, connections: usize) {
        self.note(bounds::within(load, budgets, connections));
    }

    /// Where the log of a disk must not rot: see [`RingChecks::unmarked`].
    pub fn unmarked(&self, disk: DiskNumber) -> Vec<Range<u64>> {
        self.rings.unmarked(disk)
    }

    /// What is durable of a superblock has changed.
    pub fn superblock_written(&mut self, disk: DiskNumber, file: &SimFile) {
        let mut pages = vec![0; superblock::FILE_BYTES];
        file.read_durable(0, &mut pages);
        let mut copies = pages.chunks(BLOCK_BYTES);
        let copies = std::array::from_fn(|_| copies.next().expect("as many as there are copies"));
        if let Ok(superblock) = superblock::choose(&copies) {
            self.rings.superblock(disk, &superblock);
        }
    }

    /// A pod hands a job to the index of a disk.
    pub fn index_job(&mut self, disk: DiskNumber, job: &IndexJob, data: &SimFile) {
        let IndexJob::Commit { edits, .. } = job else { return };
        if self.bad_disk != Some(disk) {
            self.note(slots::named_by_index(edits, data));
        }
        // What a resync brings was committed elsewhere.
        let committed = |member: MemberId| match self.resyncing.contains(&member) {
            true => u64::MAX,
            false => self.ledger.committed(member),
        };
        let covered = slots::covered(edits, committed);
        self.note(covered);
        for edit in edits {
            match edit {
                IndexEdit::PutMember(record) => self.mark(record),
                IndexEdit::Destroy(member) => self.ledger.destroyed(*member),
                _ => {}
            }
        }
    }

    /// What the index of a disk names is durable as it is now.
    pub fn index_flushed(&mut self, records: &[MemberRecord]) {
        self.seen.flushes += 1;
        records.iter().for_each(|record| self.ledger.flushed(record.member, record.flushed_index));
    }

    /// A pod hands a write of data to the disk.
    pub fn data_write_begins(&mut self, disk: DiskNumber, offset: u64) {
        let slot = Slot((offset / EXTENT_BYTES as u64) as u32);
        let members = self.keys.get(&disk).and_then(|keys| self.members.get(&keys.disk));
        let named = members.and_then(|members| self.ledger.names(members, slot));
        if let Some((member, index)) = named {
            let text = "is written, and the log still names it";
            self.note(Err(format!("disk {disk}: {slot:?} {text}: {member:?}, entry {index}")));
        }
    }
}
