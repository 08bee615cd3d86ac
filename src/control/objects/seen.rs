//! What the pods reported last, as the descriptions of objects need it: by member, by disk, by pod.
//! It is told the reports again and again, and says what differs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::control::reports::Pods;
use crate::types::{MemberId, PodId, ShardId, Uuid};
use crate::view::{DiskReport, MemberReport, MemberState};

/// See the module.
#[derive(Debug, Default)]
pub struct Seen {
    pods: BTreeMap<PodId, SeenPod>,
    disks: HashMap<Uuid, SeenDisk>,
    members: HashMap<MemberId, SeenMember>,
    /// Nodes whose own reports are missed.
    silent_nodes: BTreeSet<String>,
}

/// A pod that is reachable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenPod {
    pub version: String,
    pub failed_disks: u32,
    /// Why its member of the catalog does not run; empty: it does, or there is none.
    pub catalog_failed: String,
    is_open: bool,
    /// Id of the report.
    report: u64,
    disks: BTreeSet<Uuid>,
}

/// A disk that a reachable pod has. The report's list of members is left out.
#[derive(Clone, Debug)]
pub struct SeenDisk {
    pub pod: PodId,
    pub report: DiskReport,
    members: BTreeSet<MemberId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenMember {
    pub disk: Uuid,
    pub shard: ShardId,
    pub state: MemberState,
    pub term: u64,
}

/// What differs from the time before, but for counters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub pods: BTreeSet<PodId>,
    pub disks: BTreeSet<Uuid>,
    pub shards: BTreeSet<ShardId>,
    pub nodes: BTreeSet<String>,
}

impl Seen {
    pub fn pod(&self, pod: PodId) -> Option<&SeenPod> {
        self.pods.get(&pod)
    }

    pub fn disk(&self, disk: Uuid) -> Option<&SeenDisk> {
        self.disks.get(&disk)
    }

    /// All disks that answer.
    pub fn disks(&self) -> impl Iterator<Item = (&Uuid, &SeenDisk)> {
        self.disks.iter()
    }

    /// A replica, unless its disk has failed.
    pub fn member(&self, member: MemberId, disk: Uuid) -> Option<&SeenMember> {
        let works = self.disks.get(&disk).is_some_and(|disk| disk.report.failed.is_none());
        self.members.get(&member).filter(|seen| works && seen.disk == disk)
    }

    /// True when a disk answers and works.
    pub fn works(&self, disk: Uuid) -> bool {
        self.disks.get(&disk).is_some_and(|disk| disk.report.failed.is_none())
    }

    /// True when the own reports of a node are missed.
    pub fn is_silent(&self, node: &str) -> bool {
        self.silent_nodes.contains(node)
    }

    /// Takes over the last reports of all pods.
    pub fn hear(&mut self, pods: Pods<'_>) -> Touched {
        let mut touched = Touched::default();
        let silent: BTreeSet<String> = pods.silent_nodes().map(str::to_owned).collect();
        touched.nodes = silent.symmetric_difference(&self.silent_nodes).cloned().collect();
        self.silent_nodes = silent;
        let silent = self.pods.keys().filter(|pod| !pods.is_up(**pod));
        for pod in silent.copied().collect::<Vec<_>>() {
            self.replace(pod, SeenPod::default(), &[], &mut touched);
            self.pods.remove(&pod);
            touched.pods.insert(pod);
        }
        for (pod, heard) in pods.up() {
            let known = self.pods.get(&pod);
            let is_same = known.is_some_and(|known| {
                known.is_open && heard.is_open && known.report == heard.id && heard.id > 0
            });
            if is_same {
                continue;
            }
            let disks = &heard.report.disks;
            let now = SeenPod {
                version: heard.version.clone(),
                failed_disks: disks.iter().filter(|disk| disk.failed.is_some()).count() as u32,
                catalog_failed: heard.catalog_failed.clone(),
                is_open: heard.is_open,
                report: heard.id,
                disks: disks.iter().map(|disk| disk.disk).collect(),
            };
            let is_news = known.is_none_or(|known| {
                (known.failed_disks, &known.version, &known.catalog_failed)
                    != (now.failed_disks, &now.version, &now.catalog_failed)
            });
            if is_news {
                touched.pods.insert(pod);
            }
            self.replace(pod, now, disks, &mut touched);
        }
        touched
    }

    /// Replaces everything that was known from a pod.
    fn replace(&mut self, pod: PodId, now: SeenPod, disks: &[DiskReport], touched: &mut Touched) {
        let before = self.pods.insert(pod, now).unwrap_or_default();
        for gone in before.disks.iter().filter(|gone| disks.iter().all(|it| it.disk != **gone)) {
            // Another pod may have it by now.
            if self.disks.get(gone).is_some_and(|disk| disk.pod == pod) {
                let gone_disk = self.disks.remove(gone).expect("it was just there");
                self.forget_members(*gone, gone_disk.members.iter(), touched);
                touched.disks.insert(*gone);
            }
        }
        for report in disks {
            self.replace_disk(pod, report, touched);
        }
    }

    fn replace_disk(&mut self, pod: PodId, report: &DiskReport, touched: &mut Touched) {
        let id = report.disk;
        let members: BTreeSet<MemberId> = report.members.iter().map(|it| it.member).collect();
        let lean = DiskReport { members: Vec::new(), destroyed: Vec::new(), ..report.clone() };
        let now = SeenDisk { pod, report: lean, members };
        let before = self.disks.insert(id, now);
        let news =
            |disk: &SeenDisk| (disk.pod, disk.report.failed.clone(), disk.report.capacity_bytes);
        if before.as_ref().map(news) != self.disks.get(&id).map(news) {
            touched.disks.insert(id);
            touched.pods.insert(pod);
        }
        let failed = |disk: Option<&SeenDisk>| disk.is_none_or(|it| it.report.failed.is_some());
        let changed_use = failed(before.as_ref()) != report.failed.is_some();
        if let Some(before) = &before {
            let kept = &self.disks[&id].members;
            let gone: Vec<MemberId> = before.members.difference(kept).copied().collect();
            self.forget_members(id, gone.iter(), touched);
        }
        for MemberReport { member, shard, term, state, .. } in &report.members {
            let (shard, state, term) = (*shard, *state, *term);
            let now = SeenMember { disk: id, shard, state, term };
            if self.members.insert(*member, now) != Some(now) || changed_use {
                touched.shards.insert(shard);
            }
        }
    }

    fn forget_members<'a>(
        &mut self,
        disk: Uuid,
        gone: impl Iterator<Item = &'a MemberId>,
        touched: &mut Touched,
    ) {
        for member in gone {
            if let Some(seen) = self.members.get(member).filter(|seen| seen.disk == disk) {
                touched.shards.insert(seen.shard);
                self.members.remove(member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::reports::{Heard, Table};
    use crate::types::Mono;
    use crate::view::PodReport;
    use proptest::prelude::*;

    const NOW: Mono = Mono(1);
    const STATES: [MemberState; 3] =
        [MemberState::Leader, MemberState::Follower, MemberState::Resyncing];

    /// A report of one disk per pod; `members` are (member, state), of the shard `member % 3`.
    fn reports(of: &BTreeMap<u64, (Vec<(u64, usize)>, bool)>, id: &mut u64) -> Table {
        let mut table = Table::default();
        for (pod, (members, failed)) in of {
            *id += 1;
            let member = |(member, state): &(u64, usize)| MemberReport {
                member: MemberId(*member),
                shard: ShardId(member % 3),
                state: STATES[*state],
                ..MemberReport::default()
            };
            let disk = DiskReport {
                disk: Uuid([*pod as u8; 16]),
                failed: failed.then(|| "broken".to_owned()),
                members: members.iter().map(member).collect(),
                ..DiskReport::default()
            };
            let report = PodReport { pod: PodId(*pod), disks: vec![disk] };
            let heard = Heard { report, id: *id, is_open: true, ..Heard::default() };
            table.hear(NOW, PodId(*pod), heard);
        }
        table
    }

    fn members(seen: &Seen) -> BTreeMap<MemberId, SeenMember> {
        seen.members.iter().map(|(member, seen)| (*member, *seen)).collect()
    }

    proptest! {
        /// Whatever came before, the same is known as by somebody who hears only the last reports,
        /// and every shard whose members differ is touched.
        #[test]
        fn differences_add_up_to_the_whole(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(
                    1u64..4,
                    (proptest::collection::vec((0u64..6, 0usize..3), 0..4), any::<bool>()),
                    0..4,
                ),
                1..8,
            ),
        ) {
            let (mut seen, mut id) = (Seen::default(), 0);
            for mut step in steps {
                // Each member is on one disk at a time.
                let mut given = BTreeSet::new();
                for (members, _) in step.values_mut() {
                    members.retain(|(member, _)| given.insert(*member));
                }
                let before = members(&seen);
                let reports = reports(&step, &mut id);
                let touched = seen.hear(reports.pods(NOW));
                let mut fresh = Seen::default();
                fresh.hear(reports.pods(NOW));
                prop_assert_eq!(members(&seen), members(&fresh));
                prop_assert_eq!(&seen.pods, &fresh.pods);
                let now = members(&seen);
                for member in before.keys().chain(now.keys()) {
                    if before.get(member) != now.get(member) {
                        let shard = before.get(member).or(now.get(member)).unwrap().shard;
                        prop_assert!(touched.shards.contains(&shard));
                    }
                }
                prop_assert_eq!(seen.hear(reports.pods(NOW)), Touched::default());
            }
        }
    }
}
