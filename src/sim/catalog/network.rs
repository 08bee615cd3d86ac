//! Calls between the control planes of simulated pods: late, lost, repeated and overtaken.

use std::rc::Rc;
use std::time::Duration;

use raft::eraftpb::Message;

use crate::control::reports::Heard;
use crate::sim::catalog::call::{Call, Verdict};
use crate::sim::catalog::store::Encoded;
use crate::sim::kernel::Kernel;
use crate::sim::names::Host;
use crate::sim::rng::Rng;
use crate::types::{MemberId, PodId};

/// What one pod tells another.
#[derive(Clone)]
pub enum Packet {
    Raft(Box<Message>),
    Install {
        member: MemberId,
        snapshot: Rc<Encoded>,
    },
    /// The answer to an installation.
    InstallEnded {
        member: MemberId,
        ok: bool,
    },
    Report(PodId, Box<Heard>),
    Call(Call),
    Reply(Call, Verdict),
}

/// What becomes of a packet.
#[derive(Default)]
pub struct Fate {
    /// After how long it arrives, as often as it does.
    pub arrives: [Option<Duration>; 2],
    /// When its sender believes that it was lost.
    pub fails: Option<Duration>,
}

/// Draws what becomes of a packet.
pub fn fate(kernel: &Kernel, rng: &mut Rng, from: Host, to: Host) -> Fate {
    if from == to {
        return Fate { arrives: [Some(Duration::ZERO), None], fails: None };
    }
    let breaks = [from, to].iter().any(|host| kernel.lasts(&kernel.resets_until, *host));
    let slow = kernel.lasts(&kernel.slow_until, from);
    let is_lost = kernel.cut.contains(&(from, to)) || rng.one_in(100) || (breaks && rng.one_in(5));
    let mut fate = Fate::default();
    if !is_lost {
        fate.arrives[0] = Some(delay(rng, slow));
        fate.arrives[1] = rng.one_in(50).then(|| delay(rng, slow));
    }
    // It arrived, and nobody is told.
    let is_silent = kernel.cut.contains(&(to, from)) || rng.one_in(200);
    if is_lost || is_silent {
        fate.fails = Some(Duration::from_millis(rng.between(1, 1_000)));
    }
    fate
}

/// The longest that a packet is under way.
const LATEST_US: u64 = 3_000_000;

fn delay(rng: &mut Rng, slow: bool) -> Duration {
    let micros = match rng.below(400) {
        0..=1 => rng.between(100_000, LATEST_US),
        2..=20 => rng.between(2_000, 100_000),
        _ => rng.between(100, 2_000),
    };
    Duration::from_micros(if slow { (micros * 20).min(LATEST_US) } else { micros })
}
