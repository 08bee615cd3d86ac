//! One io_uring with a few registered files, used as Holdfast's worker uses its own: a round is one
//! system call that submits everything, runs the kernel's deferred work, and waits.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};

/// A file's position in the table of registered files.
pub type File = u32;

/// How long one wait takes at most: a send that does not end at once delays others by so much.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Entries of one system call: two sends to followers, one to the client, three receives and the
/// writes of the log in flight are below this.
const ENTRIES: u32 = 32;

pub struct Ring {
    ring: IoUring,
    /// Sends that the next system call starts. They end at once, so the wait counts past them.
    sends: usize,
}

/// An operation that ended: what the caller named it, and the kernel's answer.
pub struct Ended {
    pub name: u64,
    pub result: io::Result<usize>,
}

impl Ring {
    /// A ring for the calling thread, with a table of these files. -1 leaves a place empty.
    pub fn new(files: &[RawFd]) -> io::Result<Ring> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES)?;
        ring.submitter().register_files(files)?;
        Ok(Ring { ring, sends: 0 })
    }

    /// Puts a file into a place of the table, or empties it with -1.
    pub fn set_file(&mut self, file: File, fd: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files_update(file, &[fd]).map(drop)
    }

    /// Receives at least one byte. None: the other end has closed.
    pub fn recv(&mut self, name: u64, file: File, into: &'static mut [u8]) {
        let entry = opcode::Recv::new(types::Fixed(file), into.as_mut_ptr(), into.len() as u32);
        self.push(entry.build().user_data(name));
    }

    /// Sends all of it. One send at a time for each socket.
    pub fn send(&mut self, name: u64, file: File, bytes: &'static [u8]) {
        self.sends += 1;
        let entry = opcode::Send::new(types::Fixed(file), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        self.push(entry.build().user_data(name));
    }

    /// Writes all of it, durably.
    pub fn write(&mut self, name: u64, file: File, offset: u64, bytes: &'static [u8]) {
        let entry = opcode::Write::new(types::Fixed(file), bytes.as_ptr(), bytes.len() as u32)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC);
        self.push(entry.build().user_data(name));
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: the memory of every operation is never freed (`'static`), and its owner neither
        // reads nor writes it before the operation has ended.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("a round has fewer operations than the ring has entries");
    }

    /// The one system call of a round. Appends what has ended.
    pub fn round(&mut self, out: &mut Vec<Ended>) -> io::Result<()> {
        let timeout = types::Timespec::from(WAIT_MAX);
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        let want = 1 + std::mem::take(&mut self.sends);
        match self.ring.submitter().submit_with_args(want, &arguments) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
        out.extend(self.ring.completion().map(|entry| {
            Ended {
                name: entry.user_data(),
                result: usize::try_from(entry.result())
                    .map_err(|_| io::Error::from_raw_os_error(-entry.result())),
            }
        }));
        Ok(())
    }
}
