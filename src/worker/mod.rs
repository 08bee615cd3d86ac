//! The data path: one plain thread that loops reap -> handle -> poll -> submit over one `Driver`.
//! Only this folder knows all parts. It blocks in `Driver::enter` and nowhere else.
//!
//! Components own the state, a file each; the file says what a component owns, what it may call,
//! and what it is told. `round` is the loop, `dispatch` joins the components.
//!
//! Invariant: a worker depends only on its driver, its mailbox and its index runners. The
//! simulator replaces these three and runs this very code.

#[cfg(test)]
mod access_test;
mod admission;
#[cfg(test)]
mod admission_test;
mod backlog;
mod clients;
mod complaints;
mod conn;
#[cfg(test)]
mod conn_test;
mod control_plane;
mod disks;
mod dispatch;
mod error;
mod follow;
mod fronts;
mod handshakes;
#[cfg(test)]
mod handshakes_test;
mod index_thread;
mod intake;
#[cfg(test)]
mod intake_test;
mod lanes;
mod listeners;
mod mailbox;
// Its test loads the same file once more, over loom's primitives.
#[cfg(test)]
#[expect(clippy::duplicate_mod)]
mod mailbox_test;
mod members;
mod meters;
mod observer;
mod offers;
mod opening;
mod options;
mod owed;
mod peers;
#[cfg(test)]
#[path = "../testing/pod_fixture.rs"]
mod pod_fixture;
#[cfg(test)]
mod pod_test;
mod read_repair;
mod reads;
mod reconcile;
mod recovery;
mod reports;
mod requests;
mod rests;
mod resync;
#[cfg(test)]
mod resync_test;
mod round;
mod routers;
mod stages;
mod start;
mod stream;
mod tls;
mod token;
mod touched;
mod watchdog;
mod words;

/// The primitives of the mailbox: std's here, loom's in its test.
mod sync {
    pub use std::sync::{Arc, Mutex, MutexGuard};
}

use crate::level::Levels;
use crate::limits::{Budgets, SocketLimits};
use crate::replica::messages::ReadMode;
use crate::types::{PodId, Uuid};

pub use backlog::Backlog;
pub use control_plane::{ControlPlane, Question, Resolution};
pub use disks::{DiskOptions, SUPERBLOCK};
pub use error::{OpenLaneError, StartError};
pub use index_thread::{IndexRunner, execute};
pub use lanes::{DiskPlace, LaneRuntime, OpenFiles};
pub use mailbox::{Receiver, Sender, Wake, mailbox};
pub use observer::Observer;
pub use options::StartOptions;
pub use recovery::open_lane;
pub use round::{Worker, WorkerCommand};
pub use routers::AccessAnswer;
pub use start::{DataPath, PodDisk, start};
pub use tls::WorkerTls;

/// The fixed settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub cluster: Uuid,
    pub pod: PodId,
    /// When the pod started.
    pub levels: Levels,
    /// Drawn by every start of the pod (rule `sessions-only-grow`).
    pub process: u64,
    /// Seeds the election timeouts.
    pub seed: u64,
    /// Log tail of a member: bytes of applied payloads that it keeps for followers.
    pub log_tail_bytes: usize,
    /// Move each leadership to the pod through which most of its requests come.
    pub leaders_follow_clients: bool,
    pub reads: ReadMode,
    /// Bounds on memory in flight.
    pub budgets: Budgets,
    /// Bounds on connections.
    pub sockets: SocketLimits,
}
