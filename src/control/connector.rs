//! TLS of the API: how pods and clients connect, and how pods accept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;

use crate::security::credentials::{CredentialsError, Tls};
use crate::security::verifier::Expected;

/// What the API speaks under TLS.
const HTTP_2: &[u8] = b"h2";

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
pub struct Connector(TlsConnector);

impl Connector {
    pub fn new(mut config: rustls::ClientConfig) -> Connector {
        config.alpn_protocols = vec![HTTP_2.to_vec()];
        Connector(TlsConnector::from(Arc::new(config)))
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(crate::config::ports::API);
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        // Pods are known by their certificates, not by their places.
        let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
        Ok(TokioIo::new(self.0.connect(name, stream).await?))
    }
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
