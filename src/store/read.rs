//! Reads: from the overlay first, then from the slots that the index names. Every block from the
//! disk is verified. One that fails is looked up again before it is judged, because overlay and
//! record may have changed meanwhile (rule `look-again-before-judging`).
//!
//! Owns the reads in flight; may borrow the core, and read repair; hears of ended reads.

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::io::buffer::Pool;
use crate::store::core::Core;
use crate::store::effects::{Pending, ReadOp};
use crate::store::member::{LaneMember, Phase};
use crate::store::messages::{
    Done, Event, ExtentKey, ExtentRecord, IndexDone, IndexJob, LaneFile, ReadBlocks, ReadId, Slot,
};
use crate::store::overlay::{Content, Dirty, OverlayBlock, OverlayExtent};
use crate::store::read_repair::{ReadRepair, patched};
use crate::store::wal::BatchSeq;
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockError, BlockRange, Extent, ExtentContent, MemberId,
    Segment, StatusRun,
};

/// Most attempts to read a block that keeps moving.
const ATTEMPTS_MAX: u32 = 16;

#[derive(Default)]
pub(super) struct Reads {
    in_flight: FxHashMap<ReadId, ReadState>,
    /// Blocks with a payload that reads found since the start, and the part from the overlay.
    pub blocks: u64,
    pub overlay_blocks: u64,
}

pub(super) struct ReadState {
    read: ReadId,
    member: MemberId,
    range: BlockRange,
    purpose: Purpose,
    plan: Plan,
    /// Pieces that are being read.
    in_flight: u32,
    attempts: u32,
    /// Records that the index has just returned.
    fetched: Vec<(ExtentKey, Option<ExtentRecord>)>,
    /// The block that failed its checksum in the attempt before.
    suspect: Option<Mismatch>,
    /// The block that failed in this attempt.
    mismatch: Option<Mismatch>,
}

impl ReadState {
    pub(super) fn new(
        read: ReadId,
        member: MemberId,
        range: BlockRange,
        purpose: Purpose,
    ) -> ReadState {
        ReadState {
            read,
            member,
            range,
            purpose,
            plan: Plan::default(),
            in_flight: 0,
            attempts: 0,
            fetched: Vec::new(),
            suspect: None,
            mismatch: None,
        }
    }
}

/// A block from this place whose bytes failed this checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mismatch {
    block: Block,
    place: Place,
    crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Status,
    /// One whole extent, for another member.
    Extent {
        layer: u32,
    },
}

/// Where the blocks of a range are, as of one moment.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    /// One per block.
    crcs: Vec<u32>,
    /// Newest change, for whole extents.
    last_changed: u64,
}

/// Neighbouring blocks that come from the same place.
struct Piece {
    first: Block,
    count: u32,
    place: Place,
    /// Bytes, once they are here.
    data: Option<Bytes>,
}

/// Where the first block of a piece is; the others follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Hole,
    Memory,
    Log { seq: BatchSeq, offset: u64 },
    Slot { slot: Slot, block: u32 },
}

impl Place {
    /// True when `next` follows `count` blocks after this place.
    fn continues(self, count: u32, next: Place) -> bool {
        let bytes = u64::from(count) * BLOCK_BYTES as u64;
        match (self, next) {
            (Place::Hole, Place::Hole) => true,
            (Place::Log { seq, offset }, Place::Log { seq: other, offset: at }) => {
                seq == other && offset + bytes == at
            }
            // One pin per piece: pieces do not reach into the next slot.
            (Place::Slot { slot, block }, Place::Slot { slot: other, block: at }) => {
                slot == other && block + count == at
            }
            _ => false,
        }
    }
}

impl Plan {
    fn push(&mut self, at: Block, place: Place, crc: u32, data: Option<Bytes>) {
        self.crcs.push(crc);
        if let Some(last) = self.pieces.last_mut()
            && last.place.continues(last.count, place)
        {
            last.count += 1;
            return;
        }
        self.pieces.push(Piece { first: at, count: 1, place, data });
    }

    /// Adds the blocks of `range` that lie in this extent.
    fn add_extent(
        &mut self,
        member: &LaneMember,
        extent: Extent,
        range: BlockRange,
        overlay: Option<&OverlayExtent>,
        record: Option<&ExtentRecord>,
        patch: Option<&ExtentContent>,
    ) {
        let start = extent.first_block().0;
        let first = range.first.0.max(start);
        let end = range.end().min(start + BLOCKS_PER_EXTENT);
        for at in (first..end).map(Block) {
            match overlay.and_then(|overlay| overlay.get(at.in_extent())) {
                Some(Dirty::Written(block)) => {
                    let (place, data) = match &block.cached {
                        Some(data) => (Place::Memory, Some(data.clone())),
                        None => uncached(member, at, block, patch),
                    };
                    self.push(at, place, block.crc, data);
                    continue;
                }
                Some(Dirty::Zero) => {
                    self.push(at, Place::Hole, 0, None);
                    continue;
                }
                None => {}
            }
            match record {
                Some(record) if record.present & (1 << at.in_extent()) != 0 => {
                    let crc = record.crcs[at.in_extent() as usize];
                    let repaired = patched(patch, at.in_extent(), crc, record.last_changed);
                    let place = match repaired {
                        Some(_) => Place::Memory,
                        None => Place::Slot { slot: record.slot, block: at.in_extent() },
                    };
                    self.push(at, place, crc, repaired);
                }
                _ => self.push(at, Place::Hole, 0, None),
            }
        }
        let newest = overlay.map_or(0, |overlay| overlay.newest());
        let recorded = record.map_or(0, |record| record.last_changed);
        self.last_changed = self.last_changed.max(newest).max(recorded);
    }
}

/// The place of an overlay block whose bytes are not in memory, unless a copy from elsewhere is.
fn uncached(
    member: &LaneMember,
    at: Block,
    block: &OverlayBlock,
    patch: Option<&ExtentContent>,
) -> (Place, Option<Bytes>) {
    let repaired = patched(patch, at.in_extent(), block.crc, block.index);
    let place = match block.content {
        _ if repaired.is_some() => Place::Memory,
        Content::Log { position } => log_place(member, block.index, position),
        Content::Slot(slot) => Place::Slot { slot, block: at.in_extent() },
    };
    (place, repaired)
}

fn log_place(member: &LaneMember, index: u64, position: u16) -> Place {
    let (seq, offset) = member.log_offset(index, position);
    Place::Log { seq, offset }
}

impl Reads {
    /// Starts a read of these blocks, as of everything applied.
    pub(super) fn start(&mut self, core: &mut Core, repair: &mut ReadRepair, state: ReadState) {
        let range = state.range;
        let refusal = match core.members.get(&state.member) {
            None => Some(BlockError::NoSuchVolume),
            Some(member) if matches!(member.phase, Phase::Destroying | Phase::Faulted) => {
                Some(BlockError::NoSuchVolume)
            }
            Some(member) => {
                // The last extent may reach beyond the shard.
                let end = match state.purpose {
                    Purpose::Extent { .. } => range.first.0 + 1,
                    Purpose::Read | Purpose::Status => range.end(),
                };
                (end > member.record.blocks).then_some(BlockError::OutOfRange)
            }
        };
        match refusal {
            Some(error) => answer(core, state, Err(error)),
            None => self.go_on(core, repair, state),
        }
    }

    pub(super) fn complete(
        &mut self,
        core: &mut Core,
        repair: &mut ReadRepair,
        op: ReadOp,
        done: Done,
    ) {
        match (op, done) {
            (ReadOp::Piece { read, piece }, done @ (Done::Read(_) | Done::Failed(..))) => {
                let state = self.in_flight.get_mut(&read).expect("in flight");
                piece_read(core, state, piece, done);
                if state.in_flight == 0 {
                    let state = self.in_flight.remove(&read).expect("just seen");
                    self.judge(core, repair, state);
                }
            }
            (ReadOp::Records { read, keys }, Done::Index(IndexDone::Got(got))) => {
                let mut state = self.in_flight.remove(&read).expect("in flight");
                state.fetched = keys.into_iter().zip(got).collect();
                for (key, record) in &state.fetched {
                    core.records.learn(*key, record.clone());
                }
                self.go_on(core, repair, state);
            }
            _ => panic!("an effect of a read ended as another kind"),
        }
    }

    /// Plans the read, perhaps again, and starts it.
    fn go_on(&mut self, core: &mut Core, repair: &mut ReadRepair, mut state: ReadState) {
        state.attempts += 1;
        let plan = plan(core, repair, &state);
        state.fetched.clear();
        state.plan = match plan {
            Err(BlockError::Unknown) => {
                let keys = missing_keys(core, &state);
                let op = ReadOp::Records { read: state.read, keys: keys.clone() };
                core.io.index(Pending::Read(op), IndexJob::Get { keys });
                self.in_flight.insert(state.read, state);
                return;
            }
            Err(error) => return answer(core, state, Err(error)),
            Ok(plan) => plan,
        };
        if state.purpose != Purpose::Status {
            issue_pieces(core, &mut state);
        }
        if state.purpose == Purpose::Read {
            self.count(&state.plan);
        }
        if state.in_flight == 0 {
            return answer(core, state, Ok(()));
        }
        self.in_flight.insert(state.read, state);
    }

    /// For reports: counts the blocks that are read, and those that are not written back yet.
    fn count(&mut self, plan: &Plan) {
        for piece in plan.pieces.iter().filter(|piece| piece.place != Place::Hole) {
            self.blocks += u64::from(piece.count);
            if !matches!(piece.place, Place::Slot { .. }) {
                self.overlay_blocks += u64::from(piece.count);
            }
        }
    }

    /// Every piece came back: answers, tries again, or reports the damage.
    fn judge(&mut self, core: &mut Core, repair: &mut ReadRepair, mut state: ReadState) {
        match state.mismatch.take() {
            None => answer(core, state, Ok(())),
            Some(found) if state.suspect == Some(found) || state.attempts >= ATTEMPTS_MAX => {
                let extent = found.block.extent();
                let in_slot = matches!(found.place, Place::Slot { .. });
                repair.copy_is_bad(ExtentKey::new(state.member, extent), in_slot);
                core.io.events.push(Event::Damaged { read: state.read, extent });
            }
            Some(found) => {
                state.suspect = Some(found);
                self.go_on(core, repair, state);
            }
        }
    }
}

/// A piece came back, or its read failed.
fn piece_read(core: &mut Core, state: &mut ReadState, number: usize, done: Done) {
    state.in_flight -= 1;
    let piece = &mut state.plan.pieces[number];
    match piece.place {
        Place::Log { seq, .. } => core.log.unpin(seq),
        Place::Slot { slot, .. } => core.alloc.unpin(slot),
        Place::Hole | Place::Memory => unreachable!("never read"),
    }
    let member = core.members.get(&state.member);
    let first_crc = (piece.first.0 - state.range.first.0) as usize;
    let crcs = &state.plan.crcs[first_crc..first_crc + piece.count as usize];
    let bad = match (&done, member) {
        (Done::Read(data), Some(member)) if data.len() == crcs.len() * BLOCK_BYTES => {
            piece.data = Some(data.clone());
            member.first_bad(piece.first, data, crcs)
        }
        _ => Some(piece.first),
    };
    if let Some(block) = bad {
        let crc = crcs[(block.0 - piece.first.0) as usize];
        state.mismatch = Some(Mismatch { block, place: piece.place, crc });
    }
}

/// `Err(Unknown)`: the record of some extent has to be fetched first.
fn plan(core: &mut Core, repair: &ReadRepair, state: &ReadState) -> Result<Plan, BlockError> {
    let range = state.range;
    let member = core.members.get(&state.member).ok_or(BlockError::NoSuchVolume)?;
    let mut plan = Plan::default();
    plan.crcs.reserve(range.count as usize);
    for extent in range.extents() {
        let key = ExtentKey::new(state.member, extent);
        let overlay = member.overlay.get(extent);
        let record = if !member.presence.get(extent) {
            None
        } else if let Some(known) = core.records.get(&key) {
            known
        } else {
            let found = state.fetched.iter().find(|(other, _)| *other == key);
            let (_, record) = found.ok_or(BlockError::Unknown)?;
            // The presence map says that there is a record.
            Some(record.as_ref().ok_or(BlockError::MediaFault)?)
        };
        plan.add_extent(member, extent, range, overlay, record, repair.patch(&key));
    }
    Ok(plan)
}

fn missing_keys(core: &Core, state: &ReadState) -> Vec<ExtentKey> {
    let Some(member) = core.members.get(&state.member) else { return Vec::new() };
    let keys = state.range.extents().map(|extent| ExtentKey::new(state.member, extent));
    keys.filter(|key| member.presence.get(key.extent)).collect()
}

fn issue_pieces(core: &mut Core, state: &mut ReadState) {
    for (number, piece) in state.plan.pieces.iter().enumerate() {
        let (file, offset) = match piece.place {
            Place::Hole | Place::Memory => continue,
            Place::Log { seq, offset } => {
                core.log.pin(seq);
                (LaneFile::Wal, offset)
            }
            Place::Slot { slot, block } => {
                core.alloc.pin(slot);
                (LaneFile::Data, slot.offset() + u64::from(block) * BLOCK_BYTES as u64)
            }
        };
        state.in_flight += 1;
        let pending = Pending::Read(ReadOp::Piece { read: state.read, piece: number });
        core.io.read(pending, file, offset, piece.count as usize * BLOCK_BYTES);
    }
}

/// Answers a read, with the content of its plan or with an error.
fn answer(core: &mut Core, state: ReadState, end: Result<(), BlockError>) {
    let read = state.read;
    core.io.events.push(match state.purpose {
        Purpose::Read => Event::Read { read, result: end.map(|()| read_blocks(state.plan)) },
        Purpose::Status => Event::Status { read, result: end.map(|()| status_runs(&state.plan)) },
        Purpose::Extent { layer } => {
            let result = end.map(|()| extent_content(&core.pool, state, layer));
            Event::Extent { read, result }
        }
    });
}

fn extent_content(pool: &Pool, state: ReadState, layer: u32) -> ExtentContent {
    let pieces = state.plan.pieces.iter();
    let stored = pieces.filter(|piece| piece.place != Place::Hole);
    let count: u32 = stored.clone().map(|piece| piece.count).sum();
    let mut data = pool.take(count as usize * BLOCK_BYTES);
    let (mut present, mut crcs, mut filled) = (0u16, Vec::new(), 0);
    for piece in stored {
        let bytes = piece.data.as_ref().expect("read");
        data[filled..filled + bytes.len()].copy_from_slice(bytes);
        filled += bytes.len();
        for at in (piece.first.0..piece.first.0 + piece.count).map(Block) {
            present |= 1 << at.in_extent();
            crcs.push(state.plan.crcs[at.in_extent() as usize]);
        }
    }
    ExtentContent {
        extent: state.range.first.extent(),
        layer,
        last_changed: state.plan.last_changed,
        present,
        zero: 0,
        crcs,
        data: data.freeze(),
    }
}

fn read_blocks(plan: Plan) -> ReadBlocks {
    let segment = |piece: Piece| match piece.place {
        Place::Hole => Segment::Zero(piece.count as usize * BLOCK_BYTES),
        _ => Segment::Data(piece.data.expect("read")),
    };
    ReadBlocks { segments: plan.pieces.into_iter().map(segment).collect(), crcs: plan.crcs }
}

fn status_runs(plan: &Plan) -> Vec<StatusRun> {
    let mut runs: Vec<StatusRun> = Vec::new();
    for piece in &plan.pieces {
        let hole = piece.place == Place::Hole;
        match runs.last_mut() {
            Some(last) if last.hole == hole => last.count += piece.count,
            _ => runs.push(StatusRun { count: piece.count, hole }),
        }
    }
    runs
}
