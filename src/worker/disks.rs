//! The files of a disk, before its lane works: lock, format, blocking access for recovery.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::driver::OpenFile;
use crate::io::file::{BlockingFile, sync_directory_of};
use crate::store::lane;
use crate::store::open::{LaneFormat, format_lane};
use crate::store::seam::LaneFile;
use crate::types::{BLOCK_BYTES, Uuid};
use crate::worker::start::{DiskOptions, StartError, StartOptions};

/// Folder of the one lane.
pub const LANE: &str = "lane-0";

/// A step that failed on a file.
pub fn file_error<E: Into<std::io::Error>>(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StartError {
    let path = path.to_owned();
    move |source| StartError::File { doing, path, source: source.into() }
}

/// Keeps other processes off the disk for as long as the file is open.
pub fn lock(path: &Path) -> Result<File, StartError> {
    let folder = File::open(path).map_err(file_error(
        "open the folder of the disk (mount it, or correct the path in the configuration)",
        path,
    ))?;
    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match rustix::fs::flock(folder.as_fd(), operation) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::InUse { path: path.to_owned() }),
        Err(errno) => Err(file_error("lock the disk", path)(errno)),
    }
}

/// Makes an empty folder a disk. The superblock's file appears last: a crash before leaves
/// something that is formatted again.
pub fn format(options: &StartOptions, disk: &DiskOptions, pool: &Pool) -> Result<(), StartError> {
    let path = &disk.path;
    refuse_strangers(path)?;
    let lane = path.join(LANE);
    if lane.exists() {
        std::fs::remove_dir_all(&lane).map_err(file_error("clear", &lane))?;
    }
    std::fs::create_dir(&lane).map_err(file_error("create", &lane))?;
    let wal = lane.join("wal");
    create(&wal, pool)?
        .fill_with_zeroes(disk.wal_bytes)
        .map_err(|source| StartError::DiskFile { path: wal.clone(), source })?;
    let data = lane.join("data");
    create(&data, pool)?;
    File::options()
        .write(true)
        .open(&data)
        .and_then(|file| {
            file.set_len(disk.data_bytes_max)?;
            file.sync_all()
        })
        .map_err(file_error("set the length of", &data))?;
    sync_directory_of(&data).map_err(file_error("make durable", &data))?;
    let (fresh, last) = (path.join("superblock.new"), path.join("superblock"));
    create(&fresh, pool)?;
    let format = new_identity(options, disk)?;
    let mut files = DiskFiles::open_with(path, &fresh, pool)?;
    format_lane(&mut files, &format)
        .map_err(|source| StartError::Open { path: path.clone(), source: source.into() })?;
    std::fs::rename(&fresh, &last).map_err(file_error("rename", &fresh))?;
    sync_directory_of(&last).map_err(file_error("make durable", &last))?;
    tracing::info!(path = %path.display(), disk = %format.disk, "a new disk was formatted");
    Ok(())
}

/// A folder that holds something else is not ours to use.
fn refuse_strangers(path: &Path) -> Result<(), StartError> {
    let known = ["lane-0", "superblock.new", "lost+found"];
    for entry in std::fs::read_dir(path).map_err(file_error("list", path))? {
        let name = entry.map_err(file_error("list", path))?.file_name();
        if !known.iter().any(|known| name == *known) {
            let name = name.to_string_lossy().into_owned();
            return Err(StartError::NotEmpty { path: path.to_owned(), name });
        }
    }
    Ok(())
}

fn create(path: &Path, pool: &Pool) -> Result<BlockingFile, StartError> {
    BlockingFile::open(&OpenFile { path: path.to_owned(), create: true }, pool.clone())
        .map_err(|source| StartError::DiskFile { path: path.to_owned(), source })
}

fn new_identity(options: &StartOptions, disk: &DiskOptions) -> Result<LaneFormat, StartError> {
    let mut random = [0u8; 24];
    let urandom = Path::new("/dev/urandom");
    File::open(urandom)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))
        .map_err(file_error("read", urandom))?;
    let (mut id, mut seed) = ([0u8; 16], [0u8; 8]);
    id.copy_from_slice(&random[..16]);
    seed.copy_from_slice(&random[16..]);
    Ok(LaneFormat {
        cluster: options.cluster,
        disk: Uuid(id),
        seed: u64::from_le_bytes(seed),
        wal_bytes: disk.wal_bytes,
        data_bytes_max: disk.data_bytes_max,
    })
}

/// Blocking access to a disk's files.
pub struct DiskFiles {
    superblock: BlockingFile,
    wal: BlockingFile,
    data: BlockingFile,
}

impl DiskFiles {
    pub fn open(path: &Path, pool: &Pool) -> Result<DiskFiles, StartError> {
        DiskFiles::open_with(path, &path.join("superblock"), pool)
    }

    fn open_with(path: &Path, superblock: &Path, pool: &Pool) -> Result<DiskFiles, StartError> {
        let open = |path: PathBuf| {
            BlockingFile::open(&OpenFile { path: path.clone(), create: false }, pool.clone())
                .map_err(|source| StartError::DiskFile { path, source })
        };
        Ok(DiskFiles {
            superblock: open(superblock.to_owned())?,
            wal: open(path.join(LANE).join("wal"))?,
            data: open(path.join(LANE).join("data"))?,
        })
    }

    fn file(&self, file: LaneFile) -> &BlockingFile {
        match file {
            LaneFile::Superblock => &self.superblock,
            LaneFile::Wal => &self.wal,
            LaneFile::Data => &self.data,
        }
    }
}

impl lane::LaneFiles for DiskFiles {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        self.file(file).read_at(offset, len)
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES), "whole blocks are written");
        self.file(file).write_at(offset, bytes)
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        self.file(file).size_bytes()
    }
}
