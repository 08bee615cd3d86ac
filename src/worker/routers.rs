//! The routers: volumes as clients of this pod use them.
//! - Owns: the routers, and the requests that other pods carry out for them.
//! - May call: nobody.
//! - Is told: requests of clients, leaders of shards, answers of members, and ends of links.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::types::{BlockError, MemberId, Mono, PodId, VolumeId};
use crate::view::VolumeView;
use crate::volume::{SessionSource, Volume, VolumeOutput};
use crate::worker::WorkerConfig;
use crate::worker::requests::{Answer, Asker};
use crate::worker::token::ConnKey;
use crate::worker::touched::Touched;

/// A request of a router here that another pod carries out.
pub struct Forwarded {
    pub conn: ConnKey,
    pub asker: Asker,
    pub member: MemberId,
}

/// The routers of a worker.
pub struct Routers {
    own: PodId,
    sessions: SessionSource,
    bytes_max: usize,
    pub all: FxHashMap<VolumeId, Volume>,
    /// Routers with unpolled inputs.
    pub touched: Touched<VolumeId>,
    /// Routers with a deadline, by time, and the deadline of each.
    due: BTreeSet<(Mono, VolumeId)>,
    deadlines: FxHashMap<VolumeId, Mono>,
    /// Routers that wait for an answer: only these need ticks.
    asking: BTreeSet<VolumeId>,
    pub forwarded: FxHashMap<CallId, Forwarded>,
}

impl Routers {
    pub fn new(config: &WorkerConfig, sessions: SessionSource) -> Routers {
        Routers {
            own: config.pod,
            sessions,
            bytes_max: config.budgets.volume_bytes,
            all: FxHashMap::default(),
            touched: Touched::default(),
            due: BTreeSet::new(),
            deadlines: FxHashMap::default(),
            asking: BTreeSet::new(),
            forwarded: FxHashMap::default(),
        }
    }

    /// The router, to give it an input. It is polled at the end of the round.
    pub fn at(&mut self, volume: VolumeId) -> Option<&mut Volume> {
        let router = self.all.get_mut(&volume)?;
        self.touched.push(volume);
        Some(router)
    }

    pub fn poll(&mut self, now: Mono, volume: VolumeId, outputs: &mut Vec<VolumeOutput>) {
        let Some(router) = self.all.get_mut(&volume) else { return };
        router.poll(now, outputs);
        // Only a poll asks, and only a poll moves the deadline of a router that has no input.
        if router.is_asking() {
            self.asking.insert(volume);
        }
        let deadline = router.deadline();
        self.set_deadline(volume, deadline);
    }

    fn set_deadline(&mut self, volume: VolumeId, deadline: Option<Mono>) {
        let before = match deadline {
            Some(deadline) => self.deadlines.insert(volume, deadline),
            None => self.deadlines.remove(&volume),
        };
        if before != deadline {
            before.map(|before| self.due.remove(&(before, volume)));
            self.due.extend(deadline.map(|deadline| (deadline, volume)));
        }
    }

    pub fn tick(&mut self, now: Mono) {
        let Routers { all, asking, touched, .. } = self;
        asking.retain(|volume| {
            let asks = all.get_mut(volume).filter(|router| router.is_asking());
            let still = asks.is_some();
            if let Some(router) = asks {
                router.tick(now);
                touched.push(*volume);
            }
            still
        });
    }

    /// The first time at which a router must be polled without an input.
    pub fn deadline(&self) -> Option<Mono> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// Polls the routers whose deadline has come.
    pub fn wake(&mut self, now: Mono) {
        while let Some((deadline, volume)) = self.due.first().copied()
            && deadline <= now
        {
            self.set_deadline(volume, None);
            self.at(volume);
        }
    }

    /// Forgets a router that is removed.
    pub fn forget(&mut self, volume: VolumeId) {
        self.all.remove(&volume);
        self.asking.remove(&volume);
        self.set_deadline(volume, None);
    }

    /// Takes the catalog's view of a volume that is not being deleted.
    pub fn update_view(&mut self, view: &VolumeView) {
        let new = || Volume::new(view.clone(), self.own, self.sessions.clone());
        let new = || new().with_bytes_max(self.bytes_max);
        let router = self.all.entry(view.volume);
        router.and_modify(|router| router.update_view(view)).or_insert_with(new);
        self.at(view.volume);
    }

    /// A member answers.
    pub fn answered(&mut self, now: Mono, of: Asker, member: MemberId, term: u64, answer: Answer) {
        let (volume, ticket) = of;
        if let Some(router) = self.at(volume) {
            router.shard_result(now, ticket, member, term, answer);
        }
    }

    /// Another pod answers.
    pub fn response(&mut self, now: Mono, call: CallId, term: u64, answer: Answer) {
        if let Some(Forwarded { asker, member, .. }) = self.forwarded.remove(&call) {
            self.answered(now, asker, member, term, answer);
        }
    }

    /// Answers requests over a lost connection with `Unknown`: their outcome is not known.
    pub fn link_ended(&mut self, now: Mono, conn: ConnKey) {
        let of =
            |(call, forwarded): (&CallId, &Forwarded)| (forwarded.conn == conn).then_some(*call);
        let lost: Vec<CallId> = self.forwarded.iter().filter_map(of).collect();
        for call in lost {
            self.response(now, call, 0, Err(BlockError::Unknown));
        }
    }
}
