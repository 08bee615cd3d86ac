//! Connections to pods, with an export open.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::attach::relay::hello::{Export, Hello, HelloError, Step};
use crate::front::nbd::LineNumber;
use crate::front::nbd::wire::{
    REQUEST_MAGIC, RequestHeader, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC, SimpleReply, command,
    export_flag, put_request,
};
use crate::security::credentials::{CredentialsError, Tls};
use crate::security::verifier::Expected;
use crate::types::Uuid;

/// A pod that takes longer to open an export is left alone for now.
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// Each volume has so many.
const LOOK_BYTES: usize = 4096;

/// Where a pod serves NBD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAddress {
    /// A pod of this node.
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for PodAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PodAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            PodAddress::Tcp(address) => address.fmt(f),
        }
    }
}

/// Why a pod cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("the connection broke")]
    Broke(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("nothing was heard for {} seconds", OPEN_WITHIN.as_secs())]
    Late,
    #[error("the pod wants TLS, and there is no certificate here")]
    NoCertificate,
    #[error("the pod has another export than before: {now:?}, not {before:?}")]
    Changed { before: Export, now: Export },
    #[error("cannot use the certificate")]
    Credentials(#[from] CredentialsError),
}

/// A stream of bytes to a pod.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection with an export open: requests may follow.
pub struct Opened {
    pub wire: Box<dyn Wire>,
    pub export: Export,
}

/// Opens exports at pods.
#[derive(Clone)]
pub struct Opener {
    export: String,
    /// For connections over TCP; `None`: they are plain.
    tls: Option<TlsConnector>,
    /// What the client knows of the export, which must stay true: as the first pod has opened it.
    known: Arc<Mutex<Option<Export>>>,
}

impl Opener {
    /// Opens `export`, over TCP under TLS if there are credentials.
    pub fn new(export: &str, tls: Option<&Tls>) -> Result<Opener, OpenError> {
        let tls = tls.map(|tls| tls.client(Expected::Pod, false)).transpose()?;
        let tls = tls.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Opener { export: export.to_owned(), tls, known: Arc::default() })
    }

    /// The client uses the export already, and knows it as this.
    pub fn knows(self, export: Export) -> Opener {
        self.set_known(|_| export);
        self
    }

    /// From now on the client may use so many bytes: pods with less are of no use.
    pub fn grow(&self, size_bytes: u64) {
        self.set_known(|known| Export { size_bytes, ..known });
    }

    fn set_known(&self, change: impl FnOnce(Export) -> Export) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(change(known.unwrap_or(Export { size_bytes: 0, flags: 0 })));
    }

    /// For looking: it takes no line's place.
    pub async fn open(&self, pod: &PodAddress) -> Result<Opened, OpenError> {
        self.open_with(pod, &self.export, Hello::new).await
    }

    /// The same for a line's requests: its older connection ends first. Lines are of attachments:
    /// an open volume may have clients that know nothing of each other.
    pub async fn open_line(&self, pod: &PodAddress, line: LineNumber) -> Result<Opened, OpenError> {
        match self.export.parse::<Uuid>() {
            Ok(_) => self.open_with(pod, &line.of(&self.export), Hello::new).await,
            Err(_) => self.open(pod).await,
        }
    }

    /// The same, with structured replies that tell what is allocated.
    pub async fn open_for_allocation(&self, pod: &PodAddress) -> Result<Opened, OpenError> {
        self.open_with(pod, &self.export, Hello::for_allocation).await
    }

    async fn open_with(
        &self,
        pod: &PodAddress,
        name: &str,
        hello: fn(&str, bool) -> Hello,
    ) -> Result<Opened, OpenError> {
        let hello = |tls| hello(name, tls);
        let opened = timeout(OPEN_WITHIN, self.open_now(pod, hello)).await;
        let opened = opened.map_err(|_| OpenError::Late)??;
        let now = opened.export;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *known.get_or_insert(now);
        let is_smaller = now.size_bytes < before.size_bytes;
        // A device may be read-only although its attachment is not.
        let lacks = before.flags & !now.flags & !export_flag::READ_ONLY != 0;
        // A client that only reads may go to a pod that would let it write.
        let is_read_only = !before.flags & now.flags & export_flag::READ_ONLY != 0;
        match is_smaller || lacks || is_read_only {
            true => Err(OpenError::Changed { before, now }),
            false => Ok(opened),
        }
    }

    /// True when a pod has opened the export before.
    pub fn was_open(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Returns the export as a pod has it now. It has answered a read, so its first part has a
    /// majority.
    pub async fn look(&self, pod: &PodAddress) -> Result<Export, OpenError> {
        let mut opened = self.open(pod).await?;
        let looked = timeout(OPEN_WITHIN, first_block(&mut *opened.wire)).await;
        looked.map_err(|_| OpenError::Late)??;
        Ok(opened.export)
    }

    async fn open_now(
        &self,
        pod: &PodAddress,
        hello: impl Fn(bool) -> Hello,
    ) -> Result<Opened, OpenError> {
        match pod {
            PodAddress::Unix(path) => {
                let wire = UnixStream::connect(path).await.map_err(OpenError::Connect)?;
                self.greet(wire, None, hello(false)).await
            }
            PodAddress::Tcp(address) => {
                let wire = TcpStream::connect(address).await.map_err(OpenError::Connect)?;
                wire.set_nodelay(true)?;
                // When the connection is left, nothing of it may arrive later.
                SockRef::from(&wire).set_linger(Some(Duration::ZERO))?;
                let hello = hello(self.tls.is_some());
                self.greet(wire, self.tls.as_ref(), hello).await
            }
        }
    }

    async fn greet<W: Wire + 'static>(
        &self,
        mut wire: W,
        tls: Option<&TlsConnector>,
        mut hello: Hello,
    ) -> Result<Opened, OpenError> {
        match talk(&mut wire, &mut hello).await? {
            Talked::Open(export) => Ok(Opened { wire: Box::new(wire), export }),
            Talked::Tls => {
                let tls = tls.ok_or(OpenError::NoCertificate)?;
                // Pods are known by their certificates, not by their places.
                let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
                let mut wire = tls.connect(name, wire).await?;
                wire.write_all(&hello.under_tls()).await?;
                wire.flush().await?;
                match talk(&mut wire, &mut hello).await? {
                    Talked::Open(export) => Ok(Opened { wire: Box::new(wire), export }),
                    Talked::Tls => Err(HelloError::Answer.into()),
                }
            }
        }
    }
}

/// Reads the first block.
async fn first_block(wire: &mut dyn Wire) -> Result<(), OpenError> {
    let (magic, command, length) = (REQUEST_MAGIC, command::READ, LOOK_BYTES as u32);
    let request = RequestHeader { magic, flags: 0, command, cookie: 1, offset: 0, length };
    let mut bytes = Vec::new();
    put_request(&mut bytes, &request);
    wire.write_all(&bytes).await?;
    wire.flush().await?;
    let mut answer = [0; SIMPLE_REPLY_BYTES];
    wire.read_exact(&mut answer).await?;
    match SimpleReply::decode(&answer) {
        Ok(SimpleReply { magic: SIMPLE_REPLY_MAGIC, error: 0, cookie: 1 }) => {
            wire.read_exact(&mut [0; LOOK_BYTES]).await?;
            Ok(())
        }
        _ => Err(HelloError::Answer.into()),
    }
}

enum Talked {
    Open(Export),
    Tls,
}

/// Carries a handshake on until something else has to happen.
async fn talk(wire: &mut (impl Wire + ?Sized), hello: &mut Hello) -> Result<Talked, OpenError> {
    let mut bytes = BytesMut::new();
    loop {
        match hello.step(&mut bytes)? {
            Step::Open(export) => return Ok(Talked::Open(export)),
            // Bytes before TLS may be anybody's.
            Step::Tls if !bytes.is_empty() => return Err(HelloError::Answer.into()),
            Step::Tls => return Ok(Talked::Tls),
            Step::Send(out) => {
                wire.write_all(&out).await?;
                wire.flush().await?;
            }
        }
        if wire.read_buf(&mut bytes).await? == 0 {
            return Err(OpenError::Broke(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

#[cfg(test)]
#[path = "pods_test.rs"]
mod tests;
