//! The results of a run, as text and for programs. Pure.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::bench::load::Outcome;
use crate::config::size::ByteSize;

/// All printed results.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub volume: String,
    pub nbd: String,
    pub pattern: String,
    pub block_bytes: u64,
    pub depth: u32,
    pub connections: u32,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// True when Ctrl-C ended the run.
    pub interrupted: bool,
    pub read: Option<Side>,
    pub write: Option<Side>,
    /// Requests answered with an error.
    pub errors: u64,
    /// Requests without an answer: their connection broke, or the run ended first.
    pub unanswered: u64,
    pub reconnects: u64,
}

/// Results of reads, or of writes. Times are in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Side {
    pub operations: u64,
    pub iops: f64,
    /// Megabytes (10^6 bytes) per second.
    pub mb_s: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Report {
    pub(super) fn new(outcome: &Outcome) -> Report {
        let seconds = outcome.took.as_secs_f64();
        let side = |times| Side::new(times, seconds, outcome.block_bytes);
        Report {
            seconds,
            read: side(&outcome.reads),
            write: side(&outcome.writes),
            errors: outcome.errors,
            unanswered: outcome.unanswered,
            reconnects: outcome.reconnects,
            ..Report::default()
        }
    }
}

impl Side {
    fn new(nanos: &Histogram<u64>, seconds: f64, block_bytes: u32) -> Option<Side> {
        let operations = nanos.len();
        if operations == 0 {
            return None;
        }
        let iops = operations as f64 / seconds.max(1e-9);
        let at = |quantile| nanos.value_at_quantile(quantile) as f64 / 1e3;
        Some(Side {
            operations,
            iops,
            mb_s: iops * f64::from(block_bytes) / 1e6,
            mean_us: nanos.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: nanos.max() as f64 / 1e3,
        })
    }
}

pub fn text(report: &Report) -> String {
    let requests = if report.depth == 1 { "request" } else { "requests" };
    let connections = if report.connections == 1 { "connection" } else { "connections" };
    let mut text = format!(
        "{} of {} on volume {} at {}: {} {requests} in flight on {} {connections}, {:.1} s{}\n\n",
        report.pattern,
        ByteSize(report.block_bytes),
        report.volume,
        report.nbd,
        report.depth,
        report.connections,
        report.seconds,
        if report.interrupted { " (interrupted)" } else { "" },
    );
    text.push_str(&format!(
        "{:6}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
        "", "IOPS", "MB/s", "mean us", "p50", "p90", "p99", "p99.9", "max"
    ));
    for (name, side) in [("read", &report.read), ("write", &report.write)] {
        let Some(side) = side else { continue };
        text.push_str(&format!(
            "{name:6}{:>10.0}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}\n",
            side.iops,
            side.mb_s,
            side.mean_us,
            side.p50_us,
            side.p90_us,
            side.p99_us,
            side.p999_us,
            side.max_us,
        ));
    }
    text.push('\n');
    match (report.errors, report.unanswered, report.reconnects) {
        (0, 0, 0) => text.push_str("no errors\n"),
        (errors, unanswered, reconnects) => text.push_str(&format!(
            "{errors} errors, {unanswered} requests without an answer, {reconnects} reconnects\n"
        )),
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn figures_follow_from_the_times() {
        let mut outcome = Outcome::new(4096);
        for micros in 1..=1000u64 {
            outcome.writes.record(micros * 1000).unwrap();
        }
        outcome.took = Duration::from_secs(2);
        let report = Report::new(&outcome);
        assert!(report.read.is_none(), "nothing was read");
        let side = report.write.unwrap();
        assert_eq!((side.operations, side.iops, side.mb_s), (1000, 500.0, 2.048));
        for (found, expected) in [
            (side.mean_us, 500.5),
            (side.p50_us, 500.0),
            (side.p90_us, 900.0),
            (side.p99_us, 990.0),
            (side.p999_us, 999.0),
            (side.max_us, 1000.0),
        ] {
            assert!((found / expected - 1.0).abs() < 0.002, "{found} is not {expected}");
        }
    }
}
