//! The page of all metrics for people, `docs/metrics.md`.

use crate::telemetry::metrics::list::{Metric, SECTIONS};
use crate::telemetry::metrics::numbers::BOUNDS_US;

const HEAD: &str = "\
# Metrics

A pod serves its metrics over HTTP, as OpenMetrics text: `curl http://127.0.0.1:7480/metrics`. The
address is `http.listen` of its [configuration](configuration.md). Every number is of this pod
alone. Counters begin at 0 when the process starts, and only grow.

Beside them are `/healthz` (200 while the data path makes rounds, or is not started yet) and
`/readyz` (200 when the pod serves; otherwise 503, and each line says what it waits for).
`/instep` is for upgrades: 200 when the pod serves, all its disks are used, none of its replicas is
resynced or gave up, and it reaches the other pods. Then another pod may be stopped.

This page is made from `src/telemetry/metrics/list.rs`; see `tests/metrics_page.rs`.
";

const TAIL: &str = "\
The data path looks at the clock once per round of its loop. So a request that is answered in the
round in which it came (a read of dirty blocks in memory, say) took 0 in these histograms.
";

/// The page as Markdown.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for (title, metrics) in SECTIONS {
        page += &format!("\n## {title}\n\n| name | type | unit | labels | meaning |\n");
        page += "|---|---|---|---|---|\n";
        metrics.iter().for_each(|metric| page += &row(metric));
    }
    page += &format!("\nAll histograms have the same bounds, in seconds: {}.\n", bounds());
    page += TAIL;
    page
}

fn row(metric: &Metric) -> String {
    let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    format!(
        "| `{}` | {} | {} | {} | {} |\n",
        metric.full_name(),
        metric.kind.name(),
        metric.unit.as_ref().map_or("", |unit| unit.as_str()),
        labels.join(", "),
        metric.help
    )
}

fn bounds() -> String {
    let bounds: Vec<String> = BOUNDS_US.iter().map(|us| (*us as f64 / 1e6).to_string()).collect();
    bounds.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::list::{Kind, all};

    /// By the conventions of Prometheus.
    #[test]
    fn names_are_unique_and_say_what_they_are() {
        let mut names: Vec<String> = all().map(Metric::full_name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for metric in all() {
            let (name, full) = (metric.name, metric.full_name());
            let known = ["holdfast_", "process_", "csi_plugin_"];
            assert!(known.iter().any(|prefix| name.starts_with(prefix)), "{name}");
            let is_word = |char: char| char.is_ascii_lowercase() || char == '_';
            assert!(name.chars().all(is_word), "{name}");
            let unit = ["total", "seconds", "bytes", "info", "count", "sum", "bucket"];
            assert!(!unit.iter().any(|ending| name.ends_with(ending)), "{name} has an ending");
            assert!(metric.kind != Kind::Histogram || full.ends_with("_seconds"), "{full}");
            assert!(
                metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '|']),
                "{name}"
            );
        }
    }
}
