//! Where the control plane meets what serves blocks on its pod.

use std::sync::Arc;

use tokio::sync::watch;

use crate::control::command::NewDisk;
use crate::view::{ClusterView, PodReport};

/// What serves blocks on this pod, as the control plane sees it. Runs on threads of its own.
pub trait DataPath: Send + Sync {
    /// The disks it has opened.
    fn disks(&self) -> Vec<NewDisk>;

    /// The cluster as of a newer revision. Whole; must not block for long.
    fn set_view(&self, view: Arc<ClusterView>);

    /// Ends it; returns when everything is at rest. Called once.
    fn stop(&self);
}

/// Takes the data path's reports. Never blocks; only the newest is kept.
#[derive(Clone)]
pub struct ReportSink {
    pub(super) report: watch::Sender<Option<PodReport>>,
}

impl ReportSink {
    /// Replaces the report before, whether it was sent or not. One that says the same wakes nobody.
    pub fn send(&self, report: PodReport) {
        self.report.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&report);
            *last = Some(report);
            is_new
        });
    }
}
