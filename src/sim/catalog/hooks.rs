//! Where the world and the catalog meet.

use std::sync::Arc;
use std::time::Duration;

use crate::sim::catalog::pod::ControlPod;
use crate::sim::catalog::{Catalog, Ended, NewVolume, Pods, What, host_of, pod_id};
use crate::sim::kernel::Host;
use crate::sim::world::World;
use crate::types::MemberId;
use crate::view::ClusterView;
use crate::worker::{Command, Worker};

/// No fault that makes a volume has a number that is as high.
const SECOND: u64 = 1 << 16;
/// How long it may take until all pods have joined and the first volume is made.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// How often pods look for newer views.
const GOVERN_EVERY: Duration = Duration::from_millis(100);

impl World {
    /// Runs until the volume exists that all of the run's clients use. Another may come later.
    pub fn begin(&mut self) {
        let (shards, blocks_per_shard) = (self.shape.shards as u64, self.shape.blocks_per_shard);
        let name = crate::sim::world::MAIN.to_owned();
        self.catalog.ask(What::Create(NewVolume { name, number: None, shards, blocks_per_shard }));
        let mut next = self.kernel.borrow().now;
        let deadline = next + BEGINS_WITHIN;
        while self.attached.is_empty() {
            assert_eq!(self.step(), None, "nothing else goes on yet");
            let now = self.kernel.borrow().now;
            let wrong = self.kernel.borrow().checks.wrong().cloned();
            assert_eq!(wrong, None, "at the start");
            assert!(now < deadline, "no volume came about: {}", self.catalog.unanswered());
            if now >= next {
                self.govern(false);
                next = now + GOVERN_EVERY;
            }
        }
        if self.shape.second_volume {
            // Through the first front end, like some of the others.
            self.create_volume(SECOND * self.shape.pods as u64, 1, blocks_per_shard);
        }
    }

    /// An alarm of the catalog rang.
    pub fn catalog_happens(&mut self, alarm: u64) {
        let all = &self.pods;
        let pods = Pods {
            is_stopped: &|host| all[host].stopped,
            report: &|host| all[host].worker.as_ref().map(Worker::report),
        };
        self.catalog.happens(alarm, &pods);
        for Ended::Created(volume) in std::mem::take(&mut self.catalog.ended) {
            self.attach_to(&volume);
        }
    }

    /// A volume exists: its clients come.
    fn attach_to(&mut self, volume: &NewVolume) {
        let NewVolume { name, number, shards, blocks_per_shard } = volume;
        let (blocks, pods) = (shards * blocks_per_shard, self.shape.pods);
        match number {
            Some(_) if self.catalog.is_closing => {}
            Some(number) => {
                let front = *number as Host % pods;
                self.attach(name, number + 1, front, 0..blocks, blocks, *blocks_per_shard);
            }
            None => {
                let fronts = self.shape.fronts as u64;
                for client in 0..self.shape.clients {
                    // Clients of different front ends write different blocks.
                    let front = client as u64 % fronts;
                    let region = match self.shape.load.halves {
                        true => 0..blocks,
                        false => blocks * front / fronts..blocks * (front + 1) / fronts,
                    };
                    self.attach(name, 0, front as Host, region, blocks, *blocks_per_shard);
                }
            }
        }
    }

    /// Pods that do not know it yet hear of a newer view: each with a chance of one half, or all of
    /// them.
    pub fn govern(&mut self, all: bool) {
        for worker in self.pods.iter().filter_map(|pod| pod.worker.as_ref()) {
            let (load, connections) = (worker.load(), self.attached.len());
            self.kernel.borrow_mut().checks.load(&load, &self.shape.budgets, connections);
        }
        for host in 0..self.pods.len() {
            if !self.catalog.pods[host].has_joined || (!all && self.catalog.rng.one_in(2)) {
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

    /// Tells a pod of a view that is newer than what it was told before.
    pub(in crate::sim) fn tell(&mut self, host: Host, view: Arc<ClusterView>) {
        let pod = &mut self.pods[host];
        let Some(inbox) = pod.inbox.as_ref().filter(|_| pod.told < view.revision) else { return };
        self.kernel.borrow_mut().checks.learn(&view);
        pod.told = view.revision;
        assert!(inbox.send(Command::View(view)).is_ok(), "it has room");
        self.kernel.borrow_mut().wake(host, Duration::ZERO);
    }
}

impl Catalog {
    /// The view that a pod has on its disk.
    pub fn stored_view(&self, host: Host) -> Arc<ClusterView> {
        Arc::clone(self.pods[host].view())
    }

    /// The newest view that a pod has, from its own member or, if that knows no leader, from
    /// another pod that does.
    fn follow(&mut self, host: Host, is_stopped: &dyn Fn(Host) -> bool) -> Arc<ClusterView> {
        let own = &mut self.pods[host];
        if let Some(state) = own.state().cloned() {
            own.offer_view(&state);
        }
        if !own.can_be_followed()
            && let Some(other) = self.target(host, is_stopped)
        {
            self.watch(host, other);
        }
        Arc::clone(self.pods[host].view())
    }

    /// A pod that can be reached and followed: the leader, as far as it is known, or the next one.
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

    /// Takes from another pod what it knows.
    fn watch(&mut self, host: Host, other: Host) {
        let state = Arc::clone(self.pods[other].state().expect("it can be followed"));
        let led = self.pods[other].known().and_then(|known| known.role.leader);
        let leader = led.and_then(|leader| self.pods[other].pod_of(leader));
        let (now, run, kept) = (self.local_time(host), self.rng.next(), self.kept);
        let own = &mut self.pods[host];
        own.leader_hint = leader;
        own.offer_view(&state);
        if own.follow(pod_id(host), &state) {
            own.resume(now, kept, run);
        }
    }

    /// True when most of its voters, as the member that knows most of it has them, are elsewhere.
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

    /// Why it has not come to rest yet.
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
