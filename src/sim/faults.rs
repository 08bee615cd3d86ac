//! The faults of a run. They are drawn from the seed before the run starts, so that a run can be
//! repeated without some of them.
//!
//! The budget: faults that destroy data (rot, lost and misdirected writes, flushes that lie) hit
//! only one disk of a run. Every block then has an intact copy, and every loss is a bug.
//! [`Plan::Unbounded`] has no budget.

use std::fmt;
use std::time::Duration;

use crate::sim::names::{DiskNumber, FILES, Host, Moment};
use crate::sim::rng::Rng;
use crate::store::messages::LaneFile;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The host loses power.
    Crash(Host),
    CrashAll,
    /// The process ends at once. The caches of its disks keep its writes.
    Kill(Host),
    /// The process is suspended.
    Stop(Host),
    /// The host is cut off from all others, in both directions.
    Cut(Host),
    /// Nothing gets from the first host to the second. The other direction works.
    CutOneWay(Host, Host),
    /// Connections of the host break in the middle of a transfer.
    Resets(Host),
    SlowLinks(Host),
    /// Present connections from the first host to the second take a bad path: data arrives late,
    /// and nothing comes back. New connections are well, so later data overtakes.
    Lag(Host, Host),
    SlowDisk(DiskNumber),
    SlowFile(DiskNumber, LaneFile),
    /// No operation of the disk ends.
    StuckDisk(DiskNumber),
    /// The same for one file.
    StuckFile(DiskNumber, LaneFile),
    /// No operation of the disk ends until the end of the run, when its pod starts again.
    HungDisk(DiskNumber),
    /// The next operation on this file of the disk fails.
    Fails(DiskNumber, LaneFile),
    /// Bits flip in this many pages of a file.
    Rot(DiskNumber, LaneFile, u64),
    /// All operations of the disk fail.
    DeadDisk(DiskNumber),
    /// The next write reports success, and is lost.
    LosesWrite(DiskNumber, LaneFile),
    /// The next write goes to another place of the file.
    MisdirectsWrite(DiskNumber, LaneFile),
    /// The next read returns another place of the file.
    MisdirectsRead(DiskNumber, LaneFile),
    /// Flushes report success, and do nothing.
    LyingFlushes(DiskNumber, LaneFile),
    /// A disk is moved into this pod. Both pods are without power meanwhile.
    MoveDisk(DiskNumber, Host),
    /// The clock of a pod stops, and the pod is cut off from the others, like a virtual machine
    /// that is migrated. No lease survives that.
    ClockStops(Host),
    /// Not a fault: a volume with its own client is created, and deleted at the end.
    Volume {
        number: u64,
        shards: u64,
        blocks_per_shard: u64,
    },
    /// A client disconnects, and reconnects at once.
    HangUp(usize),
    /// When this moment comes at some pod, power fails at the pod `further` numbers on.
    Ambush {
        moment: Moment,
        further: usize,
        after: Duration,
    },
    /// The devices of a node do nothing, and go on later.
    NodeStops(usize),
    /// The devices of a node lose all traffic, in both directions.
    NodeCut(usize),
    /// A node is declared lost, whether it is or not.
    NodeLost(usize),
    /// A node without a pod starts anew. (One with a pod does when the pod loses power.)
    NodeReboots(usize),
    /// The plugin that is busy with a workload starts anew.
    PluginDies(usize),
    /// The controller that brings a workload's volume, or takes it, starts anew, and asks again.
    ControllerDies(usize),
    /// The newest calls about a workload arrive again, later.
    CallsAgain(usize),
}

impl Fault {
    /// Shards may lose their leader, and need another one.
    fn delays(&self) -> bool {
        matches!(
            self,
            Fault::Crash(_)
                | Fault::CrashAll
                | Fault::Stop(_)
                | Fault::Cut(_)
                | Fault::CutOneWay(..)
                | Fault::Lag(..)
                | Fault::StuckDisk(_)
        )
    }

    /// The orchestrator knows what it means.
    pub fn is_of_node(&self) -> bool {
        matches!(
            self,
            Fault::NodeStops(_)
                | Fault::NodeCut(_)
                | Fault::NodeLost(_)
                | Fault::NodeReboots(_)
                | Fault::PluginDies(_)
                | Fault::ControllerDies(_)
                | Fault::CallsAgain(_)
        )
    }

    /// The disk itself loses data.
    pub fn destroys(&self) -> bool {
        matches!(
            self,
            Fault::Rot(..)
                | Fault::LosesWrite(..)
                | Fault::MisdirectsWrite(..)
                | Fault::LyingFlushes(..)
        )
    }
}

/// A fault, its start (counted from when the main volume exists) and its duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_millis(), self.lasts.as_millis());
        write!(f, "{:?} at {at} ms, for {lasts} ms", self.fault)
    }
}

/// The kinds of faults in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All kinds, as drawn from the seed.
    Mixed,
    /// Only bit flips in the slots of one disk, again and again.
    Rot,
    /// Only clocks that stop, again and again.
    Clocks,
    /// Like `Mixed`, but any disk may lose data: nothing is sure to survive.
    Unbounded,
    /// Heavy runs, which `heavy` draws: a load that does not end, and one fault at a time.
    Load,
}

/// The possible targets of faults.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    pub pods: usize,
    pub disks: usize,
    /// The only disk that may lose data.
    pub bad_disk: DiskNumber,
    pub clients: usize,
    /// Workloads of an orchestrator, and nodes: those of the pods, and others.
    pub workloads: usize,
    pub nodes: usize,
}

/// The number of kinds that [`draw`] knows.
const KINDS: u64 = 20;

/// Draws the faults of a run, in order.
pub fn draw(plan: Plan, seed: u64, targets: Targets, until: Duration) -> Vec<Planned> {
    let mut rng = Rng::new(seed ^ 0xfa17);
    // Swarm testing: runs without some kinds of faults get further with the others.
    let mut weights: Vec<u64> = (0..KINDS).map(|_| rng.below(3)).collect();
    // Little happens without crashes and one-way cuts.
    weights[0] += 1;
    weights[4] += 1;
    let bad_disk = targets.bad_disk;
    let mut at = Duration::from_secs(3);
    let mut planned = Vec::new();
    while at < until {
        let fault = match plan {
            Plan::Load => unreachable!("`heavy` draws the faults of heavy runs"),
            Plan::Clocks => Fault::ClockStops(rng.below(targets.pods as u64) as Host),
            Plan::Rot => Fault::Rot(bad_disk, LaneFile::Data, rng.between(1, 20)),
            Plan::Mixed => {
                let kind = pick(&weights, &mut rng);
                draw_one(kind, bad_disk, targets, planned.len() as u64, &mut rng)
            }
            Plan::Unbounded => {
                let kind = pick(&weights, &mut rng);
                let any_disk = rng.below(targets.disks as u64) as DiskNumber;
                let drawn = draw_one(kind, any_disk, targets, planned.len() as u64, &mut rng);
                in_any_file(drawn, &mut rng)
            }
        };
        let lasts = Duration::from_millis(rng.between(10, 8_000));
        planned.extend(worse(plan, Planned { at, lasts, fault }, targets, &mut rng));
        match fault {
            // Power fails again and again: batches that one recovery cuts off must not come back at
            // the next one.
            Fault::Crash(_) | Fault::CrashAll if rng.one_in(3) => {
                for _ in 0..rng.between(2, 8) {
                    let lasts = Duration::from_millis(rng.between(1, 100));
                    planned.push(Planned { at, lasts, fault });
                    at += lasts + Duration::from_millis(rng.between(1, 1_500));
                }
            }
            _ => planned.push(Planned { at, lasts, fault }),
        }
        at += Duration::from_millis(rng.between(100, 4_000));
    }
    if plan == Plan::Mixed || plan == Plan::Unbounded {
        planned.extend(kills(seed, targets, until));
        planned.extend(ambushes(seed, targets, until));
    }
    if plan == Plan::Mixed && targets.workloads > 0 {
        planned.extend(of_nodes(seed, targets, until));
    }
    planned
}

/// Kills, in half of the runs, with random numbers of their own: the other faults stay the same.
/// Often power fails soon after, when the batches that the start found need not be durable.
fn kills(seed: u64, targets: Targets, until: Duration) -> Vec<Planned> {
    let mut rng = Rng::new(seed ^ 0x4b11);
    let count = if rng.one_in(2) { rng.between(1, 6) } else { 0 };
    let mut planned = Vec::new();
    for _ in 0..count {
        let host = rng.below(targets.pods as u64) as Host;
        let at = Duration::from_millis(rng.between(0, until.as_millis() as u64));
        let lasts = Duration::from_millis(rng.between(1, 100));
        planned.push(Planned { at, lasts, fault: Fault::Kill(host) });
        if rng.one_in(2) {
            let at = at + lasts + Duration::from_millis(rng.between(0, 300));
            let lasts = Duration::from_millis(rng.between(1, 1_000));
            planned.push(Planned { at, lasts, fault: Fault::Crash(host) });
        }
    }
    planned
}

/// Ambushes, in half of the runs, also with random numbers of their own.
fn ambushes(seed: u64, targets: Targets, until: Duration) -> Vec<Planned> {
    let mut rng = Rng::new(seed ^ 0xa3b5);
    let count = if rng.one_in(2) { rng.between(1, 6) } else { 0 };
    let one = |_| {
        let moment = Moment::ALL[rng.below(Moment::ALL.len() as u64) as usize];
        let further = rng.below(targets.pods as u64) as usize;
        let after = Duration::from_micros([0, 100, 400, 2_000][rng.below(4) as usize]);
        let fault = Fault::Ambush { moment, further, after };
        let at = Duration::from_millis(rng.between(0, until.as_millis() as u64));
        Planned { at, lasts: Duration::from_millis(rng.between(1, 4_000)), fault }
    };
    (0..count).map(one).collect()
}

/// What happens to nodes, their plugins and the controller, with random numbers of its
/// own.
fn of_nodes(seed: u64, targets: Targets, until: Duration) -> Vec<Planned> {
    let mut rng = Rng::new(seed ^ 0x0de5);
    let Targets { pods, nodes, workloads, .. } = targets;
    let mut planned = Vec::new();
    let mut at = Duration::from_secs(1);
    while at < until {
        let (node, workload) = (rng.index(nodes), rng.index(workloads));
        let lasts = Duration::from_millis(rng.between(10, 4_000));
        let fault = match rng.below(10) {
            0 => Fault::NodeStops(node),
            1 => Fault::NodeCut(node),
            // It is off, or seems so, and is back when another one has its volumes.
            2 | 3 => {
                let kind = if rng.one_in(2) { Fault::NodeStops } else { Fault::NodeCut };
                planned.push(Planned { at, lasts, fault: kind(node) });
                at += lasts / 4;
                Fault::NodeLost(node)
            }
            4 => Fault::NodeLost(node),
            5 => Fault::NodeReboots(rng.between(pods as u64, nodes as u64) as usize),
            6 | 7 => Fault::PluginDies(workload),
            8 => Fault::ControllerDies(workload),
            _ => Fault::CallsAgain(workload),
        };
        planned.push(Planned { at, lasts, fault });
        at += Duration::from_millis(rng.between(50, 1_000));
    }
    planned
}

/// Draws further faults that make this one worse, some of the time.
fn worse(plan: Plan, planned: Planned, targets: Targets, rng: &mut Rng) -> Vec<Planned> {
    if plan == Plan::Clocks || plan == Plan::Rot {
        return Vec::new();
    }
    let mut more = if rng.one_in(2) { at_a_bad_moment(planned, targets, rng) } else { Vec::new() };
    if planned.fault.delays() && rng.one_in(2) {
        // Clients give up and reconnect. The pod may not have looked at their earlier requests by
        // then.
        for client in 0..targets.clients {
            let at = planned.at + Duration::from_millis(rng.between(200, 2_000));
            more.push(Planned { at, lasts: planned.lasts, fault: Fault::HangUp(client) });
        }
    }
    more
}

/// Further faults at the worst moment for this one.
fn at_a_bad_moment(planned: Planned, targets: Targets, rng: &mut Rng) -> Vec<Planned> {
    let Planned { at, lasts, fault } = planned;
    let ms = Duration::from_millis;
    let (soon, short) = (ms(rng.between(1, 300)), ms(rng.between(1, 100)));
    let Targets { pods, disks, .. } = targets;
    let disks_per_pod = disks / pods;
    let before = |lasts: Duration, fault| Planned { at: at.saturating_sub(lasts), lasts, fault };
    let crash = |at, host| Planned { at, lasts: short, fault: Fault::Crash(host) };
    match fault {
        // Many log writes are in flight when power fails.
        Fault::Crash(host) => {
            let disk = host * disks_per_pod + rng.below(disks_per_pod as u64) as usize;
            vec![before(soon, Fault::SlowFile(disk, LaneFile::Wal))]
        }
        Fault::CrashAll => {
            let disk = rng.below(disks as u64) as DiskNumber;
            vec![before(soon, Fault::SlowFile(disk, LaneFile::Wal))]
        }
        // A voter for the host that hears no leader restarts again and again.
        Fault::CutOneWay(from, to) if pods > 2 && rng.one_in(2) => {
            let voter = (0..pods).find(|host| *host != from && *host != to);
            let times = (1..=6).map(|number| at + ms(900) * number);
            times.map(|at| crash(at, voter.expect("there are more"))).collect()
        }
        // The entries that the host missed have just arrived.
        Fault::Cut(host) | Fault::Stop(host) | Fault::CutOneWay(_, host) => {
            vec![crash(at + lasts + soon, host)]
        }
        // The volume has just been destroyed.
        Fault::Volume { .. } => {
            vec![crash(at + lasts + 2 * soon, rng.below(pods as u64) as Host)]
        }
        // The next start finds the damage while it matters.
        Fault::Rot(disk, LaneFile::Wal, _) => {
            vec![crash(at + Duration::from_micros(short.as_millis() as u64), disk / disks_per_pod)]
        }
        // The log is full by now and frees everything at once, but cannot write its superblock.
        Fault::StuckFile(_, LaneFile::Superblock) => {
            let again = Planned { at: at + lasts + soon / 300, lasts: 5 * soon, fault };
            vec![again]
        }
        _ => Vec::new(),
    }
}

fn draw_one(
    kind: usize,
    bad_disk: DiskNumber,
    targets: Targets,
    number: u64,
    rng: &mut Rng,
) -> Fault {
    let Targets { pods, disks, clients, .. } = targets;
    let host = rng.below(pods as u64) as Host;
    let other = (host + 1 + rng.below(pods as u64 - 1) as usize) % pods;
    let disk = rng.below(disks as u64) as DiskNumber;
    let file = [LaneFile::Wal, LaneFile::Data, LaneFile::Superblock][rng.below(3) as usize];
    match kind {
        0 => Fault::Crash(host),
        1 => Fault::CrashAll,
        2 => Fault::Stop(host),
        3 => Fault::Cut(host),
        4 => Fault::CutOneWay(host, other),
        5 => Fault::Resets(host),
        6 => Fault::SlowLinks(host),
        7 if rng.one_in(2) => Fault::SlowFile(disk, file),
        7 => Fault::SlowDisk(disk),
        // No durable mark would cover the log for as long as that; see `FRESH_NS`.
        8 if disk != bad_disk => Fault::StuckDisk(disk),
        9 => Fault::Fails(disk, file),
        10 => Fault::Rot(bad_disk, LaneFile::Data, rng.between(1, 20)),
        11 => Fault::Rot(bad_disk, LaneFile::Wal, rng.between(1, 20)),
        12 => [Fault::LosesWrite, Fault::MisdirectsWrite, Fault::MisdirectsRead]
            [rng.below(3) as usize](bad_disk, LaneFile::Data),
        13 => Fault::LyingFlushes(bad_disk, LaneFile::Data),
        14 => Fault::MoveDisk(disk, host),
        15 => {
            let (shards, blocks_per_shard) = (rng.between(1, 3), rng.between(16, 80));
            Fault::Volume { number, shards, blocks_per_shard }
        }
        16 => Fault::DeadDisk(disk),
        17 => Fault::Lag(host, other),
        18 if disk != bad_disk && rng.one_in(4) => Fault::StuckFile(disk, LaneFile::Data),
        18 => Fault::StuckFile(disk, LaneFile::Superblock),
        _ => Fault::HangUp(rng.below(clients as u64) as usize),
    }
}

/// Moves a fault that loses data to any file of the disk.
fn in_any_file(fault: Fault, rng: &mut Rng) -> Fault {
    let file = FILES[rng.below(3) as usize];
    match fault {
        Fault::Rot(disk, _, pages) => Fault::Rot(disk, file, pages),
        Fault::LosesWrite(disk, _) => Fault::LosesWrite(disk, file),
        Fault::MisdirectsWrite(disk, _) => Fault::MisdirectsWrite(disk, file),
        Fault::MisdirectsRead(disk, _) => Fault::MisdirectsRead(disk, file),
        Fault::LyingFlushes(disk, _) => Fault::LyingFlushes(disk, file),
        other => other,
    }
}

/// Draws an index, with the probabilities that the weights give.
fn pick(weights: &[u64], rng: &mut Rng) -> usize {
    let mut left = rng.below(weights.iter().sum());
    for (at, weight) in weights.iter().enumerate() {
        if left < *weight {
            return at;
        }
        left -= weight;
    }
    unreachable!("below the sum of all")
}
