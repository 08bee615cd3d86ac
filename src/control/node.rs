//! State shared by the tasks and services of one pod's control plane.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::control::api_meters::ApiMeters;
use crate::control::catalog::Catalog;
use crate::control::command::{Addresses, NewDisk, NewNode};
use crate::control::data_path::DataPath;
use crate::control::identity::{Identity, PodDirectory};
use crate::control::observed::Observed;
use crate::control::peers::Peers;
use crate::control::recovery::running::Recovery;
use crate::control::reports::Reports;
use crate::control::state::rows::TrustedRoot;
use crate::control::supervise::Restarts;
use crate::control::sync::follower::Follower;
use crate::control::sync::kept::{Keeper, Kept};
use crate::control::sync::mirror::{Mirror, MirrorError};
use crate::control::sync::update::{Position, Update};
use crate::control::sync::wants::{Full, Wants};
use crate::control::trusting::{Told, Trusting};
use crate::control::voucher::Voucher;
use crate::io::clock;
use crate::security::certificate::Root;
use crate::security::trust::Trust;
use crate::types::{MemberId, Mono, PodId, Uuid, VolumeId};
use crate::view::{ClusterView, PodReport};
use crate::worker::Question;

/// Questions of the data path that wait to be looked at. Beyond that, clients get an error.
const QUESTIONS_MAX: usize = 64;

/// Rounds of access sets that other pods are asked for at a time.
const HELPS_MAX: usize = 64;

/// One pod's control plane.
pub struct Node {
    pub identity: Identity,
    pub addresses: Addresses,
    /// The machine of this pod.
    pub machine: NewNode,
    /// `host:port` of pods to ask when no other address answers.
    pub seeds: Vec<String>,
    pub directory: Mutex<PodDirectory>,
    pub peers: Peers,
    /// On the leader: the last report of every pod.
    pub reports: Reports,
    /// On the leader: what all objects are like, and since when.
    pub observed: Observed,
    /// The newest view that this pod has.
    pub view: watch::Sender<Arc<ClusterView>>,
    /// The newest view that the data path has.
    pub handed_over: watch::Sender<Arc<ClusterView>>,
    /// The volumes that clients of this pod use.
    pub uses: watch::Sender<Arc<BTreeSet<VolumeId>>>,
    /// The volumes that this pod wants to be told of.
    pub wanted: watch::Sender<Arc<BTreeSet<VolumeId>>>,
    /// What the data path asks, and who answers.
    pub questions: mpsc::Sender<Question>,
    pub asked: tokio::sync::Mutex<mpsc::Receiver<Question>>,
    /// The last report of this pod's data path.
    pub report: watch::Sender<Option<PodReport>>,
    /// This pod's disks, once they are open.
    pub disks: watch::Sender<Option<Vec<NewDisk>>>,
    /// Why this pod's member of the catalog does not run, until it does again.
    pub catalog_lost: watch::Sender<Option<String>>,
    /// Whom this pod trusts by now, as it tells the leader.
    pub trusting: watch::Sender<Trusting>,
    /// Set once, when this pod has a certificate.
    trust: OnceLock<Trust>,
    /// Set once, when an orchestrator vouches for programs.
    voucher: OnceLock<Arc<dyn Voucher>>,
    /// Room for rounds that other pods are asked for.
    pub helps: Semaphore,
    /// Wakes the leader's reconciler.
    pub wake: Notify,
    /// A random number of the process.
    pub run: u64,
    /// Requests to the API.
    pub api_meters: Arc<ApiMeters>,
    /// Background tasks that were started again.
    pub restarts: Arc<Restarts>,
    /// Weak: the data path may hold this node.
    data_path: OnceLock<Weak<dyn DataPath>>,
    mirror: Mutex<(Mirror, Option<Keeper>)>,
    /// The last update did not fit.
    asks_anew: AtomicBool,
    wants: Mutex<Wants>,
    catalog: RwLock<Option<Arc<Catalog>>>,
    recovery: watch::Sender<Option<Arc<Recovery>>>,
    leader: Mutex<Option<(PodId, SocketAddr)>>,
}

impl Node {
    pub fn new(
        identity: Identity,
        addresses: Addresses,
        machine: NewNode,
        seeds: Vec<String>,
        directory: PodDirectory,
        run: u64,
    ) -> Node {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        Node {
            identity,
            addresses,
            machine,
            seeds,
            directory: Mutex::new(directory),
            peers: Peers::default(),
            reports: Reports::default(),
            observed: Observed::new(run),
            view: watch::Sender::default(),
            handed_over: watch::Sender::default(),
            uses: watch::Sender::default(),
            wanted: watch::Sender::default(),
            questions,
            asked: tokio::sync::Mutex::new(asked),
            report: watch::Sender::new(None),
            disks: watch::Sender::new(None),
            catalog_lost: watch::Sender::new(None),
            trusting: watch::Sender::default(),
            trust: OnceLock::new(),
            voucher: OnceLock::new(),
            helps: Semaphore::new(HELPS_MAX),
            data_path: OnceLock::new(),
            wake: Notify::new(),
            run,
            mirror: Mutex::default(),
            asks_anew: AtomicBool::new(false),
            wants: Mutex::default(),
            api_meters: Arc::default(),
            restarts: Arc::default(),
            catalog: RwLock::new(None),
            recovery: watch::Sender::new(None),
            leader: Mutex::new(None),
        }
    }

    /// This pod's member of the catalog, if it has one.
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the member and returns the old one.
    pub fn set_catalog(&self, catalog: Option<Arc<Catalog>>) -> Option<Arc<Catalog>> {
        let mut place = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut place, catalog)
    }

    /// The recovery of the catalog that this pod carries out.
    pub fn recovery(&self) -> Option<Arc<Recovery>> {
        self.recovery.borrow().clone()
    }

    pub fn set_recovery(&self, recovery: Option<Arc<Recovery>>) {
        self.recovery.send_replace(recovery);
    }

    /// Tells when the recovery ends.
    pub fn recoveries(&self) -> watch::Receiver<Option<Arc<Recovery>>> {
        self.recovery.subscribe()
    }

    /// True when this pod has a member of the catalog that knows a leader.
    pub fn knows_leader(&self) -> bool {
        self.catalog().is_some_and(|catalog| {
            let published = catalog.published.borrow();
            published.state.is_some() && published.leader(catalog.row.member).is_some()
        })
    }

    /// This pod's member, when it leads.
    pub fn leading(&self) -> Option<Arc<Catalog>> {
        self.catalog().filter(|catalog| catalog.leads())
    }

    /// The pod that leads the catalog, as far as known; never this pod.
    pub fn leader(&self) -> Option<(PodId, SocketAddr)> {
        let known = self.catalog().and_then(|catalog| {
            let published = catalog.published.borrow();
            let me = catalog.row.member;
            let leader = published.leader(me).filter(|leader| *leader != me)?;
            let pod = self.peers.pod_of(leader)?;
            Some((pod, self.peers.api_of(pod)?))
        });
        let hint = || *self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        known.or_else(hint).filter(|(pod, _)| *pod != self.identity.pod)
    }

    /// Records what another pod said of the leader; `None` when that proved wrong.
    pub fn set_leader(&self, leader: Option<(PodId, SocketAddr)>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    /// How far this pod knows the catalog.
    pub fn position(&self) -> Position {
        self.mirror().0.position()
    }

    /// Follows the catalog from what this pod knows.
    pub fn follower(&self) -> Follower {
        let (position, volumes) = self.known();
        let wants = (**self.wanted.borrow()).clone();
        Follower::new(self.identity.pod, position, volumes, wants)
    }

    /// How far this pod knows the catalog, and the volumes that it knows. Nothing, after an update
    /// that did not fit: then it has to be told everything again.
    pub fn known(&self) -> (Position, BTreeSet<VolumeId>) {
        if self.asks_anew.load(Ordering::Relaxed) {
            return (Position::default(), BTreeSet::new());
        }
        let mirror = &self.mirror().0;
        (mirror.position(), mirror.volumes())
    }

    /// The data path of this pod, from now on.
    pub fn use_data_path(&self, data_path: &Arc<dyn DataPath>) {
        // There is one in the life of a pod.
        let _first = self.data_path.set(Arc::downgrade(data_path));
    }

    /// The data path of this pod, while it runs.
    pub fn data_path(&self) -> Option<Arc<dyn DataPath>> {
        self.data_path.get()?.upgrade()
    }

    /// Somebody is about to use volumes here, for so long at least.
    pub fn want(
        &self,
        volumes: impl IntoIterator<Item = VolumeId>,
        time: Duration,
    ) -> Result<(), Full> {
        self.with_wants(|wants, now| {
            volumes.into_iter().try_for_each(|volume| wants.want(now, volume, time))
        })
    }

    /// Clients use these volumes. Returns when a want ends.
    pub fn keep_wants(&self, used: &BTreeSet<VolumeId>) -> Option<Mono> {
        self.with_wants(|wants, now| {
            wants.used(now, used);
            wants.expire(now)
        })
    }

    fn with_wants<T>(&self, change: impl FnOnce(&mut Wants, Mono) -> T) -> T {
        let mut wants = self.wants.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut wants, clock::now());
        let volumes = wants.volumes();
        self.wanted.send_if_modified(|wanted| {
            let is_new = **wanted != volumes;
            if is_new {
                *wanted = Arc::new(volumes);
            }
            is_new
        });
        result
    }

    /// The members of the catalog and their pods, as far as this pod knows, and the revision.
    pub fn catalog_members(&self) -> (u64, Vec<(MemberId, PodId)>) {
        let mirror = &self.mirror().0;
        (mirror.position().revision, mirror.catalog())
    }

    /// Takes what this pod lacks, and shows it to the data path.
    pub fn take_update(&self, update: Update) -> Result<(), MirrorError> {
        let mut place = self.mirror();
        let (mirror, keeper) = &mut *place;
        let taken = mirror.take(&update);
        let asks_anew = taken.as_ref().is_err_and(|error| error.asks_anew());
        self.asks_anew.store(asks_anew, Ordering::Relaxed);
        taken?;
        self.show(mirror);
        if let Some(keeper) = keeper {
            keeper.keep(update, mirror);
        }
        Ok(())
    }

    /// All that this pod was told.
    pub fn mirror_copy(&self) -> Update {
        let mirror = self.mirror().0.clone();
        mirror.whole()
    }

    /// Starts from what this pod knew when it ran last, and keeps what it learns.
    pub fn start_from(&self, mirror: Mirror, kept: Kept) {
        let mut place = self.mirror();
        self.show(&mirror);
        self.with_wants(|wants, now| *wants = Wants::after_start(now, mirror.wants()));
        *place = (mirror, Some(Keeper::start(kept)));
    }

    fn show(&self, mirror: &Mirror) {
        let view = mirror.view();
        if view.pods != self.view.borrow().pods {
            for pod in &view.pods {
                self.peers.learn_recorded(pod.pod, pod.api);
            }
        }
        for (member, pod) in mirror.catalog() {
            self.peers.learn_member(member, pod);
        }
        self.view.send_replace(Arc::clone(view));
    }

    fn mirror(&self) -> MutexGuard<'_, (Mirror, Option<Keeper>)> {
        // No update is left half done.
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uid that this pod chose before it joined.
    pub fn uid(&self) -> Uuid {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner).file().uid
    }

    /// The serials of certificates that are void before their time, as far as this pod knows.
    pub fn revoked(&self) -> Vec<String> {
        self.mirror().0.revoked()
    }

    /// Whom this pod trusts, from now on.
    pub fn use_trust(&self, trust: Trust) {
        // There is one in the life of a pod.
        let _first = self.trust.set(trust);
    }

    /// Programs get certificates by what this one says of them, from now on.
    pub fn use_voucher(&self, voucher: Arc<dyn Voucher>) {
        // There is one in the life of a pod.
        let _first = self.voucher.set(voucher);
    }

    /// Who vouches for programs; `None`: nobody.
    pub fn voucher(&self) -> Option<Arc<dyn Voucher>> {
        self.voucher.get().cloned()
    }

    /// The authorities that this pod trusts.
    pub fn trusted_roots(&self) -> Vec<Root> {
        self.trust.get().map(Trust::roots).unwrap_or_default()
    }

    /// What the catalog says of authorities, and the revision that this pod has followed.
    pub fn told_roots(&self) -> (u64, Told<TrustedRoot>) {
        let mirror = &self.mirror().0;
        (mirror.position().revision, mirror.roots())
    }

    /// This pod's own directory.
    pub fn data(&self) -> PathBuf {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        directory.path().to_owned()
    }

    /// The file that keeps the mirror for the next start.
    pub fn sync_file(&self) -> PathBuf {
        self.data().join("sync")
    }

    /// True when a message's cluster is this pod's.
    pub fn is_our_cluster(&self, cluster: &str) -> bool {
        cluster == self.identity.cluster.to_string()
    }
}
