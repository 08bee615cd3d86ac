//! Connections to the API: a bounded number of them, and each must say something soon (rule
//! `every-handshake-has-a-deadline`). Beyond the bound, new ones wait to be accepted.
//!
//! A connection over TCP is under TLS, unless the listener takes plain ones, too: its first byte
//! tells. A handshake is part of the connection's own work, and delays no other one. Who is at the
//! other end is a [`Caller`], which every request of the connection carries.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

use crate::limits::{HANDSHAKE_TIMEOUT, TICK};
use crate::planted::planted;
use crate::security::certificate::Certificate;
use crate::security::credentials::holder_of;
use crate::security::trust::Trust;

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 22;

/// Who is at the other end of a connection, by what its transport proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root, or this pod's own user, on its unix socket.
    Local,
    /// Anybody on this machine, where plain connections are allowed.
    Plain,
    /// Anybody with a certificate of the cluster.
    Holder(Box<Certificate>),
    /// Anybody, over TLS.
    Nobody,
}

/// See [`Who`]; known once the handshake is over, so before the first request.
#[derive(Clone, Debug, Default)]
pub struct Caller(Arc<OnceLock<Who>>);

impl Caller {
    pub fn new(who: Who) -> Caller {
        Caller(Arc::new(OnceLock::from(who)))
    }

    pub fn who(&self) -> &Who {
        self.0.get().unwrap_or(&Who::Nobody)
    }

    fn set(&self, who: Who) {
        // It is set once, by the one handshake of the connection.
        self.0.get_or_init(|| who);
    }
}

/// What a TCP listener takes.
#[derive(Clone)]
pub enum Accepts {
    /// This pod has no certificate.
    Plain,
    Tls(TlsAcceptor),
    /// Plain connections are for local tools, and the address is a loopback.
    Both(TlsAcceptor),
}

/// An accepted connection, which counts against the bound until it is dropped.
pub struct Connection {
    transport: Transport,
    caller: Caller,
    /// Until the first bytes of a request arrive.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whom this pod trusts, and the version of it that the caller was compared with last.
    trust: Option<(Trust, u64)>,
    _counts: OwnedSemaphorePermit,
}

enum Transport {
    /// Its first byte decides.
    New(TcpStream, TlsAcceptor),
    Shaking(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
    Plain(TcpStream),
    Unix(UnixStream),
    Ended,
}

/// Accepts at most `count_max` connections at a time.
pub fn accept(
    listener: TcpListener,
    count_max: usize,
    accepts: Accepts,
    trust: Option<Trust>,
) -> impl Stream<Item = io::Result<Connection>> {
    accept_within(listener, count_max, (accepts, trust), HANDSHAKE_TIMEOUT)
}

fn accept_within(
    listener: TcpListener,
    count_max: usize,
    (accepts, trust): (Accepts, Option<Trust>),
    patience: Duration,
) -> impl Stream<Item = io::Result<Connection>> {
    let free = Arc::new(Semaphore::new(count_max));
    TcpListenerStream::new(listener).then(move |accepted| {
        let (free, accepts, trust) = (Arc::clone(&free), accepts.clone(), trust.clone());
        async move {
            let counts = counted(free, &accepted).await?;
            let stream = accepted?;
            stream.set_nodelay(true)?;
            let (transport, caller) = match accepts {
                Accepts::Plain => (Transport::Plain(stream), Caller::new(Who::Plain)),
                Accepts::Both(tls) => (Transport::New(stream, tls), Caller::default()),
                Accepts::Tls(tls) => {
                    (Transport::Shaking(Box::new(tls.accept(stream))), Caller::default())
                }
            };
            let deadline = Some(Box::pin(sleep(patience)));
            let trust = trust.map(|trust| {
                let version = trust.version();
                (trust, version)
            });
            Ok(Connection { transport, caller, deadline, trust, _counts: counts })
        }
    })
}

/// Accepts local administrators: root, and `own`, the user that this pod runs as.
pub fn accept_local(
    listener: UnixListener,
    count_max: usize,
    own: u32,
) -> impl Stream<Item = io::Result<Connection>> {
    let free = Arc::new(Semaphore::new(count_max));
    UnixListenerStream::new(listener).then(move |accepted| {
        let free = Arc::clone(&free);
        async move {
            let counts = counted(free, &accepted).await?;
            let stream = accepted?;
            let user = stream.peer_cred()?.uid();
            if user != 0 && user != own {
                tracing::warn!(user, "a local connection to the API is refused");
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let (transport, caller) = (Transport::Unix(stream), Caller::new(Who::Local));
            let deadline = Some(Box::pin(sleep(HANDSHAKE_TIMEOUT)));
            Ok(Connection { transport, caller, deadline, trust: None, _counts: counts })
        }
    })
}

/// Waits until there is room for one more.
async fn counted<S>(
    free: Arc<Semaphore>,
    accepted: &io::Result<S>,
) -> io::Result<OwnedSemaphorePermit> {
    let counts = free.acquire_owned().await.map_err(io::Error::other)?;
    if accepted.is_err() {
        // It may stay: without a descriptor, every attempt fails at once.
        sleep(TICK).await;
    }
    Ok(counts)
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Connection {
    /// Waits until it is known how the other side speaks.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.transport = match std::mem::replace(&mut self.transport, Transport::Ended) {
                Transport::New(stream, tls) => {
                    let mut first = [0u8];
                    match stream.poll_peek(context, &mut ReadBuf::new(&mut first)) {
                        Poll::Ready(Ok(1)) if first[0] == TLS_HANDSHAKE => {
                            Transport::Shaking(Box::new(tls.accept(stream)))
                        }
                        Poll::Ready(Ok(_)) => {
                            self.caller.set(Who::Plain);
                            Transport::Plain(stream)
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            self.transport = Transport::New(stream, tls);
                            return self.poll_deadline(context);
                        }
                    }
                }
                Transport::Shaking(mut accept) => match Pin::new(&mut *accept).poll(context) {
                    Poll::Ready(Ok(stream)) => {
                        let holder = holder_of(stream.get_ref().1.peer_certificates());
                        let holder = holder.map(|holder| Who::Holder(Box::new(holder)));
                        self.caller.set(holder.unwrap_or(Who::Nobody));
                        Transport::Tls(Box::new(stream))
                    }
                    Poll::Ready(Err(error)) => {
                        tracing::debug!("a connection to the API is refused: {error}");
                        return Poll::Ready(Err(error));
                    }
                    Poll::Pending => {
                        self.transport = Transport::Shaking(accept);
                        return self.poll_deadline(context);
                    }
                },
                Transport::Ended => {
                    return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
                }
                ready => {
                    self.transport = ready;
                    return Poll::Ready(self.check_caller());
                }
            };
        }
    }

    /// Fails when the caller's certificate has become void (rule `void-connections-end`).
    fn check_caller(&mut self) -> io::Result<()> {
        let Some((trust, compared)) = &mut self.trust else { return Ok(()) };
        let version = trust.version();
        if version == *compared || planted!(VoidConnectionsStay) {
            return Ok(());
        }
        *compared = version;
        let Who::Holder(held) = self.caller.who() else { return Ok(()) };
        trust.check_holder(held).map_err(|error| {
            tracing::info!(subject = %held.subject, "a connection to the API is closed: {error}");
            io::Error::new(io::ErrorKind::ConnectionAborted, error)
        })
    }

    /// Fails when the deadline has passed.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(deadline) = &mut self.deadline {
            ready!(deadline.as_mut().poll(context));
            let silent = io::Error::new(io::ErrorKind::TimedOut, "nothing was ever sent");
            return Poll::Ready(Err(silent));
        }
        Poll::Pending
    }
}

/// Calls a method of the transport, which is ready.
macro_rules! on_transport {
    ($connection:expr, $context:expr, |$stream:ident| $call:expr) => {{
        ready!($connection.poll_ready($context))?;
        match &mut $connection.transport {
            Transport::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Transport::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Transport::Unix($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }};
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = on_transport!(self, context, |stream| stream.poll_read(context, buf));
        if read.is_ready() {
            self.deadline = None;
            return read;
        }
        self.poll_deadline(context)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_transport!(self, context, |stream| stream.poll_write(context, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_transport!(self, context, |stream| stream.poll_write_vectored(context, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_transport!(self, context, |stream| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            // Nothing was said that could be finished.
            _ => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::codegen::Service as _;

    use super::*;
    use crate::control::connector::{acceptor, connector};
    use crate::planted::{Mistake, assert_found};
    use crate::security::credentials::Tls;
    use crate::testing::tls_fixture::Cluster;

    #[tokio::test]
    async fn a_silent_connection_makes_room_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted =
            accept_within(listener, 1, (Accepts::Plain, None), Duration::from_millis(20));
        tokio::pin!(accepted);
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut talks = TcpStream::connect(address).await.unwrap();
        talks.write_all(b"x").await.unwrap();
        let mut first = accepted.next().await.unwrap().unwrap();
        let read = first.read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(first);
        let mut second = accepted.next().await.unwrap().unwrap();
        assert_eq!(second.read_u8().await.unwrap(), b'x');
    }
    /// A person's certificate is revoked while a stream of theirs is open.
    fn a_revoked_holder_is_cut_off() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::new(1);
            let (ada, trust) = (cluster.credentials("admin/ada"), cluster.trust());
            let served = Tls::new(&cluster.credentials("pod/1"), trust.clone()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let accepts = Accepts::Tls(acceptor(&served).unwrap());
            let accepted = accept(listener, 2, accepts, Some(trust.clone()));
            tokio::pin!(accepted);
            let own = Tls::new(&ada, cluster.trust()).unwrap();
            let uri = format!("http://{address}").parse().unwrap();
            let calls = tokio::spawn(connector(&own).unwrap().call(uri));
            let mut connection = accepted.next().await.unwrap().unwrap();
            let writes = tokio::spawn(async move {
                let mut stream = calls.await.unwrap().unwrap().into_inner();
                stream.write_all(b"abc").await.unwrap();
                stream
            });
            assert_eq!(connection.read_u8().await.unwrap(), b'a');
            trust.set_revoked(["another".to_owned()]);
            assert_eq!(connection.read_u8().await.unwrap(), b'b');
            let Who::Holder(held) = connection.caller.who() else { panic!("it has a certificate") };
            trust.set_revoked([held.serial.clone()]);
            let read = connection.read_u8().await.map_err(|error| error.kind());
            assert_eq!(read, Err(io::ErrorKind::ConnectionAborted));
            drop(writes.await.unwrap());
        });
    }

    #[test]
    fn a_connection_ends_when_its_certificate_is_void() {
        a_revoked_holder_is_cut_off();
    }

    #[test]
    fn a_connection_that_stays_with_a_void_certificate_is_found() {
        assert_found(Mistake::VoidConnectionsStay, a_revoked_holder_is_cut_off);
    }
}
