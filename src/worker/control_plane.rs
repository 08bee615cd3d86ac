//! What a worker says to the control plane of its pod, and what it asks of it.

use std::collections::BTreeSet;

use crate::types::VolumeId;
use crate::view::PodReport;

/// The control plane of a worker's pod. No call may block.
pub trait ControlPlane {
    /// The newest report; it replaces those before.
    fn report(&self, report: PodReport);

    /// The volumes that clients use here, when these have changed.
    fn uses(&self, volumes: BTreeSet<VolumeId>);

    /// Asks for the volume behind a name that is not known here. The answer is a
    /// `WorkerCommand::Resolved`, after the view that has the volume. False: there are too many
    /// questions, and no answer comes.
    fn resolve(&self, question: Question) -> bool;
}

/// The name of an export that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The answer carries it.
    pub id: u64,
    /// Nothing: the only open volume of the cluster.
    pub name: String,
}

/// The answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The view has the volume.
    Found(VolumeId),
    /// There is no such export.
    Unknown,
    /// The catalog cannot be asked at present.
    OutOfReach,
}
