//! State shared by the tasks and services of one pod's control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Notify, watch};

use crate::control::catalog::Catalog;
use crate::control::command::{Addresses, NewDisk};
use crate::control::identity::{Identity, PodDirectory};
use crate::control::peers::Peers;
use crate::control::reports::Reports;
use crate::types::PodId;
use crate::view::{ClusterView, PodReport};

/// One pod's control plane.
pub struct Node {
    pub identity: Identity,
    pub addresses: Addresses,
    /// `host:port` of pods to ask when no other address answers.
    pub seeds: Vec<String>,
    pub directory: Mutex<PodDirectory>,
    pub peers: Peers,
    /// On the leader: the last report of every pod.
    pub reports: Reports,
    /// The newest view that this pod has.
    pub view: watch::Sender<Arc<ClusterView>>,
    /// The last report of this pod's data path.
    pub report: watch::Sender<Option<PodReport>>,
    /// This pod's disks, once they are open.
    pub disks: watch::Sender<Option<Vec<NewDisk>>>,
    /// Why this pod's member of the catalog stopped, when a restart of the pod may help.
    pub catalog_lost: watch::Sender<Option<String>>,
    /// Wakes the leader's reconciler.
    pub wake: Notify,
    /// A random number of the process.
    pub run: u64,
    catalog: RwLock<Option<Arc<Catalog>>>,
    leader: Mutex<Option<(PodId, SocketAddr)>>,
}

impl Node {
    pub fn new(
        identity: Identity,
        addresses: Addresses,
        seeds: Vec<String>,
        directory: PodDirectory,
        run: u64,
    ) -> Node {
        Node {
            identity,
            addresses,
            seeds,
            directory: Mutex::new(directory),
            peers: Peers::default(),
            reports: Reports::default(),
            view: watch::Sender::default(),
            report: watch::Sender::new(None),
            disks: watch::Sender::new(None),
            catalog_lost: watch::Sender::new(None),
            wake: Notify::new(),
            run,
            catalog: RwLock::new(None),
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

    /// Takes over a view that is newer than the current one.
    pub fn offer_view(&self, mut view: ClusterView) {
        self.view.send_if_modified(|current| {
            let newer = view.revision > current.revision;
            if newer {
                for pod in &view.pods {
                    self.peers.learn_recorded(pod.pod, pod.api);
                }
                view.share(current);
                *current = Arc::new(view);
            }
            newer
        });
    }

    /// The file that keeps the newest view for the next start.
    pub fn view_file(&self) -> PathBuf {
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        directory.path().join("view.json")
    }

    /// True when a message's cluster is this pod's.
    pub fn is_our_cluster(&self, cluster: &str) -> bool {
        cluster == self.identity.cluster.to_string()
    }
}
