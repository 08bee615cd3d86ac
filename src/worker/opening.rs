//! Opens the disks of a pod side by side, each on a thread of its own. A disk that stops to answer
//! delays no other: it is given up after a while, and the pod starts without it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::io::buffer::Pool;
use crate::io::file::OpenFile;
use crate::io::file::{ExclusiveFile, FileError};
use crate::limits::{
    BYPASS_BYTES_MIN, DISK_OPEN_SILENCE_MAX, LISTING_EXTENTS_MAX, OVERLAY_BYTES_MAX,
};
use crate::replica::messages::Start;
use crate::store::data_files::{DataFiles, data_file_name};
use crate::store::index::rocks::RocksIndex;
use crate::store::index::{IndexError, IndexStore};
use crate::store::lane::{Lane, LaneConfig};
use crate::store::messages::{ExtentKey, ExtentRecord, IndexEdit, MemberRecord};
use crate::types::{Extent, MemberId};
use crate::worker::disks::{self, DiskFiles, DiskOptions, LANE, LockedFiles, SUPERBLOCK, Signs};
use crate::worker::error::{StartError, or_die};
use crate::worker::options::StartOptions;
use crate::worker::recovery::open_lane;

/// Longest wait for I/O that an earlier process left in flight.
const EARLIER_IO_WAIT: Duration = Duration::from_secs(30);
/// Between two looks whether it has ended.
const EARLIER_IO_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at the signs of the disks that are being opened.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A disk whose lane is recovered, for the driver to take over.
pub struct RecoveredDisk {
    /// Keeps other processes off.
    pub lock: std::fs::File,
    pub files: LockedFiles,
    pub places: DataFiles,
    pub index: RocksIndex,
    pub lane: Lane,
    pub members: Vec<(MemberRecord, Start)>,
}

/// A disk that could not be opened: why, and the size of its data.
pub type Refused = (StartError, u64);

/// Opens all disks of a pod, in the order of its configuration.
pub fn open_all(
    options: &StartOptions,
    pool: &Pool,
) -> Result<Vec<Result<RecoveredDisk, Refused>>, StartError> {
    let (ended, endings) = channel();
    let mut waiting = Vec::with_capacity(options.disks.len());
    for (place, disk) in options.disks.iter().cloned().enumerate() {
        let signs = Signs::default();
        // An error of a disk that the pod never had ends the start: it may take its time.
        let silence_max = disk.known.map(|_| DISK_OPEN_SILENCE_MAX);
        waiting.push(Waiting { place, signs: signs.clone(), silence_max });
        let (options, pool, ended) = (options.clone(), pool.clone(), ended.clone());
        let open = move || {
            let opened = open_disk(&options, &disk, &pool, &signs);
            let opened = opened.map_err(|error| (error, data_bytes(&disk.path)));
            // Given up meanwhile: dropping it releases the disk.
            if ended.send((place, opened)).is_err() {
                tracing::warn!(path = %disk.path.display(), "a disk answers again, too late");
            }
            Ok(())
        };
        std::thread::Builder::new()
            .name("open-disk".to_owned())
            .spawn(move || or_die(open))
            .map_err(StartError::Thread)?;
    }
    drop(ended);
    let mut opened = collect(waiting, &endings);
    let silent = |disk: &DiskOptions| Err((StartError::Silent { path: disk.path.clone() }, 0));
    let disks = options.disks.iter().enumerate();
    Ok(disks.map(|(place, disk)| opened.remove(&place).unwrap_or_else(|| silent(disk))).collect())
}

/// Something that is being opened.
struct Waiting {
    place: usize,
    signs: Signs,
    /// It is given up after so long without a sign.
    silence_max: Option<Duration>,
}

/// Waits until each has ended or is given up. Those that are given up are not in the result.
fn collect<T>(mut waiting: Vec<Waiting>, endings: &Receiver<(usize, T)>) -> BTreeMap<usize, T> {
    let mut ended = BTreeMap::new();
    let mut heard: Vec<(u64, Instant)> = vec![(0, Instant::now()); waiting.len()];
    while !waiting.is_empty() {
        match endings.recv_timeout(LOOK_EVERY) {
            Ok((place, end)) => {
                ended.insert(place, end);
                waiting.retain(|waiting| waiting.place != place);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            // All threads have ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = Instant::now();
        waiting.retain(|Waiting { place, signs, silence_max }| {
            let (count, at) = &mut heard[*place];
            if *count != signs.count() {
                (*count, *at) = (signs.count(), now);
            }
            silence_max.is_none_or(|most| now.duration_since(*at) < most)
        });
    }
    ended
}

/// The size of a disk's data that its files show.
fn data_bytes(path: &Path) -> u64 {
    let size = |number| std::fs::metadata(path.join(LANE).join(data_file_name(number)));
    (0..).map_while(|number| size(number).ok()).map(|file| file.len()).sum()
}

fn open_disk(
    options: &StartOptions,
    disk: &DiskOptions,
    pool: &Pool,
    signs: &Signs,
) -> Result<RecoveredDisk, StartError> {
    let path = &disk.path;
    let until = Instant::now() + EARLIER_IO_WAIT;
    let lock = lock_disk(disk, until, signs)?;
    if !disks::is_formatted(path)? {
        if let Some(disk) = disk.known {
            return Err(StartError::Missing { path: path.clone(), disk });
        }
        disks::format(options.worker.cluster, disk, pool)?;
    }
    let mut files = DiskFiles::open(path, pool, signs)?;
    // Before anything is read: from here on nobody else writes.
    let lock_file = |name: &Path| lock_file(&path.join(name), until, signs);
    let superblock_file = lock_file(Path::new(SUPERBLOCK))?;
    let wal = lock_file(&Path::new(LANE).join("wal"))?;
    let (superblock, places) = files.open_data()?;
    let data = (0..places.count())
        .map(|number| lock_file(&Path::new(LANE).join(data_file_name(number))))
        .collect::<Result<_, _>>()?;
    if let Some(known) = disk.known.filter(|known| *known != superblock.disk) {
        return Err(StartError::Missing { path: path.clone(), disk: known });
    }
    let theirs = superblock.cluster;
    if theirs != options.worker.cluster {
        let ours = options.worker.cluster;
        return Err(StartError::OtherCluster { path: path.clone(), ours, theirs });
    }
    let mut index = RocksIndex::open(&path.join(LANE).join("index"))
        .map_err(|source| StartError::Index { path: path.clone(), source })?;
    signs.note();
    let config = LaneConfig {
        levels: options.worker.levels,
        data_bytes_max: superblock.data_bytes_max,
        dirty_cache_bytes: options.dirty_cache_bytes,
        overlay_bytes_max: OVERLAY_BYTES_MAX,
        index_cache_bytes: options.index_cache_bytes,
        log_tail_bytes: options.worker.log_tail_bytes,
        bypass_bytes_min: if options.wal_bypass { BYPASS_BYTES_MIN } else { usize::MAX },
        listing_extents: LISTING_EXTENTS_MAX,
    };
    let mut noted = NotedIndex { index: &mut index, signs };
    let (lane, members) = open_lane(config, pool, &mut files, &mut noted)
        .map_err(|source| StartError::Open { path: path.clone(), source })?;
    let files = LockedFiles { superblock: superblock_file, wal, data };
    Ok(RecoveredDisk { lock, files, places, index, lane, members })
}

/// Locks a disk. The earlier process of a disk that this pod had may still be ending.
fn lock_disk(
    disk: &DiskOptions,
    until: Instant,
    signs: &Signs,
) -> Result<std::fs::File, StartError> {
    loop {
        match disks::lock(&disk.path) {
            Err(StartError::InUse { .. }) if disk.known.is_some() && Instant::now() < until => {
                signs.note();
                std::thread::sleep(EARLIER_IO_PAUSE);
            }
            locked => return locked,
        }
    }
}

/// Locks a file for the driver, after the I/O that an earlier process left in flight has ended.
fn lock_file(path: &Path, until: Instant, signs: &Signs) -> Result<ExclusiveFile, StartError> {
    let file = OpenFile { path: path.to_owned(), create: false };
    let mut waited = false;
    loop {
        match ExclusiveFile::open(&file) {
            Ok(file) => return Ok(file),
            Err(FileError::Busy { .. }) if Instant::now() >= until => {
                return Err(StartError::Busy { path: path.to_owned() });
            }
            Err(FileError::Busy { .. }) => {
                if !std::mem::replace(&mut waited, true) {
                    let path = path.display();
                    tracing::warn!(%path, "waiting for an earlier process's I/O in flight");
                }
                signs.note();
                std::thread::sleep(EARLIER_IO_PAUSE);
            }
            Err(source) => {
                return Err(StartError::DiskFile { path: path.to_owned(), source });
            }
        }
    }
}

/// An index that notes each of its answers.
struct NotedIndex<'a> {
    index: &'a mut RocksIndex,
    signs: &'a Signs,
}

impl NotedIndex<'_> {
    fn note<T>(&mut self, answer: impl FnOnce(&mut RocksIndex) -> T) -> T {
        let answer = answer(self.index);
        self.signs.note();
        answer
    }
}

impl IndexStore for NotedIndex<'_> {
    fn get(&mut self, keys: &[ExtentKey]) -> Result<Vec<Option<ExtentRecord>>, IndexError> {
        self.note(|index| index.get(keys))
    }

    fn commit(&mut self, edits: &[IndexEdit], flush: bool) -> Result<(), IndexError> {
        self.note(|index| index.commit(edits, flush))
    }

    fn scan(
        &mut self,
        member: MemberId,
        from: Extent,
        limit: usize,
    ) -> Result<Vec<(ExtentKey, ExtentRecord)>, IndexError> {
        self.note(|index| index.scan(member, from, limit))
    }

    fn members(&mut self) -> Result<Vec<MemberRecord>, IndexError> {
        self.note(|index| index.members())
    }

    fn tombstones(&mut self) -> Result<Vec<MemberId>, IndexError> {
        self.note(|index| index.tombstones())
    }

    fn faulted(&mut self) -> Result<Vec<MemberId>, IndexError> {
        self.note(|index| index.faulted())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use std::sync::Arc;

    use super::*;

    /// As requests of a killed process do, something holds the file.
    #[test]
    fn io_of_an_earlier_process_is_waited_for_but_not_for_ever() {
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let path = folder.path().join("wal");
        let earlier = std::fs::File::create(&path).unwrap();
        flock(&earlier, FlockOperation::LockExclusive).unwrap();
        let refused = lock_file(&path, Instant::now(), &Signs::default()).unwrap_err();
        assert!(matches!(refused, StartError::Busy { .. }) && refused.is_of_one_disk());
        let waits = std::thread::spawn(move || {
            lock_file(&path, Instant::now() + EARLIER_IO_WAIT, &Signs::default()).map(drop)
        });
        drop(earlier);
        waits.join().unwrap().unwrap();
    }

    /// The second one never answers. The third is slow, and gives signs.
    #[test]
    fn what_never_answers_is_given_up_and_what_is_slow_is_not() {
        let (ended, endings) = channel();
        let waiting = |place| {
            let silence_max = Some(Duration::ZERO);
            Waiting { place, signs: Signs::default(), silence_max }
        };
        let mut all = vec![waiting(0), waiting(1), waiting(2)];
        all[2].silence_max = None;
        let (slow, holds) = (ended.clone(), ended);
        holds.send((0, "at once")).unwrap();
        let silent = all[1].signs.clone();
        let later = std::thread::spawn(move || {
            // Dropped by `collect` when it gives up.
            while Arc::strong_count(&silent.0) > 1 {
                std::thread::yield_now();
            }
            slow.send((2, "later")).unwrap();
        });
        let opened = collect(all, &endings);
        assert_eq!(opened.into_iter().collect::<Vec<_>>(), [(0, "at once"), (2, "later")]);
        later.join().unwrap();
        drop(holds);
    }
}
