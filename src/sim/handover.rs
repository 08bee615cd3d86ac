//! A volume whose holder changes: what the catalog does with attachments, until it does so itself.
//! The volume is closed from birth. Again and again a new access set goes to all of its shards, by
//! whatever pod is asked; other pods are asked when no answer comes. When all shards have it, the
//! attachments that it leaves out are fenced, and those that are new get clients. Fenced clients go
//! on asking. Now and then a set names an attachment that was fenced before, as a catalog that was
//! restored from an old copy would: shards must refuse it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::sim::rng::Rng;
use crate::types::{
    AccessMode, AccessSet, AttachmentId, BlockError, Generation, Grant, Mono, Uuid,
};
use crate::view::{AttachmentView, ClusterView, VolumeView};
use crate::volume::access::AccessDone;
use crate::worker::AccessAnswer;

/// The name of the volume.
pub const HANDED: &str = "handed";
/// Between rounds, on average.
const ROUNDS_EVERY: Duration = Duration::from_secs(2);
/// Another pod is asked after this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Holders move between pods about so often, in steps.
const MOVES_ONE_IN: u64 = 40;

/// The uids of its attachments: the last 8 bytes are their ids.
const UIDS: [u8; 16] = [0xa7; 16];

/// An attachment and its client.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub grant: Grant,
    /// What the exports say. They may be wrong: shards know.
    shown: AccessMode,
    /// The half of every block that it writes, if another holder writes the other half.
    pub half: Option<u64>,
    /// The number of its client.
    pub client: usize,
}

impl Holder {
    fn uid(&self) -> Uuid {
        let mut uid = UIDS;
        uid[8..].copy_from_slice(&self.grant.attachment.0.to_be_bytes());
        Uuid(uid)
    }

    /// The name of its export.
    pub fn export(&self) -> String {
        self.uid().to_string()
    }
}

/// What is to be done now.
pub enum Step {
    /// Have some pod do a round.
    Ask(AccessSet, AccessAnswer),
    /// The round has begun: these clients may be fenced from now on.
    MayBeFenced(usize),
    /// Every shard has the set: this client is fenced.
    Fenced(usize),
    /// This holder is admitted, and gets a client.
    Admitted(Holder),
    /// The client moves to another pod.
    Moves(usize),
}

type Answers = Arc<Mutex<Vec<Result<AccessDone, BlockError>>>>;

struct Round {
    set: AccessSet,
    holders: Vec<Holder>,
    /// It names an attachment that was fenced: no shard takes it.
    is_wrong: bool,
    asked_at: Option<Mono>,
    answers: Answers,
}

/// See the module.
pub struct Handover {
    rng: Rng,
    shards: usize,
    /// Counts attachments and generations.
    counter: u64,
    /// Who may use the volume, as every shard knows.
    holders: Vec<Holder>,
    fenced: Vec<Grant>,
    round: Option<Round>,
    next_at: Mono,
    /// Counts the changes of what pods are told.
    pub version: u64,
    /// Rounds that have ended.
    pub ended: u64,
}

impl Handover {
    pub fn new(seed: u64, shards: u64) -> Handover {
        Handover {
            rng: Rng::new(seed ^ 0xfe7ce),
            shards: shards as usize,
            counter: Handover::birth().generation.0,
            holders: Vec::new(),
            fenced: Vec::new(),
            round: None,
            next_at: Mono(0),
            version: 1,
            ended: 0,
        }
    }

    /// True for the name of the export of one of its attachments.
    pub fn gave(name: &str) -> bool {
        name.parse::<Uuid>().is_ok_and(|uid| uid.0[..8] == UIDS[..8])
    }

    /// Nobody may use it.
    fn birth() -> AccessSet {
        AccessSet { generation: Generation(1), open: false, grants: Vec::new() }
    }

    /// Makes the volume of a view what it is here: closed from birth.
    pub fn dress(handed: Option<&Handover>, view: &Arc<ClusterView>) -> Arc<ClusterView> {
        let Some(at) = view.volumes.iter().position(|volume| volume.name == HANDED) else {
            return Arc::clone(view);
        };
        let mut view = ClusterView::clone(view);
        let mut volume = VolumeView::clone(&view.volumes[at]);
        volume.open = false;
        volume.shards.iter_mut().for_each(|shard| shard.birth = Handover::birth());
        let io_timeout_ms = volume.io_timeout_ms;
        let shown = |holder: &Holder| AttachmentView {
            id: holder.grant.attachment,
            uid: holder.uid(),
            node: String::new(),
            mode: holder.shown,
            io_timeout_ms,
        };
        let holders = handed.into_iter().flat_map(|handed| &handed.holders);
        volume.attachments = holders.map(shown).collect();
        view.volumes[at] = Arc::new(volume);
        Arc::new(view)
    }

    /// `closing`: no further round begins.
    pub fn step(&mut self, now: Mono, closing: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.round.is_none() && now >= self.next_at && !closing {
            self.begin(&mut steps);
        }
        let Some(round) = &mut self.round else {
            self.move_someone(&mut steps);
            return steps;
        };
        let answer = round.answers.lock().expect("nobody panics with it").pop();
        if let Some(Ok(done)) = answer
            && done.shards == self.shards
        {
            self.end(now, done, &mut steps);
        } else if round.asked_at.is_none_or(|asked| now.since(asked) >= ASK_AGAIN_AFTER) {
            round.asked_at = Some(now);
            let answers = Arc::clone(&round.answers);
            let answer = move |result| answers.lock().expect("nobody panics with it").push(result);
            steps.push(Step::Ask(round.set.clone(), AccessAnswer(Box::new(answer))));
        }
        steps
    }

    fn move_someone(&mut self, steps: &mut Vec<Step>) {
        if !self.holders.is_empty() && self.rng.one_in(MOVES_ONE_IN) {
            let holder = self.rng.index(self.holders.len());
            steps.push(Step::Moves(self.holders[holder].client));
        }
    }

    fn begin(&mut self, steps: &mut Vec<Step>) {
        let back = match self.rng.one_in(4) {
            true => self.fenced.last().copied(),
            false => None,
        };
        let (mut holders, is_wrong) = (Vec::new(), back.is_some());
        match back {
            Some(grant) => {
                holders.push(Holder { grant, shown: grant.mode, half: None, client: usize::MAX });
            }
            None => self.choose(&mut holders),
        }
        self.counter += 1;
        let set = AccessSet {
            generation: Generation(self.counter),
            open: false,
            grants: holders.iter().map(|holder| holder.grant).collect(),
        };
        let leaves = |old: &&Holder| !set.grants.contains(&old.grant) && !is_wrong;
        let fenced = self.holders.iter().filter(leaves);
        steps.extend(fenced.map(|holder| Step::MayBeFenced(holder.client)));
        let answers = Answers::default();
        self.round = Some(Round { set, holders, is_wrong, asked_at: None, answers });
    }

    /// The next holders: one that reads and writes, or two that share the volume in one way. One of
    /// two may stay, with the sessions that it has.
    fn choose(&mut self, holders: &mut Vec<Holder>) {
        let modes = [
            AccessMode::ReadWrite,
            AccessMode::ReadWrite,
            AccessMode::ReadWrite,
            AccessMode::ReadOnly,
            AccessMode::Raw,
        ];
        let mut mode = modes[self.rng.index(modes.len())];
        if let Some(stays) = self.holders.first().copied()
            && stays.grant.mode != AccessMode::ReadWrite
            && self.rng.one_in(2)
        {
            mode = stays.grant.mode;
            holders.push(stays);
        }
        let count = if mode == AccessMode::ReadWrite { 1 } else { 2 };
        while holders.len() < count {
            self.counter += 1;
            let grant = Grant { attachment: AttachmentId(self.counter), mode };
            let taken = holders.first().and_then(|first| first.half);
            let half = (mode == AccessMode::Raw).then(|| taken.map_or(0, |half| 1 - half));
            let shown = match self.rng.one_in(2) {
                true => mode,
                false => AccessMode::ReadWrite,
            };
            holders.push(Holder { grant, shown, half, client: usize::MAX });
        }
    }

    fn end(&mut self, now: Mono, done: AccessDone, steps: &mut Vec<Step>) {
        let round = self.round.take().expect("it has an answer");
        let rest = ROUNDS_EVERY.as_nanos() as u64;
        self.next_at = now + Duration::from_nanos(self.rng.below(2 * rest));
        let taken = done.generation >= round.set.generation;
        assert_ne!(taken, round.is_wrong, "{:?} of {done:?}, wrong or not", round.set);
        self.ended += u64::from(taken);
        if !taken {
            return;
        }
        let stays = |holder: &Holder| round.set.grants.contains(&holder.grant);
        for old in self.holders.iter().filter(|old| !stays(old)) {
            self.fenced.push(old.grant);
            steps.push(Step::Fenced(old.client));
        }
        let is_new = |holder: &&Holder| holder.client == usize::MAX;
        steps.extend(round.holders.iter().filter(is_new).map(|holder| Step::Admitted(*holder)));
        self.holders = round.holders;
        self.version += 1;
    }

    /// The holder has got this client.
    pub fn attached(&mut self, attachment: AttachmentId, client: usize) {
        let of = |holder: &&mut Holder| holder.grant.attachment == attachment;
        let holder = self.holders.iter_mut().find(of).expect("it was just admitted");
        holder.client = client;
    }
}
