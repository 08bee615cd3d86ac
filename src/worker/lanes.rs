//! The lanes: their effects become operations of the driver and index jobs, whose ends go back.
//! - Owns: the lanes, the purposes of their reads, and the disks that could not be opened.
//! - May call: the driver and the index runners.
//! - Is told: ends of operations, and inputs of other components through [`Lanes::at`].

use std::sync::Arc;
use std::time::Duration;

use crate::io::buffer::Pool;
use crate::io::driver::{Buffers, Completion, Done as IoDone, Driver, FileId, Op};
use crate::planted::planted;
use crate::store::data_files::DataFiles;
use crate::store::lane::Lane;
use crate::store::messages::{Done, Effect, Event, LaneFile, OpId};
use crate::telemetry::metrics::data_path::Disk as Meters;
use crate::types::{BlockRange, MemberId, Mono, Uuid};
use crate::view::DiskReport;
use crate::worker::index_thread::IndexRunner;
use crate::worker::reads::{ReadTarget, Reads};
use crate::worker::token::Target;

/// A log write that takes longer than this has hung: the lane's leaders step down.
pub const LOG_WRITE_HUNG: Duration = Duration::from_secs(2);
/// Any other operation (read, sync, flush of the index) has hung after this: it may have to queue.
pub const OPERATION_HUNG: Duration = Duration::from_secs(10);
/// Longest time between two announcements of free space, which are signs of life to other pods.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// The lanes of a worker.
#[derive(Default)]
pub struct Lanes {
    pub all: Vec<LaneRuntime>,
    /// Lanes with unpolled inputs.
    pub touched: Vec<u8>,
    pub reads: Reads,
    /// Disks that could not be opened, for reports.
    pub failed: Vec<DiskReport>,
}

impl Lanes {
    pub fn get(&self, lane: u8) -> &LaneRuntime {
        &self.all[usize::from(lane)]
    }

    pub fn get_mut(&mut self, lane: u8) -> &mut LaneRuntime {
        &mut self.all[usize::from(lane)]
    }

    /// The lane, to give it an input. It is polled at the end of the round.
    pub fn at(&mut self, lane: u8) -> &mut Lane {
        if !self.touched.contains(&lane) {
            self.touched.push(lane);
        }
        &mut self.get_mut(lane).lane
    }

    pub fn of_disk(&self, disk: Uuid) -> Option<u8> {
        self.all.iter().position(|lane| lane.place.disk == disk).map(|number| number as u8)
    }

    pub fn read(&mut self, lane: u8, member: MemberId, range: BlockRange, target: ReadTarget) {
        let read = self.reads.add(target);
        match target {
            ReadTarget::Status(_) => self.at(lane).status(read, member, range),
            _ => self.at(lane).read(read, member, range),
        }
    }

    /// Polls the lanes whose deadline has come; at a tick, all of them.
    pub fn wake(&mut self, now: Mono, is_tick: bool) {
        for lane in 0..self.all.len() as u8 {
            let deadline = self.get(lane).lane.deadline();
            if is_tick || deadline.is_some_and(|deadline| deadline <= now) {
                self.at(lane);
            }
        }
    }

    /// An operation of a lane ended.
    pub fn completed(
        &mut self,
        now: Mono,
        (lane, op): (u8, OpId),
        is_sync: bool,
        completion: Completion,
    ) {
        self.get_mut(lane).completed(now, op, is_sync, completion);
        self.at(lane);
    }
}

/// The open files of a disk.
#[derive(Clone, Debug)]
pub struct OpenFiles {
    pub superblock: FileId,
    pub wal: FileId,
    /// As many as `places` says.
    pub data: Vec<FileId>,
    pub places: DataFiles,
}

impl OpenFiles {
    /// The file that has this range of a lane's file, and the offset in it.
    fn locate(&self, file: LaneFile, offset: u64, len: usize) -> (FileId, u64) {
        match file {
            LaneFile::Superblock => (self.superblock, offset),
            LaneFile::Wal => (self.wal, offset),
            LaneFile::Data => {
                let (number, offset) = self.places.locate(offset, len);
                (self.data[number], offset)
            }
        }
    }

    fn all_of(&self, file: LaneFile) -> &[FileId] {
        match file {
            LaneFile::Superblock => std::slice::from_ref(&self.superblock),
            LaneFile::Wal => std::slice::from_ref(&self.wal),
            LaneFile::Data if planted!(OneDataFileSynced) => &self.data[..1],
            LaneFile::Data => &self.data,
        }
    }
}

/// A sync in flight, of one or more files.
struct SyncInFlight {
    op: OpId,
    left: usize,
    /// What the first file that failed said.
    failed: Option<Done>,
}

/// The disk of a lane.
pub struct DiskPlace {
    pub disk: Uuid,
    /// The folder, for reports.
    pub path: String,
    /// Keeps other processes off, for as long as the lane works.
    pub lock: Option<std::fs::File>,
}

/// A lane with its disk, its files, its index and its operations in flight.
pub struct LaneRuntime {
    pub lane: Lane,
    pub place: DiskPlace,
    pub files: OpenFiles,
    pub index: Box<dyn IndexRunner>,
    /// Why the disk is poisoned.
    pub poisoned: Option<String>,
    /// Free space as last announced to peers, in bytes, and when.
    announced: Option<(u64, Mono)>,
    /// Effects that the driver has not got yet.
    pending: Vec<Effect>,
    syncs: Vec<SyncInFlight>,
    /// Writes in flight that appends wait for, and their start, oldest first.
    log_writes: Vec<(OpId, Mono)>,
    /// The oldest operation in flight, and since when it was seen to be the oldest.
    oldest: Option<(OpId, Mono)>,
    pub number: u8,
    pool: Pool,
    /// The metrics of the disk.
    pub meters: Arc<Meters>,
}

impl LaneRuntime {
    pub fn new(
        number: u8,
        lane: Lane,
        place: DiskPlace,
        files: OpenFiles,
        index: Box<dyn IndexRunner>,
        pool: Pool,
    ) -> LaneRuntime {
        let (poisoned, announced, oldest) = (None, None, None);
        let (pending, log_writes, syncs) = (Vec::new(), Vec::new(), Vec::new());
        LaneRuntime {
            lane,
            place,
            files,
            index,
            poisoned,
            announced,
            pending,
            syncs,
            log_writes,
            oldest,
            number,
            pool,
            meters: Arc::default(),
        }
    }

    pub fn poll(&mut self, now: Mono, events: &mut Vec<Event>) {
        self.lane.poll(now, &mut self.pending, events);
    }

    /// Hands the effects of this round to the driver and the index.
    pub fn submit(&mut self, now: Mono, driver: &mut dyn Driver) {
        let mut pending = std::mem::take(&mut self.pending);
        for effect in pending.drain(..) {
            self.start(now, driver, effect);
        }
        self.pending = pending;
        self.index.pump();
    }

    fn start(&mut self, now: Mono, driver: &mut dyn Driver, effect: Effect) {
        let target = |op| Target::Lane(self.number, op).token();
        match effect {
            Effect::Write { op, file, offset, bufs, durable } => {
                // An append waits for it: a write of the log, or of a slot that the log will name.
                if durable && file != LaneFile::Superblock {
                    self.log_writes.push((op, now));
                }
                let len = bufs.iter().map(bytes::Bytes::len).sum();
                let (file, offset) = self.files.locate(file, offset, len);
                driver.submit(target(op), Op::Write { file, offset, bufs, durable });
            }
            Effect::Read { op, file, offset, len } => {
                let (file, offset) = self.files.locate(file, offset, len);
                let buf = self.pool.take(len);
                driver.submit(target(op), Op::Read { file, offset, buf });
            }
            Effect::Sync { op, file } => {
                let token = Target::LaneSync(self.number, op).token();
                let files = self.files.all_of(file);
                self.syncs.push(SyncInFlight { op, left: files.len(), failed: None });
                files.iter().for_each(|file| driver.submit(token, Op::Sync { file: *file }));
            }
            Effect::Index { op, job } => self.index.submit(op, job),
        }
    }

    fn completed(&mut self, now: Mono, op: OpId, is_sync: bool, completion: Completion) {
        if let Some(place) = self.log_writes.iter().position(|(write, _)| *write == op) {
            let (_, began) = self.log_writes.remove(place);
            self.meters.log_writes.record(now.since(began), 1);
        }
        let done = match (completion.result, completion.buffers) {
            (Err(error), _) => Done::Failed(error.kind(), error.to_string()),
            (Ok(IoDone::Bytes(count)), Buffers::Read(buf)) if count == buf.len() => {
                Done::Read(buf.freeze())
            }
            (Ok(_), Buffers::Read(buf)) => Done::Failed(
                std::io::ErrorKind::UnexpectedEof,
                format!("a read of {} bytes ended early", buf.len()),
            ),
            (Ok(_), _) if is_sync => Done::Synced,
            (Ok(_), _) => Done::Written,
        };
        let done = if is_sync { self.synced(op, done) } else { Some(done) };
        if let Some(done) = done {
            self.lane.complete(op, done);
        }
    }

    /// One file of a sync has ended: returns the end of the whole, when it is the last one.
    fn synced(&mut self, op: OpId, done: Done) -> Option<Done> {
        let position = self.syncs.iter().position(|sync| sync.op == op);
        let position = position.expect("a sync that is in flight");
        let sync = &mut self.syncs[position];
        sync.left -= 1;
        if !matches!(done, Done::Synced) {
            sync.failed.get_or_insert(done);
        }
        if sync.left > 0 {
            return None;
        }
        Some(self.syncs.swap_remove(position).failed.unwrap_or(Done::Synced))
    }

    /// The disk and its free bytes, when they changed or a sign of life to other pods is due.
    pub fn news_of_space(&mut self, now: Mono) -> Option<(Uuid, u64)> {
        let free_bytes = self.lane.space().free_bytes;
        let announced = self.announced.filter(|(_, at)| now.since(*at) < ANNOUNCE_EVERY);
        if announced.is_some_and(|(bytes, _)| bytes == free_bytes) {
            return None;
        }
        self.announced = Some((free_bytes, now));
        Some((self.place.disk, free_bytes))
    }

    /// True when the oldest log write or the oldest operation is overdue. Asked once per tick.
    pub fn is_hung(&mut self, now: Mono) -> bool {
        let oldest = self.lane.oldest_op();
        if oldest != self.oldest.map(|(op, _)| op) {
            self.oldest = oldest.map(|op| (op, now));
        }
        let overdue = |started: Option<&(OpId, Mono)>, limit| {
            started.is_some_and(|(_, since)| now.since(*since) > limit)
        };
        overdue(self.log_writes.first(), LOG_WRITE_HUNG)
            || overdue(self.oldest.as_ref(), OPERATION_HUNG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::{Mistake, assert_found};
    use crate::types::EXTENT_BYTES;

    #[test]
    fn a_sync_is_of_all_data_files() {
        let slot = EXTENT_BYTES as u64;
        let places = DataFiles::new(5 * slot, 2 * slot).expect("whole slots");
        let data: Vec<FileId> = (2..5).map(FileId).collect();
        assert_eq!(places.count(), data.len());
        let files = OpenFiles { superblock: FileId(0), wal: FileId(1), data, places };
        assert_eq!(files.all_of(LaneFile::Wal), [FileId(1)]);
        assert_eq!(files.all_of(LaneFile::Data), [FileId(2), FileId(3), FileId(4)]);
    }

    #[test]
    fn broken_rules_are_noticed() {
        assert_found(Mistake::OneDataFileSynced, a_sync_is_of_all_data_files);
    }
}
