//! What goes wrong in a run: drawn from the seed before the run starts, so that a run can be
//! repeated with some of it left out.
//!
//! The budget: what destroys data (rot, writes that are lost or land elsewhere) happens to one pod
//! only, the same in all of a run, so that everything has a copy that is whole, and every loss
//! that is seen is a bug.

use std::fmt;
use std::time::Duration;

use crate::sim::kernel::Host;
use crate::sim::rng::Rng;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The plug is pulled.
    Crash(Host),
    CrashAll,
    /// The process stands still.
    Stop(Host),
    /// Nobody hears the host, and it hears nobody.
    Cut(Host),
    /// Nothing gets from one host to another, everything the other way.
    CutOneWay(Host, Host),
    /// Connections of the host break, in the middle of what is being sent.
    Resets(Host),
    SlowLinks(Host),
    SlowDisk(Host),
    /// Nothing that its disk was asked for ends.
    StuckDisk(Host),
    /// One operation of its disk fails: on the log, on the data, on the superblock.
    Fails(Host, &'static str),
    /// Bits flip in so many pages of a file.
    Rot(Host, &'static str, u64),
    /// A write of data says that it was done, and was not.
    LosesWrite(Host),
    /// A write of data lands in another place.
    MisdirectsWrite(Host),
    /// A client vanishes, and comes back at once.
    HangUp(usize),
}

/// When, for how long, and what.
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

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Those that the seed picks.
    Mixed,
    /// Bits flip in the slots of one pod, again and again, and nothing else happens.
    Rot,
}

/// The one host whose disk loses what it has.
pub fn bad_disk(seed: u64, pods: usize) -> Host {
    (seed % pods as u64) as Host
}

/// Of how many kinds [`draw`] knows.
const KINDS: u64 = 14;

/// The faults of a run, in order.
pub fn draw(plan: Plan, seed: u64, pods: usize, clients: usize, until: Duration) -> Vec<Planned> {
    let mut rng = Rng::new(seed ^ 0xfa17);
    // Swarm testing: a run in which some kinds never happen gets further with the others.
    let mut weights: Vec<u64> = (0..KINDS).map(|_| rng.below(3)).collect();
    weights[0] += 1;
    let bad_disk = bad_disk(seed, pods);
    let mut at = Duration::from_secs(3);
    let mut planned = Vec::new();
    while at < until {
        let host = rng.below(pods as u64) as Host;
        let other = (host + 1 + rng.below(pods as u64 - 1) as usize) % pods;
        let file = ["wal", "data", "superblock"][rng.below(3) as usize];
        let pages = rng.between(1, 20);
        let client = rng.below(clients as u64) as usize;
        let fault = match plan {
            Plan::Rot => Fault::Rot(bad_disk, "data", pages),
            Plan::Mixed => match pick(&weights, &mut rng) {
                0 => Fault::Crash(host),
                1 => Fault::CrashAll,
                2 => Fault::Stop(host),
                3 => Fault::Cut(host),
                4 => Fault::CutOneWay(host, other),
                5 => Fault::Resets(host),
                6 => Fault::SlowLinks(host),
                7 => Fault::SlowDisk(host),
                // What its log says is not known to be durable for as long: see `Rot`.
                8 if host != bad_disk => Fault::StuckDisk(host),
                9 => Fault::Fails(host, file),
                10 => Fault::Rot(bad_disk, "data", pages),
                11 => Fault::Rot(bad_disk, "wal", 1),
                12 if pages.is_multiple_of(2) => Fault::LosesWrite(bad_disk),
                12 => Fault::MisdirectsWrite(bad_disk),
                _ => Fault::HangUp(client),
            },
        };
        let lasts = Duration::from_millis(rng.between(10, 8_000));
        planned.push(Planned { at, lasts, fault });
        at += Duration::from_millis(rng.between(100, 4_000));
    }
    planned
}

/// An index, as often as its weight says.
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
