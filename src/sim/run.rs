//! One run: a shape and a fault plan drawn from the seed, faults for a while, then a cluster that
//! is whole again must answer everything, and everything that was seen must fit together.

use std::time::Duration;

use crate::sim::kernel::Host;
use crate::sim::world::{Shape, World};
use crate::types::EXTENT_BYTES;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    /// Virtual time with faults.
    pub faults_for: Duration,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub operations: u64,
    pub crashes: u64,
    pub virtual_ms: u64,
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
}

const FAULT: u64 = 1;
const END_OF_FAULTS: u64 = 2;
/// Alarms that undo a fault on a host: base plus the host.
const RESTART: u64 = 100;
const CONTINUE: u64 = 200;
const MEND: u64 = 300;

/// How long a whole cluster may take to answer everything.
const HEAL_S: u64 = 120;

struct Run {
    seed: u64,
    plan: Plan,
    world: World,
    crashes: u64,
    /// Hosts with a fault that will be undone.
    down: Vec<Host>,
    faults_on: bool,
}

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All kinds.
    Mixed,
    /// Bits flip in the slots of one pod, again and again, and nothing else happens.
    Rot,
}

/// Runs one seed.
pub fn run(options: Options) -> Result<Outcome, Violation> {
    run_plan(options, Plan::Mixed)
}

/// Runs one seed with these faults.
pub fn run_plan(options: Options, plan: Plan) -> Result<Outcome, Violation> {
    let Options { seed, faults_for } = options;
    let mut run = Run {
        seed,
        plan,
        world: World::new(seed, draw_shape(seed)),
        crashes: 0,
        down: Vec::new(),
        faults_on: true,
    };
    run.alarm(Duration::from_secs(3), FAULT);
    run.alarm(faults_for, END_OF_FAULTS);
    while run.faults_on {
        if let Some(alarm) = run.world.step() {
            run.rang(alarm);
        }
    }
    run.heal();
    let deadline = run.world.kernel.borrow().now + Duration::from_secs(HEAL_S);
    run.world.read_all();
    while !run.world.all_read() {
        if let Some(alarm) = run.world.step() {
            run.rang(alarm);
        }
        if run.world.kernel.borrow().now > deadline {
            return Err(Violation::Stuck { seed, virtual_s: HEAL_S });
        }
    }
    let history = &run.world.history;
    history.check().map_err(|what| Violation::NotLinearizable { seed, what })?;
    match run.world.errors() {
        0 => Ok(Outcome {
            operations: history.operations,
            crashes: run.crashes,
            virtual_ms: run.world.kernel.borrow().now.0 / 1_000_000,
        }),
        count => Err(Violation::Errors { seed, count }),
    }
}

fn draw_shape(seed: u64) -> Shape {
    let mut rng = crate::sim::rng::Rng::new(seed ^ 0x5a5a);
    let mut shape = Shape {
        pods: [3, 3, 3, 4, 5][rng.below(5) as usize],
        clients: rng.between(1, 4) as usize,
        fronts: rng.between(1, 4) as usize,
        shards: rng.between(1, 4) as usize,
        blocks_per_shard: rng.between(20, 200),
        wal_bytes: [3 << 20, 4 << 20, 16 << 20][rng.below(3) as usize],
        data_bytes: 64 << 20,
        log_tail_bytes: [16 << 10, 256 << 10, 1 << 20][rng.below(3) as usize],
        overlay_cache_bytes: [0, 64 << 10, 1 << 20][rng.below(3) as usize],
        redirect_bytes_min: [64 << 10, 128 << 10, usize::MAX][rng.below(3) as usize],
        large_extents: 3,
    };
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
    fn alarm(&mut self, after: Duration, what: u64) {
        self.world.kernel.borrow_mut().alarm(after, what);
    }

    fn draw(&mut self, low: u64, high: u64) -> u64 {
        self.world.kernel.borrow_mut().rng.between(low, high)
    }

    fn rang(&mut self, alarm: u64) {
        match alarm {
            FAULT if self.faults_on => {
                match self.plan {
                    Plan::Mixed => self.fault(),
                    Plan::Rot => self.rot(),
                }
                let pause = self.draw(100, 4_000);
                self.alarm(Duration::from_millis(pause), FAULT);
            }
            FAULT => {}
            END_OF_FAULTS => self.faults_on = false,
            RESTART..CONTINUE => self.restart((alarm - RESTART) as Host),
            CONTINUE..MEND => self.go_on((alarm - CONTINUE) as Host),
            host => self.mend((host - MEND) as Host),
        }
    }

    fn fault(&mut self) {
        let pods = self.world.shape.pods;
        let host = self.draw(0, pods as u64) as Host;
        if self.down.contains(&host) {
            return;
        }
        let millis = self.draw(10, 8_000);
        let for_a_while = Duration::from_millis(millis);
        match self.draw(0, 10) {
            0..4 => {
                self.down.push(host);
                self.crashes += 1;
                self.world.crash(host);
                self.alarm(for_a_while, RESTART + host as u64);
            }
            4 => {
                for host in (0..pods).filter(|host| !self.down.contains(host)).collect::<Vec<_>>() {
                    self.down.push(host);
                    self.crashes += 1;
                    self.world.crash(host);
                    self.alarm(for_a_while, RESTART + host as u64);
                }
            }
            5 => self.rot(),
            6 => {
                self.down.push(host);
                self.world.set_stopped(host, true);
                self.alarm(for_a_while, CONTINUE + host as u64);
            }
            _ => {
                self.down.push(host);
                let cuts = (0..pods).filter(|other| *other != host).map(|other| (host, other));
                self.world.kernel.borrow_mut().cut.extend(cuts);
                self.alarm(for_a_while, MEND + host as u64);
            }
        }
    }

    /// Bits flip in the data file of one pod, the same in all of a run: there is another copy of
    /// everything then.
    fn rot(&mut self) {
        let pods = self.world.shape.pods;
        let host = (self.seed % pods as u64) as Host;
        let mut kernel = self.world.kernel.borrow_mut();
        let kernel = &mut *kernel;
        let Some(data) = kernel.files.get_mut(&(host, "data".into())) else { return };
        for _ in 0..kernel.rng.between(1, 20) {
            data.rot(&mut kernel.rng);
        }
    }

    fn restart(&mut self, host: Host) {
        if !self.world.is_up(host) {
            self.world.start(host);
        }
        self.down.retain(|down| *down != host);
    }

    fn go_on(&mut self, host: Host) {
        self.world.set_stopped(host, false);
        self.down.retain(|down| *down != host);
    }

    fn mend(&mut self, host: Host) {
        self.world.kernel.borrow_mut().cut.retain(|(a, b)| *a != host && *b != host);
        self.down.retain(|down| *down != host);
    }

    /// Everything is well from now on.
    fn heal(&mut self) {
        for host in 0..self.world.shape.pods {
            self.restart(host);
            self.go_on(host);
            self.mend(host);
        }
    }
}
