//! Reads entries back from the log, for followers that lag behind what the replica has in memory.
//!
//! Only applied entries are asked for. They are committed, so nothing replaces them (rule
//! `fetched-as-logged`). The header of their batch names them, and everything is checked: batch,
//! index, term, owner and payload. A fetch holds no part of the ring, which goes on by its own
//! needs. So at the end of the reads it looks whether the batches are still intact. What the ring
//! has overwritten meanwhile counts as gone. What fails its checksums in an intact batch is bit
//! rot: it is reported, and counts as gone, too.
//!
//! The payload of an entry that bypassed the log is in slots, which stay as they are as long as the
//! log retains the entry (rule `named-slot-is-immutable`). Later on, the checksums in the header
//! tell whether they have changed.
//!
//! Owns the fetches in flight and those that wait; may borrow the core; hears of ended reads.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits::{LOG_FETCH_BATCHES_MAX, LOG_FETCH_BYTES_MAX, LOG_FETCHES_MAX};
use crate::log::{Bypass, LogEntry, LogGone};
use crate::planted::planted;
use crate::store::core::Core;
use crate::store::effects::{FetchOp, Pending};
use crate::store::member::LaneMember;
use crate::store::messages::{Done, Event, LaneFile};
use crate::store::past::Run;
use crate::store::wal::format::{self, Batch, FoundEntry, FoundItem};
use crate::store::wal::ring::Span;
use crate::types::{BLOCK_BYTES, EXTENT_BYTES, MemberId};

/// Fetches of the entries of a lane's log.
#[derive(Default)]
pub(super) struct LogFetches {
    waiting: VecDeque<Fetch>,
    in_flight: Vec<Fetch>,
    next: u64,
    /// Batches and slots with bytes that failed their checksums, since the start.
    pub media_faults: u64,
}

struct Fetch {
    number: u64,
    member: MemberId,
    /// The entries from `low` on, before `high`.
    low: u64,
    high: u64,
    pieces: Vec<Piece>,
    /// Reads in flight.
    reads: usize,
}

/// Entries of one batch.
struct Piece {
    run: Run,
    span: Span,
    header: Vec<Bytes>,
    /// In the ring, or one part per run of slots.
    payload: Vec<Bytes>,
    /// A read failed.
    failed: bool,
}

/// Why a piece gives no entries.
enum Loss {
    /// The ring has overwritten it.
    Gone,
    /// This entry fails a checksum.
    Rotten(u64),
}

impl LogFetches {
    /// Asks for entries; [`Event::LogFetched`] follows.
    pub(super) fn fetch(&mut self, core: &mut Core, member: MemberId, low: u64, high: u64) {
        self.next += 1;
        let (pieces, number) = (Vec::new(), self.next);
        self.waiting.push_back(Fetch { number, member, low, high, pieces, reads: 0 });
        self.go_on(core);
    }

    /// Starts the oldest fetches that wait, if there is room.
    fn go_on(&mut self, core: &mut Core) {
        while self.in_flight.len() < LOG_FETCHES_MAX
            && let Some(mut fetch) = self.waiting.pop_front()
        {
            fetch.pieces = pieces(core, &fetch);
            if fetch.pieces.is_empty() {
                let gone = gone(core, fetch.member, fetch.low);
                answer(core, &fetch, Err(gone));
                continue;
            }
            issue(core, &mut fetch);
            self.in_flight.push(fetch);
        }
    }

    pub(super) fn complete(&mut self, core: &mut Core, op: FetchOp, done: Done) {
        let FetchOp { number, piece, part, pinned } = op;
        pinned.into_iter().for_each(|slot| core.alloc.unpin(slot));
        let position = self.in_flight.iter().position(|fetch| fetch.number == number);
        let position = position.expect("in flight");
        let fetch = &mut self.in_flight[position];
        fetch.reads -= 1;
        let found = &mut fetch.pieces[piece];
        match (done, part) {
            (Done::Read(bytes), None) => found.header.push(bytes),
            (Done::Read(bytes), Some(part)) => found.payload[part] = bytes,
            (Done::Failed(..), _) => found.failed = true,
            _ => panic!("an effect of a fetch ended as another kind"),
        }
        if part.is_none() && !found.failed {
            fetch.reads += read_rest(core, number, piece, found);
        }
        if fetch.reads == 0 {
            let fetch = self.in_flight.remove(position);
            self.judge(core, fetch);
            self.go_on(core);
        }
    }

    /// All reads came back: gives out the entries up to the first that is lost. The next fetch
    /// meets that one as its first.
    fn judge(&mut self, core: &mut Core, fetch: Fetch) {
        let mut entries = Vec::new();
        let mut pieces = fetch.pieces.iter();
        let loss = pieces.find_map(|piece| take_entries(core, &fetch, piece, &mut entries).err());
        let mut bytes = 0;
        let fits = |entry: &&LogEntry| {
            bytes += entry.payload.len();
            bytes <= LOG_FETCH_BYTES_MAX
        };
        let count = entries.iter().take_while(fits).count().max(1);
        entries.truncate(count);
        if !entries.is_empty() {
            return answer(core, &fetch, Ok(entries));
        }
        let from = match loss {
            Some(Loss::Rotten(index)) => {
                self.media_faults += 1;
                tracing::warn!(member = %fetch.member, index,
                    "the log cannot give back an entry: it fails its checksum; check the disk");
                index
            }
            Some(Loss::Gone) | None => fetch.low,
        };
        let gone = gone(core, fetch.member, from);
        answer(core, &fetch, Err(gone));
    }
}

/// Adds the entries of a piece that were asked for, up to one that is lost.
fn take_entries(
    core: &Core,
    fetch: &Fetch,
    piece: &Piece,
    entries: &mut Vec<LogEntry>,
) -> Result<(), Loss> {
    let member = core.live(fetch.member).ok_or(Loss::Gone)?;
    if core.log.wal.span(piece.span.seq).is_none() && !planted!(FetchedOverwritten) {
        return Err(Loss::Gone);
    }
    let first = piece.run.first.max(fetch.low);
    let rotten = |index| match !piece.run.slots.is_empty() && index <= member.log.base_index() {
        // Write-back was free to change the slots once the log let go of the entry.
        true => Loss::Gone,
        false => Loss::Rotten(index),
    };
    let header = piece.header.last().filter(|_| !piece.failed).ok_or(rotten(first))?;
    let batch = core.log.wal.decode(piece.span, header);
    let batch = batch.ok().and_then(Result::ok).ok_or(rotten(first))?;
    for index in first..piece.run.end().min(fetch.high) {
        let found = found(&batch, fetch.member, index, piece.run.term).ok_or(rotten(index))?;
        let entry = match &found.bypass {
            None => plain(core, piece, found),
            Some(bypass) => bypassed(core, member, piece, found, bypass),
        };
        entries.push(entry.ok_or(rotten(index))?);
    }
    Ok(())
}

/// The first entry that the log still has of a member, after this one was not to be had.
fn gone(core: &Core, member: MemberId, index: u64) -> LogGone {
    let base = core.live(member).map_or(index, |found| found.log.base_index());
    let first = core.log.past.first(member, base, core.log.wal.oldest_intact());
    LogGone { first: first.max(index + 1) }
}

fn answer(core: &mut Core, fetch: &Fetch, result: Result<Vec<LogEntry>, LogGone>) {
    let (member, low) = (fetch.member, fetch.low);
    core.io.events.push(Event::LogFetched { member, low, result });
}

/// Where the entries of a fetch are, as many as it may take.
fn pieces(core: &Core, fetch: &Fetch) -> Vec<Piece> {
    let Some(member) = core.live(fetch.member) else { return Vec::new() };
    let high = fetch.high.min(member.applied_index + 1);
    let (mut pieces, mut bytes, mut index) = (Vec::new(), 0, fetch.low);
    while index < high && pieces.len() < LOG_FETCH_BATCHES_MAX && bytes < LOG_FETCH_BYTES_MAX {
        let Some(piece) = piece_at(core, member, index, high) else { break };
        bytes += piece.run.bytes as usize + piece.run.slots.len() * EXTENT_BYTES;
        index = piece.run.end();
        pieces.push(piece);
    }
    pieces
}

fn piece_at(core: &Core, member: &LaneMember, index: u64, high: u64) -> Option<Piece> {
    let base = member.log.base_index();
    let run = match index <= base {
        true => core.log.past.run(member.id(), base, index)?,
        false => retained(member, index, high)?,
    };
    let span = core.log.wal.span(run.place.seq)?;
    let parts = usize::from(run.bytes > 0) + core.alloc.files.runs(&run.slots).len();
    let payload = vec![Bytes::new(); parts];
    Some(Piece { run, span, header: Vec::new(), payload, failed: false })
}

/// The run of retained entries from `index` on.
fn retained(member: &LaneMember, index: u64, high: u64) -> Option<Run> {
    let mut entries = member.log.from(index).take_while(|(at, _)| *at < high);
    let mut run = Run::of(index, entries.next()?.1)?;
    for (at, entry) in entries {
        if !Run::of(at, entry).is_some_and(|next| run.join(&next)) {
            break;
        }
    }
    Some(run)
}

fn issue(core: &mut Core, fetch: &mut Fetch) {
    for (number, piece) in fetch.pieces.iter().enumerate() {
        let op = |part| FetchOp { number: fetch.number, piece: number, part, pinned: Vec::new() };
        let Piece { run, span, .. } = piece;
        let header_bytes = span.header_bytes as usize;
        core.io.read(Pending::Fetch(op(None)), LaneFile::Wal, span.offset, header_bytes);
        fetch.reads += 1 + piece.payload.len();
        if run.bytes > 0 {
            let (offset, len) = (run.place.payload_offset, run.bytes as usize);
            core.io.read(Pending::Fetch(op(Some(0))), LaneFile::Wal, offset, len);
        }
        for (part, (first, count)) in core.alloc.files.runs(&run.slots).into_iter().enumerate() {
            let pinned = run.slots[first..first + count].to_vec();
            pinned.iter().for_each(|slot| core.alloc.pin(*slot));
            let (offset, len) = (run.slots[first].offset(), count * EXTENT_BYTES);
            let op = FetchOp { pinned, ..op(Some(part)) };
            core.io.read(Pending::Fetch(op), LaneFile::Data, offset, len);
        }
    }
}

/// Reads all header pages, if there are more than recovery knew of. Returns the reads started.
fn read_rest(core: &mut Core, number: u64, piece: usize, found: &Piece) -> usize {
    let pages = found.header.last().expect("just read");
    let more = match core.log.wal.decode(found.span, pages) {
        Ok(Err(bytes)) if found.header.len() == 1 && bytes as u64 <= found.span.bytes => bytes,
        _ => return 0,
    };
    let op = FetchOp { number, piece, part: None, pinned: Vec::new() };
    core.io.read(Pending::Fetch(op), LaneFile::Wal, found.span.offset, more);
    1
}

/// The entry of this index and term in a batch. A later item of a batch replaces an earlier one.
fn found(batch: &Batch, of: MemberId, index: u64, term: u64) -> Option<&FoundEntry> {
    let entries = batch.items.iter().rev().flat_map(|item| match item {
        FoundItem::Entry { member, entry } if *member == of => std::slice::from_ref(entry),
        FoundItem::LogSnapshot { member, entries, .. } if *member == of => entries,
        _ => &[],
    });
    { entries }.find(|entry| (entry.index, entry.term) == (index, term))
}

/// An entry whose payload is in the ring, if it passes its checksum.
fn plain(core: &Core, piece: &Piece, found: &FoundEntry) -> Option<LogEntry> {
    let len = found.payload_bytes as usize;
    let payload = match len {
        0 => Bytes::new(),
        _ => {
            let start = found.payload_offset.checked_sub(piece.run.place.payload_offset)?;
            let start = usize::try_from(start).ok()?;
            let bytes = piece.payload.first()?.get(start..start.checked_add(len)?)?;
            if format::crc_from(found.crc_start, &[bytes]) != found.payload_crc
                && !planted!(FetchedUnchecked)
            {
                return None;
            }
            // A slice would keep the whole run in memory.
            core.pool.copy(bytes)
        }
    };
    Some(entry(found, payload))
}

/// An entry whose payload is in slots, if all blocks pass their checksums.
fn bypassed(
    core: &Core,
    member: &LaneMember,
    piece: &Piece,
    found: &FoundEntry,
    bypass: &Bypass,
) -> Option<LogEntry> {
    if bypass.slots() != piece.run.slots {
        return None;
    }
    let mut payload = core.pool.take(piece.run.slots.len() * EXTENT_BYTES);
    let mut filled = 0;
    for part in &piece.payload {
        payload.get_mut(filled..filled + part.len())?.copy_from_slice(part);
        filled += part.len();
    }
    let crcs: Vec<u32> = bypass.slots.iter().flat_map(|slot| slot.crcs).collect();
    let payload = payload.freeze();
    let intact = filled == crcs.len() * BLOCK_BYTES
        && member.first_bad(bypass.first.first_block(), &payload, &crcs).is_none();
    intact.then(|| entry(found, payload))
}

fn entry(found: &FoundEntry, payload: Bytes) -> LogEntry {
    LogEntry {
        bypass: None,
        index: found.index,
        term: found.term,
        kind: found.kind,
        // A slice would keep all header pages in memory.
        context: Bytes::copy_from_slice(&found.context),
        payload,
    }
}
