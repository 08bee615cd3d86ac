//! One pod's control plane: starts and stops all of its parts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;

use crate::config::{Config, ConfigError};
use crate::control::api::attachments::AttachmentsService;
use crate::control::api::catalog::CatalogService;
use crate::control::api::catalog_admin::CatalogAdminService;
use crate::control::api::classes::ClassesService;
use crate::control::api::cluster::ClusterService;
use crate::control::api::credentials::CredentialsService;
use crate::control::api::disks::DisksService;
use crate::control::api::events::EventsService;
use crate::control::api::guard::guarded;
use crate::control::api::health;
use crate::control::api::joining::JoiningService;
use crate::control::api::nodes::NodesService;
use crate::control::api::pods::PodsService;
use crate::control::api::rounds::RoundsService;
use crate::control::api::shards::ShardsService;
use crate::control::api::volumes::VolumesService;
use crate::control::api_meters::Counted;
use crate::control::catalog::chain;
use crate::control::command::Addresses;
use crate::control::connections::{Accepts, Connection, accept, accept_local};
use crate::control::connector::{acceptor, connector};
use crate::control::data_path::{ControlLink, DataPath};
use crate::control::identity::{Identity, PodDirectory, random_uuid};
use crate::control::join::{JoinError, identity};
use crate::control::local::listen;
use crate::control::machine::this_node;
use crate::control::membership;
use crate::control::node::Node;
use crate::control::node_meters::NodeMeters;
use crate::control::observe::observe;
use crate::control::own_certificate::keep_certificate;
use crate::control::peers::{KEEP_ALIVE_EVERY, KEEP_ALIVE_WITHIN, MESSAGE_BYTES_MAX};
use crate::control::proto::DESCRIPTORS;
use crate::control::proto::attachments_server::AttachmentsServer;
use crate::control::proto::catalog_admin_server::CatalogAdminServer;
use crate::control::proto::classes_server::ClassesServer;
use crate::control::proto::cluster_server::ClusterServer;
use crate::control::proto::credentials_server::CredentialsServer;
use crate::control::proto::disks_server::DisksServer;
use crate::control::proto::events_server::EventsServer;
use crate::control::proto::internal::catalog_server::CatalogServer;
use crate::control::proto::internal::joining_server::JoiningServer;
use crate::control::proto::internal::rounds_server::RoundsServer;
use crate::control::proto::nodes_server::NodesServer;
use crate::control::proto::pods_server::PodsServer;
use crate::control::proto::shards_server::ShardsServer;
use crate::control::proto::volumes_server::VolumesServer;
use crate::control::recover;
use crate::control::resolve;
use crate::control::revival::revive;
use crate::control::rounds;
use crate::control::supersede::tell_left_behind;
use crate::control::supervise::supervise;
use crate::control::sync::kept::Kept;
use crate::control::sync::mirror::Mirror;
use crate::control::tasks;
use crate::control::tls::{
    OwnTlsError, give_authority, load_own, trust_pods_of, trust_pods_of_views,
};
use crate::control::voucher::Voucher;
use crate::security::credentials::Tls;
use crate::security::trust::Trust;
use crate::view::ClusterView;

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("could not listen on {listen} for the API; free the port, or change `api.listen`")]
    Listen {
        listen: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("could not read random bytes")]
    Random(#[source] std::io::Error),
    #[error(transparent)]
    Tls(#[from] OwnTlsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// How long interrupted tasks may take to end.
const UNLOCK_WITHIN: Duration = Duration::from_secs(5);
/// Connections of local administrators.
const LOCAL_CONNECTIONS_MAX: usize = 32;
const UNLOCK_LOOK: Duration = Duration::from_millis(5);
/// Before the API is served again after an error.
const API_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One pod's control plane.
pub struct Server {
    node: Arc<Node>,
    /// `None`: this pod has no certificate.
    tls: Option<Tls>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// Starts the API, this pod's member of the catalog, and the tasks around them. Waits until the
    /// pod has joined a cluster, if it belongs to none yet. `connections_max`: to the API.
    pub async fn start(
        config: &Config,
        mut directory: PodDirectory,
        connections_max: usize,
    ) -> Result<Server, StartError> {
        let listen = config.api.listen;
        let fail = |source| StartError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        let local = listener.local_addr().map_err(fail)?;
        let addresses = Addresses {
            api: config.api.advertise.unwrap_or(local),
            peer: config.peer_address(),
            nbd: Some(config.nbd_address()),
        };
        let machine = this_node(config);
        let (identity, others) = identity(config, &mut directory, addresses, &machine).await?;
        let tls = load_own(&config.data, identity)?;
        let accepts = accepts(config, tls.as_ref())?;
        let trust = tls.as_ref().map(|tls| tls.trust().clone());
        let run = random_uuid().map_err(StartError::Random)?;
        let run = u64::from_le_bytes(run.0[..8].try_into().expect("8 of 16 bytes"));
        let seeds = config.join.iter().cloned().chain(others).collect();
        let node = Arc::new(Node::new(identity, addresses, machine, seeds, directory, run));
        if let Some(tls) = &tls {
            node.peers.use_tls(connector(tls).map_err(OwnTlsError::from)?);
        }
        load_mirror(&node);
        if let Some(trust) = &trust {
            node.use_trust(trust.clone());
            trust_pods_of(&node.view.borrow(), trust);
            trust.set_revoked(node.revoked());
        }
        let begun = match recover::resume(&node) {
            Ok(None) => membership::resume(&node).await.map_err(|error| chain(&error)),
            Ok(recovery) => {
                node.set_recovery(recovery);
                Ok(())
            }
            Err(error) => Err(chain(&error)),
        };
        if let Err(reason) = begun {
            // The data path and the other members of the catalog can do without this one.
            tracing::error!("this pod takes no part in the catalog: {reason}");
            node.catalog_lost.send_replace(Some(reason));
        }
        let (stop, stopped) = watch::channel(false);
        let data = config.data.clone();
        let doors = Doors { listen, connections_max, accepts, trust, data };
        let server = Server { node: node.clone(), tls, stop, tasks: Mutex::default() };
        // The first time with the port that is held already.
        let first = Arc::new(Mutex::new(Some(listener)));
        server.keep("api", move |node| {
            let listener = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            serve_api_on(node, listener, doors.clone(), stopped.clone())
        });
        server.keep("follow_own_member", tasks::follow_own_member);
        server.keep("follow_others", tasks::follow_others);
        server.keep("keep_wants", resolve::keep_wants);
        server.keep("register", tasks::register);
        server.keep("report", tasks::report);
        server.keep("reconcile", tasks::reconcile);
        server.keep("record_events", tasks::record_events);
        server.keep("revive_catalog", revive);
        server.keep("observe", observe);
        server.keep("recover", recover::recover);
        server.keep("supersede", tell_left_behind);
        if let Some(tls) = server.tls.clone() {
            let trust = tls.trust().clone();
            server.keep("keep_certificate", move |node| keep_certificate(node, tls.clone()));
            server.keep("trust", move |node| trust_pods_of_views(node, trust.clone()));
            let tls = config.data.join("tls");
            server.keep("give_authority", move |node| give_authority(node, tls.clone()));
        }
        Ok(server)
    }

    /// TLS of this pod; `None`: it has no certificate.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub fn identity(&self) -> Identity {
        self.node.identity
    }

    /// The addresses of this pod's API, peers and NBD.
    pub fn addresses(&self) -> Addresses {
        self.node.addresses
    }

    /// Takes what the data path says and asks.
    pub fn control_link(&self) -> ControlLink {
        ControlLink {
            report: self.node.report.clone(),
            uses: self.node.uses.clone(),
            questions: self.node.questions.clone(),
        }
    }

    /// The metrics of the control plane.
    pub fn meters(&self) -> NodeMeters {
        NodeMeters(Arc::downgrade(&self.node))
    }

    /// The newest view, and every later one.
    pub fn views(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.node.view.subscribe()
    }

    /// The index that this pod's member of the catalog has applied; 0 without a member.
    pub fn catalog_applied(&self) -> u64 {
        let catalog = self.node.catalog();
        catalog.map_or(0, |catalog| catalog.published.borrow().applied_index)
    }

    /// Registers the data path's disks, and gives it the view and every later one.
    pub fn attach(&self, data_path: Arc<dyn DataPath>) {
        self.node.disks.send_replace(Some(data_path.disks()));
        self.node.use_data_path(&data_path);
        let of = data_path.clone();
        self.keep("hand_over_views", move |node| tasks::hand_over_views(node, of.clone()));
        let of = data_path.clone();
        self.keep("set_access", move |node| rounds::set_access(node, of.clone()));
        self.keep("resolve", move |node| resolve::answer_questions(node, data_path.clone()));
    }

    /// Programs get certificates by what `voucher` says of them.
    pub fn use_voucher(&self, voucher: Arc<dyn Voucher>) {
        self.node.use_voucher(voucher);
    }

    /// Stops everything in order. The catalog's log is closed and the directory unlocked when this
    /// returns.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        membership::stop(&self.node).await;
        // Interrupted tasks and requests drop the node a moment later.
        let (node, deadline) = (Arc::downgrade(&self.node), Instant::now() + UNLOCK_WITHIN);
        drop(self);
        while node.strong_count() > 0 && Instant::now() < deadline {
            sleep(UNLOCK_LOOK).await;
        }
        if node.strong_count() > 0 {
            tracing::warn!("stopped, but a task still holds the lock of this pod's directory");
        }
    }

    /// Runs a task in the background, and again when it panics.
    fn keep<T>(&self, name: &'static str, task: impl Fn(Arc<Node>) -> T + Send + Sync + 'static)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let node = self.node.clone();
        let kept = supervise(name, node.restarts.clone(), move || task(node.clone()));
        let task = tokio::spawn(kept);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }
}

/// Where the API is served, and for whom.
#[derive(Clone)]
struct Doors {
    listen: SocketAddr,
    connections_max: usize,
    accepts: Accepts,
    /// `None`: this pod has no certificate.
    trust: Option<Trust>,
    data: PathBuf,
}

/// Serves the API until the pod stops, on `listener` or a new one.
async fn serve_api_on(
    node: Arc<Node>,
    mut listener: Option<TcpListener>,
    doors: Doors,
    stopped: watch::Receiver<bool>,
) {
    let Doors { listen, connections_max, accepts, trust, data } = doors;
    while !*stopped.borrow() {
        let ended = match listener.take() {
            Some(listener) => {
                let incoming = accept(listener, connections_max, accepts.clone(), trust.clone());
                let incoming = incoming.merge(administrators(&data));
                let served =
                    serve_api(node.clone(), incoming, trust.clone(), stopped.clone()).await;
                served.map_err(|error| chain(&error))
            }
            None => Err("it has no listener".to_owned()),
        };
        if *stopped.borrow() {
            return;
        }
        let reason = ended.err();
        tracing::error!(reason, "the API server ended; it is started again");
        sleep(API_AGAIN_AFTER).await;
        listener = TcpListener::bind(listen).await.ok();
    }
}

async fn serve_api(
    node: Arc<Node>,
    incoming: impl Stream<Item = std::io::Result<Connection>>,
    trust: Option<Trust>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let catalog = CatalogServer::new(CatalogService { node: node.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .expect("our own definitions can be read");
    let routes = Routes::new(counted(&node, catalog))
        .add_service(counted(&node, JoiningServer::new(JoiningService { node: node.clone() })))
        .add_service(counted(&node, RoundsServer::new(RoundsService::new(node.clone()))))
        .add_service(health::service(&node))
        .add_service(reflection)
        .add_service(counted(
            &node,
            AttachmentsServer::new(AttachmentsService { node: node.clone() }),
        ))
        .add_service(counted(&node, EventsServer::new(EventsService { node: node.clone() })))
        .add_service(counted(
            &node,
            CatalogAdminServer::new(CatalogAdminService { node: node.clone() }),
        ))
        .add_service(counted(&node, ClassesServer::new(ClassesService { node: node.clone() })))
        .add_service(counted(&node, ClusterServer::new(ClusterService { node: node.clone() })))
        .add_service(counted(
            &node,
            CredentialsServer::new(CredentialsService { node: node.clone() }),
        ))
        .add_service(counted(&node, DisksServer::new(DisksService { node: node.clone() })))
        .add_service(counted(&node, NodesServer::new(NodesService { node: node.clone() })))
        .add_service(counted(&node, PodsServer::new(PodsService { node: node.clone() })))
        .add_service(counted(&node, ShardsServer::new(ShardsService { node: node.clone() })))
        .add_service(counted(&node, VolumesServer::new(VolumesService { node: node.clone() })));
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WITHIN))
        .add_routes(guarded(routes, trust))
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the server is gone: stop as well.
            let _stopped = stopped.wait_for(|stopped| *stopped).await;
        })
        .await
}

/// A service whose requests show in the metrics.
fn counted<S>(node: &Arc<Node>, service: S) -> Counted<S> {
    Counted { service, meters: node.api_meters.clone() }
}

/// Connections of local administrators. A pod that cannot take them goes without.
fn administrators(data: &Path) -> Pin<Box<dyn Stream<Item = std::io::Result<Connection>> + Send>> {
    let own = rustix::process::getuid().as_raw();
    match listen(data) {
        Ok(listener) => Box::pin(accept_local(listener, LOCAL_CONNECTIONS_MAX, own)),
        Err(error) => {
            tracing::error!("there is no local socket of the API: {}", chain(&error));
            Box::pin(tokio_stream::empty())
        }
    }
}

/// How the API takes connections over TCP.
fn accepts(config: &Config, tls: Option<&Tls>) -> Result<Accepts, StartError> {
    let Some(tls) = tls else {
        config.check_without_certificate()?;
        return Ok(Accepts::Plain);
    };
    let acceptor = acceptor(tls).map_err(OwnTlsError::from)?;
    Ok(match config.api.plaintext {
        true => Accepts::Both(acceptor),
        false => Accepts::Tls(acceptor),
    })
}

/// Loads what this pod knew when it ran last: by that it may serve at once.
fn load_mirror(node: &Node) {
    let path: PathBuf = node.sync_file();
    match Kept::open(&path) {
        Ok((kept, mirror)) => match mirror.view().cluster == node.identity.cluster {
            true => node.start_from(mirror, kept),
            false => node.start_from(Mirror::default(), kept),
        },
        Err(error) => tracing::warn!("{} cannot be read; ignored: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_member_of_the_catalog_that_is_lost_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let mut config: Config = toml::from_str("data = 'set below'").unwrap();
        config.data = root.path().to_owned();
        config.init = true;
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        let directory = PodDirectory::open(&config.data).unwrap();
        let server = Server::start(&config, directory, 16).await.unwrap();
        let node = server.node.clone();
        let mut view = server.views();
        view.wait_for(|view| view.revision > 0).await.unwrap();
        let before = node.catalog().unwrap();
        node.catalog_lost.send_replace(Some("the disk is full".to_owned()));
        let again = || node.catalog().filter(|now| !Arc::ptr_eq(now, &before) && now.leads());
        while again().is_none() {
            sleep(UNLOCK_LOOK).await;
        }
        assert_eq!(*node.catalog_lost.borrow(), None);
        assert_eq!(again().unwrap().row, before.row);
        drop(node);
        server.stop().await;
    }
}
