//! One connection to another pod: its socket, its link, and why it ends. A part of peers.

use std::time::Duration;

use crate::io::buffer::Pool;
use crate::io::driver::SocketId;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::net::handshake::{Identity, Purpose};
use crate::net::incarnations::Incarnations;
use crate::net::link::{Established, Link, LinkError, LinkEvent};
use crate::planted::planted;
use crate::security::certificate::CertificateError;
use crate::security::channel::{Channel, TlsError};
use crate::security::trust::Trust;
use crate::types::{Mono, Uuid};
use crate::worker::owed::Owed;
use crate::worker::stream::Stream;
use crate::worker::tls::is_of;

/// A connection on which nothing came for this long is dead.
pub const SILENCE: Duration = Duration::from_secs(5);

/// A pair of lanes, ours first, and the purpose of the connection.
pub type Pair = (Uuid, Uuid, Purpose);

/// A connection to a lane of another pod.
pub struct Conn {
    /// `None` until the connection is made.
    pub stream: Option<Stream>,
    pub link: Link,
    pub pair: Option<Pair>,
    pub touched: bool,
    /// When something last arrived.
    pub heard: Mono,
    pub owed: Owed,
}

/// Why a connection is closed that broke no rule of the protocol.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum EndReason {
    #[error("nothing was heard over it for {} seconds", SILENCE.as_secs())]
    Silent,
    #[error("its handshake did not end within {} seconds", HANDSHAKE_TIMEOUT.as_secs())]
    HandshakeLate,
    #[error("too many handshakes are unfinished, and its is the oldest")]
    HandshakesFull,
    #[error("the certificate of the other pod is void")]
    CertificateVoid(#[source] CertificateError),
}

/// Why what was received ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("its certificate is not that of pod {}, as which it speaks", .0.pod)]
    OtherPod(Identity),
}

impl Conn {
    /// Its socket is connected, and TLS begins if there is a channel.
    pub fn connected(&mut self, socket: SocketId, pool: Pool, channel: Option<Channel>) {
        let mut stream = Stream::new(socket, pool);
        if let Some(channel) = channel {
            stream.start_tls(channel);
        }
        self.stream = Some(stream);
    }

    /// Why the certificate of the other side is void by now, if it is.
    pub fn void_by(&self, trust: &Trust) -> Option<CertificateError> {
        let held = self.stream.as_ref()?.peer()?;
        trust.check_while_connected(held).err()
    }

    /// Gives what has arrived to the link (rule `links-name-their-pods`). `events` gets what came
    /// of it, also before an error.
    pub fn feed(
        &mut self,
        seen: &mut Incarnations,
        events: &mut Vec<LinkEvent>,
    ) -> Result<(), ReceiveError> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        loop {
            let opened = stream.open();
            let known = events.len();
            let fed = self.link.feed(&mut stream.reader, seen, events);
            if let Some(LinkEvent::Up(Established { peer, .. })) = events.get(known)
                && stream.has_tls()
                && !stream.peer().is_some_and(|certificate| is_of(certificate, peer))
                && !planted!(LinkOfAnyPod)
            {
                let peer = *peer;
                events.truncate(known);
                // The welcome is not for whoever this is.
                while !self.link.take_output().is_empty() {}
                return Err(ReceiveError::OtherPod(peer));
            }
            fed?;
            if !opened? {
                return Ok(());
            }
        }
    }
}
