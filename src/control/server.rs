//! One pod's control plane: starts and stops all of its parts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;

use crate::config::Config;
use crate::control::api::catalog::CatalogService;
use crate::control::api::classes::ClassesService;
use crate::control::api::cluster::ClusterService;
use crate::control::api::disks::DisksService;
use crate::control::api::health;
use crate::control::api::joining::JoiningService;
use crate::control::api::nodes::NodesService;
use crate::control::api::pods::PodsService;
use crate::control::api::shards::ShardsService;
use crate::control::api::volumes::VolumesService;
use crate::control::catalog::chain;
use crate::control::command::Addresses;
use crate::control::connections::{Connection, accept};
use crate::control::data_path::{DataPath, ReportSink};
use crate::control::identity::{Identity, PodDirectory, random_uuid};
use crate::control::join::{JoinError, identity};
use crate::control::machine::this_node;
use crate::control::membership;
use crate::control::node::Node;
use crate::control::observe::observe;
use crate::control::peers::{KEEP_ALIVE_EVERY, KEEP_ALIVE_WITHIN, MESSAGE_BYTES_MAX};
use crate::control::proto::DESCRIPTORS;
use crate::control::proto::classes_server::ClassesServer;
use crate::control::proto::cluster_server::ClusterServer;
use crate::control::proto::disks_server::DisksServer;
use crate::control::proto::internal::catalog_server::CatalogServer;
use crate::control::proto::internal::joining_server::JoiningServer;
use crate::control::proto::nodes_server::NodesServer;
use crate::control::proto::pods_server::PodsServer;
use crate::control::proto::shards_server::ShardsServer;
use crate::control::proto::volumes_server::VolumesServer;
use crate::control::sync::kept::Kept;
use crate::control::sync::mirror::Mirror;
use crate::control::tasks;
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
}

/// Why a part of the control plane ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerFailure {
    #[error("the API server failed")]
    Api(#[from] tonic::transport::Error),
    #[error("the API server ended")]
    Ended,
    #[error(
        "this pod's member of the catalog has stopped ({reason}); look at the disk that holds \
         `data`, and start the pod again"
    )]
    Catalog { reason: String },
}

/// How long interrupted tasks may take to end.
const UNLOCK_WITHIN: Duration = Duration::from_secs(5);
const UNLOCK_LOOK: Duration = Duration::from_millis(5);

/// One pod's control plane.
pub struct Server {
    node: Arc<Node>,
    stop: watch::Sender<bool>,
    api: tokio::sync::Mutex<Option<JoinHandle<Result<(), tonic::transport::Error>>>>,
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
        let run = random_uuid().map_err(StartError::Random)?;
        let run = u64::from_le_bytes(run.0[..8].try_into().expect("8 of 16 bytes"));
        let seeds = config.join.iter().cloned().chain(others).collect();
        let node = Arc::new(Node::new(identity, addresses, machine, seeds, directory, run));
        load_mirror(&node);
        if let Err(error) = membership::resume(&node).await {
            // The data path and the other members of the catalog can do without this one.
            tracing::error!("this pod takes no part in the catalog: {}", chain(&error));
        }
        let (stop, stopped) = watch::channel(false);
        let api = tokio::spawn(serve_api(node.clone(), accept(listener, connections_max), stopped));
        let server = Server {
            node: node.clone(),
            stop,
            api: tokio::sync::Mutex::new(Some(api)),
            tasks: Mutex::default(),
        };
        server.spawn(tasks::follow_own_member(node.clone()));
        server.spawn(tasks::follow_others(node.clone()));
        server.spawn(tasks::register(node.clone()));
        server.spawn(tasks::report(node.clone()));
        server.spawn(tasks::reconcile(node.clone()));
        server.spawn(observe(node));
        Ok(server)
    }

    pub fn identity(&self) -> Identity {
        self.node.identity
    }

    /// The addresses of this pod's API, peers and NBD.
    pub fn addresses(&self) -> Addresses {
        self.node.addresses
    }

    /// Takes the data path's reports.
    pub fn report_sink(&self) -> ReportSink {
        ReportSink { report: self.node.report.clone() }
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
        self.spawn(tasks::hand_over_views(self.node.clone(), data_path.clone()));
        self.spawn(tasks::set_access(self.node.clone(), data_path));
    }

    /// Returns when a part has failed that needs a restart of the pod.
    pub async fn failed(&self) -> ServerFailure {
        let mut lost = self.node.catalog_lost.subscribe();
        let lost = async {
            match lost.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
                Ok(reason) => ServerFailure::Catalog { reason: reason.unwrap_or_default() },
                Err(_) => ServerFailure::Ended,
            }
        };
        tokio::select! {
            failure = self.api_failed() => failure,
            failure = lost => failure,
        }
    }

    async fn api_failed(&self) -> ServerFailure {
        let mut api = self.api.lock().await;
        match api.as_mut() {
            Some(running) => {
                let ended = running.await;
                *api = None;
                match ended {
                    Ok(Err(error)) => error.into(),
                    Ok(Ok(())) | Err(_) => ServerFailure::Ended,
                }
            }
            None => ServerFailure::Ended,
        }
    }

    /// Stops everything in order. The catalog's log is closed and the directory unlocked when this
    /// returns.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        if let Some(api) = self.api.lock().await.take() {
            api.abort();
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

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }
}

async fn serve_api(
    node: Arc<Node>,
    incoming: impl Stream<Item = std::io::Result<Connection>>,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let catalog = CatalogServer::new(CatalogService { node: node.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .expect("our own definitions can be read");
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_WITHIN))
        .add_service(catalog)
        .add_service(JoiningServer::new(JoiningService { node: node.clone() }))
        .add_service(health::service(&node))
        .add_service(reflection)
        .add_service(ClassesServer::new(ClassesService { node: node.clone() }))
        .add_service(ClusterServer::new(ClusterService { node: node.clone() }))
        .add_service(DisksServer::new(DisksService { node: node.clone() }))
        .add_service(NodesServer::new(NodesService { node: node.clone() }))
        .add_service(PodsServer::new(PodsService { node: node.clone() }))
        .add_service(ShardsServer::new(ShardsService { node: node.clone() }))
        .add_service(VolumesServer::new(VolumesService { node }))
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the server is gone: stop as well.
            let _stopped = stopped.wait_for(|stopped| *stopped).await;
        })
        .await
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
    async fn a_pod_whose_member_of_the_catalog_is_lost_has_failed() {
        let root = tempfile::tempdir().unwrap();
        let mut config: Config = toml::from_str("data = 'set below'").unwrap();
        config.data = root.path().to_owned();
        config.init = true;
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        let directory = PodDirectory::open(&config.data).unwrap();
        let server = Server::start(&config, directory, 16).await.unwrap();
        server.node.catalog_lost.send_replace(Some("the disk is full".to_owned()));
        let failure = server.failed().await.to_string();
        assert!(failure.contains("the disk is full"), "{failure}");
        server.stop().await;
    }
}
