//! The interface between the control plane and the data path of a pod.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::control::command::NewDisk;
use crate::types::{AccessSet, VolumeId};
use crate::view::{ClusterView, PodReport};
use crate::worker::{AccessAnswer, ControlPlane, Question, Resolution};

/// The data path of this pod, as the control plane sees it. It has its own threads.
pub trait DataPath: Send + Sync {
    /// The disks that it has opened.
    fn disks(&self) -> Vec<NewDisk>;

    /// Takes what concerns this pod of the cluster, newer than the last one. Must not block for
    /// long.
    fn set_view(&self, view: Arc<ClusterView>);

    /// Has an access set committed in every shard of a volume of its view (rule
    /// `grant-waits-for-all-shards`). Must not block for long; the answer comes from the data
    /// path's thread, and is dropped when the data path stops. May be repeated, by any pod.
    fn set_access(&self, volume: VolumeId, set: AccessSet, answer: AccessAnswer);

    /// Answers a question of the data path, after the view that it was answered by.
    fn resolved(&self, question: u64, answer: Resolution);

    /// Stops it, and returns when all I/O has ended. Called once.
    fn stop(&self);
}

/// Takes what the data path says and asks, without blocking.
#[derive(Clone)]
pub struct ControlLink {
    pub(super) report: watch::Sender<Option<PodReport>>,
    pub(super) uses: watch::Sender<Arc<BTreeSet<VolumeId>>>,
    pub(super) questions: mpsc::Sender<Question>,
}

impl ControlPlane for ControlLink {
    /// Replaces the last report, even if it was not sent yet. An equal one wakes no task.
    fn report(&self, report: PodReport) {
        self.report.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&report);
            *last = Some(report);
            is_new
        });
    }

    fn uses(&self, volumes: BTreeSet<VolumeId>) {
        self.uses.send_replace(Arc::new(volumes));
    }

    fn resolve(&self, question: Question) -> bool {
        self.questions.try_send(question).is_ok()
    }
}
