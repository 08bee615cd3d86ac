//! The control plane of the simulated cluster. Pods run the production member of the catalog, if
//! the catalog says so. The network loses, repeats and reorders packets; databases outlive their
//! pods. This module does the work of [`crate::control::tasks`] and the API, which need a runtime,
//! in virtual time with the same decisions.

mod asks;
mod call;
#[cfg(test)]
mod growth_test;
#[cfg(test)]
mod helped_test;
mod network;
mod orders;
mod pod;
#[cfg(test)]
mod recovery_test;
mod rounds;
#[cfg(test)]
mod scenarios_test;
mod store;
mod tasks;
#[cfg(test)]
mod upgrade_test;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::control::catalog_member::{Kept, TICK_EVERY};
use crate::control::command::{Addresses, CatalogCommand, NewDisk, NewNode};
use crate::control::membership::first;
use crate::control::state::{CatalogState, NewCluster};
use crate::control::sync::resolve::exported;
use crate::control::sync::wants::KEPT_FOR;
use crate::level::{Levels, NEWEST};
use crate::sim::catalog::call::Ask;
pub use crate::sim::catalog::call::{Ended, NewVolume, Round, What};
use crate::sim::catalog::network::{Packet, fate};
pub use crate::sim::catalog::orders::{Order, Told};
use crate::sim::catalog::pod::ControlPod;
use crate::sim::catalog::store::Database;
use crate::sim::checks::catalog::CatalogCheck;
use crate::sim::kernel::Kernel;
use crate::sim::names::{DiskNumber, Host, disk_id, host_of, pod_id};
use crate::sim::rng::Rng;
use crate::types::{AttachmentId, Generation, MemberId, Mono, ShardId, Uuid, VolumeId};
use crate::view::{ClusterView, PodReport};
use crate::worker::Resolution;

/// Alarms above this number belong to the catalog.
pub const CATALOG_ALARMS: u64 = 1 << 48;
/// Limit for packets that wait for a stopped process.
const HELD_MAX: usize = 256;

/// An event at a moment of virtual time.
enum Event {
    /// A pod's member ticks and its tasks run, in this life of the pod.
    Tick(Host, u64),
    Arrive {
        from: Host,
        to: Host,
        packet: Packet,
    },
    /// The sender of a packet gives up.
    Fail {
        from: Host,
        to: Host,
        packet: Packet,
    },
    /// Starts the next attempt, unless there was a newer one.
    Ask(usize, u64),
    /// A late copy of a request arrives.
    Copy(usize),
    /// A request that changes little; repeated at this interval.
    Chatter(Duration),
}

/// The catalog's view of the pods.
pub struct Pods<'a> {
    pub is_stopped: &'a dyn Fn(Host) -> bool,
    pub report: &'a dyn Fn(Host) -> Option<PodReport>,
}

impl Pods<'_> {
    fn is_stopped(&self, host: Host) -> bool {
        (self.is_stopped)(host)
    }
}

/// See the module.
pub struct Catalog {
    kernel: Rc<RefCell<Kernel>>,
    rng: Rng,
    kept: Kept,
    /// Clocks stay within the limits of leases.
    clocks_are_good: bool,
    pods: Vec<ControlPod>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    asks: Vec<Ask>,
    /// The lives of each pod with which its machine began another boot; `None`: nobody asks for
    /// boots.
    boots: Option<Vec<Vec<u64>>>,
    /// Events and rounds that the world has not taken yet.
    pub ended: Vec<Ended>,
    pub rounds: Vec<Round>,
    /// The run ends: new volumes get no clients.
    pub is_closing: bool,
    check: CatalogCheck,
}

impl Catalog {
    /// A cluster of these pods, without disks. The first pod has the only catalog member.
    pub fn new(
        kernel: Rc<RefCell<Kernel>>,
        seed: u64,
        cluster: Uuid,
        addresses: impl Iterator<Item = Addresses>,
        clocks_are_good: bool,
    ) -> Catalog {
        let mut rng = Rng::new(seed ^ 0xca7a);
        let addresses: Vec<Addresses> = addresses.collect();
        let mut state = CatalogState::new(NewCluster {
            uid: cluster,
            history: Uuid([0xf7; 16]),
            pod: (pod_uid(0), addresses[0], node_of(0)),
            now_ms: 0,
        });
        // Volumes need three pods. Some may join later.
        let at_once = if rng.one_in(2) { addresses.len() } else { 1 };
        for host in 1..at_once {
            let (uid, addresses, node) = (pod_uid(host), addresses[host], node_of(host));
            let joined =
                state.apply(0, CatalogCommand::Join { uid, addresses, node, newest: NEWEST });
            assert!(joined.outcome.is_ok(), "everybody may join");
        }
        let mut pods: Vec<ControlPod> = Vec::new();
        for (host, addresses) in addresses.into_iter().enumerate() {
            let late = Duration::from_millis(if host < 3 { 0 } else { rng.below(10_000) });
            let (has_joined, joins_at) = (host < at_once, kernel.borrow().now + late);
            let addresses = Some(addresses);
            let newest = NEWEST;
            pods.push(ControlPod {
                has_joined,
                joins_at,
                addresses,
                newest,
                ..ControlPod::default()
            });
        }
        let check = CatalogCheck::new(state.clone());
        let (row, snapshot) = first(MemberId(1), state);
        pods[0].database = Some(Rc::new(RefCell::new(Database::create(row, &snapshot))));
        let kept = Kept {
            entries: [4, 32, 256][rng.below(3) as usize],
            log_tail_bytes: [1 << 10, 16 << 10, 1 << 20][rng.below(3) as usize],
        };
        let every = [0, 0, 50, 500][rng.below(4) as usize];
        let mut catalog = Catalog {
            kernel,
            rng,
            kept,
            clocks_are_good,
            pods,
            events: BTreeMap::new(),
            next_event: 0,
            asks: Vec::new(),
            boots: None,
            ended: Vec::new(),
            rounds: Vec::new(),
            is_closing: false,
            check,
        };
        if every > 0 {
            let every = Duration::from_millis(every);
            catalog.schedule(every, Event::Chatter(every));
        }
        catalog
    }

    /// From now on the machines of pods have boots.
    pub fn count_boots(&mut self) {
        self.boots = Some(vec![Vec::new(); self.pods.len()]);
    }

    /// The machine of a pod that is down starts anew.
    pub fn rebooted(&mut self, host: Host) {
        if let Some(boots) = &mut self.boots {
            boots[host].push(self.pods[host].life + 1);
        }
    }

    /// The machine of a pod, in this life of the pod.
    fn node(&self, host: Host, life: u64) -> NewNode {
        let Some(boots) = &self.boots else { return node_of(host) };
        let boot = boots[host].iter().filter(|begun| **begun <= life).count();
        NewNode { boot_id: boot_id(host, boot as u64), ..node_of(host) }
    }

    /// A pod starts, with these disks.
    pub fn start(&mut self, host: Host, disks: &[DiskNumber], capacity_bytes: u64) {
        let (now, run) = (self.local_time(host), self.rng.next());
        self.pods[host].start(now, self.kept, run);
        let life = self.pods[host].life;
        let first_tick = Duration::from_micros(self.rng.below(100_000));
        self.schedule(first_tick, Event::Tick(host, life));
        let new = |disk: &DiskNumber| NewDisk {
            disk: disk_id(*disk),
            path: format!("disk-{disk}"),
            capacity_bytes,
        };
        let disks: Vec<NewDisk> = disks.iter().map(new).collect();
        self.pods[host].disks.clone_from(&disks);
        self.ask(match self.pods[host].has_joined {
            true => What::Register { host, life, disks },
            false => What::Join { host, life },
        });
        self.settle(host);
    }

    /// The pod loses power, perhaps while a packet enters its member: none, some or all of the
    /// writes are durable, and no message that depends on them is sent.
    pub fn crash(&mut self, host: Host) {
        if self.rng.one_in(2) {
            self.die_writing(host);
        }
        if let Some(database) = &self.pods[host].database {
            let unsynced = database.borrow().unsynced() as u64;
            database.borrow_mut().lose_power(self.rng.below(unsynced + 1) as usize);
        }
        let keeps_mirror = !self.rng.one_in(4);
        self.pods[host].crash(keeps_mirror);
    }

    fn die_writing(&mut self, host: Host) {
        let for_host = |event: &Event| match event {
            Event::Arrive { to, packet, .. } => {
                *to == host && matches!(packet, Packet::Raft(_) | Packet::Install { .. })
            }
            _ => false,
        };
        let found = self.events.iter().find(|(_, event)| for_host(event)).map(|(at, _)| *at);
        let now = self.local_time(host);
        let writes_left = self.rng.below(4);
        let pod = &mut self.pods[host];
        let (Some(member), Some(database)) = (&mut pod.member, &pod.database) else { return };
        database.borrow_mut().writes_left = Some(writes_left);
        match found.and_then(|at| self.events.remove(&at)) {
            Some(Event::Arrive { packet: Packet::Raft(message), .. }) => member.step(now, message),
            Some(Event::Arrive { packet: Packet::Install { snapshot, .. }, .. }) => {
                member.install(now, snapshot.decode());
            }
            _ => member.tick(now),
        }
        // Ends when no work is left, or with a write that the dying disk refuses.
        while let Ok(true) = member.poll(now) {}
    }

    /// An alarm of the catalog rang.
    pub fn happens(&mut self, alarm: u64, pods: &Pods<'_>) {
        // A packet for a dying pod is lost.
        let Some(event) = self.events.remove(&alarm) else { return };
        match event {
            Event::Chatter(every) => self.chatter(every),
            Event::Ask(number, attempt) => self.attempt(number, attempt, pods),
            Event::Copy(number) => self.copy(number, pods),
            Event::Tick(host, life) if self.pods[host].life == life && self.pods[host].is_up => {
                let mut next = TICK_EVERY;
                if !pods.is_stopped(host) {
                    self.tick(host, pods);
                    // The pod's clock may be slower than the alarms.
                    let left = self.pods[host].tick_at.since(self.local_time(host));
                    next = left.max(Duration::from_millis(1));
                }
                self.schedule(next, Event::Tick(host, life));
            }
            Event::Tick(..) => {}
            Event::Fail { from, to, packet } => self.failed(from, to, packet),
            Event::Arrive { from, to, packet } => {
                if !self.pods[to].is_up {
                    let after = Duration::from_millis(self.rng.between(1, 1_000));
                    self.schedule(after, Event::Fail { from, to, packet });
                } else if pods.is_stopped(to) {
                    let held = &mut self.pods[to].held;
                    if held.len() < HELD_MAX {
                        held.push((from, packet));
                    }
                } else {
                    self.arrived(from, to, packet);
                }
            }
        }
    }

    /// Lets the member of a pod do all its work, and checks it.
    fn settle(&mut self, host: Host) {
        let now = self.local_time(host);
        loop {
            let pod = &mut self.pods[host];
            let (Some(member), Some(database)) = (&mut pod.member, &pod.database) else { return };
            loop {
                match member.poll(now) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => panic!("the catalog of pod {host} has stopped: {error}"),
                }
            }
            let known = member.known();
            let at = (known.applied_index, known.role.term);
            let log = database.borrow();
            self.check.observe(member.row().member, known, |index| log.entry(index));
            drop(log);
            if at != pod.noted {
                pod.noted = at;
                let mut kernel = self.kernel.borrow_mut();
                let (now, leads) = (kernel.now, u64::from(known.role.serving));
                kernel.trace.note(now, &[4, host as u64, at.0, at.1, leads], || {
                    format!("the catalog of pod {host}: entry {} of term {}, {leads}", at.0, at.1)
                });
            }
            let answers = member.take_answers();
            if answers.is_empty() {
                break;
            }
            for answer in answers {
                self.answered(host, answer);
            }
        }
        let sent = std::mem::take(&mut *self.pods[host].outbox.0.borrow_mut());
        for (member, packet) in sent {
            match self.pods[host].pod_of(member) {
                Some(to) => self.send(host, host_of(to), packet),
                None => self.schedule(
                    Duration::from_millis(1),
                    Event::Fail { from: host, to: host, packet },
                ),
            }
        }
    }

    fn send(&mut self, from: Host, to: Host, packet: Packet) {
        let fate = fate(&self.kernel.borrow(), &mut self.rng, from, to);
        if let Some(after) = fate.fails {
            self.schedule(after, Event::Fail { from, to, packet: packet.clone() });
        }
        for after in fate.arrives.into_iter().flatten() {
            self.schedule(after, Event::Arrive { from, to, packet: packet.clone() });
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        let alarm = CATALOG_ALARMS + self.next_event;
        self.events.insert(alarm, event);
        self.kernel.borrow_mut().alarm(after, alarm);
    }

    /// The time of day, which is the same everywhere.
    fn wall_ms(&self) -> u64 {
        self.kernel.borrow().now.0 / 1_000_000
    }

    fn local_time(&self, host: Host) -> Mono {
        self.kernel.borrow().local_time(host)
    }

    /// Shards that clients may use since the last call, and the generation that each is to have.
    pub fn take_grown(&mut self) -> Vec<(ShardId, Generation)> {
        self.check.take_grown()
    }

    /// The cluster as of the newest command that any member has applied.
    pub fn view(&self) -> &Arc<ClusterView> {
        self.check.view()
    }

    /// True until every shard is said to be without the attachment.
    pub fn knows(&self, volume: VolumeId, attachment: AttachmentId) -> bool {
        self.check.state().attachments.get(&(volume, attachment)).is_some()
    }

    /// Whether a pod gets a newer view now: half of the time, or always with `all`.
    pub fn hears(&mut self, host: Host, all: bool) -> bool {
        self.pods[host].has_joined && (all || !self.rng.one_in(2))
    }

    /// The levels of a pod at its start.
    pub fn levels(&self, host: Host) -> Levels {
        Levels { cluster: self.stored_view(host).level, newest: self.pods[host].newest }
    }

    /// The view that a pod has on its disk.
    pub fn stored_view(&self, host: Host) -> Arc<ClusterView> {
        Arc::clone(self.pods[host].view())
    }

    /// Updates and returns the newest view of a pod: from its own member or, if that knows no
    /// leader, from another pod.
    pub fn follow(&mut self, host: Host, is_stopped: &dyn Fn(Host) -> bool) -> Arc<ClusterView> {
        let now = self.local_time(host);
        let own = &mut self.pods[host];
        own.wants.expire(now);
        own.take_own_state(pod_id(host));
        if !own.can_be_followed()
            && let Some(other) = self.target(host, is_stopped)
        {
            self.watch(host, other);
        }
        Arc::clone(self.pods[host].view())
    }

    /// A reachable pod to follow: the leader, if it is known, or the next one.
    fn target(&mut self, host: Host, is_stopped: &dyn Fn(Host) -> bool) -> Option<Host> {
        let me = pod_id(host);
        let own = &mut self.pods[host];
        own.next_target += 1;
        let next = own.next_target % self.pods.len();
        let other = self.pods[host].leader(me).map_or(next, host_of);
        let kernel = self.kernel.borrow();
        let is_cut = [(host, other), (other, host)].iter().any(|cut| kernel.cut.contains(cut));
        drop(kernel);
        let pod = &self.pods[other];
        let reached = other != host && pod.is_up && !is_stopped(other) && !is_cut;
        if !reached || !pod.can_be_followed() {
            self.pods[host].leader_hint = None;
            return None;
        }
        Some(other)
    }

    /// Clients of a pod use these volumes.
    pub fn uses(&mut self, host: Host, volumes: &BTreeSet<VolumeId>) {
        let now = self.local_time(host);
        self.pods[host].wants.used(now, volumes);
    }

    /// A pod is about to use a volume. False: it has not joined yet.
    pub fn want(&mut self, host: Host, volume: VolumeId) -> bool {
        let now = self.local_time(host);
        let wanted = self.pods[host].wants.want(now, volume, KEPT_FOR);
        wanted.expect("a run has few volumes");
        self.pods[host].has_joined
    }

    /// Finds the volume behind the name of an export for a client of a pod.
    pub fn resolve(
        &mut self,
        host: Host,
        name: &str,
        is_stopped: &dyn Fn(Host) -> bool,
    ) -> Resolution {
        let asked = match self.pods[host].can_be_followed() {
            _ if !self.pods[host].has_joined => None,
            true => Some(host),
            false => self.target(host, is_stopped),
        };
        let Some(asked) = asked else { return Resolution::OutOfReach };
        let state = self.pods[asked].state().expect("it can be followed");
        let Some(volume) = exported(state, name) else { return Resolution::Unknown };
        self.want(host, volume);
        self.follow(host, is_stopped);
        match self.pods[host].view().volume(volume) {
            Some(_) => Resolution::Found(volume),
            // The pod may know a newer state than the one that it follows.
            None => Resolution::OutOfReach,
        }
    }

    /// Takes over the knowledge of another pod.
    fn watch(&mut self, host: Host, other: Host) {
        let state = Arc::clone(self.pods[other].state().expect("it can be followed"));
        let led = self.pods[other].known().and_then(|known| known.role.leader);
        let leader = led.and_then(|leader| self.pods[other].pod_of(leader));
        let (now, run, kept) = (self.local_time(host), self.rng.next(), self.kept);
        let own = &mut self.pods[host];
        own.leader_hint = leader;
        own.take_state(pod_id(host), &state);
        if own.follow(pod_id(host), &state) {
            own.resume(now, kept, run);
        }
    }

    /// True when a majority of the catalog's voters, by the newest state, is in other pods.
    pub fn has_majority_without(&self, hosts: &[Host]) -> bool {
        let known = self.pods.iter().filter_map(ControlPod::known);
        let Some(newest) = known.max_by_key(|known| known.applied_index) else { return false };
        let voters = || newest.group.voters.iter();
        let databases = hosts.iter().filter_map(|host| self.pods[*host].database.as_ref());
        let left_out: Vec<MemberId> =
            databases.map(|database| database.borrow().row.member).collect();
        let others = voters().filter(|voter| !left_out.contains(voter)).count();
        !newest.group.joint && 2 * others > voters().count()
    }

    /// Describes why the catalog is not idle and equal everywhere.
    pub fn unsettled(&self) -> Option<String> {
        if !self.all_answered() {
            return Some("something that was asked of the catalog is not done".to_owned());
        }
        let revision = self.view().revision;
        let behind = |pod: &ControlPod| pod.view().revision < revision;
        if self.pods.iter().any(behind) {
            return Some("a pod does not have the newest view".to_owned());
        }
        let members = self.pods.iter().filter_map(|pod| pod.member.as_ref());
        let members = members.map(|member| (member.row().member, member.known()));
        self.check.unsettled(members)
    }
}

/// The uid that a pod chose before it joined.
fn pod_uid(host: Host) -> Uuid {
    Uuid([0xf0 + host as u8; 16])
}

/// The name of a machine, and the id of one of its boots. Those of pods have the pods' numbers.
pub fn node_name(number: usize) -> String {
    format!("node-{number}")
}

pub fn boot_id(number: usize, boot: u64) -> String {
    format!("boot-{boot}-of-{number}")
}

/// The machine of a pod.
fn node_of(host: Host) -> NewNode {
    let name = node_name(host);
    NewNode { name, boot_id: String::new(), labels: BTreeMap::new() }
}
