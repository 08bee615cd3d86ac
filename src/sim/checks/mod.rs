//! Checkers of every run: conditions that hold at every moment, whatever fails, and at the end.
//!
//! - `catalog`: one history of the cluster's state; answers stay true; ids are given once.
//! - `history`: the clients' view is linearizable, nothing acknowledged is lost (rule
//!   `overlapping-writes-in-order`).
//! - `raft`: one leader and one vote per term, one history of entries; nothing is answered or
//!   applied before it is durable (rules `durable-before-ack` and `destroyed-stays-destroyed`); no
//!   stale reads.
//! - `leases`: who may vote and who may read (rule `lease-ends-before-election`).
//! - `sessions`: outdone entries change nothing (rule `session-checked-at-apply`).
//! - `content`: index records match the applied entries (rule `flushed-is-a-low-water-mark`).
//! - `ledger`: recovery finds all durable promises (rules `durable-before-ack`,
//!   `kept-until-replaced`).
//! - `slots`: data is durable before it is named (rules `data-before-index`,
//!   `bypass-before-batch`), and no slot has two owners (rule `slot-reuse-after-durable-free`).
//! - `ring`: no early overwrite (rule `tail-after-superblock`), room for elections (rule
//!   `log-reserve`).
//! - `what_if`: a log snapshot replaces the log of its replica (rule `log-snapshot-replaces`).
//! - `bounds`: memory and queues.
//! - `catch_up`: nobody is resynced whom the log could serve.
//! - `heartbeats`: load delays no heartbeat and deposes no leader.
//! - `memory`: memory by account, at every step.
//!
//! [`Checks`] observes the disks and the pods. It keeps the first violation, which ends the run.
//! `sim/replicas.rs` compares all replicas at the end.

pub mod bounds;
pub mod catalog;
mod catch_up;
mod content;
mod heartbeats;
pub mod history;
mod leases;
mod ledger;
pub mod memory;
mod raft;
mod ring;
mod seen;
mod sessions;
pub mod slots;
mod what_if;
mod wrong;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use ::raft::eraftpb::MessageType;
use bytes::Bytes;

use crate::io::driver::Token;
use crate::limits::Budgets;
use crate::log::Append;
use crate::replica::messages::{Input, Output, ReadMode, ResyncReason, Start};
use crate::sim::checks::catch_up::CatchUp;
use crate::sim::checks::content::Content;
use crate::sim::checks::heartbeats::Heartbeats;
use crate::sim::checks::leases::LeaseChecks;
use crate::sim::checks::ledger::{Ledger, entries_of};
use crate::sim::checks::raft::RaftChecks;
use crate::sim::checks::ring::{RingChecks, superblock_of};
pub use crate::sim::checks::seen::Seen;
use crate::sim::checks::sessions::SessionChecks;
use crate::sim::checks::wrong::{Checked, Wrong, check};
use crate::sim::disk::{DiskObserver, FileEvent, SimDisk};
use crate::sim::names::{DiskNumber, Host, Moment};
use crate::store::index::IndexStore;
use crate::store::index::memory::MemoryIndex;
use crate::store::lane::Space;
use crate::store::messages::{IndexEdit, IndexJob, LaneFile, MemberRecord, Slot};
use crate::store::superblock::Superblock;
use crate::store::wal::format::{Batch, FormatError, Keys, decode, decode_fixed};
use crate::types::{
    AttachmentId, EXTENT_BYTES, Generation, MemberId, Mono, ShardId, ShardOp, Uuid,
};
use crate::view::ClusterView;
use crate::worker::Backlog;

/// The changes that take effect when a flush of an index ends.
pub struct Flushed {
    /// Members, and index and term of the entry up to which their index is complete.
    reached: Vec<(MemberId, u64, u64)>,
    gone: Vec<Gone>,
}

/// A member whose log no longer counts.
enum Gone {
    Destroyed(MemberId),
    Lost(MemberId),
}

/// See the module.
#[derive(Default)]
pub struct Checks {
    ledger: Ledger,
    raft: RaftChecks,
    leases: LeaseChecks,
    sessions: SessionChecks,
    content: Content,
    rings: RingChecks,
    catch_up: CatchUp,
    heartbeats: Heartbeats,
    keys: BTreeMap<DiskNumber, Keys>,
    /// All members that were ever on a disk.
    members: BTreeMap<Uuid, BTreeSet<MemberId>>,
    resyncing: BTreeSet<MemberId>,
    /// Records that the next flush makes durable, and records that end a resync.
    moved: Vec<MemberRecord>,
    resynced: Vec<MemberRecord>,
    gone: Vec<Gone>,
    /// The disk that may lose data by itself. Checks of durability spare it.
    bad_disk: Option<DiskNumber>,
    /// Followers get entries from the logs of their leaders, as long as they are there.
    expects_ring: bool,
    expects_nothing: bool,
    /// Ticks that members got.
    ticks: u64,
    wrong: Option<Wrong>,
    /// Moments of ambushes, and their pods. The run takes them.
    pub moments: Vec<(Moment, Host)>,
    pub seen: Seen,
}

impl Checks {
    /// Names the disk that may lose data.
    pub fn distrust(&mut self, disk: DiskNumber) {
        self.bad_disk = Some(disk);
    }

    /// Sets the read mode of members, and whether clocks keep to their bound.
    pub fn expect(&mut self, reads: ReadMode, clocks_are_good: bool) {
        self.leases.expect(reads, clocks_are_good);
    }

    /// Ignores all violations from now on.
    pub fn expect_nothing(&mut self) {
        self.expects_nothing = true;
    }

    /// Expects that nobody is resynced whom a log could serve.
    pub fn expect_ring(&mut self) {
        self.expects_ring = true;
    }

    /// From now on no heartbeat takes longer than this; `None`: anything may happen.
    pub fn expect_heartbeats(&mut self, within: Option<Duration>) {
        self.heartbeats.expect(within);
    }

    /// The ticks that members got since the last call.
    pub fn take_ticks(&mut self) -> u64 {
        std::mem::take(&mut self.ticks)
    }

    /// The accounts of a lane's memory.
    pub fn memory(&mut self, space: &Space) {
        self.note(memory::of_lane(space));
    }

    /// A disk cannot be opened: a violation.
    pub fn unusable(&mut self, disk: DiskNumber, error: &dyn std::error::Error) {
        let mut what = format!("disk {disk} cannot be opened: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            what += &format!(": {error}");
            cause = error.source();
        }
        self.note(Err(what));
    }

    /// A pod has given up a disk; `failures`: the number of its failed operations.
    pub fn given_up(&mut self, disk: DiskNumber, failures: u64, why: &str) {
        if self.bad_disk != Some(disk) {
            let text = || format!("disk {disk} is given up, and nothing had failed: {why}");
            self.note(check(failures > 0, text));
        }
    }

    /// The first violation.
    pub fn wrong(&self) -> Option<&Wrong> {
        self.wrong.as_ref().filter(|_| !self.expects_nothing)
    }

    fn note(&mut self, checked: Checked) {
        if let (Err(wrong), None) = (checked, &self.wrong) {
            self.wrong = Some(wrong);
        }
    }

    /// Takes over a newer view of the cluster.
    pub fn learn(&mut self, view: &ClusterView) {
        self.sessions.learn(view);
        if self.raft.learn(view) {
            let shards = view.volumes.iter().flat_map(|volume| &volume.shards);
            for member in shards.flat_map(|shard| &shard.members) {
                self.members.entry(member.disk).or_default().insert(member.member);
            }
        }
    }

    /// Clients may use a shard by which its volume has grown (rule `size-after-new-shards`).
    pub fn grown(&mut self, shard: ShardId, newest: Generation) {
        let (is_led, generation) = (self.raft.was_led(shard), self.sessions.generation(shard));
        let checked = check(is_led && generation >= newest, || {
            format!(
                "clients may use {shard:?}: led {is_led}, at {generation:?} of {newest:?} of the \
                 access set"
            )
        });
        self.note(checked);
    }

    /// The access set of a shard, as of all applied entries: its generation, and its attachments.
    pub fn generation(&self, shard: ShardId) -> Generation {
        self.sessions.generation(shard)
    }

    pub fn admitted(&self, shard: ShardId) -> Vec<AttachmentId> {
        self.sessions.admitted(shard)
    }

    /// Somebody else has found a violation.
    pub fn found(&mut self, what: Wrong) {
        self.note(Err(what));
    }

    /// A member's record is committed to the index. True: it clears the resyncing flag.
    fn note_resyncing_flag(&mut self, record: &MemberRecord) -> bool {
        match record.resyncing {
            true => {
                self.resyncing.insert(record.member);
                false
            }
            false => self.resyncing.remove(&record.member),
        }
    }

    /// A member gets an input.
    pub fn input(&mut self, member: MemberId, input: &Input, now: Mono) {
        self.ticks += u64::from(matches!(input, Input::Tick));
        self.leases.input(member, input, now);
        let in_time = self.heartbeats.input(member, input, now);
        self.note(in_time);
        let needed = self.catch_up.judge(now);
        self.note(needed);
        let Some(shard) = self.raft.shard_of(member) else { return };
        let fits = self.sessions.input(shard, member, input);
        self.note(fits);
        let read = match input {
            Input::Client { req, op: ShardOp::Read { .. } | ShardOp::Status { .. }, .. } => *req,
            Input::Barrier { req } => *req,
            _ => return,
        };
        self.raft.asked(shard, member, read);
        self.leases.asked(member, read, self.raft.newest_led(shard));
    }

    /// A member of this pod gives an output.
    pub fn output(&mut self, host: Host, member: MemberId, output: &Output, now: Mono) {
        let checked = self.asks(host, member, output, now);
        self.seen.terms = self.raft.terms();
        self.seen.replaced = self.ledger.replaced;
        self.note(checked);
    }

    fn asks(&mut self, host: Host, member: MemberId, output: &Output, now: Mono) -> Checked {
        let Some(shard) = self.raft.shard_of(member) else { return Ok(()) };
        match output {
            Output::Send(message) => {
                if message.get_msg_type() == MessageType::MsgTimeoutNow {
                    self.moments.push((Moment::HandedOver, host));
                }
                self.raft.sends(&self.ledger, member, message)?;
                self.heartbeats.sends(shard, message, now)?;
                if message.get_msg_type() == MessageType::MsgHeartbeat {
                    self.heartbeats.beats(member, self.raft.voters_of(shard), now)?;
                }
                self.leases.sends(member, message, now)
            }
            Output::Apply(applied) => {
                if self.raft.applies(&self.ledger, shard, member, applied)? {
                    self.content.applies(shard, applied);
                    self.sessions.applies(shard, applied)?;
                }
                Ok(())
            }
            Output::Append(Append { reset: Some(reset), .. }) => {
                self.moments.push((Moment::LogReplaced, host));
                self.raft.is_at(member, reset.index);
                Ok(())
            }
            Output::Read { req, .. } | Output::Barrier { req } => {
                self.raft.reads(member, *req)?;
                self.leases.reads(member, *req, self.raft.voters(shard))?;
                self.sessions.answers(member, *req, Ok(()))
            }
            Output::Reply { req, result } => {
                self.sessions.answers(member, *req, result.as_ref().map(drop))
            }
            Output::Role(role) => {
                if role.leader == Some(member) && !role.serving {
                    self.moments.push((Moment::Elected, host));
                }
                self.leases.role(member, *role);
                self.sessions.role(member, *role);
                let terms = self.raft.terms();
                self.raft.role(shard, *role)?;
                match self.raft.terms() > terms {
                    true => self.heartbeats.elected(shard, *role),
                    false => Ok(()),
                }
            }
            Output::NeedsResync { member: follower, reason: ResyncReason::BehindLog }
                if self.expects_ring && !self.resyncing.contains(follower) =>
            {
                self.catch_up.resyncs(&self.ledger, member, *follower, now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A pod has opened a disk and recovered these members.
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
        self.catch_up.opened(disk, superblock);
        self.seen.recoveries += u64::from(!members.is_empty());
        // Edits that were not flushed may have become durable before the pod died.
        for member in index.tombstones().expect("a simulated index answers") {
            self.ledger.destroyed(member);
        }
        for (record, start) in members {
            self.seen.faulted += u64::from(start.faulted);
            self.note_resyncing_flag(record);
            self.leases.started(record.member);
            let found = self.ledger.recovered(record.member, start);
            self.note(found);
            if !record.resyncing {
                let applied = self.raft.reached(record.member);
                self.note(self.content.holds(index, record, applied));
            }
            self.raft.is_at(record.member, start.applied_index);
        }
        self.note(slots::owned(index).map(drop));
    }

    /// A pod hands a write of its log to the disk.
    fn log_write_begins(&mut self, disk: &SimDisk, token: Token, bufs: &[Bytes]) {
        let number = disk.number;
        let Some(keys) = self.keys.get(&number) else { return };
        let batch = match batch_of(keys, bufs) {
            Ok(batch) => batch,
            Err(error) => return self.note(Err(format!("disk {number} logs: {error}"))),
        };
        let trusted = self.bad_disk != Some(number);
        if trusted {
            self.note(slots::named_by_log(&batch, &disk.data));
        }
        let fits = self.rings.begins(number, &batch, trusted);
        self.note(fits);
        self.catch_up.begins(number, &batch);
        self.ledger.begins(number, token, batch);
    }

    /// A write of a log is durable.
    fn log_write_ends(&mut self, disk: &SimDisk, token: Token) {
        let number = disk.number;
        let (batches, checked) = self.ledger.ends(number, token);
        self.note(checked);
        for batch in batches {
            self.rings.marked(number, batch.header.durable_seq);
            self.seen.batch(&batch);
            self.seen.laps += u64::from(batch.header.offset == 0);
            let checked = self.logged(&batch);
            self.note(checked);
            if self.bad_disk != Some(number) {
                self.note(what_if::log_snapshots_are_enough(&batch, disk));
            }
        }
    }

    fn logged(&mut self, batch: &Batch) -> Checked {
        for (member, entry) in batch.items.iter().flat_map(entries_of) {
            let Some(shard) = self.raft.shard_of(member) else { continue };
            if self.raft.logged(shard, member, entry)? {
                self.sessions.logged(shard, entry);
            }
        }
        Ok(())
    }

    /// The queues and memory that a pod uses now.
    pub fn load(&mut self, load: &Backlog, budgets: &Budgets, connections: usize) {
        self.note(bounds::within(load, budgets, connections));
    }

    /// Ranges of a disk's log that must not rot; see [`RingChecks::unmarked`].
    pub fn unmarked(&self, disk: DiskNumber) -> Vec<Range<u64>> {
        self.rings.unmarked(disk)
    }

    /// The durable superblock has changed.
    fn superblock_written(&mut self, disk: &SimDisk) {
        if let Some(superblock) = superblock_of(&disk.superblock) {
            self.rings.superblock(disk.number, &superblock);
            self.catch_up.superblock(disk.number, &superblock);
        }
    }

    /// A pod hands a job to the index of a disk.
    pub fn index_job(&mut self, disk: &SimDisk, job: &IndexJob, index: &mut MemoryIndex) {
        let IndexJob::Commit { edits, flush } = job else { return };
        if self.bad_disk != Some(disk.number) {
            self.note(slots::named_by_index(edits, &disk.data));
        }
        // The extents of a resync were committed elsewhere.
        let committed = |member: MemberId| match self.resyncing.contains(&member) {
            true => u64::MAX,
            false => self.ledger.committed(member),
        };
        let covered = slots::covered(edits, committed);
        self.note(covered);
        let resyncs = |member: MemberId| self.resyncing.contains(&member);
        let older = slots::never_older(edits, resyncs, index);
        self.note(older);
        for edit in edits {
            match edit {
                // Extents of a resync may be ahead of the log; they are checked at its end.
                IndexEdit::Put(key, record) if !self.resyncing.contains(&key.member) => {
                    let shard = self.raft.shard_of(key.member);
                    let reached = self.raft.reached(key.member);
                    let says = |shard| self.content.says(shard, *key, record, reached);
                    self.note(shard.map_or(Ok(()), says));
                }
                IndexEdit::PutMember(record) => {
                    let text =
                        || format!("{:?}, which was destroyed, is there again", record.member);
                    self.note(check(!self.ledger.is_destroyed(record.member), text));
                    let was_resyncing = self.resyncing.contains(&record.member);
                    let is_resynced = self.note_resyncing_flag(record);
                    let moment = match (was_resyncing, record.resyncing) {
                        (false, true) => Some(Moment::ResyncBegun),
                        (true, true) => Some(Moment::ResyncCopied),
                        (true, false) => Some(Moment::ResyncEnded),
                        (false, false) => None,
                    };
                    self.moments.extend(moment.map(|moment| (moment, disk.host)));
                    if *flush && is_resynced {
                        self.resynced.push(record.clone());
                    } else if *flush && !record.resyncing {
                        self.moved.push(record.clone());
                    }
                }
                IndexEdit::Destroy(member) => {
                    self.moments.push((Moment::Destroyed, disk.host));
                    self.gone.push(Gone::Destroyed(*member));
                }
                IndexEdit::Fault(member) => self.gone.push(Gone::Lost(*member)),
                _ => {}
            }
        }
    }

    /// A flush of a disk's index begins, with everything committed so far. Returns the changes that
    /// take effect at its end.
    pub fn index_flushes(&mut self, index: &mut MemoryIndex) -> Flushed {
        for record in std::mem::take(&mut self.moved) {
            let reached = self.raft.reached(record.member);
            let checked = self.content.holds(index, &record, reached);
            self.note(checked);
        }
        for record in std::mem::take(&mut self.resynced) {
            let checked = self.is_resynced(index, &record);
            self.note(checked);
        }
        let records = index.members().expect("a simulated index answers");
        let reached =
            records.iter().map(|of| (of.member, of.flushed_index, of.flushed_term)).collect();
        Flushed { reached, gone: std::mem::take(&mut self.gone) }
    }

    /// The flush has ended; the changes of `flushed` are durable.
    pub fn index_flushed(&mut self, flushed: Flushed) {
        self.seen.flushes += 1;
        for (member, index, term) in flushed.reached {
            self.ledger.flushed(member, index, term);
        }
        for gone in flushed.gone {
            match gone {
                Gone::Destroyed(member) => self.ledger.destroyed(member),
                // No later start uses its log.
                Gone::Lost(member) => self.ledger.lost(member),
            }
        }
    }

    /// Checks the end of a resync: nothing is missing, and the log reaches the newest change of any
    /// extent.
    fn is_resynced(&self, index: &mut MemoryIndex, record: &MemberRecord) -> Checked {
        let member = record.member;
        let (reflects, applied) = (Content::reflects(index, record), self.raft.applied(member));
        self.content.holds(index, record, self.raft.reached(member))?;
        check(applied >= reflects, || {
            format!("the resync of {member:?} ends at {applied}, and an extent is as of {reflects}")
        })
    }

    /// A pod hands a write of data to the disk.
    fn data_write_begins(&mut self, disk: DiskNumber, offset: u64) {
        let slot = Slot((offset / EXTENT_BYTES as u64) as u32);
        let members = self.keys.get(&disk).and_then(|keys| self.members.get(&keys.disk));
        let named = members.and_then(|members| self.ledger.names(members, slot));
        if let Some((member, index)) = named {
            let text = "is written, and the log still names it";
            self.note(Err(format!("disk {disk}: {slot:?} {text}: {member:?}, entry {index}")));
        }
    }
}

impl DiskObserver for Checks {
    fn observe(&mut self, disk: &SimDisk, file: LaneFile, event: FileEvent<'_>) {
        match (file, event) {
            (LaneFile::Wal, FileEvent::WriteBegins { token, bufs, .. }) => {
                self.log_write_begins(disk, token, bufs);
            }
            (LaneFile::Wal, FileEvent::WriteEnds { token, is_durable: true }) => {
                self.log_write_ends(disk, token);
            }
            (LaneFile::Data, FileEvent::WriteBegins { offset, .. }) => {
                self.data_write_begins(disk.number, offset);
            }
            (LaneFile::Superblock, FileEvent::WriteEnds { .. } | FileEvent::SyncEnds) => {
                self.superblock_written(disk);
            }
            _ => {}
        }
    }
}

/// Decodes a log write. Its header is in the first buffer, or in all of them.
fn batch_of(keys: &Keys, bufs: &[Bytes]) -> Result<Batch, FormatError> {
    let header = decode_fixed(keys, &bufs[0])?;
    let pages = match &bufs[0] {
        first if first.len() >= header.header_bytes() => first.clone(),
        _ => Bytes::from(bufs.concat()),
    };
    decode(keys, &header, &pages[..header.header_bytes()])
}
