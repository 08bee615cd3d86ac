//! The interface between the control plane and the data path of a pod.

use std::sync::Arc;

use tokio::sync::watch;

use crate::control::command::NewDisk;
use crate::types::{AccessSet, VolumeId};
use crate::view::{ClusterView, PodReport};
use crate::worker::AccessAnswer;

/// The data path of this pod, as the control plane sees it. It has its own threads.
pub trait DataPath: Send + Sync {
    /// The disks that it has opened.
    fn disks(&self) -> Vec<NewDisk>;

    /// Takes the whole cluster as of a newer revision. Must not block for long.
    fn set_view(&self, view: Arc<ClusterView>);

    /// Has an access set committed in every shard of a volume (rule `grant-waits-for-all-shards`).
    /// Must not block for long; the answer comes from the data path's thread, and is dropped when
    /// the data path stops. May be repeated, by any pod.
    fn set_access(&self, volume: VolumeId, set: AccessSet, answer: AccessAnswer);

    /// Stops it, and returns when all I/O has ended. Called once.
    fn stop(&self);
}

/// Takes the data path's reports without blocking. Only the newest is kept.
#[derive(Clone)]
pub struct ReportSink {
    pub(super) report: watch::Sender<Option<PodReport>>,
}

impl ReportSink {
    /// Replaces the last report, even if it was not sent yet. An equal one wakes no task.
    pub fn send(&self, report: PodReport) {
        self.report.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&report);
            *last = Some(report);
            is_new
        });
    }
}
