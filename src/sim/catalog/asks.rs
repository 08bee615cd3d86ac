//! The world's requests to the catalog. A pod forwards each to the leader, again and again until
//! the outcome is known. The leader executes it like the API.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::control::catalog_member::{Answer, AskError};
use crate::control::command::{
    CatalogCommand, Deletion, NewDisk, NewVolume as New, Outcome, VolumeUpdate,
};
use crate::control::placement::{PlacementError, Wish, candidates, place};
use crate::control::registration::REGISTER_AGAIN_AFTER;
use crate::control::reports::{Pods as Reported, Use};
use crate::control::state::rows::Class;
use crate::control::state::{CatalogError, CatalogState};
use crate::sim::catalog::call::{Ask, COPY, Call, Ended, NewVolume, Verdict, What};
use crate::sim::catalog::network::Packet;
use crate::sim::catalog::orders::{Order, Told};
use crate::sim::catalog::pod::Waiting;
use crate::sim::catalog::{Catalog, Event, Pods, node_of, pod_uid};
use crate::sim::names::{Host, host_of, pod_id};
use crate::types::{AccessMode, BLOCK_BYTES, Uuid, VolumeId};

/// Time limit for the answer to a call.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(5);
/// Pause before looking for a leader again. `AGAIN_AFTER`: pause after a refusal.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Catalog {
    /// Returns the number of the request.
    pub fn ask(&mut self, what: What) -> usize {
        let number = self.asks.len();
        self.asks.push(Ask { what, attempt: 0, is_done: false });
        self.schedule(Duration::ZERO, Event::Ask(number, 0));
        number
    }

    /// Who has asked is dead. The calls that have left still arrive.
    pub fn abandon(&mut self, number: usize) {
        self.asks[number].is_done = true;
    }

    /// A call of this request was stuck somewhere, and arrives then.
    pub fn arrives_again(&mut self, number: usize, after: Duration) {
        self.schedule(after, Event::Copy(number));
    }

    /// The late copy of a call arrives, through some pod.
    pub(super) fn copy(&mut self, number: usize, pods: &Pods<'_>) {
        let via = self.rng.below(self.pods.len() as u64) as Host;
        self.pass_on(number, COPY, via, pods);
    }

    /// Describes the open requests.
    pub fn unanswered(&self) -> String {
        let open = self.asks.iter().filter(|ask| !ask.is_done).map(|ask| &ask.what);
        format!("{:?}", open.collect::<Vec<_>>())
    }

    /// True when all requests are done.
    pub fn all_answered(&self) -> bool {
        self.asks.iter().all(|ask| ask.is_done)
    }

    /// Deletes a volume, if its creation is acknowledged. Otherwise it is unknown whether the
    /// volume exists. True when it is acknowledged.
    pub fn delete(&mut self, name: &str) -> bool {
        let creates = |ask: &&mut Ask| matches!(&ask.what, What::Create(new) if new.name == name);
        let create = self.asks.iter_mut().find(creates).expect("every volume was asked for");
        let is_there = create.is_done;
        create.is_done = true;
        if is_there {
            let mut volumes = self.view().volumes.iter();
            let made = volumes.find(|volume| volume.name == name).expect("it is acknowledged");
            let (name, volume, retention_ms) = (name.to_owned(), made.volume, 0);
            self.ask(What::Delete { name, volume, retention_ms });
        }
        is_there
    }

    /// Starts the next attempt, through some pod.
    pub(super) fn attempt(&mut self, number: usize, attempt: u64, pods: &Pods<'_>) {
        let ask = &mut self.asks[number];
        if ask.is_done || ask.attempt != attempt {
            return;
        }
        ask.attempt += 1;
        let attempt = ask.attempt;
        let via = match &ask.what {
            What::Register { host, life, .. } | What::Join { host, life } => {
                let pod = &self.pods[*host];
                if !pod.is_up || pod.life != *life {
                    ask.is_done = true;
                    return;
                }
                *host
            }
            _ => self.rng.below(self.pods.len() as u64) as Host,
        };
        let via = match ask.what {
            What::Join { host, .. } => match self.seed_of(host) {
                Some(seed) => seed,
                None => return self.schedule(LOOK_EVERY, Event::Ask(number, attempt)),
            },
            _ => via,
        };
        let is_on_its_way = self.pass_on(number, attempt, via, pods);
        let patience = if is_on_its_way { ATTEMPT_WITHIN } else { LOOK_EVERY };
        self.schedule(patience, Event::Ask(number, attempt));
    }

    /// A pod serves a call, or passes it on to the leader. False: it knows no leader.
    fn pass_on(&mut self, number: usize, attempt: u64, via: Host, pods: &Pods<'_>) -> bool {
        let pod = &self.pods[via];
        let call = Call { ask: number, attempt, from: via, life: pod.life };
        if !pod.is_up || pods.is_stopped(via) {
            return false;
        }
        if pod.leads() {
            self.serve(via, call);
            return true;
        }
        let Some(leader) = pod.leader(pod_id(via)) else { return false };
        self.send(via, host_of(leader), Packet::Call(call));
        true
    }

    /// The pod that `host` asks for admission to the cluster; `None` before its time. Pods join one
    /// by one, so that their ids have the order of their numbers.
    fn seed_of(&mut self, host: Host) -> Option<Host> {
        let now = self.kernel.borrow().now;
        let is_due = self.pods[host - 1].has_joined && now >= self.pods[host].joins_at;
        is_due.then(|| self.rng.below(host as u64) as Host)
    }

    /// Executes a call on the leader; another member answers `Again`.
    pub(super) fn serve(&mut self, host: Host, call: Call) {
        let (now, at_ms) = (self.local_time(host), self.wall_ms());
        if !self.pods[host].leads() {
            return self.reply(host, call, Verdict::Again);
        }
        let floor = self.check.acknowledged_index();
        let what = &self.asks[call.ask].what;
        let request_id = call.request_id();
        let at_once = match what {
            What::Delete { name, volume, retention_ms } => {
                let (name, volume, retention_ms) = (name.clone(), *volume, *retention_ms);
                let how = Deletion { force: true, retention_ms, purge: false };
                Some(CatalogCommand::DeleteVolume { request_id, name, volume, how })
            }
            What::RaiseLevel(level) => Some(CatalogCommand::RaiseLevel { level: *level }),
            What::DeleteNothing => {
                let name = "nothing".to_owned();
                Some(CatalogCommand::DeleteVolume {
                    request_id,
                    name,
                    volume: VolumeId(0),
                    how: Deletion::default(),
                })
            }
            What::Join { host: of, .. } => {
                let addresses = self.pods[*of].addresses.expect("every pod has an address");
                let (uid, node) = (pod_uid(*of), self.node(*of, self.pods[*of].life));
                Some(CatalogCommand::Join { uid, addresses, node, newest: self.pods[*of].newest })
            }
            What::Undelete { name, volume } => {
                let (name, volume) = (name.clone(), *volume);
                Some(CatalogCommand::UndeleteVolume { request_id, name, volume })
            }
            What::Publish { volume, host: of, uid } => {
                let (volume, node, uid) = (*volume, node_of(*of).name, *uid);
                let (request_id, mode) = (format!("publish {uid}"), AccessMode::ReadWrite);
                Some(CatalogCommand::Publish {
                    request_id,
                    volume,
                    node,
                    mode,
                    io_timeout_ms: None,
                    uid,
                })
            }
            What::Unpublish { volume, host: of } => {
                let (volume, node) = (*volume, node_of(*of).name);
                Some(CatalogCommand::Unpublish { request_id, volume, node })
            }
            What::Order(order) => order.command(),
            What::Register { .. } | What::Create(_) | What::Grow { .. } => None,
        };
        let pod = &mut self.pods[host];
        let member = pod.member.as_mut().expect("it leads");
        let (id, waiting) = match at_once {
            Some(command) => (member.propose(now, at_ms, command), Waiting::CatalogCommand(call)),
            None => (member.barrier(now), Waiting::Read(call, floor)),
        };
        pod.waiting.insert(id, waiting);
        self.settle(host);
    }

    /// The member of this pod has answered.
    pub(super) fn answered(&mut self, host: Host, answer: Answer) {
        let (id, refused) = match &answer {
            Answer::Proposal(id, result) => (*id, result.is_err()),
            Answer::Barrier(id, result) => (*id, result.is_err()),
        };
        let Some(waiting) = self.pods[host].waiting.remove(&id) else { return };
        if let (Answer::Proposal(id, Ok(_) | Err(AskError::Refused(_))), Some(member)) =
            (&answer, &self.pods[host].member)
        {
            self.check.answered(member.ticket(*id));
        }
        match (waiting, answer) {
            (Waiting::Reconciler, _) => self.continue_reconciling(host),
            (Waiting::Access, _) => {}
            (Waiting::Read(call, _), _) if refused => self.reply(host, call, Verdict::Again),
            (Waiting::Read(call, floor), _) => {
                let known = self.pods[host].known().expect("it has just answered");
                if self.clocks_are_good {
                    assert!(known.applied_index >= floor, "pod {host} read what was old");
                }
                self.decide(host, call);
            }
            (Waiting::CatalogCommand(call), Answer::Proposal(_, result)) => {
                let order = match &self.asks[call.ask].what {
                    What::Order(order) => Some(order.clone()),
                    _ => None,
                };
                if let (Some(order), Ok(outcome)) = (&order, &result) {
                    self.pods[host].carried_out(call, order, *outcome);
                    return self.answer_orders(host);
                }
                let verdict = match result {
                    Err(AskError::Refused(error)) if order.is_some() => {
                        Verdict::Told(Told::Refused(error))
                    }
                    Ok(outcome) => Verdict::Done(outcome),
                    Err(AskError::Refused(CatalogError::StalePlacement)) => Verdict::Again,
                    Err(AskError::Refused(error)) => Verdict::Refused(error),
                    Err(_) => Verdict::Again,
                };
                self.reply(host, call, verdict);
            }
            (Waiting::CatalogCommand(_), Answer::Barrier(..)) => {
                unreachable!("commands are proposed")
            }
        }
    }

    /// The leader decides on a call, from its present state.
    fn decide(&mut self, host: Host, call: Call) {
        let (now, at_ms) = (self.local_time(host), self.wall_ms());
        let pod = &self.pods[host];
        let Some(state) = pod.state() else { return self.reply(host, call, Verdict::Again) };
        let reports = pod.reports.pods(now);
        let decided = match &self.asks[call.ask].what {
            What::Register { host: of, disks, life } => {
                let newest = self.pods[*of].newest;
                let (of, uid, node) = (pod_id(*of), pod_uid(*of), self.node(*of, *life));
                let holder = |new: &NewDisk| {
                    let known = state.disks.get(&new.disk).filter(|known| known.pod != of);
                    known.is_some_and(|known| pod.reports.uses(now, known.pod, new.disk) != Use::No)
                };
                match disks.iter().any(holder) {
                    true => Err(Verdict::Later),
                    false => {
                        let (addresses, disks) = (state.pods[&of].addresses, disks.clone());
                        Ok(CatalogCommand::Register {
                            pod: of,
                            uid,
                            addresses,
                            node,
                            newest,
                            disks,
                        })
                    }
                }
            }
            What::Create(volume) => match state.answered(&call.request_id()) {
                Some(outcome) => Err(Verdict::Done(outcome)),
                None => placed(volume, call.request_id(), state, reports),
            },
            What::Grow { name, shards } => match state.answered(&call.request_id()) {
                Some(outcome) => Err(Verdict::Done(outcome)),
                None => grown(name, *shards, call.request_id(), state, reports),
            },
            What::Order(Order::Report { node, has_no_device }) => {
                match Order::is_known(state, node, *has_no_device) {
                    true => Err(Verdict::Told(Told::Done)),
                    false => {
                        let (node, has_no_device) = (node.clone(), *has_no_device);
                        Ok(CatalogCommand::ReportNode { node, has_no_device })
                    }
                }
            }
            _ => unreachable!("proposed at once"),
        };
        match decided {
            Err(verdict) => self.reply(host, call, verdict),
            Ok(command) => {
                let pod = &mut self.pods[host];
                let member = pod.member.as_mut().expect("it has just answered");
                let id = member.propose(now, at_ms, command);
                pod.waiting.insert(id, Waiting::CatalogCommand(call));
            }
        }
    }

    /// Answers the orders of which the shards have done their part.
    pub(super) fn answer_orders(&mut self, host: Host) {
        for (call, told) in self.pods[host].take_told() {
            let verdict = told.map_or(Verdict::Again, Verdict::Told);
            self.reply(host, call, verdict);
        }
    }

    fn reply(&mut self, host: Host, call: Call, verdict: Verdict) {
        self.send(host, call.from, Packet::Reply(call, verdict));
    }

    /// The pod that forwarded a call gets the verdict, or learns that there is none.
    pub(super) fn call_ended(&mut self, call: Call, verdict: &Verdict) {
        let now = self.local_time(call.from);
        let ask = &mut self.asks[call.ask];
        let pod = &mut self.pods[call.from];
        if pod.life != call.life || !pod.is_up || ask.attempt != call.attempt || ask.is_done {
            return;
        }
        let again = match (verdict, &ask.what) {
            (Verdict::Again, _) => {
                pod.leader_hint = None;
                LOOK_EVERY
            }
            (Verdict::Later, _) => AGAIN_AFTER,
            (
                Verdict::Refused(CatalogError::PodTooOld { .. } | CatalogError::NoSuchLevel { .. }),
                What::RaiseLevel(_),
            ) => AGAIN_AFTER,
            (Verdict::Refused(CatalogError::TooOld(_)), What::Register { .. }) => AGAIN_AFTER,
            (Verdict::Refused(CatalogError::NoSuchVolume { .. }), What::DeleteNothing) => {
                ask.is_done = true;
                return;
            }
            (Verdict::Told(told), _) => {
                self.ended.push(Ended::Told(call.ask, told.clone()));
                ask.is_done = true;
                return;
            }
            (Verdict::Refused(error), what) => panic!("{what:?} was refused: {error}"),
            (Verdict::Done(outcome), what) => {
                match what {
                    What::Create(new) => {
                        self.check.created(&new.name, *outcome);
                        self.ended.push(Ended::Created(new.clone()));
                    }
                    What::Delete { name, retention_ms: 0, .. } => self.check.deleted(name),
                    What::Delete { .. } | What::Undelete { .. } | What::Grow { .. } => {}
                    What::Publish { .. } | What::Unpublish { .. } | What::RaiseLevel(_) => {}
                    What::Register { .. } => {
                        pod.compares_at = Some(now + REGISTER_AGAIN_AFTER);
                    }
                    What::Join { host, life } => {
                        assert_eq!(*outcome, Outcome::Pod(pod_id(*host)), "one id for each pod");
                        let (host, life) = (*host, *life);
                        ask.is_done = true;
                        return self.joined(host, life);
                    }
                    What::DeleteNothing => panic!("nothing was deleted"),
                    What::Order(_) => unreachable!("orders have answers of their own"),
                }
                ask.is_done = true;
                return;
            }
        };
        let attempt = ask.attempt;
        self.schedule(again, Event::Ask(call.ask, attempt));
    }

    /// A pod has joined: it registers, unless it has died since.
    fn joined(&mut self, host: Host, life: u64) {
        let pod = &mut self.pods[host];
        if pod.life == life {
            pod.has_joined = true;
            let disks = pod.disks.clone();
            self.ask(What::Register { host, life, disks });
        }
    }
}

/// The command that creates a volume with three replicas of every shard.
fn placed(
    volume: &NewVolume,
    request_id: String,
    state: &CatalogState,
    reports: Reported<'_>,
) -> Result<CatalogCommand, Verdict> {
    let NewVolume { name, shards, blocks_per_shard, closed, io_timeout_ms, .. } = volume;
    if state.volume_by_name(name).is_some() {
        return Err(Verdict::Refused(CatalogError::NameTaken { name: name.clone() }));
    }
    // Disks are small, and runs fill them up: that is what disks refuse, not the catalog.
    let overcommit_percent = u32::MAX;
    let class = Class { overcommit_percent, ..state.classes["replicated"].clone() };
    let candidates = candidates(state, reports, &class);
    let stripe_bytes = blocks_per_shard * BLOCK_BYTES as u64;
    let wish = Wish { name, shards: *shards, shard_bytes: stripe_bytes, replicas: 3, grows: false };
    match place(wish, &candidates) {
        Ok(placement) => {
            let volume = New {
                uid: Uuid([1; 16]),
                name: name.clone(),
                class: "replicated".to_owned(),
                labels: BTreeMap::new(),
                size_bytes: stripe_bytes * shards,
                stripe_bytes,
                replicas: 3,
                io_timeout_ms: *io_timeout_ms,
                open: !closed,
            };
            Ok(CatalogCommand::CreateVolume { request_id, volume, placement })
        }
        Err(PlacementError::BadReplicas { .. }) => panic!("three replicas are well"),
        Err(_) if !reports.has_listened() => Err(Verdict::Again),
        Err(_) => Err(Verdict::Later),
    }
}

/// The command that gives a volume so many shards.
fn grown(
    name: &str,
    shards: u64,
    request_id: String,
    state: &CatalogState,
    reports: Reported<'_>,
) -> Result<CatalogCommand, Verdict> {
    let (id, volume) = state.volume_by_name(name).expect("it is there");
    let new = shards.saturating_sub(volume.shards());
    let overcommit_percent = u32::MAX;
    let class = Class { overcommit_percent, ..state.classes["replicated"].clone() };
    let candidates = candidates(state, reports, &class);
    let wish =
        Wish { name, shards: new, shard_bytes: volume.stripe_bytes, replicas: 3, grows: true };
    match place(wish, &candidates) {
        Ok(placement) => {
            let size_bytes = shards * volume.stripe_bytes;
            let update = VolumeUpdate { based_on: 0, labels: BTreeMap::new(), size_bytes };
            Ok(CatalogCommand::UpdateVolume { request_id, volume: id, update, placement })
        }
        Err(_) if !reports.has_listened() => Err(Verdict::Again),
        Err(_) => Err(Verdict::Later),
    }
}
