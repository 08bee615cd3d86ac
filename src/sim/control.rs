//! What pods of the simulated cluster and their control planes say to each other: newer views, the
//! volumes that clients use, and the names that they ask for.

use std::sync::Arc;
use std::time::Duration;

use crate::sim::catalog::Round;
use crate::sim::client::Target;
use crate::sim::handover::{HANDED, Handover, Holder, Step};
use crate::sim::names::Host;
use crate::sim::said::Said;
use crate::sim::shape::Shape;
use crate::sim::world::{NUMBER_OF_HANDED, VOLUME_SHIFT, World};
use crate::types::{AccessMode, AccessSet, ShardId, VolumeId};
use crate::view::ClusterView;
use crate::worker::{AccessAnswer, Question, WorkerCommand};

impl World {
    /// Delivers newer views to pods: with probability one half to each pod, or (`all`) to every
    /// pod.
    pub fn govern(&mut self, all: bool) {
        self.hand_over();
        for worker in self.pods.iter().filter_map(|pod| pod.worker.as_ref()) {
            let (load, connections) = (worker.load(), self.attached.len());
            self.checks.borrow_mut().load(&load, &self.shape.budgets, connections);
        }
        for host in 0..self.pods.len() {
            if !self.catalog.hears(host, all) {
                continue;
            }
            let stopped: Vec<bool> = self.pods.iter().map(|pod| pod.stopped).collect();
            if stopped[host] || self.pods[host].inbox.is_none() {
                continue;
            }
            let view = self.catalog.follow(host, &|host| stopped[host]);
            self.tell(host, view);
        }
    }

    /// Gives a pod the view, if it is newer than its last one, or attachments have changed.
    pub(super) fn tell(&mut self, host: Host, view: Arc<ClusterView>) {
        let pod = &mut self.pods[host];
        let Some(inbox) = &pod.inbox else { return };
        let version = self.handover.as_ref().map_or(0, |handover| handover.version);
        let is_newer = pod.view.revision <= view.revision && !Arc::ptr_eq(&pod.view, &view);
        if !is_newer && pod.told_access == version {
            return;
        }
        if is_newer {
            pod.view = view;
        }
        if pod.view.revision == 0 {
            return;
        }
        pod.told_access = version;
        let view = Handover::dress(self.handover.as_ref(), &pod.view);
        // Checkers know all volumes, also those that do not concern this pod.
        let all = Handover::dress(self.handover.as_ref(), self.catalog.view());
        self.checks.borrow_mut().learn(&all);
        assert!(inbox.send(WorkerCommand::View(view)).is_ok(), "it has room");
        self.kernel.borrow_mut().wake(host, Duration::ZERO);
    }

    /// Hears what a worker has said.
    pub(super) fn hear(&mut self, host: Host) {
        let Said { uses, questions } = std::mem::take(&mut *self.pods[host].said.borrow_mut());
        if let Some(uses) = uses {
            self.catalog.uses(host, &uses);
        }
        for Question { id, name } in questions {
            // The attachments of this volume are not the catalog's.
            let is_attachment = self.handover.is_some() && Handover::gave(&name);
            let name = if is_attachment { HANDED } else { &name };
            let stopped: Vec<bool> = self.pods.iter().map(|pod| pod.stopped).collect();
            let answer = self.catalog.resolve(host, name, &|host| stopped[host]);
            self.tell(host, self.catalog.stored_view(host));
            if let Some(inbox) = &self.pods[host].inbox {
                let sent = inbox.send(WorkerCommand::Resolved { question: id, answer });
                assert!(sent.is_ok(), "a mailbox in virtual time is never full");
                self.kernel.borrow_mut().wake(host, Duration::ZERO);
            }
        }
    }

    /// A pod gets a volume that may not concern it, if it can.
    pub(super) fn bring(&mut self, host: Host, volume: VolumeId) {
        let stopped: Vec<bool> = self.pods.iter().map(|pod| pod.stopped).collect();
        let has_joined = self.catalog.want(host, volume);
        if has_joined && !stopped[host] && self.pods[host].inbox.is_some() {
            let view = self.catalog.follow(host, &|host| stopped[host]);
            self.tell(host, view);
        }
    }

    /// The shards of a volume.
    pub(super) fn shards_of(&self, volume: VolumeId) -> Vec<ShardId> {
        let view = self.catalog.view();
        let shards = view.volume(volume).into_iter().flat_map(|volume| &volume.shards);
        shards.map(|shard| shard.shard).collect()
    }

    /// Lets the holder of the handed volume change.
    fn hand_over(&mut self) {
        let now = self.kernel.borrow().now;
        let Some(handover) = &mut self.handover else { return };
        let steps = handover.step(now, self.catalog.is_closing);
        for step in steps {
            match step {
                Step::Ask(set, answer) => self.ask_for_access(set, answer),
                Step::MayBeFenced(client) => self.attached[client].client.may_be_fenced = true,
                Step::Fenced(client) => {
                    let client = &mut self.attached[client].client;
                    self.shared.history.fenced(client.writer(), now);
                    if self.catalog.is_closing {
                        client.retire();
                    }
                }
                Step::Admitted(holder) => self.admit(&holder),
                Step::Moves(client) if !self.catalog.is_closing => self.hang_up(client),
                Step::Moves(_) => {}
            }
        }
    }

    /// Some pod is asked, which may be dead or cut off.
    fn ask_for_access(&mut self, set: AccessSet, answer: AccessAnswer) {
        let mut volumes = self.catalog.view().volumes.iter();
        let Some(volume) = volumes.find(|volume| volume.name == HANDED) else { return };
        let volume = volume.volume;
        let host = self.kernel.borrow_mut().rng.below(self.shape.pods as u64) as Host;
        self.send_round(Round { from: host, host, volume, set, answer });
    }

    pub(super) fn send_round(&mut self, Round { from, host, volume, set, answer }: Round) {
        let is_cut = |way| self.kernel.borrow().cut.contains(&way);
        if from != host && (is_cut((from, host)) || is_cut((host, from))) {
            return;
        }
        self.bring(host, volume);
        if let Some(inbox) = &self.pods[host].inbox {
            let sent = inbox.send(WorkerCommand::SetAccess { volume, set, answer });
            assert!(sent.is_ok(), "it has room");
            self.kernel.borrow_mut().wake(host, Duration::ZERO);
        }
    }

    /// Gives a client to a holder that every shard has admitted.
    fn admit(&mut self, holder: &Holder) {
        let Shape { handed_shards, blocks_per_shard, load, .. } = self.shape;
        let blocks = handed_shards * blocks_per_shard;
        let target = Target {
            export: holder.export(),
            first_register: NUMBER_OF_HANDED << VOLUME_SHIFT,
            region: 0..blocks,
            blocks,
            blocks_per_shard,
            load,
            half: holder.half,
            may_be_full: self.shape.is_tight,
            may_be_lost: false,
            may_time_out: self.shape.io_timeout.is_some(),
            read_only: holder.grant.mode == AccessMode::ReadOnly,
            is_one_line: false,
        };
        let number = self.add_client(target, HANDED, 0, true);
        let handover = self.handover.as_mut().expect("it has admitted the holder");
        handover.attached(holder.grant.attachment, number);
        if self.catalog.is_closing {
            self.attached[number].client.read_all();
        }
    }
}
