//! Heavy runs ([`Plan::Load`]): a load that does not end before the run does, and one thing that
//! the load makes hard. They need sizes of their own, so they have shapes of their own.
//!
//! The faults of a heavy run come one after the other. After each of them everybody must be in step
//! again while the load goes on.

use std::time::Duration;

use crate::limits::{Budgets, LISTING_EXTENTS_MAX};
use crate::replica::messages::ReadMode;
use crate::sim::faults::{Fault, Planned, Targets};
use crate::sim::kernel::Wire;
use crate::sim::names::{DiskNumber, Host};
use crate::sim::rng::Rng;
use crate::sim::shape::{ClientLoad, Shape, Theme};
use crate::store::messages::LaneFile;
use crate::types::BLOCKS_PER_EXTENT;

const DATA_BYTES: u64 = 1 << 30;
const EXTENT: u64 = BLOCKS_PER_EXTENT as u64;

/// Draws the shape of a heavy run.
pub fn shape(seed: u64) -> Shape {
    let theme = Theme::of(seed);
    let mut rng = Rng::new(seed ^ 0x4ea7);
    let rng = &mut rng;
    let mut shape = basis(theme, rng);
    match theme {
        Theme::Absences => {
            shape.wal_bytes = [12 << 20, 24 << 20, 48 << 20][rng.below(3) as usize];
            shape.load.rest = Duration::from_millis(rng.between(10, 40));
            shape.load.is_hot = rng.one_in(3);
        }
        Theme::Discards => {
            shape.shards = rng.between(2, 5) as usize;
            shape.blocks_per_shard = EXTENT * rng.between(64, 200);
            shape.further_volumes = rng.between(1, 3);
            (shape.clients, shape.fronts) = (1, 1);
            shape.load.sweeps = true;
            shape.load.depth = 4;
            shape.load.rest = Duration::from_millis(100);
        }
        Theme::NarrowLinks => {
            let bytes_per_s = [12_500_000, 25_000_000, 50_000_000][rng.below(3) as usize];
            let (pods, send_buffer_bytes) = (shape.pods, 256 << 10);
            shape.wire = Some(Wire { pods, bytes_per_s, send_buffer_bytes });
            // One connection for data from pod to pod: others would add a send each.
            shape.disks_per_pod = 1;
            shape.wal_bytes = 64 << 20;
            shape.shards = rng.between(4, 12) as usize;
            shape.blocks_per_shard = EXTENT * 16;
            shape.clients = 3;
            shape.load.large_extents = 16;
            shape.load.mostly_large = true;
            shape.load.depth = 32;
            shape.load.rest = Duration::ZERO;
            shape.leaders_follow_clients = false;
            shape.budgets = Budgets::default();
        }
        Theme::HungDisk => {
            shape.disks_per_pod = rng.between(2, 4) as usize;
            shape.shards = rng.between(4, 9) as usize;
            shape.load.rest = Duration::from_millis(rng.between(20, 100));
        }
        Theme::IdleShards => {
            shape.blocks_per_shard = EXTENT;
            (shape.further_volumes, shape.further_shards) = (1, Some(500));
            shape.load.rest = Duration::from_millis(50);
        }
    }
    shape
}

/// What the shapes of all themes have in common.
fn basis(theme: Theme, rng: &mut Rng) -> Shape {
    Shape {
        theme: Some(theme),
        pods: 3,
        disks_per_pod: rng.between(1, 3) as usize,
        clients: rng.between(2, 4) as usize,
        fronts: rng.between(1, 4) as usize,
        shards: rng.between(1, 5) as usize,
        blocks_per_shard: rng.between(64, 400),
        second_volume: false,
        further_volumes: 0,
        further_shards: None,
        handed_shards: 0,
        workloads: 0,
        wal_bytes: 12 << 20,
        data_bytes: DATA_BYTES,
        is_tight: false,
        tiny: None,
        bad_disk: 0,
        log_tail_bytes: [16 << 10, 64 << 10, 256 << 10][rng.below(3) as usize],
        dirty_cache_bytes: [64 << 10, 1 << 20][rng.below(2) as usize],
        bypass_bytes_min: [64 << 10, 256 << 10][rng.below(2) as usize],
        listing_extents: [64, LISTING_EXTENTS_MAX][rng.below(2) as usize],
        reads: ReadMode::Lease,
        leaders_follow_clients: rng.one_in(2),
        budgets: [Budgets::default(), Budgets::LEAST][rng.below(2) as usize],
        load: ClientLoad {
            large_extents: 3,
            mostly_large: false,
            rest: Duration::ZERO,
            depth: 8,
            writes_one_in: 1,
            is_hot: false,
            halves: false,
            sweeps: false,
        },
        wire: None,
        io_timeout: None,
    }
}

/// Draws the faults of a heavy run. Each begins when everybody is in step after the one before; the
/// time at which a fault begins only orders them.
pub fn faults(seed: u64, targets: Targets, until: Duration) -> Vec<Planned> {
    let theme = Theme::of(seed);
    let mut rng = Rng::new(seed ^ 0x4ea8);
    let mut at = Duration::from_secs(2);
    let mut planned = Vec::new();
    while at < until {
        let Some((fault, lasts)) = one(theme, targets, &mut rng) else { break };
        planned.push(Planned { at, lasts, fault });
        if let Fault::HungDisk(_) = fault {
            break;
        }
        at += lasts + Duration::from_millis(rng.between(500, 2_000));
    }
    planned
}

fn one(theme: Theme, targets: Targets, rng: &mut Rng) -> Option<(Fault, Duration)> {
    let host = rng.below(targets.pods as u64) as Host;
    let other = (host + 1 + rng.below(targets.pods as u64 - 1) as Host) % targets.pods;
    let disk = rng.below(targets.disks as u64) as DiskNumber;
    let lasts = match rng.below(6) {
        0 => rng.between(4_000, 10_000),
        1 | 2 => rng.between(20, 200),
        _ => rng.between(200, 2_500),
    };
    let lasts = Duration::from_millis(lasts);
    match theme {
        Theme::Absences => {
            let fault = match rng.below(8) {
                0 => Fault::Crash(host),
                1 | 2 => Fault::Kill(host),
                3 => Fault::Stop(host),
                4 => Fault::Cut(host),
                5 => Fault::CutOneWay(host, other),
                6 => Fault::SlowFile(disk, LaneFile::Wal),
                _ => Fault::Resets(host),
            };
            Some((fault, lasts))
        }
        Theme::Discards => {
            let fault = if rng.one_in(2) { Fault::Kill(host) } else { Fault::Crash(host) };
            Some((fault, lasts))
        }
        Theme::HungDisk => Some((Fault::HungDisk(disk), Duration::from_secs(14))),
        Theme::NarrowLinks | Theme::IdleShards => None,
    }
}
