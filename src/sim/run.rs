//! One run: a shape and faults drawn from the seed, faults for a while, then a cluster that is
//! whole again must answer everything, and everything that was seen must fit together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::replica::seam::ReadMode;
use crate::sim::disk::Sick;
use crate::sim::faults::{Fault, Plan, Planned, Targets, bad_disk, draw};
use crate::sim::kernel::Host;
use crate::sim::rng::Rng;
use crate::sim::world::{Shape, World};
use crate::types::EXTENT_BYTES;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Virtual time with faults.
    pub faults_for: Duration,
    pub plan: Plan,
    /// Of the faults that the seed draws, only these (by their numbers) happen.
    pub only: Option<Vec<usize>>,
    /// A line for everything that happens.
    pub prints: bool,
}

impl Options {
    /// A seed with all faults that it draws.
    pub fn new(seed: u64, faults_for: Duration) -> Options {
        Options { seed, faults_for, plan: Plan::Mixed, only: None, prints: false }
    }

    /// The faults of this run, with their numbers.
    pub fn faults(&self) -> Vec<(usize, Planned)> {
        let shape = draw_shape(self.seed);
        let (pods, clients) = (shape.pods, shape.clients);
        let targets = Targets { pods, disks: pods * shape.disks_per_pod, clients };
        let all = draw(self.plan, self.seed, targets, self.faults_for);
        let wanted = |number: &usize| self.only.as_ref().is_none_or(|only| only.contains(number));
        all.into_iter().enumerate().filter(|(number, _)| wanted(number)).collect()
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub operations: u64,
    pub faults: usize,
    pub virtual_ms: u64,
    /// Of everything that happened.
    pub trace: u64,
}

/// What a run must never show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("seed {seed}: the history cannot be explained: {what}")]
    NotLinearizable { seed: u64, what: String },
    #[error("seed {seed}: a whole cluster did not answer within {virtual_s} virtual seconds")]
    Stuck { seed: u64, virtual_s: u64 },
    #[error("seed {seed}: {count} requests were answered with an error")]
    Errors { seed: u64, count: u64 },
    #[error("seed {seed}: the replicas did not come to rest within {virtual_s} seconds: {what}")]
    NotSettled { seed: u64, virtual_s: u64, what: String },
    #[error("seed {seed}: {what}, although nothing happened to its disk")]
    Faulted { seed: u64, what: String },
    #[error("seed {seed}: panicked: {what}")]
    Panicked { seed: u64, what: String },
    #[error("seed {seed}: the replicas differ: {what}")]
    Differs { seed: u64, what: String },
    #[error("seed {seed}: {what}")]
    Broken { seed: u64, what: String },
}

const END_OF_FAULTS: u64 = 1;
/// Somebody looks after the cluster.
const ROUND: u64 = 2;
const ROUND_EVERY: Duration = Duration::from_secs(2);
/// The control plane does what is to be done.
const GOVERN: u64 = 3;
const GOVERN_EVERY: Duration = Duration::from_millis(100);
/// Alarms that begin and end a fault: base plus its number.
const BEGIN: u64 = 1 << 16;
const END: u64 = 1 << 17;

/// How long a whole cluster may take to answer everything.
const HEAL_S: u64 = 120;
/// How long the replicas may take to come to rest after that.
const SETTLE_S: u64 = 60;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Clocks drift apart by no more than leases allow: 50 of 700 ms.
const DRIFT_PPM_MAX: u64 = 30_000;

/// Of a disk that gets full: beside what a replica keeps back for what is under way, slots for a
/// part of what the volumes of a run can hold.
const TIGHT_BYTES: u64 = (16 << 20) + 20 * EXTENT_BYTES as u64;

struct Run {
    seed: u64,
    world: World,
    faults: Vec<(usize, Planned)>,
    faults_on: bool,
}

/// Runs one seed. A panic is a violation, too.
pub fn run(options: &Options) -> Result<Outcome, Violation> {
    let ran = catch_unwind(AssertUnwindSafe(|| run_and_check(options)));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation::Panicked { seed: options.seed, what: text.unwrap_or_default() })
    })
}

fn run_and_check(options: &Options) -> Result<Outcome, Violation> {
    let seed = options.seed;
    let mut run = Run::new(options);
    while run.faults_on {
        run.step()?;
    }
    run.heal();
    let deadline = run.world.kernel.borrow().now + Duration::from_secs(HEAL_S);
    run.world.read_all();
    while !run.world.all_read() {
        run.step()?;
        if run.world.kernel.borrow().now > deadline {
            return Err(Violation::Stuck { seed, virtual_s: HEAL_S });
        }
    }
    let history = &run.world.history;
    history.check().map_err(|what| Violation::NotLinearizable { seed, what })?;
    if run.world.errors() > 0 {
        return Err(Violation::Errors { seed, count: run.world.errors() });
    }
    run.settle()?;
    let disks = run.world.kernel.borrow().disks.len();
    if let Some(what) = run.world.faulted_elsewhere(bad_disk(seed, disks)) {
        return Err(Violation::Faulted { seed, what });
    }
    let kernel = run.world.kernel.borrow();
    let outcome = Outcome {
        operations: run.world.history.operations,
        faults: run.faults.len(),
        virtual_ms: kernel.now.0 / 1_000_000,
        trace: kernel.trace.hash,
    };
    drop(kernel);
    run.world.compare_replicas().map_err(|what| Violation::Differs { seed, what })?;
    Ok(outcome)
}

fn draw_shape(seed: u64) -> Shape {
    let mut rng = Rng::new(seed ^ 0x5a5a);
    let mut shape = Shape {
        pods: [3, 3, 3, 4, 5][rng.below(5) as usize],
        clients: rng.between(1, 4) as usize,
        fronts: rng.between(1, 4) as usize,
        disks_per_pod: [1, 1, 2][rng.below(3) as usize],
        shards: rng.between(1, 4) as usize,
        blocks_per_shard: rng.between(20, 200),
        wal_bytes: [3 << 20, 4 << 20, 16 << 20][rng.below(3) as usize],
        data_bytes: 64 << 20,
        is_tight: rng.one_in(6),
        log_tail_bytes: [16 << 10, 256 << 10, 1 << 20][rng.below(3) as usize],
        overlay_cache_bytes: [0, 64 << 10, 1 << 20][rng.below(3) as usize],
        redirect_bytes_min: [64 << 10, 128 << 10, usize::MAX][rng.below(3) as usize],
        reads: [ReadMode::Lease, ReadMode::Lease, ReadMode::Quorum][rng.below(3) as usize],
        large_extents: 3,
        rest: Duration::from_millis([0, 2, 10, 30, 100, 300][rng.below(6) as usize]),
    };
    if shape.is_tight {
        shape.data_bytes = TIGHT_BYTES;
    }
    // A log takes an eighth of itself in entries that are not applied: several large ones of each
    // member must fit, or members wait for each other.
    if shape.wal_bytes < 16 << 20 {
        shape.large_extents = 1;
        if shape.redirect_bytes_min != usize::MAX {
            shape.redirect_bytes_min = EXTENT_BYTES;
        }
    }
    shape
}

impl Run {
    fn new(options: &Options) -> Run {
        let shape = draw_shape(options.seed);
        let pods = shape.pods;
        let run = Run {
            seed: options.seed,
            world: World::new(options.seed, shape),
            faults: options.faults(),
            faults_on: true,
        };
        let mut kernel = run.world.kernel.borrow_mut();
        kernel.trace.prints = options.prints;
        let disks = kernel.disks.len();
        kernel.checks.distrust(bad_disk(options.seed, disks));
        let mut rng = Rng::new(options.seed ^ 0xd41f7);
        if rng.one_in(2) {
            for host in 0..pods {
                let ppm = rng.below(2 * DRIFT_PPM_MAX) as i64 - DRIFT_PPM_MAX as i64;
                kernel.drift(host, ppm);
            }
            if run.world.shape.reads == ReadMode::Quorum && rng.one_in(2) {
                // No clock is needed then: one runs at twice the speed, or hardly at all.
                let host = rng.below(pods as u64) as Host;
                kernel.drift(host, [1_000_000, -950_000][rng.below(2) as usize]);
            }
        }
        for (number, planned) in &run.faults {
            kernel.alarm(planned.at, BEGIN + *number as u64);
        }
        kernel.alarm(ROUND_EVERY, ROUND);
        kernel.alarm(GOVERN_EVERY, GOVERN);
        kernel.alarm(options.faults_for, END_OF_FAULTS);
        drop(kernel);
        run
    }

    /// One thing happens.
    fn step(&mut self) -> Result<(), Violation> {
        let alarm = self.world.step();
        if let Some(what) = self.world.kernel.borrow().checks.wrong() {
            return Err(Violation::Broken { seed: self.seed, what: what.clone() });
        }
        self.rings(alarm);
        Ok(())
    }

    fn rings(&mut self, alarm: Option<u64>) {
        match alarm {
            None => {}
            Some(END_OF_FAULTS) => self.faults_on = false,
            Some(ROUND) => {
                self.world.restart_poisoned();
                self.alarm(ROUND_EVERY, ROUND);
            }
            Some(GOVERN) => {
                self.world.govern(!self.faults_on);
                self.alarm(GOVERN_EVERY, GOVERN);
            }
            Some(begin @ BEGIN..END) if self.faults_on => {
                let planned = self.planned(begin - BEGIN);
                self.begin(planned);
                self.alarm(planned.lasts, begin - BEGIN + END);
            }
            Some(BEGIN..END) => {}
            Some(end) => self.end(self.planned(end - END).fault),
        }
    }

    fn alarm(&mut self, after: Duration, what: u64) {
        self.world.kernel.borrow_mut().alarm(after, what);
    }

    fn planned(&self, number: u64) -> Planned {
        let mut found = self.faults.iter();
        found.find(|(of, _)| *of as u64 == number).expect("only these were scheduled").1
    }

    fn begin(&mut self, planned: Planned) {
        let pods = self.world.shape.pods;
        let mut kernel = self.world.kernel.borrow_mut();
        let kernel_now = kernel.now;
        let until = kernel_now + planned.lasts;
        kernel.trace.note(kernel_now, &[3], || planned.to_string());
        match planned.fault {
            Fault::Crash(host) => {
                drop(kernel);
                self.world.crash(host);
            }
            Fault::CrashAll => {
                drop(kernel);
                (0..pods).for_each(|host| self.world.crash(host));
            }
            Fault::Stop(host) => {
                drop(kernel);
                self.world.set_stopped(host, true);
            }
            Fault::Cut(host) => kernel.cut.extend(cuts(host, pods)),
            Fault::CutOneWay(from, to) => kernel.cut.push((from, to)),
            Fault::Resets(host) => drop(kernel.resets_until.insert(host, until)),
            Fault::SlowLinks(host) => drop(kernel.slow_until.insert(host, until)),
            Fault::SlowDisk(disk) => kernel.disks[disk].sick.slow_until = until,
            Fault::StuckDisk(disk) => kernel.disks[disk].sick.stuck_until = until,
            Fault::Fails(disk, file) => kernel.disks[disk].sick.fails = Some(file),
            Fault::DeadDisk(disk) => kernel.disks[disk].sick.dead_until = until,
            Fault::LosesWrite(disk, file) => kernel.disks[disk].sick.loses = Some(file),
            Fault::MisdirectsWrite(disk, file) => kernel.disks[disk].sick.misdirects = Some(file),
            Fault::MisdirectsRead(disk, file) => kernel.disks[disk].sick.misreads = Some(file),
            Fault::LyingFlushes(disk, file) => kernel.disks[disk].sick.lies = Some((file, until)),
            Fault::Rot(disk, file, pages) => {
                let kernel = &mut *kernel;
                let rotting = kernel.disks[disk].file(file);
                (0..pages).for_each(|_| rotting.rot(kernel_now, &mut kernel.rng));
            }
            Fault::MoveDisk(disk, to) => {
                drop(kernel);
                self.world.move_disk(disk, to);
            }
            Fault::Volume { number, shards, blocks_per_shard } => {
                drop(kernel);
                self.world.create_volume(number, shards, blocks_per_shard);
            }
            Fault::HangUp(client) => {
                drop(kernel);
                self.world.hang_up(client);
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        let pods = self.world.shape.pods;
        match fault {
            Fault::Crash(host) => self.restart(host),
            Fault::CrashAll | Fault::MoveDisk(..) => {
                (0..pods).for_each(|host| self.restart(host));
            }
            Fault::Volume { number, .. } => self.world.delete_volume(number),
            Fault::Stop(host) => self.world.set_stopped(host, false),
            Fault::Cut(host) => {
                let mended: Vec<_> = cuts(host, pods).collect();
                self.world.kernel.borrow_mut().cut.retain(|cut| !mended.contains(cut));
            }
            Fault::CutOneWay(from, to) => {
                self.world.kernel.borrow_mut().cut.retain(|cut| *cut != (from, to));
            }
            Fault::Resets(_)
            | Fault::SlowLinks(_)
            | Fault::SlowDisk(_)
            | Fault::StuckDisk(_)
            | Fault::Fails(..)
            | Fault::Rot(..)
            | Fault::DeadDisk(_)
            | Fault::LosesWrite(..)
            | Fault::MisdirectsWrite(..)
            | Fault::MisdirectsRead(..)
            | Fault::LyingFlushes(..)
            | Fault::HangUp(_) => {}
        }
    }

    fn restart(&mut self, host: Host) {
        if !self.world.is_up(host) {
            self.world.start(host);
        }
    }

    /// Nobody asks for anything any more: all replicas come to rest.
    fn settle(&mut self) -> Result<(), Violation> {
        let now = |run: &Run| run.world.kernel.borrow().now;
        let until = now(self) + Duration::from_secs(SETTLE_S);
        let mut look = now(self) + LOOK_EVERY;
        loop {
            self.step()?;
            if now(self) < look {
                continue;
            }
            look = now(self) + LOOK_EVERY;
            let Some(what) = self.world.unsettled() else { return Ok(()) };
            if now(self) > until {
                let seed = self.seed;
                return Err(Violation::NotSettled { seed, virtual_s: SETTLE_S, what });
            }
        }
    }

    /// Everything is well from now on.
    fn heal(&mut self) {
        let mut kernel = self.world.kernel.borrow_mut();
        (0..self.world.shape.pods).for_each(|host| kernel.drift(host, 0));
        kernel.cut.clear();
        kernel.disks.iter_mut().for_each(|disk| disk.sick = Sick::default());
        kernel.resets_until.clear();
        kernel.slow_until.clear();
        drop(kernel);
        for host in 0..self.world.shape.pods {
            self.restart(host);
            self.world.set_stopped(host, false);
        }
    }
}

/// Between this host and all others, both ways.
fn cuts(host: Host, pods: usize) -> impl Iterator<Item = (Host, Host)> {
    let others = (0..pods).filter(move |other| *other != host);
    others.flat_map(move |other| [(host, other), (other, host)])
}
