use proptest::prelude::*;

use super::*;
use crate::control::command::{Deletion, Outcome, Placement, VolumeUpdate};
use crate::control::reports::{Heard, Table};
use crate::planted::{Mistake, assert_found};
use crate::testing::catalog_fixture::{cluster, create_on, first_pod, join};
use crate::types::{Generation, Mono, Uuid};
use crate::view::{DiskReport, MemberReport, MemberState, PodReport};

/// Pods without disks.
fn state(pods: u8) -> CatalogState {
    let mut state = first_pod();
    (2..=pods).for_each(|number| carry_out(&mut state, join(number)));
    state
}

fn carry_out(state: &mut CatalogState, command: CatalogCommand) {
    state.apply(1, command).outcome.unwrap();
}

fn members(ids: &[u64]) -> BTreeSet<MemberId> {
    ids.iter().copied().map(MemberId).collect()
}

fn facts<'a>(table: &'a Table, voters: &[u64], alive: &[u64]) -> Facts<'a> {
    Facts {
        group: Group { voters: members(voters), ..Group::default() },
        alive: alive.iter().copied().map(PodId).collect(),
        unreachable: BTreeSet::new(),
        lost: BTreeSet::new(),
        caught_up: BTreeSet::new(),
        reports: table.pods(Mono(1)),
        now_ms: 1_000,
    }
}

#[test]
fn steps_from_one_voter_to_three() {
    let table = Table::default();
    let mut state = state(3);
    let mut facts = facts(&table, &[1], &[1, 2, 3]);
    let add = CatalogCommand::AddCatalogMembers { pods: vec![PodId(2), PodId(3)] };
    assert_eq!(decide(&state, &facts), [Action::Propose(add.clone())]);
    carry_out(&mut state, add);
    let learner = |member| [Action::Change(MembershipChange::AddLearner(MemberId(member)))];
    assert_eq!(decide(&state, &facts), learner(2));
    facts.group.learners = members(&[2]);
    facts.caught_up = members(&[1, 2]);
    assert_eq!(decide(&state, &facts), learner(3), "two voters are worse than one");
    facts.group.learners = members(&[2, 3]);
    assert_eq!(decide(&state, &facts), [], "the third has not caught up");
    facts.caught_up = members(&[1, 2, 3]);
    let promote = MembershipChange::Promote(vec![MemberId(2), MemberId(3)]);
    assert_eq!(decide(&state, &facts), [Action::Change(promote)]);
    facts.group.joint = true;
    assert_eq!(decide(&state, &facts), [], "the member leaves the joint configuration by itself");
    facts.group = Group { voters: members(&[1, 2, 3]), ..Group::default() };
    assert_eq!(decide(&state, &facts), []);
}

/// The pod of a learner goes silent while its promotion is in the leader's log and undecided. The
/// member may be a voter before any other action is carried out.
#[test]
fn nobody_is_struck_off_while_a_promotion_is_in_flight() {
    let table = Table::default();
    let mut state = state(6);
    let pods = [2, 3, 4, 5].map(PodId).to_vec();
    carry_out(&mut state, CatalogCommand::AddCatalogMembers { pods });
    let mut facts = facts(&table, &[1, 2, 3], &[1, 2, 3, 4, 5, 6]);
    facts.group.learners = members(&[4, 5]);
    facts.caught_up = members(&[1, 2, 3, 4, 5]);
    let promote = MembershipChange::Promote(vec![MemberId(4), MemberId(5)]);
    assert_eq!(decide(&state, &facts), [Action::Change(promote)]);
    facts.alive.remove(&PodId(5));
    facts.unreachable.insert(PodId(5));
    let strike = CatalogCommand::RemoveCatalogMember { member: MemberId(5) };
    assert_eq!(decide(&state, &facts), [Action::Propose(strike)]);
    facts.group.changing = true;
    assert_eq!(decide(&state, &facts), []);
}

#[test]
fn nothing_is_done_for_pods_that_are_not_there() {
    let table = Table::default();
    let state = state(3);
    assert_eq!(decide(&state, &facts(&table, &[1], &[1, 2])), [], "two of three would not do");
    let two = self::state(2);
    assert_eq!(decide(&two, &facts(&table, &[1], &[1, 2])), [], "one voter is right for two pods");
    assert_eq!(decide(&state, &facts(&table, &[], &[1, 2, 3])), [], "nothing is known yet");
}

#[test]
fn a_pod_that_goes_away_while_it_joins_is_replaced() {
    let table = Table::default();
    let mut state = state(4);
    let pods = vec![PodId(2), PodId(3)];
    carry_out(&mut state, CatalogCommand::AddCatalogMembers { pods });
    let mut facts = facts(&table, &[1], &[1, 2, 4]);
    facts.group.learners = members(&[2, 3]);
    facts.caught_up = members(&[1, 2]);
    assert_eq!(decide(&state, &facts), [], "a new leader has not heard from everybody yet");
    facts.unreachable = BTreeSet::from([PodId(3)]);
    let remove = CatalogCommand::RemoveCatalogMember { member: MemberId(3) };
    assert_eq!(decide(&state, &facts), [Action::Propose(remove.clone())]);
    carry_out(&mut state, remove);
    let leave = MembershipChange::Remove(MemberId(3));
    assert_eq!(decide(&state, &facts), [Action::Change(leave)]);
    facts.group.learners = members(&[2]);
    let add = CatalogCommand::AddCatalogMembers { pods: vec![PodId(4)] };
    assert_eq!(decide(&state, &facts), [Action::Propose(add)]);
}

/// What a leader has heard when pods 1 to 3 report these states of members 2 to 4 on their disks.
fn heard(states: [Option<MemberState>; 3], destroyed: &[u64]) -> Table {
    let mut table = Table::default();
    for (pod, state) in (1..).zip(states) {
        let member = MemberId(pod + 1);
        let of = |state: MemberState| MemberReport { member, state, ..MemberReport::default() };
        let disk = DiskReport {
            disk: Uuid([pod as u8; 16]),
            members: state.map(of).into_iter().collect(),
            destroyed: destroyed.iter().copied().map(MemberId).collect(),
            ..DiskReport::default()
        };
        let report = PodReport { pod: PodId(pod), disks: vec![disk] };
        table.hear(Mono(1), PodId(pod), Heard { report, is_open: true, ..Heard::default() });
    }
    table
}

/// Three pods with a disk each, and a volume on them.
fn with_volume() -> (CatalogState, VolumeId) {
    let mut state = cluster(3);
    match state.apply(1, create_on("demo", &[1, 2, 3])).outcome {
        Ok(Outcome::Volume(volume)) => (state, volume),
        other => panic!("{other:?}"),
    }
}

/// A pod of three is gone for good, and a fourth is there.
#[test]
fn a_voter_that_is_lost_is_replaced() {
    let table = Table::default();
    let mut state = state(4);
    let pods = vec![PodId(2), PodId(3)];
    carry_out(&mut state, CatalogCommand::AddCatalogMembers { pods });
    let mut facts = facts(&table, &[1, 2, 3], &[1, 3, 4]);
    facts.unreachable = BTreeSet::from([PodId(2)]);
    assert_eq!(decide(&state, &facts), [], "it may come back");
    facts.lost = BTreeSet::from([PodId(2)]);
    let add = CatalogCommand::AddCatalogMembers { pods: vec![PodId(4)] };
    assert_eq!(decide(&state, &facts), [Action::Propose(add.clone())]);
    carry_out(&mut state, add);
    let learner = MembershipChange::AddLearner(MemberId(4));
    assert_eq!(decide(&state, &facts), [Action::Change(learner)]);
    facts.group.learners = members(&[4]);
    assert_eq!(decide(&state, &facts), [], "it has not caught up");
    facts.caught_up = members(&[1, 3, 4]);
    let replace = MembershipChange::Replace { voter: MemberId(2), by: MemberId(4) };
    assert_eq!(decide(&state, &facts), [Action::Change(replace.clone())]);
    // The lost one comes back just before: nothing is replaced.
    let strike = |member| CatalogCommand::RemoveCatalogMember { member: MemberId(member) };
    let mut back = facts.clone();
    back.lost.clear();
    assert_eq!(decide(&state, &back), [Action::Propose(strike(4))]);
    change(&mut facts.group, replace);
    assert_eq!(decide(&state, &facts), [Action::Propose(strike(2))]);
    carry_out(&mut state, strike(2));
    assert_eq!(decide(&state, &facts), []);
}

#[test]
fn voters_are_on_different_nodes_and_in_different_zones() {
    let table = Table::default();
    let mut state = first_pod();
    for (number, machine, zone) in [(2, 1, "a"), (3, 2, "a"), (4, 3, "b"), (5, 4, "c"), (6, 5, "a")]
    {
        let mut join = join(number);
        if let CatalogCommand::Join { node, .. } = &mut join {
            node.name = format!("node-{machine}");
            node.labels.insert("zone".to_owned(), zone.to_owned());
        }
        carry_out(&mut state, join);
    }
    // The first pod is on the node of the second.
    let facts = facts(&table, &[1], &[1, 2, 3, 4, 5, 6]);
    let Some(Action::Propose(CatalogCommand::AddCatalogMembers { pods })) =
        decide(&state, &facts).pop()
    else {
        panic!("voters are missing")
    };
    assert_eq!(pods, [3, 4, 5, 6].map(PodId), "no two on one machine");
    let chosen = free_pods(&state, &facts, 2);
    let zones: BTreeSet<_> = chosen.iter().map(|pod| zone_of(&state, *pod)).collect();
    assert_eq!(zones.len(), 2, "{chosen:?}");
}

#[test]
fn what_disks_have_destroyed_is_noted_once() {
    let (mut state, volume) = with_volume();
    let created = CatalogCommand::Created { volumes: vec![volume] };
    carry_out(&mut state, created);
    let table = heard([None, None, None], &[2, 9]);
    let facts = facts(&table, &[1, 2, 3], &[1, 2, 3]);
    assert_eq!(decide(&state, &facts), [], "the volume is in use");
    let (request_id, name) = (String::new(), "demo".to_owned());
    carry_out(
        &mut state,
        CatalogCommand::DeleteVolume { request_id, name, volume, how: Deletion::default() },
    );
    let (disk, members) = (Uuid([1; 16]), vec![MemberId(2)]);
    let noted = CatalogCommand::Destroyed { disk, members };
    assert_eq!(decide(&state, &facts), [Action::Propose(noted.clone())]);
    carry_out(&mut state, noted);
    assert_eq!(decide(&state, &facts), []);
}

#[test]
fn a_volume_is_created_when_its_shards_have_leaders_and_what_can_be_there_is_there() {
    let (mut state, volume) = with_volume();
    let (leader, follower) = (Some(MemberState::Leader), Some(MemberState::Follower));
    let due =
        |state: &CatalogState, table: &Table| decide(state, &facts(table, &[1, 2, 3], &[1, 2, 3]));
    let created = [Action::Propose(CatalogCommand::Created { volumes: vec![volume] })];
    assert_eq!(due(&state, &heard([None, None, None], &[])), []);
    let nobody_leads = heard([follower, follower, follower], &[]);
    assert_eq!(due(&state, &nobody_leads), []);
    let not_made_yet = heard([leader, follower, None], &[]);
    assert_eq!(due(&state, &not_made_yet), []);
    let mut without_pod = heard([follower, leader, None], &[]);
    without_pod.hear(Mono(1), PodId(3), Heard::default());
    assert_eq!(due(&state, &without_pod), created, "a disk that is not there is not waited for");
    let complete = heard([leader, follower, follower], &[]);
    assert_eq!(due(&state, &complete), created);
    carry_out(&mut state, CatalogCommand::Created { volumes: vec![volume] });
    assert_eq!(due(&state, &complete), []);
}

/// The volume `demo` of one block gets two more shards.
fn grow(state: &mut CatalogState, volume: VolumeId) {
    let update = VolumeUpdate { based_on: 0, labels: Default::default(), size_bytes: 3 * 4096 };
    let disks = [1, 2, 3].map(|disk| Uuid([disk; 16])).to_vec();
    let placement = Placement { disks, shards: vec![vec![0, 1, 2], vec![1, 2, 0]] };
    let request_id = String::new();
    carry_out(state, CatalogCommand::UpdateVolume { request_id, volume, update, placement });
}

/// What pods report of the new shards: for each, the generation that its leader has.
fn heard_of_new(state: &CatalogState, volume: VolumeId, leads: [Option<u64>; 2]) -> Table {
    let mut table = Table::default();
    for pod in 1..=3u8 {
        let disk = Uuid([pod; 16]);
        let new = state.shards_of(&state.volumes[&volume]).skip(1).zip(leads);
        let members = new.map(|((shard, row), generation)| {
            let member = row.members.iter().find(|it| it.disk == disk).expect("one on each");
            let is_first = row.members[0].disk == disk;
            let state = match generation.filter(|_| is_first) {
                Some(_) => MemberState::Leader,
                None => MemberState::Follower,
            };
            let access = Generation(generation.unwrap_or(99));
            MemberReport { member: member.member, shard, state, access, ..MemberReport::default() }
        });
        let disk = DiskReport { disk, members: members.collect(), ..DiskReport::default() };
        let report = PodReport { pod: PodId(pod.into()), disks: vec![disk] };
        let heard = Heard { report, is_open: true, ..Heard::default() };
        table.hear(Mono(1), PodId(pod.into()), heard);
    }
    table
}

fn a_size_is_raised_when_every_new_shard_has_the_newest_generation() {
    let (mut state, volume) = with_volume();
    carry_out(&mut state, CatalogCommand::Created { volumes: vec![volume] });
    carry_out(
        &mut state,
        CatalogCommand::SetOpen { request_id: String::new(), volume, open: false },
    );
    grow(&mut state, volume);
    let due = |state: &CatalogState, leads| {
        let table = heard_of_new(state, volume, leads);
        decide(state, &facts(&table, &[1, 2, 3], &[1, 2, 3]))
    };
    let grown = |generation| {
        let (size_bytes, generation) = (3 * 4096, Generation(generation));
        CatalogCommand::Grown { volume, size_bytes, generation }
    };
    let nobody = heard([None, None, None], &[]);
    assert_eq!(decide(&state, &facts(&nobody, &[1, 2, 3], &[1, 2, 3])), []);
    assert_eq!(due(&state, [Some(1), None]), [], "one has no leader");
    assert_eq!(due(&state, [Some(1), Some(0)]), [], "one has an older access set");
    assert_eq!(due(&state, [Some(1), Some(1)]), [Action::Propose(grown(1))]);
    // Meanwhile the volume gets another access set: the confirmation comes too late.
    let node = "node-1".to_owned();
    let (mode, uid) = (crate::types::AccessMode::ReadWrite, Uuid([9; 16]));
    carry_out(
        &mut state,
        CatalogCommand::Publish {
            request_id: String::new(),
            volume,
            node,
            mode,
            io_timeout_ms: None,
            uid,
        },
    );
    carry_out(&mut state, grown(1));
    assert_eq!(state.volumes[&volume].size_bytes, 4096);
    assert_eq!(due(&state, [Some(2), Some(1)]), []);
    assert_eq!(due(&state, [Some(2), Some(3)]), [Action::Propose(grown(2))]);
    carry_out(&mut state, grown(2));
    assert_eq!(state.volumes[&volume].size_bytes, 3 * 4096);
    assert_eq!(due(&state, [Some(2), Some(2)]), []);
}

#[test]
fn new_shards_are_waited_for() {
    a_size_is_raised_when_every_new_shard_has_the_newest_generation();
    let scenario = a_size_is_raised_when_every_new_shard_has_the_newest_generation;
    assert_found(Mistake::GrownEarly, scenario);
}

#[test]
fn a_deleted_volume_is_purged_when_its_time_is_over() {
    let (mut state, volume) = with_volume();
    carry_out(&mut state, CatalogCommand::Created { volumes: vec![volume] });
    let how = Deletion { retention_ms: 500, ..Deletion::default() };
    let (request_id, name) = (String::new(), "demo".to_owned());
    let deleted =
        state.apply(1_000, CatalogCommand::DeleteVolume { request_id, name, volume, how });
    deleted.outcome.unwrap();
    let table = heard([None, None, None], &[]);
    let mut facts = facts(&table, &[1, 2, 3], &[1, 2, 3]);
    facts.now_ms = 1_499;
    assert_eq!(decide(&state, &facts), []);
    facts.now_ms = 1_500;
    let purge = CatalogCommand::PurgeVolume { volume, purge_ms: 1_500 };
    assert_eq!(decide(&state, &facts), [Action::Propose(purge.clone())]);
    assert!(state.apply(1_499, purge.clone()).changes.is_empty(), "by the catalog's time, too");
    assert!(!state.apply(1_500, purge).changes.is_empty());
    assert_eq!(decide(&state, &facts), []);
    assert!(state.volumes[&volume].deleting);
}

/// Carries a change out as the group would.
fn change(group: &mut Group, change: MembershipChange) {
    match change {
        MembershipChange::AddLearner(member) => {
            assert!(group.learners.insert(member));
        }
        MembershipChange::Remove(member) => {
            assert!(group.learners.remove(&member), "only learners are removed");
        }
        MembershipChange::Replace { voter, by } => {
            assert!(group.learners.remove(&by), "learners first");
            assert!(group.voters.remove(&voter) && group.voters.insert(by));
        }
        MembershipChange::Promote(members) => {
            for member in members {
                assert!(group.learners.remove(&member), "learners first");
                group.voters.insert(member);
            }
        }
    }
}

proptest! {
    #[test]
    fn the_group_grows_in_odd_steps_and_comes_to_rest(
        pods in 1u8..9,
        moods in prop::collection::vec(prop::collection::vec(any::<bool>(), 9), 0..40),
    ) {
        let mut state = state(pods);
        let mut group = Group { voters: members(&[1]), ..Group::default() };
        let calm = std::iter::repeat_n(vec![true; 9], 60);
        let (mut at_rest, table) = (false, Table::default());
        for mood in moods.into_iter().chain(calm) {
            let all = state.pods.keys().copied();
            let (alive, unreachable): (BTreeSet<PodId>, BTreeSet<PodId>) =
                all.partition(|pod| pod.0 == 1 || mood[pod.0 as usize - 1]);
            let caught_up =
                state.catalog.iter().filter(|(_, it)| alive.contains(&it.pod)).map(|it| *it.0);
            let facts = Facts {
                group: group.clone(),
                alive: alive.clone(),
                unreachable,
                lost: BTreeSet::new(),
                caught_up: caught_up.collect(),
                reports: table.pods(Mono(1)),
                now_ms: 1_000,
            };
            let actions = decide(&state, &facts);
            at_rest = actions.is_empty();
            for action in actions {
                match action {
                    Action::Propose(command) => {
                        carry_out(&mut state, command);
                    }
                    Action::Change(next) => change(&mut group, next),
                }
            }
            prop_assert!(group.voters.len() % 2 == 1, "{:?}", group);
            prop_assert!(group.voters.len() <= voters_due(state.pods.len()));
            state.check_invariants();
        }
        prop_assert!(at_rest);
        prop_assert_eq!(group.voters.len(), voters_due(state.pods.len()));
        prop_assert!(group.learners.is_empty());
    }
}
