//! What each pod reported last to the catalog's leader, and when. Kept in memory only: every pod
//! reports to a new leader within seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::watch;

use crate::control::node_reports::NodeReports;
use crate::control::trusting::Trusting;
use crate::io::clock;
use crate::types::{MemberId, Mono, PodId, Uuid};
use crate::view::{DiskReport, MemberReport, PodReport};

/// A pod that was silent this long is unreachable.
pub const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);

/// After this time a leader has heard from nearly every pod that is up: enough to answer.
const LISTENED_AFTER: Duration = Duration::from_secs(3);

/// After this time a leader has heard from every pod that is up. A pod without a member of the
/// catalog may first wait for an old leader (5 s until the connection is given up), then for an
/// unreachable pod (2 s to connect). Reports are a second apart.
const COMPLETE_AFTER: Duration = Duration::from_secs(9);

/// A pod that was silent this long loses its disks to the pod that has them now. It is enough for a
/// process to start again; moving a disk by hand takes longer.
pub const DISKS_FREE_AFTER: Duration = Duration::from_secs(30);

/// The last report of a pod, with what came along.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Without disks until they are open.
    pub report: PodReport,
    /// Names this report among all of all pods.
    pub id: u64,
    /// True once its disks are open: then it uses only the disks of the report.
    pub is_open: bool,
    /// Its member of the catalog, and the index that this member has applied.
    pub catalog: CatalogMember,
    /// Why that member does not run; empty: it does, or there is none.
    pub catalog_failed: String,
    pub version: String,
    pub trusting: Trusting,
}

/// What a pod says with every report, also with one that is the same as before.
#[derive(Clone, Debug, Default)]
pub struct Also {
    pub catalog: CatalogMember,
    pub trusting: Trusting,
}

/// A pod's member of the catalog, and the index that this member has applied.
pub type CatalogMember = Option<(MemberId, u64)>;

/// Whether a pod uses a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The pod reports the disk.
    Yes,
    /// The pod is about to use it, or its silence does not prove the contrary yet.
    Maybe,
    No,
}

/// The last reports of all pods. Times are those of the leader's clock.
#[derive(Debug, Default)]
pub struct Table {
    heard: BTreeMap<PodId, (Mono, Heard)>,
    leading_since: Option<Mono>,
    /// Where the last report of a disk or a replica is: so no question looks at all reports.
    disks: FxHashMap<Uuid, (PodId, usize)>,
    members: FxHashMap<MemberId, (PodId, usize, usize)>,
    /// Disks on which members were destroyed that the catalog may not know of.
    with_destroyed: BTreeSet<Uuid>,
    nodes: NodeReports,
}

/// The table of this pod, for use by several threads.
#[derive(Debug, Default)]
pub struct Reports {
    table: Mutex<Table>,
    /// Counts the reports that brought news.
    heard: watch::Sender<u64>,
}

/// The reachable pods and what they reported, as of one moment.
#[derive(Clone, Copy)]
pub struct Pods<'a> {
    table: &'a Table,
    now: Mono,
}

impl Table {
    /// Records a report; true when it differs from the one before.
    pub fn hear(&mut self, now: Mono, pod: PodId, heard: Heard) -> bool {
        let before = self.heard.get(&pod).map(|(_, before)| (before.is_open, &before.report));
        let is_new = before != Some((heard.is_open, &heard.report));
        match is_new {
            true => self.replace(now, pod, heard),
            false => drop(self.heard.insert(pod, (now, heard))),
        }
        is_new
    }

    /// Replaces the report of a pod. A disk that has moved belongs to the pod that was heard last.
    fn replace(&mut self, now: Mono, pod: PodId, heard: Heard) {
        if let Some((_, before)) = self.heard.remove(&pod) {
            for disk in &before.report.disks {
                if self.disks.get(&disk.disk).is_some_and(|at| at.0 == pod) {
                    self.disks.remove(&disk.disk);
                    self.with_destroyed.remove(&disk.disk);
                }
                for member in &disk.members {
                    if self.members.get(&member.member).is_some_and(|at| at.0 == pod) {
                        self.members.remove(&member.member);
                    }
                }
            }
        }
        for (at, disk) in heard.report.disks.iter().enumerate() {
            self.disks.insert(disk.disk, (pod, at));
            if !disk.destroyed.is_empty() {
                self.with_destroyed.insert(disk.disk);
            }
            for (member_at, member) in disk.members.iter().enumerate() {
                self.members.insert(member.member, (pod, at, member_at));
            }
        }
        self.heard.insert(pod, (now, heard));
    }

    /// A pod says what it said before under this id. False: that was not heard here.
    pub fn hear_again(&mut self, now: Mono, pod: PodId, id: u64, also: Also) -> bool {
        let known = self.heard.get_mut(&pod).filter(|(_, heard)| heard.is_open && heard.id == id);
        if let Some((at, heard)) = known {
            (*at, heard.catalog, heard.trusting) = (now, also.catalog, also.trusting);
            return true;
        }
        false
    }

    /// See [`NodeReports::hear`].
    pub fn hear_node(&mut self, now: Mono, node: &str, every: Duration) {
        self.nodes.hear(now, node, every);
    }

    /// See [`NodeReports::expect`].
    pub fn expect_nodes(&mut self, now: Mono, nodes: impl FnOnce() -> Vec<String>) {
        self.nodes.expect(now, nodes);
    }

    /// Called regularly with whether this pod leads. The waiting times run from when it began to
    /// lead; what it heard when it led earlier may be outdated.
    pub fn set_leading(&mut self, now: Mono, leading: bool) {
        self.leading_since = leading.then_some(self.leading_since.unwrap_or(now));
        if !leading {
            self.nodes = NodeReports::default();
        }
    }

    pub fn pods(&self, now: Mono) -> Pods<'_> {
        Pods { table: self, now }
    }

    fn leads_for(&self, now: Mono, time: Duration) -> bool {
        self.leading_since.is_some_and(|at| now.since(at) >= time)
    }

    /// Whether `pod`, which has this disk in the catalog, uses it. Only a long silence proves that
    /// it does not: the disk seen elsewhere may be a copy, and the pod may just be starting.
    pub fn uses(&self, now: Mono, pod: PodId, disk: Uuid) -> Use {
        let Some(leading_since) = self.leading_since else { return Use::Maybe };
        let heard = self.heard.get(&pod);
        let silent_since = heard.map_or(leading_since, |(at, _)| leading_since.max(*at));
        let silence = now.since(silent_since);
        match heard.filter(|(at, _)| now.since(*at) < UNREACHABLE_AFTER) {
            Some((_, heard)) if heard.has(disk) => Use::Yes,
            Some((_, heard)) if heard.is_open && self.leads_for(now, COMPLETE_AFTER) => Use::No,
            None if silence >= DISKS_FREE_AFTER => Use::No,
            _ => Use::Maybe,
        }
    }
}

impl Reports {
    /// See [`Table::hear`].
    pub fn hear(&self, pod: PodId, heard: Heard) -> bool {
        let is_new = self.table().hear(clock::now(), pod, heard);
        if is_new {
            self.heard.send_modify(|count| *count += 1);
        }
        is_new
    }

    /// Tells of every report that brings news.
    pub fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// See [`Table::hear_again`].
    pub fn hear_again(&self, pod: PodId, id: u64, also: Also) -> bool {
        self.table().hear_again(clock::now(), pod, id, also)
    }

    /// See [`Table::set_leading`].
    pub fn set_leading(&self, leading: bool) {
        self.table().set_leading(clock::now(), leading);
    }

    /// See [`Table::hear_node`].
    pub fn hear_node(&self, node: &str, every: Duration) {
        self.table().hear_node(clock::now(), node, every);
    }

    /// See [`Table::expect_nodes`].
    pub fn expect_nodes(&self, nodes: impl FnOnce() -> Vec<String>) {
        self.table().expect_nodes(clock::now(), nodes);
    }

    /// Answers from the reports. Keep it short: reports wait meanwhile.
    pub fn with<T>(&self, answer: impl FnOnce(Pods<'_>) -> T) -> T {
        answer(self.table().pods(clock::now()))
    }

    /// See [`Table::uses`].
    pub fn uses(&self, pod: PodId, disk: Uuid) -> Use {
        self.table().uses(clock::now(), pod, disk)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No update can be left half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn has(&self, disk: Uuid) -> bool {
        self.report.disks.iter().any(|report| report.disk == disk)
    }
}

impl<'a> Pods<'a> {
    /// Entries that the slowest member of the catalog has not applied, among those that are up.
    pub fn catalog_lag(&self, applied: u64) -> u64 {
        let members = self.up().filter_map(|(_, heard)| heard.catalog);
        members.map(|(_, at)| applied.saturating_sub(at)).max().unwrap_or(0)
    }

    /// The last report of a pod, unless it is unreachable.
    pub fn get(&self, pod: PodId) -> Option<&'a Heard> {
        let (at, heard) = self.table.heard.get(&pod)?;
        (self.now.since(*at) < UNREACHABLE_AFTER).then_some(heard)
    }

    /// Whom a pod trusts, as it said last, also if it is unreachable.
    pub fn trusting(&self, pod: PodId) -> Option<&'a Trusting> {
        self.table.heard.get(&pod).map(|(_, heard)| &heard.trusting)
    }

    /// True when a leader has listened for so long without hearing of a pod.
    pub fn is_silent_for(&self, pod: PodId, time: Duration) -> bool {
        let heard = self.table.heard.get(&pod).map(|(at, _)| *at);
        self.table.leads_for(self.now, time) && heard.is_none_or(|at| self.now.since(at) >= time)
    }

    /// The nodes whose own reports are missed.
    pub fn silent_nodes(&self) -> impl Iterator<Item = &'a str> {
        self.table.nodes.silent(self.now)
    }

    pub fn is_up(&self, pod: PodId) -> bool {
        self.get(pod).is_some()
    }

    /// The pods that are reachable, with their last reports.
    pub fn up(&self) -> impl Iterator<Item = (PodId, &'a Heard)> {
        let pods = *self;
        let all = self.table.heard.keys();
        all.filter_map(move |pod| pods.get(*pod).map(|heard| (*pod, heard)))
    }

    /// The leader has listened long enough to call the other pods unreachable in answers.
    pub fn has_listened(&self) -> bool {
        self.table.leads_for(self.now, LISTENED_AFTER)
    }

    /// The leader leads for so long.
    pub fn has_led_for(&self, time: Duration) -> bool {
        self.table.leads_for(self.now, time)
    }

    /// The leader has listened long enough to act on it.
    pub fn is_complete(&self) -> bool {
        self.table.leads_for(self.now, COMPLETE_AFTER)
    }

    /// The disks of all reachable pods.
    pub fn disks(&self) -> impl Iterator<Item = &'a DiskReport> {
        self.up().flat_map(|(_, heard)| &heard.report.disks)
    }

    /// The last report of a disk, unless its pod is unreachable.
    pub fn disk(&self, disk: Uuid) -> Option<&'a DiskReport> {
        let (pod, at) = self.table.disks.get(&disk)?;
        Some(&self.get(*pod)?.report.disks[*at])
    }

    /// The last report of a replica on a disk, unless the disk has failed or is unreachable.
    pub fn member(&self, member: MemberId, disk: Uuid) -> Option<&'a MemberReport> {
        let (pod, at, member_at) = self.table.members.get(&member)?;
        let found = &self.get(*pod)?.report.disks[*at];
        (found.disk == disk && found.failed.is_none()).then(|| &found.members[*member_at])
    }

    /// Disks with members that were destroyed, as far as reported.
    pub fn with_destroyed(&self) -> impl Iterator<Item = &'a DiskReport> {
        let pods = *self;
        self.table.with_destroyed.iter().filter_map(move |disk| pods.disk(*disk))
    }

    /// Members of the catalog that are at most `behind` entries behind `applied`.
    pub fn caught_up(&self, applied: u64, behind: u64) -> BTreeSet<MemberId> {
        self.up()
            .filter_map(|(_, heard)| heard.catalog)
            .filter(|(_, at)| *at > 0 && at + behind >= applied)
            .map(|(member, _)| member)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: PodId = PodId(1);
    const DISK: Uuid = Uuid([1; 16]);

    fn at(seconds: u64) -> Mono {
        Mono(1) + Duration::from_secs(seconds)
    }

    fn says(is_open: bool, disks: &[Uuid]) -> Heard {
        let disk = |disk: &Uuid| DiskReport { disk: *disk, ..DiskReport::default() };
        let report = PodReport { pod: OWNER, disks: disks.iter().map(disk).collect() };
        Heard { report, is_open, ..Heard::default() }
    }

    /// A copy of a disk is found in another pod under a new leader.
    #[test]
    fn a_new_leader_does_not_know_whether_a_disk_is_in_use() {
        let mut table = Table::default();
        assert_eq!(table.uses(at(0), OWNER, DISK), Use::Maybe);
        table.set_leading(at(0), true);
        assert_eq!(table.uses(at(0), OWNER, DISK), Use::Maybe);
        // The pod reports no such disk, but the leader has not listened long enough.
        table.hear(at(1), OWNER, says(true, &[]));
        assert_eq!(table.uses(at(1), OWNER, DISK), Use::Maybe);
        table.hear(at(9), OWNER, says(true, &[DISK]));
        assert_eq!(table.uses(at(9), OWNER, DISK), Use::Yes);
        table.hear(at(10), OWNER, says(true, &[]));
        assert_eq!(table.uses(at(10), OWNER, DISK), Use::No);
    }

    #[test]
    fn a_pod_that_starts_may_use_the_disks_that_it_had() {
        let mut table = Table::default();
        table.set_leading(at(0), true);
        table.hear(at(20), OWNER, says(true, &[DISK]));
        // Its process ends, and another one starts.
        assert_eq!(table.uses(at(28), OWNER, DISK), Use::Maybe);
        table.hear(at(29), OWNER, says(false, &[]));
        assert_eq!(table.uses(at(29), OWNER, DISK), Use::Maybe);
        table.hear(at(33), OWNER, says(true, &[]));
        assert_eq!(table.uses(at(33), OWNER, DISK), Use::No);
    }

    #[test]
    fn a_report_is_repeated_only_to_who_has_heard_it() {
        let mut table = Table::default();
        assert!(
            !table.hear_again(at(1), OWNER, 7, Also::default()),
            "a new leader has heard nothing"
        );
        table.hear(at(2), OWNER, Heard { id: 7, ..says(true, &[DISK]) });
        assert!(
            !table.hear_again(at(3), OWNER, 8, Also::default()),
            "another report, or another process"
        );
        let catalog = Some((MemberId(4), 9));
        let also = Also { catalog, ..Also::default() };
        assert!(table.hear_again(at(6), OWNER, 7, also));
        let pods = table.pods(at(10));
        let heard = pods.get(OWNER).unwrap();
        assert_eq!(heard.catalog, catalog);
        assert!(heard.has(DISK), "it counts as heard at the second time");
    }

    #[test]
    fn what_is_found_is_in_the_last_report_of_who_has_it() {
        let mut table = Table::default();
        let member = |member: u64| MemberReport { member: MemberId(member), ..Default::default() };
        let with = |pod, disk, members: &[u64], destroyed: &[u64]| {
            let members = members.iter().copied().map(member).collect();
            let destroyed = destroyed.iter().copied().map(MemberId).collect();
            let disk = DiskReport { disk, members, destroyed, ..DiskReport::default() };
            let report = PodReport { pod, disks: vec![disk] };
            Heard { report, is_open: true, ..Heard::default() }
        };
        let (other, late) = (PodId(2), Uuid([2; 16]));
        table.hear(at(1), OWNER, with(OWNER, DISK, &[1, 2], &[]));
        table.hear(at(1), other, with(other, late, &[3], &[4]));
        let found = |table: &Table, member: u64, disk| {
            table.pods(at(2)).member(MemberId(member), disk).map(|it| it.member.0)
        };
        assert_eq!(found(&table, 2, DISK), Some(2));
        assert_eq!(found(&table, 2, late), None, "it is on another disk");
        assert_eq!(table.pods(at(2)).with_destroyed().count(), 1);
        // The disk moves, and its first pod reports once more before it notices.
        table.hear(at(2), other, with(other, DISK, &[1, 5], &[]));
        assert_eq!((found(&table, 2, DISK), found(&table, 5, DISK)), (Some(2), Some(5)));
        assert_eq!(table.pods(at(2)).with_destroyed().count(), 0);
        table.hear(at(2), OWNER, with(OWNER, late, &[], &[]));
        assert_eq!((found(&table, 2, DISK), found(&table, 1, DISK)), (None, Some(1)));
        assert!(table.pods(at(7)).disk(DISK).is_none(), "its pod has gone silent");
    }

    #[test]
    fn a_pod_that_is_away_for_long_uses_nothing() {
        let mut table = Table::default();
        table.set_leading(at(0), true);
        assert_eq!(table.uses(at(29), OWNER, DISK), Use::Maybe);
        assert_eq!(table.uses(at(30), OWNER, DISK), Use::No);
        table.hear(at(40), OWNER, says(true, &[DISK]));
        assert_eq!(table.uses(at(69), OWNER, DISK), Use::Maybe);
        assert_eq!(table.uses(at(70), OWNER, DISK), Use::No);
        // Reports to an earlier leader, or from an earlier time of leading, are outdated.
        table.set_leading(at(70), false);
        table.set_leading(at(71), true);
        assert_eq!(table.uses(at(100), OWNER, DISK), Use::Maybe);
    }
}
