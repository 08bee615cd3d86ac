//! Nodes without pods: nobody reports for them but their own node plugin, and each of its reports
//! says how soon the next one comes. Kept in memory of the catalog's leader. Pure.
//!
//! Only nodes that are silent cost anything while nothing happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::types::Mono;

/// A node that leaves out so many reports is silent.
const MISSED_MAX: u32 = 3;
/// The longest time between two reports, and that of a node that has not said it.
pub const EVERY_MAX: Duration = Duration::from_secs(20);
const EVERY_MIN: Duration = Duration::from_secs(1);

/// See the module. Times are those of the leader's clock.
#[derive(Debug, Default)]
pub struct NodeReports {
    /// When each node is silent, if nothing more is heard of it.
    silent_at: BTreeMap<String, Mono>,
    by_time: BTreeSet<(Mono, String)>,
    /// The nodes that the catalog knew when this pod began to lead are among them.
    is_complete: bool,
}

impl NodeReports {
    /// A node reports, and will again after `every`; zero: after the longest time.
    pub fn hear(&mut self, now: Mono, node: &str, every: Duration) {
        let every = if every.is_zero() { EVERY_MAX } else { every };
        let silent_at = now + every.clamp(EVERY_MIN, EVERY_MAX) * MISSED_MAX;
        if let Some(before) = self.silent_at.insert(node.to_owned(), silent_at) {
            self.by_time.remove(&(before, node.to_owned()));
        }
        self.by_time.insert((silent_at, node.to_owned()));
    }

    /// From now on these nodes are waited for, too: the catalog has them. Asked for once in the
    /// time of a leader.
    pub fn expect(&mut self, now: Mono, nodes: impl FnOnce() -> Vec<String>) {
        if self.is_complete {
            return;
        }
        self.is_complete = true;
        for node in nodes() {
            if !self.silent_at.contains_key(&node) {
                self.hear(now, &node, EVERY_MAX);
            }
        }
    }

    /// The nodes that are silent.
    pub fn silent(&self, now: Mono) -> impl Iterator<Item = &str> {
        let all = self.by_time.iter().take_while(move |(at, _)| *at <= now);
        all.map(|(_, node)| node.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(1) + Duration::from_secs(seconds)
    }

    fn silent(reports: &NodeReports, seconds: u64) -> Vec<&str> {
        reports.silent(at(seconds)).collect()
    }

    #[test]
    fn a_node_that_leaves_reports_out_is_silent() {
        let mut reports = NodeReports::default();
        reports.hear(at(0), "a", Duration::from_secs(5));
        reports.hear(at(1), "b", Duration::ZERO);
        assert!(silent(&reports, 14).is_empty());
        assert_eq!(silent(&reports, 15), ["a"]);
        assert_eq!(silent(&reports, 61), ["a", "b"]);
        reports.hear(at(62), "a", Duration::from_secs(5));
        assert_eq!(silent(&reports, 76), ["b"]);
        // Whatever it says, it is missed some time, and not at once.
        reports.hear(at(100), "a", Duration::from_secs(1 << 40));
        reports.hear(at(100), "b", Duration::from_nanos(1));
        assert!(silent(&reports, 102).is_empty());
        assert_eq!(silent(&reports, 160), ["b", "a"]);
    }

    #[test]
    fn a_new_leader_waits_for_all_nodes_that_the_catalog_has() {
        let mut reports = NodeReports::default();
        reports.hear(at(0), "heard", Duration::from_secs(5));
        reports.expect(at(1), || vec!["heard".to_owned(), "unheard".to_owned()]);
        reports.expect(at(2), || panic!("it is asked for once"));
        assert_eq!(silent(&reports, 15), ["heard"]);
        assert_eq!(silent(&reports, 61), ["heard", "unheard"]);
    }
}
