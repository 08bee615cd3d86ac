//! Reads: what is in the overlay first, then what the index says is in the data file. Every block
//! that comes from the disk is verified; one that does not match is looked up again before it is
//! judged (rule R13), because overlay and record may have moved meanwhile.

use bytes::Bytes;

use crate::planted::{Mistake, planted};
use crate::store::effects::{Io, Pending};
use crate::store::lane::{Lane, extents_of};
use crate::store::member::{Member, Phase};
use crate::store::mend::{key_of, patched};
use crate::store::overlay::{Content, OverlayExtent};
use crate::store::seam::{
    Event, ExtentKey, ExtentRecord, IndexJob, LaneFile, ReadBlocks, ReadId, Slot,
};
use crate::store::wal::BatchSeq;
use crate::types::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockError, BlockRange, EXTENT_BYTES, Extent,
    ExtentContent, MemberId, Segment, StatusRun,
};

/// Looks at a block that keeps moving at most this often.
const ATTEMPTS_MAX: u32 = 16;

/// One read under way.
pub(super) struct ReadState {
    member: MemberId,
    range: BlockRange,
    purpose: Purpose,
    plan: Plan,
    /// Pieces that are being read.
    outstanding: u32,
    attempts: u32,
    /// A block that did not match in the attempt before.
    suspect: Option<Mismatch>,
    /// One that did not match in this attempt.
    mismatch: Option<Mismatch>,
}

/// A block whose bytes were not what this checksum, from this place, promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mismatch {
    block: Block,
    place: Place,
    crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
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
    /// Newest change, for extents.
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
        member: &Member,
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
            if let Some(block) = overlay.and_then(|overlay| overlay.get(at.in_extent())) {
                match (block.content, &block.cached) {
                    (Content::Zero { .. }, _) => self.push(at, Place::Hole, 0, None),
                    (Content::Log { .. } | Content::Slot(_), Some(data)) => {
                        self.push(at, Place::Memory, block.crc, Some(data.clone()));
                    }
                    (content, None) => {
                        let mended = patched(patch, at.in_extent(), block.crc, block.index);
                        let place = match content {
                            _ if mended.is_some() => Place::Memory,
                            Content::Log { position } => log_place(member, block.index, position),
                            Content::Slot(slot) => Place::Slot { slot, block: at.in_extent() },
                            Content::Zero { .. } => Place::Hole,
                        };
                        self.push(at, place, block.crc, mended);
                    }
                }
                continue;
            }
            match record {
                Some(record) if record.present & (1 << at.in_extent()) != 0 => {
                    let crc = record.crcs[at.in_extent() as usize];
                    let mended = patched(patch, at.in_extent(), crc, record.last_changed);
                    let place = match mended {
                        Some(_) => Place::Memory,
                        None => Place::Slot { slot: record.slot, block: at.in_extent() },
                    };
                    self.push(at, place, crc, mended);
                }
                _ => self.push(at, Place::Hole, 0, None),
            }
        }
        let newest = overlay.map_or(0, |overlay| overlay.newest());
        let recorded = record.map_or(0, |record| record.last_changed);
        self.last_changed = self.last_changed.max(newest).max(recorded);
    }
}

fn log_place(member: &Member, index: u64, position: u16) -> Place {
    let (seq, offset) = member.log_offset(index, position);
    Place::Log { seq, offset }
}

impl Member {
    /// Where in the ring this block of an entry's payload is.
    pub(super) fn log_offset(&self, index: u64, position: u16) -> (BatchSeq, u64) {
        let entry = self.log.get(index).expect("retained while the overlay needs it");
        let place = entry.place.expect("durable before it is applied");
        let offset = place.payload_offset + u64::from(position) * BLOCK_BYTES as u64;
        (place.seq, offset)
    }
}

impl Lane {
    /// Reads whole blocks as of everything applied.
    pub fn read(&mut self, read: ReadId, member: MemberId, range: BlockRange) {
        self.start_read(read, member, range, Purpose::Read);
    }

    pub fn status(&mut self, read: ReadId, member: MemberId, range: BlockRange) {
        self.start_read(read, member, range, Purpose::Status);
    }

    pub fn fetch_extent(&mut self, read: ReadId, member: MemberId, extent: Extent, layer: u32) {
        let range = BlockRange { first: extent.first_block(), count: BLOCKS_PER_EXTENT };
        self.start_read(read, member, range, Purpose::Extent { layer });
    }

    fn start_read(&mut self, read: ReadId, id: MemberId, range: BlockRange, purpose: Purpose) {
        if self.io.poisoned() {
            return;
        }
        let state = ReadState {
            member: id,
            range,
            purpose,
            plan: Plan::default(),
            outstanding: 0,
            attempts: 0,
            suspect: None,
            mismatch: None,
        };
        let refusal = match self.members.get(&id) {
            None => Some(BlockError::NoSuchVolume),
            Some(member) if matches!(member.phase, Phase::Destroying | Phase::Faulted) => {
                Some(BlockError::NoSuchVolume)
            }
            Some(member) => {
                // The last extent may reach beyond the shard.
                let end = match purpose {
                    Purpose::Extent { .. } => range.first.0 + 1,
                    Purpose::Read | Purpose::Status => range.end(),
                };
                (end > member.record.blocks).then_some(BlockError::OutOfRange)
            }
        };
        match refusal {
            Some(error) => self.io.answer(read, purpose, error),
            None => self.continue_read(read, state, &[]),
        }
    }

    /// Plans the read anew; `fetched` are records that the index has just answered.
    fn continue_read(
        &mut self,
        read: ReadId,
        mut state: ReadState,
        fetched: &[(ExtentKey, Option<ExtentRecord>)],
    ) {
        state.attempts += 1;
        let plan = match self.plan(state.member, state.range, fetched) {
            Err(BlockError::Unknown) => {
                let keys = self.missing_keys(state.member, state.range);
                let pending = Pending::ReadRecords { read, keys: keys.clone() };
                self.io.index(pending, IndexJob::Get { keys });
                self.reads.insert(read, state);
                return;
            }
            Err(error) => return self.io.answer(read, state.purpose, error),
            Ok(plan) => plan,
        };
        state.plan = plan;
        if state.purpose != Purpose::Status {
            self.issue_pieces(read, &mut state);
        }
        if state.purpose == Purpose::Read {
            self.count_read(&state.plan);
        }
        if state.outstanding == 0 {
            return self.finish_read(read, state);
        }
        self.reads.insert(read, state);
    }

    /// `Err(Unknown)`: the record of some extent has to be fetched first.
    fn plan(
        &mut self,
        id: MemberId,
        range: BlockRange,
        fetched: &[(ExtentKey, Option<ExtentRecord>)],
    ) -> Result<Plan, BlockError> {
        let member = self.members.get(&id).ok_or(BlockError::NoSuchVolume)?;
        let mut plan = Plan::default();
        plan.crcs.reserve(range.count as usize);
        for extent in extents_of(range) {
            let key = key_of(id, extent);
            let overlay = member.overlay.get(extent);
            let record = if !member.presence.get(extent) {
                None
            } else if let Some(known) = self.records.get(&key) {
                known
            } else {
                let found = fetched.iter().find(|(other, _)| *other == key);
                let (_, record) = found.ok_or(BlockError::Unknown)?;
                // The presence map says that there is one.
                Some(record.as_ref().ok_or(BlockError::MediaFault)?)
            };
            plan.add_extent(member, extent, range, overlay, record, self.mends.patch(&key));
        }
        Ok(plan)
    }

    /// For reports: how much of what is read was not written back yet.
    fn count_read(&mut self, plan: &Plan) {
        for piece in &plan.pieces {
            let count = u64::from(piece.count);
            match piece.place {
                Place::Hole => {}
                Place::Slot { .. } => self.io.read_blocks += count,
                Place::Memory | Place::Log { .. } => {
                    self.io.read_blocks += count;
                    self.io.read_overlay_blocks += count;
                }
            }
        }
    }

    fn missing_keys(&mut self, id: MemberId, range: BlockRange) -> Vec<ExtentKey> {
        let Some(member) = self.members.get(&id) else {
            return Vec::new();
        };
        let keys = extents_of(range).map(|extent| ExtentKey { member: id, extent, layer: 0 });
        keys.filter(|key| member.presence.get(key.extent)).collect()
    }

    fn issue_pieces(&mut self, read: ReadId, state: &mut ReadState) {
        for (number, piece) in state.plan.pieces.iter().enumerate() {
            let (file, offset) = match piece.place {
                Place::Hole | Place::Memory => continue,
                Place::Log { seq, offset } => {
                    self.log.pin(seq);
                    (LaneFile::Wal, offset)
                }
                Place::Slot { slot, block } => {
                    self.alloc.pin(slot);
                    let start = u64::from(slot.0) * EXTENT_BYTES as u64;
                    (LaneFile::Data, start + u64::from(block) * BLOCK_BYTES as u64)
                }
            };
            state.outstanding += 1;
            let pending = Pending::ReadPiece { read, piece: number };
            let len = piece.count as usize * BLOCK_BYTES;
            self.io.read(pending, file, offset, len);
        }
    }

    pub(super) fn read_records_got(
        &mut self,
        read: ReadId,
        keys: Vec<ExtentKey>,
        got: Vec<Option<ExtentRecord>>,
    ) {
        let state = self.reads.remove(&read).expect("under way");
        let fetched: Vec<_> = keys.into_iter().zip(got).collect();
        for (key, record) in &fetched {
            self.records.learn(*key, record.clone());
        }
        self.continue_read(read, state, &fetched);
    }

    /// A piece came back; `None`: it could not be read.
    pub(super) fn piece_read(&mut self, read: ReadId, number: usize, data: Option<Bytes>) {
        let state = self.reads.get_mut(&read).expect("under way");
        state.outstanding -= 1;
        let piece = &mut state.plan.pieces[number];
        match piece.place {
            Place::Log { seq, .. } => self.log.unpin(seq),
            Place::Slot { slot, .. } => self.alloc.unpin(slot),
            Place::Hole | Place::Memory => unreachable!("never read"),
        }
        let member = self.members.get(&state.member);
        let first_crc = (piece.first.0 - state.range.first.0) as usize;
        let crcs = &state.plan.crcs[first_crc..first_crc + piece.count as usize];
        let bad = match (&data, member) {
            (Some(data), Some(member)) if data.len() == piece.count as usize * BLOCK_BYTES => {
                first_bad(member, piece.first, data, crcs)
            }
            _ => Some(piece.first),
        };
        match bad {
            Some(block) => {
                state.mismatch = Some(Mismatch {
                    block,
                    place: piece.place,
                    crc: crcs[(block.0 - piece.first.0) as usize],
                });
            }
            None => piece.data = data,
        }
        if state.outstanding > 0 {
            return;
        }
        let mut state = self.reads.remove(&read).expect("just seen");
        match state.mismatch.take() {
            None => self.finish_read(read, state),
            Some(found) if state.suspect == Some(found) || state.attempts >= ATTEMPTS_MAX => {
                self.io.media_faults += 1;
                let extent = found.block.extent();
                if let Place::Slot { .. } = found.place {
                    self.mends.slot_is_bad(key_of(state.member, extent));
                }
                self.io.events.push(Event::Damaged { read, extent });
            }
            Some(found) => {
                state.suspect = Some(found);
                self.continue_read(read, state, &[]);
            }
        }
    }

    fn finish_read(&mut self, read: ReadId, state: ReadState) {
        match state.purpose {
            Purpose::Read => {
                let result = Ok(read_blocks(state.plan));
                self.io.events.push(Event::Read { read, result });
            }
            Purpose::Status => {
                let result = Ok(status_runs(&state.plan));
                self.io.events.push(Event::Status { read, result });
            }
            Purpose::Extent { layer } => {
                let result = Ok(self.extent_content(state, layer));
                self.io.events.push(Event::Extent { read, result });
            }
        }
    }

    fn extent_content(&mut self, state: ReadState, layer: u32) -> ExtentContent {
        let pieces = state.plan.pieces.iter();
        let stored = pieces.filter(|piece| piece.place != Place::Hole);
        let count: u32 = stored.clone().map(|piece| piece.count).sum();
        let mut data = self.pool.take(count as usize * BLOCK_BYTES);
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
}

impl Io {
    fn answer(&mut self, read: ReadId, purpose: Purpose, error: BlockError) {
        self.events.push(match purpose {
            Purpose::Read => Event::Read { read, result: Err(error) },
            Purpose::Status => Event::Status { read, result: Err(error) },
            Purpose::Extent { .. } => Event::Extent { read, result: Err(error) },
        });
    }
}

/// The first block whose bytes do not match their checksum.
pub(super) fn first_bad(member: &Member, first: Block, data: &[u8], crcs: &[u32]) -> Option<Block> {
    let blocks = data.chunks_exact(BLOCK_BYTES).zip(crcs).enumerate();
    let blocks = blocks.filter(|_| !planted(Mistake::ChecksumsIgnored));
    blocks
        .map(|(offset, (bytes, crc))| (Block(first.0 + offset as u32), bytes, crc))
        .find(|(at, bytes, crc)| member.crc(*at, bytes) != **crc)
        .map(|(at, _, _)| at)
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
