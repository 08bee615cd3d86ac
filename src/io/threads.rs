//! A few threads that carry out file operations with blocking system calls, where io_uring is not
//! permitted. Operations start in the order of the queue; the worker's budgets bound its length.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::io::driver::{Completion, Done, Op, Token, Wake};
use crate::io::gather::Gather;
use crate::io::operation::{assert_aligned, buffers_of, gather_op};
use crate::io::wake::EventFd;
use crate::types::BLOCK_BYTES;

/// A pool of threads. Dropping it waits for started operations, and drops queued ones.
pub(super) struct FileThreads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Signals new jobs and the end.
    changed: Condvar,
    done: Mutex<Vec<Completion>>,
    /// Woken when `done` becomes non-empty.
    wake: Arc<EventFd>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    ended: bool,
}

struct Job {
    token: Token,
    file: Arc<OwnedFd>,
    op: Op,
}

impl FileThreads {
    /// Starts `count` threads. `wake` is woken when completions are ready.
    pub fn start(count: usize, wake: Arc<EventFd>) -> io::Result<FileThreads> {
        let mut pool = FileThreads {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                changed: Condvar::new(),
                done: Mutex::default(),
                wake,
            }),
            threads: Vec::with_capacity(count),
        };
        for number in 0..count {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("file-io-{number}"))
                .spawn(move || shared.serve())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues a `Read`, `Write` or `Sync`.
    pub fn queue(&self, token: Token, file: Arc<OwnedFd>, op: Op) {
        // Checked here because a panic in a thread would leave the operation without completion.
        assert_aligned(&op);
        lock(&self.shared.queue).jobs.push_back(Job { token, file, op });
        self.shared.changed.notify_one();
    }

    /// Takes the completions.
    pub fn take_done(&self, out: &mut Vec<Completion>) {
        out.append(&mut lock(&self.shared.done));
    }
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        {
            let mut queue = lock(&self.shared.queue);
            queue.ended = true;
            queue.jobs.clear();
        }
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut gather = Gather::default();
        while let Some(job) = self.next() {
            let completion = run(job, &mut gather);
            gather.clear();
            let mut done = lock(&self.done);
            let first = done.is_empty();
            done.push(completion);
            drop(done);
            if first {
                self.wake.wake();
            }
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
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
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
