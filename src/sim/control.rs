//! What pods of the simulated cluster and their control planes say to each other: newer views, the
//! volumes that clients use, and the names that they ask for.

use std::sync::Arc;
use std::time::Duration;

use crate::sim::handover::{HANDED, Handover};
use crate::sim::names::Host;
use crate::sim::said::Said;
use crate::sim::world::World;
use crate::types::{Uuid, VolumeId};
use crate::view::ClusterView;
use crate::worker::{Question, WorkerCommand};

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
            let is_attachment = self.handover.is_some() && name.parse::<Uuid>().is_ok();
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
}
