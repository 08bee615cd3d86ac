//! Decides the next steps of the catalog's leader. Pure: from the state, the configuration of the
//! catalog's own group, and the reports of the pods. Level-triggered and idempotent: it is asked
//! regularly, and demands nothing once all is as it should be.
//!
//! The catalog has 1 voter with fewer than 3 nodes, 3 with 3 or 4, and 5 with 5 or more, on
//! different nodes and in different zones as far as there are. New members are learners until they
//! have caught up. Then all missing voters are promoted in one joint change, so that the group
//! never has an even number of voters (two are worse than one). A voter that is silent for long is
//! replaced by a learner, in one joint change, too.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::control::command::{CatalogCommand, listed};
use crate::control::creation::{has_come, has_grown};
use crate::control::reports::Pods;
use crate::control::state::CatalogState;
use crate::planted::planted;
use crate::types::{MemberId, PodId, VolumeId};

/// The members of the catalog's group, as its leader knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub voters: BTreeSet<MemberId>,
    pub learners: BTreeSet<MemberId>,
    /// True in the middle of a joint change.
    pub joint: bool,
    /// The next change is in the leader's log and not decided yet. Decisions from the members known
    /// here may be outdated before they are carried out.
    pub changing: bool,
}

/// What the leader knows besides the state.
#[derive(Clone)]
pub struct Facts<'a> {
    pub group: Group,
    /// Reachable pods.
    pub alive: BTreeSet<PodId>,
    /// Unreachable pods. A new leader does not know of any yet.
    pub unreachable: BTreeSet<PodId>,
    /// Pods that were silent for so long that their members of the catalog are replaced.
    pub lost: BTreeSet<PodId>,
    /// Members of the catalog that have applied nearly everything.
    pub caught_up: BTreeSet<MemberId>,
    pub reports: Pods<'a>,
    /// The leader's wall clock, in ms since 1970.
    pub now_ms: u64,
}

/// A voter is replaced when its pod was silent for so long. It is longer than a machine takes to
/// start again; meanwhile the others decide without it.
pub const VOTER_LOST_AFTER: Duration = Duration::from_secs(120);

/// A leader that has led for so long was told if its catalog was replaced.
const PURGES_ALONE_AFTER: Duration = Duration::from_secs(600);

/// Deleted volumes whose destruction begins with one look at the state.
const PURGED_AT_ONCE: usize = 16;

/// How many entries a member may lag to become a voter.
const CAUGHT_UP_WITHIN: u64 = 64;

impl<'a> Facts<'a> {
    /// The facts of a leader that has applied up to `applied_index`. `lost_after`: when a voter is
    /// replaced. `now_ms`: the wall clock.
    pub fn new(
        state: &CatalogState,
        group: &Group,
        applied_index: u64,
        reports: Pods<'a>,
        lost_after: Duration,
        now_ms: u64,
    ) -> Facts<'a> {
        let with_member = state.catalog.values().map(|it| it.pod);
        let unreachable = match reports.is_complete() {
            true => state.pods.keys().filter(|pod| !reports.is_up(**pod)).copied().collect(),
            false => BTreeSet::new(),
        };
        Facts {
            group: group.clone(),
            alive: reports.up().map(|(pod, _)| pod).collect(),
            unreachable,
            lost: with_member.filter(|pod| reports.is_silent_for(*pod, lost_after)).collect(),
            caught_up: reports.caught_up(applied_index, CAUGHT_UP_WITHIN),
            reports,
            now_ms,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Propose(CatalogCommand),
    Change(MembershipChange),
}

/// A change of the catalog's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    AddLearner(MemberId),
    /// Makes learners voters, in one joint change.
    Promote(Vec<MemberId>),
    /// Makes a learner a voter in place of another one, in one joint change.
    Replace {
        voter: MemberId,
        by: MemberId,
    },
    /// Removes a learner.
    Remove(MemberId),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Propose(command) => command.fmt(f),
            Action::Change(MembershipChange::AddLearner(member)) => {
                write!(f, "member {member} of the catalog begins as a learner")
            }
            Action::Change(MembershipChange::Promote(members)) => {
                write!(f, "members {} of the catalog become voters", listed(members))
            }
            Action::Change(MembershipChange::Replace { voter, by }) => {
                write!(f, "member {by} of the catalog becomes a voter in place of {voter}")
            }
            Action::Change(MembershipChange::Remove(member)) => {
                write!(f, "learner {member} of the catalog is removed")
            }
        }
    }
}

/// Number of voters for a cluster of pods on so many nodes.
pub fn voters_due(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// All actions that are due now.
pub fn decide(state: &CatalogState, facts: &Facts<'_>) -> Vec<Action> {
    let mut actions = destroyed_members(state, facts.reports);
    actions.extend(created_volumes(state, facts.reports));
    actions.extend(grown_volumes(state, facts.reports));
    actions.extend(purged_volumes(state, facts.reports, facts.now_ms));
    actions.extend(catalog_membership(state, facts));
    actions
}

/// Records members that no longer exist on their disks.
fn destroyed_members(state: &CatalogState, reports: Pods<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    for report in reports.with_destroyed() {
        let disk = report.disk;
        let gone = report.destroyed.iter().filter(|member| state.is_doomed(disk, **member));
        let members: Vec<MemberId> = gone.copied().collect();
        if !members.is_empty() {
            actions.push(Action::Propose(CatalogCommand::Destroyed { disk, members }));
        }
    }
    actions
}

/// Records the volumes of which all shards have leaders for the first time.
fn created_volumes(state: &CatalogState, reports: Pods<'_>) -> Option<Action> {
    let created = state.index.creating.iter().filter(|volume| {
        let volume = &state.volumes[*volume];
        has_come(state, reports, volume)
    });
    let volumes: Vec<VolumeId> = created.copied().collect();
    (!volumes.is_empty()).then_some(Action::Propose(CatalogCommand::Created { volumes }))
}

/// Raises the sizes for which all new shards are ready.
fn grown_volumes(state: &CatalogState, reports: Pods<'_>) -> impl Iterator<Item = Action> {
    let growing = state.index.growing.iter().map(|id| (*id, &state.volumes[id]));
    let grown = growing.filter(move |(_, volume)| has_grown(state, reports, volume));
    grown.filter_map(|(volume, row)| {
        let (size_bytes, generation) = (row.growing_to?, row.access.wanted);
        Some(Action::Propose(CatalogCommand::Grown { volume, size_bytes, generation }))
    })
}

/// Destroys deleted volumes whose time is over. The clock of a leader decides, and the state's own
/// time does, too. A leader that does not hear from all replicas may be one of a catalog that was
/// recovered without it, where the volume was brought back: it gets time to hear of that.
fn purged_volumes(
    state: &CatalogState,
    reports: Pods<'_>,
    now_ms: u64,
) -> impl Iterator<Item = Action> {
    let purges = state.index.purges.iter().copied();
    let over = purges.take_while(move |(purge_ms, _)| *purge_ms <= now_ms).take(PURGED_AT_ONCE);
    let has_time = reports.has_led_for(PURGES_ALONE_AFTER);
    let is_heard = move |volume: &VolumeId| {
        let shards = state.shards_of(&state.volumes[volume]);
        let mut members = shards.flat_map(|(_, shard)| &shard.members);
        members.all(|member| reports.disk(member.disk).is_some())
    };
    over.filter(move |(_, volume)| has_time || is_heard(volume))
        .map(|(purge_ms, volume)| Action::Propose(CatalogCommand::PurgeVolume { volume, purge_ms }))
}

/// At most one step: each change must be applied before the next is decided.
fn catalog_membership(state: &CatalogState, facts: &Facts<'_>) -> Option<Action> {
    let group = &facts.group;
    // The leader's member ends a joint configuration itself.
    if group.voters.is_empty() || group.joint || group.changing {
        return None;
    }
    let unknown = group.learners.iter().find(|member| !state.catalog.contains_key(member));
    if let Some(member) = unknown {
        return Some(Action::Change(MembershipChange::Remove(*member)));
    }
    let nodes: BTreeSet<&str> = state.pods.values().map(|pod| pod.node.as_str()).collect();
    let due = voters_due(nodes.len());
    if group.voters.len() >= due {
        return match lost_voter(state, facts) {
            Some(voter) => replace(state, facts, voter),
            None => remove_surplus(state, group),
        };
    }
    if let Some(action) = assign(state, facts, due) {
        return Some(action);
    }
    if let Some(member) = joining(state, group) {
        return Some(Action::Change(MembershipChange::AddLearner(member)));
    }
    let wanted = due - group.voters.len();
    let ready: Vec<MemberId> = group
        .learners
        .iter()
        .filter(|member| facts.caught_up.contains(member) || planted!(CatalogLearnerEarly))
        .take(wanted)
        .copied()
        .collect();
    (ready.len() == wanted).then_some(Action::Change(MembershipChange::Promote(ready)))
}

/// A listed member that is not in the group yet.
fn joining(state: &CatalogState, group: &Group) -> Option<MemberId> {
    let is_in =
        |member: &MemberId| group.voters.contains(member) || group.learners.contains(member);
    state.catalog.keys().copied().find(|member| !is_in(member))
}

/// Gives reachable pods a member of the catalog. Removes a member that became unreachable before it
/// became a voter, so that another pod can take its place.
fn assign(state: &CatalogState, facts: &Facts<'_>, due: usize) -> Option<Action> {
    let missing = due.saturating_sub(state.catalog.len());
    let free = free_pods(state, facts, missing.max(1));
    if missing > 0 && free.len() >= missing {
        return Some(Action::Propose(CatalogCommand::AddCatalogMembers { pods: free }));
    }
    match missing == 0 && !free.is_empty() {
        true => strike_unreachable(state, facts),
        false => None,
    }
}

/// Removes a member whose pod became unreachable before it became a voter.
fn strike_unreachable(state: &CatalogState, facts: &Facts<'_>) -> Option<Action> {
    let is_voter = |member: &MemberId| facts.group.voters.contains(member);
    let mut members = state.catalog.iter();
    let (member, _) =
        members.find(|(member, it)| !is_voter(member) && facts.unreachable.contains(&it.pod))?;
    Some(Action::Propose(CatalogCommand::RemoveCatalogMember { member: *member }))
}

/// Up to `count` reachable pods without a member, each on the node, then in the zone, with the
/// fewest members.
fn free_pods(state: &CatalogState, facts: &Facts<'_>, count: usize) -> Vec<PodId> {
    let mut taken: Vec<PodId> = state.catalog.values().map(|it| it.pod).collect();
    taken.retain(|pod| !facts.lost.contains(pod));
    let is_free = |pod: &PodId| !state.index.catalog_by_pod.contains_key(pod);
    let mut free: Vec<PodId> = facts.alive.iter().copied().filter(is_free).collect();
    free.retain(|pod| state.pods.contains_key(pod));
    let mut chosen = Vec::new();
    while chosen.len() < count && !free.is_empty() {
        let crowd = |pod: &PodId| {
            let in_common = |of: fn(&CatalogState, PodId) -> Option<&str>| {
                let own = of(state, *pod);
                taken.iter().filter(|other| own.is_some() && of(state, **other) == own).count()
            };
            (in_common(node_of), in_common(zone_of), *pod)
        };
        let best = (0..free.len()).min_by_key(|at| crowd(&free[*at])).expect("not empty");
        let pod = free.swap_remove(best);
        taken.push(pod);
        chosen.push(pod);
    }
    chosen.sort_unstable();
    chosen
}

fn node_of(state: &CatalogState, pod: PodId) -> Option<&str> {
    Some(&state.pods.get(&pod)?.node)
}

fn zone_of(state: &CatalogState, pod: PodId) -> Option<&str> {
    let node = state.nodes.get(node_of(state, pod)?)?;
    node.labels.get(ZONE).map(String::as_str)
}

/// The label of a node that says in which zone it is.
const ZONE: &str = "zone";

/// A voter whose pod is silent for long.
fn lost_voter(state: &CatalogState, facts: &Facts<'_>) -> Option<MemberId> {
    let mut voters = facts.group.voters.iter().copied();
    voters.find(|voter| state.catalog.get(voter).is_some_and(|it| facts.lost.contains(&it.pod)))
}

/// The next step towards another voter in place of one that is lost.
fn replace(state: &CatalogState, facts: &Facts<'_>, voter: MemberId) -> Option<Action> {
    let group = &facts.group;
    if let Some(strike) = strike_unreachable(state, facts) {
        return Some(strike);
    }
    if let Some(member) = joining(state, group) {
        return Some(Action::Change(MembershipChange::AddLearner(member)));
    }
    let ready =
        |member: &&MemberId| facts.caught_up.contains(member) || planted!(CatalogLearnerEarly);
    match group.learners.first() {
        Some(_) => {
            let by = *group.learners.iter().find(ready)?;
            Some(Action::Change(MembershipChange::Replace { voter, by }))
        }
        None => {
            let pods = free_pods(state, facts, 1);
            let add = CatalogCommand::AddCatalogMembers { pods: pods.clone() };
            (!pods.is_empty()).then_some(Action::Propose(add))
        }
    }
}

/// Removes members that are no voters once there are enough voters.
fn remove_surplus(state: &CatalogState, group: &Group) -> Option<Action> {
    state
        .catalog
        .keys()
        .find(|member| !group.voters.contains(member))
        .map(|member| Action::Propose(CatalogCommand::RemoveCatalogMember { member: *member }))
}

#[cfg(test)]
#[path = "reconcile_test.rs"]
mod tests;
