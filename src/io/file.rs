//! Files for O_DIRECT: opening, creating, and blocking access at start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, StatxFlags};

use crate::io::buffer::{Pool, is_aligned};
use crate::types::BLOCK_BYTES;

/// `STATX_DIOALIGN` of statx(2), since Linux 6.1.
const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);
/// Bytes that one system call zeroes or reads.
const CHUNK_BYTES: usize = 1 << 20;

/// How to open a file for O_DIRECT. Offsets, lengths and memory are multiples of 4 KiB.
#[derive(Clone, Debug)]
pub struct OpenFile {
    pub path: PathBuf,
    /// Create it when it is missing.
    pub create: bool,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("could not open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the file system of {path} does not support direct I/O (O_DIRECT)")]
    NoDirectIo { path: PathBuf },
    #[error(
        "direct I/O on {path} needs an alignment of {needed_bytes} bytes; at most 4096 bytes \
         are supported"
    )]
    Alignment { path: PathBuf, needed_bytes: u32 },
    #[error("{path} is in use: a process has it open, or a killed one still has I/O in flight")]
    Busy { path: PathBuf },
    #[error("could not prepare {path}")]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> io::Error {
        let kind = match &error {
            FileError::Open { source, .. } | FileError::Prepare { source, .. } => source.kind(),
            FileError::NoDirectIo { .. } | FileError::Alignment { .. } => {
                io::ErrorKind::Unsupported
            }
            FileError::Busy { .. } => io::ErrorKind::ResourceBusy,
        };
        io::Error::new(kind, error)
    }
}

/// Opens for O_DIRECT after a check that it allows transfers of 4 KiB. A created file's directory
/// entry is durable on return.
pub fn open_direct(file: &OpenFile) -> Result<OwnedFd, FileError> {
    let path = &file.path;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(file.create)
        .truncate(false)
        .mode(0o640)
        .custom_flags(libc::O_DIRECT)
        .open(path);
    let opened = match opened {
        Ok(opened) => opened,
        Err(source) if source.kind() == io::ErrorKind::InvalidInput => {
            return Err(FileError::NoDirectIo { path: path.clone() });
        }
        Err(source) => {
            return Err(FileError::Open { path: path.clone(), source });
        }
    };
    check_alignment(&opened, path)?;
    if file.create {
        sync_directory_of(path)
            .map_err(|source| FileError::Prepare { path: path.clone(), source })?;
    }
    Ok(opened.into())
}

/// A file that is open for O_DIRECT, and locked for one driver. The lock lasts until the last
/// holder of the open file is gone, requests in flight included. So requests of a killed process
/// keep the next driver out, and cannot overwrite what that one has read.
#[derive(Debug)]
pub struct ExclusiveFile(OwnedFd);

impl ExclusiveFile {
    /// Like [`open_direct`]. [`FileError::Busy`] while another driver of any process has it open,
    /// or while requests of a killed process are in flight. Blocks.
    pub fn open(file: &OpenFile) -> Result<ExclusiveFile, FileError> {
        let opened = open_direct(file)?;
        let path = file.path.clone();
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(ExclusiveFile(opened)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FileError::Busy { path }),
            Err(errno) => Err(FileError::Prepare { path, source: errno.into() }),
        }
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

/// True if operations that io_uring cannot carry out at once wait for this file system only: on
/// ext4 and XFS since Linux 6.4. On others, writes that have to wait are put into few queues by the
/// address of their file, which files of different disks may share. And the begin of an operation
/// may wait itself, as it does for FUSE, which asks its server first.
pub(super) fn waits_alone(fd: impl AsFd) -> bool {
    const EXT4: libc::c_long = 0xEF53;
    const XFS: libc::c_long = 0x5846_5342;
    let uname = rustix::system::uname();
    let is_new = is_release_at_least(&uname.release().to_string_lossy(), (6, 4));
    let file_system = rustix::fs::fstatfs(fd).map(|found| found.f_type as libc::c_long);
    is_new && matches!(file_system, Ok(EXT4 | XFS))
}

/// Compares the first two numbers of a kernel's release, such as `6.1.0-13-amd64`.
fn is_release_at_least(release: &str, least: (u32, u32)) -> bool {
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
    let mut numbers = release.split('.').map(|part| digits(part).parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= least
}

/// Kernels before 6.1 do not tell the alignment: the accepted O_DIRECT must suffice.
fn check_alignment(file: &File, path: &Path) -> Result<(), FileError> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, STATX_DIOALIGN)
        .map_err(|errno| FileError::Prepare { path: path.to_owned(), source: errno.into() })?;
    if stat.stx_mask & STATX_DIOALIGN.bits() == 0 {
        return Ok(());
    }
    let needed_bytes = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
    if stat.stx_dio_offset_align == 0 {
        return Err(FileError::NoDirectIo { path: path.to_owned() });
    }
    if !BLOCK_BYTES.is_multiple_of(needed_bytes as usize) {
        return Err(FileError::Alignment { path: path.to_owned(), needed_bytes });
    }
    Ok(())
}

/// Makes the directory entry of `path` durable.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Length of a file or of a block device in bytes.
pub(super) fn size_bytes(fd: impl AsFd) -> io::Result<u64> {
    let file = File::from(fd.as_fd().try_clone_to_owned()?);
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Ok(rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?);
    }
    Ok(metadata.len())
}

/// Blocking O_DIRECT access to one file, only for formatting, opening and recovery. Offsets and
/// lengths are multiples of 4 KiB.
pub struct BlockingFile {
    file: File,
    path: PathBuf,
    pool: Pool,
}

impl BlockingFile {
    pub fn open(open: &OpenFile, pool: Pool) -> Result<BlockingFile, FileError> {
        Ok(BlockingFile { file: open_direct(open)?.into(), path: open.path.clone(), pool })
    }

    /// Reads exactly `len` bytes from `offset` into aligned memory. `UnexpectedEof` if the file
    /// ends before.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        check_offset(offset, len)?;
        let mut buf = self.pool.take(len);
        let mut done = 0;
        while done < len {
            let count =
                ignore_interrupt(self.file.read_at(&mut buf[done..], offset + done as u64))?;
            // Only the end of the file cuts a transfer within a block.
            if count == Some(0) || count.is_some_and(|count| !count.is_multiple_of(BLOCK_BYTES)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += count.unwrap_or(0);
        }
        Ok(buf.freeze())
    }

    /// Writes all of `bytes` at `offset`, durably past the device's cache on return. Copies memory
    /// that is not aligned.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_offset(offset, bytes.len())?;
        if is_aligned(bytes) {
            self.write_aligned(offset, bytes)?;
        } else {
            let mut at = offset;
            for chunk in bytes.chunks(CHUNK_BYTES) {
                let copy = self.pool.copy(chunk);
                self.write_aligned(at, &copy)?;
                at += chunk.len() as u64;
            }
        }
        self.file.sync_data()
    }

    pub fn size_bytes(&self) -> io::Result<u64> {
        size_bytes(&self.file)
    }

    /// Repeats a short transfer from its last whole block, so that the caller gets the reason (no
    /// space, say).
    fn write_aligned(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let Some(count) =
                ignore_interrupt(self.file.write_at(&bytes[done..], offset + done as u64))?
            else {
                continue;
            };
            let whole = count - count % BLOCK_BYTES;
            if whole == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += whole;
        }
        Ok(())
    }

    /// Overwrites 0 to `len_bytes` with zeroes, durably. Later writes there need not allocate or
    /// convert file system extents, which is a third of a commit's latency.
    pub fn fill_with_zeroes(&self, len_bytes: u64) -> Result<(), FileError> {
        let fill = || -> io::Result<()> {
            check_offset(len_bytes, 0)?;
            self.reserve(len_bytes)?;
            let mut zeroes = self.pool.take(CHUNK_BYTES);
            zeroes.fill(0);
            let mut at = 0;
            while at < len_bytes {
                let step = (len_bytes - at).min(CHUNK_BYTES as u64) as usize;
                self.write_aligned(at, &zeroes[..step])?;
                at += step as u64;
            }
            self.file.sync_all()?;
            sync_directory_of(&self.path)
        };
        fill().map_err(|source| FileError::Prepare { path: self.path.clone(), source })
    }

    /// Allocates space up to `len_bytes` without writing, if the file system can. Existing bytes
    /// stay. Fails with `StorageFull` without space.
    pub fn reserve(&self, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// `None` when a signal interrupted the call.
fn ignore_interrupt(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}

fn check_offset(offset: u64, len: usize) -> io::Result<()> {
    if offset.is_multiple_of(BLOCK_BYTES as u64) && len.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "offset and length of direct I/O are multiples of 4096",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_file(directory: &Path) -> BlockingFile {
        let path = directory.join("file");
        BlockingFile::open(&OpenFile { path, create: true }, Pool::default()).unwrap()
    }

    /// The default directory for temporary files may lie on a file system without O_DIRECT.
    fn directory() -> tempfile::TempDir {
        let binary = std::env::current_exe().unwrap();
        tempfile::tempdir_in(binary.parent().unwrap()).unwrap()
    }

    #[test]
    fn what_was_written_is_read_back_from_any_memory() {
        let directory = directory();
        let file = new_file(directory.path());
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 4096 + 1).map(|at| (at / 13) as u8).collect();
        // Of these two at least one is not aligned.
        for start in [0, 1] {
            file.write_at(8192, &bytes[start..bytes.len() - 1 + start]).unwrap();
            let back = file.read_at(8192, bytes.len() - 1).unwrap();
            assert!(back[..] == bytes[start..bytes.len() - 1 + start]);
            assert!(is_aligned(&back));
        }
        assert_eq!(file.size_bytes().unwrap(), 8192 + bytes.len() as u64 - 1);
        assert!(file.read_at(0, 8192).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_end_of_a_file_and_unaligned_requests_are_errors() {
        let directory = directory();
        let file = new_file(directory.path());
        file.write_at(0, &[1; 4096]).unwrap();
        let eof = file.read_at(0, 8192).unwrap_err();
        assert_eq!(eof.kind(), io::ErrorKind::UnexpectedEof);
        std::fs::write(&file.path, [1; 5000]).unwrap();
        let cut = file.read_at(4096, 4096).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        for (offset, len) in [(1, 4096), (0, 100), (512, 4096)] {
            assert!(file.read_at(offset, len).is_err());
            assert!(file.write_at(offset, &vec![0; len]).is_err());
        }
        let path = directory.path().join("missing");
        let missing = open_direct(&OpenFile { path, create: false }).unwrap_err();
        assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn releases_are_compared_by_number() {
        for release in ["6.4.0", "6.18.44-cloud", "7.0-rc1", "6.10"] {
            assert!(is_release_at_least(release, (6, 4)), "{release}");
        }
        for release in ["6.1.0-13-amd64", "5.15.0", "6.3-rc4", "6", "unknown", ""] {
            assert!(!is_release_at_least(release, (6, 4)), "{release}");
        }
    }

    #[test]
    fn a_filled_file_holds_zeroes_and_no_holes() {
        use std::os::unix::fs::MetadataExt;
        let directory = directory();
        let file = new_file(directory.path());
        file.write_at(4096, &[7; 4096]).unwrap();
        let len = 2 * CHUNK_BYTES + 4096;
        file.fill_with_zeroes(len as u64).unwrap();
        assert_eq!(file.size_bytes().unwrap(), len as u64);
        assert!(file.read_at(0, len).unwrap().iter().all(|byte| *byte == 0));
        let metadata = std::fs::metadata(&file.path).unwrap();
        assert!(metadata.blocks() * 512 >= len as u64);
    }
}
