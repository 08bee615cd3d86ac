//! When the catalog is told of this pod. [`Reports`] owns the moment. Calls: the receiver of
//! reports. Told: by all whose news are part of one.

use std::time::Duration;

use crate::types::Mono;
use crate::view::PodReport;

/// Between reports when nothing changed but space: as often as control passes them on.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Reports {
    /// Something has changed.
    pub due: bool,
    next: Mono,
    send: Box<dyn Fn(PodReport) + Send>,
}

impl Reports {
    pub fn new(now: Mono, send: Box<dyn Fn(PodReport) + Send>) -> Reports {
        Reports { due: true, next: now, send }
    }

    pub fn tick(&mut self, now: Mono) {
        self.due |= now >= self.next;
    }

    pub fn send(&mut self, now: Mono, report: PodReport) {
        self.due = false;
        self.next = now + REPORT_EVERY;
        (self.send)(report);
    }
}
