//! How often what is rare has happened: checks of what never happens say nothing.

use std::fmt;
use std::ops::AddAssign;

use crate::store::wal::format::{Batch, FoundEntry, FoundItem};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Terms in which somebody led.
    pub terms: u64,
    /// Logs that went around their ring.
    pub laps: u64,
    /// Entries whose payload went to slots.
    pub redirects: u64,
    /// Images of members in logs.
    pub images: u64,
    /// Entries that took the place of others.
    pub replaced: u64,
    /// Members that were brought up to date by a copy.
    pub resyncs: u64,
    /// Indexes that were made durable.
    pub flushes: u64,
    /// Disks that were opened with members on them.
    pub recoveries: u64,
    /// Starts of a pod that power failed in.
    pub failed_starts: u64,
    /// Members that had lost what they promised.
    pub faulted: u64,
    /// Requests that were refused for want of space.
    pub full: u64,
}

impl Seen {
    /// What has a name in [`Seen`] and how often it was seen.
    pub fn all(&self) -> [(&'static str, u64); 11] {
        [
            ("terms", self.terms),
            ("laps", self.laps),
            ("redirects", self.redirects),
            ("images", self.images),
            ("replaced entries", self.replaced),
            ("resyncs", self.resyncs),
            ("flushes", self.flushes),
            ("recoveries", self.recoveries),
            ("failed starts", self.failed_starts),
            ("faulted members", self.faulted),
            ("full disks", self.full),
        ]
    }

    pub fn batch(&mut self, batch: &Batch) {
        let redirected = |entry: &FoundEntry| u64::from(entry.redirect.is_some());
        for item in &batch.items {
            match item {
                FoundItem::Entry { entry, .. } => self.redirects += redirected(entry),
                FoundItem::Image { .. } => self.images += 1,
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
        self.redirects += other.redirects;
        self.images += other.images;
        self.replaced += other.replaced;
        self.resyncs += other.resyncs;
        self.flushes += other.flushes;
        self.recoveries += other.recoveries;
        self.failed_starts += other.failed_starts;
        self.faulted += other.faulted;
        self.full += other.full;
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.all().map(|(name, count)| format!("{count} {name}"));
        f.write_str(&texts.join(", "))
    }
}
