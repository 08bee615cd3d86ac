//! The tasks of each pod's control plane, equivalent to [`crate::control::tasks`] but without a
//! runtime.

use std::time::Duration;

use crate::control::catalog_member::TICK_EVERY;
use crate::control::command::NewDisk;
use crate::control::reconcile::{Action, Facts, decide};
use crate::control::registration::is_registered;
use crate::control::reports::Heard;
use crate::sim::catalog::call::{Verdict, What};
use crate::sim::catalog::network::Packet;
use crate::sim::catalog::pod::{SimMember, Waiting};
use crate::sim::catalog::{Catalog, Event, Pods};
use crate::sim::names::{Host, host_of, pod_id};
use crate::types::{MemberId, Mono};

/// A voter is replaced much earlier than in production, so that it happens in a run.
const VOTER_LOST_AFTER: Duration = Duration::from_secs(6);
/// How often the leader reconciles, if nothing wakes it earlier.
const RECONCILE_EVERY: Duration = Duration::from_millis(500);
/// Interval of reports; shorter when the catalog waits for one.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const REPORT_SOON: Duration = Duration::from_millis(200);

impl Catalog {
    /// Makes the log grow: a request that changes nothing, or a repeated registration, perhaps with
    /// disks that have moved.
    pub(super) fn chatter(&mut self, every: Duration) {
        if self.is_closing {
            return;
        }
        let host = self.rng.below(self.pods.len() as u64) as Host;
        let pod = &self.pods[host];
        let what = match self.rng.one_in(2) && pod.is_up && pod.has_joined {
            true => {
                let path = format!("disk-{}", self.asks.len());
                let moved = |disk: &NewDisk| NewDisk { path: path.clone(), ..disk.clone() };
                let disks = pod.disks.iter().map(moved);
                What::Register { host, life: pod.life, disks: disks.collect() }
            }
            false => What::DeleteNothing,
        };
        self.ask(what);
        self.schedule(every, Event::Chatter(every));
    }

    /// The tasks of a pod run.
    pub(super) fn tick(&mut self, host: Host, pods: &Pods<'_>) {
        for (from, packet) in std::mem::take(&mut self.pods[host].held) {
            self.arrived(from, host, packet);
        }
        let now = self.local_time(host);
        let pod = &mut self.pods[host];
        if now >= pod.tick_at {
            // Overdue ticks coalesce into one.
            pod.tick_at = now + TICK_EVERY;
            if let Some(member) = &mut pod.member {
                member.tick(now);
            }
        }
        if now >= pod.report_at {
            self.report(host, now, pods);
        }
        let at_ms = self.wall_ms();
        let begun = self.pods[host].access_rounds(host, now, at_ms);
        self.rounds.extend(begun);
        self.answer_orders(host);
        if now >= self.pods[host].reconcile_at {
            self.reconcile(host);
        }
        self.register_again(host, now);
        self.settle(host);
    }

    /// A pod registers again if its view has the pod or one of its disks elsewhere.
    fn register_again(&mut self, host: Host, now: Mono) {
        let pod = &mut self.pods[host];
        if pod.compares_at.is_none_or(|at| now < at) {
            return;
        }
        let addresses = pod.addresses.expect("every pod has an address");
        if !is_registered(pod.view(), pod_id(host), &addresses, &pod.disks) {
            pod.compares_at = None;
            let (life, disks) = (pod.life, pod.disks.clone());
            self.ask(What::Register { host, life, disks });
        }
    }

    fn report(&mut self, host: Host, now: Mono, pods: &Pods<'_>) {
        let Some(report) = (pods.report)(host) else { return };
        let pod = &mut self.pods[host];
        let soon = !pod.view().destroyed.is_empty();
        pod.report_at = now + if soon { REPORT_SOON } else { REPORT_EVERY };
        let applied = |member: &SimMember| (member.row().member, member.known().applied_index);
        let catalog = pod.member.as_ref().map(applied);
        let heard = Heard { report, is_open: true, catalog, ..Heard::default() };
        let me = pod_id(host);
        let leader = if pod.leads() { Some(me) } else { pod.leader(me) };
        if let Some(leader) = leader {
            self.send(host, host_of(leader), Packet::Report(me, Box::new(heard)));
        }
    }

    /// On the leader: decides the next actions, once all earlier ones are done.
    fn reconcile(&mut self, host: Host) {
        let (now, now_ms) = (self.local_time(host), self.wall_ms());
        let pod = &mut self.pods[host];
        pod.reconcile_at = now + RECONCILE_EVERY;
        let leads = pod.leads();
        pod.reports.set_leading(now, leads);
        let busy = pod.waiting.values().any(|waiting| matches!(waiting, Waiting::Reconciler));
        if !leads || busy {
            return;
        }
        let Some(known) = pod.member.as_ref().map(SimMember::known) else { return };
        let Some(state) = &known.state else { return };
        let pods = pod.reports.pods(now);
        let (group, applied) = (&known.group, known.applied_index);
        let facts = Facts::new(state, group, applied, pods, VOTER_LOST_AFTER, now_ms);
        pod.to_do = decide(state, &facts).into();
        self.continue_reconciling(host);
    }

    /// Carries out decisions, up to the next proposal.
    pub(super) fn continue_reconciling(&mut self, host: Host) {
        let (now, at_ms) = (self.local_time(host), self.wall_ms());
        let pod = &mut self.pods[host];
        let Some(member) = &mut pod.member else { return };
        while let Some(action) = pod.to_do.pop_front() {
            match action {
                Action::Change(change) => member.change(now, &change),
                Action::Propose(command) => {
                    let id = member.propose(now, at_ms, command);
                    pod.waiting.insert(id, Waiting::Reconciler);
                    return;
                }
            }
        }
    }

    pub(super) fn arrived(&mut self, from: Host, to: Host, packet: Packet) {
        let now = self.local_time(to);
        let pod = &mut self.pods[to];
        match packet {
            Packet::Raft(message) => {
                pod.learn(MemberId(message.from), pod_id(from));
                match &mut pod.member {
                    Some(member) if member.row().member.0 == message.to => {
                        member.step(now, message)
                    }
                    _ => return,
                }
            }
            Packet::Install { member: of, snapshot } => {
                let member = pod.member.as_mut().filter(|member| member.row().member == of);
                let ok = member.is_some();
                if let Some(member) = member {
                    member.install(now, snapshot.decode());
                }
                self.send(to, from, Packet::InstallEnded { member: of, ok });
            }
            Packet::InstallEnded { member: of, ok } => {
                let Some(member) = &mut pod.member else { return };
                member.resync_ended(now, of, ok);
            }
            Packet::Report(of, heard) if pod.leads() => {
                if pod.reports.hear(now, of, *heard) {
                    self.reconcile(to);
                }
            }
            Packet::Report(..) => return,
            Packet::Call(call) => return self.serve(to, call),
            Packet::Reply(call, verdict) => return self.call_ended(call, &verdict),
        }
        self.settle(to);
    }

    /// The sender of a packet gives up on it.
    pub(super) fn failed(&mut self, from: Host, to: Host, packet: Packet) {
        let now = self.local_time(from);
        let pod = &mut self.pods[from];
        match (packet, &mut pod.member) {
            (Packet::Raft(message), Some(member)) => {
                member.unreachable(now, MemberId(message.to));
            }
            (Packet::Install { member: of, .. }, Some(member)) => {
                member.resync_ended(now, of, false);
            }
            (Packet::Call(call), _) => self.call_ended(call, &Verdict::Again),
            (Packet::Report(..), _) if pod.leader_hint == Some(pod_id(to)) => {
                pod.leader_hint = None;
            }
            _ => return,
        }
        self.settle(from);
    }
}
