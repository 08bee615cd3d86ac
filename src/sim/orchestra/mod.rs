//! An orchestrator: it brings workloads to nodes and takes them away again, through the
//! simulated catalog, as Kubernetes does it with the CSI driver. Each workload has a closed volume
//! of its own. The controller publishes it to a node; the node's plugin claims it, looks what
//! is on it, makes a file system if there never was one, and lets the workload read and write.
//!
//! Everybody may die at any step and begin again. Machines stop, are cut off, start anew, and are
//! declared lost while their clients still write. Calls arrive again, and late.
//!
//! The checks are here: a file system is made once (rule
//! `a-volume-is-formatted-once`); when the API says that a node has a volume, or has it no more,
//! every shard says so (rule `grant-waits-for-all-shards`), and no other node has it.

mod controller;
mod plugin;
mod workload;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::command::NewNode;
use crate::sim::catalog::{NewVolume, Order, Told, What, boot_id, node_name};
use crate::sim::disk::Loss;
use crate::sim::faults::Fault;
use crate::sim::names::Host;
use crate::sim::orchestra::workload::{Stage, WorkloadState};
use crate::sim::rng::Rng;
use crate::sim::world::{News, WORKLOADS, World};
use crate::types::{Mono, Uuid};

/// A node that was declared lost says so often what it has.
const REPORTS_EVERY: Duration = Duration::from_secs(2);
/// What is left of an attachment stays for up to so long.
const LEFT_FOR: Duration = Duration::from_secs(3);
/// Calls of a workload that may arrive again.
const NEWEST_CALLS: usize = 5;
/// How late they are, at most.
const LATE_MS: u64 = 5_000;

/// A node, with or without a pod.
#[derive(Default)]
struct Node {
    boot: u64,
    is_down: bool,
    is_stopped: bool,
    is_cut: bool,
    /// It was, or may yet be, declared lost, by a call that is late.
    was_lost: bool,
    is_declared: bool,
    reports_at: Mono,
    is_reporting: bool,
}

impl Node {
    fn is_reached(&self) -> bool {
        !self.is_down && !self.is_stopped && !self.is_cut
    }
}

/// A device of a node: a client with an attachment.
struct Device {
    uid: Uuid,
    workload: usize,
    node: usize,
    /// The number of its client.
    client: usize,
    /// The file system that it writes, if it does.
    making: u64,
    /// Its attachment has ended: it is taken away then.
    leaves_at: Option<Mono>,
    is_gone: bool,
}

/// Who waits for an answer.
enum Asker {
    Workload(usize),
    /// The node reports, or is declared lost.
    Report(usize),
    Loss(usize),
}

/// See the module.
pub struct Orchestra {
    rng: Rng,
    workloads: Vec<WorkloadState>,
    nodes: Vec<Node>,
    devices: Vec<Device>,
    asks: BTreeMap<usize, Asker>,
    /// Requests and attachments have this many names.
    names: u64,
    /// Every workload has to be there once more.
    is_finishing: bool,
    /// File systems that were made, times that a workload was brought, nodes declared lost.
    pub made: u64,
    pub brought: u64,
    pub lost: u64,
}

impl Orchestra {
    /// Asks for the volumes of its workloads.
    pub fn new(seed: u64, world: &mut World) -> Orchestra {
        let mut rng = Rng::new(seed ^ 0x04c7);
        let (workloads, nodes) = (world.shape.workloads, world.shape.nodes());
        let workloads: Vec<WorkloadState> =
            (0..workloads).map(|number| WorkloadState::draw(number, &mut rng)).collect();
        for workload in &workloads {
            let volume = NewVolume {
                name: workload.name(),
                number: Some(WORKLOADS + workload.number as u64),
                shards: workload.shards,
                blocks_per_shard: workload.blocks_per_shard,
                closed: true,
                io_timeout_ms: world.shape.io_timeout_ms(),
            };
            world.catalog.ask(What::Create(volume));
        }
        Orchestra {
            workloads,
            rng,
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            devices: Vec::new(),
            asks: BTreeMap::new(),
            names: 0,
            is_finishing: false,
            made: 0,
            brought: 0,
            lost: 0,
        }
    }

    /// Takes note of what has happened.
    pub fn hear(&mut self, world: &mut World) {
        for news in std::mem::take(&mut world.news) {
            match news {
                News::LostPower(node) => self.loses_power(node, world),
                News::HasPower(node) => self.nodes[node].is_down = false,
                News::Born(name) => self.born(&name),
                News::Told(ask, told) => self.told(ask, told),
            }
        }
    }

    /// The volume of a workload is there.
    fn born(&mut self, name: &str) {
        let mut all = self.workloads.iter_mut();
        if let Some(workload) = all.find(|workload| workload.name() == name) {
            workload.stage = Stage::Away;
        }
    }

    /// From now on every workload has to be brought to a node once more, and to be well there.
    pub fn finish(&mut self) {
        self.is_finishing = true;
    }

    /// Describes the workloads that have not been well since [`Orchestra::finish`].
    pub fn waiting(&self) -> Vec<String> {
        let waiting = self.workloads.iter().filter(|workload| workload.stage != Stage::Final);
        waiting.map(|it| format!("{} is {:?} at {}", it.name(), it.stage, it.node)).collect()
    }

    /// The answer to an order.
    fn told(&mut self, ask: usize, told: Told) {
        match self.asks.remove(&ask) {
            None => {}
            Some(Asker::Workload(number)) => {
                let workload = &mut self.workloads[number];
                (workload.ask, workload.answer) = (None, Some(told));
            }
            Some(Asker::Report(node)) => self.nodes[node].is_reporting = false,
            Some(Asker::Loss(node)) => {
                self.nodes[node].is_declared = false;
                if let Told::Done = told {
                    self.lost += 1;
                    self.take_from(node);
                }
            }
        }
    }

    /// Everybody does what is next.
    pub fn step(&mut self, world: &mut World) {
        for device in &self.devices {
            let written = world.attached[device.client].client.take_written();
            let workload = &mut self.workloads[device.workload];
            workload.written.extend(written.into_iter().map(|value| (value, device.making)));
        }
        if self.waiting().is_empty() {
            return;
        }
        for node in 0..self.nodes.len() {
            self.report(node, world);
        }
        self.clean_up(world);
        for number in 0..self.workloads.len() {
            let before = self.workloads[number].stage;
            self.act(number, world);
            let workload = &self.workloads[number];
            let (stage, node) = (workload.stage, workload.node);
            if stage != before {
                let mut kernel = world.kernel.borrow_mut();
                let (now, what) = (kernel.now, [5, number as u64, node as u64]);
                kernel.trace.note(now, &what, || {
                    format!("{} at node {node} is {stage:?}", workload.name())
                });
            }
        }
    }

    /// The name of a request or an attachment.
    fn next_name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    /// A node that was lost says whether it has old devices. So does one that is new.
    fn report(&mut self, number: usize, world: &mut World) {
        let (now, every) = (world.now(), REPORTS_EVERY);
        let has_no_device =
            !self.devices.iter().any(|device| device.node == number && !device.is_gone);
        let is_podless = number >= world.shape.pods;
        let node = &mut self.nodes[number];
        let is_due = node.was_lost || is_podless;
        if !is_due || node.is_reporting || !node.is_reached() || now < node.reports_at {
            return;
        }
        (node.is_reporting, node.reports_at) = (true, now + every);
        let (name, boot_id, labels) =
            (node_name(number), boot_id(number, node.boot), BTreeMap::new());
        let node = NewNode { name, boot_id, labels };
        let ask = world.catalog.ask(What::Order(Order::Report { node, has_no_device }));
        self.asks.insert(ask, Asker::Report(number));
    }

    /// Devices of attachments that have ended are taken away.
    fn clean_up(&mut self, world: &mut World) {
        let now = world.now();
        for device in self.devices.iter_mut().filter(|device| !device.is_gone) {
            let is_due = device.leaves_at.is_some_and(|at| now >= at || self.is_finishing);
            if is_due && self.nodes[device.node].is_reached() {
                device.is_gone = true;
                world.attached[device.client].client.retire();
            }
        }
    }

    /// A node was declared lost: its workloads go elsewhere.
    fn take_from(&mut self, node: usize) {
        for workload in self.workloads.iter_mut().filter(|workload| workload.node == node) {
            if workload.is_staged() {
                workload.ask.take().map(|ask| self.asks.remove(&ask));
                workload.answer = None;
                // A controller may take what is lost from the node, too, or just go on.
                workload.stage = match self.rng.one_in(2) {
                    true => Stage::Away,
                    false => Stage::Leaving,
                };
            }
        }
    }

    /// A fault begins.
    pub fn begin(&mut self, fault: Fault, world: &mut World) {
        match fault {
            Fault::NodeStops(node) => {
                self.nodes[node].is_stopped = true;
                let mine = self.devices.iter().filter(|device| device.node == node);
                world.still.extend(mine.map(|device| device.client));
            }
            Fault::NodeCut(node) => {
                self.nodes[node].is_cut = true;
                let cuts = self.cuts(node, world);
                world.kernel.borrow_mut().cut.extend(cuts);
            }
            Fault::NodeLost(node) => self.declare_lost(node, world),
            Fault::NodeReboots(node) => {
                self.loses_power(node, world);
                self.nodes[node].is_down = false;
            }
            Fault::PluginDies(workload) => {
                self.plugin_dies(workload, world);
            }
            Fault::ControllerDies(workload) => self.controller_dies(workload, world),
            Fault::CallsAgain(workload) => {
                for ask in &self.workloads[workload].calls {
                    let after = Duration::from_millis(self.rng.below(LATE_MS));
                    world.catalog.arrives_again(*ask, after);
                }
            }
            other => unreachable!("{other:?} is no fault of a node"),
        }
    }

    /// A fault ends.
    pub fn end(&mut self, fault: Fault, world: &mut World) {
        match fault {
            Fault::NodeStops(node) => {
                self.nodes[node].is_stopped = false;
                for device in self.devices.iter().filter(|device| device.node == node) {
                    if world.still.remove(&device.client) {
                        world.wake_client(device.client);
                    }
                }
            }
            Fault::NodeCut(node) => {
                self.nodes[node].is_cut = false;
                let cuts = self.cuts(node, world);
                world.kernel.borrow_mut().cut.retain(|cut| !cuts.contains(cut));
            }
            _ => {}
        }
    }

    /// Ends the faults of all nodes.
    pub fn heal(&mut self, world: &mut World) {
        for node in 0..self.nodes.len() {
            self.end(Fault::NodeStops(node), world);
            self.end(Fault::NodeCut(node), world);
        }
    }

    /// Both directions between the devices of a node and all pods.
    fn cuts(&self, node: usize, world: &World) -> Vec<(Host, Host)> {
        let pods = world.shape.pods;
        let mine = self.devices.iter().filter(|device| device.node == node);
        let hosts = mine.map(|device| pods + device.client);
        hosts.flat_map(|host| (0..pods).flat_map(move |pod| [(host, pod), (pod, host)])).collect()
    }

    /// What the node has from now on may end at any time: the call may come late.
    fn declare_lost(&mut self, number: usize, world: &mut World) {
        let node = &mut self.nodes[number];
        if node.is_declared {
            return;
        }
        (node.is_declared, node.was_lost) = (true, true);
        for workload in &mut self.workloads {
            workload.grants.iter_mut().filter(|it| it.node == number).for_each(|it| {
                it.may_end = true;
            });
        }
        for device in self.devices.iter().filter(|device| device.node == number) {
            world.attached[device.client].client.may_be_fenced = true;
        }
        let (node, boot_id) = (node_name(number), boot_id(number, self.nodes[number].boot));
        let ask = world.catalog.ask(What::Order(Order::DeclareLost { node, boot_id }));
        self.asks.insert(ask, Asker::Loss(number));
    }

    /// The node loses its memory, and with it its devices.
    fn loses_power(&mut self, node: usize, world: &mut World) {
        let pods = world.shape.pods;
        self.nodes[node].boot += 1;
        self.nodes[node].is_down = true;
        let mine = self.devices.iter_mut().filter(|device| device.node == node && !device.is_gone);
        for device in mine {
            world.kernel.borrow_mut().crash(pods + device.client, Loss::Power);
            let client = &mut world.attached[device.client].client;
            client.close();
            if device.leaves_at.is_some() {
                device.is_gone = true;
                client.retire();
            }
        }
        for number in 0..self.workloads.len() {
            if self.workloads[number].node == node {
                self.stage_again(number);
            }
        }
    }
}

/// Notes a violation, which ends the run.
fn wrong(world: &World, what: String) {
    world.checks.borrow_mut().found(what);
}
