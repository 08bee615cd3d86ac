//! Connects the data path with the control plane: starts the worker as configured. It remembers the
//! disks of this pod, so that an empty mount point is not taken for a new disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;

use crate::config::{Config, DurableWriteMethod, IoMethod, ReadMethod};
use crate::control::command::NewDisk;
use crate::control::data_path::{DataPath, ReportSink};
use crate::control::identity::{Identity, PodDirectory, write_atomically};
use crate::io::driver::Address;
use crate::io::{DriverKind, DurableWrites};
use crate::limits::{Budgets, DATA_FILE_BYTES, SocketLimits};
use crate::replica::messages::ReadMode;
use crate::types::Uuid;
use crate::view::ClusterView;
use crate::volume::SessionSource;
use crate::worker::{self, DiskOptions, StartOptions, WorkerConfig};

const RECORD_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What a pod remembers of its data path, in `data-path.json` of its directory.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    /// Copy of the number of starts in `pod.json`; the larger one counts. Also what sessions go on
    /// in after a directory was restored.
    starts: u32,
    /// Every disk that was ever opened, by its folder.
    disks: BTreeMap<PathBuf, Uuid>,
}

impl Memory {
    fn load(file: &Path) -> anyhow::Result<Memory> {
        match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged; restore it from a copy", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Memory::default()),
            Err(error) => Err(error).with_context(|| format!("could not read {}", file.display())),
        }
    }

    fn store(&self, file: &Path) -> anyhow::Result<()> {
        write_atomically(file, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("could not write {}", file.display()))
    }
}

/// Implements the control plane's trait with a worker.
struct Running {
    worker: Mutex<Option<worker::DataPath>>,
    disks: Vec<NewDisk>,
}

impl DataPath for Running {
    fn disks(&self) -> Vec<NewDisk> {
        self.disks.clone()
    }

    fn set_view(&self, view: Arc<ClusterView>) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = worker.as_ref() {
            worker.set_view(view);
        }
    }

    fn stop(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = worker.map(worker::DataPath::stop) {
            tracing::error!(%error, "the data path did not stop cleanly");
        }
    }
}

fn memory_file(config: &Config) -> PathBuf {
    config.data.join("data-path.json")
}

/// Numbers this start, above all earlier ones even if either file was lost.
pub fn count_start(config: &Config, directory: &mut PodDirectory) -> anyhow::Result<u32> {
    let file = memory_file(config);
    let mut memory = Memory::load(&file)?;
    memory.starts = directory.count_start(memory.starts)?;
    memory.store(&file)?;
    Ok(memory.starts)
}

/// Opens the disks, and starts worker and front ends. `start`: the number of this start of the pod,
/// and its bounds on connections.
pub fn start(
    config: &Config,
    identity: Identity,
    start: (u32, SocketLimits),
    reports: ReportSink,
) -> anyhow::Result<Arc<dyn DataPath>> {
    let file = memory_file(config);
    let mut memory = Memory::load(&file)?;
    let (number, sockets) = start;
    let sessions = SessionSource::new(number);
    let recorded = with_recorder(sessions.clone(), file.clone())?;
    let options = options(config, identity, recorded, sockets, &memory)?;
    let worker = worker::start(options, Box::new(move |report| reports.send(report)))?;
    let disks = worker.disks().to_vec();
    for disk in &disks {
        memory.disks.insert(disk.path.clone(), disk.disk);
    }
    // A disk may have been opened more often than this directory knows of.
    memory.starts = memory.starts.max(sessions.incarnation());
    memory.store(&file)?;
    let disks = disks
        .into_iter()
        .map(|disk| NewDisk {
            disk: disk.disk,
            path: disk.path.display().to_string(),
            capacity_bytes: disk.capacity_bytes,
        })
        .collect();
    Ok(Arc::new(Running { worker: Mutex::new(Some(worker)), disks }))
}

/// Stores the number of a start that sessions go on in, when a shard has seen higher ones than this
/// directory knows of. The next start is then numbered above it.
fn with_recorder(sessions: SessionSource, file: PathBuf) -> anyhow::Result<SessionSource> {
    let (ask, asked) = sync_channel(1);
    let raised = sessions.clone();
    let record = move || {
        for starts in asked {
            if raised.incarnation() >= starts {
                continue;
            }
            match store_starts(&file, starts) {
                Ok(()) => {
                    tracing::warn!(
                        starts,
                        "shards have seen a later start of this pod than this one: its directory \
                         is an old copy; sessions go on above"
                    );
                    raised.raise(starts);
                }
                Err(error) => {
                    tracing::error!("writes wait until this pod's start is numbered: {error:#}");
                    std::thread::sleep(RECORD_AGAIN_AFTER);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("sessions".to_owned())
        .spawn(record)
        .context("could not start the thread that numbers sessions")?;
    // A full channel: the thread is asked already, and is asked again.
    Ok(sessions.with_recorder(Arc::new(move |starts| {
        let _asked_already = ask.try_send(starts);
    })))
}

fn store_starts(file: &Path, starts: u32) -> anyhow::Result<()> {
    let mut memory = Memory::load(file)?;
    memory.starts = memory.starts.max(starts);
    memory.store(file)
}

fn options(
    config: &Config,
    identity: Identity,
    sessions: SessionSource,
    sockets: SocketLimits,
    memory: &Memory,
) -> anyhow::Result<StartOptions> {
    let mut disks = Vec::new();
    for disk in &config.disks {
        let known = memory.disks.get(&disk.path).copied();
        let is_new = known.is_none() && !disk.path.join("superblock").exists();
        disks.push(DiskOptions {
            path: disk.path.clone(),
            known,
            // A formatted disk stores its size itself.
            data_bytes_max: if is_new { disk.data_bytes_max()? } else { 0 },
            data_file_bytes: DATA_FILE_BYTES,
            wal_bytes: disk.wal_size.0,
        });
    }
    let mut nbd = vec![Address::Tcp(config.nbd.listen)];
    nbd.extend(config.nbd.socket.clone().map(Address::Unix));
    Ok(StartOptions {
        worker: WorkerConfig {
            cluster: identity.cluster,
            pod: identity.pod,
            seed: identity.pod.0,
            log_tail_bytes: size(config.budgets.log_tail.0),
            leaders_follow_clients: config.leaders_follow_clients,
            reads: match config.reads {
                ReadMethod::Lease => ReadMode::Lease,
                ReadMethod::Quorum => ReadMode::Quorum,
            },
            budgets: Budgets {
                connection_bytes: size(config.budgets.connection.0),
                volume_bytes: size(config.budgets.volume.0),
                shard_bytes: size(config.budgets.shard.0),
                link_bytes: size(config.budgets.link.0),
            },
            sockets,
        },
        sessions,
        driver: match config.io {
            IoMethod::Auto => DriverKind::Auto,
            IoMethod::IoUring => DriverKind::IoUring,
            IoMethod::Epoll => DriverKind::Epoll,
        },
        durable_writes: match config.durable_writes {
            DurableWriteMethod::Ring => DurableWrites::Ring,
            DurableWriteMethod::Threads => DurableWrites::Threads,
        },
        wal_bypass: config.wal_bypass,
        disks,
        peer: Address::Tcp(config.peer.listen),
        nbd,
        dirty_cache_bytes: size(config.budgets.dirty_cache.0),
        index_cache_bytes: size(config.budgets.index_cache.0),
        hang_limit: (config.hang_limit_seconds > 0)
            .then(|| Duration::from_secs(config.hang_limit_seconds.into())),
    })
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_on_when_a_file_is_lost() {
        let root = tempfile::tempdir().unwrap();
        let mut config: Config = toml::from_str("data = 'set below'").unwrap();
        config.data = root.path().to_owned();
        let start = || {
            let mut directory = PodDirectory::open(root.path()).unwrap();
            count_start(&config, &mut directory).unwrap()
        };
        // The file has counted on alone.
        let memory = Memory { starts: 6, ..Memory::default() };
        memory.store(&memory_file(&config)).unwrap();
        assert_eq!((start(), start()), (7, 8));
        std::fs::remove_file(memory_file(&config)).unwrap();
        assert_eq!(start(), 9);
    }

    #[test]
    fn sessions_above_those_of_an_old_copy_are_numbered_durably_first() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("data-path.json");
        Memory { starts: 3, ..Memory::default() }.store(&file).unwrap();
        let sessions = with_recorder(SessionSource::new(3), file.clone()).unwrap();
        let recorded = (9 << 32) + 7;
        let above = loop {
            match sessions.above(recorded) {
                Some(session) => break session,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(above >> 32, 10);
        assert_eq!(Memory::load(&file).unwrap().starts, 10);
    }
}
