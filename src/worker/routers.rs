//! The routers: volumes as clients of this pod use them, one for each attachment.
//! - Owns: the routers, the requests that other pods carry out for them, and who waits for changes
//!   of access.
//! - May call: nobody.
//! - Is told: requests of clients, leaders of shards, answers of members, and ends of links.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::net::message::CallId;
use crate::planted::planted;
use crate::telemetry::metrics::data_path::DataPath as Meters;
use crate::types::{AccessSet, AttachmentId, BlockError, MemberId, Mono, VolumeId};
use crate::view::VolumeView;
use crate::volume::access::{AccessDone, RoundId};
use crate::volume::{FrontEnd, Ticket, Volume, VolumeOutput};
use crate::worker::WorkerConfig;
use crate::worker::requests::{Answer, Asker, RouterKey};
use crate::worker::token::ConnKey;
use crate::worker::touched::Touched;

/// A request of a router here that another pod carries out.
pub struct Forwarded {
    pub conn: ConnKey,
    pub asker: Asker,
    pub member: MemberId,
    /// When it was sent.
    pub since: Mono,
}

/// Takes the end of a change of access, on the worker's thread: it must not block. It is dropped
/// without a call when the worker ends.
pub struct AccessAnswer(pub Box<dyn FnOnce(Result<AccessDone, BlockError>) + Send>);

impl fmt::Debug for AccessAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessAnswer")
    }
}

/// The routers of a worker.
pub struct Routers {
    front_end: FrontEnd,
    bytes_max: usize,
    /// Each volume of the view has one without an attachment, whoever may use it: it also carries
    /// changes of access. Those of attachments are there while clients use them.
    pub all: FxHashMap<RouterKey, Volume>,
    views: FxHashMap<VolumeId, Arc<VolumeView>>,
    /// The attachments with a router, of volumes that have some.
    attached: FxHashMap<VolumeId, BTreeSet<AttachmentId>>,
    /// Who waits for the end of a round.
    rounds: FxHashMap<(VolumeId, RoundId), AccessAnswer>,
    /// Routers with unpolled inputs.
    pub touched: Touched<RouterKey>,
    /// Routers with a deadline, by time, and the deadline of each.
    due: BTreeSet<(Mono, RouterKey)>,
    deadlines: FxHashMap<RouterKey, Mono>,
    /// Routers that wait for an answer, or whose requests may wait for too long: only these need
    /// ticks.
    asking: BTreeSet<RouterKey>,
    /// The number of each router, and the next one.
    lives: FxHashMap<RouterKey, u64>,
    next_life: u64,
    pub forwarded: FxHashMap<CallId, Forwarded>,
    meters: Arc<Meters>,
}

impl Routers {
    pub fn new(config: &WorkerConfig, meters: Arc<Meters>) -> Routers {
        Routers {
            front_end: FrontEnd::new(config.pod, config.process),
            bytes_max: config.budgets.volume_bytes,
            all: FxHashMap::default(),
            views: FxHashMap::default(),
            attached: FxHashMap::default(),
            rounds: FxHashMap::default(),
            touched: Touched::default(),
            due: BTreeSet::new(),
            deadlines: FxHashMap::default(),
            asking: BTreeSet::new(),
            lives: FxHashMap::default(),
            next_life: 0,
            forwarded: FxHashMap::default(),
            meters,
        }
    }

    /// The router, to give it an input. It is polled at the end of the round.
    pub fn at(&mut self, key: RouterKey) -> Option<&mut Volume> {
        let router = self.all.get_mut(&key)?;
        self.touched.push(key);
        Some(router)
    }

    /// All routers of a volume.
    pub fn of_volume(&self, volume: VolumeId) -> Vec<RouterKey> {
        let attached = self.attached.get(&volume).into_iter().flatten().copied();
        let all = std::iter::once(AttachmentId::NONE).chain(attached);
        all.map(|attachment| (volume, attachment)).collect()
    }

    /// A client uses a volume now: its router is there, unless the volume is gone.
    pub fn open(&mut self, key: RouterKey) {
        let (volume, attachment) = key;
        let Some(view) = self.views.get(&volume) else { return };
        if !self.all.contains_key(&key) {
            let router = Volume::new(view, attachment, self.front_end);
            self.all.insert(key, router.with_bytes_max(self.bytes_max));
            self.begin_life(key);
            self.attached.entry(volume).or_default().insert(attachment);
        }
    }

    /// Forgets the router of an attachment that nobody uses any more.
    pub fn retire(&mut self, key: RouterKey) {
        let (volume, attachment) = key;
        let is_unused = self.all.get(&key).is_some_and(Volume::is_unused);
        if attachment == AttachmentId::NONE || !is_unused {
            return;
        }
        self.remove(key);
        if let Some(attached) = self.attached.get_mut(&volume) {
            attached.remove(&attachment);
            if attached.is_empty() {
                self.attached.remove(&volume);
            }
        }
    }

    /// Has an access set committed in every shard of a volume.
    pub fn set_access(&mut self, volume: VolumeId, set: AccessSet, answer: AccessAnswer) {
        match self.at((volume, AttachmentId::NONE)) {
            Some(router) => {
                let round = router.set_access(set);
                self.rounds.insert((volume, round), answer);
            }
            None => (answer.0)(Err(BlockError::NoSuchVolume)),
        }
    }

    /// A round has ended.
    pub fn access_set(
        &mut self,
        volume: VolumeId,
        round: RoundId,
        result: Result<AccessDone, BlockError>,
    ) {
        if let Some(answer) = self.rounds.remove(&(volume, round)) {
            (answer.0)(result);
        }
    }

    pub fn poll(&mut self, now: Mono, key: RouterKey, outputs: &mut Vec<VolumeOutput>) {
        let Some(router) = self.all.get_mut(&key) else { return };
        router.poll(now, outputs);
        // Only a poll asks, and only a poll moves the deadline of a router that has no input.
        if router.needs_ticks() {
            self.asking.insert(key);
        }
        let deadline = router.deadline();
        self.set_deadline(key, deadline);
    }

    fn set_deadline(&mut self, key: RouterKey, deadline: Option<Mono>) {
        let before = match deadline {
            Some(deadline) => self.deadlines.insert(key, deadline),
            None => self.deadlines.remove(&key),
        };
        if before != deadline {
            before.map(|before| self.due.remove(&(before, key)));
            self.due.extend(deadline.map(|deadline| (deadline, key)));
        }
    }

    pub fn tick(&mut self, now: Mono) {
        let Routers { all, asking, touched, .. } = self;
        let mut ended = Vec::new();
        asking.retain(|key| {
            let asks = all.get_mut(key).filter(|router| router.needs_ticks());
            let still = asks.is_some();
            if let Some(router) = asks {
                router.tick(now);
                touched.push(*key);
            }
            ended.extend((!still).then_some(*key));
            still
        });
        // A client may have gone while something was in flight.
        ended.into_iter().for_each(|key| self.retire(key));
    }

    /// The first time at which a router must be polled without an input.
    pub fn deadline(&self) -> Option<Mono> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// Polls the routers whose deadline has come.
    pub fn wake(&mut self, now: Mono) {
        while let Some((deadline, key)) = self.due.first().copied()
            && deadline <= now
        {
            self.set_deadline(key, None);
            self.at(key);
        }
    }

    /// Forgets the routers of a volume that is gone.
    pub fn forget(&mut self, volume: VolumeId) {
        self.of_volume(volume).into_iter().for_each(|key| self.remove(key));
        self.views.remove(&volume);
        self.attached.remove(&volume);
        self.rounds.retain(|(of, _), _| *of != volume);
    }

    fn begin_life(&mut self, key: RouterKey) {
        self.next_life += 1;
        self.lives.insert(key, self.next_life);
    }

    /// A request of a router that is there.
    pub fn asker(&self, router: RouterKey, ticket: Ticket) -> Asker {
        Asker { router, life: self.lives[&router], ticket }
    }

    fn remove(&mut self, key: RouterKey) {
        self.all.remove(&key);
        self.lives.remove(&key);
        self.asking.remove(&key);
        self.set_deadline(key, None);
    }

    /// True when this view has less of a volume than its routers use.
    pub fn refuses(&self, view: &VolumeView) -> bool {
        let known = self.views.get(&view.volume);
        !view.deleting && known.is_some_and(|known| view.shrinks(known))
    }

    /// Takes the catalog's view of a volume that is not being deleted. One that shrinks the volume
    /// is not followed: requests may be in flight behind its end.
    pub fn update_view(&mut self, view: &Arc<VolumeView>) {
        if self.refuses(view) {
            tracing::error!(
                volume = %view.volume, name = %view.name, size_bytes = view.size_bytes,
                "the catalog says that a volume has become smaller, which none does; the pod goes \
                 on with the size that it knows: the catalog was probably restored from an old copy"
            );
            return;
        }
        let own = (view.volume, AttachmentId::NONE);
        self.views.insert(view.volume, Arc::clone(view));
        if !self.all.contains_key(&own) {
            let router = Volume::new(view, own.1, self.front_end).with_bytes_max(self.bytes_max);
            self.all.insert(own, router);
            self.begin_life(own);
        }
        for key in self.of_volume(view.volume) {
            if let Some(router) = self.at(key) {
                router.update_view(view);
            }
            self.retire(key);
        }
    }

    /// A member answers.
    pub fn answered(&mut self, now: Mono, of: Asker, member: MemberId, term: u64, answer: Answer) {
        let Asker { router: key, life, ticket } = of;
        if self.lives.get(&key) != Some(&life) && !planted!(LateAnswersTaken) {
            // The router that asked is gone.
            return;
        }
        if let Some(router) = self.at(key) {
            router.shard_result(now, ticket, member, term, answer);
        }
    }

    /// Another pod answers.
    pub fn response(&mut self, now: Mono, call: CallId, term: u64, answer: Answer) {
        if let Some(Forwarded { asker, member, since, .. }) = self.forwarded.remove(&call) {
            if answer.is_ok() {
                self.meters.forwarded.record(now.since(since), 1);
            }
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

#[cfg(test)]
#[path = "routers_test.rs"]
mod tests;
