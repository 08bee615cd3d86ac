//! The shape of a run, drawn from its seed. It is small, so that rare events (wrap-around of the
//! log, checkpoints, resyncs, full disks) happen within seconds.

use std::time::Duration;

use crate::limits::{Budgets, LISTING_EXTENTS_MAX};
use crate::replica::messages::ReadMode;
use crate::sim::kernel::Wire;
use crate::sim::names::DiskNumber;
use crate::sim::rng::Rng;
use crate::types::EXTENT_BYTES;

/// Sizes of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The theme of a heavy run.
    pub theme: Option<Theme>,
    pub pods: usize,
    pub disks_per_pod: usize,
    pub clients: usize,
    /// Pods that clients connect to.
    pub fronts: usize,
    pub shards: usize,
    pub blocks_per_shard: u64,
    /// There is a second volume with its own client.
    pub second_volume: bool,
    /// Volumes like the main one, each with its own client.
    pub further_volumes: u64,
    /// The number of their shards, if not that of the main one.
    pub further_shards: Option<u64>,
    /// The shards of a closed volume whose holder changes; 0: there is none.
    pub handed_shards: u64,
    /// Workloads that an orchestrator brings to nodes, each with a closed volume of its own.
    pub workloads: usize,
    pub wal_bytes: u64,
    pub data_bytes: u64,
    /// The disks have too little space for all blocks of the volumes.
    pub is_tight: bool,
    /// A disk with this many bytes only.
    pub tiny: Option<(DiskNumber, u64)>,
    /// The disk that may lose data; it is the tiny one, if there is one. Replication promises to
    /// survive one failing disk.
    pub bad_disk: DiskNumber,
    pub log_tail_bytes: usize,
    pub dirty_cache_bytes: usize,
    pub bypass_bytes_min: usize,
    pub listing_extents: usize,
    pub reads: ReadMode,
    pub leaders_follow_clients: bool,
    pub budgets: Budgets,
    pub load: ClientLoad,
    /// The speed of the links between pods.
    pub wire: Option<Wire>,
    /// Requests fail when they have waited for so long.
    pub io_timeout: Option<Duration>,
}

/// The theme of a heavy run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Pods are away: for less than a log ring, or for longer. Connections break.
    Absences,
    /// Whole shards are written and discarded again.
    Discards,
    /// The links are as fast as the load, or slower.
    NarrowLinks,
    /// A disk does nothing any more, for ever.
    HungDisk,
    /// Hundreds of shards of which nobody wants anything.
    IdleShards,
}

impl Theme {
    const ALL: [Theme; 5] =
        [Theme::Absences, Theme::Discards, Theme::NarrowLinks, Theme::HungDisk, Theme::IdleShards];

    /// Neighbouring seeds have different themes.
    pub fn of(seed: u64) -> Theme {
        Theme::ALL[(seed % Theme::ALL.len() as u64) as usize]
    }
}

/// The load of the clients.
#[derive(Clone, Copy, Debug)]
pub struct ClientLoad {
    /// The most whole extents in one write.
    pub large_extents: u64,
    /// Half of the requests are writes of whole extents, instead of one in eight.
    pub mostly_large: bool,
    /// Average rest of a client between bursts of requests.
    pub rest: Duration,
    /// Requests of one client in flight.
    pub depth: usize,
    /// One in this many requests is a write, zeroing or trim.
    pub writes_one_in: u64,
    /// Most requests go to a few blocks, which change: shards get idle, and busy again.
    pub is_hot: bool,
    /// Clients of two front ends write the same blocks, each its own half of every block.
    pub halves: bool,
    /// Clients write whole shards and discard them, one shard after the other.
    pub sweeps: bool,
}

/// Has room for several large entries of each member.
const LARGE_WAL_BYTES: u64 = 12 << 20;

/// Budgets so small that connections wait as soon as a shard has no leader.
const LESS: Budgets = Budgets { volume_bytes: 16 << 10, ..Budgets::LEAST };

/// Size of a disk that gets full: the reserve of a replica for entries in flight, and slots for a
/// part of the volumes.
const TIGHT_BYTES: u64 = (16 << 20) + 20 * EXTENT_BYTES as u64;

impl Shape {
    pub fn draw(seed: u64) -> Shape {
        let mut rng = Rng::new(seed ^ 0x5a5a);
        let rng = &mut rng;
        let mut shape = Shape {
            theme: None,
            pods: one_of(rng, [3, 3, 3, 4, 5]),
            clients: rng.between(1, 4) as usize,
            fronts: rng.between(1, 4) as usize,
            disks_per_pod: one_of(rng, [1, 1, 2]),
            shards: rng.between(1, 4) as usize,
            blocks_per_shard: rng.between(20, 200),
            second_volume: rng.one_in(3),
            further_volumes: 0,
            further_shards: None,
            handed_shards: 0,
            workloads: 0,
            wal_bytes: one_of(rng, [3 << 20, 4 << 20, LARGE_WAL_BYTES]),
            data_bytes: 64 << 20,
            is_tight: false,
            tiny: None,
            bad_disk: 0,
            log_tail_bytes: one_of(rng, [16 << 10, 256 << 10, 1 << 20]),
            dirty_cache_bytes: one_of(rng, [0, 64 << 10, 1 << 20]),
            bypass_bytes_min: one_of(rng, [64 << 10, 128 << 10, usize::MAX]),
            listing_extents: one_of(rng, [1, 4, LISTING_EXTENTS_MAX]),
            reads: one_of(rng, [ReadMode::Lease, ReadMode::Lease, ReadMode::Quorum]),
            leaders_follow_clients: !rng.one_in(3),
            budgets: one_of(rng, [Budgets::default(), Budgets::LEAST, LESS]),
            load: ClientLoad::draw(rng),
            wire: None,
            io_timeout: None,
        };
        match rng.below(10) {
            0 => (shape.is_tight, shape.data_bytes) = (true, TIGHT_BYTES),
            1 => {
                let disk = rng.below((shape.pods * shape.disks_per_pod) as u64) as DiskNumber;
                let tiny = rng.between(8, 24) * EXTENT_BYTES as u64;
                (shape.is_tight, shape.tiny) = (true, Some((disk, tiny)));
            }
            _ => {}
        }
        let disks = (shape.pods * shape.disks_per_pod) as u64;
        shape.bad_disk = shape.tiny.map_or((seed % disks) as DiskNumber, |tiny| tiny.0);
        if shape.load.halves {
            (shape.fronts, shape.clients) = (2, 2 + shape.clients % 2);
        }
        // Entries that are not applied may take an eighth of a log. Several large ones of each
        // member must fit, or members wait for each other.
        if shape.wal_bytes < LARGE_WAL_BYTES {
            shape.load.large_extents = 1;
            if shape.bypass_bytes_min != usize::MAX {
                shape.bypass_bytes_min = EXTENT_BYTES;
            }
        }
        let mut rng = Rng::new(seed ^ 0xa77ac4);
        if rng.one_in(2) {
            shape.handed_shards = rng.between(1, 4);
        }
        let mut rng = Rng::new(seed ^ 0x0c4e);
        // Where disks get full, a file system may never be made.
        if rng.one_in(3) && !shape.is_tight {
            shape.workloads = rng.between(1, 4) as usize;
        }
        shape
    }

    /// Machines to which an orchestrator brings workloads: those of the pods, and another one.
    pub fn nodes(&self) -> usize {
        self.pods + 1
    }

    pub fn io_timeout_ms(&self) -> u64 {
        self.io_timeout.map_or(0, |timeout| timeout.as_millis() as u64)
    }

    /// The size of a disk's data file, in bytes.
    pub fn data_bytes_of(&self, disk: DiskNumber) -> u64 {
        self.tiny.filter(|tiny| tiny.0 == disk).map_or(self.data_bytes, |tiny| tiny.1)
    }

    /// Size of a data file of this disk: every second disk has several.
    pub fn data_file_bytes_of(&self, disk: DiskNumber) -> u64 {
        let slots = self.data_bytes_of(disk) / EXTENT_BYTES as u64;
        if disk.is_multiple_of(2) { 0 } else { slots.div_ceil(4) * EXTENT_BYTES as u64 }
    }
}

impl ClientLoad {
    fn draw(rng: &mut Rng) -> ClientLoad {
        ClientLoad {
            large_extents: 3,
            mostly_large: false,
            rest: Duration::from_millis(one_of(rng, [10, 100, 300, 1_000, 1_000, 3_000])),
            depth: one_of(rng, [1, 6, 6, 16]),
            writes_one_in: one_of(rng, [2, 2, 2, 20]),
            is_hot: rng.one_in(3),
            halves: rng.one_in(6),
            sweeps: false,
        }
    }
}

fn one_of<T: Copy, const N: usize>(rng: &mut Rng, choices: [T; N]) -> T {
    choices[rng.below(N as u64) as usize]
}
