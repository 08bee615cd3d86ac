//! A log: a prewritten file, and batches that are written to it in order.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::ring::Ring;

/// What a batch has in front of its payloads in the log.
pub const BLOCK_BYTES: usize = 4096;
/// The most payload of one batch.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Writes in flight. What comes meanwhile waits for the next batch.
const IN_FLIGHT_MAX: usize = 2;
/// The end of the header block: length of the payload and number of the last write, as u64.
pub const HEAD_BYTES: usize = 16;
/// The place of the log's file in every ring.
pub const LOG_FILE: u32 = 0;
/// Length of one write of the preparation.
const PREWRITE_BYTES: usize = 1 << 20;

/// Memory that is never freed, so that the kernel may always use it. Aligned for O_DIRECT.
pub fn leak(bytes: usize) -> &'static mut [u8] {
    let layout = Layout::from_size_align(bytes, BLOCK_BYTES).expect("a size that is not absurd");
    assert!(bytes > 0);
    // SAFETY: the layout has a size; the memory is zeroed, and nobody else has it.
    unsafe {
        let memory = alloc_zeroed(layout);
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        std::slice::from_raw_parts_mut(memory, bytes)
    }
}

/// One write to the log. Its memory holds the header block and the payloads, contiguously.
struct Batch {
    memory: *mut u8,
    payload_bytes: usize,
    /// The number of the last write in it.
    last: u64,
    /// Operations that use the memory now or later.
    users: u32,
    durable: bool,
}

/// A place in the list of batches.
pub type BatchId = usize;

pub struct Log {
    file: File,
    length: u64,
    at: u64,
    batches: Vec<Batch>,
    free: Vec<BatchId>,
    /// The batch that takes new writes.
    open: BatchId,
    in_flight: VecDeque<BatchId>,
    /// All writes up to this number are durable here.
    pub durable: u64,
}

impl Log {
    /// Opens a log of so many MiB, and writes all of it once.
    pub fn open(path: &str, mib: &str) -> Result<Log, String> {
        let mib: u64 = mib.parse().map_err(|error| format!("the length {mib:?}: {error}"))?;
        let length = mib << 20;
        if length < 2 * (BATCH_BYTES_MAX + BLOCK_BYTES) as u64 {
            return Err(format!("a log of {mib} MiB is too short"));
        }
        let file = prewrite(path, length).map_err(|error| format!("{path}: {error}"))?;
        let mut log = Log {
            file,
            length,
            at: 0,
            batches: Vec::new(),
            free: Vec::new(),
            open: 0,
            in_flight: VecDeque::new(),
            durable: 0,
        };
        log.open = log.vacant();
        Ok(log)
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// An empty batch. Their number is bounded by what is in flight.
    fn vacant(&mut self) -> BatchId {
        let id = self.free.pop().unwrap_or_else(|| {
            let memory = leak(BLOCK_BYTES + BATCH_BYTES_MAX).as_mut_ptr();
            let batch = Batch { memory, payload_bytes: 0, last: 0, users: 0, durable: false };
            self.batches.push(batch);
            self.batches.len() - 1
        });
        let batch = &mut self.batches[id];
        (batch.payload_bytes, batch.durable) = (0, false);
        id
    }

    /// Adds a payload to the open batch; false when it does not fit now.
    pub fn add(&mut self, payload: &[u8], number: u64) -> bool {
        let batch = &mut self.batches[self.open];
        assert!(payload.len() <= BATCH_BYTES_MAX && payload.len().is_multiple_of(BLOCK_BYTES));
        if batch.payload_bytes + payload.len() > BATCH_BYTES_MAX {
            return false;
        }
        // SAFETY: the range is inside the batch's memory, and no operation uses an open batch.
        unsafe {
            let to = batch.memory.add(BLOCK_BYTES + batch.payload_bytes);
            std::ptr::copy_nonoverlapping(payload.as_ptr(), to, payload.len());
        }
        (batch.payload_bytes, batch.last) = (batch.payload_bytes + payload.len(), number);
        true
    }

    /// Closes the open batch when it has something and another write may start. Each of its `users`
    /// ends with [`Log::release`] or, for the log itself, with [`Log::written`].
    pub fn close(&mut self, users: u32) -> Option<BatchId> {
        let id = self.open;
        if self.batches[id].payload_bytes == 0 || self.in_flight.len() == IN_FLIGHT_MAX {
            return None;
        }
        let batch = &mut self.batches[id];
        batch.users = users;
        let (length, last) = (batch.payload_bytes as u64, batch.last);
        // SAFETY: the header is inside the memory, and no operation uses the batch yet.
        let head = unsafe {
            let start = batch.memory.add(BLOCK_BYTES - HEAD_BYTES);
            std::slice::from_raw_parts_mut(start, HEAD_BYTES)
        };
        head[..8].copy_from_slice(&length.to_le_bytes());
        head[8..].copy_from_slice(&last.to_le_bytes());
        self.open = self.vacant();
        Some(id)
    }

    /// The bytes of a closed batch from `skip` on, for one of its users.
    fn lend(&self, id: BatchId, skip: usize) -> &'static [u8] {
        let batch = &self.batches[id];
        assert!(batch.users > 0);
        let length = BLOCK_BYTES + batch.payload_bytes - skip;
        // SAFETY: the memory lives for ever, and a closed batch does not change before all
        // operations on it have ended.
        unsafe { std::slice::from_raw_parts(batch.memory.add(skip), length) }
    }

    /// A closed batch as a message: the end of the header block and the payloads.
    pub fn message(&self, id: BatchId) -> &'static [u8] {
        self.lend(id, BLOCK_BYTES - HEAD_BYTES)
    }

    /// Starts the durable write of a closed batch, under its id as a name.
    pub fn write(&mut self, ring: &mut Ring, id: BatchId) {
        let bytes = self.lend(id, 0);
        if self.at + bytes.len() as u64 > self.length {
            self.at = 0;
        }
        ring.write(id as u64, LOG_FILE, self.at, bytes);
        self.at += bytes.len() as u64;
        self.in_flight.push_back(id);
    }

    /// The write of a batch ended. Writes count as durable in their order.
    pub fn written(&mut self, id: BatchId, result: io::Result<usize>) -> io::Result<()> {
        if result? != BLOCK_BYTES + self.batches[id].payload_bytes {
            return Err(io::Error::other("a short write to the log"));
        }
        self.batches[id].durable = true;
        while let Some(first) = self.in_flight.front().copied() {
            if !self.batches[first].durable {
                break;
            }
            self.durable = self.batches[first].last;
            self.in_flight.pop_front();
        }
        self.release(id);
        Ok(())
    }

    /// A user of a batch ended.
    pub fn release(&mut self, id: BatchId) {
        self.batches[id].users -= 1;
        if self.batches[id].users == 0 {
            self.free.push(id);
        }
    }
}

/// A file whose blocks are all allocated and written, open for O_DIRECT.
fn prewrite(path: &str, length: u64) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
    let file = options.open(path)?;
    let block = leak(PREWRITE_BYTES);
    block.fill(0xa5);
    for offset in (0..length).step_by(PREWRITE_BYTES) {
        file.write_all_at(block, offset)?;
    }
    file.sync_all()?;
    Ok(file)
}
