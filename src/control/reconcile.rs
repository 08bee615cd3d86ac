//! Decides the next steps of the catalog's leader. Pure: from the state, the configuration of the
//! catalog's own group, and the reports of the pods. Level-triggered and idempotent: it is asked
//! regularly, and demands nothing once all is as it should be.
//!
//! The catalog has 1 voter on fewer than 3 pods, 3 on 3 or 4, and 5 on 5 or more. New members are
//! learners until they have caught up. Then all missing voters are promoted in one joint change, so
//! that the group never has an even number of voters (two are worse than one).

use std::collections::BTreeSet;
use std::fmt;

use crate::control::command::{CatalogCommand, listed};
use crate::control::creation::has_come;
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
    /// Members of the catalog that have applied nearly everything.
    pub caught_up: BTreeSet<MemberId>,
    pub reports: Pods<'a>,
}

/// How many entries a member may lag to become a voter.
const CAUGHT_UP_WITHIN: u64 = 64;

impl<'a> Facts<'a> {
    /// The facts of a leader that has applied up to `applied_index`.
    pub fn new(
        state: &CatalogState,
        group: &Group,
        applied_index: u64,
        reports: Pods<'a>,
    ) -> Facts<'a> {
        let unreachable = match reports.is_complete() {
            true => state.pods.keys().filter(|pod| !reports.is_up(**pod)).copied().collect(),
            false => BTreeSet::new(),
        };
        Facts {
            group: group.clone(),
            alive: reports.up().map(|(pod, _)| pod).collect(),
            unreachable,
            caught_up: reports.caught_up(applied_index, CAUGHT_UP_WITHIN),
            reports,
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
            Action::Change(MembershipChange::Remove(member)) => {
                write!(f, "learner {member} of the catalog is removed")
            }
        }
    }
}

/// Number of voters for a cluster of `pods` pods.
pub fn voters_due(pods: usize) -> usize {
    match pods {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// All actions that are due now.
pub fn decide(state: &CatalogState, facts: &Facts<'_>) -> Vec<Action> {
    let mut actions = destroyed_members(state, facts.reports);
    actions.extend(created_volumes(state, facts.reports));
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
    let due = voters_due(state.pods.len());
    if group.voters.len() >= due {
        return remove_surplus(state, group);
    }
    if let Some(action) = assign(state, facts, due) {
        return Some(action);
    }
    let joining =
        |member: &&MemberId| !group.voters.contains(member) && !group.learners.contains(member);
    if let Some(member) = state.catalog.keys().find(joining) {
        return Some(Action::Change(MembershipChange::AddLearner(*member)));
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

/// Gives reachable pods a member of the catalog. Removes a member that became unreachable before it
/// became a voter, so that another pod can take its place.
fn assign(state: &CatalogState, facts: &Facts<'_>, due: usize) -> Option<Action> {
    let is_voter = |member: &MemberId| facts.group.voters.contains(member);
    let free: Vec<PodId> = state
        .pods
        .keys()
        .filter(|pod| !state.index.catalog_by_pod.contains_key(pod) && facts.alive.contains(pod))
        .copied()
        .collect();
    let lost = state
        .catalog
        .iter()
        .find(|(member, it)| !is_voter(member) && facts.unreachable.contains(&it.pod));
    let missing = due.saturating_sub(state.catalog.len());
    if missing > 0 && free.len() >= missing {
        let pods = free[..missing].to_vec();
        return Some(Action::Propose(CatalogCommand::AddCatalogMembers { pods }));
    }
    if let (0, Some((member, _)), false) = (missing, lost, free.is_empty()) {
        return Some(Action::Propose(CatalogCommand::RemoveCatalogMember { member: *member }));
    }
    None
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
