//! The leader of the catalog is killed again and again, in the middle of operations of every kind.
//! The same request, repeated elsewhere, has one result, and leaves nothing behind.
//!
//! `HOLDFAST_LEADER_KILLS=50` kills more often, at other moments.
//!
//! Each pod is on a machine of its own, a network namespace: the test needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use holdfast::cli::client::Client;
use holdfast::control::proto::{
    AccessMode, ClassSpec, CreateClassRequest, CreateTokenRequest, CreateVolumeRequest,
    DeclareLostRequest, DeleteClassRequest, DeleteVolumeRequest, GetClassRequest, PublishRequest,
    UndeleteVolumeRequest, UnpublishRequest, UpdateClassRequest, UpdateVolumeRequest, VolumeSpec,
};
use holdfast::types::mix64;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::{Code, Status};

use support::fleet::{Fleet, Place, name, number};
use support::load::{Load, verify};
use support::wait_until;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Of every volume but those that grow.
const SIZE: u64 = 64 * MIB;
const GROWN: u64 = 9 * GIB;
const REPLICAS: u64 = 3;
/// Of the volumes here: it promises what it likes.
const CLASS: &str = "thin";
/// Has no disk, and the load uses it.
const FRONT: usize = 6;
/// How often all moments are tried, until every kind of request was in the middle of it.
const PASSES_MAX: usize = 3;
/// Is declared lost.
const LOST: &str = "w7";
const PLACES: [Place; 7] = [
    Place { node: "w1", zone: "a", has_disk: true },
    Place { node: "w2", zone: "a", has_disk: true },
    Place { node: "w3", zone: "b", has_disk: true },
    Place { node: "w4", zone: "b", has_disk: true },
    Place { node: "w5", zone: "c", has_disk: true },
    Place { node: "w6", zone: "a", has_disk: false },
    Place { node: LOST, zone: "b", has_disk: false },
];
/// When the leader is killed: this part of the time that the operations take without that.
const MOMENTS: [f64; 7] = [0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9];
/// In every second round the leader is cut off for so long before it is killed: its log then has
/// entries that no other has.
const ALONE_FOR: Duration = Duration::from_millis(150);

fn moments() -> Vec<f64> {
    let count = std::env::var("HOLDFAST_LEADER_KILLS").map(|count| count.parse().unwrap());
    let drawn = |number: u64| (mix64(number) % 100) as f64 / 100.0;
    let more = (MOMENTS.len() as u64..count.unwrap_or(0)).map(drawn);
    MOMENTS.into_iter().chain(more).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Create,
    Grow,
    Publish,
    Unpublish,
    DeclareLost,
    Delete,
    Undelete,
    Destroy,
    CreateToken,
    CreateClass,
    UpdateClass,
    DeleteClass,
}

use Operation::*;

const ALL: [Operation; 12] = [
    Create,
    Grow,
    Publish,
    Unpublish,
    DeclareLost,
    Delete,
    Undelete,
    Destroy,
    CreateToken,
    CreateClass,
    UpdateClass,
    DeleteClass,
];

impl Operation {
    /// Of the object that it is about, in a round.
    fn object(self, round: usize) -> String {
        format!("{self:?}-{round}").to_lowercase()
    }

    /// The volumes that it needs.
    fn needs_volume(self) -> bool {
        matches!(self, Grow | Publish | Unpublish | DeclareLost | Delete | Undelete | Destroy)
    }

    fn needs_class(self) -> bool {
        matches!(self, UpdateClass | DeleteClass)
    }

    /// The event that tells of it, with the kind of its object.
    fn event(self) -> Option<(&'static str, &'static str)> {
        match self {
            Create => Some(("volume", "VolumeCreated")),
            Grow => Some(("volume", "GrowthAsked")),
            Publish => Some(("volume", "Published")),
            Unpublish | DeclareLost => Some(("volume", "Unpublished")),
            Delete => Some(("volume", "Deleted")),
            Undelete => Some(("volume", "Undeleted")),
            Destroy => Some(("volume", "DestructionBegun")),
            CreateClass => Some(("class", "ClassCreated")),
            UpdateClass => Some(("class", "ClassChanged")),
            DeleteClass => Some(("class", "ClassDeleted")),
            // An event of the cluster.
            CreateToken => None,
        }
    }

    /// The node that has its volume, before.
    fn holder(self) -> Option<&'static str> {
        match self {
            Unpublish => Some("w1"),
            DeclareLost => Some(LOST),
            _ => None,
        }
    }
}

fn spec(percent: u32) -> ClassSpec {
    let failure_domain = "node".to_owned();
    let (overcommit_percent, replicas) = (percent, REPLICAS as u32);
    ClassSpec { replicas, failure_domain, overcommit_percent, ..ClassSpec::default() }
}

fn volume(name: String, closed: bool, request_id: String) -> CreateVolumeRequest {
    let spec = VolumeSpec { size_bytes: SIZE, class: CLASS.to_owned(), replicas: 0, closed };
    CreateVolumeRequest { name, spec: Some(spec), request_id, ..CreateVolumeRequest::default() }
}

/// One request, as often as it is made.
#[derive(Clone, Debug)]
struct Ask {
    operation: Operation,
    object: String,
    request_id: String,
    boot_id: String,
}

impl Ask {
    fn new(operation: Operation, round: usize, boot_id: &str) -> Ask {
        let object = operation.object(round);
        let request_id = format!("request-{object}");
        Ask { operation, object, request_id, boot_id: boot_id.to_owned() }
    }

    /// Asks a pod. Returns what identifies the result.
    async fn send(self, client: &Client) -> Result<String, Status> {
        let Ask { operation, object: name, request_id, boot_id } = self;
        let uid = |meta: Option<holdfast::control::proto::Meta>| meta.unwrap_or_default().uid;
        match operation {
            Create => {
                let made = client.volumes().create(volume(name, false, request_id)).await?;
                Ok(uid(made.into_inner().meta))
            }
            Grow => {
                let size_bytes = GROWN;
                let grow =
                    UpdateVolumeRequest { name, request_id, size_bytes, ..Default::default() };
                Ok(uid(client.volumes().update(grow).await?.into_inner().meta))
            }
            Publish => {
                let (node, mode) = ("w6".to_owned(), AccessMode::ReadWrite.into());
                let (volume, rest) = (name, PublishRequest::default());
                let publish = PublishRequest { volume, node, mode, request_id, ..rest };
                Ok(uid(client.attachments().publish(publish).await?.into_inner().meta))
            }
            Unpublish => {
                let node = "w1".to_owned();
                let unpublish = UnpublishRequest {
                    volume: name,
                    node,
                    request_id,
                    ..UnpublishRequest::default()
                };
                client.attachments().unpublish(unpublish).await.map(|_| String::new())
            }
            DeclareLost => {
                let lost = DeclareLostRequest { name: LOST.to_owned(), boot_id };
                client.nodes().declare_lost(lost).await.map(|_| String::new())
            }
            Delete => {
                let delete = DeleteVolumeRequest { name, request_id, ..Default::default() };
                client.volumes().delete(delete).await.map(|_| String::new())
            }
            Undelete => {
                let undelete = UndeleteVolumeRequest { name, request_id, uid: String::new() };
                Ok(uid(client.volumes().undelete(undelete).await?.into_inner().meta))
            }
            Destroy => {
                let retention_s = Some(0);
                let delete =
                    DeleteVolumeRequest { name, request_id, retention_s, ..Default::default() };
                client.volumes().delete(delete).await.map(|_| String::new())
            }
            CreateToken => {
                let role = format!("viewer/{name}");
                let create = CreateTokenRequest { role, lifetime_s: 3600, request_id };
                Ok(client.credentials().create_token(create).await?.into_inner().text)
            }
            CreateClass => {
                let spec = Some(spec(300));
                let create = CreateClassRequest { name, spec, request_id, ..Default::default() };
                Ok(uid(client.classes().create(create).await?.into_inner().meta))
            }
            UpdateClass => {
                let (spec, revision) = (Some(spec(400)), 0);
                let labels = Default::default();
                let update = UpdateClassRequest { name, revision, spec, labels, request_id };
                Ok(uid(client.classes().update(update).await?.into_inner().meta))
            }
            DeleteClass => {
                let delete = DeleteClassRequest { name, request_id };
                client.classes().delete(delete).await.map(|_| String::new())
            }
        }
    }
}

struct Test {
    fleet: Fleet,
    runtime: Runtime,
    /// Attachment of the load's volume.
    attachment: String,
    boot_id: String,
}

/// What happened to the first request of each kind.
#[derive(Debug, Default)]
struct Seen {
    /// It had no answer when the leader was killed.
    unanswered: BTreeMap<Operation, usize>,
    /// It was never answered, or with an error that says so.
    without_answer: usize,
}

impl Test {
    fn start() -> Test {
        let fleet = Fleet::start("leader_killed", &PLACES);
        fleet.must(&["class", "create", CLASS, "--overcommit", "100000"]);
        fleet.must(&["volume", "create", "load", "--size", "64MiB", "--class", CLASS, "--closed"]);
        let published = fleet.must(&["attachment", "publish", "load", "w6"]);
        let node = fleet.must(&["node", "show", LOST]);
        let boot_id = node["status"]["boot_id"].as_str().expect("a node has a boot").to_owned();
        let runtime = Runtime::new().expect("start threads");
        Test { fleet, runtime, attachment: name(&published).to_owned(), boot_id }
    }

    fn client(&self, pod: usize) -> Client {
        let _inside = self.runtime.enter();
        Client::new(&self.fleet.endpoint(pod)).expect("an endpoint")
    }

    /// Makes what the operations of a round are about.
    fn prepare(&self, round: usize) {
        let client = self.client(1);
        self.runtime.block_on(async {
            for operation in ALL {
                let object = operation.object(round);
                if operation.needs_class() {
                    let (name, spec) = (object.clone(), Some(spec(250)));
                    let create = CreateClassRequest { name, spec, ..Default::default() };
                    client.classes().create(create).await.expect("a class is made");
                }
                if operation.needs_volume() {
                    let closed = matches!(operation, Publish | Unpublish | DeclareLost);
                    let create = volume(object.clone(), closed, String::new());
                    client.volumes().create(create).await.expect("a volume is made");
                }
                if let Some(holder) = operation.holder() {
                    let (volume, node) = (object.clone(), holder.to_owned());
                    let publish = PublishRequest { volume, node, ..Default::default() };
                    client.attachments().publish(publish).await.expect("a volume is published");
                }
                if operation == Undelete {
                    let delete = DeleteVolumeRequest { name: object, ..Default::default() };
                    client.volumes().delete(delete).await.expect("a volume is deleted");
                }
            }
        });
        wait_until("the volumes of a round can be used", || {
            self.fleet.list(&["volume", "list", "--phase", "creating"]).is_empty()
        });
    }

    /// Asks for everything at once, through pods that do not lead, and returns how long that takes.
    /// `kill`: when the leader dies.
    fn ask_all(&mut self, round: usize, kill: Option<Duration>, seen: &mut Seen) -> Duration {
        let leader = self.fleet.catalog_leader();
        let vias: Vec<usize> = (1..=PLACES.len()).filter(|pod| *pod != leader).collect();
        let mut asked = JoinSet::new();
        for (number, operation) in ALL.into_iter().enumerate() {
            let ask = Ask::new(operation, round, &self.boot_id);
            let client = self.client(vias[(number + round) % vias.len()]);
            let send = async move { (operation, ask.send(&client).await) };
            asked.spawn_on(send, self.runtime.handle());
        }
        let (mut first, begin) = (BTreeMap::new(), Instant::now());
        if let Some(after) = kill {
            self.runtime.block_on(async {
                let mut over = std::pin::pin!(sleep(after));
                loop {
                    tokio::select! {
                        () = &mut over => return,
                        Some(answer) = asked.join_next() => {
                            let (operation, answer) = answer.expect("it does not panic");
                            first.insert(operation, answer);
                        }
                    }
                }
            });
            println!("round {round}: the end of pod {leader} comes after {:?}", begin.elapsed());
            if round.is_multiple_of(2) {
                self.fleet.network.cut(leader);
                std::thread::sleep(ALONE_FOR);
            }
            self.fleet.kill(leader);
            self.fleet.network.mend(leader);
            for operation in ALL.into_iter().filter(|it| !first.contains_key(it)) {
                *seen.unanswered.entry(operation).or_default() += 1;
            }
            self.fleet.serve(leader);
        }
        while let Some(answer) = self.runtime.block_on(asked.join_next()) {
            let (operation, answer) = answer.expect("it does not panic");
            first.insert(operation, answer);
        }
        let takes = begin.elapsed();
        for (number, operation) in ALL.into_iter().enumerate() {
            let before = match &first[&operation] {
                Ok(answer) => Some(answer.clone()),
                Err(status) => {
                    println!("round {round}: {operation:?}: {}", status.message());
                    assert!(is_unclear(status), "{operation:?}: {status:?}");
                    seen.without_answer += 1;
                    None
                }
            };
            let again = self.again(operation, round, vias[(number + 1) % vias.len()]);
            assert!(before.is_none_or(|before| before == again), "{operation:?} was done twice");
        }
        takes
    }

    /// The same request until it has an answer.
    fn again(&self, operation: Operation, round: usize, via: usize) -> String {
        let client = self.client(via);
        let mut found = None;
        wait_until("a repeated request has an answer", || {
            let ask = Ask::new(operation, round, &self.boot_id);
            match self.runtime.block_on(ask.send(&client)) {
                Ok(answer) => found = Some(answer),
                Err(status) => assert!(is_unclear(&status), "{operation:?}: {status:?}"),
            }
            found.is_some()
        });
        found.expect("it has an answer")
    }

    /// The state after a round, and nothing else.
    fn check(&self, round: usize) {
        let object = |operation: Operation| operation.object(round);
        let kept = ALL.into_iter().filter(|it| it.needs_volume() && *it != Destroy);
        let mut volumes: BTreeSet<String> = kept.map(object).collect();
        volumes.extend(["load".to_owned(), object(Create)]);
        let found = |kind: &str| {
            let listed = self.fleet.list(&[kind, "list"]);
            let names: Vec<String> = listed.iter().map(|it| name(it).to_owned()).collect();
            let unique: BTreeSet<String> = names.iter().cloned().collect();
            assert_eq!(names.len(), unique.len(), "{kind}s have names of their own");
            unique
        };
        wait_until("the destroyed volume is gone", || found("volume") == volumes);
        let phase = |operation: Operation| {
            self.fleet.must(&["volume", "show", &object(operation)])["status"]["phase"].clone()
        };
        wait_until("all others are ready", || {
            [Create, Grow, Publish, Unpublish, DeclareLost, Undelete]
                .into_iter()
                .all(|operation| phase(operation) == "ready")
        });
        assert_eq!(phase(Delete), "retained");
        let grown = || self.fleet.must(&["volume", "show", &object(Grow)]);
        wait_until("the volume has grown", || number(&grown()["status"]["size_bytes"]) == GROWN);

        let attachments = || {
            let listed = self.fleet.list(&["attachment", "list"]);
            let of =
                |it: &Value| [&it["spec"]["volume"], &it["spec"]["node"]].map(Value::to_string);
            listed.iter().map(of).collect::<Vec<_>>()
        };
        let mut wanted = [[object(Publish), "w6".into()], ["load".into(), "w6".into()]]
            .map(|pair: [String; 2]| pair.map(|word| format!("{word:?}")));
        wanted.sort();
        wait_until("nobody has what was given back", || {
            let mut found = attachments();
            found.sort();
            found == wanted
        });
        assert_eq!(self.fleet.must(&["node", "show", LOST])["status"]["lost"], true);
        self.check_classes_and_tokens(round);
        self.check_history(round);
        self.wait_provisioned((volumes.len() as u64 - 1) * SIZE + GROWN);
    }

    /// Each operation happened once.
    fn check_history(&self, round: usize) {
        for operation in ALL {
            let Some((kind, reason)) = operation.event() else { continue };
            let of = format!("{kind}/{}", operation.object(round));
            let events = self.fleet.list(&["event", "list", "--for", &of]);
            let told = events.iter().filter(|event| event["reason"] == reason);
            let count: u64 = told.map(|event| number(&event["count"])).sum();
            assert_eq!(count, 1, "{reason} of {of}: {events:?}");
        }
    }

    fn check_classes_and_tokens(&self, round: usize) {
        let listed = self.fleet.list(&["class", "list"]);
        let of_round = format!("-{round}");
        let classes = listed.iter().map(name).filter(|it| it.ends_with(&of_round));
        let classes: BTreeSet<String> = classes.map(str::to_owned).collect();
        assert_eq!(classes, [CreateClass, UpdateClass].map(|it| it.object(round)).into());
        let (client, name) = (self.client(2), UpdateClass.object(round));
        let updated = self.runtime.block_on(client.classes().get(GetClassRequest { name }));
        let spec = updated.expect("it is there").into_inner().spec.expect("it has one");
        assert_eq!(spec.overcommit_percent, 400);
        let tokens = self.fleet.list(&["token", "list"]);
        let kind = format!("role:viewer/{}", CreateToken.object(round));
        let made = tokens.iter().filter(|token| token["kind"] == kind.as_str());
        assert_eq!(made.count(), 1, "one token: {tokens:?}");
    }

    /// Waits until disks promise exactly what volumes of these sizes ask for.
    fn wait_provisioned(&self, bytes: u64) {
        wait_until("what is promised is what volumes ask for", || {
            let capacity = self.fleet.must(&["class", "capacity", CLASS]);
            number(&capacity[0]["provisioned_bytes"]) == bytes * REPLICAS
        });
    }

    /// Takes away what a round has made.
    fn clean(&self, round: usize) {
        let client = self.client(3);
        self.fleet.must(&["node", "clear-lost", LOST]);
        for operation in ALL.into_iter().filter(|it| it.needs_volume() || *it == Create) {
            let name = operation.object(round);
            let delete = DeleteVolumeRequest {
                name,
                force: operation != Delete,
                retention_s: Some(0),
                purge: operation == Delete,
                ..Default::default()
            };
            let deleted = self.runtime.block_on(client.volumes().delete(delete));
            let is_gone = |status: &Status| operation == Destroy && status.code() == Code::NotFound;
            assert!(deleted.as_ref().err().is_none_or(is_gone), "{operation:?}: {deleted:?}");
        }
        self.wait_provisioned(SIZE);
    }
}

/// An error that does not tell whether the request was carried out.
fn is_unclear(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
}

#[test]
fn a_request_is_carried_out_once_while_the_catalogs_leader_is_killed() {
    let mut test = Test::start();
    let load = Load::start(test.fleet.front(FRONT), &test.attachment, 16 * MIB);
    let mut seen = Seen::default();
    test.prepare(0);
    let takes = test.ask_all(0, None, &mut seen);
    assert_eq!(seen.without_answer, 0, "nobody was killed");
    test.check(0);
    test.clean(0);
    let mut round = 0;
    for part in (0..PASSES_MAX).flat_map(|_| moments()) {
        // A first pass of all moments; more only for kinds that none of them has caught.
        if round >= moments().len() && seen.unanswered.len() == ALL.len() {
            break;
        }
        round += 1;
        test.prepare(round);
        let mut at_once = Seen::default();
        // At the first moment, requests may not even have reached the leader.
        let seen = if part > 0.0 { &mut seen } else { &mut at_once };
        test.ask_all(round, Some(takes.mul_f64(part)), seen);
        load.wait_progress();
        test.fleet.wait_well();
        test.check(round);
        test.clean(round);
    }
    println!("unanswered when the leader was killed: {:?}", seen.unanswered);
    println!("of those, {} without an answer later", seen.without_answer);
    assert_eq!(seen.unanswered.len(), ALL.len(), "every kind was in the middle of it");
    let done = load.end();
    println!("{} reconnects, longest pause {:?}", done.reconnects, done.longest_pause);
    verify(&mut test.fleet.front(FRONT).connect_soon(&test.attachment), &done.written);
}
