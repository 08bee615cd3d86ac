//! TLS of a worker's connections: makes the channels of links and clients.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};

use crate::front::nbd::Encryption;
use crate::io::buffer::Pool;
use crate::io::driver::Address;
use crate::net::handshake::Identity;
use crate::planted::planted;
use crate::security::certificate::Certificate;
use crate::security::channel::Channel;
use crate::security::credentials::{CredentialsError, Tls};
use crate::security::subject::{Role, Subject};
use crate::security::trust::Trust;
use crate::security::verifier::Expected;

/// What a worker presents and accepts.
#[derive(Clone, Debug)]
pub struct WorkerTls {
    dialled: Arc<ClientConfig>,
    called: Arc<ServerConfig>,
    clients: Arc<ServerConfig>,
    /// Clients over TCP may go without.
    plain_clients: bool,
    trust: Trust,
    /// The version of `trust` that the connections were compared with last.
    compared: u64,
}

impl WorkerTls {
    /// `plain_clients`: clients over TCP may go without.
    pub fn new(tls: &Tls, plain_clients: bool) -> Result<WorkerTls, CredentialsError> {
        Ok(WorkerTls {
            plain_clients,
            compared: tls.trust().version(),
            trust: tls.trust().clone(),
            dialled: Arc::new(tls.client(Expected::Member, true)?),
            called: Arc::new(tls.server(Expected::Member, true)?),
            clients: Arc::new(tls.server(Expected::VolumeUser, true)?),
        })
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// True when it has changed since the last call: connections are compared with it then (rule
    /// `void-connections-end`).
    pub fn has_new_trust(&mut self) -> bool {
        let version = self.trust.version();
        let is_new = version != self.compared && !planted!(VoidConnectionsStay);
        self.compared = version;
        is_new
    }

    /// For a link that this pod opened, to a pod of the cluster.
    pub fn dial(&self, pool: Pool) -> Channel {
        Channel::client(&self.dialled, pool)
    }

    /// For a link that another pod opened.
    pub fn called(&self, pool: Pool) -> Channel {
        Channel::server(&self.called, pool)
    }

    /// For a client of volumes.
    pub fn client(&self, pool: Pool) -> Channel {
        Channel::server(&self.clients, pool)
    }
}

/// What a listener for clients at this address says of TLS.
pub fn encryption_at(address: &Address, tls: Option<&WorkerTls>) -> Encryption {
    match (address, tls) {
        (Address::Unix(_), _) | (_, None) => Encryption::None,
        (Address::Tcp(_), Some(tls)) if tls.plain_clients => Encryption::Offered,
        (Address::Tcp(_), Some(_)) => Encryption::Required,
    }
}

/// True when the certificate is that of the pod which the handshake of a link names.
pub fn is_of(certificate: &Certificate, identity: &Identity) -> bool {
    let role = Role::Pod(identity.pod);
    certificate.subject == Subject { cluster: identity.cluster, role }
}
