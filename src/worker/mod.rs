//! The data path at work: one plain thread that loops reap -> handle -> poll -> submit over one
//! `Driver`. The only place that knows all parts. Never blocks but in `Driver::enter`.
//!
//! Invariant: everything that a worker does follows from its driver, its mailbox and its index
//! runners; the simulator replaces those three and runs this very code.

mod admission;
#[cfg(test)]
mod admission_test;
mod clients;
mod disks;
mod follow;
mod index_thread;
mod lanes;
mod load;
mod mailbox;
// Its test loads the same file once more, over loom's primitives.
#[cfg(test)]
#[expect(clippy::duplicate_mod)]
mod mailbox_test;
mod members;
mod owed;
mod peers;
#[cfg(test)]
#[path = "../testing/pod_fixture.rs"]
mod pod_fixture;
#[cfg(test)]
mod pod_test;
mod probe;
mod reads;
mod reconcile;
mod requests;
mod rescue;
mod resync;
#[cfg(test)]
mod resync_test;
mod round;
mod start;
mod stream;
mod token;
mod watchdog;

/// The primitives of the mailbox: std's here, loom's in its test.
mod sync {
    pub use std::sync::{Arc, Mutex, MutexGuard};
}

pub use index_thread::{IndexRunner, execute};
pub use lanes::{DiskPlace, LaneFiles as WorkerFiles, LaneRuntime};
pub use load::Load;
pub use mailbox::{Receiver, Sender, Wake, mailbox};
pub use probe::Probe;
pub use round::{Command, Worker, WorkerConfig};
pub use start::{DataPath, DiskOptions, PodDisk, StartError, StartOptions, open_lane, start};
