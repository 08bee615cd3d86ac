//! The files of a disk, before its lane works: lock, format, blocking access for recovery.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::driver::OpenFile;
use crate::io::file::{BlockingFile, sync_directory_of};
use crate::store::index::rocks::RocksIndex;
use crate::store::lane;
use crate::store::messages::LaneFile;
use crate::store::open::{LaneFormat, format_lane};
use crate::types::{BLOCK_BYTES, Uuid};
use crate::worker::error::StartError;

/// Folder of the one lane.
pub const LANE: &str = "lane-0";
/// A folder with this file is a disk.
pub const SUPERBLOCK: &str = "superblock";

#[derive(Clone, Debug)]
pub struct DiskOptions {
    pub path: PathBuf,
    /// The disk that this pod had here before; no other one is accepted.
    pub known: Option<Uuid>,
    /// For a new disk, as `wal_bytes` is; the disk keeps both from then on.
    pub data_bytes_max: u64,
    pub wal_bytes: u64,
}

/// Makes the error of a step that failed on a file.
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

/// True when the folder is a disk. A folder that cannot be read is an error, not an empty one.
pub fn is_formatted(path: &Path) -> Result<bool, StartError> {
    exists(&path.join(SUPERBLOCK))
}

/// Makes a disk of an empty folder. Everything is made under other names, made durable, and then
/// renamed: the lane first, the superblock last. So a lane beside `superblock.new` is complete and
/// unused. A lane without either may hold data. Only `*.new` is ever removed.
pub fn format(cluster: Uuid, disk: &DiskOptions, pool: &Pool) -> Result<(), StartError> {
    let path = &disk.path;
    let (fresh, last) = (path.join("superblock.new"), path.join(SUPERBLOCK));
    let (fresh_lane, lane) = (path.join("lane-0.new"), path.join(LANE));
    refuse_foreign_files(path)?;
    if !exists(&lane)? {
        if exists(&fresh)? {
            // First: beside a new lane, an old one would stand for a finished format.
            std::fs::remove_file(&fresh).map_err(file_error("remove", &fresh))?;
            sync_directory_of(&fresh).map_err(file_error("make durable", path))?;
        }
        make_lane(&fresh_lane, disk, pool)?;
        make_superblock(&fresh, &fresh_lane, &new_identity(cluster, disk)?, pool)?;
        rename(&fresh_lane, &lane)?;
    }
    rename(&fresh, &last)?;
    tracing::info!(path = %path.display(), "a new disk was formatted");
    Ok(())
}

/// Refuses a folder that holds anything else.
fn refuse_foreign_files(path: &Path) -> Result<(), StartError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(file_error("list", path))? {
        names.push(entry.map_err(file_error("list", path))?.file_name());
    }
    if names.iter().any(|name| name == LANE) && !names.iter().any(|name| name == "superblock.new") {
        return Err(StartError::NoSuperblock { path: path.to_owned() });
    }
    let known = [LANE, "lane-0.new", "superblock.new", "lost+found"];
    match names.iter().find(|name| !known.iter().any(|known| *name == known)) {
        None => Ok(()),
        Some(name) => {
            let name = name.to_string_lossy().into_owned();
            Err(StartError::NotEmpty { path: path.to_owned(), name })
        }
    }
}

/// Makes an empty log, an empty data file and an empty index, all durable.
fn make_lane(lane: &Path, disk: &DiskOptions, pool: &Pool) -> Result<(), StartError> {
    if exists(lane)? {
        std::fs::remove_dir_all(lane).map_err(file_error("clear", lane))?;
    }
    std::fs::create_dir(lane).map_err(file_error("create", lane))?;
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
    let index = lane.join("index");
    RocksIndex::create(&index)
        .map_err(|source| StartError::Index { path: disk.path.clone(), source })?;
    sync_directory_of(&index).map_err(file_error("make durable", lane))
}

fn make_superblock(
    superblock: &Path,
    lane: &Path,
    format: &LaneFormat,
    pool: &Pool,
) -> Result<(), StartError> {
    create(superblock, pool)?;
    let mut files = DiskFiles::open_with(superblock, lane, pool)?;
    format_lane(&mut files, format)
        .map_err(|source| StartError::Open { path: superblock.to_owned(), source: source.into() })
}

/// Renames durably, after all earlier changes of this folder are durable.
fn rename(from: &Path, to: &Path) -> Result<(), StartError> {
    sync_directory_of(from).map_err(file_error("make durable", from))?;
    std::fs::rename(from, to).map_err(file_error("rename", from))?;
    sync_directory_of(to).map_err(file_error("make durable", to))
}

fn exists(path: &Path) -> Result<bool, StartError> {
    path.try_exists().map_err(file_error("look for", path))
}

fn create(path: &Path, pool: &Pool) -> Result<BlockingFile, StartError> {
    BlockingFile::open(&OpenFile { path: path.to_owned(), create: true }, pool.clone())
        .map_err(|source| StartError::DiskFile { path: path.to_owned(), source })
}

fn new_identity(cluster: Uuid, disk: &DiskOptions) -> Result<LaneFormat, StartError> {
    let mut random = [0u8; 24];
    let urandom = Path::new("/dev/urandom");
    File::open(urandom)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random))
        .map_err(file_error("read", urandom))?;
    let (mut id, mut seed) = ([0u8; 16], [0u8; 8]);
    id.copy_from_slice(&random[..16]);
    seed.copy_from_slice(&random[16..]);
    Ok(LaneFormat {
        cluster,
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
        DiskFiles::open_with(&path.join(SUPERBLOCK), &path.join(LANE), pool)
    }

    fn open_with(superblock: &Path, lane: &Path, pool: &Pool) -> Result<DiskFiles, StartError> {
        let open = |path: PathBuf| {
            BlockingFile::open(&OpenFile { path: path.clone(), create: false }, pool.clone())
                .map_err(|source| StartError::DiskFile { path, source })
        };
        Ok(DiskFiles {
            superblock: open(superblock.to_owned())?,
            wal: open(lane.join("wal"))?,
            data: open(lane.join("data"))?,
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::open::{WAL_BYTES_MIN, read_superblock};

    const CLUSTER: Uuid = Uuid([1; 16]);

    /// The default directory for temporary files may lie on a file system without O_DIRECT.
    fn folder() -> (tempfile::TempDir, DiskOptions) {
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let path = folder.path().to_owned();
        let (data_bytes_max, wal_bytes) = (4 << 20, WAL_BYTES_MIN);
        (folder, DiskOptions { path, known: None, data_bytes_max, wal_bytes })
    }

    fn is_whole(disk: &DiskOptions) {
        let path = &disk.path;
        assert!(is_formatted(path).unwrap());
        assert!(!path.join("superblock.new").exists() && !path.join("lane-0.new").exists());
        let mut files = DiskFiles::open(path, &Pool::default()).unwrap();
        assert_eq!(read_superblock(&mut files).unwrap().cluster, CLUSTER);
        assert_eq!(files.wal.size_bytes().unwrap(), disk.wal_bytes);
        assert_eq!(files.data.size_bytes().unwrap(), disk.data_bytes_max);
        RocksIndex::open(&path.join(LANE).join("index")).unwrap();
    }

    #[test]
    fn a_format_that_was_interrupted_is_done_again_or_finished() {
        let pool = Pool::default();
        let cuts: [fn(&Path); 5] = [
            |_| {},
            // The lane was being made, and what an earlier attempt left is not there yet.
            |path| {
                fs::rename(path.join(LANE), path.join("lane-0.new")).unwrap();
                fs::remove_file(path.join(SUPERBLOCK)).unwrap();
                fs::remove_file(path.join("lane-0.new/wal")).unwrap();
            },
            // The superblock was being made.
            |path| {
                fs::rename(path.join(LANE), path.join("lane-0.new")).unwrap();
                fs::rename(path.join(SUPERBLOCK), path.join("superblock.new")).unwrap();
                fs::write(path.join("superblock.new"), [0; BLOCK_BYTES]).unwrap();
            },
            // Nothing was renamed.
            |path| {
                fs::rename(path.join(LANE), path.join("lane-0.new")).unwrap();
                fs::rename(path.join(SUPERBLOCK), path.join("superblock.new")).unwrap();
            },
            // The lane was renamed.
            |path| fs::rename(path.join(SUPERBLOCK), path.join("superblock.new")).unwrap(),
        ];
        for (number, cut) in cuts.into_iter().enumerate() {
            let (_folder, disk) = folder();
            format(CLUSTER, &disk, &pool).unwrap();
            cut(&disk.path);
            if number > 0 {
                assert!(!is_formatted(&disk.path).unwrap());
                format(CLUSTER, &disk, &pool).unwrap();
            }
            is_whole(&disk);
        }
    }

    #[test]
    fn a_lane_without_a_superblock_is_refused_and_kept() {
        let (_folder, disk) = folder();
        format(CLUSTER, &disk, &Pool::default()).unwrap();
        let elsewhere = tempfile::NamedTempFile::new_in(disk.path.parent().unwrap()).unwrap();
        fs::rename(disk.path.join(SUPERBLOCK), elsewhere.path()).unwrap();
        let refused = format(CLUSTER, &disk, &Pool::default()).unwrap_err();
        assert!(matches!(refused, StartError::NoSuperblock { .. }), "{refused}");
        fs::rename(elsewhere.path(), disk.path.join(SUPERBLOCK)).unwrap();
        is_whole(&disk);
    }

    #[test]
    fn an_index_that_is_gone_is_not_made_anew() {
        let (_folder, disk) = folder();
        format(CLUSTER, &disk, &Pool::default()).unwrap();
        let index = disk.path.join(LANE).join("index");
        fs::remove_file(index.join("CURRENT")).unwrap();
        assert!(RocksIndex::open(&index).is_err());
        assert!(!index.join("CURRENT").exists());
    }
}
