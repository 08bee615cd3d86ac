//! Summaries of the whole cluster, whose size does not depend on its size.

use crate::control::objects::condition::Truth;
use crate::control::objects::describe::Describe;
use crate::control::objects::key::Kind;
use crate::control::objects::ledger::Standing;
use crate::control::placement::{largest, promised};
use crate::control::proto::{
    CatalogStatus, ClassCapacity, PhaseCount, Problem, StatusResponse, Summary,
};
use crate::control::state::rows::Class;
use crate::types::Uuid;

/// Problems that a summary shows at most.
const PROBLEMS_MAX: usize = 20;

impl Describe<'_> {
    pub fn status(&self) -> StatusResponse {
        let works = |report: &crate::view::DiskReport| report.failed.is_none();
        let disks = || self.seen.disks().map(|(_, disk)| &disk.report).filter(|it| works(it));
        // A node is as its pods are, and pods are told.
        let bad = || self.ledger.bad().filter(|(key, _)| key.kind() != Kind::Node);
        StatusResponse {
            cluster: self.source.cluster().to_string(),
            revision: self.source.revision(),
            leader_pod: self.leader.0,
            catalog: Some(self.catalog_status()),
            pods: Some(self.summary(Kind::Pod)),
            disks: Some(self.summary(Kind::Disk)),
            volumes: Some(self.summary(Kind::Volume)),
            shards: self.source.count(Kind::Shard),
            capacity_bytes: disks().map(|report| report.capacity_bytes).sum(),
            used_bytes: disks().map(|report| report.used_bytes).sum(),
            problems: bad()
                .take(PROBLEMS_MAX)
                .map(|(key, standing)| problem(key.kind(), standing))
                .collect(),
            problems_total: bad().count() as u64,
        }
    }

    fn summary(&self, kind: Kind) -> Summary {
        let counts = self.ledger.counts(kind);
        let phases: Vec<PhaseCount> =
            counts.map(|(phase, count)| PhaseCount { phase: phase.into(), count }).collect();
        Summary { total: phases.iter().map(|phase| phase.count).sum(), phases }
    }

    fn catalog_status(&self) -> CatalogStatus {
        let group = self.catalog.group;
        let up = self
            .source
            .catalog_pods()
            .filter(|(member, pod)| group.voters.contains(member) && self.seen.pod(*pod).is_some());
        CatalogStatus {
            voters: group.voters.len() as u32,
            voters_up: up.count() as u32,
            learners: group.learners.len() as u32,
        }
    }

    /// What the disks have and hold, and what a class could still use of it. `nodes`: only disks of
    /// these; empty: of all.
    pub fn capacity(&self, name: &str, class: &Class, nodes: &[String]) -> ClassCapacity {
        let mut capacity = ClassCapacity { class: name.to_owned(), ..ClassCapacity::default() };
        let mut room = Vec::new();
        for (disk, seen) in self.seen.disks().filter(|(_, it)| it.report.failed.is_none()) {
            let domain = self.source.domain_of(*disk, &class.failure_domain);
            let Some(domain) = domain.filter(|_| self.is_on(*disk, nodes)) else { continue };
            let report = &seen.report;
            let provisioned = self.source.provisioned_on(*disk);
            capacity.disks += 1;
            capacity.capacity_bytes += report.capacity_bytes;
            capacity.used_bytes += report.used_bytes;
            capacity.provisioned_bytes += provisioned;
            let promised = promised(report.capacity_bytes, class.overcommit_percent);
            room.push((domain, promised.saturating_sub(provisioned)));
        }
        capacity.available_bytes = largest(room, class.replicas);
        capacity
    }

    fn is_on(&self, disk: Uuid, nodes: &[String]) -> bool {
        let pod = || self.source.pod(self.source.disk(disk)?.value.pod);
        nodes.is_empty() || pod().is_some_and(|pod| nodes.contains(&pod.value.node))
    }
}

fn problem(kind: Kind, standing: &Standing) -> Problem {
    let worst = standing.conditions.iter().find(|it| it.statement.truth != Truth::True);
    Problem {
        kind: kind.word().to_owned(),
        name: standing.name.clone(),
        phase: standing.phase.into(),
        reason: worst.map(|it| it.statement.why.word().to_owned()).unwrap_or_default(),
        message: worst.map(|it| it.statement.message.clone()).unwrap_or_default(),
        since_unix_ms: worst.map_or(0, |it| it.since_ms),
    }
}
