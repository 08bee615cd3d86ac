//! The listener for metrics and health.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, loopback, ports};

/// Where a pod serves `/metrics`, `/healthz`, `/readyz` and `/instep`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub listen: SocketAddr,
    /// Serves on an address that others can reach. There is no TLS: everybody there can read how
    /// much is stored and done, and nothing else.
    #[serde(default)]
    pub plaintext: bool,
}

impl Http {
    /// Listens at this address.
    pub fn at(listen: SocketAddr) -> Http {
        Http { listen, plaintext: false }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self.plaintext || self.listen.ip().is_loopback() {
            true => Ok(()),
            false => Err(ConfigError::HttpNotLoopback { listen: self.listen }),
        }
    }
}

impl Default for Http {
    fn default() -> Http {
        Http::at(loopback(ports::HTTP))
    }
}
