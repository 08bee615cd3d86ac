//! Opens a lane: reads superblock, index and log, replays the log items of each member, and
//! rebuilds the allocator from the index. Raises the incarnation before it writes to the log (rule
//! `incarnation-per-open`). The recovery of the log is in [`crate::store::wal`].

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::level::Level;
use crate::limits::LISTING_EXTENTS_MAX;
use crate::log::{Bypass, LogEntry};
use crate::planted::planted;
use crate::store::OpenError;
use crate::store::admission::Admission;
use crate::store::alloc::{Allocator, SlotConflict, slots_at_most};
use crate::store::bypass::WalBypass;
use crate::store::checkpoint::Checkpoint;
use crate::store::core::{Clock, Core, LaneConfig};
use crate::store::data_files::DataFiles;
use crate::store::effects::Io;
use crate::store::index::IndexStore;
use crate::store::index::cache::RecordCache;
use crate::store::lane::{Lane, LaneFiles, RecoveredEntry, RecoveredMember};
use crate::store::lane_log::LaneLog;
use crate::store::log_fetch::LogFetches;
use crate::store::member::{LaneMember, Phase, Place, Retained};
use crate::store::members::Members;
use crate::store::messages::{ExtentKey, IndexEdit, LaneFile, MemberRecord, Slot};
use crate::store::overlay::{Overlay, OverlayGauge, PayloadCache};
use crate::store::read::Reads;
use crate::store::read_repair::ReadRepair;
use crate::store::resync::ResyncStore;
use crate::store::superblock::{self, Superblock};
use crate::store::wal::recover::{LogPart, Marks, load_payload, recover};
use crate::store::wal::replay::{FaultReason, Flushed, LoggedEntry, MemberLog, replay};
use crate::store::wal::{BatchSeq, WalConfig};
use crate::store::writeback::WriteBack;
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, EXTENT_BYTES, Extent, MemberId, Mono, Uuid};

/// The recovered log of each member.
type Logs = BTreeMap<MemberId, MemberLog>;

/// The smallest ring with room for the reserve beside ordinary batches.
pub const WAL_BYTES_MIN: u64 = 1 << 20;
/// Bytes that are rewritten at a time.
const REWRITE_BYTES: u64 = 1 << 20;

/// Properties of a new disk.
#[derive(Clone, Copy, Debug)]
pub struct LaneFormat {
    pub cluster: Uuid,
    pub disk: Uuid,
    /// A secret random number.
    pub seed: u64,
    /// Size of the log's ring, a multiple of 4 KiB, at least [`WAL_BYTES_MIN`].
    pub wal_bytes: u64,
    pub data_bytes_max: u64,
    /// Size of a data file, a multiple of the size of a slot; 0: all data is in one file.
    pub data_file_bytes: u64,
}

/// Writes a new disk's superblock. The log's file was written over once; the index is empty.
pub fn format_lane(files: &mut dyn LaneFiles, format: &LaneFormat) -> Result<(), OpenError> {
    check_ring(format.wal_bytes)?;
    let has_several = data_files_of(format.data_bytes_max, format.data_file_bytes)?.count() > 1;
    let superblock = Superblock {
        sequence: 1,
        cluster: format.cluster,
        disk: format.disk,
        incarnation: 0,
        lanes: 1,
        level: Level::default(),
        features: if has_several { superblock::FEATURE_DATA_FILES } else { 0 },
        seed: format.seed,
        wal_bytes: format.wal_bytes,
        data_bytes_max: format.data_bytes_max,
        data_file_bytes: format.data_file_bytes,
        tail_seq: 1,
        tail_offset: 0,
        durable_seq: 0,
    };
    write_superblock(files, &superblock)
}

/// The data files of a disk.
pub fn data_files(superblock: &Superblock) -> Result<DataFiles, OpenError> {
    data_files_of(superblock.data_bytes_max, superblock.data_file_bytes)
}

fn data_files_of(data_bytes: u64, file_bytes: u64) -> Result<DataFiles, OpenError> {
    DataFiles::new(data_bytes, file_bytes).ok_or(OpenError::Unusable(
        "the size of a data file is not a multiple of 64 KiB: the superblock is damaged",
    ))
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

/// Makes all copies equal, one after the other (rule `superblock-copies-settled`). After power
/// failures, copies may have three versions; an update could overwrite one that the newest needs.
fn settle_superblock(files: &mut dyn LaneFiles, superblock: &Superblock) -> Result<(), OpenError> {
    for (number, copy) in superblock::encode(superblock).iter().enumerate() {
        files.write(LaneFile::Superblock, (number * BLOCK_BYTES) as u64, copy)?;
    }
    Ok(())
}

/// The superblock of a disk, for commands that only identify it.
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

/// The checked content of the index.
struct Found {
    members: Members,
    alloc: Allocator,
    overlay_bytes: OverlayGauge,
    faulted: Vec<MemberId>,
    tombstones: Vec<MemberId>,
}

impl Lane {
    /// Opens the lane of a formatted disk, and raises its incarnation. Blocks. A member serves
    /// nothing before its entries up to `hard.commit` are applied.
    pub fn open(
        config: LaneConfig,
        pool: Pool,
        files: &mut dyn LaneFiles,
        index: &mut dyn IndexStore,
    ) -> Result<(Lane, Vec<RecoveredMember>), OpenError> {
        let mut superblock = read_superblock(files)?;
        config.levels.admit(superblock.level.max(config.levels.cluster))?;
        check_ring(superblock.wal_bytes)?;
        if files.size_bytes(LaneFile::Wal)? < superblock.wal_bytes {
            return Err(OpenError::Unusable("the log's file is shorter than the superblock says"));
        }
        let mut found = read_index(&config, &superblock, index)?;
        if !planted!(SuperblockNotSettled) {
            settle_superblock(files, &superblock)?;
        }
        let last_open = superblock.incarnation;
        superblock.incarnation += 1;
        superblock.level = superblock.level.max(config.levels.cluster);
        let wal_config = wal_config(&superblock);
        let marks = Marks {
            last_open,
            tail_seq: BatchSeq(superblock.tail_seq),
            tail_offset: superblock.tail_offset,
            durable_seq: BatchSeq(superblock.durable_seq),
        };
        let read = &mut |offset, len| files.read(LaneFile::Wal, offset, len);
        let recovered = recover(&wal_config, &marks, read)?;
        let position = recovered.position;
        let mut logs = found.replay(recovered.log)?;
        superblock.sequence += 1;
        superblock.tail_seq = position.tail_seq.0;
        superblock.tail_offset = position.tail_offset;
        superblock.durable_seq = superblock.durable_seq.max(position.durable_mark.0);
        if config.bypass_bytes_min != usize::MAX {
            superblock.features |= superblock::FEATURE_BYPASS;
        }
        write_superblock(files, &superblock)?;
        confirm(recovered.unconfirmed, files)?;
        found.check_bypasses(&mut logs, &pool, files);
        found.take_bypasses(&mut logs, index)?;
        mark_faults(index, &logs, &mut found.faulted)?;
        let faulted = std::mem::take(&mut found.faulted);
        let mut core = found.into_core(config, pool, LaneLog::new(wal_config, position));
        let members = take_logs(&mut core, logs, &faulted, files)?;
        let lane = Lane {
            core,
            admission: Admission::default(),
            bypass: WalBypass::default(),
            reads: Reads::default(),
            repair: ReadRepair::default(),
            writeback: WriteBack::default(),
            resync: ResyncStore::default(),
            checkpoint: Checkpoint::new(superblock),
            fetches: LogFetches::default(),
        };
        Ok((lane, members))
    }
}

/// Writes again what no durable mark covers: it may be in the device's cache only.
fn confirm(unconfirmed: Vec<Range<u64>>, files: &mut dyn LaneFiles) -> Result<(), OpenError> {
    for range in unconfirmed {
        if planted!(FoundNotConfirmed) {
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
    Ok(())
}

/// Gives every member its log, and returns the entries that the caller replays.
fn take_logs(
    core: &mut Core,
    mut logs: Logs,
    faulted: &[MemberId],
    files: &mut dyn LaneFiles,
) -> Result<Vec<RecoveredMember>, OpenError> {
    let mut tail_bytes = core.config.log_tail_bytes as u64;
    let mut out = Vec::with_capacity(core.members.len());
    let ids: Vec<MemberId> = core.members.iter().map(|(id, _)| *id).collect();
    for id in ids {
        let member = core.members.get_mut(&id).expect("just listed");
        let mut log = logs.remove(&id).unwrap_or_default();
        let is_faulted = faulted.contains(&id);
        if is_faulted {
            log.entries.clear();
        }
        let hard = &mut member.hard;
        hard.newest = log.hard;
        if !planted!(CommitBelowFlushed) {
            hard.newest.commit = log.hard.commit.max(member.record.flushed_index);
        }
        hard.durable_commit = hard.newest.commit;
        // Nothing in the log of a faulted member may hold the tail.
        hard.durable_seq = log.hard_seq.filter(|_| !is_faulted);
        let (data_files, pool) = (core.alloc.files, &core.pool);
        let entries = load_entries(member, log.entries, &mut tail_bytes, data_files, pool, files)?;
        let mut recovered = Vec::with_capacity(entries.len());
        for (logged, payload) in entries {
            core.alloc.reserve(u64::from(slots_at_most(logged.entry.payload_bytes)));
            core.log.unapplied_bytes += u64::from(logged.entry.payload_bytes);
            recovered.push(retain(member, logged, payload));
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

/// Reads the unapplied payloads, and the newest applied ones, `tail_bytes` in all.
fn load_entries(
    member: &LaneMember,
    logged: Vec<LoggedEntry>,
    tail_bytes: &mut u64,
    data_files: DataFiles,
    pool: &Pool,
    files: &mut dyn LaneFiles,
) -> Result<Vec<(LoggedEntry, Option<Bytes>)>, OpenError> {
    let commit = member.hard.newest.commit;
    let mut entries = Vec::with_capacity(logged.len());
    for logged in logged.into_iter().rev() {
        let bytes = u64::from(logged.entry.data_bytes());
        let is_applied = logged.entry.index <= commit;
        let mut payload = None;
        if is_applied && bytes > *tail_bytes {
            // It stays on the disk.
        } else if let Some(bypass) = &logged.entry.bypass {
            // A read will find an applied payload that is bad.
            payload = load_bypassed(member, bypass, data_files, pool, files);
            if payload.is_none() && !is_applied {
                return Err(OpenError::Unusable("a payload was lost at the open: check the disk"));
            }
        } else {
            let read = &mut |offset, len| files.read(LaneFile::Wal, offset, len);
            payload = Some(load_payload(&logged.entry, read)?);
        }
        if is_applied {
            *tail_bytes = if payload.is_some() { *tail_bytes - bytes } else { 0 };
        }
        entries.push((logged, payload));
    }
    entries.reverse();
    Ok(entries)
}

/// Adds a recovered entry to the retained log of a member.
fn retain(member: &mut LaneMember, logged: LoggedEntry, payload: Option<Bytes>) -> RecoveredEntry {
    let found = logged.entry;
    let loaded = payload.is_some();
    let entry = LogEntry {
        bypass: None,
        index: found.index,
        term: found.term,
        kind: found.kind,
        context: found.context.clone(),
        payload: payload.unwrap_or_default(),
    };
    // A log snapshot names the slots of a bypassed entry, without its payload.
    let in_log_snapshot = || match found.bypass.clone() {
        None => entry.clone(),
        bypass => LogEntry { bypass, payload: Bytes::new(), ..entry.clone() },
    };
    let (payload_bytes, in_log) = (found.data_bytes(), found.payload_bytes);
    member.log.push(Retained {
        term: entry.term,
        push: 0,
        place: Some(Place { seq: logged.seq, payload_offset: found.payload_offset }),
        payload_bytes,
        unapplied_bytes: in_log,
        reserved: slots_at_most(in_log),
        slots: found.bypass.as_ref().map(|bypass| bypass.slots()),
        unapplied: loaded.then(|| Box::new(in_log_snapshot())),
    });
    RecoveredEntry { entry, payload_bytes, loaded }
}

impl Found {
    fn into_core(self, config: LaneConfig, pool: Pool, log: LaneLog) -> Core {
        Core {
            records: RecordCache::new(config.index_cache_bytes),
            payloads: PayloadCache::new(config.dirty_cache_bytes),
            overlay_bytes: self.overlay_bytes,
            unapplied_zeroes: 0,
            giving_back: 0,
            settled_extents: 0,
            hope: Mono::default(),
            config,
            pool,
            members: self.members,
            tombstones: self.tombstones.into_iter().collect(),
            alloc: self.alloc,
            log,
            new: Vec::new(),
            dirty: Default::default(),
            unflushed: false,
            stale: false,
            io: Io::default(),
            clock: Clock::default(),
        }
    }

    /// The log of each member, from its flushed position on.
    fn replay(&self, log: Vec<LogPart>) -> Result<Logs, OpenError> {
        let flushed = self.members.iter().map(|(id, LaneMember { record, .. })| {
            (*id, Flushed { index: record.flushed_index, term: record.flushed_term })
        });
        let logs = replay(log, &flushed.collect(), &self.tombstones);
        if logs.keys().any(|id| !self.members.contains_key(id)) {
            return Err(OpenError::Unusable(
                "the log holds a member that the index does not know: the index was lost",
            ));
        }
        Ok(logs)
    }

    /// Takes the slots that the logs name. Faults a member whose log names another owner's slot.
    fn take_bypasses(
        &mut self,
        logs: &mut Logs,
        index: &mut dyn IndexStore,
    ) -> Result<(), OpenError> {
        for (id, log) in logs {
            // The log of a faulted member keeps no slots.
            if log.faulted.is_none()
                && !self.faulted.contains(id)
                && let Err(reason) = take_named(&mut self.alloc, *id, log, index)?
            {
                log.faulted = Some(reason);
            }
        }
        Ok(())
    }

    /// Faults members that lost a promised payload: bypassed, and not applied yet.
    fn check_bypasses(&self, logs: &mut Logs, pool: &Pool, files: &mut dyn LaneFiles) {
        for (id, log) in logs {
            let Some(member) = self.members.get(id) else { continue };
            let commit = log.hard.commit.max(member.record.flushed_index);
            let unapplied = log.entries.iter().filter(|logged| logged.entry.index > commit);
            let damaged = unapplied.filter_map(|logged| {
                let bypass = logged.entry.bypass.as_ref()?;
                let found = load_bypassed(member, bypass, self.alloc.files, pool, files);
                found.is_none().then_some(logged.entry.index)
            });
            if let (None, Some(index)) = (log.faulted, { damaged }.next()) {
                log.faulted = Some(FaultReason::PayloadDamaged(index));
            }
        }
    }
}

/// The configuration of a disk's log.
pub(crate) fn wal_config(superblock: &Superblock) -> WalConfig {
    WalConfig {
        ring_bytes: superblock.wal_bytes,
        disk: superblock.disk,
        seed: superblock.seed,
        incarnation: superblock.incarnation,
        // Room for one log snapshot of the largest size, wherever the end of the file is.
        reserve_bytes: superblock.wal_bytes / 4,
    }
}

/// Makes these members' faults durable, before the log forgets their reason.
fn mark_faults(
    index: &mut dyn IndexStore,
    logs: &Logs,
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
        members: Members::default(),
        alloc: Allocator::new(slots, data_files(superblock)?),
        overlay_bytes: OverlayGauge::default(),
        faulted: index.faulted()?,
        tombstones,
    };
    for record in index.members()? {
        let member = read_member(record, &found.overlay_bytes, &mut found.alloc, index)?;
        found.members.insert(member.id(), member);
    }
    Ok(found)
}

/// Reads a member's extents: slots, presence map, and records newer than `flushed`.
fn read_member(
    record: MemberRecord,
    gauge: &OverlayGauge,
    alloc: &mut Allocator,
    index: &mut dyn IndexStore,
) -> Result<LaneMember, OpenError> {
    let extents = record.blocks.div_ceil(BLOCKS_PER_EXTENT);
    let mut member = LaneMember::new(record, Overlay::counted(gauge), Phase::Live);
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

/// Takes the slots that the entries of a member name. `Err`: an entry names another owner's slot.
fn take_named(
    alloc: &mut Allocator,
    id: MemberId,
    log: &MemberLog,
    index: &mut dyn IndexStore,
) -> Result<Result<(), FaultReason>, OpenError> {
    let mut taken = Vec::new();
    for logged in &log.entries {
        let Some(bypass) = &logged.entry.bypass else { continue };
        for (extent, slot) in (bypass.first.0..).map(Extent).zip(bypass.slots()) {
            let named = match alloc.occupy_named(slot) {
                Err(SlotConflict::OwnedTwice) => {
                    let key = ExtentKey::new(id, extent);
                    let record = index.get(&[key])?.pop().flatten();
                    // The entry was written back before the stop.
                    match record.is_some_and(|record| record.slot == slot) {
                        true => alloc.name_adopted(slot),
                        false => Err(SlotConflict::OwnedTwice),
                    }
                }
                other => other,
            };
            match named {
                Ok(()) => taken.push(slot),
                Err(SlotConflict::OutOfRange) => {
                    return Err(OpenError::Unusable(
                        "the log names a slot beyond the end of the data file",
                    ));
                }
                Err(SlotConflict::OwnedTwice) => {
                    taken.into_iter().for_each(|slot| alloc.release_named(slot));
                    return Ok(Err(FaultReason::SlotConflict(logged.entry.index)));
                }
            }
        }
    }
    Ok(Ok(()))
}

/// The payload of a bypassed entry, if all its blocks pass their checksums.
fn load_bypassed(
    member: &LaneMember,
    bypass: &Bypass,
    data_files: DataFiles,
    pool: &Pool,
    files: &mut dyn LaneFiles,
) -> Option<Bytes> {
    let slots = bypass.slots();
    let mut payload = pool.take(slots.len() * EXTENT_BYTES);
    for (first, run) in data_files.runs(&slots) {
        let len = run * EXTENT_BYTES;
        let bytes = files.read(LaneFile::Data, slots[first].offset(), len).ok()?;
        payload.get_mut(first * EXTENT_BYTES..)?.get_mut(..len)?.copy_from_slice(&bytes);
    }
    let payload = payload.freeze();
    let crcs: Vec<u32> = bypass.slots.iter().flat_map(|slot| slot.crcs).collect();
    let end = bypass.first.0.checked_add(slots.len() as u32)?;
    let inside = end.checked_mul(BLOCKS_PER_EXTENT)? <= member.record.blocks;
    let intact = || member.first_bad(bypass.first.first_block(), &payload, &crcs).is_none();
    (inside && intact()).then_some(payload)
}
