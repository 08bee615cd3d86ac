//! The parts below a lane of a simulated pod: blocking access to its disk, and the disk's index.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::sim::checks::{Checks, Flushed};
use crate::sim::disk::Power;
use crate::sim::kernel::Kernel;
use crate::sim::names::{DiskNumber, Host};
use crate::store::index::memory::MemoryIndex;
use crate::store::lane::LaneFiles;
use crate::store::messages::{Done, IndexJob, LaneFile, OpId};
use crate::worker::{IndexRunner, execute};

/// Alarms above this number belong to index jobs.
pub const INDEX_ALARMS: u64 = 1 << 32;

/// An index job in flight: its lane and its result.
pub struct Job {
    pub host: Host,
    pub starts: u32,
    pub lane: u8,
    pub op: OpId,
    pub done: Done,
    /// The commits that become durable with it (their number), and the consequences.
    pub flush: Option<(Rc<RefCell<MemoryIndex>>, u64, Flushed)>,
}

/// Jobs, by the alarms that end them.
pub type Jobs = Rc<RefCell<BTreeMap<u64, Job>>>;

/// Blocking access to a simulated disk.
pub struct SimFiles {
    pub kernel: Rc<RefCell<Kernel>>,
    pub disk: DiskNumber,
    pub pool: Pool,
}

impl LaneFiles for SimFiles {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let mut buf = self.pool.take(len);
        self.kernel.borrow_mut().disks[self.disk].file(file).read(offset, &mut buf);
        Ok(buf.freeze())
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let Kernel { now, disks, rng, .. } = &mut *self.kernel.borrow_mut();
        let disk = &mut disks[self.disk];
        disk.power = match disk.power {
            Power::Stays => Power::Stays,
            Power::FailsAfter(writes @ 1..) => Power::FailsAfter(writes - 1),
            Power::FailsAfter(0) | Power::HasFailed => {
                disk.power = Power::HasFailed;
                disk.file(file).tear(*now, offset, bytes, rng);
                return Err(std::io::Error::other("the power failed"));
            }
        };
        disk.file(file).write(*now, offset, bytes, true);
        Ok(())
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        Ok(self.kernel.borrow_mut().disks[self.disk].file(file).bytes)
    }
}

/// The index of a simulated lane. Jobs take effect in order and end later. Their flush is durable
/// only at the end; if power fails earlier, any part of it may be lost.
pub struct SimIndex {
    pub disk: DiskNumber,
    pub starts: u32,
    pub lane: u8,
    pub index: Rc<RefCell<MemoryIndex>>,
    pub kernel: Rc<RefCell<Kernel>>,
    pub checks: Rc<RefCell<Checks>>,
    pub jobs: Jobs,
}

impl SimIndex {
    /// Executes a job; returns its answer, and the changes that become durable at its end.
    fn carry_out(&mut self, kernel: &mut Kernel, job: IndexJob) -> (Done, Option<Flushed>) {
        let disk = &mut kernel.disks[self.disk];
        if disk.sick.dead_until > kernel.now {
            disk.failures += 1;
            let text = "the disk of the index is dead".to_owned();
            return (Done::Failed(std::io::ErrorKind::Other, text), None);
        }
        let index = &mut *self.index.borrow_mut();
        self.checks.borrow_mut().index_job(disk, &job, index);
        match job {
            IndexJob::Commit { edits, flush } => {
                let done = execute(index, IndexJob::Commit { edits, flush: false });
                let flushed = flush.then(|| self.checks.borrow_mut().index_flushes(index));
                (done, flushed)
            }
            job => (execute(index, job), None),
        }
    }
}

impl IndexRunner for SimIndex {
    fn submit(&mut self, op: OpId, job: IndexJob) {
        let kernel = Rc::clone(&self.kernel);
        let mut kernel = kernel.borrow_mut();
        let (done, flushed) = self.carry_out(&mut kernel, job);
        let alarm = INDEX_ALARMS + kernel.next_job();
        kernel.index_job(self.disk, alarm, flushed.is_some());
        let commits = self.index.borrow().commits();
        let flush = flushed.map(|flushed| (Rc::clone(&self.index), commits, flushed));
        let SimIndex { disk, starts, lane, .. } = *self;
        let host = kernel.disks[disk].host;
        self.jobs.borrow_mut().insert(alarm, Job { host, starts, lane, op, done, flush });
    }

    fn pump(&mut self) {}
}
