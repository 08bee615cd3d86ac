//! Other pods: their addresses, and connections to them.
//!
//! Addresses come from the catalog's state and from every message. A restarted pod may have a new
//! one, which the catalog can record only after its members have found each other.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::control::connector::Connector;
use crate::control::proto::internal::catalog_client::CatalogClient;
use crate::control::state::CatalogState;
use crate::types::{MemberId, PodId};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than any wait of the other end within a call. The sending of a state has its own.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of keep-alive pings. Without an answer within [`KEEP_ALIVE_WITHIN`] the connection is
/// closed, and its waiting calls fail: later they would be outdated.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
pub const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(3);
/// The largest message between pods: a report of a pod with very many replicas.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub struct Peers {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    pods: HashMap<PodId, SocketAddr>,
    members: HashMap<MemberId, PodId>,
    /// Addresses in the last state. A message's address is overridden only when these change.
    recorded: HashMap<PodId, SocketAddr>,
    channels: HashMap<SocketAddr, Channel>,
    /// Without an end to their calls: streams last as long as the pods.
    streams: HashMap<SocketAddr, Channel>,
    /// `None`: this pod has no certificate, nor have the others.
    connector: Option<Connector>,
}

impl Peers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No update can be left half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects under TLS from now on.
    pub fn use_tls(&self, connector: Connector) {
        self.inner().connector = Some(connector);
    }

    /// Takes over the addresses and members in the catalog's state.
    pub fn learn_state(&self, state: &CatalogState) {
        let mut inner = self.inner();
        for (pod, record) in state.pods.iter() {
            inner.record(*pod, record.addresses.api);
        }
        inner.members.extend(state.catalog.iter().map(|(member, it)| (*member, it.pod)));
    }

    /// Takes over the recorded address of one pod.
    pub fn learn_recorded(&self, pod: PodId, api: SocketAddr) {
        self.inner().record(pod, api);
    }

    /// Records the address that a message from the pod gave.
    pub fn learn(&self, pod: PodId, api: SocketAddr) {
        self.inner().pods.insert(pod, api);
    }

    /// Records the pod of a member of the catalog.
    pub fn learn_member(&self, member: MemberId, pod: PodId) {
        self.inner().members.insert(member, pod);
    }

    pub fn pod_of(&self, member: MemberId) -> Option<PodId> {
        self.inner().members.get(&member).copied()
    }

    pub fn api_of(&self, pod: PodId) -> Option<SocketAddr> {
        self.inner().pods.get(&pod).copied()
    }

    /// All known addresses, ordered by pod.
    pub fn all(&self) -> Vec<(PodId, SocketAddr)> {
        let mut all: Vec<_> = self.inner().pods.iter().map(|(pod, api)| (*pod, *api)).collect();
        all.sort_unstable();
        all
    }

    /// The connection to an address, opened at its first use and kept.
    pub fn channel(&self, api: SocketAddr) -> Channel {
        let Inner { channels, connector, .. } = &mut *self.inner();
        let new = || connect(endpoint(api).timeout(CALL_TIMEOUT), connector.as_ref());
        channels.entry(api).or_insert_with(new).clone()
    }

    /// A client of another pod's internal service, for its streams.
    pub fn streaming(&self, api: SocketAddr) -> CatalogClient<Channel> {
        let Inner { streams, connector, .. } = &mut *self.inner();
        let new = || connect(endpoint(api), connector.as_ref());
        CatalogClient::new(streams.entry(api).or_insert_with(new).clone())
    }

    /// A client of another pod's internal service.
    pub fn catalog(&self, api: SocketAddr) -> CatalogClient<Channel> {
        CatalogClient::new(self.channel(api))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Inner {
    fn record(&mut self, pod: PodId, api: SocketAddr) {
        if self.recorded.insert(pod, api) != Some(api) {
            self.pods.insert(pod, api);
        }
    }
}

fn connect(endpoint: Endpoint, connector: Option<&Connector>) -> Channel {
    match connector {
        Some(connector) => endpoint.connect_with_connector_lazy(connector.clone()),
        None => endpoint.connect_lazy(),
    }
}

fn endpoint(api: SocketAddr) -> Endpoint {
    // A URI cannot express the scope of an IPv6 address.
    let api = SocketAddr::new(api.ip(), api.port());
    Endpoint::from_shared(format!("http://{api}"))
        .expect("an address makes a URI")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}
