//! What a worker of the simulated cluster says to the control plane of its pod.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::types::VolumeId;
use crate::view::PodReport;
use crate::worker::{ControlPlane, Question};

/// What a worker has said since it was heard last.
#[derive(Default)]
pub struct Said {
    pub uses: Option<BTreeSet<VolumeId>>,
    pub questions: Vec<Question>,
}

/// The control plane as a worker sees it. The world asks for reports itself.
pub struct SimControl(pub Rc<RefCell<Said>>);

impl ControlPlane for SimControl {
    fn report(&self, _: PodReport) {}

    fn uses(&self, volumes: BTreeSet<VolumeId>) {
        self.0.borrow_mut().uses = Some(volumes);
    }

    fn resolve(&self, question: Question) -> bool {
        self.0.borrow_mut().questions.push(question);
        true
    }
}
