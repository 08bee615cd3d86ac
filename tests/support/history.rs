//! Is a history of reads and writes of one block linearizable? Every write carries a value that is
//! written once only, so the question has an exact answer in the time that sorting takes
//! (P. Gibbons and E. Korach, "Testing shared memories", 1997).
//!
//! The operations on one value (its write and the reads that returned it) form a cluster. With `f`
//! the earliest end and `s` the latest start in the cluster, the value must be the block's during
//! all of `[f, s]` when `f < s` (a *forward* zone), and else needs one moment in `[s, f]` only (a
//! *backward* zone). The history is linearizable when no read ends before its write starts, no two
//! forward zones overlap, and no backward zone lies inside a forward one.

use std::collections::HashMap;

/// The value that a block holds before anything is written.
pub const INITIAL: u64 = 0;
/// The end of an operation whose outcome is not known: it may take effect at any time later.
pub const NEVER: u64 = u64::MAX;

/// One operation of one client. Times are of one clock, in any unit, above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub is_write: bool,
    /// What was written, or what was read.
    pub value: u64,
    pub start: u64,
    pub end: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    write: Option<(u64, u64)>,
    reads: usize,
    first_read_end: Option<u64>,
    earliest_end: u64,
    latest_start: u64,
}

/// `Err` says what cannot be explained by any order.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    let clusters = clusters(operations)?;
    let mut zones: Vec<(u64, u64, u64, bool)> = Vec::new();
    for (value, cluster) in &clusters {
        let (write_start, write_end) =
            cluster.write.ok_or_else(|| format!("value {value} was read and never written"))?;
        if cluster.first_read_end.is_some_and(|end| end < write_start) {
            return Err(format!("value {value} was read before it was written"));
        }
        // A write of unknown outcome that nobody saw may never have happened.
        if write_end == NEVER && cluster.reads == 0 {
            continue;
        }
        let (low, high) = (cluster.earliest_end, cluster.latest_start);
        zones.push((low.min(high), low.max(high), *value, low < high));
    }
    zones.sort_unstable();
    let mut forward: Option<(u64, u64)> = None;
    for (from, to, value, is_forward) in zones.iter().copied() {
        if let Some((forward_to, other)) = forward {
            if is_forward && from < forward_to {
                return Err(format!("{other} and {value} were both the block's at {from}"));
            }
            if !is_forward && to < forward_to {
                return Err(format!("{value} was lost while {other} was the block's at {from}"));
            }
        }
        if is_forward {
            forward = Some((to, value));
        }
    }
    Ok(())
}

fn clusters(operations: &[Operation]) -> Result<HashMap<u64, Cluster>, String> {
    let mut clusters: HashMap<u64, Cluster> = HashMap::new();
    let initial = Operation { is_write: true, value: INITIAL, start: 0, end: 0 };
    for operation in std::iter::once(&initial).chain(operations) {
        // A read that never ended says nothing.
        if !operation.is_write && operation.end == NEVER {
            continue;
        }
        let cluster = clusters
            .entry(operation.value)
            .or_insert(Cluster { earliest_end: NEVER, ..Cluster::default() });
        cluster.earliest_end = cluster.earliest_end.min(operation.end);
        cluster.latest_start = cluster.latest_start.max(operation.start);
        if operation.is_write {
            let first = cluster.write.replace((operation.start, operation.end));
            if first.is_some() {
                return Err(format!("value {} was written twice", operation.value));
            }
        } else {
            cluster.reads += 1;
            let end = cluster.first_read_end.unwrap_or(NEVER).min(operation.end);
            cluster.first_read_end = Some(end);
        }
    }
    Ok(clusters)
}
