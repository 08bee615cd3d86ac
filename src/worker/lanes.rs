//! A lane at work: its effects become operations of the driver and jobs of the index thread,
//! their ends go back to it.

use std::time::Duration;

use crate::io::buffer::Pool;
use crate::io::driver::{Buffers, Completion, Done as IoDone, Driver, FileId, Op};
use crate::store::lane::Lane;
use crate::store::seam::{Done, Effect, LaneFile, OpId};
use crate::types::{Mono, Uuid};
use crate::worker::index_thread::IndexRunner;
use crate::worker::token::Target;

/// A log write that takes longer than this has hung: the lane's leaders step down.
pub const LOG_WRITE_HUNG: Duration = Duration::from_secs(2);
/// So has anything else that a lane has asked for: a read, a sync, a flush of the index. They may
/// stand in a queue behind others.
pub const OPERATION_HUNG: Duration = Duration::from_secs(10);

/// The open files of a disk.
#[derive(Clone, Copy, Debug)]
pub struct LaneFiles {
    pub superblock: FileId,
    pub wal: FileId,
    pub data: FileId,
}

/// Which disk a lane is on.
pub struct DiskPlace {
    pub disk: Uuid,
    /// The folder, for reports.
    pub path: String,
    /// Keeps other processes off, for as long as the lane works.
    pub lock: Option<std::fs::File>,
}

/// See the module.
pub struct LaneRuntime {
    pub lane: Lane,
    pub place: DiskPlace,
    pub files: LaneFiles,
    pub index: Box<dyn IndexRunner>,
    /// Why the disk was given up.
    pub poisoned: Option<String>,
    /// Free space that the peers were last told of, and when.
    pub announced: Option<(u64, Mono)>,
    /// What the lane asked for and the driver has not got yet.
    pub pending: Vec<Effect>,
    /// Writes that appends wait for under way and when they were started, oldest first.
    pub log_writes: Vec<(OpId, Mono)>,
    /// The oldest of all operations under way, and since when it was seen to be that.
    oldest: Option<(OpId, Mono)>,
    number: u8,
    pool: Pool,
}

impl LaneRuntime {
    pub fn new(
        number: u8,
        lane: Lane,
        place: DiskPlace,
        files: LaneFiles,
        index: Box<dyn IndexRunner>,
        pool: Pool,
    ) -> LaneRuntime {
        let (poisoned, announced) = (None, None);
        let (pending, log_writes) = (Vec::new(), Vec::new());
        LaneRuntime {
            lane,
            place,
            files,
            index,
            poisoned,
            announced,
            pending,
            log_writes,
            oldest: None,
            number,
            pool,
        }
    }

    /// Hands everything that the lane asked for in this round to the driver.
    pub fn submit(&mut self, now: Mono, driver: &mut dyn Driver) {
        let mut pending = std::mem::take(&mut self.pending);
        for effect in pending.drain(..) {
            self.start(now, driver, effect);
        }
        self.pending = pending;
        self.index.pump();
    }

    fn start(&mut self, now: Mono, driver: &mut dyn Driver, effect: Effect) {
        let target = |op| Target::Lane { lane: self.number, op }.token();
        match effect {
            Effect::Write { op, file, offset, bufs, durable } => {
                // An append waits for it: a write of the log, or of a slot that the log will name.
                if durable && file != LaneFile::Superblock {
                    self.log_writes.push((op, now));
                }
                let file = self.file(file);
                driver.submit(target(op), Op::Write { file, offset, bufs, durable });
            }
            Effect::Read { op, file, offset, len } => {
                let (file, buf) = (self.file(file), self.pool.take(len));
                driver.submit(target(op), Op::Read { file, offset, buf });
            }
            Effect::Sync { op, file } => {
                let token = Target::LaneSync { lane: self.number, op }.token();
                driver.submit(token, Op::Sync { file: self.file(file) });
            }
            Effect::Index { op, job } => self.index.submit(op, job),
        }
    }

    /// An operation of the driver ended.
    pub fn completed(&mut self, op: OpId, is_sync: bool, completion: Completion) {
        self.log_writes.retain(|(write, _)| *write != op);
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
        self.lane.complete(op, done);
    }

    /// True when the oldest log write is overdue, or the oldest operation of all. Asked once per
    /// tick.
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

    fn file(&self, file: LaneFile) -> FileId {
        match file {
            LaneFile::Superblock => self.files.superblock,
            LaneFile::Wal => self.files.wal,
            LaneFile::Data => self.files.data,
        }
    }
}
