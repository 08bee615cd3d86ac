//! When the catalog is told of this pod.
//! - Owns: the time of the next report.
//! - May call: the receiver of reports.
//! - Is told: changes, by all components that a report covers.

use std::time::Duration;

use crate::types::Mono;
use crate::view::PodReport;

/// Between reports when only space changed: as often as control passes them on.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between reports in any case. A report lists all members: one for each of a thousand elections
/// would take the time of a million.
const REPORT_EVERY_LEAST: Duration = Duration::from_millis(100);

/// When the next report is due, and where it goes.
pub struct Reports {
    /// Something has changed.
    pub due: bool,
    next: Mono,
    /// Not before this time.
    earliest: Mono,
    send: Box<dyn Fn(PodReport) + Send>,
}

impl Reports {
    pub fn new(now: Mono, send: Box<dyn Fn(PodReport) + Send>) -> Reports {
        Reports { due: true, next: now, earliest: now, send }
    }

    pub fn tick(&mut self, now: Mono) {
        self.due |= now >= self.next;
    }

    pub fn is_due(&self, now: Mono) -> bool {
        self.due && now >= self.earliest
    }

    pub fn send(&mut self, now: Mono, report: PodReport) {
        self.due = false;
        self.next = now + REPORT_EVERY;
        self.earliest = now + REPORT_EVERY_LEAST;
        (self.send)(report);
    }
}
