use proptest::prelude::*;

use super::*;
use crate::control::command::{Addresses, NewDisk, Outcome, Placement};
use crate::view::{DiskReport, MemberReport, MemberState};

fn state(pods: u8) -> CatalogState {
    let at = "127.0.0.1:1".parse().unwrap();
    let addresses = Addresses { api: at, peer: at, nbd: None };
    let mut state = CatalogState::new(Uuid([9; 16]), Uuid([1; 16]), addresses);
    for number in 2..=pods {
        let join_id = Uuid([number; 16]);
        state.apply(CatalogCommand::Join { join_id, addresses }).unwrap();
    }
    state
}

fn members(ids: &[u64]) -> BTreeSet<MemberId> {
    ids.iter().copied().map(MemberId).collect()
}

fn facts(voters: &[u64], alive: &[u64]) -> Facts {
    Facts {
        group: Group { voters: members(voters), ..Group::default() },
        alive: alive.iter().copied().map(PodId).collect(),
        ..Facts::default()
    }
}

#[test]
fn steps_from_one_voter_to_three() {
    let mut state = state(3);
    let mut facts = facts(&[1], &[1, 2, 3]);
    let add = CatalogCommand::AddCatalogMembers { pods: vec![PodId(2), PodId(3)] };
    assert_eq!(decide(&state, &facts), [Action::Propose(add.clone())]);
    state.apply(add).unwrap();
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
    let mut state = state(6);
    let pods = [2, 3, 4, 5].map(PodId).to_vec();
    state.apply(CatalogCommand::AddCatalogMembers { pods }).unwrap();
    let mut facts = facts(&[1, 2, 3], &[1, 2, 3, 4, 5, 6]);
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
    let state = state(3);
    assert_eq!(decide(&state, &facts(&[1], &[1, 2])), [], "two of three would not do");
    let two = self::state(2);
    assert_eq!(decide(&two, &facts(&[1], &[1, 2])), [], "one voter is right for two pods");
    assert_eq!(decide(&state, &facts(&[], &[1, 2, 3])), [], "nothing is known yet");
}

#[test]
fn a_pod_that_goes_away_while_it_joins_is_replaced() {
    let mut state = state(4);
    let pods = vec![PodId(2), PodId(3)];
    state.apply(CatalogCommand::AddCatalogMembers { pods }).unwrap();
    let mut facts = facts(&[1], &[1, 2, 4]);
    facts.group.learners = members(&[2, 3]);
    facts.caught_up = members(&[1, 2]);
    assert_eq!(decide(&state, &facts), [], "a new leader has not heard from everybody yet");
    facts.unreachable = BTreeSet::from([PodId(3)]);
    let remove = CatalogCommand::RemoveCatalogMember { member: MemberId(3) };
    assert_eq!(decide(&state, &facts), [Action::Propose(remove.clone())]);
    state.apply(remove).unwrap();
    let leave = MembershipChange::Remove(MemberId(3));
    assert_eq!(decide(&state, &facts), [Action::Change(leave)]);
    facts.group.learners = members(&[2]);
    let add = CatalogCommand::AddCatalogMembers { pods: vec![PodId(4)] };
    assert_eq!(decide(&state, &facts), [Action::Propose(add)]);
}

#[test]
fn what_disks_have_destroyed_is_noted_once() {
    let mut state = state(1);
    let disk = Uuid([5; 16]);
    state.destroyed.insert(disk, members(&[7, 8]));
    let mut facts = facts(&[1], &[1]);
    let report =
        DiskReport { disk, destroyed: vec![MemberId(6), MemberId(8)], ..DiskReport::default() };
    let report = PodReport { pod: PodId(1), disks: vec![report] };
    facts.reports = BTreeMap::from([(PodId(1), report)]);
    let noted = CatalogCommand::Destroyed { disk, members: vec![MemberId(8)] };
    assert_eq!(decide(&state, &facts), [Action::Propose(noted)]);
    state.destroyed.insert(disk, members(&[7]));
    assert_eq!(decide(&state, &facts), []);
}

/// Reports of pods 1 to 3 about members 2 to 4 on their disks.
fn reports(states: [Option<MemberState>; 3]) -> BTreeMap<PodId, PodReport> {
    let report = |(pod, state): (u64, &Option<MemberState>)| {
        let member = MemberId(pod + 1);
        let of = |state: MemberState| MemberReport { member, state, ..MemberReport::default() };
        let members = state.map(of).into_iter().collect();
        let disk = Uuid([pod as u8; 16]);
        let disks = vec![DiskReport { disk, members, ..DiskReport::default() }];
        (PodId(pod), PodReport { pod: PodId(pod), disks })
    };
    (1..).zip(&states).map(report).collect()
}

#[test]
fn a_volume_is_created_when_its_shards_have_leaders_and_what_can_be_there_is_there() {
    let mut state = state(3);
    let addresses = state.pods[&PodId(1)].addresses;
    for pod in 1..=3 {
        let disk = NewDisk { disk: Uuid([pod; 16]), path: String::new(), capacity_bytes: 1 << 40 };
        let (pod, disks) = (PodId(pod.into()), vec![disk]);
        state.apply(CatalogCommand::Register { pod, addresses, disks }).unwrap();
    }
    let create = CatalogCommand::CreateVolume {
        request_id: String::new(),
        name: "demo".to_owned(),
        size_bytes: 4096,
        stripe_bytes: 4096,
        placement: Placement {
            disks: [1, 2, 3].map(|disk| Uuid([disk; 16])).to_vec(),
            shards: vec![vec![0, 1, 2]],
        },
    };
    let Ok(Outcome::Volume(volume)) = state.apply(create) else { panic!("it is created") };
    let (leader, follower) = (Some(MemberState::Leader), Some(MemberState::Follower));
    let mut facts = facts(&[1, 2, 3], &[1, 2, 3]);
    let mut due = |state: &CatalogState, reports| {
        facts.reports = reports;
        decide(state, &facts)
    };
    let created = [Action::Propose(CatalogCommand::Created { volumes: vec![volume] })];
    assert_eq!(due(&state, reports([None, None, None])), []);
    assert_eq!(due(&state, reports([follower, follower, follower])), [], "nobody leads");
    assert_eq!(due(&state, reports([leader, follower, None])), [], "a replica is not made yet");
    let mut without_pod = reports([follower, leader, None]);
    without_pod.remove(&PodId(3));
    assert_eq!(due(&state, without_pod), created, "an unreachable pod is not waited for");
    assert_eq!(due(&state, reports([leader, follower, follower])), created);
    state.apply(CatalogCommand::Created { volumes: vec![volume] }).unwrap();
    assert_eq!(due(&state, reports([leader, follower, follower])), []);
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
        let mut at_rest = false;
        for mood in moods.into_iter().chain(calm) {
            let all = state.pods.keys().copied();
            let (alive, unreachable): (BTreeSet<PodId>, BTreeSet<PodId>) =
                all.partition(|pod| pod.0 == 1 || mood[pod.0 as usize - 1]);
            let caught_up =
                state.catalog.iter().filter(|(_, pod)| alive.contains(pod)).map(|it| *it.0);
            let facts = Facts {
                group: group.clone(),
                alive: alive.clone(),
                unreachable,
                caught_up: caught_up.collect(),
                reports: BTreeMap::new(),
            };
            let actions = decide(&state, &facts);
            at_rest = actions.is_empty();
            for action in actions {
                match action {
                    Action::Propose(command) => {
                        state.apply(command).unwrap();
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
