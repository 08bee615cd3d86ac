//! A cluster whose nodes die, are cut off and come back, and controllers that end after any step.

use proptest::prelude::*;

use super::*;

const NODES: usize = 6;
const VOLUMES: usize = 3;
const TICK: Duration = Duration::from_secs(10);

/// How a node really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Up,
    Off,
    /// Silent in the catalog alone: its Lease is renewed, and others reach it.
    Silent,
    /// Kubernetes does not hear it, the catalog does.
    Unleased,
    /// Neither hears it, but other pods reach it.
    HalfCut,
}

#[derive(Clone, Debug)]
struct Real {
    truth: Truth,
    seen: Node,
    /// Times that it started.
    boots: u32,
}

struct World {
    nodes: Vec<Real>,
    now: Duration,
    last_lost: Option<Duration>,
    /// Shards without a majority: nothing is fenced.
    stuck: bool,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Turn(usize, Truth),
    /// A controller carries out so many steps, and ends.
    Control(usize),
    Stick(bool),
    Pass,
}

fn act() -> impl Strategy<Value = Act> {
    let truth = prop_oneof![
        Just(Truth::Up),
        Just(Truth::Off),
        Just(Truth::Silent),
        Just(Truth::Unleased),
        Just(Truth::HalfCut)
    ];
    prop_oneof![
        3 => (0..NODES, truth).prop_map(|(node, truth)| Act::Turn(node, truth)),
        6 => (0usize..5).prop_map(Act::Control),
        1 => any::<bool>().prop_map(Act::Stick),
        4 => Just(Act::Pass),
    ]
}

fn object(name: String) -> ObjectRef {
    ObjectRef { namespace: "ns".to_owned(), uid: format!("{name}-uid"), name }
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

impl Real {
    /// A node that has just started, with Pods that use its volumes.
    fn started(node: usize, boots: u32) -> Real {
        let volumes: Vec<Handle> = (0..VOLUMES).map(|it| format!("v-{node}-{it}")).collect();
        let attachment = |volume: &Handle| (object(format!("va-{volume}")), volume.clone());
        let pod = |name: String, volumes: &[Handle], others: &[&str]| UsingPod {
            object: object(name),
            volumes: volumes.iter().cloned().collect(),
            others: others.iter().map(|it| (*it).to_owned()).collect(),
        };
        let mut pods = vec![
            pod(format!("two-{node}"), &volumes[..2], &[]),
            pod(format!("plain-{node}"), &[], &[]),
            pod(format!("mixed-{node}"), &volumes[..1], &["nfs"]),
        ];
        pods.extend(volumes.iter().map(|it| pod(format!("p-{it}"), std::slice::from_ref(it), &[])));
        let seen = Node {
            boot_id: format!("boot-{boots}"),
            holds: volumes.iter().cloned().collect(),
            kube: Some(KubeNode {
                in_use: volumes.iter().cloned().collect(),
                lease_age: Some(Duration::ZERO),
                tainted: false,
            }),
            attachments: volumes.iter().map(attachment).collect(),
            pods,
            ..Node::default()
        };
        Real { truth: Truth::Up, seen, boots }
    }

    fn is_silent(&self) -> bool {
        matches!(self.truth, Truth::Off | Truth::Silent | Truth::HalfCut)
    }

    fn is_unleased(&self) -> bool {
        matches!(self.truth, Truth::Off | Truth::Unleased | Truth::HalfCut)
    }
}

impl World {
    fn new() -> World {
        let nodes = (0..NODES).map(|node| Real::started(node, 0)).collect();
        World { nodes, now: Duration::ZERO, last_lost: None, stuck: false }
    }

    fn look(&self) -> Seen {
        let mut seen =
            Seen { nodes: BTreeMap::new(), since_last: self.last_lost.map(|last| self.now - last) };
        for (node, real) in self.nodes.iter().enumerate() {
            seen.nodes.insert(name(node), real.seen.clone());
        }
        for suspect in suspects(&seen) {
            let node = (0..NODES).find(|node| name(*node) == suspect).expect("it is one of them");
            let is_off = self.nodes[node].truth == Truth::Off;
            let probes = match is_off {
                true => Probes { catalog: 3, catalog_failed: 2, ..Probes::default() },
                false => Probes { catalog: 3, catalog_failed: 2, reached: 1, ..Probes::default() },
            };
            seen.nodes.get_mut(&suspect).expect("it was seen").probes = Some(probes);
        }
        seen
    }

    fn at(&mut self, node: &str) -> &mut Real {
        let at = (0..NODES).find(|at| name(*at) == node).expect("a node that exists");
        &mut self.nodes[at]
    }

    fn carry_out(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (now, stuck) = (self.now, self.stuck);
        match step {
            Step::DeclareLost { node, boot_id } => {
                let lost = self.nodes.iter().filter(|real| real.seen.is_lost).count();
                prop_assert!((lost + 1) * 3 <= NODES);
                prop_assert!(self.last_lost.is_none_or(|last| now - last >= ONE_PER));
                let real = self.at(&node);
                prop_assert_eq!(real.truth, Truth::Off);
                // The catalog compares the boot.
                if boot_id == real.seen.boot_id {
                    real.seen.is_lost = true;
                    self.last_lost = Some(now);
                }
            }
            Step::Taint { node } => self.kube(&node, |kube| kube.tainted = true),
            Step::Untaint { node } => {
                prop_assert!(!self.at(&node).seen.is_lost);
                self.kube(&node, |kube| kube.tainted = false);
            }
            Step::RemoveInUse { node, volumes } => {
                let seen = &mut self.at(&node).seen;
                prop_assert!(seen.is_lost && seen.holds.is_disjoint(&volumes));
                self.kube(&node, |kube| kube.in_use.retain(|it| !volumes.contains(it)));
            }
            Step::DeleteAttachment { node, attachment } => {
                let seen = &mut self.at(&node).seen;
                let (_, volume) =
                    seen.attachments.iter().find(|(it, _)| *it == attachment).unwrap();
                prop_assert!(seen.is_lost && !seen.holds.contains(volume));
                seen.attachments.retain(|(it, _)| *it != attachment);
            }
            Step::DeletePod { node, pod } => {
                let seen = &mut self.at(&node).seen;
                let found = seen.pods.iter().find(|it| it.object == pod).unwrap();
                prop_assert!(seen.is_lost && !found.volumes.is_empty());
                prop_assert!(found.others.is_empty(), "it may write to storage of others");
                prop_assert!(seen.holds.is_disjoint(&found.volumes));
                seen.pods.retain(|it| it.object != pod);
            }
            Step::LeavePod { node, others, .. } => {
                prop_assert!(self.at(&node).seen.is_lost && others == ["nfs"]);
            }
            Step::Refuse { node, .. } => prop_assert_eq!(self.at(&node).truth, Truth::Off),
        }
        self.fence(stuck);
        Ok(())
    }

    fn kube(&mut self, node: &str, change: impl FnOnce(&mut KubeNode)) {
        change(self.at(node).seen.kube.as_mut().expect("no object is removed here"));
    }

    fn fence(&mut self, stuck: bool) {
        let lost = self.nodes.iter_mut().filter(|real| real.seen.is_lost && !stuck);
        lost.for_each(|real| drop(real.seen.holds.pop_first()));
    }

    fn turn(&mut self, node: usize, truth: Truth) {
        let real = &mut self.nodes[node];
        if real.truth == Truth::Off && truth != Truth::Off {
            // It starts anew: nothing of the boot before is left.
            let boots = real.boots + 1;
            let tainted = real.seen.kube.as_ref().is_some_and(|kube| kube.tainted);
            *real = Real::started(node, boots);
            real.seen.kube.as_mut().expect("it has one").tainted = tainted;
        }
        real.truth = truth;
    }

    /// Time passes: silence and Leases show.
    fn pass(&mut self) {
        self.now += TICK;
        for real in &mut self.nodes {
            real.seen.is_silent = real.is_silent();
            let unleased = real.is_unleased();
            if let Some(age) = real.seen.kube.as_mut().and_then(|kube| kube.lease_age.as_mut()) {
                *age = if unleased { *age + TICK } else { Duration::ZERO };
            }
        }
        self.fence(self.stuck);
    }

    fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        match act {
            Act::Turn(node, truth) => self.turn(node, truth),
            Act::Pass => self.pass(),
            Act::Stick(stuck) => self.stuck = stuck,
            Act::Control(steps) => {
                for step in decide(&self.look()).into_iter().take(steps) {
                    self.carry_out(step)?;
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Only what is off is declared lost, only what is fenced is taken from it, and in the end
    /// everything is taken from those that are lost, and nothing is left of it on the others.
    #[test]
    fn fail_over_is_careful_and_comes_to_its_end(acts in prop::collection::vec(act(), 0..80)) {
        let mut world = World::new();
        for act in acts {
            world.act(act)?;
        }
        world.stuck = false;
        // One node is off for long; the others are well.
        (1..NODES).for_each(|node| world.turn(node, Truth::Up));
        world.turn(0, Truth::Off);
        for _ in 0..100 {
            world.act(Act::Pass)?;
            world.act(Act::Control(1))?;
            world.act(Act::Control(9))?;
        }
        let first = &world.nodes[0].seen;
        prop_assert!(first.is_lost);
        prop_assert!(first.attachments.is_empty());
        let left: Vec<&str> = first.pods.iter().map(|it| it.object.name.as_str()).collect();
        prop_assert_eq!(left, ["plain-0", "mixed-0"], "they are left alone");
        let kube = first.kube.clone().unwrap();
        prop_assert!(kube.tainted && kube.in_use.is_empty());
        for real in &world.nodes[1..] {
            prop_assert!(!real.seen.is_lost && !real.seen.kube.as_ref().unwrap().tainted);
            prop_assert!(!real.seen.pods.is_empty());
        }
        let rest = decide(&world.look());
        prop_assert!(rest.len() == 1 && !rest[0].is_change(), "{:?}", rest);
    }
}

#[test]
fn one_controller_acts() {
    let nodes = gone(3).nodes;
    let controllers: BTreeSet<String> = [0, 2].map(name).into();
    let acting = |leader: Option<&str>| {
        let acting = (0..3).filter(|node| acts(&name(*node), leader, &controllers, &nodes));
        acting.collect::<Vec<usize>>()
    };
    assert_eq!(acting(Some("node-2")), [2]);
    // The leader has no controller beside it, and one controller is on a node that is silent.
    assert_eq!(acting(Some("node-1")), [2]);
    assert_eq!(acting(None), [2]);
}

/// A cluster of so many nodes, the first of which is gone.
fn gone(nodes: usize) -> Seen {
    let mut seen = Seen::default();
    for node in 0..nodes {
        seen.nodes.insert(name(node), Real::started(node, 0).seen);
    }
    let first = seen.nodes.get_mut(&name(0)).unwrap();
    first.is_silent = true;
    first.kube.as_mut().unwrap().lease_age = Some(LEASE_AGE_MAX);
    first.probes = Some(Probes { catalog: 3, catalog_failed: 2, ..Probes::default() });
    seen
}

#[test]
fn every_sign_is_needed() {
    let declared =
        |seen: &Seen| decide(seen).iter().any(|step| matches!(step, Step::DeclareLost { .. }));
    let with = |change: fn(&mut Node)| {
        let mut seen = gone(3);
        change(seen.nodes.get_mut(&name(0)).unwrap());
        declared(&seen)
    };
    assert!(declared(&gone(3)));
    assert!(with(|node| node.kube = None));
    assert!(!with(|node| node.is_silent = false));
    assert!(!with(|node| node.probes = None));
    assert!(!with(|node| node.probes.as_mut().unwrap().reached = 1));
    assert!(!with(|node| node.probes.as_mut().unwrap().catalog_failed = 1));
    assert!(!with(|node| node.kube.as_mut().unwrap().lease_age = Some(Duration::from_secs(11))));
    assert!(!with(|node| node.kube.as_mut().unwrap().lease_age = None));
    assert!(!with(|node| node.is_lost = true));
    assert!(!declared(&gone(2)), "half of the nodes is more than a third");
    let mut soon = gone(3);
    soon.since_last = Some(ONE_PER - Duration::from_secs(1));
    assert_eq!(decide(&soon), [Step::Refuse { node: name(0), why: Refusal::TooSoon }]);
}

#[test]
fn machines_that_were_taken_away_do_not_count() {
    let retire = |seen: &mut Seen, node: usize| {
        let node = seen.nodes.get_mut(&name(node)).unwrap();
        (node.kube, node.is_unused) = (None, true);
    };
    // One that nothing is attached to is not declared lost again.
    let mut seen = gone(3);
    retire(&mut seen, 0);
    assert_eq!((suspects(&seen), decide(&seen)), (vec![], vec![]));
    // Two of six that are lost and gone for good are no reason to refuse.
    let mut seen = gone(6);
    for node in [4, 5] {
        seen.nodes.get_mut(&name(node)).unwrap().is_lost = true;
        seen.nodes.get_mut(&name(node)).unwrap().kube = None;
    }
    let first = |seen: &Seen| decide(seen).remove(0);
    assert_eq!(first(&seen), Step::Refuse { node: name(0), why: Refusal::TooMany });
    retire(&mut seen, 4);
    retire(&mut seen, 5);
    assert!(matches!(first(&seen), Step::DeclareLost { .. }));
    // Nor do they make room: one of two nodes is more than a third.
    let mut seen = gone(3);
    retire(&mut seen, 2);
    assert_eq!(first(&seen), Step::Refuse { node: name(0), why: Refusal::TooMany });
}

#[test]
fn a_person_is_told_of_a_node_that_nobody_can_judge() {
    let with = |age_s, change: fn(&mut Probes)| {
        let mut seen = gone(3);
        let node = seen.nodes.get_mut(&name(0)).unwrap();
        let mut probes = Probes { catalog: 3, catalog_failed: 3, ..Probes::default() };
        change(&mut probes);
        node.probes = Some(probes);
        node.kube.as_mut().unwrap().lease_age = Some(Duration::from_secs(age_s));
        decide(&seen)
    };
    let refused = |why| vec![Step::Refuse { node: name(0), why }];
    let placeless = |it: &mut Probes| (it.is_placeless, it.catalog_failed) = (true, 0);
    assert_eq!(with(12, placeless), refused(Refusal::NoAddress));
    assert_eq!(with(11, placeless), []);
    // Perhaps a firewall has always hidden it.
    assert_eq!(with(12, |it| it.is_stranger = true), refused(Refusal::NeverReached));
    assert_eq!(with(12, |it| (it.is_stranger, it.reached) = (true, 1)), []);
    assert!(matches!(with(12, |_| {})[..], [Step::DeclareLost { .. }]));
}
