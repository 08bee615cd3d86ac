//! What clients saw of every block, and whether one order of events explains it.
//!
//! Every write of a block carries a value of its own (0 is what the block holds at first), so the
//! operations fall into clusters, one per value. Following Gibbons and Korach ("Testing shared
//! memories", 1997): a cluster whose first response precedes its last invocation occupies the time
//! between them (a *forward* zone), any other can be fitted into its overlap (a *backward* zone).
//! The history is linearizable if and only if no two forward zones overlap and no backward zone
//! lies within a forward one, and no read responds before its write was invoked.

use std::collections::BTreeMap;

use crate::types::Mono;

/// The value that a write puts into a block; unique in a run.
pub type Value = u64;

/// Everything that clients saw.
#[derive(Default)]
pub struct History {
    blocks: BTreeMap<u64, BTreeMap<Value, Cluster>>,
    pub operations: u64,
    /// A value that two writes of a block carried: nothing can be said of that history.
    twice: Option<(u64, Value)>,
}

/// All operations on one block that wrote or returned one value.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// The write was invoked here.
    written: Option<Mono>,
    first_response: Mono,
    last_invocation: Mono,
    /// The write was acknowledged or its value was read: it took place.
    happened: bool,
}

const NEVER: Mono = Mono(u64::MAX);

impl Cluster {
    fn new() -> Cluster {
        Cluster { written: None, first_response: NEVER, last_invocation: Mono(0), happened: false }
    }
}

/// What cannot be explained, in words.
pub type Contradiction = String;

impl History {
    fn cluster(&mut self, block: u64, value: Value) -> &mut Cluster {
        self.operations += 1;
        self.blocks.entry(block).or_default().entry(value).or_insert_with(Cluster::new)
    }

    /// A client is about to write; the outcome is open until [`History::acknowledged`].
    pub fn writing(&mut self, block: u64, value: Value, at: Mono) {
        tracing::trace!(block, value, at = at.0, "writing");
        let cluster = self.cluster(block, value);
        let before = cluster.written.replace(at);
        cluster.last_invocation = cluster.last_invocation.max(at);
        if before.is_some() || value == 0 {
            self.twice.get_or_insert((block, value));
        }
    }

    /// The write was acknowledged.
    pub fn acknowledged(&mut self, block: u64, value: Value, at: Mono) {
        tracing::trace!(block, value, at = at.0, "acknowledged");
        let cluster = self.cluster(block, value);
        cluster.first_response = cluster.first_response.min(at);
        cluster.happened = true;
    }

    /// A read returned this value.
    pub fn read(&mut self, block: u64, value: Value, invoked: Mono, responded: Mono) {
        tracing::trace!(block, value, invoked = invoked.0, at = responded.0, "read");
        let cluster = self.cluster(block, value);
        cluster.first_response = cluster.first_response.min(responded);
        cluster.last_invocation = cluster.last_invocation.max(invoked);
        cluster.happened = true;
    }

    /// Checks every block; says what is wrong with the first that is not linearizable.
    pub fn check(&self) -> Result<(), Contradiction> {
        if let Some((block, value)) = self.twice {
            return Err(format!("block {block}: {value} was written twice"));
        }
        self.blocks.iter().try_for_each(|(block, clusters)| {
            check_block(clusters).map_err(|what| format!("block {block}: {what}"))
        })
    }
}

fn check_block(clusters: &BTreeMap<Value, Cluster>) -> Result<(), Contradiction> {
    // (start, end, value) of forward zones.
    let mut forward: Vec<(Mono, Mono, Value)> = Vec::new();
    let mut backward: Vec<(Mono, Mono, Value)> = Vec::new();
    for (value, cluster) in clusters.iter().filter(|(_, cluster)| cluster.happened) {
        // The first content was written before everything.
        let (first_response, written) = match *value {
            0 => (Mono(0), Some(Mono(0))),
            _ => (cluster.first_response, cluster.written),
        };
        let Some(written) = written else {
            return Err(format!("{value} was read and never written"));
        };
        if first_response < written {
            return Err(format!("{value} was read before it was written"));
        }
        match first_response < cluster.last_invocation {
            true => forward.push((first_response, cluster.last_invocation, *value)),
            false => backward.push((cluster.last_invocation, first_response, *value)),
        }
    }
    if !clusters.contains_key(&0) {
        // The first content lies before everything and was never read.
        backward.push((Mono(0), Mono(0), 0));
    }
    forward.sort();
    for pair in forward.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(format!(
                "{} and {} each were seen before and after the other",
                pair[0].2, pair[1].2
            ));
        }
    }
    for (start, end, value) in backward {
        // Forward zones do not overlap: only the last that starts before can hold this one.
        let before = forward.partition_point(|zone| zone.0 < start);
        if let Some((_, zone_end, outer)) = before.checked_sub(1).map(|last| forward[last])
            && end < zone_end
        {
            return Err(format!("{value} took place while {outer} stood, or was lost"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (value, invoked, responded or None, is read)
    type Op = (Value, u64, Option<u64>, bool);

    fn check(ops: &[Op]) -> bool {
        let mut history = History::default();
        for (value, invoked, responded, is_read) in ops {
            let (invoked, responded) = (Mono(*invoked), responded.map(Mono));
            if *is_read {
                history.read(7, *value, invoked, responded.unwrap());
                continue;
            }
            history.writing(7, *value, invoked);
            if let Some(responded) = responded {
                history.acknowledged(7, *value, responded);
            }
        }
        history.check().is_ok()
    }

    #[test]
    fn what_one_order_explains_passes() {
        assert!(check(&[(1, 10, Some(20), false), (1, 30, Some(40), true)]));
        assert!(check(&[(0, 5, Some(6), true), (1, 10, Some(20), false)]));
        // Concurrent with the write: either value.
        assert!(check(&[(1, 10, Some(20), false), (0, 11, Some(19), true)]));
        // A write without an answer may take place late, or never.
        assert!(check(&[(1, 10, None, false), (0, 50, Some(60), true), (1, 70, Some(80), true)]));
        assert!(check(&[(1, 10, None, false), (2, 20, Some(30), false), (2, 40, Some(50), true)]));
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(!check(&[(1, 10, Some(20), false), (0, 30, Some(40), true)]));
        let lost = [(1, 10, Some(20), false), (2, 30, Some(40), false), (1, 50, Some(60), true)];
        assert!(!check(&lost));
    }

    #[test]
    fn a_ghost_is_found() {
        // 1 has no answer, 2 is acknowledged and read, then 1 appears: possible only if 1 was
        // ordered after 2, and then 2 must not be read again.
        let mut ops = vec![(1, 10, None, false), (2, 20, Some(30), false), (1, 40, Some(50), true)];
        assert!(check(&ops));
        ops.push((2, 60, Some(70), true));
        assert!(!check(&ops));
    }

    #[test]
    fn a_stale_read_and_an_invented_value_are_found() {
        let stale = [
            (1, 10, Some(20), false),
            (2, 30, Some(60), false),
            (2, 40, Some(45), true),
            (1, 50, Some(55), true),
        ];
        assert!(!check(&stale));
        assert!(!check(&[(9, 10, Some(20), true)]));
        assert!(!check(&[(1, 10, Some(20), false), (1, 30, Some(40), false)]), "one value twice");
        assert!(!check(&[(0, 10, Some(20), false)]), "the first content is written by nobody");
        assert!(!check(&[(1, 10, Some(20), false), (1, 2, Some(5), true)]));
    }
}
