//! The control plane of one simulated pod: its member of the catalog, if it has one, and what its
//! tasks know. What is durable outlives the process.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use raft::eraftpb::Message;

use crate::control::catalog_member::{AskId, CatalogMember, Kept, Outbound, Published};
use crate::control::command::{Addresses, NewDisk};
use crate::control::membership::{Step, step, unborn};
use crate::control::reconcile::Action;
use crate::control::reports::Table;
use crate::control::state::State;
use crate::control::storage::Snapshot;
use crate::sim::catalog::call::Call;
use crate::sim::catalog::network::Packet;
use crate::sim::catalog::store::{Database, Encoded, SimStorage};
use crate::sim::names::Host;
use crate::types::{MemberId, Mono, PodId};
use crate::view::ClusterView;

/// What a member sends, until its pod has time to.
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

pub type Member = CatalogMember<SimStorage, Outbox>;

/// What an answer of the member is for.
pub enum Waiting {
    Reconciler,
    /// A call that needs what the leader knows, and what had been acknowledged when it asked.
    Read(Call, u64),
    Command(Call),
}

/// See the module.
#[derive(Default)]
pub struct ControlPod {
    /// Durable: the database of its member, and the last view that it was given and the one
    /// before: a pod may die before the last is durable.
    pub database: Option<Rc<RefCell<Database>>>,
    pub views: [Arc<ClusterView>; 2],
    /// Durable as well: it is part of the cluster.
    pub has_joined: bool,
    /// Before this moment it does not want to be.
    pub joins_at: Mono,
    pub addresses: Option<Addresses>,
    /// Grows with every start.
    pub life: u64,
    pub is_up: bool,
    /// As this life of it registers them.
    pub disks: Vec<NewDisk>,
    /// When it compares views with that, once it has registered.
    pub compares_at: Option<Mono>,
    pub member: Option<Member>,
    pub outbox: Outbox,
    pub waiting: BTreeMap<AskId, Waiting>,
    /// Where members of the catalog live, as far as anybody said.
    pub places: BTreeMap<MemberId, PodId>,
    /// What another pod said of the leader.
    pub leader_hint: Option<PodId>,
    pub reports: Table,
    /// What the reconciler decided and has not done yet.
    pub to_do: VecDeque<Action>,
    /// What arrived while the process stood still.
    pub held: Vec<(Host, Packet)>,
    /// The next pod to be asked for a view.
    pub next_target: usize,
    pub tick_at: Mono,
    pub reconcile_at: Mono,
    pub report_at: Mono,
    /// Where it last noticed that something had happened, for the trace.
    pub noted: (u64, u64),
}

impl ControlPod {
    /// Starts the process on what is durable. `run`: random.
    pub fn start(&mut self, now: Mono, kept: Kept, run: u64) {
        let durable = ControlPod {
            database: self.database.take(),
            views: self.views.clone(),
            has_joined: self.has_joined,
            joins_at: self.joins_at,
            addresses: self.addresses,
            life: self.life + 1,
            is_up: true,
            ..ControlPod::default()
        };
        *self = durable;
        self.resume(now, kept, run);
    }

    /// Starts the member whose database is there.
    pub fn resume(&mut self, now: Mono, kept: Kept, run: u64) {
        let Some(database) = &self.database else { return };
        database.borrow_mut().writes_left = None;
        let recovered = database.borrow().recover();
        let storage = SimStorage(Rc::clone(database));
        let member = Member::new(storage, recovered, kept, run, self.outbox.clone(), now);
        self.member = Some(member.expect("what a member wrote can be read"));
    }

    /// The process is gone. The newest view may not have been written down.
    pub fn crash(&mut self, keeps_view: bool) {
        self.is_up = false;
        self.member = None;
        self.outbox.0.borrow_mut().clear();
        if !keeps_view {
            self.views[1] = Arc::clone(&self.views[0]);
        }
    }

    pub fn known(&self) -> Option<&Published> {
        self.member.as_ref().map(Member::known)
    }

    pub fn state(&self) -> Option<&Arc<State>> {
        self.known()?.state.as_ref()
    }

    /// It has a member that leads and has applied everything of earlier terms.
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
        let recorded = self.state().and_then(|state| state.catalog.get(&member));
        recorded.or_else(|| self.places.get(&member)).copied()
    }

    fn known_leader(&self) -> Option<MemberId> {
        let member = self.member.as_ref()?;
        member.known().leader(member.row().member)
    }

    /// The pod that leads, as far as this one (`me`) knows; never itself.
    pub fn leader(&self, me: PodId) -> Option<PodId> {
        let known = self.known_leader().and_then(|leader| self.pod_of(leader));
        known.filter(|pod| *pod != me).or(self.leader_hint).filter(|pod| *pod != me)
    }

    /// The newest view that this pod was given.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.views[1]
    }

    pub fn offer_view(&mut self, state: &State) {
        if state.revision > self.view().revision {
            self.views[0] = Arc::clone(&self.views[1]);
            self.views[1] = Arc::new(state.view());
        }
    }

    /// Follows the list of the catalog's members that another pod's state has; true when this
    /// pod's own member is a new one, which has to be started.
    pub fn follow(&mut self, me: PodId, state: &State) -> bool {
        self.places.extend(state.catalog.iter().map(|(member, pod)| (*member, *pod)));
        let members: Vec<_> = state.catalog.iter().map(|(member, pod)| (*member, *pod)).collect();
        let row = self.database.as_ref().map(|database| database.borrow().row);
        match step(row, me, state.revision, &members) {
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
}
