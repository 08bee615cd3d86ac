//! Starts a worker: its disks, recovery of their lanes, replay into members, listeners, thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use crate::io::buffer::Pool;
use crate::io::driver::{Disk, Driver};
use crate::replica::messages::Start;
use crate::store::messages::MemberRecord;
use crate::telemetry::metrics::data_path::DataPath as Meters;
use crate::types::{AccessSet, Uuid, VolumeId};
use crate::view::ClusterView;
use crate::worker::control_plane::{ControlPlane, Resolution};
use crate::worker::disks::file_error;
use crate::worker::error::{StartError, or_die};
use crate::worker::index_thread::{IndexThread, describe};
use crate::worker::lanes::{DiskPlace, LaneRuntime, OpenFiles};
use crate::worker::mailbox::{Sender, Wake, mailbox};
use crate::worker::opening::{self, RecoveredDisk};
use crate::worker::options::StartOptions;
use crate::worker::round::{Worker, WorkerCommand};
use crate::worker::routers::AccessAnswer;
use crate::worker::watchdog::Watchdog;

/// Messages that wait for a worker; the index threads block when it is full.
const MAILBOX_MESSAGES: usize = 4096;

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
    meters: Arc<Meters>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl DataPath {
    /// Its disks, also those that could not be opened.
    pub fn disks(&self) -> &[PodDisk] {
        &self.disks
    }

    /// Its metrics, which the worker goes on writing.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    /// Tells the worker of a newer view; blocks while its mailbox is full.
    pub fn set_view(&self, view: Arc<ClusterView>) {
        send(&self.inbox, WorkerCommand::View(view));
    }

    /// Has an access set committed in every shard of a volume (rule `grant-waits-for-all-shards`).
    /// May be repeated, by any pod.
    pub fn set_access(&self, volume: VolumeId, set: AccessSet, answer: AccessAnswer) {
        send(&self.inbox, WorkerCommand::SetAccess { volume, set, answer });
    }

    /// Answers a question of the worker, after the view that it was answered by.
    pub fn resolved(&self, question: u64, answer: Resolution) {
        send(&self.inbox, WorkerCommand::Resolved { question, answer });
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
    control: Box<dyn ControlPlane + Send>,
) -> Result<DataPath, StartError> {
    let (ready, started) = sync_channel(1);
    let run = move || match build(&options, control) {
        Ok((mut worker, inbox, disks, _watchdog)) => {
            if ready.send(Ok((inbox, disks, worker.meters()))).is_err() {
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
    let (inbox, disks, meters) = started
        .recv()
        .map_err(|_| StartError::Thread(std::io::Error::other("the worker panicked")))??;
    Ok(DataPath { inbox, disks, meters, thread: Some(thread) })
}

type Built = (Worker, Sender<WorkerCommand>, Vec<PodDisk>, Option<Watchdog>);

/// Runs on the worker's own thread: an io_uring belongs to the thread that made it.
fn build(
    options: &StartOptions,
    control: Box<dyn ControlPlane + Send>,
) -> Result<Built, StartError> {
    let mut driver = crate::io::driver_with(options.driver, options.durable_writes)?;
    let waker = driver.waker();
    let wake: Wake = Arc::new(move || waker.wake());
    let (inbox, receiver) = mailbox(MAILBOX_MESSAGES, wake);
    let pool = Pool::default();
    let (opened, failed) = open_disks(options, driver.as_mut(), &pool, &inbox)?;
    let mut worker = Worker::new(options.worker.clone(), driver, pool, receiver, control);
    if opened.is_empty() {
        worker.add_front();
    }
    if let Some(tls) = &options.tls {
        worker.use_tls(tls.clone());
    }
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
    let watchdog =
        options.hang_limit.map(|limit| Watchdog::start(limit, worker.meters().rounds.clone()));
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

/// Opens what can be opened: the disk is the unit of failure, and a pod serves clients even without
/// any. An error of a disk that this pod never had ends the start: somebody is adding the disk, and
/// is there to see the error.
fn open_disks(
    options: &StartOptions,
    driver: &mut dyn Driver,
    pool: &Pool,
    inbox: &Sender<WorkerCommand>,
) -> Result<(Vec<OpenedDisk>, Vec<FailedDisk>), StartError> {
    let (mut opened, mut failed) = (Vec::new(), Vec::new());
    for (disk, recovered) in options.disks.iter().zip(opening::open_all(options, pool)?) {
        // Lanes are numbered as the worker will hold them: a failed disk has none.
        let number = opened.len() as u8;
        let taken = recovered.and_then(|recovered| {
            take_over(&disk.path, recovered, number, driver, pool, inbox)
                .map_err(|error| (error, 0))
        });
        let (error, capacity_bytes) = match taken {
            Ok(disk) => {
                opened.push(disk);
                continue;
            }
            Err(refused) => refused,
        };
        let Some(uuid) = disk.known.filter(|_| error.is_of_one_disk()) else {
            return Err(error);
        };
        let reason = describe(&error);
        tracing::error!(disk = %uuid, "a disk cannot be used, the pod goes without it: {reason}");
        let path = disk.path.clone();
        failed.push((PodDisk { disk: uuid, path, capacity_bytes }, reason));
    }
    Ok((opened, failed))
}

/// Gives a recovered disk to the driver, and its index to a thread.
fn take_over(
    path: &Path,
    recovered: RecoveredDisk,
    number: u8,
    driver: &mut dyn Driver,
    pool: &Pool,
    inbox: &Sender<WorkerCommand>,
) -> Result<OpenedDisk, StartError> {
    let RecoveredDisk { lock, files, places, index, lane, members } = recovered;
    let mut add = |file| {
        driver
            .add_file(file, Disk(number))
            .map_err(file_error("give to the driver a file of", path))
    };
    let files = OpenFiles {
        superblock: add(files.superblock)?,
        wal: add(files.wal)?,
        data: files.data.into_iter().map(add).collect::<Result<_, _>>()?,
        places,
    };
    let inbox = inbox.clone();
    let finish =
        Box::new(move |op, done| send(&inbox, WorkerCommand::Index { lane: number, op, done }));
    let index = IndexThread::start(Box::new(index), finish).map_err(StartError::Thread)?;
    let disk = lane.superblock().disk;
    let place = DiskPlace { disk, path: path.display().to_string(), lock: Some(lock) };
    let runtime = LaneRuntime::new(number, lane, place, files, Box::new(index), pool.clone());
    let capacity_bytes = runtime.lane.space().capacity_bytes;
    let shown = PodDisk { disk, path: path.to_owned(), capacity_bytes };
    Ok(OpenedDisk { number, shown, runtime, members })
}
