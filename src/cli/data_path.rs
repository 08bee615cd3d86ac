//! Connects the data path with the control plane: starts the worker as configured. It remembers the
//! disks of this pod, so that an empty mount point is not taken for a new disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;

use crate::config::{Config, DurableWriteMethod, IoMethod, ReadMethod};
use crate::control::command::NewDisk;
use crate::control::data_path::{ControlLink, DataPath};
use crate::control::identity::{Identity, random_uuid, write_atomically};
use crate::io::driver::Address;
use crate::io::{DriverKind, DurableWrites};
use crate::level::{Level, Levels, NEWEST};
use crate::limits::{Budgets, DATA_FILE_BYTES, SocketLimits};
use crate::replica::messages::ReadMode;
use crate::security::credentials::Tls;
use crate::telemetry::Telemetry;
use crate::types::{AccessSet, Uuid, VolumeId};
use crate::view::ClusterView;
use crate::worker::{
    self, AccessAnswer, DiskOptions, Resolution, StartOptions, WorkerConfig, WorkerTls,
};

/// What a pod remembers of its data path, in `data-path.json` of its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
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

    fn set_access(&self, volume: VolumeId, set: AccessSet, answer: AccessAnswer) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = worker.as_ref() {
            worker.set_access(volume, set, answer);
        }
    }

    fn resolved(&self, question: u64, answer: Resolution) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = worker.as_ref() {
            worker.resolved(question, answer);
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

/// Checks the directories of disks that this pod never had: somebody is adding them, and is there
/// to see the error.
pub fn check_disks(config: &Config) -> anyhow::Result<()> {
    let memory = Memory::load(&memory_file(config))?;
    Ok(config.check_disks(|path| memory.disks.contains_key(path))?)
}

/// Opens the disks, and starts worker and front ends. `level`: the feature level of the cluster, as
/// far as the pod knows.
pub fn start(
    config: &Config,
    identity: Identity,
    level: Level,
    sockets: SocketLimits,
    control: ControlLink,
    telemetry: &Telemetry,
    tls: Option<&Tls>,
) -> anyhow::Result<Arc<dyn DataPath>> {
    let levels = Levels { cluster: level, newest: NEWEST };
    levels.admit(level).context("could not take part in this cluster")?;
    let file = memory_file(config);
    let known = Memory::load(&file)?;
    let mut memory = known.clone();
    let mut options = options(config, identity, levels, sockets, &memory)?;
    let plain_clients = config.nbd_takes_plaintext();
    options.tls = tls.map(|tls| WorkerTls::new(tls, plain_clients)).transpose()?;
    let worker = worker::start(options, Box::new(control))?;
    let meters = worker.meters();
    telemetry.registry.add(meters.clone());
    let rounds = meters.rounds.clone();
    telemetry.health.check(move || match meters.view_revision.get() {
        0 => vec!["the data path knows no volumes yet: it waits for the catalog".to_owned()],
        _ => Vec::new(),
    });
    let of_replicas = worker.meters();
    telemetry.health.check_step(move || of_replicas.out_of_step());
    telemetry.health.serves(rounds);
    let disks = worker.disks().to_vec();
    for disk in &disks {
        memory.disks.insert(disk.path.clone(), disk.disk);
    }
    if memory != known {
        memory.store(&file)?;
    }
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

fn options(
    config: &Config,
    identity: Identity,
    levels: Levels,
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
    let random = random_uuid().context("could not draw the number of this process")?.0;
    let mut nbd = vec![Address::Tcp(config.nbd.listen)];
    nbd.extend(config.nbd.socket.clone().map(Address::Unix));
    Ok(StartOptions {
        worker: WorkerConfig {
            cluster: identity.cluster,
            pod: identity.pod,
            levels,
            process: random.into_iter().fold(0, |number, byte| number << 8 | u64::from(byte)),
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
        tls: None,
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
