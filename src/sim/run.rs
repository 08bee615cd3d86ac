//! One run: draws a shape and faults from the seed, injects the faults, and heals the cluster. It
//! must then answer everything, and all observations must be consistent.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::replica::messages::ReadMode;
use crate::sim::checks::Seen;
use crate::sim::disk::{FRESH_NS, Loss, Sick};
use crate::sim::faults::{Fault, Plan, Planned, Targets, draw};
use crate::sim::heavy;
use crate::sim::kernel::{Kernel, Wire};
use crate::sim::names::{DiskNumber, Host, Moment};
use crate::sim::orchestra::Orchestra;
use crate::sim::rng::Rng;
use crate::sim::shape::{Shape, Theme};
use crate::sim::world::World;
use crate::store::messages::LaneFile;
use crate::types::Mono;

/// Options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Virtual time during which faults happen.
    pub faults_for: Duration,
    pub plan: Plan,
    /// Keeps only the faults with these numbers of those that the seed draws.
    pub only: Option<Vec<usize>>,
    /// Clients send this many requests during the faults, and then no more.
    pub requests: Option<u64>,
    /// Replaces the value that the seed draws.
    pub reads: Option<ReadMode>,
    /// Shards of the main volume instead of the few that the seed draws: most are idle.
    pub shards: Option<usize>,
    /// Requests of clients fail when they have waited for so long.
    pub io_timeout: Option<Duration>,
    /// Prints a line for every event.
    pub prints: bool,
}

impl Options {
    /// Runs a seed with all faults that it draws.
    pub fn new(seed: u64, faults_for: Duration) -> Options {
        let (plan, only, requests, reads) = (Plan::Mixed, None, None, None);
        let (shards, io_timeout, prints) = (None, None, false);
        Options { seed, faults_for, plan, only, requests, reads, shards, io_timeout, prints }
    }

    fn shape(&self) -> Shape {
        match self.plan {
            Plan::Load => heavy::shape(self.seed),
            _ => Shape::draw(self.seed),
        }
    }

    /// The faults of this run, with their numbers.
    pub fn faults(&self) -> Vec<(usize, Planned)> {
        let shape = self.shape();
        let Shape { pods, clients, bad_disk, .. } = shape;
        let disks = pods * shape.disks_per_pod;
        let (workloads, nodes) = (shape.workloads, shape.nodes());
        let targets = Targets { pods, disks, bad_disk, clients, workloads, nodes };
        let all = match self.plan {
            Plan::Load => heavy::faults(self.seed, targets, self.faults_for),
            plan => draw(plan, self.seed, targets, self.faults_for),
        };
        let wanted = |number: &usize| self.only.as_ref().is_none_or(|only| only.contains(number));
        all.into_iter().enumerate().filter(|(number, _)| wanted(number)).collect()
    }
}

/// The result of a run without violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub requests: u64,
    pub faults: usize,
    pub virtual_ms: u64,
    /// Hash of the trace of all events.
    pub trace: u64,
    /// At the end, some volumes had to answer without one or two pods.
    pub spared: bool,
    /// Requests that have waited for too long.
    pub timed_out: u64,
    pub seen: Seen,
}

/// A violation that ends a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("seed {seed}: the history cannot be explained: {what}")]
    NotLinearizable { seed: u64, what: String },
    #[error(
        "seed {seed}: without the pods {without:?}, a whole cluster did not answer within \
         {virtual_s} virtual seconds: {waiting}"
    )]
    Stuck { seed: u64, without: Vec<Host>, virtual_s: u64, waiting: String },
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
    #[error("seed {seed}: {virtual_s} seconds after a fault and under load: {what}")]
    OutOfStep { seed: u64, virtual_s: u64, what: String },
    #[error("seed {seed}: {what}")]
    Broken { seed: u64, what: String },
}

const END_OF_FAULTS: u64 = 1;
/// Alarm: somebody looks after the cluster.
const ROUND: u64 = 2;
const ROUND_EVERY: Duration = Duration::from_secs(2);
/// Alarm: the control plane takes its next step.
const GOVERN: u64 = 3;
const GOVERN_EVERY: Duration = Duration::from_millis(100);
/// Alarms for the begin and the end of a fault: base plus its number.
const BEGIN: u64 = 1 << 16;
const END: u64 = 1 << 17;

/// Time limit for all members to be in step again, under load.
const IN_STEP_S: u64 = 40;
/// Who is in step has within this time what others have now.
const IN_STEP_WITHIN: Duration = Duration::from_secs(2);
/// In step, every request is answered within this time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
/// Ticks of a member that is awake, with a margin for clocks that are fast.
const TICKS_PER_S: u64 = 11;
/// Time until a heavy run is in full swing.
const WARM_UP: Duration = Duration::from_secs(4);
/// A heartbeat waits no longer than this, beside what the links carry before it.
const HEARTBEAT_DELAY: Duration = Duration::from_millis(50);
/// Bytes that may leave before a heartbeat: what the kernel has, one send, and the rest of a frame.
const BEFORE_HEARTBEAT_BYTES: u64 = (256 + 512 + 1024) << 10;
/// A hung disk works again after this time, which does not come.
const FOR_EVER: Mono = Mono(u64::MAX / 2);

/// Practically stopped. Below -1,000,000 the pod's time would run backwards.
const CLOCK_STOPS_PPM: i64 = -999_999;

/// Time limit for a healed cluster to answer everything.
const HEAL_S: u64 = 120;
/// Time limit after that for the replicas to become idle and equal.
const SETTLE_S: u64 = 60;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest delay of a bad path. Links are given up after five seconds of silence.
const LAG_MAX: Duration = Duration::from_secs(4);
/// After this time, a healthy majority knows which of its replicas are usable.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How long clients ask for data that may be lost for good.
const LAST_LOOK: Duration = Duration::from_secs(10);
/// Clocks drift apart no more than leases allow: by 50 of 700 ms.
const DRIFT_PPM_MAX: u64 = 30_000;

struct Run {
    seed: u64,
    world: World,
    /// Brings workloads to nodes, in some runs.
    orchestra: Option<Orchestra>,
    faults: Vec<(usize, Planned)>,
    faults_on: bool,
    /// Moments to wait for, and the numbers of their faults.
    ambushes: Vec<(Moment, u64)>,
    /// At the end, some volumes had to answer without one or two pods.
    spared: bool,
}

/// Runs one seed. A panic counts as a violation.
pub fn run(options: &Options) -> Result<Outcome, Violation> {
    let ran = catch_unwind(AssertUnwindSafe(|| run_and_check(options)));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation::Panicked { seed: options.seed, what: text.unwrap_or_default() })
    })
}

fn run_and_check(options: &Options) -> Result<Outcome, Violation> {
    let mut run = Run::new(options);
    if options.plan == Plan::Load {
        run.under_load(options.faults_for)?;
    }
    while run.faults_on {
        run.step()?;
    }
    match options.plan {
        Plan::Unbounded => run.end_without_promises()?,
        Plan::Mixed | Plan::Rot | Plan::Clocks | Plan::Load => {
            if options.plan != Plan::Load {
                run.majority_answers()?;
            }
            run.heal(&[]);
            run.all_answer(&[], None)?;
            run.check_history()?;
            run.settle()?;
        }
    }
    let kernel = run.world.kernel.borrow();
    let mut seen = run.world.checks.borrow().seen;
    seen.full = run.world.shared.full;
    (seen.handovers, seen.fenced) = (run.world.handovers(), run.world.shared.fenced);
    if let Some(orchestra) = &run.orchestra {
        (seen.brought, seen.made, seen.lost) = (orchestra.brought, orchestra.made, orchestra.lost);
    }
    let outcome = Outcome {
        requests: run.world.shared.requests,
        faults: run.faults.len(),
        virtual_ms: kernel.now.0 / 1_000_000,
        trace: kernel.trace.hash,
        spared: run.spared,
        timed_out: run.world.shared.timed_out,
        seen,
    };
    drop(kernel);
    if options.plan != Plan::Unbounded && run.world.shape.tiny.is_none() {
        let seed = options.seed;
        run.world.compare_replicas().map_err(|what| Violation::Differs { seed, what })?;
    }
    Ok(outcome)
}

impl Run {
    fn new(options: &Options) -> Run {
        let mut shape = options.shape();
        shape.reads = options.reads.unwrap_or(shape.reads);
        shape.shards = options.shards.unwrap_or(shape.shards);
        shape.io_timeout = options.io_timeout;
        let pods = shape.pods;
        let mut world = World::new(options.seed, shape, options.plan);
        let has_orchestra = world.shape.workloads > 0 && options.plan != Plan::Unbounded;
        let orchestra = has_orchestra.then(|| Orchestra::new(options.seed, &mut world));
        let mut run = Run {
            seed: options.seed,
            world,
            orchestra,
            faults: options.faults(),
            faults_on: true,
            ambushes: Vec::new(),
            spared: false,
        };
        run.world.shared.requests_left = options.requests;
        let mut checks = run.world.checks.borrow_mut();
        if options.plan == Plan::Unbounded {
            checks.expect_nothing();
        }
        match options.plan {
            Plan::Load => checks.expect_ring(),
            _ => checks.distrust(run.world.shape.bad_disk),
        }
        checks.expect(run.world.shape.reads, options.plan != Plan::Clocks);
        drop(checks);
        let mut kernel = run.world.kernel.borrow_mut();
        kernel.trace.prints = options.prints;
        let mut rng = Rng::new(options.seed ^ 0xd41f7);
        if options.plan != Plan::Clocks && rng.one_in(2) {
            for host in 0..pods {
                let ppm = rng.below(2 * DRIFT_PPM_MAX) as i64 - DRIFT_PPM_MAX as i64;
                kernel.drift(host, ppm);
            }
            if run.world.shape.reads == ReadMode::Quorum && rng.one_in(2) {
                // Quorum reads need no clock: one runs at twice the speed, or almost stands still.
                let host = rng.below(pods as u64) as Host;
                kernel.drift(host, [1_000_000, -950_000][rng.below(2) as usize]);
            }
        }
        if options.plan != Plan::Load {
            for (number, planned) in &run.faults {
                kernel.alarm(planned.at, BEGIN + *number as u64);
            }
        }
        kernel.alarm(ROUND_EVERY, ROUND);
        kernel.alarm(GOVERN_EVERY, GOVERN);
        if options.plan != Plan::Load {
            kernel.alarm(options.faults_for, END_OF_FAULTS);
        }
        drop(kernel);
        run
    }

    /// Processes one event.
    fn step(&mut self) -> Result<(), Violation> {
        let alarm = self.world.step();
        self.orchestra_hears();
        let mut checks = self.world.checks.borrow_mut();
        if let Some(what) = checks.wrong() {
            return Err(Violation::Broken { seed: self.seed, what: what.clone() });
        }
        let moments = std::mem::take(&mut checks.moments);
        drop(checks);
        self.spring(moments);
        self.rings(alarm);
        self.orchestra_hears();
        Ok(())
    }

    fn orchestra_hears(&mut self) {
        match &mut self.orchestra {
            Some(orchestra) => orchestra.hear(&mut self.world),
            None => self.world.news.clear(),
        }
    }

    /// Turns ambushes whose moment has come into crashes.
    fn spring(&mut self, moments: Vec<(Moment, Host)>) {
        for (moment, host) in moments {
            let Some(at) = self.ambushes.iter().position(|(of, _)| *of == moment) else {
                continue;
            };
            let (_, number) = self.ambushes.remove(at);
            let found = self.faults.iter_mut().find(|(of, _)| *of as u64 == number);
            let fault = &mut found.expect("only these lie in wait").1.fault;
            if let Fault::Ambush { further, after, .. } = *fault {
                *fault = Fault::Crash((host + further) % self.world.shape.pods);
                self.alarm(after, BEGIN + number);
            }
        }
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
                if let Some(orchestra) = &mut self.orchestra {
                    orchestra.step(&mut self.world);
                }
                self.world.govern(!self.faults_on);
                self.alarm(GOVERN_EVERY, GOVERN);
            }
            Some(begin @ BEGIN..END) if self.faults_on => {
                let number = begin - BEGIN;
                let planned = self.planned(number);
                if let Fault::Ambush { moment, .. } = planned.fault {
                    self.ambushes.push((moment, number));
                    return;
                }
                self.begin(planned);
                self.alarm(planned.lasts, END + number);
            }
            Some(BEGIN..END) => {}
            Some(end) => self.end(self.planned(end - END).fault),
        }
    }

    /// A heavy run until its load ends: one fault after the other, and after each of them everybody
    /// is in step again, under load.
    fn under_load(&mut self, lasts: Duration) -> Result<(), Violation> {
        let until = self.now() + lasts;
        self.step_for(WARM_UP)?;
        let waits = |wire: Wire| HEARTBEAT_DELAY + wire.takes(BEFORE_HEARTBEAT_BYTES);
        let within = self.world.shape.wire.map(waits);
        self.world.checks.borrow_mut().expect_heartbeats(within);
        let mut hung = None;
        for (_, planned) in self.faults.clone() {
            self.begin(planned);
            self.step_for(planned.lasts)?;
            self.end(planned.fault);
            if let Fault::HungDisk(disk) = planned.fault {
                hung = Some(disk);
            }
            self.in_step(hung)?;
            if self.now() > until {
                break;
            }
        }
        self.step_for(until.since(self.now()))?;
        self.in_step(hung)?;
        self.faults_on = false;
        self.world.checks.borrow_mut().expect_heartbeats(None);
        if let Some(disk) = hung {
            self.world.unhang(disk);
        }
        Ok(())
    }

    /// Waits until all members have what others had two seconds before, nobody is being resynced,
    /// and every client gets answers. The load goes on meanwhile.
    fn in_step(&mut self, hung: Option<DiskNumber>) -> Result<(), Violation> {
        let (seed, until) = (self.seed, self.now() + Duration::from_secs(IN_STEP_S));
        loop {
            let (before, answers) = (self.world.newest_applied(), self.world.answers());
            self.world.checks.borrow_mut().take_ticks();
            self.step_for(IN_STEP_WITHIN)?;
            let late = self.world.out_of_step(&before, hung);
            let late = late.or_else(|| self.starved(&answers));
            let late = late.or_else(|| self.wakes_idle());
            let Some(what) = late else { return Ok(()) };
            if self.now() > until {
                return Err(Violation::OutOfStep { seed, virtual_s: IN_STEP_S, what });
            }
        }
    }

    /// Describes a busy client that got no answers since the last look, or waited long for one.
    fn starved(&mut self, before: &[(u64, Duration)]) -> Option<String> {
        let waits_at_most = match self.world.shape.theme {
            Some(Theme::NarrowLinks) => Duration::MAX,
            _ => ANSWERED_WITHIN,
        };
        if self.world.shared.requests_left == Some(0) {
            return None;
        }
        let now = self.world.answers();
        let mut all = before.iter().zip(now).enumerate();
        all.find_map(|(client, ((before, _), (answers, slowest)))| {
            let starves = answers == *before || slowest > waits_at_most;
            starves.then(|| format!("client {client}: {} answers, {slowest:?}", answers - before))
        })
    }

    /// Members of which nobody wants anything do not count the time, but now and then.
    fn wakes_idle(&mut self) -> Option<String> {
        let Shape { pods, further_shards, shards, .. } = self.world.shape;
        let idle = further_shards? * pods as u64;
        let ticks = self.world.checks.borrow_mut().take_ticks();
        let seconds = IN_STEP_WITHIN.as_secs();
        let busy = (shards * pods) as u64 * seconds * TICKS_PER_S;
        (ticks > busy + idle * seconds)
            .then(|| format!("{ticks} ticks, {busy} of them of busy members; {idle} are idle"))
    }

    fn alarm(&mut self, after: Duration, what: u64) {
        self.world.kernel.borrow_mut().alarm(after, what);
    }

    fn planned(&self, number: u64) -> Planned {
        let mut found = self.faults.iter();
        found.find(|(of, _)| *of as u64 == number).expect("only these were scheduled").1
    }

    fn begin(&mut self, planned: Planned) {
        let mut kernel = self.world.kernel.borrow_mut();
        let now = kernel.now;
        kernel.trace.note(now, &[3], || planned.to_string());
        drop(kernel);
        let pods = self.world.shape.pods;
        match planned.fault {
            Fault::Crash(host) => self.world.crash(host, Loss::Power),
            Fault::CrashAll => (0..pods).for_each(|host| self.world.crash(host, Loss::Power)),
            Fault::Kill(host) => self.world.crash(host, Loss::Process),
            Fault::Stop(host) => self.world.set_stopped(host, true),
            Fault::MoveDisk(disk, to) => self.world.move_disk(disk, to),
            Fault::Volume { number, shards, blocks_per_shard } => {
                self.world.create_volume(number, shards, blocks_per_shard);
            }
            Fault::HangUp(client) => self.world.hang_up(client),
            Fault::Rot(disk, file, pages) => self.rot(disk, file, pages),
            of_node if of_node.is_of_node() => {
                if let Some(orchestra) = &mut self.orchestra {
                    orchestra.begin(of_node, &mut self.world);
                }
            }
            below => {
                begin_below_pods(&mut self.world.kernel.borrow_mut(), below, planned.lasts, pods)
            }
        }
    }

    /// Flips bits in `pages` pages.
    fn rot(&mut self, disk: DiskNumber, file: LaneFile, pages: u64) {
        let Kernel { now, rng, disks, .. } = &mut *self.world.kernel.borrow_mut();
        let (spared, before) = match file {
            LaneFile::Wal => (self.world.checks.borrow().unmarked(disk), *now),
            _ => (Vec::new(), Mono(now.0.saturating_sub(FRESH_NS))),
        };
        (0..pages).for_each(|_| disks[disk].file(file).rot(before, rng, &spared));
    }

    fn end(&mut self, fault: Fault) {
        let pods = self.world.shape.pods;
        match fault {
            Fault::Crash(host) | Fault::Kill(host) => self.restart(host),
            Fault::CrashAll | Fault::MoveDisk(..) => (0..pods).for_each(|host| self.restart(host)),
            Fault::Volume { number, .. } => self.world.delete_volume(number),
            Fault::Stop(host) => self.world.set_stopped(host, false),
            // Cuts at the end of a run stay.
            Fault::Cut(_) | Fault::CutOneWay(..) | Fault::ClockStops(_) if !self.faults_on => {}
            Fault::Cut(host) | Fault::ClockStops(host) => {
                if let Fault::ClockStops(host) = fault {
                    self.world.kernel.borrow_mut().drift(host, 0);
                }
                let repaired: Vec<_> = cuts(host, pods).collect();
                self.world.kernel.borrow_mut().cut.retain(|cut| !repaired.contains(cut));
            }
            Fault::CutOneWay(from, to) => {
                self.world.kernel.borrow_mut().cut.retain(|cut| *cut != (from, to));
            }
            of_node if of_node.is_of_node() => {
                if let Some(orchestra) = &mut self.orchestra {
                    orchestra.end(of_node, &mut self.world);
                }
            }
            // Instantaneous, or the kernel knows the end.
            Fault::Resets(_)
            | Fault::SlowLinks(_)
            | Fault::SlowDisk(_)
            | Fault::SlowFile(..)
            | Fault::StuckDisk(_)
            | Fault::StuckFile(..)
            | Fault::HungDisk(_)
            | Fault::Lag(..)
            | Fault::Fails(..)
            | Fault::Rot(..)
            | Fault::DeadDisk(_)
            | Fault::LosesWrite(..)
            | Fault::MisdirectsWrite(..)
            | Fault::MisdirectsRead(..)
            | Fault::LyingFlushes(..)
            | Fault::HangUp(_)
            | Fault::Ambush { .. }
            | Fault::NodeStops(_)
            | Fault::NodeCut(_)
            | Fault::NodeLost(_)
            | Fault::NodeReboots(_)
            | Fault::PluginDies(_)
            | Fault::ControllerDies(_)
            | Fault::CallsAgain(_) => {}
        }
    }

    fn restart(&mut self, host: Host) {
        if !self.world.is_up(host) {
            self.world.start(host);
        }
    }

    /// Heals all but one or two pods. Volumes that do not need those must answer, whatever happens
    /// to the others.
    fn majority_answers(&mut self) -> Result<(), Violation> {
        let left_out = self.left_out();
        self.heal(&left_out);
        self.step_for(SETTLED_AFTER)?;
        let volumes = self.world.answering_without(&left_out);
        self.spared = !volumes.is_empty();
        match self.spared {
            true => self.all_answer(&left_out, Some(&volumes)),
            false => Ok(()),
        }
    }

    /// The pods that stay unhealed: first the one with the bad disk, since the others have enough
    /// copies. In large clusters often a second one, which only some volumes can do without.
    fn left_out(&self) -> Vec<Host> {
        let pods = self.world.shape.pods;
        let mut rng = Rng::new(self.seed ^ 0x0a11);
        let one = rng.below(pods as u64) as Host;
        let lost = self.faults.iter().any(|(_, planned)| planned.fault.destroys());
        let first = if lost { self.world.host_of(self.world.shape.bad_disk) } else { one };
        let second = (first + 1 + rng.below(pods as u64 - 1) as Host) % pods;
        if pods > 3 && rng.one_in(2) { vec![first, second] } else { vec![first] }
    }

    /// Each client reads everything through pods outside `left_out`. Clients of `volumes` (`None`:
    /// all) must succeed.
    fn all_answer(
        &mut self,
        left_out: &[Host],
        volumes: Option<&BTreeSet<String>>,
    ) -> Result<(), Violation> {
        let deadline = self.now() + Duration::from_secs(HEAL_S);
        self.world.read_all(left_out);
        let mut orchestra = self.orchestra.as_mut().filter(|_| volumes.is_none());
        orchestra.iter_mut().for_each(|orchestra| orchestra.finish());
        while !self.world.all_read(volumes) || !self.workloads_wait(volumes).is_empty() {
            self.step()?;
            if self.now() > deadline {
                let (seed, without) = (self.seed, left_out.to_vec());
                let waiting = self.world.waiting(volumes) + &self.workloads_wait(volumes);
                return Err(Violation::Stuck { seed, without, virtual_s: HEAL_S, waiting });
            }
        }
        Ok(())
    }

    /// Describes the workloads that have not been well at the end. `volumes`: not all must answer.
    fn workloads_wait(&self, volumes: Option<&BTreeSet<String>>) -> String {
        let orchestra = self.orchestra.as_ref().filter(|_| volumes.is_none());
        orchestra.map_or(String::new(), |orchestra| orchestra.waiting().join(", "))
    }

    fn check_history(&mut self) -> Result<(), Violation> {
        let seed = self.seed;
        let history = &self.world.shared.history;
        history.check().map_err(|what| Violation::NotLinearizable { seed, what })?;
        let count = self.world.errors();
        if count > 0 {
            return Err(Violation::Errors { seed, count });
        }
        Ok(())
    }

    /// Disks may have lost anything. All content that is read must once have been written. Other
    /// reads get an error or no answer.
    fn end_without_promises(&mut self) -> Result<(), Violation> {
        self.heal(&[]);
        self.world.read_all(&[]);
        self.step_for(LAST_LOOK)?;
        let seed = self.seed;
        let checked = self.world.shared.history.check_origins();
        checked.map_err(|what| Violation::NotLinearizable { seed, what })?;
        match self.world.errors() {
            0 => Ok(()),
            count => Err(Violation::Errors { seed, count }),
        }
    }

    fn now(&self) -> Mono {
        self.world.kernel.borrow().now
    }

    fn step_for(&mut self, time: Duration) -> Result<(), Violation> {
        let until = self.now() + time;
        while self.now() < until {
            self.step()?;
        }
        Ok(())
    }

    /// Without requests, all replicas must become idle and equal. Replicas without space for the
    /// others' data never do.
    fn settle(&mut self) -> Result<(), Violation> {
        let seed = self.seed;
        let until = self.now() + Duration::from_secs(SETTLE_S);
        while let Some(what) = self.world.unsettled() {
            if self.world.shape.tiny.is_some() {
                break;
            }
            if self.now() > until {
                return Err(Violation::NotSettled { seed, virtual_s: SETTLE_S, what });
            }
            self.step_for(LOOK_EVERY)?;
        }
        let faulted = self.world.faulted_elsewhere(self.world.shape.bad_disk);
        faulted.map_or(Ok(()), |what| Err(Violation::Faulted { seed, what }))
    }

    /// Ends all faults. Pods in `left_out` stay as they are, cut off from the others.
    fn heal(&mut self, left_out: &[Host]) {
        let pods = self.world.shape.pods;
        let mut kernel = self.world.kernel.borrow_mut();
        (0..pods).for_each(|host| kernel.drift(host, 0));
        kernel.cut = left_out.iter().flat_map(|host| cuts(*host, pods)).collect();
        kernel.disks.iter_mut().for_each(|disk| disk.sick = Sick::default());
        kernel.resets_until.clear();
        kernel.slow_until.clear();
        drop(kernel);
        if let Some(orchestra) = &mut self.orchestra {
            orchestra.heal(&mut self.world);
        }
        self.ambushes.clear();
        for host in (0..pods).filter(|host| !left_out.contains(host)) {
            self.restart(host);
            self.world.set_stopped(host, false);
        }
    }
}

/// Begins a fault of the network, a clock or a disk, among `pods` pods.
fn begin_below_pods(kernel: &mut Kernel, fault: Fault, lasts: Duration, pods: usize) {
    let until = kernel.now + lasts;
    match fault {
        Fault::Cut(host) => kernel.cut.extend(cuts(host, pods)),
        Fault::ClockStops(host) => {
            kernel.cut.extend(cuts(host, pods));
            kernel.drift(host, CLOCK_STOPS_PPM);
        }
        Fault::CutOneWay(from, to) => kernel.cut.push((from, to)),
        Fault::Resets(host) => drop(kernel.resets_until.insert(host, until)),
        Fault::SlowLinks(host) => drop(kernel.slow_until.insert(host, until)),
        Fault::SlowDisk(disk) => kernel.disks[disk].sick.slow_until = until,
        Fault::SlowFile(disk, file) => kernel.disks[disk].sick.slow_file = Some((file, until)),
        Fault::StuckDisk(disk) => kernel.disks[disk].sick.stuck_until = until,
        Fault::HungDisk(disk) => kernel.disks[disk].sick.stuck_until = FOR_EVER,
        Fault::StuckFile(disk, file) => {
            kernel.disks[disk].sick.stuck_files_until[file as usize] = until;
        }
        Fault::Lag(from, to) => kernel.lag(from, to, lasts.min(LAG_MAX)),
        Fault::Fails(disk, file) => kernel.disks[disk].sick.fails = Some(file),
        Fault::DeadDisk(disk) => kernel.disks[disk].sick.dead_until = until,
        Fault::LosesWrite(disk, file) => kernel.disks[disk].sick.loses = Some(file),
        Fault::MisdirectsWrite(disk, file) => kernel.disks[disk].sick.misdirects = Some(file),
        Fault::MisdirectsRead(disk, file) => kernel.disks[disk].sick.misreads = Some(file),
        Fault::LyingFlushes(disk, file) => kernel.disks[disk].sick.lies = Some((file, until)),
        other => unreachable!("{other:?} is no fault below the pods"),
    }
}

/// All links between this host and the others, in both directions.
fn cuts(host: Host, pods: usize) -> impl Iterator<Item = (Host, Host)> {
    let others = (0..pods).filter(move |other| *other != host);
    others.flat_map(move |other| [(host, other), (other, host)])
}

#[cfg(test)]
#[path = "hang_test.rs"]
mod hang_test;
#[cfg(test)]
#[path = "majority_test.rs"]
mod majority_test;
