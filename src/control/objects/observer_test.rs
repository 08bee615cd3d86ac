use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::control::command::{CatalogCommand, Deletion, NewNode};
use crate::control::objects::condition::Statement;
use crate::control::reports::{Heard, Table};
use crate::control::state::CatalogState;
use crate::testing::catalog_fixture::{cluster, create_on, node};
use crate::types::{AccessMode, Mono, PodId, mix64};
use crate::view::{DiskReport, MemberReport, MemberState, PodReport};

const PODS: u8 = 3;
/// A node without pods.
const FAR: &str = "far";

#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Delete(u8),
    /// All that is to be destroyed is.
    Destroyed,
    /// How the replicas are from now on, and which disks have failed.
    Become {
        salt: u64,
        failed: u8,
    },
    /// A pod falls silent, or is back.
    Silent(u8),
    /// The node without pods falls silent, or is back.
    FarSilent,
    /// A volume is published to it, and is taken from it in two steps.
    Publish(u8),
    Unpublish(u8),
    AccessIsSet(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4).prop_map(Step::Create),
        (0u8..4).prop_map(Step::Delete),
        Just(Step::Destroyed),
        (any::<u64>(), 0u8..8).prop_map(|(salt, failed)| Step::Become { salt, failed }),
        (1..=PODS).prop_map(Step::Silent),
        Just(Step::FarSilent),
        (0u8..4).prop_map(Step::Publish),
        (0u8..4).prop_map(Step::Unpublish),
        (0u8..4).prop_map(Step::AccessIsSet),
    ]
}

/// The pods of a cluster and what they report.
struct World {
    state: CatalogState,
    table: Table,
    now: Mono,
    salt: u64,
    failed: u8,
    silent: BTreeSet<u8>,
    far_is_silent: bool,
    reports: u64,
}

impl World {
    fn new() -> World {
        let mut state = cluster(PODS);
        let node = NewNode { name: FAR.to_owned(), ..node(0) };
        state.apply(1, CatalogCommand::ReportNode { node, has_no_device: true }).outcome.unwrap();
        World {
            state,
            table: Table::default(),
            now: Mono(1),
            salt: 1,
            failed: 0,
            silent: BTreeSet::new(),
            far_is_silent: false,
            reports: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Create(name) => {
                let mut command = create_on(&format!("v{name}"), &[1, 2, 3]);
                if let CatalogCommand::CreateVolume { volume, .. } = &mut command {
                    // Only closed ones are published.
                    volume.open = name % 2 == 1;
                }
                let _refused = self.state.apply(1, command).outcome;
            }
            Step::Delete(name) => {
                let (request_id, name) = (String::new(), format!("v{name}"));
                let found = self.state.volume_by_name(&name).map(|(volume, _)| volume);
                let Some(volume) = found else { return };
                let how = Deletion { force: true, ..Deletion::default() };
                let command = CatalogCommand::DeleteVolume { request_id, name, volume, how };
                self.state.apply(1, command).outcome.unwrap();
            }
            Step::Destroyed => {
                let view = crate::control::state::view::view(&self.state);
                for (disk, member) in view.destroyed {
                    let members = vec![member];
                    let command = CatalogCommand::Destroyed { disk, members };
                    self.state.apply(1, command).outcome.unwrap();
                }
            }
            Step::Become { salt, failed } => (self.salt, self.failed) = (*salt, *failed),
            Step::Silent(pod) => {
                if !self.silent.remove(pod) {
                    self.silent.insert(*pod);
                }
            }
            Step::FarSilent => self.far_is_silent = !self.far_is_silent,
            Step::Publish(name) | Step::Unpublish(name) | Step::AccessIsSet(name) => {
                let found = self.state.volume_by_name(&format!("v{name}"));
                let Some((volume, found)) = found else { return };
                let generation = found.access.wanted;
                let (request_id, node) = (String::new(), FAR.to_owned());
                let command = match step {
                    Step::Publish(_) => CatalogCommand::Publish {
                        request_id,
                        volume,
                        node,
                        mode: AccessMode::ReadWrite,
                        io_timeout_ms: None,
                        uid: Uuid([self.reports as u8; 16]),
                    },
                    Step::Unpublish(_) => CatalogCommand::Unpublish { request_id, volume, node },
                    _ => CatalogCommand::AccessIsSet { volume, generation, shards: 1 },
                };
                let _refused = self.state.apply(1, command).outcome;
            }
        }
    }

    /// Long enough for silence to be noticed, everybody else reports.
    fn report(&mut self) {
        self.now = self.now + Duration::from_secs(6);
        self.table.expect_nodes(self.now, || vec![FAR.to_owned()]);
        if !self.far_is_silent {
            self.table.hear_node(self.now, FAR, Duration::from_secs(3));
        }
        for pod in (1..=PODS).filter(|pod| !self.silent.contains(pod)) {
            let id = Uuid([pod; 16]);
            let here = self.state.shards.iter().flat_map(|(shard, it)| {
                let members = it.members.iter().filter(|member| member.disk == id);
                members.map(|member| (*shard, member.member))
            });
            let members = here.filter_map(|(shard, member)| {
                let state = match mix64(self.salt ^ member.0) % 5 {
                    0 | 1 => MemberState::Follower,
                    2 => MemberState::Leader,
                    3 => MemberState::Resyncing,
                    _ => return None,
                };
                Some(MemberReport { member, shard, state, ..MemberReport::default() })
            });
            let failed = (self.failed >> (pod - 1) & 1 == 1).then(|| "broken".to_owned());
            let members = members.collect();
            let disk = DiskReport { disk: id, failed, members, ..DiskReport::default() };
            let report = PodReport { pod: PodId(pod.into()), disks: vec![disk] };
            self.reports += 1;
            let heard = Heard { report, id: self.reports, is_open: true, ..Heard::default() };
            self.table.hear(self.now, PodId(pod.into()), heard);
        }
    }
}

/// Everything that is known of each object but the times.
fn known(observer: &Observer) -> BTreeMap<ObjectKey, (u64, String, Phase, Vec<Statement>)> {
    let ledger = observer.ledger();
    let all = ledger.keys().map(|key| {
        let it = ledger.get(key).expect("it has the key");
        let statements = it.conditions.iter().map(|it| it.statement.clone()).collect();
        (key.clone(), (it.revision, it.name.clone(), it.phase, statements))
    });
    all.collect()
}

/// A node without pods is missed when it has something. With the last attachment that is over.
#[test]
fn a_node_without_pods_is_unreachable_when_its_reports_are_missed() {
    let (mut world, mut observer) = (World::new(), Observer::new(7));
    let mut phase = |steps: &[Step]| {
        steps.iter().for_each(|step| world.step(step));
        world.report();
        observer.update(Source::new(&world.state), world.table.pods(world.now), world.now.0);
        observer.ledger().get(&ObjectKey::Node(FAR.to_owned())).expect("it is known").phase
    };
    assert_eq!(phase(&[Step::Create(0)]), Phase::Up);
    assert_eq!(phase(&[Step::FarSilent]), Phase::Up, "it has reported a short time ago");
    assert_eq!(phase(&[]), Phase::Unspecified, "nobody misses it");
    assert_eq!(phase(&[Step::Publish(0)]), Phase::Unreachable);
    assert_eq!(phase(&[Step::FarSilent]), Phase::Up);
    assert_eq!(phase(&[Step::FarSilent]), Phase::Up);
    assert_eq!(phase(&[]), Phase::Unreachable);
    assert_eq!(phase(&[Step::Unpublish(0)]), Phase::Unreachable, "it may still write");
    assert_eq!(phase(&[Step::AccessIsSet(0)]), Phase::Unspecified);
}

proptest! {
    /// Whoever follows all differences knows what somebody knows who looks at everything now, and
    /// whatever differs is told to those who watch.
    #[test]
    fn differences_lead_to_the_whole_and_are_told(
        steps in prop::collection::vec(prop::collection::vec(step(), 1..4), 1..12),
    ) {
        let (mut world, mut observer) = (World::new(), Observer::new(7));
        for at_once in steps {
            let (before, mark) = (known(&observer), observer.mark());
            at_once.iter().for_each(|step| world.step(step));
            world.report();
            let source = Source::new(&world.state);
            observer.update(source, world.table.pods(world.now), world.now.0);
            let mut fresh = Observer::new(8);
            fresh.update(source, world.table.pods(world.now), world.now.0);
            let now = known(&observer);
            prop_assert_eq!(&now, &known(&fresh));
            for kind in Kind::ALL {
                let counts = |of: &Observer| of.ledger().counts(kind).collect::<Vec<_>>();
                prop_assert_eq!(counts(&observer), counts(&fresh));
            }
            if mark.history != Uuid::default() {
                let told = observer.since(&mark).unwrap();
                let told: BTreeSet<ObjectKey> = told.map(|changed| changed.key.clone()).collect();
                for key in before.keys().chain(now.keys()) {
                    let differs = before.get(key) != now.get(key) && key.kind() != Kind::Shard;
                    prop_assert!(!differs || told.contains(key), "{:?} is not told", key);
                }
            }
            let again = observer.update(source, world.table.pods(world.now), 0);
            prop_assert!(!again, "nothing has changed");
        }
    }

    /// The histories in the state lead to the present conditions, also when leaders change and
    /// proposals are lost.
    #[test]
    fn histories_end_with_the_present(
        steps in prop::collection::vec((prop::collection::vec(step(), 1..4), 0u8..4), 1..12),
    ) {
        let (mut world, mut observer) = (World::new(), Observer::new(7));
        for (at_once, chance) in steps {
            at_once.iter().for_each(|step| world.step(step));
            world.report();
            if chance == 0 {
                // Another pod leads.
                observer = Observer::new(world.now.0);
            }
            observer.update(Source::new(&world.state), world.table.pods(world.now), world.now.0);
            if chance == 1 {
                let lost = observer.take_news(Source::new(&world.state), 2);
                observer.give_back(Source::new(&world.state), &lost);
            }
            loop {
                let seen = observer.take_news(Source::new(&world.state), 2);
                if seen.is_empty() {
                    break;
                }
                let before = world.state.revision();
                world.state.apply(1, CatalogCommand::RecordEvents { seen }).outcome.unwrap();
                prop_assert!(world.state.revision() > before, "it was news");
            }
            let source = Source::new(&world.state);
            let keys = observer.ledger().keys().filter(|key| has_history(key.kind()));
            for key in keys {
                let standing = observer.ledger().get(key).expect("it has the key");
                for seen in sightings(key.kind(), standing) {
                    prop_assert!(!source.is_news(&seen), "{:?} is not told", seen);
                }
            }
        }
    }
}
