//! Programs of this machine use a device's relay over sockets, as they would use an NBD server.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::attach::relay::hello::Export;
use crate::attach::relay::pods::Wire;
use crate::attach::relay::run::{LineError, Relay};
use crate::attach::relay::welcome::{Welcome, WelcomeError, Welcomed};
use crate::limits::HANDSHAKE_TIMEOUT;

/// Connections of one device at a time.
const CONNECTIONS_MAX: usize = 16;
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the handshake failed")]
    Welcome(#[from] WelcomeError),
    #[error("the client's connection broke")]
    Client(#[from] io::Error),
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("the handshake did not end within {} seconds", HANDSHAKE_TIMEOUT.as_secs())]
    Late,
}

/// Serves connections for ever. `size_bytes`: clients are told of this size, and never use what
/// is behind the real one.
pub async fn serve(relay: &Relay, listener: &UnixListener, size_bytes: Option<u64>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                match accepted {
                    Ok((stream, _)) => {
                        let relay = relay.clone();
                        let work = async move { serve_one(&relay, stream, size_bytes).await };
                        connections.spawn(work);
                    }
                    Err(error) => {
                        // Such as no free descriptor: those that are there go on.
                        tracing::warn!("a client's connection is not accepted: {error}");
                        sleep(ACCEPT_AGAIN_AFTER).await;
                    }
                }
            }
            Some(ended) = connections.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!("a client's connection ended: {error}"),
                Err(error) => tracing::error!("a client's connection ended: {error}"),
            },
        }
    }
}

/// Serves one connection from its first byte on. Waits until some pod has opened the export.
async fn serve_one(
    relay: &Relay,
    mut stream: impl Wire,
    size_bytes: Option<u64>,
) -> Result<(), ServeError> {
    let Some(export) = relay.export().await else { return Ok(()) };
    let export = Export { size_bytes: size_bytes.unwrap_or(export.size_bytes), ..export };
    let greeted = timeout(HANDSHAKE_TIMEOUT, greet(export, &mut stream)).await;
    match greeted.map_err(|_| ServeError::Late)?? {
        Some(bytes) => Ok(relay.carry(stream, bytes).await?),
        None => Ok(()),
    }
}

/// Carries the handshake out. Returns the bytes behind it; `None`: the client went.
async fn greet(export: Export, stream: &mut impl Wire) -> Result<Option<BytesMut>, ServeError> {
    let (mut bytes, mut out) = (BytesMut::new(), BytesMut::new());
    let mut welcome = Welcome::new(export, &mut out);
    loop {
        let welcomed = welcome.step(&mut bytes, &mut out)?;
        stream.write_all_buf(&mut out).await?;
        match welcomed {
            Welcomed::Open => return Ok(Some(bytes)),
            Welcomed::Aborted => return Ok(None),
            Welcomed::NotYet => {}
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}
