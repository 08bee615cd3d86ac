//! The files of a disk, before its lane works: lock, format, blocking access for recovery.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::file::OpenFile;
use crate::io::file::{BlockingFile, ExclusiveFile, sync_directory_of};
use crate::store::OpenError;
use crate::store::data_files::{DataFiles, data_file_name};
use crate::store::index::rocks::RocksIndex;
use crate::store::lane;
use crate::store::messages::LaneFile;
use crate::store::open::{LaneFormat, data_files, format_lane, read_superblock};
use crate::store::superblock::Superblock;
use crate::types::{BLOCK_BYTES, Uuid};
use crate::worker::error::StartError;

/// Folder of the one lane.
pub const LANE: &str = "lane-0";
/// A folder with this file is a disk.
pub const SUPERBLOCK: &str = "superblock";

/// Counts what a disk has answered.
#[derive(Clone, Debug, Default)]
pub struct Signs(pub Arc<AtomicU64>);

impl Signs {
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Debug)]
pub struct DiskOptions {
    pub path: PathBuf,
    /// The disk that this pod had here before; no other one is accepted.
    pub known: Option<Uuid>,
    /// For a new disk, as `wal_bytes` is; the disk keeps both from then on.
    pub data_bytes_max: u64,
    /// The largest data file: `DATA_FILE_BYTES` but in tests.
    pub data_file_bytes: u64,
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

/// Makes an empty log, empty data files and an empty index, all durable.
fn make_lane(lane: &Path, disk: &DiskOptions, pool: &Pool) -> Result<(), StartError> {
    if exists(lane)? {
        std::fs::remove_dir_all(lane).map_err(file_error("clear", lane))?;
    }
    std::fs::create_dir(lane).map_err(file_error("create", lane))?;
    let wal = lane.join("wal");
    create(&wal, pool)?
        .fill_with_zeroes(disk.wal_bytes)
        .map_err(|source| StartError::DiskFile { path: wal.clone(), source })?;
    let places = DataFiles::new(disk.data_bytes_max, disk.data_file_bytes)
        .expect("the bound of a data file is whole slots");
    for number in 0..places.count() {
        let data = lane.join(data_file_name(number));
        create(&data, pool)?;
        File::options()
            .write(true)
            .open(&data)
            .and_then(|file| {
                file.set_len(places.bytes_of(number))?;
                file.sync_all()
            })
            .map_err(file_error("set the length of", &data))?;
    }
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
    let mut files = DiskFiles::open_with(superblock, lane, pool, &Signs::default())?;
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
        data_file_bytes: disk.data_file_bytes,
    })
}

/// Blocking access to a disk's files.
pub struct DiskFiles {
    lane: PathBuf,
    pool: Pool,
    superblock: BlockingFile,
    wal: BlockingFile,
    /// Empty until [`DiskFiles::open_data`].
    data: Vec<BlockingFile>,
    places: Option<DataFiles>,
    signs: Signs,
}

impl DiskFiles {
    /// Opens superblock and log. Every transfer is noted in `signs`.
    pub fn open(path: &Path, pool: &Pool, signs: &Signs) -> Result<DiskFiles, StartError> {
        DiskFiles::open_with(&path.join(SUPERBLOCK), &path.join(LANE), pool, signs)
    }

    fn open_with(
        superblock: &Path,
        lane: &Path,
        pool: &Pool,
        signs: &Signs,
    ) -> Result<DiskFiles, StartError> {
        Ok(DiskFiles {
            superblock: open_file(superblock.to_owned(), pool)?,
            wal: open_file(lane.join("wal"), pool)?,
            lane: lane.to_owned(),
            pool: pool.clone(),
            data: Vec::new(),
            places: None,
            signs: signs.clone(),
        })
    }

    /// Reads the superblock, and opens the data files that it names.
    pub fn open_data(&mut self) -> Result<(Superblock, DataFiles), StartError> {
        let path = self.lane.parent().unwrap_or(&self.lane).to_owned();
        let failed = |source: OpenError| StartError::Open { path, source: source.into() };
        let found = read_superblock(self)
            .and_then(|superblock| data_files(&superblock).map(|places| (superblock, places)));
        let (superblock, places) = found.map_err(failed)?;
        self.data = (0..places.count())
            .map(|number| open_file(self.lane.join(data_file_name(number)), &self.pool))
            .collect::<Result<_, _>>()?;
        self.places = Some(places);
        Ok((superblock, places))
    }

    /// The file that has this range, and the offset in it.
    fn locate(&self, file: LaneFile, offset: u64, len: usize) -> (&BlockingFile, u64) {
        match file {
            LaneFile::Superblock => (&self.superblock, offset),
            LaneFile::Wal => (&self.wal, offset),
            LaneFile::Data => {
                let places = self.places.expect("the data files are open");
                let (number, offset) = places.locate(offset, len);
                (&self.data[number], offset)
            }
        }
    }
}

fn open_file(path: PathBuf, pool: &Pool) -> Result<BlockingFile, StartError> {
    BlockingFile::open(&OpenFile { path: path.clone(), create: false }, pool.clone())
        .map_err(|source| StartError::DiskFile { path, source })
}

/// The files of a disk, locked for the driver.
pub struct LockedFiles {
    pub superblock: ExclusiveFile,
    pub wal: ExclusiveFile,
    pub data: Vec<ExclusiveFile>,
}

impl lane::LaneFiles for DiskFiles {
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let (file, offset) = self.locate(file, offset, len);
        let read = file.read_at(offset, len);
        self.signs.note();
        read
    }

    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES), "whole blocks are written");
        let (file, offset) = self.locate(file, offset, bytes.len());
        let written = file.write_at(offset, bytes);
        self.signs.note();
        written
    }

    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64> {
        match file {
            LaneFile::Superblock => self.superblock.size_bytes(),
            LaneFile::Wal => self.wal.size_bytes(),
            LaneFile::Data => self.data.iter().map(BlockingFile::size_bytes).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::lane::LaneFiles;
    use crate::store::open::WAL_BYTES_MIN;

    const CLUSTER: Uuid = Uuid([1; 16]);

    /// The default directory for temporary files may lie on a file system without O_DIRECT.
    fn folder() -> (tempfile::TempDir, DiskOptions) {
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let path = folder.path().to_owned();
        let (data_bytes_max, wal_bytes) = (4 << 20, WAL_BYTES_MIN);
        // Three data files: of 1.5 MiB, 1.5 MiB and 1 MiB.
        let data_file_bytes = 3 << 19;
        (folder, DiskOptions { path, known: None, data_bytes_max, data_file_bytes, wal_bytes })
    }

    fn is_whole(disk: &DiskOptions) {
        let path = &disk.path;
        assert!(is_formatted(path).unwrap());
        assert!(!path.join("superblock.new").exists() && !path.join("lane-0.new").exists());
        let mut files = DiskFiles::open(path, &Pool::default(), &Signs::default()).unwrap();
        assert_eq!(files.open_data().unwrap().0.cluster, CLUSTER);
        assert_eq!(files.wal.size_bytes().unwrap(), disk.wal_bytes);
        let sizes: Vec<u64> = files.data.iter().map(|file| file.size_bytes().unwrap()).collect();
        assert_eq!(sizes, [3 << 19, 3 << 19, 1 << 20]);
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
    fn each_byte_of_the_data_has_a_place_in_one_file() {
        let (_folder, disk) = folder();
        format(CLUSTER, &disk, &Pool::default()).unwrap();
        let mut files = DiskFiles::open(&disk.path, &Pool::default(), &Signs::default()).unwrap();
        files.open_data().unwrap();
        let slots = (0..disk.data_bytes_max).step_by(crate::types::EXTENT_BYTES);
        for (number, offset) in slots.clone().enumerate() {
            files.write(LaneFile::Data, offset, &[number as u8 + 1; BLOCK_BYTES]).unwrap();
        }
        for (number, offset) in slots.enumerate() {
            let read = files.read(LaneFile::Data, offset, BLOCK_BYTES).unwrap();
            assert!(read.iter().all(|byte| *byte == number as u8 + 1), "{number}");
        }
        let last = fs::read(disk.path.join(LANE).join("data-2")).unwrap();
        assert_eq!((last.len(), last[0]), (1 << 20, 49));
        fs::remove_file(disk.path.join(LANE).join("data-1")).unwrap();
        let mut files = DiskFiles::open(&disk.path, &Pool::default(), &Signs::default()).unwrap();
        let refused = files.open_data().unwrap_err();
        assert!(matches!(refused, StartError::DiskFile { .. }), "{refused}");
    }

    /// ext4 has no file of 16 TiB.
    #[test]
    fn a_disk_larger_than_any_file_is_formatted() {
        let (_folder, mut disk) = folder();
        disk.data_bytes_max = 40 << 40;
        disk.data_file_bytes = crate::limits::DATA_FILE_BYTES;
        format(CLUSTER, &disk, &Pool::default()).unwrap();
        let mut files = DiskFiles::open(&disk.path, &Pool::default(), &Signs::default()).unwrap();
        files.open_data().unwrap();
        assert_eq!(files.size_bytes(LaneFile::Data).unwrap(), 40 << 40);
        let last = (40 << 40) - BLOCK_BYTES as u64;
        files.write(LaneFile::Data, last, &[7; BLOCK_BYTES]).unwrap();
        assert_eq!(files.read(LaneFile::Data, last, BLOCK_BYTES).unwrap()[..], [7; BLOCK_BYTES]);
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
