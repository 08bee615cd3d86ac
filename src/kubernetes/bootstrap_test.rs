//! Nodes that bootstrap a cluster, in every order, with crashes, lost records, and machines that
//! are installed anew in between.

use proptest::prelude::*;

use super::*;

const NODES: [&str; 4] = ["a", "b", "c", "d"];
/// So many nodes must have reported.
const LEAST: usize = 3;

/// What of a node survives a crash.
#[derive(Clone, Debug)]
struct Disk {
    uid: Uuid,
    prepared: Option<Uuid>,
    member: Option<Uuid>,
}

/// A node in the middle of a step: what it has read, or what it is about to do.
#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    Step(Step, u64),
    /// Its cluster is made, up to the last write.
    Making(Uuid),
}

#[derive(Debug)]
struct World {
    disks: Vec<Disk>,
    doing: Vec<Doing>,
    record: Option<Record>,
    version: u64,
    drawn: u8,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The node goes on by one atomic step. It does not see one of the expected nodes.
    Go(usize, Option<usize>),
    Crash(usize),
    /// New disks and a new directory.
    Reinstall(usize),
    LoseRecord,
}

/// What can happen to three nodes whose record may be lost, or to four of which each sees three at
/// least. Both at once is too much: whoever is not seen, and has not written down what it makes,
/// cannot be waited for.
fn acts(nodes: usize) -> impl Strategy<Value = Vec<Act>> {
    let absent = match nodes > LEAST {
        true => prop::option::of(0..nodes).boxed(),
        false => Just(None).boxed(),
    };
    let losses = u32::from(nodes == LEAST);
    let act = prop_oneof![
        20 => (0..nodes, absent).prop_map(|(node, absent)| Act::Go(node, absent)),
        3 => (0..nodes).prop_map(Act::Crash),
        1 => (0..nodes).prop_map(Act::Reinstall),
        losses => Just(Act::LoseRecord),
    ];
    prop::collection::vec(act, 0..120)
}

impl World {
    fn new(nodes: usize) -> World {
        let mut world = World {
            disks: Vec::new(),
            doing: vec![Doing::Nothing; nodes],
            record: None,
            version: 0,
            drawn: 0,
        };
        world.disks = (0..nodes).map(|_| world.new_disk()).collect();
        world
    }

    fn draw(&mut self) -> Uuid {
        self.drawn += 1;
        Uuid([self.drawn; 16])
    }

    fn new_disk(&mut self) -> Disk {
        Disk { uid: self.draw(), prepared: None, member: None }
    }

    fn own(&self, node: usize) -> Own {
        let Disk { uid, prepared, member } = self.disks[node].clone();
        let home = member.map_or(Home::Empty, |cluster| Home::Member { cluster });
        let api = format!("{}:7400", NODES[node]);
        Own {
            node: NODES[node].to_owned(),
            report: Report { uid, api, home },
            prepared,
            authorities: member.map(|it| it.to_string()).unwrap_or_default(),
        }
    }

    fn expected(&self, absent: Option<usize>) -> Expected {
        let seen = (0..self.disks.len()).filter(|node| absent != Some(*node));
        Expected { nodes: seen.map(|node| NODES[node].to_owned()).collect(), least: LEAST }
    }

    /// The clusters that nodes belong to now.
    fn clusters(&self) -> BTreeSet<Uuid> {
        self.disks.iter().filter_map(|disk| disk.member).collect()
    }

    fn members(&self) -> usize {
        self.disks.iter().filter(|disk| disk.member.is_some()).count()
    }

    fn swap(&mut self, record: Record, read: u64) {
        if read == self.version {
            self.record = Some(record);
            self.version += 1;
        }
    }

    fn go(&mut self, node: usize, absent: Option<usize>) {
        match std::mem::replace(&mut self.doing[node], Doing::Nothing) {
            Doing::Nothing => self.look(node, absent),
            Doing::Making(cluster) => {
                self.disks[node].member = Some(cluster);
            }
            Doing::Step(step, read) => match step {
                Step::Write(record) => self.swap(record, read),
                Step::Prepare => self.disks[node].prepared = Some(self.draw()),
                Step::Make { cluster } => {
                    assert_eq!(self.disks[node].prepared, Some(cluster));
                    self.doing[node] = Doing::Making(cluster);
                }
                Step::Join { cluster, authorities, .. } => {
                    assert_eq!(authorities, cluster.to_string());
                    // Somebody has to be there who can let it in.
                    if self.clusters().contains(&cluster) {
                        self.disks[node] = Disk {
                            prepared: None,
                            member: Some(cluster),
                            ..self.disks[node].clone()
                        };
                    }
                }
                Step::Serve | Step::Wait(_) => {}
            },
        }
    }

    fn look(&mut self, node: usize, absent: Option<usize>) {
        let own = self.own(node);
        let step = match decide(&own, self.record.as_ref(), None, &self.expected(absent)) {
            Step::Serve => match publish(&own, self.record.as_ref(), None).expect("one cluster") {
                Some(record) => Step::Write(record),
                None => Step::Serve,
            },
            step => step,
        };
        self.doing[node] = Doing::Step(step, self.version);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Go(node, absent) => self.go(node, absent),
            Act::Crash(node) => self.doing[node] = Doing::Nothing,
            Act::Reinstall(node) => {
                // The last node of a cluster is its data: nobody can join what is gone. Nor can a
                // program be in the middle of something on a machine that is installed anew.
                let is_last = self.disks[node].member.is_some() && self.members() == 1;
                let was_made = matches!(
                    self.record.as_ref().map(|record| &record.state),
                    Some(State::Made { .. })
                );
                if !(is_last && (was_made || self.record.is_none())) {
                    self.disks[node] = self.new_disk();
                    self.doing[node] = Doing::Nothing;
                }
            }
            Act::LoseRecord => {
                self.record = None;
                self.version += 1;
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..20 * self.disks.len() {
            (0..self.disks.len()).for_each(|node| self.go(node, None));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// However they take turns, crash and are installed anew, there is one cluster at most, and in
    /// the end all nodes are in it.
    #[test]
    fn one_cluster_is_made_and_all_join_it(
        (nodes, acts) in (3usize..=4).prop_flat_map(|nodes| (Just(nodes), acts(nodes)))
    ) {
        let mut world = World::new(nodes);
        for act in acts {
            world.act(act);
            prop_assert!(world.clusters().len() <= 1, "{world:?}");
        }
        world.settle();
        prop_assert_eq!(world.clusters().len(), 1, "{:?}", world);
        prop_assert_eq!(world.members(), nodes, "{:?}", world);
        let record = world.record.clone().expect("it is written down");
        let cluster = *world.clusters().first().unwrap();
        prop_assert_eq!(record.state, State::Made { cluster, authorities: cluster.to_string() });
    }
}

fn own(node: &str, home: Home) -> Own {
    let report = Report { uid: Uuid([1; 16]), api: format!("{node}:1"), home };
    Own { node: node.to_owned(), report, prepared: None, authorities: "pem".to_owned() }
}

fn record(reports: &[(&str, Home)]) -> Record {
    let reports = reports.iter().map(|(node, home)| ((*node).to_owned(), own(node, *home).report));
    Record { state: State::Empty, reports: reports.collect() }
}

fn expect(nodes: &[&str], least: usize) -> Expected {
    Expected { nodes: nodes.iter().map(|node| (*node).to_owned()).collect(), least }
}

#[test]
fn nobody_makes_a_cluster_beside_data_or_before_all_have_reported() {
    let (own_a, cluster) = (own("a", Home::Empty), Uuid([9; 16]));
    let three = expect(&["a", "b", "c"], 3);
    let all = [("a", Home::Empty), ("b", Home::Empty), ("c", Home::Empty)];
    let waits = |own: &Own, record: &Record, known, expected: &Expected| match decide(
        own,
        Some(record),
        known,
        expected,
    ) {
        Step::Wait(why) => why,
        step => panic!("{step:?}"),
    };
    assert_eq!(decide(&own_a, Some(&record(&all)), None, &three), Step::Prepare);
    for (home, why) in [
        (Home::Used { cluster }, Why::Used { node: "c".to_owned(), cluster }),
        (Home::Member { cluster }, Why::Used { node: "c".to_owned(), cluster }),
        (Home::Damaged, Why::Damaged("c".to_owned())),
    ] {
        let used = record(&[("a", Home::Empty), ("b", Home::Empty), ("c", home)]);
        assert_eq!(waits(&own_a, &used, None, &three), why);
        // Also when that node is none of the expected ones any more.
        assert_eq!(waits(&own_a, &used, None, &expect(&["a", "b"], 2)), why);
    }
    assert_eq!(waits(&own_a, &record(&all), Some(cluster), &three), Why::Known(cluster));
    let two = record(&all[..2]);
    assert_eq!(waits(&own_a, &two, None, &three), Why::Reports(vec!["c".to_owned()]));
    let missing = Why::TooFew { missing: 1 };
    assert_eq!(waits(&own_a, &two, None, &expect(&["a", "b"], 3)), missing);
    assert_eq!(
        waits(&own_a, &record(&all[..1]), None, &expect(&[], 0)),
        Why::TooFew { missing: 1 }
    );
    assert_eq!(
        waits(&own("b", Home::Empty), &record(&all), None, &three),
        Why::Turn("a".to_owned())
    );
    let d = [all[0], all[1], all[2], ("d", Home::Empty)];
    assert_eq!(waits(&own("d", Home::Empty), &record(&d), None, &three), Why::NotExpected);
}

#[test]
fn a_node_with_used_disks_joins_and_makes_nothing() {
    let cluster = Uuid([9; 16]);
    let used = own("a", Home::Used { cluster: Uuid([8; 16]) });
    let mut made = record(&[("a", used.report.home), ("b", Home::Member { cluster })]);
    made.state = State::Made { cluster, authorities: "pem".to_owned() };
    let join = Step::Join { cluster, authorities: "pem".to_owned(), pods: vec!["b:1".to_owned()] };
    assert_eq!(decide(&used, Some(&made), None, &expect(&["a"], 1)), join);
    let uid = Uuid([1; 16]);
    made.state = State::Initializing { node: "a".to_owned(), uid, cluster };
    let Step::Wait(Why::Used { .. }) = decide(&used, Some(&made), None, &expect(&["a"], 1)) else {
        panic!("it has data of another cluster");
    };
}

#[test]
fn a_node_of_another_cluster_overwrites_nothing() {
    let (mine, other) = (Uuid([1; 16]), Uuid([2; 16]));
    let member = own("a", Home::Member { cluster: mine });
    assert_eq!(decide(&member, None, None, &expect(&[], 3)), Step::Serve);
    let mut record = record(&[]);
    record.state = State::Made { cluster: other, authorities: String::new() };
    assert_eq!(
        publish(&member, Some(&record), None),
        Err(OtherCluster { own: mine, found: other })
    );
    let again = publish(&member, None, None).unwrap().unwrap();
    assert_eq!(again.state, State::Made { cluster: mine, authorities: "pem".to_owned() });
    assert_eq!(publish(&member, Some(&again), None), Ok(None));
}
