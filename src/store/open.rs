//! Opening a lane: superblock, index and log are read, the members' logs are folded, the allocator
//! is rebuilt from the index, and the incarnation is raised before anything else is written
//! (rule R12). Recovery itself is in [`crate::store::wal`].

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::limits::LISTING_EXTENTS_MAX;
use crate::log::LogEntry;
use crate::planted::{Mistake, planted};
use crate::store::OpenError;
use crate::store::alloc::{Allocator, SlotConflict};
use crate::store::checkpoint::Checkpoint;
use crate::store::effects::Io;
use crate::store::groups::Groups;
use crate::store::index::IndexStore;
use crate::store::index::cache::RecordCache;
use crate::store::lane::{
    Clock, Lane, LaneConfig, LaneFiles, LaneLog, RecoveredEntry, RecoveredMember, slots_at_most,
};
use crate::store::member::{Member, Phase, Place, Retained};
use crate::store::mend::Mends;
use crate::store::overlay::PayloadCache;
use crate::store::redirect::{Redirects, load_redirected};
use crate::store::seam::{IndexEdit, LaneFile, MemberRecord, Slot};
use crate::store::superblock::{self, Superblock};
use crate::store::wal::fold::{FaultReason, Flushed, MemberLog, fold};
use crate::store::wal::recover::{Marks, load_payload, recover};
use crate::store::wal::{BatchSeq, Wal, WalConfig};
use crate::store::writeback::WriteBack;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, Extent, MemberId, Uuid};

/// The smallest ring that leaves room for the reserve beside ordinary batches.
pub const WAL_BYTES_MIN: u64 = 1 << 20;
/// What is rewritten at a time.
const REWRITE_BYTES: u64 = 1 << 20;

/// What a new disk is.
#[derive(Clone, Copy, Debug)]
pub struct LaneFormat {
    pub cluster: Uuid,
    pub disk: Uuid,
    /// A secret random number.
    pub seed: u64,
    /// Size of the log's ring, a multiple of 4 KiB, at least [`WAL_BYTES_MIN`].
    pub wal_bytes: u64,
    pub data_bytes_max: u64,
}

/// Makes the superblock of a new, empty disk. The files exist, the log's is written over once;
/// the index is empty.
pub fn format_lane(files: &mut dyn LaneFiles, format: &LaneFormat) -> Result<(), OpenError> {
    check_ring(format.wal_bytes)?;
    let superblock = Superblock {
        sequence: 1,
        cluster: format.cluster,
        disk: format.disk,
        incarnation: 0,
        lanes: 1,
        features: 0,
        seed: format.seed,
        wal_bytes: format.wal_bytes,
        data_bytes_max: format.data_bytes_max,
        tail_seq: 1,
        tail_offset: 0,
        durable_seq: 0,
    };
    write_superblock(files, &superblock)
}

fn check_ring(wal_bytes: u64) -> Result<(), OpenError> {
    if wal_bytes < WAL_BYTES_MIN || !wal_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(OpenError::Unusable(
            "the size of the log is not a multiple of 4 KiB, or below 1 MiB",
        ));
    }
    Ok(())
}

/// Two copies at a time, so that two always agree.
fn write_superblock(files: &mut dyn LaneFiles, superblock: &Superblock) -> Result<(), OpenError> {
    let copies = superblock::encode(superblock);
    for (half, copies) in copies.chunks_exact(2).enumerate() {
        let offset = (half * 2 * BLOCK_BYTES) as u64;
        files.write(LaneFile::Superblock, offset, &copies.concat())?;
    }
    Ok(())
}

/// Makes all copies the same, one after the other: a power failure may have left copies of three
/// versions, of which the next update would replace one that the newest still needs.
fn settle_superblock(files: &mut dyn LaneFiles, superblock: &Superblock) -> Result<(), OpenError> {
    for (number, copy) in superblock::encode(superblock).iter().enumerate() {
        files.write(LaneFile::Superblock, (number * BLOCK_BYTES) as u64, copy)?;
    }
    Ok(())
}

/// The superblock of a disk, for commands that only want to know what it is.
pub fn read_superblock(files: &mut dyn LaneFiles) -> Result<Superblock, OpenError> {
    let mut copies: [Bytes; superblock::COPIES] = Default::default();
    let mut failure = None;
    for (number, copy) in copies.iter_mut().enumerate() {
        let offset = (number * BLOCK_BYTES) as u64;
        match files.read(LaneFile::Superblock, offset, BLOCK_BYTES) {
            Ok(page) => *copy = page,
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure.filter(|_| copies.iter().all(Bytes::is_empty)) {
        return Err(error.into());
    }
    let pages = copies.each_ref().map(|copy| &copy[..]);
    Ok(superblock::choose(&pages)?)
}

/// What the index says, checked.
struct Found {
    members: BTreeMap<MemberId, Member>,
    alloc: Allocator,
    faulted: Vec<MemberId>,
    tombstones: Vec<MemberId>,
}

impl Lane {
    /// Opens a formatted disk's lane: reads superblock, log and index, raises the incarnation.
    /// Blocks. Nothing is served of a member before its entries up to `hard.commit` are applied.
    pub fn open(
        config: LaneConfig,
        pool: Pool,
        files: &mut dyn LaneFiles,
        index: &mut dyn IndexStore,
    ) -> Result<(Lane, Vec<RecoveredMember>), OpenError> {
        let mut superblock = read_superblock(files)?;
        check_ring(superblock.wal_bytes)?;
        if files.size_bytes(LaneFile::Wal)? < superblock.wal_bytes {
            return Err(OpenError::Unusable("the log's file is shorter than the superblock says"));
        }
        let mut found = read_index(&config, &superblock, index)?;
        if !planted(Mistake::SuperblockNotSettled) {
            settle_superblock(files, &superblock)?;
        }
        superblock.incarnation += 1;
        let wal_config = wal_config(&superblock);
        let marks = Marks {
            tail_seq: BatchSeq(superblock.tail_seq),
            tail_offset: superblock.tail_offset,
            durable_seq: BatchSeq(superblock.durable_seq),
        };
        let read = &mut |offset, len| files.read(LaneFile::Wal, offset, len);
        let recovered = recover(&wal_config, &marks, read)?;
        let position = recovered.position;
        let flushed = found.members.iter().map(|(id, member)| (*id, flushed_of(member)));
        let mut logs = fold(recovered.log, &flushed.collect(), &found.tombstones);
        if logs.keys().any(|id| !found.members.contains_key(id)) {
            return Err(OpenError::Unusable(
                "the log holds a member that the index does not know: the index was lost",
            ));
        }

        superblock.sequence += 1;
        superblock.tail_seq = position.tail_seq.0;
        superblock.tail_offset = position.tail_offset;
        superblock.durable_seq = superblock.durable_seq.max(position.durable_mark.0);
        if config.redirect_bytes_min != usize::MAX {
            superblock.features |= superblock::FEATURE_REDIRECT;
        }
        write_superblock(files, &superblock)?;
        // What no mark calls durable may be in the device's cache only.
        for range in recovered.unconfirmed {
            if planted(Mistake::FoundNotConfirmed) {
                continue;
            }
            let mut offset = range.start;
            while offset < range.end {
                let len = (range.end - offset).min(REWRITE_BYTES);
                let bytes = files.read(LaneFile::Wal, offset, len as usize)?;
                files.write(LaneFile::Wal, offset, &bytes)?;
                offset += len;
            }
        }
        found.check_redirects(&mut logs, &pool, files);

        let log = LaneLog {
            ring_bytes: wal_config.ring_bytes,
            reserve_bytes: wal_config.reserve_bytes,
            wal: Wal::new(wal_config, position),
            groups: Groups::default(),
            pins: BTreeMap::new(),
            unapplied_bytes: 0,
        };
        let mut lane = Lane {
            records: RecordCache::new(config.index_cache_bytes),
            payloads: PayloadCache::new(config.overlay_cache_bytes),
            config,
            pool,
            superblock,
            log,
            members: found.members,
            tombstones: found.tombstones.into_iter().collect(),
            alloc: found.alloc,
            reads: Default::default(),
            scans: Default::default(),
            redirects: Redirects::default(),
            writeback: WriteBack::default(),
            checkpoint: Checkpoint::default(),
            mends: Mends::default(),
            io: Io::default(),
            clock: Clock::default(),
        };
        for (id, log) in &mut logs {
            // Nothing is kept of the log of a member that cannot be trusted.
            if log.faulted.is_none()
                && !found.faulted.contains(id)
                && let Err(reason) = lane.take_named(*id, log, index)?
            {
                log.faulted = Some(reason);
            }
        }
        mark_faults(index, &logs, &mut found.faulted)?;
        let members = lane.take_logs(logs, &found.faulted, files)?;
        Ok((lane, members))
    }

    /// Gives every member its log, and hands out what the caller has to replay.
    fn take_logs(
        &mut self,
        mut logs: BTreeMap<MemberId, MemberLog>,
        faulted: &[MemberId],
        files: &mut dyn LaneFiles,
    ) -> Result<Vec<RecoveredMember>, OpenError> {
        let mut tail_bytes = self.config.log_tail_bytes as u64;
        let mut out = Vec::with_capacity(self.members.len());
        for (id, member) in &mut self.members {
            let mut log = logs.remove(id).unwrap_or_default();
            let is_faulted = faulted.contains(id);
            if is_faulted {
                log.entries.clear();
            }
            let hard = &mut member.hard;
            hard.newest = log.hard;
            if !planted(Mistake::CommitBelowFlushed) {
                hard.newest.commit = log.hard.commit.max(member.record.flushed_index);
            }
            hard.durable_commit = hard.newest.commit;
            // Nothing that a faulted member left in the log may hold the tail.
            hard.durable_seq = log.hard_seq.filter(|_| !is_faulted);
            let commit = hard.newest.commit;
            let mut entries = Vec::with_capacity(log.entries.len());
            for logged in log.entries.into_iter().rev() {
                let bytes = u64::from(logged.entry.data_bytes());
                let mut loaded = logged.entry.index > commit || bytes <= tail_bytes;
                let mut payload = Bytes::new();
                if loaded && let Some(redirect) = &logged.entry.redirect {
                    // What is rotten and applied is for a read to find.
                    let found = load_redirected(member, redirect, &self.pool, files);
                    loaded = found.is_some();
                    if !loaded && logged.entry.index > commit {
                        return Err(OpenError::Unusable("a slot was intact, and then it was not"));
                    }
                    payload = found.unwrap_or_default();
                } else if loaded {
                    let read = &mut |offset, len| files.read(LaneFile::Wal, offset, len);
                    payload = load_payload(&logged.entry, read)?;
                }
                if logged.entry.index <= commit {
                    tail_bytes = if loaded { tail_bytes - bytes } else { 0 };
                }
                entries.push((logged, payload, loaded));
            }
            entries.reverse();
            let mut recovered = Vec::with_capacity(entries.len());
            for (logged, payload, loaded) in entries {
                let found = logged.entry;
                let (data_bytes, in_log) = (found.data_bytes(), found.payload_bytes);
                let slots = found.redirect.as_ref().map(|redirect| redirect.slots());
                // In an image the payload of a redirected entry stays where it is.
                let in_image = |entry: &LogEntry| {
                    let mut entry = entry.clone();
                    if found.redirect.is_some() {
                        (entry.payload, entry.redirect) = (Bytes::new(), found.redirect.clone());
                    }
                    Box::new(entry)
                };
                let entry = LogEntry {
                    redirect: None,
                    index: found.index,
                    term: found.term,
                    kind: found.kind,
                    context: found.context.clone(),
                    payload,
                };
                let reserved = slots_at_most(in_log);
                self.alloc.reserve(u64::from(reserved));
                self.log.unapplied_bytes += u64::from(in_log);
                member.log.push(Retained {
                    term: entry.term,
                    push: 0,
                    place: Some(Place { seq: logged.seq, payload_offset: found.payload_offset }),
                    payload_bytes: data_bytes,
                    unapplied_bytes: in_log,
                    reserved,
                    slots,
                    unapplied: loaded.then(|| in_image(&entry)),
                });
                recovered.push(RecoveredEntry { entry, payload_bytes: data_bytes, loaded });
            }
            out.push(RecoveredMember {
                record: member.record.clone(),
                hard: member.hard.newest,
                entries: recovered,
                faulted: is_faulted,
            });
        }
        Ok(out)
    }
}

impl Found {
    /// Finds the members that lost a payload which they had promised: one in a slot that nobody has
    /// applied.
    fn check_redirects(
        &self,
        logs: &mut BTreeMap<MemberId, MemberLog>,
        pool: &Pool,
        files: &mut dyn LaneFiles,
    ) {
        for (id, log) in logs {
            let Some(member) = self.members.get(id) else { continue };
            let commit = log.hard.commit.max(member.record.flushed_index);
            let unapplied = log.entries.iter().filter(|logged| logged.entry.index > commit);
            let damaged = unapplied.filter_map(|logged| {
                let redirect = logged.entry.redirect.as_ref()?;
                let found = load_redirected(member, redirect, pool, files);
                found.is_none().then_some(logged.entry.index)
            });
            if let (None, Some(index)) = (log.faulted, { damaged }.next()) {
                log.faulted = Some(FaultReason::PayloadDamaged(index));
            }
        }
    }
}

fn flushed_of(member: &Member) -> Flushed {
    Flushed { index: member.record.flushed_index, term: member.record.flushed_term }
}

/// How the log of a disk is written.
pub(crate) fn wal_config(superblock: &Superblock) -> WalConfig {
    WalConfig {
        ring_bytes: superblock.wal_bytes,
        disk: superblock.disk,
        seed: superblock.seed,
        incarnation: superblock.incarnation,
        // Room for one image of the largest allowed size, wherever the end of the file is.
        reserve_bytes: superblock.wal_bytes / 4,
    }
}

/// Makes it durable that these members cannot be trusted, before the log forgets why.
fn mark_faults(
    index: &mut dyn IndexStore,
    logs: &BTreeMap<MemberId, MemberLog>,
    faulted: &mut Vec<MemberId>,
) -> Result<(), OpenError> {
    let new = logs.iter().filter(|(id, log)| log.faulted.is_some() && !faulted.contains(id));
    let new: Vec<MemberId> = new.map(|(id, _)| *id).collect();
    if !new.is_empty() {
        let edits: Vec<IndexEdit> = new.iter().map(|id| IndexEdit::Fault(*id)).collect();
        index.commit(&edits, true)?;
        faulted.extend(new);
    }
    Ok(())
}

fn read_index(
    config: &LaneConfig,
    superblock: &Superblock,
    index: &mut dyn IndexStore,
) -> Result<Found, OpenError> {
    let mut tombstones = index.tombstones()?;
    tombstones.sort_unstable();
    let bytes_max = config.data_bytes_max.min(superblock.data_bytes_max);
    let slots = u32::try_from(bytes_max / EXTENT_BYTES as u64).unwrap_or(u32::MAX);
    let mut found = Found {
        members: BTreeMap::new(),
        alloc: Allocator::new(slots),
        faulted: index.faulted()?,
        tombstones,
    };
    for record in index.members()? {
        let member = read_member(record, &mut found.alloc, index)?;
        found.members.insert(member.id(), member);
    }
    Ok(found)
}

/// Lists a member's extents: its slots, its presence map, and what is newer than `flushed`.
fn read_member(
    record: MemberRecord,
    alloc: &mut Allocator,
    index: &mut dyn IndexStore,
) -> Result<Member, OpenError> {
    let extents = record.blocks.div_ceil(BLOCKS_PER_EXTENT);
    let mut member = Member::new(record, Phase::Live);
    let mut from = Extent(0);
    loop {
        let found = index.scan(member.id(), from, LISTING_EXTENTS_MAX)?;
        for (key, extent) in &found {
            if key.layer != 0 {
                return Err(OpenError::Unusable("the index has layers: start a newer program"));
            }
            if key.extent.0 >= extents {
                return Err(OpenError::Unusable("the index has an extent beyond its shard's end"));
            }
            occupy(alloc, extent.slot)?;
            member.presence.set(key.extent, true);
            if extent.last_changed > member.record.flushed_index {
                member.newer.note(key.extent, extent.last_changed);
            }
        }
        match found.last() {
            Some((key, _)) if found.len() >= LISTING_EXTENTS_MAX => from = Extent(key.extent.0 + 1),
            _ => return Ok(member),
        }
    }
}

fn occupy(alloc: &mut Allocator, slot: Slot) -> Result<(), OpenError> {
    alloc.occupy(slot).map_err(|conflict| {
        OpenError::Unusable(match conflict {
            SlotConflict::OutOfRange => "the index names a slot beyond the end of the data file",
            SlotConflict::OwnedTwice => "the index names a slot twice",
        })
    })
}
