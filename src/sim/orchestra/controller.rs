//! What the controller of an orchestrator does: it publishes volumes, and takes them back.

use std::time::Duration;

use crate::control::state::CatalogError;
use crate::sim::catalog::{Order, Told, What, node_name};
use crate::sim::client::Step;
use crate::sim::orchestra::workload::{Grant, Stage};
use crate::sim::orchestra::{Asker, Device, LEFT_FOR, NEWEST_CALLS, Orchestra, wrong};
use crate::sim::world::World;
use crate::types::{AttachmentId, ShardId, Uuid};

/// A refused call is tried again after this time.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// How often a workload is not wanted any more before its volume is there: in one of so many looks.
const UNWANTED_ONE_IN: u64 = 16;

impl Orchestra {
    /// The next step of a workload.
    pub(super) fn act(&mut self, number: usize, world: &mut World) {
        let now = world.now();
        let workload = &self.workloads[number];
        let is_of_plugin = workload.stage == Stage::Published || workload.is_in_plugin();
        let is_free = !is_of_plugin || self.nodes[workload.node].is_reached();
        if now < workload.acts_at || !is_free {
            return;
        }
        match workload.stage {
            Stage::Unborn | Stage::Final => {}
            Stage::Away => self.choose(number, world),
            Stage::Published => self.claim(number, world),
            Stage::Leaving => self.unpublish(number, world),
            Stage::Used => self.use_it(number, world),
            Stage::Probing(record) => {
                if let Some(values) = self.stepped(number, world) {
                    self.probed(number, record, &values, world);
                }
            }
            Stage::Making => {
                if self.stepped(number, world).is_some() {
                    self.workloads[number].made_asked = true;
                    self.record(number, true, world);
                }
            }
            Stage::Publishing
            | Stage::Claiming
            | Stage::Beginning
            | Stage::Recording
            | Stage::Unpublishing => match self.workloads[number].answer.take() {
                Some(told) => self.answered(number, told, world),
                None => self.waits(number, world),
            },
        }
    }

    fn answered(&mut self, number: usize, told: Told, world: &mut World) {
        let stage = self.workloads[number].stage;
        match (stage, told) {
            (Stage::Publishing, Told::Published { uid, attachment }) => {
                self.brought += 1;
                self.granted(number, uid, attachment, world);
                self.workloads[number].stage = Stage::Published;
            }
            (Stage::Claiming, Told::Claimed { uid, attachment, record }) => {
                self.granted(number, uid, attachment, world);
                let steps: Vec<Step> =
                    self.workloads[number].system_blocks().map(Step::Read).collect();
                self.open(number, uid, world);
                self.tell(number, uid, steps, 0, world);
                self.workloads[number].stage = Stage::Probing(record);
            }
            (Stage::Beginning, Told::Done) => self.make(number, world),
            (Stage::Recording, Told::Done) => {
                self.made += 1;
                self.workloads[number].is_made = true;
                // The volume below it is looked at before anybody writes.
                self.workloads[number].stage = Stage::Published;
            }
            (Stage::Unpublishing, Told::Done) => self.taken(number, world),
            (_, Told::Gone) => self.refused(number, None, world),
            (_, Told::Refused(error)) => self.refused(number, Some(error), world),
            (_, told) => unreachable!("{told:?} is no answer at {stage:?}"),
        }
    }

    /// Is this refusal right? Something else is tried then.
    fn refused(&mut self, number: usize, error: Option<CatalogError>, world: &mut World) {
        let now = world.now();
        let workload = &mut self.workloads[number];
        let node = &self.nodes[workload.node];
        let was_loose = workload.loose.clone();
        let may_end = node.was_lost || was_loose.contains(&workload.node);
        let stage = workload.stage;
        if stage == Stage::Publishing {
            // Late copies of it may be carried out when there is nothing in their way any more.
            workload.loose.insert(workload.node);
        }
        workload.acts_at = now + AGAIN_AFTER;
        let (is_right, next) = match (stage, &error) {
            (Stage::Publishing, Some(CatalogError::NoSuchNode { .. })) => (true, Stage::Away),
            (Stage::Publishing, Some(CatalogError::NodeLost { .. })) => {
                (node.was_lost, Stage::Away)
            }
            // A request of a controller that has died was carried out late: it is undone.
            (Stage::Publishing, Some(CatalogError::Held { holder, .. })) => {
                let mut nodes = 0..self.nodes.len();
                let node = nodes.find(|node| node_name(*node) == *holder);
                workload.node = node.expect("it is a node");
                (was_loose.contains(&workload.node), Stage::Leaving)
            }
            (Stage::Beginning, Some(CatalogError::Formatted { .. })) => {
                (workload.made_asked, Stage::Published)
            }
            (_, None | Some(CatalogError::NotPublished { .. })) => (may_end, Stage::Leaving),
            (Stage::Claiming, Some(CatalogError::NodeLost { .. })) => {
                (node.was_lost, Stage::Leaving)
            }
            _ => (false, Stage::Leaving),
        };
        workload.stage = next;
        if !is_right {
            let (name, at) = (workload.name(), workload.node);
            wrong(world, format!("{name} at node {at}, {stage:?}, was refused: {error:?}"));
        }
    }

    /// A workload may not be wanted any more while its volume is being published.
    fn waits(&mut self, number: usize, world: &mut World) {
        let workload = &mut self.workloads[number];
        if workload.stage == Stage::Publishing && self.rng.one_in(UNWANTED_ONE_IN) {
            workload.loose.insert(workload.node);
            workload.stage = Stage::Leaving;
            self.abandon(number, world);
        }
    }

    pub(super) fn ask(&mut self, number: usize, order: Order, next: Stage, world: &mut World) {
        let ask = world.catalog.ask(What::Order(order));
        self.asks.insert(ask, Asker::Workload(number));
        let workload = &mut self.workloads[number];
        (workload.ask, workload.answer, workload.stage) = (Some(ask), None, next);
        workload.calls.push(ask);
        let old = workload.calls.len().saturating_sub(NEWEST_CALLS);
        workload.calls.drain(..old);
    }

    /// Nobody waits for the answer any more; the calls that have left still arrive.
    pub(super) fn abandon(&mut self, number: usize, world: &mut World) {
        let workload = &mut self.workloads[number];
        workload.answer = None;
        if let Some(ask) = workload.ask.take() {
            self.asks.remove(&ask);
            world.catalog.abandon(ask);
        }
    }

    /// Brings a workload to some node.
    fn choose(&mut self, number: usize, world: &mut World) {
        let node = self.rng.index(self.nodes.len());
        let view = world.catalog.view();
        let workload = &mut self.workloads[number];
        let name = workload.name();
        let mut volumes = view.volumes.iter();
        workload.volume = volumes.find(|it| it.name == name).map(|it| it.volume);
        (workload.node, workload.is_last) = (node, self.is_finishing);
        self.publish(number, world);
    }

    /// Under a new name.
    fn publish(&mut self, number: usize, world: &mut World) {
        let name = self.next_name();
        let mut uid = [0x0c; 16];
        uid[8..].copy_from_slice(&name.to_be_bytes());
        self.workloads[number].request = (format!("orchestra-{name}"), Uuid(uid));
        self.publish_again(number, world);
    }

    fn publish_again(&mut self, number: usize, world: &mut World) {
        let workload = &self.workloads[number];
        let (request, uid) = workload.request.clone();
        let (volume, node) = (workload.volume(), node_name(workload.node));
        let order = Order::Publish { volume, node, uid, request };
        self.ask(number, order, Stage::Publishing, world);
    }

    /// The API says that the node has the volume.
    pub(super) fn granted(
        &mut self,
        number: usize,
        uid: Uuid,
        attachment: AttachmentId,
        world: &mut World,
    ) {
        let workload = &self.workloads[number];
        let (volume, node, name) = (workload.volume(), workload.node, workload.name());
        if let Some(known) = workload.holds(uid) {
            if known.is_gone {
                wrong(world, format!("{name} has {attachment:?}, which was fenced"));
            }
            return;
        }
        let is_early = world
            .shards_of(volume)
            .into_iter()
            .find(|shard| world.checks.borrow().generation(*shard).0 < attachment.0);
        if let Some(shard) = is_early {
            wrong(world, format!("{name} has {attachment:?}, which {shard:?} does not know"));
        }
        let others: Vec<Uuid> = workload.grants.iter().map(|grant| grant.uid).collect();
        for other in others {
            let held = self.workloads[number].holds(other).expect("it is listed");
            if !held.is_gone && !held.may_end {
                wrong(world, format!("{name} has {attachment:?}, and {:?}", held.attachment));
            }
            self.fenced(number, other, world);
        }
        let may_end = self.nodes[node].was_lost || self.workloads[number].loose.contains(&node);
        let grant = Grant { uid, attachment, node, may_end, is_gone: false };
        self.workloads[number].grants.push(grant);
    }

    /// From now on nothing that comes by this attachment takes effect.
    fn fenced(&mut self, number: usize, uid: Uuid, world: &mut World) {
        let now = world.now();
        let workload = &mut self.workloads[number];
        let mut grants = workload.grants.iter_mut();
        let grant = grants.find(|it| it.uid == uid).expect("it is listed");
        if std::mem::replace(&mut grant.is_gone, true) {
            return;
        }
        let (attachment, volume, name) = (grant.attachment, workload.volume(), workload.name());
        let admits = |shard: &ShardId| world.checks.borrow().admitted(*shard).contains(&attachment);
        if let Some(shard) = world.shards_of(volume).into_iter().find(admits) {
            wrong(world, format!("{name} has lost {attachment:?}, and {shard:?} admits it"));
        }
        let stays = Duration::from_millis(self.rng.below(LEFT_FOR.as_millis() as u64));
        for device in self.devices.iter_mut().filter(|device| device.uid == uid) {
            device.leaves_at = Some(now + stays);
            let client = &mut world.attached[device.client].client;
            client.may_be_fenced = true;
            world.shared.history.fenced(client.writer(), now);
        }
    }

    fn unpublish(&mut self, number: usize, world: &mut World) {
        self.workloads[number].request.0 = format!("orchestra-{}", self.next_name());
        self.unpublish_again(number, world);
    }

    fn unpublish_again(&mut self, number: usize, world: &mut World) {
        let workload = &mut self.workloads[number];
        let node = workload.node;
        for grant in workload.grants.iter_mut().filter(|grant| grant.node == node) {
            grant.may_end = true;
        }
        let (volume, request) = (workload.volume(), workload.request.0.clone());
        let mine = |it: &&Device| it.workload == number && it.node == node;
        for device in self.devices.iter().filter(mine) {
            world.attached[device.client].client.may_be_fenced = true;
        }
        let order = Order::Unpublish { volume, node: node_name(node), request };
        self.ask(number, order, Stage::Unpublishing, world);
    }

    /// The API says that the node has the volume no more.
    fn taken(&mut self, number: usize, world: &mut World) {
        let workload = &self.workloads[number];
        let volume = workload.volume();
        for shard in world.shards_of(volume) {
            let admitted = world.checks.borrow().admitted(shard);
            let is_forgotten = |id: &&AttachmentId| !world.catalog.knows(volume, **id);
            if let Some(id) = admitted.iter().find(is_forgotten) {
                wrong(world, format!("{shard:?} admits {id:?}, which the catalog has forgotten"));
            }
        }
        let mine = workload.grants.iter().filter(|grant| grant.node == workload.node);
        let mine: Vec<Uuid> = mine.map(|grant| grant.uid).collect();
        mine.into_iter().for_each(|uid| self.fenced(number, uid, world));
        self.workloads[number].stage = Stage::Away;
    }

    /// A controller begins anew, with what it knows of the orchestrator's wishes: these may have
    /// changed meanwhile.
    pub(super) fn controller_dies(&mut self, number: usize, world: &mut World) {
        let stage = self.workloads[number].stage;
        if !matches!(stage, Stage::Publishing | Stage::Unpublishing) {
            return;
        }
        let is_same = self.rng.one_in(2);
        self.abandon(number, world);
        let workload = &mut self.workloads[number];
        let node = workload.node;
        if !is_same {
            workload.loose.insert(node);
            for grant in workload.grants.iter_mut().filter(|grant| grant.node == node) {
                grant.may_end = true;
            }
        }
        match (stage, is_same) {
            (Stage::Publishing, true) => self.publish_again(number, world),
            (Stage::Publishing, false) if self.rng.one_in(2) => self.publish(number, world),
            (_, true) => self.unpublish_again(number, world),
            (_, false) => self.unpublish(number, world),
        }
    }
}
