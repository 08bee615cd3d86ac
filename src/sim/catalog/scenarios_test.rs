//! Scenarios of the catalog. The events of its members are chosen here, the others are drawn from a
//! seed. Every checker runs all the time.

use std::time::Duration;

use super::call::What;
use super::pod::{ControlPod, Waiting};
use super::{Event, Host, NewVolume, Packet, node_of, pod_id, pod_uid};
use crate::control::command::CatalogCommand;
use crate::control::reconcile::MembershipChange;
use crate::level::NEWEST;
use crate::limits::{Budgets, LISTING_EXTENTS_MAX};
use crate::planted::{Mistake, assert_found};
use crate::replica::messages::ReadMode;
use crate::sim::disk::Loss;
use crate::sim::faults::Plan;
use crate::sim::shape::{ClientLoad, Shape};
use crate::sim::world::World;
use crate::types::MemberId;

/// Far longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(60);
const GOVERN_EVERY: Duration = Duration::from_millis(100);
const GOVERN: u64 = 1;

pub(super) struct Scenario {
    pub world: World,
}

impl Scenario {
    /// A cluster whose catalog has its full number of voters.
    pub fn new(seed: u64, pods: usize) -> Scenario {
        let mut scenario = Scenario::begin(seed, pods);
        scenario.until("the group is whole", |world| {
            let voters = crate::control::reconcile::voters_due(world.shape.pods);
            // A joint group still needs the first member.
            let is_whole = |pod: &ControlPod| {
                let group = pod.known().map(|known| &known.group);
                group.is_some_and(|group| group.voters.len() == voters && !group.joint)
            };
            world.catalog.pods.iter().filter(|pod| is_whole(pod)).count() >= voters
        });
        scenario
    }

    /// A cluster that starts.
    fn begin(seed: u64, pods: usize) -> Scenario {
        let shape = Shape {
            theme: None,
            further_volumes: 0,
            further_shards: None,
            handed_shards: 0,
            workloads: 0,
            wire: None,
            io_timeout: None,
            pods,
            disks_per_pod: 1,
            clients: 1,
            fronts: 1,
            shards: 1,
            blocks_per_shard: 20,
            second_volume: false,
            wal_bytes: 4 << 20,
            data_bytes: 64 << 20,
            is_tight: false,
            tiny: None,
            bad_disk: 0,
            log_tail_bytes: 1 << 20,
            dirty_cache_bytes: 0,
            bypass_bytes_min: usize::MAX,
            listing_extents: LISTING_EXTENTS_MAX,
            reads: ReadMode::Lease,
            leaders_follow_clients: true,
            budgets: Budgets::default(),
            load: ClientLoad {
                mostly_large: false,
                sweeps: false,
                large_extents: 1,
                rest: Duration::from_millis(100),
                depth: 6,
                writes_one_in: 2,
                is_hot: false,
                halves: false,
            },
        };
        let world = World::new(seed, shape, Plan::Mixed);
        world.kernel.borrow_mut().alarm(GOVERN_EVERY, GOVERN);
        Scenario { world }
    }

    pub fn step(&mut self) {
        let wrong = self.world.checks.borrow().wrong().cloned();
        assert_eq!(wrong, None);
        if self.world.step() == Some(GOVERN) {
            self.world.govern(true);
            self.world.kernel.borrow_mut().alarm(GOVERN_EVERY, GOVERN);
        }
    }

    pub fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        let deadline = self.world.kernel.borrow().now + PATIENCE;
        while !holds(&self.world) {
            self.step();
            let is_late = self.world.kernel.borrow().now >= deadline;
            assert!(!is_late, "waited until {what}: {}", self.describe());
        }
    }

    /// The state of every pod.
    fn describe(&self) -> String {
        let pod = |(host, pod): (Host, &ControlPod)| {
            let (up, joined) = (pod.is_up, pod.has_joined);
            format!(
                "\npod {host}: up {up}, joined {joined}, {:?}",
                pod.known().map(|known| { (known.role, known.applied_index, &known.group) })
            )
        };
        let pods: String = self.world.catalog.pods.iter().enumerate().map(pod).collect();
        let open = self.world.catalog.asks.iter().filter(|ask| !ask.is_done);
        let open: Vec<_> = open.map(|ask| (&ask.what, ask.attempt)).collect();
        format!("{pods}\n{open:?}")
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.world.kernel.borrow().now + time;
        while self.world.kernel.borrow().now < until {
            self.step();
        }
    }

    fn pod(&self, host: Host) -> &ControlPod {
        &self.world.catalog.pods[host]
    }

    pub fn leader(&self) -> Option<Host> {
        self.world.catalog.pods.iter().position(ControlPod::leads)
    }

    /// Asks for a volume; returns the number of the request.
    fn create(&mut self) -> usize {
        let (name, number) = ("new".to_owned(), Some(0));
        let new = NewVolume {
            name,
            number,
            shards: 2,
            blocks_per_shard: 16,
            closed: false,
            io_timeout_ms: 0,
        };
        self.world.catalog.ask(What::Create(new));
        self.world.catalog.asks.len() - 1
    }

    pub fn until_done(&mut self, ask: usize) {
        self.until("the request is done", |world| world.catalog.asks[ask].is_done);
    }

    pub fn restart(&mut self, host: Host) {
        self.world.crash(host, Loss::Power);
        self.world.start(host);
    }

    /// Everything becomes idle, with all members at the same entry.
    pub fn end(mut self) {
        for host in 0..self.world.shape.pods {
            if !self.world.is_up(host) {
                self.world.start(host);
            }
        }
        self.world.catalog.is_closing = true;
        let deadline = self.world.kernel.borrow().now + PATIENCE;
        while let Some(what) = self.world.catalog.unsettled() {
            self.step();
            assert!(self.world.kernel.borrow().now < deadline, "did not come to rest: {what}");
        }
    }
}

/// The leader has logged or executed a request, and dies before anybody is told.
fn leader_dies_with_a_request() {
    for seed in 1..=12 {
        // Three pods are left for the replicas.
        let mut scenario = Scenario::new(seed, 4);
        let ask = scenario.create();
        let proposes = |pod: &ControlPod| {
            pod.waiting.values().any(|waiting| matches!(waiting, Waiting::CatalogCommand(_)))
        };
        scenario.until("it is proposed", |world| world.catalog.pods.iter().any(proposes));
        let leader = scenario.world.catalog.pods.iter().position(proposes).unwrap();
        // In half of the runs, the other members have the entry already.
        scenario.run_for(Duration::from_micros(seed % 4 * 400));
        scenario.world.crash(leader, Loss::Power);
        scenario.until_done(ask);
        let view = scenario.world.catalog.view();
        let made = view.volumes.iter().filter(|volume| volume.name == "new").count();
        assert_eq!((made, view.volumes.last().unwrap().volume.0), (1, 2), "it is made once");
        scenario.end();
    }
}

#[test]
fn a_volume_is_made_once_when_the_leader_is_lost_meanwhile() {
    leader_dies_with_a_request();
}

/// The leader has executed a request, and its answer is lost.
fn answers_are_lost() {
    for seed in 1..=4 {
        let mut scenario = Scenario::new(seed, 3);
        let ask = scenario.create();
        scenario.until("it is carried out", |world| world.catalog.view().volumes.len() == 2);
        let is_answer =
            |event: &Event| matches!(event, Event::Arrive { packet: Packet::Reply(..), .. });
        scenario.world.catalog.events.retain(|_, event| !is_answer(event));
        scenario.until_done(ask);
        scenario.end();
    }
}

#[test]
fn a_request_whose_answer_was_lost_is_not_carried_out_again() {
    answers_are_lost();
}

#[test]
fn a_member_that_was_away_for_long_gets_the_state() {
    let mut scenario = Scenario::new(3, 3);
    let leader = scenario.leader().expect("a whole group has a leader");
    let away = (leader + 1) % 3;
    scenario.world.crash(away, Loss::Power);
    let last = |pod: &ControlPod| pod.known().map_or(0, |known| known.applied_index);
    let before = last(scenario.pod(leader));
    // More than two snapshots apart; after a restart, the disk has nothing but the log.
    let enough = before + 2 * scenario.world.catalog.kept.entries + 1;
    while last(scenario.pod(leader)) < enough {
        scenario.world.catalog.ask(What::DeleteNothing);
        let ask = scenario.world.catalog.asks.len() - 1;
        scenario.until_done(ask);
    }
    let others: Vec<Host> = (0..3).filter(|host| *host != away).collect();
    others.iter().for_each(|host| scenario.restart(*host));
    scenario.world.start(away);
    scenario.until("it has the state", |world| last(&world.catalog.pods[away]) >= enough);
    let database = scenario.pod(away).database.clone().unwrap();
    assert!(database.borrow().entry(before + 1).is_none(), "it did not come through the log");
    scenario.world.crash(others[0], Loss::Power);
    let ask = scenario.create();
    scenario.run_for(Duration::from_secs(6));
    assert!(!scenario.world.catalog.asks[ask].is_done, "two pods cannot hold three replicas");
    assert!(scenario.leader().is_some(), "it can lead together with another");
    scenario.world.start(others[0]);
    scenario.until_done(ask);
    scenario.end();
}

#[test]
fn without_a_majority_nothing_is_decided_and_io_goes_on() {
    let mut scenario = Scenario::new(5, 3);
    // Their databases fail: the members have stopped, and the pods still serve blocks.
    for host in [0, 1] {
        scenario.world.catalog.pods[host].member = None;
    }
    scenario.run_for(Duration::from_secs(3));
    let (ask, revision) = (scenario.create(), scenario.world.catalog.view().revision);
    let before = scenario.world.shared.history.operations;
    scenario.run_for(Duration::from_secs(20));
    assert!(!scenario.world.catalog.asks[ask].is_done, "nobody may decide");
    assert_eq!(scenario.world.catalog.view().revision, revision);
    assert!(scenario.world.shared.history.operations > before + 20, "I/O waits for the catalog");
    assert_eq!(scenario.leader(), None);
    scenario.restart(0);
    scenario.until_done(ask);
    scenario.restart(1);
    scenario.end();
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    for seed in 1..=4 {
        let mut scenario = Scenario::new(seed, 5);
        let leader = scenario.leader().expect("a whole group has a leader");
        let cut = (0..5).filter(|host| *host != leader).map(|other| (other, leader));
        scenario.world.kernel.borrow_mut().cut.extend(cut);
        scenario.until("another leads", |world| {
            let mut all = world.catalog.pods.iter().enumerate();
            all.any(|(host, pod)| host != leader && pod.leads())
        });
        let ask = scenario.create();
        scenario.until_done(ask);
        scenario.world.kernel.borrow_mut().cut.clear();
        scenario.end();
    }
}

/// A leader without followers has a change of the group in its log. It decides nothing else until
/// it knows the outcome.
#[test]
fn a_change_that_is_not_decided_is_known_to_be_in_flight() {
    let mut scenario = Scenario::new(2, 5);
    let leader = scenario.leader().expect("a whole group has a leader");
    let others = (0..5).filter(|host| *host != leader);
    scenario.world.kernel.borrow_mut().cut.extend(others.map(|other| (other, leader)));
    let unknown = MembershipChange::AddLearner(MemberId(99));
    let now = scenario.world.catalog.local_time(leader);
    let pod = &mut scenario.world.catalog.pods[leader];
    pod.member.as_mut().unwrap().change(now, &unknown);
    scenario.world.catalog.settle(leader);
    assert!(scenario.pod(leader).known().unwrap().group.changing);
    scenario.world.kernel.borrow_mut().cut.clear();
    // Either the change was never decided, or the added member is removed again.
    scenario.run_for(Duration::from_secs(10));
    scenario.end();
}

/// Learners are promoted, while somebody removes one of them from the list, in both orders. A
/// member off the list loses its log, so a voter must stay.
#[test]
fn a_member_that_becomes_a_voter_is_not_struck_from_the_list() {
    for (seed, promoted_first) in [(1, true), (2, false)] {
        let mut scenario = Scenario::begin(seed, 3);
        scenario.until("there are learners", |world| {
            let pods = || world.catalog.pods.iter();
            let leads =
                |pod: &ControlPod| pod.leads() && pod.known().unwrap().group.learners.len() == 2;
            pods().any(leads) && pods().all(|pod| pod.state().is_some())
        });
        let leader = scenario.leader().expect("it has learners");
        let now = scenario.world.catalog.local_time(leader);
        let member = scenario.world.catalog.pods[leader].member.as_mut().expect("it leads");
        let learners: Vec<MemberId> = member.known().group.learners.iter().copied().collect();
        let remove = CatalogCommand::RemoveCatalogMember { member: learners[0] };
        let promote = MembershipChange::Promote(learners);
        if promoted_first {
            member.change(now, &promote);
        }
        member.propose(now, 1, remove.clone());
        member.change(now, &promote);
        scenario.world.catalog.settle(leader);
        let check = |scenario: &Scenario| {
            let known = scenario.pod(leader).known().expect("it is up");
            let listed = &known.state.as_ref().expect("it leads").catalog;
            let lost: Vec<_> =
                known.group.voters.iter().filter(|voter| !listed.contains_key(voter)).collect();
            assert!(lost.is_empty(), "{lost:?} vote and are not in the list");
        };
        check(&scenario);
        scenario.run_for(Duration::from_secs(5));
        check(&scenario);
        scenario.end();
    }
}

/// Nor is a voter removed by somebody who does not know that it is one.
#[test]
fn a_voter_is_not_struck_from_the_list() {
    let mut scenario = Scenario::new(1, 3);
    let leader = scenario.leader().expect("a whole group has a leader");
    let now = scenario.world.catalog.local_time(leader);
    let member = scenario.world.catalog.pods[leader].member.as_mut().expect("it leads");
    let voter = *member.known().group.voters.last().expect("three");
    member.propose(now, 1, CatalogCommand::RemoveCatalogMember { member: voter });
    scenario.world.catalog.settle(leader);
    scenario.run_for(Duration::from_secs(5));
    assert!(scenario.pod(leader).state().expect("it leads").catalog.contains_key(&voter));
    scenario.end();
}

#[test]
fn all_pods_may_lose_their_power_while_the_group_is_made() {
    for seed in 1..=6 {
        let mut scenario = Scenario::new(seed, 4);
        for _ in 0..3 {
            (0..4).for_each(|host| scenario.restart(host));
            scenario.run_for(Duration::from_millis(seed * 700));
        }
        scenario.end();
    }
}

/// A disk was moved. Its old pod died with a registration in flight, which arrives after the
/// registration of the new pod.
fn registration_comes_late() {
    for seed in 1..=4 {
        let mut scenario = Scenario::new(seed, 3);
        let leader = scenario.leader().expect("a whole group has a leader");
        let disk = scenario.pod(1).disks[0].clone();
        let id = disk.disk;
        let place = |world: &World| {
            let mut disks = world.catalog.view().disks.iter();
            disks.find(|disk| disk.disk == id).map(|disk| disk.pod)
        };
        scenario.until("its pod has registered", |world| place(world) == Some(pod_id(1)));
        let addresses = scenario.pod(0).addresses.expect("every pod has an address");
        let (pod, uid, node, disks) = (pod_id(0), pod_uid(0), node_of(0), vec![disk]);
        let late = CatalogCommand::Register { pod, uid, addresses, node, newest: NEWEST, disks };
        let now = scenario.world.catalog.local_time(leader);
        let pod = &mut scenario.world.catalog.pods[leader];
        pod.member.as_mut().expect("it leads").propose(now, 1, late);
        scenario.world.catalog.settle(leader);
        scenario.until("it is carried out", |world| place(world) == Some(pod_id(0)));
        scenario.until("the pod notices", |world| place(world) == Some(pod_id(1)));
        scenario.end();
    }
}

#[test]
fn a_registration_that_is_carried_out_late_is_noticed_by_the_pod_that_has_the_disk() {
    registration_comes_late();
}

/// A copy of a disk appears in another pod while the original is unreachable, and all pods that
/// could know have just started.
#[test]
fn a_copy_of_a_disk_does_not_take_over_from_the_original() {
    let mut scenario = Scenario::new(1, 3);
    let copy = scenario.pod(1).disks[0].clone();
    let id = copy.disk;
    let place = |world: &World| {
        let mut disks = world.catalog.view().disks.iter();
        disks.find(|disk| disk.disk == id).map(|disk| disk.pod)
    };
    scenario.until("its pod has registered", |world| place(world) == Some(pod_id(1)));
    scenario.world.crash(1, Loss::Power);
    scenario.restart(0);
    scenario.restart(2);
    let life = scenario.pod(0).life;
    scenario.world.catalog.ask(What::Register { host: 0, life, disks: vec![copy] });
    scenario.run_for(Duration::from_secs(15));
    assert_eq!(place(&scenario.world), Some(pod_id(1)), "its pod may be back at any time");
    scenario.world.start(1);
    scenario.run_for(Duration::from_secs(40));
    assert_eq!(place(&scenario.world), Some(pod_id(1)), "its pod uses it");
    // The person who made the copy removes it again.
    scenario.restart(0);
    scenario.end();
}

#[test]
fn mistakes_in_the_catalog_are_found() {
    assert_found(Mistake::RegistersOnce, registration_comes_late);
    assert_found(Mistake::CatalogMemberReused, leader_dies_with_a_request);
    assert_found(Mistake::CatalogLearnerEarly, leader_dies_with_a_request);
    assert_found(Mistake::CatalogAnswersEarly, leader_dies_with_a_request);
    assert_found(Mistake::CatalogRequestTwice, answers_are_lost);
}
