//! When the catalog is told of this pod.
//! - Owns: the time of the next report.
//! - May call: the receiver of reports.
//! - Is told: changes, by all components that a report covers.

use std::time::Duration;

use crate::types::Mono;
use crate::view::PodReport;
use crate::worker::control_plane::ControlPlane;

/// Between reports when only space changed: as often as control passes them on.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between reports in any case. A report lists all members: one for each of a thousand elections
/// would take the time of a million.
const REPORT_EVERY_LEAST: Duration = Duration::from_millis(100);

/// When the next report is due.
pub struct Reports {
    /// Something has changed.
    pub due: bool,
    next: Mono,
    /// Not before this time.
    earliest: Mono,
}

impl Reports {
    pub fn new(now: Mono) -> Reports {
        Reports { due: true, next: now, earliest: now }
    }

    pub fn tick(&mut self, now: Mono) {
        self.due |= now >= self.next;
    }

    pub fn is_due(&self, now: Mono) -> bool {
        self.due && now >= self.earliest
    }

    pub fn send(&mut self, now: Mono, report: PodReport, to: &dyn ControlPlane) {
        self.due = false;
        self.next = now + REPORT_EVERY;
        self.earliest = now + REPORT_EVERY_LEAST;
        to.report(report);
    }
}
