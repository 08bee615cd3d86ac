//! Client writes, and other requests that become entries, on the leader: checks, partial blocks
//! (rule `whole-blocks-in-log`), the gate that forms batches, and the answer once the entry is
//! applied here.
//!
//! A request is first *blocked*: it waits for earlier requests to its blocks, or for the content of
//! a partially written block. Then it is *waiting*: an entry behind the gate. Then it is
//! *proposed*. Entries are proposed in the order in which they began to wait.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::Entry;

use crate::io::buffer::Pool;
use crate::limits::{ENTRY_BYTES_MAX, ZERO_BYTES_MAX};
use crate::planted::planted;
use crate::replica::command::{self, EntryCommand};
use crate::replica::messages::{Output, ReqId};
use crate::replica::raft_adapter::{APPEND_BYTES_MAX, RaftAdapter};
use crate::types::{
    BLOCK_BYTES, Block, BlockError, BlockRange, Generation, Origin, ShardOp, ShardReply,
    Unappended, VolumeId, block_crc,
};

/// Bytes that must wait before a second batch starts beside one in flight.
const GATE_BYTES: usize = 64 << 10;
/// Charged for a request in addition to its payload.
const REQUEST_OVERHEAD_BYTES: usize = 512;
/// Largest number of blocked requests at one member.
const BLOCKED_MAX: usize = 256;

/// The geometry and identity of a shard, for checking and merging writes.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Blocks of the shard.
    pub blocks: u32,
    pub volume: VolumeId,
    pub first_block_in_volume: u64,
}

/// The log writes in flight, for the gate.
#[derive(Debug, Clone, Copy, Default)]
pub struct InFlight {
    /// Log writes with entries in flight.
    pub count: usize,
    /// Bytes of the newest one.
    pub newest_bytes: usize,
}

/// Every write of one leader from its arrival to its answer.
pub struct Writes {
    geometry: Geometry,
    blocked: Vec<Blocked>,
    /// An event may have unblocked a request.
    recheck: bool,
    /// Entries that are not proposed yet; they match the end of `tracked`.
    waiting: VecDeque<Entry>,
    waiting_bytes: usize,
    /// Waiting and proposed entries, in order.
    tracked: VecDeque<Tracked>,
    /// Number of entries that ever left the front of `tracked`.
    passed: u64,
    /// Payload and overhead of all requests here, limited by `bytes_max`.
    charged_bytes: usize,
    bytes_max: usize,
    /// Memory for merged blocks.
    pool: Pool,
    next_ticket: u64,
}

struct Tracked {
    req: ReqId,
    range: BlockRange,
    charge: usize,
    /// It is answered with the generation of the access set.
    sets_access: bool,
    /// 0 until proposed.
    index: u64,
}

struct Blocked {
    req: ReqId,
    origin: Origin,
    op: ShardOp,
    charge: usize,
    stage: Stage,
}

/// The progress of a blocked request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// May wait for an earlier blocked request.
    Queued,
    /// A partial block that waits until this many tracked entries have passed.
    Apply { passed: u64 },
    /// A partial block that waits for its stored content.
    Base { ticket: u64 },
}

impl Writes {
    pub fn new(geometry: Geometry, bytes_max: usize, pool: Pool) -> Writes {
        Writes {
            geometry,
            blocked: Vec::new(),
            recheck: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            tracked: VecDeque::new(),
            passed: 0,
            charged_bytes: 0,
            bytes_max,
            pool,
            next_ticket: 0,
        }
    }

    /// Bytes of proposals in flight: payload and overhead.
    pub fn bytes(&self) -> usize {
        self.charged_bytes
    }

    /// Takes a write on the leader. An error is the answer to it, and nothing was proposed.
    pub fn push(&mut self, req: ReqId, origin: Origin, op: ShardOp) -> Result<(), BlockError> {
        self.check(&op)?;
        let charge = REQUEST_OVERHEAD_BYTES
            + match op {
                ShardOp::WritePartial { .. } => BLOCK_BYTES,
                _ => op.charge_bytes(),
            };
        if self.charged_bytes + charge > self.bytes_max {
            return Err(BlockError::Busy);
        }
        let range = op.range();
        let partial = matches!(op, ShardOp::WritePartial { .. });
        if !partial && !self.is_held(range) {
            self.charged_bytes += charge;
            self.wait(req, charge, range, whole_entry(origin, op));
            return Ok(());
        }
        if self.blocked.len() >= BLOCKED_MAX {
            return Err(BlockError::Busy);
        }
        self.charged_bytes += charge;
        self.recheck = true;
        self.blocked.push(Blocked { req, origin, op, charge, stage: Stage::Queued });
        Ok(())
    }

    /// Takes a command of the catalog's own group.
    pub fn push_opaque(&mut self, req: ReqId, data: Bytes) -> Result<(), BlockError> {
        let charge = REQUEST_OVERHEAD_BYTES + data.len();
        if data.len() > ENTRY_BYTES_MAX {
            return Err(BlockError::Invalid);
        }
        if self.charged_bytes + charge > self.bytes_max {
            return Err(BlockError::Busy);
        }
        self.charged_bytes += charge;
        let context = command::encode(Origin::default(), &EntryCommand::Opaque);
        let nowhere = BlockRange { first: Block(0), count: 0 };
        self.wait(req, charge, nowhere, entry(context, data));
        Ok(())
    }

    fn check(&self, op: &ShardOp) -> Result<(), BlockError> {
        let range = op.range();
        let end = range.first.0.checked_add(range.count);
        if range.count == 0 && op.is_write() {
            return Err(BlockError::Invalid);
        }
        if end.is_none_or(|end| end > self.geometry.blocks) {
            return Err(BlockError::OutOfRange);
        }
        let valid = match op {
            ShardOp::Write { range, data, crcs } => {
                data.len() as u64 == range.bytes()
                    && data.len() <= ENTRY_BYTES_MAX
                    && crcs.len() == range.count as usize
            }
            ShardOp::WritePartial { offset_bytes, data, .. } => {
                let end = (*offset_bytes as usize).checked_add(data.len());
                !data.is_empty()
                    && data.len() < BLOCK_BYTES
                    && end.is_some_and(|end| end <= BLOCK_BYTES)
            }
            ShardOp::Zero { range, .. } => range.bytes() <= ZERO_BYTES_MAX,
            ShardOp::Touch { .. } => true,
            ShardOp::SetAccess(set) => set.is_valid(),
            ShardOp::Read { .. } | ShardOp::Status { .. } => false,
        };
        if valid { Ok(()) } else { Err(BlockError::Invalid) }
    }

    fn is_held(&self, range: BlockRange) -> bool {
        self.blocked.iter().any(|held| held.op.range().overlaps(range))
    }

    fn wait(&mut self, req: ReqId, charge: usize, range: BlockRange, entry: Entry) {
        self.waiting_bytes += entry.data.len() + REQUEST_OVERHEAD_BYTES;
        let sets_access = command::sets_access(&entry.context);
        self.waiting.push_back(entry);
        self.tracked.push_back(Tracked { req, range, charge, sets_access, index: 0 });
    }

    /// Advances blocked requests, and requests bases through `out`. `serving`: an entry of the own
    /// term is applied, so stored content may be a base.
    pub fn unblock(&mut self, serving: bool, out: &mut Vec<Output>) {
        if self.blocked.is_empty() || !self.recheck {
            return;
        }
        self.recheck = false;
        let mut at = 0;
        while at < self.blocked.len() {
            let range = self.blocked[at].op.range();
            let mut earlier = self.blocked[..at].iter();
            if earlier.any(|held| held.op.range().overlaps(range)) {
                at += 1;
                continue;
            }
            let ShardOp::WritePartial { block, .. } = self.blocked[at].op else {
                let freed = self.blocked.remove(at);
                let range = freed.op.range();
                self.wait(freed.req, freed.charge, range, whole_entry(freed.origin, freed.op));
                continue;
            };
            if self.blocked[at].stage == Stage::Queued {
                let passed = self.passed_when_applied(range);
                self.blocked[at].stage = Stage::Apply { passed };
            }
            if let Stage::Apply { passed } = self.blocked[at].stage
                && serving
                && self.passed >= passed
            {
                self.next_ticket += 1;
                let ticket = self.next_ticket;
                self.blocked[at].stage = Stage::Base { ticket };
                out.push(Output::ReadBase { ticket, block });
            }
            at += 1;
        }
    }

    /// The value of `passed` once all entries that touch `range` are applied.
    fn passed_when_applied(&self, range: BlockRange) -> u64 {
        if planted!(PartialFromOldBase) {
            return self.passed;
        }
        let last = self.tracked.iter().rposition(|entry| entry.range.overlaps(range));
        self.passed + last.map_or(0, |at| at as u64 + 1)
    }

    /// Merges a partial write into the stored content of its block: it becomes a whole write.
    pub fn on_base(
        &mut self,
        ticket: u64,
        result: Result<Option<Bytes>, BlockError>,
    ) -> Option<(ReqId, BlockError)> {
        let wanted = Stage::Base { ticket };
        let at = self.blocked.iter().position(|held| held.stage == wanted)?;
        let held = self.blocked.remove(at);
        self.recheck = true;
        let merged =
            result.and_then(|base| merge(&self.pool, &self.geometry, held.origin, &held.op, base));
        match merged {
            Ok(entry) => {
                self.wait(held.req, held.charge, held.op.range(), entry);
                None
            }
            Err(error) => {
                self.charged_bytes -= held.charge;
                Some((held.req, error))
            }
        }
    }

    /// Extents that requests zero which are not in the Raft log yet.
    pub fn waiting_zeroes(&self) -> u64 {
        let waiting = self.waiting.iter().map(|entry| command::zero_extents(&entry.context));
        waiting.chain(self.blocked.iter().map(|held| held.op.zero_extents())).sum()
    }

    /// Requests that are not in the Raft log yet.
    pub fn unappended(&self) -> Unappended {
        let mut found = Unappended::default();
        self.waiting.iter().for_each(|entry| found.add(entry.data.len()));
        self.blocked.iter().for_each(|held| found.add(held.op.payload_bytes()));
        found
    }

    /// The gate: proposes the waiting entries, in at most so many chunks, if nothing is in flight
    /// or enough bytes wait. True when it proposed some.
    pub fn propose(
        &mut self,
        raft: &mut RaftAdapter,
        in_flight: InFlight,
        in_flight_max: usize,
        chunks_max: usize,
    ) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let enough = self.waiting_bytes >= GATE_BYTES.max(in_flight.newest_bytes);
        let open = in_flight.count == 0 || (enough && in_flight.count < in_flight_max);
        if !open || !raft.accepts(0) {
            return false;
        }
        let first = self.tracked.len() - self.waiting.len();
        let mut proposed = first;
        for _ in 0..chunks_max {
            let Some((entries, payload_bytes)) = self.next_chunk() else { break };
            if !raft.accepts(payload_bytes) {
                self.put_back(entries);
                break;
            }
            let count = entries.len();
            let last = raft.last_index();
            let stepped = raft.propose(entries);
            assert!(stepped.is_ok(), "checked before: {stepped:?}");
            for offset in 0..count {
                self.tracked[proposed + offset].index = last + 1 + offset as u64;
            }
            proposed += count;
        }
        proposed > first
    }

    /// The waiting entries of the next `MsgAppend`, and their payload bytes.
    fn next_chunk(&mut self) -> Option<(Vec<Entry>, usize)> {
        let mut bytes = 0;
        let mut payload_bytes = 0;
        let mut count = 0;
        for entry in &self.waiting {
            bytes += entry.data.len() + entry.context.len() + 64;
            if bytes > APPEND_BYTES_MAX && count > 0 {
                break;
            }
            payload_bytes += entry.data.len();
            count += 1;
        }
        if count == 0 {
            return None;
        }
        self.waiting_bytes -= payload_bytes + count * REQUEST_OVERHEAD_BYTES;
        Some((self.waiting.drain(..count).collect(), payload_bytes))
    }

    fn put_back(&mut self, entries: Vec<Entry>) {
        for entry in entries.into_iter().rev() {
            self.waiting_bytes += entry.data.len() + REQUEST_OVERHEAD_BYTES;
            self.waiting.push_front(entry);
        }
    }

    /// Returns the answer to the request, if any, whose entry at `index` was applied here; the
    /// shard's access set has this generation now.
    pub fn applied(
        &mut self,
        index: u64,
        refused: Option<BlockError>,
        generation: Generation,
    ) -> Option<(ReqId, Result<ShardReply, BlockError>)> {
        if self.tracked.front()?.index != index {
            return None;
        }
        let done = self.tracked.pop_front()?;
        self.passed += 1;
        self.charged_bytes -= done.charge;
        self.recheck = true;
        let result = match refused {
            Some(error) => Err(error),
            None if done.sets_access => Ok(ShardReply::Access { generation }),
            None => Ok(ShardReply::Done),
        };
        Some((done.req, result))
    }

    /// Looks at blocked requests again, because serving began and bases may be read.
    pub fn recheck(&mut self) {
        self.recheck = true;
    }

    /// The leadership is lost. Proposed entries may still be applied, the others certainly not.
    pub fn lose(&mut self, not_leader: &BlockError, answers: &mut Vec<(ReqId, BlockError)>) {
        let proposed = self.tracked.len() - self.waiting.len();
        for (at, entry) in self.tracked.drain(..).enumerate() {
            let error = if at < proposed { BlockError::Unknown } else { not_leader.clone() };
            answers.push((entry.req, error));
            self.passed += 1;
        }
        let blocked = self.blocked.drain(..);
        answers.extend(blocked.map(|held| (held.req, not_leader.clone())));
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.charged_bytes = 0;
    }
}

fn entry(context: Bytes, data: Bytes) -> Entry {
    Entry { context, data, ..Entry::default() }
}

fn whole_entry(origin: Origin, op: ShardOp) -> Entry {
    match op {
        ShardOp::Write { range, data, crcs } => {
            entry(command::encode_write(origin, range, &crcs), data)
        }
        ShardOp::Zero { range, trim } => {
            let context = command::encode(origin, &EntryCommand::Zero { range, trim });
            entry(context, Bytes::new())
        }
        ShardOp::Touch { renews } => {
            entry(command::encode(origin, &EntryCommand::Touch { renews }), Bytes::new())
        }
        ShardOp::SetAccess(set) => {
            let command = EntryCommand::SetAccess(set);
            entry(command::encode(Origin::default(), &command), Bytes::new())
        }
        other => unreachable!("not a write of whole blocks: {other:?}"),
    }
}

/// Merges a partial write into `base`, and returns the whole block as an entry. A block of which
/// only zeroes are left is trimmed: so two trims that meet inside a block give it back.
fn merge(
    pool: &Pool,
    geometry: &Geometry,
    origin: Origin,
    op: &ShardOp,
    base: Option<Bytes>,
) -> Result<Entry, BlockError> {
    let ShardOp::WritePartial { block, offset_bytes, data } = op else {
        unreachable!("only partial writes ask for a base");
    };
    let mut whole = pool.take(BLOCK_BYTES);
    match base {
        Some(base) if base.len() == BLOCK_BYTES => whole.copy_from_slice(&base),
        Some(_) => return Err(BlockError::MediaFault),
        None => whole.fill(0),
    }
    let start = *offset_bytes as usize;
    whole[start..start + data.len()].copy_from_slice(data);
    let range = BlockRange { first: *block, count: 1 };
    if whole.iter().all(|byte| *byte == 0) {
        return Ok(whole_entry(origin, ShardOp::Zero { range, trim: true }));
    }
    let block_in_volume = geometry.first_block_in_volume + u64::from(block.0);
    let crc = block_crc(geometry.volume, block_in_volume, &whole);
    let context = command::encode_write(origin, range, &[crc]);
    Ok(entry(context, whole.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ZERO_EXTENT_BYTES;

    #[test]
    fn what_is_in_flight_is_bounded_as_it_was_said() {
        const LEN: usize = 1 << 20;
        let volume = VolumeId(1);
        for mib in [8, 20] {
            let geometry = Geometry { blocks: 1 << 18, volume, first_block_in_volume: 0 };
            let mut writes = Writes::new(geometry, mib * LEN, Pool::default());
            let mut push = |number: usize| {
                let count = (LEN / BLOCK_BYTES) as u32;
                let range = BlockRange { first: Block(number as u32 * count), count };
                let crcs = vec![0; count as usize];
                let op = ShardOp::Write { range, data: Bytes::from(vec![0; LEN]), crcs };
                writes.push(ReqId(number as u64), Origin::default(), op)
            };
            // Each is charged a little more than its payload.
            assert!((0..mib - 1).all(|number| push(number).is_ok()));
            assert_eq!(push(mib), Err(BlockError::Busy));
        }
    }

    #[test]
    fn trims_are_charged_for_what_stores_will_keep_of_them() {
        let volume = VolumeId(1);
        let geometry = Geometry { blocks: 1 << 18, volume, first_block_in_volume: 0 };
        let mut writes = Writes::new(geometry, 1 << 20, Pool::default());
        let mut push = |number: usize, count: u32| {
            let op = ShardOp::Zero { range: BlockRange { first: Block(0), count }, trim: true };
            writes.push(ReqId(number as u64), Origin::default(), op)
        };
        assert_eq!(push(0, 4097), Err(BlockError::Invalid), "longer than one entry may be");
        let taken = (1..).take_while(|number| push(*number, 4096).is_ok()).count();
        assert_eq!(taken, (1 << 20) / (256 * ZERO_EXTENT_BYTES + REQUEST_OVERHEAD_BYTES));
        assert_eq!(writes.waiting_zeroes(), taken as u64 * 256);
    }

    #[test]
    fn a_block_of_which_only_zeroes_are_left_is_trimmed() {
        let (block, data) = (Block(5), Bytes::from(vec![0; 1024]));
        let geometry = Geometry { blocks: 16, volume: VolumeId(1), first_block_in_volume: 0 };
        let merged = |base: Option<Vec<u8>>| {
            let op = ShardOp::WritePartial { block, offset_bytes: 512, data: data.clone() };
            let base = base.map(Bytes::from);
            let entry = merge(&Pool::default(), &geometry, Origin::default(), &op, base).unwrap();
            (command::decode(&entry.context).unwrap().1, entry.data)
        };
        let trim = EntryCommand::Zero { range: BlockRange { first: block, count: 1 }, trim: true };
        assert_eq!(merged(None), (trim.clone(), Bytes::new()));
        let mut base = vec![0; BLOCK_BYTES];
        base[512..1536].fill(7);
        assert_eq!(merged(Some(base.clone())), (trim, Bytes::new()));
        base[1536] = 7;
        let (command, bytes) = merged(Some(base));
        assert!(matches!(command, EntryCommand::Write { .. }) && bytes[1536] == 7);
        assert!(bytes[..1536].iter().all(|byte| *byte == 0));
    }
}
