//! TLS of the API: how pods and clients connect, and how pods accept.
//!
//! A name may stand for many pods, some of which are gone. Its addresses are tried one after the
//! other, each for a bounded time, and the next connection begins where this one had success.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

use crate::security::credentials::{CredentialsError, Tls};
use crate::security::verifier::Expected;

/// What the API speaks under TLS.
const HTTP_2: &[u8] = b"h2";
/// How long one of several addresses of a name may take.
pub const ADDRESS_WITHIN: Duration = Duration::from_millis(1500);

/// Accepts TLS on the API.
pub fn acceptor(tls: &Tls) -> Result<TlsAcceptor, CredentialsError> {
    let mut config = tls.server(Expected::AnybodyOrNobody, false)?;
    config.alpn_protocols = vec![HTTP_2.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connects to the API of any pod of the cluster, under TLS.
pub fn connector(tls: &Tls) -> Result<Connector, CredentialsError> {
    Ok(Connector::new(tls.client(Expected::Pod, false)?))
}

/// Makes connections under TLS for tonic.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    /// The place of the address of a name that comes first. Copies share it.
    turn: Arc<AtomicUsize>,
}

impl Connector {
    pub fn new(mut config: rustls::ClientConfig) -> Connector {
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        // Not all clients begin at the same pod.
        let turn = RandomState::new().hash_one(0) as usize;
        let turn = Arc::new(AtomicUsize::new(turn));
        Connector { tls: TlsConnector::from(Arc::new(config)), turn }
    }

    /// The next connection begins at another address of the name.
    pub fn turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(crate::config::ports::API);
        let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        // Servers of names shuffle them.
        addresses.sort_unstable();
        addresses.dedup();
        let connect = |address| self.connect_to(address);
        Ok(TokioIo::new(first(&addresses, &self.turn, ADDRESS_WITHIN, connect).await?))
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // Pods are known by their certificates, not by their places.
        let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
        self.tls.connect(name, stream).await
    }
}

/// Tries addresses from the one on, whose `turn` it is, until one answers. When this is given up in
/// between, the next call begins at the next address. A single address has all the time.
async fn first<T, Tried: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    turn: &AtomicUsize,
    within: Duration,
    connect: impl Fn(SocketAddr) -> Tried,
) -> io::Result<T> {
    if let [address] = addresses {
        return connect(*address).await;
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for _ in 0..addresses.len() {
        let place = turn.fetch_add(1, Ordering::Relaxed);
        let address = addresses[place % addresses.len()];
        match timeout(within, connect(address)).await {
            Ok(Ok(connected)) => {
                turn.store(place, Ordering::Relaxed);
                return Ok(connected);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7400))
    }

    /// One of three pods answers, one is gone without a word, and one refuses.
    #[tokio::test]
    async fn addresses_are_tried_until_one_answers() {
        let all = [1, 2, 3].map(address);
        let (turn, tried) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let connect = |to: SocketAddr| {
            tried.lock().unwrap().push(to);
            async move {
                match to {
                    to if to == address(1) => std::future::pending().await,
                    to if to == address(2) => Err(io::ErrorKind::ConnectionRefused.into()),
                    to => Ok(to),
                }
            }
        };
        let within = Duration::from_millis(1);
        assert_eq!(first(&all, &turn, within, &connect).await.unwrap(), address(3));
        assert_eq!(*tried.lock().unwrap(), all);
        // The next connection begins there, and one that is given up does not begin there again.
        tried.lock().unwrap().clear();
        assert_eq!(first(&all, &turn, within, &connect).await.unwrap(), address(3));
        assert_eq!(*tried.lock().unwrap(), [address(3)]);
        turn.store(0, Ordering::Relaxed);
        let given_up = timeout(within, first(&all, &turn, Duration::MAX, &connect)).await;
        assert!(given_up.is_err() && turn.load(Ordering::Relaxed) == 1);
        let none: [SocketAddr; 0] = [];
        assert!(first(&none, &turn, within, &connect).await.is_err());
        let failed = first(&all[1..2], &turn, within, &connect).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::ConnectionRefused);
    }
}
