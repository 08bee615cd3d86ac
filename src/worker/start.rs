//! Starts a worker: its disks, recovery of their lanes, replay into members, listeners, thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::io::buffer::Pool;
use crate::io::driver::{Address, Driver, FileId, OpenFile};
use crate::io::{DriverKind, DurableWrites};
use crate::limits::{BYPASS_BYTES_MIN, LISTING_EXTENTS_MAX, OVERLAY_BYTES_MAX};
use crate::log::HardState;
use crate::replica::apply::Applier;
use crate::replica::entry::raft_entry;
use crate::replica::messages::Start;
use crate::replica::meta::Meta;
use crate::replica::terms::Terms;
use crate::store::index::IndexStore;
use crate::store::index::rocks::RocksIndex;
use crate::store::lane::{self, Lane, LaneConfig, RecoveredEntry, RecoveredMember};
use crate::store::messages::MemberRecord;
use crate::store::open::read_superblock;
use crate::types::{Mono, Uuid};
use crate::view::{ClusterView, PodReport};
use crate::volume::SessionSource;
use crate::worker::WorkerConfig;
use crate::worker::disks::{self, DiskFiles, DiskOptions, LANE, SUPERBLOCK, file_error};
use crate::worker::error::{OpenLaneError, StartError};
use crate::worker::index_thread::{IndexThread, describe};
use crate::worker::lanes::{DiskPlace, LaneRuntime, OpenFiles};
use crate::worker::mailbox::{Sender, Wake, mailbox};
use crate::worker::round::{Worker, WorkerCommand};
use crate::worker::watchdog::Watchdog;

/// Messages that wait for a worker; the index threads block when it is full.
const MAILBOX_MESSAGES: usize = 4096;
/// Longest wait for I/O that an earlier process left in flight.
const EARLIER_IO_WAIT: Duration = Duration::from_secs(30);
/// Between two looks whether it has ended.
const EARLIER_IO_PAUSE: Duration = Duration::from_millis(50);

/// What a pod's data path is started with.
#[derive(Clone, Debug)]
pub struct StartOptions {
    pub worker: WorkerConfig,
    /// Numbers the sessions of this start (rule `sessions-only-grow`).
    pub sessions: SessionSource,
    pub driver: DriverKind,
    /// Who carries out durable writes for io_uring.
    pub durable_writes: DurableWrites,
    /// WAL bypass: large writes of whole extents go to slots at once (rule `bypass-before-batch`).
    pub wal_bypass: bool,
    pub disks: Vec<DiskOptions>,
    /// Where peers connect.
    pub peer: Address,
    /// Where NBD clients connect.
    pub nbd: Vec<Address>,
    pub dirty_cache_bytes: usize,
    pub index_cache_bytes: usize,
    /// The process ends when the worker makes no round for so long; `None`: never.
    pub hang_limit: Option<Duration>,
}

/// A disk of this pod, in use or failed.
#[derive(Clone, Debug)]
pub struct PodDisk {
    pub disk: Uuid,
    pub path: PathBuf,
    pub capacity_bytes: u64,
}

/// A running data path.
pub struct DataPath {
    inbox: Sender<WorkerCommand>,
    disks: Vec<PodDisk>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl DataPath {
    /// Its disks, also those that could not be opened.
    pub fn disks(&self) -> &[PodDisk] {
        &self.disks
    }

    /// Tells the worker of a newer view; blocks while its mailbox is full.
    pub fn set_view(&self, view: Arc<ClusterView>) {
        send(&self.inbox, WorkerCommand::View(view));
    }

    /// Moves the leaderships away and ends the thread.
    pub fn stop(mut self) -> std::io::Result<()> {
        send(&self.inbox, WorkerCommand::Stop);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(std::io::Error::other("the worker panicked")),
            None => Ok(()),
        }
    }

    /// True when the thread has ended by itself: the pod must end too.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Sends, and waits while the mailbox is full. Senders are helper threads with nothing better to
/// do, and a worker drains its mailbox in every round.
fn send(inbox: &Sender<WorkerCommand>, mut command: WorkerCommand) {
    while let Err(full) = inbox.send(command) {
        command = full.0;
        std::thread::yield_now();
    }
}

/// Starts the data path of a pod. Returns when everything is recovered and listening.
pub fn start(
    options: StartOptions,
    report: Box<dyn Fn(PodReport) + Send>,
) -> Result<DataPath, StartError> {
    let (ready, started) = sync_channel(1);
    let run = move || match build(&options, report) {
        Ok((mut worker, inbox, disks, _watchdog)) => {
            if ready.send(Ok((inbox, disks))).is_err() {
                return Ok(());
            }
            worker.run()
        }
        Err(error) => {
            if let Err(unheard) = ready.send(Err(error)) {
                let reason = unheard.0.err().map(|error| describe(&error));
                tracing::error!(reason, "the data path did not start");
            }
            Ok(())
        }
    };
    let thread = std::thread::Builder::new()
        .name("worker".to_owned())
        .spawn(move || or_die(run))
        .map_err(StartError::Thread)?;
    let (inbox, disks) = started
        .recv()
        .map_err(|_| StartError::Thread(std::io::Error::other("the worker panicked")))??;
    Ok(DataPath { inbox, disks, thread: Some(thread) })
}

/// A worker that fails takes its process with it: a pod without a data path must not look alive.
fn or_die(run: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::error!(%error, "the data path failed; this pod ends");
            std::process::abort();
        }
        Err(_) => {
            tracing::error!("the data path panicked; this pod ends");
            std::process::abort();
        }
    }
}

type Built = (Worker, Sender<WorkerCommand>, Vec<PodDisk>, Option<Watchdog>);

/// Runs on the worker's own thread: an io_uring belongs to the thread that made it.
fn build(
    options: &StartOptions,
    report: Box<dyn Fn(PodReport) + Send>,
) -> Result<Built, StartError> {
    let mut driver = crate::io::driver_with(options.driver, options.durable_writes)?;
    let waker = driver.waker();
    let wake: Wake = Arc::new(move || waker.wake());
    let (inbox, receiver) = mailbox(MAILBOX_MESSAGES, wake);
    let pool = Pool::default();
    let (opened, failed) = open_disks(options, driver.as_mut(), &pool, &inbox)?;
    let sessions = options.sessions.clone();
    for disk in &opened {
        // Each start opens each disk. This counts on when the pod's directory is an old copy.
        sessions.raise(u32::try_from(disk.runtime.lane.superblock().incarnation).unwrap_or(0));
    }
    let mut worker = Worker::new(options.worker.clone(), driver, pool, receiver, report, sessions);
    let mut disks = Vec::new();
    for disk in opened {
        disks.push(disk.shown);
        worker.add_lane(disk.runtime);
        for (record, start) in disk.members {
            worker.start_member(disk.number, &record, start, Vec::new());
        }
    }
    for (disk, reason) in failed {
        let (uuid, path) = (disk.disk, disk.path.display().to_string());
        worker.add_failed_disk(uuid, path, disk.capacity_bytes, reason);
        disks.push(disk);
    }
    worker.listen_peers(&options.peer)?;
    for address in &options.nbd {
        worker.listen_nbd(address)?;
    }
    let watchdog = options.hang_limit.map(|limit| Watchdog::start(limit, worker.rounds()));
    Ok((worker, inbox, disks, watchdog.transpose().map_err(StartError::Thread)?))
}

/// A disk whose lane is recovered.
struct OpenedDisk {
    /// The place of its lane in the worker.
    number: u8,
    shown: PodDisk,
    runtime: LaneRuntime,
    members: Vec<(MemberRecord, Start)>,
}

/// A disk that could not be opened, and why.
type FailedDisk = (PodDisk, String);

/// Opens what can be opened: the disk is the unit of failure. An error of a disk that this pod
/// never had ends the start: somebody is adding the disk, and is there to see the error.
fn open_disks(
    options: &StartOptions,
    driver: &mut dyn Driver,
    pool: &Pool,
    inbox: &Sender<WorkerCommand>,
) -> Result<(Vec<OpenedDisk>, Vec<FailedDisk>), StartError> {
    let (mut opened, mut failed, mut first) = (Vec::new(), Vec::new(), None);
    for disk in &options.disks {
        // Lanes are numbered as the worker will hold them: a failed disk has none.
        let error = match open_disk(options, disk, opened.len() as u8, driver, pool, inbox) {
            Ok(disk) => {
                opened.push(disk);
                continue;
            }
            Err(error) => error,
        };
        let Some(uuid) = disk.known.filter(|_| error.is_of_one_disk()) else {
            return Err(error);
        };
        let reason = describe(&error);
        tracing::error!(disk = %uuid, "a disk cannot be used, the pod goes without it: {reason}");
        let path = disk.path.clone();
        let data = std::fs::metadata(path.join(LANE).join("data"));
        let capacity_bytes = data.map_or(0, |data| data.len());
        failed.push((PodDisk { disk: uuid, path, capacity_bytes }, reason));
        first.get_or_insert(error);
    }
    match first {
        Some(error) if opened.is_empty() => Err(error),
        _ => Ok((opened, failed)),
    }
}

fn open_disk(
    options: &StartOptions,
    disk: &DiskOptions,
    number: u8,
    driver: &mut dyn Driver,
    pool: &Pool,
    inbox: &Sender<WorkerCommand>,
) -> Result<OpenedDisk, StartError> {
    let path = &disk.path;
    let lock = disks::lock(path)?;
    if !disks::is_formatted(path)? {
        if let Some(disk) = disk.known {
            return Err(StartError::Missing { path: path.clone(), disk });
        }
        disks::format(options.worker.cluster, disk, pool)?;
    }
    let mut files = DiskFiles::open(path, pool)?;
    // Before anything is read: from here on nobody else writes.
    let deadline = driver.now() + EARLIER_IO_WAIT;
    let mut open = |file: &str| open_file(driver, &path.join(file), deadline);
    let lane_files = OpenFiles {
        superblock: open(SUPERBLOCK)?,
        wal: open(&format!("{LANE}/wal"))?,
        data: open(&format!("{LANE}/data"))?,
    };
    let open_error = |source| StartError::Open { path: path.clone(), source };
    let superblock = read_superblock(&mut files).map_err(|error| open_error(error.into()))?;
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
    let config = LaneConfig {
        data_bytes_max: superblock.data_bytes_max,
        dirty_cache_bytes: options.dirty_cache_bytes,
        overlay_bytes_max: OVERLAY_BYTES_MAX,
        index_cache_bytes: options.index_cache_bytes,
        log_tail_bytes: options.worker.log_tail_bytes,
        bypass_bytes_min: if options.wal_bypass { BYPASS_BYTES_MIN } else { usize::MAX },
        listing_extents: LISTING_EXTENTS_MAX,
    };
    let (lane, members) = open_lane(config, pool, &mut files, &mut index).map_err(open_error)?;
    let inbox = inbox.clone();
    let finish =
        Box::new(move |op, done| send(&inbox, WorkerCommand::Index { lane: number, op, done }));
    let index = IndexThread::start(Box::new(index), finish).map_err(StartError::Thread)?;
    let uuid = lane.superblock().disk;
    let place = DiskPlace { disk: uuid, path: path.display().to_string(), lock: Some(lock) };
    let runtime = LaneRuntime::new(number, lane, place, lane_files, Box::new(index), pool.clone());
    let shown = PodDisk {
        disk: uuid,
        path: path.clone(),
        capacity_bytes: runtime.lane.space().capacity_bytes,
    };
    Ok(OpenedDisk { number, shown, runtime, members })
}

/// Opens a lane and replays its log into the store. Returns how every member starts.
pub fn open_lane(
    config: LaneConfig,
    pool: &Pool,
    files: &mut dyn lane::LaneFiles,
    index: &mut dyn IndexStore,
) -> Result<(Lane, Vec<(MemberRecord, Start)>), OpenLaneError> {
    let (mut lane, recovered) = Lane::open(config, pool.clone(), files, index)?;
    let members: Result<_, OpenLaneError> =
        recovered.into_iter().map(|member| replay(&mut lane, member)).collect();
    Ok((lane, members?))
}

/// Applies the log of a member up to its commit point. Returns how it starts.
fn replay(
    lane: &mut Lane,
    recovered: RecoveredMember,
) -> Result<(MemberRecord, Start), OpenLaneError> {
    let RecoveredMember { record, hard, entries, faulted } = recovered;
    let commit = hard.commit.max(record.flushed_index);
    let mut start = Start {
        hard: HardState { commit, ..hard },
        applied_index: record.flushed_index,
        compacted_index: record.flushed_index,
        compacted_term: record.flushed_term,
        entries: Vec::new(),
        on_disk: None,
        meta: record.meta.clone(),
        resyncing: record.resyncing,
        faulted,
    };
    if faulted {
        return Ok((record, start));
    }
    let mut applier = Applier::new(Meta::decode(&record.meta)?);
    let mut terms = Terms::new(record.flushed_index, record.flushed_term);
    for RecoveredEntry { entry, loaded, .. } in entries {
        let (index, term) = (entry.index, entry.term);
        let known = raft_entry(&entry).ok_or(OpenLaneError::EntryType { index })?;
        if index <= commit {
            lane.apply(record.member, applier.apply(&known)?);
            start.applied_index = index;
        }
        if loaded {
            start.entries.push(entry);
        } else {
            assert!(index <= commit, "an entry that is not applied is always loaded");
            start.entries.drain(..).for_each(|entry| terms.push(entry.term));
            terms.push(term);
            (start.compacted_index, start.compacted_term) = (index, term);
        }
    }
    start.on_disk = Some(terms);
    start.meta = applier.meta.encode();
    Ok((record, start))
}

/// Opens a file for the driver, after the I/O that an earlier process left in flight has ended.
fn open_file(driver: &mut dyn Driver, path: &Path, until: Mono) -> Result<FileId, StartError> {
    let file = OpenFile { path: path.to_owned(), create: false };
    let mut waited = false;
    loop {
        match driver.open(&file) {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() != std::io::ErrorKind::ResourceBusy => {
                return Err(file_error("open", path)(error));
            }
            Err(_) if driver.now() >= until => {
                return Err(StartError::Busy { path: path.to_owned() });
            }
            Err(_) if !waited => {
                waited = true;
                let path = path.display();
                tracing::warn!(%path, "waiting for the end of an earlier process's I/O in flight");
            }
            Err(_) => std::thread::sleep(EARLIER_IO_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    /// As requests of a killed process do, something holds the file.
    #[test]
    fn io_of_an_earlier_process_is_waited_for_but_not_for_ever() {
        let binary = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(binary.parent().unwrap()).unwrap();
        let path = folder.path().join("wal");
        let earlier = std::fs::File::create(&path).unwrap();
        flock(&earlier, FlockOperation::LockExclusive).unwrap();
        let mut driver = crate::io::driver_with(DriverKind::Epoll, DurableWrites::Ring).unwrap();
        let now = driver.now();
        let refused = open_file(driver.as_mut(), &path, now).unwrap_err();
        assert!(matches!(refused, StartError::Busy { .. }) && refused.is_of_one_disk());
        let waits = std::thread::spawn(move || {
            let mut driver =
                crate::io::driver_with(DriverKind::Epoll, DurableWrites::Ring).unwrap();
            let until = driver.now() + EARLIER_IO_WAIT;
            open_file(driver.as_mut(), &path, until).map(drop)
        });
        drop(earlier);
        waits.join().unwrap().unwrap();
    }
}
