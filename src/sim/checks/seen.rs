//! Counts rare events: a check proves nothing if its case never happens.

use std::fmt;
use std::ops::AddAssign;

use crate::store::wal::format::{Batch, FoundEntry, FoundItem};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Terms with a leader.
    pub terms: u64,
    /// Times that a log began its ring again.
    pub laps: u64,
    /// Entries of WAL bypasses.
    pub bypasses: u64,
    /// Log snapshots.
    pub log_snapshots: u64,
    /// Entries that others replaced.
    pub replaced: u64,
    /// Resyncs that ended.
    pub resyncs: u64,
    /// Flushes of indexes.
    pub flushes: u64,
    /// Opened disks that had members.
    pub recoveries: u64,
    /// Starts of a pod during which power failed.
    pub failed_starts: u64,
    /// Members that recovery found faulted.
    pub faulted: u64,
    /// Requests that were refused for lack of space.
    pub full: u64,
    /// Changes of the holder of a closed volume, and requests of fenced clients that got errors.
    pub handovers: u64,
    pub fenced: u64,
    /// Times that a workload was brought to a node, file systems that were made there, and
    /// nodes that were declared lost.
    pub brought: u64,
    pub made: u64,
    pub lost: u64,
}

impl Seen {
    /// Names and values of all counters.
    pub fn all(&self) -> [(&'static str, u64); 16] {
        [
            ("terms", self.terms),
            ("laps", self.laps),
            ("bypasses", self.bypasses),
            ("log snapshots", self.log_snapshots),
            ("replaced entries", self.replaced),
            ("resyncs", self.resyncs),
            ("flushes", self.flushes),
            ("recoveries", self.recoveries),
            ("failed starts", self.failed_starts),
            ("faulted members", self.faulted),
            ("full disks", self.full),
            ("handovers", self.handovers),
            ("fenced requests", self.fenced),
            ("workloads brought", self.brought),
            ("file systems made", self.made),
            ("nodes lost", self.lost),
        ]
    }

    pub fn batch(&mut self, batch: &Batch) {
        let bypassed = |entry: &FoundEntry| u64::from(entry.bypass.is_some());
        for item in &batch.items {
            match item {
                FoundItem::Entry { entry, .. } => self.bypasses += bypassed(entry),
                FoundItem::LogSnapshot { .. } => self.log_snapshots += 1,
                FoundItem::Reset { .. } => self.resyncs += 1,
                FoundItem::Hard { .. } | FoundItem::Fault { .. } => {}
            }
        }
    }
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Seen) {
        self.terms += other.terms;
        self.laps += other.laps;
        self.bypasses += other.bypasses;
        self.log_snapshots += other.log_snapshots;
        self.replaced += other.replaced;
        self.resyncs += other.resyncs;
        self.flushes += other.flushes;
        self.recoveries += other.recoveries;
        self.failed_starts += other.failed_starts;
        self.faulted += other.faulted;
        self.full += other.full;
        self.handovers += other.handovers;
        self.fenced += other.fenced;
        self.brought += other.brought;
        self.made += other.made;
        self.lost += other.lost;
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.all().map(|(name, count)| format!("{count} {name}"));
        f.write_str(&texts.join(", "))
    }
}
