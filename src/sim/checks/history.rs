//! The clients' observations of every block, and the check that one order of events explains them.
//!
//! Every write of a block carries a unique value (0 is the initial content), so operations form
//! clusters, one per value. Following Gibbons and Korach ("Testing shared memories", 1997): a
//! cluster whose first response precedes its last invocation occupies the time between them (a
//! *forward* zone). Any other fits into its overlap (a *backward* zone). The history is
//! linearizable if and only if no two forward zones overlap, no backward zone lies within a forward
//! one, and no read ends before its write begins.
//!
//! Written zeroes all look alike, so they have no zones. A read of zeroes must be explained by one
//! of them or by the initial content. No write of zeroes may lie between two observations of one
//! value. This check finds less, and never reports a false violation.
//!
//! A *writer* (the upper half of a line) may be fenced at some moment. What it wrote took place
//! before that, or never; and nothing that it asks for later succeeds.
//!
//! Writes of a block in one line (a connection, and the client's next one if the pod knows that the
//! earlier one has ended) take place in the order of sending (rule `overlapping-writes-in-order`).

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::types::Mono;

/// The value that a write puts into a block, unique in a run.
pub type Value = u64;

/// All observations of clients.
#[derive(Default)]
pub struct History {
    blocks: FxHashMap<u64, Register>,
    pub operations: u64,
    /// A value that two writes of a block carry: the history cannot be checked.
    twice: Option<(u64, Value)>,
    /// When each writer was fenced.
    fences: BTreeMap<u64, Mono>,
    /// A fenced client got what it asked for.
    after_fence: Option<Contradiction>,
}

/// All observations of one block.
#[derive(Default)]
struct Register {
    clusters: BTreeMap<Value, Cluster>,
    zeroings: Vec<Zeroing>,
    /// Invocation and response of reads that returned zeroes.
    zero_reads: Vec<(Mono, Mono)>,
}

/// A write of zeroes.
#[derive(Clone, Copy, Debug)]
struct Zeroing {
    writer: u64,
    invoked: Mono,
    /// [`NEVER`]: the outcome is unknown.
    responded: Mono,
}

/// All operations on one block that wrote or returned one value.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// The line of the write.
    line: u64,
    /// Invocation of the write.
    written: Option<Mono>,
    first_response: Mono,
    last_invocation: Mono,
    /// The write took place: it was acknowledged, or its value was read.
    happened: bool,
}

const NEVER: Mono = Mono(u64::MAX);
/// The bits of a line above this one say whose it is.
pub const WRITER_SHIFT: u32 = 32;

impl Cluster {
    fn new() -> Cluster {
        Cluster {
            line: 0,
            written: None,
            first_response: NEVER,
            last_invocation: Mono(0),
            happened: false,
        }
    }
}

/// Describes an observation that has no explanation.
pub type Contradiction = String;

impl History {
    fn cluster(&mut self, block: u64, value: Value) -> &mut Cluster {
        self.operations += 1;
        let register = self.blocks.entry(block).or_default();
        register.clusters.entry(value).or_insert_with(Cluster::new)
    }

    /// A client sends a write; its outcome is unknown until [`History::acknowledged`]. Values of
    /// one line grow in the order of sending.
    pub fn writing(&mut self, block: u64, value: Value, line: u64, at: Mono) {
        tracing::trace!(block, value, line, at = at.0, "writing");
        let cluster = self.cluster(block, value);
        cluster.line = line;
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

    /// A client sends a write of zeroes; returns the number for [`History::zeroed`].
    pub fn zeroing(&mut self, block: u64, line: u64, at: Mono) -> usize {
        tracing::trace!(block, at = at.0, "zeroing");
        self.operations += 1;
        let zeroings = &mut self.blocks.entry(block).or_default().zeroings;
        let writer = line >> WRITER_SHIFT;
        zeroings.push(Zeroing { writer, invoked: at, responded: NEVER });
        zeroings.len() - 1
    }

    /// The write of zeroes was acknowledged.
    pub fn zeroed(&mut self, block: u64, number: usize, at: Mono) {
        tracing::trace!(block, at = at.0, "zeroed");
        let register = self.blocks.get_mut(&block).expect("it was begun");
        register.zeroings[number].responded = at;
    }

    /// A read returned this value.
    pub fn read(&mut self, block: u64, value: Value, invoked: Mono, responded: Mono) {
        tracing::trace!(block, value, invoked = invoked.0, at = responded.0, "read");
        if value == 0 {
            self.operations += 1;
            let register = self.blocks.entry(block).or_default();
            return register.zero_reads.push((invoked, responded));
        }
        let cluster = self.cluster(block, value);
        cluster.first_response = cluster.first_response.min(responded);
        cluster.last_invocation = cluster.last_invocation.max(invoked);
        cluster.happened = true;
    }

    /// From now on the writer changes nothing any more.
    pub fn fenced(&mut self, writer: u64, at: Mono) {
        tracing::trace!(writer, at = at.0, "fenced");
        self.fences.entry(writer).or_insert(at);
    }

    /// A client got what it asked for at that time.
    pub fn succeeded(&mut self, writer: u64, invoked: Mono) {
        if self.fences.get(&writer).is_some_and(|fenced| *fenced < invoked) {
            let text = || format!("writer {writer} succeeded at {}, and was fenced", invoked.0);
            self.after_fence.get_or_insert_with(text);
        }
    }

    /// All blocks, in order.
    fn blocks(&self) -> impl Iterator<Item = (u64, &Register)> {
        let mut blocks: Vec<_> = self.blocks.iter().map(|(block, seen)| (*block, seen)).collect();
        blocks.sort_unstable_by_key(|(block, _)| *block);
        blocks.into_iter()
    }

    /// For disks that may lose anything: all values that were read had been written there.
    pub fn check_origins(&self) -> Result<(), Contradiction> {
        self.blocks().try_for_each(|(block, register)| {
            let mut seen = register.clusters.iter().filter(|(_, cluster)| cluster.happened);
            seen.try_for_each(|(value, cluster)| match cluster.written {
                Some(written) if written <= cluster.first_response => Ok(()),
                _ => Err(format!("block {block}: {value} was read and not written before")),
            })
        })
    }

    /// Checks every block; describes the first one that is not linearizable.
    pub fn check(&self) -> Result<(), Contradiction> {
        if let Some((block, value)) = self.twice {
            return Err(format!("block {block}: {value} was written twice"));
        }
        if let Some(what) = &self.after_fence {
            return Err(what.clone());
        }
        self.blocks().try_for_each(|(block, register)| {
            let fenced = register.before_fences(&self.fences);
            let register = fenced.as_ref().unwrap_or(register);
            register.check(&self.fences).map_err(|what| format!("block {block}: {what}"))
        })
    }
}

impl Register {
    /// The same, with the writes of fenced writers before their fences. `None`: there are none.
    fn before_fences(&self, fences: &BTreeMap<u64, Mono>) -> Option<Register> {
        let fence_of = |cluster: &Cluster| fences.get(&(cluster.line >> WRITER_SHIFT)).copied();
        if !self.clusters.values().any(|cluster| fence_of(cluster).is_some()) {
            return None;
        }
        let (zeroings, zero_reads) = (self.zeroings.clone(), self.zero_reads.clone());
        let mut fenced = Register { clusters: self.clusters.clone(), zeroings, zero_reads };
        for cluster in fenced.clusters.values_mut().filter(|cluster| cluster.happened) {
            if let Some(fence) = fence_of(cluster) {
                cluster.first_response = cluster.first_response.min(fence);
            }
        }
        Some(fenced)
    }

    fn check(&self, fences: &BTreeMap<u64, Mono>) -> Result<(), Contradiction> {
        check_order(&self.clusters)?;
        if !self.zeroings.is_empty() {
            self.check_zeroes(fences)?;
            return check_zones(&self.clusters);
        }
        let mut clusters = self.clusters.clone();
        for (invoked, responded) in &self.zero_reads {
            let first = clusters.entry(0).or_insert_with(Cluster::new);
            first.happened = true;
            first.first_response = first.first_response.min(*responded);
            first.last_invocation = first.last_invocation.max(*invoked);
        }
        check_zones(&clusters)
    }

    fn check_zeroes(&self, fences: &BTreeMap<u64, Mono>) -> Result<(), Contradiction> {
        let happened = || self.clusters.iter().filter(|(_, cluster)| cluster.happened);
        let first = Zeroing { writer: u64::MAX, invoked: Mono(0), responded: Mono(0) };
        // Each write's invocation, and the moment at which newer content certainly replaced it.
        let stood = |zeroing: &Zeroing| {
            // If it took place at all.
            let fence = fences.get(&zeroing.writer).copied().unwrap_or(NEVER);
            let latest = zeroing.responded.min(fence);
            let newer = happened()
                .filter(|(_, cluster)| cluster.written.is_some_and(|written| written > latest));
            let overwritten = newer.map(|(_, cluster)| cluster.first_response).min();
            (zeroing.invoked, overwritten.unwrap_or(NEVER))
        };
        let zeroings: Vec<_> = std::iter::once(&first).chain(&self.zeroings).map(stood).collect();
        for (invoked, responded) in &self.zero_reads {
            let explains = |(zeroed, overwritten): &(Mono, Mono)| {
                zeroed <= responded && overwritten >= invoked
            };
            if !zeroings.iter().any(explains) {
                return Err(format!("zeroes were read at {} after something newer", invoked.0));
            }
        }
        for (value, cluster) in happened() {
            let between = |zeroing: &&Zeroing| {
                cluster.first_response < zeroing.invoked
                    && zeroing.responded < cluster.last_invocation
            };
            if let Some(zeroing) = self.zeroings.iter().find(between) {
                return Err(format!("{value} came back after the zeroes of {}", zeroing.invoked.0));
            }
        }
        Ok(())
    }
}

/// After a write is acknowledged, earlier writes of its line cannot take place.
fn check_order(clusters: &BTreeMap<Value, Cluster>) -> Result<(), Contradiction> {
    let mut later: BTreeMap<u64, (Mono, Value)> = BTreeMap::new();
    for (value, cluster) in clusters.iter().rev().filter(|(_, cluster)| cluster.happened) {
        let next = later.entry(cluster.line).or_insert((NEVER, 0));
        if next.0 < cluster.last_invocation {
            return Err(format!("{value} was seen after {}, which was sent later", next.1));
        }
        *next = (*next).min((cluster.first_response, *value));
    }
    Ok(())
}

fn check_zones(clusters: &BTreeMap<Value, Cluster>) -> Result<(), Contradiction> {
    // (start, end, value) of forward zones.
    let mut forward: Vec<(Mono, Mono, Value)> = Vec::new();
    let mut backward: Vec<(Mono, Mono, Value)> = Vec::new();
    for (value, cluster) in clusters.iter().filter(|(_, cluster)| cluster.happened) {
        // The initial content was written before all operations.
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
        // Nobody read the initial content: its zone lies before everything.
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
        // Forward zones do not overlap: only the last one that starts before can contain it.
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
            history.writing(7, *value, *value, invoked);
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
    fn zeroes_are_told_from_what_was_lost() {
        let written = |zeroed: Option<(u64, Option<u64>)>, reads: &[(Value, u64)]| {
            let mut history = History::default();
            history.writing(7, 1, 1, Mono(10));
            history.acknowledged(7, 1, Mono(20));
            if let Some((invoked, responded)) = zeroed {
                let number = history.zeroing(7, 0, Mono(invoked));
                responded.into_iter().for_each(|at| history.zeroed(7, number, Mono(at)));
            }
            for (value, at) in reads {
                history.read(7, *value, Mono(*at), Mono(at + 5));
            }
            history.check().is_ok()
        };
        assert!(written(Some((30, Some(40))), &[(1, 25), (0, 50)]));
        assert!(written(Some((30, None)), &[(1, 50), (0, 60)]), "it may have happened late");
        assert!(!written(None, &[(0, 50)]), "lost");
        assert!(!written(Some((60, Some(70))), &[(0, 50)]), "lost, whatever comes later");
        assert!(!written(Some((2, Some(5))), &[(0, 50)]), "the zeroes of before are back");
        assert!(!written(Some((30, Some(40))), &[(1, 50)]), "the zeroes are lost");
    }

    #[test]
    fn what_a_fenced_writer_does_later_is_found() {
        let line = 5 << WRITER_SHIFT;
        // The write of a client without an answer, the fence at 50, then reads of others.
        let check = |reads: &[(Value, u64)]| {
            let mut history = History::default();
            history.writing(7, 1, 0, Mono(1));
            history.acknowledged(7, 1, Mono(2));
            history.writing(7, 2, line, Mono(10));
            history.fenced(5, Mono(50));
            for (value, at) in reads {
                history.read(7, *value, Mono(*at), Mono(at + 5));
            }
            history.check().is_ok()
        };
        assert!(check(&[(1, 20), (2, 60), (2, 70)]) && check(&[(1, 60), (1, 70)]));
        assert!(!check(&[(1, 60), (2, 70)]), "it took place after the fence");
        let late = |invoked: u64| {
            let mut history = History::default();
            history.fenced(5, Mono(50));
            history.succeeded(5, Mono(invoked));
            history.check().is_ok()
        };
        assert!(late(49) && !late(51));
        // Zeroes of which nobody knows whether they took place.
        let zeroed = |reads: &[(Value, u64)]| {
            let mut history = History::default();
            history.zeroing(7, line, Mono(10));
            history.fenced(5, Mono(50));
            history.writing(7, 3, 0, Mono(60));
            history.acknowledged(7, 3, Mono(65));
            for (value, at) in reads {
                history.read(7, *value, Mono(*at), Mono(at + 5));
            }
            history.check().is_ok()
        };
        assert!(zeroed(&[(0, 55), (3, 70)]));
        assert!(!zeroed(&[(3, 70), (0, 80)]), "the zeroes came after the fence");
    }

    #[test]
    fn a_late_write_of_one_line_is_found() {
        let check = |line_of_second: u64| {
            let mut history = History::default();
            history.writing(7, 1, 1, Mono(10));
            history.writing(7, 2, line_of_second, Mono(20));
            history.acknowledged(7, 2, Mono(30));
            history.read(7, 1, Mono(40), Mono(50));
            history.check().is_ok()
        };
        assert!(check(2), "its outcome was open");
        assert!(!check(1), "it was sent before");
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
