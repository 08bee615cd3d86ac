//! What never changes about a worker.

use crate::limits::Budgets;
use crate::replica::seam::ReadMode;
use crate::types::{PodId, Uuid};

/// See the module.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub cluster: Uuid,
    pub pod: PodId,
    /// Seeds the election timeouts.
    pub seed: u64,
    /// Payloads of applied entries that a member keeps for followers.
    pub log_tail_bytes: usize,
    /// Leaderships move to the pods that their requests come through.
    pub leaders_follow_clients: bool,
    pub reads: ReadMode,
    /// Bounds on memory under way.
    pub budgets: Budgets,
}
