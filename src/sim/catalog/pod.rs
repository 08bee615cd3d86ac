//! The control plane of one simulated pod: its catalog member, if it has one, and the state of its
//! tasks. Durable state outlives the process.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use raft::eraftpb::Message;

use crate::control::access::AccessRounds;
use crate::control::catalog_member::{AskId, CatalogMember, Kept, Outbound, Published};
use crate::control::command::{Addresses, NewDisk, Outcome};
use crate::control::membership::{Step, step, unborn};
use crate::control::reconcile::Action;
use crate::control::reports::Table;
use crate::control::state::CatalogState;
use crate::control::state::view::part;
use crate::control::storage::Snapshot;
use crate::control::sync::follower::{Follower, Idle};
use crate::control::sync::mirror::Mirror;
use crate::control::sync::update::Update;
use crate::control::sync::wants::Wants;
use crate::level::Level;
use crate::sim::catalog::call::Call;
use crate::sim::catalog::network::Packet;
use crate::sim::catalog::orders::{Order, Told, Until};
use crate::sim::catalog::store::{Database, Encoded, SimStorage};
use crate::sim::names::Host;
use crate::types::{BlockError, MemberId, Mono, PodId, VolumeId};
use crate::view::ClusterView;
use crate::volume::access::AccessDone;

/// Messages of a member until its pod sends them.
#[derive(Clone, Default)]
pub struct Outbox(pub Rc<RefCell<Vec<(MemberId, Packet)>>>);

impl Outbound for Outbox {
    fn send(&self, message: Message) {
        let to = MemberId(message.to);
        self.0.borrow_mut().push((to, Packet::Raft(Box::new(message))));
    }

    fn install(&self, member: MemberId, snapshot: Snapshot) {
        let packet = Packet::Install { member, snapshot: Rc::new(Encoded::new(&snapshot)) };
        self.0.borrow_mut().push((member, packet));
    }
}

pub type SimMember = CatalogMember<SimStorage, Outbox>;

/// The purpose of an answer of the member.
pub enum Waiting {
    Reconciler,
    /// The end of a round is recorded.
    Access,
    /// A call that reads the leader's state, and the acknowledged index at its start.
    Read(Call, u64),
    CatalogCommand(Call),
}

/// Ends of rounds that the pod has not looked at yet.
pub type Answers = Arc<Mutex<Vec<(VolumeId, Result<AccessDone, BlockError>)>>>;

/// See the module.
#[derive(Default)]
pub struct ControlPod {
    /// Durable: the database of its member, and its newest two mirrors, as a pod may die before the
    /// last one is durable.
    pub database: Option<Rc<RefCell<Database>>>,
    pub mirrors: [Mirror; 2],
    /// What its clients use.
    pub wants: Wants,
    /// Follows the catalog through the pod's own member.
    pub follower: Option<Follower>,
    /// Durable as well: the pod has joined the cluster.
    pub has_joined: bool,
    /// The pod does not join before this moment.
    pub joins_at: Mono,
    pub addresses: Option<Addresses>,
    /// The newest feature level of its program, also of the next start.
    pub newest: Level,
    /// Grows with every start.
    pub life: u64,
    pub is_up: bool,
    /// The disks, as this life registers them.
    pub disks: Vec<NewDisk>,
    /// Time at which it compares views with its registration.
    pub compares_at: Option<Mono>,
    pub member: Option<SimMember>,
    pub outbox: Outbox,
    pub waiting: BTreeMap<AskId, Waiting>,
    /// Orders that were carried out, until shards have done their part.
    pub orders: Vec<(Call, Until)>,
    /// The known pods of catalog members.
    pub places: BTreeMap<MemberId, PodId>,
    /// The leader as another pod reported it.
    pub leader_hint: Option<PodId>,
    pub reports: Table,
    /// Decisions of the reconciler that are not carried out yet.
    pub to_do: VecDeque<Action>,
    /// Access sets that this leader has on their way to shards.
    pub rounds: AccessRounds,
    pub round_answers: Answers,
    /// When another pod is asked for each round, and how many were asked.
    pub helps: BTreeMap<VolumeId, (Mono, usize)>,
    /// Packets that arrived while the process was stopped.
    pub held: Vec<(Host, Packet)>,
    /// The next pod to ask for a view.
    pub next_target: usize,
    pub tick_at: Mono,
    pub reconcile_at: Mono,
    pub report_at: Mono,
    /// Term and index at the last note in the trace.
    pub noted: (u64, u64),
}

impl ControlPod {
    /// Starts the process from its durable state. `run`: random.
    pub fn start(&mut self, now: Mono, kept: Kept, run: u64) {
        let durable = ControlPod {
            database: self.database.take(),
            mirrors: self.mirrors.clone(),
            has_joined: self.has_joined,
            joins_at: self.joins_at,
            addresses: self.addresses,
            newest: self.newest,
            life: self.life + 1,
            is_up: true,
            wants: Wants::after_start(now, self.mirrors[1].wants()),
            ..ControlPod::default()
        };
        *self = durable;
        self.resume(now, kept, run);
    }

    /// Starts the member, if there is a database.
    pub fn resume(&mut self, now: Mono, kept: Kept, run: u64) {
        let Some(database) = &self.database else { return };
        database.borrow_mut().writes_left = None;
        let recovered = database.borrow().recover();
        let storage = SimStorage(Rc::clone(database));
        let member = SimMember::new(storage, recovered, kept, run, self.outbox.clone(), now);
        self.member = Some(member.expect("what a member wrote can be read"));
    }

    /// The process dies. The newest mirror may not be durable.
    pub fn crash(&mut self, keeps_mirror: bool) {
        self.is_up = false;
        self.member = None;
        self.outbox.0.borrow_mut().clear();
        if !keeps_mirror {
            self.mirrors[1] = self.mirrors[0].clone();
        }
    }

    pub fn known(&self) -> Option<&Published> {
        self.member.as_ref().map(SimMember::known)
    }

    pub fn state(&self) -> Option<&Arc<CatalogState>> {
        self.known()?.state.as_ref()
    }

    /// Its member leads and has applied everything of earlier terms.
    pub fn leads(&self) -> bool {
        self.known().is_some_and(|known| known.role.serving)
    }

    /// Its member knows the state and a leader: others may follow it.
    pub fn can_be_followed(&self) -> bool {
        self.state().is_some() && self.known_leader().is_some()
    }

    pub fn learn(&mut self, member: MemberId, pod: PodId) {
        self.places.insert(member, pod);
    }

    pub fn pod_of(&self, member: MemberId) -> Option<PodId> {
        let recorded = self.state().and_then(|state| state.catalog.get(&member)).map(|it| it.pod);
        recorded.or_else(|| self.places.get(&member).copied())
    }

    fn known_leader(&self) -> Option<MemberId> {
        let member = self.member.as_ref()?;
        member.known().leader(member.row().member)
    }

    /// The pod of the leader, as this pod (`me`) knows it; never itself.
    pub fn leader(&self, me: PodId) -> Option<PodId> {
        let known = self.known_leader().and_then(|leader| self.pod_of(leader));
        known.filter(|pod| *pod != me).or(self.leader_hint).filter(|pod| *pod != me)
    }

    /// The newest view of this pod.
    pub fn view(&self) -> &Arc<ClusterView> {
        self.mirrors[1].view()
    }

    /// Takes what the mirror lacks of the state of its own member.
    pub fn take_own_state(&mut self, me: PodId) {
        let Some(state) = self.state().cloned() else { return };
        let at = self.mirrors[1].position();
        let follower = self.follower.take().filter(|follower| follower.position() == at);
        let mut follower = follower.unwrap_or_else(|| self.new_follower(me));
        self.take_from(&mut follower, me, &state);
        self.follower = Some(follower);
    }

    /// Takes what the mirror lacks of the state of another pod's member, in a new stream.
    pub fn take_state(&mut self, me: PodId, state: &CatalogState) {
        let mut follower = self.new_follower(me);
        self.take_from(&mut follower, me, state);
    }

    fn new_follower(&self, me: PodId) -> Follower {
        let mirror = &self.mirrors[1];
        Follower::new(me, mirror.position(), mirror.volumes(), self.wants.volumes())
    }

    /// Differences must add up to all that concerns the pod.
    fn take_from(&mut self, follower: &mut Follower, me: PodId, state: &CatalogState) {
        let wants = self.wants.volumes();
        follower.want(wants.clone());
        let Some(update) = follower.next(state, Idle::Now) else { return };
        let update = Update::decode(&update.encode()).expect("our own update can be read");
        self.mirrors[0] = self.mirrors[1].clone();
        self.mirrors[1].take(&update).expect("one cluster has one history");
        let expected = part(state, me, &wants);
        assert_eq!(**self.view(), expected, "the differences do not add up to the whole");
    }

    /// Takes over the list of catalog members from another pod's state; true when this pod has a
    /// new member, which must be started.
    pub fn follow(&mut self, me: PodId, state: &CatalogState) -> bool {
        self.places.extend(state.catalog.iter().map(|(member, it)| (*member, it.pod)));
        let members: Vec<_> = state.catalog.iter().map(|(member, it)| (*member, it.pod)).collect();
        let row = self.database.as_ref().map(|database| database.borrow().row);
        match step(row, me, state.revision(), &members) {
            Step::Nothing => false,
            Step::Remove(_) => {
                (self.member, self.database) = (None, None);
                self.waiting.clear();
                false
            }
            Step::Create(row) => {
                let database = Database::create(row, &unborn());
                self.database = Some(Rc::new(RefCell::new(database)));
                true
            }
        }
    }

    /// The leader has carried out an order.
    pub fn carried_out(&mut self, call: Call, order: &Order, outcome: Outcome) {
        let Some(state) = self.state() else { return };
        let until = match (order, outcome) {
            (Order::Publish { .. }, Outcome::Attachment(volume, id)) => Until::Active((volume, id)),
            (Order::Claim { volume, .. }, Outcome::Attachment(_, attachment)) => {
                let record = state.volumes.get(volume).and_then(|it| it.file_system);
                let found = state.attachments.get(&(*volume, attachment));
                Until::Told(match found {
                    Some(found) => Told::Claimed { uid: found.uid, attachment, record },
                    None => Told::Gone,
                })
            }
            (Order::Unpublish { volume, node, .. }, _) => {
                let ending = state.attachments_of(*volume);
                let ending = ending.filter(|(_, it)| it.node == *node && it.ends_with.is_some());
                Until::Ended(ending.map(|(id, _)| (*volume, id)).collect())
            }
            (_, _) => Until::Told(Told::Done),
        };
        self.orders.push((call, until));
    }

    /// Takes the answers that are due; `None`: another pod leads by now.
    pub fn take_told(&mut self) -> Vec<(Call, Option<Told>)> {
        let orders = std::mem::take(&mut self.orders);
        let state = self.state().filter(|_| self.leads()).cloned();
        let mut answers = Vec::new();
        for (call, until) in orders {
            let told = match &state {
                None => Some(None),
                Some(state) => until.told(state).map(Some),
            };
            match told {
                Some(told) => answers.push((call, told)),
                None => self.orders.push((call, until)),
            }
        }
        answers
    }
}
