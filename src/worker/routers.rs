//! The routers: volumes as clients of this pod use them.
//! - Owns: the routers, and the requests that other pods carry out for them.
//! - May call: nobody.
//! - Is told: requests of clients, leaders of shards, answers of members, and ends of links.

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::types::{BlockError, MemberId, Mono, PodId, VolumeId};
use crate::view::{ClusterView, VolumeView};
use crate::volume::{SessionSource, Volume, VolumeOutput};
use crate::worker::WorkerConfig;
use crate::worker::requests::{Answer, Asker};
use crate::worker::token::ConnKey;

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
    pub touched: Vec<VolumeId>,
    /// Routers with a deadline.
    waiting: Vec<VolumeId>,
    pub forwarded: FxHashMap<CallId, Forwarded>,
}

impl Routers {
    pub fn new(config: &WorkerConfig, sessions: SessionSource) -> Routers {
        Routers {
            own: config.pod,
            sessions,
            bytes_max: config.budgets.volume_bytes,
            all: FxHashMap::default(),
            touched: Vec::new(),
            waiting: Vec::new(),
            forwarded: FxHashMap::default(),
        }
    }

    /// The router, to give it an input. It is polled at the end of the round.
    pub fn at(&mut self, volume: VolumeId) -> Option<&mut Volume> {
        let router = self.all.get_mut(&volume)?;
        if !self.touched.contains(&volume) {
            self.touched.push(volume);
        }
        Some(router)
    }

    pub fn poll(&mut self, now: Mono, volume: VolumeId, outputs: &mut Vec<VolumeOutput>) {
        let Some(router) = self.all.get_mut(&volume) else { return };
        router.poll(now, outputs);
        if router.deadline().is_some() && !self.waiting.contains(&volume) {
            self.waiting.push(volume);
        }
    }

    pub fn tick(&mut self, now: Mono) {
        let volumes: Vec<VolumeId> = self.all.keys().copied().collect();
        for volume in volumes {
            self.at(volume).expect("it is here").tick(now);
        }
    }

    pub fn deadlines(&self) -> impl Iterator<Item = Mono> {
        self.waiting.iter().filter_map(|volume| self.all.get(volume)?.deadline())
    }

    /// Polls the routers whose deadline has come.
    pub fn wake(&mut self, now: Mono) {
        for volume in std::mem::take(&mut self.waiting) {
            match self.all.get(&volume).and_then(Volume::deadline) {
                Some(deadline) if deadline > now => self.waiting.push(volume),
                Some(_) => drop(self.at(volume)),
                None => {}
            }
        }
    }

    /// Takes the catalog's view of a volume that is not being deleted.
    pub fn update_view(&mut self, view: &VolumeView) {
        let new = || Volume::new(view.clone(), self.own, self.sessions.clone());
        let new = || new().with_bytes_max(self.bytes_max);
        let router = self.all.entry(view.volume);
        router.and_modify(|router| router.update_view(view)).or_insert_with(new);
        self.at(view.volume);
    }

    /// Volumes that the catalog deletes or does not have any more.
    pub fn gone(&self, view: &ClusterView) -> Vec<VolumeId> {
        let gone = |volume: &VolumeId| {
            !view.volumes.iter().any(|known| known.volume == *volume && !known.deleting)
        };
        self.all.keys().copied().filter(gone).collect()
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
