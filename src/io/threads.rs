//! Threads that carry out file operations with blocking system calls. Each disk has threads of its
//! own, so one that hangs takes no other's: some for durable writes, which must not wait for reads,
//! and some for all else. They start when they are needed. Operations of one kind on one disk start
//! in the order of the queue; what a lane may have in flight bounds its length.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::io::driver::{Completion, Disk, Done, Op, Token, Wake};
use crate::io::gather::Gather;
use crate::io::operation::{assert_aligned, buffers_of, gather_op};
use crate::io::wake::EventFd;
use crate::limits::{DISK_DURABLE_THREADS, DISK_FILE_THREADS};
use crate::types::BLOCK_BYTES;

/// How long a dropped pool waits for operations that have started.
const DROP_WAIT: Duration = Duration::from_secs(10);

/// The threads of all disks. Dropping it waits for started operations, and drops queued ones. The
/// threads of a disk that hangs are left behind; they own what their operations use.
pub(super) struct FileThreads {
    pools: BTreeMap<(Disk, Kind), Arc<Pool>>,
    ended: Arc<Ended>,
}

/// The two kinds of file operations, which do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Durable,
    Other,
}

impl Kind {
    pub fn of(op: &Op) -> Kind {
        match op {
            Op::Write { durable: true, .. } => Kind::Durable,
            _ => Kind::Other,
        }
    }
}

/// Where threads put completions.
struct Ended {
    done: Mutex<Vec<Completion>>,
    /// Woken when `done` becomes non-empty.
    wake: Arc<EventFd>,
}

/// The threads for one kind of operations on one disk.
struct Pool {
    threads_max: usize,
    queue: Mutex<Queue>,
    /// Signals new jobs and the end.
    changed: Condvar,
    /// Signals the end of a thread.
    thread_ended: Condvar,
    ended: Arc<Ended>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    ended: bool,
}

struct Job {
    token: Token,
    file: Arc<OwnedFd>,
    op: Op,
}

impl FileThreads {
    /// `wake` is woken when completions are ready.
    pub fn new(wake: Arc<EventFd>) -> FileThreads {
        let ended = Arc::new(Ended { done: Mutex::default(), wake });
        FileThreads { pools: BTreeMap::new(), ended }
    }

    /// Queues a `Read`, `Write` or `Sync` of a file of `disk`. It ends with an error if there is no
    /// thread for it, and none can be started.
    pub fn queue(&mut self, disk: Disk, token: Token, file: Arc<OwnedFd>, op: Op) {
        // Checked here because a panic in a thread would leave the operation without completion.
        assert_aligned(&op);
        let kind = Kind::of(&op);
        let pool = self.pools.entry((disk, kind)).or_insert_with(|| {
            let threads_max = match kind {
                Kind::Durable => DISK_DURABLE_THREADS,
                Kind::Other => DISK_FILE_THREADS,
            };
            let (changed, thread_ended) = (Condvar::new(), Condvar::new());
            let (queue, ended) = (Mutex::default(), Arc::clone(&self.ended));
            Arc::new(Pool { threads_max, queue, changed, thread_ended, ended })
        });
        let mut queue = lock(&pool.queue);
        queue.jobs.push_back(Job { token, file, op });
        if queue.idle >= queue.jobs.len() || queue.threads == pool.threads_max {
            pool.changed.notify_one();
            return;
        }
        let serving = Arc::clone(pool);
        let name = format!("file-io-{}", disk.0);
        match std::thread::Builder::new().name(name).spawn(move || serving.serve()) {
            Ok(_) => queue.threads += 1,
            // The other threads do it later.
            Err(error) if queue.threads > 0 => {
                tracing::debug!(%error, "could not start another thread for files");
            }
            Err(error) => {
                let Job { token, op, .. } = queue.jobs.pop_back().expect("just queued");
                let buffers = buffers_of(op);
                self.ended.push(Completion { token, result: Err(error), buffers });
            }
        }
    }

    /// Takes the completions.
    pub fn take_done(&self, out: &mut Vec<Completion>) {
        out.append(&mut lock(&self.ended.done));
    }
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        for pool in self.pools.values() {
            let mut queue = lock(&pool.queue);
            queue.ended = true;
            queue.jobs.clear();
            pool.changed.notify_all();
        }
        let deadline = Instant::now() + DROP_WAIT;
        for ((disk, _), pool) in &self.pools {
            let mut queue = lock(&pool.queue);
            while queue.threads > 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let number = disk.0;
                    tracing::warn!(number, "a disk hangs; the threads that wait for it are left");
                    break;
                }
                let waited = pool.thread_ended.wait_timeout(queue, left);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        // The last thread may hold the list a moment longer, and with it the buffers.
        let done = std::mem::take(&mut *lock(&self.ended.done));
        drop(done);
    }
}

impl Ended {
    fn push(&self, completion: Completion) {
        let mut done = lock(&self.done);
        let first = done.is_empty();
        done.push(completion);
        drop(done);
        if first {
            self.wake.wake();
        }
    }
}

impl Pool {
    fn serve(&self) {
        let _counted = CountedThread(self);
        let mut gather = Gather::default();
        while let Some(job) = self.next() {
            let completion = run(job, &mut gather);
            gather.clear();
            self.ended.push(completion);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.ended {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue.idle += 1;
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

/// Counts a thread out when it ends, also by a panic.
struct CountedThread<'a>(&'a Pool);

impl Drop for CountedThread<'_> {
    fn drop(&mut self) {
        lock(&self.0.queue).threads -= 1;
        self.0.thread_ended.notify_all();
    }
}

/// A panic in between cannot leave these lists inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(job: Job, gather: &mut Gather) -> Completion {
    let Job { token, file, mut op } = job;
    gather_op(gather, &mut op);
    let result = match &mut op {
        Op::Read { offset, buf, .. } => repeat(|| rustix::io::pread(&file, &mut buf[..], *offset)),
        Op::Write { offset, durable, .. } => write(&file, *offset, *durable, gather),
        Op::Sync { .. } => repeat(|| rustix::fs::fdatasync(&file)).map(|()| 0),
        _ => unreachable!("only file operations are queued here"),
    };
    Completion { token, result: result.map(Done::Bytes), buffers: buffers_of(op) }
}

/// Writes all gathered memory. A write cut within a block is repeated from the block's start.
fn write(file: &OwnedFd, offset: u64, durable: bool, gather: &mut Gather) -> io::Result<usize> {
    let total_bytes = gather.remaining_bytes();
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    while gather.remaining_bytes() > 0 {
        let at = offset + (total_bytes - gather.remaining_bytes()) as u64;
        let at = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let window = gather.window();
        // SAFETY: the gathered memory belongs to the operation, which the caller holds.
        let written = unsafe {
            libc::pwritev2(
                file.as_raw_fd(),
                window.as_ptr(),
                window.len() as libc::c_int,
                at,
                flags,
            )
        };
        let Ok(count) = usize::try_from(written) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        let whole = count - count % BLOCK_BYTES;
        if whole == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        gather.advance(whole);
    }
    Ok(total_bytes)
}

fn repeat<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
