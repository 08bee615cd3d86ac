//! The listener for metrics and health.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Default port.
pub const PORT: u16 = 7480;

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

    /// True when others cannot reach it, or are meant to.
    pub fn is_meant(&self) -> bool {
        self.plaintext || self.listen.ip().is_loopback()
    }
}

impl Default for Http {
    fn default() -> Http {
        Http::at((Ipv4Addr::LOCALHOST, PORT).into())
    }
}
