//! What the checkers see of a pod's worker.

use std::cell::RefCell;
use std::rc::Rc;

use crate::replica::messages::{Input, Output};
use crate::sim::checks::Checks;
use crate::sim::kernel::Kernel;
use crate::sim::names::Host;
use crate::types::MemberId;
use crate::worker::Observer;

/// Hands the inputs and outputs of a pod's members to the checkers.
pub struct Watch {
    pub kernel: Rc<RefCell<Kernel>>,
    pub checks: Rc<RefCell<Checks>>,
    pub host: Host,
}

impl Observer for Watch {
    fn input(&mut self, member: MemberId, input: &Input) {
        let now = self.kernel.borrow().now;
        self.checks.borrow_mut().input(member, input, now);
    }

    fn output(&mut self, member: MemberId, output: &Output) {
        let now = self.kernel.borrow().now;
        self.checks.borrow_mut().output(self.host, member, output, now);
    }
}
